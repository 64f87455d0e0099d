"""Stored predictions of known errors, for evaluations without any network."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from dust3r.evaluation.predictions import INDEX, Predicted, store_pair
from dust3r.utils.geometry import depthmap_to_pts3d

SIDE = 24
SOURCE = "net-0"


def view(generator, number, valid=True, room="room"):
    """A view of a bumpy wall, with the truth about it."""
    intrinsics = torch.tensor([[[20.0, 0, 11.5], [0, 20, 11.5], [0, 0, 1]]])
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 3] = 0.1 * number
    depth = 2 + torch.rand(1, SIDE, SIDE, generator=generator)
    mask = torch.rand(1, SIDE, SIDE, generator=generator) > 0.1 if valid else depth < 0
    return {
        "img": torch.rand(1, 3, SIDE, SIDE, generator=generator) * 2 - 1,
        "depthmap": depth * mask,
        "valid_mask": mask,
        "camera_pose": pose,
        "camera_intrinsics": intrinsics,
        "true_shape": torch.tensor([[SIDE, SIDE]]),
        "pts3d": depthmap_to_pts3d(depth, intrinsics, pose),
        "label": [f"{room}/{number}"],
        "instance": [f"{room}/{number}.jpg"],
    }


def prediction(one, generator, first, spoil=0, factor=1.0):
    """Of a view: noise of a known deviation, half of it told by GeoUQ, a third by confidence.

    ``factor``: how much larger the noise of GeoUQ's depth is than what it tells.
    """
    shape = one["depthmap"].shape
    sigma = torch.exp(torch.randn(shape, generator=generator) - 3)
    points = one["pts3d"] + 0.5 * sigma[..., None] * torch.randn(*shape, 3, generator=generator)
    depth = one["depthmap"] + factor * sigma * torch.randn(shape, generator=generator)
    if spoil:
        points.view(-1, 3)[:spoil] = torch.nan
    alpha = torch.full_like(sigma, 30.0)
    beta = sigma.square() * (alpha - 1) * 0.9
    blurred = sigma * torch.exp(torch.randn(shape, generator=generator))
    evidence = {"gamma": depth, "nu": torch.full_like(depth, 9.0), "alpha": alpha, "beta": beta}
    maps = {f"depth_{key}": value[:, None] for key, value in evidence.items()}
    key = "pts3d" if first else "pts3d_in_other_view"
    return {key: 2 * points, "conf": 1 + 1 / blurred, "depth_mu": depth[:, None],
            "depth_var": sigma.square()[:, None], **maps}  # fmt: skip


def store(
    folder: Path,
    pairs: int = 5,
    valid: bool = True,
    spoil: int = 0,
    seed: int = 0,
    name: str = "Walls",
    room: str = "room",
    factor: float = 1.0,
) -> Path:
    """A folder of predictions of a benchmark ``name``; ``spoil`` points of each image are NaN.

    Called again with the same folder it adds another benchmark.
    """
    generator = torch.Generator().manual_seed(seed)
    for index in range(pairs):
        views = tuple(view(generator, 2 * index + n, valid, room) for n in range(2))
        found = tuple(
            prediction(one, generator, n == 0, spoil, factor) for n, one in enumerate(views)
        )
        store_pair(folder, name, Predicted(index, views, {SOURCE: found}))
    path = folder / INDEX
    others = json.loads(path.read_text())["benchmarks"] if path.is_file() else {}
    content = {
        "benchmarks": others | {name: {"spec": "made up", "pairs": list(range(pairs))}},
        "methods": {"conf": SOURCE},
        "sources": {SOURCE: "net.pth"},
    }
    path.write_text(json.dumps(content))
    return folder


WALLS = SimpleNamespace(name="Walls")
