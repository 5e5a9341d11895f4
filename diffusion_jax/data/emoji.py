"""Emoji in two skin tones: exact pairs of images that differ in the tone alone."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.training.faults import replacing

TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")  # from light to dark, as in Unicode's emoji modifiers
_HELD_OUT = 60  # bases


def pairs(
    file: pathlib.Path, source: str = TONES[0], target: str = TONES[-1]
) -> dict[str, dict[str, UInt8[np.ndarray, "n h w 3"]]]:
    """The splits "train" and "test" of pairs {"images", "image"} of one emoji in the tones `target` and `source`.

    `file` is an .npz file with `images` uint8 [n, h, w, 3 or 4] and `codepoints`, strings such as "1f44b_1f3fb" or
    "1f44b-1f3fb". Only emoji with exactly one tone count. The split is by emoji: no emoji is in both. Transparent
    pixels are laid over white. Every pair of "train" is followed by its mirror image. Raises ValueError for another
    file, or an unknown tone.
    """
    for tone in (source, target):
        if tone not in TONES:
            raise ValueError(f"the tone {tone!r} is unknown; choose one of {', '.join(TONES)}")
    try:
        with np.load(file, allow_pickle=False) as data:
            images, codepoints = data["images"], data["codepoints"]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} must be an .npz file with images and codepoints of emoji: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"{file}: images must be uint8 [n, height, width, 3 or 4], got {images.dtype} {images.shape}")
    by_base: dict[str, dict[str, int]] = {}
    for i, name in enumerate(codepoints):
        parts = str(name).lower().replace("emoji_u", "").replace("-", "_").split("_")
        tones = [part for part in parts if part in TONES]
        if len(tones) == 1:
            base = "_".join("tone" if part in TONES else part for part in parts)
            by_base.setdefault(base, {})[tones[0]] = i
    complete = [both for _, both in sorted(by_base.items()) if {source, target} <= both.keys()]
    if len(complete) <= 2 * _HELD_OUT:
        raise ValueError(f"{file} has {len(complete)} emoji in both tones; there must be more than {2 * _HELD_OUT}")
    order = np.random.default_rng(0).permutation(len(complete))
    flat = _over_white(images)
    splits = {"test": order[:_HELD_OUT], "train": order[_HELD_OUT:]}
    made = {
        split: {
            "images": flat[[complete[i][target] for i in rows]],
            "image": flat[[complete[i][source] for i in rows]],
        }
        for split, rows in splits.items()
    }
    return made | {"train": {name: _with_mirrored(x) for name, x in made["train"].items()}}


def _with_mirrored(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n2 h w c"]:
    return np.stack([x, x[:, :, ::-1]], 1).reshape(-1, *x.shape[1:])


def _over_white(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w 3"]:
    if images.shape[-1] == 3:
        return images
    alpha = images[..., 3:] / 255
    return np.round(images[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def write(file: pathlib.Path, folder: pathlib.Path, source: str = TONES[0], target: str = TONES[-1]) -> pathlib.Path:
    """Write the splits of `pairs` to `folder`/train.npz and test.npz. Returns the folder. Raises ValueError."""
    made = pairs(file, source, target)
    folder.mkdir(parents=True, exist_ok=True)
    for split, arrays in made.items():
        with replacing(folder / f"{split}.npz") as path:
            np.savez(path, **arrays)
    return folder
