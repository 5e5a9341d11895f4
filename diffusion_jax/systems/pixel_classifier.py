"""Segmentation from few labelled images: classifiers of pixels on features of a frozen denoiser (arXiv:2112.03126)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.conditions import image as image_condition
from diffusion_jax.processes import row_keys
from diffusion_jax.systems.base import Sampled, entries
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.types import Cond, Params, Spec, Train, check, check_choice

IMAGE = "image"
VOTES = ("mean", "majority")
Features = Callable[[Params, Float[Array, "batch h w c"]], Float[Array, "batch h w d"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelClassifier(Sampled):
    """An ensemble of small classifiers of the pixels of an image, each of the features of its pixel alone.

    Batches are {"x": masks in [-1, 1], "image": images}; one channel is a mask, K channels are classes, one-hot.
    Features are those of `features`, such as `denoiser_features`. They are computed for each batch and never stored.
    The loss is the cross-entropy, of `pixels` random pixels of each image for each member of the ensemble; pixels
    without a label, all of whose channels are -1, and classes of fewer than `min_pixels` pixels in an image do not
    count. Samples are masks 2 p - 1 of the mean probability p of the members ("mean"), or of the share of members
    that vote for a class ("majority"), and come with their "uncertainty" in nats, the Jensen-Shannon divergence of the
    members, H(mean p) - mean H(p). Parameters are {"network": those of all members, "frozen": {"denoiser": ...}}.
    Raises ValueError for sizes that are not positive, or another vote.
    """

    init_members: Callable[[Key[Array, ""]], Params]
    logits: Callable[[Params, Float[Array, "batch h w d"]], Float[Array, "members batch h w classes"]]
    features: Features
    init_frozen: Callable[[Key[Array, ""]], Params]  # the group "frozen"; {} where features have no parameters
    shape: tuple[int, ...]  # of a mask
    image_shape: tuple[int, ...]
    pixels: int = 256  # of each image in a step of training; 0: all
    min_pixels: int = 0
    vote: str = "mean"
    batch_size: int = 128

    def __post_init__(self) -> None:
        size = self.shape[0] * self.shape[1]
        check(0 <= self.pixels <= size, "pixels", self.pixels, f"at least 0 and at most the {size} pixels of an image")
        check(self.min_pixels >= 0, "min_pixels", self.min_pixels, "at least 0")
        check_choice("vote", self.vote, VOTES)

    @property
    def conditions(self) -> Conditions:
        return Conditions({IMAGE: image_condition(self.image_shape)})

    @property
    def batch(self) -> dict[str, Spec]:
        return entries(self.makes, self.conditions)

    @property
    def makes(self) -> Spec:
        return Spec(self.shape, modality="mask")

    def init(self, key: Key[Array, ""]) -> Params:
        own, frozen = jax.random.split(key)
        others = self.init_frozen(frozen)
        return {"network": self.init_members(own), **({"frozen": others} if others else {})}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The cross-entropy in nats, the mean over members and pixels; in evaluation of all pixels."""
        h = jax.lax.stop_gradient(self.features(params, batch[IMAGE]))
        target, counts = self._targets(batch["x"])
        log_p = jax.nn.log_softmax(self.logits(params["network"], h))
        nats = -jnp.sum(log_p * target, -1).reshape(*log_p.shape[:2], -1)  # [members, batch, pixels]
        weight = jnp.broadcast_to(counts.reshape(1, len(h), -1), nats.shape).astype(nats.dtype)
        if train is not None and self.pixels:
            weight = weight * self._chosen(key, weight.shape)
        loss = jnp.sum(weight * nats, -1) / jnp.maximum(jnp.sum(weight, -1), 1)
        return loss.mean(0), {}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """Returns "loss", and the "accuracy" of the vote on the pixels that have a label."""
        p, _ = self.probabilities(params, batch[IMAGE])
        target, _ = self._targets(batch["x"])
        labelled = target.any(-1)
        right = jnp.argmax(p, -1) == jnp.argmax(target, -1)
        accuracy = jnp.sum(right & labelled, (1, 2)) / jnp.maximum(jnp.sum(labelled, (1, 2)), 1)
        return {"loss": self.loss(params, key, batch, None)[0], "accuracy": accuracy}

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Array]:
        """The masks of the images `cond`, which depend on nothing else, and the uncertainty of each pixel."""
        p, uncertainty = self.probabilities(params, cond[IMAGE])
        channels = p[..., 1:] if self.shape[-1] == 1 else p
        return {"samples": 2 * channels - 1, "uncertainty": uncertainty}

    def probabilities(
        self, params: Params, image: Float[Array, "batch h w c"]
    ) -> tuple[Float[Array, "batch h w classes"], Float[Array, "batch h w"]]:
        """The probability of each class by the vote, and the uncertainty in nats."""
        p = jax.nn.softmax(self.logits(params["network"], self.features(params, image)))
        uncertainty = jnp.maximum(_entropy(p.mean(0)) - _entropy(p).mean(0), 0)
        if self.vote == "majority":
            p = jax.nn.one_hot(jnp.argmax(p, -1), p.shape[-1])
        return p.mean(0), uncertainty

    def _targets(
        self, mask: Float[Array, "batch h w k"]
    ) -> tuple[Bool[Array, "batch h w classes"], Bool[Array, "batch h w"]]:
        """One-hot classes, none where there is no label, and the pixels that the loss counts."""
        target = mask > 0
        target = jnp.concatenate([~target, target], -1) if self.shape[-1] == 1 else target
        large = jnp.sum(target, (1, 2), keepdims=True) >= self.min_pixels
        return target, jnp.any(target & large, -1)

    def _chosen(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Bool[Array, "members batch pixels"]:
        """`pixels` random pixels of each image for each member; row r depends on the key and r."""

        def one(key: Key[Array, ""]) -> Bool[Array, "members pixels"]:
            u = jax.random.uniform(key, (shape[0], shape[2]))
            return u <= jnp.sort(u)[:, self.pixels - 1 : self.pixels]

        return jnp.moveaxis(jax.vmap(one)(row_keys(key, jnp.arange(shape[1]))), 1, 0)


def _entropy(p: Float[Array, "*n classes"]) -> Float[Array, "*n"]:
    return -jnp.sum(jax.scipy.special.xlogy(p, p), -1)


def denoiser_features(
    diffusion: Diffusion, times: tuple[float, ...], blocks: tuple[int, ...], seed: int = 0
) -> Features:
    """Activations of blocks of the decoder path of a denoiser at several times, enlarged bilinearly and concatenated.

    x_t = alpha(t) x + sigma(t) eps has the same eps for every image and time, drawn from key(`seed`), so that the
    features of an image are deterministic. The parameters are those in {"frozen": {"denoiser": ...}}; the null
    condition is that of every conditional network.
    """

    def features(params: Params, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w d"]:
        frozen = {"network": params["frozen"]["denoiser"]}
        eps = jax.random.normal(jax.random.key(seed), x.shape[1:], x.dtype)
        found = []
        for t in jnp.asarray(times, jnp.float32):
            x_t = diffusion.process.alpha(t) * x + diffusion.process.sigma(t) * eps
            activations = diffusion.features(frozen, x_t, t)
            for i in blocks:
                size = (*x.shape[:3], activations[i].shape[-1])
                found.append(jax.image.resize(activations[i], size, "bilinear"))
        return jnp.concatenate(found, -1)

    return features


def patch_features(side: int) -> Features:
    """The pixels of a square of `side` pixels around each pixel, with zeros outside of the image: a baseline."""

    def features(params: Params, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w d"]:
        return jax.lax.conv_general_dilated_patches(
            x, (side, side), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return features
