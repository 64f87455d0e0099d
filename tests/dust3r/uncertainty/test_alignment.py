"""Similarities and scales: the golden case, invariance, outliers, undefined ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.uncertainty.alignment import align_points, depth_scale, sim3

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "uq.npz") as stored:
        return torch.from_numpy(stored["sim3_src"]), torch.from_numpy(stored["sim3_dst"])


def test_the_similarity_is_the_published_one(golden):
    published = json.loads((GOLDEN / "uq.json").read_text())["sim3"]
    found = sim3(*golden).numpy()
    np.testing.assert_allclose(found[:3, :3], published["scale"] * np.array(published["R"]), 1e-5)
    np.testing.assert_allclose(found[:3, 3], published["t"], 1e-5)


@pytest.mark.parametrize("kind", ["umeyama", "robust"])
def test_moved_and_scaled_points_come_back(golden, kind):
    similarity, points = sim3(*golden), golden[0]
    moved = points.double() @ similarity[:3, :3].T + similarity[:3, 3]
    torch.testing.assert_close(align_points(moved, points, kind), points, atol=1e-4, rtol=1e-4)


def test_a_mirrored_cloud_is_not_mirrored_back(golden):
    mirrored = golden[0] * torch.tensor([-1.0, 1, 1])
    found = sim3(mirrored, golden[0])
    assert torch.linalg.det(found[:3, :3]) > 0


def test_few_far_outliers_move_the_robust_alignment_less(golden):
    points = golden[0]
    spoilt = points.clone()
    spoilt[:10] += 6
    error = {
        kind: (align_points(spoilt, points, kind) - points)[10:].norm(dim=1).mean()
        for kind in ("umeyama", "robust")
    }
    assert error["robust"] < 0.01 < error["umeyama"]


def test_undefined_similarities_are_none():
    cloud = torch.rand(9, 3)
    line = torch.linspace(0, 1, 9)[:, None] * torch.tensor([[1.0, 2, 3]])
    for points, targets in (
        (cloud[:3], cloud[:3]),
        (line, cloud),
        (cloud, line),
        (torch.ones(9, 3), cloud),
        (cloud[:0], cloud[:0]),
    ):
        assert align_points(points, targets) is None
    flat = cloud * torch.tensor([1.0, 1, 0])
    torch.testing.assert_close(align_points(flat, flat), flat, atol=1e-5, rtol=0)


def test_scales_and_unknown_kinds():
    truth = torch.tensor([1.0, 2, 3, 10])
    assert depth_scale(truth / 4, truth, "none") == 1
    assert depth_scale(truth / 4, truth, "median") == pytest.approx(4)
    assert depth_scale(truth / 4, truth, "lstsq") == pytest.approx(4)
    with pytest.raises(ValueError, match="'mean' is unknown; choose none, median, lstsq"):
        depth_scale(truth, truth, "mean")
    with pytest.raises(ValueError, match="'icp' is unknown; choose umeyama or robust"):
        align_points(torch.rand(9, 3), torch.rand(9, 3), "icp")
