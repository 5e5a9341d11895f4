"""Files of learned token vectors (textual inversion, arXiv:2208.01618): those of diffusers, read and written.

| file | content |
|---|---|
| learned_embeds.safetensors, .bin (diffusers) | {token: [n, d]}, or [d] for one vector |
| learned_embeds_2.safetensors, .bin next to it (diffusers' script for SDXL) | the same for the second text encoder |
| .pt of AUTOMATIC1111's web interface | {"string_to_param": {"*": [n, d]}, "name": token} |
| one file for SDXL | {"clip_l": [n, 768], "clip_g": [n, 1280]}, without the token |
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from diffusion_jax.weights.files import open_weights, write_weights
from diffusion_jax.weights.torch_file import read_torch_file

STEMS = ("learned_embeds", "learned_embeds_2")  # of the files of the first and the second text encoder
_SUFFIXES = (".safetensors", ".bin", ".pt")
_ENCODERS_OF_XL = ("clip_l", "clip_g")
_TOKENS_AT_MOST = 1000  # vectors of a token


class Learned(NamedTuple):
    """A placeholder token and its vectors, one array for each text encoder."""

    token: str
    vectors: tuple[Float32[np.ndarray, "n dim"], ...]


def read_learned(path: str | os.PathLike, token: str = "") -> Learned:
    """The token and its vectors in a file, or in a folder with learned_embeds and, for SDXL, learned_embeds_2.

    `token` replaces that of the file. Next to a file called learned_embeds the second one is found too.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, holds anything else or vectors that are not finite, has no token while none is
        given, or the files have different numbers of vectors.
    """
    path = pathlib.Path(path).expanduser()
    found = [file for stem in STEMS if (file := _file(path, stem))] if path.is_dir() else _with_second(path)
    if not found:
        raise FileNotFoundError(f"{path} has no {STEMS[0]}.safetensors or {STEMS[0]}.bin")
    parts = [_read(file) for file in found]
    named = token or next((part.token for part in parts if part.token), "")
    if not named:
        raise ValueError(f"{path} has vectors without their token; give it, as in '<cat>={path.name}'")
    vectors = tuple(value for part in parts for value in part.vectors)
    if len({len(value) for value in vectors}) > 1:
        counts = " and ".join(str(len(value)) for value in vectors)
        raise ValueError(f"{path} has {counts} vectors for the text encoders; a token has as many for each")
    return Learned(named, vectors)


def write_learned(folder: str | os.PathLike, learned: Learned) -> list[pathlib.Path]:
    """Write learned_embeds.safetensors, and learned_embeds_2.safetensors for a second text encoder, into `folder`.

    `pipeline.load_textual_inversion(folder)` of diffusers reads the first; the second needs its encoder and tokenizer.
    Returns the files.
    """
    written = []
    for stem, value in zip(STEMS, learned.vectors, strict=False):
        written += write_weights(folder, {learned.token: np.asarray(value, np.float32)}, stem=stem)
    return written


def _file(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    return next((folder / f"{stem}{suffix}" for suffix in _SUFFIXES if (folder / f"{stem}{suffix}").is_file()), None)


def _with_second(path: pathlib.Path) -> list[pathlib.Path]:
    second = _file(path.parent, STEMS[1]) if path.stem == STEMS[0] else None
    return [path] if second is None else [path, second]


def _read(path: pathlib.Path) -> Learned:
    content: Any = open_weights(path) if path.suffix == ".safetensors" else read_torch_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):
        params = content["string_to_param"]
        if set(params) != {"*"}:
            raise ValueError(
                f"{path}: string_to_param has the entries {sorted(map(str, params))[:5]}; it must have '*'"
            )
        return Learned(str(content.get("name") or ""), (_vectors(path, params["*"]),))
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no vectors of a token: it must be a dictionary with one tensor")
    if set(content) == set(_ENCODERS_OF_XL):
        return Learned("", tuple(_vectors(path, content[name]) for name in _ENCODERS_OF_XL))
    if len(content) > 1:
        raise ValueError(
            f"{path} has {len(content)} entries, such as {', '.join(map(str, list(content)[:3]))}; a file of textual "
            "inversion has the vectors of one token"
        )
    ((token, value),) = content.items()
    return Learned(str(token), (_vectors(path, value),))


def _vectors(path: pathlib.Path, value: Any) -> Float32[np.ndarray, "n dim"]:
    shape = getattr(value, "shape", None)
    if shape is None or len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[0] > _TOKENS_AT_MOST):
        raise ValueError(f"{path} must hold vectors [n, dim] or one vector [dim], got {shape or type(value).__name__}")
    array = np.asarray(value).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{path} holds vectors that are not finite")
    return array.reshape(-1, array.shape[-1])
