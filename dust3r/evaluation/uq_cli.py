"""``evaluate.py uq``: arguments in, tables, curves and a page out."""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dust3r.evaluation import report
from dust3r.evaluation.benchmarks import EXAMPLE
from dust3r.evaluation.figures import curves_figure, image_figure
from dust3r.evaluation.measure import OWN
from dust3r.evaluation.methods import POINT, Method, parse_methods
from dust3r.evaluation.options import add_families, add_shared, evaluation_of
from dust3r.evaluation.page import Panel, page, png_bytes
from dust3r.evaluation.records import RecordStore
from dust3r.evaluation.uq import RECORDS, Evaluation
from dust3r.evaluation.workers import mapped
from dust3r.training.distributed import World
from dust3r.uncertainty.alignment import POINT_ALIGNMENTS
from dust3r.utils.files import atomic_path

log = logging.getLogger(__name__)

HELP = "rank, likelihood and calibration of uncertainty"
_DESCRIPTION = f"""\
How well each method's uncertainty ranks the errors of its model (AURC, AUSE, Spearman's rho), how
large these are (MAE, RMSE), and how true its stated distributions are (NLL, calibration). Writes
results.csv, images.csv, results.json, results.md, pairs.json, <benchmark>_curves.png and
results.html to --output_dir, and measures of every pair to {RECORDS}/ there, with which the same
command goes on where it was stopped. Under torchrun every process measures its share of the pairs.
"""


def add_arguments(parser: argparse.ArgumentParser, **_: Any) -> None:
    parser.description = _DESCRIPTION
    add_shared(parser, EXAMPLE)
    add_families(parser)
    add = parser.add_argument
    add("--output_dir", required=True, type=Path, help="folder that the files go to")
    add("--alignment", choices=POINT_ALIGNMENTS, default="umeyama", help="of points, per image")
    add(
        "--scale_free",
        metavar="METHODS",
        default="",
        help="methods, by commas, or all, whose points have no scale (DUSt3R, norm_mode without "
        "'?'), and what they state of points neither: deviations and densities go to metres by "
        "the ratio of mean distances, for each pair",
    )
    add(
        "--streaming",
        action="store_true",
        help="less time and disk: sketches in place of all pixels",
    )
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="use the records of the same evaluation in --output_dir (%(default)s)",
    )
    add(
        "--num_panels",
        type=int,
        default=3,
        help="images of each method on the page: best, median, worst, and others between; 0 for "
        "none (%(default)s)",
    )


def run(args: argparse.Namespace, world: World, **_: Any) -> str:
    """Evaluate and write; what to tell on the command line.

    Raises:
        ValueError, FileNotFoundError, dust3r.training.checkpoint.CheckpointError: an argument or a
            file is wrong, and the message says how to mend it.
    """
    evaluation = evaluation_of(
        args,
        world,
        alignment=args.alignment,
        streaming=args.streaming,
        scale_free=_scale_free(args.scale_free, parse_methods(args.methods)),
    )
    store = RecordStore(args.output_dir / RECORDS)
    # Every rank has to see a refusal; of the main one's files, only once they are written.
    if world.is_main:
        store.claim(evaluation.settings(), args.resume)
        evaluation.write_pairs(args.output_dir)
    world.barrier()
    if not world.is_main:
        store.claim(evaluation.settings(), resume=True)
    evaluation.measure(store, world)
    world.barrier()
    found, images = evaluation.summarise(store, world)
    if not world.is_main:
        return ""
    text = report.markdown(found, args.streaming)
    told = {
        "benchmarks": "; ".join(f"{one.name}: {one.spec}" for one in evaluation.pairs),
        "methods": ", ".join(
            f"{method.label} ({evaluation.sources[method.label]})" for method in evaluation.methods
        ),
        "points aligned by": args.alignment,
        "points without a scale": ", ".join(sorted(evaluation.scale_free)) or "none",
        "rankings": "streaming" if args.streaming else "exact, of all pixels",
    }
    results = {"settings": evaluation.settings(), "told": told, "results": found}
    report.write_json(args.output_dir / "results.json", results)
    report.write_csv(args.output_dir / "results.csv", [report.flat_row(one) for one in found])
    report.write_csv(args.output_dir / "images.csv", images)
    report.write_text(args.output_dir / "results.md", f"# Uncertainty\n\n{text}")
    curves = {}
    for one in evaluation.pairs:
        rows = [row for row in found if row["benchmark"] == one.name]
        curves[one.name] = png_bytes(curves_figure(rows, one.name))
        with atomic_path(args.output_dir / f"{one.name}_curves.png") as temporary:
            temporary.write_bytes(curves[one.name])
    panels = _panels(evaluation, images, args.num_panels)
    content = page("Uncertainty of reconstructions", told, found, curves, panels)
    report.write_text(args.output_dir / "results.html", content)
    return f"{text}\nin {args.output_dir}\n"


