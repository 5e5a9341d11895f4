"""Image sets of TensorFlow Datasets without TensorFlow: prepared ones, and official sets from parsed files."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming, registered

from diffusion_jax.data import images

Examples = Callable[[], Iterator[tuple[int, dict[str, Any]]]]  # () -> (key, example) pairs of one split

# TFDS advises to install OpenCV when it decodes its first image; Pillow is what this package installs.
logging.getLogger("absl").addFilter(lambda record: "OpenCV is not installed" not in str(record.msg))

_OWN_MODULES = ("tensorflow_datasets.", "tensorflow_datasets_core.")


def write(builder_class: type, data_dir: pathlib.Path) -> pathlib.Path:
    """Prepare a data set as ArrayRecord files under `data_dir`, unless it is there already.

    It is written to a temporary folder and renamed, so that a reader never sees half of it and of several processes
    that start together one wins.

    Returns:
        The folder of the prepared version.

    Raises:
        OSError: `data_dir` cannot be written.
    """
    name, version = builder_class.name, str(builder_class.VERSION)
    target = data_dir / name / version
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f"incomplete.{name}.", dir=data_dir))
    try:
        # TFDS reports a download that does not happen, into a folder that is about to be renamed.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder = builder_class(data_dir=scratch, file_format="array_record")
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        try:
            os.rename(scratch / name / version, target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def offline(official: type, splits: dict[str, Examples], classes: tuple[str, ...] = ()) -> type:
    """A builder with the name, version and features of `official` that takes its examples from `splits`.

    `classes` are the label names, for sets that learn them from their files.
    """

    with registered.skip_registration():

        class Offline(official):
            name = official.name

            def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
                if classes:
                    self.info.features["label"].names = classes
                return {split: examples() for split, examples in splits.items()}

    return Offline


def data_directory(path: str | None) -> pathlib.Path:
    """The TFDS data directory: `path`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return pathlib.Path(path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _features(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return folder.rglob("features.json") if folder.is_dir() else iter(())


def _check_features(name: str, data_dir: pathlib.Path) -> None:
    """Refuse a prepared data set whose files name Python modules other than TFDS's own, which TFDS would import."""

    def names(node: Any) -> Iterator[str]:
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                yield from (str(node[key]) for key in ("pythonClassName", "type") if key in node)
                waiting.extend(node.values())
            elif isinstance(node, list):
                waiting.extend(node)

    name = re.split("[:/,]", name)[0]
    for file in sorted(path for n in {name, naming.camelcase_to_snakecase(name)} for path in _features(data_dir / n)):
        try:
            modules = list(names(json.loads(file.read_text())))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"Cannot read {file}: {error}") from error
        for foreign in (name for name in modules if "." in name and not name.startswith(_OWN_MODULES)):
            raise ValueError(f"{file} names {foreign}, which is not part of TensorFlow Datasets and is not imported.")


def tfds_images(name: str, split: str, path: str | None) -> images.Images:
    """One split of the TFDS image set `name`.

    The images are those of the feature "image"; the labels those of "label", if it is a class label.

    Raises:
        ValueError: the set is unknown, not prepared, has no images or no such split.
    """
    data_dir = data_directory(path)
    _check_features(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        examples = builder.as_data_source(split=split)
    except registered.DatasetNotFoundError:
        raise ValueError(
            f"Unknown data set {name!r}: neither digits, folder, arrays or toy, nor a TFDS data set, "
            f"nor anything prepared in {data_dir}."
        ) from None
    except (NotImplementedError, AssertionError):
        raise ValueError(
            f"The TFDS data set {name!r} is not prepared as ArrayRecord files in {data_dir}. For mnist, fashion_mnist "
            "and cifar10, download the official files into a folder and run "
            f"`python -m diffusion_jax.data.prepare {name} --from FOLDER --data_dir {data_dir}`. For others run "
            f"`tfds build {name} --file_format=array_record --data_dir {data_dir}` where TensorFlow is installed."
        ) from None
    except ValueError as error:
        raise ValueError(f"Cannot read the split {split!r} of {name!r}: {error}") from error
    features = dict(builder.info.features.items())
    if not isinstance(features.get("image"), tfds.features.Image):
        raise ValueError(f"The TFDS data set {name!r} has no feature 'image', only {sorted(features)}.")
    if len(examples) == 0:
        raise ValueError(f"The split {split!r} of {name!r} is empty.")
    label = features.get("label")
    num_classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
    names = tuple(label.names) if num_classes else ()

    def get(i: int) -> tuple[PIL.Image.Image, int]:
        try:
            example = examples[i]
        except Exception as error:  # array_record and the image decoders raise various types on broken files
            raise ValueError(f"Cannot read example {i} of {name!r} ({split}) in {data_dir}: {error}.") from error
        return images.from_array(example["image"]), int(example["label"]) if num_classes else -1

    return images.Images(
        get=get,
        size=len(examples),
        num_classes=num_classes,
        describe=lambda i: f"example {i} of {name!r} ({split})",
        classes=() if names == tuple(map(str, range(num_classes))) else names,
    )
