"""Pictures of predicted depth and its uncertainty beside the truth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dust3r.uncertainty.calibration import Calibration, Coverage
from dust3r.uncertainty.estimates import (
    POINTMAP,
    POINTS,
    DepthEstimate,
    inverse_confidence,
    pointmap_depth,
    stated_depths,
)
from dust3r.utils.plots import (
    Block,
    Chart,
    Colours,
    Map,
    reliability_plot,
    scatter_sigma_error,
    sheet,
    sparsification_plot,
)

PANEL_INCHES = 2.2
CHART_INCHES = (4.2, 3.4)
WIDEST = 1.5


@dataclass(frozen=True)
class HeadMaps:
    """One head's depth of one image: (H, W) arrays as seen upright, NaN where not finite.

    ``error`` is absolute, NaN where there is no truth. ``uncertainty`` is a standard deviation in
    metres where ``is_deviation``, else 1 / confidence; None where the model has neither.
    ``calibrated`` says that it is not as the model stated it.
    """

    name: str
    mean: np.ndarray
    error: np.ndarray
    uncertainty: np.ndarray | None
    is_deviation: bool
    calibrated: bool = False


@dataclass(frozen=True)
class Sample:
    """One image, upright: ``image`` (H, W, 3) in [0, 1], true ``depth`` (H, W), NaN where none.

    ``doubt`` (H, W) is 1 / confidence, or None. There is one head or more.
    """

    image: np.ndarray
    depth: np.ndarray
    doubt: np.ndarray | None
    heads: tuple[HeadMaps, ...]


def take_sample(
    view: Mapping[str, Any],
    prediction: Mapping[str, Tensor],
    index: int = 0,
    other_pose: Tensor | None = None,
) -> Sample:
    """What there is to see of sample ``index`` of a batched view and its prediction (DESIGN 2).

    The uncertainty heads where there are any, else the pointmap, scaled to the ground truth.

    Args:
        view: with ground truth, on any device, in any floating-point type.
        prediction: of the same view.
        other_pose: camera 1's poses (B, 4, 4); needed for view 2 of models without such heads.

    Raises:
        ValueError: ``other_pose`` is needed, or the prediction holds no depth.
    """
    view, prediction = _only(view, index), _only(prediction, index)
    if other_pose is not None:
        other_pose = other_pose[index : index + 1].cpu()
    estimates = stated_depths(view, prediction, other_pose)
    estimates = estimates or [pointmap_depth(view, prediction, other_pose)]
    height, width = (int(side) for side in view["true_shape"][0])
    transposed = (height, width) != tuple(view["depthmap"].shape[1:])

    def upright(batch: Tensor) -> np.ndarray:
        array = batch[0].float().numpy()
        return array.swapaxes(0, 1) if transposed else array

    def finite(batch: Tensor) -> np.ndarray:
        array = upright(batch)
        return np.where(np.isfinite(array), array, np.nan)

    def maps(estimate: DepthEstimate) -> HeadMaps:
        mean, uncertainty = finite(estimate.mean), estimate.uncertainty
        return HeadMaps(
            estimate.name,
            mean,
            np.where(np.isfinite(depth), finite(estimate.errors(view["depthmap"].float())), np.nan),
            None if uncertainty is None else finite(uncertainty),
            estimate.is_deviation,
        )

    doubt = inverse_confidence(prediction)
    depth = np.where(upright(view["valid_mask"]) > 0, finite(view["depthmap"]), np.nan)
    return Sample(
        image=(upright(view["img"].permute(0, 2, 3, 1)) / 2 + 0.5).clip(0, 1),
        depth=depth,
        doubt=None if doubt is None else finite(doubt),
        heads=tuple(maps(estimate) for estimate in estimates),
    )


def calibrated_sample(sample: Sample, name: str, calibration: Calibration) -> Sample:
    """The sample with the deviations of the head called ``name`` after variance scaling."""
    heads = tuple(
        replace(head, uncertainty=calibration.sigma(head.uncertainty), calibrated=True)
        if head.name == name and head.uncertainty is not None
        else head
        for head in sample.heads
    )
    return replace(sample, heads=heads)


def reliability_figure(curves: Mapping[str, Coverage], title: str = "") -> Figure:
    """Observed shares over those that were to be held, of curves of the same levels."""
    levels = next(iter(curves.values())).levels
    drawn = {name: (one.shares, one.standard_errors) for name, one in curves.items()}
    draw = partial(reliability_plot, levels=levels, curves=drawn)
    return sheet([Block([[Chart("reliability", draw)]], CHART_INCHES)], title)


def depth_figure(
    view: Mapping[str, Any],
    prediction: Mapping[str, Tensor],
    index: int = 0,
    title: str = "",
    other_pose: Tensor | None = None,
) -> Figure:
    """Image, true depth, and each head's mean, standard deviation and absolute error.

    Arguments and errors are those of ``take_sample``. Colours mean the same in all heads' panels,
    and bars tell them in metres; what has no truth, or is not finite, is grey.
    """
    sample = take_sample(view, prediction, index, other_pose)
    drawn = _Drawn(sample, _Ranges.over([sample]))
    heads = [drawn.head(head) for head in sample.heads]
    if len(heads) == 1:
        rows = [[drawn.image(), drawn.truth(), *heads[0]]]
    else:
        rows = [[drawn.image(), *heads[0]], [drawn.truth(), *heads[1]]]
    return sheet([Block(rows, _panel_size(sample))], title)


def pair_figure(samples: Sequence[Sample], headings: Sequence[str], title: str = "") -> Figure:
    """All there is to see of some views, a block of panels each, with one range of colours for all.

    As ``depth_figure``, with each head's scatter of errors over uncertainties. Where there are two
    heads, a third row shows 1 / confidence; the second head's mean less the first's, the ratio of
    their standard deviations, the difference of their errors; and their sparsification curves.
    """
    ranges = _Ranges.over(samples)
    blocks = []
    for sample, heading in zip(samples, headings, strict=True):
        drawn = _Drawn(sample, ranges)
        heads = [[*drawn.head(head), *drawn.scatter(head)] for head in sample.heads]
        if len(heads) == 1:
            rows = [[drawn.image(), drawn.truth(), *heads[0]]]
        else:
            rows = [
                [drawn.image(), *heads[0]],
                [drawn.truth(), *heads[1]],
                [drawn.doubt(), *drawn.differences(), drawn.sparsification()],
            ]
        blocks.append(Block(rows, _panel_size(sample), heading))
    return sheet(blocks, title)


def summary_figure(
    errors: Mapping[str, np.ndarray],
    deviations: Mapping[str, np.ndarray],
    doubt: np.ndarray | None,
    title: str = "",
) -> Figure:
    """Sparsification curves and errors over uncertainties of many pixels, a column for each head.

    Args:
        errors: head -> absolute errors (N,) in metres.
        deviations: head -> standard deviations (N,) in metres, of those that have them.
        doubt: 1 / confidence (N,), or None.
    """
    curves, scatters = [], []
    for name, error in errors.items():
        own = deviations.get(name)
        draw = partial(
            sparsification_plot, errors={name: error}, uncertainties={name: own}, doubt=doubt
        )
        curves.append(Chart(f"{name}: sparsification", draw))
        if own is not None:
            scatters.append(_scatter(name, own, error, is_deviation=True))
        elif doubt is not None:
            scatters.append(_scatter(name, doubt, error, is_deviation=False))
    return sheet([Block([curves, scatters], CHART_INCHES)], title)


@dataclass(frozen=True)
class _Ranges:
    """Colours that all panels of a figure share."""

    depth: Colours
    uncertainty: Colours
    error: Colours
    doubt: Colours

    @classmethod
    def over(cls, samples: Sequence[Sample]) -> "_Ranges":
        heads = [head for sample in samples for head in sample.heads]
        depths = [sample.depth for sample in samples]
        means = [head.mean for head in heads]
        if any(np.isfinite(depth).any() for depth in depths):
            # A wild prediction would leave the truth with one colour.
            most = WIDEST * max(np.nanmax(depth, initial=0) for depth in depths)
            means = [np.where((mean > 0) & (mean < most), mean, np.nan) for mean in means]
        return cls(
            depth=Colours.linear([*depths, *means]),
            uncertainty=Colours.logarithmic(
                [head.uncertainty for head in heads if head.uncertainty is not None]
            ),
            error=Colours.from_zero([head.error for head in heads]),
            doubt=Colours.logarithmic([s.doubt for s in samples if s.doubt is not None]),
        )


@dataclass(frozen=True)
class _Drawn:
    """The panels of one sample."""

    sample: Sample
    ranges: _Ranges

    def image(self) -> Map:
        return Map("image", self.sample.image)

    def truth(self) -> Map:
        return Map("true depth (m)", self.sample.depth, self.ranges.depth)

    def doubt(self) -> Map:
        return _map_or_blank("1 / confidence", self.sample, self.sample.doubt, self.ranges.doubt)

    def head(self, head: HeadMaps) -> list[Map]:
        deviation = "calibrated deviation" if head.calibrated else "standard deviation"
        error = "error after a similarity" if head.name == POINTS else "absolute error"
        title = f"{head.name} {deviation} (m)" if head.is_deviation else "1 / confidence"
        is_scaled = head.name in (POINTS, POINTMAP)
        mean = "pointmap depth, scaled (m)" if is_scaled else f"{head.name} mean (m)"
        return [
            Map(mean, head.mean, self.ranges.depth),
            _map_or_blank(title, self.sample, head.uncertainty, self.ranges.uncertainty),
            Map(f"{head.name} {error} (m)", head.error, self.ranges.error),
        ]

    def scatter(self, head: HeadMaps) -> list[Chart]:
        if head.uncertainty is None:
            return []
        return [_scatter(head.name, head.uncertainty, head.error, head.is_deviation)]

    def differences(self) -> list[Map]:
        first, second = self.sample.heads
        mean = second.mean - first.mean
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log2(second.uncertainty / first.uncertainty)
        error = second.error - first.error
        less = f"{second.name} \N{MINUS SIGN} {first.name}"
        return [
            Map(f"{less}: mean (m)", mean, Colours.signed([mean])),
            Map(f"log2 of sigma {second.name} / {first.name}", ratio, Colours.signed([ratio])),
            Map(f"{less}: error (m)", error, Colours.signed([error])),
        ]

    def sparsification(self) -> Chart:
        known = np.isfinite(self.sample.depth)
        doubt = self.sample.doubt
        draw = partial(
            sparsification_plot,
            errors={head.name: head.error[known] for head in self.sample.heads},
            uncertainties={head.name: head.uncertainty[known] for head in self.sample.heads},
            doubt=None if doubt is None else doubt[known],
        )
        return Chart("sparsification", draw)


def _scatter(name: str, uncertainty: np.ndarray, error: np.ndarray, is_deviation: bool) -> Chart:
    against = "sigma" if is_deviation else "1/confidence"
    draw = partial(
        scatter_sigma_error, uncertainty=uncertainty, error=error, is_deviation=is_deviation
    )
    return Chart(f"{name}: error against {against}", draw)


def _map_or_blank(title: str, sample: Sample, values: np.ndarray | None, colours: Colours) -> Map:
    """A grey panel where the model does not tell."""
    if values is None:
        return Map(f"no {title}", np.full((*sample.depth.shape, 3), 0.65))
    return Map(title, values, colours)


def _panel_size(sample: Sample) -> tuple[float, float]:
    """Inches, of one area whatever the shape of the image."""
    height, width = sample.depth.shape
    shape = math.sqrt(width / height)
    return PANEL_INCHES * shape, PANEL_INCHES / shape


def _only(batch: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A batch of sample ``index`` alone, on the host; what is no tensor is left out."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    return {key: tensor[index : index + 1].detach().cpu() for key, tensor in tensors.items()}
