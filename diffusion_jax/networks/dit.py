"""The diffusion transformer, DiT (arXiv:2212.09748)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_jax.networks import layers
from diffusion_jax.networks.attention import fused_attention
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditioning import CrossAttention, TokenEncoder, VectorEmbedding
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.types import Embedded


class DiT(DenoisingNetwork):
    """Diffusion transformer with adaLN-Zero (arXiv:2212.09748, section 3.2).

    [batch, image_size, image_size, in_channels] -> the same with `in_channels` output channels, or twice as many if
    `learn_sigma`: first the prediction, then the interpolation of the log variance. c_noise is a timestep in 0..999.
    Positions enter through a fixed sine-cosine table. XL/2 of the paper is `image_size=32,
    in_channels=4, patch_size=2, hidden_size=1152, depth=28, num_heads=16, num_classes=1000, learn_sigma=True`.
    Attribute names follow the authors' code.

    See `Conditions` for what each condition is. Labels and vectors are added to the embedding of c_noise; tokens are
    read by cross-attention between the self-attention and the MLP of each block (arXiv:2310.00426, section 2.2), and
    with `pool_tokens` added to that embedding too.

    Args:
        image_size: height and width of x (of the latent, in latent diffusion).
        in_channels: channels of x.
        patch_size: side of a patch; every patch is one token.
        hidden_size: width; a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of the blocks' MLP over `hidden_size`.
        num_classes: of the condition "label"; 0 for none. A network without conditions ignores cond; one with
            conditions takes cond=None as the null condition.
        vector_dim: of the condition "vector"; 0 for none.
        token_dim: width of the condition "tokens", or of their encoding if there is a `vocabulary`; 0 for none.
        vocabulary: number of ids of "tokens", which a transformer encodes; 0 if they are vectors with a "mask".
        max_tokens: length of "tokens".
        pool_tokens: whether their mean is also added to the embedding of c_noise, as the whole text in GLIDE
            (arXiv:2112.10741, section 4).
        gap: whether the network of a flow map: c_noise may be [batch, 2], see `layers.embed_times`.
        learn_sigma: whether the output also holds the channels of the variance.
        freq_shift: `downscale_freq_shift` of `layers.sinusoidal_embedding`. diffusers' port has 1, unlike the authors.
        mlp_norm_eps: epsilon of the layer norm before each MLP. diffusers' port has 1e-5 by default.
        attention_implementation: see `attention.dot_product_attention`.
        remat: compute the activations of a block again in the backward pass instead of storing them.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `patch_size` does not divide `image_size`, `num_heads` or 4 does not divide `hidden_size`, there
            are no tokens to pool, or x has another size than the network.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int = 3,
        patch_size: int = 2,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        vector_dim: int = 0,
        token_dim: int = 0,
        vocabulary: int = 0,
        max_tokens: int = 0,
        pool_tokens: bool = False,
        gap: bool = False,
        learn_sigma: bool = False,
        freq_shift: float = 0.0,
        mlp_norm_eps: float = 1e-6,
        attention_implementation: str | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(f"image_size={image_size} must be a multiple of patch_size={patch_size}.")
        if num_heads < 1 or hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of 4 and of num_heads={num_heads}.")
        if pool_tokens and not token_dim:
            raise ValueError("pool_tokens needs tokens, of a width token_dim.")
        self.input_shape = (image_size, image_size, in_channels)
        self.patch_size = patch_size
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.conditions = Conditions(
            num_classes=num_classes,
            vector_dim=vector_dim,
            token_dim=token_dim,
            vocabulary=vocabulary,
            max_tokens=max_tokens,
        )
        self.remat = remat
        self.x_embedder = PatchEmbed(in_channels, hidden_size, patch_size, rngs=rngs)
        self.t_embedder = TimestepEmbedder(hidden_size, freq_shift, rngs=rngs)
        self.h_embedder = TimestepEmbedder(hidden_size, freq_shift, rngs=rngs) if gap else None
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, rngs=rngs) if num_classes else None
        self.add_embedding = VectorEmbedding(vector_dim, hidden_size, rngs=rngs) if vector_dim else None
        self.token_encoder = TokenEncoder(vocabulary, max_tokens, token_dim, rngs=rngs) if vocabulary else None
        self.token_pool = layers.linear(token_dim, hidden_size, rngs=rngs) if pool_tokens else None
        sizes = (hidden_size, num_heads, int(hidden_size * mlp_ratio), token_dim)
        self.blocks = nnx.List(
            [DiTBlock(*sizes, mlp_norm_eps, attention_implementation, rngs=rngs) for _ in range(depth)]
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels, rngs=rngs)

    def forward(
        self,
        x: Float[Array, "batch h w c"],
        c_noise: Float[Array, "batch *times"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch h w out"]:
        emb = layers.embed_times(self.t_embedder, self.h_embedder, c_noise, x.dtype)
        emb = jax.nn.silu(emb if cond.vector is None else emb + cond.vector)
        context = None if cond.context is None else (cond.context, cond.mask)
        h = self.x_embedder(x)
        h = h + position_embedding(x.shape[1] // self.patch_size, h.shape[-1]).astype(h.dtype)
        for block in self.blocks:
            h = layers.call_block(block, h, emb, context, rngs=rngs, remat=self.remat)
        return self._unpatchify(self.final_layer(h, emb))

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        readers = dict(label=self.y_embedder, vector=self.add_embedding, tokens=self.token_encoder)
        return readers | dict(pool=self.token_pool)

    def _unpatchify(self, h: Float[Array, "batch n patch"]) -> Float[Array, "batch h w out"]:
        batch, p, n = h.shape[0], self.patch_size, self.input_shape[0] // self.patch_size
        h = h.reshape(batch, n, n, p, p, self.out_channels)
        return h.transpose(0, 1, 3, 2, 4, 5).reshape(batch, n * p, n * p, self.out_channels)


def position_embedding(grid_size: int, dim: int) -> Float[Array, "n {dim}"]:
    """Fixed sine-cosine table of a square grid, rows of tokens first: [grid_size^2, dim] in float32.

    The first half of the channels encodes the column, the second half the row, each as sin(position w_i), then
    cos(position w_i), with w_i = 10000^(-4 i / dim), i < dim / 4 (arXiv:2111.06377, and the code of arXiv:2212.09748).
    """
    table = layers.sinusoidal_embedding(jnp.arange(grid_size, dtype=jnp.float32), dim // 2, downscale_freq_shift=0.0)
    shape = (grid_size, grid_size, dim // 2)
    columns, rows = jnp.broadcast_to(table[None, :], shape), jnp.broadcast_to(table[:, None], shape)
    return jnp.concatenate([columns, rows], -1).reshape(grid_size**2, dim)


class PatchEmbed(nnx.Module):
    """Cut the image into patches and project each linearly: [batch, h, w, c] -> [batch, tokens, hidden_size]."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int, *, rngs: nnx.Rngs):
        # The fans are those of the equivalent dense layer over one patch.
        init = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1, 2), out_axis=3)
        size = (patch_size, patch_size)
        self.proj = nnx.Conv(in_channels, hidden_size, size, size, padding="VALID", kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch n hidden"]:
        h = self.proj(x)
        return h.reshape(h.shape[0], -1, h.shape[-1])


class TimestepEmbedder(nnx.Module):
    """Sinusoidal embedding of the timestep, cosines first, and a two-layer MLP: [batch] -> [batch, hidden_size]."""

    frequency_embedding_size = 256

    def __init__(self, hidden_size: int, freq_shift: float, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.freq_shift = freq_shift
        self.mlp = Mlp(self.frequency_embedding_size, hidden_size, hidden_size, "silu", init, rngs=rngs)

    def __call__(self, c_noise: Float[Array, "batch"], dtype: jnp.dtype) -> Float[Array, "batch hidden"]:
        emb = layers.sinusoidal_embedding(
            c_noise, self.frequency_embedding_size, flip_sin_to_cos=True, downscale_freq_shift=self.freq_shift
        )
        return self.mlp(emb.astype(dtype))


class LabelEmbedder(nnx.Module):
    """Table of `num_classes` labels and the null label."""

    def __init__(self, num_classes: int, hidden_size: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.embedding_table = nnx.Embed(num_classes + 1, hidden_size, embedding_init=init, rngs=rngs)

    def __call__(self, label: Array) -> Float[Array, "batch hidden"]:
        return self.embedding_table(label)


class Mlp(nnx.Module):
    """fc2(act(fc1(x)))."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        activation: str,
        kernel_init: nnx.Initializer,
        *,
        rngs: nnx.Rngs,
    ):
        self.activation = layers.activation(activation)
        self.fc1 = nnx.Linear(in_features, hidden_features, kernel_init=kernel_init, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_features, out_features, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch out"]:
        return self.fc2(self.activation(self.fc1(x)))


class Attention(nnx.Module):
    """Multi-head self-attention over tokens, with one projection for queries, keys and values."""

    def __init__(self, hidden_size: int, num_heads: int, implementation: str | None, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.implementation = implementation
        self.qkv = layers.linear(hidden_size, 3 * hidden_size, rngs=rngs)
        self.proj = layers.linear(hidden_size, hidden_size, rngs=rngs)

    def __call__(self, x: Float[Array, "batch n c"]) -> Float[Array, "batch n c"]:
        return self.proj(fused_attention(self.qkv(x), self.num_heads, implementation=self.implementation))


class DiTBlock(nnx.Module):
    """Attention and MLP, each scaled, shifted and gated by the embedding; it starts as the identity.

    Between the two is attention to a context of width `token_dim`, unless that is 0.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_hidden: int,
        token_dim: int,
        mlp_norm_eps: float,
        implementation: str | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = _layer_norm(hidden_size, rngs)
        self.attn = Attention(hidden_size, num_heads, implementation, rngs=rngs)
        cross = dict(num_heads=num_heads, norm=_layer_norm(hidden_size, rngs), rngs=rngs)
        self.cross_attn = CrossAttention(hidden_size, token_dim, **cross) if token_dim else None
        self.norm2 = _layer_norm(hidden_size, rngs, mlp_norm_eps)
        self.mlp = Mlp(hidden_size, mlp_hidden, hidden_size, "gelu_tanh", layers.fan_avg_uniform(), rngs=rngs)
        self.adaLN_modulation = layers.linear(hidden_size, 6 * hidden_size, scale=0.0, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch n c"],
        emb: Float[Array, "batch c"],
        context: tuple[Array, Array] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch n c"]:
        modulation = jnp.split(self.adaLN_modulation(emb)[:, None, :], 6, -1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate_msa * self.attn(self.norm1(x) * (1 + scale_msa) + shift_msa)
        x = x if self.cross_attn is None else self.cross_attn(x, *context)
        return x + gate_mlp * self.mlp(self.norm2(x) * (1 + scale_mlp) + shift_mlp)


class FinalLayer(nnx.Module):
    """Modulated layer norm and a dense layer to the pixels of each patch; the output starts at zero."""

    def __init__(self, hidden_size: int, out_features: int, *, rngs: nnx.Rngs):
        self.norm_final = _layer_norm(hidden_size, rngs)
        self.linear = layers.linear(hidden_size, out_features, scale=0.0, rngs=rngs)
        self.adaLN_modulation = layers.linear(hidden_size, 2 * hidden_size, scale=0.0, rngs=rngs)

    def __call__(self, x: Float[Array, "batch n c"], emb: Float[Array, "batch c"]) -> Float[Array, "batch n out"]:
        shift, scale = jnp.split(self.adaLN_modulation(emb)[:, None, :], 2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


def _layer_norm(features: int, rngs: nnx.Rngs, epsilon: float = 1e-6) -> nnx.LayerNorm:
    return layers.layer_norm(features, epsilon=epsilon, affine=False, rngs=rngs)
