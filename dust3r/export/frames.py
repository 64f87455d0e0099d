"""Images as exports hold them: upright originals under safe names, with their own intrinsics."""

from __future__ import annotations

import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dust3r.export.folders import whole_folder
from dust3r.export.points import to_bytes
from dust3r.reconstruction import Reconstruction, Source
from dust3r.utils.pixels import read_upright

IMAGES = "images"

_QUALITY = 95
_LONGEST_STEM = 80
# Formats that all readers of an export know: their files go out as the bytes that came in.
_COPIED = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}
_LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{p}{n}" for p in ("COM", "LPT") for n in range(10)}


@dataclass(frozen=True)
class Frame:
    """One image of an export.

    Attributes:
        name: file name, unique also without its suffix and on file systems that ignore case.
        size: (width, height).
        intrinsics: (3, 3), with the centre of the first pixel at (0, 0).
        from_network: (3, 3) map from pixels of the network's image to those of this one.
    """

    name: str
    size: tuple[int, int]
    intrinsics: np.ndarray
    from_network: np.ndarray

    @property
    def stem(self) -> str:
        return Path(self.name).stem


def write_images(reconstruction: Reconstruction, folder: str | Path) -> list[Frame]:
    """All images in ``folder/images``, upright: originals, or where there is no file the network's.

    JPEG and PNG files that need no turning and no conversion to RGB are copied byte by byte, with
    all that their metadata says; others are encoded anew, without it.

    Raises:
        FileNotFoundError: an original is gone.
        ValueError: an original is damaged or of another size than when it was reconstructed, or the
            originals lie in that folder.
        FileExistsError: the folder holds other files.
    """
    target = Path(folder) / IMAGES
    for source in reconstruction.sources:
        if source.path and Path(source.path).resolve().parent == target.resolve():
            raise ValueError(
                f"{target} holds the photographs themselves ({source.name}), which an export would "
                "overwrite; export into another folder"
            )
    with whole_folder(target) as temporary:
        return [
            _write_original_or_network(reconstruction, index, temporary / stem)
            for index, stem in enumerate(stems_of(reconstruction))
        ]


def stems_of(reconstruction: Reconstruction) -> list[str]:
    """A file name without suffix for each image, safe and unique whatever the images are called."""
    taken: set[str] = set()
    return [
        _unique(_safe_stem(source.name, index), taken)
        for index, source in enumerate(reconstruction.sources)
    ]


def _write_original_or_network(
    reconstruction: Reconstruction, index: int, unsuffixed: Path
) -> Frame:
    source = reconstruction.sources[index]
    if source.path is None:
        image = Image.fromarray(to_bytes(reconstruction.images[index]))
        target = unsuffixed.with_suffix(".png")
        image.save(target)
        return Frame(target.name, image.size, reconstruction.intrinsics[index], np.eye(3))
    target = _write_original(source, Path(source.path), unsuffixed)
    intrinsics = reconstruction.original_intrinsics()[index]
    return Frame(target.name, tuple(source.size), intrinsics, source.to_original)


def _write_original(source: Source, path: Path, unsuffixed: Path) -> Path:
    try:
        image, _ = read_upright(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the original of {source.name} is gone ({path}); put it back, or reconstruct anew"
        ) from None
    if image.size != tuple(source.size):
        raise ValueError(
            "the original of {} is {}x{} pixels and was {}x{} when it was reconstructed; put the "
            "old one back, or reconstruct anew".format(source.name, *image.size, *source.size)
        )
    # Pillow forgets the format of an image that was turned or converted.
    if image.format in _COPIED:
        target = unsuffixed.with_suffix(_COPIED[image.format])
        shutil.copyfile(path, target)
        return target
    # The profile says what the numbers mean; other metadata is of the file as it was stored.
    profile = image.info.get("icc_profile")
    image.info.clear()
    if path.suffix.lower() in _LOSSLESS:
        target = unsuffixed.with_suffix(".png")
        image.save(target, icc_profile=profile)
    else:
        target = unsuffixed.with_suffix(".jpg")
        image.save(target, quality=_QUALITY, subsampling=0, icc_profile=profile)
    return target


def _safe_stem(name: str, index: int) -> str:
    """Letters, digits, - and _ of ASCII alone.

    Widespread readers of COLMAP's files decode names byte by byte, and cut them at the first dot.
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    plain = unicodedata.normalize("NFKD", PurePosixPath(last).stem).encode("ascii", "ignore")
    stem = re.sub(r"[^A-Za-z0-9-]+", "_", plain.decode())[:_LONGEST_STEM].strip("_-")
    if not stem:
        return f"image_{index + 1:03d}"
    return f"image_{stem}" if stem.upper() in _RESERVED else stem


def _unique(stem: str, taken: set[str]) -> str:
    candidate, count = stem, 1
    while candidate.lower() in taken:
        count += 1
        candidate = f"{stem}_{count}"
    taken.add(candidate.lower())
    return candidate
