"""Calibrations and their coverage as tables, sentences and rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dust3r.evaluation.calibrate_summary import ImageCoverage
from dust3r.evaluation.report import number, table
from dust3r.uncertainty.calibration import LEVELS, STATED, UNALIGNED, Calibration

Found = Mapping[str, Any]

REGIONS = {
    "interval": "Intervals of depth, in each view's own camera; radii in metres",
    "ball": "Balls around points, in camera 1's frame; radii in metres",
    "ellipsoid": "Ellipsoids around points, in camera 1's frame; radii are Mahalanobis lengths",
}
_PER_LEVEL = ("coverage", "standard_error", "image_sd", "image_p10", "image_p90", "radius",
              "median_radius")  # fmt: skip
# A model whose predictions are off by more is not metric, or not here.
_METRIC = 1.25


def markdown(
    fitted: Mapping[str, Calibration],
    found: Sequence[Found],
    problems_of_fit: Sequence[str],
    files: Mapping[str, str],
) -> str:
    """All there is to tell: what was fitted, and coverage by data set.

    Args:
        fitted: by label.
        found: of ``calibrate_summary.summarise``, with ``benchmark``, ``method``, ``region``,
            ``pairs`` and ``pairs_left_out``, ``shared_folders``.
        problems_of_fit: sentences.
        files: label -> the file of its calibration.
    """
    text = [f"## Fitted on\n\n{about_fit(fitted)}\n\n{fit_table(fitted, files)}"]
    text += [f"Coverage within what was fitted on:\n\n{cross_validation_table(fitted)}"]
    text += ["\n".join(f"- **{line}**" for line in problems_of_fit)]
    for benchmark in dict.fromkeys(one["benchmark"] for one in found):
        rows = [one for one in found if one["benchmark"] == benchmark]
        text.append(f"## {benchmark}\n\n{about(rows[0])}")
        text += [f"{heading}:\n\n{content}" for heading, content in tables(rows)]
        text.append("\n".join(f"- **{line}**" for line in problems(rows)))
    return "\n\n".join(filter(None, text)) + "\n"


def about_fit(fitted: Mapping[str, Calibration]) -> str:
    one = next(iter(fitted.values()))
    return (
        f"{one.dataset}: {one.pairs} pairs, {one.images} images, {one.pixels:,} pixels of them at "
        "random, every image with the same weight. Coverage there is cross-validated in five parts "
        f"of neighbouring images. {how_held(one.alignment)}"
    )


def fit_table(fitted: Mapping[str, Calibration], files: Mapping[str, str]) -> str:
    """Factors and conformal radii, by method."""
    header = ["method", "region", "factor", *(f"radius {_percent(q)}" for q in LEVELS), "file"]
    rows = []
    for label, one in fitted.items():
        places = np.searchsorted(one.levels, np.asarray(LEVELS) - 1e-9)
        low, high = one.radii[:, places].min(axis=0), one.radii[:, places].max(axis=0)
        radii = [
            number(a) if a == b else f"{number(a)} to {number(b)}"
            for a, b in zip(low, high, strict=True)
        ]
        radii = [f"{text} sigma" for text in radii]
        rows.append([label, one.region, number(one.scale), *radii, files[label]])
    return table(header, rows)


def cross_validation_table(fitted: Mapping[str, Calibration]) -> str:
    """Coverage of held-out parts of what was fitted on."""
    rows = []
    for label, one in fitted.items():
        for kind, shares in one.coverage.items():
            if kind != STATED or one.family != "conf":
                rows.append([label, _named(kind), *map(_percent, shares)])
    return table(["method", "calibration", *(f"in {_percent(q)}" for q in LEVELS)], rows)


def about(found: Found) -> str:
    """What a data set is, and how to read its tables."""
    return (
        f"{found['pairs']} pairs, {found['images']:,} images of {found['folders']} folders, "
        f"{found['valid']:,} pixels with a true depth. Coverage is the mean over images of the "
        "share of pixels whose truth lies within the region that was to hold it, with its standard "
        f"error (bootstrap over {found['error_over']}), and in brackets the 10th and 90th "
        f"percentile of images. {how_held(found['alignment'])}"
    )


def how_held(alignment: str) -> str:
    """What predictions are held against, as a sentence."""
    if alignment == UNALIGNED:
        return "Predictions are held against the truth as they are, without any alignment or scale."
    return (
        f"The points of each image are aligned to its truth by a similarity first ({alignment}), "
        "so that regions are of errors of shape."
    )


def tables(found: Sequence[Found]) -> list[tuple[str, str]]:
    """A heading and a table for each kind of region."""
    made = []
    for region, heading in REGIONS.items():
        rows = [one for one in found if one["region"] == region]
        if rows:
            made.append((heading, coverage_table(rows)))
    return made


def coverage_table(found: Sequence[Found]) -> str:
    """Coverage before and after, spread over images, and radii."""
    levels = found[0]["levels"]
    widest = len(levels) - 1 if 0.9 not in levels else levels.index(0.9)
    header = ["method", "calibration", *(f"in {_percent(q)}" for q in levels)]
    header += [f"mean radius {_percent(levels[widest])}", "calibration error"]
    rows = []
    for one in found:
        for kind, numbers in one["kinds"].items():
            cells = [
                f"{_percent(share)} ± {100 * error:.1f} ({100 * low:.0f} to {100 * high:.0f})"
                for share, error, low, high in zip(
                    *(numbers[key] for key in _PER_LEVEL[:2] + _PER_LEVEL[3:5]), strict=True
                )
            ]
            cells += [number(numbers["radius"][widest]), number(numbers["calibration_error"])]
            rows.append([one["method"], _named(kind), *cells])
    return table(header, rows)


def problems(found: Sequence[Found]) -> list[str]:
    """Sentences about what is left out, and about scales."""
    lines = []
    if found[0]["pairs_left_out"]:
        lines.append(left_out_pairs(found[0]["pairs_left_out"], found[0]["pairs"]))
    if found[0]["shared_folders"]:
        lines.append(
            f"{found[0]['shared_folders']} of {found[0]['folders']} folders have images that were "
            "fitted on as well: coverage is not that of new scenes."
        )
    for one in found:
        if one["left_out"]:
            lines.append(left_out_pixels(one["method"], one["left_out"], one["valid"]))
        if one["images_without"]:
            lines.append(f"{one['method']}: {one['images_without']} images have no usable pixel.")
        is_held_as_it_is = one["region"] != "ellipsoid" and one["alignment"] == UNALIGNED
        if is_held_as_it_is and not 1 / _METRIC < one["scale"] < _METRIC:
            lines.append(
                f"{one['method']}: true distances are {one['scale']:.3g} times the predicted ones "
                "(median of images), so predictions are not in metres here; errors and radii hold "
                "what the scale is off by."
            )
    return lines


def left_out_pairs(count: int, pairs: int) -> str:
    return f"{count} of {pairs} pairs could not be loaded or have no valid pixel, and are left out."


def left_out_pixels(label: str, count: int, valid: int) -> str:
    return (
        f"{label}: {count:,} pixels whose prediction is not finite, or that state no deviation "
        f"above 0, are left out ({count / valid:.2%} of {valid:,})."
    )


def flat_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """A row for each data set, method, kind and level."""
    kept = ("benchmark", "method", "family", "region", "alignment", "pairs", "pairs_left_out",
            "images", "images_without", "folders", "shared_folders", "valid", "left_out",
            "scale")  # fmt: skip
    rows = []
    for one in found:
        for kind, numbers in one["kinds"].items():
            for place, level in enumerate(one["levels"]):
                row = {key: one[key] for key in kept} | {"calibration": kind, "level": level}
                row |= {key: float(numbers[key][place]) for key in _PER_LEVEL}
                rows.append(row | {"calibration_error": numbers["calibration_error"]})
    return rows


def image_rows(
    benchmark: str,
    label: str,
    kinds: Sequence[str],
    levels: Sequence[float],
    images: Sequence[ImageCoverage],
) -> list[dict[str, Any]]:
    """A row for each image and kind."""
    rows = []
    for one in images:
        told = {"benchmark": benchmark, "method": label, "pair": one.pair, "view": one.view}
        told |= {"label": one.label, "valid": one.valid, "left_out": one.left_out}
        told |= {"scale": one.scale}
        for place, kind in enumerate(kinds):
            row = told | {"calibration": kind}
            for column, level in enumerate(levels):
                name = f"{100 * level:g}"
                row[f"coverage_{name}"] = one.shares[place, column]
                row[f"radius_{name}"] = one.radii[place, column]
            rows.append(row)
    return rows


def _named(kind: str) -> str:
    return "as stated" if kind == STATED else kind


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if np.isfinite(share) else "-"
