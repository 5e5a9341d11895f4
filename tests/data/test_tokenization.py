"""CLIP's byte-pair encoding against a plain Python one, and tokenizers that cannot be read."""

import functools
import itertools
import json
import pathlib
import random
import unicodedata
import warnings

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from diffusion_jax.data import tokenization

ROOT = pathlib.Path(__file__).parents[2]
START, END = tokenization.START, tokenization.END
PARTS = (
    "don't we'll I'VE he's they'd you're I'm can't",
    "café CAFÉ cafe\u0301 naïve Ångström straße İstanbul ǅ ﬁne",
    "一只红色的猫 日本語テキスト 한국어 עברית العربية हिन्दी ไทย",
    "😀 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☃ 👍🏽 🧑‍🚀",
    "1234567 3.14 ½ Ⅷ ٣ x² 10_000 1st",
    "a\tb\nc\r\nd  e\u00a0f\u3000g\u200bh\u2028i",
    "\x00\x01\x7f\x1b[0m \ufeff \u202e",
    "!!! ... ?!? (((tag:1.3))) [x|y] #hash @you $5.00 50% <b>bold</b> &amp; -- --- \\ /",
    "<|startoftext|> <|endoftext|> <|ENDOFTEXT|> <|endoftext <|endoftext|>s !",
    "supercalifragilisticexpialidocious aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa zzz qwxz",
    "",
    " ",
)


def write_texts():
    """Text of the repository, which a vocabulary is trained on."""
    return [line for file in sorted((ROOT / "docs").glob("*.md")) for line in file.read_text().splitlines() if line]


def strings(num):
    """The parts above, lines of text, and mixtures of the characters of both; the same ones at every call."""
    chosen, lines = random.Random(0), [*PARTS, *write_texts()]
    characters = [character for line in (*PARTS, *PARTS, *PARTS, *lines[-40:]) for character in line]
    found = list(lines[: num // 2])
    while len(found) < num:
        count = chosen.choice((1, 3, 10, 30, 200))
        mixture = "".join(chosen.choice(characters) for _ in range(count))
        found.append(mixture if chosen.random() < 0.5 else " ".join(chosen.sample(lines, 2)) + mixture)
    return found


def write_clip(folder, vocab_size=1500):
    """vocab.json and merges.txt in CLIP's form: bytes, bytes that end a word, merges, start and end of the text."""
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(write_texts(), trainer)
    backend.model.save(str(folder))
    merges = [line for line in (folder / "merges.txt").read_text().splitlines() if not line.startswith("#version")]
    letters = list(byte_letters().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(line.replace(" ", "") for line in merges)]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate([*tokens, START, END])}))


