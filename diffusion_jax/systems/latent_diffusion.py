"""Latent diffusion: a diffusion model of the latents of a frozen first stage (arXiv:2112.10752)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes import row_keys
from diffusion_jax.systems.autoencoder import Autoencoder
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.types import Cond, Params, Placed, Spec, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentDiffusion(Sampled):
    """Train `diffusion` on the standardised latents of `first_stage`, and decode what it draws. See `types.System`.

    Batches hold images, which are encoded on the way, or with `precomputed` what the encoder gave for them; both see
    the same noise of the posterior for the same key. Parameters are those of `diffusion` and {"frozen": {"first_stage":
    ...}}. A condition "image" of the images' size is averaged to that of the latents.
    """

    diffusion: Diffusion
    first_stage: Autoencoder
    precomputed: bool = False
    decode_batch_size: int = 0  # images that are decoded at once on each device; 0: as many as are drawn
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
        """The conditions that come with images: those of the network, a map at the size of the images."""
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
    def batch_size(self) -> int:
        """The number of samples that are drawn at once."""
        return self.diffusion.batch_size

    @property
    def conditions(self) -> Conditions:
        """What sampling takes: the conditions of the network, of guidance and of editing, which starts from images."""
        editing = self.diffusion.editing.conditions(self.first_stage.shape)
        return self.network_conditions | self.diffusion.guidance.conditions | editing

    def numbers(self) -> PyTree[Array]:
        """The numbers of the guidance."""
        return self.diffusion.numbers()

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The diffusion model's loss of the latents."""
        latent_key, loss_key = jax.random.split(key)
        return self.diffusion.loss(params, loss_key, self._latents(params, latent_key, batch), train)

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        after = self.diffusion.advance(params, train, metrics)
        return {**after, "frozen": {**params["frozen"], **after["frozen"]}}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out latents, without dropout."""
        latent_key, loss_key = jax.random.split(key)
        return self.diffusion.evaluate(params, loss_key, self._latents(params, latent_key, batch))

    def draw(
        self,
        params: Params,
        key: Key[Array, ""],
        ids: Int[Array, "batch"],
        cond: Cond,
        numbers: PyTree[Array] = None,
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """The decoded images of `ids`, as a pure function for use under `jit`."""
        cond = self._encoded(params, cond) if self.diffusion.editing.reads_image else self._at_latents(cond)
        z = self.diffusion.draw(params, key, ids, cond, numbers)["samples"]
        return {"samples": decoded(self.first_stage, params["frozen"]["first_stage"], z, self.decode_batch_size)}

    def _latents(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The batch with latents instead of images."""
        stage, x = params["frozen"]["first_stage"], batch["x"]
        h = x if self.precomputed else self.first_stage.encode(stage["network"], x)
        z = self.first_stage.latents(stage, row_keys(key, jnp.arange(len(x))), h)
        return self._at_latents({**batch, "x": jax.lax.stop_gradient(z)})

    def _encoded(self, params: Params, cond: Cond) -> Cond:
        """`cond` with the mean of the latents of its image."""
        stage = params["frozen"]["first_stage"]
        z = self.first_stage.latents(stage, None, self.first_stage.encode(stage["network"], cond["image"]))
        return {**cond, "image": z}

    def _at_latents(self, cond: Cond) -> Cond:
        """`cond` with its image, if there is one, averaged to the size of the latents."""
        if cond is None or "image" not in cond:
            return cond
        return {**cond, "image": averaged_to(cond["image"], self.first_stage.latent_shape[:2])}


def decoded(
    first_stage: Autoencoder, params: Params, z: Float[Array, "batch h w z"], batch_size: int
) -> Float[Array, "batch h2 w2 c"]:
    """The images of latents, `batch_size` at once, or all with 0."""
    decode = functools.partial(first_stage.decode_latents, params)
    if not batch_size or batch_size >= len(z):
        return decode(z)
    return jax.lax.map(lambda row: decode(row[None])[0], z, batch_size=batch_size)


def averaged_to(image: Float[Array, "batch h w c"], size: tuple[int, int]) -> Float[Array, "batch h2 w2 c"]:
    """Means over blocks of pixels, so that `size` of them remain: of a map of classes, the share of each class."""
    batch, height, width, channels = image.shape
    return image.reshape(batch, size[0], height // size[0], size[1], width // size[1], channels).mean((2, 4))


def first_stage_params(params: Params) -> Params:
    """What encoding and decoding need of the parameters of an `Autoencoder`."""
    return {"network": params["network"], "frozen": {"latents": params["frozen"]["latents"]}}
