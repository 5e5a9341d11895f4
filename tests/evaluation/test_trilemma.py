"""Modes of samples and their floors, and the benchmark of families: its judge, its rows, what it does not repeat."""

import json

import numpy as np
import pytest

from benchmarks import trilemma
from diffusion_jax.config import build, checks, data, from_file, saved, sections
from diffusion_jax.evaluation import modes
from tests.config.test_configs import CONFIGS

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.arange(10), (10, 0.0)),
        (np.zeros(7, int), (1, np.log(10))),
        (np.repeat([2, 5], 50), (2, np.log(5))),
        ([0, 0, 0, 1], (2, 0.75 * np.log(7.5) + 0.25 * np.log(2.5))),
    ],
)
def test_modes_and_kl_in_closed_form(labels, expected):
    found = modes.mode_coverage(labels, 10)
    assert found.modes == expected[0] and found.kl == pytest.approx(expected[1], abs=1e-12)


@pytest.mark.parametrize(("num", "expected"), [(5000, 993.3), (10_000, 999.95)])
def test_the_floors_are_those_of_uniform_draws(num, expected):
    assert modes.expected_modes(num, 1000) == pytest.approx(expected, abs=0.05)
    drawn = [modes.mode_coverage(RNG.integers(1000, size=num), 1000) for _ in range(40)]
    found, kl = np.mean([d.modes for d in drawn]), np.array([d.kl for d in drawn])
    assert found == pytest.approx(modes.expected_modes(num, 1000), abs=2)
    # The first order is 999 / (2 n); the next one is positive and of the order of K^2 / n^2.
    assert 0 < kl.mean() - modes.kl_floor(num, 1000) < 0.25 * (1000 / num) ** 2 + 5 * kl.std() / np.sqrt(40)
    assert modes.kl_floor(25_600, 1000) == pytest.approx(0.0195, abs=1e-4)


