"""Placeholder tokens of texts: their ids beyond the vocabulary, and the files of vectors that config.system names."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from diffusion_jax.config.names import TEXT_ENCODERS
from diffusion_jax.config.recipes import pipelines
from diffusion_jax.config.sections import ConfigError, refusal
from diffusion_jax.data.captions import Added
from diffusion_jax.weights.textual_inversion import Learned, read_learned

NO_COUNTS: Mapping[str, int] = types.MappingProxyType({})
_FIELD = "config.system.embeddings"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placeholders:
    """Placeholder tokens, each with a number of vectors: those that are parameters first, then those of files."""

    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    learned: tuple[Learned, ...] = ()

    @property
    def total(self) -> int:
        """The number of vectors for each text encoder."""
        return sum(self.counts.values()) + sum(len(part.vectors[0]) for part in self.learned)

    def ids(self, vocabulary: int) -> Added:
        """The ids of each token for a text encoder of `vocabulary` ids, which follow them."""
        counts = {**self.counts, **{part.token: len(part.vectors[0]) for part in self.learned}}
        added, first = {}, vocabulary
        for token, count in counts.items():
            added[token] = range(first, first + count)
            first += count
        return added


def of(config: ConfigDict, counts: Mapping[str, int]) -> Placeholders:
    """The tokens `counts`, and those of the files config.system.embeddings. Raises ConfigError.

    An entry "TOKEN=FILE" gives the vectors of a file another token than its own.
    """
    files = config.system.get("embeddings", ())
    if isinstance(files, str) or not all(isinstance(file, str) for file in files):
        raise ConfigError(f"{_FIELD}={files!r} must be a tuple of files, such as ('learned_embeds.safetensors',)")
    learned: list[Learned] = []
    for entry in files:
        token, _, path = entry.rpartition("=")
        with refusal(_FIELD):
            part = read_learned(path, token)
            _check_dims(config, entry, part)
        if part.token in {**counts, **{other.token: 0 for other in learned}}:
            raise ConfigError(f"{_FIELD}: two files or a placeholder have the token {part.token!r}; write TOKEN=FILE")
        learned.append(part)
    return Placeholders(counts=counts, learned=tuple(learned))


def _check_dims(config: ConfigDict, entry: str, part: Learned) -> None:
    here, there = dims(config), {name: value.shape[1] for name, value in zip(dims(config), part.vectors, strict=False)}
    if len(part.vectors) != len(here) or here != there:
        raise ValueError(
            f"{entry} has vectors of {' and '.join(str(value.shape[1]) for value in part.vectors)} numbers; the text "
            f"encoders need one array each: {', '.join(f'{dim} for {name}' for name, dim in here.items())}"
        )


def dims(config: ConfigDict) -> dict[str, int]:
    """The length of the token vectors of each text encoder. Raises ConfigError."""
    lengths = {}
    for name, section in pipelines.encoder_sections(config).items():
        shapes = jax.eval_shape(pipelines.encoder(section, "float32")[0], jax.random.key(0))
        lengths[name] = shapes[TEXT_ENCODERS[section["name"]].token_table]["embedding"].shape[1]
    return lengths
