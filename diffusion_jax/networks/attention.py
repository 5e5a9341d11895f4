"""Attention: the one function that computes it for every network, and self-attention over the pixels of an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from diffusion_jax.networks import layers


def dot_product_attention(
    query: Float[Array, "batch n c"],
    key: Float[Array, "batch m c"],
    value: Float[Array, "batch m c"],
    num_heads: int,
    implementation: str | None = None,
    *,
    mask: Bool[Array, "batch m"] | None = None,
    bias: Float[Array, "#batch #heads n m"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "batch n c"]:
    """Multi-head attention, softmax(scale q k^T + bias) v, with the softmax in float32.

    Args:
        query: projected queries, heads side by side in the channels; `key` and `value` likewise.
        key: projected keys.
        value: projected values.
        num_heads: number of heads; divides c.
        implementation: of `jax.nn.dot_product_attention`: None (automatic), "xla" or "cudnn" (flash attention on GPUs,
            in bfloat16).
        mask: the positions that are attended to; for a row without any the result is finite but unused.
        bias: of the logits.
        causal: whether a position attends to itself and earlier ones only.
        scale: 1 / sqrt(c / num_heads) by default.
    """
    heads = [x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value)]
    mask = None if mask is None else mask[:, None, None, :]
    attended = jax.nn.dot_product_attention(
        *heads, bias=bias, mask=mask, scale=scale, is_causal=causal, implementation=implementation
    )
    return attended.reshape(query.shape)


def fused_attention(
    qkv: Float[Array, "batch n c3"],
    num_heads: int,
    order: str = "3hc",
    implementation: str | None = None,
    *,
    mask: Bool[Array, "batch n"] | None = None,
) -> Float[Array, "batch n c"]:
    """Self-attention whose queries, keys and values come from one layer, in the channel `order` of `split_qkv`."""
    return dot_product_attention(*split_qkv(qkv, num_heads, order), num_heads, implementation, mask=mask)


def split_qkv(
    qkv: Float[Array, "batch n c3"], num_heads: int, order: str
) -> tuple[Float[Array, "batch n c"], Float[Array, "batch n c"], Float[Array, "batch n c"]]:
    """Queries, keys and values, heads side by side in the channels, from the output of one layer.

    `order` says how its channels are counted, the slowest index first: "3" is that of query, key and value, "h" that of
    the heads and "c" that of the channels of one. "h3c" is ADM's, "3hc" its "new" order and DiT's, "hc3" that of EDM's
    networks.
    """
    if order == "3hc":
        query, key, value = jnp.split(qkv, 3, -1)
        return query, key, value
    batch, n, c3 = qkv.shape
    sizes = {"3": 3, "h": num_heads, "c": c3 // (3 * num_heads)}
    parts = qkv.reshape(batch, n, *(sizes[axis] for axis in order))
    parts = jnp.transpose(parts, [2 + order.index("3"), 0, 1, 2 + order.index("h"), 2 + order.index("c")])
    query, key, value = parts.reshape(3, batch, n, c3 // 3)
    return query, key, value


def check_heads(num_heads: int, channels: int) -> int:
    """`num_heads`, or ValueError unless it is a positive divisor of `channels`."""
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"num_heads={num_heads} must be a positive divisor of the number of channels, {channels}.")
    return num_heads


def head_count(channels: int, num_heads: int, head_channels: int | None, field: str) -> int:
    """The number of attention heads: `num_heads`, or as many as have `head_channels`, which `field` names, if given.

    Raises:
        ValueError: if it does not divide `channels`.
    """
    if head_channels is None:
        return check_heads(num_heads, channels)
    if head_channels < 1 or channels % head_channels:
        raise ValueError(f"{field}={head_channels} must be a positive divisor of the number of channels, {channels}.")
    return channels // head_channels


class SelfAttention(nnx.Module):
    """Residual self-attention over all pixels: x + out(attention(q, k, v)) of GroupNorm(x) (arXiv:2006.11239 B).

    Args:
        channels: channels of the input and the output.
        num_heads: number of heads; divides `channels`.
        num_groups: groups of the normalisation.
        epsilon: of the normalisation.
        scale: of the initialiser of the output projection; 0 makes the layer start as the identity.
        init: of the kernels, see `layers.conv`.
        implementation: see `dot_product_attention`.
        rngs: randomness of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 1,
        num_groups: int = 32,
        epsilon: float = 1e-6,
        scale: float = 0.0,
        init: str = "fan_avg",
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_heads = check_heads(num_heads, channels)
        self.implementation = implementation
        self.group_norm = layers.GroupNorm(channels, num_groups=num_groups, epsilon=epsilon)
        self.to_q = layers.linear(channels, channels, init=init, rngs=rngs)
        self.to_k = layers.linear(channels, channels, init=init, rngs=rngs)
        self.to_v = layers.linear(channels, channels, init=init, rngs=rngs)
        self.to_out = layers.linear(channels, channels, scale=scale, init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        h = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])
        h = dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h), self.num_heads, self.implementation)
        return x + self.to_out(h).reshape(x.shape)
