"""LoRA: fine-tuning of any network by low-rank updates (arXiv:2106.09685).

The kernel W of a layer becomes W + (alpha / rank) A B with factors "down", A [in, rank], and "up", B [rank, out]. B is
zero at step 0. For a convolution A has the window of W, and B is a 1 x 1 convolution. A and B are trained, W is frozen.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from diffusion_jax.types import Cond, Params, Placed, Spec, System, Train


def targets(network: PyTree[Any], modules: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of the kernels of `network` whose module name, "blocks.0.attn.qkv", matches a regular expression.

    `modules` is searched for anywhere in the name. Raises ValueError if nothing matches or it is not a valid regular
    expression.
    """
    try:
        pattern = re.compile(modules)
    except re.error as error:
        raise ValueError(f"modules={modules!r} is no regular expression: {error}") from error
    layers = {path: leaf.shape for path, leaf in _kernels(network, ())}
    matches = {path: shape for path, shape in layers.items() if pattern.search(".".join(path))}
    if not matches:
        names = [".".join(path) for path in layers]
        raise ValueError(f"modules={modules!r} is found in no layer of the network; it has layers such as {names[:8]}")
    return matches


def init(key: Key[Array, ""], network: PyTree[Any], *, rank: int, modules: str) -> Params:
    """Initialise the factors, {"blocks": {... "qkv": {"down": A, "up": B}}}: A ~ U(-1, 1) / sqrt(fan_in), B = 0.

    Raises ValueError for a rank below 1, and what `targets` raises.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    shapes = targets(network, modules)
    factors: dict[str, Any] = {}
    for path, layer_key in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        *window, c_in, c_out = shapes[path]
        bound = 1 / math.sqrt(math.prod((*window, c_in)))
        down = jax.random.uniform(layer_key, (*window, c_in, rank), minval=-bound, maxval=bound)
        _put(factors, path, {"down": down, "up": jnp.zeros((rank, c_out))})
    return factors


def merge(network: PyTree[Any], factors: PyTree[Any], scale: float | Float[Array, ""]) -> Params:
    """Returns `network` with the kernels W + scale A B instead of W in the layers that have factors."""
    if set(factors) == {"down", "up"}:
        update = jnp.einsum("...r,ro->...o", factors["down"], factors["up"])
        kernel = network["kernel"]
        return {**network, "kernel": kernel + (scale * update).astype(kernel.dtype)}
    return {**network, **{name: merge(network[name], tree, scale) for name, tree in factors.items()}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """A system that trains low-rank updates of the network of `system`, whose own kernels are frozen.

    Parameters are {"lora": factors, "frozen": {"network": W, ...}} and the other groups of `system`; `merged` returns
    the parameters of `system`. Of the network, gradients, EMA and optimizer see the factors only.
    """

    system: System
    rank: int
    alpha: float  # 0: the same as `rank`
    modules: str

    @property
    def scale(self) -> float:
        """alpha / rank, the factor of A B."""
        return (self.alpha or self.rank) / self.rank

    def init(self, key: Key[Array, ""]) -> Params:
        system_key, key = jax.random.split(key)
        return self.adopt(key, self.system.init(system_key))

    def adopt(self, key: Key[Array, ""], params: Params) -> Params:
        """Returns the parameters at step 0 for the parameters `params` of `system`."""
        factors = init(key, params["network"], rank=self.rank, modules=self.modules)
        frozen = {**params.get("frozen", {}), "network": params["network"]}
        return {**{g: tree for g, tree in params.items() if g != "network"}, "lora": factors, "frozen": frozen}

    def merged(self, params: Params) -> Params:
        """Returns the parameters of `system`, with the updates in the kernels of its network."""
        network = merge(params["frozen"]["network"], params["lora"], self.scale)
        frozen = {name: tree for name, tree in params["frozen"].items() if name != "network"}
        others = {group: tree for group, tree in params.items() if group not in ("lora", "frozen")}
        return {**others, "network": network, **({"frozen": frozen} if frozen else {})}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, PyTree[Array]]]:
        return self.system.loss(self.merged(params), key, batch, train)

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """Advance the parameters of `system` except for the network."""
        after = self.system.advance(self.merged(params), train, metrics)
        others = {group: tree for group, tree in after.items() if group not in ("network", "frozen")}
        frozen = {**after.get("frozen", {}), "network": params["frozen"]["network"]}
        return {**params, **others, "frozen": frozen}

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

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Any]:
        return self.system.evaluate(self.merged(params), key, batch)


def learner(section: Mapping[str, Any], system: System) -> System:
    """Returns the system that is trained: `system`, or if section["rank"] > 0 `LowRank` updates of it.

    `section` has the entries rank, alpha and modules, and may come from a file. Raises ValueError for values of a wrong
    type or out of range.
    """
    rank, alpha, modules = section["rank"], section["alpha"], section["modules"]
    for name, value, kinds in (("rank", rank, int), ("alpha", alpha, int | float), ("modules", modules, str)):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r} has the type {type(value).__name__}")
    if rank < 1:
        return system
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be at least 0 and finite")
    learner = LowRank(system=system, rank=rank, alpha=float(alpha), modules=modules)
    targets(jax.eval_shape(system.init, jax.random.key(0))["network"], modules)
    return learner


def plain(learner: System, system: System, params: Params) -> Params:
    """Returns the parameters of `system`, which `learner` trains, with low-rank updates merged into its network."""
    return params if learner is system else jax.jit(learner.merged)(params)


def _kernels(tree: PyTree[Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, node in tree.items():
        if name == "kernel" and len(node.shape) >= 2:
            yield path, node
        elif isinstance(node, Mapping):
            yield from _kernels(node, (*path, name))


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
