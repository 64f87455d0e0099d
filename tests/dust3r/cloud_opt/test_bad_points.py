"""Masked pixels do not exist, and what is not finite hurts nobody."""

import pytest
import torch


def with_masks(task, mask):
    """``mask`` (N, H, W) in the views."""
    for view in ("view1", "view2"):
        task.output[view]["mask"] = mask[task.output[view]["idx"]]
    return task


def spoil(task, bad, points, conf=None):
    """Replace what is said of the ``bad`` (N, H, W) pixels."""
    for n in range(len(task.depths)):
        for prediction, pair, key in task.maps(n):
            prediction[key][pair][bad[n]] = points
            if conf is not None:
                prediction["conf"][pair][bad[n]] = conf
    return task


def some(share, seed=0):
    return torch.rand(4, 36, 48, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("garbage", [50.0, 1e30, float("nan"), float("inf")])
def test_what_is_masked_does_not_matter(problem, garbage):
    bad = torch.zeros(4, 36, 48, dtype=torch.bool)
    bad[:, 5:25, 10:40] = True
    clean = with_masks(problem(noise=0.01), ~bad).aligned()
    spoilt = with_masks(spoil(problem(noise=0.01), bad, garbage, garbage), ~bad).aligned()
    assert torch.equal(clean.get_im_poses(), spoilt.get_im_poses())
    assert torch.equal(clean.get_focals(), spoilt.get_focals())
    for n, (one, other) in enumerate(zip(clean.get_pts3d(), spoilt.get_pts3d(), strict=True)):
        assert torch.equal(one, other) and one.isfinite().all()
        assert torch.equal(spoilt.get_valid()[n], ~bad[n])
        assert torch.equal(spoilt.get_masks()[n], ~bad[n])


def test_an_image_may_have_no_mask(problem, pose_error):
    task = problem(2, [(36, 48), (48, 36)])
    mask = torch.ones(36, 48, dtype=torch.bool)
    mask[:, :9] = False
    for view in ("view1", "view2"):
        task.output[view]["mask"] = [(mask, None)[n] for n in task.output[view]["idx"]]
    scene = task.aligned()
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3
    assert torch.equal(scene.get_valid()[0], mask) and scene.get_valid()[1].all()


def test_a_mask_over_a_whole_image_is_an_error(problem):
    mask = torch.ones(4, 36, 48, dtype=torch.bool)
    mask[2] = False
    with pytest.raises(ValueError, match="mask of image 2 covers all"):
        with_masks(problem(), mask).aligner()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_points_that_are_not_finite_are_survived(problem, pose_error, garbage):
    task = spoil(problem(), some(0.1), garbage)
    scene = task.aligned()
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3
    for n, depth in enumerate(scene.get_depthmaps()):
        assert depth.isfinite().all()
        assert torch.equal(scene.get_valid()[n], ~some(0.1)[n])


def test_confidences_that_are_not_finite_are_survived(problem, pose_error):
    task = problem()
    task.output["pred1"]["conf"][:, 3:9] = float("inf")
    task.output["pred2"]["conf"][:, 20:25] = float("nan")
    scene = task.aligned()
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3
    assert all(conf.isfinite().all() and conf.max() < 12 for conf in scene.get_conf())


def test_a_pair_that_says_nothing_is_survived(problem, pose_error):
    task = problem()
    task.output["pred1"]["pts3d"][1] = float("nan")
    task.output["pred2"]["pts3d_in_other_view"][1] = float("nan")
    scene = task.aligned()
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3


def test_half_precision_is_read(problem, pose_error):
    task = problem()
    for name, prediction in task.output.items():
        if name.startswith("pred"):
            task.output[name] = {key: value.bfloat16() for key, value in prediction.items()}
    scene = task.aligned()
    assert pose_error(scene.get_im_poses(), task.poses) < 1
    assert scene.get_depthmaps()[0].dtype == scene.get_conf()[0].dtype == torch.float32


def test_nonsense_still_gives_finite_cameras(problem):
    task = problem(3)
    generator = torch.Generator().manual_seed(0)
    for prediction, key in (("pred1", "pts3d"), ("pred2", "pts3d_in_other_view")):
        task.output[prediction][key].normal_(generator=generator)
    scene = task.aligned(niter=10)
    assert (scene.get_focals() > 0).all() and scene.get_intrinsics().isfinite().all()
    assert scene.get_im_poses().isfinite().all()
    assert all(depth.isfinite().all() for depth in scene.get_depthmaps())
