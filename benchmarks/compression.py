"""Pixels against latents of f = 2 and f = 4 on CIFAR-10 at equal training time: LDM's compression study, small.

    python -m benchmarks.compression --data=CIFAR --to=runs/compression --seconds=3600 --stage_seconds=1800

CIFAR is `cifar10_jpeg.npz` (a common JPEG header and one scan per image), or a folder with train.npz and test.npz
that hold `images` and `labels`. Three diffusion models are trained for the same number of seconds each on the same
machine: of pixels, of 16 x 16 x 3 latents and of 8 x 8 x 4 latents. On a CPU these are the seconds of all its cores,
added up, which other programs disturb less. The models are one U-Net, truncated at the resolution of its input: 32, 64
and 128 channels at 32, 16 and 8 pixels. The two first stages get `--stage_seconds` each, which the table states
separately, since one first stage serves many models.

The number of steps is computed from the speed of the first ones without compilation, so a run that is started again
resumes. `--spaces 2` does one part; the table has all parts in `--to` with the same number of steps and samples. The
Frechet distance is in features of a small classifier that is trained on the same data; that of test images is given for
comparison. Prints a Markdown table and writes it to table.md.
"""

import argparse
import io
import json
import pathlib
import time
from concurrent import futures

import jax
import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.config import build, from_file
from diffusion_jax.networks.functional import count_parameters
from diffusion_jax.run import evaluate
from diffusion_jax.run import train as trainer
from diffusion_jax.run.job import prepare
from diffusion_jax.run.parameters import fresh_state, load_params
from diffusion_jax.training import mesh as meshes
from diffusion_jax.training.step import make_train_step

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
STAGES = {
    2: dict(block_out_channels=(32, 64), latent_channels=3),
    4: dict(block_out_channels=(32, 64, 64), latent_channels=4),
}
WIDTHS = (32, 64, 128)  # channels at 32, 16 and 8 pixels
TIMED = 20  # steps


