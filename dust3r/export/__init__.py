"""Reconstructions as files that other programs read: PLY, GLB, COLMAP, nerfstudio, NPZ.

All files share one world, that of ``Reconstruction.poses`` (OpenCV axes, the scene's unit); only
the GLB is turned for viewers. ``kept`` is a list of (H, W) bool masks as ``Reconstruction.kept``
gives it, None for every valid point.
"""

from dust3r.export.bundle import export_all, write_zip
from dust3r.export.colmap import write_colmap
from dust3r.export.glb import write_glb
from dust3r.export.maps import write_maps
from dust3r.export.nerfstudio import write_nerfstudio
from dust3r.export.ply import write_ply

__all__ = [
    "export_all",
    "write_colmap",
    "write_glb",
    "write_maps",
    "write_nerfstudio",
    "write_ply",
    "write_zip",
]
