"""Matches of large photographs: windows of full resolution where coarse matches say to look.

Leroy et al., "Grounding Image Matching in 3D with MASt3R", 2024, section 3.4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.reconstruction import Source
from dust3r.utils.image import load_images
from dust3r.utils.pixels import ImgNorm, Pixels, read_mask, read_upright
from mast3r.matching import Matches, View, match_pairs, match_views

__all__ = ["Matches", "match_coarse_to_fine"]


def match_coarse_to_fine(
    model: AsymmetricCroCo3DStereo,
    image1: str | Path | Pixels,
    image2: str | Path | Pixels,
    *,
    size: int = 512,
    max_image_size: int | None = None,
    device: str | torch.device | None = None,
    mask1: str | Path | np.ndarray | None = None,
    mask2: str | Path | np.ndarray | None = None,
    overlap: float = 0.5,
    coverage: float = 0.9,
    batch_size: int = 4,
    min_confidence: float = 0.0,
    max_matches: int | None = None,
    verbose: bool = False,
    **search: Any,
) -> Matches:
    """Matches of two photographs at a finer resolution than the network takes at once.

    The whole images are matched first. Both are then covered by overlapping windows of the
    network's size at full resolution, pairs of windows are chosen, the one with most coarse matches
    not covered so far first, and matched. An image no larger than a window is looked at whole.

    Args:
        model: with descriptors.
        image1: file, PIL image or (H, W, 3) uint8 RGB array; EXIF orientations are applied.
        image2: likewise.
        size: of the network's images, as for ``dust3r.utils.image.load_images``.
        max_image_size: longer side of the images that windows are cut from; larger photographs are
            resized to it. None for their full resolution.
        device: of the network and the search; the model's own where None.
        mask1: pixels of the upright original that may match, not zero; a file or (H1, W1).
        mask2: likewise.
        overlap: least part of a window's side, in [0, 1), that the next window shares.
        coverage: part of the coarse matches, in (0, 1], that chosen pairs of windows hold.
        batch_size: pairs of windows at a time.
        min_confidence: least confidence of a match, coarse or fine.
        max_matches: keep at most so many, the most confident.
        verbose: show a progress bar.
        search: further arguments of ``mast3r.fast_nn.fast_reciprocal_NNs``, such as
            ``subsample_or_initxy1``, for both passes.

    Returns:
        matches in pixels of the upright originals, sorted by row and column of image 1. Where
        windows disagree about a pixel of either image, the most confident match stays. Possibly
        none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an image or mask that cannot be used, a model without descriptors, a mask that
            leaves nothing, or impossible numbers.
    """
    if not 0 <= overlap < 1 or not 0 < coverage <= 1:
        raise ValueError(
            f"overlap={overlap} must be in [0, 1) and coverage={coverage} in (0, 1]; 0.5 and 0.9 "
            "are usual"
        )
    for name, number in (("max_image_size", max_image_size), ("max_matches", max_matches)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number} must be 1 or more, or None")
    device = next(model.parameters()).device if device is None else torch.device(device)
    photographs = [_pixels(image) for image in (image1, image2)]
    masks = [_used(mask) for mask in (mask1, mask2)]
    views = load_images(photographs, size, patch_size=model.patch_size, masks=masks, verbose=False)
    search = {"device": device, "min_confidence": min_confidence, **search}
    coarse = match_views(model, *views, **search)
    large = [
        _Large.of(*given, max_image_size, overlap)
        for given in zip(photographs, masks, views, strict=True)
    ]
    inside = [one.holds(xy) for one, xy in zip(large, (coarse.xy1, coarse.xy2), strict=True)]
    chosen = sorted(choose_windows(*inside, coverage))
    found: list[Matches] = [coarse.select(slice(0, 0))]
    pairs = [(large[0].view(i), large[1].view(j)) for i, j in chosen]
    pairs = [pair for pair in pairs if all("mask" not in v or v["mask"].any() for v in pair)]
    if pairs:
        found += match_pairs(model, pairs, batch_size=batch_size, verbose=verbose, **search)
    return _merged(found, large, max_matches)


def choose_windows(
    inside1: np.ndarray, inside2: np.ndarray, coverage: float
) -> list[tuple[int, int]]:
    """Pairs of windows that hold ``coverage`` of K matches, chosen greedily.

    Args:
        inside1: (K, windows of image 1) bool, which windows hold a match.
        inside2: (K, windows of image 2) bool.
        coverage: part of the matches, in (0, 1], that some chosen pair holds both ends of.

    Returns:
        pairs (window of image 1, window of image 2), that with most matches not yet held first.
    """
    left = np.ones(len(inside1), bool)
    most_left = (1 - coverage) * len(inside1)
    pairs = []
    while left.sum() > most_left:
        held = inside1[left].T.astype(np.float32) @ inside2[left].astype(np.float32)
        if not held.any():
            break
        i, j = (int(number) for number in np.unravel_index(held.argmax(), held.shape))
        pairs.append((i, j))
        left &= ~(inside1[:, i] & inside2[:, j])
    return pairs


@dataclass(frozen=True)
class _Large:
    """A photograph at the resolution of the windows, and its windows.

    Attributes:
        pixels: (H, W, 3) uint8.
        used: (H, W) bool, or None.
        whole: the view of the coarse pass.
        corners: (N, 2) int64, (x, y) of the windows' first pixels; None where one look at the whole
            image is as fine as it gets.
        to_original: (3, 3), pixels of ``pixels`` to those of the upright original.
    """

    pixels: np.ndarray
    used: np.ndarray | None
    whole: View
    corners: np.ndarray | None
    to_original: np.ndarray

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        used: np.ndarray | None,
        whole: View,
        max_size: int | None,
        overlap: float,
    ) -> "_Large":
        original = pixels.shape[1::-1]
        scale = min(1.0, (max_size or math.inf) / max(original))
        resized = tuple(max(1, round(side * scale)) for side in original)
        if resized != original:
            pixels = np.asarray(Image.fromarray(pixels).resize(resized, Image.Resampling.LANCZOS))
            if used is not None:
                shares = Image.fromarray(used.astype(np.uint8) * 255)
                used = np.asarray(shares.resize(resized, Image.Resampling.BOX)) > 127
        ratio = np.array(original) / resized
        to_original = np.diag([*ratio, 1.0])
        to_original[:2, 2] = (ratio - 1) / 2
        window = whole["img"].shape[:-3:-1]
        corners = None
        if window[0] <= resized[0] and window[1] <= resized[1] and window != resized:
            starts = [_starts(*sides, overlap) for sides in zip(resized, window, strict=True)]
            corners = np.stack(np.meshgrid(*starts), -1).reshape(-1, 2)
        return cls(pixels, used, whole, corners, to_original)

    def to_pixels(self, xy: np.ndarray) -> np.ndarray:
        """Pixels (K, 2) of ``pixels`` of those of the original."""
        return (xy - self.to_original[:2, 2]) / np.diag(self.to_original)[:2]

    def holds(self, xy: np.ndarray) -> np.ndarray:
        """Which windows hold pixels (K, 2) of the original, (K, N) bool."""
        if self.corners is None:
            return np.ones((len(xy), 1), bool)
        # Rounded, because a coarse pixel's centre may lie between the last one and the edge.
        place = self.to_pixels(xy).round()[:, None] - self.corners
        window = self.whole["img"].shape[:-3:-1]
        return ((place >= 0) & (place < window)).all(-1)

    def view(self, number: int) -> View:
        """One window as a view, whose source maps to the whole original."""
        if self.corners is None:
            return self.whole
        left, top = self.corners[number]
        height, width = self.whole["img"].shape[-2:]
        box = slice(top, top + height), slice(left, left + width)
        moved = self.to_original.copy()
        moved[:2, 2] += np.diag(self.to_original)[:2] * (left, top)
        source = self.whole["source"]
        view = {
            "img": ImgNorm(self.pixels[box])[None],
            "true_shape": np.array([[height, width]], np.int32),
            "idx": number,
            "instance": f"{source.name} window {number}",
            "source": Source(source.name, source.path, source.size, moved),
        }
        if self.used is not None:
            view["mask"] = torch.from_numpy(np.ascontiguousarray(self.used[box]))[None]
        return view


def _pixels(image: str | Path | Pixels) -> np.ndarray:
    """(H, W, 3) uint8, upright."""
    if isinstance(image, np.ndarray):
        return image
    return np.asarray(read_upright(image)[0])


def _used(mask: str | Path | np.ndarray | None) -> np.ndarray | None:
    if mask is None:
        return None
    return read_mask(mask) if isinstance(mask, str | Path) else np.asarray(mask) != 0


def _starts(side: int, window: int, overlap: float) -> np.ndarray:
    """First pixels of windows that cover a side from end to end, evenly spread."""
    step = max(1.0, window * (1 - overlap))
    count = 1 + math.ceil((side - window) / step)
    return np.linspace(0, side - window, count).astype(np.int64)


def _merged(found: Sequence[Matches], large: Sequence[_Large], max_matches: int | None) -> Matches:
    """All matches, each pixel of both images once."""
    xy1, xy2, confidence = (
        np.concatenate([getattr(matches, name) for matches in found])
        for name in ("xy1", "xy2", "confidence")
    )
    order = np.argsort(-confidence, kind="stable")
    for one, xy in zip(large, (xy1, xy2), strict=True):
        place = one.to_pixels(xy[order]).round().astype(np.int64)
        first = np.unique(place, axis=0, return_index=True)[1]
        order = order[np.sort(first)]
    kept = order[:max_matches]
    kept = kept[np.lexsort((xy1[kept, 0], xy1[kept, 1]))]
    return Matches(xy1[kept], xy2[kept], confidence[kept])
