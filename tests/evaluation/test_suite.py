import dataclasses
import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax import evaluation
from diffusion_jax.data.sources import images
from diffusion_jax.evaluation import __main__ as command
from diffusion_jax.evaluation import features, report
from diffusion_jax.evaluation.feature_classifier import train_classifier
from diffusion_jax.evaluation.suite import METRICS, compare
from tests.evaluation.test_features import pixels, projection

pytestmark = pytest.mark.filterwarnings("ignore:.*biased upwards")
ALL = tuple(METRICS)
FIGURES = {
    *("fid", "sfid", "kid", "kid_std", "inception_score", "inception_score_std"),
    *("precision", "recall", "density", "coverage"),
    *("memorization_distance", "memorization_probability", "nearest_train_distance", "nearest_train_minimum"),
}


def _brighter(n, seed):
    return (200 + pixels(n, seed) // 5).astype(np.uint8)


def test_every_figure_is_that_of_its_function():
    extractor = projection()
    samples, reference, test = pixels(60, 1), pixels(80, 2), _brighter(70, 3)
    results = compare(samples, reference, features=extractor, metrics=ALL, test=test, batch_size=32)
    single = {"memorization_probability", "nearest_train_minimum"}
    assert set(results) == FIGURES | {"num_samples", "num_reference", "num_real"} | {
        f"{name}_num" for name in FIGURES - {"nearest_train_minimum"} if not name.endswith("_std")
    } | {f"{name}_real" for name in FIGURES - {"memorization_probability"} if not name.endswith("_std")}
    assert all(np.isfinite(value) for value in results.values()) and single < set(results)
    assert (results["num_samples"], results["num_reference"], results["num_real"]) == (60, 80, 60)
    assert results["fid_num"] == results["precision_num"] == results["kid_num"] == 60

    x, y = (np.asarray(extractor.apply(extractor.params, z).features) for z in (samples, reference))
    s, t = (np.asarray(extractor.apply(extractor.params, z).spatial) for z in (samples, reference))
    logits = np.asarray(extractor.apply(extractor.params, samples).logits)

    def frechet(a, b):
        return evaluation.frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))

    assert results["fid"] == pytest.approx(frechet(x, y), rel=1e-4)
    assert results["sfid"] == pytest.approx(frechet(s, t), rel=1e-4)
    assert results["kid"] == pytest.approx(evaluation.kernel_distance(x, y).mean, abs=1e-6)
    assert results["inception_score"] == pytest.approx(evaluation.inception_score(logits).mean, rel=1e-5)
    assert (results["precision"], results["recall"]) == evaluation.precision_recall(y, x)
    assert (results["density"], results["coverage"]) == evaluation.density_coverage(y, x)
    # The test images, all bright, are the worse ones here.
    assert results["fid_real"] > 5 * results["fid"] and results["kid_real"] > 5 * results["kid"]
    assert results["recall_real"] < 0.5 < results["recall"]


def test_copies_of_training_images_are_found():
    train, test = pixels(100, 1), pixels(50, 2)
    copies = compare(train[:30], train, features=projection(), metrics=("memorization",), test=test)
    assert copies["memorization_probability"] == 1 and copies["memorization_distance"] == 0
    assert copies["nearest_train_distance"] == 0 < copies["nearest_train_distance_real"]
    fresh = compare(pixels(50, 3), train, features=projection(), metrics=("memorization",), test=test)
    assert 0.3 < fresh["memorization_probability"] < 0.7
    other = compare(
        pixels(50, 3), pixels(9, 4), train=train, features=projection(), metrics=("memorization",), test=test
    )
    assert other["memorization_probability"] == fresh["memorization_probability"]


def test_batch_size_changes_nothing():
    samples, reference = pixels(50, 1), _brighter(41, 2)
    first, second = (
        compare(samples, reference, features=projection(), metrics=ALL, batch_size=size) for size in (64, 7)
    )
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)


