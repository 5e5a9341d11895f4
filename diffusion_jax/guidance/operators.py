"""Measurement operators y = A(x) + n of inverse problems, with what their adjoint and pseudo-inverse follow from.

`noise` is the standard deviation of n in the units of x, which is in [-1, 1]: what a paper gives for [0, 1] is doubled.
The operators themselves are in `filters.py`, `scans.py` and `jpeg.py`; those of inpainting are here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.types import check

_LEAST = 1e-6  # eigenvalues of A A^T below this part of the largest are 0
_AGREES = 1e-3  # relative error of A A^+ A = A in which a pseudo-inverse is one
Shape = tuple[int, ...]
Mask = Array | None  # of each row, [batch, h, w, 1]: 1 where x is known; None for an operator without one
# (v, mask, f) -> f(A A^T) v, where f maps eigenvalues to numbers, elementwise.
Gram = Callable[[Array, Mask, Callable[[Array], Array]], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operator:
    """A measurement y = A(x) of examples x [batch, *shape], row by row, in noise of standard deviation `noise`.

    Attributes:
        shape: of one x.
        apply: (x, mask) -> y. Everything but JPEG is differentiable.
        gram: (v, mask, f) -> f(A A^T) v for a linear operator whose singular values are known; only its component in
            the range of A counts. None: A A^T is inverted by conjugate gradients.
        inverse: (y, mask) -> A^+ y, where it does not follow from `gram`. For an operator that is not linear, h^+ with
            h(h^+(h(x))) = h(x).
        draw: rng -> the mask of one row, for operators that differ between rows; it is the last channel of an entry.
        noise: standard deviation of the noise, in the units of x.
        linear: whether A is linear.
        differentiable: whether A has a useful derivative.
        estimates: (y, mask) -> x by name, usual estimates of x that methods are compared with.
    """

    shape: Shape
    apply: Callable[[Array, Mask], Array]
    gram: Gram | None = None
    inverse: Callable[[Array, Mask], Array] | None = None
    draw: Callable[[np.random.Generator], np.ndarray] | None = None
    noise: float = 0.0
    linear: bool = True
    differentiable: bool = True
    estimates: Mapping[str, Callable[[Array, Mask], Array]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(0 <= self.noise < math.inf, "noise", self.noise, "at least 0, in the units of x, which is in [-1, 1]")

    def __call__(self, x: Float[Array, "batch *shape"], mask: Mask = None) -> Float[Array, "batch *out"]:
        """A(x)."""
        return self.apply(x, mask)

    def transpose(self, v: Float[Array, "batch *out"], mask: Mask = None) -> Float[Array, "batch *shape"]:
        """A^T v, by transposing `apply`."""
        x = jax.ShapeDtypeStruct((v.shape[0], *self.shape), v.dtype)
        (w,) = jax.linear_transpose(lambda x: self.apply(x, mask), x)(v)
        return w

    @property
    def has_pinv(self) -> bool:
        """Whether `pinv` can be evaluated."""
        return self.gram is not None or self.inverse is not None

    def pinv(self, y: Float[Array, "batch *out"], mask: Mask = None) -> Float[Array, "batch *shape"]:
        """A^+ y = A^T (A A^T)^+ y, the x of least norm among those whose A(x) is nearest to y."""
        if self.inverse is not None:
            return self.inverse(y, mask)
        return self.transpose(self.gram(y, mask, lambda e: reciprocal(e, e)), mask)

    @property
    def entry(self) -> Shape:
        """Shape of the measurement of one example, with the mask as its last channel if there is one."""
        *sides, channels = self.out
        return (*sides, channels + 1) if self.draw else self.out

    @property
    def out(self) -> Shape:
        """Shape of y of one example."""
        mask = jnp.asarray(self.draw(np.random.default_rng(0))[None]) if self.draw else None
        return jax.eval_shape(lambda x: self.apply(x, mask), jnp.zeros((1, *self.shape))).shape[1:]

    @property
    def gives_images(self) -> bool:
        """Whether y is an image of as many channels as x, of the same proportions."""
        if len(self.shape) != 3 or len(self.out) != 3:
            return False
        (height, width, channels), (rows, columns, depth) = self.shape, self.out
        return channels == depth and height * columns == width * rows

    def split(self, entry: Float[Array, "batch *entry"]) -> tuple[Float[Array, "batch *out"], Mask]:
        """(y, mask) of the measurements of a batch."""
        return (entry[..., :-1], entry[..., -1:]) if self.draw else (entry, None)

    def known(self, y: Float[Array, "batch *out"], mask: Mask) -> Float[Array, "batch *out"]:
        """1 where y was measured: everywhere, or where the mask is 1."""
        return jnp.ones_like(y) if mask is None else jnp.broadcast_to(mask, y.shape).astype(y.dtype)

    def measure(self, x: Float[np.ndarray, "n *shape"], seed: int = 0) -> Float[np.ndarray, "n *entry"]:
        """Measurements of examples with their noise; that of example i depends on `seed` and i only."""
        rngs = [np.random.default_rng((seed, i)) for i in range(len(x))]
        mask = jnp.asarray(np.stack([self.draw(rng) for rng in rngs]), jnp.float32) if self.draw else None
        y = jax.jit(self.apply)(jnp.asarray(x, jnp.float32), mask)
        noise = np.stack([rng.standard_normal(y.shape[1:], np.float32) for rng in rngs])
        y = y + self.noise * noise * self.known(y, mask)
        return np.asarray(y if mask is None else jnp.concatenate([y, mask], -1))


def reciprocal(value: Array, eigenvalues: Array) -> Array:
    """1 / value, and 0 where the eigenvalue of A A^T is 0 to rounding."""
    zero = eigenvalues <= _LEAST * jnp.max(eigenvalues)
    return jnp.where(zero, 0, 1 / jnp.where(zero, 1, value))


def isotropic(square: float) -> Gram:
    """The gram of an A with A A^T A = `square` A: all its singular values are sqrt(square) or 0."""
    return lambda v, mask, f: f(jnp.full((1,) * v.ndim, square, v.dtype)) * v


def compose(outer: Operator, inner: Operator) -> Operator:
    """x -> outer(inner(x)), with the noise and the mask of `outer`. Raises ValueError if `inner` has one of its own.

    The pseudo-inverse of a product is the product of the pseudo-inverses for some operators only (those of a blur and
    an average are no such pair): it is kept if A A^+ A = A holds on one random vector, and missing otherwise.
    """
    if inner.draw or inner.noise:
        own = "a mask" if inner.draw else f"noise={inner.noise}"
        raise ValueError(f"the first operator of a composition has {own}; only the last one may")
    product = Operator(
        shape=inner.shape,
        apply=lambda x, mask: outer.apply(inner.apply(x, None), mask),
        draw=outer.draw,
        noise=outer.noise,
        linear=outer.linear and inner.linear,
        differentiable=outer.differentiable and inner.differentiable,
    )
    if not (outer.has_pinv and inner.has_pinv):
        return product
    whole = dataclasses.replace(product, inverse=lambda y, mask: inner.pinv(outer.pinv(y, mask)))
    return whole if pinv_error(whole) < _AGREES else product


def pinv_error(operator: Operator, seed: int = 0) -> float:
    """|A(A^+ A(x)) - A(x)| / |A(x)| for one random x in [-1, 1]: 0 for a pseudo-inverse."""
    rng = np.random.default_rng(seed)
    mask = jnp.asarray(operator.draw(rng)[None], jnp.float32) if operator.draw else None
    x = jnp.asarray(rng.uniform(-1, 1, (1, *operator.shape)), jnp.float32)
    with jax.ensure_compile_time_eval():
        y = operator(x, mask)
        again = operator(operator.pinv(y, mask), mask)
        return float(jnp.linalg.norm((again - y).ravel()) / jnp.linalg.norm(y.ravel()))


def need_image(shape: Shape) -> tuple[int, int, int]:
    """(height, width, channels). Raises ValueError for examples that are no images."""
    if len(shape) != 3:
        raise ValueError(f"it measures images; examples have the shape {shape}")
    return shape


def masked(shape: Shape, draw: Callable[[np.random.Generator], np.ndarray], noise: float) -> Operator:
    """y = mask x, with the mask `draw(rng)` [h, w, 1] of each example. The noise is that of the known pixels alone."""
    return Operator(
        shape=shape,
        apply=lambda x, mask: mask * x,
        gram=lambda v, mask, f: f(mask) * v,
        inverse=lambda y, mask: mask * y,
        draw=draw,
        noise=noise,
    )


def box(shape: Shape, size: int = 4, margin: int = -1, noise: float = 0.0) -> Operator:
    """Inpainting of a square of `size` pixels: in the middle, or with `margin` >= 0 anywhere that far from the border.

    DPS (arXiv:2209.14687) takes 128 of 256 pixels with a margin of 16. Raises ValueError for a square that does not
    fit.
    """
    height, width, _ = need_image(shape)
    check(size >= 1, "size", size, "at least 1")
    free = tuple(side - size - 2 * max(margin, 0) for side in (height, width))
    if min(free) < 0:
        raise ValueError(f"size={size} with margin={margin} does not fit into images of {height} x {width}")

    def draw(rng: np.random.Generator) -> np.ndarray:
        places = [rng.integers(room + 1) + margin if margin >= 0 else room // 2 for room in free]
        mask = np.ones((height, width, 1), np.float32)
        mask[places[0] : places[0] + size, places[1] : places[1] + size] = 0
        return mask

    return masked(shape, draw, noise)


def random(shape: Shape, missing: tuple[float, float] = (0.5, 0.5), noise: float = 0.0) -> Operator:
    """Inpainting of single pixels: a fraction of them, drawn between the two of `missing`, is unknown in each example.

    Raises ValueError unless 0 <= missing[0] <= missing[1] < 1.
    """
    height, width, _ = need_image(shape)
    ordered = len(missing) == 2 and 0 <= missing[0] <= missing[1] < 1
    check(ordered, "missing", missing, "(least, most), fractions of the pixels, 0 <= least <= most < 1")

    def draw(rng: np.random.Generator) -> np.ndarray:
        lost = round(height * width * rng.uniform(*missing))
        return (rng.permutation(height * width) >= lost).astype(np.float32).reshape(height, width, 1)

    return masked(shape, draw, noise)


def half(shape: Shape, side: str = "lower", noise: float = 0.0) -> Operator:
    """Inpainting of the `side` half of the image: lower, upper, left or right. Raises ValueError for another side."""
    height, width, _ = need_image(shape)
    unknown: dict[str, Any] = {
        "lower": np.s_[height // 2 :],
        "upper": np.s_[: height // 2],
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width // 2 :],
    }
    check(side in unknown, "side", side, f"one of {', '.join(unknown)}")

    def draw(rng: np.random.Generator) -> np.ndarray:
        mask = np.ones((height, width, 1), np.float32)
        mask[unknown[side]] = 0
        return mask

    return masked(shape, draw, noise)
