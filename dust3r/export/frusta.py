"""Cameras as pyramids with their photographs at the base."""

import io

import matplotlib
import numpy as np
import trimesh
from PIL import Image

from dust3r.export.points import linear, to_bytes
from dust3r.reconstruction import Reconstruction

_EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))
_ROOF = ((1, 5), (5, 2))
_THICKNESS = 0.012
_ROOF_HEIGHT = 0.2
_PICTURE_SIDE = 256


def frusta(reconstruction: Reconstruction, side: float) -> dict[str, trimesh.Trimesh]:
    """By name, the wires and the picture of every camera, in the world.

    ``side`` is the long side of the pictures in scene units. Pyramids have the cameras' own angles
    of view; a roof above the upper side tells which way is up.
    """
    meshes = {}
    palette = matplotlib.colormaps["hsv"]
    for index in range(len(reconstruction)):
        corners = _corners(reconstruction, index, side)
        rgb = linear(to_bytes(np.array(palette(index / len(reconstruction))[:3])))
        wires, picture = _wires(corners, rgb, side), _picture(corners, reconstruction.images[index])
        for kind, mesh in (("camera", wires), ("photo", picture)):
            meshes[f"{kind}_{index + 1:03d}"] = mesh.apply_transform(reconstruction.poses[index])
    return meshes


def _corners(reconstruction: Reconstruction, index: int, side: float) -> np.ndarray:
    """(6, 3) in the camera: centre, upper left, upper right, lower right, lower left, roof."""
    height, width = reconstruction.depthmaps[index].shape
    left, top, right, bottom = -0.5, -0.5, width - 0.5, height - 0.5
    middle, above = (left + right) / 2, top - _ROOF_HEIGHT * height
    pixels = [[left, top], [right, top], [right, bottom], [left, bottom], [middle, above]]
    homogeneous = np.concatenate([pixels, np.ones((5, 1))], 1)
    rays = homogeneous @ np.linalg.inv(reconstruction.intrinsics[index]).T
    long_side = max(np.ptp(rays[:4, :2], axis=0))
    return np.concatenate([np.zeros((1, 3)), rays * side / long_side])


def _wires(corners: np.ndarray, rgb: np.ndarray, side: float) -> trimesh.Trimesh:
    # Viewers draw lines one pixel wide, which is hard to see, so that edges are thin rods.
    rods = [
        trimesh.creation.cylinder(_THICKNESS * side, segment=corners[list(edge)], sections=4)
        for edge in _EDGES + _ROOF
    ]
    mesh = trimesh.util.concatenate(rods)
    mesh.visual.vertex_colors = np.tile([*rgb, 255], (len(mesh.vertices), 1))
    return mesh


def _picture(corners: np.ndarray, image: np.ndarray) -> trimesh.Trimesh:
    picture = Image.fromarray(to_bytes(image))
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG")
    # trimesh writes pictures that come from a JPEG file as JPEG, all others as PNG.
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.open(buffer),
        doubleSided=True,
        metallicFactor=0.0,
        roughnessFactor=1.0,
    )
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], float)
    return trimesh.Trimesh(
        vertices=corners[1:5],
        faces=[[0, 3, 1], [1, 3, 2]],
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material),
        process=False,
    )
