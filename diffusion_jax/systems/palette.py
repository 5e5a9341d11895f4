"""Palette: one diffusion model for several image-to-image tasks, such as colorization and inpainting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from diffusion_jax import parameterizations
from diffusion_jax.guidance.editing import with_mask
from diffusion_jax.networks.conditions import Condition, Conditions, Describe, Request, image
from diffusion_jax.processes import row_keys, row_normal, sampling_keys
from diffusion_jax.systems.base import entries
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import LUMA, Apply, Cond, Denoiser, Params, Placed, Spec, Train, check

IMAGE, MASK, TASK = "image", "mask", "task"  # conditions of a batch and of samples
LABEL, HOLE = "label", "hole"  # conditions of the network: the number of the task, and 1 where nothing is known
EVERYTHING = "everything"  # a mask in a file of requests, where there is no hole


class Task(NamedTuple):
    """`hole`: pixels without the mask are exactly those of the image. `grey`: the image has no colour."""

    name: str
    hole: bool = False
    grey: bool = False


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("colorization", grey=True),
        Task("inpainting", hole=True),
        Task("uncropping", hole=True),
        Task("jpeg"),
    )
}


class Known(NamedTuple):
    """The conditions of a network, embedded or not, and the image whose pixels it knows where `hole` is 0."""

    cond: Any
    image: Float[Array, "batch h w c"]
    hole: Float[Array, "batch h w 1"]


def knowing(apply: Apply) -> Apply:
    """`apply` of a network whose input has the clean pixels of the condition "image" where "hole" is 0."""

    def call(params: Params, x: Array, c_noise: Array, cond: Any, *, key: Key[Array, ""] | None = None) -> Array:
        known = cond if isinstance(cond, Known) else Known(cond, cond[IMAGE], cond[HOLE])
        x = jnp.where(known.hole > 0, x, known.image.astype(x.dtype))
        return apply(params, x, c_noise, known.cond, key=key)

    return call


def embedding(embed: Callable[[Params, Cond], Any]) -> Callable[[Params, Cond], Known]:
    """`embed` of a network, whose result goes with the known pixels to that of `knowing`."""
    return lambda params, cond: Known(embed(params, cond), cond[IMAGE], cond[HOLE])


def network_conditions(shape: tuple[int, ...], tasks: tuple[Task, ...], others: Conditions) -> Conditions:
    """The conditions of a network for images of `shape`: those of `others`, and what Palette gives it.

    The number of the task is a structure, which dropout and guidance keep. The hole belongs to the image: without the
    image nothing is known.
    """
    label = {LABEL: Condition(Spec((), "int32", values=len(tasks)), structure=True)} if len(tasks) > 1 else {}
    hole = Condition(Spec((*shape[:-1], 1)), null=1, along=IMAGE)
    return Conditions({**label, IMAGE: image(shape), HOLE: hole}) | others


@dataclasses.dataclass(frozen=True, kw_only=True)
class Palette(OnDiffusion):
    """Train and sample `diffusion` of images x given degraded images, one of `tasks` in each row. arXiv:2111.05826.

    Batches are {"x", "image", "mask", "task"}: the degraded image, a mask that is at least 0 where x is unknown, and
    the number of the task. For tasks with a hole

    - the network receives the image with standard normal noise in the hole as a condition, and x_t whose known pixels
      are those of the image, without noise;
    - the loss is the mean over the hole;
    - D and samples have the known pixels of the image, exactly.

    For other tasks every pixel is unknown, whatever the mask is, and for colorization colours of the image are removed.
    Everything that is known comes from the condition. Condition dropout removes the image with all known pixels and
    keeps the task, so that classifier-free guidance leads away from an unconditional sample. `diffusion` has the
    network of `knowing` with the conditions of `network_conditions`. `luma` are the weights of channels in the grey
    value.
    """

    diffusion: Diffusion
    tasks: tuple[Task, ...]
    luma: tuple[float, ...] = LUMA
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        check(bool(names) and len(set(names)) == len(names), "tasks", tuple(names), "names of different tasks")
        channels = self.diffusion.shape[-1]
        if any(task.grey for task in self.tasks):
            check(channels == len(self.luma), "tasks", tuple(names), f"without colorization for {channels} channels")
        missing = {IMAGE, HOLE} - self.diffusion.network_conditions.keys()
        if missing:
            raise ValueError(f"the network has no condition {min(missing)!r}; see palette.network_conditions")

    def init(self, key: Key[Array, ""]) -> Params:
        return self.diffusion.init(key)

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The denoising loss over unknown pixels, in training with conditions dropped."""
        loss_key, noise_key = jax.random.split(key)
        seen = self._seen(row_keys(noise_key, jnp.arange(len(batch["x"]))), batch)
        loss_key, x, cond = self.diffusion.prepared(loss_key, {**batch, **seen}, train)
        loss, _ = self.diffusion.loss_fn(
            params["network"], loss_key, x, cond, where=cond[HOLE], train=train is not None
        )
        return loss, {}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the loss of held-out examples, without dropout."""
        return {"loss": self.loss(params, key, batch, None)[0]}

    def denoiser(
        self,
        params: Params,
        cond: Cond = None,
        numbers: PyTree[Array] = None,
        *,
        keys: Key[Array, "batch"] | None = None,
    ) -> Denoiser:
        """The denoiser D(x, t) that solvers call, guided, with the known pixels of `cond`.

        `keys` are those of the noise in holes, by default fold_in(key(0), row).
        """
        keys = row_keys(jax.random.key(0), jnp.arange(len(cond[TASK]))) if keys is None else keys
        seen = self._seen(keys, cond)
        D = self.diffusion.denoiser(params, {**cond, **seen}, numbers)
        return parameterizations.mapped(D, lambda x_0: self._with_known(x_0, seen))

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples": ...}: row r depends on ids[r] and cond[r] only. A pure function, for use under `jit`."""
        prior_key, noise_key = sampling_keys(key)
        keys = row_keys(jax.random.fold_in(key, 2), ids)
        D = self.denoiser(params, cond, numbers, keys=keys)
        x = self.diffusion.solve(D, prior_key, noise_key, ids, cond)
        return {"samples": self._with_known(x, self._seen(keys, cond))}

    def evaluations(self) -> int | None:
        return self.diffusion.evaluations()

    @property
    def network_conditions(self) -> Conditions:
        """The conditions of a batch: those of the network, with the mask for its hole and the task for its label."""
        own = self.diffusion.network_conditions
        others = {name: condition for name, condition in own.items() if name not in (IMAGE, HOLE, LABEL)}
        shape = self.diffusion.shape
        degraded = image(shape)._replace(start="paired")
        return Conditions({**others, IMAGE: degraded, MASK: mask(shape), TASK: task(self.tasks)})

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.makes, self.network_conditions)

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples: of a batch, of guidance and of editing."""
        given = {
            name: condition
            for name, condition in self.diffusion.conditions.items()
            if name not in self.diffusion.network_conditions
        }
        return self.network_conditions | given

    def _of_tasks(self, field: str, cond: Cond) -> Bool[Array, "batch 1 1 1"]:
        values = jnp.asarray([getattr(task, field) for task in self.tasks])
        return values[jnp.asarray(cond[TASK])][:, None, None, None]

    def _seen(self, keys: Key[Array, "batch"], cond: Cond) -> dict[str, Array]:
        """What the network receives for the rows of `keys`: task, hole, and the image with noise in the hole."""
        y = jnp.asarray(cond[IMAGE])
        unknown = (jnp.asarray(cond[MASK]) >= 0) | ~self._of_tasks("hole", cond)
        if any(task.grey for task in self.tasks):
            y = jnp.where(self._of_tasks("grey", cond), (y @ jnp.asarray(self.luma, y.dtype))[..., None], y)
        y = jnp.where(unknown & self._of_tasks("hole", cond), row_normal(keys, y), y)
        label = {LABEL: cond[TASK]} if len(self.tasks) > 1 else {}
        return {**label, IMAGE: y, HOLE: unknown.astype(y.dtype)}

    @staticmethod
    def _with_known(x: Float[Array, "batch h w c"], seen: Mapping[str, Array]) -> Float[Array, "batch h w c"]:
        return jnp.where(seen[HOLE] > 0, x, seen[IMAGE].astype(x.dtype))


def task(tasks: tuple[Task, ...]) -> Condition:
    """The number of one of `tasks`, which people ask for by its name."""
    names = [task.name for task in tasks]

    def read(request: Request, values: Any, spec: Spec) -> np.ndarray:
        given = values.tolist() if isinstance(values, np.ndarray) else list(values)
        strange = [value for value in given if value not in names and value not in range(len(names))]
        if strange:
            raise ValueError(f"{strange[0]!r} is none of the tasks of the model, {', '.join(names)}")
        return np.array([names.index(value) if isinstance(value, str) else value for value in given], spec.dtype)

    def words(ids: np.ndarray, describe: Describe) -> list[str]:
        return [names[number] for number in ids.tolist()]

    return Condition(Spec((), "int32", values=len(names)), structure=True, read=read, words=words)


def mask(shape: tuple[int, ...]) -> Condition:
    """A mask of images of `shape`, at least 0 where they are unknown; for tasks without a hole it is "everything"."""
    usual = with_mask(shape)[MASK]

    def read(request: Request, values: Any, spec: Spec) -> np.ndarray:
        if isinstance(values, np.ndarray):
            return usual.read(request, values, spec)
        whole = np.ones(spec.shape, np.float32)
        return np.stack([whole if value == EVERYTHING else usual.read(request, [value], spec)[0] for value in values])

    return usual._replace(null=1, read=read)
