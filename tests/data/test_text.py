"""Texts as windows of ids: nothing is lost at the ends, splits do not touch, and bad input is refused by name."""

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.alphabets import Alphabet, hidden_text
from diffusion_jax.data.sources import text


def open_text(tmp_path, content="", **arguments):
    if content:
        (tmp_path / "a.txt").write_text(content)
        arguments["path"] = str(tmp_path / "a.txt")
    return data.load(name="text", **arguments)


def test_the_windows_of_both_splits_are_the_text(tmp_path):
    content = "".join(chr(97 + i % 26) for i in range(1003))
    train, test = (open_text(tmp_path, content, length=10, split=split) for split in ("train", "test"))
    decode = train.facts["decode"]
    rows = decode(data.arrays(train)["x"])
    assert "".join(rows[:-1]) == content[:900] and len(train) == 91 and rows[-1] == content[892:902]
    rows = decode(data.arrays(test)["x"])
    assert "".join(rows[:-1]) == content[902:1002] and rows[-1] == content[-10:]


def test_training_windows_start_anywhere_and_stay_within_their_split(tmp_path):
    content = "".join(chr(32 + i % 90) for i in range(400))
    train = open_text(tmp_path, content, length=16)
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(60):
        for row in train.facts["decode"](train.batch(np.arange(len(train)), rng)["x"]):
            at = content.find(row)
            assert 0 <= at <= 360 - 16
            starts.add(at)
    assert len(starts) == 90  # each residue of the period
    half = open_text(tmp_path, content, length=16, split="train[:50%]")
    assert len(half) == round(len(train) / 2)


def test_the_embedded_text_is_english_of_printable_characters():
    source = open_text(None, split="test")
    words = " ".join(source.facts["decode"](data.arrays(source)["x"]))
    assert len(source) > 500 and words.count(" the ") > 100


def test_folders_ids_and_bytes(tmp_path):
    (tmp_path / "train.txt").write_text("größer" * 10)
    np.save(tmp_path / "test.npy", np.arange(50, dtype=np.uint16) % 7)
    train = data.load(name="text", path=str(tmp_path), length=14, alphabet="bytes")
    assert train.facts["decode"](data.arrays(train)["x"])[0] == "größergröß"
    test = data.load(name="text", path=str(tmp_path), length=8, alphabet="bytes", split="test")
    np.testing.assert_array_equal(data.arrays(test)["x"][0], np.arange(8) % 7)


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("naïve" * 99, {}, "'ï'.*data.alphabet"),
        ("abc" * 99, dict(alphabet="aab"), "alphabet='aab'"),
        ("abc" * 99, dict(alphabet="ab", unknown="z"), "unknown='z'"),
        ("abc", dict(length=10), "has 2 tokens, not 10"),
        ("abc" * 99, dict(length=1), "length=1"),
        ("abc" * 99, dict(held_out=1.5), "held_out=1.5"),
        ("abc" * 99, dict(split="valid"), "'valid'"),
        ("abc" * 99, dict(vocabulary=100), "tokenizer_folder"),
        ("", dict(path="/nowhere/b.txt"), "/nowhere/b.txt"),
    ],
)
def test_refused_texts(tmp_path, content, arguments, words):
    with pytest.raises(ValueError, match=words):
        open_text(tmp_path, content, **arguments)


def test_lines_are_examples_with_an_end(tmp_path):
    train, test = (
        open_text(tmp_path, "ab\n\nabc\nb\na\n", lines=True, length=5, alphabet="\nabc", held_out=0.25, split=split)
        for split in ("train", "test")
    )
    np.testing.assert_array_equal(data.arrays(train)["x"], [[1, 2, 0, 0, 0], [1, 2, 3, 0, 0], [2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(data.arrays(test)["x"], [[1, 0, 0, 0, 0]])
    assert train.facts["pad"] == 0
    assert train.facts["decode"](np.array([[1, 0, 2, 0], [4, 1, 2, 3]])) == ["a", "_abc"]
    with pytest.raises(ValueError, match=r"line 1 of the split 'train' of .* has 3 tokens; data\.length=3"):
        open_text(tmp_path, "ab\nabc\n" * 9, lines=True, length=3)
    with pytest.raises(ValueError, match=r"data\.lines=True needs a data\.alphabet with a new line"):
        open_text(tmp_path, "ab\nabc\n" * 9, lines=True, length=4, alphabet="abc")


def test_unknown_characters_are_replaced_and_masks_are_written():
    alphabet = Alphabet("abc?", unknown="?")
    np.testing.assert_array_equal(alphabet.encode("abzc"), [0, 1, 3, 2])
    assert alphabet.decode(np.array([[0, 1, 4, -1]])) == ["ab__"]


def test_requests_name_hidden_characters():
    alphabet = Alphabet("abc ")
    rows = hidden_text(alphabet.encode, 6, ["a__b", "_c"])
    np.testing.assert_array_equal(rows, [[0, -1, -1, 1, -1, -1], [-1, 2, -1, -1, -1, -1]])
    for wrong, words in (("abcabcabc", "more than 6"), ("abcabc", "nothing to draw")):
        with pytest.raises(ValueError, match=words):
            hidden_text(alphabet.encode, 6, [wrong])


def test_tokens_of_a_tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "sat"]))
    section = dict(tokenizer_folder=str(folder), vocabulary=7, length=4)
    source = open_text(tmp_path, "a cat sat a cat sat a cat sat " * 5, **section)
    np.testing.assert_array_equal(data.arrays(source)["x"][0], [4, 5, 6, 4])
    assert source.facts["decode"](np.array([[4, 5, 6]])) == ["a cat sat"]
    assert text.spec(section).values == 7 and text.facts(dict(vocabulary=7)) == {}
    with pytest.raises(ValueError, match=r"data\.vocabulary=5"):
        open_text(tmp_path, "a cat sat " * 20, **section | {"vocabulary": 5})
