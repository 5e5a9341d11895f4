"""The files and changed lines of docs/extending.md make a kind of data and a system that train, sample and evaluate."""

import importlib
import json
import pathlib
import re
import runpy
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import diffusion_jax
from diffusion_jax import data, parameterizations
from diffusion_jax.config import build, from_file, names
from diffusion_jax.data.source import in_memory
from diffusion_jax.processes import continuous, row_normal
from diffusion_jax.run import evaluate, plan, sample, train
from diffusion_jax.solvers.base import stateless
from diffusion_jax.types import Solver
from tests.runs import toy

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def apply_lines(monkeypatch, diff: str) -> None:
    """Add the imports and the entry of a diff, `# FILE.py`, to the module FILE. The context must be in the file."""
    first, *lines = diff.strip().splitlines()
    path = first.removeprefix("# ")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    context = [line[1:] for line in lines if line.startswith(" ")]
    assert context[0] in (ROOT / path).read_text()
    table = getattr(module, re.match(r"\w+", context[0])[0])
    for line in lines:
        if line.startswith("+    "):
            for name, value in eval("{" + line[1:] + "}", vars(module)).items():
                assert name not in table
                monkeypatch.setitem(table, name, value)
        elif line.startswith("+"):
            namespace: dict = {}
            exec(line[1:], namespace)
            for name in namespace.keys() - {"__builtins__"}:
                monkeypatch.setattr(module, name, namespace[name], raising=False)


@pytest.fixture
def extended(monkeypatch, tmp_path):
    """A folder with the files of the page, in a package that has them; the current folder."""
    before = set(sys.modules)
    for block in blocks(PAGE, "python"):
        first, _, code = block.partition("\n")
        path = first.removeprefix("# ")
        assert path.endswith(".py") and not (ROOT / path).exists()
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code)
        package = importlib.import_module(str(pathlib.Path(path).parent).replace("/", ".")) if "/" in path else None
        if isinstance(package, types.ModuleType) and path.startswith(diffusion_jax.__name__):
            folder = str((tmp_path / path).parent)
            monkeypatch.setattr(package, "__path__", [*(p for p in package.__path__ if p != folder), folder])
    for diff in blocks(PAGE, "diff"):
        apply_lines(monkeypatch, diff)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / name.replace(".", "/")).with_suffix(".py").exists():
            parent, _, child = name.rpartition(".")
            delattr(sys.modules[parent], child)
            del sys.modules[name]