def arrays(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A folder with train.npz and test.npz."""
    if path.is_dir():
        return path
    if not (folder / "test.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with np.load(path, allow_pickle=False) as file:
            header, scans, offsets = file["header"].tobytes(), file["scans"], file["offsets"]
            labels, num_train = file["labels"], int(file["num_train"])

        def decode(i: int) -> np.ndarray:
            return np.asarray(PIL.Image.open(io.BytesIO(header + scans[offsets[i] : offsets[i + 1]].tobytes())))

        with futures.ThreadPoolExecutor() as pool:
            images = np.stack(list(pool.map(decode, range(len(labels)))))
        for name, part in (("train", slice(num_train)), ("test", slice(num_train, None))):
            np.savez(folder / f"{name}.npz", images=images[part], labels=labels[part].astype(np.int32))
    return folder


def shared(config: ConfigDict, folder: pathlib.Path, options: argparse.Namespace) -> ConfigDict:
    config.data = ConfigDict(
        dict(name="arrays", split="train", eval_split="test", image_size=32, channels=3, flip=True, path=str(folder))
    )
    config.training.batch_size = options.batch_size
    config.training.sample_every = 0
    config.evaluation.update(metrics=(), after_training=False, num_samples=options.samples)
    config.sampling.update(num_samples=64, batch_size=256)
    return config


def stage_config(f: int, folder: pathlib.Path, options: argparse.Namespace) -> ConfigDict:
    config = shared(from_file(f"{CONFIGS / 'autoencoder_kl.py'}:cifar10_f{f}"), folder, options)
    config.network.update(STAGES[f])
    config.system.discriminator.update(channels=32, start=2000)
    return config


def diffusion_config(f: int, stage: pathlib.Path, folder: pathlib.Path, options: argparse.Namespace) -> ConfigDict:
    """The config of a model of pixels (f = 1) or latents, whose U-Net has the levels from 32 / f pixels down to 8."""
    config = shared(from_file(f"{CONFIGS / 'latent_diffusion.py'}:cifar10_f2"), folder, options)
    widths = WIDTHS[{1: 0, 2: 1, 4: 2}[f] :]
    config.network.update(
        channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=options.blocks,
        attention_resolutions=(8,),
        num_groups=8,
        dropout=0.0,
    )
    config.system = ConfigDict(
        dict(name="diffusion") if f == 1 else dict(name="latent_diffusion", first_stage=str(stage))
    )
    config.solver = ConfigDict(dict(name="ddim"))
    config.sampling.steps = options.steps
    config.optimizer.update(learning_rate=4e-4, warmup_steps=200)
    config.ema.rates = (0.999,)
    return config


def clock() -> float:
    """A clock in seconds, whose differences are meaningful."""
    return time.process_time() if jax.default_backend() == "cpu" else time.monotonic()


def examples_per_second(config: ConfigDict) -> float:
    """Speed of the compiled train step with batches that are already on the devices."""
    job = prepare(config)
    with jax.set_mesh(job.mesh):
        step = make_train_step(job.system, job.optimizer, num_steps=TIMED, ema_rates=config.ema.rates)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(job.layout, None))
        batches = data.batches(job.source, batch_size=config.training.batch_size, seed=0)
        batch = next(data.device_batches(batches, meshes.batch_sharding(job.mesh)))
        state, _ = jitted(fresh_state(job), batch)
        jax.block_until_ready(state)
        began = clock()
        for _ in range(TIMED):
            state, _ = jitted(state, batch)
        jax.block_until_ready(state)
    return TIMED * config.training.batch_size / (clock() - began)


def train(config: ConfigDict, directory: pathlib.Path, seconds: float) -> float:
    """Train for as many steps as `seconds` allow, a number stored in the directory, and return examples per second."""
    file = directory / "speed.json"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"speed": examples_per_second(config)}))
    speed = json.loads(file.read_text())["speed"]
    config.training.num_steps = max(int(seconds * speed / config.training.batch_size), 1)
    config.training.checkpoint_every = max(config.training.num_steps // 20, 1)
    trainer.train(config, directory)
    reached = max(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())
    if reached < config.training.num_steps:
        raise SystemExit(f"{directory} is at step {reached}; the same command goes on")
    return speed


def seconds_to_sample(config: ConfigDict, directory: pathlib.Path, num: int) -> float:
    """Sampling time of `num` images with all steps and the decoding, without compilation."""
    job = prepare(config)
    with jax.set_mesh(job.mesh):
        params, _ = load_params(job, directory)
        job.system.sample(params, jax.random.key(1), num)
        began = clock()
        job.system.sample(params, jax.random.key(2), num)
        return clock() - began


def figures(config: ConfigDict, directory: pathlib.Path) -> dict:
    """Metrics of the trained model, evaluated once and then read from evaluation.json."""
    config.evaluation.metrics = ("classifier",)
    file = directory / "evaluation.json"
    wanted = dict(
        step=config.training.num_steps, num_samples=config.evaluation.num_samples, steps=config.sampling.steps
    )
    found = json.loads(file.read_text()) if file.exists() else {}
    if not wanted.items() <= found.items():
        evaluate.evaluate(config, directory)
        found = json.loads(file.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--to", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of training of each diffusion model")
    parser.add_argument("--stage_seconds", type=float, default=1800.0, help="of training of each first stage")
    parser.add_argument("--spaces", type=int, nargs="+", choices=(1, 2, 4), default=(1, 2, 4), help="f; 1 is pixels")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks per level")
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--samples", type=int, default=2000, help="number of samples to evaluate")
    options = parser.parse_args()
    folder = arrays(options.data, options.to / "data")
    for f in options.spaces:
        stage, run = options.to / f"kl_f{f}", options.to / f"diffusion_f{f}"
        first = {}
        if f > 1:
            config = stage_config(f, folder, options)
            train(config, stage, options.stage_seconds)
            first = figures(config, stage)
        config = diffusion_config(f, stage, folder, options)
        speed = train(config, run, options.seconds)
        found = figures(config, run)
        job = prepare(config)
        size = build.system(config).diffusion.shape if f > 1 else (32, 32, 3)
        row = [
            "pixels" if f == 1 else f"f = {f}",
            " x ".join(map(str, size)),
            f"{count_parameters(job.state.params['network']) / 1e6:.2f} M",
            f"{speed:.0f}",
            f"{config.training.num_steps * options.batch_size / 50_000:.1f}",
            f"{seconds_to_sample(config, run, 256):.1f} s",
            f"{found['classifier_frechet']:.2f}",
            f"{first['classifier_frechet']:.2f}, {first['held_out_psnr']:.1f} dB" if first else "",
            f"{found['classifier_frechet_real']:.2f}",
        ]
        (run / "row.json").write_text(json.dumps([options.steps, options.samples, row]))
    names = (
        "space",
        "size",
        "parameters",
        "examples per second",
        "epochs",
        f"256 samples, {options.steps} steps",
        f"Frechet distance, {options.samples} samples",
        "of reconstructions, PSNR",
        "of test images",
    )
    done = [options.to / f"diffusion_f{f}" / "row.json" for f in (1, 2, 4)]
    found = [json.loads(file.read_text()) for file in done if file.exists()]
    rows = [row for steps, samples, row in found if (steps, samples) == (options.steps, options.samples)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *rows])
    print(table)
    (options.to / "table.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
