"""The families of public networks: a literal table from their classes to ours, with the layouts of their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from diffusion_jax.networks.adm import ADM
from diffusion_jax.networks.autoencoder_kl import AutoencoderKL
from diffusion_jax.networks.clip import CLIPTextModel, CLIPVisionModel
from diffusion_jax.networks.controlnet import ControlNetModel
from diffusion_jax.networks.dit import DiT
from diffusion_jax.networks.edm import DhariwalUNet, SongUNet
from diffusion_jax.networks.encoder_unet import EncoderUNet
from diffusion_jax.networks.functional import init_apply
from diffusion_jax.networks.ldm_bert import LDMBert
from diffusion_jax.networks.ncsnpp import NCSNpp
from diffusion_jax.networks.t5 import T5Encoder
from diffusion_jax.networks.unet import UNet
from diffusion_jax.networks.unet_2d_condition import UNet2DConditionModel
from diffusion_jax.networks.vq_model import VQModel
from diffusion_jax.types import Params
from diffusion_jax.weights import adm, autoencoders, clip, dit, edm, ldm_bert, ncsnpp, t5, unet_2d, unet_2d_condition
from diffusion_jax.weights.layout import Layout, fit, import_params
from diffusion_jax.weights.options import with_defaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A network of this library and the layouts of its public files.

    Attributes:
      name: of the network in `config.network.name`.
      network: its class.
      layouts: from its arguments to the layouts of files; the first is that of `class_names`, if there are any.
      class_names: of the same network in diffusers or transformers, today's name first.
      arguments: config.json -> arguments of `network`.
      config_of: arguments of `network` -> config.json.
      stem: of the files of weights in its folder.
      free: options of config.json that do not change the weights.
    """

    name: str
    network: type[nnx.Module]
    layouts: Callable[[Mapping[str, Any]], tuple[Layout, ...]]
    class_names: tuple[str, ...] = ()
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    config_of: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    stem: str = "diffusion_pytorch_model"
    free: tuple[str, ...] = ("sample_size", "dropout")


