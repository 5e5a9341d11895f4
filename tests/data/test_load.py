"""What a data set says of itself: the entries of its batches, its keys, and what is known without opening it."""

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data import derived
from diffusion_jax.data.load import COMMON, SOURCES, keys, opener
from diffusion_jax.types import Spec


def _sources(folder):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 4, 4, 3), np.uint8)
    np.savez(
        folder / "images.npz",
        images=images,
        labels=np.arange(6) % 3,
        caption=np.array(list("abcdef")),
        control=images,
        vector=rng.normal(size=(6, 5)),
        mask=rng.random((6, 2)) > 0.5,
    )
    np.savez(folder / "field.npz", x=10 * rng.normal(size=(6, 3, 4, 1)))
    arrays = dict(name="arrays", path=str(folder / "images.npz"))
    yield data.load(**arrays)
    yield data.load(**arrays, max_tokens=4, image_size=2, channels=1)
    yield data.load(**arrays, derive=derived.averaged(2))
    yield data.load(**arrays, derive=derived.WITH_MASK, dequantize=True)
    yield data.load(name="arrays", path=str(folder / "field.npz"), modality="array")
    yield data.load(name="digits", captions=tuple("0123456789"), max_tokens=3)
    yield data.load(name="toy", num_examples=6)
    yield data.load(name="toy", num_examples=6, kind="swiss_roll")


def test_entries_are_those_of_batches(tmp_path):
    for source in _sources(tmp_path):
        for rng in (None, np.random.default_rng(0)):
            batch = source.batch(np.array([1, 4]), rng)
            found = {name: (value.shape[1:], value.dtype.name) for name, value in batch.items()}
            assert found == {name: (entry.shape, entry.dtype) for name, entry in source.entries.items()}
        assert ("label" in batch) == bool(source.num_classes)


def test_numbers_that_are_no_images_are_taken_as_they_are(tmp_path):
    x = 10 * np.random.default_rng(0).normal(size=(6, 3, 4, 1))
    np.savez(tmp_path / "a.npz", x=x)
    options = dict(name="arrays", path=str(tmp_path / "a.npz"))
    source = data.load(**options, modality="array", shape=(3, 4, 1))
    np.testing.assert_array_equal(data.arrays(source)["x"], x.astype(np.float32))
    assert source.entries == {"x": Spec((3, 4, 1), modality="array")}
    with pytest.raises(ValueError, match=r"a\.npz, key 'x'.*\[-1, 1\]"):
        data.load(**options)
    np.savez(tmp_path / "b.npz", x=np.zeros((6, 3, 4, 1), np.uint8))
    with pytest.raises(ValueError, match=r"data\.modality='array': .*b\.npz"):
        data.load(name="arrays", path=str(tmp_path / "b.npz"), modality="array")
    np.savez(tmp_path / "c.npz", x=np.full((6, 2), np.nan))
    with pytest.raises(ValueError, match=r"c\.npz, key 'x'.*finite"):
        data.load(name="arrays", path=str(tmp_path / "c.npz"), modality="points")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (dict(name="digits", image_size=8, channels=1), Spec((8, 8, 1), modality="image")),
        (dict(name="cifar10", image_size=32, channels=3), Spec((32, 32, 3), modality="image")),
        (dict(name="folder", image_size=16, channels=3), Spec((16, 16, 3), modality="image")),
        (dict(name="arrays", image_size=16, channels=1), Spec((16, 16, 1), modality="image")),
        (dict(name="arrays", image_size=16, channels=4), Spec((16, 16, 4))),
        (dict(name="arrays", image_size=16, channels=3, modality="array"), Spec((16, 16, 3))),
        (dict(name="arrays", shape=(5, 6, 3)), Spec((5, 6, 3), modality="image")),
        (dict(name="arrays", shape=(7,)), Spec((7,))),
        (dict(name="arrays", shape=(2,), modality="points"), Spec((2,), modality="points")),
        (dict(name="toy"), Spec((2,), modality="points")),
    ],
)
def test_the_kind_of_data_is_known_without_opening_it(section, expected):
    assert opener(section["name"]).spec(section) == expected


@pytest.mark.parametrize("change", [dict(image_size=0), dict(channels=None), dict(image_size="8")])
def test_images_need_a_size(change):
    section = dict(name="digits", image_size=8, channels=1) | change
    with pytest.raises(ValueError, match=rf"data\.{next(iter(change))}=.*positive integer.*'digits'"):
        opener("digits").spec(section)


def test_facts():
    assert data.load(name="digits", levels=17).facts["levels"] == 17
    assert opener("mnist").facts(dict(name="mnist")) == {"levels": 256}
    mixture, rings = (data.load(name="toy", num_examples=4, kind=kind) for kind in ("gaussian_mixture", "rings"))
    assert mixture.facts.keys() == {"log_density", "mixture"} and rings.facts == {}
    assert opener("toy").facts({}).keys() == mixture.facts.keys()


def test_keys():
    assert keys("toy") == ("kind", "num_examples", "seed")
    assert {"caption_key", "balance"} <= {*keys("folder")} - {*keys("digits")}
    assert {*keys("mnist")} == {"path", "resize", *keys("digits")}
    for name in (*SOURCES, "mnist"):
        assert not {*keys(name)} & {"split", "wanted", "tokenize", "derive", *COMMON}
    with pytest.raises(ValueError, match=r"data\.flips=True: 'digits' takes no 'flips'; it takes image_size, "):
        data.load(name="digits", flips=True)


def test_latents_of_three_channels_are_no_images(tmp_path):
    """As `run.encode.decoded` reads them: of any range, negative or not."""
    x = np.abs(3 * np.random.default_rng(0).normal(size=(6, 2, 2, 3)))
    np.savez(tmp_path / "a.npz", samples=x)
    source = data.load(name="arrays", path=str(tmp_path / "a.npz"), modality="array")
    np.testing.assert_array_equal(data.arrays(source)["x"], x.astype(np.float32))
