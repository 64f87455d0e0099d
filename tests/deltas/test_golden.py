"""Every stage agrees with the published network on weights and images made from names and seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deltas.checkpoint import PARTS
from deltas.densify import sparse_depth
from deltas.epipolar import back_project
from deltas.model import Deltas
from tests.golden.fill import fill_state_dict, golden_image

GOLDEN = Path(__file__).parents[1] / "golden"
DESCRIBED = json.loads((GOLDEN / "deltas.json").read_text())
SIZE = DESCRIBED["height"], DESCRIBED["width"]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "deltas.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored}


@pytest.fixture(scope="module")
def model() -> Deltas:
    with torch.device("meta"):
        model = Deltas()
    # Every weight is filled; only ImageNet's mean and deviation are not among them.
    constants = Deltas(width=4, depths=(1, 1, 1, 1)).interest
    model.to_empty(device="cpu")
    model.interest.mean, model.interest.std = constants.mean, constants.std
    for part in PARTS.values():
        fill_state_dict(model.get_submodule(part))
    return model.eval()


@pytest.fixture(scope="module")
def maps(model) -> list[torch.Tensor]:
    images = golden_image(DESCRIBED["image_seed"], DESCRIBED["frames"], *SIZE) * 0.5 + 0.5
    with torch.no_grad():
        return model.interest.encode(torch.from_numpy(images))


@pytest.mark.parametrize("published, part", PARTS.items())
def test_names_and_shapes(published, part):
    with torch.device("meta"):
        model = Deltas()
    shapes = {name: list(t.shape) for name, t in model.get_submodule(part).state_dict().items()}
    assert shapes == DESCRIBED["state_dict"][published]


@torch.no_grad()
def test_interest_points(model, maps, expected):
    names = ("skip_half", "skip_quarter", "skip_eight", "skip_sixteenth", "features")
    for name, x in zip(names, maps, strict=True):
        assert_agrees(x.abs().mean(), expected[f"out.mean_abs.{name}"])
    assert_agrees(model.interest.detect([x[:1] for x in maps]), expected["out.scores"])
    assert_agrees(model.interest.describe(maps), expected["out.descriptors"])


@torch.no_grad()
def test_triangulation(model, expected):
    matches, points3d = model.triangulation(
        expected["in.keypoints"],
        expected["out.descriptors"][None],
        expected["in.pose"],
        expected["in.intrinsics"],
        SIZE,
    )
    assert torch.equal(matches.segments.seen, expected["out.range_kp"] > 0)
    assert_agrees(matches.pixels, expected["out.multiview_matches"])
    assert_agrees(matches.confidence, expected["out.confidence"])
    assert_agrees(points3d, expected["out.keypoints_3d"])


def test_points_of_known_depth(expected):
    truth = expected["out.keypoints3d_gt"]
    points = back_project(expected["in.keypoints"], truth[..., 2], expected["in.intrinsics"])
    assert_agrees(points, truth)


@torch.no_grad()
def test_densification(model, maps, expected):
    z = expected["in.sparse_points"][..., 2]
    valid = (expected["in.range_mask"] > 0) & (z > 0.5) & (z < 10)
    sparse = sparse_depth(expected["in.keypoints"], z, valid, SIZE)
    depths = model.densification(sparse, [x[:1] for x in maps])
    names = ("dense_depth", "multiscale.0", "multiscale.1", "multiscale.2")
    for name, depth in zip(names, depths, strict=True):
        assert_agrees(depth, expected[f"out.{name}"])


def assert_agrees(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
