"""Maps of images: lines where they must be, colours that are there, skeletons of one pixel, depth of known surfaces."""

import numpy as np
import pytest
from scipy import ndimage

from diffusion_jax import data
from diffusion_jax.data import maps
from diffusion_jax.data.prepare import main


def test_a_sketch_has_lines_at_steps_and_nowhere_else():
    x = np.zeros((1, 8, 10, 3), np.uint8)
    x[:, :, 5:, 1] = 255
    lines = maps.sketch(x)[0, :, :, 0]
    np.testing.assert_array_equal(np.unique(lines[:, 4:6]), [255])
    np.testing.assert_array_equal(np.unique(np.delete(lines, [4, 5], 1)), [0])
    ramp = np.tile(np.arange(0, 250, 25, dtype=np.uint8)[:, None], (1, 8, 1, 3))
    assert not maps.sketch(ramp).any()  # a tenth of the range per pixel


def test_the_colours_of_an_image_of_few_are_found_exactly():
    colours = np.array([[0, 0, 0], [200, 30, 30], [20, 220, 40], [250, 250, 250]], np.uint8)
    numbers = np.random.default_rng(0).integers(0, 4, (6, 8, 8))
    x = colours[numbers]
    found = maps.palette(x, 4)
    np.testing.assert_array_equal(found, colours[np.argsort(colours.sum(1, dtype=int))])
    made = maps.segmented(x, found)
    np.testing.assert_array_equal(made["control"], x)
    np.testing.assert_array_equal((made["image"] == 1).sum(-1), 1)
    np.testing.assert_array_equal(found[made["image"].argmax(-1)], x)
    with pytest.raises(ValueError, match="--classes=5: the images have fewer colours"):
        maps.palette(x, 5)


def test_skeletons_are_connected_lines_of_one_pixel_that_stay_as_they_are():
    shapes = np.zeros((3, 16, 16), bool)
    shapes[0, 5:10, 2:14] = True  # a bar
    shapes[1, 3:13, 3:13], shapes[1, 6:10, 6:10] = True, False  # a ring
    lines = maps.thinned(shapes)
    assert np.all(lines <= shapes)
    np.testing.assert_array_equal(maps.thinned(lines), lines)
    assert lines[0].sum(0).max() == 1 and lines[0].sum(0)[5:11].min() == 1
    for shape, line in zip(shapes[:2], lines[:2], strict=True):
        eight = np.ones((3, 3))
        assert ndimage.label(line, eight)[1] == 1
        assert ndimage.label(~line)[1] == ndimage.label(~shape)[1]  # a ring keeps its hole
    assert not lines[2].any()


def test_a_sphere_is_nearest_and_brightest_in_its_middle():
    normals = np.random.default_rng(0).normal(size=(4000, 3))
    sphere = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    shaded, depth = maps.views_of(sphere, np.array([0.0, 1.0]), 33)
    y, x = (np.indices((33, 33)) - 16) / (16 * 0.9)
    radius = np.hypot(x, y)
    assert not depth[:, radius > 1.15].any()
    inside = radius < 0.8
    z = np.sqrt(1 - radius[inside] ** 2)
    for i in range(2):  # the same from everywhere
        found = (depth[i, ..., 0][inside] - 64.0) / 191
        assert np.abs(found - (1 + z) / 2).mean() < 0.06
        assert np.abs((shaded[i, ..., 0][inside] - 64.0) / 191 - z).mean() < 0.12


def test_what_is_written_is_what_a_model_of_pairs_reads(tmp_path, capsys):
    points = np.random.default_rng(0).normal(size=(5, 60, 3))
    np.savez(tmp_path / "clouds.npz", points=points, names=np.array([f"cloud {i}" for i in range(5)]))
    options = ["--from", str(tmp_path / "clouds.npz"), "--data_dir", str(tmp_path / "pairs"), "--size", "16"]
    main(["conditions", "--kind", "depth", "--views", "3", *options])
    shapes = {"image": (16, 16, 1), "control": (16, 16, 3)}
    source = data.load(name="arrays", path=str(tmp_path / "pairs"), shapes=shapes)
    batch = source.batch(np.arange(3))
    assert len(source) == 3 * 4 and batch["x"].shape == (3, 16, 16, 1)
    np.testing.assert_array_equal(batch["control"], np.repeat(batch["image"], 3, -1))
    with np.load(tmp_path / "pairs" / "train.npz") as train, np.load(tmp_path / "pairs" / "test.npz") as test:
        captions = [*train["caption"], *test["caption"]]
    assert sorted(captions) == sorted(3 * [f"cloud {i}" for i in range(5)])
    assert captions[0] == captions[1] == captions[2]  # the views of one
    for name, arguments, message in (
        ("conditions", ["--kind", "edges", *options], "--kind='edges' is unknown; choose one of sketch, segmentation"),
        ("conditions", options, "conditions needs --kind: sketch"),
        ("conditions", ["--kind", "sketch", *options], "`images` must be uint8 [n, height, width(, 1, 3 or 4)]"),
        ("conditions", ["--kind", "depth", *options, "--views", "0"], "--views=0 must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main([name, *arguments])
        assert message in capsys.readouterr().err


def test_images_of_several_sizes_need_one(tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.zeros((4, 8, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="are no squares of one size; give --size=N"):
        maps.write("sketch", tmp_path / "wide.npz", tmp_path / "pairs")
    maps.write("sketch", tmp_path / "wide.npz", tmp_path / "pairs", size=8)
    with np.load(tmp_path / "pairs" / "train.npz") as pairs:
        assert pairs["images"].shape == (3, 8, 8, 3)
