"""Pairs of images and masks for segmentation, from folders of files or from an array file with masks or boxes."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from diffusion_jax.data import images, picture_sets
from diffusion_jax.data.sources import files
from diffusion_jax.training.faults import replacing

UNLABELLED = 255  # of masks of several classes

Pairs = tuple[list[np.ndarray], list[np.ndarray]]  # images uint8 [h, w, 3], and their masks uint8 [h, w]


def write(path: pathlib.Path, target: pathlib.Path, *, size: int = 0, classes: int = 0) -> pathlib.Path:
    """Write the pairs of `path` to `target`/train.npz and test.npz, and pictures/ with their images alone.

    In a file `images` are the masks and `image` the images: uint8 [n, size, size, 1], 255 inside, or with `classes` = K
    float32 [n, size, size, K], 1 for the class of a pixel and -1 elsewhere, all -1 where a mask is 255, without label.
    `path` is a folder with the folders images/ and masks/, or train/ and optionally test/ with these; files belong
    together by their names without suffix. Or it is an .npz file with `images` uint8 [n, h, w, 3] and either `masks`
    [n, h, w] or `boxes` [m, 6] of (image, class, left, top, right, bottom) as shares of the sides, in which masks are
    ellipses; and optionally `split` [n], 2 for the test split. Where none is given, a tenth of the images, chosen at
    random, is held out. Masks without `classes` have 0 outside and one other value inside.

    With `size` images are cut into squares of so many pixels, evenly spaced and overlapping where that is needed to
    cover them; without it they are squares of one size. Every square of "train" is followed by its mirror image.
    Returns `target`. Raises ValueError for images without masks, pairs of different sizes, or masks of other values.
    """
    if size < 0 or classes < 0 or classes == 1:
        raise ValueError(f"--size={size} must be at least 0, and --classes={classes} 0 or at least 2")
    splits = _of_folder(path) if path.is_dir() else _of_arrays(path, classes)
    target.mkdir(parents=True, exist_ok=True)
    (target / "pictures").mkdir(exist_ok=True)
    for split, (pictures, masks) in splits.items():
        squares = [picture_sets.squares(x, size, path) for x in (pictures, masks)]
        if split == "train":
            squares = [np.stack([x, x[:, :, ::-1]], 1).reshape(-1, *x.shape[1:]) for x in squares]
        image, mask = squares
        with replacing(target / f"{split}.npz") as file:
            np.savez_compressed(file, images=_encoded(mask, classes, path), image=image)
        with replacing(target / "pictures" / f"{split}.npz") as file:
            np.savez_compressed(file, images=image)
    return target


def _of_folder(path: pathlib.Path) -> dict[str, Pairs]:
    if (path / "train").is_dir() and (path / "test").is_dir():
        return {split: _read(path / split) for split in ("train", "test")}
    return _divided(*_read(path / "train" if (path / "train").is_dir() else path))


def _read(folder: pathlib.Path) -> Pairs:
    """The pairs in folder/images and folder/masks."""
    found = {}
    for kind in ("images", "masks"):
        if not (folder / kind).is_dir():
            raise ValueError(f"{folder} has no folder {kind}/; pairs are {folder}/images/NAME and {folder}/masks/NAME")
        known = images.readable_suffixes()
        found[kind] = {}
        for file in sorted((folder / kind).iterdir()):
            if file.suffix.lower() not in known:
                continue
            first = found[kind].setdefault(file.stem, file)
            if first != file:
                raise ValueError(f"{folder / kind} has {first.name} and {file.name}; a pair has one file of each kind")
    for kind, other in (("images", "masks"), ("masks", "images")):
        alone = sorted(found[kind].keys() - found[other].keys())
        if alone or not found[kind]:
            raise ValueError(
                f"{folder} has {len(found['images'])} images and {len(found['masks'])} masks; {kind} without "
                f"{other}: {', '.join(alone[:3]) or 'all'}{', ...' if len(alone) > 3 else ''}"
            )
    pictures = [images.convert(images.read_image(file), size=None, channels=3) for file in found["images"].values()]
    masks = [_plain(images.read_image(found["masks"][name])) for name in found["images"]]
    for name, picture, mask in zip(found["images"], pictures, masks, strict=True):
        if picture.shape[:2] != mask.shape:
            raise ValueError(f"{folder}: the image {name} has {picture.shape[:2]} pixels and its mask {mask.shape}")
    return pictures, masks


def _plain(mask) -> UInt8[np.ndarray, "h w"]:
    """The values of a mask; of a picture with a palette its indices."""
    return np.asarray(mask if mask.mode in ("L", "P") else mask.convert("L"), np.uint8)


def _of_arrays(path: pathlib.Path, classes: int) -> dict[str, Pairs]:
    arrays, splits = picture_sets.read_file(path, ("masks", "boxes"))
    pictures = arrays["images"]
    if "masks" in arrays:
        masks = arrays["masks"]
        if masks.dtype.kind not in "biu" or masks.shape != pictures.shape[:3]:
            raise ValueError(
                f"{path}: {len(pictures)} images of {pictures.shape[1:3]} pixels need masks of integers "
                f"{pictures.shape[:3]}, and they are {masks.dtype} {masks.shape}"
            )
        wide = (masks < 0) | (masks > UNLABELLED)
        if wide.any():
            raise ValueError(f"{path}: a mask has the value {masks[wide][0]}, and values must be in 0..{UNLABELLED}")
        masks = np.uint8(masks) * (255 if masks.dtype == bool and not classes else 1)
    elif "boxes" in arrays:
        if classes:
            raise ValueError(f"{path} has boxes, whose masks are inside or outside; leave --classes={classes} out")
        masks = _ellipses(arrays["boxes"], pictures.shape[:3], path)
    else:
        raise ValueError(f"{path} has images and no masks: neither `masks` nor `boxes`")
    return {split: (list(pictures[rows]), list(masks[rows])) for split, rows in splits.items()}


def _ellipses(
    boxes: Float[np.ndarray, "m 6"], shape: tuple[int, int, int], path: pathlib.Path
) -> UInt8[np.ndarray, "n h w"]:
    """255 in the ellipses that touch the sides of the boxes."""
    n, height, width = shape
    if boxes.shape[1:] != (6,) or not np.isin(boxes[:, 0], np.arange(n)).all():
        raise ValueError(f"{path}: `boxes` must be [m, 6], the first number an image in 0..{n - 1}, not {boxes.shape}")
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    masks = np.zeros(shape, np.uint8)
    for image, _, left, top, right, bottom in boxes:
        radii = max((right - left) / 2, 1e-6), max((bottom - top) / 2, 1e-6)
        inside = ((x - (left + right) / 2) / radii[0]) ** 2 + ((y - (top + bottom) / 2) / radii[1]) ** 2 <= 1
        masks[int(image)][inside] = 255
    return masks


def _divided(pictures: list[np.ndarray], masks: list[np.ndarray]) -> dict[str, Pairs]:
    """A tenth of the pairs, at least one, as "test"; the others are "train"."""
    if len(pictures) < 2:
        raise ValueError(f"there is {len(pictures)} pair; at least 2 are needed, one of them to be held out")
    return {
        split: ([pictures[i] for i in rows], [masks[i] for i in rows])
        for split, rows in files.divided(len(pictures)).items()
    }


def _encoded(mask: UInt8[np.ndarray, "n s s"], classes: int, path: pathlib.Path) -> Shaped[np.ndarray, "n s s k"]:
    if not classes:
        values = np.unique(mask)
        if np.count_nonzero(values) > 1:
            shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
            raise ValueError(
                f"{path}: masks of the {len(values)} values {shown}, and without --classes=K they have 0 outside and "
                "one other value inside"
            )
        return np.where(mask > 0, np.uint8(255), np.uint8(0))[..., None]
    wrong: Bool[np.ndarray, "n s s"] = (mask >= classes) & (mask != UNLABELLED)
    if wrong.any():
        raise ValueError(f"{path}: a mask has the value {mask[wrong][0]}, and --classes={classes} are 0..{classes - 1}")
    return np.where(mask[..., None] == np.arange(classes), 1, -1).astype(np.float32)
