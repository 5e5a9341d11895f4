"""Random crops: what is cut out, when it changes, and what is refused."""

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data.pipeline import batches
from diffusion_jax.data.sources import crops


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images of 20 x 40 pixels, whose two colours are the coordinates of a pixel, and one upright one."""
    path = tmp_path_factory.mktemp("images")
    y, x = np.mgrid[:20, :40].astype(np.uint8)
    for i in range(4):
        PIL.Image.fromarray(np.stack([y, x, np.full_like(x, i)], -1)).save(path / f"{i}.png")
    PIL.Image.fromarray(np.stack([y, x, np.full_like(x, 4)], -1).transpose(1, 0, 2)).save(path / "4.png")
    return path


def loaded(folder, **options):
    return data.load(name="folder", path=str(folder), image_size=10, channels=3, crop="random", **options)


def corners(x):
    """Rows and columns of the first pixels of images that were not resized, and the numbers of the images."""
    pixels = np.round((x + 1) * 127.5).astype(int)
    return [tuple(image[0, 0]) for image in pixels]


def test_squares_of_the_size_are_cut_out_at_random(folder):
    source = loaded(folder, resize=(20, 20))
    assert source.shape == (10, 10, 3)
    made = [next_batch["x"] for next_batch, _ in zip(batches(source, batch_size=5, seed=0), range(30), strict=False)]
    seen = [corner for x in made for corner in corners(x)]
    rows, columns = {row for row, _, i in seen if i < 4}, {column for _, column, i in seen if i < 4}
    assert min(rows) == 0 and max(rows) == 10 and len(rows) == 11
    assert min(columns) <= 2 and max(columns) >= 28 and max(columns) <= 30
    for x in made:
        pixels = np.round((x + 1) * 127.5).astype(int)
        for image in pixels:
            down, across = (0, 1) if image[0, 0, 2] < 4 else (1, 0)
            np.testing.assert_array_equal(image[..., down] - image[0, 0, down], np.mgrid[:10, :10][0])
            np.testing.assert_array_equal(image[..., across] - image[0, 0, across], np.mgrid[:10, :10][1])


def test_crops_depend_on_seed_and_step_alone_and_differ_between_epochs(folder):
    def first(seed, count=2, **where):
        made = batches(loaded(folder, resize=(20, 20)), batch_size=4, seed=seed, **where)
        return [next(made)["x"] for _ in range(count)]

    np.testing.assert_array_equal(first(0), first(0))
    halves = [first(0, process_index=i, process_count=2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), first(0))
    by_image = {}
    for row, column, i in corners(np.concatenate(first(0, 5))):
        by_image.setdefault(i, set()).add((row, column))
    assert all(len(places) > 1 for places in by_image.values())


def test_evaluation_cuts_out_the_centre(folder):
    source = loaded(folder, resize=(20, 24))
    x = source.batch(np.arange(5))["x"]
    assert corners(x) == [(5, 15, i) for i in range(4)] + [(5, 15, 4)]
    np.testing.assert_array_equal(x, source.batch(np.arange(5))["x"])


def test_the_smaller_side_is_resized():
    pixels = np.zeros((20, 40, 1), np.uint8)
    pixels[:, 20:] = 200
    full = crops.cut_out(pixels, 10, (10, 10), None)
    assert full.shape == (10, 10, 1) and full[0, 0] == 0 and full[0, -1] == 200
    # All of the height, and the left end of the width.
    left = crops.cut_out(pixels, 10, (10, 10), np.zeros(4, np.float32))
    assert (left[:, :8] < 3).all()
    # At the largest size: half of the height.
    large = crops.cut_out(pixels, 10, (10, 20), np.float32([0.999, 0.999, 0.0, 0.0]))
    np.testing.assert_array_equal(large, pixels[10:, :10])


def test_flips_and_dequantization_follow(folder):
    source = loaded(folder, flip=True, dequantize=True)
    x = source.batch(np.arange(5), np.random.default_rng(0))["x"]
    assert x.shape == (5, 10, 10, 3) and x.min() >= -1 and x.max() < 1 and source.draws % 2 == 0


def test_damaged_files_are_skipped(tmp_path):
    for i, name in enumerate(("a", "b", "c")):
        PIL.Image.fromarray(np.full((12, 16, 3), 50 * i, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.png").write_bytes(b"damaged")
    source = loaded(tmp_path, skip_damaged=True)
    x = source.batch(np.arange(3), np.random.default_rng(0))["x"]
    np.testing.assert_allclose(x[:, 0, 0, 0], np.array([50, 50, 100]) / 127.5 - 1, atol=1e-6)
    assert set(source.facts["skipped"]) == {0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(crop="middle"), r"data\.crop='middle'"),
        (dict(crop="random", image_size=None), r"data\.image_size"),
        (dict(crop="random", resize=(8, 20)), r"data\.resize=\(8, 20\)"),
        (dict(crop="random", resize=(20,)), r"data\.resize=\(20,\)"),
        (dict(crop=5, resize=(20, 20)), r"data\.resize=\(20, 20\) is for data\.crop='random'"),
    ],
)
def test_what_does_not_fit_is_refused(folder, options, words):
    with pytest.raises(ValueError, match=words):
        data.load(**(dict(name="folder", path=str(folder), image_size=10, channels=3) | options))
