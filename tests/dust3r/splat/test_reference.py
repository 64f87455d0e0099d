"""The reference rasteriser draws what the formulas say."""

import math

import pytest
import torch
from torch.nn import functional as F

from dust3r.splat.gaussians import SH_C0, Gaussians
from dust3r.splat.rasterise import Camera
from dust3r.splat.reference import BLUR, render

WIDTH, HEIGHT, FX, FY, CX, CY = 48, 40, 50.0, 60.0, 22.3, 18.6


def camera(world_to_camera=None):
    intrinsics = torch.tensor([[FX, 0, CX], [0, FY, CY], [0, 0, 1]], dtype=torch.float64)
    moved = torch.eye(4) if world_to_camera is None else world_to_camera
    return Camera(moved.double(), intrinsics, (WIDTH, HEIGHT))


def gaussians(means, scales=0.1, colours=(1.0, 1.0, 1.0), opacities=0.8, quats=None):
    means = torch.as_tensor(means, dtype=torch.float64).reshape(-1, 3)
    count = len(means)
    colours = torch.as_tensor(colours, dtype=torch.float64).expand(count, 3)
    turns = torch.tensor([[1.0, 0, 0, 0]] * count) if quats is None else torch.as_tensor(quats)
    return Gaussians(
        means,
        F.normalize(turns.double(), dim=-1),
        torch.as_tensor(scales, dtype=torch.float64).expand(count, 3),
        torch.as_tensor(opacities, dtype=torch.float64).expand(count),
        ((colours - 0.5) / SH_C0)[:, None],
    )


def moments(opacity):
    """Weighted mean (u, v) and covariance of an image."""
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    pixels = torch.stack([u, v], -1).double().reshape(-1, 2)
    weights = (opacity / opacity.sum()).reshape(-1, 1)
    mean = (weights * pixels).sum(0)
    return mean, (weights * (pixels - mean)).T @ (pixels - mean)


def test_a_round_gaussian_is_where_it_projects_and_as_large_as_it_looks():
    x, y, z, size = 0.2, -0.1, 4.0, 0.3
    shown = render(gaussians([x, y, z], size, opacities=0.99), camera(), sh_degree=0)
    mean, covariance = moments(shown.opacity)
    assert torch.allclose(
        mean, torch.tensor([FX * x / z + CX, FY * y / z + CY]).double(), atol=0.01
    )
    # J J^T of the projection's derivative; what is fainter than 1/255 is cut off.
    expected = [(f * size / z) ** 2 * (1 + (s / z) ** 2) + BLUR for f, s in ((FX, x), (FY, y))]
    assert torch.allclose(covariance.diagonal(), torch.tensor(expected).double(), rtol=0.05)
    peak = shown.opacity.max().item()
    assert 0.97 < peak <= 0.99


def test_a_long_gaussian_lies_as_its_quaternion_says():
    # A quarter turn about the camera's axis: long in x becomes long in y.
    turn = [[math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)]]
    long = torch.tensor([[0.4, 0.05, 0.05]])
    shown = render(gaussians([0, 0, 4.0], long, quats=turn), camera(), sh_degree=0)
    _, covariance = moments(shown.opacity)
    assert covariance[1, 1] > 10 * covariance[0, 0]
    tilted = [[math.cos(math.pi / 12), 0, 0, math.sin(math.pi / 12)]]
    _, covariance = moments(
        render(gaussians([0, 0, 4.0], long, quats=tilted), camera(), sh_degree=0).opacity
    )
    # x turns towards y, which is down in images.
    assert covariance[0, 1] > 0.5


def test_the_pose_is_from_the_world_to_the_camera():
    moved = torch.eye(4)
    moved[:3, :3] = torch.tensor([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
    moved[:3, 3] = torch.tensor([0.1, 0.2, 0.5])
    # World (3, 0, 0.2) is (-0.2, 0, 3) in the camera before the shift.
    mean, _ = moments(render(gaussians([3.0, 0, 0.2], 0.05), camera(moved), sh_degree=0).opacity)
    expected = torch.tensor([FX * -0.1 / 3.5 + CX, FY * 0.2 / 3.5 + CY]).double()
    assert torch.allclose(mean, expected, atol=0.02)


def test_the_near_hides_the_far_whatever_their_order():
    red, green = (1.0, 0, 0), (0, 1.0, 0)
    for order in ([0, 1], [1, 0]):
        means = torch.tensor([[0.0, 0, 2], [0, 0, 4]])[order]
        colours = torch.tensor([red, green])[order]
        image = render(gaussians(means, 1.0, colours, opacities=0.6), camera(), sh_degree=0).image
        middle = image[round(CY), round(CX)]
        expected = torch.tensor([0.6, 0.6 * 0.4, 0]).double()
        assert torch.allclose(middle, expected, atol=2e-3)


def test_what_is_behind_the_camera_is_not_drawn():
    shown = render(gaussians([[0, 0, -3.0], [0, 0, 0.005]]), camera(), sh_degree=0)
    assert shown.opacity.max() == 0 and shown.image.shape == (HEIGHT, WIDTH, 3)


def test_colours_change_with_the_side_that_they_are_seen_from():
    one = gaussians([0, 0, 4.0], 0.3, (0.5, 0.5, 0.5))
    harmonics = torch.zeros(1, 4, 3, dtype=torch.float64)
    harmonics[0, 2, 0] = 1.0  # grows with z of the direction from the camera
    seen = Gaussians(one.means, one.quats, one.scales, one.opacities, harmonics)
    behind = torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    behind[2, 3] = 8.0
    before, after = (
        render(seen, camera(pose), sh_degree=1).image[round(CY), round(CX), 0]
        for pose in (torch.eye(4), behind)
    )
    factor = math.sqrt(3 / (4 * math.pi))
    assert math.isclose(before / 0.8, 0.5 + factor, rel_tol=0.02)
    assert math.isclose(after / 0.8, max(0.0, 0.5 - factor), rel_tol=0.02)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    means = torch.randn(4, 3).double() * 0.3 + torch.tensor([0, 0, 3.0])
    quats = F.normalize(torch.randn(4, 4).double(), dim=-1)
    scales = torch.rand(4, 3).double() * 0.4 + 0.4
    opacities = torch.rand(4).double() * 0.3 + 0.4
    harmonics = torch.randn(4, 4, 3).double() * 0.3
    leaves = [one.requires_grad_() for one in (means, quats, scales, opacities, harmonics)]
    small = Camera(
        torch.eye(4).double(),
        torch.tensor([[6.0, 0, 3.2], [0, 7, 2.4], [0, 0, 1]]).double(),
        (6, 5),
    )

    def draw(*parts):
        return render(Gaussians(*parts), small, sh_degree=1).image

    assert torch.autograd.gradcheck(draw, leaves, atol=1e-6)


def test_scenes_that_are_too_large_are_refused():
    many = gaussians(torch.zeros(200_000, 3))
    with pytest.raises(ValueError, match="too many for the reference"):
        render(many, camera(), sh_degree=0)
