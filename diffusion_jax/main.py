"""The command: `python -m diffusion_jax.main --config=FILE.py[:VARIANT] --workdir=DIR [--mode=MODE]`.

A config file is Python, with `get_config(variant=None)`; everything in it can be changed on the command line:

  train an NCSN on digits      --config=configs/ncsn.py --workdir=runs/ncsn
  a paper's full setting       --config=configs/ddpm.py:cifar10 --workdir=runs/cifar10
  another learning rate        --config.optimizer.learning_rate=1e-4
  16 samples, DDIM, 50 steps   --mode=sample --config.solver.name=ddim --config.sampling.steps=50
                               --config.sampling.num_samples=16
  metrics of a trained model   --mode=evaluate
  size, memory and FLOPs only  --mode=plan --devices=256 --config.mesh.fsdp=16

The same command resumes training from the newest checkpoint. SIGTERM, SIGHUP and Ctrl-C save a checkpoint
first. On a cluster
every process runs this command: SLURM and Open MPI are recognised; elsewhere set --coordinator=HOST:PORT,
--num_processes and --process_id, or --coordinator=auto on TPU pods (docs/launch.md). Exit codes: 0 done, or stopped and
saved; 2 an invalid config or command; 1 a fault during the run; 130 interrupted by Ctrl-C, nothing saved
(docs/faults.md).
"""

