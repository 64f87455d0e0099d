"""Point clouds as binary PLY."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dust3r.export.points import Colour, Points, gather, kept_masks
from dust3r.reconstruction import Reconstruction
from dust3r.utils.files import atomic_path

_TYPES = {"f4": "float", "u1": "uchar"}


def write_ply(
    reconstruction: Reconstruction,
    path: str | Path,
    *,
    kept: Sequence[np.ndarray] | None = None,
    colour: Colour = "rgb",
) -> Path:
    """All kept points, binary little endian.

    Properties of a vertex: ``x y z`` in the world, ``nx ny nz`` the surface's unit normal towards
    its camera (0 0 0 where neighbours give none), ``red green blue`` (uchar), ``confidence``;
    ``sigma``, its deviation in scene units, where the model states one; and ``radius90``, where the
    reconstruction is calibrated. A comment of the header tells what both are of: its depth, whose
    true value lies within ``radius90`` with a probability of 90%, or the point itself.

    Args:
        path: the file; its folder is made where missing.
        kept: (H, W) bool per image; None is every valid point.
        colour: what paints the points, as for ``dust3r.export.points.coloured``.

    Raises ValueError where nothing is kept, masks do not fit, or ``colour`` is unknown.
    """
    masks = kept_masks(reconstruction, kept)
    points = gather(reconstruction, masks, colour=colour)
    normals = np.concatenate([_normals(reconstruction, n)[mask] for n, mask in enumerate(masks)])
    extras = {"confidence": points.confidence}
    if points.sigma is not None:
        extras["sigma"] = points.sigma
    if points.radius90 is not None:
        extras["radius90"] = points.radius90
    comments = [] if points.sigma is None else [f"sigma is of {reconstruction.deviations_of}s"]
    return write_points(points, path, normals=normals, extras=extras, comments=comments)


def write_points(
    points: Points,
    path: str | Path,
    *,
    normals: np.ndarray | None = None,
    extras: dict[str, np.ndarray] | None = None,
    comments: Sequence[str] = (),
) -> Path:
    """Points with position and colour, and where given normals (P, 3) and further floats (P,).

    ``comments`` are lines of the header.
    """
    columns = dict(zip("xyz", points.xyz.T, strict=True))
    if normals is not None:
        columns |= dict(zip(("nx", "ny", "nz"), normals.T, strict=True))
    columns |= dict(zip(("red", "green", "blue"), points.rgb.T, strict=True))
    columns |= extras or {}
    kinds = {name: "u1" if column.dtype == np.uint8 else "f4" for name, column in columns.items()}
    vertices = np.empty(len(points), [(name, f"<{kind}") for name, kind in kinds.items()])
    for name, column in columns.items():
        vertices[name] = column
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {line}" for line in comments),
        f"element vertex {len(points)}",
        *(f"property {_TYPES[kind]} {name}" for name, kind in kinds.items()),
        "end_header\n",
    ]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        vertices.tofile(file)
    return Path(path)


def _normals(reconstruction: Reconstruction, index: int) -> np.ndarray:
    """Unit normals (H, W, 3) towards the camera, from differences of neighbouring points."""
    points = reconstruction.pts3d(index)
    if min(points.shape[:2]) < 2:
        return np.zeros_like(points)
    with np.errstate(invalid="ignore", over="ignore"):
        # Rows go down and columns right, so that this order of the product faces the camera.
        normals = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
        length = np.linalg.norm(normals, axis=-1, keepdims=True)
        return np.where(length > 0, normals / np.where(length > 0, length, 1), 0)
