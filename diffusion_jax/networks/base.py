"""What all denoising networks have in common: the check of x, the reading of conditions, the call."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from diffusion_jax.networks import conditioning
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.types import Cond, Embedded


class DenoisingNetwork(nnx.Module):
    """A network F(x, c_noise, cond) of noisy data x, the noise label c_noise and conditions; the base class.

    A network declares its `conditions` and `input_shape` in its constructor, overrides `embedders` if it reads any
    conditions, and computes its output in `forward`. Without `conditions`, cond is ignored; with some, cond=None is
    the null condition in every row. With `rngs` dropout is active.

    Attributes:
        conditions: that the network reads, by name.
        input_shape: of one example; None for an axis of any size that `divisor` divides.
        divisor: what the levels of the network divide such axes by.
    """

    conditions: Conditions = NO_CONDITIONS
    input_shape: tuple[int | None, ...]
    divisor: int = 1

    def __call__(
        self,
        x: Num[Array, "batch *shape"],
        c_noise: Float[Array, "batch *times"],
        cond: Cond = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch *out"]:
        check_input(x, self.input_shape, self.divisor)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return self.forward(x, c_noise, self.embed(cond, x.shape[0]), rngs=rngs)
        embedded = self.embed(cond, x.shape[0], x.dtype)
        # Tables of embeddings are float32 whatever the dtype of the computation.
        return self.forward(x, c_noise, conditioning.cast(embedded, x.dtype), rngs=rngs)

    def forward(
        self,
        x: Num[Array, "batch *shape"],
        c_noise: Float[Array, "batch *times"],
        cond: Embedded,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch *out"]:
        """The output for an x of the right shape and embedded conditions."""
        raise NotImplementedError

    def features(
        self, x: Float[Array, "batch *shape"], c_noise: Float[Array, "batch *times"], cond: Cond = None
    ) -> list[Float[Array, "batch _ _ _"]]:
        """The outputs of the blocks of the decoder path, without dropout; arguments as those of a call.

        Raises NotImplementedError for a network that has no such path.
        """
        check_input(x, self.input_shape, self.divisor)
        embedded = conditioning.cast(self.embed(cond, x.shape[0], x.dtype), x.dtype)
        return self.activations(x, c_noise, embedded, rngs=None)

    def activations(
        self, x: Float[Array, "batch *shape"], c_noise: Float[Array, "batch *times"], cond: Embedded, *, rngs: None
    ) -> list[Float[Array, "batch _ _ _"]]:
        """The outputs of the blocks of the decoder path for embedded conditions. Raises NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} has no decoder path")

    def embed(self, cond: Cond, batch: int | None = None, dtype: DTypeLike = jnp.float32) -> Embedded:
        """The embedded conditions, which `__call__` takes instead of cond; computed once per sample.

        cond=None needs the number of rows, `batch`, and the `dtype` of the computation.
        """
        return conditioning.embed(cond, self.conditions, batch, dtype, **self.embedders())

    def embedders(self) -> dict[str, Callable[..., Array] | None]:
        """The keyword arguments of `conditioning.embed`: what reads the conditions of each kind."""
        return {}


def check_input(x: Num[Array, "batch *shape"], shape: tuple[int | None, ...], divisor: int = 1) -> None:
    """Raises ValueError unless x is [batch, *shape], where None is any positive multiple of `divisor`."""
    sizes = x.shape[1:]
    fits = len(sizes) == len(shape) and all(
        size == expected if expected is not None else size >= divisor and size % divisor == 0
        for size, expected in zip(sizes, shape, strict=True)
    )
    if not fits:
        axes = ", ".join(f"a multiple of {divisor}" if size is None else str(size) for size in shape)
        raise ValueError(f"x has shape {x.shape}; this network takes [batch, {axes}].")
