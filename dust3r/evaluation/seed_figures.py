"""Bars of methods on benchmarks, with their spread over seeds."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dust3r.evaluation.methods import POINT
from dust3r.evaluation.seeds import Row

_BAR_INCHES, _HIGH_INCHES = 0.11, 3.6


def ratios_figure(rows: Sequence[Row], name: str, title: str) -> Figure:
    """A group of bars for each benchmark, one for each method, of a number relative to another.

    Args:
        rows: of ``over_seeds``; those against points are drawn.
        name: of the number, such as ``ause_ratio``. Methods without it are left out. Lines on bars
            are its standard deviation over seeds, and the dashed line is 1.
    """
    found = {(r.benchmark, r.method): r[name] for r in rows if r.target == POINT and r[name]}
    benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in found))
    methods = list(dict.fromkeys(method for _, method in found))
    wide = max(4.0, 1.2 + _BAR_INCHES * len(benchmarks) * (len(methods) + 2))
    figure = Figure(figsize=(wide, _HIGH_INCHES), layout="constrained")
    axes = figure.add_subplot()
    palette = matplotlib.colormaps["tab20"].colors
    step = 1 / (len(methods) + 2)
    for n, method in enumerate(methods):
        have = [
            (b, found[one, method]) for b, one in enumerate(benchmarks) if (one, method) in found
        ]
        places = [b + (n - (len(methods) - 1) / 2) * step for b, _ in have]
        errors = [np.nan_to_num(spread.deviation) for _, spread in have]
        axes.bar(
            places,
            [spread.mean for _, spread in have],
            0.9 * step,
            yerr=errors,
            error_kw={"lw": 0.8},
            color=palette[n % len(palette)],
            label=method,
        )
    axes.axhline(1, color="k", ls="--", lw=0.8)
    axes.set_xticks(range(len(benchmarks)), benchmarks, fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.grid(axis="y", alpha=0.25, lw=0.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(len(methods), 6), fontsize=7.5)
    return figure
