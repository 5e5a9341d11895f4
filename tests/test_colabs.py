"""The notebooks are stored without outputs and run from top to bottom."""

import pathlib
import re

import nbclient
import nbformat
import numpy as np
import pytest
from scipy.io import wavfile

COLABS = pathlib.Path(__file__).parents[1] / "colabs"


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(COLABS / f"{name}.ipynb", as_version=4)


def run(name: str, monkeypatch, tmp_path) -> tuple[dict[str, str], dict[str, int]]:
    """What the cells of a notebook print, in its small form, and their numbers of pictures, by the id of the cell."""
    monkeypatch.setenv("DIFFUSION_JAX_NOTEBOOK_SMALL", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = read(name)
    resources = {"metadata": {"path": str(COLABS)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    text = {
        name: "".join(output.text for output in found if output.output_type == "stream" and output.name == "stdout")
        for name, found in outputs.items()
    }
    pictures = {name: sum("image/png" in output.get("data", {}) for output in found) for name, found in outputs.items()}
    return text, {name: count for name, count in pictures.items() if count}


def figures(text: str, pattern: str) -> dict[str, float]:
    """What stands before each match of `pattern`, and the number after it."""
    return {name: float(value) for name, value in re.findall(rf"^(.*?):? {pattern} ([0-9.e+-]+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("name", [path.stem for path in COLABS.glob("*.ipynb")])
def test_a_notebook_is_stored_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"cell {cell.id} has outputs"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_runs_and_its_figures_hold(monkeypatch, tmp_path):
    text, pictures = run("quickstart", monkeypatch, tmp_path)
    assert max(figures(text["score"], "relative difference").values()) < 1e-3

    # 4000 exact samples are at about 1.1 / sqrt(4000) = 0.018, the spread of an empirical distribution function.
    distances = figures(text["distance"], "distance")
    assert len(distances) == 7
    assert distances["exact samples"] < 0.03
    for sampler in ("ancestral", "DDIM", "Heun"):
        assert distances[f"{sampler}, 64 evaluations"] < 0.05
        assert distances[f"{sampler}, 64 evaluations"] < distances[f"{sampler}, 8 evaluations"]

    learned = figures(text["compare"], "relative error of the learned score")
    assert len(learned) == 4
    assert max(error for t, error in learned.items() if t != "t = 0.05") < 0.3

    assert "frechet" in text["ncsn-evaluate"].lower()
    assert "fsdp 8" in text["plan-eight"]
    assert pictures == {"forward": 1, "score": 2, "samplers": 2, "compare": 1, "ncsn-sheet": 1, "ncsn-heun": 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_of_inverse_problems_runs_and_its_figures_hold(monkeypatch, tmp_path):
    """With 20 steps and 8 digits: MMPS is far above the estimates that know nothing of digits.

    In four other draws the mean of 2 of every second line was within 1 dB of LMMSE, and 3 dB above interpolation.
    """
    text, pictures = run("inverse_problems", monkeypatch, tmp_path)
    simple, found = figures(text["operators"], "PSNR"), figures(text["methods"], "PSNR")
    assert len(found) == 24
    assert found["super-resolution, MMPS, one sample"] > simple["super-resolution, interpolation"] + 1
    assert found["super-resolution, MMPS, mean of 4"] > found["super-resolution, MMPS, one sample"]
    assert found["tomography, MMPS, mean of 4"] > simple["tomography, back_projection"] + 1
    assert found["lower half, MMPS, mean of 4"] > simple["lower half, pinv"] + 1
    own = figures(text["own"], "PSNR")
    assert own["every second line, MMPS, mean of 4"] > own["every second line, interpolation"] + 2
    assert own["every second line, MMPS, mean of 4"] > own["every second line, lmmse"] - 2
    assert "restoration_mean_psnr" in text["evaluate"] and "nfe" in text["evaluate"]
    assert pictures == {"sheet": 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_of_few_steps_runs_and_prints_its_table(monkeypatch, tmp_path):
    """With 60 steps of training, whose digits are not yet digits: one step of Heun's method is still the worst."""
    text, pictures = run("few_steps", monkeypatch, tmp_path)
    found = figures("".join(text[name] for name in ("measure", "consistency", "mean-flow")), "Frechet ratio")
    assert len(found) == 9 and all(ratio > 0 for ratio in found.values())
    rows = text["table"].splitlines()
    assert [row.split()[0] for row in rows] == ["evaluations", "teacher", "consistency", "MeanFlow"]
    assert rows[0].split()[1:] == ["1", "2", "3", "4", "7", "35"]
    assert pictures == {"measure": 1, "consistency": 1, "mean-flow": 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_of_codes_runs_and_its_figures_hold(monkeypatch, tmp_path):
    """With 60 steps of training and 10 of sampling, the noise of an image brings it back better than other noise."""
    text, pictures = run("representation", monkeypatch, tmp_path)
    found = figures(text["encode"], "PSNR")
    assert found["with their own noise"] > found["with other noise"] + 1
    accuracy = figures(text["probe"], "accuracy")
    assert accuracy["principal components"] > 0.93 and accuracy["diffusion autoencoder"] > 0.3
    odds = figures(text["walk"], "log-odds of an eight")
    assert odds["at 0.0"] < odds["at 1.0"] < odds["at 1.5"]
    assert pictures == {"encode": 1, "walk": 1, "between": 1, "draw": 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_of_text_runs_and_its_figures_hold(monkeypatch, tmp_path):
    """The exact bound is the entropy of the chain; 60 steps of a tiny network are better than equal probabilities."""
    text, pictures = run("text", monkeypatch, tmp_path)
    bits = figures(text["text"], "bits")
    assert bits["1-gram"] > bits["2-gram"] > bits["3-gram"]
    entropy = figures(text["exact"], "nats")["entropy"]
    found = re.findall(r"^bound, .*: nats ([0-9.]+), standard error ([0-9.]+)$", text["exact"], re.MULTILINE)
    assert len(found) == 2
    for nats, error in found:
        assert abs(float(nats) - entropy) < 4 * float(error) < 0.1
    assert float(re.search(r"held_out_bits_per_token +([0-9.]+)", text["evaluate"])[1]) < 6.5
    states = re.findall(r"^t = ([0-9.]+): '(.*)'$", text["write"], re.MULTILINE)
    assert len(states) == 7 and states[0][1] == "_" * 32
    assert "infilling_right_3gram_best" in text["infill"]
    assert text["request"].count(" statement is ") == 3
    assert pictures == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_of_time_series_runs_and_its_figures_hold(monkeypatch, tmp_path):
    """Samples of the exact denoiser have the law, and fair CRPS of four samples is the closed form.

    20,000 samples have a mean and a variance within 0.02, 5,000 forecasts a CRPS within 0.01; with all pairs it is a
    quarter larger.
    """
    text, pictures = run("time_series", monkeypatch, tmp_path)
    for what in ("mean", "variance"):
        found = figures(text["exact"], what)
        assert abs(found["samples"] - found["law"]) < 0.02
    scores = figures(text["exact"], "CRPS")
    assert abs(scores["four samples, different pairs"] - scores["closed form"]) < 0.015
    assert 1.15 < scores["four samples, all pairs"] / scores["closed form"] < 1.35
    for name, baseline in (("evaluate", "interpolation_crps"), ("tsdiff", "ridge_crps")):
        for metric in ("crps", baseline):
            assert float(re.search(rf"^{metric} +([0-9.]+)", text[name], re.MULTILINE)[1]) > 0
    assert figures(text["own"], "largest change")["known values"] < 1e-5
    assert pictures == {"data": 1, "picture": 1, "own": 1, "tsdiff-gap": 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_of_audio_runs_and_its_figures_hold(monkeypatch, tmp_path):
    """On tones of ten pitches instead of downloaded digits. 512 draws have a spectrum within 5 % of the exact one."""
    random, recordings = np.random.default_rng(0), tmp_path / "recordings"
    recordings.mkdir()
    for label in range(10):
        for index in range(8):
            tone = np.sin(np.pi * (label + 1) * np.arange(3000) / 20) + 0.1 * random.standard_normal(3000)
            wavfile.write(recordings / f"{label}_ann_{index}.wav", 8000, (8000 * tone).astype(np.int16))
    monkeypatch.setenv("DIFFUSION_JAX_NOTEBOOK_RECORDINGS", str(recordings))
    text, pictures = run("audio", monkeypatch, tmp_path)
    assert "30 recordings to train on, 50 held out, 10 classes" in text["data"]
    distances = figures(text["front-end"], "LSD")
    assert distances["Griffin-Lim, 32 steps"] < distances["Griffin-Lim, 1 steps"]
    errors = figures(text["exact"], "relative error")
    assert errors["samples"] < 1.5 * errors["filtered noise"] < 0.1 < errors["white noise"]
    assert "10 digits of 0.51 seconds" in text["listen"]
    assert "8 texts, spectrograms (16, 32, 1)" in text["words"]
    assert re.search(r"^recognized +[0-9.]+", text["evaluate"], re.MULTILINE)
    assert pictures == {"front-end": 1, "listen": 1, "words": 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_of_images_to_images_runs_and_its_figures_hold(monkeypatch, tmp_path):
    """With 60 steps of training: the regression restores holes better than their grey, and known pixels stay."""
    text, pictures = run("image_to_image", monkeypatch, tmp_path)
    found = figures(text["compare"], "PSNR")
    assert len(found) == 12
    assert found["uncropping, regression"] > found["uncropping, degraded image"]
    assert figures(text["compare"], "largest difference") == {"known pixels": 0}
    assert figures(text["own"], "largest difference") == {"left half": 0}
    assert "pairs_consistency" in text["sr3"]
    assert pictures == {"tasks": 1, "compare": 1, "own": 1}