FAMILIES = (
    Family(
        name="unet",
        network=UNet,
        layouts=lambda arguments: (unet_2d.LAYOUT,),
        class_names=("UNet2DModel",),
        arguments=unet_2d.arguments,
        config_of=unet_2d.config_of,
    ),
    Family(
        name="ncsnpp",
        network=NCSNpp,
        layouts=lambda arguments: (unet_2d.ncsnpp_layout(len(arguments["ch_mult"])), *ncsnpp.originals(arguments)),
        class_names=("UNet2DModel",),
        arguments=unet_2d.ncsnpp_arguments,
        config_of=unet_2d.ncsnpp_config_of,
    ),
    Family(
        name="autoencoder_kl",
        network=AutoencoderKL,
        layouts=lambda arguments: (autoencoders.LAYOUT, *autoencoders.originals(arguments)),
        class_names=("AutoencoderKL",),
        arguments=autoencoders.kl_arguments,
        config_of=autoencoders.kl_config,
    ),
    Family(
        name="vq_model",
        network=VQModel,
        layouts=lambda arguments: (autoencoders.LAYOUT, *autoencoders.originals(arguments)),
        class_names=("VQModel",),
        arguments=autoencoders.vq_arguments,
        config_of=autoencoders.vq_config,
    ),
    Family(
        name="dit",
        network=DiT,
        layouts=lambda arguments: (dit.LAYOUT, dit.ORIGINAL),
        class_names=("DiTTransformer2DModel", "Transformer2DModel"),
        arguments=dit.arguments,
        config_of=dit.config_of,
        # The authors' network, which diffusers' computes a little differently, has the same weights.
        free=("sample_size", "dropout", "norm_eps"),
    ),
    Family(
        name="unet_2d_condition",
        network=UNet2DConditionModel,
        layouts=lambda arguments: (unet_2d_condition.LAYOUT, *unet_2d_condition.originals(arguments)),
        class_names=("UNet2DConditionModel",),
        arguments=unet_2d_condition.arguments,
        config_of=unet_2d_condition.config_of,
    ),
    Family(
        name="controlnet",
        network=ControlNetModel,
        layouts=lambda arguments: (unet_2d_condition.LAYOUT, *unet_2d_condition.controlnet_originals(arguments)),
        class_names=("ControlNetModel",),
        arguments=unet_2d_condition.controlnet_arguments,
        config_of=unet_2d_condition.controlnet_config_of,
    ),
    Family(
        name="clip_text",
        network=CLIPTextModel,
        layouts=lambda arguments: (clip.TEXT, clip.OPENCLIP_TEXT, *clip.originals(arguments)),
        class_names=("CLIPTextModel", "CLIPTextModelWithProjection"),
        arguments=clip.text_arguments,
        config_of=clip.text_config,
        stem="model",
    ),
    Family(
        name="clip_vision",
        network=CLIPVisionModel,
        layouts=lambda arguments: (clip.VISION,),
        class_names=("CLIPVisionModel", "CLIPVisionModelWithProjection"),
        arguments=clip.vision_arguments,
        config_of=clip.vision_config,
        stem="model",
    ),
    Family(
        name="t5",
        network=T5Encoder,
        layouts=lambda arguments: (t5.layout(arguments["feed_forward_proj"]),),
        class_names=("T5EncoderModel", "T5ForConditionalGeneration"),
        arguments=t5.arguments,
        config_of=t5.config_of,
        stem="model",
    ),
    Family(
        name="ldm_bert",
        network=LDMBert,
        layouts=lambda arguments: (ldm_bert.LAYOUT, ldm_bert.original(arguments["encoder_layers"])),
        class_names=("LDMBertModel",),
        arguments=ldm_bert.arguments,
        config_of=ldm_bert.config_of,
        stem="model",
    ),
    Family(name="adm", network=ADM, layouts=adm.layouts),
    Family(name="encoder_unet", network=EncoderUNet, layouts=lambda arguments: (adm.LAYOUT,)),
    Family(name="song_unet", network=SongUNet, layouts=lambda arguments: (edm.LAYOUT,)),
    Family(name="dhariwal_unet", network=DhariwalUNet, layouts=lambda arguments: (edm.LAYOUT,)),
)


def family_of(config: Mapping[str, Any], what: str) -> Family:
    """The family of a config.json. Raises ValueError, which names `what` it belongs to, for an unknown class."""
    architectures = config.get("architectures")
    name = config.get("_class_name") or next(iter(architectures if isinstance(architectures, list) else ()), None)
    families = [family for family in FAMILIES if name in family.class_names]
    if not families:
        known = ", ".join(sorted({name for family in FAMILIES for name in family.class_names}))
        raise ValueError(f"{what} is a {str(name)[:100]!r}; there are networks for {known}")
    if len(families) > 1:
        return families[1] if unet_2d.is_ncsnpp(config) else families[0]
    return families[0]


def named(name: str) -> Family:
    """The family of the network that configs call `name`. Raises ValueError if it has no public files."""
    family = next((family for family in FAMILIES if family.name == name), None)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise ValueError(f"there is no layout of files for the network {name!r}; there are some for {known}")
    return family


def abstract(family: Family, arguments: Mapping[str, Any]) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes of the network's parameters. Raises ValueError for arguments that do not fit together."""
    init, _ = init_apply(lambda rngs: family.network(**arguments, rngs=rngs))
    return jax.eval_shape(init, jax.random.key(0))


def load(
    family: Family,
    arguments: Mapping[str, Any],
    source: Mapping[str, Any],
    abstract_params: PyTree[Any],
    *,
    what: str = "the file",
) -> Params:
    """Parameters from `source` in the layout of the family that fits it best; see `layout.import_params`."""
    layouts = family.layouts(with_defaults(family.network, arguments))
    fits = [fit(layout, source, abstract_params) for layout in layouts]
    # The number of common names counts first, since a file may hold other networks too. Without any, the message lists
    # all names.
    known = any(there for there, _ in fits)
    best = max(range(len(layouts)), key=lambda i: (fits[i][0], -fits[i][1])) if known else 0
    return import_params(layouts[best], source, abstract_params, what=what)
