"""ControlNet: a copy of the U-Net's encoder that reads an image and corrects the frozen U-Net (arXiv:2302.05543)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.unet_2d_condition import Encoder, UNet2DConditionModel
from diffusion_jax.networks.unet_spec import UNetSpec
from diffusion_jax.types import Cond, Controlled, Embedded, spread

HINT_CHANNELS = (16, 32, 96, 256)


class ControlNetModel(DenoisingNetwork):
    """ControlNet: net(x, c_noise, cond) -> tuple of arrays, which are added to the activations of a U-Net.

    There is one array for each activation that the decoder reads and one for the middle, as `Embedded.residuals` takes
    them. All are zero at the start, as are the 1 x 1 convolutions that they come from. It reads the U-Net's conditions
    and "control", an image in [-1, 1] of `2^(len(hint_channels) - 1)` times the side of x. Attribute names follow
    ControlNetModel of diffusers.

    Args:
        spec: the fields of `UNetSpec`, each by its name: those of the U-Net.
        control_channels: channels of "control".
        hint_channels: channels of the layers that read it, each but the last followed by one of half the resolution.
        rngs: randomness of the initial parameters.
    """

    @spread(UNetSpec)
    def __init__(
        self,
        spec: UNetSpec,
        *,
        control_channels: int = 3,
        hint_channels: tuple[int, ...] = HINT_CHANNELS,
        rngs: nnx.Rngs,
    ):
        self.input_shape, self.divisor, self.remat = (None, None, spec.in_channels), spec.divisor, spec.remat
        side = spec.image_size * 2 ** (len(hint_channels) - 1)
        self.conditions = spec.conditions(control_shape=(side, side, control_channels))
        self.encoder = Encoder(spec, spec.in_channels, rngs=rngs)
        self.controlnet_cond_embedding = Hint(control_channels, hint_channels, spec.widths[0], rngs=rngs)
        self.controlnet_down_blocks = nnx.List(
            layers.conv(width, width, 1, scale=0.0, rngs=rngs) for width in spec.skips
        )
        last = spec.widths[-1]
        self.controlnet_mid_block = layers.conv(last, last, 1, scale=0.0, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        trunk = cond._replace(image=None)
        h, skips, _ = self.encoder(x, c_noise, trunk, cond.image, rngs=rngs, remat=self.remat)
        residuals = [block(skip) for block, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return (*residuals, self.controlnet_mid_block(h))

    def embed(self, cond: Cond, batch: int | None = None, dtype: DTypeLike = jnp.float32) -> Embedded:
        """As in `DenoisingNetwork`; the `image` of the result is the embedded "control"."""
        embedded = super().embed(cond, batch, dtype)
        if isinstance(cond, Embedded):
            return embedded
        hint = self.controlnet_cond_embedding((embedded.others["control"] + 1) / 2)
        return embedded._replace(image=hint, others=None)

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        return self.encoder.embedders()


class Hint(nnx.Module):
    """The small network that embeds an image in [0, 1] at the resolution of x."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], out_channels: int, *, rngs: nnx.Rngs):
        self.conv_in = layers.conv(in_channels, channels[0], rngs=rngs)
        blocks = []
        for narrow, wide in itertools.pairwise(channels):
            blocks.append(layers.conv(narrow, narrow, rngs=rngs))
            blocks.append(layers.conv(narrow, wide, stride=2, padding=1, rngs=rngs))
        self.blocks = nnx.List(blocks)
        self.conv_out = layers.conv(channels[-1], out_channels, scale=0.0, rngs=rngs)

    def __call__(self, image: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 out"]:
        h = jax.nn.silu(self.conv_in(image))
        for block in self.blocks:
            h = jax.nn.silu(block(h))
        return self.conv_out(h)


class ControlledUNet(DenoisingNetwork):
    """A U-Net and a ControlNet that corrects it: [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    It reads the conditions of both. While the ControlNet is untrained it is exactly the U-Net.

    Args:
        unet: the U-Net.
        controlnet: the ControlNet, of the same levels.
        scale: factor of what is added to the U-Net's activations.
    """

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel, *, scale: float = 1.0):
        self.input_shape, self.divisor = unet.input_shape, unet.divisor
        self.conditions = unet.conditions | controlnet.conditions
        self.scale = scale
        self.unet = unet
        self.controlnet = controlnet

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Controlled,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        residuals = self.controlnet(x, c_noise, cond.controlnet, rngs=rngs)
        scaled = tuple(self.scale * residual for residual in residuals)
        return self.unet(x, c_noise, cond.unet._replace(residuals=scaled), rngs=rngs)

    def embed(self, cond: Cond, batch: int | None = None, dtype: DTypeLike = jnp.float32) -> Controlled:
        if isinstance(cond, Controlled):
            return cond
        return Controlled(self.unet.embed(cond, batch, dtype), self.controlnet.embed(cond, batch, dtype))


@spread(UNetSpec)
def controlled_unet(
    spec: UNetSpec,
    *,
    control_channels: int = 3,
    hint_channels: tuple[int, ...] = HINT_CHANNELS,
    control_scale: float = 1.0,
    rngs: nnx.Rngs,
) -> ControlledUNet:
    """A U-Net and its ControlNet of the same sizes.

    Args:
        spec: the fields of `UNetSpec`, each by its name.
        control_channels, hint_channels: see `ControlNetModel`.
        control_scale: factor of what the ControlNet adds to the U-Net's activations.
        rngs: randomness of the initial parameters.
    """
    unet = UNet2DConditionModel(**vars(spec), rngs=rngs)
    hint = dict(control_channels=control_channels, hint_channels=hint_channels)
    return ControlledUNet(unet, ControlNetModel(**vars(spec), **hint, rngs=rngs), scale=control_scale)
