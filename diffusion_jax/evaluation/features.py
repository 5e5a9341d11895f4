"""Features of images, from which distances between sets of images are computed."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, PyTree, UInt8

from diffusion_jax import data
from diffusion_jax.data.images import check_one_size, from_range, in_doubt
from diffusion_jax.data.source import in_memory
from diffusion_jax.data.sources import files
from diffusion_jax.data.sources import images as sources
from diffusion_jax.evaluation import feature_classifier as classifiers
from diffusion_jax.evaluation.frechet import Moments, add_moments
from diffusion_jax.evaluation.sheets import to_uint8
from diffusion_jax.networks.inception import IMAGE_SIZE, NUM_FEATURES, Activations, Inception
from diffusion_jax.training.rows import in_batches
from diffusion_jax.types import Params, Spec
from diffusion_jax.weights.inception import load_inception

RESIZE = ("pytorch", "clean", "tensorflow")
_OVERSHOOT = 0.5  # samples may leave [-1, 1] by this; they are evaluated clipped, as they are saved

ImageSet = np.ndarray | Array | str | os.PathLike | data.Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network whose features images are compared by.

    Attributes:
      name: of the network and its preprocessing, stored with statistics so that different ones are not compared.
      prefix: of the names of metrics; empty for Inception alone, whose metrics have names of their own.
      params: of the network.
      prepare: what happens to 8-bit images on the host.
      apply: (params, prepared images) -> `Activations`, compiled.
      num_features: their dimension.
      takes: the images that it takes; a side of 0 is any side.
      resized: one 8-bit image of any size as `apply` takes it, for sets of images of several sizes; None if the network
        takes one size only.
    """

    name: str
    prefix: str
    params: PyTree[Array | np.ndarray]
    prepare: Callable[[np.ndarray], np.ndarray]
    apply: Callable[[Params, Array], Activations]
    num_features: int
    takes: Spec
    resized: Callable[[UInt8[np.ndarray, "h w c"]], Float32[np.ndarray, "h2 w2 c"]] | None = None


class Features(NamedTuple):
    """A set of images as a network sees it: moments of all of them, activations of `len(features)` of them."""

    extractor: str
    num: int
    moments: Moments
    spatial: Moments | None
    features: Float32[np.ndarray, "m d"]
    logits: Float32[np.ndarray, "m k"]


def inception(path: str | os.PathLike, *, resize: str = "pytorch") -> Extractor:
    """FID's Inception network with the weights in `path`; see `weights.inception.load_inception`.

    Images become 299 x 299 pixels, and grey ones get three equal channels. `resize` is

    - "pytorch": bilinear between pixel centres without antialiasing, 2 x / 255 - 1; pytorch-fid's way;
    - "clean": PIL's bicubic with antialiasing in floats, (x - 128) / 128; the way of clean-fid (arXiv:2104.11222);
    - "tensorflow": bilinear between pixel corners, (x - 128) / 128; the way of TensorFlow 1, guided-diffusion,
      torch-fidelity and torchmetrics.

    Metrics of different ways are not comparable.

    Raises:
      FileNotFoundError, ValueError: no such file, another content, or an unknown `resize`.
    """
    if resize not in RESIZE:
        raise ValueError(f"resize={resize!r} is unknown; choose one of {', '.join(RESIZE)}")
    graph = nnx.graphdef(nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0))))

    @jax.jit
    def apply(params: Params, x: Array) -> Activations:
        return nnx.merge(graph, params)(preprocess(x, resize))

    return Extractor(
        name=f"inception_{resize}",
        prefix="",
        params=load_inception(path),
        prepare=_antialiased if resize == "clean" else lambda x: x,
        apply=apply,
        num_features=NUM_FEATURES,
        takes=Spec((0, 0, 3), "uint8", "image"),
        resized=partial(_resized, resize=resize),
    )


def classifier_features(classifier: classifiers.Classifier) -> Extractor:
    """The features of a classifier that was trained on one data set. They are not Inception's, and no metric that
    is computed from them is FID, KID or an Inception Score: every name begins with "classifier_"."""

    @jax.jit
    def apply(params: Params, x: Array) -> Activations:
        return Activations(*nnx.merge(classifier.graph, params)(x.astype(jnp.float32) / 127.5 - 1))

    return Extractor(
        name="classifier",
        prefix="classifier_",
        params=classifier.params,
        prepare=lambda x: x,
        apply=apply,
        num_features=classifiers.NUM_FEATURES,
        takes=Spec(classifier.shape, "uint8", "image"),
    )


