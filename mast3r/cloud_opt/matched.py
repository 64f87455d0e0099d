"""Verified matches of the pairs of a scene, in the form in which alignment reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dust3r.overlap import agreeing
from mast3r.cloud_opt.cache import DirectedMatches
from mast3r.cloud_opt.canonical import Cells

# Pixels off the epipolar line, relative to the longer side: 2 pixels of 512.
_PIXELS_OFF = 0.004
# A pair with fewer agreeing matches, or a smaller share of all, may do so by chance.
_LEAST_MATCHES, _LEAST_SHARE = 16, 0.15
_MOST_MATCHES = 1500


@dataclass(frozen=True)
class PairMatches:
    """K verified matches of images i < j.

    Attributes:
        edge: (i, j).
        pixels: (K, 4) int64, (x, y) in i and (x, y) in j.
        confidence: (K,) float32.
    """

    edge: tuple[int, int]
    pixels: Tensor
    confidence: Tensor

    def __len__(self) -> int:
        return len(self.confidence)

    @property
    def score(self) -> float:
        """How firmly the pair is joined."""
        return float(self.confidence.clamp_min(0).sum())


@dataclass(frozen=True)
class Hosted:
    """All K matches of one image, their points being its own.

    Attributes:
        others: the images matched with, rising.
        slot: (K,) which of ``others``.
        pixels: (K, 2) in the image; ``targets``: (K, 2) in the other one.
        depth: (K,) canonical; ``target_depth``: (K,) in the other one.
        cell: (K,) of the image; ``target_cell``: (K,) of the other one.
        votes: (K,).
    """

    others: Tensor
    slot: Tensor
    pixels: Tensor
    targets: Tensor
    depth: Tensor
    target_depth: Tensor
    cell: Tensor
    target_cell: Tensor
    votes: Tensor

    def __len__(self) -> int:
        return len(self.votes)


def verified_matches(
    edge: tuple[int, int],
    forth: DirectedMatches,
    back: DirectedMatches,
    masks: tuple[Tensor, Tensor],
    threshold: float,
) -> PairMatches | None:
    """Matches of both passes of a pair that one epipolar geometry explains; None for too few.

    Args:
        forth, back: of the passes (i, j) and (j, i).
        masks: (H, W) bool of both images: pixels that may match, such as those with depth.
        threshold: least confidence of a match.
    """
    pixels = torch.cat([forth.pixels, back.pixels[:, [2, 3, 0, 1]]])
    confidence = torch.cat([forth.match_confidence, back.match_confidence])
    sizes = torch.tensor([*masks[0].shape[::-1], *masks[1].shape[::-1]])
    inside = ((pixels >= 0) & (pixels < sizes)).all(1)
    pixels, confidence = pixels[inside], confidence[inside]
    kept = (confidence >= threshold) & confidence.isfinite()
    kept &= masks[0][pixels[:, 1], pixels[:, 0]] & masks[1][pixels[:, 3], pixels[:, 2]]
    pixels, confidence = _without_repeats(pixels[kept], confidence[kept])
    agree = agreeing(pixels[:, :2].numpy(), pixels[:, 2:].numpy(), _PIXELS_OFF * int(sizes.max()))
    agree = torch.from_numpy(agree)
    count = int(agree.sum())
    if count < _LEAST_MATCHES or count < _LEAST_SHARE * len(agree):
        return None
    pixels, confidence = pixels[agree], confidence[agree]
    if count > _MOST_MATCHES:
        best = confidence.argsort(descending=True, stable=True)[:_MOST_MATCHES].sort().values
        pixels, confidence = pixels[best], confidence[best]
    return PairMatches(edge, pixels, confidence)


def hosted(
    n: int, matches: Sequence[PairMatches], depths: Sequence[Tensor], cells: Sequence[Cells]
) -> Hosted:
    """The matches of image ``n``, given canonical depths (H, W) and cells of all images."""
    parts: list[tuple[int, Tensor, Tensor]] = []
    for pair in matches:
        if n in pair.edge:
            side = pair.edge.index(n)
            pixels = pair.pixels if side == 0 else pair.pixels[:, [2, 3, 0, 1]]
            parts.append((pair.edge[1 - side], pixels, pair.confidence))
    parts.sort(key=lambda part: part[0])
    none = torch.zeros(0, dtype=torch.int64)
    pixels = torch.cat([none.view(0, 4), *(pixels for _, pixels, _ in parts)])
    votes = torch.cat([torch.zeros(0), *(confidence for _, _, confidence in parts)]).double()
    own, there = pixels[:, :2], [(other, pixels[:, 2:]) for other, pixels, _ in parts]
    return Hosted(
        others=torch.tensor([other for other, _ in there], dtype=torch.int64),
        slot=torch.cat([none, *(torch.full((len(xy),), k) for k, (_, xy) in enumerate(there))]),
        pixels=own.double(),
        targets=pixels[:, 2:].double(),
        depth=depths[n][own[:, 1], own[:, 0]].double(),
        target_depth=torch.cat(
            [none.double(), *(depths[other][xy[:, 1], xy[:, 0]].double() for other, xy in there)]
        ),
        cell=cells[n].index(own),
        target_cell=torch.cat([none, *(cells[other].index(xy) for other, xy in there)]),
        votes=votes / votes.median().clamp_min(1e-9) if len(votes) else votes,
    )


def _without_repeats(pixels: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair of pixels once, with the larger confidence."""
    if not len(pixels):
        return pixels, confidence
    order = confidence.argsort(descending=True, stable=True).numpy()
    _, first = np.unique(pixels[order].numpy(), axis=0, return_index=True)
    chosen = torch.from_numpy(order[np.sort(first)])
    return pixels[chosen], confidence[chosen]
