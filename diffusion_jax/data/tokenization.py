"""Token ids of public text encoders: CLIP's byte-pair encoding, BERT's word pieces, and what a tokenizer.json says."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int, Int32
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from diffusion_jax.data import sentencepiece
from diffusion_jax.data.captions import Added, Cuts, any_of
from diffusion_jax.weights.files import read_json

CLIP_TOKENS = 77  # that CLIP's encoders read
START, END = "<|startoftext|>", "<|endoftext|>"
_LARGEST = 2**31
_LONGEST = 2**20  # a greater model_max_length in tokenizer_config.json means no limit
# Special tokens, contractions, words, single digits, and runs of anything else that is no space.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Texts to ids [n, max_tokens], each with its start and end, cut and padded.

    Attributes:
        backend: makes ids of one text, with start and end, cut at `max_tokens`.
        max_tokens: length of a row.
        pad_id: what fills it.
        cuts: warns, once, of texts that are cut.
        added: placeholder tokens with the ids of their vectors, see `with_tokens`.
    """

    backend: tokenizers.Tokenizer
    max_tokens: int
    pad_id: int
    cuts: Cuts = dataclasses.field(default_factory=Cuts, compare=False, repr=False)
    added: Added = dataclasses.field(default_factory=dict)

    def __call__(self, texts: Any) -> Int32[np.ndarray, "n max_tokens"]:
        """The ids of a sequence of strings. Raises ValueError, see `check_texts`, for anything else."""
        check_texts(texts)
        texts = [self._expanded(text) for text in texts]
        rows = np.full((len(texts), self.max_tokens), self.pad_id, np.int32)
        lost = []
        for row, encoding, text in zip(rows, self.backend.encode_batch_fast(texts), texts, strict=True):
            row[: len(encoding.ids)] = encoding.ids
            if encoding.overflowing and not self.cuts.warned:
                lost.append(self._lost(text))
        self.cuts.report(lost, len(texts), self.max_tokens)
        ours = self._ours
        return np.vectorize(lambda i: ours.get(i, i), otypes=[np.int32])(rows) if ours else rows

    def with_tokens(self, added: Added) -> Tokenizer:
        """This tokenizer with the placeholder tokens `added`, whose ids are those of their vectors.

        As in diffusers a token of n vectors stands for "token token_1 ... token_n-1". Raises ValueError for one that is
        in the vocabulary already.
        """
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        names = [name for token, ids in added.items() for name in _numbered_names(token, len(ids))]
        if known := [
            name for i, name in enumerate(names) if name in names[:i] or backend.token_to_id(name) is not None
        ]:
            raise ValueError(f"the token {known[0]!r} is in the vocabulary of the tokenizer already; choose another")
        backend.add_tokens(names)
        return dataclasses.replace(self, backend=backend, added=dict(added))

    @functools.cached_property
    def _ours(self) -> dict[int, int]:
        """The ids of the vectors of placeholder tokens, by those that the library has given to the tokens."""
        return {
            self.backend.token_to_id(name): i
            for token, ids in self.added.items()
            for name, i in zip(_numbered_names(token, len(ids)), ids, strict=True)
        }

    def _expanded(self, text: str) -> str:
        if not self.added:
            return text
        return re.sub(any_of(self.added), lambda m: " ".join(_numbered_names(m[0], len(self.added[m[0]]))), text)

    def _lost(self, text: str) -> str:
        """The end of `text` that is cut."""
        return text[max(end for _, end in self.backend.encode(text).offsets) :].strip()

    @property
    def size(self) -> int:
        """Ids are less than this."""
        return max(self.backend.get_vocab().values()) + 1

    def describe(self, ids: Int[np.ndarray, "n max_tokens"]) -> list[str]:
        """The texts of ids, as far as these have kept them, without start, end and padding."""
        theirs = {i: there for there, i in self._ours.items()}
        later = {i for ids in self.added.values() for i in ids[1:]}
        rows = [[theirs.get(i, i) for i in row if i not in later] for row in np.asarray(ids).tolist()]
        texts = self.backend.decode_batch(rows)
        # The decoder in a tokenizer.json of CLIP leaves the ends of words in the text. One space follows each word.
        if end := getattr(self.backend.model, "end_of_word_suffix", None):
            texts = [" ".join(text.replace(end, " ").split()) for text in texts]
        return [text.strip() for text in texts]


def _numbered_names(token: str, count: int) -> list[str]:
    """The names of the vectors of a placeholder token, as in diffusers."""
    return [token, *(f"{token}_{i}" for i in range(1, count))]


