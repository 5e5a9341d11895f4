"""Reading, preparing and comparing images, with a cheap network instead of Inception."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from diffusion_jax import data
from diffusion_jax.evaluation import features
from diffusion_jax.evaluation.features import Extractor, collect, image_source, preprocess, read_uint8
from diffusion_jax.evaluation.frechet import covariance
from diffusion_jax.networks.inception import Activations
from diffusion_jax.types import Spec
from tests.runs import with_devices


def projection(dim: int = 4, shape=(6, 5, 3)) -> Extractor:
    """Features that are linear in the pixels."""
    random = np.random.default_rng(7)
    kernels = {name: 0.1 * random.normal(size=(int(np.prod(shape)), dim)).astype(np.float32) for name in "abc"}

    @jax.jit
    def apply(params, x):
        flat = x.astype(jnp.float32).reshape(len(x), -1) / 255
        return Activations(*(jnp.tanh(flat @ params[name]) for name in "abc"))

    return Extractor(
        name="inception_pytorch",
        prefix="",
        params=kernels,
        prepare=lambda x: x,
        apply=apply,
        num_features=dim,
        takes=Spec(shape, "uint8", "image"),
    )


def pixels(n: int, seed: int = 0, shape=(6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


def test_streamed_moments_are_those_of_all_images():
    extractor, x = projection(), pixels(53)
    whole = extractor.apply(extractor.params, x)
    for batch_size in (53, 8, 100):
        found = collect(extractor, image_source(x), batch_size=batch_size, spatial=True)
        assert found.num == 53 and found.extractor == "inception_pytorch"
        for moments, exact in ((found.moments, whole.features), (found.spatial, whole.spatial)):
            exact = np.asarray(exact, np.float64)
            mean, sigma = covariance(moments)
            np.testing.assert_allclose(mean, exact.mean(axis=0), atol=1e-6)
            np.testing.assert_allclose(sigma, np.cov(exact, rowvar=False), atol=1e-6)
        np.testing.assert_allclose(found.features, whole.features, atol=1e-6)
        np.testing.assert_allclose(found.logits, whole.logits, atol=1e-6)


def test_a_random_subset_of_activations_is_kept():
    extractor, source = projection(), image_source(pixels(40))
    everything = collect(extractor, source, batch_size=16)
    some = collect(extractor, source, batch_size=16, keep=10)
    assert some.features.shape == some.logits.shape == (10, 4) and some.num == 40
    np.testing.assert_array_equal(some.moments.scatter, everything.moments.scatter)
    rows = [int(np.argmin(np.abs(everything.features - row).sum(axis=1))) for row in some.features]
    np.testing.assert_array_equal(some.features, everything.features[rows])
    assert rows == sorted(rows) and len(set(rows)) == 10 and rows[-1] > 20
    other = collect(extractor, source, batch_size=16, keep=10, seed=1)
    assert np.abs(other.features - some.features).max() > 0.1


_DEVICES = """
import sys
import jax
import numpy as np
from diffusion_jax.evaluation.features import collect, image_source
from diffusion_jax.training.mesh import make_mesh
from tests.evaluation.test_features import pixels, projection

assert jax.device_count() == 4
with jax.set_mesh(make_mesh()):
    found = collect(projection(), image_source(pixels(23)), batch_size=6)
