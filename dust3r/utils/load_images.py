"""Photographs to views of the network: upright, resized, cropped, with their masks."""

import difflib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dust3r.reconstruction import Source
from dust3r.utils.pixels import ImgNorm, Pixels, read_mask, read_upright

log = logging.getLogger(__name__)

Masks = str | Path | Mapping[str, Any] | Sequence[Any]

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".jp2",
    ".heic", ".heif", ".hif", ".avif",
)  # fmt: skip

# The size that the published 224 models were trained on: squares, from the short side.
SQUARE_SIZE = 224

# What the network sees in masked pixels, in its [-1, 1]; None leaves the photograph.
FILLS = {"keep": None, "white": 1.0, "black": -1.0}


def load_images(
    folder_or_list: str | Path | Sequence[str | Path | Pixels],
    size: int,
    square_ok: bool = False,
    patch_size: int = 16,
    *,
    masks: Masks | None = None,
    masked: str = "keep",
    verbose: bool = True,
) -> list[dict[str, Any]]:
    """Views (DESIGN 2), one image each, of photographs of any sizes and orientations.

    With ``size=224`` the short side becomes 224 and the middle square is kept. With others the long
    side becomes ``size`` and both sides lose their rims down to multiples of ``patch_size``; a
    square is cut to 4:3 landscape unless ``square_ok``. EXIF orientations are applied, and
    transparent pixels come out white.

    Args:
        folder_or_list: a folder, whose images are taken in natural order (2 before 10) and whose
            other files are ignored; or a list of files, PIL images or (H, W, 3) uint8 RGB arrays.
        size: pixels, a multiple of ``patch_size``.
        masks: which pixels of the upright originals count (not zero) and which do not (zero): a
            folder of files named as the images but for the suffix, a dictionary from the images'
            names (``view['source'].name``), or a list of one per image. A mask is a file or an
            (H, W) array; None in a list, or absence in a folder or dictionary, is no mask.
        masked: what the network sees where a mask is zero: ``'keep'`` the photograph, ``'white'``
            or ``'black'``.
        verbose: show progress and log the sizes.

    Returns:
        per image ``img`` (1, 3, H, W) float32 in [-1, 1], ``true_shape`` (1, 2) int32 (height,
        width), ``idx`` its place in the list, ``instance`` ``str(idx)``, ``source`` a
        ``dust3r.reconstruction.Source``, and where a mask is given ``mask`` (1, H, W) bool.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: no image at all, a file that is damaged, no image, or unreasonably large, an
            image without room for one patch per side, a mask of another size than its image or
            for no image, or impossible arguments.
    """
    _check_arguments(size, patch_size, masked)
    given = _given(folder_or_list)
    names = _unique(given.names)
    chosen = _choose_masks(masks, given, names)
    views = []
    for index, item in enumerate(tqdm(given.items, "images", disable=not verbose)):
        photo, turn = _read(item, names[index])
        frame = _Frame.of(photo.size, size, square_ok, patch_size, names[index])
        view = {
            "img": ImgNorm(frame.cut(photo))[None],
            "true_shape": np.array([frame.shape], np.int32),
            "idx": index,
            "instance": str(index),
            "source": Source(names[index], given.paths[index], photo.size, frame.to_original()),
        }
        if chosen[index] is not None:
            view["mask"] = _mask(chosen[index], photo.size, turn, frame, names[index])
            if FILLS[masked] is not None:
                view["img"].masked_fill_(~view["mask"][:, None], FILLS[masked])
        views.append(view)
        if verbose:
            log.info("%s: %dx%d, seen as %dx%d", names[index], *photo.size, *frame.shape[::-1])
    return views


@dataclass(frozen=True)
class _Given:
    """What the caller gave: each image, its file if it has one, and the name to call it by."""

    items: list[str | Path | Pixels]
    paths: list[Path | None]
    names: list[str]