def check_texts(texts: Any) -> None:
    """Raises ValueError, naming what is none, unless `texts` is a sequence of strings that can be written as UTF-8."""
    if isinstance(texts, str) or not isinstance(texts, Sequence | np.ndarray):
        raise ValueError(f"prompts must be a sequence of strings, got {type(texts).__name__}: {str(texts)[:80]!r}.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"prompt {i} must be a string, got {type(text).__name__}: {str(text)[:80]!r}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt {i} holds the code point {text[error.start]!r}, half of a character.") from error


def load(folder: str | os.PathLike, max_tokens: int | None = None, pad_id: int | None = None) -> Tokenizer:
    """The tokenizer in a folder such as the tokenizer/ of a pipeline of diffusers.

    | files | tokenizer |
    |---|---|
    | vocab.json, merges.txt | CLIP's: NFC, white space and capitals normalised, byte-pair encoding of words |
    | tokenizer.json | what it says; of T5, for instance |
    | vocab.txt | BERT's, without capitals and accents |
    | spiece.model | SentencePiece's, of T5 |

    The padding is the `pad_token` of special_tokens_map.json or tokenizer_config.json; without them CLIP's is the end
    of the text. (Stable Diffusion 1 pads with that, OpenCLIP's encoders with "!", id 0.) As in transformers, special
    tokens in a text, the padding among them, are taken as such. Tokens that were added to CLIP's, such as those of
    textual inversion, are read from tokenizer_config.json or added_tokens.json.

    Args:
        folder: with these files.
        max_tokens: length of a row; by default the `model_max_length` of tokenizer_config.json, or CLIP's 77.
        pad_id: the padding where the files name none.

    Raises:
        ValueError: files are missing or damaged, or say nothing of the length.
    """
    folder = pathlib.Path(folder).expanduser()
    config, special = _optional(folder / "tokenizer_config.json"), _optional(folder / "special_tokens_map.json")
    said = {**special, **config} if "added_tokens_decoder" in config else {**config, **special}
    clip = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    length = max_tokens or said.get("model_max_length", CLIP_TOKENS if clip else None)
    if not isinstance(length, int) or not 2 <= length <= _LONGEST:
        raise ValueError(
            f"{folder} does not say how many tokens the encoder reads (model_max_length); give max_tokens."
        )
    try:
        if clip:
            said.setdefault("added_tokens_decoder", _numbered(_optional(folder / "added_tokens.json")))
            backend = _clip(read_json(folder / "vocab.json"), (folder / "merges.txt").read_text(encoding="utf-8"), said)
        elif (folder / "tokenizer.json").is_file():
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.txt").is_file():
            backend = _bert((folder / "vocab.txt").read_text(encoding="utf-8"), said)
        elif (folder / "spiece.model").is_file():
            backend = sentencepiece.read(folder / "spiece.model")
        else:
            raise ValueError("there must be vocab.json and merges.txt, tokenizer.json, vocab.txt or spiece.model")
        if max(backend.get_vocab().values(), default=0) >= _LARGEST:
            raise ValueError(f"an id of its vocabulary is not less than {_LARGEST}")
        default = END if clip else "[PAD]" if backend.token_to_id("[PAD]") is not None else "<pad>"
        pad = _pad(backend, said, default) if pad_id is None or said.get("pad_token") else pad_id
        backend.no_padding()
        backend.enable_truncation(length)
    except Exception as error:  # the library of tokenizers raises Exception itself
        raise ValueError(f"{folder} holds no tokenizer that can be read: {error}.") from error
    return Tokenizer(backend=backend, max_tokens=length, pad_id=pad)


def load_for_network(folder: str | os.PathLike, max_tokens: int) -> Tokenizer:
    """That of a network which learns to read ids itself, and takes 0 for padding. Raises ValueError for another id."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1, for a network that reads texts.")
    tokenizer = load(folder, max_tokens)
    if tokenizer.pad_id:
        raise ValueError(
            f"{folder} pads with the id {tokenizer.pad_id}; for a network that learns to read it must be 0."
        )
    return tokenizer


def _clip(vocabulary: Mapping[str, Any], merges: str, said: Mapping[str, Any]) -> tokenizers.Tokenizer:
    pairs = [tuple(line.split()) for line in merges.splitlines() if line.strip() and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("a line of merges.txt is no pair")
    for token in (START, END):
        if token not in vocabulary:
            raise ValueError(f"vocab.json has no {token}")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=END,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (START, vocabulary[START]), trim_offsets=False, add_prefix_space=False
    )
    declared = said["added_tokens_decoder"]
    for i in sorted(declared, key=int):
        token = _token(f"added_tokens_decoder[{i}]", declared[i], bool(declared[i].get("special")))
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != int(i):
            raise ValueError(f"the token {token.content!r} has the id {backend.token_to_id(token.content)}, not {i}")
    known = [entry["content"] for entry in declared.values()]
    for name, default in (("bos_token", START), ("eos_token", END), ("pad_token", END)):
        token = _token(name, said.get(name) or default)
        if backend.token_to_id(token.content) is None:
            raise ValueError(f"the vocabulary has no {name} {token.content!r}")
        if token.content not in known:
            backend.add_special_tokens([token])  # of two with the same content the flags of the second count
    return backend


def _bert(vocabulary: str, said: Mapping[str, Any]) -> tokenizers.Tokenizer:
    ids = {token: i for i, token in enumerate(vocabulary.splitlines())}
    for token in ("[UNK]", "[CLS]", "[SEP]"):
        if token not in ids:
            raise ValueError(f"vocab.txt has no {token}")
    backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=bool(said.get("do_lower_case", True)))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    backend.add_special_tokens([token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in ids])
    return backend


def _pad(backend: tokenizers.Tokenizer, said: Mapping[str, Any], default: str) -> int:
    named = _token("pad_token", said.get("pad_token") or default).content
    token_id = backend.token_to_id(named)
    if token_id is None:
        raise ValueError(f"the vocabulary has no token {named!r} to pad with")
    return token_id


def _token(name: str, value: Any, special: bool = True) -> AddedToken:
    """A token as the JSON files describe it: a string, or an object with flags."""
    if isinstance(value, str):
        return AddedToken(value, special=special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"{name} must be a string or an object with the string 'content', got {value!r}")
    flags = {flag: bool(value[flag]) for flag in ("single_word", "lstrip", "rstrip", "normalized") if flag in value}
    return AddedToken(value["content"], special=special, **flags)


def _numbered(added: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tokens of added_tokens.json, which has their ids, in the form of tokenizer_config.json."""
    return {str(i): {"content": token, "normalized": True, "special": False} for token, i in added.items()}


def _optional(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