@functools.cache
def byte_letters():
    """A visible character for each byte: itself where it is one, else one beyond 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def words(text):
    """Contractions, runs of letters, single numbers, and runs of anything else."""
    text, found = " ".join(unicodedata.normalize("NFC", text).split()).lower(), []
    kind = lambda character: "s" if character == " " else unicodedata.category(character)[0]
    while text:
        contraction = next((c for c in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(c)), None)
        first, size = kind(text[0]), 1
        if contraction:
            size = len(contraction)
        elif first != "N":
            same = (lambda c: kind(c) == "L") if first == "L" else (lambda c: kind(c) not in "LNs")
            while first != "s" and size < len(text) and same(text[size]):
                size += 1
        found += [] if first == "s" else [text[:size]]
        text = text[size:]
    return found


def encode(text, vocabulary, ranks):
    """The ids of a text as arXiv:1508.07909, algorithm 1, has it: the pair learned first is merged first."""
    ids = []
    for word in words(text):
        parts = [byte_letters()[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, np.inf))
            if best not in ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                pair = tuple(parts[i : i + 2]) == best
                merged.append("".join(best) if pair else parts[i])
                i += 2 if pair else 1
            parts = merged
        ids += [vocabulary[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_clip(path)
    return path


def test_is_the_algorithm_of_the_papers(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = [line for line in (folder / "merges.txt").read_text().splitlines() if not line.startswith("#version")]
    ranks = {tuple(line.split(" ")): i for i, line in enumerate(lines)}
    texts = [text for text in strings(300) if "<|" not in text and not set(text) & set("\x00\x01\x1b\u200b\u2028İ")]
    found = tokenization.load(folder)(texts)
    start, end = vocabulary[START], vocabulary[END]
    for text, row in zip(texts, found.tolist(), strict=True):
        ids = encode(text, vocabulary, ranks)[:75]
        assert row == [start, *ids, *[end] * (76 - len(ids))], text
    assert (found[:, -2] != end).sum() > 20, "some are cut"


def test_padding_and_length_are_those_of_the_files(folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((folder / name).read_text())
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 6, "pad_token": "!"}')
    row = tokenization.load(tmp_path)([""])[0]
    assert row.dtype == np.int32 and row.tolist() == [vocabulary[START], vocabulary[END], *[vocabulary["!"]] * 4]
    assert tokenization.load(tmp_path, 3)(["a b c d e"]).shape == (1, 3)
    assert tokenization.load(tmp_path)([]).shape == (0, 6)
    assert tokenization.load(tmp_path, pad_id=5).pad_id == vocabulary["!"], "the files say"
    (tmp_path / "tokenizer_config.json").unlink()
    assert [tokenization.load(tmp_path, 4, pad_id).pad_id for pad_id in (None, 0)] == [vocabulary[END], 0]


def test_texts_that_are_cut_are_named_once(folder):
    tokenizer = tokenization.load(folder, 5)
    with pytest.warns(UserWarning, match=r"1 of 2 texts are cut.* 5 tokens.*lost: 'D é!'") as record:
        tokenizer(["A b C D é!", "a"])
        tokenizer(["a b c d e f g"])
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenization.load(folder, 5)(["a b c"])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", 5], r"prompt 1 must be a string, got int: '5'"),
        ([None], "prompt 0 must be a string, got NoneType"),
        ("a cat", "must be a sequence of strings, got str: 'a cat'"),
        (3.5, "must be a sequence of strings, got float"),
        (["a\ud83d"], "prompt 0 holds the code point .*half of a character"),
    ],
)
def test_prompts_that_are_no_strings(folder, prompts, message):
    with pytest.raises(ValueError, match=message):
        tokenization.load(folder)(prompts)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "does not say how many tokens"),
        ({"tokenizer_config.json": '{"model_max_length": 9}'}, r"there must be vocab\.json and merges\.txt"),
        ({"vocab.json": "[]", "merges.txt": ""}, "holds a list, not a JSON object"),
        ({"vocab.json": "{", "merges.txt": ""}, r"vocab\.json cannot be read"),
        ({"vocab.json": "{}", "merges.txt": ""}, r"vocab\.json has no <\|startoftext\|>"),
        ({"vocab.json": "{}", "merges.txt": "a b c"}, r"a line of merges\.txt is no pair"),
        ({"vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": "x"}', "merges.txt": ""}, "no tokenizer"),
        ({"vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}', "merges.txt": "a b"}, "no tokenizer"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": '{"model_max_length": 9}'}, "no tokenizer"),
        ({"vocab.txt": "a", "tokenizer_config.json": '{"model_max_length": 9}'}, r"vocab\.txt has no \[UNK\]"),
        (
            {"vocab.txt": "[UNK]\n[CLS]\n[SEP]", "tokenizer_config.json": '{"model_max_length": 9}'},
            "no token '<pad>' to pad with",
        ),
        (
            {
                "vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}',
                "merges.txt": "",
                "special_tokens_map.json": '{"pad_token": "!"}',
            },
            "the vocabulary has no pad_token '!'",
        ),
        (
            {
                "vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}',
                "merges.txt": "",
                "added_tokens.json": '{"<cat>": 7}',
            },
            "the token '<cat>' has the id 2, not 7",
        ),
        (
            {
                "vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}',
                "merges.txt": "",
                "special_tokens_map.json": '{"pad_token": 7}',
            },
            "pad_token must be a string or an object",
        ),
    ],
)
def test_folders_without_a_tokenizer(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        tokenization.load(tmp_path)


def test_placeholder_tokens_have_the_ids_of_their_vectors(tmp_path):
    """As in diffusers a token of three vectors is "<cat> <cat>_1 <cat>_2"; its ids are ours, whatever the library's."""
    write_clip(tmp_path, 600)
    plain = tokenization.load(tmp_path, 12)
    added = plain.with_tokens({"<cat>": range(5000, 5003), "<s>": range(5003, 5004)})
    (ids,) = added(["the <cat> in <S>"])
    assert [i for i in ids.tolist() if i >= 5000] == [5000, 5001, 5002, 5003]
    (without,) = plain(["the  in"])
    assert [i for i in ids.tolist() if i < 5000][:3] == without[:3].tolist()
    assert added.describe(ids[None]) == ["the <cat> in <s>"]
    np.testing.assert_array_equal(plain(["a cat"]), added(["a cat"]))
    known = next(token for token in plain.backend.get_vocab() if token.isalpha())
    for token in (known, "<cat>"):
        with pytest.raises(ValueError, match=f"the token '{token}' is in the vocabulary of the tokenizer already"):
            added.with_tokens({token: range(5004, 5005)})
