"""Stated variances as weights, and what they and disagreement say of the fused depth."""

import pytest
import torch


def mean_deviation(scene):
    return torch.stack(scene.get_deviations()).median()


@pytest.mark.parametrize("suffix", ["", "_feat", "_xyz"], ids=["GeoUQ", "FeatUQ", "points"])
def test_pixels_with_a_large_variance_are_ignored(problem, pose_error, suffix):
    task = problem(sigma=0.005, outliers=0.3, marked=False, suffix=suffix)
    scene = task.aligned(weights="uncertainty")
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3


def test_garbage_that_all_pairs_agree_on_is_ignored(problem, pose_error):
    task = problem(sigma=0.005)
    for n in range(4):
        for prediction, pair, key in task.maps(n):
            prediction[key][pair][:, :24] = torch.tensor([0.3, 0.1, 1.0])
            prediction["depth_var"][pair][:, :, :24] = 1e6
    trusted = pose_error(task.aligned(niter=10).get_im_poses(), task.poses)
    assert pose_error(task.aligned(weights="uncertainty").get_im_poses(), task.poses) < 0.05
    assert trusted > 1


def test_features_come_before_geometry(problem):
    task = problem(sigma=0.05)
    task.output["pred1"] |= {"depth_mean_feat": task.output["pred1"]["depth_mu"]}
    task.output["pred2"] |= {"depth_mean_feat": task.output["pred2"]["depth_mu"]}
    geometry = mean_deviation(task.aligned())
    for prediction in ("pred1", "pred2"):
        task.output[prediction]["depth_var_feat"] = task.output[prediction]["depth_var"] * 4
    torch.testing.assert_close(mean_deviation(task.aligned()), 2 * geometry)


def test_variances_must_be_stated(problem):
    with pytest.raises(ValueError, match="needs a model that states a variance"):
        problem().aligner(weights="uncertainty")
    with pytest.raises(ValueError, match="weights='faith' is neither"):
        problem().aligner(weights="faith")
    assert problem().aligned().get_deviations() is None


def test_deviations_are_those_stated_where_pairs_agree(problem):
    task = problem(sigma=0.03)
    scene = task.aligned()
    for deviation, depth in zip(scene.get_deviations(), scene.get_depthmaps(), strict=True):
        torch.testing.assert_close(deviation, 0.03 * depth, rtol=1e-2, atol=0)


@pytest.mark.parametrize("sizes", [(36, 48), [(36, 48), (48, 36)] * 2], ids=["alike", "mixed"])
def test_deviations_of_points_are_those_stated_at_the_distance_of_their_own_camera(problem, sizes):
    task = problem(sizes=sizes, sigma=0.03, suffix="_xyz")
    scene = task.aligned()
    assert scene.deviations_of == "point" and problem(sigma=0.03).aligned().deviations_of == "depth"
    centres = scene.get_im_poses()[:, :3, 3]
    maps = zip(scene.get_deviations(), scene.get_pts3d(), centres, strict=True)
    for deviation, points, centre in maps:
        away = (points - centre).norm(dim=-1)
        torch.testing.assert_close(deviation, 0.03 * away, rtol=0.01, atol=0)


def test_deviations_grow_with_the_stated_variance(problem):
    stated = [mean_deviation(problem(sigma=s, noise=0.01).aligned()) for s in (0.01, 0.03, 0.1)]
    assert stated == sorted(stated) and stated[2] > 5 * stated[0]


def test_deviations_grow_with_disagreement(problem):
    calm, wild = problem(sigma=0.005, noise=0.01), problem(sigma=0.005, noise=0.01)
    for prediction, key in (("pred1", "pts3d"), ("pred2", "pts3d_in_other_view")):
        for pair, points in enumerate(wild.output[prediction][key]):
            points[10:20, 10:20] *= 1 + 0.04 * (-1) ** pair
    found = [torch.stack(task.aligned().get_deviations()) for task in (wild, calm)]
    ratio = found[0] / found[1]
    assert ratio[:, 11:19, 11:19].median() > 1.5
    assert 0.9 < ratio[:, 22:34, 22:34].median() < 1.1


def test_deviations_scale_with_the_scene(problem):
    task = problem(sigma=0.02, noise=0.01)
    scenes = []
    for factor in (1.0, 5.0):
        poses = task.poses.clone()
        poses[:, :3, 3] *= factor
        scenes.append(task.aligner())
        scenes[-1].preset_pose(poses)
        scenes[-1].compute_global_alignment(init="known_poses")
    for one, other in zip(*(scene.get_deviations() for scene in scenes), strict=True):
        torch.testing.assert_close(5 * one, other, rtol=2e-2, atol=1e-3)


def test_points_of_garbage_do_not_spread(problem):
    task = problem(sigma=0.02, suffix="_xyz")
    for prediction, key in (("pred1", "pts3d"), ("pred2", "pts3d_in_other_view")):
        for rows, value in ((3, float("nan")), (4, float("inf")), (5, 0.0)):
            task.output[prediction][key][:, rows] = value
            task.output[prediction]["xyz_mu"][:, :, rows] = value
        task.output[prediction]["xyz_logvar"][:, :, 6] = float("nan")
    deviation = torch.stack(task.aligned(weights="uncertainty").get_deviations())
    assert deviation[:, 7:].isfinite().all() and (deviation[:, 7:] > 0).all()
    assert not deviation.isnan().any()
    assert problem().aligned().deviations_of == "depth"


def test_variances_of_garbage_do_not_spread(problem, pose_error):
    task = problem(sigma=0.02)
    for prediction in ("pred1", "pred2"):
        for rows, value in ((3, float("nan")), (4, float("inf")), (5, -1.0)):
            task.output[prediction]["depth_var"][:, :, rows] = value
        task.output[prediction]["depth_mu"][:, :, 6] = 0.0
    scene = task.aligned(weights="uncertainty")
    assert pose_error(scene.get_im_poses(), task.poses) < 1e-3
    deviation = torch.stack(scene.get_deviations())
    assert deviation[:, 7:].isfinite().all()
    assert not deviation.isnan().any()
