"""Segmentation from few labels: features of a trained denoiser against those of a random one, pixels, and LDA.

    python -m benchmarks.segmentation --denoiser=runs/pixel_denoiser [--config=configs/pixel_classifier.py]

prints the mean IoU and the IoU of the mask on held-out images, of ensembles of pixel classifiers that were trained on
the same 20 labelled images with other features, and of a linear discriminant (LDA) on the same features.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from diffusion_jax import data
from diffusion_jax.config import build, from_file
from diffusion_jax.evaluation.segmentation import segmentation
from diffusion_jax.training.step import init_state, make_train_step

TEST = 100  # held-out images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoiser", default="runs/pixel_denoiser", help="work directory of the model of pictures")
    parser.add_argument("--config", default="configs/pixel_classifier.py")
    parser.add_argument("--path", default="", help="config.data.path")
    options = parser.parse_args()
    print("| features | numbers of a pixel | ensemble: mIoU | IoU | calibration | LDA: mIoU | IoU |")
    print("|---|---|---|---|---|---|---|")
    for name in ("denoiser", "random denoiser", "5 x 5 pixels"):
        config = from_file(options.config)
        config.data.path = options.path
        if name == "5 x 5 pixels":
            del config.system["denoiser"], config.system["denoiser_config"], config.system["times"]
            del config.system["blocks"]
            config.system.patch = 5
        else:
            config.system.denoiser = options.denoiser
        compare(name, config)


def compare(name: str, config) -> None:
    """Print the row of one kind of features."""
    built = build.build(config)
    system, train, test = built.system, built.source(), data.shuffled(built.source(evaluation=True), TEST)
    labelled = data.arrays(train)
    params = system.init(jax.random.key(config.seed))
    if name == "denoiser":
        loaded = built.recipe.stands_on(built.parts)["frozen/denoiser"]()
        params = {**params, "frozen": {"denoiser": loaded}}
    features = jax.jit(system.features)
    h = {key: np.asarray(features(params, batch["image"])) for key, batch in (("train", labelled), ("test", test))}
    optimizer, _ = built.parts.optimizer()
    state = init_state(system, optimizer, (), jax.random.key(1), params)
    step = jax.jit(make_train_step(system, optimizer, num_steps=config.training.num_steps, ema_rates=()))
    rng = np.random.default_rng(0)
    for _ in range(config.training.num_steps):
        rows = rng.permutation(len(labelled["x"]))[: config.training.batch_size]
        state, _ = step(state, {key: value[rows] for key, value in labelled.items()})
    drawn = jax.jit(system.draw)(state.params, jax.random.key(0), np.arange(len(test["x"])), {"image": test["image"]})
    own = segmentation(np.asarray(drawn["samples"]), test["x"])
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    lda.fit(h["train"].reshape(-1, h["train"].shape[-1]), labelled["x"].reshape(-1) > 0)
    p = lda.predict_proba(h["test"].reshape(-1, h["test"].shape[-1]))[:, 1].reshape(test["x"].shape)
    linear = segmentation(2 * p - 1, test["x"])
    values = [own[f"segmentation_{key}"] for key in ("miou", "iou", "calibration")]
    values += [linear[f"segmentation_{key}"] for key in ("miou", "iou")]
    print(f"| {name} | {h['test'].shape[-1]} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
