"""Windows or lines of text files as token ids: characters, bytes, or the tokens of a tokenizer."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.data import alphabets, tokenization
from diffusion_jax.data.alphabets import Alphabet
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Batch, Source, Tokenize, Uniform, in_memory
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
    """`decode`, a function from rows of ids to texts, and `encode`, from a text to ids.

    Of `lines` also `pad`, the id that ends and fills a row: a new line, or with a tokenizer its padding. Raises
    ValueError for an alphabet without a new line.
    """
    lines = section.get("lines", False)
    if _tokenized(section):
        folder = section.get("tokenizer_folder", "")
        if not folder:
            return {}
        backend, pad = _backend(folder)
        decode, encode = (lambda ids: backend.decode_batch(np.maximum(ids, 0).tolist())), _encoder(backend)
    else:
        alphabet = _alphabet(section)
        if lines and (alphabet.characters == alphabets.BYTES or "\n" not in alphabet.characters):
            raise ValueError(
                "data.lines=True needs a data.alphabet with a new line, which ends a line and fills its row"
            )
        decode, encode, pad = alphabet.decode, alphabet.encode, alphabet.characters.find("\n")
    if not lines:
        return {"decode": decode, "encode": encode}
    ended = lambda ids: [decode(row[None, :end])[0] for row, end in zip(ids, first(ids, pad), strict=True)]  # noqa: E731
    return {"decode": ended, "encode": encode, "pad": pad}


def first(ids: np.ndarray, pad: int) -> np.ndarray:
    """The place of the first `pad` in each row of ids [n, length], which is the length of its line."""
    there = np.asarray(ids) == pad
    return np.where(there.any(1), there.argmax(1), ids.shape[1])


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
def _backend(folder: str) -> tuple[Any, int]:
    """The tokenizer in a folder, and the id of its padding."""
    tokenizer = tokenization.load(folder, 2**20)
    tokenizer.backend.no_truncation()
    return tokenizer.backend, tokenizer.pad_id


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
    lines: bool = False,
) -> Source:
    """Windows of `length` tokens of a text, `path`: a file, or a folder with <split>.txt or <split>.npy (ids).

    Without a `path` it is `embedded`. Of one file the split "test" is the last fraction `held_out` of its tokens and
    "train" the others. Held-out windows follow each other; in training a window starts at a random one of the `length`
    places from there on. The last window ends with the text, so that no character is left out. Ids in .npy files are
    mapped, not read into memory. With a `vocabulary` the tokens are those of the tokenizer in `tokenizer_folder`.

    With `lines` an example is a line of a text file, empty ones left out, that is filled up with the pad id of `facts`,
    at least one; of one file the last fraction `held_out` of the lines is the split "test".

    Raises ValueError for a text that is missing, unreadable, too short or has characters outside of the `alphabet`, and
    for a line that is not shorter than `length`.
    """
    section = dict(length=length, alphabet=alphabet, unknown=unknown, tokenizer_folder=tokenizer_folder)
    section |= {"vocabulary": vocabulary, "lines": lines}
    entry = spec(section)
    if not 0 < held_out < 1:
        raise ValueError(f"data.held_out={held_out} must be in (0, 1), the fraction of a file that is its test split")
    known = facts(section)
    if lines:
        rows = _rows(path, split, held_out, known, entry)
        return Source(entries={"x": entry}, size=len(rows), read=in_memory({"x": rows}), facts=known)
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


def _file(path: str, split: str) -> tuple[pathlib.Path, bool]:
    """The file of a split, and whether other splits are in it too. Raises ValueError."""
    name, whole = files.named(split), pathlib.Path(path).expanduser()
    if path and whole.is_dir():
        file = files.locate(whole, split, _SUFFIXES)
        if file == whole:
            raise ValueError(f"{path} has no {' or '.join(f'{name}{suffix}' for suffix in _SUFFIXES)} in it.")
        return file, False
    if name not in ("train", "test"):
        raise ValueError(f"Unknown split {name!r} of one text: there are 'train' and 'test'.")
    return whole, True


def _ids(path: str, split: str, held_out: float, encode: Callable[[str], np.ndarray] | None, size: int) -> np.ndarray:
    """The ids of one split."""
    file, shared = _file(path, split)
    ids = _mapped(file, size) if path and file.suffix == ".npy" else _encoded(_read(path, file), encode, size)
    return _part(ids, split, held_out) if shared else ids


def _rows(path: str, split: str, held_out: float, known: Mapping[str, Any], entry: Spec) -> np.ndarray:
    """The lines of one split, each a row of ids."""
    file, shared = _file(path, split)
    if path and file.suffix == ".npy":
        raise ValueError(f"data.lines=True reads lines of a text; {file} holds ids.")
    texts = [line for line in _read(path, file).splitlines() if line]
    texts = _part(texts, split, held_out) if shared else texts
    rows = np.full((len(texts), *entry.shape), known.get("pad", 0), np.int32)
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        ids = _encoded(text, known.get("encode"), entry.values)
        if len(ids) >= len(row):
            raise ValueError(
                f"line {i} of the split {split!r} of {path or 'the embedded text'} has {len(ids)} tokens; "
                f"data.length={len(row)} must be more, for the line and its end."
            )
        row[: len(ids)] = ids
    return rows[files.select(split, len(rows))]


def _part(items: Any, split: str, held_out: float) -> Any:
    """The items of one file that are of a split."""
    place = int(len(items) * (1 - held_out))
    return items[:place] if files.named(split) == "train" else items[place:]


def _read(path: str, file: pathlib.Path) -> str:
    if not path:
        return embedded()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _encoded(text: str, encode: Callable[[str], np.ndarray] | None, size: int) -> np.ndarray:
    if encode is None:
        raise ValueError("data.tokenizer_folder is empty; a text with a data.vocabulary needs the tokenizer's files.")
    ids = encode(text)
    if len(ids) and ids.max() >= size:
        raise ValueError(f"the tokenizer gives the id {ids.max()}, and data.vocabulary={size}.")
    return ids


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