@pytest.mark.parametrize("labels", [[], [[0]], [10], [-1]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(ValueError, match=r"in 0\.\.9"):
        modes.mode_coverage(np.array(labels, int), 10)


def test_samples_are_rounded_to_the_level_they_stand_for():
    k = np.arange(17)
    levels = np.float32(2 * k / 16 - 1)
    noisy = np.float32(2 * (k[:, None] + RNG.uniform(0.01, 0.99, (17, 50))) / 17 - 1)
    np.testing.assert_allclose(trilemma.on_levels(noisy, 17, True), np.broadcast_to(levels[:, None], noisy.shape))
    near = np.clip(levels[:, None] + RNG.uniform(-0.06, 0.06, (17, 50)), -1.2, 1.2)
    np.testing.assert_allclose(trilemma.on_levels(near, 17, False), np.broadcast_to(levels[:, None], near.shape))
    np.testing.assert_array_equal(trilemma.on_levels(np.array([-3.0, 3.0]), 17, True), [-1, 1])


def test_the_test_split_is_the_floor_and_a_collapsed_model_is_seen():
    """Features in four clusters; a model with one of them has one mode, less recall and coverage, a larger distance."""
    means = 5 * RNG.normal(size=(1000, 3))
    classes = RNG.integers(1000, size=(2, 400))
    train, test = (means[row] + 0.1 * RNG.normal(size=(400, 3)) for row in classes)
    real = trilemma.measured(classes[1], test, train, test)
    assert real["frechet_ratio"] == pytest.approx(1)
    assert real["modes"] == len(np.unique(classes[1]))
    collapsed = trilemma.measured(np.full(400, 7), means[7] + 0.1 * RNG.normal(size=(400, 3)), train, test)
    assert collapsed["modes"] == 1 and collapsed["kl"] == pytest.approx(np.log(1000))
    assert collapsed["frechet_ratio"] > 10
    assert collapsed["recall"] < real["recall"] and collapsed["coverage"] < 0.1 < real["coverage"]


def test_the_picture_shows_every_row(tmp_path):
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "gan.npy", RNG.uniform(-1, 1, (trilemma.SHOWN, 8, 8, 3)).astype(np.float32))
    trilemma.picture(
        {"gan": {"title": "GAN", "ms": 0.1, "frechet_ratio": 3, "coverage": 0.5}}, tmp_path / "a.png", tmp_path
    )
    assert (tmp_path / "a.png").stat().st_size > 5000


def judged():
    return trilemma.Judge(lambda x: pytest.fail("judged again"), np.zeros((9, 2)), np.zeros((9, 2)), {}, 1.0)


def test_a_row_that_exists_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(trilemma, "command", lambda words: pytest.fail(f"called {words}"))
    (tmp_path / "rows").mkdir()
    kind = trilemma.DATA["stacked_digits"]
    row = {"title": "VAE", "modes": 3, "asked": {"data": dict(kind.examples), "num_samples": 10, "changes": {}}}
    (tmp_path / "rows" / "vae.json").write_text(json.dumps(row))
    assert trilemma.compute("vae", kind, judged(), tmp_path, 10) == row
    for other, num in ((kind, 20), (trilemma.DATA["stacked_mnist"], 10)):
        with pytest.raises(ValueError, match="give another folder"):
            trilemma.compute("vae", other, judged(), tmp_path, num)


def test_a_run_that_is_trained_is_not_trained_again_and_its_teacher_comes_first(tmp_path, monkeypatch):
    called = []

    def command(words):
        called.append(next(word for word in words if word.startswith("--workdir")))
        (tmp_path / called[-1].rpartition("/")[2]).mkdir()

    monkeypatch.setattr(trilemma, "command", command)
    kind = trilemma.DATA["stacked_digits"]
    for name in ("consistency_1", "consistency_2", "edm_35"):
        assert trilemma.train(name, kind, tmp_path, {}) >= 0
    assert called == [f"--workdir={tmp_path}/edm", f"--workdir={tmp_path}/consistency"]


def test_a_failed_command_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(trilemma.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="call it again"):
        trilemma.train("vae", trilemma.DATA["stacked_digits"], tmp_path, {})
    assert not list(tmp_path.rglob("seconds.json"))


def test_the_table_has_a_line_for_every_row_and_blanks_for_what_is_not_defined():
    real = dict(modes=993, kl=0.1, frechet_ratio=1, precision=1, recall=1, density=1, coverage=1)
    row = {**real, "title": "GAN", "bits_per_dim": None, "nfe": 1, "ms": 0.01, "training_seconds": 9, "parameters": 2e6}
    lines = trilemma.table({"gan": row}, real).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert lines[3].startswith("| GAN | 993 | 0.100 | 1.00 |") and "| 1.000 |  | 1 | 0.010 |" in lines[3]


@pytest.mark.parametrize("name", trilemma.ROWS)
@pytest.mark.parametrize("kind", ["stacked_digits", pytest.param("stacked_mnist", marks=pytest.mark.slow)])
def test_every_row_names_a_config_and_keys_that_fit(name, kind, tmp_path):
    """The config with the changes of training and of sampling, as the command reads them."""
    row = trilemma.ROWS[name]
    original = from_file(str(CONFIGS / row.config))
    config = original.copy_and_resolve_references()
    changes = trilemma.changes_of(row, trilemma.DATA[kind], tmp_path) | row.sampling
    if row.teacher:
        teacher = trilemma.ROWS[row.teacher]
        run = from_file(str(CONFIGS / teacher.config))
        run.update_from_flattened_dict(trilemma.changes_of(teacher, trilemma.DATA[kind], tmp_path))
        (tmp_path / teacher.run / "checkpoints").mkdir(parents=True)
        saved.write_config(tmp_path / teacher.run, run)
    config.unlock()
    config.update_from_flattened_dict(changes)
    sections.drop_replaced(config, original)
    checks.check_keys(config)
    build.check_read(config)
    size = 8 if kind == "stacked_digits" else 28
    assert build.system(config).makes.shape == data.spec(config).shape == (size, size, 3)
