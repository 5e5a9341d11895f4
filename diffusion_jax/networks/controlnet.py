"""ControlNet: a copy of the U-Net's way down that reads an image and corrects the frozen U-Net (arXiv:2302.05543)."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.unet_2d_condition import Encoder, Parts, UNet2DConditionModel, check_input
from diffusion_jax.types import Cond, Controlled, Embedded


class ControlNetModel(nnx.Module):
    """What ControlNet adds to the activations of a U-Net: net(x, c_noise, cond) -> tuple of arrays.

    There is one for each activation that the way up reads and one for the middle, as `Embedded.residuals` takes them.
    All are zero at the start, since they come from 1 x 1 convolutions that are. It reads the U-Net's conditions and
    "control", an image in [-1, 1] of `2^(len(hint_channels) - 1)` times the side of x. Attribute names follow
    ControlNetModel of diffusers; arguments that are not listed are those of `UNet2DConditionModel`.

    Args:
        image_size: side of x.
        in_channels: channels of x.
        control_channels: channels of "control".
        hint_channels: channels of the layers that read it, each but the last followed by one of half the resolution.
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        transformer_layers: tuple[int, ...] = (1, 1, 1, 0),
        mid_transformer_layers: int | None = None,
        num_attention_heads: int | tuple[int, ...] = 8,
        only_cross_attention: bool | tuple[bool, ...] = False,
        use_linear_projection: bool = False,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        token_dim: int = 768,
        max_tokens: int = 77,
        masked_tokens: bool = False,
        num_classes: int = 0,
        vector_dim: int = 0,
        num_sizes: int = 0,
        sizes_dim: int = 256,
        control_channels: int = 3,
        hint_channels: tuple[int, ...] = (16, 32, 96, 256),
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.in_channels = in_channels
        self.divisor = 2 ** (len(block_out_channels) - 1)
        self.remat = remat
        layers.check_divides("image_size", image_size, self.divisor)
        side = image_size * 2 ** (len(hint_channels) - 1)
        self.conditions = Conditions(
            num_classes=num_classes,
            vector_dim=vector_dim,
            num_sizes=num_sizes,
            token_dim=token_dim,
            max_tokens=max_tokens,
            unmasked=not masked_tokens,
            control_shape=(side, side, control_channels),
        )
        parts = Parts(
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            transformer_layers=transformer_layers,
            mid_transformer_layers=mid_transformer_layers,
            num_attention_heads=num_attention_heads,
            only_cross_attention=only_cross_attention,
            use_linear_projection=use_linear_projection,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
            token_dim=token_dim,
            implementation=attention_implementation,
            rngs=rngs,
        )
        self.encoder = Encoder(parts, in_channels, self.conditions, sizes_dim, rngs=rngs)
        self.controlnet_cond_embedding = Hint(control_channels, hint_channels, block_out_channels[0], rngs=rngs)
        self.controlnet_down_blocks = nnx.List(
            layers.conv(width, width, 1, scale=0.0, rngs=rngs) for width in parts.skips()
        )
        last = block_out_channels[-1]
        self.controlnet_mid_block = layers.conv(last, last, 1, scale=0.0, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Cond = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        check_input(x, self.in_channels, self.divisor)
        cond = self.embed(cond, x.shape[0])
        trunk = cond._replace(image=None)
        h, skips, _ = self.encoder(x, c_noise, trunk, cond.image, rngs=rngs, remat=self.remat)
        residuals = [block(skip) for block, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return (*residuals, self.controlnet_mid_block(h))

    def embed(self, cond: Cond, batch: int | None = None) -> Embedded:
        """What `__call__` takes in the place of cond. The `image` in it is what becomes of "control"."""
        if isinstance(cond, Embedded):
            return cond
        cond = self.conditions.null(batch) if cond is None else self.conditions.of(cond)
        embedded = self.encoder.embed(cond, self.conditions, batch)
        return embedded._replace(image=self.controlnet_cond_embedding((cond["control"] + 1) / 2))


class Hint(nnx.Module):
    """The small network that brings an image in [0, 1] to the resolution of x and the channels that it joins there."""

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


class ControlledUNet(nnx.Module):
    """A U-Net and a ControlNet that corrects it: [batch, h, w, in_channels] -> [batch, h, w, out_channels].

    It reads the conditions of both. While the ControlNet is untrained it is exactly the U-Net.

    Args:
        unet: the U-Net.
        controlnet: the ControlNet, of the same levels.
        scale: factor of what is added to the U-Net's activations.
    """

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel, *, scale: float = 1.0):
        self.conditions = unet.conditions | controlnet.conditions
        self.scale = scale
        self.unet = unet
        self.controlnet = controlnet

    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch"],
        cond: Cond = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        cond = self.embed(cond, x.shape[0])
        residuals = self.controlnet(x, c_noise, cond.controlnet, rngs=rngs)
        scaled = tuple(self.scale * residual for residual in residuals)
        return self.unet(x, c_noise, cond.unet._replace(residuals=scaled), rngs=rngs)

    def embed(self, cond: Cond, batch: int | None = None) -> Controlled:
        """What `__call__` takes in the place of cond, computed once per sample; cond=None needs the `batch`."""
        if isinstance(cond, Controlled):
            return cond
        return Controlled(self.unet.embed(cond, batch), self.controlnet.embed(cond, batch))


def controlled_unet(*, control_scale: float = 1.0, rngs: nnx.Rngs, **arguments: Any) -> ControlledUNet:
    """A U-Net and its ControlNet of the same arguments, which are those of `ControlNetModel`."""
    names = inspect.signature(UNet2DConditionModel.__init__).parameters
    unet = UNet2DConditionModel(**{k: v for k, v in arguments.items() if k in names}, rngs=rngs)
    return ControlledUNet(unet, ControlNetModel(**arguments, rngs=rngs), scale=control_scale)


_SCALE = inspect.signature(controlled_unet).parameters["control_scale"]
_OWN = [p for p in inspect.signature(ControlNetModel.__init__).parameters.values() if p.name != "self"]
controlled_unet.__signature__ = inspect.Signature([_SCALE, *_OWN])
