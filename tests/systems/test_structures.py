"""Conditions that say what an example consists of reach both branches of classifier-free guidance, and training."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_jax import parameterizations, processes, solvers, systems
from diffusion_jax.guidance import steering
from diffusion_jax.networks.base import DenoisingNetwork
from diffusion_jax.networks.conditions import Conditions, structure
from diffusion_jax.networks.functional import conditions_of, embedder, init_apply
from diffusion_jax.solvers import grids
from diffusion_jax.types import Train


class Pocket(DenoisingNetwork):
    """The prediction of x_0 is the pocket plus the class."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.input_shape = (2,)
        self.conditions = Conditions({"pocket": structure((2,))}, num_classes=2)
        self.scale = nnx.Param(jnp.ones(()))

    def forward(self, x, c_noise, cond, *, rngs=None):
        return self.scale * (cond.others["pocket"] + cond.vector)

    def embedders(self):
        return dict(label=lambda label: label[:, None].astype(jnp.float32))


def make(rngs: nnx.Rngs) -> Pocket:
    return Pocket(rngs=rngs)


def denoising(apply):
    return lambda params, key, x, cond, train=True: (jnp.sum(apply(params, x, x[:, 0], cond), -1), {})


def system(**changes) -> systems.Diffusion:
    init, apply = init_apply(make)
    return systems.Diffusion(
        init_network=init,
        apply=apply,
        process=processes.VP(),
        param=parameterizations.x0_prediction(),
        loss_fn=denoising(apply),
        solver=solvers.ddim(),
        grid=grids.uniform(),
        steps=2,
        shape=(2,),
        network_conditions=conditions_of(make),
        embed=embedder(make),
        **changes,
    )


def test_the_null_branch_of_guidance_sees_the_structure():
    """D_w = null + w (conditional - null), where null is the pocket and the null class, 2."""
    guided = system(guidance=steering.classifier_free(3.0))
    params = guided.init(jax.random.key(0))
    pocket, label = jnp.array([[10.0, 20.0], [30.0, 40.0]]), jnp.array([0, 1])
    D = guided.denoiser(params, {"pocket": pocket, "label": label})
    expected = pocket + 2 + 3 * (label[:, None] - 2)
    np.testing.assert_allclose(D(jnp.zeros((2, 2)), jnp.float32(0.5)), expected, rtol=1e-6)


def test_training_drops_the_class_and_keeps_the_structure():
    trained = system(cond_dropout=1.0)
    params = trained.init(jax.random.key(0))
    batch = {"x": jnp.zeros((3, 2)), "pocket": jnp.array([[1.0, 2.0]] * 3), "label": jnp.zeros(3, jnp.int32)}
    loss, _ = trained.loss(params, jax.random.key(1), batch, Train(jnp.int32(0), 1))
    np.testing.assert_allclose(loss, 3.0 + 2 * 2)
