"""Sparse alignment of images of many sizes, of one image twice, and of what is not finite."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dust3r.export import export_all
from dust3r.reconstruction import Reconstruction, Source
from mast3r.cloud_opt.cache import ForwardResult
from mast3r.cloud_opt.canonical import canonical_of
from mast3r.cloud_opt.sparse_ga import SparseScene
from mast3r.pipeline import scene_pairs

LEFT, RIGHT = 26, 86
CENTRES = {112: (55.5, 39.5), RIGHT - LEFT: (55.5 - LEFT, 39.5)}


def aligned(given, **settings):
    scene = SparseScene(given, verbose=False)
    scene.preset_principal_point([CENTRES[shape[1]] for shape in scene.imshapes])
    scene.compute_global_alignment(**settings)
    return scene


def worst(problems, scene, truth):
    found = scene.get_im_poses().double().numpy()
    rotation, direction = problems.pose_errors(found, truth.poses[list(scene.image_ids)])
    return rotation.max(), np.nanmax(direction)


def portrait(given, chosen):
    """Forward results of which some images lose columns at both sides."""
    for (i, j), one in given._results.items():
        points, confidence, pixels = one.points, one.confidence, one.pixels.clone()
        kept = torch.ones(len(pixels), dtype=torch.bool)
        for column, n in ((0, i), (2, j)):
            if n in chosen:
                kept &= (pixels[:, column] >= LEFT) & (pixels[:, column] < RIGHT)
                pixels[:, column] -= LEFT
        if i in chosen:
            points, confidence = points[:, LEFT:RIGHT], confidence[:, LEFT:RIGHT]
        votes = one.match_confidence[kept]
        given._results[i, j] = ForwardResult(points, confidence, pixels[kept], votes)
    for n in chosen:
        width = RIGHT - LEFT
        source = Source(f"image_{n:03d}.png", None, (width, 80), np.eye(3))
        given.views[n] |= {"img": torch.zeros(1, 3, 80, width), "source": source}
    return given


@pytest.mark.parametrize("depth", ["network", "triangulated", "tsdf"])
def test_landscape_and_portrait_images_in_one_scene(problems, results, truth, tmp_path, depth):
    scene = aligned(portrait(results(0.03, 0.5, 0.1), (1, 3)), depth=depth)
    assert [one.shape for one in scene.get_depthmaps()][:2] == [(80, 112), (80, 60)]
    rotation, direction = worst(problems, scene, truth)
    assert rotation < 2.5
    assert direction < 15
    assert problems.focal_errors(scene.get_focals()[:, 0], truth.focals).max() < 0.05
    reconstruction = Reconstruction.from_scene(scene.clean_pointcloud())
    assert all(path.exists() for path in export_all(reconstruction, tmp_path).values())


def test_one_image_twice_has_one_camera(results, truth):
    given = results(0.02, 0.3)
    rows, columns = torch.meshgrid(torch.arange(4, 80, 8), torch.arange(4, 112, 8), indexing="ij")
    grid = torch.stack([columns, rows], -1).flatten(0, 1)
    same = replace(
        given.get(0, 1), pixels=torch.cat([grid, grid], 1), match_confidence=torch.ones(len(grid))
    )
    for i, j in list(given._results):
        first, second = (0 if n == 5 else n for n in (i, j))
        given._results[i, j] = same if first == second else given.get(first, second)
    scene = aligned(given)
    poses = scene.get_im_poses()
    centres = poses[:, :3, 3]
    assert scene.n_imgs == 6
    assert (poses[0] - poses[5]).abs().max() < 0.05 * (centres[0] - centres[3]).norm()


@pytest.mark.parametrize("depth", ["network", "triangulated", "tsdf"])
def test_two_images_and_no_steps_at_all(problems, results, truth, depth):
    """What the spanning tree alone gives, and what a single pair gives."""
    tree = aligned(results(0.03, 0.5, 0.1), niter1=0, niter2=0, depth=depth)
    pair = aligned(results(0.03, 0.5, 0.1, edges=[(0, 1)]), depth=depth)
    for scene in (tree, pair):
        assert worst(problems, scene, truth)[0] < 3
        assert all(one.isfinite().all() for one in scene.get_depthmaps())
        assert not any(one.isnan().any() for one in scene.get_deviations())


def test_all_poses_and_focals_known(results, truth):
    scene = SparseScene(results(0.03, 0.5, 0.1), verbose=False)
    scene.preset_pose(truth.poses)
    scene.preset_focal(truth.focals)
    scene.compute_global_alignment()
    assert np.allclose(scene.get_im_poses(), truth.poses, atol=1e-5)
    ratios = torch.stack(scene.get_depthmaps()).numpy() / truth.depths
    assert np.median(np.abs(ratios - 1)) < 0.03


def test_the_network_s_unit_does_not_matter(results):
    """Points in millimetres give what metres give, a thousand times as large."""
    metres, millimetres = (results(0.03, 0.5, 0.1, edges=[(0, 1), (1, 2), (0, 2)]) for _ in "12")
    for edge, one in millimetres._results.items():
        millimetres._results[edge] = replace(one, points=1000 * one.points)
    # So few steps that none ends by itself: rounding may end one of the two a step sooner.
    small, large = (aligned(one, niter1=8, niter2=2) for one in (metres, millimetres))
    moved = large.get_im_poses()
    moved[:, :3, 3] /= 1000
    assert torch.allclose(moved, small.get_im_poses(), atol=1e-4)
    for one, other in zip(large.get_deviations(), small.get_deviations(), strict=True):
        assert torch.allclose(one / 1000, other, rtol=1e-2)


def test_a_pass_that_is_not_finite_spoils_no_other(problems, results, truth):
    """Scales of an image's passes are measured against one that says something."""
    given = results(0.03, 0.5, 0.1)
    for edge in ((0, 1), (1, 0)):
        one = given.get(*edge)
        given._results[edge] = replace(
            one,
            points=torch.full_like(one.points, torch.nan),
            match_confidence=torch.full_like(one.match_confidence, torch.nan),
        )
    rotation, direction = worst(problems, aligned(given), truth)
    assert rotation < 2.5
    assert direction < 15


