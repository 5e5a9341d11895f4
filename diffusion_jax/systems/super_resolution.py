"""Super-resolution with conditioning augmentation, and cascades of diffusion models (arXiv:2106.15282)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes import row_keys, row_normal
from diffusion_jax.processes.base import bcast
from diffusion_jax.systems.base import entries
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, System, Train, check

IMAGE, LEVEL = "image", "vector"  # conditions of the network: the smaller image with its noise, and the level of that


class Base(NamedTuple):
    """The model of the smaller images, and how its parameters are loaded."""

    system: System
    load: Callable[[], Params]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolution(OnDiffusion):
    """Train and sample `diffusion` given a smaller image y, to which noise was added. See `types.System`.

    The network receives z = alpha(s) y + sigma(s) eps and the level s, alpha and sigma being those of the process of
    `diffusion`. In training s is uniform in `levels` for each row (non-truncated conditioning augmentation,
    arXiv:2106.15282), in sampling it is `level`. A network that saw samples of another model as if they were
    data would copy their faults; noise hides these. At s = 0 z is y, at s = 1 it is noise, and samples are
    unconditional. With levels (0, 0) no noise is added and the network does not read a level.

    Another augmentation, of stages of more pixels, is a blur: in training y is `blurred` with a standard deviation that
    is uniform in `blur`, in half of the rows. The network is not conditioned on it, and in sampling there is none.

    With a `base` samples need no image: row r is drawn from the base with the same key and ids[r], so that it is the
    sample of the base itself, limited to [-1, 1], and enlarged. Every stage has noise of its own: the key of one that
    makes images of height h is fold_in(key, h). A base may have a base. Its parameters are not those of this system,
    and are loaded once by `numbers`.
    """

    diffusion: Diffusion
    levels: tuple[float, float] = (0.0, 0.0)
    level: float = 0.0
    blur: tuple[float, float] = (0.0, 0.0)
    base: Base | None = None
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.levels
        check(0 <= low <= high <= 1, "levels", self.levels, "two times with 0 <= low <= high <= 1")
        check(0 <= self.level <= high, "level", self.level, f"in 0..{high}, the levels of training")
        check(0 <= self.blur[0] <= self.blur[1], "blur", self.blur, "two standard deviations with 0 <= low <= high")
        conditions = self.diffusion.network_conditions
        if IMAGE not in conditions:
            raise ValueError("the network has no condition 'image', the smaller image")
        read = conditions[LEVEL].spec.shape if LEVEL in conditions else ()
        if self.augmented != (read == (1,)):
            raise ValueError(
                f"levels={self.levels} {'needs a network that reads one number' if self.augmented else 'has no level'}"
                f", and the condition 'vector' of the network has the shape {read or 'of none'}"
            )
        if self.base is not None and self.base.system.makes != Spec(conditions.image_shape, modality="image"):
            raise ValueError(
                f"the base makes {self.base.system.makes}, and the network enlarges images of {conditions.image_shape}"
            )

    @property
    def augmented(self) -> bool:
        """Whether the smaller image has noise, whose level the network reads."""
        return self.levels[1] > 0

    def init(self, key: Key[Array, ""]) -> Params:
        return self.diffusion.init(key)

    @property
    def network_conditions(self) -> Conditions:
        """The conditions of a batch: those of the network without the level."""
        return _without(self.diffusion.network_conditions, *([LEVEL] if self.augmented else []))

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.makes, self.network_conditions)

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples: with a base its own instead of the smaller image."""
        own = _without(self.diffusion.conditions, *([LEVEL] if self.augmented else []))
        if self.base is not None:
            return _without(own, IMAGE) | self.base.system.conditions
        return Conditions({**own, IMAGE: own[IMAGE]._replace(start="paired")})

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The loss of the diffusion model, at a random level in each row; without `train` at the level of sampling."""
        loss_key, level_key, noise_key, blur_key = jax.random.split(key, 4)
        rows = jnp.arange(len(batch["x"]))
        s = jnp.full(len(rows), self.level)
        if train is not None:
            s = _uniform(row_keys(level_key, rows), self.levels)
            if self.blur[1] > 0:
                batch = {**batch, IMAGE: self._sometimes_blurred(blur_key, batch[IMAGE])}
        return self.diffusion.loss(params, loss_key, self._noised(row_keys(noise_key, rows), s, batch), train)

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        return self.diffusion.advance(params, train, metrics)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out examples at the level of sampling, see `Diffusion.evaluate`."""
        key, noise_key = jax.random.split(key)
        keys = row_keys(noise_key, jnp.arange(len(batch["x"])))
        return self.diffusion.evaluate(params, key, self._at_level(keys, batch))

    def numbers(self) -> PyTree[Array]:
        """Parameters of guidance, and of the base with those of its own guidance; loaded once, outside of `jit`."""
        own = {"guidance": self.diffusion.numbers()}
        if self.base is None:
            return own
        return own | {"base": self.base.load(), "of_base": self.base.system.numbers()}

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw the smaller images from the base, if there is one, and enlarge them. Pure, for use under `jit`."""
        numbers = self.numbers() if numbers is None else numbers
        if self.base is not None:
            base = self.base.system
            smaller = base.draw(numbers["base"], key, ids, base.conditions.of(cond), numbers["of_base"])["samples"]
            cond, key = {**(cond or {}), IMAGE: jnp.clip(smaller, -1, 1)}, jax.random.fold_in(key, self.makes.shape[0])
        cond = self._at_level(row_keys(jax.random.fold_in(key, 2), ids), cond)
        return self.diffusion.draw(params, key, ids, cond, numbers["guidance"])

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) that solvers call, for the smaller images of `cond` at the level of sampling.

        The noise of the image in row r is that of fold_in(key(0), r).
        """
        keys = row_keys(jax.random.key(0), jnp.arange(len(cond[IMAGE])))
        guidance = None if numbers is None else numbers["guidance"]
        return self.diffusion.denoiser(params, self._at_level(keys, cond), guidance)

    def evaluations(self) -> int | None:
        """Evaluations of both networks for one sample (NFE); None where one of them is not known."""
        own, base = self.diffusion.evaluations(), self.base.system.evaluations() if self.base else 0
        return None if own is None or base is None else own + base

    def _at_level(self, keys: Key[Array, "batch"], cond: Cond) -> dict[str, Array]:
        return self._noised(keys, jnp.full(len(cond[IMAGE]), self.level), cond)

    def _sometimes_blurred(self, key: Key[Array, ""], y: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """y, in half of the rows blurred. Row r uses fold_in(key, r)."""
        keys = row_keys(key, jnp.arange(len(y)))
        chosen = jax.vmap(jax.random.bernoulli)(row_keys(keys, 1))
        return jnp.where(bcast(chosen, y), blurred(y, _uniform(row_keys(keys, 0), self.blur)), y)

    def _noised(self, keys: Key[Array, "batch"], s: Float[Array, "batch"], cond: Cond) -> dict[str, Array]:
        """`cond` with the image at level s and this level, if there is augmentation. Row r uses keys[r]."""
        if not self.augmented:
            return dict(cond)
        y, process = cond[IMAGE], self.diffusion.process
        z = bcast(process.alpha(s), y) * y + bcast(process.sigma(s), y) * row_normal(keys, y)
        return {**cond, IMAGE: z, LEVEL: s[:, None]}


def blurred(y: Float[Array, "batch h w c"], std: Float[Array, "batch"]) -> Float[Array, "batch h w c"]:
    """y filtered by 3 x 3 pixels of a Gaussian, in each row of its standard deviation; borders are reflected."""
    beside = bcast(jnp.exp(-0.5 / jnp.maximum(std, 1e-3) ** 2), y)
    for axis in (1, 2):
        padded = jnp.pad(y, [(0, 0), *((1, 1) if axis == i else (0, 0) for i in (1, 2)), (0, 0)], mode="reflect")
        before, after = (jax.lax.slice_in_dim(padded, start, start + y.shape[axis], axis=axis) for start in (0, 2))
        y = (y + beside * (before + after)) / (1 + 2 * beside)
    return y


def _uniform(keys: Key[Array, "batch"], ends: tuple[float, float]) -> Float[Array, "batch"]:
    return jax.vmap(lambda key: jax.random.uniform(key, (), minval=ends[0], maxval=ends[1]))(keys)


def _without(conditions: Conditions, *names: str) -> Conditions:
    return Conditions({name: condition for name, condition in conditions.items() if name not in names})
