"""Names in checkpoints of latent diffusion, whose U-Net is ADM's: with transformers, of averages, with classes."""

import jax
import numpy as np
import pytest

from diffusion_jax.networks.adm import ADM
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.weights import adm
from diffusion_jax.weights.layout import export_params, fit, import_params
from diffusion_jax.weights.options import with_defaults

SMALL = dict(image_size=4, in_channels=2, model_channels=8, channel_mult=(1,), num_res_blocks=1)
SMALL |= dict(attention_resolutions=(4,), num_head_channels=4, num_groups=4)
BLOCK = "input_blocks.1.1.transformer_blocks.0"


def flat(name: str) -> str:
    return "model_ema.diffusion_model" + name.replace(".", "")


@pytest.mark.parametrize(
    ("options", "make", "expected"),
    [
        (
            dict(token_dim=6, max_tokens=2),
            lambda found: found[2],
            {
                f"model.diffusion_model.{BLOCK}.attn2.to_k.weight": (8, 6),
                f"model.diffusion_model.{BLOCK}.attn1.to_out.0.bias": (8,),
                f"model.diffusion_model.{BLOCK}.ff.net.0.proj.weight": (64, 8),
                f"model.diffusion_model.{BLOCK}.ff.net.2.weight": (8, 32),
                "model.diffusion_model.input_blocks.1.1.proj_out.weight": (8, 8, 1, 1),
            },
        ),
        (
            {},
            lambda found: found[2],
            {flat("input_blocks.1.1.qkv.weight"): (24, 8, 1), flat("output_blocks.0.0.in_layers.2.bias"): (8,)},
        ),
        (
            dict(class_token_dim=6, num_classes=3),
            lambda found: found[0],
            {"cond_stage_model.embedding.weight": (4, 6), f"model.diffusion_model.{BLOCK}.norm3.weight": (8,)},
        ),
    ],
)
def test_names_of_latent_diffusion(options, make, expected):
    """Next to a first stage and other contents of such files; a written file reads back the same."""
    init, _ = init_apply(lambda rngs: ADM(**SMALL, **options, rngs=rngs))
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    layouts = adm.layouts(with_defaults(ADM, SMALL | options))
    layout = make(layouts)
    written = export_params(layout, params)
    assert expected.items() <= {name: array.shape for name, array in written.items()}.items()
    file = written | {"betas": np.ones(9, np.float32), "first_stage_model.decoder.conv_in.bias": np.ones(3, np.float32)}
    assert fit(layout, file, shapes)[1] == 0
    jax.tree.map(np.testing.assert_array_equal, import_params(layout, file, shapes), params)
