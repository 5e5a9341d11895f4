"""Vocabularies that are learned from captions."""

import json

import numpy as np
import PIL.Image
import pytest

from diffusion_jax.data import tokenization, vocabulary

TEXTS = ["red heart", "blue heart", "dog face", "cat face", "hearts and dogs", "red heart"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    vocabulary.learn(TEXTS, 400).save(str(folder / "tokenizer.json"))
    return folder


def test_words_of_the_texts_are_tokens(folder):
    words = tokenization.load(folder, 4)
    ids = words(["red heart", "  Red\n HEART ", "heart", "red"])
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[0], [ids[3, 0], ids[2, 0], 0, 0])
    assert (ids[2:, 1:] == 0).all() and (ids[:, 0] > 256).all()


def test_any_text_has_ids_and_comes_back(folder):
    words = tokenization.load(folder, 64)
    texts = ["", "zebra", "café ☕ 猫", "it's 3/4!", "a_b", "<|x|>", "\u200d🏽"]
    ids = words(texts)
    assert words.describe(ids) == texts
    assert (ids[1:, 0] > 0).all() and ids.max() < words.size


def test_the_same_texts_give_the_same_ids():
    first, second = (vocabulary.learn(TEXTS, 300).to_str() for _ in range(2))
    assert first == second


def test_padding_is_0_and_no_id_exceeds_the_size(folder):
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocab[vocabulary.PAD] == 0 and sorted(vocab.values()) == list(range(len(vocab)))
    assert 257 < len(vocab) <= 400 and tokenization.load(folder, 4).size == len(vocab)


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [(TEXTS, 256, "size=256 must be in 257"), (TEXTS, 2**21, "size=2097152"), (["a", "\ud800"], 300, "prompt 1 holds")],
)
def test_what_cannot_be_learned(texts, size, message):
    with pytest.raises(ValueError, match=message):
        vocabulary.learn(texts, size)


def test_the_command_reads_arrays_and_folders(tmp_path, capsys):
    images = np.zeros((6, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "pictures.npz", images=images, names=np.array(TEXTS))
    common = ["--size=300", f"--to={tmp_path / 'words'}"]
    vocabulary.main([f"--path={tmp_path / 'pictures.npz'}", "--caption_key=names", "--split=train[:50%]", *common])
    assert "tokens of 3 captions in " in capsys.readouterr().out
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        PIL.Image.fromarray(images[i]).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(TEXTS[i])
    vocabulary.main([f"--path={folder}", "--caption_key=.txt", *common])
    words = tokenization.load(tmp_path / "words", 8)
    # A word that was not there is the space before it and its letters.
    assert [np.count_nonzero(row) for row in words(["red heart", "face", "cat"])] == [2, 1, 4]
    with pytest.raises(SystemExit):
        vocabulary.main([f"--path={tmp_path / 'pictures.npz'}", *common])
    assert "has no captions; --caption_key='' says where" in capsys.readouterr().err
