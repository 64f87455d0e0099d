"""Sheets of panels: maps with colour bars, and charts of uncertainty against error.

Figures are matplotlib objects on an Agg canvas, made without pyplot and its global state, so that
threads may draw at the same time and nothing stays open. Ticks are placed here and written plainly,
because matplotlib's own on logarithmic axes go through its mathematics parser, which is slow and
not made for threads.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dust3r.uncertainty.metrics import sparsification_curve
from dust3r.utils.files import atomic_path

GREY = "0.65"
DPI = 110
MEDIAN_OF_ABSOLUTE_NORMAL = 0.6745

_TITLE, _BAR_GAP, _BAR, _BAR_LABELS, _BELOW = 0.26, 0.06, 0.1, 0.5, 0.08
_AXIS_LEFT, _AXIS_BELOW = 0.5, 0.42
_MARGIN, _HEADING = 0.1, 0.36
_HEAD_COLOURS = ("tab:blue", "tab:orange", "tab:green")


@dataclass(frozen=True)
class Colours:
    """How the values of a map become colours; one object for all maps that are to compare."""

    norm: Normalize
    ticks: tuple[float, ...]
    name: str

    @classmethod
    def linear(cls, values: Iterable[np.ndarray], name: str = "viridis") -> "Colours":
        """From the 1st to the 99th percentile."""
        low, high = _limits(values, 1, 99)
        if not high > low:
            low, high = low - 0.5, high + 0.5
        return cls(Normalize(low, high), _even_ticks(low, high), name)

    @classmethod
    def from_zero(cls, values: Iterable[np.ndarray], name: str = "inferno") -> "Colours":
        """From 0 to the 99th percentile."""
        high = max(_limits(values, 1, 99)[1], 0.0) or 1.0
        return cls(Normalize(0, high), _even_ticks(0, high), name)

    @classmethod
    def logarithmic(cls, values: Iterable[np.ndarray], name: str = "magma") -> "Colours":
        """Positive values alone, from the 1st to the 99th percentile."""
        low, high = _positive_limits(values, 1, 99, narrowest=1.5)
        return cls(LogNorm(low, high), log_ticks(low, high), name)

    @classmethod
    def signed(cls, values: Iterable[np.ndarray], name: str = "RdBu_r") -> "Colours":
        """Symmetric about 0, to the 98th percentile of the magnitudes."""
        high = _limits([np.abs(v) for v in values], 0, 98)[1] or 1.0
        return cls(Normalize(-high, high), _even_ticks(-high, high), name)


@dataclass(frozen=True)
class Map:
    """A panel of one image: ``values`` (H, W) in ``colours``, grey where NaN, or RGB (H, W, 3)."""

    title: str
    values: np.ndarray
    colours: Colours | None = None


@dataclass(frozen=True)
class Chart:
    """A panel with axes: ``draw`` fills them in."""

    title: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Block:
    """Rows of panels of one size, (width, height) in inches, under a heading."""

    rows: Sequence[Sequence[Map | Chart]]
    panel: tuple[float, float]
    heading: str = ""

    @property
    def size(self) -> tuple[float, float]:
        columns = max(len(row) for row in self.rows)
        width, height = self._cell
        return columns * width, len(self.rows) * height + (_HEADING if self.heading else 0)

    @property
    def _cell(self) -> tuple[float, float]:
        width, height = self.panel
        return width + _BAR_GAP + _BAR + _BAR_LABELS, height + _TITLE + _BELOW

    def place(self, figure: Figure, top: float) -> None:
        """Draw below ``top``, in inches from the figure's lower edge."""
        if self.heading:
            _text(figure, _MARGIN, top - 0.75 * _HEADING, self.heading, 10)
            top -= _HEADING
        width, height = self._cell
        for number, row in enumerate(self.rows):
            for column, panel in enumerate(row):
                left, bottom = _MARGIN + column * width, top - (number + 1) * height + _BELOW
                if isinstance(panel, Map):
                    self._place_map(figure, panel, left, bottom)
                else:
                    self._place_chart(figure, panel, left, bottom)

    def _place_map(self, figure: Figure, panel: Map, left: float, bottom: float) -> None:
        width, height = self.panel
        axes = _axes(figure, left, bottom, width, height)
        axes.set_title(panel.title, fontsize=8.5, pad=4, parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_facecolor(GREY)
        if panel.colours is None:
            axes.imshow(np.nan_to_num(panel.values), interpolation="nearest", aspect="auto")
            return
        colours = panel.colours
        palette = matplotlib.colormaps[colours.name].with_extremes(bad=GREY)
        values = np.ma.masked_invalid(panel.values)
        if isinstance(colours.norm, LogNorm):
            # Zero has no logarithm, but is no missing value either.
            values = np.ma.maximum(values, colours.norm.vmin)
        image = axes.imshow(
            values, norm=colours.norm, cmap=palette, interpolation="nearest", aspect="auto"
        )
        bar_axes = _axes(figure, left + width + _BAR_GAP, bottom, _BAR, height)
        bar = figure.colorbar(image, cax=bar_axes, ticks=FixedLocator(colours.ticks))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(_PLAIN)
        bar.ax.tick_params(labelsize=7, length=2, pad=1.5)

    def _place_chart(self, figure: Figure, panel: Chart, left: float, bottom: float) -> None:
        width, height = self.panel
        axes = _axes(
            figure,
            left + _AXIS_LEFT,
            bottom + _AXIS_BELOW,
            width + _BAR_GAP + _BAR + _BAR_LABELS - _AXIS_LEFT - _MARGIN,
            height - _AXIS_BELOW,
        )
        axes.set_title(panel.title, fontsize=8.5, pad=4, parse_math=False)
        axes.tick_params(labelsize=7, length=2, pad=1.5)
        panel.draw(axes)


def sheet(blocks: Sequence[Block], title: str = "") -> Figure:
    """A figure with the blocks one below the other."""
    head = _HEADING if title else 0.0
    width = max(block.size[0] for block in blocks) + 2 * _MARGIN
    height = sum(block.size[1] for block in blocks) + 2 * _MARGIN + head
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        _text(figure, _MARGIN, height - _MARGIN - 0.65 * head, title, 12)
    top = height - _MARGIN - head
    for block in blocks:
        block.place(figure, top)
        top -= block.size[1]
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def scatter_sigma_error(
    axes: Axes, uncertainty: np.ndarray, error: np.ndarray, is_deviation: bool = True
) -> None:
    """Density of pixels over uncertainty and absolute error, logarithmic in all three.

    Red: the median error of each band of uncertainty. For standard deviations also the line
    error = sigma, and dashed the median error that a Gaussian of that sigma would have: medians
    along it mean that the deviations are calibrated.

    Args:
        axes: to draw on.
        uncertainty: any shape; standard deviation in metres where ``is_deviation``, else 1/conf.
        error: same shape, metres.
    """
    keep = np.isfinite(uncertainty) & np.isfinite(error) & (uncertainty > 0)
    x, y = uncertainty[keep].ravel(), np.abs(error[keep].ravel())
    x_low, x_high = _positive_limits([x], 0.5, 99.5, narrowest=3)
    y_low, y_high = _positive_limits([y], 2, 99.9, narrowest=30)
    axes.set(xscale="log", yscale="log", xlim=(x_low, x_high), ylim=(y_low, y_high))
    for axis, limits in ((axes.xaxis, (x_low, x_high)), (axes.yaxis, (y_low, y_high))):
        axis.set_major_locator(FixedLocator(log_ticks(*limits)))
        axis.set_major_formatter(_PLAIN)
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("standard deviation (m)" if is_deviation else "1 / confidence", fontsize=7.5)
    axes.set_ylabel("absolute error (m)", fontsize=7.5, labelpad=1)
    if not len(x):
        return
    x_edges, y_edges = np.geomspace(x_low, x_high, 61), np.geomspace(y_low, y_high, 61)
    counts = np.histogram2d(x, y, (x_edges, y_edges))[0]
    axes.pcolormesh(
        x_edges, y_edges, np.ma.masked_equal(counts.T, 0), norm=LogNorm(), cmap="Blues", zorder=1
    )
    if is_deviation:
        ends = np.array([x_low, x_high])
        axes.plot(ends, ends, "k-", lw=1, label="error = sigma")
        expected = MEDIAN_OF_ABSOLUTE_NORMAL * ends
        axes.plot(ends, expected, "k--", lw=0.8, label="median if Gaussian")
    axes.plot(*band_medians(x, y), "r.-", lw=1, ms=4, label="median")
    axes.legend(fontsize=6, loc="lower right", framealpha=0.8, borderpad=0.3, handlelength=1.5)


def band_medians(
    uncertainty: np.ndarray, error: np.ndarray, bands: int = 15, at_least: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Centres and median errors of ``bands`` equal parts of the logarithm of the uncertainty.

    Over the central 99% of the pixels; bands of fewer than ``at_least`` pixels are left out. Both
    arguments are (N,), uncertainties above 0.
    """
    low, high = _positive_limits([uncertainty], 0.5, 99.5, narrowest=1.0001)
    edges = np.geomspace(low, high, bands + 1)
    band = np.digitize(uncertainty, edges) - 1
    members = [error[band == number] for number in range(bands)]
    filled = [number for number, inside in enumerate(members) if len(inside) >= at_least]
    centres = np.sqrt(edges[:-1] * edges[1:])[filled]
    return centres, np.array([np.median(members[number]) for number in filled])


def sparsification_plot(
    axes: Axes,
    errors: Mapping[str, np.ndarray],
    uncertainties: Mapping[str, np.ndarray | None],
    doubt: np.ndarray | None,
) -> None:
    """Mean error of what remains when the most uncertain pixels are removed (Ilg et al., 2018).

    By head: removed by its own uncertainty (solid), by 1 / confidence (dashed) and by the error
    itself (dotted, the best there is). The area between a curve and the dotted one is the AUSE.

    Args:
        axes: to draw on.
        errors: head -> (N,), absolute errors in metres.
        uncertainties: head -> (N,), or None.
        doubt: (N,), 1 / confidence, or None.
    """
    styles = {}
    for colour, (name, error) in zip(_HEAD_COLOURS, errors.items(), strict=False):
        removers = (("-", "sigma", uncertainties[name]), ("--", "1/conf", doubt))
        for style, label, uncertainty in (*removers, (":", "oracle", error)):
            if uncertainty is not None:
                curve = sparsification_curve(torch.as_tensor(error), torch.as_tensor(uncertainty))
                axes.plot(*(part.numpy() for part in curve), style, color=colour, lw=1.2)
                styles[label] = Line2D([], [], ls=style, color="k", lw=1)
    names = zip(_HEAD_COLOURS, errors, strict=False)
    heads = {name: Line2D([], [], color=colour) for colour, name in names}
    entries = heads | styles if len(heads) > 1 else styles
    axes.legend(entries.values(), entries.keys(), fontsize=6, borderpad=0.3, handlelength=1.8)
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.set_xlabel("share of pixels removed", fontsize=7.5)
    axes.set_ylabel("mean error of the rest (m)", fontsize=7.5, labelpad=1)


def reliability_plot(
    axes: Axes,
    levels: Sequence[float],
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> None:
    """Observed shares over those that were to be held; on the diagonal they are what they should.

    Args:
        axes: to draw on.
        levels: (L,) shares that regions were to hold.
        curves: name -> observed shares (L,) and their standard errors (L,), drawn as twice that
            to both sides.
    """
    axes.plot((0, 1), (0, 1), "k-", lw=0.8)
    for colour, (name, (shares, deviations)) in zip(_HEAD_COLOURS, curves.items(), strict=False):
        shares, away = np.asarray(shares), 2 * np.nan_to_num(deviations)
        axes.plot(levels, shares, ".-", color=colour, lw=1.2, ms=4, label=name)
        axes.fill_between(levels, shares - away, shares + away, color=colour, alpha=0.2, lw=0)
    axes.legend(fontsize=6, loc="upper left", borderpad=0.3, handlelength=1.8)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel("share to be held", fontsize=7.5)
    axes.set_ylabel("share of true depths within", fontsize=7.5, labelpad=1)


def log_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Round numbers (1, 2, 5 times powers of ten) within positive limits, at most ``most``.

    The limits themselves and their middle where fewer than two such numbers lie between.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(ticks) <= most:
            return tuple(ticks) if len(ticks) > 1 else (low, math.sqrt(low * high), high)
    return tuple(ticks[:: -(-len(ticks) // most)])


_PLAIN = FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "\N{MINUS SIGN}", 1))


def _even_ticks(low: float, high: float) -> tuple[float, ...]:
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= max(factor for factor in (1, 2, 5) if factor * step * 3 <= high - low)
    return tuple(np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step)


def _limits(values: Iterable[np.ndarray], low: float, high: float) -> tuple[float, float]:
    """Percentiles of all finite values together; 0 and 1 where there are none."""
    finite = np.concatenate([array[np.isfinite(array)].ravel() for array in values])
    if not len(finite):
        return 0.0, 1.0
    first, last = np.percentile(finite, (low, high))
    return float(first), float(last)


def _positive_limits(
    values: Iterable[np.ndarray], low: float, high: float, narrowest: float
) -> tuple[float, float]:
    """As ``_limits`` of positive values, widened to a ratio of ``narrowest`` at least."""
    positive = [array[array > 0] for array in values]
    if not any(len(array) for array in positive):
        return 0.1, 1.0
    first, last = _limits(positive, low, high)
    if last / first < narrowest:
        middle = math.sqrt(first * last)
        first, last = middle / math.sqrt(narrowest), middle * math.sqrt(narrowest)
    return first, last


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _text(figure: Figure, left: float, bottom: float, text: str, size: float) -> None:
    across, up = figure.get_size_inches()
    # Names of files may hold a dollar sign, which would start a formula.
    figure.text(left / across, bottom / up, text, fontsize=size, parse_math=False)
