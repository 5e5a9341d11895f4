"""Folders of diffusers: pipelines with their model_index.json, and components with config.json and weights."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from diffusion_jax.types import Params
from diffusion_jax.weights.families import Family, abstract, family_of, load
from diffusion_jax.weights.files import MAX_SHARD_BYTES, open_weights, read_json, write_json, write_weights
from diffusion_jax.weights.layout import export_params
from diffusion_jax.weights.options import with_defaults

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", "fp16", "bf16", "non_ema")  # in the order of preference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One network in a folder of diffusers: its class and arguments, and its tensors, which are loaded lazily.

    Attributes:
      folder: its path.
      config: its config.json.
      family: its network and layouts in this library.
      arguments: those of the network.
      tensors: names -> lazy arrays.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    family: Family
    arguments: dict[str, Any]
    tensors: Mapping[str, Any]

    def load(self, abstract_params: PyTree[Any] | None = None) -> Params:
        """Its parameters, in float32 on the default device or as `abstract_params` say. Raises ValueError."""
        shapes = abstract(self.family, self.arguments) if abstract_params is None else abstract_params
        return load(self.family, self.arguments, self.tensors, shapes, what=str(self.folder))


def open_component(folder: str | os.PathLike, variant: str | None = None) -> Component:
    """The network in a folder with config.json and weights.

    Args:
      folder: such as PIPELINE/unet.
      variant: of the weights, such as "fp16", "" for the plain ones; None: the first of those in `_VARIANTS` that
          exists.

    Raises:
      FileNotFoundError: there is no such folder, config.json or file of weights.
      ValueError: the network or one of its options is not supported, or the files cannot be read.
    """
    folder = pathlib.Path(folder).expanduser()
    config = read_json(folder / "config.json")
    family = family_of(config, str(folder))
    try:
        arguments = family.arguments(config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    except (TypeError, KeyError, AttributeError, ArithmeticError) as error:  # the file may hold anything that is JSON
        raise ValueError(f"{folder}: config.json does not describe a {family.name!r}: {error!r}") from error
    tensors = open_weights(weights_file(folder, variant))
    return Component(folder=folder, config=config, family=family, arguments=arguments, tensors=tensors)


def weights_file(folder: pathlib.Path, variant: str | None = None) -> pathlib.Path:
    """The file of weights in the folder of a component, or the index of several. Raises FileNotFoundError."""
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    chosen = chosen_weights(names, variant)
    if chosen is not None:
        return folder / chosen
    wanted = f"variant {variant!r} " if variant else ""
    raise FileNotFoundError(
        f"{folder} holds no weights {wanted}such as {_STEMS[0]}.safetensors; there are "
        f"{', '.join(sorted(names)[:20]) or 'no files'}"
    )


def chosen_weights(names: Collection[str], variant: str | None = None) -> str | None:
    """The file of weights, or the index of several, that is read of a folder with these names; None without any.

    Plain weights come before variants, and safetensors before files of torch.save.
    """
    for kind in _VARIANTS if variant is None else (variant,):
        part = f".{kind}" if kind else ""
        for suffix in (".safetensors", ".bin"):
            for stem in _STEMS:
                for file in (f"{stem}{part}{suffix}", f"{stem}{suffix}.index{part}.json"):
                    if file in names:
                        return file
    return None


def components(folder: str | os.PathLike) -> dict[str, str]:
    """The components of a pipeline that it names in model_index.json: name -> class.

    The folder of a component need not exist until the component is read.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or names a component that is not a folder in it.
    """
    folder = pathlib.Path(folder).expanduser()
    found: dict[str, str] = {}
    for name, entry in read_json(folder / "model_index.json").items():
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
            if pathlib.PurePath(name).name != name:
                raise ValueError(
                    f"{folder}/model_index.json names a component {name[:100]!r}, which is not a folder in it"
                )
            found[name] = entry[1]
    return found


def is_pipeline(path: pathlib.Path) -> bool:
    """Whether `path` is the folder of a pipeline."""
    return (path / "model_index.json").is_file()


def is_component(path: pathlib.Path) -> bool:
    """Whether `path` is a folder with a config.json of diffusers or transformers, and not a work directory of ours.

    The config.json of a work directory has the sections of a config, also before the first checkpoint.
    """
    if not (path / "config.json").is_file() or (path / "checkpoints").is_dir():
        return False
    try:
        return not {"system", "training"} <= read_json(path / "config.json").keys()
    except ValueError:  # whoever opens it says what is wrong with it
        return True


def write_component(
    folder: str | os.PathLike,
    family: Family,
    arguments: Mapping[str, Any],
    params: PyTree[Any],
    *,
    dtype: str = "float32",
    max_bytes: int = MAX_SHARD_BYTES,
    extra: Mapping[str, Any] | None = None,
) -> list[pathlib.Path]:
    """Write a network as a folder that `from_pretrained` of its class reads: config.json and weights.

    Args:
      folder: is created.
      family: of the network.
      arguments: of the network.
      params: of the network.
      dtype: of the weights: "float32", "float16" or "bfloat16".
      max_bytes: see `write_weights`.
      extra: further entries of config.json, such as the scaling factor of a first stage.

    Raises ValueError for a network without such folders, or an argument that diffusers does not support.
    """
    if family.config_of is None:
        raise ValueError(f"the network {family.name!r} has no folder in the format of diffusers")
    config = {**family.config_of(arguments), **(extra or {})}
    arrays = export_params(family.layouts(with_defaults(family.network, arguments))[0], params)
    cast = {name: np.asarray(array, np.dtype(dtype)) for name, array in arrays.items()}
    folder = pathlib.Path(folder)
    written = write_weights(folder, cast, stem=family.stem, max_bytes=max_bytes)
    return [*written, write_json(folder / "config.json", config)]


def pipeline_around(path: pathlib.Path) -> pathlib.Path | None:
    """The pipeline that `path` is, or that the component or the file of a component at `path` belongs to."""
    folder = path.parent if path.is_file() else path
    return next((place for place in (folder, folder.absolute().parent) if is_pipeline(place)), None)
