"""Files of low-rank updates, LoRA: those of diffusers and peft, read and written, and those of kohya, read."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.types import Params
from diffusion_jax.weights.files import metadata, open_weights, read_json, write_weights
from diffusion_jax.weights.layout import KINDS, Layout, listing, tensors

STEM = "pytorch_lora_weights"  # of the file that diffusers looks for in a folder
# The end of a name, the part of it that belongs to the layer's name, and the factor: A [rank, in, ...],
# B [out, rank, ...], or the number alpha. peft puts the name of an adapter before "weight".
_PARTS = (
    (r"\.(?:lora_A|lora\.down|lora_down|lora_linear_layer\.down)\.(?:(?P<adapter>[^.]+)\.)?weight$", "", "A"),
    (r"\.(?:lora_B|lora\.up|lora_up|lora_linear_layer\.up)\.(?:(?P<adapter>[^.]+)\.)?weight$", "", "B"),
    (r"\.alpha$", "", "alpha"),
    # diffusers before its version 0.20: attn1.processor.to_q_lora.down.weight, and self_attn.to_q_lora in text encoders
    (r"\.processor\.(to_(?:q|k|v|out))_lora\.down\.weight$", r".\1", "A"),
    (r"\.processor\.(to_(?:q|k|v|out))_lora\.up\.weight$", r".\1", "B"),
    (r"\.to_(q|k|v|out)_lora\.down\.weight$", r".\1_proj", "A"),
    (r"\.to_(q|k|v|out)_lora\.up\.weight$", r".\1_proj", "B"),
)
# Expressions for names of other kinds of updates, in the words of their authors (LyCORIS, peft, kohya, OneTrainer).
_FORMATS = (
    ("LoHa", r"\.hada_(?:w[12]_[ab]|t[12])$"),
    ("LoKr", r"\.lokr_(?:w[12](?:_[ab])?|t[12])$"),
    ("LoCon with a middle factor (Tucker decomposition)", r"\.lora_mid\.weight$"),
    ("DoRA", r"\.(?:dora_scale|lora_magnitude_vector(?:\..+)?)$"),
    ("GLoRA", r"\.[ab][12]\.weight$"),
    ("OFT", r"\.(?:oft_blocks|oft_diag|oft_[RS])(?:\..+)?$"),
    ("IA3", r"\.(?:on_input|ia3_l(?:\..+)?)$"),
    (
        "updates of whole weights, norms or biases",
        r"\.(?:diff|diff_b|set_weight|w_norm|b_norm)$|\.lora_[AB]\.(?:.+\.)?bias$",
    ),
    ("bundled embeddings", r"^bundle_emb\."),
)
# What makes an expression of peft take long: repetitions, groups, and at most so many expressions with either.
_REPEATED, _GROUP, _EXPRESSIONS = re.compile(r"(?<!\\)[*+?{]"), re.compile(r"(?<!\\)\("), 32
# Components of a pipeline by kohya's prefixes.
_KOHYA = {
    "unet": "unet",
    "transformer": "transformer",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
}


class Update(NamedTuple):
    """The low-rank updates of one network: its component in a pipeline, its layout, parameters or shapes, factors."""

    component: str
    layout: Layout
    network: PyTree[Any]
    factors: PyTree[Any]


def write_lora(
    folder: str | os.PathLike,
    layout: Layout,
    network: PyTree[Any],
    factors: PyTree[Any],
    scale: float,
    *,
    prefix: str = "unet",
) -> pathlib.Path:
    """Write the updates scale A B as `folder`/pytorch_lora_weights.safetensors, which `load_lora_weights` reads.

    B is multiplied by the scale, so that readers need none. A layer that is several of theirs is split.

    Args:
      folder: is created if it is missing.
      layout: of the network.
      network: its parameters, or their shapes.
      factors: see `low_rank`.
      scale: alpha / rank.
      prefix: the component, with which names begin: "unet", "transformer", or "" for none.
    """
    return write_updates(folder, [Update(prefix, layout, network, factors)], scale)


def write_updates(
    folder: str | os.PathLike, updates: Sequence[Update], scale: float, *, kohya: bool = False
) -> pathlib.Path:
    """As `write_lora`, the updates of several networks in one file: "unet", "text_encoder", "text_encoder_2".

    With `kohya` the names are those of kohya's scripts, with the rank as alpha: lora_unet_..., and lora_te_... or,
    with a second text encoder, lora_te1_... and lora_te2_....
    """
    arrays = {}
    several = any(update.component == "text_encoder_2" for update in updates)
    for update in updates:
        for name, (path, piece) in _layers(update.layout, update.network).items():
            node = _at(update.factors, path)
            if node is None:
                continue
            down = KINDS[piece.kind][0](np.asarray(node["down"]))
            up = np.split(scale * np.asarray(node["up"]), piece.parts, axis=1)[piece.i]
            up = up.T.reshape(up.shape[1], up.shape[0], *(1,) * (down.ndim - 2))
            if kohya:
                full = f"lora_{_kohya(update.component, several)}_{name.replace('.', '_')}"
                arrays |= {f"{full}.lora_down.weight": down, f"{full}.lora_up.weight": up}
                arrays[f"{full}.alpha"] = np.float32(len(down))
                continue
            full = f"{update.component}.{name}" if update.component else name
            arrays |= {f"{full}.lora_A.weight": down, f"{full}.lora_B.weight": up}
    (path,) = write_weights(folder, arrays, stem=STEM)
    return path


def _kohya(component: str, several: bool) -> str:
    """kohya's prefix of a component, where there are `several` text encoders or one."""
    unused = ("te",) if several else ("te1", "te2")
    return next(prefix for prefix, name in _KOHYA.items() if name == component and prefix not in unused)


