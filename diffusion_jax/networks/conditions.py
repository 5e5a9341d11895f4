"""The named conditions of a model: their shapes, what stands for none of them, and dropping them in training."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from diffusion_jax.types import Cond, Spec

NO_RATES: Mapping[str, float] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """Which conditions a network reads, or a guidance steers towards. Any of them go together.

    | name | in a batch | kind | none |
    |---|---|---|---|
    | `label` | int [batch], in 0..num_classes - 1 | class | num_classes |
    | `vector` | float [batch, vector_dim] | numbers | zeros |
    | `sizes` | int [batch, num_sizes] | whole numbers, such as the size and crop of an image | zeros |
    | `tokens` | int [batch, max_tokens], in 1..vocabulary - 1, 0 is padding | text, read by the network | padding |
    | `tokens`, `mask` | float [batch, max_tokens, token_dim], bool [batch, max_tokens] | text or boxes that another \
network has read | empty mask |
    | `image` | float [batch, *image_shape] | concatenated to x: a semantic map, a smaller image | zeros |
    | `control` | float [batch, *control_shape] | image that a ControlNet reads | zeros |

    With a `vocabulary`, tokens are of the third kind and `token_dim` is the width of the network that reads them.
    Where they are `unmasked`, vectors have no mask: every place counts, and zeros stand for none.

    Raises:
        ValueError: a negative number, or tokens without a length.
    """

    num_classes: int = 0
    vector_dim: int = 0
    num_sizes: int = 0
    token_dim: int = 0
    vocabulary: int = 0
    max_tokens: int = 0
    unmasked: bool = False
    image_shape: tuple[int, ...] = ()
    control_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("num_classes", "vector_dim", "num_sizes", "token_dim", "vocabulary", "max_tokens"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 0, for no such condition")
        if bool(self.token_dim) != bool(self.max_tokens) or (self.vocabulary and not self.token_dim):
            raise ValueError(
                f"token_dim={self.token_dim}, max_tokens={self.max_tokens} and vocabulary={self.vocabulary}: tokens "
                "need both a width and a length, and have a vocabulary where they are integers"
            )

    def __or__(self, other: Conditions) -> Conditions:
        """The conditions of both; where both have one, that of `self`."""
        names = [field.name for field in dataclasses.fields(self)]
        return Conditions(**{name: getattr(self, name) or getattr(other, name) for name in names})

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of one example, by name."""
        given = jax.ShapeDtypeStruct
        shapes = {}
        if self.num_classes:
            shapes["label"] = given((), np.int32)
        if self.vector_dim:
            shapes["vector"] = given((self.vector_dim,), np.float32)
        if self.num_sizes:
            shapes["sizes"] = given((self.num_sizes,), np.int32)
        if self.vocabulary:
            shapes["tokens"] = given((self.max_tokens,), np.int32)
        elif self.token_dim:
            shapes["tokens"] = given((self.max_tokens, self.token_dim), np.float32)
            if not self.unmasked:
                shapes["mask"] = given((self.max_tokens,), np.bool_)
        if self.image_shape:
            shapes["image"] = given(self.image_shape, np.float32)
        if self.control_shape:
            shapes["control"] = given(self.control_shape, np.float32)
        return shapes

    @property
    def specs(self) -> dict[str, Spec]:
        """One entry of each condition, by name."""
        values = {"label": self.num_classes, "tokens": self.vocabulary}
        return {name: Spec(x.shape, x.dtype.name, values=values.get(name, 0)) for name, x in self.shapes.items()}

    def of(self, batch: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The conditions among the entries of a batch, None where there are none. ValueError: one is missing."""
        if batch is None or not self.shapes:
            return None
        missing = [name for name in self.shapes if name not in batch]
        if missing:
            raise ValueError(f"the condition {missing[0]!r} is missing; there are {', '.join(batch) or 'none'}")
        return {name: batch[name] for name in self.shapes}

    def null(self, batch: int = 1) -> Cond:
        """What stands for no condition, `batch` times; None where there are no conditions."""
        return self._null(batch) or None

    def dropped(self, key: Key[Array, ""], cond: Cond, rate: float, rates: Mapping[str, float] = NO_RATES) -> Cond:
        """`cond` with all conditions of a row replaced by none, in each row with probability `rate`.

        A network so trained is conditional and unconditional in one (arXiv:2207.12598, algorithm 1). Beside that, and
        independently of it and of each other, a condition named in `rates` is replaced with the probability there, a
        mask with its tokens: the network learns what each condition does without the others (arXiv:2211.09800,
        section 3.2.1).
        """
        if cond is None or (rate == 0 and not any(rates.values())):
            return cond
        rows = jax.tree.leaves(cond)[0].shape[:1]
        together, null = jax.random.bernoulli(key, rate, rows), self._null(1)
        alone = {
            name: jax.random.bernoulli(jax.random.fold_in(key, i), rates[name], rows)
            for i, name in enumerate(self.shapes)
            if rates.get(name)
        }

        def replaced(name: str, c: Array) -> Array:
            drop = together | alone.get("tokens" if name == "mask" else name, False)
            return jnp.where(drop.reshape(-1, *(1,) * (c.ndim - 1)), null[name].astype(c.dtype), c)

        return {name: replaced(name, c) for name, c in cond.items()}

    def check(self, cond: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError unless `cond` holds these conditions, of the right shapes and with ids in range."""
        for name, value in self.of(cond).items() if self.shapes else ():
            shape = self.shapes[name].shape
            if np.shape(value)[1:] != shape:
                raise ValueError(
                    f"condition {name!r} has shape {np.shape(value)}; it must be [number, {', '.join(map(str, shape))}]"
                )
        for name, most in (("label", self.num_classes), ("tokens", self.vocabulary)):
            if most and np.size(cond[name]):
                low, high = int(np.min(cond[name])), int(np.max(cond[name]))
                if low < 0 or high >= most:
                    raise ValueError(f"{name} {low if low < 0 else high} is out of range; it must be in 0..{most - 1}")

    def _null(self, batch: int) -> dict[str, Array]:
        return {
            name: jnp.full((batch, *entry.shape), self.num_classes if name == "label" else 0, entry.dtype)
            for name, entry in self.shapes.items()
        }


NO_CONDITIONS = Conditions()
