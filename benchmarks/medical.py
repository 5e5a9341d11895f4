"""Medical images: denoising at matched time, translation, examples for classifiers, next to what needs no model.

    python -m benchmarks.medical denoising runs/slice --picture docs/pictures/medical_denoising.png
    python -m benchmarks.medical denoising --config configs/medical.py:retina --data retina.jpg
    python -m benchmarks.medical translation runs/translation --picture docs/pictures/medical_translation.png
    python -m benchmarks.medical utility runs/cells --few 5 20 150
    python -m benchmarks.medical stains --data slide.png --picture docs/pictures/medical_stains.png

Without a run the tables have the baselines alone, on the data of `--config`; `--data` is config.data.path.

- denoising: PSNR of held-out tiles in noise of several standard deviations, in the units of [-1, 1]: the noisy tile,
  the Wiener filter with the covariance of training tiles, total variation and non-local means of scikit-image (pip
  install diffusion_jax[medical]) with the strength that is best on training tiles, D in one evaluation, one draw of the
  reverse process from the matched time, and the mean of `--draws` of them. Of a model of logarithms, noise multiplies
  the image and the PSNR is that of the image itself.
- translation: the metric "translation" over all held-out images.
- utility: the metric "utility", and the accuracy of classifiers of a few real examples, alone and with the samples.
- stains: the angle between the stains of two halves of a slide, before and after its normalisation.
"""

from __future__ import annotations

import argparse
import math
import pathlib
from typing import Any

import jax
import numpy as np

import diffusion_jax
from diffusion_jax import config as configs
from diffusion_jax import data
from diffusion_jax.config.data import source as open_data
from diffusion_jax.config.data import spec
from diffusion_jax.data import picture_sets, stains
from diffusion_jax.evaluation import sheets, translation, utility
from diffusion_jax.evaluation.restoration import linear_estimate
from diffusion_jax.guidance.matched_noise import NOISY, denoising
from diffusion_jax.types import Spec

STRENGTHS = {"total variation": (0.02, 0.05, 0.1, 0.2, 0.4), "non-local means": (0.4, 0.6, 0.8, 1.0, 1.3)}
SHOWN = 8  # rows of a picture
Images = np.ndarray  # [n, h, w, c] in [-1, 1]


