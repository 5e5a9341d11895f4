"""Writers of metrics and pictures: a JSONL file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import PIL.Image

from diffusion_jax.training.faults import Fault, replacing

Image = str | pathlib.Path | np.ndarray  # a PNG file, or uint8 [height, width, channels] with 1, 3 or 4 channels


@runtime_checkable
class Writer(Protocol):
    """A logger: records metrics and pictures of steps. Only process 0 of a run should have one."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None: ...

    def images(self, step: int, images: Mapping[str, Image]) -> None: ...

    def close(self) -> None: ...


class Writers:
    """Several writers as one; without any it writes nothing."""

    def __init__(self, writers: Sequence[Writer] = ()) -> None:
        self._writers = tuple(writers)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.scalars(step, values)

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        for writer in self._writers:
            writer.images(step, images)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class JsonlWriter:
    """Appends one JSON object per call of `scalars` to a file: {"step": 100, "loss": 0.12, ...}.

    Every line is flushed, so a killed run loses at most the line it was writing. Numbers that JSON does not
    support (nan, inf) are written as null. Images are ignored.

    Args:
      path: the file; it and its folder are created if they do not exist.
      resume_step: the step from which the run resumes. Lines of later steps, and an incomplete last line, are removed
        first, so that the file has each step once.
    """

    def __init__(self, path: str | pathlib.Path, *, resume_step: int = 0) -> None:
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _drop_after(path, resume_step)
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        row = {"step": int(step)} | {name: _json_number(value) for name, value in values.items()}
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self._path} cannot be written: {error.strerror}") from error

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        del step, images

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a line that could not be written has been reported
            self._file.close()


class TensorBoardWriter:
    """Writes TensorBoard event files into `directory`. Earlier events of steps after `resume_step` are hidden.

    Raises ImportError, naming the extra to install, without tensorboardX.
    """

    def __init__(self, directory: str | pathlib.Path, *, resume_step: int = 0) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise ImportError("TensorBoard needs tensorboardX: pip install 'diffusion_jax[tensorboard]'") from error
        self._writer = tensorboardX.SummaryWriter(str(directory), purge_step=resume_step + 1)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), int(step))
        self._writer.flush()

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        for name, image in images.items():
            self._writer.add_image(name, _pixels(image), int(step), dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """Logs to Weights & Biases. The id of the run is saved in `directory`, so that a resumed run continues its curves.

    Raises ImportError, naming the extra to install, without wandb, and Fault if it cannot start.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        project: str = "diffusion_jax",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("Weights & Biases needs wandb: pip install 'diffusion_jax[wandb]'") from error
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        id_file = directory / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                config=dict(config or {}),
                dir=str(directory),
                id=id_file.read_text().strip(),
                resume="allow",
            )
        except Exception as error:  # of its own types, such as that there is no key
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise Fault(
                f"config.training.loggers: wandb cannot start: {reason}. Set WANDB_API_KEY in the environment, or "
                "WANDB_MODE=offline, or leave wandb out"
            ) from error

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({name: float(value) for name, value in values.items()}, step=int(step))

    def images(self, step: int, images: Mapping[str, Image]) -> None:
        self._run.log({name: self._wandb.Image(_pixels(image)) for name, image in images.items()}, step=int(step))

    def close(self) -> None:
        self._run.finish()


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows of a metrics file, oldest first, without an incomplete last line.

    Raises ValueError, naming file and line, if any other line is not a JSON object with a step.
    """
    lines = pathlib.Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    return [_parse(path, number, line) for number, line in enumerate(lines[:-1], start=1) if line]


def _parse(path: str | pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError(f"{path}, line {number}: not a JSON object with an integer step: {line[:80]!r}")
    return row


def _drop_after(path: pathlib.Path, step: int) -> None:
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    with replacing(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _json_number(value: Any) -> int | float | str | None:
    if isinstance(value, str):
        return value
    number = np.asarray(value).item()
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _pixels(image: Image) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    with PIL.Image.open(image) as file:
        return np.asarray(file.convert("RGB"))


def make_writers(names: Sequence[str], directory: pathlib.Path, step: int, config: Mapping[str, Any]) -> Writers:
    """Returns the writers of the loggers `names` for a run that resumes from `step`; none on processes other than 0."""
    if jax.process_index():
        return Writers()
    table = {
        "jsonl": lambda: JsonlWriter(directory / "metrics.jsonl", resume_step=step),
        "tensorboard": lambda: TensorBoardWriter(directory / "tensorboard", resume_step=step),
        "wandb": lambda: WandbWriter(directory, name=directory.name, config=config),
    }
    return Writers([table[name]() for name in names])
