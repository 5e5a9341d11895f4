import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation.sheets import image_sheet, scatter_sheet, to_uint8


def test_to_uint8_rounds_and_clips():
    x = np.array([-1.5, -1.0, 0.0, 1 / 255, 1.0, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 128, 255, 255]
    grey = np.arange(256)
    assert to_uint8(grey / 127.5 - 1).tolist() == grey.tolist()


def _runs(line, background):
    """Lengths of the stretches of a line of pixels that are not background."""
    inside = (line != background).any(axis=-1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_tiles_are_separated_by_a_visible_border(value):
    sheet = image_sheet(np.full((100, 8, 8, 1), value, np.uint8))
    border = sheet[0, 0]
    assert np.abs(border.astype(int) - value).max() >= 16
    for line in (sheet[10], sheet[:, 10]):
        runs = _runs(line, border)
        assert len(runs) == 10 and len(set(runs)) == 1 and runs[0] % 8 == 0
    assert 640 <= max(sheet.shape) <= 1000


def test_enlargement_repeats_pixels_and_keeps_their_values(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    sheet = image_sheet(images, columns=3, padding=2, path=tmp_path / "new" / "sheet.png")
    width = (sheet.shape[1] - 2) // 3 - 2
    height = (sheet.shape[0] - 2) // 2 - 2
    scale = width // 5
    assert scale > 1 and (width, height) == (5 * scale, 4 * scale)
    y, x = 2 + height + 2, 2 + 2 * (width + 2)  # the sixth tile
    tile = sheet[y : y + height, x : x + width]
    np.testing.assert_array_equal(tile, np.kron(images[5], np.ones((scale, scale, 1), np.uint8)))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "sheet.png")), sheet)


def test_float_images_equal_their_uint8_images():
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.testing.assert_array_equal(image_sheet(jnp.asarray(images / 127.5 - 1)), image_sheet(images))


@pytest.mark.parametrize(("num", "grid"), [(1, (1, 1)), (7, (3, 3)), (10, (2, 5)), (16, (4, 4)), (500, (20, 25))])
def test_default_grid(num, grid):
    sheet = image_sheet(np.full((num, 8, 8, 1), 255, np.uint8))
    rows = len(_runs(sheet[:, 10], sheet[0, 0]))
    columns = len(_runs(sheet[10], sheet[0, 0]))
    assert (rows, columns) == grid


def test_big_images_keep_their_size():
    assert image_sheet(np.zeros((2, 200, 150, 3), np.uint8), padding=1).shape == (202, 303, 3)


def test_captions_leave_the_tiles_alone():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    plain, captioned = image_sheet(images), image_sheet(images, labels=[3, "seven"])
    height = plain.shape[0] - 3
    np.testing.assert_array_equal(captioned[:height], plain[:height])
    assert (captioned[height:] != captioned[0, 0]).any()


@pytest.mark.parametrize(("label", "lines"), [("many words " * 9, 2), ("many", 1), ("m" * 99, 1), ("a " + "m" * 99, 2)])
def test_captions_stay_below_their_tiles(label, lines):
    images = np.zeros((3, 32, 32, 1))
    captioned = image_sheet(images, labels=["", label, ""], columns=3)
    gap, pitch = captioned[0, 0], (captioned.shape[1] - 3) // 3
    below = captioned[image_sheet(images, columns=3).shape[0] :]
    assert (below[:, pitch + 3 : 2 * pitch] != gap).any()
    assert (below[:, : pitch + 3] == gap).all() and (below[:, 2 * pitch + 3 :] == gap).all()
    assert len(below) == 14 * lines


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 8, 8)), {}, "got shape"),
        (np.zeros((2, 8, 8, 2)), {}, "1 or 3"),
        (np.zeros((0, 8, 8, 1)), {}, "not empty"),
        (np.full((2, 8, 8, 1), np.nan), {}, "finite, got 128"),
        (np.zeros((2, 8, 8, 1)), {"labels": [1]}, "got 1 for 2 images"),
        (np.zeros((2, 8, 8, 1)), {"columns": 0}, "columns must be at least 1"),
    ],
)
def test_image_sheet_refuses(images, options, message):
    with pytest.raises(ValueError, match=message):
        image_sheet(images, **options)


def _log_density(x):
    return -0.5 * jnp.sum(x**2, axis=-1) - jnp.log(2 * jnp.pi)


def test_scatter_sheet_draws_a_panel_for_each_thing(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 2))
    one = scatter_sheet(points)
    sheet = scatter_sheet(
        {"first": points, "second": points},
        log_density=_log_density,
        score=jax.vmap(jax.grad(_log_density)),
        path=tmp_path / "toy.png",
    )
    assert sheet.shape == (one.shape[0], 4 * one.shape[1], 3)
    assert all(panel.std() > 10 for panel in np.split(sheet, 4, axis=1))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "toy.png")), sheet)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (np.zeros((3, 3)), {}, r"samples must be \[n, 2\]"),
        ({"mine": np.full((3, 2), np.inf)}, {}, "mine must be finite"),
        ({}, {}, "at least one set"),
        (np.ones((3, 2)), {"log_density": lambda x: jnp.full(len(x), jnp.nan)}, "log_density"),
        (np.ones((3, 2)), {"score": lambda x: jnp.full(x.shape, jnp.nan)}, "score must be finite"),
    ],
)
def test_scatter_sheet_refuses(points, options, message):
    with pytest.raises(ValueError, match=message):
        scatter_sheet(points, **options)
