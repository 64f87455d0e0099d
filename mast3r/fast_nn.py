"""Fast reciprocal matching of dense descriptors.

Leroy et al., "Grounding Image Matching in 3D with MASt3R", 2024, section 3.3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dust3r.utils.device import best_device
from mast3r.nearest import DISTANCES, NearestNeighbours

Array = Tensor | np.ndarray

_UNKNOWN = -1


def fast_reciprocal_NNs(
    pts1: Array,
    pts2: Array,
    subsample_or_initxy1: int | Sequence[Array] | Array = 8,
    ret_xy: bool = True,
    pixel_tol: int = 0,
    ret_basin: bool = False,
    device: str | torch.device = "cuda",
    max_matches: int | None = None,
    *,
    dist: str = "l2",
    block_size: int | None = 2**13,
    max_iter: int = 10,
    mask1: Array | None = None,
    mask2: Array | None = None,
) -> tuple[np.ndarray, ...]:
    """Pixels of two images that are each other's nearest neighbour, from a grid of seeds.

    Every seed in image 1 goes to its nearest neighbour in image 2, from there to that one's in
    image 1, and so on until it comes back to where it was. Seeds that meet give one match.

    Args:
        pts1: (H1, W1, D) descriptors, or points; array or tensor of floats.
        pts2: (H2, W2, D).
        subsample_or_initxy1: pixels between seeds in both directions, the first one half of that
            from the corner; or the seeds' (x, y), two integer arrays (S,) each.
        ret_xy: give (x, y) pixels, else indices y * W + x.
        pixel_tol: pixels in x and in y that a seed may come back beside where it was.
        ret_basin: also give the match that each seed ended in.
        device: where to search; the default is a GPU, or the CPU of a machine that has none.
        max_matches: keep at most so many, those with the nearest descriptors.
        dist: ``'dot'``: nearest is the largest scalar product; ``'l2'``: the least distance. With
            unit norm descriptors they agree.
        block_size: most queries at a time, to bound the memory; None for the default. It does not
            change the result.
        max_iter: rounds there and back, after which seeds still under way are dropped.
        mask1: (H1, W1), pixels that may match where not zero; None for all of them.
        mask2: (H2, W2) likewise.

    Returns:
        ``xy1`` and ``xy2`` (K, 2) int64, pixel (x, y) of the matches in the images, sorted by row
        and column of image 1, where each pixel occurs once; with ``ret_xy=False`` (K,) each. With
        ``ret_basin`` also (S,) int64, the row of each seed's match, -1 where it has none; seeds of
        a grid are ordered by row and column. K may be 0. All are numpy arrays on the host.

    Raises:
        ValueError: wrong shapes, values that are not finite, seeds outside of the image, a mask of
            another size or without any pixel, or impossible numbers.
    """
    if dist not in DISTANCES:
        raise ValueError(f"dist={dist!r} is none of {', '.join(map(repr, DISTANCES))}")
    for name, number in (("block_size", block_size), ("max_iter", max_iter)):
        if number is not None and number < 1:
            raise ValueError(f"{name}={number} must be 1 or more")
    if pixel_tol < 0:
        raise ValueError(f"pixel_tol={pixel_tol} must be 0 or more pixels")
    if max_matches is not None and max_matches < 1:
        raise ValueError(f"max_matches={max_matches} must be 1 or more, or None for all")
    if pts1.ndim != 3 or pts2.ndim != 3 or pts1.shape[-1] != pts2.shape[-1]:
        raise ValueError(
            f"descriptors have the shapes {tuple(pts1.shape)} and {tuple(pts2.shape)}: expected "
            "(H1, W1, D) and (H2, W2, D), without a batch and of the same model"
        )
    device = _usable(device)
    search = {"dist": dist, "block_size": block_size or 2**13}
    image1 = _Image.of(pts1, mask1, device, "1", search)
    image2 = _Image.of(pts2, mask2, device, "2", search)
    seeds = _seeds(subsample_or_initxy1, image1.width, image1.height).to(device)
    arrived = _reciprocal(image1, image2, seeds, pixel_tol, max_iter)

    pixel1, basin = arrived[arrived >= 0].unique(return_inverse=True)
    pixel2 = image2.pixel[image1.follow(image1.place[pixel1], image2)]
    row = torch.full_like(arrived, -1)
    row[arrived >= 0] = basin
    if max_matches is not None and len(pixel1) > max_matches:
        pixel1, pixel2, row = _nearest_only(image1, image2, pixel1, pixel2, row, max_matches, dist)
    matches = [pixel1, pixel2]
    if ret_xy:
        pairs = zip(matches, (image1.width, image2.width), strict=True)
        matches = [torch.stack([pixel % width, pixel // width], 1) for pixel, width in pairs]
    return tuple(part.cpu().numpy() for part in (*matches, *((row,) if ret_basin else ())))


class _Image:
    """Descriptors of the pixels of one image that may match, and the neighbours found so far.

    Attributes:
        pixel: (N,) index y * W + x of each descriptor.
        place: (H * W,) place of each pixel's descriptor, -1 where it may not match.
        neighbour: (N,) place of its nearest neighbour in the other image, -1 where not known yet.
    """

    def __init__(self, descriptors: Tensor, used: Tensor, search: dict):
        self.height, self.width = used.shape
        self.pixel = used.flatten().nonzero()[:, 0]
        flat = descriptors.flatten(0, 1)
        self.descriptors = flat if len(self.pixel) == len(flat) else flat[self.pixel]
        self.place = torch.full((len(flat),), -1, device=flat.device)
        self.place[self.pixel] = torch.arange(len(self.pixel), device=flat.device)
        self.neighbour = torch.full_like(self.pixel, _UNKNOWN)
        self.index = NearestNeighbours(self.descriptors, **search)

    @classmethod
    def of(
        cls, points: Array, mask: Array | None, device: torch.device, name: str, search: dict
    ) -> "_Image":
        descriptors = _tensor(points).detach().to(device, torch.float32)
        shape = descriptors.shape[:2]
        used = torch.ones(shape, dtype=torch.bool, device=device)
        if mask is not None:
            used = _tensor(mask).to(device) != 0
        if used.shape != shape:
            raise ValueError(
                f"mask{name} has the shape {tuple(used.shape)}, and the descriptors of the image "
                f"are {tuple(shape)} (height, width): give a mask of the network's image"
            )
        if not used.any():
            why = "the mask is zero everywhere" if descriptors.numel() else "the image is empty"
            raise ValueError(f"image {name} has no pixel that may match: {why}")
        if not descriptors[used].isfinite().all():
            raise ValueError(
                f"pts{name} has values that are not finite: leave these pixels out by mask{name}"
            )
        return cls(descriptors, used, search)

    def follow(self, places: Tensor, other: "_Image") -> Tensor:
        """Places in ``other`` of the nearest neighbours of ``places``; each is searched once."""
        ask = places[self.neighbour[places] == _UNKNOWN].unique()
        self.neighbour[ask] = other.index.nearest(self.descriptors[ask])
        return self.neighbour[places]


def _tensor(values: Array) -> Tensor:
    if isinstance(values, Tensor):
        return values
    # PyTorch takes no negative strides, such as mirrored arrays have, and warns of read-only ones.
    return torch.from_numpy(np.array(values, order="C"))


def _usable(device: str | torch.device) -> torch.device:
    device = torch.device(device)
    if device == torch.device("cuda") and not torch.cuda.is_available():
        device = best_device()
    # Apple's GPUs have no double precision, which the search decides near ties by.
    return torch.device("cpu") if device.type == "mps" else device


def _seeds(given: int | Sequence[Array] | Array, width: int, height: int) -> Tensor:
    """Indices y * W + x (S,) of the seeds."""
    if isinstance(given, int | np.integer):
        if given < 1:
            raise ValueError(f"subsample={given} must be 1 pixel or more")
        x = torch.arange(given // 2, width, given)
        y = torch.arange(given // 2, height, given)
        return (y[:, None] * width + x).flatten()
    if len(given) != 2:
        raise ValueError(
            f"seeds are two arrays, x and y, and {len(given)} were given: of an array (S, 2) give "
            "its transpose"
        )
    x, y = (torch.as_tensor(part).cpu() for part in given)
    if x.ndim != 1 or x.shape != y.shape or x.is_floating_point() or y.is_floating_point():
        raise ValueError(
            f"seeds have the shapes {tuple(x.shape)} of {x.dtype} and {tuple(y.shape)} of "
            f"{y.dtype}: expected two integer arrays (S,), x and y"
        )
    if ((x < 0) | (x >= width) | (y < 0) | (y >= height)).any():
        raise ValueError(
            f"some seeds lie outside of image 1, which is {width}x{height} (width x height): give "
            "pixels of the network's image as (x, y)"
        )
    return y.long() * width + x.long()


def _reciprocal(
    image1: _Image, image2: _Image, seeds: Tensor, pixel_tol: int, max_iter: int
) -> Tensor:
    """Pixel of image 1 (S,) that each seed came to rest at, -1 where it did not."""
    arrived = torch.full_like(seeds, -1)
    walkers = (image1.place[seeds] >= 0).nonzero()[:, 0]
    here = image1.place[seeds[walkers]]
    for _ in range(max_iter):
        back = image2.follow(image1.follow(here, image2), image1)
        before, after = image1.pixel[here], image1.pixel[back]
        across = (after % image1.width - before % image1.width).abs()
        down = (after // image1.width - before // image1.width).abs()
        rests = (across <= pixel_tol) & (down <= pixel_tol)
        arrived[walkers[rests]] = before[rests]
        walkers, here = walkers[~rests], back[~rests]
        if not len(walkers):
            break
    return arrived


class _Kept(NamedTuple):
    pixel1: Tensor
    pixel2: Tensor
    row: Tensor


def _nearest_only(
    image1: _Image,
    image2: _Image,
    pixel1: Tensor,
    pixel2: Tensor,
    row: Tensor,
    most: int,
    dist: str,
) -> _Kept:
    """The ``most`` nearest pairs in their order, and ``row`` (S,) of the seeds renumbered."""
    first = image1.descriptors[image1.place[pixel1]].double()
    second = image2.descriptors[image2.place[pixel2]].double()
    score = (first * second).sum(1) if dist == "dot" else -(first - second).norm(dim=1)
    keep = score.sort(descending=True, stable=True).indices[:most].sort().values
    renumbered = torch.full_like(pixel1, -1)
    renumbered[keep] = torch.arange(len(keep), device=keep.device)
    return _Kept(pixel1[keep], pixel2[keep], torch.where(row >= 0, renumbered[row], -1))
