"""Token ids against transformers' tokenizers with the same files, on some thousand strings."""

import json

import numpy as np
import pytest

from diffusion_jax.data import tokenization
from diffusion_jax.data.tokenization import END, START
from tests.data.test_tokenization import strings, write_clip, write_texts

pytestmark = pytest.mark.parity


FLAGS = dict(lstrip=False, normalized=True, rstrip=False, single_word=False)
NAMED = {
    name: dict(FLAGS, content=content)
    for name, content in (("bos_token", START), ("eos_token", END), ("unk_token", END))
}


def declared(vocabulary):
    """As newer files have it, and with two tokens of textual inversion."""
    entries = {vocabulary["!"]: dict(FLAGS, content="!", normalized=False, special=True)}
    entries |= {vocabulary[token]: dict(FLAGS, content=token, special=True) for token in (START, END)}
    new = ("<cat-toy>", dict(FLAGS, special=False)), ("café", dict(FLAGS, special=False, normalized=False))
    entries |= {len(vocabulary) + i: dict(flags, content=token) for i, (token, flags) in enumerate(new)}
    return {"added_tokens_decoder": {str(i): entry for i, entry in entries.items()}}


@pytest.mark.parametrize("case", ["bare", "SD1", "SD2", "SDXL", "added"])
def test_clip(tmp_path, case):
    transformers = pytest.importorskip("transformers")
    write_clip(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    special = {} if case == "bare" else {**NAMED, "pad_token": END if case in ("SD1", "added") else "!"}
    named = {"bos_token": START, "eos_token": END, "pad_token": "!"}
    config = {"model_max_length": 77, **(named | declared(vocabulary) if case == "SDXL" else {})}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if case == "added":
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<cat-toy>": len(vocabulary)}))
    ours = tokenization.load(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*strings(2000), "a <cat-toy> on a<cat-toy>!", "<CAT-TOY> café CAFÉ"]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77, return_tensors="np")["input_ids"]
    found = ours(texts)
    different = [text for text, a, b in zip(texts, found, expected, strict=True) if not np.array_equal(a, b)]
    assert not different, different[:5]
    assert found.shape == (2002, 77) and len({tuple(row) for row in found.tolist()}) > 1500
    assert (found[:, -2] != ours.pad_id).sum() > 50, "some are cut"
    assert (len(vocabulary) in found) == (case in ("SDXL", "added"))


def test_bert(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = sorted({word.lower() for text in write_texts() for word in text.split() if word.isalpha()})
    pieces = [chr(i) for i in range(97, 123)] + [f"##{chr(i)}" for i in range(97, 123)]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *words]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    texts = strings(1000)
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(tokenization.load(tmp_path)(texts), expected)


def test_t5(tmp_path):
    """From the tokenizer.json that transformers writes."""
    transformers = pytest.importorskip("transformers")
    pieces = sorted({piece for text in write_texts() for word in text.split() for piece in (f"▁{word}", *word)})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = [*special, ("▁", -2.0), *((piece, -float(len(piece))) for piece in pieces if piece != "▁")]
    theirs = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)
    theirs.save_pretrained(tmp_path)
    texts = strings(1000)
    expected = theirs(texts, padding="max_length", truncation=True, max_length=32, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(tokenization.load(tmp_path, 32)(texts), expected)
