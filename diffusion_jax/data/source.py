"""The data sets a config can name, as one random-access type."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Int64, Integer

from diffusion_jax.data import captions as texts
from diffusion_jax.data import images
from diffusion_jax.data.derived import Derived
from diffusion_jax.data.sources import files, toys

Tokenize = Callable[[Sequence[str]], Int32[np.ndarray, "n max_tokens"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a data set, read by index.

    Attributes:
        read: int [n] -> {"x": uint8 or float32 [n, *shape], "label": int32 [n] if there are labels, and other
            conditions [n, ...] by name}.
        size: number of examples.
        shape: of one example, (height, width, channels) for images.
        num_classes: labels are 0..num_classes - 1; 0 if there are none.
        flip: mirror half of the images when augmenting.
        dequantize: replace the grey level k of a value by a uniform draw from [k, k + 1).
        levels: number of grey levels that the 8-bit values hold, level k as round(255 k / (levels - 1)).
        derive: makes the condition "image" that a batch has beside x of that x; None for none, or the one that `read`
            gives.
        num_workers: threads that should read ahead.
        groups: the group of each example, of which training draws evenly; None to draw evenly of the examples.
    """

    read: Callable[[np.ndarray], dict[str, np.ndarray]]
    size: int
    shape: tuple[int, ...]
    num_classes: int = 0
    flip: bool = False
    dequantize: bool = False
    levels: int = 256
    derive: Derived | None = None
    num_workers: int = 0
    groups: Int64[np.ndarray, "n"] | None = None

    def __len__(self) -> int:
        return self.size

    @property
    def draws(self) -> int:
        """Uniform numbers that one example consumes in `batch`, an even number."""
        draws = self._pixel_draws + (self.derive.draws if self.derive else 0)
        return draws + draws % 2

    @property
    def _pixel_draws(self) -> int:
        return self.flip + self.dequantize * math.prod(self.shape)

    def batch(
        self, indices: Integer[np.ndarray, "n"], rng: np.random.Generator | None = None, augment: bool = False
    ) -> dict[str, np.ndarray]:
        """Examples as {"x": float32 [n, *shape], "label": int32 [n] if there are labels}.

        An 8-bit value v becomes x = v / 127.5 - 1 or, dequantized with u ~ U[0, 1), x = 2 (k + u) / levels - 1 with
        k = v for 256 levels. Either way x is in [-1, 1], and so are conditions that are images. Without `rng` nothing
        is random, and what `derive` draws is fixed by the index; with it images are dequantized and, if `augment`,
        flipped (if the source asks for it).

        Raises:
            ValueError: `augment` without `rng`.
        """
        if augment and rng is None:
            raise ValueError("augment=True needs an rng.")
        batch = self.read(indices)
        x = batch["x"]
        if rng is not None:
            uniform = rng.random((len(indices), self.draws), dtype=np.float32)
            if augment and self.flip:
                x = np.where(uniform[:, 0, None, None, None] < 0.5, x[:, :, ::-1], x)
            if self.dequantize:
                noise = uniform[:, self.flip : self._pixel_draws].reshape(x.shape)
                k = x if self.levels == 256 else np.round(x * np.float32((self.levels - 1) / 255))
                x = (k + noise) * np.float32(2 / self.levels) - np.float32(1)
        scaled = {name: images.in_unit_range(batch[name]) for name in images.CONDITIONS if name in batch}
        batch = batch | scaled | {"x": images.in_unit_range(x)}
        if self.derive and "image" not in batch:
            if rng is None:
                u = np.stack(
                    [np.random.default_rng((0, int(i))).random(self.derive.draws, np.float32) for i in indices]
                )
            else:
                u = uniform[:, self._pixel_draws : self._pixel_draws + self.derive.draws]
            batch["image"] = self.derive.make(batch["x"], u)
        return batch