def test_statistics_stand_for_their_images(tmp_path):
    samples, reference, extractor = pixels(50, 1), pixels(60, 2), projection()
    exact = compare(samples, reference, features=extractor, metrics=("fid", "sfid"))
    found = evaluation.collect(extractor, evaluation.image_source(reference), spatial=True)
    evaluation.write_statistics(tmp_path / "alone.npz", evaluation.statistics_of(found))
    evaluation.write_statistics(tmp_path / "images.npz", evaluation.statistics_of(found), images=reference)
    for path in (tmp_path / "alone.npz", str(tmp_path / "images.npz"), evaluation.statistics_of(found)):
        assert compare(samples, path, features=extractor, metrics=("fid", "sfid")) == exact
    with_images = compare(samples, tmp_path / "images.npz", features=extractor, metrics=("fid", "kid"))
    assert with_images["kid"] == compare(samples, reference, features=extractor, metrics=("kid",))["kid"]
    assert with_images["fid"] == exact["fid"]

    cache = (tmp_path / "cache.npz", "key")
    for reads in (1, 0):  # the second time no image of the reference is read
        counted = []

        def read(indices, counted=counted):
            counted.append(len(indices))
            return {"x": reference[indices]}

        source = images.source(read, size=60, shape=(6, 5, 3))
        again = compare(samples, source, features=extractor, metrics=("fid",), cache=cache)
        assert again["fid"] == exact["fid"] and (sum(counted) == 60 * reads)
    assert compare(samples, reference, features=extractor, metrics=("sfid",), cache=cache)["sfid"] == exact["sfid"]


def test_few_samples_give_a_warning():
    with pytest.warns(UserWarning, match=r"fid of 20 samples is biased upwards; .*50,000"):
        compare(pixels(20), pixels(20), features=projection(), metrics=("fid",))


