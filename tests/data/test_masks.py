"""Pairs of images and masks: of folders and array files, composited pictures, and what is refused by name."""

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data import masks, picture_sets
from diffusion_jax.data.prepare import main

PICTURES = np.random.default_rng(0).integers(0, 256, (12, 8, 12, 3)).astype(np.uint8)
INSIDE = PICTURES.mean(-1) > 128


@pytest.fixture
def folder(tmp_path):
    """images/ and masks/ with one pair for each picture, of one name and two formats."""
    for i, (picture, inside) in enumerate(zip(PICTURES, INSIDE, strict=True)):
        for kind, name, values in (("images", f"{i}.png", picture), ("masks", f"{i}.bmp", np.uint8(255 * inside))):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(values).save(tmp_path / "set" / kind / name)
    return tmp_path / "set"


def test_a_folder_becomes_squares_whose_masks_are_theirs(folder, tmp_path):
    masks.write(folder, tmp_path / "pairs", size=8)
    for split, number in (("train", 2 * 2 * 11), ("test", 2)):
        options = dict(name="arrays", path=str(tmp_path / "pairs"), split=split, modality="mask")
        source = data.load(**options, shapes={"image": (8, 8, 3)})
        batch = source.batch(np.arange(len(source)))
        assert len(source) == number
        assert source.entries["x"].shape == (8, 8, 1) and source.entries["x"].modality == "mask"
        gray = np.round(127.5 * (batch["image"] + 1)).mean(-1, keepdims=True)
        np.testing.assert_array_equal(batch["x"], np.where(gray > 128, 1, -1))
        with np.load(tmp_path / "pairs" / "pictures" / f"{split}.npz") as pictures:
            assert pictures["images"].shape == (number, 8, 8, 3)
    with np.load(tmp_path / "pairs" / "train.npz") as pairs:
        np.testing.assert_array_equal(pairs["image"][1], pairs["image"][0][:, ::-1])


def test_squares_cover_the_image_and_its_ends():
    assert picture_sets.starts(54, 32) == [0, 22]
    assert picture_sets.starts(72, 32) == [0, 20, 40]
    assert picture_sets.starts(32, 32) == [0]


def test_an_image_without_a_mask_is_refused_by_name(folder, tmp_path):
    (folder / "masks" / "3.bmp").unlink()
    with pytest.raises(ValueError, match="12 images and 11 masks; images without masks: 3"):
        masks.write(folder, tmp_path / "pairs")


def test_a_mask_of_another_size_is_refused_by_name(folder, tmp_path):
    PIL.Image.new("L", (8, 8)).save(folder / "masks" / "5.bmp")
    with pytest.raises(ValueError, match=r"the image 5 has \(8, 12\) pixels and its mask \(8, 8\)"):
        masks.write(folder, tmp_path / "pairs")


def test_a_folder_without_masks_and_images_of_no_squares_are_refused(folder, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"are no squares of one size; --size=N cuts"):
        masks.write(folder, tmp_path / "pairs")
    with pytest.raises(ValueError, match=r"smaller than --size=9"):
        masks.write(folder, tmp_path / "pairs", size=9)
    (folder / "masks").rename(folder / "labels")
    with pytest.raises(SystemExit):
        main(["masks", "--from", str(folder), "--data_dir", str(tmp_path / "pairs")])
    assert "has no folder masks/" in capsys.readouterr().err


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_boxes_become_ellipses(tmp_path):
    picture = np.zeros((2, 40, 80, 3), np.uint8)
    box = np.array([[0, 0, 0.25, 0.1, 0.75, 0.9], [1, 0, 0.0, 0.0, 0.1, 0.1]])
    file = archive(tmp_path / "cells.npz", images=picture, boxes=box, split=np.array([0, 2]))
    splits = masks._of_arrays(file, 0)
    inside = splits["train"][1][0] == 255
    assert inside.sum() == pytest.approx(np.pi * 20 * 16, rel=0.01)  # half axes of 20 and 16 pixels
    assert inside.any(0).nonzero()[0].tolist() == list(range(20, 60))
    assert not splits["test"][1][0][5:].any()


def test_classes_are_one_hot_and_255_is_no_label(tmp_path):
    numbers = np.random.default_rng(1).choice([0, 1, 2, 255], (4, 8, 8)).astype(np.uint8)
    file = archive(tmp_path / "classes.npz", images=PICTURES[:4, :, :8], masks=numbers)
    masks.write(file, tmp_path / "pairs", classes=3)
    with np.load(tmp_path / "pairs" / "test.npz") as pairs:
        one_hot = pairs["images"]
    assert one_hot.dtype == np.float32 and one_hot.shape == (1, 8, 8, 3)
    row = next(i for i in range(4) if ((numbers[i] == 255) == (one_hot[0] == -1).all(-1)).all())
    np.testing.assert_array_equal(one_hot[0].argmax(-1)[numbers[row] != 255], numbers[row][numbers[row] != 255])
    with pytest.raises(ValueError, match=r"a mask has the value 2, and --classes=2 are 0..1"):
        masks.write(file, tmp_path / "pairs", classes=2)
    with pytest.raises(ValueError, match="masks of the 4 values 0, 1, 2, 255"):
        masks.write(file, tmp_path / "pairs")