def load(
    *,
    name: str,
    split: str = "train",
    eval_split: str = "test",
    evaluation: bool = False,
    path: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    crop: int | None = None,
    flip: bool = False,
    dequantize: bool = False,
    levels: int = 256,
    num_workers: int = 1,
    cache_bytes: int = 2**30,
    kind: str = "gaussian_mixture",
    num_examples: int = 65536,
    seed: int = 0,
    captions: tuple[str, ...] = (),
    caption_key: str = "",
    label_key: str = "",
    image_key: str = "",
    control_key: str = "",
    balance: str = "",
    max_tokens: int = 0,
    tokenizer: str = "",
    shapes: Mapping[str, tuple[int, ...]] = types.MappingProxyType({}),
    derive: Derived | None = None,
    tokenize: Tokenize | None = None,
) -> Source:
    """Open one split of a data set. The arguments are the keys of `config.data`.

    Args:
        name: "digits" (inside scikit-learn), "folder" (image files), "arrays" (.npz or .npy), "toy" (2-D points),
            "latents" (of `diffusion_jax.run.encode`; image_size and channels are then those of the images), or any TFDS
            image set that is prepared as ArrayRecord files, such as "mnist" or "lsun/church_outdoor".
        split: "train", "test", ..., or a slice such as "train[:1000]" or "train[90%:]". Slices of "folder" and
            "arrays" are taken after one fixed shuffle, because files are often sorted by class.
        eval_split: what `evaluation=True` reads in place of `split`.
        evaluation: whether the split is for evaluation.
        path: the folder, the array file, or the TFDS data directory (default: $TFDS_DATA_DIR, else
            ~/tensorflow_datasets). Sub-folders (or array files) called like a split hold that split; otherwise
            everything is "train". Sub-folders of image folders are classes.
        image_size: side in pixels of the square images to return. `None` keeps the stored size.
        channels: 1 or 3; for floating-point arrays, the number they have. `None` keeps that of the first image.
        crop: side of the centre square to cut out before resizing. `None` takes the largest one.
        flip: mirror images at random in training.
        dequantize: add uniform noise to 8-bit values.
        levels: grey levels among these; 17 for "digits".
        num_workers: threads that read ahead of training.
        cache_bytes: a data set whose decoded images are no larger stays in memory once read.
        kind, num_examples, seed: of a toy; its "test" split is a second independent draw.
        captions: one text per class, which gives every example the condition "tokens".
        caption_key: where the text of each example is, which gives it that condition. For "arrays" the name of an
            array of strings ("caption" needs no asking for). For "folder" a field of the file metadata.jsonl, such as
            "text", or the suffix of text files beside the images, such as ".txt"; see `data.metadata`.
        label_key: where the class of each example is, a number or a string; strings are sorted. For "arrays" the name
            of an array ("labels", "label" and "cond" need no asking for), for "folder" a field of metadata.jsonl.
        image_key, control_key: where the conditions "image" and "control" are. For "arrays" the name of an array of
            images ("image" and "control" need no asking for), for "folder" a field of metadata.jsonl with the path of
            an image file in the folder, or several whose channels lie side by side. Without a line of their own these
            are no examples.
        balance: what training draws evenly, each "label" or each "caption", however many examples have it; by default
            each example. For "folder" and "arrays".
        max_tokens: length of "tokens", to which texts are cut or padded.
        tokenizer: folder of what makes tokens of texts, see `data.tokenization`; by default they are the bytes of each,
            see `data.captions`.
        shapes: of the conditions that are images, to which files are cut and resized.
        derive: makes the condition "image" of the examples where the data has none.
        tokenize: texts -> their tokens, in the place of `tokenizer`.

    Raises:
        ValueError: an argument is out of range, or the data is missing, empty or unreadable.
    """
    split = eval_split if evaluation else split
    for key, value in {"image_size": image_size, "crop": crop}.items():
        if value is not None and value <= 0:
            raise ValueError(f"data.{key} must be positive, got {value}.")
    if not 2 <= levels <= 256:
        raise ValueError(f"data.levels must be in 2..256, got {levels}.")
    if balance not in ("", "label", "caption"):
        raise ValueError(f"data.balance must be '', 'label' or 'caption', got {balance!r}.")
    if balance and name not in ("folder", "arrays"):
        raise ValueError(f"data.balance is for 'folder' and 'arrays', not for {name!r}.")
    if name == "toy":
        if image_size or channels or crop or flip or dequantize:
            raise ValueError("Toys have no pixels: image_size, channels, crop, flip and dequantize must stay unset.")
        return _toy(kind, split, num_examples, seed)
    keys = {"caption": caption_key, "label": label_key, "image": image_key, "control": control_key}
    keys = {kind: key for kind, key in keys.items() if key}
    if keys and name not in ("folder", "arrays"):
        raise ValueError(f"data.{next(iter(keys))}_key is for 'folder' and 'arrays', not for {name!r}.")
    if tokenize is None and tokenizer:
        from diffusion_jax.data import tokenization

        tokenize = tokenization.load_for_network(tokenizer, max_tokens)
    elif tokenize is None:
        tokenize = functools.partial(texts.tokens_of, max_tokens=max_tokens)
    if name == "latents":
        from diffusion_jax.data.sources import latents

        return latents.source(path or "", split, num_workers)
    if name in ("folder", "arrays") and not path:
        raise ValueError(f"data.path must be set for data.name = {name!r}.")
    if name == "arrays":
        arrays = files.read_arrays(pathlib.Path(path), split, keys)
        if flip and not arrays.others.keys().isdisjoint(images.CONDITIONS):
            raise ValueError(f"data.flip: {path} holds images as conditions, which are not flipped with the examples.")
        if arrays.x.dtype != np.uint8:
            source = _float_source(path, arrays, image_size, channels, crop, flip, dequantize)
            source = _derived(source, derive)
            source = _balanced(source, balance, arrays.label, arrays.others.get("caption"))
            return _with_conditions(source, arrays.others, captions, max_tokens, tokenize)
    if channels not in (None, 1, 3):
        raise ValueError(f"data.channels must be 1 or 3, got {channels}.")
    if name == "arrays":
        found = files.array_images(pathlib.Path(path), arrays)
    elif name == "folder":
        found = files.folder_images(pathlib.Path(path), split, keys)
        found = found._replace(files={kind: file for kind, file in found.files.items() if kind in shapes})
        if found.files and (flip or crop):
            raise ValueError(
                f"{flip=}, {crop=}: {path} holds images as conditions, which are not changed with the examples."
            )
    else:
        from diffusion_jax.data.sources import tfds

        found = tfds.tfds_images(name, split, path)
    source = _decoded(found, image_size, channels, crop, cache_bytes, shapes)
    source = dataclasses.replace(source, flip=flip, dequantize=dequantize, levels=levels, num_workers=num_workers)
    source = _derived(source, derive)
    source = _balanced(source, balance, found.labels, found.captions or None)
    others = arrays.others if name == "arrays" else {"caption": found.captions} if found.captions else {}
    return _with_conditions(source, others, captions, max_tokens, tokenize)


