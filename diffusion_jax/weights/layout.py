"""Import and export: names and shapes of PyTorch's state dicts to nested dictionaries of parameters, and back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from diffusion_jax.types import Params

Rules = tuple[tuple[str, str], ...]  # (regular expression, replacement), applied one after the other with re.sub

# Names of the parts of attention in diffusers before version 0.15, and in files of that time.
DEPRECATED_ATTENTION: Rules = (
    (r"\.query\.(?=(weight|bias)$)", ".to_q."),
    (r"\.key\.(?=(weight|bias)$)", ".to_k."),
    (r"\.value\.(?=(weight|bias)$)", ".to_v."),
    (r"\.proj_attn\.(?=(weight|bias)$)", ".to_out.0."),
)

_LISTED = 8  # names of each kind in an error message
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How PyTorch names and shapes the parameters of a family of networks.

    A parameter of ours has a module path ("down_blocks.0.attentions.0.to_out") and the name of a leaf ("kernel").
    `rename` takes the path to theirs ("down_blocks.0.attentions.0.to_out.0"). The leaves "kernel", "scale" and
    "embedding" become "weight", others keep their name. A kernel [*window, in, out] becomes a weight
    [out, in, *window]; every other array stays as it is. The attributes describe where a family differs.

    Attributes:
      rename: rules for module paths.
      names: rules for their whole names, after `rename`, such as (r"^in_proj\\.weight$", "in_proj_weight").
      kinds: (regular expression searched in our dotted name, one of `KINDS`); the first match counts.
      split: (expression that our module path matches from its start, their paths): one layer of ours, such as
        "attn.qkv", is several of theirs, whose outputs are concatenated in ours. The paths may refer to groups.
      join: (expression, their path, i, n): several layers of ours are one of theirs; this is its part i of n.
      copies: (expression that matches a name of theirs, other names): the same tensor under further names. A "*" in
        them matches every number at this position of their names. The copies in a file must be equal; the first may
        be missing if there is another.
      aliases: rules for names of a file that are not expected, such as deprecated ones.
      ignored: expressions searched in names of a file whose tensors are unused, such as r"\\.position_ids$".
      prefix: of all their names; tensors without the prefix are ignored.
    """

    rename: Rules = ()
    names: Rules = ()
    kinds: Rules = ()
    split: tuple[tuple[str, tuple[str, ...]], ...] = ()
    join: tuple[tuple[str, str, int, int], ...] = ()
    copies: tuple[tuple[str, tuple[str, ...]], ...] = ()
    aliases: Rules = ()
    ignored: tuple[str, ...] = ()
    prefix: str = ""


# Kind -> (ours to theirs, theirs to ours); both give views.
KINDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "kernel": (
        lambda a: a.transpose(a.ndim - 1, a.ndim - 2, *range(a.ndim - 2)),
        lambda a: a.transpose(*range(2, a.ndim), 1, 0),
    ),
    "same": (lambda a: a, lambda a: a),
    # A dense layer of ours that is a 1 x 1 convolution of theirs, and vice versa.
    "dense_as_conv1d": (lambda a: a.T[:, :, None], lambda a: a[:, :, 0].T),
    "dense_as_conv2d": (lambda a: a.T[:, :, None, None], lambda a: a[:, :, 0, 0].T),
    "conv2d_as_dense": (lambda a: a[0, 0].T, lambda a: a.T[None, None]),
    # One leading axis of size 1 more or less, as in tables of positions.
    "with_first_axis": (lambda a: a[None], lambda a: a[0]),
    "without_first_axis": (lambda a: a[0], lambda a: a[None]),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Part `i` of `parts` of our leaf, along its outputs, is part `j` of `their_parts` of a tensor's first axis."""

    path: tuple[str, ...]
    kind: str
    i: int = 0
    parts: int = 1
    j: int = 0
    their_parts: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of theirs: its shape, the pieces of ours it consists of, and the name of the tensor it copies, or ""."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    copy_of: str = ""


