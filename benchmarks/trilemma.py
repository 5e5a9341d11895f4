"""The trilemma of generative models: quality, diversity and speed of one model per family, on stacked digits.

    python -m benchmarks.trilemma --to=runs/trilemma                       # trains what is missing, all rows
    python -m benchmarks.trilemma --to=runs/trilemma --rows vae tarflow    # these rows
    python -m benchmarks.trilemma --to=runs/trilemma --rows none --picture docs/pictures/trilemma.png

Data are three digits as the channels of one image, which makes 1,000 modes. Each row is one sampler of one run; its
run is trained by `python -m diffusion_jax.main` in TO/RUN (rows of the same model share it), its numbers are written to
TO/rows/ROW.json, and a row that has this file is not computed again. Then the table of all rows is printed, and with
--picture drawn.

One classifier of digits judges every channel, so that its features are the three of the channels side by side. Samples
are first rounded to the grey levels of the data. Columns: modes of 1,000 among the predicted classes; KL to the uniform
distribution in nats; Frechet distance to the training split over that of test triples at equal counts; precision,
recall, density and coverage against the training split; bits per dimension of held-out triples, where the model has a
likelihood or a bound; evaluations of the network and milliseconds for one sample; seconds of training; parameters. The
row `real` has the values of as many triples of the test split, the floor of each column.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax
from diffusion_jax import data
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation import modes, sheets
from diffusion_jax.evaluation.frechet import frechet_distance, statistics
from diffusion_jax.evaluation.neighbours import density_coverage, precision_recall
from diffusion_jax.likelihood import dequantization
from diffusion_jax.networks.functional import count_parameters

NUM, SHOWN, CLASSES = 5000, 12, 10
NONE: Mapping[str, Any] = {}


class Row(NamedTuple):
    """One sampler of one run.

    Attributes:
      title: of the row.
      config: "FILE.py:VARIANT" of configs/ that trains the run.
      run: the folder of the run.
      training: changes of the config in training.
      sampling: changes of the config in sampling.
      teacher: the row whose run this one is distilled from.
      on_levels: whether the model is trained on the grey levels themselves, and not on dequantized data.
      bits: the name of its bits per dimension in evaluation.json; "" for none.
    """

    title: str
    config: str
    run: str
    training: Mapping[str, Any] = NONE
    sampling: Mapping[str, Any] = NONE
    teacher: str = ""
    on_levels: bool = False
    bits: str = ""


VANILLA = {"system.loss": "non_saturating", "system.r1": 0.0, "system.r2": 0.0}
BITS = "held_out_bits_per_dim"
ROWS = {
    "vae": Row("VAE", "autoencoder_kl.py:stacked_digits_vae", "vae", bits=BITS),
    "gan_vanilla": Row(
        "GAN, no regularisation", "gan.py:stacked_digits", "gan_vanilla", training=VANILLA, on_levels=True
    ),
    "gan": Row("GAN, R1 and R2", "gan.py:stacked_digits", "gan", on_levels=True),
    "tarflow": Row("TarFlow", "nflow.py:stacked_digits", "tarflow", bits=BITS),
    "ddpm_1000": Row("DDPM, 1000 steps", "ddpm.py:stacked_digits", "ddpm"),
    "ddim_50": Row(
        "DDIM, 50 steps",
        "ddpm.py:stacked_digits",
        "ddpm",
        sampling={"solver.name": "ddim", "sampling.steps": 50, "sampling.grid.spacing": "trailing"},
    ),
    "edm_35": Row("EDM, 18 steps of Heun", "edm.py:stacked_digits", "edm", bits=BITS),
    "consistency_1": Row("consistency, 1 step", "consistency.py:stacked_digits", "consistency", teacher="edm_35"),
    "consistency_2": Row(
        "consistency, 2 steps",
        "consistency.py:stacked_digits",
        "consistency",
        sampling={"sampling.steps": 2, "sampling.grid.name": "noise_levels", "sampling.grid.values": (80.0, 1.0)},
        teacher="edm_35",
    ),
    "mean_flow_1": Row("MeanFlow, 1 step", "mean_flow.py:stacked_digits", "mean_flow"),
    "ddgan_4": Row("DDGAN, 4 steps", "ddgan.py:stacked_digits", "ddgan", on_levels=True),
}


class Data(NamedTuple):
    """What the digits are: the data set of one channel, its levels, and the changes of the configs for it."""

    examples: Mapping[str, Any]
    levels: int
    changes: Mapping[str, Any] = NONE


DATA = {
    "stacked_digits": Data(dict(name="digits", image_size=8), 17),
    "stacked_mnist": Data(
        dict(name="mnist", image_size=28),
        256,
        {"data.image_size": 28, "data.num_examples": 120_000, "data.examples.name": "mnist"},
    ),
}
# Of a dequantized config: its levels, and those that its bits per dimension are of.
LEVELS = ("data.examples.levels", "evaluation.likelihood.levels")


class Judge(NamedTuple):
    """A classifier of one channel, and the features of real triples."""

    classify: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # x -> (classes [n], features [n, 3 d])
    train: np.ndarray
    test: np.ndarray
    real: dict[str, float]  # the row of the test split
    accuracy: float  # share of test triples whose three digits are recognised


def triples(kind: Data, split: str, num: int) -> dict[str, np.ndarray]:
    """`num` triples of a split on the grey levels, with their classes."""
    size = kind.examples["image_size"]
    examples = dict(name=kind.examples["name"])
    shape = dict(image_size=size, channels=3)
    return data.arrays(data.load(name="stacked", split=split, examples=examples, num_examples=num, **shape))


def classify(classifier: classifiers.Classifier, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class 100 a + 10 b + c and the features, side by side, of images of three channels."""
    channels = [np.ascontiguousarray(x[..., i : i + 1]) for i in range(x.shape[-1])]
    classes = [classifiers.probabilities(classifier, channel).argmax(1) for channel in channels]
    place = CLASSES ** np.arange(len(channels))[::-1]
    features = [classifiers.features(classifier, channel) for channel in channels]
    return np.stack(classes, axis=1) @ place, np.concatenate(features, axis=1)


