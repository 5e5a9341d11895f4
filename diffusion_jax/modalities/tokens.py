"""Tokens of texts: saved as ids and as a text file, compared with n-gram models of the training split."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from diffusion_jax import data
from diffusion_jax.evaluation import ngrams, smiles
from diffusion_jax.evaluation.ngrams import NGram
from diffusion_jax.modalities.base import Drawn, Evaluation, Metric, Modality, Views, Words, held_out, need

_ORDERS = (2, 3, 4)  # of the n-gram models whose code lengths are given
_LONG = 4  # characters of the n-grams that are looked up in the training split


def files(path: pathlib.Path, drawn: Drawn, words: Words, views: Views) -> list[pathlib.Path]:
    """`path`.txt with all samples, and what was known of each; with the format "txt" also one file for each."""
    decode = views.get("decode", _numbers)
    texts = decode(np.asarray(drawn["samples"]))
    known = decode(np.asarray(drawn["known"])) if "known" in drawn else None
    target = path.with_name(f"{path.name}.txt")
    parts = []
    for i, text in enumerate(texts):
        given = "" if known is None else f"{known[i]}\n--- drawn:\n"
        parts.append(f"=== {i}\n{given}{text}\n")
    target.write_text("".join(parts), encoding="utf-8")
    if views.get("format") != "txt":
        return [target]
    path.mkdir(parents=True, exist_ok=True)
    digits = max(5, len(str(len(texts) - 1)))
    for i, text in enumerate(texts):
        (path / f"{i:0{digits}}.txt").write_text(text, encoding="utf-8")
    return [target, path]


def _numbers(ids: np.ndarray) -> list[str]:
    """Texts of data whose tokenizer is unknown: the ids."""
    return [" ".join(map(str, row)) for row in ids]


def _ngram(evaluation: Evaluation) -> Metric:
    """Code lengths of samples and of held-out windows under n-gram models of the training split, in bits per token.

    Also the entropy of the tokens of one window, and the share of n-grams that occur in the training split. Values of
    samples near those of held-out windows are right; lower ones are repetitive text.
    """
    need(evaluation, "tokens", "texts")
    size, pad = evaluation.makes.values, evaluation.train.facts.get("pad")

    def metric(drawn: Drawn) -> dict[str, Any]:
        samples, train = np.asarray(drawn["samples"]), data.arrays(evaluation.train)["x"]
        if samples.max() >= size:
            raise ValueError("samples have masks left: config.sampling.denoise=True draws them")
        real = data.shuffled(held_out(evaluation), max(len(samples), 1))["x"]
        values: dict[str, Any] = {}
        for order in _ORDERS:
            model = NGram(train, order, size, pad)
            values |= {f"bits_{order}gram": model.bits(samples), f"held_out_bits_{order}gram": model.bits(real)}
        for name, windows in (("", samples), ("held_out_", real)):
            values[f"{name}token_entropy"] = ngrams.token_entropy(windows, pad)
            values[f"{name}seen_{_LONG}grams"] = ngrams.seen(windows, train, _LONG, size, pad)
        return values

    return metric


def _smiles(evaluation: Evaluation) -> Metric:
    """The shares of samples whose parentheses and rings are closed, and that are new and different molecules."""
    need(evaluation, "tokens", "texts")
    if "pad" not in evaluation.train.facts:
        raise ValueError("it needs config.data.lines=True, a molecule in each line")
    decode = evaluation.train.facts["decode"]

    def metric(drawn: Drawn) -> dict[str, Any]:
        samples, train = decode(np.asarray(drawn["samples"])), set(decode(data.arrays(evaluation.train)["x"]))
        real = decode(data.shuffled(held_out(evaluation), max(len(samples), 1))["x"])
        return {
            "smiles_closed": float(np.mean([smiles.closed(text) for text in samples])),
            "held_out_smiles_closed": float(np.mean([smiles.closed(text) for text in real])),
            "smiles_distinct": len(set(samples)) / len(samples),
            "smiles_new": float(np.mean([text not in train for text in samples])),
        }

    return metric


def _infilling(evaluation: Evaluation) -> Metric:
    """How many hidden tokens of held-out windows are drawn right, next to a 3-gram model's forward-backward."""
    need(evaluation, "tokens", "texts")
    condition = evaluation.conditions.get("known")
    if condition is None:
        raise ValueError("it needs config.editing.name='infilling'")
    size = evaluation.makes.values

    def metric(drawn: Drawn) -> dict[str, Any]:
        samples, known = np.asarray(drawn["samples"]), np.asarray(drawn["known"])
        truth = data.shuffled(held_out(evaluation), len(samples))["x"]
        truth = truth[np.arange(len(samples)) % len(truth)]
        if not (condition.operator.measure(truth) == known).all():
            raise ValueError("the hidden tokens are not those of held-out windows: leave config.sampling.cond empty")
        hidden = known < 0
        right = (samples == truth)[hidden]
        values = {"infilling_right": float(right.mean()), "infilling_standard_error": _error(samples == truth, hidden)}
        try:
            law = NGram(data.arrays(evaluation.train)["x"], 3, size).hidden(known)
        except ValueError:  # of a vocabulary that is too large for a table of trigrams
            return values
        of_truth = np.take_along_axis(law, truth[..., None], -1)[..., 0]
        return values | {
            "infilling_right_3gram_sampled": float(of_truth[hidden].mean()),
            "infilling_right_3gram_best": float((law.argmax(-1) == truth)[hidden].mean()),
        }

    return metric


def _error(right: np.ndarray, hidden: np.ndarray) -> float:
    """Standard error over windows, in each of which as many tokens are hidden."""
    rows = (right * hidden).sum(1) / hidden.sum(1)
    return float(rows.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else 0.0


TOKENS = Modality(
    files=files,
    formats=("txt",),
    metrics={"ngrams": _ngram, "infilling": _infilling, "smiles": _smiles},
    usual=("ngrams", "infilling"),
)