def splits(args: argparse.Namespace, run: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The training and the held-out examples of a run, or of --config."""
    if run is not None:
        return data.arrays(run.job.source), data.arrays(run.job.held_out)
    config = configs.from_file(args.config)
    config.data.path = args.data
    wanted = {"x": spec(config)}
    if config.network.get("image_channels"):
        wanted["image"] = Spec((*wanted["x"].shape[:-1], config.network.image_channels))
    return tuple(data.arrays(open_data(config, wanted, evaluation=held_out)) for held_out in (False, True))


def noisy(x: Images, noise: float) -> Images:
    """The images with noise, the same in every call."""
    return x + noise * np.float32(np.random.default_rng(0).standard_normal(x.shape))


def filtered(name: str, y: Images, noise: float, strength: float) -> Images:
    """A filter of scikit-image on values in [0, 1], where the noise is half as large."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    def one(image: np.ndarray) -> np.ndarray:
        if name == "total variation":
            return denoise_tv_chambolle(image, weight=strength, channel_axis=-1)
        options = dict(patch_size=5, patch_distance=6, sigma=noise / 2, fast_mode=True, channel_axis=-1)
        return denoise_nl_means(image, h=strength * noise / 2, **options).reshape(image.shape)

    return 2 * np.stack([one(image) for image in (y + 1) / 2]).astype(np.float32) - 1


def baselines(train: Images, y: Images, noise: float) -> dict[str, Images]:
    """Estimates of images y in noise, by name."""
    operator = denoising(noise).conditions(train.shape[1:])[NOISY].operator
    found = {"noisy": y, "Wiener filter": linear_estimate(y, operator, train)}
    tiles = train[np.random.default_rng(1).permutation(len(train))[:64]]
    try:
        import skimage  # noqa: F401
    except ImportError:
        print("without total variation and non-local means: scikit-image is not installed")
        return found
    for name, strengths in STRENGTHS.items():
        errors = [np.square(filtered(name, noisy(tiles, noise), noise, s) - tiles).mean() for s in strengths]
        found[name] = filtered(name, y, noise, strengths[int(np.argmin(errors))])
    return found


def denoise(args: argparse.Namespace) -> None:
    run = diffusion_jax.load(args.run) if args.run else None
    train, test = (part["x"] for part in splits(args, run))
    config = run.config if run else configs.from_file(args.config)

    def seen(x: Images) -> Images:
        """Images within their range; of logarithms 1 + 2 log v / log 256 the images v, in [-1, 1]."""
        x = np.clip(x, -1, 1)
        return 2 * np.exp((x - 1) * math.log(256) / 2) - 1 if config.data.get("log") else x

    truth, tiles = test[: args.num], []
    print(f"{len(truth)} held-out tiles, {args.draws} draws\n\n| noise | estimate | PSNR, dB |\n|---|---|---|")
    for noise in args.noise:
        y = noisy(truth, noise)
        found = baselines(train, y, noise)
        if run:
            cond, changes = {NOISY: y}, {"editing.noise": noise}
            one = {**changes, "solver.name": "ddim", "sampling.steps": 1}
            found["D, one evaluation"] = drawn(args.run, one, cond, 0)
            draws = np.stack([drawn(args.run, changes, cond, seed) for seed in range(args.draws)])
            found |= {"one draw": draws[0], f"mean of {args.draws} draws": draws.mean(0)}
        for name, x in found.items():
            print(f"| {noise} | {name} | {translation.psnr(np.square(seen(x) - seen(truth)).mean()):.1f} |", flush=True)
        if run and args.draws > 1:
            law = translation.calibration(draws, truth)
            print(f"| {noise} | gain {law['gain']:.2f} (exact {law['gain_exact']:.2f}) | |")
            print(f"| {noise} | calibration {law['calibration']:.2f} (exact 1) | |", flush=True)
            found["spread"] = 2 * draws.std(0) / draws.std(0).max() - 1
        tiles.append(np.stack([seen(x)[: args.shown] for x in (truth, *found.values())], 1))
    draw(args, np.concatenate(tiles))


def drawn(run: str, changes: dict[str, Any], cond: dict[str, np.ndarray], seed: int) -> Images:
    """A sample of each condition, of a run with changes of its config."""
    num = len(next(iter(cond.values())))
    return np.asarray(diffusion_jax.load(run, changes=changes).sample(jax.random.key(seed), num, cond))


def translate(args: argparse.Namespace) -> None:
    run = diffusion_jax.load(args.run) if args.run else None
    train, test = splits(args, run)
    truth, given = (test[name][: args.num] for name in ("x", "image"))
    estimates = {
        f"regression of {size} x {size} pixels": translation.regression(train["image"], train["x"], given, reach=reach)
        for size, reach in ((1, 0), (5, 2))
    }
    if run:
        draws = [np.asarray(run.sample(jax.random.key(s), len(truth), {"image": given})) for s in range(args.draws)]
        draws = np.clip(np.stack(draws), -1, 1)
        estimates |= {"one draw": draws[0], f"mean of {args.draws} draws": draws.mean(0)}
    channels = range(truth.shape[-1])
    print(f"{len(truth)} held-out images\n\n| estimate | PSNR, dB |{''.join(f' channel {c} |' for c in channels)}")
    print("|---|---|" + "---|" * len(channels))
    for name, x in estimates.items():
        errors = [np.square(x - truth).mean(), *(np.square(x - truth)[..., c].mean() for c in channels)]
        print(f"| {name} | {' | '.join(f'{translation.psnr(error):.1f}' for error in errors)} |")
    if not run:
        return
    for name, value in translation.calibration(draws, truth).items():
        print(f"{name} {value:.4g}")
    if args.draws < 2:
        return
    spread = draws.std(0, ddof=1)
    window = list(estimates.values())[1]
    panels = [truth, given, window, draws[0], draws[1], draws.mean(0), 2 * spread / spread.max() - 1]
    panels = [sheets.as_colours(panel[: args.shown]) for panel in panels]
    draw(args, np.stack([np.broadcast_to(panel, (*panel.shape[:3], 3)) for panel in panels], 1))


def worth(args: argparse.Namespace) -> None:
    run = diffusion_jax.load(args.run) if args.run else None
    if run is None:
        train, test = (labelled(args.data, split) for split in ("train", "test"))
    else:
        train, test = data.arrays(run.job.source), data.arrays(run.job.held_out)
    num_classes = int(train["label"].max()) + 1
    if args.num < SHOWN * num_classes:
        raise SystemExit(f"--num={args.num} must be at least {SHOWN * num_classes}, {SHOWN} samples of each class")
    labels = np.arange(args.num) % num_classes
    if run:
        samples = np.clip(
            np.asarray(run.sample(jax.random.key(0), args.num, {"label": labels.astype(np.int32)})), -1, 1
        )
        for name, value in utility.utility(samples, labels, train, test).items():
            print(f"{name} {value:.4g}")
        draw(args, samples[: SHOWN * num_classes].reshape(SHOWN, num_classes, *samples.shape[1:]).swapaxes(0, 1))
    print("\n| real examples of a class | accuracy, 10 draws of them |" + " with the samples |" * bool(run))
    print("|---|---|" + "---|" * bool(run))
    for few in args.few:
        alone, both = [], []
        for seed in range(10):
            rng = np.random.default_rng(seed)
            rows = [rng.permutation(np.flatnonzero(train["label"] == k))[:few] for k in range(num_classes)]
            x, y = (train[name][np.concatenate(rows)] for name in ("x", "label"))
            alone.append(utility.accuracy(x, y, test, num_classes=num_classes))
            if run:
                joined = np.concatenate([x, samples]), np.concatenate([y, labels])
                both.append(utility.accuracy(*joined, test, num_classes=num_classes))
        cells = [f"{np.mean(found):.3f} +- {np.std(found):.3f}" for found in (alone, both) if found]
        print(f"| {few} | {' | '.join(cells)} |", flush=True)
    print(f"all: {utility.accuracy(train['x'], train['label'], test, num_classes=num_classes):.3f}")
    made = utility.gaussian(train["x"], train["label"], labels=labels)
    print(f"draws of one Gaussian per class: {utility.accuracy(*made, test, num_classes=num_classes):.3f}")


def labelled(path: str, split: str) -> dict[str, np.ndarray]:
    """Examples of array files with labels."""
    return data.arrays(data.load(name="arrays", path=path, split=split))


def stain(args: argparse.Namespace) -> None:
    slide = picture_sets.read_colours(pathlib.Path(args.data))
    normal = stains.normalise(slide)
    print(
        "| image | stain | colour absorbed, red green blue | angle between the halves of the image |\n|---|---|---|---|"
    )
    for name, image in {"as it is": slide, "normalised": normal}.items():
        whole, *halves = (stains.stain_matrix(part) for part in (image, *np.array_split(image, 2, 1)))
        for i in range(2):
            angle = math.degrees(math.acos(min(1.0, float(halves[0][:, i] @ halves[1][:, i]))))
            print(f"| {name} | {i + 1} | {', '.join(f'{v:.2f}' for v in whole[:, i])} | {angle:.1f} degrees |")
    side = min(min(slide.shape[:2]), 256)
    draw(args, np.stack([slide[:side, :side], normal[:side, :side]])[None])


def draw(args: argparse.Namespace, tiles: np.ndarray) -> None:
    """The picture of rows of tiles [rows, columns, h, w, c]."""
    if args.picture:
        sheets.image_sheet(tiles.reshape(-1, *tiles.shape[2:]), columns=tiles.shape[1], path=args.picture)


WHAT = {"denoising": denoise, "translation": translate, "utility": worth, "stains": stain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("run", nargs="?", default="", help="work directory of a trained model")
    parser.add_argument("--config", default="configs/medical.py", help="whose data is read without a run")
    parser.add_argument("--data", default="", help="config.data.path without a run")
    parser.add_argument("--noise", type=float, nargs="+", default=(0.1, 0.2, 0.4))
    parser.add_argument("--num", type=int, default=300, help="held-out images at most, or samples")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--few", type=int, nargs="+", default=(5, 20, 150))
    parser.add_argument("--shown", type=int, default=SHOWN, help="images in the picture")
    parser.add_argument("--picture", type=pathlib.Path, default=None)
    args = parser.parse_args()
    WHAT[args.what](args)


if __name__ == "__main__":
    main()
