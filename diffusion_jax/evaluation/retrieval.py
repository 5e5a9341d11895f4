"""Retrieval accuracy: does the training image nearest to a sample have the prompt's caption, or its class?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float32, Int64

from diffusion_jax.evaluation.neighbours import finite, nearest

SIDE = 16  # pixels per side, at least, that images are compared at


def retrieval(
    samples: np.ndarray | Array,
    tokens: np.ndarray | Array,
    train: Mapping[str, np.ndarray | Array],
    *,
    test: Mapping[str, np.ndarray | Array] | None = None,
) -> dict[str, float | int]:
    """The share of samples whose nearest training image has the caption, or the class, of the prompt.

    Images are near in the mean square of their pixels, averaged over square blocks such that at least 16 remain per
    side. Two captions are the same if their tokens are. The class of a prompt is that of the first example with its
    caption among the training examples, or else of one among the test examples.

    Args:
      samples: images `[n, h, w, c]` in [-1, 1].
      tokens: of the prompts, `[n, max_tokens]`.
      train: `x: [m, h, w, c]`, `tokens: [m, max_tokens]` and, if there are classes, `label: [m]`.
      test: the same of images that the generator has not seen. If given, each metric is also computed for
        these images with their own captions, as `<name>_real`.

    Returns:
      A dictionary with the keys below. The first three count only prompts whose caption is among the training captions,
      the others only prompts whose class is known.

      - `retrieval_caption`: share of samples whose nearest training image has the prompt's caption;
        `retrieval_caption_chance`: its expectation if that image were any training image;
      - `retrieval_caption_num`: the number of prompts that count;
      - `retrieval_class`, `retrieval_class_chance`, `retrieval_class_num`: of the classes;
      - `retrieval_class_balanced`, `retrieval_class_balanced_chance`: the mean over the classes of the share within
        each, which a large class does not decide; chance is 1 / the number of classes asked for where all are.

    Raises:
      ValueError: images that are not finite or of another shape, or fewer or more samples than prompts.
    """
    tokens_train = np.asarray(train["tokens"])
    if len(samples) != len(tokens):
        raise ValueError(f"there must be as many samples as prompts, got {len(samples)} and {len(tokens)}")
    sets = {"": (samples, tokens)} | ({} if test is None else {"_real": (test["x"], test["tokens"])})
    captions, *asked = _same([tokens_train, *(np.asarray(prompts) for _, prompts in sets.values())])
    if "label" in train:
        labels = np.asarray(train["label"])
        # The first example of a caption counts, and those of training come before those of the test.
        known = (
            [captions, labels] if test is None else [np.append(captions, asked[-1]), np.append(labels, test["label"])]
        )
        class_of = dict(zip(*(part[::-1].tolist() for part in known), strict=True))
    features = blocks(train["x"])
    results: dict[str, float | int] = {}
    for (suffix, (x, _)), prompts in zip(sets.items(), asked, strict=True):
        neighbours = nearest(blocks(x), features)[1]
        shares = _shares(prompts, captions[neighbours], captions)
        results |= {f"retrieval_caption{name}{suffix}": value for name, value in shares.items() if "bal" not in name}
        if "label" in train:
            classes = np.array([class_of.get(caption, -1) for caption in prompts.tolist()])
            shares = _shares(classes, labels[neighbours], labels)
            results |= {f"retrieval_class{name}{suffix}": value for name, value in shares.items()}
    return results


def blocks(x: np.ndarray | Array) -> Float32[np.ndarray, "n h2 w2 c"]:
    """Images averaged over square blocks, at least `SIDE` of which remain per side. Raises ValueError unless finite."""
    x = finite("images", x)
    if x.ndim != 4:
        raise ValueError(f"images must be [n, h, w, c], got shape {x.shape}")
    size = max(1, min(x.shape[1:3]) // SIDE)
    height, width = x.shape[1] // size, x.shape[2] // size
    x = x[:, : height * size, : width * size].reshape(len(x), height, size, width, size, -1)
    return x.mean(axis=(2, 4))


def _same(sets: list[np.ndarray]) -> list[Int64[np.ndarray, "n"]]:
    """A number for each row of each set, equal where the rows are."""
    numbers = np.unique(np.concatenate(sets), axis=0, return_inverse=True)[1].reshape(-1)
    return np.split(numbers, np.cumsum([len(rows) for rows in sets])[:-1])


def _shares(asked: np.ndarray, retrieved: np.ndarray, train: np.ndarray) -> dict[str, float | int]:
    """The share of hits among what was asked for and exists, and its expectation, plain and balanced over values."""
    values, counts = np.unique(train, return_counts=True)
    share = dict(zip(values.tolist(), (counts / len(train)).tolist(), strict=True))
    known = np.isin(asked, values)
    asked, hits = asked[known], (asked == retrieved)[known]
    if not len(asked):
        return {"_num": 0}
    each = np.unique(asked)
    return {
        "": float(hits.mean()),
        "_chance": float(np.mean([share[value] for value in asked.tolist()])),
        "_num": len(asked),
        "_balanced": float(np.mean([hits[asked == value].mean() for value in each])),
        "_balanced_chance": float(np.mean([share[value] for value in each.tolist()])),
    }
