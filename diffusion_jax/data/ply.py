"""Points in .ply files (Stanford polygon format 1.0): ASCII or binary, little-endian; only the vertices are read."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from jaxtyping import Float, Float32

from diffusion_jax.training.faults import replacing

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}
_END = b"end_header\n"
_AXES = ("x", "y", "z")


def read(path: pathlib.Path) -> Float32[np.ndarray, "n 3"]:
    """The coordinates of the vertices, in their order. Faces and other properties are left out.

    Raises ValueError, which names the file, for one of another format, or with vertices that are no points.
    """
    try:
        content = path.read_bytes().replace(b"\r\n", b"\n") if _is_text(path) else path.read_bytes()
        head, end, body = content.partition(_END)
        if not content.startswith(b"ply\n") or not end:
            raise ValueError("it does not begin with the header of a .ply file")
        form, count, dtype = _header(head.decode("ascii"))
        if form == "ascii":
            rows = np.loadtxt(io.BytesIO(body), dtype=np.float64, max_rows=count, ndmin=2, usecols=range(len(dtype)))
            if len(rows) != count:
                raise ValueError(f"it has {len(rows)} vertices of {count}")
            vertices = {name: rows[:, i] for i, name in enumerate(dtype.names)}
        else:
            vertices = np.frombuffer(body, dtype, count)
        return np.stack([vertices[axis] for axis in _AXES], -1).astype(np.float32)
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a .ply file: {error}") from error


def write(path: pathlib.Path, points: Float[np.ndarray, "n 3"]) -> None:
    """Write points as the vertices of a binary .ply file, in one piece."""
    properties = "".join(f"property float {axis}\n" for axis in _AXES)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}"
    with replacing(path) as file:
        file.write(head.encode() + _END + np.ascontiguousarray(points, "<f4").tobytes())


def _is_text(path: pathlib.Path) -> bool:
    """Whether the header says that the file is text, in which lines may end with a carriage return."""
    with path.open("rb") as file:
        return b"format ascii" in file.read(100)


def _header(text: str) -> tuple[str, int, np.dtype]:
    """(format, number of vertices, type of one). Raises ValueError."""
    form, count, properties, first, inside = "", 0, [], None, False
    for line in text.splitlines():
        match line.split():
            case ["format", name, "1.0"]:
                form = name
            case ["element", name, number]:
                first = first or name
                inside = name == "vertex"
                count = int(number) if inside else count
            case ["property", "list", *_] if inside:
                raise ValueError("its vertices have lists of values")
            case ["property", kind, name] if inside:
                if kind not in _TYPES:
                    raise ValueError(f"its property {name} is of the unknown type {kind}")
                properties.append((name, _TYPES[kind]))
    if form not in ("ascii", "binary_little_endian"):
        raise ValueError(f"its format is {form or 'not given'}; it must be ascii or binary_little_endian, 1.0")
    if first != "vertex" or count < 1:
        raise ValueError("its first element must be 'vertex', with at least one")
    missing = [axis for axis in _AXES if axis not in dict(properties)]
    if missing:
        raise ValueError(f"its vertices have no property {missing[0]}")
    return form, count, np.dtype(properties)
