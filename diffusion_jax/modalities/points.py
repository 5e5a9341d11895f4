"""Points in the plane: drawn as a scatter plot next to the score and the exact density, compared with exact draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffusion_jax import data
from diffusion_jax.evaluation import points, sheets
from diffusion_jax.modalities.base import Drawn, Evaluation, Metric, Modality, Views, Words, held_out, need, transport

_DRAWN = ("log_density", "score")


def picture(drawn: Drawn, words: Words, views: Views) -> UInt8[np.ndarray, "height width 3"] | None:
    """The points, and of `views` the exact "log_density" [n, 2] -> [n] and the learned "score" [n, 2] -> [n, 2].

    None if a point is not finite.
    """
    samples = np.asarray(drawn["samples"])
    if not np.isfinite(samples).all():
        return None
    return sheets.scatter_sheet({"samples": samples}, **{name: views[name] for name in _DRAWN if name in views})


def _toy(evaluation: Evaluation) -> Metric:
    need(evaluation, "points", "points in the plane")

    def metric(drawn: Drawn) -> dict[str, Any]:
        source = held_out(evaluation)
        reference = data.arrays(source, 2 * len(drawn["samples"]))["x"]
        exact = source.facts["mixture"]._asdict() if "mixture" in source.facts else {}
        return points.toy_metrics(drawn["samples"], reference, **exact)

    return metric


POINTS = Modality(
    picture=picture, views=("score",), metrics={"toy": _toy, "transport": transport}, usual=("toy", "transport")
)
