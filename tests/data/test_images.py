"""Conversion of image files."""

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data import images

RED, GRAY_OF_RED = (255, 0, 0), 76  # 0.299 * 255


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV"])
def test_colour_modes(mode):
    red = PIL.Image.new("RGB", (4, 4), RED)
    image = red.convert(mode)
    np.testing.assert_allclose(images.convert(image, size=None, channels=3), np.asarray(red), atol=1)
    np.testing.assert_allclose(images.convert(image, size=None, channels=1), GRAY_OF_RED, atol=1)
    assert images.native_channels(image) == 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "I"])
def test_gray_modes(mode, tmp_path):
    white = {"1": 1, "L": 255, "LA": (255, 255), "I;16": 65535, "I": 65535}[mode]
    file = tmp_path / ("a.pgm" if mode == "I" else "a.tiff")  # with 16 bits, which PIL reads as 32
    PIL.Image.new(mode, (4, 4), white).save(file)
    image = images.read_image(file)
    assert images.native_channels(image) == 1
    for channels in (1, 3):
        np.testing.assert_array_equal(
            images.convert(image, size=None, channels=channels), np.full((4, 4, channels), 255)
        )


def test_16_bit_values_are_scaled_not_clipped():
    image = PIL.Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16))
    np.testing.assert_array_equal(images.convert(image, size=None, channels=1).ravel(), [0, 1, 128, 255])


def test_transparency_is_laid_over_white():
    clear = PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    np.testing.assert_array_equal(images.convert(clear, size=None, channels=3), 255)
    half = PIL.Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    np.testing.assert_allclose(images.convert(half, size=None, channels=1), 127, atol=1)


def test_pixels_without_a_range_are_refused(tmp_path):
    PIL.Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff.*mode 'F'"):
        data.load(name="folder", path=str(tmp_path))
    PIL.Image.new("I", (4, 4), 255).save(tmp_path / "a.tiff")  # 8-bit values, which would be black as 16 bits
    with pytest.raises(ValueError, match=r"a\.tiff.*32 bits.*no known range"):
        data.load(name="folder", path=str(tmp_path))


def test_crop_takes_the_centre_and_resize_averages():
    pixels = np.zeros((6, 10), np.uint8)
    pixels[:, 2:8] = 100
    pixels[1:5, 3:7] = 200
    image = images.from_array(pixels)
    assert set(images.convert(image, size=3, channels=1, crop=4).ravel()) == {200}
    assert images.convert(image, size=6, channels=1).min() == 100
    assert images.convert(image, size=None, channels=1).shape == (6, 10, 1)
    assert images.convert(image, size=None, channels=1, crop=4).shape == (4, 4, 1)
    checkerboard = images.from_array(np.indices((64, 64)).sum(axis=0).astype(np.uint8) % 2 * 255)
    shrunk = images.convert(checkerboard, size=8, channels=1)[1:-1, 1:-1]
    np.testing.assert_allclose(shrunk, 127.5, atol=2)  # aliasing would give 0 or 255


def test_too_large_a_crop_names_the_file(tmp_path):
    PIL.Image.new("L", (4, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: crop = 5 is larger than the image of 4 x 9"):
        data.load(name="folder", path=str(tmp_path), crop=5)


def test_exif_orientation_is_applied(tmp_path):
    image = PIL.Image.new("L", (4, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert images.read_image(tmp_path / "a.jpg").size == (8, 4)


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_damaged_files_are_named(tmp_path, format):
    PIL.Image.effect_noise((64, 64), 50).save(tmp_path / f"a.{format}")
    content = (tmp_path / f"a.{format}").read_bytes()
    for damaged in (b"", b"not an image", content[: len(content) // 2]):
        (tmp_path / f"b.{format}").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"Cannot read the image .*b\.{format}"):
            images.read_image(tmp_path / f"b.{format}")
    with pytest.raises(ValueError, match=rf"missing\.{format}"):
        images.read_image(tmp_path / f"missing.{format}")


def test_damage_behind_the_first_image_is_found_when_read(tmp_path):
    PIL.Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    iterator = data.batches(data.load(name="folder", path=str(tmp_path)), batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"b\.png"):
        next(iterator)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1000, 100])  # PIL itself raises from twice the limit only
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, limit):
    PIL.Image.new("1", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"a\.png.*1600|a\.png.*40 x 40 pixels exceed 1000"):
        images.read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "options", [{"image_size": 0}, {"image_size": -8}, {"crop": 0}, {"channels": 2}, {"channels": 4}]
)
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match=rf"data\.{next(iter(options))}"):
        data.load(name="digits", **options)
