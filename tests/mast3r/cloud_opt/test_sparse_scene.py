"""Sparse alignment of rooms whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dust3r.export import export_all
from dust3r.reconstruction import Reconstruction
from mast3r.cloud_opt.matched import PairMatches, verified_matches
from mast3r.cloud_opt.sparse_ga import SparseScene, images_of, sparse_global_alignment


def aligned(results, *, presets=None, options=None, **settings):
    scene = SparseScene(results, verbose=False, **(options or {}))
    # Rooms have theirs between pixels, half a pixel from where the published code has it.
    scene.preset_principal_point([(55.5, 39.5)] * scene.n_imgs)
    if presets:
        presets(scene)
    scene.compute_global_alignment(**settings)
    return scene


@pytest.fixture(scope="module")
def noisy(results):
    return results(0.05, 0.7, 0.2)


@pytest.fixture(scope="module")
def scene(noisy):
    return aligned(noisy)


def worst(problems, scene, truth):
    rotation, direction = problems.pose_errors(scene.get_im_poses().double().numpy(), truth.poses)
    return rotation.max(), np.nanmax(direction)


def test_exact_results_give_exact_cameras_up_to_whole_pixels(problems, results, truth):
    scene = aligned(results())
    rotation, direction = worst(problems, scene, truth)
    # Matches are whole pixels: a third of a pixel, at a focal of 100, is 0.2 degrees.
    assert rotation < 0.5
    assert direction < 4
    assert problems.focal_errors(scene.get_focals()[:, 0], truth.focals).max() < 0.02


def test_noise_and_outliers_move_cameras_little(problems, scene, truth):
    rotation, direction = worst(problems, scene, truth)
    assert rotation < 2.5
    assert direction < 15
    assert len(scene.matches) >= 10


def test_refinement_brings_matches_together(noisy, scene):
    coarse = aligned(noisy, niter2=0)
    fixed = aligned(noisy, opt_depth=False)
    spread = [one._bundle.spread(one._state).pixels for one in (coarse, fixed, scene)]
    assert spread[2] < spread[1] <= 1.01 * spread[0]
    assert all((c == 0).all() for c in fixed._state.corrections)


def test_depth_is_the_truth_up_to_one_scale(scene, truth):
    depths = torch.stack(scene.get_depthmaps()).numpy()
    ratios = depths[truth.depths > 0] / truth.depths[truth.depths > 0]
    assert np.median(np.abs(ratios / np.median(ratios) - 1)) < 0.03


@pytest.mark.parametrize("depth", ["triangulated", "tsdf"])
def test_other_depths_are_the_truth_as_well(noisy, truth, depth):
    scene = aligned(noisy, depth=depth)
    valid = torch.stack(scene.get_valid()).numpy()
    ratios = torch.stack(scene.get_depthmaps()).numpy()[valid] / truth.depths[valid]
    assert valid.mean() > (0.4 if depth == "triangulated" else 0.95)
    assert np.median(np.abs(ratios / np.median(ratios) - 1)) < 0.03


def test_tsdf_takes_noise_out_of_depth(results, truth):
    noisy = results(0.1, edges=[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)])
    errors = {}
    for depth in ("network", "tsdf"):
        scene = aligned(noisy, depth=depth)
        ratios = torch.stack(scene.get_depthmaps()).numpy() / truth.depths
        errors[depth] = np.abs(ratios / np.median(ratios) - 1).mean()
    assert errors["tsdf"] < errors["network"]


def test_deviations_hold_most_errors_and_shrink_where_matches_are(scene, truth):
    depths = torch.stack(scene.get_depthmaps()).numpy()
    sigmas = torch.stack(scene.get_deviations()).numpy()
    ratio = np.median(depths / truth.depths)
    within = np.abs(depths / ratio - truth.depths) < 2 * sigmas / ratio
    assert 0.6 < within.mean() <= 1
    relative = sigmas / depths
    assert relative.min() < 0.8 * relative.max()


def test_getters_of_the_dense_path_and_exports(scene, tmp_path):
    assert scene.get_im_poses().shape == (6, 4, 4)
    assert scene.get_intrinsics().shape == (6, 3, 3)
    assert [one.shape for one in scene.get_pts3d()] == [(80, 112, 3)] * 6
    sparse, colours = scene.get_sparse_pts3d(), scene.get_pts3d_colors()
    assert [len(one) for one in sparse] == [len(one) for one in colours]
    points, depths, confidences = scene.get_dense_pts3d()
    assert points[0].shape == (80 * 112, 3)
    assert depths[0].shape == (80 * 112,)
    assert confidences[0].shape == (80, 112)
    reconstruction = Reconstruction.from_scene(scene)
    written = export_all(reconstruction, tmp_path)
    assert all(path.exists() for path in written.values())


def test_shared_intrinsics_are_one_focal(noisy, problems, truth):
    scene = aligned(noisy, options={"shared_intrinsics": True})
    assert len(scene.get_focals().unique()) == 1
    assert problems.focal_errors(scene.get_focals()[:, 0], truth.focals).max() < 0.05


def test_what_is_preset_stays(noisy, truth):
    def presets(scene):
        scene.preset_focal([truth.focals[0]] * 6)
        scene.preset_pose(truth.poses[:2], [0, 1])

    scene = aligned(noisy, presets=presets)
    assert np.allclose(scene.get_focals()[:, 0], truth.focals, rtol=1e-6)
    poses = scene.get_im_poses().numpy()
    assert np.allclose(poses[:2], truth.poses[:2], atol=1e-5)
    # Two known cameras set the scale of the world, and with it where the others are.
    assert np.linalg.norm(poses[2:, :3, 3] - truth.poses[2:, :3, 3], axis=1).max() < 0.15


def test_images_that_match_nothing_are_left_out_with_a_note(results):
    given = results(0.02, 0.5, edges=[(0, 1), (1, 2), (0, 2), (3, 4)])
    one = given._results
    for i, j in ((3, 4), (4, 3)):
        pixels = one[i, j].pixels
        one[i, j] = replace(one[i, j], pixels=pixels[:5], match_confidence=torch.ones(5))
    given.edges.append((4, 5))
    one[4, 5], one[5, 4] = one[4, 3], one[3, 4]
    scene = aligned(given)
    assert scene.image_ids == (0, 1, 2)
    assert "image_003" in scene.notes[0]
    assert "connect 3 of 6" in scene.notes[0]
    assert scene.get_im_poses().shape == (3, 4, 4)


def test_no_mutual_match_is_a_clear_error(results):
    given = results(edges=[(0, 1)])
    for key, one in given._results.items():
        given._results[key] = replace(
            one, pixels=one.pixels[:0], match_confidence=one.match_confidence[:0]
        )
    with pytest.raises(ValueError, match="no two images share enough mutual matches"):
        SparseScene(given, verbose=False)


def test_a_threshold_that_leaves_nothing_says_so(results):
    with pytest.raises(ValueError, match="lower matching_conf_thr"):
        SparseScene(results(edges=[(0, 1)]), matching_conf_thr=1000.0, verbose=False)


def test_a_mask_that_covers_all_is_named(results):
    given = results(edges=[(0, 1)])
    given.views[1] = given.views[1] | {"mask": torch.zeros(1, 80, 112, dtype=torch.bool)}
    with pytest.raises(ValueError, match="mask of image_001.png covers all"):
        SparseScene(given, verbose=False)


def test_masked_pixels_do_not_match(results):
    given = results(edges=[(0, 1)])
    mask = torch.ones(1, 80, 112, dtype=torch.bool)
    mask[..., :56] = False
    given.views[0] = given.views[0] | {"mask": mask}
    scene = SparseScene(given, verbose=False)
    assert (scene.matches[0].pixels[:, 0] >= 56).all()


def test_getters_before_the_alignment_say_what_to_call(noisy):
    scene = SparseScene(noisy, verbose=False)
    for getter in (scene.get_depthmaps, scene.get_dense_pts3d, lambda: scene.depth_noise):
        with pytest.raises(RuntimeError, match="compute_global_alignment"):
            getter()


@pytest.mark.parametrize(
    ("settings", "said"), [({"depth": "nice"}, "depth='nice'"), ({"niter2": -1}, "niter2=-1")]
)
def test_impossible_settings(noisy, settings, said):
    with pytest.raises(ValueError, match=said):
        SparseScene(noisy, verbose=False).compute_global_alignment(**settings)


def test_progress_rises_to_one(noisy):
    told = []
    SparseScene(noisy, verbose=False).compute_global_alignment(progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="no pairs"):
        sparse_global_alignment([], [], None, None)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"depth": "nice"}, ValueError), ({"niter1": -1}, ValueError), ({"niter": 9}, TypeError)],
)
def test_impossible_settings_cost_no_pass_of_the_network(settings, error):
    view = {"idx": 0, "img": torch.zeros(1, 3, 32, 32)}
    pairs = [(view, view | {"idx": 1})]
    with pytest.raises(error, match=next(iter(settings))):
        sparse_global_alignment([], pairs, None, None, **settings)


@pytest.mark.parametrize("option", ["optimize_pp", "fx_and_fy"])
def test_options_that_would_do_nothing_are_refused(noisy, option):
    with pytest.raises(TypeError, match=option):
        SparseScene(noisy, **{option: True})


def test_images_that_share_a_number_are_refused():
    views = [{"idx": 0, "img": torch.full((1, 3, 32, 32), float(n))} for n in range(2)]
    with pytest.raises(ValueError, match="two different images have the idx 0"):
        images_of([(views[0], views[1])])
    again = views[0] | {"img": views[0]["img"].clone()}
    assert len(images_of([(views[0], again)])[0]) == 1


def test_views_without_a_source_are_their_own_originals():
    views = [{"idx": n, "img": torch.zeros(1, 3, 32, 48)} for n in (3, 4)]
    found, _ = images_of([tuple(views)])
    assert [view["source"].name for view in found] == ["image_003.png", "image_004.png"]
    assert found[0]["source"].size == (48, 32)
    assert np.array_equal(found[0]["source"].to_original, np.eye(3))


def test_images_of_pairs_are_ordered_and_distinct():
    views = [{"idx": n, "img": torch.zeros(1, 3, 32, 32)} for n in range(3)]
    found, edges = images_of([(views[2], views[0]), (views[0], views[2]), (views[1], views[2])])
    assert [view["idx"] for view in found] == [0, 1, 2]
    assert edges == [(0, 2), (1, 2)]


def test_verification_drops_wrong_matches(results):
    given = results(0.0, 0.3, 0.4, edges=[(0, 1)])
    passes = given.get(0, 1), given.get(1, 0)
    mask = torch.ones(80, 112, dtype=torch.bool)
    found = verified_matches((0, 1), *passes, (mask, mask), 0.0)
    exact = results(edges=[(0, 1)]).get(0, 1).pixels
    true = {tuple(one[:2].tolist()): one[2:] for one in exact}
    forth = [one for one in found.pixels if tuple(one[:2].tolist()) in true]
    off = torch.stack([(one[2:] - true[tuple(one[:2].tolist())]).abs().max() for one in forth])
    assert isinstance(found, PairMatches)
    assert (off > 8).float().mean() < 0.1
    assert len(found) > 0.4 * sum(len(one.pixels) for one in passes)
