"""Prepare files as a data set, without TensorFlow and without downloading anything.

    python -m diffusion_jax.data.prepare mnist --from DIR [--data_dir DIR]
    python -m diffusion_jax.data.prepare emoji_tones --from FILE.npz --data_dir DIR
    python -m diffusion_jax.data.prepare emoji_five_tones --from FILE.npz --data_dir DIR
    python -m diffusion_jax.data.prepare masks --from FOLDER --data_dir DIR [--size 32] [--classes K]
    python -m diffusion_jax.data.prepare conditions --kind sketch|segmentation|skeleton|depth --from X --data_dir DIR
    python -m diffusion_jax.data.prepare channels --from X --data_dir DIR [--size 32]
    python -m diffusion_jax.data.prepare objects --from FILE.npz --data_dir DIR --size 16
    python -m diffusion_jax.data.prepare stains --from FOLDER --data_dir DIR

`--from` is the folder with the official files: the four `*-ubyte.gz` files for mnist and fashion_mnist (the two sets
use the same file names, so each needs a folder of its own), `cifar-10-binary.tar.gz` or the extracted `*.bin` files
for cifar10. The result is found under the data set's usual name: `--config.data.name=mnist`.

`emoji_tones` makes pairs of emoji in a light and a dark skin tone of a file of emoji, see `data.emoji.pairs`, as
DIR/train.npz and DIR/test.npz, which `--config.data.name=arrays --config.data.path=DIR` reads. `emoji_five_tones` makes
images of the same emoji in all five tones there, whose labels are the tones.

`masks` makes pairs of image and mask, for segmentation, of a folder with images/ and masks/ or of an array file with
masks or boxes, see `data.masks.write`. `conditions` makes pairs of a map and its image, for models that draw images
which follow a map, see `data.maps.write`: sketches, colour segmentations and skeletons of images in a folder or an
array file, or depth maps of point clouds. `channels` makes pairs of the green channel and the two others of pictures,
see `data.channels.write`, `objects` crops of the objects in boxes with their classes, see `data.objects.write`, and
`stains` normalises the stains of histological images, see `data.stains.write`.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffusion_jax.data import channels, emoji, images, maps, masks, objects, stains
from diffusion_jax.data.sources import archives, tfds
from diffusion_jax.training.faults import check_local_options, one_line_if_interrupted

# The file that differs between mnist and fashion_mnist, and its published MD5 sums.
_DISTINCTIVE = "train-images-idx3-ubyte.gz"
_MD5 = {"mnist": "f68b3c2dcbeaaa9fbdd348bbdeb94873", "fashion_mnist": "8d4fb7e6c68d591d4c3dfef9ec88bf0d"}

_EMOJI = {"emoji_tones": emoji.pairs, "emoji_five_tones": emoji.five_tones}
_MASKS, _CONDITIONS = "masks", "conditions"
_CHANNELS, _OBJECTS, _STAINS = "channels", "objects", "stains"
_FILES = (*_EMOJI, _MASKS, _CONDITIONS, _CHANNELS, _OBJECTS, _STAINS)  # written as array files, or images
_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR_RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_idx(path: pathlib.Path) -> UInt8[np.ndarray, "..."]:
    """The array in a gzipped IDX file of unsigned bytes: 00 00 08 rank, one big-endian int32 per axis, the data.

    Raises:
        ValueError: naming the file, if it is missing, damaged or of another type.
    """
    content = archives.gunzip(path)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
    rank = content[3]
    shape = tuple(int(side) for side in np.frombuffer(content, ">i4", count=rank, offset=4))
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if min(shape, default=0) < 0 or data.size != math.prod(shape):
        raise ValueError(f"{path} announces shape {shape} but holds {data.size} bytes.")
    return data.reshape(shape)


def mnist_examples(folder: pathlib.Path, prefix: str) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, "n"]]:
    """Images and labels of `prefix` = "train" or "t10k".

    Raises:
        ValueError: naming the file that is missing, damaged or does not fit the other one.
    """
    pixels = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    if pixels.ndim != 3 or pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1] or labels.max() > 9:
        raise ValueError(
            f"{folder}: {prefix}-images must be [n, 28, 28] and {prefix}-labels [n] with values 0..9, "
            f"got {pixels.shape} and {labels.shape}."
        )
    return pixels, labels


def _mnist(name: str, folder: pathlib.Path) -> dict[str, tfds.Examples]:
    other = {"mnist": "fashion_mnist", "fashion_mnist": "mnist"}[name]
    distinctive = folder / _DISTINCTIVE
    if distinctive.exists() and hashlib.md5(distinctive.read_bytes()).hexdigest() == _MD5[other]:
        raise ValueError(f"The files in {folder} are those of {other}, not of {name}.")

    def examples(pixels: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, label in enumerate(labels):
            yield i, {"image": images.from_array(pixels[i]), "label": int(label)}

    data = {"train": mnist_examples(folder, "train"), "test": mnist_examples(folder, "t10k")}
    return {split: lambda pair=pair: examples(*pair) for split, pair in data.items()}


def cifar10_examples(folder: pathlib.Path, split: str) -> tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, "n"]]:
    """Images and labels of the binary version, from the archive in `folder` or the .bin files in or below it.

    Raises:
        ValueError: naming the file that is missing or damaged.
    """
    parts = []
    for file in _CIFAR_FILES[split]:
        content = _cifar_file(folder, file)
        if not content or len(content) % _CIFAR_RECORD:
            raise ValueError(f"{file} in {folder} has {len(content)} bytes, not a multiple of {_CIFAR_RECORD}.")
        parts.append(np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD))
    records = np.concatenate(parts)
    if records[:, 0].max() > 9:
        raise ValueError(f"The {split} files in {folder} hold labels above 9.")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _cifar_file(folder: pathlib.Path, file: str) -> bytes:
    for path in (folder / file, folder / "cifar-10-batches-bin" / file):
        if path.exists():
            return path.read_bytes()
    archive = folder / _CIFAR_ARCHIVE
    if not archive.exists():
        raise ValueError(f"{folder} has neither {file} nor {_CIFAR_ARCHIVE}.")
    return archives.read_tar(archive, f"cifar-10-batches-bin/{file}")


def _cifar10(folder: pathlib.Path) -> dict[str, tfds.Examples]:
    def examples(split: str, pixels: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, label in enumerate(labels):
            image = images.from_array(np.ascontiguousarray(pixels[i]))
            yield i, {"id": f"{split}_{i:05d}", "image": image, "label": _CIFAR_CLASSES[label]}

    data = {split: cifar10_examples(folder, split) for split in _CIFAR_FILES}
    return {split: lambda split=split: examples(split, *data[split]) for split in data}


def prepare(name: str, folder: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
    """Write `name` as ArrayRecord files into the TFDS data directory, from the official files in `folder`.

    Returns:
        The folder of the prepared data set; what is already prepared is left alone.

    Raises:
        ValueError: unknown name, or missing or damaged files.
    """
    from tensorflow_datasets import image_classification

    if name in _MD5:
        official = {"mnist": image_classification.MNIST, "fashion_mnist": image_classification.FashionMNIST}
        builder_class = tfds.offline(official[name], _mnist(name, folder))
    elif name == "cifar10":
        builder_class = tfds.offline(image_classification.Cifar10, _cifar10(folder), _CIFAR_CLASSES)
    else:
        raise ValueError(f"Cannot prepare {name!r}; known: {', '.join(_MD5)}, cifar10.")
    return tfds.write(builder_class, data_dir)


def _written(options: argparse.Namespace) -> pathlib.Path:
    """Writes the files that the options of the command ask for, and returns their folder. Raises ValueError."""
    if not options.data_dir:
        raise ValueError(f"{options.name} needs --data_dir, the folder for the images")
    target, size = pathlib.Path(options.data_dir), options.size
    if options.name in _EMOJI:
        return emoji.write(options.folder, target, _EMOJI[options.name])
    if options.name == _MASKS:
        return masks.write(options.folder, target, size=size, classes=options.classes)
    if options.name == _CHANNELS:
        return channels.write(options.folder, target, size=size)
    if options.name == _OBJECTS:
        return objects.write(options.folder, target, size=size)
    if options.name == _STAINS:
        return stains.write(options.folder, target)
    if not options.kind:
        raise ValueError(f"{options.name} needs --kind: {', '.join(maps.KINDS)}")
    return maps.write(
        options.kind, options.folder, target, size=size, classes=options.classes or 6, views=options.views
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*_MD5, "cifar10", *_FILES])
    parser.add_argument(
        "--from", dest="folder", type=pathlib.Path, required=True, help="folder of the official files, or a file"
    )
    parser.add_argument("--data_dir", help="TFDS data directory (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)")
    parser.add_argument("--kind", default="", help=f"of conditions: {', '.join(maps.KINDS)}")
    parser.add_argument("--size", type=int, default=0, help="side in pixels of masks, conditions, squares or crops")
    parser.add_argument("--classes", type=int, default=0, help="of masks, or colours of a segmentation (default: 6)")
    parser.add_argument("--views", type=int, default=8, help="directions that depth is seen from")
    options = parser.parse_args(arguments)
    try:
        check_local_options({"from": options.folder, "data_dir": options.data_dir})
        if options.name in _FILES:
            ready = _written(options)
        else:
            ready = prepare(options.name, options.folder, tfds.data_directory(options.data_dir))
        print(f"{options.name} is ready in {ready}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
