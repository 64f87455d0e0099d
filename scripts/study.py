"""What scripts/study.sh ends with: the price of each family, and one set of tables over all seeds.

python scripts/study.py cost --methods conf,niw --ckpt conf=FILE niw=FILE --output OUT/cost.json
python scripts/study.py tables --cost OUT/cost.json --output_dir OUT OUT/seed_0 OUT/seed_1
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.evaluation.figures import curves_figure
from dust3r.evaluation.methods import POINT, parse_methods
from dust3r.evaluation.networks import Sampling, sources_of
from dust3r.evaluation.page import png_bytes
from dust3r.evaluation.report import number, table, write_json, write_text
from dust3r.evaluation.seed_figures import ratios_figure
from dust3r.evaluation.seeds import Row, over_seeds, overview, plain_rows, read_results, tables
from dust3r.utils.device import best_device
from dust3r.utils.files import atomic_path

REFERENCE = "conf"
SIDE = 224
# Heads with distributions of points bring descriptors along, which uncertainty does not need.
NOT_COUNTED = ("head_local_features", "mask_token")

DRAWN = ("ause_ratio", "aurc_ratio", "ause_image_ratio")
OVERVIEWS = {
    "ause_ratio": "AUSE of points, divided by that of confidence (below 1 is better)",
    "aurc_ratio": "AURC of points, divided by that of confidence (below 1 is better)",
    "ause_image_ratio": "AUSE within images, their mean, divided by that of confidence",
    "aurc_image_ratio": "AURC within images, their mean, divided by that of confidence",
    "rho": "Spearman's rho of uncertainty and error (1 is best)",
    "rho_image": "Spearman's rho within images, their mean",
    "mae": "Mean error of points (m)",
    "nll": "Negative log-likelihood (nats)",
    "calibration_error": "Calibration error (0 is best)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("cost", help="parameters and milliseconds of each family")
    one.add_argument("--methods", required=True, help="as of evaluate.py uq")
    one.add_argument("--ckpt", nargs="+", required=True, help="as of evaluate.py uq")
    one.add_argument("--samples", type=int, default=8, help="of mcd (%(default)s)")
    one.add_argument("--repeats", type=int, default=7, help="timed passes (%(default)s)")
    one.add_argument("--output", type=Path, required=True, help=".json to write")
    one.set_defaults(run=cost)
    one = commands.add_parser("tables", help="study.md, study.json and pictures of all seeds")
    one.add_argument("folders", nargs="+", type=Path, help="--output_dir of evaluate.py, per seed")
    one.add_argument("--cost", type=Path, help="what 'cost' wrote")
    one.add_argument("--output_dir", type=Path, required=True)
    one.set_defaults(run=write_tables)
    args = parser.parse_args()
    args.run(args)


def cost(args: argparse.Namespace) -> None:
    """Parameters of each network, and the time of one pair, into a JSON file."""
    methods = parse_methods(args.methods)
    sources = sources_of(methods, args.ckpt, Sampling(args.samples, same_scale=True))
    device = best_device()
    priced: dict[str, dict[str, float]] = {}
    for source in dict.fromkeys(sources.values()):
        network = source.build(device)
        priced[source.name] = {
            "parameters": counted(network),
            **milliseconds(network, device, args.repeats),
        }
    rows = {method.label: priced[sources[method.label].name] for method in methods}
    write_json(args.output, {"device": device.type, "threads": torch.get_num_threads(), **rows})


def counted(network: nn.Module) -> int:
    """Parameters that points and uncertainty need, of all members together."""
    return sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if not set(NOT_COUNTED) & set(name.split("."))
    )


@torch.no_grad()
def milliseconds(network: nn.Module, device: torch.device, repeats: int) -> dict[str, float]:
    """Median time of a pair of ``SIDE`` pixels, and of the processor's part of it in all threads.

    On a machine that others use as well, only the processor's own time can be compared.
    """
    image = torch.rand(1, 3, SIDE, SIDE, device=device) * 2 - 1
    view = {"img": image, "true_shape": torch.tensor([[SIDE, SIDE]])}
    wall, processor = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter(), time.process_time()
        network(view, {**view, "img": image.flip(-1)})
        if device.type == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    middle = (repeats + 1) // 2
    # The first pass finds its memory and is not counted.
    return {
        "milliseconds": 1000 * sorted(wall[1:])[middle - 1],
        "processor_milliseconds": 1000 * sorted(processor[1:])[middle - 1],
    }


def write_tables(args: argparse.Namespace) -> None:
    """``study.md``, ``study.json``, bar charts, and the first seed's curves of every benchmark."""
    runs = read_results(args.folders)
    rows = over_seeds(runs, REFERENCE)
    price = json.loads(args.cost.read_text()) if args.cost else {}
    text = [f"# Uncertainty, over {len(runs)} seed(s)", *overviews(rows)]
    if price:
        text.append(f"**Cost of one pair of {SIDE} x {SIDE} pixels**\n\n{cost_table(price)}")
    write_text(args.output_dir / "study.md", "\n\n".join([*text, tables(rows)]))
    write_json(args.output_dir / "study.json", {"rows": plain_rows(rows), "cost": price})
    for key in DRAWN:
        figure = ratios_figure(rows, key, OVERVIEWS[key])
        save(args.output_dir / f"{key}.png", png_bytes(figure))
    for benchmark in dict.fromkeys(found["benchmark"] for found in runs[0]):
        found = [one for one in runs[0] if one["benchmark"] == benchmark]
        figure = curves_figure(found, benchmark)
        save(args.output_dir / f"{benchmark}_curves.png", png_bytes(figure))
    print("\n\n".join(text))
    print(f"\nin {args.output_dir}: study.md, study.json, pictures")


def overviews(rows: Sequence[Row]) -> list[str]:
    """One table for each of ``OVERVIEWS`` that some method has."""
    return [
        f"**{title}**\n\n{overview(rows, key)}"
        for key, title in OVERVIEWS.items()
        if any(row[key] is not None and row.target == POINT for row in rows)
    ]


def cost_table(price: Mapping[str, Any]) -> str:
    """Parameters in millions and milliseconds, absolute and beside the reference's."""
    lines, base = [], price.get(REFERENCE)
    for label, one in price.items():
        if not isinstance(one, Mapping):
            continue
        cells = [one["parameters"] / 1e6, one["milliseconds"], one["processor_milliseconds"]]
        if base:
            cells.append(one["processor_milliseconds"] / base["processor_milliseconds"])
        lines.append([label, *map(number, cells)])
    header = ["method", "parameters (M)", "ms", "ms of processor"]
    header += [f"x {REFERENCE}"] if base else []
    return f"{table(header, lines)}\n\nOn {price['device']}, {price['threads']} thread(s)."


def save(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


if __name__ == "__main__":
    main()
