"""A frozen trained diffusion model that another system learns from: a teacher, on the process of its student."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion_jax.guidance.classifier_free import classifier_free
from diffusion_jax.parameterizations import at_equal_snr, bound_to
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.types import Cond, Denoiser, Params, Process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """The denoiser of a trained diffusion model, for losses of other systems.

    Its parameters {"network": ...} are those of its run, and belong to the group "frozen" of the system that learns
    from it, which has no gradient: {"frozen": {"teacher": ...}}.
    """

    diffusion: Diffusion  # the system of its run, with its own process, parameterization and thresholding

    def init(self, key: Key[Array, ""]) -> Params:
        """Random parameters of the right shapes; a fresh start replaces them by those of the run, see `params_of`."""
        return {"network": self.diffusion.init_network(key)}

    def denoiser(
        self,
        params: Params,
        process: Process | None = None,
        cond: Cond = None,
        scale: float | Float[Array, "batch"] | None = None,
        null: Cond = None,
    ) -> Denoiser:
        """The denoiser D(x, t) under `cond`, without dropout, editing and the guidance of its config.

        Args:
          params: {"network": ...}; no gradient flows into them.
          process: the process of x and t, at the SNR of which the teacher is evaluated, see
            `parameterizations.at_equal_snr`; None: the teacher's own.
          cond: conditions by name.
          scale: of classifier-free guidance, one number or one per example; None: without.
          null: the null condition of guidance, such as that of a text; None: that of the conditions.
        """
        params = jax.lax.stop_gradient(params)
        model = self.diffusion.unguided.model(params, cond)
        if scale is None:
            D = model.D
        else:
            empty = model.null if null is None else self.diffusion.embed(params["network"], null)
            D = classifier_free(model.D, lambda t: scale, empty)
        D = self.diffusion.threshold(bound_to(D, model.cond))
        own = self.diffusion.process
        return D if process is None or _alike(process, own) else at_equal_snr(D, own, process)


def _alike(one: Process, other: Process) -> bool:
    """Whether two processes have the same type and numbers, so that nothing is to be converted."""
    (a, kind), (b, other_kind) = jax.tree.flatten(one), jax.tree.flatten(other)
    return kind == other_kind and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def params_of(params: Params) -> Params:
    """The parameters of a run of `Diffusion` that a `Teacher` needs."""
    return {"network": params["network"]}
