"""Autoencoders, discriminator and LPIPS: sizes that are published, shapes, and what is refused."""

import jax
import numpy as np
import pytest

from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.discriminator import NLayerDiscriminator
from diffusion_jax.networks.functional import count_parameters, init_methods
from diffusion_jax.networks.lpips import LPIPS
from diffusion_jax.networks.vq_model import VQModel

IMAGE = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)


def _abstract(make, *names):
    init, methods = init_methods(make, names)
    return jax.eval_shape(init, jax.random.key(0)), methods


@pytest.mark.parametrize(
    ("make", "count", "latent"),
    [
        # Stable Diffusion's, as counted in diffusers' model of it.
        (lambda rngs: AutoencoderKL(rngs=rngs), 83_653_863, (2, 8, 8, 8)),
        # LDM's VQ-f4, as counted in diffusers' VQModel with its sizes.
        (lambda rngs: VQModel(rngs=rngs), 55_322_782, (2, 16, 16, 3)),
    ],
    ids=["kl-f8", "vq-f4"],
)
def test_full_size(make, count, latent):
    params, (encode, decode) = _abstract(make, "encode", "decode")
    assert count_parameters(params) == count
    h = jax.eval_shape(encode, params, IMAGE)
    assert h.shape == latent
    z = jax.ShapeDtypeStruct((*latent[:3], latent[3] // 2 if latent[3] == 8 else latent[3]), np.float32)
    assert jax.eval_shape(decode, params, z).shape == IMAGE.shape


def test_discriminator_and_lpips_of_full_size():
    # taming-transformers counts 2,765,633 with two numbers per channel of every norm, as here.
    params, (discriminate,) = _abstract(lambda rngs: NLayerDiscriminator(rngs=rngs), "discriminate")
    assert count_parameters(params) == 2_765_633
    assert jax.eval_shape(discriminate, params, jax.ShapeDtypeStruct((2, 256, 256, 3), np.float32)).shape == (
        2,
        30,
        30,
        1,
    )
    params, (distance,) = _abstract(lambda rngs: LPIPS(rngs=rngs), "distance")
    assert count_parameters(params["convs"]) == 14_714_688  # of VGG-16 without its classifier
    assert jax.eval_shape(distance, params, jax.ShapeDtypeStruct((2, 2, 32, 32, 1), np.float32)).shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(image_size=60), "image_size=60 must be a multiple of 8"),
        (dict(block_out_channels=()), r"block_out_channels=\(\)"),
        (dict(latent_channels=0), "latent_channels=0"),
        (dict(attention_levels=(4,)), r"attention_levels=\(4,\) must be among the levels 0\.\.3"),
        (dict(norm_num_groups=7), "num_groups=7 must be a positive divisor"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        _abstract(lambda rngs: AutoencoderKL(**arguments, rngs=rngs))


def test_images_that_do_not_divide_are_refused():
    params, (encode,) = _abstract(lambda rngs: AutoencoderKL(block_out_channels=(32, 32), rngs=rngs), "encode")
    with pytest.raises(ValueError, match=r"\(1, 8, 7, 3\).* multiple of 2"):
        jax.eval_shape(encode, params, jax.ShapeDtypeStruct((1, 8, 7, 3), np.float32))
