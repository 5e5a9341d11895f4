"""Pairs of images and masks for segmentation, from folders of files or from an array file with masks or boxes."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from diffusion_jax.data import images
from diffusion_jax.data.sources import archives, files
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
        squares = [_squares(x, size, path) for x in (pictures, masks)]
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
    try:
        arrays = archives.read_npz(path, {"images", "masks", "boxes", "split"})
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} is neither a folder with images/ and masks/ nor an .npz file: {error}") from error
    pictures = arrays.get("images")
    if pictures is None or pictures.dtype != np.uint8 or pictures.shape[3:] != (3,):
        found = "none" if pictures is None else f"{pictures.dtype} {pictures.shape}"
        raise ValueError(f"{path}: `images` must be uint8 [n, height, width, 3], and there are {found}")
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
    if "split" not in arrays:
        return _divided(list(pictures), list(masks))
    test = arrays["split"] == 2
    if test.shape != (len(pictures),) or test.all() or not test.any():
        raise ValueError(f"{path}: `split` {test.shape} must be 2 for some of the {len(pictures)} images")
    chosen = {"train": ~test, "test": test}
    return {split: (list(pictures[rows]), list(masks[rows])) for split, rows in chosen.items()}


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


def _squares(
    arrays: list[Shaped[np.ndarray, "h w *c"]], size: int, path: pathlib.Path
) -> Shaped[np.ndarray, "n size size *c"]:
    """All squares of all arrays."""
    sizes = sorted({array.shape[:2] for array in arrays})
    if not size and (len(sizes) > 1 or sizes[0][0] != sizes[0][1]):
        raise ValueError(
            f"{path}: images of {sizes[0]}{f' and {sizes[-1]}' if len(sizes) > 1 else ''} pixels are no squares of one "
            "size; --size=N cuts squares of N pixels out of them"
        )
    if size and min(map(min, sizes)) < size:
        raise ValueError(f"{path}: an image of {min(sizes, key=min)} pixels is smaller than --size={size}")
    size = size or sizes[0][0]
    return np.stack(
        [
            array[top : top + size, left : left + size]
            for array in arrays
            for top in _starts(array.shape[0], size)
            for left in _starts(array.shape[1], size)
        ]
    )


def _starts(length: int, size: int) -> list[int]:
    return np.round(np.linspace(0, length - size, -(-length // size))).astype(int).tolist()


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
