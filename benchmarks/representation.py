"""Diffusion autoencoders: reconstruction, what is linear in a code, and manipulation against the truth.

    python -m benchmarks.representation codes runs/diffae runs/pdae
    python -m benchmarks.representation tones runs/diffae_emoji --changes data.path=DIR \\
        --picture runs/diffae_emoji/tones.png
    python -m benchmarks.representation shift runs/pdae

`codes` compares runs on held-out images, by PSNR of the mean squared error: decoded from their own x_T, from random
ones once, and the mean of eight of these; and the accuracy of a linear classifier of the classes on the codes. Next to
them is PCA with as many components as the code has numbers.

`tones` moves the codes of held-out emoji in the lightest tone towards the darkest, keeps their x_T, and compares with
the same emoji in the darkest tone, which exists. The direction is that of the linear classifier, or the difference of
the mean codes. How far to go is chosen on the training split. Baselines are the emoji as it is and the best cubic
polynomial of the colour of each pixel, fitted to the training split.

`shift` prints what the gradient estimator of PDAE adds to its teacher: E |D_z - x_0|^2 / E |D - x_0|^2 by time, and the
PSNR of images encoded and decoded by both.
"""

import argparse
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax
from benchmarks.bridges import colour_regression
from diffusion_jax import data
from diffusion_jax.evaluation import probe, sheets
from diffusion_jax.processes import perturb
from diffusion_jax.run.codes import Coder, way
from diffusion_jax.run.pretrained import Pretrained
from diffusion_jax.solvers import sampling

DRAWS = 8  # random decodings whose mean is taken
FAR = np.linspace(0.5, 2.5, 9)  # ways from class to class among which the length of a manipulation is chosen
CHOSEN_ON = 40  # training emoji on which it is
SHOWN = 16
TIMES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def decibels(x: np.ndarray, y: np.ndarray) -> float:
    """PSNR of the mean squared error over all images, which are in [-1, 1]."""
    return 10 * math.log10(4 / np.square(np.clip(x, -1, 1) - y).mean())


def coder(model: Pretrained) -> Coder:
    return Coder(model.job, model.params)


def codes(options: argparse.Namespace) -> None:
    print(f"{'':28} numbers  inferred   random  mean of {DRAWS}   probe")
    for run in options.runs:
        model = diffusion_jax.load(run, changes=options.changes)
        train, test = data.arrays(model.job.source), data.arrays(model.job.held_out)
        own, x, num_classes = coder(model), test["x"], model.job.source.num_classes
        z, held_out = own.encode(train["x"]), own.encode(x)
        inferred = decibels(own.decode(held_out, own.infer(x, held_out)), x)
        draws = own.decode(np.repeat(held_out, DRAWS, axis=0)).reshape(len(x), DRAWS, *x.shape[1:])
        found = probe.fit(z, train["label"], num_classes).accuracy(held_out, test["label"])
        line = f"{pathlib.Path(run).name:28} {z.shape[1]:7} {inferred:9.2f} {decibels(draws[:, 0], x):8.2f}"
        print(f"{line} {decibels(draws.mean(1), x):10.2f} {found:7.3f}", flush=True)
    of_train, of_test, reconstructed = probe.principal_components(train["x"], x, z.shape[1])
    found = probe.fit(of_train, train["label"], num_classes).accuracy(of_test, test["label"])
    print(f"{'PCA':28} {z.shape[1]:7} {decibels(reconstructed, x):9.2f} {'':8} {'':10} {found:7.3f}")


