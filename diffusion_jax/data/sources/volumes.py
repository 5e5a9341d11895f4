"""Slices of three-dimensional scans in NIfTI files, alone or in pairs of two registered scans."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float, Float32

from diffusion_jax.data.source import NOTHING, Source, in_memory
from diffusion_jax.data.sources import files
from diffusion_jax.types import Spec, check

SUFFIXES = (".nii", ".nii.gz")
Window = tuple[float, float]


def spec(section: Mapping[str, Any]) -> Spec:
    """Slices [image_size, image_size, 1]. Raises ValueError."""
    side = section.get("image_size")
    check(isinstance(side, int) and side >= 4, "data.image_size", side, "an integer of at least 4")
    check(section.get("channels", 1) == 1, "data.channels", section.get("channels"), "1, as scans have one value")
    return Spec((side, side, 1), modality="image")


def open_source(
    *,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    path: str = "",
    image_size: int = 256,
    channels: int = 1,
    axis: int = 2,
    window: Window = (),
    image_path: str = "",
    image_window: Window = (),
) -> Source:
    """Slices of the volumes in a folder of .nii and .nii.gz files, in [-1, 1].

    Args:
        split: a folder of `path`, or a slice such as "train[:80%]" of one, which takes volumes and not slices of them:
            slices of one patient are never in both parts.
        wanted: "image" where the slices of a second scan are read.
        path: a folder of volumes, or with the folders train/ and test/ of them; or one file.
        image_size: side of a slice, which is cut to the centre square and resized by a Lanczos filter.
        channels: 1.
        axis: that slices are perpendicular to, 0, 1 or 2.
        window: (low, high) of the intensities that become -1 and 1; what is beyond is clipped. (): the least and the
            largest value of each volume. For CT these are Hounsfield units, such as (-1000, 2000).
        image_path: the same for the second scans, which are the condition "image", with equal names and shapes.
        image_window: as `window`, of the second scans.

    Needs nibabel. Slices are kept in memory. Raises ValueError for files that are missing, unreadable, not
    three-dimensional or not finite, and second scans of other names or shapes.
    """
    entry = spec(dict(image_size=image_size, channels=channels))
    check(axis in (0, 1, 2), "data.axis", axis, "0, 1 or 2")
    for key, value in {"window": window, "image_window": image_window}.items():
        check(not value or (len(value) == 2 and value[0] < value[1]), f"data.{key}", value, "(low, high), or ()")
    found = _located(path, split, "path")
    names = [list(found)[i] for i in files.select(split, len(found))]
    volumes = {name: read_volume(found[name]) for name in names}
    arrays = {"x": _slices(volumes, axis, window, image_size)}
    entries = {"x": entry}
    if image_path:
        others = _located(image_path, split, "image_path")
        if missing := [name for name in names if name not in others]:
            raise ValueError(f"data.image_path={image_path!r} has no volume {missing[0]!r}, which data.path has.")
        seconds = {name: read_volume(others[name]) for name in names}
        for name, volume in volumes.items():
            if seconds[name].shape != volume.shape:
                raise ValueError(
                    f"the volumes {name!r} have the shapes {volume.shape} and {seconds[name].shape}: pairs must be "
                    "registered, on one grid of voxels."
                )
        arrays["image"] = _slices(seconds, axis, image_window, image_size)
        entries["image"] = entry
    elif "image" in wanted:
        raise ValueError("data.image_path is empty; it must be the folder of the scans that are the condition 'image'.")
    return Source(entries=entries, size=len(arrays["x"]), read=in_memory(arrays))


def read_volume(file: pathlib.Path) -> Float32[np.ndarray, "a b c"]:
    """The intensities of a NIfTI file, scaled as its header says.

    Raises ValueError if nibabel is missing, or the file is unreadable, not three-dimensional or not finite.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ValueError(
            f"{file} is a NIfTI file, and nibabel, which reads them, is not installed: pip install "
            "diffusion_jax[medical]"
        ) from error
    try:
        volume = np.asarray(nibabel.load(file).dataobj, np.float32)
    except Exception as error:  # of a broken file, anything from gzip, nibabel or NumPy
        raise ValueError(f"{file} cannot be read as a NIfTI file: {error}") from error
    if volume.ndim == 4 and volume.shape[3] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3 or not volume.size or not np.isfinite(volume).all():
        raise ValueError(f"{file} must hold finite numbers in three dimensions, got shape {volume.shape}.")
    return volume


def _located(path: str, split: str, key: str) -> dict[str, pathlib.Path]:
    """The files of a split by their names without suffix."""
    if not path:
        raise ValueError(f"data.{key} must be set for data.name = 'volumes': a folder of .nii or .nii.gz files.")
    where = files.locate(pathlib.Path(path), split, ("",))
    listed = sorted(where.iterdir()) if where.is_dir() else [where]
    volumes = [file for file in listed if file.name.endswith(SUFFIXES)]
    found = {file.name.split(".nii")[0]: file for file in volumes}
    if len(found) < len(volumes):
        twice = next(file for file in volumes if found[file.name.split(".nii")[0]] != file)
        raise ValueError(f"data.{key}={path!r} has two volumes with the name of {twice.name}, compressed or not.")
    if not found:
        raise ValueError(f"data.{key}={path!r} has no {' or '.join(SUFFIXES)} files for the split {split!r}.")
    return found


def _slices(
    volumes: Mapping[str, Float32[np.ndarray, "a b c"]], axis: int, window: Window, size: int
) -> Float32[np.ndarray, "n size size 1"]:
    """All slices of all volumes."""
    made = []
    for name, volume in volumes.items():
        low, high = window or (float(volume.min()), float(volume.max()))
        if not low < high:
            raise ValueError(f"the volume {name!r} has the value {low} everywhere; give data.window=(low, high).")
        scaled = np.clip((volume - low) / (high - low), 0, 1) * 2 - 1
        made += [_square(plane, size) for plane in np.moveaxis(scaled, axis, 0)]
    return np.stack(made)[..., None]


def _square(plane: Float[np.ndarray, "h w"], size: int) -> Float32[np.ndarray, "size size"]:
    """The centre square, resized."""
    side = min(plane.shape)
    top, left = (math.floor((length - side) / 2) for length in plane.shape)
    square = np.ascontiguousarray(plane[top : top + side, left : left + side], np.float32)
    if side == size:
        return square
    resized = PIL.Image.fromarray(square, mode="F").resize((size, size), PIL.Image.Resampling.LANCZOS)
    return np.clip(np.asarray(resized, np.float32), -1, 1)
