"""Overlap on walls of known geometry, and the choice of pairs by it."""

import numpy as np
import pytest

from datasets_preprocess.overlap import choose_pairs, score_pairs, select_pairs
from dust3r.utils.geometry import depthmap_to_pts3d
from dust3r.utils.reprojection import overlap, reprojection_errors, shrink

HEIGHT, WIDTH, FOCAL, WALL = 48, 64, 64.0, 2.0
INTRINSICS = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])


def at(x: float, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def wall(distance: float = WALL) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), distance)


def turned(degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    pose = np.eye(4)
    pose[:3, :3] = [[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]
    return pose


def corridor(count: int, step_pixels: float = 4.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views along a flat wall, each ``step_pixels`` further, which share 1 - step / width."""
    poses = np.stack([at(k * step_pixels * WALL / FOCAL) for k in range(count)])
    return np.stack([wall()] * count), np.stack([INTRINSICS] * count), poses


def test_a_view_overlaps_itself_wholly():
    assert overlap(wall(), INTRINSICS, at(0), wall(), INTRINSICS, at(0)) == 1.0


@pytest.mark.parametrize("pixels", [8, 16, 40, 63])
def test_overlap_along_a_wall_is_the_shared_width(pixels):
    moved = at(pixels * WALL / FOCAL)
    value = overlap(wall(), INTRINSICS, at(0), wall(), INTRINSICS, moved, stride=1)
    assert value == pytest.approx(1 - pixels / WIDTH, abs=1e-9)


def test_first_pixel_is_centred_at_the_origin():
    """A shift just under half a pixel loses nothing, one just above loses a whole column."""
    for pixels, expected in ((0.49, 1.0), (0.51, 1 - 1 / WIDTH)):
        moved = at(pixels * WALL / FOCAL)
        value = overlap(wall(), INTRINSICS, at(0), wall(), INTRINSICS, moved, stride=1)
        assert value == pytest.approx(expected)


def test_overlap_is_the_smaller_direction():
    """From twice the distance the near view is all seen, but the far one only to a quarter."""
    near, far = (wall(1.0), INTRINSICS, at(0, z=1.0)), (wall(2.0), INTRINSICS, at(0))
    value = overlap(*near, *far, stride=1)
    assert value == pytest.approx(0.25, abs=0.02)
    assert value == overlap(*far, *near, stride=1)


def test_occluded_points_are_not_shared():
    screened = wall()
    screened[:, : WIDTH // 2] = 0.5 * WALL
    assert overlap(wall(), INTRINSICS, at(0), screened, INTRINSICS, at(0), stride=1) == 0.5


def test_tolerance_is_relative_to_depth():
    deeper = wall(WALL * 1.04)
    assert overlap(wall(), INTRINSICS, at(0), deeper, INTRINSICS, at(0)) == 1.0
    assert overlap(wall(), INTRINSICS, at(0), deeper, INTRINSICS, at(0), tolerance=0.03) == 0.0


def test_overlap_does_not_depend_on_the_unit():
    values = [
        overlap(wall(s * WALL), INTRINSICS, at(0), wall(s * WALL), INTRINSICS, at(0.4 * s, 0.1 * s))
        for s in (1.0, 0.01, 300.0)
    ]
    assert values[0] == pytest.approx(values[1]) == pytest.approx(values[2])
    assert 0.2 < values[0] < 1


def test_missing_depth_counts_as_not_seen():
    holes = wall()
    holes[: HEIGHT // 4] = 0
    holes[HEIGHT // 4 : HEIGHT // 2] = np.nan
    assert overlap(wall(), INTRINSICS, at(0), holes, INTRINSICS, at(0), stride=1) == 0.5


def test_nothing_valid_or_behind_the_camera_is_no_overlap():
    nothing = np.zeros((HEIGHT, WIDTH))
    assert overlap(nothing, INTRINSICS, at(0), wall(), INTRINSICS, at(0)) == 0.0
    assert overlap(wall(), INTRINSICS, at(0), wall(), INTRINSICS, turned(180)) == 0.0


def test_views_of_other_sizes_overlap_by_what_they_see():
    fine = INTRINSICS.copy()
    fine[:2, 2] = 2 * fine[:2, 2] + 0.5
    fine[:2, :2] *= 2
    large = np.full((2 * HEIGHT, 2 * WIDTH), WALL)
    assert overlap(wall(), INTRINSICS, at(0), large, fine, at(0), stride=1) == 1.0


def test_shrink_keeps_every_point_where_it_was():
    slanted = WALL + np.arange(WIDTH) * 0.01 + np.arange(HEIGHT)[:, None] * 0.02
    small, intrinsics = shrink(slanted, INTRINSICS, 5)
    expected = depthmap_to_pts3d(slanted, INTRINSICS)[2::5, 2::5]
    np.testing.assert_allclose(depthmap_to_pts3d(small, intrinsics), expected, atol=1e-12)


def test_reprojection_errors_tell_right_cameras_from_wrong_units():
    second = (wall(), INTRINSICS, at(0.3, z=0.0))
    right = reprojection_errors(wall(), INTRINSICS, at(0), *second)
    assert np.isinf(right).any()
    assert np.median(right[np.isfinite(right)]) < 1e-9
    nearer = reprojection_errors(wall(), INTRINSICS, at(0), wall(), INTRINSICS, at(0, z=0.5))
    assert np.median(nearer[np.isfinite(nearer)]) == pytest.approx(0.5 / 1.5)


def test_choose_pairs_agrees_with_overlap_on_every_pair():
    depths, intrinsics, poses = corridor(20)
    pairs = choose_pairs(depths, intrinsics, poses)
    assert pairs.dtype == np.float64 and pairs.shape[1] == 3
    found = {(int(i), int(j)): score for i, j, score in pairs}
    for i in range(20):
        for j in range(i + 1, 20):
            exact = 1 - 4 * (j - i) / WIDTH
            if 0.22 <= exact <= 0.88:
                assert found[i, j] == pytest.approx(exact, abs=0.04)
            elif exact < 0.18 or exact > 0.92:
                assert (i, j) not in found


def test_the_cheap_trial_loses_no_pair():
    """Turning and walking views of a wall: no pair that is measured without it goes missing."""
    rng = np.random.default_rng(0)
    depths, poses = [], []
    for _ in range(40):
        pose = turned(rng.uniform(-40, 40))
        pose[:3, 3] = rng.uniform(-1, 1, 3) * [3.0, 1.0, 1.0]
        rays = depthmap_to_pts3d(np.ones((HEIGHT, WIDTH)), INTRINSICS, pose) - pose[:3, 3]
        depths.append((3 - pose[2, 3]) / rays[..., 2])
        poses.append(pose)
    stacks = np.stack(depths), np.stack([INTRINSICS] * 40), np.stack(poses)
    everything = score_pairs(*stacks, min_overlap=-1.0)
    tried = score_pairs(*stacks, min_overlap=0.2)
    assert len(tried) < len(everything)
    expected = {tuple(row) for row in everything if row[2] >= 0.2}
    assert len(expected) > 100
    assert expected <= {tuple(row) for row in tried}


def test_pairs_do_not_depend_on_where_the_world_is():
    depths, intrinsics, poses = corridor(8)
    far = poses.copy()
    far[:, :3, 3] += [4e5, -3e6, 200]
    here, there = (choose_pairs(depths, intrinsics, p) for p in (poses, far))
    np.testing.assert_array_equal(here[:, :2], there[:, :2])
    np.testing.assert_allclose(here[:, 2], there[:, 2], atol=0.01)


def test_views_without_depth_pair_with_nothing():
    depths, intrinsics, poses = corridor(6)
    depths[2] = 0
    pairs = choose_pairs(depths, intrinsics, poses)
    assert len(pairs) and 2 not in pairs[:, :2]
    assert choose_pairs(0 * depths, intrinsics, poses).shape == (0, 3)


def test_few_pairs_are_spread_over_overlaps_and_views():
    scored = score_pairs(*corridor(60, step_pixels=1.0))
    pairs = select_pairs(scored, 60, max_pairs=240)
    assert len(pairs) == 240
    counts = np.histogram(pairs[:, 2], np.linspace(0.2, 0.9, 9))[0]
    assert counts.tolist() == [30] * 8
    uses = np.bincount(pairs[:, :2].astype(int).ravel(), minlength=60)
    assert uses.mean() == 8 and uses.min() >= 6 and uses.max() <= 10
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert pairs[:, :2].tolist() == sorted(pairs[:, :2].tolist())


def test_the_choice_is_a_function_of_its_seed():
    scored = score_pairs(*corridor(30, step_pixels=2.0))
    first, again, other = (select_pairs(scored, 30, max_pairs=50, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_bins_that_run_out_leave_their_share_to_others():
    scored = np.array([[0, 1, 0.25], *([i, i + 1, 0.8] for i in range(2, 30))])
    assert len(select_pairs(scored, 31, max_pairs=20)) == 20


def test_wrong_arguments_are_refused():
    depths, intrinsics, poses = corridor(3)
    with pytest.raises(ValueError, match=r"depths \(N, h, w\).*\(2, 3, 3\)"):
        choose_pairs(depths, intrinsics[:2], poses)
    poses[1, 0, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        choose_pairs(depths, intrinsics, poses)
    with pytest.raises(ValueError, match="min_overlap <= max_overlap, got 0.8 and 0.3"):
        select_pairs(np.empty((0, 3)), 3, min_overlap=0.8, max_overlap=0.3)
    with pytest.raises(ValueError, match="max_pairs must be at least 1"):
        select_pairs(np.empty((0, 3)), 3, max_pairs=0)
