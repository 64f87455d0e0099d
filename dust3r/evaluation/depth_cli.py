"""``evaluate.py depth``: errors of depth by the usual measures."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

from dust3r.evaluation import report
from dust3r.evaluation.benchmarks import EXAMPLE
from dust3r.evaluation.methods import Method, own_depth_of
from dust3r.evaluation.options import add_shared, evaluation_of
from dust3r.evaluation.predictions import Predicted
from dust3r.training.distributed import World
from dust3r.uncertainty.alignment import DEPTH_ALIGNMENTS, depth_scale
from dust3r.uncertainty.estimates import POINTMAP
from dust3r.utils.view import own_depth, points_key

HELP = "errors of depth: abs_rel, rmse, a1 and the like"
MEASURES = ("abs_rel", "abs_diff", "sq_rel", "rmse", "rmse_log", "a1", "a2", "a3")

_DESCRIPTION = """\
Depth errors of each image's valid pixels, and their mean over images: abs_rel = mean |d - t| / t,
abs_diff = mean |d - t|, sq_rel = mean (d - t)^2 / t, rmse, rmse_log (of natural logarithms), and
a1, a2, a3, the shares with max(d / t, t / d) below 1.25, 1.25^2 and 1.25^3. Predictions below
--min_depth count as this depth; those that are not finite are counted, reported and left out.
Writes depth.csv, depth.json, depth.md and pairs.json to --output_dir.
"""


class DepthMeasures(Metric):
    """Means over images of ``depth_measures``, and what is left out."""

    full_state_update = False

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        sums = torch.zeros(len(MEASURES), dtype=torch.float64)
        self.add_state("sums", sums, dist_reduce_fx="sum")
        # Images, images without any, valid pixels, those whose prediction is not finite.
        self.add_state("counts", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, depth: Tensor, truth: Tensor, alignment: str, min_depth: float) -> None:
        """Add an image: predicted and true depths (n,) of its valid pixels."""
        finite = depth.isfinite()
        bad = int((~finite).sum())
        numbers = depth_measures(depth[finite], truth[finite], alignment, min_depth)
        if numbers is not None:
            values = torch.tensor([numbers[key] for key in MEASURES], dtype=torch.float64)
            self.sums += values.to(self.sums)
        counts = torch.tensor([numbers is not None, numbers is None, len(truth), bad])
        self.counts += counts.to(self.counts)

    def compute(self) -> dict[str, float]:
        images, without, valid, bad = self.counts.tolist()
        means = (self.sums / max(1, images)).tolist() if images else [float("nan")] * len(MEASURES)
        counts = {"images": images, "images_without": without, "valid": valid, "not_finite": bad}
        return dict(zip(MEASURES, means, strict=True)) | counts


def depth_measures(
    depth: Tensor, truth: Tensor, alignment: str = "none", min_depth: float = 1e-3
) -> dict[str, float] | None:
    """``MEASURES`` of predicted depths (n,) against true ones (n,), all finite, ``truth`` above 0.

    None where there is no pixel, or no positive scale.

    Args:
        alignment: one of ``alignment.DEPTH_ALIGNMENTS``.
        min_depth: smaller predictions, after alignment, count as this one.
    """
    if not len(depth):
        return None
    depth, truth = depth.double(), truth.double()
    scale = depth_scale(depth, truth, alignment)
    if not 0 < scale < float("inf"):
        return None
    depth = (scale * depth).clamp(min=min_depth)
    error, ratio = depth - truth, torch.maximum(depth / truth, truth / depth)
    return {
        "abs_rel": (error.abs() / truth).mean().item(),
        "abs_diff": error.abs().mean().item(),
        "sq_rel": (error.square() / truth).mean().item(),
        "rmse": error.square().mean().sqrt().item(),
        "rmse_log": (depth.log() - truth.log()).square().mean().sqrt().item(),
        **{f"a{k}": (ratio < 1.25**k).double().mean().item() for k in (1, 2, 3)},
    }


def add_arguments(parser: argparse.ArgumentParser, **_: Any) -> None:
    parser.description = _DESCRIPTION
    add_shared(parser, EXAMPLE)
    add = parser.add_argument
    add(
        "--methods",
        default=POINTMAP,
        help=f"whose depth, by commas: {POINTMAP} (of the model's points), or families about "
        "depth, geom and feat (%(default)s)",
    )
    add("--output_dir", required=True, type=Path, help="folder that the files go to")
    add("--alignment", choices=DEPTH_ALIGNMENTS, default="median", help="of scales (%(default)s)")
    add("--min_depth", type=float, default=1e-3, help="in metres (%(default)s)")


def run(args: argparse.Namespace, world: World, **_: Any) -> str:
    """Evaluate and write; what to tell on the command line. Raises as ``uq_cli.run``."""
    evaluation = evaluation_of(args, world, depths=True)
    found = []
    for one in evaluation.pairs:
        metrics = {method.label: DepthMeasures().to(world.device) for method in evaluation.methods}
        mine, left_out = one.indices[world.rank :: world.size], 0
        with tqdm(total=len(mine), desc=one.name, unit="pair", disable=not world.is_main) as bar:
            for pair in evaluation.provider.pairs(one.benchmark, mine) if mine else ():
                left_out += pair.views is None
                for method in evaluation.methods if pair.views else ():
                    source = evaluation.sources[method.label]
                    _update(metrics[method.label], pair, source, method, args)
                bar.update()
        left_out = sum(world.gather(left_out))
        for label, metric in metrics.items():
            numbers = metric.compute()
            if not numbers["valid"]:
                raise ValueError(
                    f"benchmark {one.name} has no pixel with a valid depth, so there is nothing to "
                    "compare with; check its depth files and their unit"
                )
            pairs = {"pairs": len(one.indices), "pairs_left_out": left_out}
            found.append({"benchmark": one.name, "method": label} | numbers | pairs)
    if not world.is_main:
        return ""
    text = _markdown(found, args.alignment)
    evaluation.write_pairs(args.output_dir)
    settings = evaluation.settings() | {"alignment": args.alignment}
    report.write_json(args.output_dir / "depth.json", {"settings": settings, "results": found})
    report.write_csv(args.output_dir / "depth.csv", found)
    report.write_text(args.output_dir / "depth.md", f"# Depth\n\n{text}")
    return f"{text}\nin {args.output_dir}\n"


def _update(
    metric: DepthMeasures, pair: Predicted, source: str, method: Method, args: argparse.Namespace
) -> None:
    pose1 = pair.views[0]["camera_pose"].float()
    for view, prediction in zip(pair.views, pair.predictions[source], strict=True):
        if method.family == POINTMAP:
            points = prediction[points_key(prediction)].float()
            depth = _pointmap_depth(points, pose1, view, args.alignment)
        else:
            depth = own_depth_of(prediction, method.family)
        valid = view["valid_mask"][0]
        if valid.any():
            truth = view["depthmap"][0][valid]
            metric.update(depth[0][valid], truth, args.alignment, args.min_depth)


def _pointmap_depth(
    points: Tensor, pose1: Tensor, view: Mapping[str, Any], alignment: str
) -> Tensor:
    """Depth (1, H, W) in the view's own camera of points in camera 1's frame.

    With an alignment points are first scaled to the truth's distances from camera 1, without which
    the true poses would not fit them.
    """
    if alignment != "none":
        truth = view["pts3d"].float() - pose1[:, None, None, :3, 3]
        valid = view["valid_mask"] & points.isfinite().all(-1)
        if valid.any():
            far, given = truth[valid].norm(dim=-1), points[valid].norm(dim=-1)
            points = points * depth_scale(given, far, alignment)
    return own_depth(points, pose1, view["camera_pose"].float())


def _markdown(found: list[dict[str, Any]], alignment: str) -> str:
    parts = []
    for benchmark in dict.fromkeys(one["benchmark"] for one in found):
        rows = [one for one in found if one["benchmark"] == benchmark]
        text = (
            f"## {benchmark}\n\n{rows[0]['pairs']} pairs, {rows[0]['valid']:,} pixels with a true "
            f"depth; means over images; scale per image: {alignment}.\n\n"
        )
        cells = [[one["method"], *(report.number(one[key]) for key in MEASURES)] for one in rows]
        text += report.table(["depth of", *MEASURES], cells)
        for one in rows:
            if one["not_finite"] or one["images_without"]:
                text += (
                    f"\n\n- **{one['method']}: {one['not_finite']:,} pixels whose depth is not "
                    f"finite are left out, and {one['images_without']} images without any scale.**"
                )
        if rows[0]["pairs_left_out"]:
            text += f"\n\n- {rows[0]['pairs_left_out']} pairs could not be loaded and are left out."
        parts.append(text)
    return "\n\n".join(parts) + "\n"
