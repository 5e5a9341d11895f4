"""What config.sampling.cond may say, and how conditions are recorded."""

import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.config.sections import ConfigError
from diffusion_jax.data.captions import VOCABULARY, texts_of, tokens_of
from diffusion_jax.guidance import editing
from diffusion_jax.networks.conditions import NO_CONDITIONS, Condition, Conditions
from diffusion_jax.run.requests import captions, conditions, recorded, requested
from diffusion_jax.types import Spec

CLASSES = Conditions(num_classes=10)
CAPTIONS = Conditions(token_dim=4, vocabulary=VOCABULARY, max_tokens=6)
VECTORS = Conditions(num_classes=10, vector_dim=2)


def test_texts_survive_tokens():
    texts = ["a cat", "", "Grüße", "longer than five"]
    tokens = tokens_of(texts, 5)
    assert tokens.shape == (4, 5) and tokens.max() < VOCABULARY
    assert texts_of(tokens) == ["a cat", "", "Grü", "longe"], "five bytes end within the fourth letter"
    assert texts_of(tokens_of(texts, 40)) == texts


def test_classes_go_round():
    np.testing.assert_array_equal(requested("3", CLASSES, 3)["label"], [3, 3, 3])
    np.testing.assert_array_equal(requested("0, 7", CLASSES, 5)["label"], [0, 7, 0, 7, 0])
    assert requested("", CLASSES, 5) is None


def test_captions_are_separated_by_bars_or_lines(tmp_path):
    (tmp_path / "texts.txt").write_text("a, b\n\nc\n")
    for text in ("a, b|c", str(tmp_path / "texts.txt")):
        cond = requested(text, CAPTIONS, 3)
        assert captions(cond, CAPTIONS) == ["a, b", "c", "a, b"]
        np.testing.assert_array_equal(recorded(cond, CAPTIONS)["cond"], ["a, b", "c", "a, b"])


def test_a_file_holds_any_conditions(tmp_path):
    path = tmp_path / "cond.npz"
    np.savez(path, label=np.array([1, 2]), vector=np.array([[1.0, 2.0], [3.0, 4.0]]))
    cond = requested(str(path), VECTORS, 3)
    np.testing.assert_array_equal(cond["label"], [1, 2, 1])
    np.testing.assert_array_equal(cond["vector"][:, 0], [1, 3, 1])
    assert set(recorded(cond, VECTORS)) == {"cond", "cond_vector"} and captions(cond, VECTORS) == ["1", "2", "1"]
    pixels = np.array([0, 51, 255, 204], np.uint8).reshape(1, 2, 2, 1)
    for control in (pixels, np.array([-1, -0.6, 1, 0.6]).reshape(1, 2, 2, 1)):
        np.savez(path, label=np.array([1], np.uint8), control=control)
        cond = requested(str(path), Conditions(num_classes=3, control_shape=(2, 2, 1)), 1)
        np.testing.assert_allclose(cond["control"].ravel(), [-1, -0.6, 1, 0.6], atol=1e-6)
        assert cond["control"].dtype == np.float32 and cond["label"] == 1
    np.savez(path, caption=np.array(["x", "y"]))
    assert captions(requested(str(path), CAPTIONS, 2), CAPTIONS) == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "kinds", "message"),
    [
        ("10", CLASSES, "label 10 is out of range; it must be in 0..9"),
        ("-1", CLASSES, "label -1 is out of range"),
        ("cat", CLASSES, "must be class ids in 0..9"),
        ("3", NO_CONDITIONS, "the model is unconditional"),
        ("3", VECTORS, "give them in a file"),
        ("none.npz", VECTORS, "none.npz cannot be read"),
        ("none.txt", CLASSES, "none.txt cannot be read"),
        ("a", Conditions(token_dim=4, vocabulary=9, max_tokens=6), "need a vocabulary of 257"),
    ],
)
def test_what_does_not_fit_is_refused(text, kinds, message):
    with pytest.raises(ValueError, match=message):
        requested(text, kinds, 2)


def test_a_file_that_does_not_fit(tmp_path):
    path = tmp_path / "cond.npz"
    for arrays, message in (
        (dict(label=np.array([1])), "'vector' is missing"),
        (dict(label=np.array([0.5]), vector=np.ones((1, 2))), "label.* float64"),
        (dict(label=np.array([1, 2]), vector=np.ones((1, 2))), "need the same number"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            requested(str(path), VECTORS, 2)


def test_a_condition_of_a_new_kind_says_how_it_is_read_and_written(tmp_path):
    def read(request, values, spec):
        return np.stack([np.full(spec.shape, len(value), spec.dtype) for value in values])

    def words(entries, describe):
        return [f"{entry[0]:g} letters" for entry in entries]

    kinds = Conditions({"letters": Condition(Spec((2,)), read=read, words=words, separator=";")})
    assert captions(requested("ab;abcd", kinds, 3), kinds) == ["2 letters", "4 letters", "2 letters"]
    (tmp_path / "cond.json").write_text('[{"letters": "abc", "label": 1}]')
    both = kinds | CLASSES
    cond = requested(str(tmp_path / "cond.json"), both, 1)
    np.testing.assert_array_equal(cond["letters"], [[3.0, 3.0]])
    assert list(recorded(cond, both)) == ["cond", "cond_letters"] and captions(cond, both) == ["1"]


class WithoutData:
    """A job whose data is not there, as that of a public checkpoint that is only sampled."""

    def __init__(self, conditions):
        self.config = ConfigDict(dict(sampling=dict(cond="", samples_per_condition=1)))
        self.system = types.SimpleNamespace(conditions=conditions)
        parts = types.SimpleNamespace(editing=editing.none())
        self.built = types.SimpleNamespace(reading=types.SimpleNamespace(tokenize=None), parts=parts)

    @property
    def held_out(self):
        raise ConfigError("config.data (folder): data.path must be set for data.name = 'folder'.")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (CAPTIONS, r"config\.sampling\.cond is empty: give prompts.*config\.sampling\.cond='one\|another'"),
        (VECTORS, r"config\.sampling\.cond is empty: give label, vector .*\.json"),
    ],
)
def test_samples_without_prompts_and_data_ask_for_prompts(kinds, message):
    with pytest.raises(ConfigError, match=message):
        conditions(WithoutData(kinds), 2)


def test_prompts_that_are_cut_are_named():
    with pytest.warns(UserWarning, match=r"1 of 2 texts are cut.* 6 tokens.*'cats'"):
        requested("a few cats|a cat", CAPTIONS, 2)


def test_a_file_of_lines_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "classes.txt").write_text("2\n0\n", encoding="utf-8-sig")
    cond = requested(str(tmp_path / "classes.txt"), Conditions(num_classes=3), 3)
    np.testing.assert_array_equal(cond["label"], [2, 0, 2])
