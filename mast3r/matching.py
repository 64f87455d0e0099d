"""Matches of two photographs: descriptors of the network, reciprocal neighbours, files to look at.

Leroy et al., "Grounding Image Matching in 3D with MASt3R", 2024.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from dust3r.inference import Prediction, for_each_batch
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.utils.files import atomic_path
from dust3r.utils.plots import DPI, save_png
from dust3r.utils.spread import spread
from mast3r.fast_nn import fast_reciprocal_NNs

View = dict[str, Any]
Kind = TypeVar("Kind", bound="Matches")

DESCRIPTOR_MODEL = "head_type='catmlp+dpt', output_mode='pts3d+desc24'"

_NO_DESCRIPTORS = (
    "this model has no descriptors to match by: take the weights of a model with "
    f"{DESCRIPTOR_MODEL}, such as MASt3R's"
)
_PANEL_HEIGHT, _GAP = 640, 12
_REDDEST = 0.85  # hues beyond come back to red


@dataclass(frozen=True)
class Matches:
    """K places that two photographs share, each place of a photograph at most once.

    Attributes:
        xy1: (K, 2) float64, pixels (x, y) of the upright original 1, first centre at (0, 0).
        xy2: (K, 2) float64, of the upright original 2.
        confidence: (K,) float32, as of the model's ``desc_conf``; only their order means something.
    """

    xy1: np.ndarray
    xy2: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.confidence)

    def select(self: Kind, rows: np.ndarray) -> Kind:
        """Some of the matches: a mask (K,) bool, or indices."""
        return replace(self, **{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True)
class NetworkMatches(Matches):
    """Matches, and where they lie in what the network saw.

    Attributes:
        pixels1: (K, 2) int64, pixels (x, y) of the network's image 1.
        pixels2: (K, 2) int64, of the network's image 2.
    """

    pixels1: np.ndarray
    pixels2: np.ndarray


def match_views(
    model: AsymmetricCroCo3DStereo,
    view1: View,
    view2: View,
    *,
    device: str | torch.device | None = None,
    min_confidence: float = 0.0,
    **search: Any,
) -> NetworkMatches:
    """Matches of two photographs in one pass of the network.

    Args:
        model: with descriptors.
        view1: of ``dust3r.utils.image.load_images``; pixels that its mask leaves out do not match.
        view2: likewise.
        device: of the network and the search; the model's own where None.
        min_confidence: least confidence of a match.
        search: ``subsample_or_initxy1``, ``max_matches``, ``block_size``, ``pixel_tol`` and others
            of ``mast3r.fast_nn.fast_reciprocal_NNs``.

    Returns:
        matches sorted by row and column of the network's image 1; possibly none.

    Raises:
        ValueError: the model has no descriptors, a mask leaves nothing, or impossible arguments.
    """
    return match_pairs(
        model, [(view1, view2)], device=device, min_confidence=min_confidence, **search
    )[0]


def match_pairs(
    model: AsymmetricCroCo3DStereo,
    pairs: Sequence[tuple[View, View]],
    *,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    min_confidence: float = 0.0,
    verbose: bool = False,
    **search: Any,
) -> list[NetworkMatches]:
    """Matches of each of many pairs, seeds being in the first image.

    Each image is encoded once, and the descriptors of one batch are in memory at a time.

    Args:
        pairs: of views, as of ``dust3r.image_pairs.make_pairs``.
        batch_size: pairs at a time; halved by itself where memory ends.
        verbose: show a progress bar.
        Others, and errors, as of ``match_views``.
    """
    for view in (view for pair in pairs for view in pair):
        mask = view.get("mask")
        if mask is not None and not mask.any():
            raise ValueError(
                f"the mask of {view['source'].name} leaves nothing of what the network sees: what "
                "may match is not black in a mask; perhaps it is to be inverted"
            )
    device = next(model.parameters()).device if device is None else torch.device(device)
    found: dict[int, NetworkMatches] = {}

    def take(batch: Sequence[int], *predictions: Prediction) -> None:
        for place, number in enumerate(batch):
            both = ({name: v[place] for name, v in one.items()} for one in predictions)
            found[number] = match_predictions(
                *both, *pairs[number], device=device, min_confidence=min_confidence, **search
            )

    for_each_batch(pairs, model, take, device, batch_size, verbose)
    return [found[number] for number in range(len(pairs))]


def match_predictions(
    pred1: Mapping[str, Any],
    pred2: Mapping[str, Any],
    view1: View,
    view2: View,
    *,
    device: str | torch.device,
    min_confidence: float = 0.0,
    **search: Any,
) -> NetworkMatches:
    """Matches of one pair that the network has looked at: ``desc`` (H, W, D), ``desc_conf`` (H, W).

    Views, other arguments, result and errors as of ``match_views``.
    """
    if "desc" not in pred1 or "desc" not in pred2:
        raise ValueError(_NO_DESCRIPTORS)
    masks = [None if view.get("mask") is None else view["mask"][0] for view in (view1, view2)]
    pixels1, pixels2 = fast_reciprocal_NNs(
        pred1["desc"],
        pred2["desc"],
        device=device,
        mask1=masks[0],
        mask2=masks[1],
        **{"dist": "dot"} | search,
    )
    confidences = [
        pred["desc_conf"].detach().float().cpu().numpy()[pixels[:, 1], pixels[:, 0]]
        for pred, pixels in ((pred1, pixels1), (pred2, pixels2))
    ]
    matches = NetworkMatches(
        xy1=_moved(view1["source"].to_original, pixels1),
        xy2=_moved(view2["source"].to_original, pixels2),
        confidence=np.sqrt(confidences[0] * confidences[1]),
        pixels1=pixels1,
        pixels2=pixels2,
    )
    return matches.select(matches.confidence >= min_confidence)


def need_descriptors(model: AsymmetricCroCo3DStereo) -> None:
    """Raises ValueError for a model that has no descriptors to match by."""
    if not getattr(model, "desc_dim", 0):
        raise ValueError(_NO_DESCRIPTORS)


def save_matches(path: str | Path, matches: Matches, **more: Any) -> Path:
    """Write the arrays of the matches, and ``more``, under their names to an NPZ; its path."""
    path = Path(path)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **vars(matches), **more)
    return path


def draw_matches(
    path: str | Path,
    image1: np.ndarray,
    image2: np.ndarray,
    matches: Matches,
    lines: int = 50,
    title: str = "",
) -> Path:
    """Write a PNG of both photographs side by side, with matches as dots of one colour each.

    Args:
        image1: (H1, W1, 3) RGB, the upright original, uint8 or in [0, 1].
        image2: (H2, W2, 3).
        lines: how many matches, evenly spread over the list, are joined by a line as well.
    """
    path = Path(path)
    scales = [_PANEL_HEIGHT / image.shape[0] for image in (image1, image2)]
    widths = [round(s * im.shape[1]) for s, im in zip(scales, (image1, image2), strict=True)]
    width, head = sum(widths) + _GAP, 28 if title else 0
    figure = Figure(figsize=(width / DPI, (_PANEL_HEIGHT + head) / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, _PANEL_HEIGHT / (_PANEL_HEIGHT + head)))
    axes.set_axis_off()
    lefts = 0, widths[0] + _GAP
    for left, across, image in zip(lefts, widths, (image1, image2), strict=True):
        axes.imshow(
            image, extent=(left, left + across, _PANEL_HEIGHT, 0), interpolation="antialiased"
        )
    axes.set(xlim=(0, width), ylim=(_PANEL_HEIGHT, 0), aspect="auto")
    # Half a pixel: centres of pixels are at integers, the edge of the picture is at 0.
    ends = [
        (xy + 0.5) * scale + (left, 0)
        for xy, scale, left in zip((matches.xy1, matches.xy2), scales, lefts, strict=True)
    ]
    colours = _colours(matches.xy1, image1.shape)
    for points in ends:
        axes.scatter(*points.T, s=5, c=colours, linewidths=0)
    some = spread(len(matches), lines)
    segments = np.stack([points[some] for points in ends], 1)
    axes.add_collection(LineCollection(segments, colors=colours[some], linewidths=0.9, alpha=0.8))
    if title:
        centre = 1 - head / 2 / (_PANEL_HEIGHT + head)
        figure.text(0.01, centre, title, fontsize=9, va="center", parse_math=False)
    save_png(figure, path)
    return path


def _colours(xy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Hue by column, brightness by row: (K, 3) RGB."""
    height, width = shape[:2]
    across, down = (xy / (width, height)).clip(0, 1).T
    return hsv_to_rgb(np.stack([_REDDEST * across, np.ones_like(across), 1 - 0.5 * down], 1))


def _moved(affine: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Pixels (K, 2) under an affine map (3, 3)."""
    return pixels @ affine[:2, :2].T + affine[:2, 2]