def tones(options: argparse.Namespace) -> None:
    for run in options.runs:
        model = diffusion_jax.load(run, changes=options.changes)
        train, test = data.arrays(model.job.source), data.arrays(model.job.held_out)
        own, (source, target) = coder(model), model.system.attribute
        pairs = [(part["x"][part["label"] == source], part["x"][part["label"] == target]) for part in (train, test)]
        (light, dark), (x, truth) = pairs
        z = own.encode(train["x"])
        classifier = probe.fit(z, train["label"], model.job.source.num_classes)
        mean = probe.mean_difference(z, train["label"], source, target)
        held_out = own.encode(test["x"])
        print(f"{run}: linear classifier of the tone {classifier.accuracy(held_out, test['label']):.3f}")
        print(f"{'the emoji as it is':40} {decibels(x, truth):6.2f} dB")
        cubic = colour_regression({"x": dark, "image": light}, x)
        print(f"{'cubic colour regression':40} {decibels(cubic, truth):6.2f} dB")
        again = own.decode(own.encode(x), own.infer(x, own.encode(x)))
        print(f"{'reconstruction of the source':40} {decibels(again, x):6.2f} dB")
        panels = {"source": x, "truth": truth, "cubic": cubic}
        for name, direction in (("classifier", classifier.direction(source, target)), ("means", mean)):
            unit = direction / np.linalg.norm(direction)
            step = way(z, train["label"], unit, source, target)
            tried = own.manipulated(light[:CHOSEN_ON], step, FAR)
            best = max(range(len(FAR)), key=lambda i: decibels(tried[:, i], dark[:CHOSEN_ON]))
            moved = own.manipulated(x, step, FAR[best : best + 1])[:, 0]
            print(
                f"{f'manipulated, {name}, {FAR[best]:.2f} of the way':40} {decibels(moved, truth):6.2f} dB", flush=True
            )
            panels[name] = moved
        if options.picture:
            tiles = np.concatenate([panel[:SHOWN] for panel in panels.values()])
            sheets.image_sheet(tiles, columns=SHOWN, path=options.picture)
            print("rows of the picture:", ", ".join(panels))


def shift(options: argparse.Namespace) -> None:
    for run in options.runs:
        print(run)
        shift_of(diffusion_jax.load(run, changes=options.changes))


def shift_of(model: Pretrained) -> None:
    """Print the errors of the shifted denoiser and of its teacher, and how well each encodes and decodes."""
    system, params, x = model.system, model.params, data.arrays(model.job.held_out)["x"]
    diffusion, process = system.diffusion, system.diffusion.process
    denoisers = {
        "PDAE": system.denoiser_of(params, system.encode(params, x)),
        "its teacher": diffusion.teacher.denoiser(params["frozen"]["teacher"], process),
    }

    @jax.jit
    def errors(key: jax.Array, t: jax.Array) -> list[jax.Array]:
        x_t, _ = perturb(process, key, jnp.asarray(x), jnp.full(len(x), t))
        return [jnp.square(D(x_t, t) - x).mean() for D in denoisers.values()]

    found = [errors(jax.random.key(i), jnp.float32(t)) for i, t in enumerate(TIMES)]
    ratios = [float(shifted / own) for shifted, own in found]
    by_time = ", ".join(f"{ratio:.3f} at {t}" for t, ratio in zip(TIMES, ratios, strict=True))
    print(f"E |D_z - x_0|^2 / E |D - x_0|^2 = {np.mean(ratios):.3f}: {by_time}")
    times = diffusion.grid(process, diffusion.steps)
    for name, D in denoisers.items():
        y, key = process.alpha(times[-1]) * jnp.asarray(x), jax.random.key(0)
        for way_of in (times[::-1], times):
            y = sampling.sample(diffusion.solver, process, D, key, y, way_of)
        again = np.asarray(y / process.alpha(times[-1]))
        print(f"encoded and decoded by {name} in {diffusion.steps} steps: {decibels(again, x):.2f} dB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("codes", "tones", "shift"))
    parser.add_argument("runs", nargs="+", help="work directories")
    parser.add_argument("--changes", nargs="*", default=[], help="keys of the config, such as data.path=DIR")
    parser.add_argument("--picture", default="", help="where to write a picture")
    options = parser.parse_args()
    options.changes = dict(change.split("=", 1) for change in options.changes)
    {"codes": codes, "tones": tones, "shift": shift}[options.what](options)


if __name__ == "__main__":
    main()