def preprocess(x: Array | np.ndarray, resize: str) -> Float32[Array, "n 299 299 3"]:
    """8-bit images `[n, h, w, 1 or 3]` as Inception takes them; see `inception`. For "clean" they come resized."""
    x = jnp.broadcast_to(x, (*x.shape[:3], 3)).astype(jnp.float32)
    if resize == "pytorch":
        return 2 * _bilinear(x / 255, 0.5) - 1
    x = x if resize == "clean" else _bilinear(x, 0.0)
    return (x - 128) / 128


def image_source(images: ImageSet, channels: int | None = None, range: str = "") -> data.Source:
    """Images to read by index: an array, a folder or zip archive of image files, an .npz or .npy file, or a data set.

    An array is `[n, h, w, 1 or 3]`, uint8 or floats in [-1, 1] with an overshoot of up to 0.5, which is clipped.
    Arrays in an .npz file are under one of images, samples, x, arr_0, and in memory as a whole. Image files may have
    several sizes; what reads them resizes each, see `collect`.

    Args:
      channels: that image files are read with; by default those of the first one.
      range: of floats, "-1..1" or "0..1"; it must be said if none of the values is clearly negative.

    Raises:
      ValueError: no images, another shape or type, or values that are not finite or out of range.
    """
    if isinstance(images, (str, os.PathLike)):
        path = pathlib.Path(images)
        if path.suffix in (".npz", ".npy"):
            images = data.load(name="arrays", path=str(path), range=range)
        else:
            size = dict(image_size=None, channels=channels, crop=None, cache_bytes=0, wanted={})
            images = sources.decoded(files.folder_images(path, "train"), mixed=True, **size)
    if isinstance(images, data.Source):
        if len(images.shape) != 3 or images.shape[-1] not in (1, 3):
            raise ValueError(f"images must be [height, width, 1 or 3], got examples of shape {images.shape}")
        return images
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
        raise ValueError(f"images must be [n, height, width, 1 or 3] and not empty, got shape {images.shape}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be uint8, or floats in [-1, 1], got {images.dtype}")
    # Samples overshoot; what leaves the range by more is refused when it is read.
    if images.dtype != np.uint8 and (range == "0..1" or in_doubt(images, _OVERSHOOT)):
        images = from_range(images, range, "images:", _OVERSHOOT)
    return sources.source(in_memory({"x": images}), size=len(images), shape=images.shape[1:])


def read_uint8(source: data.Source, indices: np.ndarray) -> UInt8[np.ndarray, "n h w c"]:
    """Images `indices` of a source as they would be saved: 8 bits, floats rounded and clipped.

    Raises:
      ValueError: floats that are not finite or leave [-1, 1] by more than 0.5, or images of several sizes.
    """
    x = read_images(source, indices)
    check_one_size(x)
    return x


def read_images(source: data.Source, indices: np.ndarray) -> np.ndarray:
    """As `read_uint8`; of images of several sizes an array of arrays."""
    x = source.read(indices)["x"]
    if x.dtype in (np.uint8, object):
        return x
    pixels = to_uint8(x)
    if np.abs(x).max() > 1 + _OVERSHOOT:
        raise ValueError(f"images must be in [-1, 1] up to {_OVERSHOOT}, got values in [{x.min():.3g}, {x.max():.3g}]")
    return pixels


