"""A frozen diffusion model whose denoiser a second network shifts: the decoder of PDAE (arXiv:2212.12990)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_jax.guidance.steering import Model
from diffusion_jax.losses.denoising import error_of_denoiser
from diffusion_jax.losses.times import Times
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.processes.base import bcast
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.systems.teacher import Teacher
from diffusion_jax.types import Cond, Denoiser, Params, Process, Train


def shifted(D: Denoiser, G: Denoiser, process: Process) -> Denoiser:
    """The denoiser D_z(x, t, z) = D(x, t) + (sigma^2 / alpha) G(x, t, z).

    If D(x, t) = E[x_0 | x_t] and G = grad log p(z | x_t), it is E[x_0 | x_t, z] by Bayes' rule. alpha must be positive.
    """

    def D_z(x: Float[Array, "batch *shape"], t: Float[Array, "*n"], cond: Cond = None) -> Float[Array, "batch *shape"]:
        return D(x, t) + bcast(process.sigma(t) ** 2 / process.alpha(t), x) * G(x, t, cond)

    return D_z


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftedDiffusion(Diffusion):
    """A diffusion model given a condition z: a frozen unconditional one, the `teacher`, and a gradient estimator G.

    Its denoiser is `shifted`, with the one coefficient sigma^2 / alpha in training and in every solver, and
    G(x, t, z) = F(c_in x, c_noise, z) of the network F with c_in and c_noise of `param`. The loss is
    w(t) |D_z(x_t, t, z) - x_0|^2 with the `weighting` w. F starts at zero, where D_z is the teacher. The rest is that
    of `Diffusion`, whose `loss_fn` is None here.

    Parameters are {"network", "frozen": {"teacher"}}. Modules of the network that `shared` names are not among them:
    they are those of the teacher's network, whose activations both read (arXiv:2212.12990).
    """

    teacher: Teacher
    weighting: Weighting
    times: Times
    shared: tuple[str, ...] = ()

    def init(self, key: Key[Array, ""]) -> Params:
        network_key, teacher_key = jax.random.split(key)
        network = {name: part for name, part in self.init_network(network_key).items() if name not in self.shared}
        return {"network": network, "frozen": {"teacher": self.teacher.init(teacher_key)}}

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        key, dropout_key = jax.random.split(key)
        key, x, cond = self.prepared(key, batch, train)
        D_z = self._shifted(params, None if train is None else dropout_key)
        return error_of_denoiser(D_z, self.process, self.weighting, self.times, key, x, cond), {}

    def model(self, params: Params, cond: Cond = None) -> Model:
        """The shifted denoiser before guidance, with the embedded condition and null condition."""
        network, conditions = self._network(params), self.network_conditions.of(cond)
        embedded = self.embed(network, conditions)
        null = self.embed(network, self.network_conditions.nulled(conditions))
        return Model(D=self._shifted(params), cond=embedded, null=null, given=cond, process=self.process)

    def _shifted(self, params: Params, key: Key[Array, ""] | None = None) -> Denoiser:
        """The denoiser D_z(x, t, cond); with a key there is dropout in the gradient estimator."""
        network = self._network(params)

        def G(x: Float[Array, "batch *shape"], t: Float[Array, "*n"], cond: Cond) -> Float[Array, "batch *shape"]:
            c = self.param(self.process, jnp.broadcast_to(t, x.shape[:1]))
            return self.apply(network, bcast(c.c_in, x) * x, c.c_noise, cond, key=key)

        return shifted(self.teacher.denoiser(params["frozen"]["teacher"], self.process), G, self.process)

    def _network(self, params: Params) -> Params:
        """The parameters of the whole gradient estimator."""
        frozen = jax.lax.stop_gradient(params["frozen"]["teacher"]["network"])
        return {**params["network"], **{name: frozen[name] for name in self.shared}}
