"""Textual inversion: the vectors of a new token are learned, everything else is frozen (arXiv:2208.01618)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
from jaxtyping import Array, Key, PyTree

from diffusion_jax.systems.adapted import Adapted
from diffusion_jax.systems.text_to_image import VECTORS, TextToImage
from diffusion_jax.types import Denoiser, Params, Placed, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextualInversion(Adapted):
    """A text-to-image system that trains the vectors of one placeholder token with the loss of `system`.

    Parameters are {"vectors": {"0": [n, dim]}, "frozen": {"network", "first_stage", "text", ...}}: one array for each
    text encoder by its number, of the `shapes`. The ids of the token are those after the vocabulary, and look up
    `vectors`. So gradients, weight decay and averages never reach the tables of the text encoders.
    """

    system: TextToImage
    token: str  # the placeholder, as it stands in prompts
    shapes: Mapping[str, tuple[int, int]]  # of the vectors, by the number of the text encoder
    placed: Mapping[str, Placed] = dataclasses.field(default_factory=dict)  # the frozen networks

    def init(self, key: Key[Array, ""]) -> Params:
        system_key, key = jax.random.split(key)
        own = self.system.init(system_key)
        keys = jax.random.split(key, len(self.shapes))
        drawn = {
            name: 0.02 * jax.random.normal(own_key, shape)
            for own_key, (name, shape) in zip(keys, self.shapes.items(), strict=True)
        }
        return {VECTORS: drawn, "frozen": {**own.get("frozen", {}), "network": own["network"]}}

    def merged(self, params: Params) -> Params:
        """Returns the parameters of `system`, whose text encoders have the learned vectors."""
        frozen = {name: tree for name, tree in params["frozen"].items() if name != "network"}
        text = {**frozen["text"], VECTORS: params[VECTORS]}
        return {"network": params["frozen"]["network"], "frozen": {**frozen, "text": text}}

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """Returns the parameters unchanged: only gradients change the vectors."""
        return params

    @property
    def networks(self) -> Mapping[str, Placed]:
        return self.placed

    def denoiser(self, params: Params, *arguments: PyTree[Array], **options: PyTree[Array]) -> Denoiser:
        """The denoiser of `system`, see `TextToImage.denoiser`."""
        return self.system.denoiser(self.merged(params), *arguments, **options)
