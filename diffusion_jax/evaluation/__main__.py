"""Evaluate samples, or compute the statistics of a reference set, from a shell: `python -m diffusion_jax.evaluation`.

  FID of a folder of samples          --samples out/ --reference images/ --inception FILE
  several metrics, written to a file  ... --metrics fid,kid,precision_recall --output metrics.json
  the statistics of a set, once       --reference images/ --inception FILE --save_statistics images.npz
  and then                            --samples out/ --reference images.npz --inception FILE
  without Inception weights           --samples samples.npz --reference labelled/ --metrics kid,precision_recall

FILE is pt_inception-2015-12-05-6726825d.pth of pytorch-fid. Images are a folder or zip archive of image files, or an
.npz or .npy file of arrays: 8-bit values, or floats in [-1, 1] or, with --range=0..1, in [0, 1]. Without --inception
a small classifier is trained on the labels of the reference (sub-folders, or an array of them); the metrics are then
called classifier_... and are not FID or KID.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import warnings
from typing import Any

from diffusion_jax.data.images import RANGES
from diffusion_jax.evaluation.features import RESIZE
from diffusion_jax.training.faults import check_local_options, one_line_if_interrupted


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_jax.evaluation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", metavar="PATH", help="images to evaluate")
    parser.add_argument("--reference", metavar="PATH", help="real images, or a file of their statistics")
    parser.add_argument(
        "--test", metavar="PATH", help="other real images, whose metrics are given next to the samples'"
    )
    parser.add_argument("--inception", metavar="FILE", help="the PyTorch weights of FID's Inception network")
    parser.add_argument("--resize", choices=RESIZE, default="pytorch", help="preprocessing (default: %(default)s)")
    parser.add_argument("--range", choices=RANGES[1:], default="", help="of images in floats (default: -1..1)")
    parser.add_argument("--metrics", metavar="NAMES", help="separated by commas (default: all that are possible)")
    parser.add_argument("--save_statistics", metavar="PATH", help="write the statistics of the reference here")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="and N of its images, for KID and others")
    parser.add_argument("--output", metavar="FILE", help="write the metrics here, as JSON")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="images at once (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random subsets (default: 0)")
    flags = parser.parse_args(argv)
    if flags.samples is None and flags.save_statistics is None:
        parser.error("--samples=PATH, --save_statistics=PATH or both are needed; --help explains")
    if flags.reference is None and (flags.save_statistics or not flags.inception):
        parser.error("--reference=PATH is missing")
    try:
        check_local_options(vars(flags))
        run(flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(flags: argparse.Namespace) -> None:
    """What the flags ask for, over all devices. Raises ValueError or OSError for input that does not fit."""
    import jax

    from diffusion_jax.evaluation.report import format_report, write_evaluation
    from diffusion_jax.evaluation.suite import check_metrics, compare
    from diffusion_jax.training.mesh import make_mesh

    for path in (flags.output, flags.save_statistics):
        check_writable(path)
    metrics = _metrics(flags)
    check_metrics(metrics, "" if flags.inception else "classifier_", flags.reference)
    features = _extractor(flags)
    with jax.set_mesh(make_mesh()):
        if flags.save_statistics:
            _save_statistics(flags, features)
        if flags.samples is None:
            return
        with warnings.catch_warnings(record=True, action="always") as caught:
            results = compare(
                _images(flags, flags.samples, features),
                _images(flags, flags.reference, features),
                features=features,
                metrics=metrics,
                test=_images(flags, flags.test, features),
                batch_size=flags.batch_size,
                seed=flags.seed,
            )
    print(format_report({"features": features.name, **results}), flush=True)
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"warning: {text}", file=sys.stderr)
    if flags.output:
        write_evaluation(flags.output, {"features": features.name, **results})


def check_writable(path: str | None) -> None:
    """Raises ValueError unless a file `path` can be written, or there is no path. Creates nothing."""
    if path is None:
        return
    file = pathlib.Path(path).expanduser()
    existing = next(folder for folder in file.absolute().parents if folder.exists())
    if file.is_dir() or not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "it is a folder" if file.is_dir() else f"{existing} is not a writable folder"
        raise ValueError(f"{path} cannot be written: {reason}")


def _images(flags: argparse.Namespace, path: str | None, features) -> Any:
    """The images in `path`; a path itself if it has statistics, and None without one."""
    from diffusion_jax.evaluation.features import image_source
    from diffusion_jax.evaluation.reference import has_statistics

    if path is None or (path == flags.reference and has_statistics(path)):
        return path
    return image_source(path, features.takes.shape[-1], flags.range)


def _metrics(flags: argparse.Namespace) -> tuple[str, ...]:
    from diffusion_jax.evaluation.reference import has_images, has_statistics

    if flags.metrics:
        return tuple(name.strip() for name in flags.metrics.split(","))
    if flags.reference is None:
        return ("inception_score",)
    frechet = ("fid", "inception_score") if flags.inception else ("inception_score",)
    if has_statistics(flags.reference) and not has_images(flags.reference):
        return frechet
    return (*frechet, "kid", "precision_recall", "density_coverage")


def _extractor(flags: argparse.Namespace):
    from diffusion_jax import data
    from diffusion_jax.evaluation import features
    from diffusion_jax.evaluation.feature_classifier import train_classifier

    if flags.inception:
        return features.inception(flags.inception, resize=flags.resize)
    source = features.image_source(flags.reference, range=flags.range)
    if source.num_classes < 2:
        reason = source.facts.get("unlabelled", "")
        raise ValueError(
            f"--inception=FILE is missing, and {flags.reference} has no labels that a classifier could be trained on"
            f"{': ' + reason if reason else ''}"
        )
    examples = data.arrays(source)
    classifier = train_classifier(examples["x"], examples["label"], num_classes=source.num_classes, seed=flags.seed)
    return features.classifier_features(classifier)


def _save_statistics(flags: argparse.Namespace, features) -> None:
    import numpy as np

    from diffusion_jax.evaluation.features import collect, image_source, read_uint8
    from diffusion_jax.evaluation.reference import statistics_of, write_statistics

    source = image_source(flags.reference, features.takes.shape[-1], flags.range)
    if not flags.inception:
        raise ValueError("--save_statistics needs --inception=FILE: a classifier is trained again each time")
    collected = collect(features, source, batch_size=flags.batch_size, spatial=True, keep=1)
    chosen = np.sort(np.random.default_rng(flags.seed).permutation(len(source))[: flags.images])
    write_statistics(
        flags.save_statistics, statistics_of(collected), images=read_uint8(source, chosen) if len(chosen) else None
    )
    print(f"statistics of {collected.num:,} images written to {flags.save_statistics}")


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
