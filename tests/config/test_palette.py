"""Palette from a config: what cannot work is refused by name, and a tiny run is trained, sampled and evaluated."""

import json

import numpy as np
import pytest

from diffusion_jax.config import build, from_file, replace
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.run import evaluate, sample, train
from tests.config.test_configs import CONFIGS
from tests.runs import parts_of


def tiny(**sections):
    config = from_file(f"{CONFIGS}/palette.py")
    config.network.update(hidden=8, num_layers=1)
    return replace(config, **sections)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (dict(system=dict(tasks=("inpaint",))), r"config\.system\.tasks='inpaint' is unknown.*inpainting"),
        (dict(system=dict(tasks=())), r"config\.system\.tasks=\(\) must name"),
        (dict(system=dict(tasks=("jpeg", "jpeg", "inpainting"))), "each once"),
        (
            dict(system=dict(tasks=("colorization", "jpeg", "inpainting"))),
            r"images in colour.*config\.data\.channels=1",
        ),
        (dict(system=dict(quality=(30, 5))), r"config\.system\.quality=\(30, 5\) must be two integers in 1\.\.95"),
        (dict(network=dict(num_classes=10)), r"config\.network\.num_classes=10 must be 3"),
        (dict(network=dict(image_channels=0)), r"config\.network.*'image' has the shape none.*image_channels=1"),
        (dict(network=dict(image_channels=2)), r"has the shape \(8, 8, 2\), and must have that of x, \(8, 8, 1\)"),
        (dict(loss=dict(name="hybrid")), r"config\.loss\.name='hybrid' must be 'denoising', which takes a mask"),
        (dict(data=dict(name="toy", kind="rings")), "restores images, and config.data.name='toy' holds points"),
        (dict(editing=dict(name="repaint")), "needs the condition .* for itself, but the network reads it as well"),
    ],
)
def test_configs_that_cannot_work_are_refused(sections, words):
    with pytest.raises(ConfigError, match=words):
        build.build(tiny(**sections))


def test_one_task_needs_no_class():
    config = tiny(system=dict(tasks=("jpeg",)))
    del config.network["num_classes"]
    made = build.build(config)
    assert set(made.system.diffusion.network_conditions) == {"image", "hole"}
    assert set(made.system.conditions) == {"image", "mask", "task"}


def test_no_step_of_the_published_schedule_stays_at_a_time():
    parts = parts_of(from_file(f"{CONFIGS}/palette.py:inpainting256"))
    times = np.asarray(parts.grid(parts.process, parts.config.sampling.steps))
    assert times[0] == 1 and times[-1] == 0 and len(times) == 470
    assert (np.diff(times) < 0).all()


@pytest.mark.slow
def test_a_tiny_run_is_trained_sampled_and_evaluated(tmp_path):
    config = tiny(
        training=dict(num_steps=2, batch_size=8, sample_every=0),
        sampling=dict(steps=2, num_samples=12),
        evaluation=dict(num_samples=24, samples_per_condition=2, metrics=("tasks",), after_training=False),
    )
    train.train(config, tmp_path)
    sample.sample(config, tmp_path)
    arrays = np.load(tmp_path / "samples" / "samples.npz")
    known = arrays["cond"] < 0
    assert known.any() and (tmp_path / "samples" / "samples.png").is_file()
    given = np.round((arrays["cond_image"] + 1) * 127.5)
    np.testing.assert_allclose(arrays["samples"][known], given[known], atol=1)
    evaluate.evaluate(config, tmp_path)
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["tasks_inpainting_num"] + values["tasks_uncropping_num"] + values["tasks_jpeg_num"] == 12
    assert values["tasks_jpeg_psnr_start"] > values["tasks_uncropping_psnr_start"]
    config.sampling.cond = str(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"image": "samples/samples.png", "task": "jpeg"}]')
    with pytest.raises(ConfigError, match=r"config\.sampling\.cond.*it needs mask, image, task"):
        sample.sample(config, tmp_path)
