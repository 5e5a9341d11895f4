"""SpecGrad: a vocoder whose noise has the spectral envelope of the mel spectrogram (arXiv:2203.16749)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.data.spectrograms import MelSpectrogram, istft, stft
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Train, check

MEL = "mel"  # the condition


def envelope(
    front_end: MelSpectrogram, mel: Float[Array, "batch frames num_mels"], order: int, floor: float
) -> Float[Array, "batch frames+1 bins"]:
    """Smooth amplitudes of the STFT of waveforms with log-mel spectrograms `mel`, which are 1 for standard white noise.

    The amplitudes that `front_end.magnitudes` finds, at least `floor`, keep the first `order` coefficients of their
    cepstrum, which are the envelope without the harmonics of the pitch. The last frame is repeated for the one that
    `front_end` leaves out.
    """
    amplitude = jnp.maximum(front_end.magnitudes(mel, steps=50) / np.linalg.norm(front_end.taper), floor)
    cepstrum = jnp.fft.irfft(jnp.log(amplitude), axis=-1)
    places = np.arange(cepstrum.shape[-1])
    kept = np.minimum(places, len(places) - places) < order
    smooth = jnp.exp(jnp.fft.rfft(cepstrum * kept, axis=-1).real)
    return jnp.concatenate([smooth, smooth[:, -1:]], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecGrad(OnDiffusion):
    """Train and sample `diffusion` of waveforms given their mel spectrograms, in white coordinates. arXiv:2203.16749.

    SpecGrad adds the noise sigma L eps to a waveform x, where L = G^+ M G filters each frame of the STFT G by the
    `envelope` M of the mel spectrogram, and weighs errors of eps by L^-1. So L^-1 x is a diffusion model with white
    noise, and that is how it is computed here: `diffusion` models u = G^+ M^-1 G x, and a sample is G^+ M G u. What the
    network leaves undecided is then noise of the right loudness in every frequency, not white noise.

    The two filters undo each other as far as M is smooth: on spoken digits up to a signal-to-noise ratio of 23 dB.

    Batches are {"x": [batch, length, 1], "mel": [batch, frames, num_mels], ...}. `front_end` is that of the mels,
    `order` the number of cepstral coefficients of M, and `floor` its least value. Raises ValueError for examples that
    are no waveforms, a network without the condition "mel", and for `order` or `floor` out of range.
    """

    diffusion: Diffusion
    front_end: MelSpectrogram
    order: int = 24
    floor: float = 1e-3
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        highest = self.front_end.n_fft // 2 + 1
        check(1 <= self.order <= highest, "order", self.order, f"in 1..{highest}, the frequencies of the STFT")
        check(0 < self.floor < 1, "floor", self.floor, "in (0, 1)")
        if self.diffusion.makes.modality != "waveform" or self.diffusion.makes.shape[-1:] != (1,):
            raise ValueError(f"it needs waveforms of one channel, not {self.diffusion.makes}")
        if MEL not in self.diffusion.network_conditions:
            raise ValueError("the network has no condition 'mel', config.network.num_mels")

    def init(self, key: Key[Array, ""]) -> Params:
        return self.diffusion.init(key)

    def whitened(
        self, x: Float[Array, "batch length 1"], mel: Float[Array, "batch frames num_mels"]
    ) -> Float[Array, "batch length 1"]:
        """u = G^+ M^-1 G x."""
        return self._filtered(x, 1 / self._envelope(mel))

    def coloured(
        self, u: Float[Array, "batch length 1"], mel: Float[Array, "batch frames num_mels"]
    ) -> Float[Array, "batch length 1"]:
        """x = G^+ M G u. White noise u becomes noise with the envelope of `mel`."""
        return self._filtered(u, self._envelope(mel))

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The loss of the diffusion model on whitened examples."""
        return self.diffusion.loss(params, key, self._white(batch), train)

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        return self.diffusion.advance(params, train, metrics)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out examples, see `Diffusion.evaluate`."""
        return self.diffusion.evaluate(params, key, self._white(batch))

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(u, t) of whitened waveforms that solvers call, given mel spectrograms."""
        return self.diffusion.denoiser(params, cond, numbers)

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples": ...}: row r depends on ids[r] and cond[r] only. A pure function, for use under `jit`."""
        drawn = self.diffusion.draw(params, key, ids, cond, numbers)
        return {"samples": self.coloured(drawn["samples"], cond[MEL])}

    def evaluations(self) -> int | None:
        """Evaluations of the network for one sample (NFE), see `Diffusion.evaluations`."""
        return self.diffusion.evaluations()

    def _white(self, batch: dict[str, Array]) -> dict[str, Array]:
        return {**batch, "x": self.whitened(batch["x"], batch[MEL])}

    def _envelope(self, mel: Array) -> Float[Array, "batch frames+1 bins"]:
        return envelope(self.front_end, mel, self.order, self.floor)

    def _filtered(self, x: Array, gains: Array) -> Array:
        n_fft, hop = self.front_end.n_fft, self.front_end.hop
        return istft(stft(x[..., 0], n_fft, hop) * gains, n_fft, hop, x.shape[1])[..., None]
