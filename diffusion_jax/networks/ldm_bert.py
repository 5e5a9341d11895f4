"""The text encoder of latent diffusion's text-to-image model, which was trained with it (arXiv:2112.10752, E.2.1)."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from diffusion_jax.networks import transformer
from diffusion_jax.networks.clip import Encoded


class LDMBert(nnx.Module):
    """A transformer over BERT's token ids, with one state per token: [batch, n] -> [batch, n, d_model].

    Attention sees padding like text, as in training. `to_logits` in the files is unused.

    Args:
        vocab_size: number of ids.
        max_position_embeddings: length of the longest text.
        d_model: width.
        encoder_layers: number of blocks.
        encoder_ffn_dim: width of the hidden layers of the perceptrons.
        encoder_attention_heads: attention heads.
        head_dim: width of one head.
        attention_implementation: see `attention.dot_product_attention`.
        rngs: randomness of the initial parameters.
    """

    token_table = "embed_tokens"  # attribute of the table of token vectors

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        max_position_embeddings: int = 77,
        d_model: int = 1280,
        encoder_layers: int = 32,
        encoder_ffn_dim: int = 5120,
        encoder_attention_heads: int = 8,
        head_dim: int = 64,
        attention_implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.max_position_embeddings = max_position_embeddings
        self.embed_tokens = transformer.embedding(vocab_size, d_model, rngs=rngs)
        self.embed_positions = transformer.embedding(max_position_embeddings, d_model, rngs=rngs)
        norm = functools.partial(transformer.layer_norm, d_model, rngs=rngs)
        self.layers = nnx.List(
            [
                transformer.Block(
                    norm,
                    transformer.Attention(
                        d_model,
                        encoder_attention_heads,
                        head_dim=head_dim,
                        use_bias=False,
                        implementation=attention_implementation,
                        rngs=rngs,
                    ),
                    transformer.MLP(d_model, encoder_ffn_dim, activation="gelu", rngs=rngs),
                )
                for _ in range(encoder_layers)
            ]
        )
        self.layer_norm = norm()
        self.to_logits = transformer.linear(d_model, vocab_size, rngs=rngs)

    def __call__(self, ids: Int[Array, "batch n"]) -> Encoded:
        transformer.check_length(ids.shape[1], self.max_position_embeddings)
        h = self.embed_tokens(ids) + self.embed_positions(jnp.arange(ids.shape[1]))
        for block in self.layers:
            h = block(h)
        return Encoded(hidden=self.layer_norm(h), pooled=None)
