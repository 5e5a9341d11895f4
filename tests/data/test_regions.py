"""Masks of inpainting: named regions, and image files of any size and mode."""

import numpy as np
import PIL.Image
import pytest

from diffusion_jax.data.regions import REGIONS, read_mask

SHAPE = (8, 8, 1)


def written(folder, pixels, name="mask.png", mode=None):
    image = PIL.Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(folder / name)
    return str(folder / name)


def test_named_regions_paint_the_fraction_that_their_names_say():
    share = {name: float((read_mask(name, (16, 16, 1)) == 1).mean()) for name in REGIONS}
    assert share == {
        "box": 0.25, "lower_half": 0.5, "right_half": 0.5, "expand": 0.75, "lines": 0.5, "pixels": 0.75,
    }  # fmt: skip
    assert (read_mask("lower_half", SHAPE)[4:] == 1).all() and (read_mask("lower_half", SHAPE)[:4] == -1).all()
    assert (read_mask("right_half", SHAPE)[:, 4:] == 1).all()
    assert (read_mask("box", SHAPE)[2:6, 2:6] == 1).all() and (read_mask("expand", SHAPE)[2:6, 2:6] == -1).all()
    assert (read_mask("pixels", SHAPE)[::2, ::2] == -1).all()
    for name in REGIONS:
        assert set(np.unique(read_mask(name, SHAPE))) == {-1, 1}


WHITE = np.zeros((40, 40), np.uint8)
WHITE[20:, :] = 255


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P", "LA", "I", "I;16"])
def test_any_size_and_mode_of_a_file(tmp_path, mode):
    pixels = np.uint16(WHITE) * 257 if mode == "I;16" else WHITE
    if mode == "I":
        pixels = np.int32(WHITE) * 257
    name = "mask.pgm" if mode == "I" else "mask.png"
    path = written(tmp_path, pixels, name, mode=None if mode.startswith("I") else mode)
    np.testing.assert_array_equal(read_mask(path, SHAPE), read_mask("lower_half", SHAPE))


def test_transparent_pixels_are_painted_and_a_pixel_of_which_a_part_is_painted(tmp_path):
    holes = np.zeros((40, 40, 4), np.uint8)
    holes[..., 3] = 255
    holes[3, 7, 3] = 0  # one pixel of 5 x 5
    painted = read_mask(written(tmp_path, holes), SHAPE) == 1
    assert painted.sum() == 1 and painted[0, 1, 0]


def test_a_file_that_is_not_square_is_cut_like_the_image(tmp_path):
    wide = np.zeros((8, 12), np.uint8)
    wide[:, 2] = 255  # the first column that is left
    painted = read_mask(written(tmp_path, wide), SHAPE) == 1
    assert painted[:, 0].all() and not painted[:, 1:].any()


def test_what_is_refused(tmp_path):
    image = written(tmp_path, WHITE, "image.png")
    mask = written(tmp_path, WHITE[:30], "other.png")
    black = written(tmp_path, 0 * WHITE, "black.png")
    strokes = np.stack([WHITE] * 4, axis=-1)  # white on a transparent ground
    strokes = written(tmp_path, strokes, "strokes.png")
    text = tmp_path / "text.png"
    text.write_text("no image")
    for name, words in [
        ((mask, image), "40 x 30 pixels; it must have as many as the image .*, 40 x 40"),
        ((black, ""), "no white pixel"),
        ((strokes, ""), "at 8 x 8 pixels all of its centre square is painted"),
        (("nowhere.png", ""), "must be an image file, or one of box, lower_half"),
        ((str(text), ""), "Cannot read the image"),
    ]:
        with pytest.raises(ValueError, match=words):
            read_mask(name[0], SHAPE, name[1])
