import dataclasses

import numpy as np
import pytest

from diffusion_jax.evaluation.frechet import statistics
from diffusion_jax.evaluation.reference import (
    Statistics,
    cached_statistics,
    has_images,
    has_statistics,
    read_statistics,
    write_statistics,
)


def _statistics(d=4, s=3, seed=0):
    random = np.random.default_rng(seed)
    mu, sigma = statistics(random.normal(size=(20, d)))
    mu_s, sigma_s = statistics(random.normal(size=(20, s)))
    return Statistics(mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s, num=20, extractor="inception_pytorch")


def _equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_files_of_other_projects_are_read_and_written(tmp_path):
    full = _statistics()
    np.savez_compressed(tmp_path / "pytorch_fid.npz", mu=full.mu, sigma=full.sigma)
    found = read_statistics(tmp_path / "pytorch_fid.npz")
    assert _equal(found, Statistics(mu=full.mu, sigma=full.sigma))
    images = np.zeros((5, 4, 4, 3), np.uint8)
    four = {name: getattr(full, name) for name in ("mu", "sigma", "mu_s", "sigma_s")}
    np.savez(tmp_path / "guided.npz", arr_0=images, **four)
    found = read_statistics(tmp_path / "guided.npz")
    assert _equal(found, Statistics(**four))
    assert has_images(tmp_path / "guided.npz") and not has_images(tmp_path / "pytorch_fid.npz")
    np.savez(tmp_path / "float32.npz", mu=full.mu.astype(np.float32), sigma=full.sigma.astype(np.float32))
    assert read_statistics(tmp_path / "float32.npz").sigma.dtype == np.float64

    write_statistics(tmp_path / "deep" / "own.npz", full, images=images)
    assert _equal(read_statistics(tmp_path / "deep" / "own.npz"), full)
    with np.load(tmp_path / "deep" / "own.npz") as file:  # what the others read
        assert {"mu", "sigma", "mu_s", "sigma_s", "arr_0"} <= set(file.files)
        np.testing.assert_array_equal(file["sigma_s"], full.sigma_s)
        assert file["arr_0"].shape == images.shape
    write_statistics(tmp_path / "deep" / "own.npz", Statistics(mu=full.mu, sigma=full.sigma))
    assert _equal(read_statistics(tmp_path / "deep" / "own.npz"), Statistics(mu=full.mu, sigma=full.sigma))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["own.npz"]


def test_which_files_hold_statistics(tmp_path):
    np.savez(tmp_path / "samples.npz", samples=np.zeros((2, 4, 4, 3)))
    write_statistics(tmp_path / "statistics.npz", _statistics())
    assert has_statistics(tmp_path / "statistics.npz") and not has_statistics(tmp_path / "samples.npz")
    assert not has_statistics(tmp_path) and not has_statistics(tmp_path / "nothing.npz")


def test_statistics_are_computed_once_per_key(tmp_path):
    path, calls = tmp_path / "cache" / "reference.npz", []

    def compute(seed):
        calls.append(seed)
        return _statistics(seed=seed)

    assert _equal(cached_statistics(path, "a", lambda: compute(1)), _statistics(seed=1))
    assert _equal(cached_statistics(path, "a", lambda: compute(2)), _statistics(seed=1))
    assert _equal(cached_statistics(path, "b", lambda: compute(3)), _statistics(seed=3))
    assert calls == [1, 3]


def test_bad_files_are_refused(tmp_path):
    good = {name: value for name, value in dataclasses.asdict(_statistics()).items() if name != "extractor"}
    for change, message in [
        (dict(mu=None), "needs both mu and sigma"),
        (dict(sigma_s=None), "needs both mu_s and sigma_s"),
        (dict(mu=np.zeros(5)), r"mu must be \[d\] and sigma \[d, d\], got \(5,\) and \(4, 4\)"),
        (dict(sigma=np.full((4, 4), np.nan)), "sigma must hold finite floats"),
        (dict(mu=np.array(list("abcd"))), "mu must hold finite floats"),
        (dict(mu=np.array([{}, 1, 2, 3], object)), "cannot be|is not an .npz file"),
    ]:
        np.savez(tmp_path / "bad.npz", **{k: v for k, v in {**good, **change}.items() if v is not None})
        with pytest.raises(ValueError, match=message):
            read_statistics(tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes((tmp_path / "bad.npz").read_bytes()[:200])
    for read in (read_statistics, has_statistics):
        with pytest.raises(ValueError, match=r"bad\.npz is not an \.npz file"):
            read(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_statistics(tmp_path / "nothing.npz")
