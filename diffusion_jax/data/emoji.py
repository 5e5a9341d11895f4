"""Emoji in two or five skin tones: images that differ in the tone alone."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.training.faults import replacing

Splits = dict[str, dict[str, np.ndarray]]
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
    flat, splits = _complete(file, (source, target))
    made = {
        split: {"images": flat[[tones[target] for tones in rows]], "image": flat[[tones[source] for tones in rows]]}
        for split, rows in splits.items()
    }
    return made | {"train": {name: _with_mirrored(x) for name, x in made["train"].items()}}


def five_tones(file: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """The splits "train" and "test" of {"images", "labels"}: every emoji in all five tones, which are the classes.

    The five images of one emoji follow each other, from light to dark, and in "train" the mirror images come after all
    others. The split and the errors are those of `pairs`.
    """
    flat, splits = _complete(file, TONES)
    made = {split: flat[[tones[tone] for tones in rows for tone in TONES]] for split, rows in splits.items()}
    made["train"] = np.concatenate([made["train"], made["train"][:, :, ::-1]])
    labels = {split: np.arange(len(x), dtype=np.int32) % len(TONES) for split, x in made.items()}
    return {split: {"images": x, "labels": labels[split]} for split, x in made.items()}


def _complete(file: pathlib.Path, tones: Collection[str]) -> tuple[np.ndarray, dict[str, list[dict[str, int]]]]:
    """The images of a file over white, and in each split the indices by tone of the emoji that have all `tones`."""
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
        own = [part for part in parts if part in TONES]
        if len(own) == 1:
            base = "_".join("tone" if part in TONES else part for part in parts)
            by_base.setdefault(base, {})[own[0]] = i
    complete = [found for _, found in sorted(by_base.items()) if set(tones) <= found.keys()]
    if len(complete) <= 2 * _HELD_OUT:
        number = "both" if len(tones) == 2 else f"all {len(tones)}"
        raise ValueError(f"{file} has {len(complete)} emoji in {number} tones; there must be more than {2 * _HELD_OUT}")
    order = np.random.default_rng(0).permutation(len(complete))
    splits = {"test": order[:_HELD_OUT], "train": order[_HELD_OUT:]}
    return _over_white(images), {split: [complete[i] for i in rows] for split, rows in splits.items()}


def _with_mirrored(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n2 h w c"]:
    return np.stack([x, x[:, :, ::-1]], 1).reshape(-1, *x.shape[1:])


def _over_white(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w 3"]:
    if images.shape[-1] == 3:
        return images
    alpha = images[..., 3:] / 255
    return np.round(images[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def write(file: pathlib.Path, folder: pathlib.Path, make: Callable[..., Splits] = pairs) -> pathlib.Path:
    """Write the splits of `pairs` or `five_tones` to `folder`/train.npz and test.npz. Returns the folder. Raises
    ValueError."""
    made = make(file)
    folder.mkdir(parents=True, exist_ok=True)
    for split, arrays in made.items():
        with replacing(folder / f"{split}.npz") as path:
            np.savez(path, **arrays)
    return folder
