"""Pairs of a map and its image: sketches, colour segmentations, skeletons and depth maps, made of the image itself.

A model of the image given such a map, by concatenation or by a ControlNet, then draws images that follow it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from scipy import ndimage
from scipy.spatial import cKDTree

from diffusion_jax.data import images
from diffusion_jax.data.sources import archives, files
from diffusion_jax.training.faults import replacing

KINDS = ("sketch", "segmentation", "skeleton", "depth")
_EDGE = 0.25  # of the range of pixels per pixel, from which a gradient is drawn
_INK = 128  # from which a pixel belongs to the shape whose skeleton is drawn
_TILT = np.deg2rad(25)  # of the camera above the ground
_NEIGHBOURS = 10  # points that a normal is fitted to
_CHUNK = 4096  # images that are thinned together
_FILL = 0.9  # of the side of a picture, that an object may take

Made = dict[str, Shaped[np.ndarray, "n h w c"]]  # "images", and their maps "image" and "control"


def write(
    kind: str, path: pathlib.Path, target: pathlib.Path, *, size: int = 0, classes: int = 6, views: int = 8
) -> pathlib.Path:
    """Write pairs of a map of the `kind` and its image to `target`/train.npz and test.npz.

    A file has `images`, uint8 [n, size, size, 1 or 3], and their maps twice: `image`, as a network reads it to which
    maps are concatenated, and `control`, uint8 [n, size, size, 3], for a ControlNet. `data.name=arrays` reads it. The
    strings `caption` or `names` [n] of an .npz file become the `caption` of each image.

    - sketch: lines where the gradient of any channel is steep, white on black.
    - segmentation: the nearest of `classes` colours, found by k-means on the training images. `image` is one-hot,
      float32 with 1 and -1; `control` has the colours.
    - skeleton: the lines of one pixel that are left of bright shapes, by the thinning of Zhang and Suen.
    - depth: of point clouds, the `points` [n, m, 3] of an .npz file, from `views` directions around a vertical axis:
      near points are bright. The image is the surface in the light of a lamp next to the camera.

    `path` is a folder of image files, an .npz file with `images` uint8 [n, h, w(, 1, 3 or 4)], or the folder of the
    official files of MNIST. A tenth of the images, or of the objects of point clouds, is held out; MNIST has its own
    test split. `size` is the side that images are cut to and resized; 0 leaves it (32 for depth). Returns `target`.
    Raises ValueError for an unknown kind, images that cannot be read, or of several sizes without `size`.
    """
    if kind not in KINDS:
        raise ValueError(f"--kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    for name, value, least in (("size", size, 0), ("classes", classes, 2), ("views", views, 1)):
        if value < least:
            raise ValueError(f"--{name}={value} must be at least {least}")
    made = _of_clouds(path, size or 32, views) if kind == "depth" else _of_images(kind, path, size, classes)
    texts = _texts(path)
    target.mkdir(parents=True, exist_ok=True)
    for split, arrays in made.items():
        if texts is not None:
            repeats = views if kind == "depth" else 1
            arrays["caption"] = np.repeat(texts[files.divided(len(texts))[split]], repeats)
        with replacing(target / f"{split}.npz") as file:
            np.savez_compressed(file, **arrays)
    return target


def _of_images(kind: str, path: pathlib.Path, size: int, classes: int) -> dict[str, Made]:
    found = _read(path, size)
    if kind == "segmentation":
        colours = palette(found["train"], classes)
        return {split: segmented(x, colours) for split, x in found.items()}
    draw: Callable = {"sketch": sketch, "skeleton": skeleton}[kind]
    return {split: _both(x, draw(x)) for split, x in found.items()}


def _both(x: UInt8[np.ndarray, "n h w c"], lines: UInt8[np.ndarray, "n h w 1"]) -> Made:
    return {"images": x, "image": lines, "control": np.repeat(lines, 3, -1)}


def sketch(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w 1"]:
    """255 where the Sobel gradient of a channel is at least a quarter of the range of values per pixel."""
    values = x / 255.0

    def slope(axis: int, other: int) -> Float[np.ndarray, "n h w c"]:
        smooth = ndimage.correlate1d(values, np.array([1, 2, 1]) / 4, other, mode="nearest")
        return ndimage.correlate1d(smooth, np.array([-1, 0, 1]) / 2, axis, mode="nearest")

    steep = np.hypot(slope(1, 2), slope(2, 1)).max(-1, keepdims=True) >= _EDGE
    return np.where(steep, np.uint8(255), np.uint8(0))


def palette(x: UInt8[np.ndarray, "n h w c"], classes: int) -> UInt8[np.ndarray, "k c"]:
    """`classes` colours by k-means on at most 20,000 pixels, from dark to bright."""
    from sklearn.cluster import KMeans

    pixels = x.reshape(-1, x.shape[-1])
    chosen = np.random.default_rng(0).permutation(len(pixels))[:20_000]
    if len(np.unique(pixels[chosen], axis=0)) < classes:
        raise ValueError(f"--classes={classes}: the images have fewer colours")
    centres = KMeans(classes, n_init=1, random_state=0).fit(pixels[chosen].astype(np.float64)).cluster_centers_
    return np.round(centres[np.argsort(centres.sum(1))]).astype(np.uint8)


def segmented(x: UInt8[np.ndarray, "n h w c"], colours: UInt8[np.ndarray, "k c"]) -> Made:
    """The images with the number of the nearest colour of each pixel, one-hot, and with the colours themselves."""
    nearest = cKDTree(colours.astype(np.float64)).query(x.reshape(-1, x.shape[-1]).astype(np.float64))[1]
    nearest = nearest.reshape(x.shape[:3])
    one_hot = np.where(nearest[..., None] == np.arange(len(colours)), 1, -1).astype(np.float32)
    control = colours[nearest]
    return {"images": x, "image": one_hot, "control": np.repeat(control, 3, -1) if x.shape[-1] == 1 else control}


def skeleton(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w 1"]:
    """255 on the skeletons of the shapes of pixels of at least 128, of the mean of the channels."""
    chunks = np.split(x, range(_CHUNK, len(x), _CHUNK))
    lines = np.concatenate([thinned(chunk.mean(-1) >= _INK) for chunk in chunks])
    return np.where(lines, np.uint8(255), np.uint8(0))[..., None]


def thinned(shapes: Bool[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
    """Shapes thinned to lines of one pixel (Zhang and Suen, Communications of the ACM 27, 1984).

    A pixel of the border is removed if it has 2 to 6 neighbours, which form one group around it, and if a side that
    depends on the turn is open, until no image changes.
    """
    padded = np.pad(shapes, ((0, 0), (1, 1), (1, 1)))
    height, width = shapes.shape[1:]
    # The eight neighbours, from the one above on, clockwise.
    places = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))
    while True:
        before = padded.copy()
        for first, second in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            around = np.stack([padded[:, top : top + height, left : left + width] for top, left in places])
            count = around.sum(0)
            groups = (~around & np.roll(around, -1, 0)).sum(0)
            open_sides = ~around[list(first)].all(0) & ~around[list(second)].all(0)
            gone = (count >= 2) & (count <= 6) & (groups == 1) & open_sides
            padded[:, 1:-1, 1:-1] &= ~gone
        if (padded == before).all():
            return padded[:, 1:-1, 1:-1]


def _read(path: pathlib.Path, size: int) -> dict[str, UInt8[np.ndarray, "n h w c"]]:
    """The images of a folder or file, in two splits."""
    if (path / "train-images-idx3-ubyte.gz").exists():
        from diffusion_jax.data.prepare import mnist_examples

        mnist = {split: mnist_examples(path, name)[0] for split, name in (("train", "train"), ("test", "t10k"))}
        return {split: np.stack([_converted(x, size, 1) for x in found]) for split, found in mnist.items()}
    if path.is_dir():
        suffixes = images.readable_suffixes()
        names = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in suffixes]
        if not names:
            raise ValueError(f"{path} has no image files")
        found = [images.convert(images.read_image(name), size=size or None, channels=3) for name in names]
    else:
        found = [_converted(x, size, 0) for x in _stored(path)]
    shapes = sorted({x.shape for x in found})
    if len(shapes) > 1 or shapes[0][0] != shapes[0][1]:
        raise ValueError(f"{path}: images of {shapes[0]} and {shapes[-1]} are no squares of one size; give --size=N")
    if len(found) < 2:
        raise ValueError(f"{path} has one image; at least 2 are needed, one of them to be held out")
    x = np.stack(found)
    return {split: x[rows] for split, rows in files.divided(len(x)).items()}


def _stored(path: pathlib.Path) -> UInt8[np.ndarray, "n h w *c"]:
    try:
        x = archives.read_npz(path, {"images"}).get("images")
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} is neither a folder of images nor an .npz file: {error}") from error
    if x is None or x.dtype != np.uint8 or x.ndim not in (3, 4) or x.shape[3:] not in ((), (1,), (3,), (4,)):
        found = "none" if x is None else f"{x.dtype} {x.shape}"
        raise ValueError(f"{path}: `images` must be uint8 [n, height, width(, 1, 3 or 4)], and there are {found}")
    return x


def _converted(x: UInt8[np.ndarray, "h w *c"], size: int, channels: int) -> UInt8[np.ndarray, "s s c"]:
    image = images.from_array(x)
    return images.convert(image, size=size or None, channels=channels or images.native_channels(image))


def _texts(path: pathlib.Path) -> Shaped[np.ndarray, "n"] | None:
    """The texts of an .npz file; None where there are none. Raises ValueError unless there is one for each image."""
    if path.is_dir():
        return None
    arrays = archives.read_npz(path, {"caption", "names", "images", "points"})
    texts = arrays.get("caption", arrays.get("names"))
    number = len(next(arrays[name] for name in ("points", "images") if name in arrays))
    if texts is None or texts.dtype.kind != "U":
        return None
    if texts.shape != (number,):
        raise ValueError(f"{path} has texts {texts.shape} for {number} images")
    return texts


def _of_clouds(path: pathlib.Path, size: int, views: int) -> dict[str, Made]:
    try:
        points = archives.read_npz(path, {"points"}).get("points")
    except Exception as error:  # a broken archive can raise from zipfile, zlib or the header parser
        raise ValueError(f"{path} must be an .npz file with `points` of point clouds: {error}") from error
    if points is None or points.ndim != 3 or points.shape[-1] != 3 or points.shape[1] <= _NEIGHBOURS or len(points) < 2:
        found = "none" if points is None else points.shape
        raise ValueError(f"{path}: `points` must be [n, more than {_NEIGHBOURS}, 3], n at least 2; there are {found}")
    angles = 2 * np.pi * np.arange(views) / views
    rendered = [views_of(cloud, angles, size) for cloud in points.astype(np.float64)]
    made = {}
    for split, rows in files.divided(len(points)).items():
        shaded, depth = (np.concatenate([rendered[row][part] for row in rows]) for part in (0, 1))
        made[split] = _both(shaded, depth)
    return made


def views_of(
    cloud: Float[np.ndarray, "m 3"], angles: Float[np.ndarray, "v"], size: int
) -> tuple[UInt8[np.ndarray, "v size size 1"], UInt8[np.ndarray, "v size size 1"]]:
    """A point cloud whose second axis points up, turned by `angles` around it: its shaded surfaces and depth maps.

    Every point covers the 3 x 3 pixels around it, the nearest one wins. Depth is 255 at the nearest point of the cloud
    and 64 at the farthest, and 0 where there is none. Light comes from the camera: 64 + 191 |n_z| of the normal n, that
    of the plane through the ten nearest points.
    """
    centred = cloud - (cloud.max(0) + cloud.min(0)) / 2
    radius = np.linalg.norm(centred, axis=1).max() or 1.0
    _, around = cKDTree(centred).query(centred, _NEIGHBOURS)
    differences = centred[around] - centred[around].mean(1, keepdims=True)
    normals = np.linalg.eigh(differences.transpose(0, 2, 1) @ differences)[1][..., 0]
    square = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2)
    c, s = np.cos(_TILT), np.sin(_TILT)
    shaded, depth = np.zeros((2, len(angles), size, size))
    for i, angle in enumerate(angles):
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        camera = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ turn
        turned, light = centred @ camera.T, np.abs(normals @ camera[2])
        places = np.round((_FILL * turned[:, :2] * [1, -1] / radius + 1) / 2 * (size - 1)).astype(int)
        nearness = (turned[:, 2] - turned[:, 2].min()) / (np.ptp(turned[:, 2]) or 1.0)
        order = np.argsort(nearness)  # the last of several values for a pixel stays
        column, row = np.clip(places[order, None] + square, 0, size - 1).transpose(2, 0, 1)
        depth[i, row, column] = 64 + 191 * nearness[order, None]
        shaded[i, row, column] = 64 + 191 * light[order, None]
    return tuple(np.round(x).astype(np.uint8)[..., None] for x in (shaded, depth))