def test_what_does_not_fit_is_refused(tmp_path):
    x, extractor = pixels(20), projection()
    stats = evaluation.statistics_of(evaluation.collect(extractor, evaluation.image_source(x)))
    for reference, metrics, message in [
        (x, ("fdi",), "metric 'fdi' is unknown; choose among fid, sfid"),
        (stats, ("kid",), "'kid' needs images of the reference, not its statistics alone"),
        (None, ("precision_recall",), "'precision_recall' needs images of the reference, not none"),
        (None, ("fid",), "'fid' needs a reference"),
        (None, ("memorization",), "memorization needs the training images"),
        (stats, ("sfid",), "sfid needs mu_s and sigma_s"),
        (dataclasses.replace(stats, extractor="inception_clean"), ("fid",), "'inception_clean'.*'inception_pytorch'"),
        (dataclasses.replace(stats, mu=np.zeros(3), sigma=np.eye(3)), ("fid",), "have 3 dimensions, not 4"),
        (str(tmp_path / "nothing"), ("fid",), "nothing does not exist"),
        (x[:1], ("fid",), "at least 2 images, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(x, reference, features=extractor, metrics=metrics)
    with pytest.raises(ValueError, match="a distance between features of another network is not FID"):
        compare(x, x, features=dataclasses.replace(extractor, prefix="classifier_"), metrics=("fid",))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Digits as .npz files: real ones with labels, and others as samples."""
    folder, found = tmp_path_factory.mktemp("digits"), load_digits()
    x = np.round(found.images[..., None] * 255 / 16).astype(np.uint8)
    np.savez(folder / "real.npz", images=x[:900], labels=found.target[:900])
    np.savez(folder / "samples.npz", samples=x[900:1200])
    return folder


@pytest.mark.slow
def test_figures_of_a_classifier_are_called_so(labelled, capsys):
    command.main(
        [
            f"--samples={labelled / 'samples.npz'}",
            f"--reference={labelled / 'real.npz'}",
            f"--output={labelled / 'f.json'}",
        ]
    )
    results = json.loads((labelled / "f.json").read_text())
    assert results.pop("features") == "classifier"
    assert all(name.startswith(("classifier_", "num_")) for name in results)
    assert 0.6 < results["classifier_precision"] <= 1 and 0.6 < results["classifier_recall"] <= 1
    assert 6 < results["classifier_score"] <= 10, "about ten classes"
    output = capsys.readouterr().out
    assert "classifier_kid" in output and "300" in output and "fid " not in output
    assert output.splitlines()[0].split() == ["samples", "+-", "n", "real", "data", "ratio"]


def test_the_command_saves_statistics_and_reads_them(tmp_path, monkeypatch, capsys):
    """With a small network in the place of Inception."""
    monkeypatch.setattr(features, "inception", lambda path, resize: projection())
    np.save(tmp_path / "samples.npy", pixels(50, 1))
    np.savez(tmp_path / "real.npz", arr_0=pixels(60, 2))
    saved, weights = tmp_path / "saved.npz", "--inception=weights.pth"
    command.main([f"--reference={tmp_path / 'real.npz'}", weights, f"--save_statistics={saved}", "--images=20"])
    assert "statistics of 60 images written to" in capsys.readouterr().out
    with np.load(saved) as file:
        assert file["arr_0"].shape == (20, 6, 5, 3) and file["mu_s"].shape == (4,) and file["num"] == 60
    for reference in ("saved.npz", "real.npz"):
        arguments = [f"--samples={tmp_path / 'samples.npy'}", f"--reference={tmp_path / reference}", weights]
        command.main([*arguments, f"--output={tmp_path / reference}.json"])
    found, exact = (json.loads((tmp_path / f"{name}.npz.json").read_text()) for name in ("saved", "real"))
    assert found["fid"] == exact["fid"] and found["inception_score"] == exact["inception_score"]
    assert found["num_reference"] == exact["num_reference"] == 60
    assert found.pop("num_reference_images") == 20, "of which KID and others are computed"
    assert found.keys() == exact.keys() >= {"kid", "precision", "coverage"}
    errors = capsys.readouterr().err
    assert errors.splitlines()[0].startswith("warning: fid of 50 samples is biased upwards")


def test_metrics_are_printed_before_they_are_written(tmp_path, monkeypatch, capsys):
    """So a disk that is full by then costs the file only. The range of floats is that of the flag."""
    monkeypatch.setattr(features, "inception", lambda path, resize: projection())
    np.save(tmp_path / "samples.npy", pixels(50, 1) / np.float32(255))
    np.save(tmp_path / "real.npy", pixels(60, 2))

    def full(path, results):
        raise OSError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(report, "write_evaluation", full)
    arguments = [f"--samples={tmp_path / 'samples.npy'}", f"--reference={tmp_path / 'real.npy'}", "--inception=w"]
    with pytest.raises(SystemExit):
        command.main([*arguments, "--metrics=fid", f"--output={tmp_path / 'f.json'}", "--range=0..1"])
    printed = capsys.readouterr()
    assert "No space left" in printed.err
    exact = compare(pixels(50, 1), pixels(60, 2), features=projection())
    assert float(printed.out.split("fid")[1].split()[0]) == pytest.approx(exact["fid"], rel=1e-3)


@pytest.mark.slow
def test_the_command_refuses_in_one_line(labelled, capsys, tmp_path):
    samples, real = f"--samples={labelled / 'samples.npz'}", f"--reference={labelled / 'real.npz'}"
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    np.savez(tmp_path / "floats.npz", samples=np.load(labelled / "samples.npz")["samples"] / np.float32(255))
    floats = f"--samples={tmp_path / 'floats.npz'}"
    for arguments, words in [
        ([samples, real, "--metrics=fid"], "'fid' needs the weights of FID's Inception network"),
        ([samples, samples.replace("samples=", "reference=")], "has no labels that a classifier"),
        ([samples, "--reference=/nowhere"], "/nowhere does not exist"),
        ([samples, real, f"--inception={tmp_path / 'bad.pth'}"], "bad.pth is cut off, damaged or not a file"),
        ([samples, real, f"--inception={tmp_path / 'none.pth'}"], "none.pth does not exist"),
        ([real, "--save_statistics=x.npz"], "--save_statistics needs --inception"),
        ([real], "--samples=PATH"),
        ([samples], "--reference=PATH is missing"),
        ([samples, real, f"--output={tmp_path}"], f"{tmp_path} cannot be written: it is a folder"),
        ([samples, real, f"--output={tmp_path / 'bad.pth' / 'm.json'}"], "bad.pth is not a writable folder"),
        ([floats, real], "--range"),
    ]:
        with pytest.raises(SystemExit) as refusal:
            command.main(arguments)
        assert refusal.value.code == 2
        assert words in capsys.readouterr().err


def test_a_classifier_refuses_other_shapes():
    judge = train_classifier(np.zeros((8, 8, 8, 1)), np.arange(8) % 2, num_classes=2, epochs=1)
    extractor = evaluation.classifier_features(judge)
    with pytest.raises(ValueError, match=r"images must have the shape \(8, 8, 1\), got \(6, 5, 3\)"):
        compare(pixels(4), pixels(4), features=extractor, metrics=("kid",))
