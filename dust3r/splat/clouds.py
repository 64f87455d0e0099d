"""Points of an export, what is known of their errors, and which of them splats start from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from dust3r.export.maps import MAPS
from dust3r.export.nerfstudio import POINTS
from dust3r.splat.exports import Export, read_colmap, read_transforms
from dust3r.splat.ply import read_vertices
from dust3r.splat.views import photograph_key
from dust3r.utils.geometry import depthmap_to_pts3d
from dust3r.utils.pixels import read_rgb

Source = Literal["auto", "maps", "ply", "model"]

DENSE = "points.ply"
_FLOATS = ("confidence", "sigma", "radius90")


@dataclass(frozen=True)
class Cloud:
    """P points of a world.

    Attributes:
        xyz: (P, 3) float64.
        rgb: (P, 3) uint8, sRGB.
        source: what they were read from.
        depth: (P,) from the camera that a point comes from; None where that is not known.
        confidence, sigma, radius90: (P,) as of ``dust3r.export.points.Points``, None where the file
            has none.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    source: str
    depth: np.ndarray | None = None
    confidence: np.ndarray | None = None
    sigma: np.ndarray | None = None
    radius90: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.xyz)

    def at(self, chosen: np.ndarray) -> Cloud:
        """The points of these numbers, or of this bool mask."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Cloud(**{k: v[chosen] if isinstance(v, np.ndarray) else v for k, v in parts.items()})


def read_cloud(export: Export, source: Source = "auto", without: Collection[str] = ()) -> Cloud:
    """The points of an export.

    Args:
        export: as ``open_export`` gives it.
        source: ``'maps'``, the valid pixels of all ``maps/*.npz``; ``'ply'``, ``points.ply``;
            ``'model'``, the points of COLMAP's model or of nerfstudio's PLY; ``'auto'``, the first
            of these that there is.
        without: keys of held-out views. Their maps are left out, and points of a COLMAP model that
            no other view sees; a PLY does not say where its points come from.

    Raises:
        FileNotFoundError: the export has no such points.
        ValueError: a file is damaged, or no point is left.
    """
    source = available(export)[0] if source == "auto" else source
    path = _places(export)[source]
    if source not in available(export):
        raise FileNotFoundError(
            f"{export.root} has no {path.relative_to(export.root)}, which --points {source} reads; "
            "choose others, or write it with dust3r.export.export_all"
        )
    readers: dict[str, Callable[[], Cloud]] = {
        "maps": lambda: _of_maps(export, without),
        "ply": lambda: _of_ply(path),
        "model": lambda: _of_model(export, without),
    }
    cloud = readers[source]()
    finite = np.isfinite(cloud.xyz).all(-1)
    if not finite.any():
        raise ValueError(f"{path} has no points for splats to start from")
    return cloud if finite.all() else cloud.at(finite)


def available(export: Export) -> list[Source]:
    """The points that an export has, in the order of ``'auto'``."""
    return [name for name, path in _places(export).items() if path.exists()]


def most_certain(cloud: Cloud, share: float, centres: np.ndarray) -> Cloud:
    """The share (0 to 1] of points that are the least doubtful.

    A point's doubt is its 90% radius, or where there is none its standard deviation, relative to
    its distance from the camera that it comes from (distance alone makes no point doubtful), or
    where that is not known from the nearest one; without either, 1 / confidence.

    Args:
        centres: (N, 3) of the cameras.

    Raises ValueError where the points say nothing of their errors.
    """
    error = cloud.sigma if cloud.radius90 is None else cloud.radius90
    if error is not None:
        doubt = error / (_nearest(cloud.xyz, centres) if cloud.depth is None else cloud.depth)
    elif cloud.confidence is not None:
        doubt = -cloud.confidence
    else:
        raise ValueError(
            f"points of {cloud.source} have no radius90, sigma or confidence to choose by; take "
            "--points maps or ply of an export that has them"
        )
    doubt = np.nan_to_num(doubt, nan=np.inf)
    count = max(1, round(share * len(cloud)))
    return cloud.at(np.sort(np.argsort(doubt, kind="stable")[:count]))


def within(cloud: Cloud, radius: float) -> Cloud:
    """The points whose depth is off by at most ``radius``, in scene units, with 90% probability.

    Raises ValueError where the points have no ``radius90``, or none is so certain.
    """
    if cloud.radius90 is None:
        raise ValueError(
            f"points of {cloud.source} have no radius90; export a calibrated reconstruction "
            "(demo.py --calibration), or choose by rank with --keep"
        )
    chosen = cloud.radius90 <= radius
    if not chosen.any():
        least = np.nanmin(cloud.radius90)
        raise ValueError(f"no point is within {radius:g}, the most certain are within {least:.3g}")
    return cloud.at(chosen)


def thinned(cloud: Cloud, most: int, seed: int = 0) -> Cloud:
    """A seeded random choice of ``most`` points where there are more."""
    if len(cloud) <= most:
        return cloud
    chosen = np.random.default_rng(seed).choice(len(cloud), most, replace=False)
    return cloud.at(np.sort(chosen))


def _places(export: Export) -> dict[Source, Path]:
    return {"maps": export.root / MAPS, "ply": export.root / DENSE, "model": export.model}


def _nearest(xyz: np.ndarray, centres: np.ndarray) -> np.ndarray:
    nearest = np.full(len(xyz), np.inf)
    for centre in centres:
        np.minimum(nearest, np.linalg.norm(xyz - centre, axis=-1), out=nearest)
    return nearest


def _of_maps(export: Export, without: Collection[str]) -> Cloud:
    photographs = {view.key: view.path for view in export.views}
    parts, files = [], sorted((export.root / MAPS).glob("*.npz"))
    for file in files:
        key = photograph_key(file.name)
        if key not in without and key in photographs:
            parts.append(_of_map(file, photographs[key]))
    if not parts:
        raise ValueError(
            f"none of the {len(files)} archives in {export.root / MAPS} is of a photograph to "
            "train on; they have its name, with .npz for its suffix"
        )
    return _joined(parts, f"{MAPS}/ ({len(parts)} images)")


def _of_map(file: Path, photograph: Path) -> Cloud:
    try:
        with np.load(file) as maps:
            valid = maps["valid"] & (maps["depth"] > 0) & np.isfinite(maps["depth"])
            depth = maps["depth"].astype(np.float64)
            points = depthmap_to_pts3d(depth, maps["intrinsics"], maps["pose"])
            extras = {name: maps[name][valid] for name in _FLOATS if name in maps}
            to_original = maps["to_original"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is no archive of maps: {error}; export it again") from error
    image = read_rgb(photograph)
    pixels = np.argwhere(valid)[:, ::-1] @ to_original[:2, :2].T + to_original[:2, 2]
    u, v = pixels.round().astype(int).T
    height, width = image.shape[:2]
    rgb = image[v.clip(0, height - 1), u.clip(0, width - 1)]
    return Cloud(points[valid], rgb, MAPS, depth[valid], **extras)


def _of_ply(path: Path) -> Cloud:
    vertices = read_vertices(path)
    names = vertices.dtype.names or ()
    missing = [name for name in ("x", "y", "z", "red", "green", "blue") if name not in names]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)} for its points, but {names}")
    return Cloud(
        np.stack([vertices[axis] for axis in "xyz"], -1).astype(np.float64),
        np.stack([vertices[c] for c in ("red", "green", "blue")], -1).astype(np.uint8),
        path.name,
        **{name: vertices[name].astype(np.float64) for name in _FLOATS if name in names},
    )


def _of_model(export: Export, without: Collection[str]) -> Cloud:
    if not export.is_colmap:
        return _of_ply(_nerfstudio_points(export.model))
    model = read_colmap(export.model)
    trained = {n for n, image in model.images.items() if photograph_key(image.name) not in without}
    points = [
        point
        for point in model.points3D.values()
        if not point.track.elements or any(e.image_id in trained for e in point.track.elements)
    ]
    if not points:
        raise ValueError(f"the COLMAP model {export.model} has no points for splats to start from")
    xyz = np.array([point.xyz for point in points], np.float64)
    return Cloud(xyz, np.array([point.color for point in points], np.uint8), export.model_name)


def _nerfstudio_points(transforms: Path) -> Path:
    path = transforms.parent / read_transforms(transforms).get("ply_file_path", POINTS)
    if not path.is_file():
        raise FileNotFoundError(f"no points {path}, which {transforms.name} names")
    return path


def _joined(parts: Sequence[Cloud], source: str) -> Cloud:
    def together(name: str) -> np.ndarray | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    arrays = ("xyz", "rgb", "depth", *_FLOATS)
    return Cloud(source=source, **{name: together(name) for name in arrays})
