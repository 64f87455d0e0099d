"""Numbers as files: CSV, JSON and Markdown, each written whole."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dust3r.evaluation.measure import CONFIDENCE, OWN
from dust3r.evaluation.methods import DEPTH, POINT
from dust3r.evaluation.summary import COVERED, against_confidence
from dust3r.utils.files import atomic_path

Found = Mapping[str, Any]

TARGETS = {
    POINT: "Distance of points to the true ones, metres, after a similarity per image",
    DEPTH: "Difference of the method's own depth from the true one, metres, after a scale per "
    "image",
}
_NOT_TABLED = ("risk", "oracle_risk", "reliability")


def write_json(path: Path, content: Any) -> None:
    """JSON with null for what is not finite."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of numbers and names, with the columns of all of them; empty where a row has none."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flat_row(found: Found) -> dict[str, Any]:
    """The numbers of a method on a benchmark in one row, without its curves."""
    row: dict[str, Any] = {}
    for key, value in found.items():
        if key == "counts":
            row |= value
        elif key == "coverage":
            row |= {f"coverage_{level}": share for level, share in value.items()}
        elif key == "targets":
            for target, numbers in value.items():
                for name, number in numbers.items():
                    if isinstance(number, Mapping):
                        row |= {
                            f"{target}_{inner}_{name}": n
                            for inner, n in number.items()
                            if inner not in (*_NOT_TABLED, "pixels")
                        }
                    else:
                        row[f"{target}_{name}"] = number
        elif key not in _NOT_TABLED:
            row[key] = value
    return row


def markdown(found: Sequence[Found], streaming: bool) -> str:
    """Tables of all methods, by benchmark and by what uncertainty is ranked against."""
    text = []
    for benchmark in dict.fromkeys(one["benchmark"] for one in found):
        rows = [one for one in found if one["benchmark"] == benchmark]
        text.append(f"## {benchmark}\n\n{about(rows[0])}")
        for target, title in TARGETS.items():
            ranked = [one for one in rows if target in one["targets"]]
            if ranked:
                text.append(f"{title}:\n\n{ranking_table(ranked, target)}")
                if streaming:
                    text.append(_bounds(ranked, target))
        stated = [one for one in rows if "nll" in one]
        if stated:
            text.append(
                "Stated distributions, against the truth as it is, without any alignment:\n\n"
                f"{likelihood_table(stated)}"
            )
        text.append(problems(rows))
    return "\n\n".join(filter(None, text)) + "\n"


def about(found: Found) -> str:
    """What a benchmark is, and how to read its tables."""
    counts = found["counts"]
    return (
        f"{found['pairs']} pairs, {counts['images']:,} images, {counts['valid']:,} pixels with a "
        'true depth. Rankings are over all pixels together; "image mean" ranks within each image '
        'and takes the mean. "/ conf": divided by what 1 / confidence of the same model gets on '
        "the same errors; below 1 is better."
    )


def ranking_table(found: Sequence[Found], target: str) -> str:
    """Errors and rankings, and their ratios to what 1 / confidence gets on the same errors."""
    header = ["method", "MAE", "RMSE", "AURC", "AUSE", "rho", "AURC, image mean",
              "AUSE, image mean", "AURC / conf", "AUSE / conf"]  # fmt: skip
    rows = []
    for one in found:
        numbers, own = one["targets"][target], one["targets"][target][OWN]
        cells = [numbers["mae"], numbers["rmse"], *(own[k] for k in ("aurc", "ause", "rho"))]
        cells += [own["aurc_image"], own["ause_image"]]
        cells += [against_confidence(one, target, key) for key in ("aurc", "ause")]
        rows.append([one["method"], *map(number, cells)])
    return table(header, rows)


def likelihood_table(found: Sequence[Found]) -> str:
    """NLL and how often central regions hold the truth."""
    header = ["method", "NLL (nats)", "calibration error", *(f"in {q}%" for q in COVERED)]
    rows = []
    for one in found:
        coverage = one.get("coverage", {})
        shares = [f"{100 * coverage[q]:.1f}%" if q in coverage else "" for q in COVERED]
        error = number(one["calibration_error"]) if "calibration_error" in one else ""
        rows.append([one["method"], number(one["nll"]), error, *shares])
    return table(header, rows)


def problems(found: Sequence[Found]) -> str:
    """Sentences about pixels and pairs that are left out; empty where there are none."""
    lines = []
    if found[0]["pairs_left_out"]:
        lines.append(
            f"{found[0]['pairs_left_out']} of {found[0]['pairs']} pairs could not be loaded or "
            "have no valid pixel, and are left out."
        )
    for one in found:
        counts, parts = one["counts"], []
        for key, what in (
            ("bad_prediction", "predicted points or depths that are not finite"),
            ("bad_uncertainty", "uncertainties that are not finite"),
            ("unaligned", "images without an alignment"),
        ):
            if counts[key]:
                parts.append(f"{counts[key]:,} pixels with {what}")
        if parts:
            share = 1 - counts["used"] / counts["valid"]
            lines.append(
                f"**{one['method']}: {', '.join(parts)} are left out** "
                f"({share:.2%} of {counts['valid']:,})."
            )
        if counts["bad_likelihood"]:
            lines.append(
                f"**{one['method']}: {counts['bad_likelihood']:,} likelihoods are not finite** and "
                "not in the NLL."
            )
    return "\n".join(f"- {line}" for line in lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of even width."""
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |"
        for line in lines
    )


def number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def plain(value: Any) -> Any:
    """Nested values as JSON knows them; None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bounds(found: Sequence[Found], target: str) -> str:
    worst = {
        key: max(
            one["targets"][target][by][f"{key}_bound"]
            for one in found
            for by in (OWN, CONFIDENCE)
            if by in one["targets"][target]
        )
        for key in ("aurc", "ause", "rho")
    }
    return (
        "Streaming: the exact numbers differ by at most "
        f"{number(worst['aurc'])} (AURC), {number(worst['ause'])} (AUSE) and "
        f"{number(worst['rho'])} (rho)."
    )
