"""--mode=encode of a diffusion autoencoder: codes, reconstructions, interpolation, and a walk between two classes.

    python -m diffusion_jax.main --config=configs/diffae.py --workdir=runs/diffae --mode=encode --to=runs/diffae_codes

It writes to the folder `--to`

- `codes.npz`: the standardised codes of config.data.split, "codes" [n, d], with "label" if there are classes, and those
  of the held-out split, "held_out_codes" and "held_out_label";
- `reconstructions.png` and `.npz`: held-out images, decoded from their own x_T and from random ones;
- `interpolation.png` and `.npz`: pairs of held-out images and what is decoded between them, from lerp of z and slerp of
  x_T;
- with classes, `manipulation.png` and `.npz`: held-out images of the class config.system.attribute[0], decoded from
  their own x_T and a code moved towards the class config.system.attribute[1], along the direction of a linear
  classifier; at 1 the mean code of the one class has the projection of that of the other;
- `encoding.json`: PSNR of the reconstructions, and the accuracy of the linear classifier on held-out codes.

config.sampling.num_samples held-out images are reconstructed, with the solver and the steps of config.sampling.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.config.sections import ConfigError
from diffusion_jax.evaluation import probe, sheets
from diffusion_jax.evaluation.reconstruction import psnr
from diffusion_jax.run.job import Job
from diffusion_jax.run.report import say
from diffusion_jax.solvers.interpolation import lerp, slerp
from diffusion_jax.training.faults import replacing
from diffusion_jax.training.rows import in_batches
from diffusion_jax.types import Params

ROLE = "diffusion_autoencoder"  # of the runs that have such codes
_PAIRS, _BETWEEN, _SHOWN = 8, 7, 16  # interpolated pairs, images between each, manipulated or reconstructed images
_CHUNK = 1024  # images that are read at once
SCALES = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # of manipulations, in units of the way from class to class


class Coder:
    """The maps of a trained diffusion autoencoder between images, standardised codes and stochastic codes, in batches.

    Arrays are NumPy's, [n, ...]; row r of a random decoding depends on r and `seed` alone.
    """

    def __init__(self, job: Job, params: Params) -> None:
        system, self._job = job.system, job
        seed = jax.random.key(job.config.sampling.seed)

        def mapped(function: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
            compiled = jax.jit(lambda params, ids, rows: function(params, ids, **rows))

            def call(**rows: np.ndarray) -> np.ndarray:
                num = len(next(iter(rows.values())))
                with jax.set_mesh(job.mesh):
                    return in_batches(
                        lambda ids, given: compiled(params, ids, given), num, job.config.sampling.batch_size, rows
                    )

            return call

        raw = system.raw
        self._encode = mapped(lambda params, ids, x: system.standardised(params, system.encode(params, x)))
        self._infer = mapped(lambda params, ids, x, z: system.infer(params, x, raw(params, z)))
        self._decode = mapped(lambda params, ids, z, x_T: system.decode(params, seed, ids, raw(params, z), x_T))
        self._draw = mapped(lambda params, ids, z: system.decode(params, seed, ids, raw(params, z)))

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Standardised codes of images."""
        return self._encode(x=x)

    def infer(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Stochastic codes of images with the standardised codes z."""
        return self._infer(x=x, z=z)

    def decode(self, z: np.ndarray, x_T: np.ndarray | None = None) -> np.ndarray:
        """Images of standardised codes, from x_T or from random noise, limited to [-1, 1]."""
        return np.clip(self._draw(z=z) if x_T is None else self._decode(z=z, x_T=x_T), -1, 1)

    def between(self, x: np.ndarray, other: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """[n, len(weights), ...]: what is decoded from lerp of the codes and slerp of the stochastic codes of pairs."""
        z, y = self.encode(x), self.encode(other)
        codes, noise = lerp(z, y, weights), slerp(self.infer(x, z), self.infer(other, y), weights)
        flat = (np.asarray(a).reshape(-1, *a.shape[2:]) for a in (codes, noise))
        return self.decode(*flat).reshape(len(weights), *x.shape).swapaxes(0, 1)

    def manipulated(self, x: np.ndarray, step: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """[n, len(scales), ...]: images decoded from their own x_T and their standardised codes plus scale * step."""
        z = self.encode(x)
        codes = z[:, None] + np.asarray(scales, z.dtype)[:, None] * step.astype(z.dtype)
        noise = np.repeat(self.infer(x, z), len(scales), axis=0)
        return self.decode(codes.reshape(-1, z.shape[1]), noise).reshape(len(x), len(scales), *x.shape[1:])


def way(z: np.ndarray, labels: np.ndarray, direction: np.ndarray, source: int, target: int) -> np.ndarray:
    """The step along the unit vector `direction` after which the mean code of one class is level with the other's."""
    return direction * float(probe.mean_difference(z, labels, source, target) @ direction)


def write(job: Job, params: Params, to: pathlib.Path) -> None:
    """Write the files above to the folder `to`. Raises ConfigError for classes that the data does not have."""
    system, coder, num = job.system, Coder(job, params), job.config.sampling.num_samples
    num_classes = job.source.num_classes
    if num_classes and max(system.attribute) >= num_classes:
        raise ConfigError(
            f"config.system.attribute={system.attribute!r} must be two of the {num_classes} classes of "
            f"config.data.name={job.config.data.name!r}"
        )
    arrays = _codes(coder, job.source) | {f"held_out_{k}": v for k, v in _codes(coder, job.held_out).items()}
    _save(to / "codes.npz", arrays)
    z = arrays["codes"]
    values: dict[str, Any] = {"num": len(z), "code_dim": z.shape[1]}

    test = data.shuffled(job.held_out, num)
    x, code = test["x"], coder.encode(test["x"])
    own, random = coder.decode(code, coder.infer(x, code)), coder.decode(code)
    values |= {"psnr": float(psnr(x, own).mean()), "psnr_random": float(psnr(x, random).mean())}
    _save(to / "reconstructions.npz", {"original": x, "inferred": own, "random": random})
    rows = np.concatenate([panel[:_SHOWN] for panel in (x, own, random)])
    sheets.image_sheet(rows, columns=min(_SHOWN, len(x)), path=to / "reconstructions.png")

    half = min(_PAIRS, -(-len(x) // 2))
    first, second = x[:half], x[-half:]
    inner = coder.between(first, second, np.linspace(0, 1, _BETWEEN + 2)[1:-1].astype(np.float32))
    _save(to / "interpolation.npz", {"first": first, "between": inner, "second": second})
    _sheet(np.concatenate([first[:, None], inner, second[:, None]], 1), to / "interpolation.png")

    if num_classes:
        classifier = probe.fit(z, arrays["label"], num_classes)
        source, target = system.attribute
        direction = classifier.direction(source, target)
        values["probe_accuracy"] = classifier.accuracy(arrays["held_out_codes"], arrays["held_out_label"])
        chosen = x[test["label"] == source][:_SHOWN]
        if len(chosen):
            step = way(z, arrays["label"], direction, source, target)
            walk = coder.manipulated(chosen, step, np.array(SCALES))
            _save(to / "manipulation.npz", {"original": chosen, "manipulated": walk, "scales": SCALES, "step": step})
            _sheet(np.concatenate([chosen[:, None], walk], 1), to / "manipulation.png")
    with replacing(to / "encoding.json", "w") as file:
        file.write(json.dumps(values, indent=2) + "\n")
    say(f"{len(z)} codes of {z.shape[1]} numbers in {to}", *(f"  {name} {value}" for name, value in values.items()))


def _codes(coder: Coder, source: data.Source) -> dict[str, np.ndarray]:
    """The standardised codes of a split, with labels if there are any; only a part of the images is in memory."""
    parts = []
    for start in range(0, len(source), _CHUNK):
        rows = source.batch(np.arange(start, min(start + _CHUNK, len(source))))
        labels = {"label": np.asarray(rows["label"])} if source.num_classes else {}
        parts.append({"codes": coder.encode(np.asarray(rows["x"])), **labels})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _save(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    with replacing(path) as file:
        np.savez(file, **arrays)


def _sheet(rows: np.ndarray, path: pathlib.Path) -> None:
    """One row of images per entry of rows [n, k, ...]."""
    sheets.image_sheet(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1], path=path)