def read_lora(
    path: str | os.PathLike,
    layout: Layout,
    network: PyTree[Any],
    *,
    prefix: str = "unet",
    others: Sequence[Layout] = (),
) -> Params:
    """The factors in a file, so that W + A B is the updated kernel; B holds the scales of the file.

    Updates of other components than `prefix` are ignored, see `components`. Several layers of theirs that are one of
    ours give a factor whose rank is the sum of theirs.

    Args:
      path: a file of safetensors or torch.save, or a folder with pytorch_lora_weights or, as of peft, adapter_model,
        .safetensors or .bin. Without tensors of alpha, it is in the header of the file or in peft's
        adapter_config.json next to it, or else equal to the rank.
      layout: of the network.
      network: its parameters, or their shapes.
      prefix: the component, "unet", "transformer", "text_encoder" or "text_encoder_2".
      others: layouts whose names a file may have instead: kohya's files for SDXL have those of its authors.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, is of another network or another kind of updates (LoHa, LoKr, DoRA, ...), which is
        named, has two adapters, or lacks one of two factors. All problems are named.
    """
    source = _open(path)
    _check_format(path, source)
    settings = _settings(path, prefix)
    layers = {name: layer for known in (*others, layout) for name, layer in _layers(known, network).items()}
    flat = {name.replace(".", "_"): name for name in layers}
    updates: dict[str, dict[str, np.ndarray]] = {}
    problems: dict[str, list[str]] = {"unexpected": [], "without its other factor": [], "of another shape": []}
    for full in source:
        layer, part = _split(full)
        name = _own_name(layer, prefix, flat)
        if name is None:
            continue
        if part is None or name not in layers:
            problems["unexpected"].append(full)
        else:
            updates.setdefault(name, {})[part] = np.asarray(source[full]).astype(np.float32)
    parts: dict[tuple[str, ...], dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    totals: dict[tuple[str, ...], int] = {}
    for name, tensors_ in updates.items():
        module, piece = layers[name]
        if not {"A", "B"} <= tensors_.keys():
            problems["without its other factor"].append(name)
            continue
        a, b = tensors_["A"], tensors_["B"]
        *window, c_in, c_out = _at(network, (*module, "kernel")).shape
        rank = a.shape[0] if a.ndim else 0
        down = KINDS["kernel"][1](a) if a.ndim >= 2 else a
        if math.prod(down.shape[:-2]) == math.prod(window) == 1:  # a dense layer may be a convolution over pixels there
            down = down.reshape(*window, *down.shape[-2:])
        width = c_out // piece.parts
        if down.shape != (*window, c_in, rank) or b.shape[:2] != (width, rank) or b.size != width * rank:
            problems["of another shape"].append(f"{name} {a.shape} and {b.shape} for {(*window, c_in, c_out)}")
            continue
        has_alpha = "alpha" in tensors_ and tensors_["alpha"].size
        scale = float(tensors_["alpha"].reshape(-1)[0]) / rank if has_alpha else _scale(settings, name, rank)
        up = b.reshape(b.shape[0], rank).T * np.float32(scale)
        parts.setdefault(module, {})[piece.i] = (down, up)
        totals[module] = piece.parts
    if any(problems.values()) or not parts:
        raise ValueError(f"{path} is not a LoRA of this network ({listing(problems) or 'it has none of its layers'})")
    factors: dict[str, Any] = {}
    for module, pieces in parts.items():
        node = factors
        for key in module[:-1]:
            node = node.setdefault(key, {})
        node[module[-1]] = _joined(pieces, totals[module])
    return factors


def components(path: str | os.PathLike) -> set[str]:
    """The components of a pipeline that a file updates, such as {"unet", "text_encoder"}; "" for names without one.

    Raises FileNotFoundError or ValueError for a file that cannot be read.
    """
    return {_component(name)[0] for name in _open(path)}


def _file(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path).expanduser()
    if not path.is_dir():
        return path
    names = [f"{stem}.{suffix}" for suffix in ("safetensors", "bin") for stem in ("adapter_model", STEM)]
    return next((path / name for name in names if (path / name).is_file()), path / f"{STEM}.safetensors")


def _open(path: str | os.PathLike) -> Mapping[str, Any]:
    return open_weights(_file(path))


def _settings(path: str | os.PathLike, prefix: str) -> Mapping[str, Any]:
    """peft's options of a component, such as lora_alpha. ValueError for options that change what the tensors mean."""
    file = _file(path)
    adapter = file.parent / "adapter_config.json"
    text = metadata(file).get("lora_adapter_metadata")
    try:
        settings = json.loads(text) if text else read_json(adapter) if adapter.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its lora_adapter_metadata cannot be read: {error}") from error
    settings = settings if isinstance(settings, dict) else {}
    settings = {key.removeprefix(f"{prefix}."): value for key, value in settings.items()}
    for key in ("use_dora", "fan_in_fan_out"):
        if settings.get(key):
            raise ValueError(f"{file}: {key} is {settings[key]!r}; only plain low-rank updates are read")
    by_layer = settings.get("alpha_pattern") or {}
    if not isinstance(by_layer, dict) or not _are_expressions(by_layer):
        raise ValueError(
            f"{file}: alpha_pattern={str(by_layer)[:200]} must be an object of the names of layers, or of at most "
            f"{_EXPRESSIONS} regular expressions with at most two repetitions and two groups that are not repeated"
        )
    alphas = (settings.get("lora_alpha") or 1, *by_layer.values())
    if not all(isinstance(alpha, int | float) for alpha in alphas):
        raise ValueError(f"{file}: lora_alpha and those of alpha_pattern must be numbers, got {str(alphas)[:200]}")
    return settings


def _scale(settings: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / rank, or with peft's use_rslora alpha / sqrt(rank) (arXiv:2312.03732)."""
    alpha = settings.get("lora_alpha") or rank
    # As in peft, the first expression that matches the end of the name counts.
    matches = (x for layer, x in (settings.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({layer})$", name))
    alpha = next(matches, alpha)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _are_expressions(texts: Iterable[str]) -> bool:
    """Whether regular expressions, which come from a file of anyone, are matched in little time."""
    hard = [text for text in texts if _REPEATED.search(text) or _GROUP.search(text)]
    return len(hard) <= _EXPRESSIONS and all(map(_is_expression, texts))


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    few = max(len(_REPEATED.findall(text)), len(_GROUP.findall(text))) <= 2
    return len(text) < 1000 and few and not re.search(r"\)[*+?{]|\(\?|\\\d", text)


def _check_format(path: str | os.PathLike, names: Iterable[str]) -> None:
    """Raises ValueError for updates that are no LoRA, or of several adapters."""
    adapters = set()
    for name in names:
        kind = next((kind for kind, pattern in _FORMATS if re.search(pattern, name)), None)
        if kind is not None:
            raise ValueError(f"{path} holds {kind} ({name[:200]}), which is not supported; only LoRA is read")
        matches = (re.search(pattern, name) for pattern, _, part in _PARTS if part != "alpha")
        adapters |= {match.groupdict().get("adapter") for match in matches if match}
    if len(adapters) > 1:
        listed = ", ".join(sorted(str(adapter or "(without a name)") for adapter in adapters))
        raise ValueError(f"{path} holds several adapters: {listed}; give a file with one")


def _component(name: str) -> tuple[str, str, bool]:
    """(component, the rest of the name, whether that is kohya's, with _ for every dot)."""
    if kohya := re.match(rf"lora_({'|'.join(_KOHYA)})_(.*)", name):
        return _KOHYA[kohya[1]], kohya[2], True
    if other := re.match(rf"({'|'.join(sorted(set(_KOHYA.values())))})\.(.*)", name):
        return other[1], other[2], False
    # Others begin like peft's models, or like the network in the checkpoints of its authors.
    return "", re.sub(r"^(base_model\.model\.)?((model\.)?diffusion_model\.)?", "", name), False


def _layers(layout: Layout, network: PyTree[Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Their name of each layer with a kernel -> (our module, its piece), without those that are several of ours."""
    layers = {}
    for name, tensor in tensors(layout, network).items():
        (piece, *more) = tensor.pieces
        if piece.path[-1] == "kernel" and not more and not tensor.copy_of:
            layers[name.removesuffix(".weight")] = (piece.path[:-1], piece)
    return layers


def _split(full: str) -> tuple[str, str | None]:
    """(name of the layer, part) of a name in a file."""
    for pattern, kept, part in _PARTS:
        if match := re.search(pattern, full):
            return full[: match.start()] + match.expand(kept), part
    return full, None


def _own_name(layer: str, prefix: str, flat: Mapping[str, str]) -> str | None:
    """The name of a layer within the component `prefix`; None for another component."""
    component, name, kohya = _component(layer)
    if component and component != prefix:
        return None
    if kohya:
        return flat.get(name, layer)
    # transformers 5 writes some text encoders without the outer name.
    return next((n for n in (name, f"{name}.0", f"text_model.{name}") if n in flat.values()), name)


def _joined(pieces: Mapping[int, tuple[np.ndarray, np.ndarray]], total: int) -> dict[str, Any]:
    """One pair of factors of the pieces of a layer, which are concatenated along its outputs."""
    if total == 1:
        down, up = pieces[0]
        return {"down": jnp.asarray(down), "up": jnp.asarray(up)}
    width = next(iter(pieces.values()))[1].shape[1]
    order = sorted(pieces)
    rows = []
    for i in order:
        row = np.zeros((pieces[i][1].shape[0], total * width), np.float32)
        row[:, i * width : (i + 1) * width] = pieces[i][1]
        rows.append(row)
    down = np.concatenate([pieces[i][0] for i in order], -1)
    return {"down": jnp.asarray(down), "up": jnp.asarray(np.concatenate(rows))}


def _at(tree: PyTree[Any], path: tuple[str, ...]) -> Any:
    for key in path:
        if key not in tree:
            return None
        tree = tree[key]
    return tree
