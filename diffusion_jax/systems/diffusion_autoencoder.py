"""Diffusion autoencoders (arXiv:2111.15640): a code of what an image shows, and the noise that it is decoded from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion_jax.evaluation.reconstruction import psnr, ssim
from diffusion_jax.networks.conditions import Conditions, image
from diffusion_jax.processes import prior, sampling_keys
from diffusion_jax.solvers import sampling
from diffusion_jax.systems import moments
from diffusion_jax.systems.base import Sampled
from diffusion_jax.systems.diffusion import Diffusion, OnDiffusion
from diffusion_jax.types import Cond, Denoiser, Params, Placed, Spec, Train, check, check_choice

Code = Float[Array, "batch code"]
STOCHASTIC = ("inferred", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionAutoencoder(OnDiffusion):
    """Train an encoder E together with a denoiser D(x_t, t, z) that reads the code z = E(x_0). See `types.System`.

    The loss is that of `diffusion` given z; its gradient is all that trains E. z, the semantic code, holds what helps
    to denoise; the rest is in x_T, the stochastic code, to which the ODE of `solver` carries x_0 given z. Both
    together determine the image: decoding x_T given z solves the same ODE backwards. With a random x_T the samples are
    images with the same z. With a `diffusion` that shifts a frozen teacher this is PDAE (arXiv:2212.12990), see
    `systems.ShiftedDiffusion`.

    Parameters are those of `diffusion`, {"encoder"}, and {"frozen": {"codes"}}, running averages of the moments of each
    number of the code, with which `standardised` codes have mean 0 and variance 1.

    Raises ValueError for another `stochastic_code`, an `attribute` that is not two classes, or a `diffusion` that reads
    other conditions than the code.
    """

    diffusion: Diffusion
    init_encoder: Callable[[Key[Array, ""]], Params]
    encoder: Callable[..., Code]  # (params, x, key=None) -> z; the key is for dropout
    code_dim: int
    code: str = "vector"  # name of the condition of `diffusion` that is the code
    stochastic_code: str = "inferred"  # what samples are decoded from: the x_T of their image, or a random one
    attribute: tuple[int, int] = (0, 1)  # the classes between which `run.codes` manipulates
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("stochastic_code", self.stochastic_code, STOCHASTIC)
        two = len(self.attribute) == 2 and min(self.attribute) >= 0 and len(set(self.attribute)) == 2
        check(two, "attribute", self.attribute, "two different classes")
        read = {name: spec.shape for name, spec in self.diffusion.network_conditions.specs.items()}
        check(read == {self.code: (self.code_dim,)}, "the network's conditions", read, f"a code of {self.code_dim}")

    @property
    def batch(self) -> dict[str, Spec]:
        return {"x": self.makes}

    @property
    def conditions(self) -> Conditions:
        """The images "x" whose codes samples are decoded from."""
        return Conditions({"x": image(self.makes.shape)})

    def init(self, key: Key[Array, ""]) -> Params:
        diffusion_key, encoder_key = jax.random.split(key)
        params = self.diffusion.init(diffusion_key)
        frozen = {**params.get("frozen", {}), "codes": moments.init(self.code_dim)}
        return {**params, "encoder": self.init_encoder(encoder_key), "frozen": frozen}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, PyTree[Array]]]:
        """The loss of the diffusion model given the codes of the batch."""
        key, dropout_key = jax.random.split(key)
        z = self.encoder(params["encoder"], batch["x"], key=None if train is None else dropout_key)
        loss, metrics = self.diffusion.loss(params, key, {**batch, self.code: z}, train)
        return loss, metrics if train is None else {**metrics, "statistics": moments.of(z)}

    def advance(self, params: Params, train: Train, metrics: dict[str, PyTree[Array]]) -> Params:
        """Update the moments of the codes from those of the batch."""
        codes = moments.advanced(params["frozen"]["codes"], metrics["statistics"], train)
        return {**params, "frozen": {**params["frozen"], "codes": codes}}

    def encode(self, params: Params, x: Float[Array, "batch *shape"]) -> Code:
        """The semantic codes z = E(x)."""
        return self.encoder(params["encoder"], x)

    def standardised(self, params: Params, z: Code) -> Code:
        """z with mean 0 and variance 1 in each number over the training data."""
        mean, std = moments.mean_and_std(params["frozen"]["codes"])
        return (z - mean) / std

    def raw(self, params: Params, z: Code) -> Code:
        """The code of a standardised one, the inverse of `standardised`."""
        mean, std = moments.mean_and_std(params["frozen"]["codes"])
        return mean + std * z

    def denoiser_of(self, params: Params, z: Code) -> Denoiser:
        """The denoiser D(x, t) given the codes."""
        return self.diffusion.denoiser(params, {self.code: z})

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(x, t) given the codes of the images cond["x"]."""
        return self.denoiser_of(params, self.encode(params, cond["x"]))

    def infer(self, params: Params, x: Float[Array, "batch *shape"], z: Code) -> Float[Array, "batch *shape"]:
        """The stochastic codes x_T: x, carried by the solver from the last time of the grid to the first, given z.

        Nothing is clipped on the way but what the sampling threshold says: a denoiser whose output is clipped has no
        inverse.
        """
        times = self._times()[::-1]
        x = self.diffusion.process.alpha(times[0]) * x
        D = self.denoiser_of(params, z)
        return sampling.sample(self.diffusion.solver, self.diffusion.process, D, jax.random.key(0), x, times)

    def decode(
        self,
        params: Params,
        key: Key[Array, ""],
        ids: Int[Array, "batch"],
        z: Code,
        x_T: Float[Array, "batch *shape"] | None = None,
    ) -> Float[Array, "batch *shape"]:
        """The images of the codes, from x_T, or from a draw of the prior for each of `ids`. The inverse of `infer`."""
        prior_key, noise_key = sampling_keys(key)
        process, times, D = self.diffusion.process, self._times(), self.denoiser_of(params, z)
        if x_T is None:
            x_T = prior(process, prior_key, (len(z), *self.makes.shape), ids=ids, t=times[0])
        x = sampling.sample(self.diffusion.solver, process, D, noise_key, x_T, times, ids=ids)
        return D(x, times[-1]) if self.diffusion.denoise else x / process.alpha(times[-1])

    def reconstruct(
        self,
        params: Params,
        key: Key[Array, ""],
        ids: Int[Array, "batch"],
        x: Float[Array, "batch *shape"],
        stochastic_code: str = "inferred",
    ) -> Float[Array, "batch *shape"]:
        """The images decoded from the codes of x, and from their own x_T ("inferred") or random ones ("random")."""
        z = self.encode(params, x)
        return self.decode(params, key, ids, z, self.infer(params, x, z) if stochastic_code == "inferred" else None)

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw {"samples", "original"}: what the codes of the images cond["x"] are decoded to, and these images."""
        samples = self.reconstruct(params, key, ids, cond["x"], self.stochastic_code)
        return {"samples": samples, "original": cond["x"]}

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out images, "psnr" in dB and "ssim" of their reconstructions, and "psnr_random" from random
        x_T."""
        x, ids = batch["x"], jnp.arange(len(batch["x"]))
        y, other = (jnp.clip(self.reconstruct(params, key, ids, x, name), -1, 1) for name in STOCHASTIC)
        loss = self.loss(params, key, batch, None)[0]
        return {"loss": loss, "psnr": psnr(x, y), "ssim": ssim(x, y), "psnr_random": psnr(x, other)}

    def _times(self) -> Float[Array, "num_times"]:
        return self.diffusion.grid(self.diffusion.process, self.diffusion.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeDiffusion(Sampled):
    """Train `diffusion`, the latent DDIM of arXiv:2111.15640, on the standardised codes of a frozen `autoencoder`.

    Samples need no image: a code is drawn, and decoded from a random x_T, with a key of its own. Batches hold images;
    parameters are those of `diffusion` and {"frozen": {"autoencoder": ...}}. See `types.System`.
    """

    diffusion: Diffusion
    autoencoder: DiffusionAutoencoder
    networks: Mapping[str, Placed] = dataclasses.field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Number of samples that are drawn at once."""
        return self.diffusion.batch_size

    @property
    def batch(self) -> dict[str, Spec]:
        return {"x": self.makes, **self.diffusion.network_conditions.specs}

    @property
    def makes(self) -> Spec:
        return self.autoencoder.makes

    @property
    def conditions(self) -> Conditions:
        return self.diffusion.conditions

    def init(self, key: Key[Array, ""]) -> Params:
        diffusion_key, autoencoder_key = jax.random.split(key)
        params = self.diffusion.init(diffusion_key)
        return {**params, "frozen": {**params.get("frozen", {}), "autoencoder": self.autoencoder.init(autoencoder_key)}}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The loss of the diffusion model for the codes of a batch."""
        return self.diffusion.loss(params, key, self._codes(params, batch), train)

    def evaluate(self, params: Params, key: Key[Array, ""], batch: dict[str, Array]) -> dict[str, Array]:
        """The loss of held-out codes."""
        return self.diffusion.evaluate(params, key, self._codes(params, batch))

    def numbers(self) -> PyTree[Array]:
        """Parameters of guidance, loaded once, outside of `jit`."""
        return self.diffusion.numbers()

    def draw(
        self, params: Params, key: Key[Array, ""], ids: Int[Array, "batch"], cond: Cond, numbers: PyTree[Array] = None
    ) -> dict[str, Float[Array, "batch *shape"]]:
        """Draw codes, and decode them from random x_T. A pure function, for use under `jit`."""
        frozen = params["frozen"]["autoencoder"]
        z = self.autoencoder.raw(frozen, self.diffusion.draw(params, key, ids, cond, numbers)["samples"])
        return {"samples": self.autoencoder.decode(frozen, jax.random.fold_in(key, 2), ids, z)}

    def denoiser(self, params: Params, cond: Cond = None, numbers: PyTree[Array] = None) -> Denoiser:
        """The denoiser D(z, t) of standardised codes."""
        return self.diffusion.denoiser(params, cond, numbers)

    def _codes(self, params: Params, batch: dict[str, Array]) -> dict[str, Array]:
        frozen = params["frozen"]["autoencoder"]
        z = self.autoencoder.standardised(frozen, self.autoencoder.encode(frozen, batch["x"]))
        return {**batch, "x": jax.lax.stop_gradient(z)}