import contextlib
import itertools
import os
import pathlib
import re
import sys
import traceback
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, FILE.py or FILE.py:VARIANT.", lock_config=False, accept_new_attributes=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and samples.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "sample", "evaluate", "plan", "encode", "decode"],
    "train: train, or resume; sample: draw samples from the newest checkpoint; evaluate: compute its metrics; plan: "
    "print parameters, memory and FLOPs; encode: write the latents of a first stage, or the codes, reconstructions and "
    "walks of a diffusion autoencoder; decode: write images of latents.",
)
_TO = flags.DEFINE_string(
    "to", "", "With --mode=encode: folder of latents or codes. With --mode=decode: .npz file of images."
)
_FROM = flags.DEFINE_string("from", "", "With --mode=decode: folder or file of latents.")
_DEVICES = flags.DEFINE_integer(
    "devices", 0, "With --mode=plan: number of devices to plan for; 0: those of this machine."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, for several processes; auto: let JAX find it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Number of processes, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Index of this process, from 0, with --coordinator.")


def parse(argv: list[str]) -> list[str]:
    """Parse the flags. Exits with one line of text and code 2 for an invalid flag."""
    try:
        return flags.FLAGS(_as_literals(argv))
    except KeyError as error:  # from ml_collections, for an unknown section
        name, *hint = error.args[0].splitlines()
        _refuse(". ".join([f"config has no section {name}", *hint]))
    except OSError as error:  # no config file, and a flag that changes one of its keys
        cause = (error.__cause__ and error.__cause__.__cause__) or error
        _refuse(f"--config cannot be read: {str(cause).splitlines()[-1].strip()}")
    except flags.Error as error:
        # An error in the config file, such as an unknown variant, is reported as the text of its traceback.
        _refuse(str(error).splitlines()[-1].removeprefix("ValueError: "))
    except (TypeError, ValueError, AttributeError) as error:  # from ml_collections, for invalid keys
        _refuse(f"a --config.KEY=VALUE among the flags cannot be read: {(str(error) or repr(error)).splitlines()[0]}")


def _as_literals(argv: list[str]) -> list[str]:
    """`argv` with values of config keys as ml_collections reads them, where the config has a value of such a type.

    names for a tuple of texts: jsonl,wandb becomes ("jsonl", "wandb"); an integer as a float: 1e3 becomes 1000.
    """
    pairs = itertools.pairwise([*argv, ""])  # --config=FILE or --config FILE
    files = [text.partition("=")[2] or following for text, following in pairs if _IS_CONFIG(text)]
    if not files:
        return argv
    from diffusion_jax.config import defaults, from_file
    from diffusion_jax.config.sections import flatten

    try:
        known = [flatten(defaults()), flatten(from_file(files[-1]))]
    except Exception:  # the parsing of the flag says what is wrong
        return argv
    return [_as_literal(text, known) for text in argv]


_IS_CONFIG = re.compile(r"--?config(=|$)").match


def _as_literal(argument: str, known: list[dict[str, Any]]) -> str:
    key, equals, value = argument.partition("=")
    present = [values[name] for values in known if (name := key.lstrip("-").removeprefix("config.")) in values]
    if not equals or not present or not key.lstrip("-").startswith("config."):
        return argument
    names = any(isinstance(v, list) and v and all(isinstance(entry, str) for entry in v) for v in present)
    if names and not value.startswith(("(", "[", "'", '"')):
        return f"{key}={tuple(part.strip() for part in value.split(',') if part.strip())}"
    if type(present[-1]) is int and re.fullmatch(r"[0-9]+\.?[0-9]*e\+?[0-9]+", value, re.IGNORECASE):
        number = float(value)
        return f"{key}={int(number)}" if number.is_integer() else argument
    return argument


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        _refuse(f"unexpected arguments: {' '.join(argv[1:])}")
    if _CONFIG.value is None:
        _refuse("--config=FILE.py is missing, for example --config=configs/ncsn.py; --help explains")
    if _MODE.value != "plan" and not _WORKDIR.value:
        _refuse(f"--mode={_MODE.value} needs --workdir=DIR")
    if _DEVICES.value and (_MODE.value != "plan" or _DEVICES.value < 0):
        _refuse(f"--devices={_DEVICES.value} must be positive, and needs --mode=plan, not {_MODE.value}")
    for flag, modes in ((_TO, ("encode", "decode")), (_FROM, ("decode",))):
        if bool(flag.value) != (_MODE.value in modes):
            _refuse(f"--mode={_MODE.value} {'needs' if _MODE.value in modes else 'takes no'} --{flag.name}=PATH")
    logging.set_verbosity(logging.WARNING)
    from diffusion_jax.training import faults

    with faults.output_kept():
        try:
            _run_mode()
        except KeyboardInterrupt as interrupt:
            _refuse(f"interrupted. {interrupt}".strip(), code=130)


def _run_mode() -> None:
    from diffusion_jax.config import data, from_file, sections
    from diffusion_jax.run import distributed, encode, evaluate, plan, sample, train
    from diffusion_jax.training import faults
    from diffusion_jax.training.loop import NotFinite

    try:
        for flag in (_WORKDIR, _TO, _FROM):
            faults.check_local(f"--{flag.name}", flag.value or "")
    except ValueError as error:
        _refuse(str(error))
    try:
        distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    except sections.ConfigError as error:
        _refuse(str(error))
    try:
        original = from_file(config_flags.get_config_filename(flags.FLAGS["config"]))
    except OSError as error:
        _refuse(f"--config cannot be read: {error}")
    config = _CONFIG.value
    try:
        sections.drop_replaced(config, original)
        data.drop_replaced(config, original)
        workdir, to, path = (pathlib.Path(flag.value or ".").expanduser() for flag in (_WORKDIR, _TO, _FROM))
        match _MODE.value:
            case "plan":
                plan.plan(config, _DEVICES.value or None)
            case "encode":
                encode.encode(config, workdir, to)
            case "decode":
                encode.decode(config, workdir, path, to)
            case "train":
                train.train(config, workdir)
            case "sample":
                sample.sample(config, workdir)
            case _:
                evaluate.evaluate(config, workdir)
    except (sections.ConfigError, NotFinite) as error:
        _refuse(str(error))
    except (faults.Fault, OSError) as error:
        _refuse(str(error), code=1)


def _refuse(message: str, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _run() -> None:
    """Run the command and exit. After a failure the process ends immediately.

    Otherwise it would wait for a thread that hangs in a read, and for the other processes of the job, which in turn
    wait for this one.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Equinox would check values through callbacks, and JAX keeps no program with a callback in its compilation cache.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    try:
        app.run(main, flags_parser=parse)
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe
            stream.flush()
    if code:
        os._exit(code)


if __name__ == "__main__":
    _run()
