"""Text-to-image diffusion of latents: a frozen text encoder, a frozen first stage and a network between them."""

from __future__ import annotations

import dataclasses
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
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.latent_diffusion import decoded, first_stage_params
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train


class Texts(NamedTuple):
    """Frozen text encoders as one pair of functions, and the token ids of texts.

    `encode(params, ids)` gives conditions of the network: "tokens", the states, and "vector", a pooled one, where there
    is any. `tokenize` and `describe` go from texts to ids [n, max_tokens] and back.
    """

    init: Callable[[Key[Array, ""]], Params]
    encode: Callable[[Params, Int[Array, "batch n"]], dict[str, Array]]
    tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "batch n"]]
    describe: Callable[[Int[np.ndarray, "batch n"]], list[str]]


class Task(NamedTuple):
    """What is done with an image beside the text.

    `image`: there is one, of the size of what is drawn, or `at_latents` of that of the latents; `mask`: a further
    channel of it is one. `read(system, params, keys, image)` are the conditions that the network gets for it.
    `dropped`: training also drops the image, and guidance leads away from none.
    """

    image: bool = False
    mask: bool = False
    read: Callable[..., dict[str, Array]] = lambda system, params, keys, image: {}
    at_latents: bool = False
    dropped: bool = False


TEXT_ALONE = Task()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImage(Sampled):
    """Train and sample `diffusion`, a model of the latents of `first_stage` that reads `texts`. See `types.System`.

    Batches are {"x": images in [-1, 1], "tokens": ids, ...} with the other conditions by name. Parameters are
    {"network", "frozen": {"first_stage", "text"}}, and for a ControlNet the U-Net that it corrects under "frozen".
    Guidance leads away from the negative prompt. As in diffusers the latents of a condition are their mean.
    """

    diffusion: Diffusion
    first_stage: Autoencoder
    texts: Texts
    batch_conditions: Conditions  # that come with the images of a batch
    task: Task = TEXT_ALONE
    negative_prompt: str = ""
    zero_negative: bool = False  # what an empty one stands for: zeros instead of the states of an empty text
    noise_level: int = 20  # timestep of the noise on an image to enlarge
    cond_dropout: float = 0.0  # how often training replaces a text by an empty one, and apart from it an image by none
    controlled: bool = False  # the network is a ControlNet, and the U-Net frozen
    decode_batch_size: int = 0  # images that are decoded at once on each device; 0: as many as are drawn
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
        """Texts to ids."""
        return self.texts.tokenize

    @property
    def describe(self) -> Callable[[Int[np.ndarray, "batch n"]], list[str]]:
        """Ids to texts."""
        return self.texts.describe

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.makes, self.batch_conditions)

    @property
    def makes(self) -> Spec:
        return self.first_stage.makes

    @property
    def batch_size(self) -> int:
        """The number of samples that are drawn at once."""
        return self.diffusion.batch_size

    @property
    def conditions(self) -> Conditions:
        """What sampling takes: the conditions of a batch, of guidance and of editing, which starts from images."""
        editing = self.diffusion.editing.conditions(self.first_stage.shape)
        return self.batch_conditions | self.diffusion.guidance.conditions | editing

    def numbers(self) -> PyTree[Array]:
        """The numbers of the guidance."""
        return self.diffusion.numbers()

    def init(self, key: Key[Array, ""]) -> Params:
        network_key, stage_key, text_key = jax.random.split(key, 3)
        network = self.diffusion.init_network(network_key)
        frozen = {
            "first_stage": first_stage_params(self.first_stage.init(stage_key)),
            "text": self.texts.init(text_key),
        }
        if self.controlled:
            return {"network": network["controlnet"], "frozen": {**frozen, "unet": network["unet"]}}
        return {"network": network, "frozen": frozen}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The diffusion model's loss of the latents, drawn from their posterior."""
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
        cond = jax.lax.stop_gradient(cond)
        network = {"network": self._network(params)}
        return self.diffusion.loss(network, loss_key, {"x": jax.lax.stop_gradient(z), **cond}, train)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out images, without dropout."""
        return {"loss": self.loss(params, key, batch, None)[0]}

    def draw(
        self,
        params: Params,
        key: Key[Array, ""],
        ids: Int[Array, "batch"],
        cond: Cond,
        numbers: PyTree[Array] = None,
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """The images of `ids`, as a pure function for use under `jit`."""
        prior_key, noise_key, cond_key = jax.random.split(key, 3)
        if self.diffusion.editing.reads_image:
            cond = {**cond, "image": self.latent_mean(params, cond["image"])}
        D = self.denoiser(params, row_keys(cond_key, ids), cond, numbers)
        z = self.diffusion.solve(D, prior_key, noise_key, ids, cond)
        return {"samples": decoded(self.first_stage, params["frozen"]["first_stage"], z, self.decode_batch_size)}

    def denoiser(
        self, params: Params, keys: Key[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> Denoiser:
        """D(x, t) of latents as solvers see it: texts and images read once, guidance applied."""
        guidance, network = self.diffusion.guidance, {"network": self._network(params)}
        numbers = guidance.load() if numbers is None else numbers
        given = self.encode_conditions(params, keys, cond)
        model = self.diffusion.model(network, given)
        null = self.diffusion.embed(network["network"], {**given, **self._negative(params, given)})
        return self.diffusion.steered(model._replace(null=null, given=cond), cond, numbers)

    def encode_conditions(self, params: Params, keys: Key[Array, "batch"], cond: Cond) -> dict[str, Array]:
        """What the network reads for the ids and images of a batch; row r may be random by keys[r]."""
        given = self.texts.encode(params["frozen"]["text"], cond["tokens"])
        if "sizes" in self.diffusion.network_conditions:
            # As SDXL was told of a square image that was not cropped.
            side = self.first_stage.shape[0]
            given["sizes"] = jnp.tile(jnp.array([side, side, 0, 0, side, side]), (len(cond["tokens"]), 1))
        if self.controlled:
            given["control"] = cond["control"]
        return given | (self.task.read(self, params, keys, cond["image"]) if self.task.image else {})

    def latent_mean(self, params: Params, image: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 z"]:
        """The mean of the standardised latents of an image."""
        stage = params["frozen"]["first_stage"]
        return self.first_stage.latents(stage, None, self.first_stage.encode(stage["network"], image))

    def _negative(self, params: Params, given: dict[str, Array]) -> dict[str, Array]:
        """The conditions that guidance leads away from, where they are not those of the sample."""
        states = self.texts.encode(params["frozen"]["text"], jnp.asarray(self.texts.tokenize([self.negative_prompt])))
        if self.zero_negative and not self.negative_prompt:
            states = jax.tree.map(jnp.zeros_like, states)
        negative = {name: jnp.broadcast_to(x, given[name].shape) for name, x in states.items()}
        return negative | ({"image": jnp.zeros_like(given["image"])} if self.task.dropped else {})

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
    """The mask at the size of the latents beside those of the image without what is to be painted.

    The last channel is the mask, in [-1, 1]; what is not below 0 is painted.
    """
    paint = (image[..., -1:] >= 0).astype(image.dtype)
    z = system.latent_mean(params, image[..., :-1] * (1 - paint))
    step = paint.shape[1] // z.shape[1]
    return {"image": jnp.concatenate([paint[:, ::step, ::step], z], axis=-1)}


def edited(system: TextToImage, params: Params, keys: Any, image: Float[Array, "batch h w c"]) -> dict[str, Array]:
    """The mean of the image's latents, not scaled, as InstructPix2Pix reads it (arXiv:2211.09800)."""
    stage = system.first_stage
    h = stage.encode(params["frozen"]["first_stage"]["network"], image)
    return {"image": stage.bottleneck.latent(None, h)}


def noised(
    system: TextToImage, params: Params, keys: Key[Array, "batch"], image: Float[Array, "batch h w c"]
) -> dict[str, Array]:
    """The image with the noise of timestep `noise_level`, which the network is told as its label."""
    process, level = system.diffusion.process, system.noise_level
    t = jnp.float32((level + 1) / process.num_steps)
    x = process.alpha(t) * image + process.sigma(t) * row_normal(keys, image)
    return {"image": x, "label": jnp.full(len(image), level)}
