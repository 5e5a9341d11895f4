"""Which files of a repository of the Hugging Face Hub are downloaded: those that are read, each once."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Sequence

from diffusion_jax.weights.folders import chosen_weights
from diffusion_jax.weights.schedulers import FILE

# Components of a pipeline that are read; a safety checker, for instance, is not.
COMPONENTS = ("unet", "transformer", "vae", "vqvae", "text_encoder", "text_encoder_2", "bert")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_TEXT_FILES = (".json", ".txt", ".model")  # of a tokenizer
_INDEX = "model_index.json"


def choose(files: Sequence[str], component: str = "") -> list[str]:
    """The files to download from a repository that holds `files`: a pipeline, a component, or one file.

    Of a pipeline these are model_index.json, the scheduler, the tokenizers, and the components that are read; of each
    component config.json and one set of weights, the one that `folders.weights_file` prefers. A component of a pipeline
    comes with its scheduler, which says what the network predicts.

    Args:
      files: paths in the repository.
      component: a folder or a file in it; "": the repository itself.

    Raises ValueError if there is nothing to read.
    """
    held = set(files)
    if component in held:
        return [component]
    folder = f"{component}/" if component else ""
    chosen: list[str] = []
    if f"{folder}{_INDEX}" in held:
        chosen += [f"{folder}{_INDEX}", *_present(held, [folder + FILE])]
        for name in COMPONENTS:
            chosen += _of_component(files, f"{folder}{name}/")
        for name in _TOKENIZERS:
            chosen += _within(files, f"{folder}{name}/", _TEXT_FILES)
    else:
        tokenizer = _within(files, folder, _TEXT_FILES) if component.split("/")[-1] in _TOKENIZERS else []
        chosen += _of_component(files, folder) or tokenizer
        parent = "".join(f"{part}/" for part in component.split("/")[:-1])
        if component and chosen and f"{parent}{_INDEX}" in held:
            chosen += _present(held, [f"{parent}{_INDEX}", f"{parent}{FILE}"])
    if not chosen:
        raise ValueError(
            f"it has no {_INDEX} and no config.json with weights in {component or 'its root'!r}; there are "
            f"{', '.join(sorted(held)[:20]) or 'no files'}"
        )
    return sorted(chosen)


def _of_component(files: Iterable[str], folder: str) -> list[str]:
    """config.json and one set of weights of a component; [] unless both are there."""
    names = {name.removeprefix(folder) for name in files if name.startswith(folder) and "/" not in name[len(folder) :]}
    weights = chosen_weights(names)
    if "config.json" not in names or weights is None:
        return []
    found = ["config.json", weights]
    if index := re.fullmatch(r"(.+)\.(safetensors|bin)\.index(\.\w+)?\.json", weights):
        stem, suffix, variant = re.escape(index[1]), index[2], re.escape(index[3] or "")
        shard = rf"{stem}(?:{variant}-\d+-of-\d+|-\d+-of-\d+{variant})\.{suffix}"
        found += sorted(name for name in names if re.fullmatch(shard, name))
    return [folder + name for name in found]


def _within(files: Iterable[str], folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files in a folder with one of these suffixes."""
    return [
        name
        for name in files
        if name.startswith(folder) and "/" not in name[len(folder) :] and pathlib.PurePosixPath(name).suffix in suffixes
    ]


def _present(held: set[str], names: Iterable[str]) -> list[str]:
    return [name for name in names if name in held]
