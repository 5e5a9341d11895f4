"""Losses of two players: Dirac-GAN in closed form, invariances, and penalties in every so many steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.losses.adversarial import LOSSES, Penalty, gradient_penalty, two_player_loss

STEP = 0.4


def dirac(r1: float, loss: str):
    """One simultaneous gradient step of Dirac-GAN: the data is 0, G makes theta, D(x) = psi x (arXiv:1801.04406)."""

    def objective(players):
        theta, psi = players
        zero = jnp.zeros((1, 1))
        discriminate = lambda psi, x: psi * x[:, 0]
        total, _ = two_player_loss(
            LOSSES[loss], Penalty(r1=r1), discriminate, psi, zero, theta * jnp.ones((1, 1)), jnp.int32(0)
        )
        return total.mean()

    return jax.jit(lambda players: players - STEP * jax.grad(objective)(players))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("r1", [0.0, 0.1, 0.3, 1.0, 3.0])
def test_a_step_of_dirac_gan_has_the_known_eigenvalues(loss, r1):
    """Those of 1 + h A with A = [[0, 1/2], [-1/2, -r1]]: -r1 / 2 +- sqrt(r1^2 / 4 - 1 / 4)."""
    # The step is linear along both axes. Differentiated once more it would lack what is stopped between the players.
    step, size = dirac(r1, loss), 1e-2
    jacobian = np.stack([np.asarray(step(jnp.float32(axis))) / size for axis in size * np.eye(2)], axis=1)
    root = np.sqrt(complex(r1**2 / 4 - 1 / 4))
    expected = [1 + STEP * (-r1 / 2 + sign * root) for sign in (1, -1)]
    found = np.linalg.eigvals(jacobian)
    # A double eigenvalue moves by the root of a rounding error.
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(np.array(expected)), atol=1e-3)
    if r1 < 1:
        np.testing.assert_allclose(np.abs(found) ** 2, 1 - STEP * r1 + STEP**2 / 4, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_dirac_gan_converges_with_a_penalty_and_moves_away_without(loss):
    def distance(r1, steps):
        players = jax.lax.fori_loop(0, steps, lambda _, p: dirac(r1, loss)(p), jnp.float32([0.01, 0.0]))
        return float(jnp.linalg.norm(players))

    assert distance(0.3, 400) < 1e-6
    # |lambda|^2 = 1 + h^2 / 4, so that 100 steps make 0.01 seven times as large; later logits saturate.
    assert distance(0.0, 100) == pytest.approx(0.01 * (1 + STEP**2 / 4) ** 50, rel=0.1)
    assert distance(0.0, 1000) > 0.5
    # A step is stable from r1 = h / 4 on.
    assert distance(0.9 * STEP / 4, 2000) > 0.1 > distance(1.5 * STEP / 4, 2000)


def test_the_penalty_of_a_linear_discriminator():
    w, x = jnp.array([1.0, -2.0, 0.5]), jax.random.normal(jax.random.key(0), (5, 3))
    np.testing.assert_allclose(gradient_penalty(lambda x: x @ w + 3, x), 0.5 * (w @ w) * np.ones(5), rtol=1e-6)
    # Of each example alone.
    quadratic = lambda x: jnp.square(x).sum(-1)
    np.testing.assert_allclose(gradient_penalty(quadratic, x), 2 * jnp.square(x).sum(-1), rtol=1e-6)


def test_relativistic_losses_ignore_a_constant_and_others_do_not():
    real, fake = jax.random.normal(jax.random.key(0), (2, 6))
    for player in ("discriminator", "generator"):
        relativistic, plain = (getattr(LOSSES[name], player) for name in ("relativistic", "non_saturating"))
        np.testing.assert_allclose(relativistic(real + 3, fake + 3), relativistic(real, fake), rtol=1e-5)
        assert np.abs(plain(real + 3, fake + 3) - plain(real, fake)).max() > 0.1
    # At equal logits each player's loss is log 2 for each pair, or for each example.
    zero = jnp.zeros(3)
    np.testing.assert_allclose(LOSSES["relativistic"].generator(zero, zero), np.log(2) * np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(
        LOSSES["non_saturating"].discriminator(zero, zero), 2 * np.log(2) * np.ones(3), rtol=1e-6
    )


def test_every_part_of_the_loss_reaches_one_player_alone():
    discriminate = lambda w, x: jnp.tanh(x @ w)
    x, noise = jax.random.normal(jax.random.key(0), (2, 7, 3))
    penalty, losses, step = Penalty(r1=0.7, r2=0.4), LOSSES["relativistic"], jnp.int32(0)

    def total(players):
        loss, metrics = two_player_loss(losses, penalty, discriminate, players["w"], x, noise * players["g"], step)
        return loss.sum(), metrics

    players = {"w": jnp.array([0.3, -0.2, 0.9]), "g": jnp.float32(0.5)}
    found, metrics = jax.grad(total, has_aux=True)(players)
    fake = noise * players["g"]

    def of_generator(g):
        return losses.generator(discriminate(players["w"], x), discriminate(players["w"], noise * g)).sum()

    def of_discriminator(w):
        slope = 1 - jnp.tanh(x @ w) ** 2, 1 - jnp.tanh(fake @ w) ** 2
        penalties = (0.7 * slope[0] ** 2 + 0.4 * slope[1] ** 2) * (w @ w) / 2
        return (losses.discriminator(discriminate(w, x), discriminate(w, fake)) + penalties).sum()

    np.testing.assert_allclose(found["g"], jax.grad(of_generator)(players["g"]), rtol=1e-5)
    np.testing.assert_allclose(found["w"], jax.grad(of_discriminator)(players["w"]), rtol=1e-5)
    assert set(metrics) == {"generator_loss", "discriminator_loss", "penalty", "logits_real", "logits_fake"}


def test_a_lazy_penalty_comes_in_every_nth_step_and_is_annealed_along_half_a_cosine():
    critic, x = lambda x: x @ jnp.array([2.0]), jnp.zeros((3, 1))
    lazy = jax.jit(lambda step: Penalty(r1=1.0, every=4)(critic, x, x, step))
    values = [float(lazy(jnp.int32(step))[0]) for step in range(9)]
    np.testing.assert_allclose(values, [2, 0, 0, 0, 2, 0, 0, 0, 2])
    annealed = Penalty(r1=0.05, final_factor=0.1, anneal_steps=100)
    factors = [float(annealed.factor(jnp.int32(step))) for step in (0, 50, 100, 1000)]
    np.testing.assert_allclose(factors, [1, 0.55, 0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(annealed(critic, x, x, jnp.int32(50)), 0.05 * 0.55 * 2 * np.ones(3), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(r1=-1.0), "r1 is -1.0; it must be at least 0"),
        (dict(r2=np.inf), "r2 is inf"),
        (dict(every=0), "every is 0"),
        (dict(final_factor=2.0), "final_factor is 2.0"),
        (dict(anneal_steps=-1), "anneal_steps is -1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Penalty(**options)
