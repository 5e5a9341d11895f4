"""Latent diffusion: a diffusion model of the latents of a frozen first stage (arXiv:2112.10752)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.guidance.editing import Editing
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes import row_keys
from diffusion_jax.systems.autoencoder import Autoencoder
from diffusion_jax.systems.base import entries
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentDiffusion(OnDiffusion):
    """Train `diffusion` on the standardised latents of `first_stage`, and decode its samples. See `types.System`.

    Batches hold images, or with `precomputed` the outputs of the encoder for them; both give the same latents for the
    same key. Parameters are those of `diffusion` and {"frozen": {"first_stage": ...}}. A condition "image", which has
    the height and width of the images, is averaged to those of the latents.
    """

    diffusion: Diffusion
    first_stage: Autoencoder
    precomputed: bool = False  # batches hold encoder outputs instead of images
    decode_batch_size: int = 0  # number of images that are decoded at once on each device; 0: all
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decode_batch_size < 0:
            raise ValueError(f"decode_batch_size={self.decode_batch_size} must be at least 0")

    def init(self, key: Key[Array, ""]) -> Params:
        diffusion_key, stage_key = jax.random.split(key)
        params, stage = self.diffusion.init(diffusion_key), first_stage_params(self.first_stage.init(stage_key))
        return {**params, "frozen": {**params.get("frozen", {}), "first_stage": stage}}

    @property
    def network_conditions(self) -> Conditions:
        """Conditions that a batch has: those of the network, but "image" has the height and width of the images."""
        conditions = self.diffusion.network_conditions
        if not conditions.image_shape or self.precomputed:
            return conditions
        return Conditions(image_shape=(*self.first_stage.shape[:2], conditions.image_shape[-1])) | conditions

    @property
    def batch(self) -> dict[str, Spec]:
        x = Spec(self.first_stage.encoded_shape, modality="latents") if self.precomputed else self.makes
        return entries(x, self.network_conditions)

    @property
    def makes(self) -> Spec:
        return self.first_stage.makes

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples: of the network, of guidance and of editing, which starts from images."""
        editing = self.diffusion.edited(self.first_stage.shape, self.network_conditions)
        return self.network_conditions | self.diffusion.guidance.conditions | editing

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The loss of the diffusion model for latents."""
        latent_key, loss_key = jax.random.split(key)
        return self.diffusion.loss(params, loss_key, self._latents(params, latent_key, batch), train)

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        after = self.diffusion.advance(params, train, metrics)
        return {**after, "frozen": {**params["frozen"], **after["frozen"]}}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Evaluate the diffusion model on held-out latents, see `Diffusion.evaluate`."""
        latent_key, loss_key = jax.random.split(key)
        return self.diffusion.evaluate(params, loss_key, self._latents(params, latent_key, batch))

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw latents and decode them to images. A pure function, for use under `jit`."""
        z = self.diffusion.draw(params, key, ids, self._conditions(params, cond), numbers)["samples"]
        x = decoded(self.first_stage, params["frozen"]["first_stage"], z, self.decode_batch_size)
        return {"samples": self.diffusion.editing.finish(x, cond)}

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(z, t) of latents that solvers call, see `Diffusion.denoiser`."""
        return self.diffusion.denoiser(params, self._conditions(params, cond), numbers)

    def _conditions(self, params: Params, cond: Cond) -> Cond:
        """The conditions of the diffusion model of latents."""
        return self._encoded(params, cond) if self.diffusion.editing.reads_image else self._at_latents(cond)

    def _latents(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns the batch with standardised latents instead of images."""
        stage, x = params["frozen"]["first_stage"], batch["x"]
        h = x if self.precomputed else self.first_stage.encode(stage["network"], x)
        z = self.first_stage.latents(stage, row_keys(key, jnp.arange(len(x))), h)
        return self._at_latents({**batch, "x": jax.lax.stop_gradient(z)})

    def _encoded(self, params: Params, cond: Cond) -> Cond:
        """Returns `cond` with the image, and the mask, of editing at the latents."""
        stage = params["frozen"]["first_stage"]
        encode = lambda x: self.first_stage.latents(stage, None, self.first_stage.encode(stage["network"], x))  # noqa: E731
        return edited_conditions(self.diffusion.editing, cond, encode)

    def _at_latents(self, cond: Cond) -> Cond:
        """Returns `cond` with its image, if there is one, averaged to the height and width of the latents."""
        if cond is None or "image" not in cond:
            return cond
        return {**cond, "image": averaged_to(cond["image"], self.first_stage.latent_shape[:2])}


def decoded(
    first_stage: Autoencoder, params: Params, z: Float[Array, "batch h w z"], batch_size: int
) -> Float[Array, "batch h2 w2 c"]:
    """Decode standardised latents to images, `batch_size` at once; 0: all."""
    decode = functools.partial(first_stage.decode_latents, params)
    if not batch_size or batch_size >= len(z):
        return decode(z)
    return jax.lax.map(lambda row: decode(row[None])[0], z, batch_size=batch_size)


def edited_conditions(editing: Editing, cond: Cond, encode: Callable[[Array], Array]) -> Cond:
    """Returns `cond` with the image of editing encoded, as the mean of its latents, and the mask at their size.

    A latent is painted if any of its pixels is. What editing does not see of the image is not encoded either.
    """
    z, read = encode(editing.visible(cond)["image"]), dict(cond)
    if "other" in editing.files:
        read["other"] = encode(cond["other"])
    if "mask" in editing.conditions(z.shape[1:]):
        painted = averaged_to((jnp.asarray(cond["mask"]) >= 0).astype(z.dtype), z.shape[1:3])
        read["mask"] = jnp.where(painted > 0, 1.0, -1.0)
    return read | {"image": z}


def averaged_to(image: Float[Array, "batch h w c"], size: tuple[int, int]) -> Float[Array, "batch h2 w2 c"]:
    """Average-pool an image to `size`, (height, width). For a one-hot map of classes: the fraction of each class."""
    batch, height, width, channels = image.shape
    return image.reshape(batch, size[0], height // size[0], size[1], width // size[1], channels).mean((2, 4))


def first_stage_params(params: Params) -> Params:
    """The parameters of an `Autoencoder` that encoding and decoding need."""
    return {"network": params["network"], "frozen": {"latents": params["frozen"]["latents"]}}
