"""Base class of the systems: `sample` on top of `draw`, and defaults for the optional members of `types.System`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.solvers.values import warn_not_finite
from diffusion_jax.training.rows import in_batches
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train, check, check_key

NO_NETWORKS: Mapping[str, Placed] = {}


class Sampled:
    """Base class of systems: `sample` on top of `draw`, and defaults for the members that a system may leave out.

    A subclass is a frozen dataclass with the fields that its own equations need. `types.System` describes the members.
    """

    batch_size: int = 128  # number of samples that are drawn at once
    networks: Mapping[str, Placed] = NO_NETWORKS

    @property
    def conditions(self) -> Conditions:
        """The conditions that samples are drawn under."""
        return NO_CONDITIONS

    @property
    def makes(self) -> Spec | None:
        """Spec of one sample; None for a system that draws no samples."""
        return None

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """Returns the parameters unchanged: every change of this system comes from a gradient."""
        return params

    def numbers(self) -> PyTree[Array]:
        """Arrays that `draw` needs and that are loaded once, outside of `jit`, such as the parameters of guidance."""
        return {}

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array]
    ) -> dict[str, Array]:
        """Raises NotImplementedError: this system draws no samples."""
        raise NotImplementedError(f"{type(self).__name__} draws no samples")

    def sample(
        self,
        params: Params,
        key: Key[Array, ""],
        num: int,
        cond: Cond = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """Draw `num` samples.

        Returns {"samples": [num, *shape], ...} with the conditions of the samples by name, {} for a system that draws
        no samples. Sample i depends on fold_in(key, i) and cond[i] only, not on the batch size or the mesh. Without
        `cond`, a system whose only condition is the class cycles through the classes. `progress(n)` is called when n
        samples are drawn, after each batch.

        Raises ValueError for no samples, a missing condition, a wrong shape, ids out of range, or a number of rows that
        is not `num`; TypeError for a key that is not typed.
        Warns of samples that are not finite.
        """
        if self.makes is None:
            return {}
        check_key(key)
        check(num >= 1, "num", num, "at least 1")
        cond = checked(self.conditions, cond, num)
        draw = functools.partial(self._draw, params, key, self.numbers())
        drawn = in_batches(draw, num, self.batch_size, cond, progress)
        warn_not_finite("samples", drawn["samples"])
        return {**drawn, **{name: value for name, value in (cond or {}).items() if name != "x"}}

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) that solvers call, under `cond`. Raises NotImplementedError: this system has none."""
        raise NotImplementedError(f"{type(self).__name__} has no denoiser")

    def evaluations(self) -> int | None:
        """Evaluations of the network for one sample (NFE); None where it is not known."""
        return None

    @functools.cached_property
    def _draw(self) -> Callable[..., dict[str, Array]]:
        return jax.jit(lambda params, key, numbers, ids, cond: self.draw(params, key, ids, cond, numbers))


def checked(conditions: Conditions, cond: Cond, num: int) -> dict[str, np.ndarray] | None:
    """Returns the `conditions` of `num` samples, taken from `cond`; None for an unconditional system.

    Raises ValueError for a missing condition, a wrong shape, ids out of range, or a number of rows that is not `num`.
    """
    if cond is None and set(conditions.shapes) == {"label"}:
        cond = {"label": np.arange(num) % conditions.num_classes}
    if not conditions or (cond is None and all(condition.optional for condition in conditions.values())):
        return None
    cond = {name: np.asarray(value) for name, value in (conditions.of(cond or {}) or {}).items()}
    conditions.check(cond)
    short = [name for name, value in cond.items() if len(value) != num]
    if short:
        raise ValueError(f"condition {short[0]!r} has {len(cond[short[0]])} rows for {num} samples")
    return cond


def entries(x: Spec, conditions: Conditions) -> dict[str, Spec]:
    """Specs of the entries of a batch: the example `x`, and the conditions that training reads with it."""
    return {"x": x, **conditions.specs}


def at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The entry of a nested dict of parameters at `path`."""
    return functools.reduce(lambda node, name: node[name], path, tree)


def replaced_at(tree: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of a nested dict of parameters with `value` at `path`."""
    name, *rest = path
    return {**tree, name: replaced_at(tree.get(name, {}), tuple(rest), value) if rest else value}
