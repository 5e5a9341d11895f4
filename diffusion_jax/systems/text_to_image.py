"""Text-to-image latent diffusion (Stable Diffusion): a denoiser of latents, conditioned on a frozen text encoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key, PyTree

from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.processes import row_keys, row_normal
from diffusion_jax.processes.base import bcast
from diffusion_jax.systems.autoencoder import Autoencoder
from diffusion_jax.systems.base import entries
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.systems.latent_diffusion import decoded, edited_conditions, first_stage_params
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train

VECTORS = "vectors"  # entry of the parameters of text encoders: the vectors of learned tokens


class Texts(NamedTuple):
    """Frozen text encoders and their tokenizers.

    `encode(params, ids)` returns conditions of the network: "tokens", the hidden states of the encoders, and "vector",
    the pooled state, if they have one. `params` are those of the encoders by number, "0" and "1", and optionally under
    `VECTORS` further rows of their tables of token vectors, by the same numbers. `tokenize` maps texts to ids
    [n, max_tokens], `describe` ids to texts.
    """

    init: Callable[[Key[Array, ""]], Params]
    encode: Callable[[Params, Int[Array, "batch n"]], dict[str, Array]]
    tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "batch n"]]
    describe: Callable[[Int[np.ndarray, "batch n"]], list[str]]


class Task(NamedTuple):
    """How a text-to-image model is conditioned on an image: inpainting, editing, super-resolution.

    `image`: there is an image, as large as a sample, or as the latents with `at_latents`. `mask`: its last channel is
    a mask. `read(system, params, keys, image)` returns the conditions that the network receives for it. `dropped`:
    training also drops the image, and the null condition of guidance has a zero image.
    """

    image: bool = False
    mask: bool = False
    read: Callable[..., dict[str, Array]] = lambda system, params, keys, image: {}
    at_latents: bool = False
    dropped: bool = False


TEXT_ALONE = Task()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImage(OnDiffusion):
    """Train and sample `diffusion`, a model of the latents of `first_stage` given a text. See `types.System`.

    Batches are {"x": images in [-1, 1], "tokens": ids, ...} with the other conditions by name. Parameters are
    {"network", "frozen": {"first_stage", "text"}}, with what `diffusion` has frozen; with a ControlNet, "network" is
    the ControlNet and "frozen" also has its "unet". The null condition of guidance is the negative prompt. An image as
    a condition is encoded as the mean of its latents, as in diffusers.
    """

    diffusion: Diffusion
    first_stage: Autoencoder
    texts: Texts
    batch_conditions: Conditions  # conditions that a batch has
    task: Task = TEXT_ALONE
    negative_prompt: str = ""
    zero_negative: bool = False  # encode an empty negative prompt as zeros instead of by the text encoder
    noise_level: int = 20  # timestep of the noise on the image of super-resolution
    cond_dropout: float = 0.0  # probability that training drops the text, and independently the image of the task
    weighted: bool = False  # training examples come with the weight of their loss, the entry "weight"
    controlled: bool = False  # the network is a ControlNet of a frozen U-Net
    decode_batch_size: int = 0  # number of images that are decoded at once on each device; 0: all
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.cond_dropout <= 1:
            raise ValueError(f"cond_dropout={self.cond_dropout} must be in [0, 1]")
        if self.decode_batch_size < 0 or self.noise_level < 0:
            raise ValueError(
                f"decode_batch_size={self.decode_batch_size} and noise_level={self.noise_level} must be at least 0"
            )

    @property
    def tokenize(self) -> Callable[[Sequence[str]], Int32[np.ndarray, "batch n"]]:
        """Maps texts to token ids."""
        return self.texts.tokenize

    @property
    def describe(self) -> Callable[[Int[np.ndarray, "batch n"]], list[str]]:
        """Maps token ids to texts."""
        return self.texts.describe

    @property
    def batch(self) -> dict[str, Spec]:
        weight = {"weight": Spec(())} if self.weighted else {}
        return entries(self.makes, self.batch_conditions) | weight

    @property
    def makes(self) -> Spec:
        return self.first_stage.makes

    @property
    def conditions(self) -> Conditions:
        """The conditions of samples: of a batch, of guidance and of editing, which starts from images."""
        editing = self.diffusion.edited(self.first_stage.shape, self.batch_conditions)
        return self.batch_conditions | self.diffusion.guidance.conditions | editing

    def init(self, key: Key[Array, ""]) -> Params:
        network_key, stage_key, text_key = jax.random.split(key, 3)
        own = self.diffusion.init(network_key)
        network = own["network"]
        frozen = {
            **own.get("frozen", {}),
            "first_stage": first_stage_params(self.first_stage.init(stage_key)),
            "text": self.texts.init(text_key),
        }
        if self.controlled:
            return {"network": network["controlnet"], "frozen": {**frozen, "unet": network["unet"]}}
        return {"network": network, "frozen": frozen}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The loss of the diffusion model for latents that are drawn from q(z | x)."""
        latent_key, cond_key, drop_key, loss_key = jax.random.split(key, 4)
        rows = jnp.arange(len(batch["x"]))
        stage = params["frozen"]["first_stage"]
        h = self.first_stage.encode(stage["network"], batch["x"])
        z = self.first_stage.latents(stage, row_keys(latent_key, rows), h)
        batch = batch if train is None else self._dropped(drop_key, batch)
        cond = self.encode_conditions(params, row_keys(cond_key, rows), batch)
        if train is not None and self.cond_dropout and self.task.dropped:
            keep = jax.random.bernoulli(jax.random.fold_in(drop_key, 1), 1 - self.cond_dropout, rows.shape)
            cond["image"] = cond["image"] * bcast(keep, cond["image"])
        example = {"x": jax.lax.stop_gradient(z), **cond}
        if self.diffusion.reads_null:
            example["null"] = {**cond, **self._negative(params, cond)}
        network = {"network": self._network(params), "frozen": params["frozen"]}
        loss, metrics = self.diffusion.loss(network, loss_key, example, train)
        return (loss * batch["weight"] if self.weighted else loss), metrics

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        return self.diffusion.advance(params, train, metrics)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out images, without dropout."""
        return {"loss": self.loss(params, key, batch, None)[0]}

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw latents and decode them to images. A pure function, for use under `jit`."""
        prior_key, noise_key, cond_key = jax.random.split(key, 3)
        editing, given, keys = self.diffusion.editing, cond, row_keys(cond_key, ids)
        if editing.reads_image:
            cond = edited_conditions(editing, cond, functools.partial(self.latent_mean, params))
        D = self.denoiser(params, cond, numbers, keys=keys)
        source = editing.source and self.unguided.denoiser(params, editing.source(cond), keys=keys)
        z = self.diffusion.solve(D, prior_key, noise_key, ids, cond, source)
        x = decoded(self.first_stage, params["frozen"]["first_stage"], z, self.decode_batch_size)
        return {"samples": editing.finish(x, given)}

    @property
    def unguided(self) -> TextToImage:
        """The same model without guidance and editing."""
        return dataclasses.replace(self, diffusion=self.diffusion.unguided)

    def denoiser(
        self, params: Params, cond: Cond, numbers: PyTree[Array] = None, *, keys: Key[Array, "batch"] | None = None
    ) -> Denoiser:
        """The denoiser D(z, t) of latents that solvers call: texts and images encoded once, guided.

        `keys` are those of the noise in conditions, by default fold_in(key(0), row).
        """
        keys = row_keys(jax.random.key(0), jnp.arange(len(cond["tokens"]))) if keys is None else keys
        guidance, network = self.diffusion.guidance, {"network": self._network(params)}
        numbers = guidance.load() if numbers is None else numbers
        conditions = self.encode_conditions(params, keys, cond)
        model = self.diffusion.model(network, conditions)
        null = self.diffusion.embed(network["network"], {**conditions, **self._negative(params, conditions)})
        return self.diffusion.steered(model._replace(null=null, given=cond), cond, numbers)

    def encode_conditions(self, params: Params, keys: Key[Array, "batch"], cond: Cond) -> dict[str, Array]:
        """Returns the conditions of the network for the token ids and images of a batch. Row r uses keys[r]."""
        conditions = self.texts.encode(params["frozen"]["text"], cond["tokens"])
        if "sizes" in self.diffusion.network_conditions:
            # SDXL is conditioned on the original size, the crop and the target size: here no resizing and no crop.
            side = self.first_stage.shape[0]
            conditions["sizes"] = jnp.tile(jnp.array([side, side, 0, 0, side, side]), (len(cond["tokens"]), 1))
        if self.controlled:
            conditions["control"] = cond["control"]
        return conditions | (self.task.read(self, params, keys, cond["image"]) if self.task.image else {})

    def latent_mean(self, params: Params, image: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 z"]:
        """Encode an image as the mean of its standardised latents."""
        stage = params["frozen"]["first_stage"]
        return self.first_stage.latents(stage, None, self.first_stage.encode(stage["network"], image))

    def _negative(self, params: Params, conditions: dict[str, Array]) -> dict[str, Array]:
        """Returns the null condition of guidance, only the entries in which it differs from `conditions`."""
        states = self.texts.encode(params["frozen"]["text"], jnp.asarray(self.texts.tokenize([self.negative_prompt])))
        if self.zero_negative and not self.negative_prompt:
            states = jax.tree.map(jnp.zeros_like, states)
        negative = {name: jnp.broadcast_to(x, conditions[name].shape) for name, x in states.items()}
        return negative | ({"image": jnp.zeros_like(conditions["image"])} if self.task.dropped else {})

    def _dropped(self, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        if not self.cond_dropout:
            return batch
        drop = jax.random.bernoulli(key, self.cond_dropout, batch["tokens"].shape[:1])
        empty = jnp.asarray(self.texts.tokenize([""]))
        return {**batch, "tokens": jnp.where(drop[:, None], empty, batch["tokens"])}

    def _network(self, params: Params) -> Params:
        network = params["network"]
        return {"unet": params["frozen"]["unet"], "controlnet": network} if self.controlled else network


def masked(system: TextToImage, params: Params, keys: Any, image: Float[Array, "batch h w c"]) -> dict[str, Array]:
    """Conditions of inpainting: the mask at the size of the latents, and the latents of the image without that region.

    The last channel of `image` is the mask, in [-1, 1]; pixels where it is at least 0 are inpainted.
    """
    paint = (image[..., -1:] >= 0).astype(image.dtype)
    z = system.latent_mean(params, image[..., :-1] * (1 - paint))
    step = paint.shape[1] // z.shape[1]
    return {"image": jnp.concatenate([paint[:, ::step, ::step], z], axis=-1)}


def edited(system: TextToImage, params: Params, keys: Any, image: Float[Array, "batch h w c"]) -> dict[str, Array]:
    """Conditions of InstructPix2Pix: the mean of the image's latents, not standardised (arXiv:2211.09800)."""
    stage = system.first_stage
    h = stage.encode(params["frozen"]["first_stage"]["network"], image)
    return {"image": stage.bottleneck.latent(None, h)}


def noised(
    system: TextToImage, params: Params, keys: Key[Array, "batch"], image: Float[Array, "batch h w c"]
) -> dict[str, Array]:
    """Conditions of super-resolution: the image with the noise of timestep `noise_level`, and this timestep."""
    process, level = system.diffusion.process, system.noise_level
    t = jnp.float32((level + 1) / process.num_steps)
    x = process.alpha(t) * image + process.sigma(t) * row_normal(keys, image)
    return {"image": x, "label": jnp.full(len(image), level)}


def with_rows(encoder: Params, table: str, rows: Sequence[Float[Array, "n dim"]]) -> Params:
    """The parameters of a text encoder whose table of token vectors, its entry `table`, has `rows` after its own."""
    if not rows:
        return encoder
    whole = jnp.concatenate([encoder[table]["embedding"], *rows])
    return {**encoder, table: {**encoder[table], "embedding": whole}}
