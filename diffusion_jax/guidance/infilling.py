"""Infilling: tokens that are known are kept, and the others are drawn given them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.guidance.editing import Editing, Encode
from diffusion_jax.networks.conditions import Condition, Conditions, Request, numbers
from diffusion_jax.solvers.categorical import restored
from diffusion_jax.types import Cond, Needs, Process, Solver, Spec, check

UNKNOWN = -1  # the id of a token that is to be drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden:
    """What is known of a sequence whose tokens first..first + length - 1 are hidden; `first` -1 is the middle."""

    first: int
    length: int
    shape: tuple[int, ...]

    def split(self, known: Int[np.ndarray, "n size"]) -> tuple[Int[np.ndarray, "n size"], None]:
        """The ids themselves: what is hidden is said by their values."""
        return known, None

    def measure(self, x: Int[np.ndarray, "n size"]) -> Int[np.ndarray, "n size"]:
        """`x` with the id -1 for hidden tokens."""
        known = np.array(x)
        start = (known.shape[1] - self.length) // 2 if self.first < 0 else self.first
        known[:, start : start + self.length] = UNKNOWN
        return known


def infilling(first: int = -1, length: int = 16) -> Editing:
    """Draw `length` hidden tokens of each sequence, from the position `first` on (-1: the middle), given the others.

    The condition "known" holds the ids of a sequence, -1 where they are to be drawn: of held-out examples, or of texts
    in which config.sampling.cond has "_" for each hidden character. Known tokens are kept exactly. A masked process
    shows them as they are, so that the law of the others is exactly the conditional one of the solver and D.

    Raises ValueError for a length that is not positive, and for sequences that are too short.
    """
    check(length >= 1, "length", length, "at least 1")
    check(first >= -1, "first", first, "at least 0, or -1 for the middle")

    def start(
        process: Process,
        encode: Encode,
        keys: Key[Array, "batch"],
        x_T: Int[Array, "batch size"],
        times: Float[Array, "num_times"],
        cond: Cond,
    ) -> tuple[Array, Array]:
        known = _known(cond, x_T)
        return jnp.where(known == UNKNOWN, x_T, known), times

    def around(solver: Solver, cond: Cond) -> Solver:
        if not cond or "known" not in cond:
            return solver
        known = jnp.asarray(cond["known"])
        return restored(solver, known != UNKNOWN, known)

    def conditions(shape: tuple[int, ...]) -> Conditions:
        hidden = Hidden(first=first, length=length, shape=shape)
        condition = Condition(Spec(shape, "int32"), UNKNOWN, _read, separator="|", optional=True, operator=hidden)
        return Conditions({"known": condition})

    def check_sizes(steps: int, solver: Solver, shape: tuple[int, ...]) -> None:
        if not solver.needs.categorical:
            raise ValueError("infilling is for tokens, under a categorical process; editing images is replacement")
        end = max(first, 0) + length
        if end > shape[0]:
            raise ValueError(f"the hidden tokens end at {end}, and a sequence has {shape[0]}")

    return Editing(
        start=start, around=around, conditions=conditions, check=check_sizes, needs=Needs(categorical=("masked",))
    )


def _known(cond: Cond, x_T: Array) -> Array:
    return jnp.full_like(x_T, UNKNOWN) if not cond or "known" not in cond else jnp.asarray(cond["known"])


def _read(request: Request, values: Any, spec: Spec) -> np.ndarray:
    """Ids of texts in which "_" stands for a hidden token, or of arrays of ids."""
    texts = all(isinstance(value, str) for value in values)
    return np.asarray(request.tokenize(list(values)), np.int32) if texts else numbers(request, values, spec)
