"""What is known of cameras is kept, and what is asked for is fitted."""

import pytest
import torch


def test_known_poses_set_the_world_and_its_scale(problem):
    task = problem(noise=0.005, outliers=0.05)
    scene = task.aligner()
    scene.preset_pose(task.poses)
    scene.compute_global_alignment(init="known_poses")
    torch.testing.assert_close(scene.get_im_poses(), task.poses.float(), rtol=0, atol=1e-5)
    for found, true in zip(scene.get_depthmaps(), task.depths, strict=True):
        assert (found / true - 1).median().abs() < 0.005
    assert (scene.get_pw_scale() * task.scales - 1).abs().max() < 0.01


@pytest.mark.parametrize("mask", [[True, False, True, False], [0, 2]], ids=["mask", "numbers"])
def test_some_known_poses(problem, mask):
    task = problem()
    scene = task.aligner()
    scene.preset_pose([task.poses[0], task.poses[2]], mask)
    scene.compute_global_alignment()
    torch.testing.assert_close(scene.get_im_poses(), task.poses.float(), rtol=0, atol=1e-4)


def test_one_known_pose_turns_the_world(problem, pose_error):
    task = problem()
    scene = task.aligner()
    scene.preset_pose([task.poses[1]], [1])
    scene.compute_global_alignment()
    torch.testing.assert_close(scene.get_im_poses()[1], task.poses[1].float())
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3
    estimated, known = scene.get_im_poses()[:, :3, :3], task.poses[:, :3, :3].float()
    torch.testing.assert_close(estimated, known, rtol=0, atol=1e-4)


def test_known_poses_that_contradict_the_points_are_kept(problem):
    task = problem()
    wrong = task.poses.clone()
    wrong[1, :3, 3] += 0.5
    scene = task.aligner()
    scene.preset_pose(wrong)
    scene.compute_global_alignment(init="known_poses")
    torch.testing.assert_close(scene.get_im_poses(), wrong.float())


def test_known_focals_are_kept_exactly(problem):
    task = problem(noise=0.01)
    scene = task.aligner()
    scene.preset_focal([47.0, 44.0], [1, 2])
    scene.compute_global_alignment()
    assert scene.get_focals()[1:3].flatten().tolist() == [47, 44]
    assert (scene.get_focals()[[0, 3], 0] / 45 - 1).abs().max() < 0.01


def test_known_intrinsics_are_kept_exactly(problem, pose_error):
    task = problem(focals=[(45.0, 50.0)] * 4, centre_shift=(2.0, -1.0))
    scene = task.aligner()
    scene.preset_intrinsics(task.intrinsics)
    scene.compute_global_alignment()
    assert torch.equal(scene.get_intrinsics(), task.intrinsics.float())
    assert scene.get_focals().shape == (4, 2)
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3


@pytest.mark.parametrize("optimize_pp", [False, True])
def test_known_principal_points_are_kept_and_focals_fitted(problem, optimize_pp):
    task = problem(centre_shift=(3.0, -2.0))
    scene = task.aligner(optimize_pp=optimize_pp)
    scene.preset_principal_point(task.intrinsics[:, :2, 2])
    scene.compute_global_alignment()
    assert torch.equal(scene.get_principal_points(), task.intrinsics[:, :2, 2].float())
    torch.testing.assert_close(scene.get_focals()[:, 0], task.focals.float(), rtol=1e-4, atol=0)


def test_known_focals_leave_principal_points_to_be_fitted(problem):
    task = problem(centre_shift=(3.0, -2.0))
    scene = task.aligner(optimize_pp=True)
    scene.preset_focal(task.focals)
    scene.compute_global_alignment()
    torch.testing.assert_close(
        scene.get_principal_points(), task.intrinsics[:, :2, 2].float(), rtol=0, atol=0.01
    )


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_principal_points_are_fitted_on_request(problem, pose_error, noise):
    task = problem(centre_shift=(3.0, -2.0), noise=noise)
    scene = task.aligned(optimize_pp=True)
    off = (scene.get_principal_points() - task.intrinsics[:, :2, 2]).abs().max()
    assert off < (0.3 if noise else 1e-3)
    assert pose_error(scene.get_im_poses(), task.poses) < (0.5 if noise else 1e-3)
    middle = task.aligned().get_principal_points()
    assert torch.equal(middle, torch.tensor([24.0, 18.0]).expand(4, 2))


