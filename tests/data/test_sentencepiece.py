"""Model files of SentencePiece, written here field by field; tests/parity compares with its library."""

import struct

import numpy as np
import pytest

from diffusion_jax.data import sentencepiece, tokenization

CONTROL, UNKNOWN, NORMAL, USER = 3, 2, 1, 4
PIECES = (
    ("<pad>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    ("<unk>", 0.0, UNKNOWN),
    ("\u2581", -2.0, NORMAL),
    ("a", -2.0, NORMAL),
    ("b", -2.5, NORMAL),
    ("\u2581a", -3.0, NORMAL),
    ("ab", -6.0, NORMAL),
    ("<x>", 0.0, USER),
)


def varint(value):
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def field(number, value):
    if isinstance(value, bytes):
        return varint(8 * number + 2) + varint(len(value)) + value
    return (
        varint(8 * number) + varint(value)
        if isinstance(value, int)
        else varint(8 * number + 5) + struct.pack("<f", value)
    )


def model(*more, pieces=PIECES):
    parts = [field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces]
    return b"".join((*parts, *more))


@pytest.fixture
def write(tmp_path):
    def written(content):
        (tmp_path / "spiece.model").write_bytes(content)
        return tmp_path

    return written


def test_pieces_of_the_greatest_probability_and_the_end(write):
    """ "ab" is less likely (-6) than "a" and "b" (-4.5), and a first "a" best with its space (-3 for -4)."""
    tokens = tokenization.load(write(model()), max_tokens=8)
    assert tokens(["ab", "a  ab ", "c", "", "b<x>"]).tolist() == [
        [6, 5, 1, 0, 0, 0, 0, 0],
        [6, 6, 5, 1, 0, 0, 0, 0],
        [3, 2, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
        [3, 5, 8, 1, 0, 0, 0, 0],
    ]
    assert tokens.describe(np.array([[6, 5, 1, 0]]))[0].startswith("ab")
    assert tokenization.load_for_network(write(model()), 4).pad_id == 0


def test_options_of_the_normaliser(write):
    """Without a space in front, and with those that are too many."""
    options = field(3, field(3, 0) + field(4, 0))
    assert tokenization.load(write(model(options)), 6)(["a  b"]).tolist() == [[4, 3, 3, 5, 1, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(field(2, field(3, 2))), "is no unigram model"),
        (model(pieces=PIECES[3:]), "has no piece for what is unknown"),
        (b"", "has no piece for what is unknown"),
        (model() + b"\x0a", "cut off or no model"),
        (model() + b"\xff" * 11, "cut off or no model"),
        (model() + b"\x0b", "cut off or no model"),
        (field(1, 7), "of another type"),
        (model(field(3, field(2, b"\x01\x02"))), "no tokenizer that can be read"),
    ],
)
def test_files_that_are_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        tokenization.load(write(content), 6)


def test_what_is_cut_off_is_refused_or_holds_fewer_pieces(write):
    content = model()
    for length in range(0, len(content), 3):
        folder = write(content[:length])
        try:
            assert sentencepiece.read(folder / "spiece.model").get_vocab_size() < len(PIECES)
        except ValueError:
            continue
