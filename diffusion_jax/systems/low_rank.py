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

from diffusion_jax.systems.adapted import Adapted
from diffusion_jax.systems.base import at, replaced_at
from diffusion_jax.types import Params, System, Train

TEXT = "text_lora"  # group of the factors of text encoders


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
class LowRank(Adapted):
    """A system that trains low-rank updates of the network of `system`, whose own kernels are frozen.

    Parameters are {"lora": factors, "frozen": {"network": W, ...}} and the other groups of `system`; `merged` returns
    the parameters of `system`. Of the network, gradients, EMA and optimizer see the factors only. With `text_modules`
    the text encoders, which are frozen in `system`, have updates too: {"text_lora": {"text_encoder": factors, ...}}.
    """

    system: System
    rank: int
    alpha: float  # 0: the same as `rank`
    modules: str
    text_modules: str = ""  # of the text encoders; "": these have no updates

    @property
    def scale(self) -> float:
        """alpha / rank, the factor of A B."""
        return (self.alpha or self.rank) / self.rank

    def updated(self) -> dict[str, tuple[str, ...]]:
        """The path of each text encoder with updates among the parameters of `system`, by its public name."""
        return text_encoders(self.system) if self.text_modules else {}

    def init(self, key: Key[Array, ""]) -> Params:
        system_key, key = jax.random.split(key)
        return self.adopt(key, self.system.init(system_key))

    def adopt(self, key: Key[Array, ""], params: Params) -> Params:
        """Returns the parameters at step 0 for the parameters `params` of `system`."""
        key, text_key = jax.random.split(key)
        factors = init(key, params["network"], rank=self.rank, modules=self.modules)
        frozen = {**params.get("frozen", {}), "network": params["network"]}
        adopted = {**{g: tree for g, tree in params.items() if g != "network"}, "lora": factors, "frozen": frozen}
        paths = self.updated()
        if not paths:
            return adopted
        drawn = {}
        for i, (name, path) in enumerate(paths.items()):
            own = jax.random.fold_in(text_key, i)
            drawn[name] = init(own, at(params, path), rank=self.rank, modules=self.text_modules)
        return {**adopted, TEXT: drawn}

    def merged(self, params: Params) -> Params:
        """Returns the parameters of `system`, with the updates in the kernels of its networks."""
        network = merge(params["frozen"]["network"], params["lora"], self.scale)
        frozen = {name: tree for name, tree in params["frozen"].items() if name != "network"}
        others = {group: tree for group, tree in params.items() if group not in ("lora", TEXT, "frozen")}
        whole = {**others, "network": network, **({"frozen": frozen} if frozen else {})}
        for name, path in self.updated().items():
            whole = replaced_at(whole, path, merge(at(whole, path), params[TEXT][name], self.scale))
        return whole

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """Advance the parameters of `system` except for the network and text encoders with updates."""
        after = self.system.advance(self.merged(params), train, metrics)
        others = {group: tree for group, tree in after.items() if group not in ("network", "frozen")}
        frozen = {"frozen": {**after.get("frozen", {}), "network": params["frozen"]["network"]}}
        for path in self.updated().values():
            frozen = replaced_at(frozen, path, at(params, path))
        return {**params, **others, **frozen}


def text_encoders(system: System) -> dict[str, tuple[str, ...]]:
    """The paths of the frozen text encoders of a system, by their public names."""
    paths = {name: placed.path for name, placed in system.networks.items()}
    return {name: path for name, path in paths.items() if path[:2] == ("frozen", "text")}


def learner(section: Mapping[str, Any], system: System) -> System:
    """Returns the system that is trained: `system`, or if section["rank"] > 0 `LowRank` updates of it.

    `section` has the entries rank, alpha, modules and optionally text_modules, and may come from a file. Raises
    ValueError for values of a wrong type or out of range, or text_modules of a system without text encoders.
    """
    rank, alpha, modules, text_modules = (section.get(key, "") for key in ("rank", "alpha", "modules", "text_modules"))
    for name, value, kinds in (
        ("rank", rank, int),
        ("alpha", alpha, int | float),
        ("modules", modules, str),
        ("text_modules", text_modules, str),
    ):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r} has the type {type(value).__name__}")
    if rank < 1:
        return system
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be at least 0 and finite")
    options = dict(rank=rank, alpha=float(alpha), modules=modules, text_modules=text_modules)
    learner, shapes = LowRank(system=system, **options), jax.eval_shape(system.init, jax.random.key(0))
    if "network" not in shapes:
        raise ValueError(f"rank={rank} must be 0 for a system that trains no network")
    targets(shapes["network"], modules)
    if text_modules and not learner.updated():
        raise ValueError(
            f"text_modules={text_modules!r} must be empty for a system without text encoders; it has "
            f"{', '.join(system.networks) or 'no networks of its own'}"
        )
    for name, path in learner.updated().items():
        try:
            targets(at(shapes, path), text_modules)
        except ValueError as error:
            raise ValueError(f"text_modules, {name}: {error}") from error
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