def test_a_kind_of_data_and_a_system(extended):
    exact = runpy.run_path("spectra.py", run_name="__main__")
    mean, covariance = exact["MEAN"], exact["COVARIANCE"]
    config, workdir = from_file("configs/gaussian.py"), extended / "runs" / "gaussian"
    plan.plan(config)
    train.train(config, workdir)
    sample.sample(config, workdir)
    x = np.load(workdir / "samples" / "samples.npz")["samples"]
    assert x.shape == (10_000, len(mean))
    # 20,000 examples and 10,000 samples: five standard deviations of the mean are 5 * 0.5 * sqrt(1.5e-4) = 0.03.
    np.testing.assert_allclose(x.mean(0), mean, atol=0.03)
    error = np.linalg.norm(np.cov(x, rowvar=False) - covariance) / np.linalg.norm(covariance)
    assert error < 0.08  # N(0, I), where training starts, is at 5.7
    table = np.loadtxt(workdir / "samples" / "samples.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table, x, rtol=1e-5, atol=1e-6)
    assert (workdir / "samples" / "samples.csv").read_text().startswith("400,")
    assert (workdir / "samples" / "samples.png").exists()

    results = json.loads((workdir / "evaluation.json").read_text())
    entropy = np.linalg.slogdet(2 * np.pi * np.e * covariance)[1] / 2
    # The loss of 4,000 examples has a standard deviation of sqrt(8 / 2 / 4000) = 0.032.
    assert results["held_out_loss"] == pytest.approx(entropy, abs=0.15)
    assert results["mean_error"] < 0.05 and results["covariance_error"] < 0.1
    assert "solver" not in results

    # The same samples in smaller batches, and a section that the system does not read.
    config.sampling.update(num_samples=5, batch_size=2, file="few")
    sample.sample(config, workdir)
    np.testing.assert_allclose(np.load(workdir / "samples" / "few.npz")["samples"], x[:5], rtol=1e-5, atol=1e-6)
    config.solver = ConfigDict(dict(name="heun"))
    with pytest.raises(ValueError, match=r"config\.solver .*'gaussian'"):
        sample.sample(config, workdir)


def test_unreadable_spectra_are_refused(extended):
    config = from_file("configs/gaussian.py")
    (extended / "spectra").mkdir()
    for x, message in ((np.zeros((4, 3)), r"\[n, 8\]"), (np.full((4, 8), np.nan), "finite")):
        np.savez("spectra/train.npz", spectra=x)
        with pytest.raises(ValueError, match=rf"config\.data.*{message}"):
            build.build(config).source()
    pathlib.Path("spectra/train.npz").write_text("spectra")
    with pytest.raises(ValueError, match=r"config\.data.*train\.npz"):
        build.build(config).source()


def test_other_systems_take_the_new_data_and_the_new_parts(extended, monkeypatch):
    """A diffusion model of spectra, with the network, the guidance and the editing of the page."""
    runpy.run_path("spectra.py", run_name="__main__")
    config = toy(
        data=ConfigDict(dict(name="spectra", split="train", eval_split="test", path="spectra")),
        network=ConfigDict(dict(name="bottleneck", hidden=4)),
        guidance=ConfigDict(dict(name="attraction", value=9.0, then=dict(name="attraction", value=0.5, scale=1.0))),
        editing=ConfigDict(dict(name="tempered", temperature=0.5)),
        evaluation__metrics=("auto",),
        sampling__denoise=True,
    )
    train.train(config, extended / "runs")
    sample.sample(config, extended / "runs")
    evaluate.evaluate(config, extended / "runs")
    x = np.loadtxt(extended / "runs" / "samples" / "samples.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(x, 0.5, rtol=1e-5)  # at a scale of 1 the last guidance makes every prediction its value
    results = json.loads((extended / "runs" / "evaluation.json").read_text())
    wanted = dict(
        guidance="attraction then attraction", scale=0.1, then_scale=1.0, editing="tempered", editing_temperature=0.5
    )
    assert wanted.items() <= results.items()


def test_the_process_and_the_sampler_of_the_readme(monkeypatch):
    """A Gaussian stays one under the ODE without churn; alpha^2 + sigma^2 = 1."""
    (process, sampler) = (b for b in blocks(ROOT / "README.md", "python") if "# in diffusion_jax/" in b)
    namespace = dict(vars(continuous))
    exec(process, namespace)
    monkeypatch.setitem(names.PROCESSES, "sigmoid", namespace["Sigmoid"])
    solver = dict(
        Solver=Solver, jnp=jnp, parameterizations=parameterizations, row_normal=row_normal, stateless=stateless
    )
    exec(sampler, solver)
    monkeypatch.setitem(names.SOLVERS, "churned_ddim", solver["churned_ddim"])
    config = toy(
        process=ConfigDict(dict(name="sigmoid", scale=8.0)), solver=ConfigDict(dict(name="churned_ddim", churn=0.0))
    )
    system = build.system(config)
    t = jnp.linspace(0, 1, 5)
    np.testing.assert_allclose(system.process.alpha(t) ** 2 + system.process.sigma(t) ** 2, 1, rtol=1e-6)
    params = system.init(jax.random.key(0))
    other = toy(process=ConfigDict(dict(name="sigmoid", scale=8.0)), solver=ConfigDict(dict(name="ddim")))
    same = build.system(other).sample(params, jax.random.key(1), 4)["samples"]
    drawn = system.sample(params, jax.random.key(1), 4)["samples"]
    np.testing.assert_allclose(drawn, same, rtol=1e-4, atol=1e-5)


def test_a_source_without_a_modality_is_refused(monkeypatch):
    """A kind of data that MODALITIES does not have is named before anything is trained."""
    spec = data.source.Spec((2,), modality="smell")
    opener = data.Opener(
        spec=lambda section: spec,
        open=lambda *, split, wanted, tokenize, derive: data.Source(
            entries={"x": spec}, size=4, read=in_memory({"x": np.zeros((4, 2), np.float32)})
        ),
    )
    monkeypatch.setitem(data.SOURCES, "smells", opener)
    config = toy(data=ConfigDict(dict(name="smells", split="train", eval_split="train")), evaluation__metrics=())
    with pytest.raises(ValueError, match=r"data\.modality='smell'"):
        train.train(config, pathlib.Path("unused"))
