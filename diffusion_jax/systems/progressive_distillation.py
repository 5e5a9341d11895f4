"""Progressive distillation: a diffusion model that samples in ever fewer DDIM steps (arXiv:2202.00512)."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_jax.losses.denoising import row_mean
from diffusion_jax.losses.distillation import progressive_target
from diffusion_jax.losses.weightings import Weighting
from diffusion_jax.parameterizations import bound_to
from diffusion_jax.processes import perturb
from diffusion_jax.systems.diffusion import Diffusion
from diffusion_jax.types import Cond, Denoiser, Params, Train


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation(Diffusion):
    """A student of a frozen copy of itself, the teacher: in each stage it learns to make two steps of it in one.

    The teacher of the first stage is a trained model that samples with DDIM in `teacher_steps` uniform steps of t. The
    student of stage k = 0, 1, ... takes N = teacher_steps / 2^(k + 1) steps and is trained for `stages[k]` steps, at
    t = i / N with i uniform in 1..N; then it becomes the teacher. The loss is w(t) |D(x_t, t) - target|^2 with the
    target of `losses.distillation.progressive_target`. After the last stage the teacher stays.

    Parameters are {"network": ..., "frozen": {"teacher": {"network": ...}}}. See `diffusion_jax.types.System`.

    Raises ValueError unless there are stages of at least one step, and 2^stages divides `teacher_steps`.
    """

    teacher_steps: int
    stages: tuple[int, ...]  # training steps of each
    weighting: Weighting

    def __post_init__(self) -> None:
        if not self.stages or any(not isinstance(steps, int) or steps < 1 for steps in self.stages):
            raise ValueError(f"stages is {self.stages!r}; it must be the training steps of each stage, at least 1")
        halvings = 2 ** len(self.stages)
        if self.teacher_steps < halvings or self.teacher_steps % halvings:
            raise ValueError(
                f"teacher_steps is {self.teacher_steps}; it must be a multiple of {halvings}, to be halved in each of "
                f"{len(self.stages)} stages"
            )

    @property
    def ends(self) -> tuple[int, ...]:
        """The training step at which each stage ends."""
        return tuple(itertools.accumulate(self.stages))

    def init(self, key: Key[Array, ""]) -> Params:
        params = super().init(key)
        return {**params, "frozen": {"teacher": {"network": jax.tree.map(jnp.copy, params["network"])}}}

    def student_steps(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """The number N of sampling steps of the student that is trained at the training step `step`."""
        stage = jnp.sum(step >= jnp.asarray(self.ends[:-1], jnp.int32))
        return jnp.right_shift(self.teacher_steps, stage + 1)

    def loss(
        self, params: Params, key: Key[Array, ""], batch: dict[str, Array], train: Train | None
    ) -> tuple[Float[Array, "batch"], dict[str, Array]]:
        """The distillation loss; in evaluation the denoising loss, which a student of few steps does not minimise."""
        if train is None:
            return super().loss(params, key, batch, train)
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        x_0, cond, process = batch["x"], self.network_conditions.of(batch), self.process
        steps = self.student_steps(train.step)
        place = jax.random.randint(time_key, x_0.shape[:1], 0, steps)
        t, s = (place + 1) / steps, place / steps
        x_t, _ = perturb(process, noise_key, x_0, t)
        teacher = self._bound(jax.lax.stop_gradient(params["frozen"]["teacher"]["network"]), cond)
        target = jax.lax.stop_gradient(progressive_target(process, teacher, x_t, t, s))
        student = self._bound(params["network"], cond, dropout_key)
        error = row_mean(jnp.square(student(x_t, t) - target))
        return self.weighting(process, t) * error, {"student_steps": steps.astype(jnp.float32)}

    def advance(self, params: Params, train: Train, metrics: dict[str, Array]) -> Params:
        """After the last training step of a stage, except for the last stage, the student becomes the teacher."""
        done = jnp.any(train.step + 1 == jnp.asarray(self.ends[:-1], jnp.int32))
        old, new = params["frozen"]["teacher"], {"network": params["network"]}
        return {**params, "frozen": {"teacher": jax.lax.cond(done, lambda: new, lambda: old)}}

    def _bound(self, network: Params, cond: Cond, key: Key[Array, ""] | None = None) -> Denoiser:
        """The denoiser of the parameters `network` under `cond`; `key` is that of dropout."""
        make = dataclasses.replace(self, apply=lambda *arguments: self.apply(*arguments, key=key))
        return bound_to(make.model({"network": network}, cond).D, cond)
