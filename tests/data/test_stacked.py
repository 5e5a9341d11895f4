"""Stacked digits: every channel is a digit of the split, labels are those of the triples, all modes are there."""

import numpy as np
import pytest

from diffusion_jax import data

DIGITS = dict(name="digits", image_size=8, channels=1)


def stacked(**changes):
    given = dict(name="stacked", image_size=8, channels=3, examples=dict(name="digits"), num_examples=3000)
    return data.load(**given | changes)


@pytest.mark.parametrize("split", ["train", "test"])
def test_channels_are_digits_of_the_split_with_the_label_of_the_triple(split):
    digits = data.arrays(data.load(**DIGITS, split=split))
    label_of = {x.tobytes(): label for x, label in zip(digits["x"], digits["label"], strict=True)}
    triples = data.arrays(stacked(split=split), 200)
    assert triples["x"].shape == (200, 8, 8, 3) and triples["x"].dtype == np.float32
    for x, label in zip(triples["x"], triples["label"], strict=True):
        found = [label_of[np.ascontiguousarray(x[..., c : c + 1]).tobytes()] for c in range(3)]
        assert label == 100 * found[0] + 10 * found[1] + found[2]


def test_triples_are_fixed_by_the_seed_and_their_channels_independent():
    source = stacked(num_examples=20_000)
    assert len(source) == 20_000 and source.num_classes == 1000 and source.facts["levels"] == 256
    first = data.arrays(source)
    np.testing.assert_array_equal(first["label"], data.arrays(stacked(num_examples=20_000))["label"])
    assert (data.arrays(stacked(num_examples=20_000, seed=1))["label"] != first["label"]).mean() > 0.9
    channels = np.stack([first["label"] // 100, first["label"] // 10 % 10, first["label"] % 10])
    assert len(np.unique(first["label"])) == 1000
    # The correlation of independent draws has standard deviation 1 / sqrt(n).
    assert np.abs(np.corrcoef(channels) - np.eye(3)).max() < 4 / np.sqrt(20_000)


def test_dequantization_draws_independent_noise_for_each_channel():
    source = stacked(examples=dict(name="digits", dequantize=True, levels=17))
    batch = next(data.batches(source, batch_size=500, seed=0))
    noise = np.mod((batch["x"] + 1) * 17 / 2, 1).reshape(-1, 3)
    assert noise.mean() == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.03


def test_batches_of_images_without_random_augmentation():
    batch = next(data.batches(stacked(), batch_size=5, seed=0))
    assert batch["x"].shape == (5, 8, 8, 3) and batch["label"].shape == (5,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(channels=1), r"data\.channels=1 must be 3"),
        (dict(examples={}), r"data\.examples=\{\} must be a section"),
        (dict(examples=dict(name="stacked")), r"data\.examples\.name='stacked' must be one data set"),
        (dict(examples=dict(name="digits", channels=3)), r"data\.examples\.channels=3 must be 1"),
        (dict(examples=dict(name="digits", path="a")), r"data\.examples\.path: 'digits' takes no 'path'"),
        (dict(num_examples=0), r"data\.num_examples=0 must be positive"),
    ],
)
def test_refusals_of_stacked_images(changes, message):
    with pytest.raises(ValueError, match=message):
        stacked(**changes)


def test_images_without_classes_have_no_modes(tmp_path):
    np.save(tmp_path / "train.npy", np.zeros((4, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="has no classes"):
        stacked(examples=dict(name="arrays", path=str(tmp_path)))
