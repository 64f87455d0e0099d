"""Runs of splats side by side: one table, and a picture of each held-out view."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dust3r.evaluation.report import plain, table
from dust3r.splat.evaluate import Score, mean_score
from dust3r.utils.files import atomic_path
from dust3r.utils.plots import DPI, Block, Colours, Map, save_png, sheet

MARKDOWN, JSON, PICTURES = "report.md", "report.json", "views"

_LONGEST_PANEL = 6.0
_HEADER = (
    "run", "poses", "points from", "points", "splats", "views", "held out", "PSNR (dB)", "SSIM",
    "LPIPS", "seconds",
)  # fmt: skip
_HELD_OUT = (
    "Held-out views are left out of training: no photograph of them is fitted. Their poses are of "
    "the same reconstruction as all others, which saw them."
)


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        name: of the run.
        poses: where its cameras are from.
        points: where its points are from, and how they were chosen.
        started_from: number of points.
        splats: number at the end.
        trained_on: number of views.
        seconds: of training.
        scores: of each held-out view.
    """

    name: str
    poses: str
    points: str
    started_from: int
    splats: int
    trained_on: int
    seconds: float
    scores: tuple[Score, ...]


def markdown(results: Sequence[Result], settings: str, notes: Sequence[str]) -> str:
    """The table, and what to know of it."""
    rows = []
    for one in results:
        mean = mean_score(one.scores)
        rows.append(
            [
                one.name,
                one.poses,
                one.points,
                f"{one.started_from:,}",
                f"{one.splats:,}",
                f"{one.trained_on}",
                f"{len(one.scores)}",
                f"{mean.psnr:.2f}",
                f"{mean.ssim:.4f}",
                f"{mean.lpips:.4f}" if math.isfinite(mean.lpips) else "-",
                f"{one.seconds:.0f}",
            ]
        )
    lines = "\n".join(f"- {note}" for note in (settings, _HELD_OUT, *notes))
    return f"# Splats in held-out views\n\n{table(_HEADER, rows)}\n\n{lines}\n"


def write_report(
    folder: Path, results: Sequence[Result], settings: str, notes: Sequence[str]
) -> list[Path]:
    """``report.md`` and ``report.json`` in a folder; their paths."""
    content = {
        "settings": settings,
        "notes": [_HELD_OUT, *notes],
        "runs": [{**asdict(one), "mean": asdict(mean_score(one.scores))} for one in results],
    }
    texts = {
        MARKDOWN: markdown(results, settings, notes),
        JSON: json.dumps(plain(content), indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def write_picture(
    path: Path,
    photograph: np.ndarray,
    renderings: Sequence[tuple[str, np.ndarray]],
    title: str,
) -> Path:
    """A photograph (H, W, 3) uint8, its renderings with their titles, and their errors below."""
    truth = photograph.astype(float)
    errors = [np.abs(image - truth).mean(-1) for _, image in renderings]
    colours = Colours.from_zero(errors)
    above = [Map("photograph", photograph), *(Map(name, image) for name, image in renderings)]
    blank = Map("mean absolute error of 255", np.full_like(photograph, 255))
    below = [blank, *(Map("", error, colours) for error in errors)]
    height, width = photograph.shape[:2]
    scale = min(
        1 / DPI * max(1, round(256 / max(height, width))), _LONGEST_PANEL / max(height, width)
    )
    block = Block([above, below], (width * scale, height * scale))
    save_png(sheet([block], title), path)
    return path