def _derived(source: Source, derive: Derived | None) -> Source:
    if derive is None:
        return source
    if len(source.shape) != 3:
        raise ValueError(f"The condition 'image' is made of images, and examples have shape {source.shape}.")
    # It refuses images that it cannot use.
    derive.make(np.zeros((1, *source.shape), np.float32), np.zeros((1, derive.draws), np.float32))
    return dataclasses.replace(source, derive=derive)


def _balanced(
    source: Source, balance: str, labels: np.ndarray | None, captions: np.ndarray | Sequence[str] | None
) -> Source:
    values = {"": None, "label": labels, "caption": captions}[balance]
    if balance and values is None:
        raise ValueError(
            f"data.balance = {balance!r}: the examples have no {balance}s of their own, see data.{balance}_key."
        )
    if values is None:
        return source
    numbers: dict[object, int] = {}
    return dataclasses.replace(source, groups=np.array([numbers.setdefault(v, len(numbers)) for v in values]))


def _with_conditions(
    source: Source,
    others: Mapping[str, np.ndarray | Sequence[str]],
    captions: Sequence[str],
    max_tokens: int,
    tokenize: Tokenize,
) -> Source:
    """`source` whose examples have the conditions `others`, rows in the same order, and texts as tokens."""
    if captions and len(captions) != source.num_classes:
        raise ValueError(f"data.captions has {len(captions)} texts for {source.num_classes} classes.")
    if captions and max_tokens < 1:
        raise ValueError("Captions need a network with config.network.max_tokens > 0, the length they are cut to.")
    by_class = tokenize(captions) if captions else None
    for name in others.keys() & images.CONDITIONS:
        try:
            images.in_unit_range(others[name][:0])
        except ValueError as error:
            raise ValueError(f"The condition {name!r}: {error}") from error
    others = dict(others)
    by_example = others.pop("caption", None)
    by_example = by_example if max_tokens else None  # a model that reads no text has no use for them
    if by_class is None and by_example is None and not others:
        return source

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = source.read(indices)
        if by_example is not None:
            batch |= {"tokens": tokenize([str(by_example[i]) for i in indices])}
        elif by_class is not None:
            batch |= {"tokens": by_class[batch["label"]]}
        return batch | {name: value[indices] for name, value in others.items()}

    return dataclasses.replace(source, read=read)


