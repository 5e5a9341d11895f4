"""TarFlow: an autoregressive normalizing flow of causal transformers over patches (arXiv:2412.06329)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_jax.networks import layers, transformer
from diffusion_jax.networks.attention import head_count
from diffusion_jax.networks.conditions import Conditions
from diffusion_jax.networks.invertible import Affine, InvertibleNetwork, doubled, guided


class TarFlow(InvertibleNetwork):
    """An invertible network z = f(x) of `num_blocks` autoregressive transformations of the patches of x.

    x is cut into tokens, patches of `patch_size` along each axis but the last, the channels. Block k transforms token i
    by an affine map that a causal transformer computes from the tokens before it (arXiv:2412.06329, eq. 5),

        z_i = (x_i - b_i) exp(-a_i),    (a_i, b_i) = net_k(x_0, ..., x_{i-1}),    (a_0, b_0) = 0,

    and every other block reads the tokens in reverse order. The Jacobian of a block is triangular, so that log |det| =
    -sum a. `forward` computes all tokens at once; `inverse` computes them one after another, x_i = z_i exp(a_i) + b_i,
    with the keys and values of those before in a cache. The network starts as the identity.

    Args:
        shape: of one example, such as (8, 8, 1), or (n,) for vectors, whose entries are one channel of n.
        patch_size: divides every axis of `shape` but the last, or n.
        channels: width of the transformers.
        num_blocks: autoregressive transformations.
        layers_per_block: layers of each transformer.
        head_dim: width of an attention head; divides `channels`.
        expansion: width of the hidden layer of the perceptrons over `channels`.
        dropout: rate, of the embedded tokens and the output of every layer.
        num_classes: of the condition "label"; 0 for none. The null class has the mean of the embeddings of all classes.
        attention_implementation: see `attention.dot_product_attention`.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: if `patch_size` or `head_dim` does not divide its size, or x does not have the `shape`.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        patch_size: int = 2,
        channels: int = 128,
        num_blocks: int = 4,
        layers_per_block: int = 2,
        head_dim: int = 64,
        expansion: int = 4,
        dropout: float = 0.0,
        num_classes: int = 0,
        attention_implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.input_shape = tuple(shape)
        self.grid = tuple(shape[:-1]) or tuple(shape)
        self.patch_size = patch_size
        for size in self.grid:
            if patch_size < 1 or size % patch_size:
                raise ValueError(f"patch_size={patch_size} must be a positive divisor of {size}, a side of {shape}.")
        self.conditions = Conditions(num_classes=num_classes)
        num_tokens = math.prod(self.grid) // patch_size ** len(self.grid)
        sizes = dict(
            num_tokens=num_tokens,
            token_dim=math.prod(shape) // num_tokens,
            channels=channels,
            num_layers=layers_per_block,
            num_heads=head_count(channels, 1, head_dim, "head_dim"),
            expansion=expansion,
            dropout=dropout,
            num_classes=num_classes,
            implementation=attention_implementation,
        )
        self.blocks = nnx.List([AutoregressiveBlock(**sizes, rngs=rngs) for _ in range(num_blocks)])

    def transform(
        self, x: Float[Array, "batch *shape"], labels: Int[Array, "batch"] | None, *, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch"]]:
        tokens, log_det = self._patches(x), jnp.zeros(len(x), x.dtype)
        for block in self.blocks:
            tokens, change = block(tokens, labels, rngs=rngs)
            tokens, log_det = tokens[:, ::-1], log_det + change  # the next block reads the other way
        return self._image(self._in_order(tokens)), log_det

    def restore(
        self, z: Float[Array, "batch *shape"], labels: Int[Array, "rows"] | None, scale: Float[Array, ""] | None
    ) -> Float[Array, "batch *shape"]:
        tokens = self._in_order(self._patches(z))
        for block in reversed(self.blocks):
            tokens = block.inverse(tokens[:, ::-1], labels, scale)
        return self._image(tokens)

    def _in_order(self, tokens: Float[Array, "batch n d"]) -> Float[Array, "batch n d"]:
        """Tokens as they are after all blocks in the order of x, or back."""
        return tokens[:, ::-1] if len(self.blocks) % 2 else tokens

    def _patches(self, x: Float[Array, "batch *shape"]) -> Float[Array, "batch n d"]:
        p, axes = self.patch_size, len(self.grid)
        x = x.reshape(len(x), *(size for side in self.grid for size in (side // p, p)), -1)
        x = x.transpose(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
        return x.reshape(len(x), math.prod(self.grid) // p**axes, -1)

    def _image(self, tokens: Float[Array, "batch n d"]) -> Float[Array, "batch *shape"]:
        p, axes = self.patch_size, len(self.grid)
        x = tokens.reshape(len(tokens), *(side // p for side in self.grid), *(p,) * axes, -1)
        x = x.transpose(0, *(axis for i in range(1, axes + 1) for axis in (i, axes + i)), 2 * axes + 1)
        return x.reshape(len(tokens), *self.input_shape)


class AutoregressiveBlock(nnx.Module):
    """One autoregressive transformation of tokens in their order: [batch, n, token_dim] -> the same, and log |det|."""

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        channels: int,
        num_layers: int,
        num_heads: int,
        expansion: int,
        dropout: float,
        num_classes: int,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        self.channels = channels
        self.dropout = dropout
        small = nnx.initializers.normal(0.01)
        self.proj_in = layers.linear(token_dim, channels, rngs=rngs)
        self.pos_embed = nnx.Param(small(rngs.params(), (num_tokens, channels)))
        self.class_embed = nnx.Param(small(rngs.params(), (num_classes, channels))) if num_classes else None

        def layer() -> transformer.Block:
            attention = transformer.Attention(
                channels, num_heads, causal=True, implementation=implementation, rngs=rngs
            )
            mlp = transformer.MLP(channels, expansion * channels, activation="gelu", rngs=rngs)
            return transformer.Block(lambda: transformer.layer_norm(channels, rngs=rngs), attention, mlp)

        self.attn_blocks = nnx.List([layer() for _ in range(num_layers)])
        self.proj_out = layers.linear(channels, 2 * token_dim, scale=0.0, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch n d"], labels: Int[Array, "batch"] | None, *, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "batch n d"], Float[Array, "batch"]]:
        h = self.proj_in(x) + self.pos_embed[...] + self._classes(labels)
        h = layers.dropout(h, self.dropout, rngs)
        for block in self.attn_blocks:
            h = layers.dropout(block(h), self.dropout, rngs)
        # The output at token i is for token i + 1.
        out = jnp.pad(self.proj_out(h)[:, :-1], ((0, 0), (1, 0), (0, 0)))
        a, b = jnp.split(out, 2, axis=-1)
        return (x - b) * jnp.exp(-a), -a.sum((1, 2))

    def inverse(
        self, z: Float[Array, "batch n d"], labels: Int[Array, "rows"] | None, scale: Float[Array, ""] | None
    ) -> Float[Array, "batch n d"]:
        """x with block(x) = z, token by token. With a `scale`, `labels` are those of z, then as many null labels."""
        rows = len(z) if scale is None else 2 * len(z)
        classes, positions = self._classes(labels), self.pos_embed[...]
        empty = jnp.zeros((rows, z.shape[1], self.channels), z.dtype)
        caches = [transformer.Cache(empty, empty) for _ in self.attn_blocks]

        def token(carry: tuple, indexed: tuple[Array, Array]) -> tuple[tuple, Array]:
            caches, affine = carry
            i, z_i = indexed
            x_i = z_i * jnp.exp(affine.a) + affine.b
            h = self.proj_in(x_i if scale is None else doubled(x_i))[:, None] + positions[i] + classes
            new = []
            for block, cache in zip(self.attn_blocks, caches, strict=True):
                h, cache = block.step(h, cache, i)
                new.append(cache)
            after = Affine(*jnp.split(self.proj_out(h[:, 0]), 2, axis=-1))
            return (new, after if scale is None else guided(after, scale)), x_i

        nothing = jnp.zeros(z[:, 0].shape, z.dtype)
        indexed = (jnp.arange(z.shape[1]), z.swapaxes(0, 1))
        _, x = jax.lax.scan(token, (caches, Affine(nothing, nothing)), indexed)
        return x.swapaxes(0, 1)

    def _classes(self, labels: Int[Array, "rows"] | None) -> Float[Array, "rows 1 channels"] | float:
        if labels is None:
            return 0.0
        table = self.class_embed[...]
        return jnp.concatenate([table, table.mean(0, keepdims=True)])[labels][:, None]
