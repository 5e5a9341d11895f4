"""How samples are saved, drawn and evaluated by the kind of data they are."""

import dataclasses

import numpy as np
import pytest

from diffusion_jax import data, modalities
from diffusion_jax.data.source import in_memory
from diffusion_jax.data.sources import images, toys
from diffusion_jax.evaluation import sheets
from diffusion_jax.modalities import base, image
from diffusion_jax.types import Spec

IMAGE, POINTS, PLAIN, TOKENS = (modalities.MODALITIES[name] for name in ("image", "points", "array", "tokens"))


def _images(n=6, seed=0):
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (n, 8, 8, 1)).astype(np.float32)


def _evaluation(*names, makes="image", train=None, **options):
    train = train or data.load(name="toy", num_examples=64)
    test = data.load(name="toy", num_examples=64, evaluation=True) if train.shape == (2,) else train
    options = dict(metrics=names, inception="", resize="pytorch", reference="") | options
    return modalities.Evaluation(options=options, train=train, test=test, makes=Spec(train.shape, modality=makes))


def test_every_modality_is_found_by_its_name():
    for name, modality in modalities.MODALITIES.items():
        assert modalities.of(Spec((3,), modality=name)) is modality
        assert {*modality.usual} <= {*modality.metrics}
    with pytest.raises(ValueError, match=r"data\.modality='smell'.*array, latents, image, mask, points"):
        modalities.of(Spec((3,), modality="smell"))


def test_images_are_stored_in_8_bits_and_anything_else_as_it_is():
    x = _images()
    assert IMAGE.stored(x).dtype == np.uint8
    np.testing.assert_array_equal(IMAGE.stored(x), sheets.to_uint8(x))
    for modality in (POINTS, PLAIN):
        assert modality.stored(x).dtype == np.float32
        np.testing.assert_array_equal(modality.stored(x), x)
    with pytest.raises(ValueError, match="finite"):
        IMAGE.stored(np.full_like(x, np.nan))


def test_pictures_of_images():
    x, words = _images(300), [str(i) for i in range(300)]
    np.testing.assert_array_equal(IMAGE.picture({"samples": x}, None, {}), sheets.image_sheet(x[:256]))
    np.testing.assert_array_equal(
        IMAGE.picture({"samples": x, "label": np.arange(300)}, words, {}),
        sheets.image_sheet(x[:256], labels=words[:256]),
    )
    pairs = np.stack([-x[:4], x[:4]], axis=1).reshape(8, 8, 8, 1)
    np.testing.assert_array_equal(
        IMAGE.picture({"samples": x[:4], "original": -x[:4]}, None, {}), sheets.image_sheet(pairs, columns=4)
    )
    assert IMAGE.picture({"samples": np.where(x > 1, np.nan, x)}, None, {}) is None


def test_pictures_of_points():
    x = np.random.default_rng(0).normal(size=(50, 2))
    views = {"log_density": toys.mixture_log_density, "score": lambda x: -x, "levels": 256}
    np.testing.assert_array_equal(
        POINTS.picture({"samples": x}, None, views),
        sheets.scatter_sheet(x, log_density=views["log_density"], score=views["score"]),
    )
    np.testing.assert_array_equal(POINTS.picture({"samples": x}, None, {}), sheets.scatter_sheet(x))
    assert POINTS.views == ("score",) and IMAGE.views == ()
    assert POINTS.picture({"samples": np.full_like(x, np.inf)}, None, views) is None
    assert PLAIN.picture({"samples": x}, None, {}) is None


def test_the_usual_metrics_are_those_that_the_data_can_give():
    labelled = data.load(name="digits", split="train[:40]")
    bare = images.source(in_memory({"x": _images(20)}), size=20, shape=(8, 8, 1))
    for train, num in ((labelled, 1), (bare, 0)):
        assert len(modalities.metrics(IMAGE, _evaluation("auto", train=train))) == num
    (toy,) = modalities.metrics(POINTS, _evaluation("auto", makes="points"))
    x = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    expected = modalities.metrics(POINTS, _evaluation("toy", makes="points"))[0]({"samples": x})
    assert toy({"samples": x}) == expected and expected["sliced_wasserstein"] > 0
    assert modalities.metrics(PLAIN, _evaluation("auto", makes="array")) == []


