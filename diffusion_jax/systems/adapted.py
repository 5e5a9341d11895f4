"""Base class of systems that train another parameterization of a system: a few new parameters, the rest frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.types import Cond, Params, Placed, Spec, System, Train


class Adapted:
    """A system with other parameters than `system`, which does all that it does with `merged(params)`.

    A subclass is a frozen dataclass with `system` among its fields, and defines `init`, `merged` and `advance`.
    """

    system: System

    def merged(self, params: Params) -> Params:
        """Returns the parameters of `system`."""
        raise NotImplementedError

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, PyTree[Array]]]:
        return self.system.loss(self.merged(params), key, batch, train)

    @property
    def batch(self) -> Mapping[str, Spec]:
        return self.system.batch

    @property
    def conditions(self) -> Any:
        return self.system.conditions

    @property
    def makes(self) -> Spec | None:
        return self.system.makes

    @property
    def networks(self) -> Mapping[str, Placed]:
        return self.system.networks

    def numbers(self) -> PyTree[Array]:
        return self.system.numbers()

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Array, cond: Cond, numbers: PyTree[Array]
    ) -> dict[str, Array]:
        return self.system.draw(self.merged(params), key, ids, cond, numbers)

    def sample(
        self, params: Params, key: Key[Array, ""], num: int, cond: Cond = None, **options: Any
    ) -> dict[str, Any]:
        return self.system.sample(self.merged(params), key, num, cond, **options)

    def evaluations(self) -> int | None:
        """Evaluations of the network for one sample (NFE); None where it is not known."""
        return self.system.evaluations()

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Any]:
        return self.system.evaluate(self.merged(params), key, batch)
