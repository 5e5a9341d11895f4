"""What is made of sets of pictures: pairs of channels, and crops of objects by class."""

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data import channels, objects, picture_sets
from diffusion_jax.data.prepare import main

PICTURES = np.random.default_rng(0).integers(0, 256, (10, 12, 16, 3)).astype(np.uint8)
SPLIT = np.array([0] * 7 + [2] * 3)


@pytest.fixture
def file(tmp_path):
    """Pictures with a box of 4 x 4 pixels in each, of two classes; the last is in a corner."""
    boxes = np.float32([[i, i % 2, 4 / 16, 2 / 12, 8 / 16, 6 / 12] for i in range(9)] + [[9, 1, 0, 0, 0.1, 0.1]])
    np.savez(tmp_path / "set.npz", images=PICTURES, split=SPLIT, boxes=boxes, class_names=np.array(["red", "white"]))
    return tmp_path / "set.npz"


def test_channels_are_pairs_that_a_model_reads(file, tmp_path):
    main(["channels", "--from", str(file), "--data_dir", str(tmp_path / "pairs"), "--size", "8"])
    for split, number in (("train", 2 * 4 * 7), ("test", 4 * 3)):
        options = dict(name="arrays", path=str(tmp_path / "pairs"), split=split, modality="image")
        source = data.load(**options, shapes={"image": (8, 8, 1)}, channels=2, image_size=8)
        assert len(source) == number and source.entries["x"].shape == (8, 8, 2)
    batch = source.batch(np.arange(1))
    np.testing.assert_allclose((batch["x"][0] + 1) * 127.5, PICTURES[7, :8, :8][..., [0, 2]], atol=1e-4)
    np.testing.assert_allclose((batch["image"][0] + 1) * 127.5, PICTURES[7, :8, :8, 1:2], atol=1e-4)


def test_objects_are_crops_around_their_boxes(file, tmp_path):
    main(["objects", "--from", str(file), "--data_dir", str(tmp_path / "crops"), "--size", "6"])
    options = dict(name="arrays", path=str(tmp_path / "crops"))
    train, test = (data.load(**options, eval_split=split, evaluation=True) for split in ("train", "test"))
    assert (len(train), len(test)) == (7, 3) and train.facts["classes"] == ("red", "white")
    found = test.batch(np.arange(3))
    np.testing.assert_array_equal(found["label"], [1, 0, 1])
    pixels = np.round((found["x"] + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(pixels[0], PICTURES[7, 1:7, 3:9])
    np.testing.assert_array_equal(pixels[2], PICTURES[9, :6, :6])  # moved inside


def test_a_folder_without_splits_holds_a_tenth_out(tmp_path):
    (tmp_path / "deep").mkdir()
    for i, picture in enumerate(PICTURES):
        PIL.Image.fromarray(picture).save(tmp_path / "deep" / f"{i}.png")
    found = picture_sets.pictures(tmp_path)
    assert {split: len(part) for split, part in found.items()} == {"train": 9, "test": 1}
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="train has no image files"):
        picture_sets.pictures(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(boxes=None), r"`boxes` must be \[m, 6\], the first number an image in 0\.\.9, not none"),
        (dict(boxes=np.float32([[10, 0, 0, 0, 1, 1]])), "the first number an image in 0..9"),
        (
            dict(boxes=np.float32([[1, 1, 4, 2, 8, 6]])),
            r"`boxes` must have left < right .* in \[0, 1\], got values in 2\.\.8",
        ),
        (dict(boxes=np.float32([[1, 1, 0, 0, np.nan, 1]])), "`boxes` must have left < right"),
        (dict(boxes=np.float32([[1, 2, 0, 0, 1, 1]])), r"the classes of boxes are in 2\.\.2, of 2 names"),
        (dict(boxes=np.float32([[1, 1, 0, 0, 1, 1]])), "no box is in the 3 pictures of the split 'test'"),
        (dict(images=PICTURES.astype(np.float32)), "`images` must be uint8"),
        (dict(split=np.zeros(10)), "`split` .* must be 2 for some"),
    ],
)
def test_what_has_no_objects_is_refused(file, tmp_path, changes, words):
    arrays = dict(np.load(file)) | changes
    np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=words):
        objects.write(file, tmp_path / "crops", size=6)


def test_crops_and_squares_that_do_not_fit_are_refused(file, tmp_path):
    for size in (0, 13):
        with pytest.raises(ValueError, match=rf"--size={size} must be in 1\.\.12"):
            objects.write(file, tmp_path / "crops", size=size)
    with pytest.raises(ValueError, match="--size is -5; it must be at least 0"):
        channels.write(file, tmp_path / "pairs", size=-5)
    with pytest.raises(ValueError, match="--size=N cuts squares"):
        channels.write(file, tmp_path / "pairs")
    with pytest.raises(ValueError, match=r"is not an \.npz file with `images`"):
        channels.write(tmp_path / "nothing.npz", tmp_path / "pairs")
