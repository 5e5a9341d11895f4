"""Palette: exact conditional laws, known pixels that stay and are seen, and what samples must not depend on."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from diffusion_jax import parameterizations, processes, solvers
from diffusion_jax.guidance import steering
from diffusion_jax.losses import denoising_loss, times, weightings
from diffusion_jax.modalities import image as modality
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.processes.base import bcast
from diffusion_jax.run.requests import requested
from diffusion_jax.solvers import grids
from diffusion_jax.systems import Diffusion, Palette
from diffusion_jax.systems.palette import TASKS, embedding, knowing, network_conditions
from diffusion_jax.types import System, Train

PROCESS = processes.Cosine()
PARAM = parameterizations.x0_prediction(label=parameterizations.unit_time_label)
TWO = (1, 2, 1)  # pixels, of a standard normal vector with the correlation RHO
RHO, NOISE = 0.8, 0.5  # and the noise of the degraded image of the task without a hole
HOLE, WHOLE = TASKS["inpainting"], TASKS["jpeg"]
WRONG = 7.0  # what the network says of pixels that are known
PARAMS = {"network": {}}


def exact(params, x, t, cond, key=None):
    """E[x given x_t and what is known]: of one pixel given the other, which x has, or of both given a noisy image."""
    t = jnp.broadcast_to(t, len(x))
    a, b = (bcast(f(t), x) for f in (PROCESS.alpha, PROCESS.sigma))
    mean, variance = RHO * x[:, :, ::-1], 1 - RHO**2
    of_hole = jnp.where(cond["hole"] > 0, mean + a * variance * (x - a * mean) / (a**2 * variance + b**2), WRONG)
    covariance = jnp.array([[1, RHO], [RHO, 1]])
    precision = jnp.linalg.inv(covariance) + ((a / b) ** 2 + NOISE**-2) * jnp.eye(2)
    seen = (a / b**2) * x + cond["image"] / NOISE**2
    of_whole = jnp.einsum("bij,bhjc->bhic", jnp.linalg.inv(precision[:, 0]), seen)
    return jnp.where(bcast(cond["label"], x) == 0, of_hole, of_whole)


def model(apply=exact, shape=TWO, tasks=(HOLE, WHOLE), solver=None, cond_dropout=0.0, **changes) -> Palette:
    seen = knowing(apply)
    diffusion = Diffusion(
        init_network=lambda key: {},
        apply=seen,
        process=PROCESS,
        param=PARAM,
        loss_fn=denoising_loss(seen, PARAM, PROCESS, weightings.simple(), times.uniform(0.05, 0.95)),
        solver=solver or solvers.heun(),
        grid=grids.uniform(t_min=1e-3, t_max=0.999),
        steps=40,
        shape=shape,
        modality="image",
        network_conditions=network_conditions(shape, tasks, NO_CONDITIONS),
        embed=embedding(lambda params, cond: cond),
        batch_size=4000,
        cond_dropout=cond_dropout,
        **changes,
    )
    return Palette(diffusion=diffusion, tasks=tasks)


def rows(task: int, known=0.7, hidden=0.0, num=4000) -> dict[str, np.ndarray]:
    """The first pixel of each row is known, and the second is unknown."""
    pixels = np.tile(np.float32([known, hidden]), (num, 1)).reshape(num, *TWO)
    mask = np.tile(np.float32([-1, 1]), (num, 1)).reshape(num, *TWO)
    return {"image": pixels, "mask": mask, "task": np.full(num, task, np.int32)}


def drawn(system: Palette, cond: dict[str, np.ndarray], key: int = 1) -> np.ndarray:
    return system.sample(PARAMS, jax.random.key(key), len(cond["task"]), cond)["samples"]


def test_is_a_system():
    assert isinstance(model(), System)


def test_a_hole_has_the_exact_law_given_known_pixels():
    """The network reads the known pixel from x, where it has no noise, and its own prediction of it does not count."""
    x = drawn(model(), rows(0))
    found, mean, variance = x[:, 0, 1, 0], RHO * 0.7, 1 - RHO**2
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / len(found))
    assert abs(found.var() / variance - 1) < 4 * np.sqrt(2 / len(found)) + 0.03  # of 40 steps


@pytest.mark.parametrize("solver", [solvers.heun(), solvers.ancestral()], ids=["heun", "ancestral"])
def test_known_pixels_are_kept_exactly(solver):
    known = np.float32([0.7, -0.123, 1.0])
    cond = rows(0, num=3)
    cond["image"][:, 0, 0, 0] = known
    np.testing.assert_array_equal(drawn(model(solver=solver), cond)[:, 0, 0, 0], known)


def test_without_the_override_known_pixels_are_lost():
    system, cond = model(), rows(0, num=8)
    seen = {"image": jnp.asarray(cond["image"]), "hole": jnp.asarray(cond["mask"] > 0, jnp.float32)}
    x = system.diffusion.draw(PARAMS, jax.random.key(0), jnp.arange(8), {**seen, "label": cond["task"]})["samples"]
    assert np.abs(np.asarray(x)[:, :, 0] - 0.7).min() > 1


def test_tasks_without_a_hole_restore_every_pixel_whatever_the_mask_is():
    cond = rows(1)
    x = drawn(model(), cond)
    gain = np.linalg.inv(np.linalg.inv([[1, RHO], [RHO, 1]]) + np.eye(2) / NOISE**2)
    mean = gain @ cond["image"][0, 0, :, 0] / NOISE**2
    assert np.abs(x[:, 0, :, 0].mean(0) - mean).max() < 4 * np.sqrt(gain[0, 0] / len(x))
    assert np.abs(np.cov(x[:, 0, :, 0].T) / gain - 1).max() < 0.2
    np.testing.assert_array_equal(x, drawn(model(), {**cond, "mask": -cond["mask"]}))


def test_rows_of_several_tasks_are_those_of_each_task_alone():
    both = {name: np.concatenate([rows(0, num=5)[name], rows(1, num=5)[name]]) for name in rows(0)}
    order = np.array([7, 0, 9, 3, 5, 1, 8, 2, 6, 4])
    draw = lambda ids, cond: model().draw(PARAMS, jax.random.key(3), jnp.asarray(ids), cond)["samples"]
    x = draw(np.arange(10), both)
    np.testing.assert_allclose(draw(order, {name: value[order] for name, value in both.items()}), x[order], atol=1e-6)
    np.testing.assert_allclose(draw(np.arange(5), rows(0, num=5)), x[:5], atol=1e-6)
    assert np.abs(x[0, :, 0] - x[5, :, 0]).min() > 1e-3


def test_samples_do_not_depend_on_what_is_in_the_hole():
    reads_image = lambda params, x, t, cond, key=None: exact(params, x, t, cond) + 0.1 * cond["image"]
    system = model(reads_image)
    x = drawn(system, rows(0, num=20))
    np.testing.assert_array_equal(x, drawn(system, rows(0, hidden=0.9, num=20)))
    assert np.abs(x - drawn(system, rows(0, known=0.2, num=20)))[:, :, 1].min() > 0.1


def test_colours_of_the_image_do_not_leak_into_colorization():
    grey, luma = TASKS["colorization"], np.float32([0.299, 0.587, 0.114])
    apply = lambda params, x, t, cond, key=None: 0.5 * x + cond["image"]
    system = model(apply, shape=(2, 2, 3), tasks=(grey,))
    colours = np.random.default_rng(0).uniform(-1, 1, (6, 2, 2, 3)).astype(np.float32)
    cond = {"mask": np.ones((6, 2, 2, 1), np.float32), "task": np.zeros(6, np.int32)}
    x = drawn(system, {**cond, "image": colours})
    same = np.repeat((colours @ luma)[..., None], 3, -1)
    np.testing.assert_allclose(x, drawn(system, {**cond, "image": same}), atol=1e-5)
    assert np.abs(x - drawn(system, {**cond, "image": -same})).max() > 0.1


def test_the_loss_counts_the_hole_and_is_the_closed_form():
    """For the exact network it is the mean of snr(t) Var[x given x_t and the known pixel]."""
    truth = jax.random.multivariate_normal(jax.random.key(5), jnp.zeros(2), jnp.array([[1, RHO], [RHO, 1]]), (4000,))
    batch = {**rows(0), "x": truth.reshape(4000, *TWO)}
    batch["image"] = np.asarray(batch["x"])
    loss, _ = model().loss(PARAMS, jax.random.key(2), batch, None)
    t, v = jnp.linspace(0.05, 0.95, 2001), 1 - RHO**2
    a2, b2 = PROCESS.alpha(t) ** 2, PROCESS.sigma(t) ** 2
    expected = a2 / b2 * v * b2 / (a2 * v + b2)
    error = float(loss.std()) / np.sqrt(len(loss))
    assert abs(float(loss.mean()) - float(expected.mean())) < 4 * error
    wrong, _ = model(lambda *args, key=None: exact(*args) + 1).loss(PARAMS, jax.random.key(2), batch, None)
    assert float(wrong.mean()) > float(loss.mean()) + 1


def test_dropout_removes_what_is_known_and_keeps_the_task():
    found = {}

    def loss(params, key, x, cond, where, **options):
        found.update(cond, where=where)
        return jnp.zeros(len(x)), {}

    system = model(cond_dropout=0.5)
    system = dataclasses.replace(system, diffusion=dataclasses.replace(system.diffusion, loss_fn=loss))
    batch = {**rows(0, num=400), "x": jnp.zeros((400, *TWO))}
    batch["task"] = np.arange(400, dtype=np.int32) % 2
    system.loss(PARAMS, jax.random.key(0), batch, Train(jnp.int32(0), 1))
    dropped = (np.asarray(found["image"]) == 0).all((1, 2, 3))
    assert abs(dropped.mean() - 0.5) < 4 * 0.5 / 20
    np.testing.assert_array_equal(found["label"], batch["task"])
    np.testing.assert_array_equal(found["hole"], found["where"])
    holes = np.asarray(found["hole"])[..., 0].reshape(400, 2)
    assert (holes[dropped] == 1).all()
    np.testing.assert_array_equal(holes[~dropped], [[1 - (task == 0), 1] for task in batch["task"][~dropped]])


def test_guidance_leads_away_from_knowing_nothing_and_keeps_known_pixels():
    """D_w = null + w (conditional - null), the null branch having the task, no image and a hole everywhere."""
    apply = lambda params, x, t, cond, key=None: x + 10 * cond["hole"] + 100 * bcast(cond["label"], x)
    system = model(apply, guidance=steering.classifier_free(3.0))
    cond = {name: np.concatenate([rows(0, num=1)[name], rows(1, num=1)[name]]) for name in rows(0)}
    x = jnp.full((2, *TWO), 0.25)
    D = system.denoiser(PARAMS, cond)(x, jnp.float32(0.5))
    np.testing.assert_allclose(D[0, 0, :, 0], [0.7, 0.25 + 10], atol=1e-5)
    np.testing.assert_allclose(D[1, 0, :, 0], [110.25, 110.25], atol=1e-4)


def test_two_modes_stay_two_modes():
    """x = 1 or -1 with the odds of a noisy image: samples have the exact weights, where regression has their mean."""
    y, pixel = 0.15, (1, 1, 1)

    def apply(params, x, t, cond, key=None):
        t = jnp.broadcast_to(t, len(x))
        a, b = (bcast(f(t), x) for f in (PROCESS.alpha, PROCESS.sigma))
        return jnp.tanh(a * x / b**2 + cond["image"] / NOISE**2)

    system = model(apply, shape=pixel, tasks=(WHOLE,))
    cond = {"image": np.full((4000, *pixel), y, np.float32), "mask": np.ones((4000, *pixel), np.float32)}
    x = drawn(system, {**cond, "task": np.zeros(4000, np.int32)}).ravel()
    assert (np.abs(np.abs(x) - 1) < 0.3).mean() > 0.99
    assert abs((x > 0).mean() - 1 / (1 + np.exp(-2 * y / NOISE**2))) < 0.03


def test_requests_name_the_task_and_the_mask(tmp_path):
    tasks = (TASKS["inpainting"], TASKS["jpeg"])
    conditions = model(shape=(4, 4, 1), tasks=tasks).conditions
    PIL.Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "photo.png")
    white = np.zeros((4, 4), np.uint8)
    white[:, 2:] = 255
    PIL.Image.fromarray(white).save(tmp_path / "mask.png")
    objects = [
        {"image": "photo.png", "mask": "mask.png", "task": "inpainting"},
        {"image": "photo.png", "mask": "everything", "task": "jpeg"},
    ]

    def asked(objects) -> dict[str, np.ndarray]:
        (tmp_path / "a.json").write_text(json.dumps(objects))
        return requested(str(tmp_path / "a.json"), conditions, len(objects))

    cond = asked(objects)
    np.testing.assert_array_equal(cond["task"], [0, 1])
    np.testing.assert_array_equal(cond["mask"][0, :, :, 0], np.tile([-1, -1, 1, 1], (4, 1)))
    assert (cond["mask"][1] == 1).all() and cond["image"].shape == (2, 4, 4, 1)
    assert conditions["task"].words(cond["task"], None) == ["inpainting", "jpeg"]
    with pytest.raises(ValueError, match="it needs mask, image, task"):
        asked([{"image": "photo.png", "task": "inpainting"}])
    with pytest.raises(ValueError, match="'sharpening' is none of the tasks of the model, inpainting, jpeg"):
        asked([objects[0] | {"task": "sharpening"}])
    np.savez(tmp_path / "a.npz", image=np.zeros((1, 8, 8, 1), np.uint8), mask=np.ones((1, 4, 4, 1), bool), task=[0])
    with pytest.raises(ValueError, match=r"condition 'image' has shape \(1, 8, 8, 1\); it must be \[number, 4, 4, 1\]"):
        requested(str(tmp_path / "a.npz"), conditions, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model(tasks=(HOLE, HOLE)), "tasks is"),
        (lambda: model(tasks=(TASKS["colorization"],)), "without colorization for 1 channels"),
        (
            lambda: Palette(
                diffusion=dataclasses.replace(model().diffusion, network_conditions=Conditions(image_shape=TWO)),
                tasks=(HOLE,),
            ),
            "no condition 'hole'",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_metric_of_tasks_counts_unknown_pixels():
    truth = np.zeros((4, 2, 2, 1), np.float32)
    mask = np.ones((4, 2, 2, 1), np.float32)
    mask[:2, 0] = -1
    pairs = {"x": truth, "image": truth + 0.4, "mask": mask, "task": np.array([0, 0, 1, 1])}
    samples = np.where(mask > 0, 0.2, 0.0)
    samples = np.concatenate([samples, -samples])
    evaluation = types.SimpleNamespace(
        train=types.SimpleNamespace(entries={"x": types.SimpleNamespace(modality="image")}),
        conditions=model(shape=(2, 2, 1)).conditions,
        options={"num_samples": 8, "samples_per_condition": 2},
    )
    metric = modality.IMAGE.metrics["tasks"](evaluation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modality, "held_out", lambda evaluation: None)
        patch.setattr(modality.data, "shuffled", lambda source, num: {k: v[:num] for k, v in pairs.items()})
        twice = {name: np.concatenate([value, value]) for name, value in pairs.items() if name != "x"}
        values = metric({"samples": samples, **twice})
    for name in ("inpainting", "jpeg"):
        assert values[f"tasks_{name}_psnr"] == pytest.approx(20)
        assert values[f"tasks_{name}_mean_psnr"] > 60
        assert values[f"tasks_{name}_psnr_start"] == pytest.approx(10 * np.log10(25))
        assert values[f"tasks_{name}_num"] == 2