@dataclass(frozen=True)
class _Frame:
    """How an upright original (width, height) is resized, and which box of that is kept."""

    original: tuple[int, int]
    resized: tuple[int, int]
    box: tuple[int, int, int, int]

    @classmethod
    def of(
        cls, original: tuple[int, int], size: int, square_ok: bool, patch: int, name: str
    ) -> "_Frame":
        short, long = min(original), max(original)
        if short < patch or short * size < patch * long:
            raise ValueError(
                f"the image {name} of {original[0]}x{original[1]} pixels (width x height) is too "
                f"small or too thin: at size {size} it has no room for a patch of {patch}x{patch}; "
                "leave it out, or crop it to a wider shape"
            )
        scale = size / (short if size == SQUARE_SIZE else long)
        width, height = round(original[0] * scale), round(original[1] * scale)
        if size == SQUARE_SIZE:
            keep = (size, size)
        else:
            keep = (width // patch * patch, height // patch * patch)
            if width == height and not square_ok:
                keep = (keep[0], max(patch, keep[0] * 3 // 4 // patch * patch))
        left, top = (width - keep[0]) // 2, (height - keep[1]) // 2
        return cls(original, (width, height), (left, top, left + keep[0], top + keep[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what is kept."""
        left, top, right, bottom = self.box
        return bottom - top, right - left

    def cut(self, image: Image.Image) -> Image.Image:
        shrinks = max(self.resized) < max(self.original)
        smooth = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
        return image.resize(self.resized, smooth).crop(self.box)

    def cut_mask(self, used: Image.Image) -> Tensor:
        # The box filter is the fraction of used pixels where it shrinks, the nearest one elsewhere.
        share = used.resize(self.resized, Image.Resampling.BOX).crop(self.box)
        return torch.from_numpy(np.asarray(share) > 127)

    def to_original(self) -> np.ndarray:
        """Pixels of the result to those of the original, both with the first one's centre at 0."""
        matrix = np.eye(3)
        for axis in (0, 1):
            scale = self.original[axis] / self.resized[axis]
            matrix[axis, axis] = scale
            matrix[axis, 2] = (self.box[axis] + 0.5) * scale - 0.5
        return matrix


def _check_arguments(size: int, patch_size: int, masked: str) -> None:
    if patch_size < 1 or size < patch_size or size % patch_size:
        raise ValueError(
            f"size={size} is not a multiple of patch_size={patch_size}: give {SQUARE_SIZE} or 512, "
            "whichever the model was trained on"
        )
    if masked not in FILLS:
        raise ValueError(f"masked={masked!r} is none of {', '.join(map(repr, FILLS))}")


def _given(folder_or_list: str | Path | Sequence[str | Path | Pixels]) -> _Given:
    if isinstance(folder_or_list, str | Path):
        items = _images_in(Path(folder_or_list))
    elif isinstance(folder_or_list, Image.Image):
        items = [folder_or_list]
    else:
        items = list(folder_or_list)
        if not items:
            raise ValueError("the list of images is empty: give at least one")
    paths = [Path(item) if isinstance(item, str | Path) else None for item in items]
    names = [
        path.name if path else Path(getattr(item, "filename", "") or f"image_{index:03d}.png").name
        for index, (item, path) in enumerate(zip(items, paths, strict=True))
    ]
    return _Given(items, paths, names)


def _images_in(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of images {folder}")
    found = []
    for path in sorted(folder.iterdir(), key=_natural):
        # Hidden files named as images are the resource forks and thumbnails of file managers.
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.is_file():
            found.append(path)
        else:
            log.debug("%s is not taken for an image", path)
    if not found:
        raise ValueError(f"the folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _natural(path: Path) -> list[str | int]:
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _unique(names: Sequence[str]) -> list[str]:
    # Exports write files by these names, also onto disks that do not tell cases apart.
    taken = {name.casefold() for name in names}
    unique, seen = [], set()
    for name in names:
        path, count = Path(name), 1
        while name.casefold() in seen or (count > 1 and name.casefold() in taken):
            count += 1
            name = f"{path.stem}_{count}{path.suffix}"
        seen.add(name.casefold())
        unique.append(name)
    return unique


def _read(item: str | Path | Pixels, name: str) -> tuple[Image.Image, Image.Transpose | None]:
    if isinstance(item, str | Path | Image.Image):
        return read_upright(item)
    if not isinstance(item, np.ndarray):
        raise ValueError(
            f"{name} is of type {type(item).__name__}: give files, PIL images or (H, W, 3) uint8 "
            "arrays"
        )
    if item.ndim != 3 or item.shape[2] != 3 or item.dtype != np.uint8 or not item.size:
        raise ValueError(
            f"{name} is an array of shape {item.shape} and type {item.dtype}: give RGB as "
            "(H, W, 3) uint8"
        )
    return Image.fromarray(item), None


def _choose_masks(masks: Masks | None, given: _Given, names: Sequence[str]) -> list[Any]:
    """The mask of every image, None where it has none."""
    if masks is None:
        return [None] * len(names)
    if isinstance(masks, str | Path):
        return _masks_in(Path(masks), given.names)
    if isinstance(masks, Mapping):
        for name in masks:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"images are {', '.join(names)}"
                raise ValueError(f"there is a mask for {name!r}, which is no image; {hint}")
        return [masks.get(name) for name in names]
    if len(masks) != len(names):
        raise ValueError(
            f"there are {len(masks)} masks for {len(names)} images: give one each, None for none"
        )
    return list(masks)


def _masks_in(folder: Path, names: Sequence[str]) -> list[Path | None]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of masks {folder}")
    by_stem = {path.stem: path for path in _images_in(folder)}
    # Some programs keep the image's suffix in front of the mask's: a.jpg.png.
    keys = [name if name in by_stem else Path(name).stem for name in names]
    found = [by_stem.get(key) for key in keys]
    shared = [key for key, count in Counter(keys).items() if count > 1 and key in by_stem]
    if shared:
        raise ValueError(
            f"several images share the mask {by_stem[shared[0]]}: rename them, or give masks as a "
            "list in the order of the images"
        )
    if not any(found):
        raise ValueError(
            f"no mask in {folder} belongs to an image: they are named as the images, such as "
            f"{Path(names[0]).stem}.png for {names[0]}"
        )
    without = [name for name, path in zip(names, found, strict=True) if path is None]
    if without:
        log.warning("no mask in %s for %s: used as they are", folder, ", ".join(without))
    return found


def _mask(
    mask: Any,
    size: tuple[int, int],
    turn: Image.Transpose | None,
    frame: _Frame,
    name: str,
) -> Tensor:
    """Mask (1, H, W) bool of the network's image."""
    used = read_mask(mask) if isinstance(mask, str | Path) else np.asarray(mask) != 0
    if used.ndim != 2:
        raise ValueError(f"the mask of {name} has the shape {used.shape}: give it as (H, W)")
    image = Image.fromarray(used.astype(np.uint8) * 255)
    if image.size != size and turn is not None:
        # Drawn on the photograph as its pixels are stored, before the EXIF rotation.
        image = image.transpose(turn)
    if image.size != size:
        raise ValueError(
            f"the mask of {name} has {used.shape[1]}x{used.shape[0]} pixels, and the image "
            f"{size[0]}x{size[1]} (width x height, upright): make a mask of the image's size"
        )
    kept = frame.cut_mask(image)[None]
    if not kept.any():
        log.warning("the mask of %s leaves nothing of it", name)
    return kept
