"""Two images as they are."""

import pytest
import torch


def viewed(task, **options):
    return task.aligner(mode="PairViewer", **options)


@pytest.mark.parametrize("symmetrize", [True, False])
@pytest.mark.parametrize("sizes", [(36, 48), [(36, 48), (48, 36)]], ids=["alike", "mixed"])
def test_the_answer_is_known(problem, pose_error, symmetrize, sizes):
    task = problem(2, sizes, focals=[45.0, 50.0], symmetrize=symmetrize)
    scene = viewed(task)
    assert scene.compute_global_alignment() == 0
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3
    torch.testing.assert_close(scene.get_focals()[:, 0], task.focals.float(), rtol=1e-4, atol=0)
    ratios = [found / true for found, true in zip(scene.get_depthmaps(), task.depths, strict=True)]
    scale = ratios[0][0, 0]
    for ratio in ratios:
        torch.testing.assert_close(ratio, scale.expand_as(ratio), rtol=1e-3, atol=0)


def test_the_more_confident_pair_is_shown(problem):
    task = problem(2)
    task.output["pred1"]["conf"][1] = task.output["pred2"]["conf"][1] = 20.0
    task.output["pred1"]["pts3d"][0] = 1.0
    scene = viewed(task)
    assert torch.equal(scene.get_im_poses()[1], torch.eye(4))
    torch.testing.assert_close(scene.get_depthmaps()[1], task.output["pred1"]["pts3d"][1, ..., 2])
    assert all((conf == 20).all() for conf in scene.get_conf())
    assert all(mask.all() for mask in scene.get_masks())


def test_masked_and_missing_points_have_no_depth(problem):
    task = problem(2)
    mask = torch.ones(2, 36, 48, dtype=torch.bool)
    mask[:, :9] = False
    for view in ("view1", "view2"):
        task.output[view]["mask"] = mask
    task.output["pred1"]["pts3d"][:, 12] = float("nan")
    task.output["pred2"]["pts3d_in_other_view"][:, 12] = float("nan")
    mask[:, 12] = False
    scene = viewed(task)
    for depth, valid, seen in zip(scene.get_depthmaps(), scene.get_valid(), mask, strict=True):
        assert torch.equal(depth > 0, seen) and torch.equal(valid, seen)


def test_deviations_are_those_stated(problem):
    task = problem(2, sigma=0.03)
    scene = viewed(task)
    for deviation, depth in zip(scene.get_deviations(), scene.get_depthmaps(), strict=True):
        torch.testing.assert_close(deviation, 0.03 * depth)
    assert viewed(problem(2)).get_deviations() is None


def test_deviations_of_points_are_those_stated(problem):
    scene = viewed(problem(2, sigma=0.03, suffix="_xyz"))
    maps = zip(scene.get_deviations(), scene.get_pts3d(), scene.get_im_poses(), strict=True)
    for deviation, points, pose in maps:
        away = (points - pose[:3, 3]).norm(dim=-1)
        torch.testing.assert_close(deviation, 0.03 * away, rtol=0.01, atol=0)


def test_three_images_and_presets_are_refused(problem):
    with pytest.raises(ValueError, match="two images, and these pairs have 3"):
        viewed(problem(3))
    with pytest.raises(ValueError, match="nothing can be preset"):
        viewed(problem(2)).preset_focal([45.0, 45.0])
