"""Curves of training runs, one after the other, from their ``log.txt``.

python scripts/plot_log.py RUN/log.txt [RUN2/log.txt ...] --output curve.png
"""

import argparse
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from dust3r.utils.plots import save_png

TERMS = {"Regr3D_pts3d_1": "view 1", "Regr3D_pts3d_2": "view 2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="+", type=Path, help="log.txt of runs that follow another")
    parser.add_argument("--output", type=Path, required=True, help=".png to write")
    args = parser.parse_args()
    runs = [read(path) for path in args.logs]
    save_png(draw(runs, [path.parent.name for path in args.logs]), args.output)


def read(path: Path) -> list[dict]:
    """The epochs of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(runs: list[list[dict]], names: list[str]) -> Figure:
    """Pointmap errors and learning rate over the updates of all runs, laid end to end."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    errors, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    start = 0
    for run, name in zip(runs, names, strict=True):
        steps = [start + line["step"] for line in run]
        for colour, (term, view) in zip(("tab:blue", "tab:orange"), TERMS.items(), strict=True):
            for split, style in (("train", "-"), ("test", "o")):
                measured = [
                    (step, line[f"{split}_{term}"])
                    for step, line in zip(steps, run, strict=True)
                    if f"{split}_{term}" in line
                ]
                if measured:
                    label = f"{view}, {split}" if start == 0 else None
                    errors.plot(*zip(*measured, strict=True), style, color=colour, label=label)
        rate.plot(steps, [line["lr"] for line in run], color="tab:gray")
        for axes in (errors, rate):
            axes.axvline(start, color="0.8", linewidth=1)
        at = errors.get_xaxis_transform()
        errors.text(start, 1.01, f" {name}", transform=at, fontsize="small")
        start = steps[-1]
    errors.set_ylabel("pointmap error, scene = 1")
    errors.set_yscale("log")
    errors.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    errors.yaxis.set_major_formatter(FormatStrFormatter("%.2g"))
    errors.yaxis.set_minor_formatter(NullFormatter())
    errors.grid(True, alpha=0.3)
    errors.legend()
    rate.set_ylabel("learning rate")
    rate.set_xlabel("updates")
    rate.set_ylim(bottom=0)
    rate.grid(True, alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
