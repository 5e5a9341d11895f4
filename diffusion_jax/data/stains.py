"""Stain normalisation of histology: the colours of two stains, estimated and replaced by common ones.

Light through stained tissue decays exponentially: the optical density -log(I / I_0) of a pixel is V c, with the colours
V [3, 2] of two stains, unit vectors, and their amounts c >= 0 (Beer and Lambert). Macenko et al. 2009 (A method for
normalizing histology slides for quantitative analysis, ISBI) estimate V from the directions of the pixels in the plane
of largest variance. A model of normalised images has to learn the tissue alone, and a Frechet distance of images that
were not normalised alike measures the stain.
"""

from __future__ import annotations

import pathlib

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8

from diffusion_jax.data import picture_sets
from diffusion_jax.training.faults import replacing

WHITE = 240.0  # the intensity I_0 of light without tissue
THIN = 0.15  # pixels of a smaller optical density in a channel are background
ROBUST = 1.0  # percentile of the angles that are the extreme ones, and of the amounts
_FEWEST = 10  # pixels of tissue that stains are estimated from

# Hematoxylin and eosin, and their usual largest amounts: the reference of public implementations of the method.
REFERENCE = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
AMOUNTS = np.array([1.9705, 1.0308])


def optical_density(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "n 3"]:
    """-log((v + 1) / I_0) of the pixels, in rows."""
    return -np.log((image.reshape(-1, 3).astype(np.float64) + 1) / WHITE)


def stain_matrix(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3 2"]:
    """The colours of the two stains of an image, unit vectors in columns, the one with more red absorbed first.

    Of the pixels of tissue, those whose density is above `THIN` in every channel, the plane of the two leading
    eigenvectors of the covariance is taken; the stains are the directions at the percentiles `ROBUST` and
    100 - `ROBUST` of the angles in it. Raises ValueError if fewer than 10 pixels are tissue.
    """
    density = optical_density(image)
    tissue = density[(density > THIN).all(1)]
    if len(tissue) < _FEWEST:
        raise ValueError(f"{len(tissue)} of {len(density)} pixels are tissue, and at least {_FEWEST} are needed")
    plane = np.linalg.eigh(np.cov(tissue.T))[1][:, 1:]
    plane = plane * np.where(plane.sum(0) < 0, -1, 1)
    along, across = tissue @ plane[:, 1], tissue @ plane[:, 0]
    angles = np.percentile(np.arctan2(across, along), [ROBUST, 100 - ROBUST])
    stains = plane[:, ::-1] @ np.stack([np.cos(angles), np.sin(angles)])
    stains = stains * np.where(stains.sum(0) < 0, -1, 1)
    return stains[:, np.argsort(-stains[0])]


def amounts(image: UInt8[np.ndarray, "h w 3"], stains: Float[np.ndarray, "3 2"]) -> Float[np.ndarray, "n 2"]:
    """The amounts of the stains in each pixel, by least squares, at least 0."""
    return np.maximum(np.linalg.lstsq(stains, optical_density(image).T, rcond=None)[0].T, 0)


def composed(
    amount: Float[np.ndarray, "n 2"], stains: Float[np.ndarray, "3 2"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image of `shape` with these amounts of stains: I_0 exp(-V c) - 1."""
    light = WHITE * np.exp(-amount @ stains.T) - 1
    return np.uint8(np.clip(np.round(light), 0, 255)).reshape(*shape, 3)


def normalise(
    image: UInt8[np.ndarray, "h w 3"],
    stains: Float[np.ndarray, "3 2"] = REFERENCE,
    largest: Float[np.ndarray, "2"] = AMOUNTS,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the colours `stains`, whose amounts are scaled so that their 99th percentiles are `largest`.

    Raises ValueError as `stain_matrix`.
    """
    own = amounts(image, stain_matrix(image))
    highest = np.maximum(np.percentile(own, 100 - ROBUST, axis=0), 1e-6)
    return composed(own * (largest / highest), stains, image.shape[:2])


def write(path: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Write the normalised images of the file or folder `path` to the folder `target`, as PNG, under the same names.

    Every image has its own stains estimated: normalise slides, or large regions of them, before they are cut into
    tiles. Returns `target`. Raises ValueError, naming the file, for an image that cannot be read or has no tissue.
    """
    found = picture_sets.image_files(path) if path.is_dir() else [path]
    named: dict[pathlib.Path, pathlib.Path] = {}
    for file in found:
        other = named.setdefault(file.with_suffix(".png"), file)
        if other != file:
            raise ValueError(f"{other} and {file} would both be written as {file.with_suffix('.png').name}")
    for file in found:
        try:
            made = normalise(picture_sets.read_colours(file))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        name = file.relative_to(path) if path.is_dir() else pathlib.Path(file.name)
        place = target / name.with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as opened:
            PIL.Image.fromarray(made).save(opened, format="PNG")
    return target
