"""One table over the stages of a run: what trained, errors on held-out pairs, seconds.

python scripts/stage_table.py --dataset SPEC --output_dir DIR NAME=CHECKPOINT=SECONDS ...
"""

import argparse
import json
from pathlib import Path

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.datasets import get_data_loader
from dust3r.training import checkpoint
from dust3r.training.stages import STAGES, stage_name
from dust3r.uncertainty.estimates import FEAT, GEO
from dust3r.uncertainty.evaluation import evaluate_depth
from dust3r.utils.device import best_device
from dust3r.utils.files import atomic_path
from dust3r.viz import load

# The head that speaks for a stage.
HEADS = {"feat, phase 1": FEAT, "feat, phase 2": FEAT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="specification of the held-out pairs")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("runs", nargs="+", help="NAME=CHECKPOINT=SECONDS")
    args = parser.parse_args()
    rows = [row(*run.rsplit("=", 2), args.dataset) for run in args.runs]
    titles = ["stage", "trained", "RMSE (m)", "NLL (nats)", "AUSE (m)", "seconds"]
    lines = [titles, ["-" * len(t) for t in titles], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    table = "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
    with atomic_path(args.output_dir / "stages.md") as temporary:
        temporary.write_text(table + "\n")
    print(table)


def row(name: str, path: str, seconds: str, dataset: str) -> list[str]:
    """Cells of one stage, measured on all pairs of ``dataset``."""
    said = checkpoint.load_file(path)["args"]
    stage = stage_name(
        said.uq_mode,
        said.phase,
        said.freeze_geom_for_uq,
        getattr(said, "train_geom_for_uq", False),
    )
    model, _ = load(Path(path), None)
    loader = get_data_loader(dataset, 4, 1, shuffle=False, drop_last=False)
    heads = evaluate_depth(model, loader, best_device())["heads"]
    head = HEADS.get(stage, GEO)
    numbers = heads[head]
    with atomic_path(Path(path).parent / "held_out.json") as temporary:
        temporary.write_text(json.dumps(heads, indent=1) + "\n")
    trained = ", ".join("everything" if part == "*" else part for part in STAGES[stage].trains)
    # Phase 1 has not trained FeatUQ's variance yet: its NLL and AUSE would be those of chance.
    has_variance = stage != "feat, phase 1"
    uncertainty = [f"{numbers[k]:.4g}" if has_variance else "-" for k in ("nll", "ause")]
    return [f"{name} ({head})", trained, f"{numbers['rmse']:.4g}", *uncertainty, seconds]


if __name__ == "__main__":
    main()