def test_two_focals_an_image(problem, pose_error):
    task = problem(focals=[(45.0, 55.0), (50.0, 40.0), (45.0, 45.0), (60.0, 50.0)])
    scene = task.aligned(mode="ModularPointCloudOptimizer")
    wanted = task.intrinsics[:, [0, 1], [0, 1]].float()
    torch.testing.assert_close(scene.get_focals(), wanted, rtol=1e-4, atol=0)
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3


def test_two_focals_stay_two_where_they_are_equal(problem):
    assert problem().aligned(mode="ModularPointCloudOptimizer").get_focals().shape == (4, 2)
    assert problem().aligned().get_focals().shape == (4, 1)


def test_one_camera_has_one_focal(problem):
    task = problem(noise=0.02)
    scene = task.aligned(shared_intrinsics=True)
    focals = scene.get_focals()
    assert torch.equal(focals, focals[:1].expand_as(focals))
    assert (focals / 45 - 1).abs().max() < 0.005
    apart = task.aligned().get_focals()
    assert apart.unique().numel() == 4


def test_one_camera_has_one_principal_point(problem):
    task = problem(centre_shift=(3.0, -2.0), noise=0.01)
    centres = task.aligned(shared_intrinsics=True, optimize_pp=True).get_principal_points()
    assert torch.equal(centres, centres[:1].expand_as(centres))
    assert (centres - task.intrinsics[:, :2, 2]).abs().max() < 0.3


def test_what_is_known_of_one_image_of_a_shared_camera_is_known_of_all(problem):
    scene = problem(noise=0.01).aligner(shared_intrinsics=True, optimize_pp=True)
    scene.preset_focal([44.0], [2])
    scene.preset_principal_point([(25.0, 17.0)], [0])
    scene.compute_global_alignment()
    assert scene.get_focals().flatten().tolist() == [44] * 4
    assert scene.get_principal_points().tolist() == [[25, 17]] * 4


def test_a_shared_camera_has_images_of_one_size_and_one_known_focal(problem):
    with pytest.raises(ValueError, match="one size"):
        problem(2, [(36, 48), (48, 36)]).aligner(shared_intrinsics=True)
    with pytest.raises(ValueError, match="known focals of its images differ"):
        problem().aligner(shared_intrinsics=True).preset_focal([45.0, 46.0], [0, 1])


def test_a_preset_after_an_alignment_counts_in_the_next(problem):
    scene = problem(noise=0.01).aligned()
    scene.preset_focal([44.0], [0])
    scene.compute_global_alignment(init=None)
    assert scene.get_focals()[0].item() == 44


def test_presets_that_cannot_be(problem):
    scene = problem().aligner()
    with pytest.raises(ValueError, match=r"1 known pose\(s\) were given for 4 image"):
        scene.preset_pose([torch.eye(4)])
    with pytest.raises(ValueError, match="image 1 is no rigid"):
        scene.preset_pose([2 * torch.eye(4)], [1])
    with pytest.raises(ValueError, match="no rigid"):
        scene.preset_pose([torch.diag(torch.tensor([1.0, 1, -1, 1]))], [1])
    with pytest.raises(ValueError, match="no rigid"):
        scene.preset_pose([torch.eye(4)[:3]], [1])
    with pytest.raises(ValueError, match="no rigid"):
        scene.preset_pose([torch.zeros(7)], [1])
    with pytest.raises(ValueError, match="give one positive number"):
        scene.preset_focal([0.0], [1])
    with pytest.raises(ValueError, match="give one positive number"):
        scene.preset_focal([float("nan")], [1])
    with pytest.raises(ValueError, match=r"\(3, 3\), not \(4, 4\)"):
        scene.preset_intrinsics([torch.eye(4)] * 4)
    with pytest.raises(ValueError, match=r"images \[0, 1, 3\] have none"):
        scene.preset_pose([torch.eye(4)], [2])
        scene.compute_global_alignment(init="known_poses")


def test_presets_of_no_sense_are_explained(problem):
    scene = problem().aligner()
    for call, said in (
        (lambda: scene.preset_focal([torch.inf] * 4), "give one positive number"),
        (lambda: scene.preset_focal([(1.0, 2.0, 3.0)] * 4), "give one positive number"),
        (lambda: scene.preset_principal_point([3.0] * 4), "give \\(cx, cy\\)"),
        (lambda: scene.preset_principal_point([(torch.nan, 3.0)] * 4), "give \\(cx, cy\\)"),
        (lambda: scene.preset_focal([45.0], [17]), "chooses none of the 4 images"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_presets_of_a_cleaned_copy_are_its_own(problem):
    scene = problem().aligned()
    cleaned = scene.clean_pointcloud()
    cleaned.preset_focal([99.0] * 4)
    assert (scene.get_focals() < 50).all()
