"""What all denoising networks share: the shape of x, declared conditions, the dtype of the computation, signatures."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import names
from diffusion_jax.networks.adm import ADM
from diffusion_jax.networks.base import DenoisingNetwork, check_input
from diffusion_jax.networks.conditions import NO_CONDITIONS, Conditions
from diffusion_jax.networks.controlnet import ControlNetModel, controlled_unet
from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.functional import conditions_of, init_apply
from diffusion_jax.networks.ncsnpp import NCSNpp
from diffusion_jax.networks.refinenet import NCSN
from diffusion_jax.networks.unet import UNet
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.networks.unet_spec import UNetSpec

TEXT = dict(num_classes=3, vector_dim=2, token_dim=8, vocabulary=9, max_tokens=5)
FEATURES = dict(token_dim=8, max_tokens=5)
UNET = functools.partial(
    UNet, image_size=4, in_channels=1, channels=4, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(4,)
)
ADM_ = functools.partial(
    ADM, image_size=4, in_channels=1, model_channels=4, channel_mult=(1,), num_res_blocks=1, num_head_channels=4
)
CONDITIONAL = {
    "unet": functools.partial(UNET, num_groups=2),
    "adm": functools.partial(ADM_, attention_resolutions=(4,), num_groups=2),
    "dit": functools.partial(DiT, image_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2),
}
SHAPE = jax.ShapeDtypeStruct


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 6, 4, 3), r"\(2, 6, 4, 3\).* multiple of 4"),
        ((2, 8, 8, 1), r"\(2, 8, 8, 1\).* 3\]"),
        ((2, 8, 3), r"\(2, 8, 3\)"),
        ((2, 0, 8, 3), r"\(2, 0, 8, 3\)"),
    ],
)
def test_x_of_another_shape_is_refused(shape, message):
    check_input(jnp.zeros((2, 8, 12, 3)), (None, None, 3), 4)
    with pytest.raises(ValueError, match=message):
        check_input(jnp.zeros(shape), (None, None, 3), 4)


def test_networks_declare_their_conditions():
    tiny = dict(image_size=8, in_channels=1, nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    assert conditions_of(lambda rngs: NCSNpp(**tiny, num_classes=3, rngs=rngs)) == Conditions(num_classes=3)
    assert conditions_of(lambda rngs: NCSN(ngf=2, in_channels=1, depth="shallow", rngs=rngs)) == NO_CONDITIONS
    small = dict(image_size=2, block_out_channels=(8,), transformer_layers=(1,), num_attention_heads=2)
    sizes = dict(norm_num_groups=4, token_dim=6, max_tokens=3, hint_channels=(4, 8))
    controlled = conditions_of(lambda rngs: controlled_unet(**small, **sizes, rngs=rngs))
    assert controlled == Conditions(token_dim=6, max_tokens=3, unmasked=True, control_shape=(4, 4, 3))
    classes = [network for network in names.NETWORKS.values() if isinstance(network, type)]
    assert len(classes) > 5 and all(issubclass(network, DenoisingNetwork) for network in classes)


@pytest.mark.parametrize("kinds", [TEXT, FEATURES], ids=["text", "features"])
@pytest.mark.parametrize("name", CONDITIONAL)
def test_every_product_is_computed_in_the_dtype_with_and_without_conditions(name, kinds):
    init, apply = init_apply(lambda rngs: CONDITIONAL[name](**kinds, rngs=rngs), "bfloat16")
    params = jax.eval_shape(init, jax.random.key(0))
    cond = {k: SHAPE((2, *entry.shape), entry.dtype) for k, entry in Conditions(**kinds).shapes.items()}
    for given in (cond, None):
        program = jax.make_jaxpr(apply)(params, SHAPE((2, 4, 4, 1), np.float32), SHAPE((2,), np.float32), given)
        used = [e for e in program.eqns if e.primitive.name in ("dot_general", "conv_general_dilated")]
        assert used and {str(e.invars[1].aval.dtype) for e in used} == {"bfloat16"}


def test_signatures_list_the_fields_of_the_spec():
    """They are what a section of a config is checked against."""
    fields = inspect.signature(UNetSpec).parameters
    for make, own in (
        (UNet2DConditionModel.__init__, {"self", "out_channels", "image_channels", "time_cond_proj_dim", "rngs"}),
        (ControlNetModel.__init__, {"self", "control_channels", "hint_channels", "rngs"}),
        (controlled_unet, {"control_channels", "hint_channels", "control_scale", "rngs"}),
    ):
        parameters = inspect.signature(make).parameters
        assert parameters.keys() == fields.keys() | own
        assert all(parameters[name].default == field.default for name, field in fields.items())
        assert parameters["image_size"].annotation == "int"
    with pytest.raises(TypeError, match="image_channels"):
        controlled_unet(image_size=8, image_channels=1, rngs=None)
