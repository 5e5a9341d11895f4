"""A small convolutional classifier that evaluates samples where no pretrained feature network is at hand.

Its features and predictions are a means of comparison within one data set. They are not those of Inception, and a
Frechet distance between them is not FID.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PyTree

from diffusion_jax.types import Params, pytree

NUM_FEATURES = 64
_EXAMPLES = 150_000  # images seen in training by default, over at least 2 epochs and at most 40
_ADAMW = optax.adamw(1.0, weight_decay=1e-3)  # its updates are multiplied by the learning rate of the step


class Network(nnx.Module):
    """A convolution at full resolution, then strided ones down to 4 x 4, then a layer of features and one of logits."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, rngs: nnx.Rngs) -> None:
        height, width, channels = shape
        strides = max(1, math.ceil(math.log2(max(height, width) / 4)))
        self.stem = nnx.Conv(channels, 32, (3, 3), rngs=rngs)
        self.down = nnx.List([nnx.Conv(32 if i == 0 else 64, 64, (3, 3), strides=2, rngs=rngs) for i in range(strides)])
        flat = math.ceil(height / 2**strides) * math.ceil(width / 2**strides) * 64
        self.features = nnx.Linear(flat, NUM_FEATURES, rngs=rngs)
        self.logits = nnx.Linear(NUM_FEATURES, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "*n h w c"]) -> tuple[Float[Array, "*n d"], Float[Array, "*n k"]]:
        batch = x.shape[:-3]
        x = jax.nn.relu(self.stem(x))
        for layer in self.down:
            x = jax.nn.relu(layer(x))
        features = jax.nn.relu(self.features(x.reshape(*batch, -1)))
        return features, self.logits(features)


@pytree
class Classifier:
    """A trained network: its parameters, its structure and the image shape `(h, w, c)` it was trained on."""

    params: Params
    graph: nnx.GraphDef = dataclasses.field(metadata=dict(static=True))
    shape: tuple[int, int, int] = dataclasses.field(metadata=dict(static=True))


def train_classifier(
    x: np.ndarray | Array,
    labels: np.ndarray | Array,
    *,
    num_classes: int,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
) -> Classifier:
    """Minimise the cross-entropy with AdamW, at a learning rate that rises for 30 % of the steps and then falls to 0.

    Images are shifted at random by up to an eighth of their height. The result depends on nothing but the arguments.

    Args:
      x: images `[n, h, w, c]`, floats in [-1, 1].
      labels: classes `[n]`, integers in 0..num_classes - 1.
      epochs: passes over the images; by default as many as make 150,000 images, but 2 to 40.
      batch_size: cut down to n where there are fewer images.
      learning_rate: the highest one.

    Raises:
      ValueError: no images, images that are not finite or of another shape, or labels that do not fit.
    """
    x = _images("x", x)
    labels = np.asarray(labels)
    if labels.shape != x.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be {len(x)} integers, got shape {labels.shape} of {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    if epochs is None:
        epochs = min(max(round(_EXAMPLES / len(x)), 2), 40)
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    shape = x.shape[1:]
    batch_size = min(batch_size, len(x))
    num_steps = epochs * (len(x) // batch_size)
    graph, state = nnx.split(nnx.eval_shape(lambda: Network(shape, num_classes, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: _he_normal(random, leaf.shape), nnx.to_pure_dict(state))
    opt_state = _ADAMW.init(params)
    rates = np.interp((np.arange(num_steps) + 0.5) / num_steps, [0, 0.3, 1], [0, learning_rate, 0]).astype(np.float32)
    x, labels = jnp.asarray(x), jnp.asarray(labels, jnp.int32)
    reach = max(1, shape[0] // 8)
    # Not one lax.scan over the steps: XLA's weight gradients of convolutions are 9 times slower in loops on CPUs.
    for rate, rows in zip(rates, _batches(random, len(x), batch_size, epochs), strict=True):
        shifts = random.integers(-reach, reach + 1, (batch_size, 2))
        params, opt_state = _update(params, opt_state, x, labels, rows, shifts, rate, graph=graph, reach=reach)
    return Classifier(params=params, graph=graph, shape=shape)


def features(classifier: Classifier, x: np.ndarray | Array) -> Float32[np.ndarray, "n 64"]:
    """The activations of the last hidden layer for images `x: [n, h, w, c]` in [-1, 1].

    Raises:
      ValueError: `x` is empty, not finite, or not of the shape that the classifier was trained on.
    """
    return np.asarray(_forward(classifier, jnp.asarray(_images("x", x, classifier.shape)))[0])


def probabilities(classifier: Classifier, x: np.ndarray | Array) -> Float32[np.ndarray, "n k"]:
    """Class probabilities for images `x: [n, h, w, c]` in [-1, 1].

    Raises:
      ValueError: `x` is empty, not finite, or not of the shape that the classifier was trained on.
    """
    logits = _forward(classifier, jnp.asarray(_images("x", x, classifier.shape)))[1]
    return np.asarray(jax.nn.softmax(logits))


def _he_normal(random: np.random.Generator, shape: tuple[int, ...]) -> Float32[Array, "..."]:
    if len(shape) == 1:
        return jnp.zeros(shape)
    scale = math.sqrt(2 / math.prod(shape[:-1]))
    return jnp.asarray(scale * random.standard_normal(shape), jnp.float32)


def _batches(random: np.random.Generator, num: int, batch_size: int, epochs: int) -> Iterator[Int[np.ndarray, "batch"]]:
    for _ in range(epochs):
        rows = random.permutation(num)
        for start in range(0, num - batch_size + 1, batch_size):
            yield rows[start : start + batch_size]


@jax.jit
def _forward(classifier: Classifier, x: Array) -> tuple[Array, Array]:
    return jax.lax.map(nnx.merge(classifier.graph, classifier.params), x, batch_size=256)


@partial(jax.jit, static_argnames=("graph", "reach"))
def _update(
    params: Params,
    opt_state: PyTree,
    x: Float[Array, "n h w c"],
    labels: Int[Array, "n"],
    rows: Int[Array | np.ndarray, "batch"],
    shifts: Int[Array | np.ndarray, "batch 2"],
    rate: Float[Array | np.ndarray | np.float32, ""],
    *,
    graph: nnx.GraphDef,
    reach: int,
) -> tuple[Params, PyTree]:
    def loss(params):
        logits = nnx.merge(graph, params)(_shift(x[rows], shifts, reach))[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    updates, opt_state = _ADAMW.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, jax.tree.map(lambda update: rate * update, updates)), opt_state


def _shift(x: Float[Array, "n h w c"], shifts: Int[Array, "n 2"], reach: int) -> Float[Array, "n h w c"]:
    """Move image i by `shifts[i]` pixels, of at most `reach`, and repeat its border."""
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), x.shape[1:]))(padded, reach - shifts)


def _images(name: str, x: np.ndarray | Array, shape: tuple[int, int, int] | None = None) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.ndim != 4 or x.size == 0:
        raise ValueError(f"{name} must be [n, h, w, c] and not empty, got shape {x.shape}")
    if shape is not None and x.shape[1:] != shape:
        raise ValueError(f"{name} must hold images of shape {shape}, got {x.shape[1:]}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return x
