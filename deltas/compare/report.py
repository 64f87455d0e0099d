"""Files of the comparison: numbers in JSON, tables in Markdown, pictures of three frames."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltas.compare.measures import RANKINGS, SHOWN, Measured
from deltas.data.sequences import Sequences, within
from dust3r.evaluation.depth_cli import MEASURES
from dust3r.evaluation.report import number, table, write_json, write_text
from dust3r.utils.image import rgb
from dust3r.utils.plots import Block, Colours, Map, save_png, sheet
from dust3r.utils.spread import spread

if TYPE_CHECKING:
    from deltas.compare.cli import Settings

_PANEL_INCHES = 2.2


def write(
    folder: Path, settings: "Settings", dataset: Sequences, results: Mapping[str, Measured]
) -> list[object]:
    """Write the three files; the tables and the paths."""
    names = ("compare.json", "compare.md", "compare.png")
    paths = [folder / name for name in names]
    found = {name: _numbers(one) for name, one in results.items()}
    write_json(paths[0], {"settings": asdict(settings), "results": found})
    text = markdown(settings, results)
    write_text(paths[1], text)
    places = settings.indices(len(dataset))
    samples = [dataset[places[place]] for place in spread(len(places), SHOWN)]
    title = f"{Path(settings.data).name}: frames {settings.seq_gap} apart"
    blocks = [
        _block(sample, {name: one.shown[n] for name, one in results.items()}, settings)
        for n, sample in enumerate(samples)
    ]
    save_png(sheet(blocks, title), paths[2])
    return [text, *paths]


def markdown(settings: "Settings", results: Mapping[str, Measured]) -> str:
    """The tables of errors, of uncertainty and of costs."""
    frames = next(iter(results.values())).frames
    errors = table(
        ["method", *MEASURES, "abs_rel, median scale"],
        [
            [name, *(number(one.errors[key]) for key in (*MEASURES, "abs_rel_median"))]
            for name, one in results.items()
        ],
    )
    uncertainty = table(
        ["method", "AURC (m)", "AUSE (m)", "Spearman", "NLL (nats)"],
        [
            [name, *(number(one.uncertainty[key]) for key in (*RANKINGS, "nll"))]
            for name, one in results.items()
        ],
    )
    costs = table(
        ["method", "seconds", "CPU seconds", "memory (MB)", "frames without", "pixels without"],
        [
            [
                name,
                number(one.seconds),
                number(one.cpu_seconds),
                f"{one.memory / 1e6:.0f}",
                f"{one.frames_without / one.frames:.1%}",
                f"{one.pixels_without:.1%}",
            ]
            for name, one in results.items()
        ],
    )
    return (
        f"# Depth of {frames} frames of {Path(settings.data).name}\n\n"
        f"Sequences of {settings.seq_length} frames {settings.seq_gap} apart, {settings.width} x "
        f"{settings.height}; true depths from {settings.mindepth:g} to {settings.maxdepth:g} m; "
        f"means over images, metres, no alignment but in the last column.\n\n{errors}\n\n"
        "Uncertainty: rankings of the absolute error within each image, mean over images.\n\n"
        f"{uncertainty}\n\nMedian time of a frame on the CPU, memory beyond that of reading the "
        "frames, and where a method has no depth of its own: there the prior depth of "
        f"{settings.prior_depth:.3g} m stands in.\n\n{costs}\n"
    )


def _numbers(one: Measured) -> dict[str, object]:
    return {key: value for key, value in vars(one).items() if key != "shown"}


def _block(sample: Mapping, depths: Mapping[str, np.ndarray], settings: "Settings") -> Block:
    """A frame: its image, truth and depths, and below its neighbours and the relative errors."""
    truth = sample["depthmap"][0]
    used = within(truth, sample["valid_mask"][0], (settings.mindepth, settings.maxdepth))
    wanted = np.where(used, truth, np.nan)
    errors = {name: np.abs(depth - wanted) / wanted for name, depth in depths.items()}
    colours, of_errors = Colours.linear([wanted]), Colours.from_zero([np.array([0.0, 0.5])])
    images = rgb(sample["img"])
    rows: Sequence[Sequence[Map]] = (
        [
            Map("image", images[0]),
            Map("truth (m)", wanted, colours),
            *(Map(f"{name} (m)", depth, colours) for name, depth in depths.items()),
        ],
        [
            Map("first neighbour", images[1]),
            Map("last neighbour", images[-1]),
            *(
                Map(f"{name}: |error| / truth, mean {number(float(np.nanmean(error)))}", error,
                    of_errors)
                for name, error in errors.items()
            ),
        ],
    )  # fmt: skip
    height, width = truth.shape
    panel = (_PANEL_INCHES, _PANEL_INCHES * height / width)
    return Block(rows, panel, sample["label"][0])
