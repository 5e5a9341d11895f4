"""Sets that are mixed for DreamBooth, and pairs of images whose edits are computed."""

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data import image_edits
from diffusion_jax.data.captions import texts_of

DIGITS = dict(name="digits", image_size=8, channels=1)
SUBJECT = dict(name="digits", split="train[:50]", only=(3,), edit="invert", prompts=("my three", "a three"))
CLASS = dict(name="digits", only=(3,), prompts=("three",))


def mixed(**changes):
    given = dict(name="mixed", image_size=8, channels=1, max_tokens=8, instance=SUBJECT, prior=CLASS)
    return data.load(**given | changes)


def test_half_of_a_batch_are_images_of_the_class_and_every_row_has_its_prompt():
    source = mixed(prior_weight=0.5)
    threes = {row.tobytes() for row in data.arrays(data.load(**DIGITS))["x"]}
    batches = data.batches(source, batch_size=16, seed=0)
    seen = set()
    for _ in range(5):
        batch = next(batches)
        texts = np.array(texts_of(batch["tokens"]))
        prior = texts == "three"
        assert prior.sum() == 8 and set(texts) <= {"three", "my three", "a three"}
        np.testing.assert_array_equal(batch["weight"], np.where(prior, 1.0, 2.0))
        assert all((-x if own else x).tobytes() in threes for x, own in zip(batch["x"], ~prior, strict=True))
        seen |= set(texts)
    assert seen == {"three", "my three", "a three"}


def test_without_images_of_the_class_weights_are_one():
    source = mixed(prior=dict(name="none"))
    batch = next(data.batches(source, batch_size=6, seed=0))
    assert source.groups is None and (batch["weight"] == 1).all() and "three" not in texts_of(batch["tokens"])


def test_weighted_means_are_the_loss_of_the_subject_and_that_of_its_class():
    batch = next(data.batches(mixed(prior_weight=0.3), batch_size=10, seed=1))
    losses, prior = np.arange(10.0), np.array(texts_of(batch["tokens"])) == "three"
    expected = losses[~prior].mean() + 0.3 * losses[prior].mean()
    assert (batch["weight"] * losses).mean() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(instance={}), r"data\.instance=\{\} must be a section"),
        (
            dict(instance=SUBJECT | dict(name="folder", only=None, edit="", path="/nowhere")),
            r"data\.instance: .*not exist",
        ),
        (
            dict(prior=CLASS | dict(image_size=4)),
            r"data\.instance holds images of \(8, 8, 1\) and data\.prior of \(4, 4",
        ),
        (dict(instance=dict(name="digits")), r"data\.instance\.prompts=\(\) must be texts"),
        (dict(instance=SUBJECT | dict(prompts="my three")), r"data\.instance\.prompts='my three' must be a tuple"),
        (dict(instance=SUBJECT | dict(edit="swap")), r"data\.instance\.edit: .*'swap' needs images of 3 channels"),
        (dict(prior_weight=0.0), r"data\.prior_weight=0\.0 must be positive"),
        (dict(prior=CLASS | dict(only=(11,))), r"data\.prior\.only=\(11,\)"),
    ],
)
def test_refusals_of_mixed_sets(changes, message):
    with pytest.raises(ValueError, match=message):
        mixed(**changes)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"data\.instance: No image file in {tmp_path}"):
        mixed(instance=dict(name="folder", path=str(tmp_path), prompts=("my three",)))


IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 6, 6, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "power"), [("invert", 2), ("mirror", 2), ("rotate", 4), ("swap", 2), ("rotate_colours", 3)]
)
def test_edits_that_are_permutations_or_signs_have_their_order(name, power):
    x = IMAGES
    for i in range(power):
        x = image_edits.named(name, 3).apply(x)
        assert np.array_equal(x, IMAGES) == (i == power - 1)


def test_other_edits_agree_with_their_definitions():
    names = ("thicken", "thin", "blur", "left", "brighten", "darken")
    apply = {name: image_edits.named(name, 3).apply(IMAGES) for name in names}
    window = IMAGES[:, 1:4, 2:5]
    np.testing.assert_allclose(apply["thicken"][:, 2, 3], window.max((1, 2)))
    np.testing.assert_allclose(apply["thin"][:, 2, 3], window.min((1, 2)))
    np.testing.assert_allclose(apply["blur"][:, 2, 3], window.mean((1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(apply["left"][:, :, :5], IMAGES[:, :, 1:])
    np.testing.assert_array_equal(apply["left"][:, :, 5], IMAGES[:, :, 5])
    for name, sign in (("brighten", 1), ("darken", -1)):
        np.testing.assert_array_equal(apply[name], np.clip(IMAGES + np.float32(sign * 0.5), -1, 1))
    grey = image_edits.named("grey", 3).apply(IMAGES)
    assert np.ptp(grey, axis=-1).max() == 0 and np.abs(image_edits.named("grey", 3).apply(grey) - grey).max() < 1e-6


def edited(**changes):
    given = dict(name="edits", image_size=8, channels=1, max_tokens=8, examples=dict(name="digits"), split="test")
    return data.load(**given | dict(edits=("invert", "rotate")) | changes)


def test_every_image_comes_with_every_edit_and_its_instruction():
    source, digits = edited(), data.arrays(data.load(**DIGITS, split="test"))["x"]
    assert len(source) == 2 * len(digits)
    batch = source.batch(np.arange(20))
    np.testing.assert_array_equal(batch["image"], np.repeat(digits[:10], 2, axis=0))
    np.testing.assert_array_equal(batch["x"][::2], -digits[:10])
    np.testing.assert_array_equal(batch["x"][1::2], np.rot90(digits[:10], axes=(1, 2)))
    assert texts_of(batch["tokens"]) == ["invert", "rotate"] * 10
    other = edited(instructions=("negate", "turn"))
    assert texts_of(other.batch(np.arange(2))["tokens"]) == ["negate", "turn"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(edits=()), r"data\.edits must be names of edits"),
        (dict(edits=("melt",)), r"data\.edits: the edit 'melt' is unknown; choose one of invert"),
        (dict(edits=("grey",)), r"data\.edits: the edit 'grey' needs images of 3 channels"),
        (dict(instructions=("negate",)), r"data\.instructions has 1 texts for the 2 of data\.edits"),
        (dict(examples=dict(name="edits")), r"data\.examples\.name='edits' must be one data set"),
    ],
)
def test_refusals_of_edits(changes, message):
    with pytest.raises(ValueError, match=message):
        edited(**changes)
