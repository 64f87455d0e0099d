"""Results of a depth evaluation as Markdown, and as one line."""

from collections.abc import Mapping
from typing import Any

from dust3r.uncertainty.calibration import LEVELS, UNALIGNED
from dust3r.uncertainty.estimates import FEAT, GEO, POINTS

Result = Mapping[str, Any]

_COLUMNS = {
    "rmse": "RMSE (m)",
    "mae": "MAE (m)",
    "nll": "NLL (nats)",
    "gaussian_nll": "NLL, one variance",
    "ause": "AUSE, pooled (m)",
    "ause_per_image": "AUSE, image mean (m)",
    "ause_conf": "AUSE of 1/conf, pooled (m)",
    "ause_conf_per_image": "AUSE of 1/conf, image mean (m)",
}


_REGIONS = {"interval": "depths within the intervals", "ball": "points within the balls"}
_AFTER = {False: "", True: ", after a similarity of each image"}


def markdown(result: Result) -> str:
    """All numbers of ``DepthEvaluator.result`` as tables, with what they are measured on."""
    heads = dict(result["heads"])
    if "constant" in result:
        heads["training median"] = result["constant"]
    columns = [key for key in _COLUMNS if any(key in numbers for numbers in heads.values())]
    rows = [
        [name, *(_number(numbers[key]) if key in numbers else "" for key in columns)]
        for name, numbers in heads.items()
    ]
    pixels, ranked = result["pixels"], result["ranked_pixels"]
    sample = "" if ranked == pixels else f", pooled AUSE over {ranked:,} of them drawn at random"
    text = [
        f"{result['images']} images, {pixels:,} valid pixels{sample}. The pointmap's "
        "scale is fitted to the ground truth of each image; errors of points are distances after a "
        "similarity of each; the other depths are as predicted.",
        _table(["depth", *(_COLUMNS[key] for key in columns)], rows),
    ]
    compared = comparisons(result)
    if compared:
        header = ["number", "value", "against", "value", "ratio", "better"]
        text.append(_table(header, [_compared(*row) for row in compared]))
    if "calibration" in result:
        text += _calibration(result["calibration"])
    return "\n\n".join(text) + "\n"


def comparisons(result: Result) -> list[tuple[str, float, str, float]]:
    """What an uncertainty head is there to beat, as (number, value, against, value).

    Only those that ``result`` has all the numbers of; lower is better in each.
    """
    heads = result["heads"]
    geo, feat, constant = heads.get(GEO, {}), heads.get(FEAT, {}), result.get("constant", {})
    rows = [
        ("GeoUQ RMSE", geo.get("rmse"), "training median RMSE", constant.get("rmse")),
        ("FeatUQ RMSE", feat.get("rmse"), "training median RMSE", constant.get("rmse")),
        ("FeatUQ RMSE", feat.get("rmse"), "GeoUQ RMSE", geo.get("rmse")),
    ]
    for name, head in ((GEO, geo), (FEAT, feat), (POINTS, heads.get(POINTS, {}))):
        rows += [
            (f"{name} NLL", head.get("nll"), "Gaussian of one variance", head.get("gaussian_nll")),
            (f"{name} AUSE, pooled", head.get("ause"), "1/conf, pooled", head.get("ause_conf")),
            (
                f"{name} AUSE, image mean",
                head.get("ause_per_image"),
                "1/conf, image mean",
                head.get("ause_conf_per_image"),
            ),
        ]
    return [row for row in rows if row[1] is not None and row[3] is not None]


def summary_line(result: Result) -> str:
    """RMSE, NLL and pooled AUSE of every uncertainty head, or of the pointmap where none is."""
    parts = []
    for name, numbers in uncertainty_or_all(result["heads"]).items():
        part = f"{name} RMSE {_number(numbers['rmse'])} m"
        if "nll" in numbers:
            part += f", NLL {_number(numbers['nll'])}"
        if "ause" in numbers:
            part += f", AUSE {_number(numbers['ause'])} m"
        if "ause_conf" in numbers:
            part += f", AUSE of 1/conf {_number(numbers['ause_conf'])} m"
        parts.append(part)
    return f"{'; '.join(parts)} ({result['images']} images)"


def uncertainty_or_all(heads: Mapping[str, Result]) -> Mapping[str, Result]:
    """Of numbers by head those of the uncertainty heads, or all where there are none."""
    return {name: numbers for name, numbers in heads.items() if "ause" in numbers} or heads


def _calibration(told: Result) -> list[str]:
    """Shares of true depths within what was to hold them, at the usual levels."""
    columns = ("levels", "stated", "calibrated", "standard_errors")
    rows = [
        [f"{level:.0%}", *("" if number is None else f"{number:.1%}" for number in numbers)]
        for level, *numbers in zip(*(told[name] for name in columns), strict=True)
        if any(abs(level - usual) < 1e-6 for usual in LEVELS)
    ]
    left_out = f"; {told['left_out']:,} are not finite and left out" if told["left_out"] else ""
    return [
        f"Shares of true {_REGIONS[told['region']]} of {told['head']} that are to hold them"
        f"{_AFTER[told['alignment'] != UNALIGNED]}; each of {told['images']} images counts the "
        f"same, with {told['pixels']:,} pixels in all{left_out}. Calibrated on "
        f"{' '.join(told['fitted_on'].split())}.",
        _table(["to hold", "as stated", "calibrated", "standard error of it"], rows),
    ]


def _compared(number: str, value: float, against: str, other: float) -> list[str]:
    # NLLs have no zero, so that their ratio says nothing.
    ratio = "" if "NLL" in number or not other else f"{value / other:.3f}"
    better = "yes" if value < other else "no"
    return [number, _number(value), against, _number(other), ratio, better]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