def test_canonical_depth_without_the_first_pass_is_that_of_the_others(results):
    given = results(0.03)
    passes = [given.get(0, other) for other in (1, 2, 3)]
    lost = replace(passes[0], points=torch.full_like(passes[0].points, torch.nan))
    mask, centre = torch.ones(80, 112, dtype=torch.bool), torch.tensor([55.5, 39.5])
    with_it, without = (
        canonical_of(some, mask, centre).depth for some in ([lost, *passes[1:]], passes[1:])
    )
    ratio = with_it / without
    assert torch.allclose(ratio, ratio.median().expand_as(ratio), rtol=1e-5)


def test_infinite_confidence_is_no_match(problems, results, truth):
    given = results(0.03, 0.5, 0.1)
    given.get(0, 1).match_confidence[:] = torch.inf
    scene = aligned(given)
    assert all(pair.confidence.isfinite().all() for pair in scene.matches)
    assert worst(problems, scene, truth)[0] < 2.5


def test_points_at_infinity_are_no_points_after_the_cache_either(results):
    given = results(0.03, 0.5, 0.1)
    for edge, one in given._results.items():
        one.points[20:24, 20:24] = torch.inf
        given._results[edge] = ForwardResult.unpacked(one.packed(), (80, 112))
    for valid in aligned(given).get_valid():
        assert not valid[20:24, 20:24].any()
        assert valid.float().mean() > 0.95


def test_a_graph_with_a_mistake_costs_nothing():
    class Model:
        def __getattr__(self, name):
            raise AssertionError("the model was asked")

    views = [{"idx": n} for n in range(3)]
    for graph, count in (
        ("retrieval-x", 3),
        ("retrievals", 3),
        ("retrieval-0", 3),
        ("retrieval", 1),
    ):
        with pytest.raises(ValueError, match="scene_graph|two images"):
            scene_pairs(Model(), views[:count], graph)
