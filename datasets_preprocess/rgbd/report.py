"""What came of preprocessing a recording, in words and numbers."""

from dataclasses import dataclass, field

REPORT_FILE = "preprocess.json"
SHEET_FILE = "contact_sheet.png"
_PLAUSIBLE_DEPTH_M = (0.1, 20.0)
_PLAUSIBLE_ERROR = 0.05


@dataclass
class Report:
    """What came of a recording; ``preprocess.json`` holds it.

    ``skipped`` counts frames left out by reason, ``examples`` names the first of each.
    ``measured`` counts pairs by their overlap in tenths, ``chosen`` those kept;
    ``reprojection_error`` is the median of ``overlap.reprojection_errors`` over a few chosen pairs.
    """

    source: str
    format: str
    settings: dict
    color_camera: str = ""
    frames: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    median_depth: float = 0.0
    pairs: int = 0
    measured: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    reprojection_error: float = 0.0

    def lines(self) -> list[str]:
        """The report in a few lines to read."""
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
        histogram = "  ".join(
            f"{tenth / 10:.1f}: {chosen}/{measured}"
            for tenth, (chosen, measured) in enumerate(zip(self.chosen, self.measured, strict=True))
            if measured
        )
        return [
            f"{self.frames} frames kept, {sum(self.skipped.values())} left out"
            + (f" ({left_out})" if left_out else ""),
            f"median depth {self.median_depth:.2f} m, colour camera {self.color_camera}",
            f"{self.pairs} pairs; median reprojected depth error {self.reprojection_error:.2%}",
            f"pairs chosen/measured by overlap from  {histogram}",
        ]

    def warnings(self) -> list[str]:
        """What looks wrong, with what to check."""
        found = []
        low, high = _PLAUSIBLE_DEPTH_M
        if not low <= self.median_depth <= high:
            found.append(
                f"the median depth is {self.median_depth:.3g} m, outside {low} to {high} m: check "
                "--depth_unit (metres per step of the stored depth)"
            )
        if self.reprojection_error > _PLAUSIBLE_ERROR:
            found.append(
                f"depth carried between views is off by {self.reprojection_error:.1%} (median): "
                "check poses (camera-to-world, OpenCV axes), intrinsics and --depth_unit, and look "
                f"at {SHEET_FILE}"
            )
        return found
