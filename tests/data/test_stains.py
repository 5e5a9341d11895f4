"""Stains: those of a synthetic mixture are recovered, two stainings of one tissue become one, and refusals."""

import numpy as np
import PIL.Image
import pytest

from diffusion_jax.data import stains
from diffusion_jax.data.prepare import main

SHAPE = (64, 64)
RNG = np.random.default_rng(0)
TISSUE = RNG.gamma(1.5, 0.5, (SHAPE[0] * SHAPE[1], 2)) * (RNG.random((SHAPE[0] * SHAPE[1], 2)) < 0.6)


def unit(*colour: float) -> np.ndarray:
    return np.array(colour) / np.linalg.norm(colour)


FIRST = np.stack([unit(0.65, 0.70, 0.29), unit(0.07, 0.99, 0.11)], 1)  # hematoxylin and eosin
SECOND = np.stack([unit(0.55, 0.75, 0.37), unit(0.20, 0.85, 0.48)], 1)


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


@pytest.mark.parametrize("colours", [FIRST, SECOND])
def test_the_stains_of_a_mixture_are_recovered(colours):
    """Within a degree or two, which the percentiles and 8 bits cost; the negative control is another pair."""
    found = stains.stain_matrix(stains.composed(TISSUE, colours, SHAPE))
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1)
    for i in range(2):
        assert degrees(found[:, i], colours[:, i]) < 2.5
        assert degrees(found[:, i], colours[:, 1 - i]) > 10


def test_the_amounts_of_a_mixture_are_recovered():
    thin = np.minimum(TISSUE, 1.2)  # 8 bits resolve these
    found = stains.amounts(stains.composed(thin, FIRST, SHAPE), FIRST)
    assert np.abs(found - thin).mean() < 0.02


def test_two_stainings_of_one_tissue_become_one():
    first, second = (stains.composed(TISSUE * scale, colours, SHAPE) for colours, scale in ((FIRST, 1), (SECOND, 0.7)))
    before = np.abs(first.astype(float) - second).mean()
    after = np.abs(stains.normalise(first).astype(float) - stains.normalise(second)).mean()
    assert after < 0.25 * before
    again = stains.stain_matrix(stains.normalise(first))
    own = stains.REFERENCE / np.linalg.norm(stains.REFERENCE, axis=0)
    assert all(degrees(again[:, i], own[:, i]) < 4 for i in range(2))


def test_a_folder_is_written_under_its_names(tmp_path, capsys):
    (tmp_path / "slides" / "a").mkdir(parents=True)
    image = stains.composed(TISSUE, FIRST, SHAPE)
    PIL.Image.fromarray(image).save(tmp_path / "slides" / "a" / "one.bmp")
    main(["stains", "--from", str(tmp_path / "slides"), "--data_dir", str(tmp_path / "normal")])
    with PIL.Image.open(tmp_path / "normal" / "a" / "one.png") as written:
        np.testing.assert_array_equal(np.asarray(written), stains.normalise(image))
    PIL.Image.new("RGB", (20, 20), "white").save(tmp_path / "slides" / "empty.png")
    with pytest.raises(ValueError, match=r"empty\.png: 0 of 400 pixels are tissue"):
        stains.write(tmp_path / "slides", tmp_path / "normal")
    PIL.Image.fromarray(image).save(tmp_path / "slides" / "a" / "one.tif")
    with pytest.raises(ValueError, match=r"one\.bmp and .*one\.tif would both be written as one\.png"):
        stains.write(tmp_path / "slides", tmp_path / "normal")
