"""Focal lengths from pointmaps: the published numbers, known answers, outliers and limits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dust3r.post_process import estimate_focal_knowing_depth

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "focals.npz")
MIDDLE = torch.tensor([32.0, 24.0])


def pointmap(focal, depth=None):
    """(1, 48, 64, 3) of a camera with the principal point ``MIDDLE``."""
    v, u = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    if depth is None:
        depth = 2 + 0.01 * u + 0.02 * v
    rays = torch.stack([(u - 32) / focal, (v - 24) / focal, torch.ones_like(u)], -1)
    return (rays * depth[..., None])[None]


@pytest.mark.parametrize("mode", ["median", "weiszfeld"])
@pytest.mark.parametrize("case", sorted({key.split(".")[0] for key in GOLDEN.files}))
def test_published_numbers(case, mode):
    points = torch.from_numpy(GOLDEN[f"{case}.pts3d"])
    focal = estimate_focal_knowing_depth(points, MIDDLE, mode)
    np.testing.assert_allclose(focal, GOLDEN[f"{case}.{mode}"], rtol=1e-4)


@pytest.mark.parametrize("mode", ["median", "weiszfeld"])
def test_a_batch_is_its_images(mode):
    points = torch.cat([pointmap(50.0), pointmap(80.0)])
    focals = estimate_focal_knowing_depth(points, MIDDLE.repeat(2, 1), mode)
    torch.testing.assert_close(focals, torch.tensor([50.0, 80.0]))
    scaled = estimate_focal_knowing_depth(7 * points, MIDDLE, mode)
    torch.testing.assert_close(scaled, focals)


@pytest.mark.parametrize("mode", ["median", "weiszfeld"])
def test_outliers_and_points_that_are_not_finite(mode):
    points = pointmap(60.0)
    generator = torch.Generator().manual_seed(0)
    bad = torch.rand(1, 48, 64, generator=generator) < 0.2
    points[bad] *= 1 + torch.rand(int(bad.sum()), 3, generator=generator)
    points[:, 5] = float("nan")
    points[:, 6] = 0.0
    focal = estimate_focal_knowing_depth(points, MIDDLE, mode)
    assert focal.item() == pytest.approx(60, rel=0.01)


@pytest.mark.parametrize("mode", ["median", "weiszfeld"])
def test_weights_of_zero_leave_pixels_out(mode):
    points = pointmap(60.0)
    points[:, :, :40, :2] *= 3
    weights = torch.ones(1, 48, 64)
    weights[:, :, :40] = 0
    focal = estimate_focal_knowing_depth(points, MIDDLE, mode, weights=weights)
    assert focal.item() == pytest.approx(60, rel=1e-4)


def test_limits_are_multiples_of_a_60_degree_camera():
    base = 64 / (2 * math.tan(math.radians(30)))
    low = estimate_focal_knowing_depth(pointmap(10.0), MIDDLE, min_focal=0.5)
    high = estimate_focal_knowing_depth(pointmap(900.0), MIDDLE, max_focal=3.5)
    assert low.item() == pytest.approx(0.5 * base)
    assert high.item() == pytest.approx(3.5 * base)


def test_unknown_mode():
    with pytest.raises(ValueError, match="focal_mode='mean' is neither"):
        estimate_focal_knowing_depth(pointmap(50.0), MIDDLE, "mean")
