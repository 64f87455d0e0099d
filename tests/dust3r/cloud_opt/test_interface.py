"""What published scripts call, in which order, and what they hear when it cannot be."""

import numpy as np
import pytest
import torch

from dust3r.cloud_opt import (
    GlobalAlignerMode,
    ModularPointCloudOptimizer,
    PairViewer,
    PointCloudOptimizer,
    global_aligner,
)


def test_the_published_lines(problem):
    output = problem(3).output
    scene = global_aligner(
        output, device="cpu", mode=GlobalAlignerMode.PointCloudOptimizer, verbose=False
    )
    loss = scene.compute_global_alignment(init="mst", niter=300, schedule="cosine", lr=0.01)
    assert 0 <= loss < 1e-6
    assert len(scene.imgs) == 3
    assert all(image.shape == (36, 48, 3) and image.dtype == np.float32 for image in scene.imgs)
    assert scene.get_focals().shape == (3, 1)
    assert scene.get_principal_points().shape == (3, 2)
    assert scene.get_intrinsics().shape == (3, 3, 3)
    assert scene.get_im_poses().shape == (3, 4, 4)
    assert scene.get_pw_poses().shape == (6, 4, 4)
    points, masks = scene.get_pts3d(), scene.get_masks()
    assert all(one.shape == (36, 48, 3) for one in points)
    assert all(one.shape == (36, 48) and one.dtype == torch.bool for one in masks)
    assert points[0][masks[0]].shape == (36 * 48, 3)
    assert scene.imshapes == ((36, 48),) * 3
    assert scene.edges[:2] == [(0, 1), (0, 2)] and scene.image_ids == (0, 1, 2)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("PointCloudOptimizer", PointCloudOptimizer),
        (GlobalAlignerMode.ModularPointCloudOptimizer, ModularPointCloudOptimizer),
        ("PairViewer", PairViewer),
    ],
)
def test_modes(problem, mode, kind):
    assert type(problem(2).aligner(mode=mode)) is kind


def test_images_of_several_sizes_come_upright_and_in_their_own_shape(problem):
    scene = problem(3, [(36, 48), (48, 36), (24, 48)]).aligned()
    assert [image.shape for image in scene.imgs] == [(36, 48, 3), (48, 36, 3), (24, 48, 3)]
    assert [tuple(depth.shape) for depth in scene.get_depthmaps()] == list(scene.imshapes)
    assert [float(image.mean()) for image in scene.imgs] == pytest.approx([0, 1 / 3, 2 / 3])


def test_masks_follow_the_confidence(problem):
    task = problem(2)
    task.output["pred1"]["conf"][:, :10] = 2.0
    task.output["pred2"]["conf"][:, :10] = 2.5
    scene = task.aligned(min_conf_thr=3.0)
    assert not scene.get_masks()[0][:10].any() and scene.get_masks()[0][10:].all()
    scene.min_conf_thr = 2.2
    assert scene.get_masks()[0].all()


def test_a_graph_in_parts(problem):
    task = problem(6, pairs=[(0, 1), (1, 0), (2, 4), (4, 2), (4, 5)])
    scene = task.aligner()
    assert scene.image_ids == (2, 4, 5)
    assert scene.edges == [(0, 1), (1, 0), (1, 2)]
    assert "[0, 1], [2, 4, 5]" in scene.notes[0] and "Only [2, 4, 5]" in scene.notes[0]
    scene.compute_global_alignment()
    assert scene.get_im_poses().shape == (3, 4, 4)
    assert [float(image.mean()) for image in scene.imgs] == pytest.approx([2 / 6, 4 / 6, 5 / 6])


def test_ids_need_not_be_places(problem):
    task = problem(2)
    for view in ("view1", "view2"):
        task.output[view]["idx"] = [100 - n for n in task.output[view]["idx"]]
    scene = task.aligner()
    assert scene.image_ids == (99, 100)
    assert scene.edges == [(1, 0), (0, 1)]
    assert float(scene.imgs[0].mean()) == pytest.approx(0.5)


def test_getters_before_alignment(problem):
    scene = problem(2).aligner()
    for getter in (scene.get_im_poses, scene.get_depthmaps, scene.get_pts3d, scene.get_masks):
        with pytest.raises(RuntimeError, match="call compute_global_alignment"):
            getter()


def test_no_steps_give_the_first_guess_and_none_goes_on(problem, pose_error):
    task = problem(noise=0.01, outliers=0.1)
    scene = task.aligner()
    first = scene.compute_global_alignment(niter=0)
    guess = pose_error(scene.get_im_poses(), task.poses)
    then = scene.compute_global_alignment(init=None, niter=20)
    assert then < first
    assert pose_error(scene.get_im_poses(), task.poses) < 0.5 * guess
    again = scene.compute_global_alignment(init=None, niter=20)
    assert again == pytest.approx(then, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "random"}, "init='random' is none of"),
        ({"init": None}, "goes on from an earlier alignment"),
        ({"schedule": "step"}, "schedule='step' is none of"),
    ],
)
def test_wrong_arguments(problem, options, message):
    with pytest.raises(ValueError, match=message):
        problem(2).aligner().compute_global_alignment(**options)


def test_wrong_mode_and_no_pairs(problem):
    with pytest.raises(ValueError, match="mode='Fast' is no GlobalAlignerMode: PointCloud"):
        problem(2).aligner(mode="Fast")
    with pytest.raises(ValueError, match="no pair to align"):
        problem(2).reordered([]).aligner()
