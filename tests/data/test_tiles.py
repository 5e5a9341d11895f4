"""Tiles of large images: no pixel is in both splits, and what cannot be cut is refused by name."""

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data.sources import tiles


@pytest.fixture
def picture(tmp_path):
    """40 x 64 pixels whose value is their column, so that tiles say where they are from."""
    values = np.broadcast_to(np.arange(64, dtype=np.uint8), (40, 64))
    PIL.Image.fromarray(values).save(tmp_path / "scan.png")
    return str(tmp_path / "scan.png")


def columns(x: np.ndarray) -> set[int]:
    return set(np.round((x + 1) * 127.5).astype(int).ravel().tolist())


def test_the_right_quarter_is_held_out(picture):
    train, test = (tiles.open_source(path=picture, image_size=8, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (5 * 6, 5 * 2)
    random = train.batch(np.zeros(500, int), np.random.default_rng(0))["x"]
    assert columns(random) == set(range(48)) and columns(test.batch(np.arange(len(test)))["x"]) == set(range(48, 64))
    np.testing.assert_array_equal(train.batch(np.arange(2))["x"], train.batch(np.arange(2))["x"])
    steps = np.diff(random[:, 0, :, 0], axis=1)
    assert (steps > 0).all(1).mean() == pytest.approx(0.5, abs=0.1)  # the others are mirrored


def test_tiles_are_reduced_and_may_be_logarithms(picture):
    plain = tiles.open_source(path=picture, image_size=8, reduce=2).batch(np.arange(1))["x"]
    np.testing.assert_allclose((plain[0, 0, :, 0] + 1) * 127.5, np.arange(8) * 2 + 0.5, atol=1e-4)
    log = tiles.open_source(path=picture, image_size=8, log=True).batch(np.arange(1))["x"]
    np.testing.assert_allclose(256 * np.exp((log[0, 0, :, 0] - 1) * np.log(256) / 2) - 1, np.arange(8), atol=1e-3)


def test_a_slice_of_a_split_has_its_own_tiles_alone(picture):
    first, second = (tiles.open_source(path=picture, image_size=8, split=f"train[{part}]") for part in (":10", "10:"))
    assert (len(first), len(second)) == (10, 20)
    again = first.batch(np.arange(10), np.random.default_rng(0))["x"]
    np.testing.assert_array_equal(again, first.batch(np.arange(10))["x"])


def test_the_embedded_slice_is_a_head():
    source = data.load(name="tiles", image_size=16, channels=1)
    x = source.batch(np.arange(len(source)))["x"]
    assert source.entries["x"].shape == (16, 16, 1) and x.shape == (15 * 8, 16, 16, 1)
    assert -1 <= x.min() < -0.9 and 0.9 < x.max() <= 1


def test_several_images_of_a_folder_are_drawn_by_their_size(picture, tmp_path):
    PIL.Image.fromarray(np.full((40, 192), 200, np.uint8)).save(tmp_path / "wide.png")
    source = tiles.open_source(path=str(tmp_path), image_size=8)
    x = source.batch(np.zeros(2000, int), np.random.default_rng(0))["x"]
    assert (x.mean((1, 2, 3)) > 0.5).mean() == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(path="nowhere.png"), "data.path = 'nowhere.png' does not exist"),
        (dict(split="valid"), "Unknown split 'valid'"),
        (dict(image_size=64), "data.image_size=64 is larger than the part of the embedded slice for 'test'"),
        (dict(image_size=2), "data.image_size is 2; it must be an integer of at least 4"),
        (dict(channels=2), "data.channels is 2; it must be 1 or 3"),
        (dict(reduce=0), "data.reduce is 0"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        tiles.open_source(**{"split": "test"} | options)
