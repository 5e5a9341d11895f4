"""Degraded images of Palette's tasks: what is hidden, how much of it, and that nothing hidden is left."""

import io

import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.data.corruptions import CORRUPTIONS, brush_strokes, corrupted
from diffusion_jax.types import LUMA

IMAGES = np.random.default_rng(0).integers(1, 256, (200, 16, 16, 3), np.uint8)
X = IMAGES.astype(np.float32) / np.float32(127.5) - 1
U = np.random.default_rng(1).random((200, 2), np.float32)


def made(*tasks, quality=(5, 30), x=X):
    return corrupted(tasks, quality).make(x, U[: len(x)])


@pytest.mark.parametrize("task", ["inpainting", "uncropping"])
@pytest.mark.parametrize("side", [8, 16])
def test_what_is_unknown_is_gone_and_the_rest_is_the_image(task, side):
    x = X[:, :side, :side]
    found = made(task, x=x)
    unknown = np.broadcast_to(found["mask"] == 1, x.shape)
    assert set(np.unique(found["mask"])) == {-1, 1}
    assert (found["image"][unknown] == 0).all()
    np.testing.assert_array_equal(found["image"][~unknown], x[~unknown])
    share = (found["mask"] == 1).mean((1, 2, 3))
    assert share.min() > 0 and share.max() < 1
    if task == "uncropping":
        assert np.abs(share - 0.5).max() < 0.07  # sides of the centre are whole pixels
        assert abs((share == 0.5).mean() - 0.5) < 4 * 0.5 / np.sqrt(200)
        assert len(np.unique(found["mask"], axis=0)) == 5
    else:
        assert 0.1 < share.mean() < 0.35
        assert len(np.unique(found["mask"], axis=0)) > 100


def test_strokes_are_drawn_anywhere_and_differ():
    rng = np.random.default_rng(0)
    masks = np.stack([brush_strokes(32, 24, rng) for _ in range(200)])
    assert masks.shape == (200, 32, 24) and masks.any((1, 2)).all()
    assert 0.05 < masks.mean() < 0.4
    assert masks.mean(0).min() > 0.02, "every pixel is covered at times"


def test_colours_are_removed_and_the_grey_value_stays():
    found = made("colorization")
    assert (found["mask"] == 1).all()
    assert np.ptp(found["image"], axis=-1).max() == 0
    np.testing.assert_allclose(found["image"][..., 0], X @ np.float32(LUMA), atol=1e-6)
    np.testing.assert_allclose(made("colorization", x=found["image"])["image"], found["image"], atol=1e-6)


def test_a_jpeg_is_the_file_that_pillow_writes():
    file = io.BytesIO()
    PIL.Image.fromarray(IMAGES[3]).save(file, "JPEG", quality=10)
    expected = np.asarray(PIL.Image.open(file)) / np.float32(127.5) - 1
    found = made("jpeg", quality=(10, 10))
    np.testing.assert_allclose(found["image"][3], expected, atol=1e-6)
    error = lambda quality: np.square(made("jpeg", quality=(quality, quality))["image"] - X).mean()
    assert error(5) > error(30) > error(95)
    assert made("jpeg", x=X[..., :1])["image"].shape == (200, 16, 16, 1)


def test_tasks_are_drawn_evenly_and_are_those_of_their_number():
    tasks = tuple(CORRUPTIONS)
    found = made(*tasks)
    counts = np.bincount(found["task"], minlength=4)
    assert np.abs(counts - 50).max() < 4 * np.sqrt(200 * 3 / 16)
    holes = (found["mask"] == -1).any((1, 2, 3))
    np.testing.assert_array_equal(holes, np.isin(found["task"], [tasks.index("inpainting"), tasks.index("uncropping")]))


def test_held_out_examples_keep_their_task_and_training_draws_another(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    options = dict(name="arrays", path=str(tmp_path / "a.npz"), derive=corrupted(("inpainting", "jpeg"), (5, 30)))
    source = data.load(**options)
    held = data.arrays(source)
    for name, value in source.batch(np.arange(7, 11)).items():
        np.testing.assert_array_equal(value, held[name][7:11])
    rng = np.random.default_rng(0)
    first, second = (source.batch(np.arange(200), rng)["task"] for _ in range(2))
    assert 0.3 < (first != second).mean() < 0.7
    np.savez(tmp_path / "a.npz", images=IMAGES, image=IMAGES)
    with pytest.raises(ValueError, match="The data holds image and not mask, task, which belong together"):
        data.load(**options)