def judge(kind: Data, num: int) -> Judge:
    """Train the classifier, with a fixed seed, and judge real triples: `num` of each split."""
    digits = data.arrays(data.load(**kind.examples, channels=1, split="train"))
    trained = classifiers.train_classifier(digits["x"], digits["label"], num_classes=CLASSES)
    train, test = (triples(kind, split, num) for split in ("train", "test"))
    (_, of_train), (classes, of_test) = classify(trained, train["x"]), classify(trained, test["x"])
    real = measured(classes, of_test, of_train, of_test)
    accuracy = float((classes == test["label"]).mean())
    return Judge(lambda x: classify(trained, x), of_train, of_test, real, accuracy)


def measured(classes: np.ndarray, features: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The columns of quality and diversity, of samples or of the test split itself."""
    covered = modes.mode_coverage(classes, CLASSES**3)
    reference = statistics(train)
    distance, floor = (frechet_distance(*reference, *statistics(x)) for x in (features, test))
    precision, recall = precision_recall(train, features)
    density, coverage = density_coverage(train, features)
    return {
        "modes": covered.modes,
        "kl": covered.kl,
        "frechet_ratio": distance / floor,
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def on_levels(x: np.ndarray, levels: int, dequantized: bool) -> np.ndarray:
    """Samples rounded to the grey levels: to the cell they lie in, or of a model of the levels to the nearest."""
    if dequantized:
        k = np.clip(np.floor((x + 1) / 2 * levels), 0, levels - 1)
        return np.float32(2 * k / (levels - 1) - 1)
    k = dequantization.to_levels(jnp.asarray(x), levels)
    return np.float32(2 * np.asarray(k) / (levels - 1) - 1)


def changes_of(row: Row, kind: Data, to: pathlib.Path) -> dict[str, Any]:
    """The changes of the config of a row in training."""
    changes = {**row.training, **kind.changes}
    if row.teacher:
        changes["system.teacher"] = str(to / ROWS[row.teacher].run)
    if kind.changes and not row.on_levels:
        changes |= dict.fromkeys(LEVELS if row.bits else LEVELS[:1], kind.levels)
    return changes


def flags(row: Row, kind: Data, to: pathlib.Path, more: Mapping[str, Any]) -> list[str]:
    """The command that trains the run of a row, or with --mode=evaluate evaluates it."""
    changes = {**changes_of(row, kind, to), **more}
    words = (f"--config.{key}={value}" for key, value in changes.items())
    return [f"--config=configs/{row.config}", f"--workdir={to / row.run}", *words]


def command(arguments: list[str]) -> None:
    """Run `python -m diffusion_jax.main`. Raises RuntimeError if it fails."""
    words = [sys.executable, "-m", "diffusion_jax.main", *arguments]
    print("$ python", *words[1:], flush=True)
    if subprocess.run(words, check=False).returncode:
        raise RuntimeError(f"the command failed; call it again to go on: {' '.join(words[1:])}")


def train(name: str, kind: Data, to: pathlib.Path, more: Mapping[str, Any]) -> float:
    """Train the run of a row, and first that of its teacher, unless they are; returns the seconds it took."""
    row = ROWS[name]
    if row.teacher:
        train(row.teacher, kind, to, more)
    record = to / row.run / "seconds.json"
    if not record.exists():
        start = time.perf_counter()
        command(flags(row, kind, to, more))
        record.write_text(json.dumps(time.perf_counter() - start))
    return json.loads(record.read_text())


def bits_per_dim(row: Row, kind: Data, to: pathlib.Path, more: Mapping[str, Any]) -> float | None:
    """The bits per dimension of held-out triples; None for a model without a likelihood."""
    if not row.bits:
        return None
    command([*flags(row, kind, to, more), "--mode=evaluate"])
    return json.loads((to / row.run / "evaluation.json").read_text())[row.bits]


def compute(
    name: str, kind: Data, judged: Judge, to: pathlib.Path, num: int, more: Mapping[str, Any] = NONE
) -> dict[str, Any]:
    """The numbers of a row: read from TO/rows/NAME.json, or trained, sampled, judged and written there."""
    row, path = ROWS[name], to / "rows" / f"{name}.json"
    asked = {"data": dict(kind.examples), "num_samples": num, "changes": dict(more)}
    if path.exists():
        values = json.loads(path.read_text())
        if values["asked"] != asked:
            raise ValueError(f"{path} was computed with {values['asked']}, not {asked}; give another folder --to")
        return values
    seconds = train(name, kind, to, more)
    model = diffusion_jax.load(to / row.run, changes=row.sampling)
    batch = model.system.batch_size
    model.sample(jax.random.key(1), batch)  # compiles the program
    start = time.perf_counter()
    x = model.sample(jax.random.key(0), num)
    elapsed = time.perf_counter() - start
    x = on_levels(np.asarray(x), kind.levels, not row.on_levels)
    classes, features = judged.classify(x)
    values = {
        "title": row.title,
        **measured(classes, features, judged.train, judged.test),
        "bits_per_dim": bits_per_dim(row, kind, to, more),
        "nfe": model.system.evaluations() or 1,
        "ms": 1e3 * elapsed / num,
        "training_seconds": seconds,
        "parameters": count_parameters({k: v for k, v in model.params.items() if k != "frozen"}),
        "asked": asked,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), x[:SHOWN])
    path.write_text(json.dumps(values, indent=1))
    return values


COLUMNS = (
    ("modes", "{:.0f}"),
    ("kl", "{:.3f}"),
    ("frechet_ratio", "{:.2f}"),
    ("precision", "{:.3f}"),
    ("recall", "{:.3f}"),
    ("density", "{:.2f}"),
    ("coverage", "{:.3f}"),
    ("bits_per_dim", "{:.3f}"),
    ("nfe", "{:.0f}"),
    ("ms", "{:.3f}"),
    ("training_seconds", "{:.0f}"),
    ("parameters", "{:.2e}"),
)
HEADER = (
    "| model | modes | KL | Frechet ratio | precision | recall | density | coverage | bits/dim | NFE | ms | "
    "training s | parameters |"
)


def table(rows: Mapping[str, Mapping[str, Any]], real: Mapping[str, float]) -> str:
    """The table in Markdown, real triples first."""
    lines = [HEADER, "|---" * (len(COLUMNS) + 1) + "|"]
    for values in ({"title": "real test triples", **real}, *rows.values()):
        cells = [form.format(values[key]) if values.get(key) is not None else "" for key, form in COLUMNS]
        lines.append(f"| {' | '.join([values['title'], *cells])} |")
    return "\n".join(lines)


def picture(rows: Mapping[str, Mapping[str, Any]], path: pathlib.Path, to: pathlib.Path) -> None:
    """Quality over speed with diversity as the size of the points, and samples of every row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes, shown = figure.subplots(1, 2, width_ratios=(1.2, 1))
    for values in rows.values():
        place, coverage = (values["ms"], values["frechet_ratio"]), values["coverage"]
        axes.scatter(*place, s=20 + 400 * coverage, c=[coverage], vmin=0, vmax=1, alpha=0.7)
        axes.annotate(values["title"], place, fontsize=8, xytext=(6, 6), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="ms for one sample", ylabel="Frechet ratio (1: unseen real triples)")
    axes.set_title("quality and speed; larger points cover more of the data", fontsize=9)
    samples = [np.load(to / "rows" / f"{name}.npy") for name in rows]
    shown.imshow(sheets.image_sheet(np.concatenate(samples), columns=SHOWN), aspect="auto")
    height = len(samples)
    shown.set_yticks([(i + 0.5) / height * shown.get_ylim()[0] for i in range(height)])
    shown.set_yticklabels([values["title"] for values in rows.values()], fontsize=7)
    shown.set_xticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=pathlib.Path, default=pathlib.Path("runs/trilemma"), help="folder of all runs")
    parser.add_argument("--data", choices=DATA, default="stacked_digits")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "none"], default=[*ROWS])
    parser.add_argument("--num", type=int, default=NUM, help="samples of each row")
    parser.add_argument("--changes", nargs="*", default=[], help="KEY=VALUE of the configs, such as training.num_steps")
    parser.add_argument("--picture", type=pathlib.Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parsed(argv)
    kind, to, num = DATA[arguments.data], arguments.to, arguments.num
    more = dict(change.split("=", 1) for change in arguments.changes)
    judged = judge(kind, num)
    for name in arguments.rows:
        if name != "none":
            compute(name, kind, judged, to, num, more)
    done = {name: to / "rows" / f"{name}.json" for name in ROWS}
    rows = {name: json.loads(path.read_text()) for name, path in done.items() if path.exists()}
    found, kl = (floor(num, CLASSES**3) for floor in (modes.expected_modes, modes.kl_floor))
    print(
        f"{found:.1f} modes and KL {kl:.3f} are expected of {num} exact samples; the classifier recognises "
        f"{judged.accuracy:.1%} of real triples\n"
    )
    print(table(rows, judged.real))
    if arguments.picture and rows:
        picture(rows, arguments.picture, to)


if __name__ == "__main__":
    main()
