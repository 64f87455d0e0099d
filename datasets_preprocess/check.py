"""Looks at what preprocessing wrote, through the class that training will read it with."""

from pathlib import Path

import numpy as np

from datasets_preprocess.contact_sheet import Frame, FramePair, contact_sheet
from dust3r.datasets.bad_samples import SampleError
from dust3r.datasets.base import BaseStereoViewDataset
from dust3r.datasets.combine import View
from dust3r.utils.image import rgb
from dust3r.utils.reprojection import overlap, reprojection_errors

SHEET_FILE = "contact_sheet.png"

_PLAUSIBLE_DEPTH_M = (0.1, 100.0)
_PLAUSIBLE_ERROR = 0.05
_LEAST_OVERLAP = 0.02
_STRIDE = 4


def check_written(
    dataset: BaseStereoViewDataset, output_dir: Path, title: str, *, num_pairs: int = 8
) -> list[str]:
    """Read pairs spread over ``dataset``, draw ``output_dir/contact_sheet.png``, return warnings.

    Warnings say what looks wrong and what to check: samples that cannot be read, depth carried
    between the views of a pair that is off by more than 5% (median of what meets a depth), views
    that hardly see each other, and for metric data sets a median depth outside 0.1 to 100 m.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, num_pairs).round().astype(int)).tolist()
    pairs, warnings = [], []
    for index in indices:
        try:
            first, second = (_frame(view) for view in dataset[index])
        except SampleError as error:
            warnings.append(f"cannot be read: {error}")
            continue
        pairs.append(
            FramePair(first, second, overlap(*_seen(first), *_seen(second), stride=_STRIDE))
        )
    if not pairs:
        return warnings
    depths = np.concatenate([f.depth[f.depth > 0] for p in pairs for f in (p.first, p.second)])
    errors = np.concatenate(
        [reprojection_errors(*_seen(p.first), *_seen(p.second), stride=_STRIDE) for p in pairs]
    )
    met = errors[np.isfinite(errors)]
    median_depth = float(np.median(depths))
    median_error = float(np.median(met)) if len(met) else np.inf
    shared = float(np.median([pair.overlap for pair in pairs]))
    unit = " m" if dataset.is_metric_scale else ""
    contact_sheet(
        Path(output_dir) / SHEET_FILE,
        title,
        [pair.first for pair in pairs],
        pairs,
        caption=f"{len(dataset)} pairs; median depth {median_depth:.3g}{unit}, median reprojected "
        f"depth error {median_error:.2%}, median overlap {shared:.2f}",
        unit="m" if dataset.is_metric_scale else "the data set's unit",
    )
    low, high = _PLAUSIBLE_DEPTH_M
    if dataset.is_metric_scale and not low <= median_depth <= high:
        warnings.append(
            f"the median depth is {median_depth:.3g} m, outside {low} to {high} m: check the unit "
            "of the source's depth"
        )
    if median_error > _PLAUSIBLE_ERROR:
        warnings.append(
            f"depth carried between views is off by {median_error:.1%} (median): check the "
            f"source's poses, axes, intrinsics and depth unit, and look at {SHEET_FILE}"
        )
    if shared < _LEAST_OVERLAP:
        warnings.append(
            f"the views of a pair hardly see each other (median overlap {shared:.2f}): check the "
            f"source's poses and axes, and look at {SHEET_FILE}"
        )
    return warnings


def _frame(view: View) -> Frame:
    """A view as seen upright; it may travel transposed."""
    height, _ = (int(side) for side in view["true_shape"])
    depth = view["depthmap"]
    return Frame(
        "/".join(Path(str(view["label"])).parts[-2:]),
        (rgb(view["img"], view["true_shape"]) * 255).round().astype(np.uint8),
        depth if depth.shape[0] == height else depth.T,
        view["camera_intrinsics"].astype(np.float64),
        view["camera_pose"].astype(np.float64),
    )


def _seen(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return frame.depth, frame.intrinsics, frame.pose