@pytest.mark.parametrize("values, shown", [((1, 2), "2 values 1, 2"), (range(7), "7 values 0, 1, 2, 3, 4, ...")])
def test_several_values_inside_are_refused_without_classes(tmp_path, values, shown):
    numbers = np.resize(np.array(values, np.uint8), (4, 8, 8))
    file = archive(tmp_path / "several.npz", images=PICTURES[:4, :, :8], masks=numbers)
    with pytest.raises(ValueError, match=f"masks of the {shown}, and without --classes=K"):
        masks.write(file, tmp_path / "pairs")
    everywhere = archive(tmp_path / "one.npz", images=PICTURES[:4, :, :8], masks=np.ones((4, 8, 8), np.int64))
    masks.write(everywhere, tmp_path / "pairs")
    with np.load(tmp_path / "pairs" / "test.npz") as pairs:
        assert (pairs["images"] == 255).all()


@pytest.mark.parametrize("value", [256, -1])
def test_values_of_more_than_a_byte_are_refused(tmp_path, value):
    numbers = np.zeros((4, 8, 8), np.int32)
    numbers[1, 2, 3] = value
    file = archive(tmp_path / "wide.npz", images=PICTURES[:4, :, :8], masks=numbers)
    with pytest.raises(ValueError, match=rf"a mask has the value {value}, and values must be in 0\.\.255"):
        masks.write(file, tmp_path / "pairs", classes=3)


def test_a_tenth_of_train_is_held_out_where_there_is_no_test(folder, tmp_path):
    (tmp_path / "parts").mkdir()
    folder.rename(tmp_path / "parts" / "train")
    masks.write(tmp_path / "parts", tmp_path / "pairs", size=8)
    sizes = []
    for split in ("train", "test"):
        with np.load(tmp_path / "pairs" / f"{split}.npz") as pairs:
            sizes.append(len(pairs["images"]))
    assert sizes == [2 * 2 * 11, 2]


def test_two_images_of_one_name_are_refused(folder, tmp_path):
    PIL.Image.fromarray(PICTURES[0]).save(folder / "images" / "3.bmp")
    with pytest.raises(ValueError, match=r"images has 3\.bmp and 3\.png; a pair has one file of each kind"):
        masks.write(folder, tmp_path / "pairs")


def test_array_files_without_masks_or_with_others_are_refused(tmp_path):
    with pytest.raises(ValueError, match="images and no masks"):
        masks.write(archive(tmp_path / "none.npz", images=PICTURES), tmp_path / "pairs")
    fewer = archive(tmp_path / "fewer.npz", images=PICTURES, masks=INSIDE[:-1])
    with pytest.raises(ValueError, match=r"12 images of \(8, 12\) pixels need masks"):
        masks.write(fewer, tmp_path / "pairs")


def test_composites_are_the_shape_inside_and_the_photograph_outside(tmp_path):
    shapes = np.zeros((20, 8, 8, 4), np.uint8)
    shapes[:, 2:6, 2:6] = (255, 0, 0, 255)
    archive(tmp_path / "shapes.npz", images=shapes)
    options = dict(name="composites", path=str(tmp_path / "shapes.npz"), image_size=8)
    source = data.load(**options)
    batch = source.batch(np.arange(len(source)), np.random.default_rng(0))
    inside = batch["x"][..., 0] == 1
    np.testing.assert_array_equal(np.unique(inside.sum((1, 2))), [16])  # moved by at most two pixels, it is all there
    np.testing.assert_allclose(batch["image"][inside], [[1, -1, -1]] * inside.sum(), atol=1e-6)
    assert np.mean(np.abs(batch["image"][~inside] - [1, -1, -1]).max(-1) > 0.1) > 0.95
    assert len(np.unique(np.argmax(inside.reshape(len(inside), -1), 1))) > 5  # at many places
    again = source.batch(np.arange(len(source)), np.random.default_rng(1))
    assert np.abs(again["image"] - batch["image"]).max() > 0.1
    fixed = data.load(**options, augment=False)
    one, other = (fixed.batch(np.arange(3), np.random.default_rng(seed))["image"] for seed in (0, 1))
    np.testing.assert_array_equal(one, other)
    pictures = data.load(**options, target="picture").batch(np.arange(3))
    masked = data.load(**options).batch(np.arange(3))
    np.testing.assert_array_equal(pictures["x"], masked["image"])
    np.testing.assert_array_equal(pictures["image"], masked["x"])


def test_composites_refuse_opaque_shapes_and_other_targets(tmp_path):
    archive(tmp_path / "opaque.npz", images=np.full((4, 8, 8, 4), 255, np.uint8))
    with pytest.raises(ValueError, match="has no masks: all of its pixels are opaque"):
        data.load(name="composites", path=str(tmp_path / "opaque.npz"))
    with pytest.raises(ValueError, match=r"data\.target='masks' must be one of mask, picture"):
        data.load(name="composites", target="masks")
    with pytest.raises(ValueError, match=r"data\.image_size=4 must be in 8\.\.128"):
        data.load(name="composites", image_size=4)
