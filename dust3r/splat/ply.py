"""PLY files: vertices of any, and splats as their viewers read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from dust3r.splat.gaussians import make_parameters
from dust3r.utils.files import atomic_path

_KINDS = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LONGEST_HEADER = 1 << 16


def read_vertices(path: str | Path) -> np.ndarray:
    """The vertices of a PLY as a structured array, a field for each property.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PLY, its vertices do not come first or have lists, or it is truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no PLY file {path}")
    content = path.read_bytes()
    header, _, body = content[:_LONGEST_HEADER].partition(b"end_header")
    if not content.startswith(b"ply") or not body:
        raise ValueError(f"{path} is no PLY: it has no header of one")
    start = content.index(b"\n", len(header)) + 1
    order, count, dtype = _layout(header.decode("ascii", "replace").splitlines(), path)
    try:
        if order:
            return np.frombuffer(content, dtype.newbyteorder(order), count, start)
        lines = content[start:].decode("ascii").splitlines()[:count]
        rows = np.loadtxt(lines, dtype, ndmin=1)
        if len(rows) == count:
            return rows
    except ValueError as error:
        raise ValueError(f"{path} does not hold its {count} vertices: {error}") from error
    raise ValueError(f"{path} holds {len(rows)} vertices and says it has {count}")


def write_splats(params: nn.ParameterDict, path: str | Path) -> Path:
    """Splats as the PLY of Kerbl et al. (2023), binary little endian.

    Properties of a vertex: ``x y z``, ``nx ny nz`` (0), ``f_dc_*`` and ``f_rest_*`` (harmonics, all
    of red before green before blue), ``opacity`` before its sigmoid, ``scale_*`` as logarithms,
    ``rot_*`` a unit quaternion, w first.
    """
    arrays = {name: value.detach().cpu().float().numpy() for name, value in params.items()}
    rest = arrays["shN"].transpose(0, 2, 1).reshape(len(arrays["means"]), -1)
    turns = arrays["quats"] / np.linalg.norm(arrays["quats"], axis=-1, keepdims=True)
    columns = [
        *_named(arrays["means"], ("x", "y", "z")),
        *_named(np.zeros_like(arrays["means"]), ("nx", "ny", "nz")),
        *_named(arrays["sh0"][:, 0], [f"f_dc_{n}" for n in range(3)]),
        *_named(rest, [f"f_rest_{n}" for n in range(rest.shape[1])]),
        ("opacity", arrays["opacities"]),
        *_named(arrays["scales"], [f"scale_{n}" for n in range(3)]),
        *_named(turns, [f"rot_{n}" for n in range(4)]),
    ]
    vertices = np.empty(len(arrays["means"]), [(name, "<f4") for name, _ in columns])
    for name, column in columns:
        vertices[name] = column
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    lines += [f"property float {name}" for name, _ in columns]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*lines, "end_header\n"]).encode("ascii"))
        vertices.tofile(file)
    return Path(path)


def read_splats(path: str | Path) -> nn.ParameterDict:
    """What ``write_splats`` wrote, or another program in the same format.

    Raises FileNotFoundError and ValueError as ``read_vertices``, and ValueError for other vertices.
    """
    vertices = read_vertices(path)
    names = vertices.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in names)
    try:
        means = _columns(vertices, ("x", "y", "z"))
        harmonics = _columns(vertices, [f"f_rest_{n}" for n in range(rest)])
        return make_parameters(
            means=means,
            scales=_columns(vertices, [f"scale_{n}" for n in range(3)]),
            quats=_columns(vertices, [f"rot_{n}" for n in range(4)]),
            opacities=_columns(vertices, ["opacity"])[:, 0],
            sh0=_columns(vertices, [f"f_dc_{n}" for n in range(3)])[:, None],
            shN=harmonics.reshape(len(means), 3, rest // 3).transpose(1, 2),
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} holds no splats of the usual format: {error}") from error


def _layout(lines: list[str], path: Path) -> tuple[str, int, np.dtype]:
    order, count, properties, element = None, None, [], 0
    for words in (line.split() for line in lines):
        if words[:1] == ["format"] and len(words) > 1:
            order = _FORMATS.get(words[1])
        elif words[:1] == ["element"]:
            element += 1
            if element == 1 and words[1:2] == ["vertex"]:
                count = int(words[2])
        elif words[:1] == ["property"] and element == 1:
            if len(words) != 3 or words[1] not in _KINDS:
                raise ValueError(f"{path} has vertices with {' '.join(words)}, which is not read")
            properties.append((words[2], _KINDS[words[1]]))
    if order is None or count is None or not properties:
        raise ValueError(f"{path} is no PLY whose vertices come first")
    return order, count, np.dtype(properties)


def _named(array: np.ndarray, names: list[str] | tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
    return list(zip(names, array.T, strict=True))


def _columns(vertices: np.ndarray, names: list[str] | tuple[str, ...]) -> torch.Tensor:
    columns = [vertices[name].astype(np.float32) for name in names]
    return torch.from_numpy(
        np.stack(columns, -1) if columns else np.empty((len(vertices), 0), "f4")
    )