def _in_memory(arrays: files.Arrays, flip: bool = False) -> Source:
    data = {"x": arrays.x} if arrays.label is None else {"x": arrays.x, "label": arrays.label}
    return Source(
        read=lambda indices: {key: value[indices] for key, value in data.items()},
        size=len(arrays.x),
        shape=arrays.x.shape[1:],
        num_classes=arrays.num_classes,
        flip=flip,
    )


def _toy(kind: str, split: str, num_examples: int, seed: int) -> Source:
    splits = ("train", "test")
    if split not in splits:
        raise ValueError(f"Unknown split {split!r} of a toy; known: {', '.join(splits)}.")
    x, label = toys.draw(kind, num_examples, np.random.default_rng((seed, splits.index(split))))
    return _in_memory(files.Arrays(x, label, toys.KINDS[kind][1]))


def _float_source(
    path: str,
    arrays: files.Arrays,
    image_size: int | None,
    channels: int | None,
    crop: int | None,
    flip: bool,
    dequantize: bool,
) -> Source:
    """Floating-point examples are used as they are, so what is asked for must be what is there."""
    shape = arrays.x.shape[1:]
    if crop or dequantize:
        raise ValueError(f"{path} holds floating-point examples; {crop=} and {dequantize=} need 8-bit images.")
    is_image = len(shape) == 3
    asked = (image_size or shape[0], image_size or shape[1], channels or shape[2]) if is_image else shape
    if asked != shape or (not is_image and (image_size or channels or flip)):
        raise ValueError(
            f"{path} holds floating-point examples of shape {shape}, which are used as they are; "
            f"they do not fit {image_size=}, {channels=}, {flip=}."
        )
    return _in_memory(arrays, flip)


def _decoded(
    found: images.Images,
    image_size: int | None,
    channels: int | None,
    crop: int | None,
    cache_bytes: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> Source:
    """Read, convert and, if they fit into `cache_bytes`, remember images and the conditions that are images, which get
    their `shapes`. The first image fixes what is left open."""
    channels = channels or images.native_channels(found.get(0)[0])

    def decode(i: int) -> tuple[np.ndarray, int]:
        image, label = found.get(i)
        try:
            return images.convert(image, size=image_size, channels=channels, crop=crop), label
        except ValueError as error:
            raise ValueError(f"{found.describe(i)}: {error}.") from error

    shape = decode(0)[0].shape

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        x = np.empty((len(indices), *shape), np.uint8)
        label = np.empty(len(indices), np.int32)
        for row, i in enumerate(indices):
            pixels, label[row] = decode(int(i))
            if pixels.shape != shape:
                raise ValueError(
                    f"{found.describe(int(i))} has shape {pixels.shape}, {found.describe(0)} has {shape}. "
                    "Set data.image_size to bring all images to one size."
                )
            x[row] = pixels
        batch = {"x": x, "label": label} if found.num_classes else {"x": x}
        for name, file in found.files.items():
            batch[name] = np.empty((len(indices), *shapes[name]), np.float32)
            for row, i in enumerate(indices):
                try:
                    batch[name][row] = images.from_files(*file(int(i)), shapes[name])
                except ValueError as error:
                    raise ValueError(f"{found.describe(int(i))}, its condition {name!r}: {error}") from error
        return batch

    sizes = {name: value.nbytes for name, value in read(np.zeros(1, np.int64)).items()}
    if found.size * sum(sizes.values()) <= cache_bytes:
        read = _remembered(read, found.size)
    return Source(read=read, size=found.size, shape=shape, num_classes=found.num_classes)


def _remembered(
    read: Callable[[np.ndarray], dict[str, np.ndarray]], size: int
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Like `read`, but every example is read once. Threads that race for one write the same values."""
    first = read(np.zeros(1, np.int64))
    memory = {key: np.empty((size, *value.shape[1:]), value.dtype) for key, value in first.items()}
    known = np.zeros(size, bool)

    def remembered(indices: np.ndarray) -> dict[str, np.ndarray]:
        missing = np.unique(indices[~known[indices]])
        if len(missing):
            for key, value in read(missing).items():
                memory[key][missing] = value
            known[missing] = True
        return {key: value[indices] for key, value in memory.items()}

    return remembered
