"""SentencePiece's model files (spiece.model of T5), read without its library: pieces with their log probabilities.

A file is a protocol buffer, sentencepiece_model.proto: a list of fields, each with a number and a type.
"""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Iterator

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

EOS = "</s>"
_MAX_BYTES = 2**28
_SPACE = "\u2581"  # a space, in pieces
# Numbers of fields: of the model, of one piece, of the trainer's and the normaliser's options.
_PIECES, _TRAINER, _NORMALISER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _UNIGRAM = 3, 1
_CHARS_MAP, _DUMMY_PREFIX, _EXTRA_SPACES = 2, 3, 4
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


def read(path: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a model file, which ends every text with </s> where it has that: arXiv:1808.06226.

    Texts are normalised as the file says (NFKC, for T5), and cut into the most probable (Viterbi) unigram segmentation
    (arXiv:1804.10959). As in transformers, control symbols in a text are taken as such.

    Raises:
        ValueError: it is damaged, or not of the kind "unigram".
        OSError: it cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_BYTES} bytes")
    pieces, options = [], {_TRAINER: {}, _NORMALISER: {}}
    for number, value in _fields(path.read_bytes()):
        if number == _PIECES:
            piece = {_KIND: _NORMAL, _SCORE: 0.0} | dict(_fields(_bytes(value)))
            pieces.append((_bytes(piece.get(_TEXT)).decode(), float(piece[_SCORE]), piece[_KIND]))
        elif number in options:
            options[number] = dict(_fields(_bytes(value)))
    if options[_TRAINER].get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM:
        raise ValueError(f"{path.name} is no unigram model")
    unknown = next((i for i, (*_, kind) in enumerate(pieces) if kind == _UNKNOWN), None)
    if unknown is None:
        raise ValueError(f"{path.name} has no piece for what is unknown")
    backend = tokenizers.Tokenizer(models.Unigram([(text, score) for text, score, _ in pieces], unknown))
    normaliser, chars_map = options[_NORMALISER], _bytes(options[_NORMALISER].get(_CHARS_MAP, b""))
    steps = [normalizers.Precompiled(chars_map)] if chars_map else []
    if normaliser.get(_EXTRA_SPACES, 1):
        steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if normaliser.get(_DUMMY_PREFIX, 1) else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, scheme)
    backend.decoder = decoders.Metaspace(_SPACE, scheme)
    backend.add_tokens([AddedToken(text, normalized=False) for text, _, kind in pieces if kind == _USER_DEFINED])
    backend.add_special_tokens([AddedToken(text, normalized=False) for text, _, kind in pieces if kind == _CONTROL])
    if (end := backend.token_to_id(EOS)) is not None:
        backend.post_processor = processors.TemplateProcessing(f"$A {EOS}", special_tokens=[(EOS, end)])
    return backend


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(number, value) of each field of a message. Raises ValueError where it is cut off or of an unknown type."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("it is cut off or no model of SentencePiece")
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or (varint() if kind == 2 else -1)
        if not 0 <= size <= len(data) - at:
            raise ValueError("it is cut off or no model of SentencePiece")
        value, at = data[at : at + size], at + size
        yield number, struct.unpack("<f", value)[0] if kind == 5 else value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field of it is of another type than in a model of SentencePiece")
    return value
