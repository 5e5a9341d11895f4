"""The data sets that config.data.name can name, each opened by the module that knows how it is stored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffusion_jax.data.derived import Derived
from diffusion_jax.data.source import NOTHING, Source, Tokenize
from diffusion_jax.data.sources import (
    arrays,
    audio,
    clouds,
    composites,
    crops,
    digits,
    edited,
    files,
    gaussians,
    images,
    latents,
    mixed,
    series,
    stacked,
    text,
    tiles,
    toys,
    unpaired,
    volumes,
)
from diffusion_jax.types import Spec

# Arguments of an opener that are no keys of config.data.
_GIVEN = ("name", "split", "training", "wanted", "tokenize", "derive")
COMMON = ("name", "split", "eval_split", "tokenizer")  # keys of config.data that every data set has


class Opener(NamedTuple):
    """One way of storing data.

    Attributes:
        spec: config.data -> shape and kind of one example x, without opening the data. Raises ValueError.
        open: (split, wanted, tokenize, derive, and its own keys of config.data) -> one split. `wanted` are the entries
            that will be read: the shapes of conditions that are images, and the length of "tokens". `tokenize` makes
            tokens of texts (None: their bytes), `derive` conditions such as "image" of x. What has names of classes
            also takes `training`, the split whose classes number those of all (""; "train"). Raises ValueError.
        facts: config.data -> what is known about the data without opening it, as in `Source.facts`.
    """

    spec: Callable[[Mapping[str, Any]], Spec]
    open: Callable[..., Source]
    facts: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda section: NOTHING


def _open_tfds(
    *,
    name: str,
    split: str = "train",
    wanted: Mapping[str, Spec] = NOTHING,
    tokenize: Tokenize | None = None,
    derive: Derived | None = None,
    path: str | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    crop: int | str | None = None,
    resize: tuple = (),
    flip: bool = False,
    dequantize: bool = False,
    levels: int = 256,
    num_workers: int = 1,
    cache_bytes: int = 2**30,
    captions: tuple[str, ...] = (),
) -> Source:
    """One split of an image set of TensorFlow Datasets."""
    from diffusion_jax.data.sources import tfds

    smaller_side = crops.check(crop, image_size, resize)
    centre = None if crop == crops.RANDOM else crop
    images.check(image_size=image_size, channels=channels, crop=centre, levels=levels)
    centred = dict(crop=crop, cache_bytes=cache_bytes, wanted=wanted)
    cut = dict(resize=smaller_side) if crop == crops.RANDOM else centred
    source = (crops if crop == crops.RANDOM else images).decoded(
        tfds.tfds_images(name, split, path),
        image_size=image_size,
        channels=channels,
        **cut,
        flip=flip,
        dequantize=dequantize,
        levels=levels,
        derive=derive,
        num_workers=num_workers,
    )
    return images.with_conditions(source, {}, captions=captions, wanted=wanted, tokenize=tokenize)


TFDS = Opener(spec=images.spec, open=_open_tfds, facts=images.facts)
SOURCES: dict[str, Opener] = {
    "digits": Opener(spec=images.spec, open=digits.open_source, facts=images.facts),
    "folder": Opener(spec=images.spec, open=files.open_folder, facts=images.facts),
    "arrays": Opener(spec=arrays.spec, open=arrays.open_source, facts=images.facts),
    "composites": Opener(spec=composites.spec, open=composites.open_source),
    "toy": Opener(spec=toys.spec, open=toys.open_source, facts=toys.facts),
    "gaussian": Opener(spec=gaussians.spec, open=gaussians.open_source),
    "unpaired": Opener(spec=unpaired.spec, open=unpaired.open_source),
    "mixed": Opener(spec=mixed.spec, open=mixed.open_source),
    "edits": Opener(spec=edited.spec, open=edited.open_source),
    "stacked": Opener(spec=stacked.spec, open=stacked.open_source, facts=stacked.facts),
    "latents": Opener(spec=latents.spec, open=latents.open_source),
    "series": Opener(spec=series.spec, open=series.open_source),
    "audio": Opener(spec=audio.spec, open=audio.open_source, facts=audio.facts),
    "tiles": Opener(spec=tiles.spec, open=tiles.open_source),
    "volumes": Opener(spec=volumes.spec, open=volumes.open_source),
    "clouds": Opener(spec=clouds.spec, open=clouds.open_source),
    "text": Opener(spec=text.spec, open=text.open_source, facts=text.facts),
}


def opener(name: str) -> Opener:
    """The opener of a data set; every name that is not in `SOURCES` is an image set of TensorFlow Datasets."""
    return SOURCES.get(name, TFDS)


def keys(name: str) -> tuple[str, ...]:
    """The keys of config.data that the data set `name` takes, without those in `COMMON`."""
    return tuple(key for key in inspect.signature(opener(name).open).parameters if key not in _GIVEN)


def load(
    *,
    name: str,
    split: str = "train",
    eval_split: str = "test",
    evaluation: bool = False,
    max_tokens: int = 0,
    tokenizer: str = "",
    shapes: Mapping[str, tuple[int, ...]] = NOTHING,
    derive: Derived | None = None,
    tokenize: Tokenize | None = None,
    **section: Any,
) -> Source:
    """Open one split of a data set. The arguments are the keys of `config.data`.

    Args:
        name: "digits" (inside scikit-learn), "folder" (image files), "arrays" (.npz or .npy), "toy" (2-D points),
            "gaussian" (vectors), "composites" (pictures with masks, see `sources.composites`), "audio" (.wav and .flac
            files, see `sources.audio`), "clouds" (point clouds, see `sources.clouds`), "tiles" (of a few large images,
            see `sources.tiles`), "volumes" (slices of NIfTI files, see `sources.volumes`), "unpaired" (two of these
            sets), "mixed" (images of a subject and of its class), "edits" (images and computed edits of them),
            "stacked" (three grey images as the channels of one), "latents" (of `diffusion_jax.run.encode`; image_size
            and channels are then those of the images), or any TFDS image set that is prepared as ArrayRecord files,
            such as "mnist" or "lsun/church_outdoor".
        split: "train", "test", ..., or a slice such as "train[:1000]" or "train[90%:]". Slices of "folder" and
            "arrays" are taken after one fixed shuffle, because files are often sorted by class.
        eval_split: what `evaluation=True` reads instead of `split`.
        evaluation: whether the split is for evaluation.
        max_tokens: length of "tokens", to which texts are cut or padded; 0 if no text is read.
        tokenizer: folder of a tokenizer, see `data.tokenization`; by default tokens are the bytes of a text, see
            `data.captions`.
        shapes: of the conditions that are images, to which files are cut and resized.
        derive: makes conditions such as "image" of the examples where the data has none.
        tokenize: texts -> their tokens, instead of `tokenizer`.
        path: the folder or zip archive, the array file, or the TFDS data directory (default: $TFDS_DATA_DIR, else
            ~/tensorflow_datasets). Sub-folders (or zip archives, or array files) called like a split hold that split;
            otherwise everything is "train". Sub-folders of image folders are classes, unless a file dataset.json of
            EDM's or StyleGAN's dataset_tool says them; see `files.folder_images`.
        target, augment: of "composites", see there.
        range: of "arrays": what floating-point images hold, "-1..1" or "0..1". It must be said if no
            value is clearly negative (below -0.05).
        skip_damaged: of "folder": read the next image instead of one that cannot be read; "skipped" in
            `Source.facts` counts them.
        image_size: side in pixels of the square images to return. `None` keeps the stored size.
        channels: 1 or 3; for floating-point arrays, the number they have. `None` keeps that of the first image.
        modality, shape: of "arrays": what they are ("array" for numbers that are no image, which need not be in
            [-1, 1]) and the shape of one, if it is not [image_size, image_size, channels].
        crop: side of the centre square to cut out before resizing. `None` takes the largest one. "random", for image
            files and TFDS: in training, a random square of image_size after the smaller side was resized.
        resize: with crop="random" the least and the largest smaller side; by default image_size.
        flip: mirror images at random in training.
        dequantize: add uniform noise to 8-bit values.
        levels: grey levels among these; 17 for "digits".
        num_workers: threads that read ahead of training.
        cache_bytes: a data set whose decoded images are no larger stays in memory once read.
        x, image: of "unpaired": the sections of its two sets, each with the keys of this function and optionally
            `only`, the classes it is limited to; see `sources.unpaired`.
        instance, prior, prior_weight: of "mixed": the sections of its two sets, and the weight of the second one; see
            `sources.mixed`.
        examples, edits, instructions: of "edits": the section of its images, the names of edits, and other texts for
            them; see `sources.edited`. "stacked" has `examples` as well, see `sources.stacked`.
        reduce, log: of "tiles".
        axis, window, image_path, image_window: of "volumes".
        dim, mean, std: of "gaussian".
        kind, num_examples, seed: of a toy; its "test" split is a second independent draw. The latter two also of
            "stacked".
        captions: one text per class, which gives every example the condition "tokens".
        caption_key: where the text of each example is, which gives it that condition. For "arrays" the name of an
            array of strings (by default "caption"). For "folder" a field of the file metadata.jsonl or metadata.csv,
            such as "text", or the suffix of text files next to the images, such as ".txt"; see `sources.metadata`.
        label_key: where the class of each example is, a number or a string; strings are sorted, those of the training
            split. For "arrays" the name
            of an array (by default "labels", "label" or "cond"), for "folder" a field of metadata.jsonl.
        image_key, control_key: where the conditions "image" and "control" are. For "arrays" the name of an array of
            images (by default "image" and "control"), for "folder" a field of metadata.jsonl with the path of an image
            file in the folder, or several whose channels are concatenated. Without a line of their own these are no
            examples.
        balance: what training draws evenly from, each "label" or each "caption", however many examples have it; by
            default each example. For "folder" and "arrays".

    Raises:
        ValueError: an argument is unknown or out of range, or the data is missing, empty or unreadable.
    """
    taken = keys(name)
    section = {key: value for key, value in section.items() if value is not None}
    for key, value in section.items():
        if key not in taken:
            raise ValueError(f"data.{key}={value!r}: {name!r} takes no {key!r}; it takes {', '.join(taken)}.")
    wanted = {kind: Spec(shape, modality="image") for kind, shape in shapes.items()}
    if max_tokens:
        wanted["tokens"] = Spec((max_tokens,), "int32")
    if tokenize is None and tokenizer:
        from diffusion_jax.data import tokenization

        tokenize = tokenization.load_for_network(tokenizer, max_tokens)
    return open_source(
        name,
        split=eval_split if evaluation else split,
        training=split if evaluation else "",
        wanted=wanted,
        tokenize=tokenize,
        derive=derive,
        **section,
    )


def open_source(name: str, **arguments: Any) -> Source:
    """`Opener.open` of the data set `name`, with those of the arguments in `Opener` that it takes."""
    taken = inspect.signature(opener(name).open).parameters
    arguments |= {"name": name}
    return opener(name).open(**{key: value for key, value in arguments.items() if key in taken or key not in _GIVEN})
