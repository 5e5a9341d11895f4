"""Pictures made of cut-out shapes upon photographs, whose masks are exact: a data set for segmentation.

Without a file the shapes are the handwritten digits of scikit-learn in random colours, upon crops of its two
photographs. A file of pictures with an alpha channel, such as emoji or sprites, gives other shapes.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float, Int64, UInt8

from diffusion_jax.data.emoji import TONES
from diffusion_jax.data.source import Batch, Source, Uniform, in_memory
from diffusion_jax.data.sources import archives, files
from diffusion_jax.types import Spec

TARGETS = ("mask", "picture")
_DRAWS = 10  # uniform numbers of one picture
_REDUCED = 2  # photographs are reduced by this factor
_TEST_COLUMNS = 0.25  # of each photograph, on its right, are for the test split
_TEST_SHAPES = 0.1  # of the shapes of a file
_LARGEST_SHIFT = 0.25  # of the side of the picture


def spec(section: Mapping[str, Any]) -> Spec:
    """A mask [image_size, image_size, 1], or with target="picture" the picture, of 3 channels."""
    side, target = section.get("image_size", 16), section.get("target", "mask")
    _check(target, side)
    return Spec((side, side, 1), modality="mask") if target == "mask" else Spec((side, side, 3), modality="image")


def open_source(
    *,
    split: str = "train",
    path: str = "",
    image_size: int = 16,
    target: str = "mask",
    augment: bool = True,
) -> Source:
    """Masks with the condition "image", their pictures, or with target="picture" pictures whose "image" is the mask.

    Args:
        split: "train" or "test", or a slice of one; of shapes. No shape and no part of a photograph is in both.
        path: an .npz file with `images` uint8 [n, h, w, 4]; "" for digits. Of emoji, which have `codepoints`, those
            with a skin tone are left out, as each is in the file in five.
        image_size: side of pictures in pixels. Shapes are reduced or enlarged to this side.
        target: "mask" or "picture".
        augment: whether training draws background, place and colour anew each time. Otherwise these belong to the
            shape, as they do in evaluation: "train[:20]" then are 20 pictures.

    A picture is alpha shape + (1 - alpha) background; its mask is 1 where alpha >= 1/2 and -1 elsewhere. Raises
    ValueError for another target, size or file.
    """
    _check(target, image_size)
    name = files.named(split)
    if name not in ("train", "test"):
        raise ValueError(f"Unknown split {split!r} of 'composites': there are train and test.")
    shapes = _digits(name) if path == "" else _shapes(pathlib.Path(path), name)
    shapes = shapes[files.select(split, len(shapes))]
    shapes = np.stack([_resized(shape, image_size) for shape in shapes])
    compose = functools.partial(_composed, coloured=path == "", photographs=_photographs(name, image_size))
    stored = {"shape": shapes, "index": np.arange(len(shapes))}

    def ready(batch: Batch, uniform: Uniform | None) -> Batch:
        u = uniform if augment and uniform is not None else _fixed(name, batch["index"])
        picture, mask = compose(batch["shape"], u)
        return {"x": mask, "image": picture} if target == "mask" else {"x": picture, "image": mask}

    side = (image_size, image_size)
    pictures = Spec((*side, 3), modality="image")
    masks = Spec((*side, 1), modality="mask")
    entries = {"x": masks, "image": pictures} if target == "mask" else {"x": pictures, "image": masks}
    return Source(entries=entries, size=len(shapes), read=in_memory(stored), ready=ready, draws=_DRAWS)


def _check(target: str, image_size: int) -> None:
    if target not in TARGETS:
        raise ValueError(f"data.target={target!r} must be one of {', '.join(TARGETS)}.")
    if not isinstance(image_size, int) or not 8 <= image_size <= 128:
        raise ValueError(f"data.image_size={image_size!r} must be in 8..128 for 'composites'.")


def _digits(name: str) -> UInt8[np.ndarray, "n 8 8 4"]:
    """Digits as alpha of a white picture."""
    from diffusion_jax.data.sources.digits import digit_images

    digits = digit_images(name)
    alpha = np.stack([np.asarray(digits.get(i)[0]) for i in range(digits.size)])
    return np.stack([*[np.full_like(alpha, 255)] * 3, alpha], -1)


def _shapes(path: pathlib.Path, name: str) -> UInt8[np.ndarray, "n h w 4"]:
    """The shapes of a file in one split; a tenth of them, chosen at random, are "test"."""
    try:
        arrays = archives.read_npz(path.expanduser(), {"images", "codepoints"})
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"the shapes in {path} cannot be read: {error!r}") from error
    shapes = arrays.get("images")
    if shapes is None or shapes.dtype != np.uint8 or shapes.shape[3:] != (4,) or len(shapes) < 2:
        found = "none" if shapes is None else f"{shapes.dtype} {shapes.shape}"
        raise ValueError(f"{path} must hold `images` uint8 [n, height, width, 4], whose last channel is alpha: {found}")
    if "codepoints" in arrays:
        shapes = shapes[[not any(tone in str(code) for tone in TONES) for code in arrays["codepoints"]]]
    if np.all(shapes[..., 3] == 255):
        raise ValueError(f"{path} has no masks: all of its pixels are opaque, alpha is 255")
    order = np.random.default_rng(0).permutation(len(shapes))
    held_out = max(round(_TEST_SHAPES * len(shapes)), 1)
    return shapes[order[:held_out] if name == "test" else order[held_out:]]


def _resized(shape: UInt8[np.ndarray, "h w 4"], side: int) -> UInt8[np.ndarray, "side side 4"]:
    return np.asarray(PIL.Image.fromarray(shape).resize((side, side), PIL.Image.Resampling.BILINEAR))


def _photographs(name: str, side: int) -> list[Float[np.ndarray, "h w 3"]]:
    """The part of scikit-learn's two photographs that belongs to a split, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    found = []
    for photograph in load_sample_images().images:
        height, width = (size // _REDUCED for size in photograph.shape[:2])
        whole = photograph[: height * _REDUCED, : width * _REDUCED].reshape(height, _REDUCED, width, _REDUCED, 3)
        reduced = whole.mean((1, 3)) / 255
        cut = round((1 - _TEST_COLUMNS) * width)
        found.append(reduced[:, cut:] if name == "test" else reduced[:, :cut])
    if min(min(part.shape[:2]) for part in found) < side:
        raise ValueError(f"data.image_size={side} is larger than the photographs of 'composites'.")
    return found


def _composed(
    shapes: UInt8[np.ndarray, "n s s 4"],
    u: Float[np.ndarray, "n d"],
    *,
    coloured: bool,
    photographs: list[Float[np.ndarray, "h w 3"]],
) -> tuple[Float[np.ndarray, "n s s 3"], Float[np.ndarray, "n s s 1"]]:
    """Pictures in [-1, 1] and their masks; the numbers u choose background, place, mirroring and colour."""
    side = shapes.shape[1]
    pictures = np.empty((*shapes.shape[:3], 3), np.float32)
    masks = np.empty((*shapes.shape[:3], 1), np.float32)
    for i, (shape, row) in enumerate(zip(shapes / 255.0, u.astype(np.float64), strict=True)):
        photograph = photographs[int(row[0] * len(photographs))]
        top, left = (int(row[1 + axis] * (photograph.shape[axis] - side + 1)) for axis in (0, 1))
        background = photograph[top : top + side, left : left + side]
        background = background[:, ::-1] if row[3] < 0.5 else background
        if coloured:
            shape = np.concatenate([np.broadcast_to(row[6:9], (side, side, 3)), shape[..., 3:]], -1)
        shape = _shifted(shape, [round((2 * v - 1) * _LARGEST_SHIFT * side) for v in row[4:6]])
        alpha = shape[..., 3:]
        pictures[i] = 2 * (alpha * shape[..., :3] + (1 - alpha) * background) - 1
        masks[i] = np.where(alpha >= 0.5, 1, -1)
    return pictures, masks


def _shifted(shape: Float[np.ndarray, "s s 4"], shift: list[int]) -> Float[np.ndarray, "s s 4"]:
    """`shape` moved by whole pixels, with nothing where it came from."""
    moved = np.roll(shape, shift, (0, 1))
    for axis, by in enumerate(shift):
        rows = [slice(None)] * 2
        rows[axis] = slice(0, by) if by >= 0 else slice(by, None)
        moved[tuple(rows)] = 0
    return moved


def _fixed(name: str, indices: Int64[np.ndarray, "n"]) -> Uniform:
    """The numbers of each picture of the split `name` that is not drawn anew."""
    seed = 1 + (name == "test")
    return np.stack([np.random.default_rng((seed, int(i))).random(_DRAWS, np.float32) for i in indices])
