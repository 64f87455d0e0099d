"""Pointmap errors of a checkpoint on held-out pairs, against what knows nothing of the image.

python scripts/eval_pointmaps.py --ckpt checkpoints/rooms_small.safetensors --dataset SPEC

The error of a map is the mean distance to the true points over their mean distance from the
camera, after the map is scaled by the median ratio of the distances. Baselines are given the
intrinsics: ``constant`` puts every pixel at one depth; ``plane`` is the plane (inverse depth linear
in the pixel) that fits the *true* depth of this very image best, in relative depth. What knows
nothing of the images cannot know how the camera moved: baselines of view 2 stay in camera 1.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.datasets import get_data_loader
from dust3r.uncertainty.evaluation import predict
from dust3r.utils.device import best_device
from dust3r.utils.files import atomic_path
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv
from dust3r.viz import load

NAMES = tuple(f"{kind}, view {n}" for kind in ("model", "constant", "plane") for n in (1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--dataset", required=True, help="specification of the held-out pairs")
    parser.add_argument("--output", type=Path, default=None, help=".json to write")
    args = parser.parse_args()
    model, _ = load(args.ckpt, None)
    loader = get_data_loader(args.dataset, 4, 2, shuffle=False, drop_last=False)
    errors = {name: [] for name in NAMES}
    for views, predictions in predict(model, loader, best_device()):
        for name, values in pair_errors(views, predictions).items():
            errors[name] += values
    means = {name: sum(values) / len(values) for name, values in errors.items()}
    print(f"{len(errors[NAMES[0]])} pairs of {args.dataset}\n\n| pointmap | error |\n|---|---|")
    for name, value in means.items():
        print(f"| {name} | {value:.3f} |")
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(means, indent=1) + "\n")


def pair_errors(views: tuple[dict, dict], predictions: tuple[dict, dict]) -> dict[str, list]:
    """Errors by name of every pair of a batch whose views both have a valid pixel."""
    to_first = inv(views[0]["camera_pose"])
    truths = [geotrf(to_first, view["pts3d"]) for view in views]
    found = {name: [] for name in NAMES}
    for i in range(len(truths[0])):
        valid = [view["valid_mask"][i] for view in views]
        if not (valid[0].any() and valid[1].any()):
            continue
        # The pair has one scale, as its two maps share one frame.
        maps = [predictions[0]["pts3d"][i], predictions[1]["pts3d_in_other_view"][i]]
        true = [truth[i] for truth in truths]
        scale = median_ratio(
            torch.cat([t[v] for t, v in zip(true, valid, strict=True)]),
            torch.cat([m[v] for m, v in zip(maps, valid, strict=True)]),
        )
        for number, view in enumerate(views):
            points, mask, depth = true[number], valid[number], view["depthmap"][i]
            error = relative_error(maps[number] * scale, points, mask)
            found[f"model, view {number + 1}"].append(error)
            for kind, guess in (
                ("constant", torch.ones_like(depth)),
                ("plane", fitted_plane(depth, mask)),
            ):
                guessed = depthmap_to_pts3d(guess, view["camera_intrinsics"][i])
                guessed = guessed * median_ratio(points[mask], guessed[mask])
                error = relative_error(guessed, points, mask)
                found[f"{kind}, view {number + 1}"].append(error)
    return found


def median_ratio(true: Tensor, predicted: Tensor) -> Tensor:
    return (true.norm(dim=-1) / predicted.norm(dim=-1).clamp(min=1e-8)).median()


def relative_error(points: Tensor, true: Tensor, valid: Tensor) -> float:
    distance = (points - true).norm(dim=-1)[valid].mean()
    return (distance / true.norm(dim=-1)[valid].mean()).item()


def fitted_plane(depth: Tensor, valid: Tensor) -> Tensor:
    """Depth (H, W) of the plane nearest to a true depth map.

    1 / z = a u + b v + c; rows weighted by z make the residual z (1/z' - 1/z), a relative error.
    """
    height, width = depth.shape
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows = torch.stack([u / width, v / height, torch.ones(height, width)], -1).to(depth)
    z = depth[valid][:, None].double()
    solved = torch.linalg.lstsq(rows[valid].double() * z, torch.ones_like(z)).solution
    return 1 / (rows.double() @ solved).squeeze(-1).clamp(min=1e-2).to(depth)


if __name__ == "__main__":
    main()