def collect(
    extractor: Extractor,
    source: data.Source,
    *,
    batch_size: int = 64,
    keep: int = 50_000,
    spatial: bool = False,
    seed: int = 0,
) -> Features:
    """The features of all images, computed batch by batch over all devices of the current mesh.

    Images of several sizes are resized one by one, as `Extractor.resized` does.

    Moments are summed in float64 as the batches come. Of more than `keep` images, the activations of a random subset
    are kept; it depends on `seed` alone. No more than two batches of images are in memory.

    Raises:
      ValueError: images that the extractor does not take, fewer than 2, or no positive `batch_size`.
    """
    takes = extractor.takes.shape
    if all(takes) and source.shape != takes:
        raise ValueError(
            f"images must have the shape {takes}, got {source.shape}: bring them to the size of the reference first. "
            "Only the features of Inception (--inception=FILE) are of images of any size"
        )
    if batch_size < 1 or keep < 1:
        raise ValueError(f"batch_size and keep must be at least 1, got {batch_size} and {keep}")
    if len(source) < 2:
        raise ValueError(f"there must be at least 2 images, got {len(source)}")
    kept = np.zeros(len(source), bool)
    kept[np.random.default_rng(seed).permutation(len(source))[:keep]] = True
    size = min(batch_size, len(source))
    mesh = jax.sharding.get_mesh()
    params = jax.device_put(extractor.params, None if mesh.empty else NamedSharding(mesh, PartitionSpec()))

    def draw(ids: Array | np.ndarray, cond: dict[str, Array | np.ndarray]) -> Activations:
        return extractor.apply(params, cond["x"])

    moments = places = None
    features, logits = [], []
    for indices, x in _batches(extractor, source, size):
        # The last batch is padded, so that nothing is compiled twice.
        full = x[np.minimum(np.arange(size), len(x) - 1)]
        batch = jax.tree.map(lambda a, n=len(x): a[:n], in_batches(draw, size, size, {"x": full}))
        moments = add_moments(moments, batch.features)
        places = add_moments(places, batch.spatial) if spatial else None
        features.append(batch.features[kept[indices]])
        logits.append(batch.logits[kept[indices]])
    return Features(
        extractor=extractor.name,
        num=len(source),
        moments=moments,
        spatial=places,
        features=np.concatenate(features),
        logits=np.concatenate(logits),
    )


def _batches(extractor: Extractor, source: data.Source, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices, prepared images), the next batch being read while this one is used."""

    def read(start: int) -> tuple[np.ndarray, np.ndarray]:
        indices = np.arange(start, min(start + size, len(source)))
        x = read_images(source, indices)
        if x.dtype == object and extractor.resized is not None:
            return indices, np.stack([extractor.resized(image) for image in x])
        check_one_size(x)
        return indices, extractor.prepare(x)

    with futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, 0)
        for start in range(size, len(source) + size, size):
            batch = waiting.result()
            waiting = pool.submit(read, start) if start < len(source) else waiting
            yield batch


def _antialiased(x: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n 299 299 c"]:
    from PIL import Image

    def resized(channel: np.ndarray) -> np.ndarray:
        image = Image.fromarray(channel.astype(np.float32))
        return np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))

    return np.stack([np.stack([resized(image[..., c]) for c in range(x.shape[-1])], axis=-1) for image in x])


def _resized(image: UInt8[np.ndarray, "h w c"], resize: str) -> Float32[np.ndarray, "299 299 c"]:
    """One image as `preprocess` resizes it, on the host and in 0..255; `preprocess` leaves this size as it is."""
    if resize == "clean":
        return _antialiased(image[None])[0]
    return np.asarray(_bilinear(image[None].astype(np.float32), 0.5 if resize == "pytorch" else 0.0)[0], np.float32)


def _bilinear(x: Float32[Array | np.ndarray, "n h w c"], center: float) -> Float32[Array | np.ndarray, "n 299 299 c"]:
    """Output pixel i lies at (i + center) size / 299 - center of the input, which is repeated beyond its border."""
    for axis in (1, 2):
        x = _interpolated(x, axis, center)
    return x


def _interpolated(x: Array | np.ndarray, axis: int, center: float) -> Array | np.ndarray:
    size = x.shape[axis]
    # As PyTorch computes it: the ratio in float32, the position rounded to float32 once.
    scale = np.float64(np.float32(size) / np.float32(IMAGE_SIZE))
    at = np.maximum(((np.arange(IMAGE_SIZE) + center) * scale - center).astype(np.float32), np.float32(0))
    low = np.minimum(at.astype(np.int32), size - 1)
    weight = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    take = partial(np.take if isinstance(x, np.ndarray) else jnp.take, x, axis=axis)
    return take(low) * (1 - weight) + take(np.minimum(low + 1, size - 1)) * weight
