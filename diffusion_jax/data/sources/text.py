"""Windows of text files as token ids: characters, bytes, or the tokens of a tokenizer."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.data import alphabets, tokenization
from diffusion_jax.data.alphabets import Alphabet
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform
from diffusion_jax.data.sources import files
from diffusion_jax.types import Spec

_LENGTH = 64
_SUFFIXES = (".txt", ".npy")
# Typographic characters of the embedded text, in ASCII.
_ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\t": " "})


def spec(section: Mapping[str, Any]) -> Spec:
    """`length` ids in 0..K-1: K characters, or with a tokenizer the `vocabulary`. Raises ValueError."""
    length = section.get("length", _LENGTH)
    if not isinstance(length, int) or length < 2:
        raise ValueError(f"data.length={length!r} must be an integer of at least 2, the tokens of an example")
    return Spec((length,), "int32", "tokens", _size(section))


def facts(section: Mapping[str, Any]) -> dict[str, Any]:
    """`decode`, a function from rows of ids to texts, and `encode`, from a text to ids."""
    if _tokenized(section):
        folder = section.get("tokenizer_folder", "")
        if not folder:
            return {}
        backend = _backend(folder)
        return {"decode": lambda ids: backend.decode_batch(np.maximum(ids, 0).tolist()), "encode": _encoder(backend)}
    alphabet = _alphabet(section)
    return {"decode": alphabet.decode, "encode": alphabet.encode}


def _tokenized(section: Mapping[str, Any]) -> bool:
    return bool(section.get("vocabulary", 0))


def _size(section: Mapping[str, Any]) -> int:
    if not _tokenized(section):
        return _alphabet(section).size
    vocabulary = section["vocabulary"]
    if not isinstance(vocabulary, int) or vocabulary < 2:
        raise ValueError(f"data.vocabulary={vocabulary!r} must be the number of ids of the tokenizer, or 0")
    return vocabulary


def _alphabet(section: Mapping[str, Any]) -> Alphabet:
    return Alphabet(section.get("alphabet") or alphabets.ASCII, section.get("unknown", ""))


@functools.lru_cache(maxsize=2)
def _backend(folder: str) -> Any:
    backend = tokenization.load(folder, 2**20).backend
    backend.no_truncation()
    return backend


def _encoder(backend: Any) -> Callable[[str], np.ndarray]:
    return lambda text: np.asarray(backend.encode(text, add_special_tokens=False).ids, np.int32)


def embedded() -> str:
    """English text that ships with Python: the topics of its language reference that `help` shows, in their order.

    About 465,000 characters, which differ between versions of Python; typographic characters are written in ASCII.
    """
    from pydoc_data import topics

    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    path: str = "",
    length: int = _LENGTH,
    alphabet: str = "",
    unknown: str = "",
    held_out: float = 0.1,
    tokenizer_folder: str = "",
    vocabulary: int = 0,
) -> Source:
    """Windows of `length` tokens of a text, `path`: a file, or a folder with <split>.txt or <split>.npy (ids).

    Without a `path` it is `embedded`. Of one file the split "test" is the last fraction `held_out` of its tokens and
    "train" the others. Held-out windows follow each other; in training a window starts at a random one of the `length`
    places from there on. The last window ends with the text, so that no character is left out. Ids in .npy files are
    mapped, not read into memory. With a `vocabulary` the tokens are those of the tokenizer in `tokenizer_folder`.

    Raises ValueError for a text that is missing, unreadable, too short or has characters outside of the `alphabet`.
    """
    section = dict(length=length, alphabet=alphabet, unknown=unknown, tokenizer_folder=tokenizer_folder)
    section |= {"vocabulary": vocabulary}
    entry = spec(section)
    if not 0 < held_out < 1:
        raise ValueError(f"data.held_out={held_out} must be in (0, 1), the fraction of a file that is its test split")
    known = facts(section)
    ids = _ids(path, split, held_out, known.get("encode"), entry.values)
    if len(ids) < length:
        raise ValueError(f"the split {split!r} of {path or 'the embedded text'} has {len(ids)} tokens, not {length}.")
    starts = np.arange(0, len(ids) - length + 1, length)
    if starts[-1] + length < len(ids):
        starts = np.append(starts, len(ids) - length)
    starts = starts[files.bounds(split, len(starts))]

    def read(indices: np.ndarray) -> Batch:
        places = starts[indices][:, None] + np.arange(2 * length - 1)
        rooms = np.minimum(len(ids) - length - starts[indices], length - 1) + 1
        return {"x": np.asarray(ids[np.minimum(places, len(ids) - 1)], np.int32), "room": rooms}

    def ready(batch: Batch, uniform: Uniform | None) -> Batch:
        offsets = np.zeros(len(batch["x"]), int)
        if uniform is not None:
            offsets = np.minimum((uniform[:, 0] * batch["room"]).astype(int), batch["room"] - 1)
        return {"x": np.take_along_axis(batch["x"], offsets[:, None] + np.arange(length), axis=1)}

    return Source(entries={"x": entry}, size=len(starts), read=read, ready=ready, draws=2, facts=known)


def _ids(path: str, split: str, held_out: float, encode: Callable[[str], np.ndarray] | None, size: int) -> np.ndarray:
    """The ids of one split."""
    name, whole = files.named(split), pathlib.Path(path).expanduser()
    if path and whole.is_dir():
        file, cut = files.locate(whole, split, _SUFFIXES), None
        if file == whole:
            raise ValueError(f"{path} has no {' or '.join(f'{name}{suffix}' for suffix in _SUFFIXES)} in it.")
    else:
        if name not in ("train", "test"):
            raise ValueError(f"Unknown split {name!r} of one text: there are 'train' and 'test'.")
        file, cut = whole, held_out
    if not path:
        ids = encode(embedded())
    elif file.suffix == ".npy":
        ids = _mapped(file, size)
    elif encode is None:
        raise ValueError("data.tokenizer_folder is empty; a text with a data.vocabulary needs the tokenizer's files.")
    else:
        try:
            ids = encode(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read as UTF-8 text: {error}") from error
        if len(ids) and ids.max() >= size:
            raise ValueError(f"the tokenizer gives the id {ids.max()}, and data.vocabulary={size}.")
    if cut is None:
        return ids
    place = int(len(ids) * (1 - cut))
    return ids[:place] if name == "train" else ids[place:]


def _mapped(file: pathlib.Path, size: int) -> np.ndarray:
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if ids.shape != (ids.size,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{file} must hold integers [n], ids of tokens; it holds {ids.dtype} {ids.shape}.")
    if len(ids) and int(ids[: 2**20].max()) >= size:
        raise ValueError(f"{file} has the id {int(ids[: 2**20].max())}; ids must be less than {size}.")
    return ids