np.savez(sys.argv[1], features=found.features, scatter=found.moments.scatter)
"""


def test_the_number_of_devices_changes_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", _DEVICES, tmp_path / "found.npz"], env=with_devices(4), check=True)
    expected = collect(projection(), image_source(pixels(23)), batch_size=23)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["features"], expected.features, atol=1e-6)
        np.testing.assert_allclose(found["scatter"], expected.moments.scatter, atol=1e-5)


def test_images_come_from_arrays_folders_and_files(tmp_path):
    x = pixels(5)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(x):
        PIL.Image.fromarray(image).save(tmp_path / "folder" / f"{i}.png")
    np.savez(tmp_path / "samples.npz", samples=x, cond=np.arange(5))
    np.savez(tmp_path / "guided.npz", arr_0=x, mu=np.zeros(3))
    np.save(tmp_path / "plain.npy", x)
    floats = x.astype(np.float32) / 127.5 - 1
    for images in (x, floats, jnp.asarray(floats), *(tmp_path / name for name in os.listdir(tmp_path))):
        source = image_source(images, 3)
        np.testing.assert_array_equal(read_uint8(source, np.arange(5)), x)
        np.testing.assert_array_equal(read_uint8(source, np.array([3, 1])), x[[3, 1]])
    source = data.load(name="digits", split="test")
    assert image_source(source) is source
    assert read_uint8(source, np.arange(3)).dtype == np.uint8


def test_overshoot_is_clipped_and_rounded():
    source = image_source(np.array([-1.4, -1, 1 / 255, 0.99999, 1.5], np.float32).reshape(5, 1, 1, 1))
    assert read_uint8(source, np.arange(5)).ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4)), r"\[n, height, width, 1 or 3\]"),
        (np.zeros((2, 4, 4, 4)), r"got shape \(2, 4, 4, 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "not empty"),
        (np.zeros((2, 0, 4, 3), np.uint8), "not empty"),
        (np.zeros((2, 4, 4, 3), np.int64), "uint8, or floats"),
        (np.full((2, 6, 5, 3), np.nan, np.float32), "finite"),
        (np.full((2, 6, 5, 3), 200, np.float32), r"in \[-1, 1\] up to 0.5, got values in \[200, 200\]"),
        (pixels(1), "at least 2 images, got 1"),
        (pixels(2, shape=(8, 8, 3)), r"shape \(6, 5, 3\), got \(8, 8, 3\)"),
        ("/nowhere/at/all", "does not exist"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        collect(projection(), image_source(images, 3))


def test_resizing_a_ramp():
    """Bilinear interpolation is exact for linear images, away from the border."""
    ramp = np.linspace(0, 245, 50, dtype=np.uint8)  # 5 per pixel
    x = np.broadcast_to(ramp[None, None, :, None], (1, 40, 50, 1))
    i = np.arange(299)
    centred = np.clip((i + 0.5) * 50 / 299 - 0.5, 0, 49)
    cornered = np.clip(i * 50 / 299, 0, 49)
    pytorch, tensorflow = (np.asarray(preprocess(x, resize)) for resize in ("pytorch", "tensorflow"))
    assert pytorch.shape == tensorflow.shape == (1, 299, 299, 3)
    assert np.ptp(pytorch, axis=(1, 3)).max() < 1e-6, "rows and channels are equal"
    np.testing.assert_allclose(pytorch[0, 7, :, 1], 2 * 5 * centred / 255 - 1, atol=2e-6)
    np.testing.assert_allclose(tensorflow[0, 7, :, 1], (5 * cornered - 128) / 128, atol=2e-6)


def test_antialiasing():
    """A fine checkerboard is grey when it is made smaller with antialiasing, and stays a pattern without."""
    x = 255 * (np.indices((598, 598)).sum(axis=0) % 2).astype(np.uint8)[None, :, :, None]
    x = np.roll(x, 1, axis=2)[:, :, :, [0, 0, 0]]
    clean = np.asarray(preprocess(features._antialiased(x), "clean"))[0, 10:-10, 10:-10]
    np.testing.assert_allclose(clean, (127.5 - 128) / 128, atol=1e-3)
    assert np.asarray(preprocess(x, "tensorflow")).std() < 1e-6, "every second pixel has one colour"
    same = pixels(1, shape=(299, 299, 3))
    np.testing.assert_allclose(preprocess(features._antialiased(same), "clean"), (same / 128.0 - 1), atol=1e-5)
    np.testing.assert_allclose(preprocess(same, "pytorch"), 2 * (same / 255) - 1, atol=1e-6)


def test_unknown_ways_of_resizing_and_missing_weights(tmp_path):
    with pytest.raises(ValueError, match="resize='bicubic' is unknown; choose one of pytorch, clean, tensorflow"):
        features.inception("weights.pth", resize="bicubic")
    with pytest.raises(FileNotFoundError, match=r"weights\.pth does not exist"):
        features.inception(tmp_path / "weights.pth")


def _save(folder, x):
    folder.mkdir()
    for i, image in enumerate(x):
        PIL.Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("resize", features.RESIZE)
def test_images_of_several_sizes_are_resized_one_by_one(tmp_path, resize):
    """Each as if it were in a set of its own size."""
    x = [pixels(1, i, shape)[0] for i, shape in enumerate([(6, 5, 3), (300, 20, 3), (6, 5, 3), (40, 299, 3)])]
    kernel = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    @jax.jit
    def apply(params, x):
        return Activations(*[jnp.square(preprocess(x, resize)).mean((1, 2)) @ params] * 3)

    extractor = Extractor(
        name="inception",
        prefix="",
        params=kernel,
        prepare=features._antialiased if resize == "clean" else lambda x: x,
        apply=apply,
        num_features=4,
        takes=Spec((0, 0, 3), "uint8", "image"),
        resized=lambda image: features._resized(image, resize),
    )
    source = image_source(_save(tmp_path / "mixed", x), 3)
    for batch_size in (4, 1):
        found = collect(extractor, source, batch_size=batch_size)
        for row, image in zip(found.features, x, strict=True):
            alone = extractor.apply(kernel, extractor.prepare(image[None])).features[0]
            np.testing.assert_allclose(row, alone, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"several sizes.*--inception"):
        read_uint8(source, np.arange(4))
    with pytest.raises(ValueError, match=r"several sizes.*--inception"):
        collect(projection(), source)
    with pytest.raises(ValueError, match="several sizes"):
        data.arrays(source)


def test_floats_that_may_be_in_0_to_1_are_refused_until_their_range_is_said(tmp_path):
    """Also if single rows of images in [-1, 1] have no dark pixel."""
    x = pixels(4)
    x[0] = 200
    ones, both = (x / 255).astype(np.float32), (x / 127.5 - 1).astype(np.float32)
    np.savez(tmp_path / "ones.npz", samples=ones)
    np.savez(tmp_path / "both.npz", samples=both)
    for images in (ones, jnp.asarray(ones), tmp_path / "ones.npz", ones + np.float32(0.2)):
        with pytest.raises(ValueError, match=r"0\.\.1.*--range"):
            image_source(images, 3)
    for images in (ones, tmp_path / "ones.npz"):
        np.testing.assert_array_equal(read_uint8(image_source(images, range="0..1"), np.arange(4)), x)
    for images in (both, tmp_path / "both.npz"):
        np.testing.assert_array_equal(read_uint8(image_source(images), np.arange(4)), x)
        with pytest.raises(ValueError, match=r"in \[0, 1\], got -0\.9"):
            image_source(images, range="0..1")
    with pytest.raises(ValueError, match=r"range='0-1'"):
        image_source(ones, range="0-1")
