"""The encoder of T5 (arXiv:1910.10683) and of its version 1.1, the text encoders of Imagen and its successors."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32

from diffusion_jax.networks import transformer


class T5Encoder(nnx.Module):
    """A transformer over token ids: [batch, n] -> [batch, n, d_model].

    Positions enter through a relative bias of the attention logits, one number per head and distance, which all blocks
    share. Normalisations divide by the root mean square (arXiv:1910.07467), and no layer has a bias. Attention logits
    are unscaled; the initialisation of the queries absorbs 1 / sqrt(d_kv).

    Args:
        vocab_size: number of ids.
        d_model: width.
        d_kv: width of one head.
        d_ff: width of the hidden layers of the perceptrons.
        num_layers: number of blocks.
        num_heads: attention heads.
        feed_forward_proj: "relu" (version 1.0) or "gated-gelu" (1.1).
        relative_attention_num_buckets: of distances, half for each direction; even.
        relative_attention_max_distance: from which on all share a bucket.
        layer_norm_epsilon: of the normalisations.
        attention_implementation: see `attention.dot_product_attention`.
        rngs: randomness of the initial parameters.

    Raises:
        ValueError: an unknown `feed_forward_proj`, or buckets that do not fit.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 32128,
        d_model: int = 512,
        d_kv: int = 64,
        d_ff: int = 2048,
        num_layers: int = 6,
        num_heads: int = 8,
        feed_forward_proj: str = "gated-gelu",
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 128,
        layer_norm_epsilon: float = 1e-6,
        attention_implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        kinds = {"relu": ("relu", False), "gated-gelu": ("gelu_tanh", True)}
        if feed_forward_proj not in kinds:
            raise ValueError(f"feed_forward_proj={feed_forward_proj!r} is unknown; choose one of {', '.join(kinds)}.")
        buckets = relative_attention_num_buckets
        if buckets < 4 or buckets % 4 or relative_attention_max_distance <= buckets // 4:
            raise ValueError(
                f"relative_attention_num_buckets={buckets} must be a multiple of 4, and a quarter of them less than "
                f"relative_attention_max_distance={relative_attention_max_distance}."
            )
        activation, gated = kinds[feed_forward_proj]
        self.num_buckets = buckets
        self.max_distance = relative_attention_max_distance
        self.shared = nnx.Embed(vocab_size, d_model, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.relative_attention_bias = transformer.embedding(buckets, num_heads, rngs=rngs)
        norm = functools.partial(nnx.RMSNorm, d_model, epsilon=layer_norm_epsilon, rngs=rngs)
        self.layers = nnx.List(
            [
                transformer.Block(
                    norm,
                    transformer.Attention(
                        d_model,
                        num_heads,
                        head_dim=d_kv,
                        use_bias=False,
                        use_out_bias=False,
                        scale=1.0,
                        implementation=attention_implementation,
                        rngs=rngs,
                    ),
                    transformer.MLP(d_model, d_ff, activation=activation, gated=gated, use_bias=False, rngs=rngs),
                )
                for _ in range(num_layers)
            ]
        )
        self.final_layer_norm = norm()

    def __call__(
        self, ids: Int[Array, "batch n"], mask: Bool[Array, "batch n"] | None = None
    ) -> Float[Array, "batch n d_model"]:
        """`mask` is True for text and False for padding; without it all positions are attended to."""
        h = self.shared(ids)
        bucket = buckets(ids.shape[1], self.num_buckets, self.max_distance)
        bias = jnp.moveaxis(self.relative_attention_bias(bucket), -1, 0)[None]
        for block in self.layers:
            h = block(h, mask=mask, bias=bias)
        return self.final_layer_norm(h)


def buckets(n: int, num_buckets: int, max_distance: int) -> Int32[np.ndarray, "n n"]:
    """The bucket of the relative bias of position i (row) to position j (column): arXiv:1910.10683, section 2.1.

    Half of the buckets are for j > i. Of the others, m = num_buckets / 4 are for the distances 0..m - 1 each, and the
    rest divide log(distance) from m to `max_distance` evenly; larger distances are in the last bucket.
    """
    offset = np.arange(n)[None, :] - np.arange(n)[:, None]
    distance, half, exact = np.abs(offset), num_buckets // 2, num_buckets // 4
    # In float32, whose rounding decides at the borders, as it did when the networks were trained.
    logs = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    far = exact + (logs / np.float32(math.log(max_distance / exact)) * (half - exact)).astype(np.int32)
    return (half * (offset > 0) + np.where(distance < exact, distance, np.minimum(far, half - 1))).astype(np.int32)
