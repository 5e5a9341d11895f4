"""Two sets without pairs, Gaussian vectors, and pairs of emoji in two skin tones."""

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data import emoji

DIGITS = dict(name="digits", image_size=8, channels=1)


def sets(**sections):
    return data.load(name="unpaired", **{"x": dict(DIGITS, only=(3,)), "image": dict(DIGITS, only=(8,))} | sections)


def test_classes_are_limited_to_those_wanted():
    source, digits = sets(), data.arrays(data.load(**DIGITS))
    batch = source.batch(np.arange(len(source)))
    np.testing.assert_array_equal(batch["x"], digits["x"][digits["label"] == 3])
    eights = digits["x"][digits["label"] == 8]
    np.testing.assert_array_equal(batch["image"][:10], eights[:10])
    assert not batch.keys() - {"x", "image", "label"}


def test_training_draws_the_other_set_evenly_and_independently():
    source = sets()
    rng, counts = np.random.default_rng(0), {}
    for _ in range(40):
        for row in source.batch(np.arange(len(source)), rng)["image"]:
            counts[row.tobytes()] = counts.get(row.tobytes(), 0) + 1
    values = np.array(list(counts.values()))
    number = len(data.load(name="unpaired", x=dict(DIGITS, only=(8,)), image=dict(DIGITS, only=(3,))))
    assert len(values) == number  # all eights occur, 40 x as often on average
    assert values.std() == pytest.approx(np.sqrt(values.mean()), rel=0.35)
    first, again = (source.batch(np.arange(3), np.random.default_rng(1))["image"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_a_set_of_no_such_class_is_refused():
    with pytest.raises(ValueError, match=r"data\.image\.only=\(11,\)"):
        sets(image=dict(DIGITS, only=(11,)))
    with pytest.raises(ValueError, match=r"data\.x\.nonsense"):
        sets(x=dict(DIGITS, nonsense=1))
    with pytest.raises(ValueError, match=r"data\.image=.* must be a section"):
        sets(image={})


def test_gaussians_have_their_moments():
    source = data.load(name="gaussian", dim=3, mean=-0.1, std=2.0, num_examples=40_000)
    x = source.batch(np.arange(len(source)))["x"]
    np.testing.assert_allclose(x.mean(0), -0.1, atol=0.04)
    np.testing.assert_allclose(np.cov(x.T), 4 * np.eye(3), atol=0.1)
    assert not np.array_equal(x[:5], data.load(name="gaussian", dim=3, split="test").batch(np.arange(5))["x"])
    with pytest.raises(ValueError, match=r"data\.std"):
        data.load(name="gaussian", std=0.0)


def emoji_file(path, n=130):
    rng, names, images = np.random.default_rng(0), [], []
    for i in range(n):
        for j, tone in enumerate(emoji.TONES):
            names.append(f"{i:x}_{tone}")
            images.append(np.full((4, 4, 4), 10 * j, np.uint8) + np.uint8(i))
    names += ["1f600", "1f9d1_1f3fb_200d_1f9d1_1f3ff"]  # no tone, and two
    images += list(rng.integers(0, 255, (2, 4, 4, 4), np.uint8))
    images = np.stack(images)
    images[..., 3] = 255
    images[0, 0, 0, 3] = 0
    np.savez(path, images=images, codepoints=np.array(names))
    return path


def test_tones_are_paired_by_emoji_and_split_by_emoji(tmp_path):
    made = emoji.pairs(emoji_file(tmp_path / "emoji.npz"))
    assert {split: len(arrays["images"]) for split, arrays in made.items()} == {"train": 140, "test": 60}
    for name, x in made["train"].items():
        np.testing.assert_array_equal(x[1::2], x[::2, :, ::-1])
        made["train"][name] = x[::2]
    for arrays in made.values():
        whole = np.all(arrays["image"] != 255, axis=(1, 2, 3))
        np.testing.assert_array_equal(arrays["images"][whole] - arrays["image"][whole], 40)
    bases = [set(arrays["images"][:, 1, 1, 0].tolist()) for arrays in made.values()]
    assert not bases[0] & bases[1] and len(bases[0] | bases[1]) == 130
    assert max((arrays["image"] == 255).sum() for arrays in made.values()) == 3  # the transparent pixel is white
    folder = emoji.write(tmp_path / "emoji.npz", tmp_path / "pairs")
    source = data.load(name="arrays", path=str(folder), split="test", image_size=4, channels=3)
    assert source.entries["image"].shape == (4, 4, 3)


def test_five_tones_are_the_classes_of_the_same_emoji(tmp_path):
    made, both = emoji.five_tones(emoji_file(tmp_path / "emoji.npz")), emoji.pairs(tmp_path / "emoji.npz")
    assert {split: x["images"].shape for split, x in made.items()} == {"train": (700, 4, 4, 3), "test": (300, 4, 4, 3)}
    for split, arrays in made.items():
        np.testing.assert_array_equal(arrays["labels"], np.arange(len(arrays["labels"])) % 5)
        light, dark = (arrays["images"][arrays["labels"] == tone] for tone in (0, 4))
        pairs = both[split]
        if split == "train":
            np.testing.assert_array_equal(arrays["images"][350:], arrays["images"][:350, :, ::-1])
            light, dark, pairs = light[:70], dark[:70], {name: x[::2] for name, x in pairs.items()}
        np.testing.assert_array_equal(light, pairs["image"])
        np.testing.assert_array_equal(dark, pairs["images"])
    folder = emoji.write(tmp_path / "emoji.npz", tmp_path / "tones", emoji.five_tones)
    assert data.load(name="arrays", path=str(folder), split="test", image_size=4, channels=3).num_classes == 5


def test_other_files_of_emoji_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz"):
        emoji.pairs(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="more than 120"):
        emoji.pairs(emoji_file(tmp_path / "few.npz", n=100))
    with pytest.raises(ValueError, match="'green'"):
        emoji.pairs(tmp_path / "few.npz", "green")
