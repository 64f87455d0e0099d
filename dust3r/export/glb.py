"""Scenes for viewers as GLB: points or meshes, and the cameras that took them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from trimesh.exchange.gltf import export_glb

from dust3r.export.frusta import frusta
from dust3r.export.points import Colour, Points, coloured, gather, kept_masks, linear
from dust3r.reconstruction import Reconstruction
from dust3r.utils.files import atomic_path
from dust3r.utils.geometry import geotrf, inv

MAX_POINTS = 1_000_000
MAX_JUMP = 0.05

# glTF has y up, and viewers look along -z.
_VIEWER_AXES = np.diag([1.0, -1.0, -1.0, 1.0])
_UNLIT = "KHR_materials_unlit"


def write_glb(
    reconstruction: Reconstruction,
    path: str | Path,
    *,
    kept: Sequence[np.ndarray] | None = None,
    as_mesh: bool = False,
    colour: Colour = "rgb",
    camera_size: float = 0.05,
    max_points: int = MAX_POINTS,
    max_jump: float = MAX_JUMP,
    seed: int = 0,
) -> Path:
    """A scene that viewers show upright, as the first camera saw it, in the scene's own unit.

    The first camera is at the origin, x to its right, y up, looking along -z. Cameras are pyramids
    in a colour each, with their photograph at the base and a roof above its upper side. Colours
    are linear, as glTF's vertex colours are defined, and drawn without light.

    Args:
        path: the file; its folder is made where missing.
        kept: (H, W) bool per image; None is every valid point.
        as_mesh: triangles between neighbouring kept pixels of an image instead of points.
        colour: ``'rgb'``, ``'depth'`` or ``'uncertainty'``, as for
            ``dust3r.export.points.coloured``.
        camera_size: long side of a camera's image relative to the scene's extent; 0 is no cameras.
        max_points: most points, a seeded random choice where there are more; a mesh takes every
            n-th row and column instead.
        max_jump: triangles whose farthest corner is more than this fraction deeper than the nearest
            are left out, because they would join a thing to what is behind it.

    Raises:
        ValueError: nothing is kept, masks do not fit, ``colour`` is unknown, sizes are negative, or
            a mesh is left without triangles.
    """
    if camera_size < 0 or max_points < 1 or max_jump <= 0:
        raise ValueError(
            f"camera_size {camera_size}, max_points {max_points}, max_jump {max_jump} given; the "
            "first must be 0 or more, the others above 0"
        )
    masks = kept_masks(reconstruction, kept)
    to_viewer = _VIEWER_AXES @ inv(reconstruction.poses[0])
    scene = trimesh.Scene()
    if as_mesh:
        for name, mesh in _meshes(reconstruction, masks, colour, max_points, max_jump).items():
            scene.add_geometry(mesh.apply_transform(to_viewer), geom_name=name)
    else:
        points = gather(reconstruction, masks, colour=colour, max_points=max_points, seed=seed)
        scene.add_geometry(_cloud(points, to_viewer), geom_name="points")
    if camera_size > 0:
        side = camera_size * _extent(reconstruction, masks)
        for name, mesh in frusta(reconstruction, side).items():
            scene.add_geometry(mesh.apply_transform(to_viewer), geom_name=name)
    content = export_glb(scene, include_normals=False, tree_postprocessor=_without_light)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _cloud(points: Points, to_viewer: np.ndarray) -> trimesh.PointCloud:
    return trimesh.PointCloud(geotrf(to_viewer, points.xyz), colors=linear(points.rgb))


def _meshes(
    reconstruction: Reconstruction,
    masks: Sequence[np.ndarray],
    colour: Colour,
    max_points: int,
    max_jump: float,
) -> dict[str, trimesh.Trimesh]:
    colours = coloured(reconstruction, colour, masks)
    step = math.ceil(math.sqrt(sum(mask.sum() for mask in masks) / max_points))
    grid = (slice(None, None, step),) * 2
    meshes = {}
    for index, mask in enumerate(masks):
        faces = _faces(reconstruction.depthmaps[index][grid], mask[grid], max_jump)
        if not len(faces):
            continue
        used, faces = np.unique(faces, return_inverse=True)
        meshes[f"surface_{index + 1:03d}"] = trimesh.Trimesh(
            vertices=reconstruction.pts3d(index)[grid].reshape(-1, 3)[used],
            faces=faces.reshape(-1, 3),
            vertex_colors=linear(colours[index][grid].reshape(-1, 3)[used]),
            process=False,
        )
    if not meshes:
        raise ValueError(
            "no three neighbouring pixels of one surface are kept, so there is no mesh: lower the "
            "least confidence, hide fewer points, or write points (as_mesh=False)"
        )
    return meshes


def _faces(depth: np.ndarray, mask: np.ndarray, max_jump: float) -> np.ndarray:
    """Triangles (F, 3) of pixel numbers of kept (H, W) maps, counter-clockwise for the camera."""
    number = np.arange(depth.size).reshape(depth.shape)
    corners = number[:-1, :-1], number[1:, :-1], number[:-1, 1:], number[1:, 1:]
    upper_left, lower_left, upper_right, lower_right = (corner.ravel() for corner in corners)
    faces = np.concatenate(
        [
            np.stack([upper_left, lower_left, upper_right], -1),
            np.stack([upper_right, lower_left, lower_right], -1),
        ]
    )
    faces = faces[mask.ravel()[faces].all(-1)]
    depths = depth.ravel()[faces]
    return faces[depths.max(-1) <= (1 + max_jump) * depths.min(-1)]


def _extent(reconstruction: Reconstruction, masks: Sequence[np.ndarray]) -> float:
    """Diagonal of the box of most points; a few stray ones would make cameras huge."""
    shown = np.concatenate([reconstruction.pts3d(n)[mask] for n, mask in enumerate(masks)])
    low, high = np.percentile(shown, (2, 98), axis=0)
    return float(np.linalg.norm(high - low)) or 1.0


def _without_light(tree: dict[str, Any]) -> None:
    """Let viewers show colours as they are: a photograph has its light in it already."""
    materials = tree.setdefault("materials", [])
    textured = ["baseColorTexture" in one.get("pbrMetallicRoughness", {}) for one in materials]
    # The material that trimesh gives to points is one object for all files, so none is changed.
    plain = {
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
        "doubleSided": True,
        "extensions": {_UNLIT: {}},
    }
    tree["materials"] = [
        {**one, "extensions": {_UNLIT: {}}} if has_texture else plain
        for one, has_texture in zip(materials, textured, strict=True)
    ] + [plain]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive.setdefault("material", len(tree["materials"]) - 1)
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", []), _UNLIT]
