"""Tables of what ``deltas.evaluation.measure`` measures, over the gaps between frames."""

from collections.abc import Mapping
from typing import Any

from dust3r.evaluation import report
from dust3r.evaluation.depth_cli import MEASURES

# By gap, what GapMeasures.compute gives.
Measured = Mapping[int, Mapping[str, Any]]


def markdown(measured: Measured) -> str:
    """Tables over the gaps, of what ``GapMeasures.compute`` gives."""
    first = next(iter(measured.values()))
    parts = [
        f"{first['images']} anchors, the same for every gap; {first['valid']:,} pixels with a true "
        "depth in the range; means over images, no alignment.",
        _table(measured, {key: key for key in MEASURES}),
        "Cameras and sparse points: metres to the neighbours, degrees between rays to points of "
        "known depth, share of points triangulated, median relative error of their z.",
        _table(
            measured,
            {
                "baseline": "baseline (m)",
                "parallax": "parallax (deg)",
                "triangulated": "triangulated",
                "point_abs_rel": "points' error",
            },
        ),
    ]
    if all("nll" in one for one in measured.values()):
        parts += [
            "Uncertainty: rankings within each image by the stated deviation, mean over images; "
            "likelihood and shares within the stated central intervals over all pixels.",
            _table(
                {gap: one | _coverages(one) for gap, one in measured.items()},
                {
                    "aurc": "AURC (m)",
                    "ause": "AUSE (m)",
                    "rho": "rho",
                    "nll": "NLL (nats)",
                    "calibration_error": "calibration error",
                    **{key: f"in {key}" for key in _coverages(first)},
                },
            ),
        ]
    for gap, one in measured.items():
        if one["not_finite"] or one["images_without"]:
            parts.append(
                f"- **seq_gap {gap}: {one['not_finite']:,} pixels whose depth is not finite are "
                f"left out, and {one['images_without']} images without a true depth in the range.**"
            )
    if first["left_out"]:
        parts.append(f"- {first['left_out']} anchors could not be loaded and are left out.")
    return "\n\n".join(parts) + "\n"


def _coverages(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {f"{percent}%": share for percent, share in numbers["coverage"].items()}


def _table(measured: Measured, columns: Mapping[str, str]) -> str:
    rows = [
        [str(gap), *(report.number(numbers[key]) for key in columns)]
        for gap, numbers in measured.items()
    ]
    return report.table(["seq_gap", *columns.values()], rows)
