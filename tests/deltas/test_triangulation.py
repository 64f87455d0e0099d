"""Epipolar segments, similarities and triangulation against plain formulations and known scenes."""

import pytest
import torch
import torch.nn.functional as F
from deltas_scenes import INTRINSICS, SIZE, anchor_to_view, scene_points

from deltas.epipolar import Segments, epipolar_segments
from deltas.similarity import sample_descriptors, sampling_grid, similarities
from deltas.triangulation import Matches, SmallestEigenvector, Triangulation, triangulate
from dust3r.utils.geometry import geotrf, project

DEPTHS = 0.5, 10.0


def true_matches(depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Matches]:
    """Pixels (1, N, 2) of the anchor, their points (1, N, 3), and exact matches in two views."""
    pixels, points = scene_points(depth)
    seen = torch.stack(
        [project(geotrf(pose, points), INTRINSICS)[0] for pose in anchor_to_view()[0]], 1
    )
    return pixels, points, Matches(seen, torch.ones(1, len(depth), 3), None)


def test_segments_hold_the_true_matches():
    pixels, _, matches = true_matches(torch.linspace(0.8, 9.0, 30))
    segments = epipolar_segments(
        pixels, anchor_to_view(), INTRINSICS.expand(1, 3, 3, 3), SIZE, DEPTHS
    )
    assert segments.seen.float().mean() > 0.3
    offset = matches.pixels - segments.centre
    along = (offset * segments.direction).sum(-1).abs()
    across = (offset - (offset * segments.direction).sum(-1, True) * segments.direction).norm(
        dim=-1
    )
    assert (across[segments.seen] < 1e-2).all()
    assert (along <= segments.length / 2 + 1e-2)[segments.seen].all()


def test_segments_end_at_nearest_and_farthest_depth():
    ends = []
    for depth in DEPTHS:
        pixels, _, matches = true_matches(torch.full((20,), depth))
        ends.append(matches.pixels)
    segments = epipolar_segments(
        pixels, anchor_to_view(), INTRINSICS.expand(1, 3, 3, 3), SIZE, DEPTHS
    )
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    for found, other in ((one, -one), (-one, one)):
        near = (segments.pixels(found, zero) - ends[0]).norm(dim=-1)
        far = (segments.pixels(other, zero) - ends[1]).norm(dim=-1)
        near_else = (segments.pixels(other, zero) - ends[0]).norm(dim=-1)
        assert (torch.minimum(near + far, near_else)[segments.seen] < 2e-2).all()


def test_void_segments():
    pixels = torch.tensor([[[32.0, 24.0]]])
    sideways = torch.eye(4).expand(1, 1, 4, 4).clone()
    sideways[..., 0, 3] = -9.0
    behind = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])).expand(1, 1, 4, 4)
    for pose in (sideways, behind):
        found = epipolar_segments(pixels, pose, INTRINSICS.expand(1, 2, 3, 3), SIZE, DEPTHS)
        assert not found.seen.any()
        assert not found.length.any() and not found.centre.any()


@pytest.mark.parametrize("edge, inside", [(-0.4, True), (-0.6, False), (63.4, True), (63.6, False)])
def test_a_pixel_reaches_half_a_pixel_from_its_centre(edge, inside):
    same = torch.eye(4).expand(1, 1, 4, 4)
    intrinsics = INTRINSICS.expand(1, 2, 3, 3)
    found = epipolar_segments(torch.tensor([[[edge, 20.0]]]), same, intrinsics, SIZE, DEPTHS)
    assert found.seen.item() is inside


def test_places_are_one_pixel_apart_across():
    segments = Segments(
        centre=torch.tensor([[[[10.0, 20.0]]]]),
        direction=torch.tensor([[[[0.6, 0.8]]]]),
        length=torch.tensor([[[10.0]]]),
        seen=torch.tensor([[[True]]]),
    )
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    assert segments.pixels(one, zero)[0, 0, 0].tolist() == pytest.approx([13, 24])
    assert segments.pixels(-one, zero)[0, 0, 0].tolist() == pytest.approx([7, 16])
    assert segments.pixels(zero, one)[0, 0, 0].tolist() == pytest.approx([9.2, 20.6])


def test_similarities_are_those_of_sampled_and_normalised_descriptors():
    g = torch.Generator().manual_seed(0)
    anchor = torch.randn(2, 7, 5, 6, generator=g)
    views = torch.randn(2, 3, 7, 5, 6, generator=g).requires_grad_()
    # Places beyond the edges as well, where samples fade to nothing.
    places = torch.rand(2, 3, 4, 3, 10, 2, generator=g) * 80 - 16
    points = torch.rand(2, 4, 2, generator=g) * 40
    found = similarities(anchor, points, views, places, 8)

    grid = sampling_grid(places, (5, 6), 8).flatten(0, 1).flatten(1, 3)[:, None]
    sampled = F.grid_sample(views.flatten(0, 1), grid, align_corners=False)[:, :, 0]
    sampled = F.normalize(sampled, dim=1).view(2, 3, 7, *places.shape[2:5])
    own = sample_descriptors(anchor, points, 8)
    plain = torch.einsum("bvcnrs,bnc->bvnrs", sampled, own)
    assert torch.allclose(found, plain, atol=1e-5)
    seed = torch.randn(found.shape, generator=g)
    of_found, of_plain = (torch.autograd.grad(x, views, seed)[0] for x in (found, plain))
    assert (of_found - of_plain).abs().max() < 1e-4 * of_plain.abs().max()