def tensors(layout: Layout, abstract_params: PyTree[Any]) -> dict[str, Tensor]:
    """Their name -> `Tensor`, for every tensor that a file of this network holds.

    Raises ValueError for a layout that gives two parameters the same name.
    """
    named: dict[str, Tensor] = {}
    for path, leaf in _leaves(abstract_params):
        kind = _kind(layout, path)
        # An array of zeros that takes no memory, for its shape.
        theirs = KINDS[kind][0](np.broadcast_to(np.float32(0), leaf.shape)).shape
        for name, piece in _names_of(layout, path, kind):
            if piece.parts > 1 and theirs[0] % piece.parts:
                raise ValueError(f"{'.'.join(path)} has {theirs[0]} outputs, which are not {piece.parts} equal parts")
            shape = (theirs[0] // piece.parts * piece.their_parts, *theirs[1:]) if theirs else ()
            before = named.get(name)
            if before and (before.shape != shape or any(_overlap(piece, other) for other in before.pieces)):
                other = ".".join(before.pieces[0].path)
                raise ValueError(f"the layout gives {'.'.join(path)} and {other} the same name {name!r}")
            named[name] = Tensor(shape=shape, pieces=(*(before.pieces if before else ()), piece))
    for name, tensor in list(named.items()):
        if len(tensor.pieces) != tensor.pieces[0].their_parts:
            raise ValueError(
                f"the layout makes {name!r} of {len(tensor.pieces)} of {tensor.pieces[0].their_parts} parts"
            )
        for pattern, templates in layout.copies:
            match = re.fullmatch(pattern, name)
            for template in templates if match else ():
                for copy in _numbered(match.expand(template), named):
                    if copy != name:
                        named[copy] = dataclasses.replace(tensor, copy_of=name)
    return {layout.prefix + name: _prefixed(layout.prefix, tensor) for name, tensor in named.items()}


def import_params(
    layout: Layout, source: Mapping[str, Any], abstract_params: PyTree[Any], *, what: str = "the file"
) -> Params:
    """The parameters in `source`, as arrays with the dtypes and shardings of `abstract_params`.

    Tensors are read one after the other, and each process reads them for the devices that it has: at most one leaf
    at a time takes additional memory of the host. Without a sharding a leaf goes to the default device.

    Args:
      layout: the names and shapes of `source`.
      source: names -> arrays, or objects with `shape` and `dtype` that become arrays when they are read.
      abstract_params: nested dictionary of `jax.ShapeDtypeStruct`, or of arrays.
      what: the name of the source in error messages.

    Raises:
      ValueError: tensors are missing, unexpected, of another shape or not of floating-point numbers, or copies differ.
        All of them are counted, and the first of each kind are named; nothing has been read then.
    """
    expected = tensors(layout, abstract_params)
    names = _names(layout, source, expected)
    _check(names, source, expected, what)
    wanted: dict[tuple[str, ...], list[tuple[int, str, Piece]]] = {}
    for name, tensor in expected.items():
        if not tensor.copy_of:
            copies = (name, *(n for n, other in expected.items() if other.copy_of == name))
            held = [names[n] for n in copies if n in names]
            for other in held[1:]:
                if not np.array_equal(np.asarray(source[held[0]]), np.asarray(source[other])):
                    raise ValueError(f"{what}: {held[0]} and {other} must be equal and are not")
            for piece in tensor.pieces:
                wanted.setdefault(piece.path, []).append((piece.i, held[0], piece))
    params: dict[str, Any] = {}
    for path, leaf in _leaves(abstract_params):
        parts = [_part(np.asarray(source[name]), p.j, p.their_parts) for _, name, p in sorted(wanted[path], key=_first)]
        ours = KINDS[wanted[path][0][2].kind][1](parts[0] if len(parts) == 1 else np.concatenate(parts))
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = _placed(ours, leaf)
    return params


def export_params(layout: Layout, params: PyTree[Any]) -> dict[str, np.ndarray]:
    """Their names -> arrays in their shapes and our dtypes, some of them views of `params`."""
    leaves = dict(_leaves(params))
    exported: dict[str, np.ndarray] = {}
    for name, tensor in tensors(layout, params).items():
        parts = [
            _part(KINDS[piece.kind][0](np.asarray(leaves[piece.path])), piece.i, piece.parts)
            for piece in sorted(tensor.pieces, key=lambda piece: piece.j)
        ]
        exported[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return exported


def fit(layout: Layout, source: Mapping[str, Any], abstract_params: PyTree[Any]) -> tuple[int, int]:
    """How many tensors are there, of whatever shape, and how many are missing, unexpected or of another shape.

    It tells the layout that a file is in.
    """
    expected = tensors(layout, abstract_params)
    names = _names(layout, source, expected)
    wanted = {name for name, tensor in expected.items() if not tensor.copy_of}
    common = expected.keys() & names.keys()
    other_shapes = sum(tuple(source[names[n]].shape) != expected[n].shape for n in common)
    return len(common), len(wanted ^ names.keys()) + other_shapes


def listing(problems: Mapping[str, list[str]]) -> str:
    """ "3 missing: a, b, c; 9 unexpected: ..." with at most 8 names of each kind."""
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for kind, names in problems.items()
        if names
    )


def _leaves(tree: PyTree[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, node in tree.items():
        if isinstance(node, Mapping):
            yield from _leaves(node, (*path, key))
        else:
            yield (*path, key), node


def _kind(layout: Layout, path: tuple[str, ...]) -> str:
    name = ".".join(path)
    default = "kernel" if path[-1] == "kernel" else "same"
    return next((kind for pattern, kind in layout.kinds if re.search(pattern, name)), default)


def _names_of(layout: Layout, path: tuple[str, ...], kind: str) -> Iterator[tuple[str, Piece]]:
    """The tensors of theirs that hold a leaf of ours, by name."""
    module, leaf = ".".join(path[:-1]), _LEAVES.get(path[-1], path[-1])

    def named(theirs: str) -> str:
        return _renamed(layout.names, f"{theirs}.{leaf}" if theirs else leaf)

    for pattern, templates in layout.split:
        if match := re.match(pattern, module):
            for i, template in enumerate(templates):
                yield named(match.expand(template)), Piece(path=path, kind=kind, i=i, parts=len(templates))
            return
    for pattern, template, j, parts in layout.join:
        if match := re.match(pattern, module):
            yield named(match.expand(template)), Piece(path=path, kind=kind, j=j, their_parts=parts)
            return
    yield named(_renamed(layout.rename, module)), Piece(path=path, kind=kind)


def _renamed(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _overlap(one: Piece, other: Piece) -> bool:
    return one.their_parts != other.their_parts or one.j == other.j


def _numbered(template: str, names: Mapping[str, Tensor]) -> list[str]:
    """`template` with "*" replaced by each of the numbers at this position in `names`."""
    before, star, after = template.partition("*")
    if not star:
        return [template]
    numbers = {match[1] for name in names if (match := re.match(re.escape(before) + r"(\d+)(?=\.|$)", name))}
    return [before + number + after for number in sorted(numbers, key=int)]


def _prefixed(prefix: str, tensor: Tensor) -> Tensor:
    return dataclasses.replace(tensor, copy_of=prefix + tensor.copy_of if tensor.copy_of else "")


def _names(layout: Layout, source: Mapping[str, Any], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Maps expected names to names in the file; ignored tensors are omitted."""
    names = {}
    for name in source:
        ignored = any(re.search(pattern, name) for pattern in layout.ignored)
        if name in expected:
            names[name] = name
        elif name.startswith(layout.prefix) and not ignored:
            alias = layout.prefix + _renamed(layout.aliases, name.removeprefix(layout.prefix))
            names.setdefault(alias if alias in expected and alias not in source else name, name)
    return names


def _check(names: Mapping[str, str], source: Mapping[str, Any], expected: Mapping[str, Tensor], what: str) -> None:
    copied = {tensor.copy_of for name, tensor in expected.items() if tensor.copy_of and name in names}
    problems: dict[str, list[str]] = {
        "missing": [n for n, t in expected.items() if n not in names and not t.copy_of and n not in copied],
        "unexpected": [name for name in names if name not in expected],
        "of another shape": [],
        "not of floating-point numbers": [],
    }
    for name in expected.keys() & names.keys():
        array = source[names[name]]
        if tuple(array.shape) != expected[name].shape:
            shape, wanted = (tuple(map(int, s)) for s in (array.shape, expected[name].shape))
            problems["of another shape"].append(f"{names[name]} {shape} for {wanted}")
        elif "float" not in str(array.dtype):
            problems["not of floating-point numbers"].append(f"{names[name]} {array.dtype}")
    if any(problems.values()):
        problems = {kind: sorted(listed) for kind, listed in problems.items()}
        raise ValueError(f"{what} does not hold the weights of this network ({listing(problems)})")


def _first(entry: tuple[int, str, Piece]) -> int:
    return entry[0]


def _part(array: np.ndarray, i: int, parts: int) -> np.ndarray:
    if parts == 1:
        return array
    size = len(array) // parts
    return array[i * size : (i + 1) * size]


def _placed(array: np.ndarray, leaf: Any) -> jax.Array:
    """A copy of `array` with the dtype and sharding of `leaf`, which has arrived when this returns."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.array(array[index], leaf.dtype, order="C")
    ).block_until_ready()
