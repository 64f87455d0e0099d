"""Looks at what preprocessing wrote, through the class that training will read it with."""

from pathlib import Path

import numpy as np

from datasets_preprocess.contact_sheet import Frame, FramePair, contact_sheet
from dust3r.datasets.bad_samples import SampleError
from dust3r.datasets.base import BaseStereoViewDataset
from dust3r.datasets.inspect import SeenView
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
    pairs, errors, warnings = [], [], []
    for index in indices:
        try:
            first, second = (SeenView.of(view) for view in dataset[index])
        except SampleError as error:
            warnings.append(f"cannot be read: {error}")
            continue
        shared = overlap(*first.camera, *second.camera, stride=_STRIDE)
        pairs.append(FramePair(_frame(first), _frame(second), shared))
        errors.append(reprojection_errors(*first.camera, *second.camera, stride=_STRIDE))
    if not pairs:
        return warnings
    depths = np.concatenate([f.depth[f.depth > 0] for p in pairs for f in (p.first, p.second)])
    met = np.concatenate(errors)
    met = met[np.isfinite(met)]
    median_depth = float(np.median(depths))
    median_error = float(np.median(met)) if len(met) else np.inf
    median_overlap = float(np.median([pair.overlap for pair in pairs]))
    unit = " m" if dataset.is_metric_scale else ""
    contact_sheet(
        Path(output_dir) / SHEET_FILE,
        title,
        [pair.first for pair in pairs],
        pairs,
        caption=f"{len(dataset)} pairs; median depth {median_depth:.3g}{unit}, median reprojected "
        f"depth error {median_error:.2%}, median overlap {median_overlap:.2f}",
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
    if median_overlap < _LEAST_OVERLAP:
        warnings.append(
            f"the views of a pair hardly see each other (median overlap "
            f"{median_overlap:.2f}): check the source's poses and axes, and look at {SHEET_FILE}"
        )
    return warnings


def _frame(view: SeenView) -> Frame:
    name = "/".join(Path(view.label).parts[-2:])
    return Frame(name, view.rgb, view.depth, view.intrinsics, view.pose)
