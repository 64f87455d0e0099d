"""Everything of a reconstruction in one folder, and that folder as one file."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dust3r.export.colmap import MAX_POINTS, write_model
from dust3r.export.frames import IMAGES, write_images
from dust3r.export.glb import write_glb
from dust3r.export.maps import MAPS, write_maps
from dust3r.export.nerfstudio import DEPTHS, POINTS, write_transforms
from dust3r.export.ply import write_ply
from dust3r.export.points import gather, kept_masks
from dust3r.reconstruction import Reconstruction
from dust3r.utils.files import atomic_path

_PACKED = (".jpg", ".png")


def export_all(
    reconstruction: Reconstruction,
    folder: str | Path,
    *,
    kept: Sequence[np.ndarray] | None = None,
) -> dict[str, Path]:
    """Every export in one folder, which trainers of COLMAP's and nerfstudio's layout take as it is.

    Args:
        folder: made where missing; what an earlier export of the same images wrote is replaced.
        kept: (H, W) bool per image; None is every valid point.

    Returns:
        ``points`` (points.ply), ``glb`` (scene.glb), ``images``, ``colmap`` (sparse/0),
        ``nerfstudio`` (transforms.json), ``sparse_points`` (sparse_pc.ply), ``depths``, ``maps``.

    Raises as ``write_colmap`` does.
    """
    folder = Path(folder)
    masks = kept_masks(reconstruction, kept)
    frames = write_images(reconstruction, folder)
    points = gather(reconstruction, masks, max_points=MAX_POINTS)
    return {
        "images": folder / IMAGES,
        "points": write_ply(reconstruction, folder / "points.ply", kept=masks),
        "glb": write_glb(reconstruction, folder / "scene.glb", kept=masks),
        "colmap": write_model(reconstruction, frames, points, masks, folder),
        "nerfstudio": write_transforms(reconstruction, frames, points, masks, folder),
        "sparse_points": folder / POINTS,
        "depths": folder / DEPTHS,
        "maps": write_maps(reconstruction, folder / MAPS),
    }


def write_zip(folder: str | Path, path: str | Path) -> Path:
    """All files of a folder as one ZIP, under the folder's own name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: ``path`` lies in the folder.
    """
    folder, path = Path(folder), Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to pack; export into it first")
    if path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} lies in {folder} that it is to hold; write it elsewhere")
    files = sorted(entry for entry in folder.rglob("*") if entry.is_file())
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", compresslevel=1) as packed:
        for file in files:
            name = Path(folder.resolve().name) / file.relative_to(folder)
            kind = zipfile.ZIP_STORED if file.suffix in _PACKED else zipfile.ZIP_DEFLATED
            packed.write(file, name, compress_type=kind)
    return path
