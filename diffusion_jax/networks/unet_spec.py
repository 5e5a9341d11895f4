"""The sizes that a text-to-image U-Net and its ControlNet share, and the blocks they are built of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flax import nnx

from diffusion_jax.networks import layers
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.transformer_2d import Transformer2DModel
from diffusion_jax.networks.unet import ResnetBlock
from diffusion_jax.types import check

EPSILON = 1e-5  # of the GroupNorms outside of the transformers


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """Arguments of both `UNet2DConditionModel` and `ControlNetModel`, and what follows from them.

    Attributes:
        image_size: side of x, which the condition "image" has; the network takes any that the levels divide.
        in_channels: channels of x.
        block_out_channels: channels of each level, from the full resolution on.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        transformer_layers: transformer blocks after each residual block, by level.
        mid_transformer_layers: the same in the middle; None: those of the last level that has any.
        num_attention_heads: by level, or one number for all; the middle has the last. Each divides its channels.
        only_cross_attention: whether the first attention of a transformer block reads the tokens too, by level or for
            all; never in the middle.
        use_linear_projection: see `Transformer2DModel`.
        norm_num_groups: groups of every GroupNorm.
        dropout: rate, before the last convolution of each residual block.
        cross_attention: whether transformers read "tokens"; without it pixels attend to each other twice, and there is
            no such condition, as in AudioLDM.
        token_dim: width of "tokens".
        max_tokens: length of "tokens".
        masked_tokens: whether "tokens" come with a "mask".
        num_classes: of "label"; 0 for none. The table of embeddings has one more row, for the null label.
        vector_dim: of "vector"; 0 for none.
        vector_concat: whether one linear layer reads "vector", whose output is concatenated to the embedding of c_noise
            instead of added, as AudioLDM's FiLM of an embedding of CLAP (arXiv:2301.12503).
        num_sizes: numbers among "sizes"; 0 for none.
        sizes_dim: size of the sinusoidal embedding of each of these.
        attention_implementation: see `attention.dot_product_attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.

    Raises:
        ValueError: lists of other lengths than there are levels, or a size that the levels do not divide.
    """

    image_size: int
    in_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    transformer_layers: tuple[int, ...] = (1, 1, 1, 0)
    mid_transformer_layers: int | None = None
    num_attention_heads: int | tuple[int, ...] = 8
    only_cross_attention: bool | tuple[bool, ...] = False
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    dropout: float = 0.0
    cross_attention: bool = True
    token_dim: int = 768
    max_tokens: int = 77
    masked_tokens: bool = False
    num_classes: int = 0
    vector_dim: int = 0
    vector_concat: bool = False
    num_sizes: int = 0
    sizes_dim: int = 256
    attention_implementation: str | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        check(bool(self.widths), "block_out_channels", self.widths, "channels of at least one level")
        if min(*self.widths, self.layers_per_block) < 1:
            raise ValueError(
                f"block_out_channels={self.widths}, layers_per_block={self.layers_per_block}: all must be at least 1."
            )
        if self.vector_concat and (not self.vector_dim or self.num_classes or self.num_sizes):
            raise ValueError(
                "vector_concat=True needs vector_dim > 0, no num_classes and no num_sizes: they are "
                f"{self.vector_dim}, {self.num_classes} and {self.num_sizes}."
            )
        layers.check_divides("image_size", self.image_size, self.divisor)
        for name in ("transformer_layers", "num_attention_heads", "only_cross_attention"):
            self.by_level(name)
        check(
            min(self.by_level("transformer_layers")) >= 0, "transformer_layers", self.transformer_layers, "at least 0"
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return self.block_out_channels

    @property
    def divisor(self) -> int:
        """What the levels divide the sides of x by."""
        return 2 ** (len(self.widths) - 1)

    @property
    def skips(self) -> list[int]:
        """Channels of the activations of the encoder that the decoder reads, in the order in which they arise."""
        levels = [[width] * (self.layers_per_block + (i + 1 < len(self.widths))) for i, width in enumerate(self.widths)]
        return [self.widths[0], *(c for level in levels for c in level)]

    @property
    def context_dim(self) -> int:
        """Width of what the transformers read besides the pixels; 0 for nothing."""
        return self.token_dim if self.cross_attention else 0

    @property
    def emb_dim(self) -> int:
        """Size of the embedding that the residual blocks read."""
        return 4 * self.widths[0] * (2 if self.vector_concat else 1)

    def by_level(self, name: str) -> tuple[int, ...]:
        """The field `name`, repeated for each level if it is one value. ValueError: a sequence of another length."""
        value = getattr(self, name)
        values = tuple(value) if isinstance(value, Sequence) else (value,) * len(self.widths)
        if len(values) != len(self.widths):
            raise ValueError(
                f"{name}={value} has {len(values)} entries; block_out_channels has {len(self.widths)} levels."
            )
        return values

    def depth(self, level: int | None) -> int:
        """Transformer blocks after each residual block of a level; None is the middle."""
        depths = self.by_level("transformer_layers")
        if level is not None:
            return depths[level]
        last = next((depth for depth in reversed(depths) if depth), 1)
        return last if self.mid_transformer_layers is None else self.mid_transformer_layers

    def conditions(self, *, image_shape: tuple[int, ...] = (), control_shape: tuple[int, ...] = ()) -> Conditions:
        """The conditions of a network of these sizes, with or without an image."""
        return Conditions(
            num_classes=self.num_classes,
            vector_dim=self.vector_dim,
            num_sizes=self.num_sizes,
            token_dim=self.context_dim,
            max_tokens=self.max_tokens if self.cross_attention else 0,
            unmasked=not self.masked_tokens,
            image_shape=image_shape,
            control_shape=control_shape,
        )

    def resnet(self, c_in: int, c_out: int, *, rngs: nnx.Rngs) -> ResnetBlock:
        """One residual block."""
        options = dict(num_groups=self.norm_num_groups, dropout=self.dropout, epsilon=EPSILON)
        return ResnetBlock(c_in, c_out, self.emb_dim, **options, rngs=rngs)

    def transformers(self, level: int | None, count: int, *, rngs: nnx.Rngs) -> list[Transformer2DModel]:
        """`count` transformers of a level, or of the middle with None; an empty list where their depth is 0."""
        i, depth = -1 if level is None else level, self.depth(level)
        return [
            Transformer2DModel(
                self.widths[i],
                self.context_dim,
                depth=depth,
                num_heads=self.by_level("num_attention_heads")[i],
                num_groups=self.norm_num_groups,
                only_cross_attention=level is not None and bool(self.by_level("only_cross_attention")[i]),
                use_linear_projection=self.use_linear_projection,
                implementation=self.attention_implementation,
                rngs=rngs,
            )
            for _ in range(count if depth else 0)
        ]
