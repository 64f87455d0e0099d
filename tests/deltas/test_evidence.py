"""Variance of triangulated points against what noise does to them, and what is made of it."""

import pytest
import torch
from deltas_scenes import (
    INTRINSICS,
    anchor_to_view,
    camera_poses,
    images,
    scene_points,
    small_model,
)

from deltas import checkpoint
from deltas.evidence import MATCH_PIXELS, EvidentialDepth, depth_variance, filled
from deltas.triangulation import Matches, triangulate
from dust3r.utils.geometry import geotrf, project

CAMERAS = INTRINSICS.expand(1, 3, 3, 3)


def observed(count: int = 12, stretch: float = 1.0, noise: torch.Tensor | float = 0.0, sure=1.0):
    """What ``depth_variance`` asks for, of points whose views are ``stretch`` times as far apart"""
    poses = anchor_to_view().double()
    poses[..., :3, 3] *= stretch
    pixels, points = scene_points(torch.linspace(1.5, 4.0, count))
    pixels, points = pixels.double(), points.double()
    cameras = CAMERAS.double()
    seen = torch.stack([project(geotrf(pose, points), cameras[0, 0])[0] for pose in poses[0]], 1)
    confidence = torch.full((1, count, 3), sure, dtype=torch.float64)
    confidence[..., 0] = 1
    matches = Matches(seen + noise, confidence, None)
    return pixels, matches, poses, cameras


def variance_of(pixels, matches, poses, cameras):
    points3d = triangulate(pixels, matches, poses, cameras)
    return depth_variance(pixels, matches, points3d, poses, cameras), points3d


def test_it_is_what_noise_in_the_matches_does():
    g = torch.Generator().manual_seed(0)
    pixels, matches, poses, cameras = observed()
    stated, _ = variance_of(pixels, matches, poses, cameras)
    small, trials = 0.05, 4000
    noise = small * torch.randn(trials, 3, 12, 2, generator=g, dtype=torch.float64)
    noisy = Matches(matches.pixels + noise[:, 1:], matches.confidence.expand(trials, -1, -1), None)
    z = triangulate(
        pixels + noise[:, 0], noisy, poses.expand(trials, -1, -1, -1),
        cameras.expand(trials, -1, -1, -1),
    )[..., 2]  # fmt: skip
    happened = z.var(0) / small**2 * MATCH_PIXELS**2
    # Linear triangulation weighs frames by depth, which is nearly the same in all of them.
    assert torch.allclose(happened, stated[0], rtol=0.15)


def test_baseline_confidence_and_rays_that_miss_make_it_larger():
    def spread(*given):
        # Over the fourth power of the depth, with which it grows: rays that miss move the depth.
        variance, points3d = variance_of(*given)
        return variance / points3d[..., 2] ** 4

    near = spread(*observed())
    assert (spread(*observed(stretch=3.0)) < near / 4).all()
    assert (spread(*observed(sure=0.1)) > 2 * near).all()
    # Along an epipolar line a match moves the point, across it only misses it.
    poses = anchor_to_view().double()[0]
    points = observed()[1].pixels, scene_points(torch.linspace(1.5, 4.0, 12))[1].double() * 1.01
    moved = torch.stack(
        [project(geotrf(pose, points[1]), INTRINSICS.double())[0] for pose in poses], 1
    )
    along = torch.nn.functional.normalize(moved - points[0], dim=-1)
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    assert (spread(*observed(noise=6 * across)) > 2 * near).all()


def test_without_parallax_it_is_huge_and_finite():
    pixels, matches, poses, cameras = observed()
    points = scene_points(torch.linspace(1.5, 4.0, 12))[1].double()
    still = torch.eye(4).double().expand_as(poses)
    stated = depth_variance(pixels, matches, points, still, cameras)
    assert stated.isfinite().all() and (stated > 1e6).all()


def test_holes_are_filled_from_around_them():
    sums = torch.zeros(1, 2, 5, 7)
    sums[0, :, 1, 2] = torch.tensor([6.0, 2.0])
    means, doubled = filled(sums)[0]
    assert torch.equal(means, torch.full((5, 7), 3.0))
    assert doubled[1, 2] == 0 and doubled[4, 6] > doubled[1, 3] > 0
    sums[0, :, 4, 6] = torch.tensor([10.0, 1.0])
    means, _ = filled(sums)[0]
    assert means[4, 6] == 10 and means[1, 2] == 3 and 3 <= means[4, 5] <= 10
    nothing, far = filled(torch.zeros(1, 2, 5, 7))[0]
    assert not nothing.any() and (far >= 3).all()


@pytest.mark.parametrize("size", [(48, 64), (45, 70)])
def test_evidence_is_about_the_depth_and_changes_none_of_it(size):
    model = small_model(evidential=True)
    frames = images(size), camera_poses(), INTRINSICS[None]
    found = model(*frames, torch.Generator().manual_seed(0))
    assert found.evidence.gamma.shape == found.evidence.beta.shape == (1, 1, *size)
    assert torch.equal(found.evidence.gamma, found.depth[0])
    assert (found.evidence.variance > 0).all() and found.evidence.variance.isfinite().all()
    found.evidence.nll(torch.ones(1, 1, *size)).sum().backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"evidence"}


def test_it_reads_the_points_variance():
    torch.manual_seed(0)
    head = EvidentialDepth(4)
    points = torch.tensor([[[10.0, 12.0], [30.0, 20.0]]])
    depth, z, valid = torch.full((1, 1, 32, 48), 2.0), torch.full((1, 2), 2.0), torch.ones(1, 2) > 0
    features = torch.zeros(1, 4, 32, 48)
    low, high = (
        head(features, depth, points, z, torch.full((1, 2), v), valid).variance for v in (1e-4, 1.0)
    )
    assert (low - high).abs().max() > 1e-3


def test_weights_with_evidence_go_round_and_published_ones_have_none(tmp_path):
    spec = "Deltas(num_kps=24, width=8, depths=(1, 1, 1, 1), evidential=True)"
    model = small_model(evidential=True)
    checkpoint.save(tmp_path / "own.pth.tar", model, spec)
    again = checkpoint.load_model(tmp_path / "own.pth.tar")
    weights = again.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    checkpoint.save(tmp_path / "plain.pth.tar", small_model())
    report = checkpoint.load(model, tmp_path / "plain.pth.tar")
    assert {name.split(".")[0] for name in report.missing} == {"evidence"}
