"""The command line: what it accepts, and that everything else is refused in one paragraph, with nothing changed."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from diffusion_jax import main, systems
from diffusion_jax.config import saved
from diffusion_jax.run import evaluate, train
from tests.runs import ROOT, TOY, command, flag, forget_flags, given_config, listing, logged_rows

DDPM = str(ROOT / "configs" / "ddpm.py")
MAIN = [sys.executable, "-m", "diffusion_jax.main"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory with a finished tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    with pytest.MonkeyPatch.context() as monkeypatch:
        command(monkeypatch, f"--config={TOY}", f"--workdir={folder}")
    return folder


def _refused(monkeypatch, capsys, folder, arguments):
    """The message of a refusal; fails if anything was compiled, drawn or changed on the way to it."""

    def forbidden(*args, **keywords):
        pytest.fail("refused too late")

    monkeypatch.setattr(train, "train_loop", forbidden)
    monkeypatch.setattr(evaluate, "write_evaluation", forbidden)
    monkeypatch.setattr(systems.Diffusion, "sample", forbidden)
    monkeypatch.setattr(saved, "write_config", forbidden)
    before = listing(folder)
    with pytest.raises(SystemExit) as exit:
        command(monkeypatch, *arguments)
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert listing(folder) == before
    assert message.startswith("error: ") and "Traceback" not in message
    assert len(message.strip().splitlines()) == 1, message
    return message


REFUSED = {
    "top-level key": (["--config.nonsense=1"], ["config.nonsense", "data, editing, ema"]),
    "section of an unknown name": (["--config.solvr.name=heun"], ["solvr", 'Did you mean "solver"']),
    "section key": (["--config.training.num_step=9"], ["config.training.num_step ", "did you mean 'num_steps'"]),
    "keyword": (["--config.solver.etta=0.1"], ["config.solver.etta=0.1", "did you mean 'eta'"]),
    "process": (["--config.process.name=vpp"], ["config.process.name='vpp'", "'vp'", "rectified_flow", "cosine"]),
    "parameterization": (["--config.parameterization.name=x1"], ["config.parameterization.name='x1'", "velocity"]),
    "label": (["--config.parameterization.label=tme"], ["config.parameterization.label='tme'", "'time'", "index"]),
    "weighting": (["--config.weighting.name=smple"], ["config.weighting.name='smple'", "'simple'", "min_snr"]),
    "times": (["--config.times.name=unifrm"], ["config.times.name='unifrm'", "'uniform'", "logit_normal"]),
    "loss": (["--config.loss.name=denoisng"], ["config.loss.name='denoisng'", "'denoising'", "score_matching"]),
    "network": (["--config.network.name=unett"], ["config.network.name='unett'", "'unet'", "dit"]),
    "solver": (["--config.solver.name=hun"], ["config.solver.name='hun'", "'heun'", "ddim"]),
    "guidance": (["--config.guidance.name=nne"], ["config.guidance.name='nne'", "'none'"]),
    "grid": (["--config.sampling.grid.name=karas"], ["config.sampling.grid.name='karas'", "'karras'", "quadratic"]),
    "system": (["--config.system.name=difusion"], ["config.system.name='difusion'", "'diffusion'"]),
    "optimizer": (["--config.optimizer.name=adm"], ["config.optimizer.name='adm'", "'adam'", "lion"]),
    "schedule": (
        ["--config.optimizer.schedule=cosin"],
        ["config.optimizer", "schedule", "'cosin'", "constant, cosine"],
    ),
    "logger": (['--config.training.loggers=("jsn",)'], ["config.training.loggers='jsn'", "tensorboard"]),
    "metric": (['--config.evaluation.metrics=("tooy",)'], ["config.evaluation.metrics='tooy'", "'points'", "'toy'"]),
    "data": (
        ["--config.data.name=mnst", "--config.data.image_size=8", "--config.data.channels=1"],
        ["config.data", "'mnst'"],
    ),
    "toy": (["--config.data.kind=moons"], ["config.data", "'moons'", "two_moons"]),
    "dtype": (["--config.training.dtype=float12"], ["config.training.dtype", "float12", "bfloat16"]),
    "mode": (["--mode=smple"], ["--mode=smple", "train|sample|evaluate|plan"]),
    "flag": (["--wrkdir=x"], ["wrkdir"]),
    "text for an integer": (["--config.training.num_steps=many"], ["config.training.num_steps=many", "int"]),
    "text for a number": (["--config.process.beta_min=low"], ["config.process.beta_min='low'", "a number"]),
    "text for a flag": (["--config.sampling.denoise=perhaps"], ["config.sampling.denoise=perhaps", "oolean"]),
    "zero steps": (["--config.training.num_steps=0"], ["config.training.num_steps=0", "at least 1"]),
    "one sample to judge": (["--config.evaluation.num_samples=1"], ["config.evaluation.num_samples=1", "at least 2"]),
    "learning rate": (["--config.optimizer.learning_rate=-1.0"], ["config.optimizer", "learning_rate", "-1.0"]),
    "average": (["--config.ema.rates=(1.5,)"], ["1.5", "[0, 1)"]),
    "too large an integer": ([f"--config.network.num_layers={10**400}"], ["config.network.num_layers", "63 bits"]),
    "averages that are no numbers": (["--config.ema.rates=((1,),)"], ["config.ema.rates=(1,)", "a number"]),
    "a key below a text": (["--config.weights.x=1"], ["--config.KEY=VALUE", "string indices"]),
    "a key without an end": (["--config.weights.=1"], ["--config.KEY=VALUE", "'weights.'"]),
    "average to sample": (["--config.sampling.ema_rate=0.5"], ["config.sampling.ema_rate=0.5", "0.999"]),
    "accumulation": (
        ["--config.training.accumulate=3"],
        ["config.training.accumulate=3", "config.training.batch_size=16"],
    ),
    "mesh": (["--config.mesh.data=3"], ["config.mesh", "'data': 3", "1 devices"]),
    "a U-Net of points": (["--config.network.name=unet"], ["config.network", "unet"]),
    "classes": (["--config.network.num_classes=3"], ["config.network.num_classes=3", "8 classes"]),
    "eps where alpha is 0": (
        ["--config.process.name=rectified_flow"],
        ["config.parameterization.name='eps'", "t = 1", "rectified_flow"],
    ),
    "index in continuous time": (
        ["--config.parameterization.label=index"],
        ["config.parameterization.label='index'", "'vp' is continuous"],
    ),
    "discrete grid in continuous time": (
        ["--config.sampling.grid.name=discrete"],
        ["config.sampling.grid.name='discrete'", "'vp' is continuous"],
    ),
    "too many steps": (
        ["--config.process.name=discrete_vp", "--config.sampling.grid.name=discrete", "--config.sampling.steps=1001"],
        ["config.sampling.steps=1001", "1000"],
    ),
    "endless noise levels": (
        ["--config.sampling.grid.name=karras", "--config.process.name=rectified_flow"],
        ["config.sampling.grid", "karras", "rectified_flow", "t_max"],
    ),
    "a grid beyond the process": (
        ["--config.sampling.grid.t_max=1.5"],
        ["config.sampling.grid (quadratic)", "run from 1.5 to 0.001", "t is in [0, 1]"],
    ),
    "times beyond the process": (["--config.times.t_max=1.5"], ["config.times (low_discrepancy)", "t is in [0, 1]"]),
    "metric for images": (
        ['--config.evaluation.metrics=("classifier",)'],
        ["config.evaluation.metrics='classifier'", "'points'", "toy"],
    ),
    "images without a size": (["--config.data.name=digits"], ["config.data.image_size=None", "positive integer"]),
    "other network": (["--config.network.hidden=8"], ["config.network.hidden is 8 now and was 16"]),
    "other process": (["--config.process.name=subvp"], ["config.process.name is 'subvp' now and was 'vp'"]),
    "other averages": (["--config.ema.rates=(0.5,)"], ["config.ema.rates is [0.5] now and was [0.999]"]),
    "sampling another network": (["--mode=sample", "--config.network.hidden=8"], ["config.network.hidden is 8 now"]),
    "evaluating another network": (["--mode=evaluate", "--config.network.hidden=8"], ["config.network.hidden is 8"]),
}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED)
def test_refusals(monkeypatch, capsys, trained, arguments, words):
    message = _refused(monkeypatch, capsys, trained, [f"--config={TOY}", f"--workdir={trained}", *arguments])
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "arguments, words",
    {
        "variant": ([f"--config={TOY}:point", "--workdir=x"], ["'point'", "points, eta"]),
        "config file": (["--config=gone.py", "--workdir=x"], ["gone.py", "No such file"]),
        "config file to change": (["--config=gone.py", "--config.seed=3", "--workdir=x"], ["gone.py", "No such file"]),
        "a bucket": ([f"--config={TOY}", "--workdir=gs://bucket/run"], ["--workdir='gs://bucket/run'", "gcsfuse"]),
        "latents in a bucket": (
            [f"--config={TOY}", "--workdir=x", "--mode=encode", "--to=s3://b/l"],
            ["--to='s3://b/l'"],
        ),
        "weights in a bucket": (
            [f"--config={TOY}", "--workdir=x", "--config.weights=gs://b/w"],
            ["weights='gs://b/w'"],
        ),
        "no config": (["--workdir=x"], ["--config=FILE.py"]),
        "no workdir": ([f"--config={TOY}"], ["--mode=train needs --workdir"]),
        "no workdir to sample": ([f"--config={TOY}", "--mode=sample"], ["--mode=sample needs --workdir"]),
        "devices to train on": ([f"--config={TOY}", "--devices=8", "--workdir=x"], ["--devices=8", "--mode=plan"]),
        "devices that do not fit": (
            [f"--config={TOY}", "--mode=plan", "--devices=12", "--config.mesh.fsdp=8"],
            ["config.mesh", "'fsdp': 8", "multiply to the 12 devices"],
        ),
        "a negative profile": ([f"--config={TOY}", "--config.profile.steps=-1", "--workdir=x"], ["profile.steps=-1"]),
        "stray argument": ([f"--config={TOY}", "--workdir=x", "y"], ["unexpected arguments: y"]),
        "depth": (
            [f"--config={DDPM}:mnist", "--config.data.image_size=30", "--workdir=x"],
            ["image_size=30", "multiple of 4"],
        ),
        "unprepared data": (
            [f"--config={DDPM}", "--config.data.name=cifar10", "--config.data.path=nowhere", "--workdir=x"],
            ["'cifar10' is not prepared", "nowhere", "diffusion_jax.data.prepare"],
        ),
        "arrays without a path": ([f"--config={DDPM}", "--config.data.name=arrays", "--workdir=x"], ["data.path"]),
        "missing arrays": (
            [f"--config={DDPM}", "--config.data.name=arrays", "--config.data.path=gone.npz", "--workdir=x"],
            ["gone.npz", "does not exist"],
        ),
        "weights that are not there": (
            [f"--config={TOY}", "--config.weights=gone", "--workdir=x"],
            ["gone", "no checkpoint"],
        ),
        "no checkpoint": (
            [f"--config={TOY}", "--mode=sample", "--workdir=x"],
            ["x holds no checkpoint; train first"],
        ),
        "encode without a folder": (
            [f"--config={TOY}", "--mode=encode", "--workdir=x"],
            ["--mode=encode", "--to=PATH"],
        ),
        "encode from": (
            [f"--config={TOY}", "--mode=encode", "--to=y", "--from=z", "--workdir=x"],
            ["--mode=encode", "--from=PATH"],
        ),
        "decode without latents": (
            [f"--config={TOY}", "--mode=decode", "--to=y", "--workdir=x"],
            ["--mode=decode", "--from=PATH"],
        ),
        "decode without a file": (
            [f"--config={TOY}", "--mode=decode", "--from=y", "--workdir=x"],
            ["--mode=decode", "--to=PATH"],
        ),
        "train to": ([f"--config={TOY}", "--to=y", "--workdir=x"], ["--mode=train", "--to=PATH"]),
        "sample from": (
            [f"--config={TOY}", "--mode=sample", "--from=y", "--workdir=x"],
            ["--mode=sample", "--from=PATH"],
        ),
        "encode without an encoder": (
            [f"--config={TOY}", "--mode=encode", "--to=y", "--workdir=x"],
            ["--mode=encode", "config.system.name='diffusion'"],
        ),
        "decode without a decoder": (
            [f"--config={TOY}", "--mode=decode", "--from=y", "--to=z", "--workdir=x"],
            ["--mode=decode", "config.system.name='diffusion'"],
        ),
        "encode untrained": (
            [f"--config={ROOT / 'configs' / 'autoencoder_kl.py'}", "--mode=encode", "--to=y", "--workdir=x"],
            ["x holds no checkpoint"],
        ),
        "nothing to evaluate": ([f"--config={TOY}", "--mode=evaluate", "--workdir=x"], ["x holds no checkpoint"]),
    }.values(),
)
def test_refusals_without_a_run(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    message = _refused(monkeypatch, capsys, tmp_path, arguments)
    for word in words:
        assert word in message


def test_a_file_in_the_place_of_the_workdir(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        message = _refused(monkeypatch, capsys, tmp_path, [f"--config={TOY}", f"--workdir={workdir}"])
        assert f"{workdir} cannot be written" in message


def test_a_read_only_workdir(monkeypatch, capsys, trained):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    for mode in ("train", "sample", "evaluate"):
        message = _refused(monkeypatch, capsys, trained, [f"--config={TOY}", f"--workdir={trained}", f"--mode={mode}"])
        assert f"{trained} cannot be written" in message


def test_a_damaged_config_json(monkeypatch, capsys, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "config.json").write_text('{"seed": ')
    message = _refused(monkeypatch, capsys, folder, [f"--config={TOY}", f"--workdir={folder}"])
    assert "config.json cannot be read" in message


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_a_foreign_checkpoint_without_its_config(monkeypatch, capsys, trained, tmp_path, mode):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "config.json").unlink()
    arguments = [*flag(TOY, network__hidden=8), f"--workdir={folder}", f"--mode={mode}"]
    message = _refused(monkeypatch, capsys, folder, arguments)
    assert "does not fit" in message and "float32[16, 16] saved, float32[8, 8] expected" in message


def test_a_damaged_checkpoint(monkeypatch, capsys, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    for step in (folder / "checkpoints").iterdir():
        shutil.rmtree(step / "state", ignore_errors=True)
    with pytest.raises(SystemExit) as exit:
        command(monkeypatch, f"--config={TOY}", f"--workdir={folder}", "--mode=sample")
    assert exit.value.code == 2
    assert "error: checkpoint: no checkpoint in" in capsys.readouterr().err


def test_a_loss_that_is_not_finite(monkeypatch, capsys, tmp_path):
    """Infinite data give an infinite loss; the run says so and saves nothing."""
    with pytest.raises(SystemExit) as exit:
        command(
            monkeypatch,
            *flag(TOY, optimizer__learning_rate=1e30, optimizer__warmup_steps=0, training__num_steps=50),
            "--config.optimizer.name=sgd",
            "--config.optimizer.clip_norm=0.0",
            "--config.training.checkpoint_every=100",
            f"--workdir={tmp_path}",
        )
    message = capsys.readouterr().err
    assert exit.value.code == 2
    assert "last good checkpoint is none" in message and "config.optimizer.learning_rate" in message
    assert not (tmp_path / "checkpoints").exists()


def test_another_solver_drops_the_keywords_of_the_first(monkeypatch, capsys):
    for solver in (["--config.solver.name=heun"], ["--config.solver.name=ancestral", "--config.solver.variance=beta"]):
        command(monkeypatch, f"--config={TOY}:eta", "--mode=plan", *solver)
        assert "parameters" in capsys.readouterr().out


def test_a_flag_adds_a_keyword(monkeypatch, trained):
    drawn = {}
    for name, eta in (("none", []), ("zero", ["--config.solver.eta=0.0"]), ("half", ["--config.solver.eta=0.5"])):
        arguments = [f"--config={TOY}", f"--workdir={trained}", "--mode=sample", f"--config.sampling.file={name}"]
        command(monkeypatch, *arguments, *eta)
        drawn[name] = np.load(trained / "samples" / f"{name}.npz")["samples"]
    np.testing.assert_array_equal(drawn["none"], drawn["zero"])
    assert np.abs(drawn["half"] - drawn["none"]).max() > 1e-3


@pytest.mark.parametrize(
    "argument, value",
    [
        ("training.loggers=jsonl,wandb", ("jsonl", "wandb")),
        ("training.loggers=wandb", ("wandb",)),
        ('training.loggers=("jsonl",)', ("jsonl",)),
        ("evaluation.metrics=", ()),
        ("training.num_steps=1e3", 1000),
        ("training.num_steps=1.5E3", 1500),
        ("network.hidden=2e1", 20),
        ("ema.rates=0.9,0.99", (0.9, 0.99)),
        ("optimizer.learning_rate=1e-3", 1e-3),
        ("sampling.cond=1e3", "1e3"),
        ("sampling.file=a,b", "a,b"),
    ],
)
def test_values_as_one_writes_them(monkeypatch, argument, value):
    forget_flags()
    monkeypatch.setattr(sys, "argv", ["main", f"--config={TOY}", f"--config.{argument}"])
    main.parse(sys.argv)
    section, _, key = argument.partition("=")[0].partition(".")
    assert given_config()[section][key] == value


def test_half_a_step_is_refused(monkeypatch, capsys, trained):
    message = _refused(monkeypatch, capsys, trained, [*flag(TOY, training__num_steps="2.5e0"), f"--workdir={trained}"])
    assert "config.training.num_steps=2.5e0" in message


def test_another_data_set_keeps_its_settings(monkeypatch, capsys):
    """All data sets and optimizers share their keywords, so a new name is all that changes."""
    config = str(ROOT / "configs" / "ddpm.py")
    command(monkeypatch, f"--config={config}", "--mode=plan", "--config.data.name=fashion_mnist")
    assert "(8, 8, 1)" in capsys.readouterr().out
    command(monkeypatch, f"--config={config}", "--mode=plan", "--config.optimizer.name=lion")
    assert "parameters" in capsys.readouterr().out


def test_ctrl_c_outside_of_training_is_one_line(monkeypatch, capsys, trained):
    def interrupted(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(systems.Diffusion, "sample", interrupted)
    with pytest.raises(SystemExit) as exit:
        command(monkeypatch, f"--config={TOY}", f"--workdir={trained}", "--mode=sample")
    assert exit.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted."


def test_a_second_ctrl_c_in_training_is_one_line(monkeypatch, capfd, tmp_path):
    def pressed_twice(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train, "train_loop", pressed_twice)
    with pytest.raises(SystemExit) as exit:
        command(monkeypatch, f"--config={TOY}", f"--workdir={tmp_path}")
    assert exit.value.code == 130
    first, second = [line for line in capfd.readouterr().err.splitlines() if line]
    assert "Ctrl-C" in first and "quits without saving" in first
    assert second.startswith("error: interrupted. No checkpoint has been saved")


def test_closed_pipes_do_not_end_training(monkeypatch, tmp_path):
    """As `2>&1 | head -2` leaves them: nobody reads the pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", pipe)
        command(monkeypatch, f"--config={TOY}", f"--workdir={tmp_path}")
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert [row["step"] for row in logged_rows(tmp_path)] == [1, 2, 3, 4]


def test_help_teaches():
    result = subprocess.run([*MAIN, "--help"], cwd=ROOT, capture_output=True, text=True)
    for words in (
        "--config=configs/ncsn.py --workdir=runs/ncsn",
        "--mode=sample --config.solver.name=ddim",
        "--mode=evaluate",
        "--mode=plan",
        "same command",
        "--workdir",
    ):
        assert words in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["ddim", "adaptive_ode"])
def test_a_second_sampling_compiles_nothing(trained, tmp_path, solver):
    """With JAX's persistent cache; adaptive solvers are the ones whose checks could keep a program out of it."""
    environment = {name: value for name, value in os.environ.items() if name != "EQX_ON_ERROR"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_DEBUG_LOG_MODULES": "jax._src.compiler"}

    def start():
        return subprocess.run(
            [*MAIN, f"--config={TOY}", f"--workdir={trained}", "--mode=sample", f"--config.solver.name={solver}"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stderr

    missed, hit = "PERSISTENT COMPILATION CACHE MISS", "Persistent compilation cache hit"
    assert missed in start()
    second = start()
    assert missed not in second and hit in second
