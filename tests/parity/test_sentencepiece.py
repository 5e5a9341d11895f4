"""Ids of a model file of SentencePiece against its own library."""

import io
import random

import pytest

from diffusion_jax.data import sentencepiece
from tests.data.test_tokenization import write_texts

pytestmark = pytest.mark.parity
spm = pytest.importorskip("sentencepiece")


def test_ids_are_those_of_the_library(tmp_path):
    """Of a few thousand strings. A joiner or a mark behind a character that NFKC changes is left out of them: the
    package tokenizers drops it."""
    file, texts = io.BytesIO(), [str(text) for text in write_texts()]
    more = [
        "\u00dcn\u00efcode t\u00e8xt \ufb01ne \uff11\uff12\uff13 (ok)",
        "\u65e5\u672c\u8a9e \u30c6\u30ad\u30b9\u30c8",
        "\U0001f600 here",
    ]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts + 20 * more),
        model_writer=file,
        vocab_size=400,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(file.getvalue())
    library = spm.SentencePieceProcessor(model_proto=file.getvalue())
    read = sentencepiece.read(tmp_path / "spiece.model")
    draw = random.Random(0)
    letters = (
        "abc xyz  \t\n ABC \u00e9 \u00fc \ufb01 \uff11\uff12 \u65e5\u672c \U0001f600 < / s \u2581 !,. Stra\u00dfe"
        " \u00bd \u3314 \u00a0\u3000"
    )
    strings = [*texts, "", " ", "\u2581", "a\u2581b"]
    strings += ["".join(draw.choices(letters, k=draw.randrange(25))) for _ in range(3000)]
    strings += ["".join(draw.choices(("e\u0301", "a", " b", "\U0001f468\u200d\U0001f469"), k=9)) for _ in range(200)]
    found = [encoding.ids for encoding in read.encode_batch(strings)]
    expected = [library.encode(string, add_eos=True) for string in strings]
    others = [(ours, theirs) for ours, theirs in zip(found, expected, strict=True) if ours != theirs]
    assert len(others) < 0.005 * len(strings)
    for pair in others:  # two ways that are equally likely
        score, best = (sum(map(library.get_score, ids)) for ids in pair)
        assert score == pytest.approx(best, abs=1e-4)
    assert library.get_piece_size() == read.get_vocab_size() > 300