def test_exact_matches_give_the_points():
    pixels, points, matches = true_matches(torch.linspace(0.6, 9.0, 30))
    found = triangulate(pixels, matches, anchor_to_view(), INTRINSICS.expand(1, 3, 3, 3))
    assert torch.allclose(found, points, rtol=1e-3, atol=1e-3)


def test_a_view_without_confidence_does_not_count():
    pixels, points, matches = true_matches(torch.linspace(0.6, 5.0, 30))
    matches.pixels[:, 1] += 7
    matches.confidence[..., 2] = 0
    found = triangulate(pixels, matches, anchor_to_view(), INTRINSICS.expand(1, 3, 3, 3))
    assert torch.allclose(found, points, rtol=1e-3, atol=1e-3)
    matches.confidence[..., 2] = 1
    found = triangulate(pixels, matches, anchor_to_view(), INTRINSICS.expand(1, 3, 3, 3))
    assert not torch.allclose(found, points, rtol=1e-2, atol=1e-2)


def test_eigenvector_derivative():
    factor = torch.randn(3, 6, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))

    def projector(rows):
        # Whichever sign the eigenvector has.
        vector = SmallestEigenvector.apply(rows.mT @ rows)
        return vector[..., :, None] * vector[..., None, :]

    assert torch.autograd.gradcheck(projector, factor.requires_grad_())


def test_eigenvector_of_equal_eigenvalues_has_finite_derivatives():
    for matrix in (torch.eye(4), torch.zeros(4, 4), torch.diag(torch.tensor([0.0, 0, 1, 1]))):
        matrix = matrix.double().requires_grad_()
        SmallestEigenvector.apply(matrix).sum().backward()
        assert matrix.grad.isfinite().all()


@pytest.mark.parametrize("case", ["same pose", "no overlap", "only turned", "inverted"])
def test_degenerate_views_give_finite_values_and_derivatives(case):
    poses = anchor_to_view().clone()
    if case == "same pose":
        poses[:] = torch.eye(4)
    elif case == "no overlap":
        poses[..., :3, 3] += 100
    elif case == "only turned":
        poses[..., :3, 3] = 0
    else:
        poses = poses.inverse()
    g = torch.Generator().manual_seed(0)
    maps = F.normalize(torch.randn(1, 3, 8, 6, 8, generator=g), dim=2).requires_grad_()
    points = torch.rand(1, 12, 2, generator=g) * torch.tensor([63, 47])
    matches, points3d = Triangulation()(points, maps, poses, INTRINSICS[None], SIZE)
    if case == "no overlap":
        assert not matches.segments.seen.any()
        assert (matches.confidence[..., 1:] < 1.1e-3).all()
    assert points3d.isfinite().all() and matches.pixels.isfinite().all()
    (points3d.sum() + matches.confidence.sum()).backward()
    assert maps.grad.isfinite().all()


def test_untrained_it_finds_what_looks_the_same():
    """And not the middle of the segment, which a soft maximum that is too soft gives everywhere."""
    g = torch.Generator().manual_seed(0)
    anchor = F.normalize(torch.randn(1, 64, 6, 8, generator=g), dim=1)
    # A wall at 1.5 m, seen from 0.2 m beside it: 8 pixels, which is one cell.
    view = anchor.roll(-1, -1)
    pose = torch.eye(4).repeat(1, 1, 1, 1)
    pose[..., 0, 3] = -0.2
    y, x = torch.meshgrid(torch.arange(6), torch.arange(2, 8), indexing="ij")
    points = (torch.stack([x, y], -1).reshape(1, -1, 2) * 8 + 4).float()
    camera = torch.tensor([[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]]).expand(1, 2, 3, 3)
    matches, points3d = Triangulation()(
        points, torch.stack([anchor, view], 1), pose, camera, SIZE, DEPTHS
    )
    seen = matches.segments.seen[0, 0]
    assert seen.sum() > 10
    true = points[0] - torch.tensor([8.0, 0.0])
    found, middle = (
        (place[0, 0] - true).norm(dim=-1)[seen].mean()
        for place in (matches.pixels, matches.segments.centre)
    )
    assert found < 1.5 and found < middle / 2
    assert ((points3d[0, seen, 2] - 1.5).abs() < 0.5).float().mean() > 0.8
