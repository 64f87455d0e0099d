"""What a person decides about preprocessing a recording."""

import argparse
from dataclasses import dataclass

Camera = tuple[float, float, float, float]
_COLOR_WORDS = ("auto", "same")
_CHOICES = (
    ("min_overlap", float, "least overlap of a pair"),
    ("max_overlap", float, "greatest overlap of a pair"),
    ("max_pairs", int, "pairs a scene, spread over overlaps and frames"),
    ("frame_step", int, "take every n-th frame"),
    ("max_side", int, "scale down to this longest side, in pixels"),
)


@dataclass(frozen=True)
class Settings:
    """What of a recording is kept, and how. Cameras are (fx, fy, cx, cy) in pixels.

    ``intrinsics`` of the depth camera replace the recording's. ``color_intrinsics`` is ``"auto"``
    (the recording's own; for 7-Scenes decided by its edges), ``"same"`` (colour and depth are of
    one camera) or a camera of the colour image, with its centre at ``color_offset`` (x, y, z) in
    metres in the depth camera's frame. ``depth_unit`` is metres per step of the stored depth,
    ``max_side`` the longest side in pixels. Raises ValueError for values that cannot be.
    """

    min_overlap: float = 0.2
    max_overlap: float = 0.9
    max_pairs: int | None = None
    frame_step: int = 1
    max_side: int | None = None
    depth_unit: float = 0.001
    intrinsics: Camera | None = None
    color_intrinsics: str | Camera = "auto"
    color_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not 0 < self.min_overlap <= self.max_overlap <= 1:
            raise ValueError(
                "expected 0 < min_overlap <= max_overlap <= 1, got "
                f"{self.min_overlap} and {self.max_overlap}"
            )
        for name in ("max_pairs", "frame_step", "max_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.depth_unit > 0:
            raise ValueError(f"depth_unit is metres per step, above 0; got {self.depth_unit}")
        if isinstance(self.color_intrinsics, str) and self.color_intrinsics not in _COLOR_WORDS:
            raise ValueError(
                f"color_intrinsics must be auto, same or fx fy cx cy, got {self.color_intrinsics}"
            )


def add_choice_arguments(parser: argparse.ArgumentParser, defaults: Settings) -> None:
    """The arguments of every script: which frames and pairs are kept, and how large."""
    for name, kind, text in _CHOICES:
        parser.add_argument(f"--{name}", type=kind, default=getattr(defaults, name), help=text)


def chosen(options: argparse.Namespace) -> Settings:
    """The settings that ``add_choice_arguments`` read; ValueError for values that cannot be."""
    return Settings(**{name: getattr(options, name) for name, _, _ in _CHOICES})