@pytest.mark.parametrize(
    ("modality", "name", "message"),
    [
        (IMAGE, "clasifier", r"evaluation\.metrics='clasifier'.*'image'.*did you mean 'classifier'"),
        (POINTS, "classifier", r"evaluation\.metrics='classifier'.*choose among auto, toy"),
        (IMAGE, "classifier", r"evaluation\.metrics='classifier': .*modality 'points'.*metrics=\(\)"),
        (IMAGE, "density_baseline", r"evaluation\.metrics='density_baseline': .*'points'"),
        (IMAGE, "kid", r"evaluation\.metrics='kid': .*'points'"),
    ],
)
def test_metrics_that_cannot_be_given_are_refused(modality, name, message):
    with pytest.raises(ValueError, match=message):
        modalities.metrics(modality, _evaluation(name))


def test_metrics_without_a_held_out_split_are_only_checked():
    evaluation = modalities.Evaluation(
        options=dict(metrics=("toy",)), train=data.load(name="toy", num_examples=8), test=None, makes=Spec((2,))
    )
    (metric,) = modalities.metrics(POINTS, evaluation)
    with pytest.raises(ValueError, match="held-out"):
        metric({"samples": np.zeros((4, 2))})


def test_molecules_are_compared_with_the_training_lines(tmp_path):
    for split, lines in (("train", "CC\nCCO\nC1CC1\n"), ("test", "CO\nC(C)O\n")):
        (tmp_path / f"{split}.txt").write_text(lines)
    section = dict(name="text", path=str(tmp_path), length=8, alphabet="\n()1CO")
    train, test = (data.load(**section, lines=True, split=split) for split in ("train", "test"))
    evaluation = modalities.Evaluation(
        options=dict(metrics=("smiles", "ngrams")), train=train, test=test, makes=train.entries["x"]
    )
    smiles, ngrams = modalities.metrics(TOKENS, evaluation)
    encode = train.facts["encode"]
    samples = np.stack([np.pad(encode(text), (0, 8 - len(text))) for text in ("CC", "C(CO", "CO", "CO")])
    assert smiles({"samples": samples}) == {
        "smiles_closed": 0.75,
        "held_out_smiles_closed": 1.0,
        "smiles_distinct": 0.75,
        "smiles_new": 0.75,
    }
    assert ngrams({"samples": data.arrays(train)["x"]})["seen_4grams"] == 1.0
    windows = dataclasses.replace(evaluation, train=data.load(**section))
    with pytest.raises(ValueError, match=r"config\.data\.lines=True"):
        modalities.metrics(TOKENS, windows)


def test_what_is_shared_is_made_once():
    calls, once = [], base.shared()
    for name in ("a", "b", "a"):
        assert once(name, lambda name=name: calls.append(name) or name) == name
    assert calls == ["a", "b"]


@pytest.mark.filterwarnings("ignore:.*accurate")
def test_the_suite_computes_its_features_once(monkeypatch):
    calls, train = [], data.load(name="digits", split="train[:60]")
    monkeypatch.setattr(modalities.image.suite, "compare", lambda *x, metrics, **options: calls.append(metrics) or {})
    names = ("kid", "classifier", "precision_recall")
    made = modalities.metrics(IMAGE, _evaluation(*names, train=train))
    for drawn in ({"samples": _images()}, {"samples": _images(seed=1)}):
        for metric in (made[0], made[2], made[0]):
            metric(drawn)
    assert calls == [("kid", "precision_recall")] * 2


def test_the_fingerprint_of_images_changes_with_them():
    x = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), np.uint8)

    def number(x):
        return image.fingerprint(images.source(in_memory({"x": x}), size=len(x), shape=x.shape[1:]))

    changed = 255 - x  # as many images of the same size, at the same path
    assert number(x) == number(x.copy()) != number(changed)
    assert number(x[:1]) != number(x[1:2])
