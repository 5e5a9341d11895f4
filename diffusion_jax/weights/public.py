"""Public checkpoints as what a run starts or samples from: folders of diffusers, and files of other projects."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from diffusion_jax.types import Params, Placed
from diffusion_jax.weights import families, folders, statements
from diffusion_jax.weights.files import metadata, open_weights
from diffusion_jax.weights.layout import listing
from diffusion_jax.weights.lora import read_lora
from diffusion_jax.weights.options import with_defaults
from diffusion_jax.weights.statements import Said


def is_public(path: pathlib.Path) -> bool:
    """Whether `path` is a file, or a folder of diffusers or transformers, rather than a work directory."""
    return path.is_file() or folders.is_pipeline(path) or folders.is_component(path)


def load_network(
    path: pathlib.Path, section: Mapping[str, Any], shape: tuple[int, ...], abstract_params: PyTree[Any]
) -> Params:
    """The parameters of the network that `section` of a config describes, from the public checkpoint `path`.

    Args:
      path: a file of weights, the folder of a component, or of a pipeline with one component of this kind.
      section: the name of the network and its arguments.
      shape: of what the network takes.
      abstract_params: where they go, see `layout.import_params`.

    Raises:
      FileNotFoundError: something is missing in the folder, which is named.
      ValueError: no public files are known for this network; they cannot be read; or they are of another network:
        the options of its config.json that differ are named with both values, or the tensors.
    """
    name, arguments = section["name"], {key: value for key, value in section.items() if key != "name"}
    family = families.named(name)
    if arguments.pop("fourier", ()):
        raise ValueError("config.network.fourier must be empty: no public network has such features")
    if len(shape) == 3:
        arguments = {"image_size": shape[0], "in_channels": shape[-1], **arguments}
    if path.is_file():
        tensors = statements.without_markers(open_weights(path))
        return families.load(family, arguments, tensors, abstract_params, what=str(path))
    component = folders.open_component(_component_of(path, family))
    if component.family is not family:
        raise ValueError(
            f"{component.folder} is a {component.config.get('_class_name')}, our {component.family.name!r}; "
            f"config.network.name is {name!r}"
        )
    _check_same(component, family, arguments)
    return component.load(abstract_params)


def said(paths: Sequence[pathlib.Path | None]) -> Said | None:
    """What the checkpoints at `paths` say of their noise schedule; the first that says something of a key counts.

    A component, or a file in one, is described by the scheduler of its pipeline. None if none of them says anything.
    Raises ValueError for what cannot be read or has no counterpart here.
    """
    statements_ = []
    for path in paths:
        if path is None:
            continue
        if path.is_file():
            statements_.append(statements.of_file(path, open_weights(path), metadata(path)))
        pipeline = folders.pipeline_around(path)
        if pipeline is not None:
            statements_.append(statements.of_pipeline(pipeline))
    return statements.merged(statements_)


def read_factors(path: str, section: Mapping[str, Any], network: PyTree[Any], prefix: str = "") -> Params:
    """The low-rank updates in a file for the network of a section, of the shapes `network`; see `read_lora`.

    `prefix` is the component if it is not a denoiser.
    """
    family = families.named(section["name"])
    arguments = with_defaults(family.network, section)
    layout, *others = (layout for layout in family.layouts(arguments) if not layout.prefix)
    return read_lora(path, layout, network, prefix=prefix or component_of(section["name"]), others=others)


def component_of(network: str) -> str:
    """The name of the component of a pipeline of diffusers that a denoising network is."""
    return "transformer" if network == "dit" else "unet"


def within(networks: Mapping[str, Placed], path: tuple[str, ...]) -> dict[str, Placed]:
    """The networks of a system whose parameters lie at `path` in those of another."""
    return {
        name: placed._replace(
            path=(*path, *placed.path), adopt=None, extra=placed.extra and functools.partial(_extra, placed.extra, path)
        )
        for name, placed in networks.items()
    }


def _extra(extra: Callable[[Params], Mapping[str, Any]], path: tuple[str, ...], params: Params) -> Mapping[str, Any]:
    return extra(functools.reduce(lambda node, name: node[name], path, params))


def _component_of(path: pathlib.Path, family: families.Family) -> pathlib.Path:
    """The folder of the one component of a pipeline that is of this family; any other folder itself."""
    if not folders.is_pipeline(path):
        return path
    components = folders.components(path)
    fitting = [name for name, class_name in components.items() if class_name in family.class_names]
    if len(fitting) != 1:
        described = ", ".join(f"{name} ({class_name})" for name, class_name in components.items())
        raise ValueError(
            f"{path} has {len(fitting)} components for the network {family.name!r}, {' or '.join(family.class_names)}; "
            f"it has {described or 'none'}"
        )
    return path / fitting[0]


def _check_same(component: folders.Component, family: families.Family, arguments: Mapping[str, Any]) -> None:
    there, here = family.config_of(component.arguments), family.config_of(arguments)
    different = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and not key.startswith("_") and key not in family.free
    ]
    if different:
        raise ValueError(
            f"{component.folder} holds another {family.name!r} than config.network and config.data describe: "
            f"{listing({'options differ': different})}"
        )