def _scale_free(text: str, methods: Sequence[Method]) -> frozenset[str]:
    """Labels of the methods on points that ``--scale_free`` names."""
    on_points = {method.label for method in methods if method.on_points}
    if text == "all":
        return frozenset(on_points)
    named = {part.strip() for part in text.split(",")} - {""}
    if named - on_points:
        raise ValueError(
            f"--scale_free {', '.join(sorted(named - on_points))}: of --methods, "
            f"{', '.join(sorted(on_points)) or 'none'} state something of points"
        )
    return frozenset(named)


def _panels(
    evaluation: Evaluation, images: Sequence[Mapping[str, Any]], wanted: int
) -> list[Panel]:
    """Best, median and worst images of every method by AUSE of points within the image."""
    key = f"{POINT}_ause_{OWN}"
    panels = []
    for one in evaluation.pairs:
        chosen: dict[int, list[tuple[Any, Mapping[str, Any], str]]] = {}
        order = []
        for method in evaluation.methods:
            rows = [
                row for row in images
                if row["benchmark"] == one.name and row["method"] == method.label
                and math.isfinite(row.get(key, math.nan))
            ]  # fmt: skip
            rows.sort(key=lambda row: (row[key], row["pair"], row["view"]))
            for place, name in _places(len(rows), wanted):
                row = rows[place]
                chosen.setdefault(row["pair"], []).append((method, row, name))
                order.append((method.label, name))
        captions, images_of = {}, []
        for pair in evaluation.provider.pairs(one.benchmark, sorted(chosen)) if chosen else ():
            for method, row, name in chosen[pair.index]:
                n = row["view"] - 1
                predicted = pair.predictions[evaluation.sources[method.label]][n]
                images_of.append((pair.views[n], predicted, method))
                captions[method.label, name] = (
                    f"{method.label}, {name}: AUSE {row[key]:.3g} m, MAE "
                    f"{row[f'{POINT}_mae']:.3g} m; {row['label']} (pair {row['pair']}, view "
                    f"{row['view']})"
                )
        draw = partial(_draw, alignment=evaluation.alignment)
        drawn = dict(zip(captions, mapped(draw, images_of, evaluation.num_workers), strict=True))
        panels += [Panel(one.name, captions[key], drawn[key]) for key in order]
    return panels


def _draw(image: tuple[Any, Any, Method], alignment: str) -> bytes:
    return png_bytes(image_figure(*image, alignment))


def _places(total: int, wanted: int) -> list[tuple[int, str]]:
    """Places in a sorted list from first to last, evenly, with their names."""
    places = sorted({round(n * (total - 1) / max(1, wanted - 1)) for n in range(max(0, wanted))})
    names = {0: "best", total - 1: "worst", (total - 1) // 2: "median", total // 2: "median"}
    return [(p, names.get(p, f"rank {p + 1} of {total}")) for p in places if 0 <= p < total]
