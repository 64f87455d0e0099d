"""What the check of a written data set sees, and the world that raw data sets are made from."""

import cv2
import numpy as np
import pytest
import trimesh
from world import World

from datasets_preprocess.check import check_written
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf, inv, project

INTRINSICS = np.array([[70.0, 0, 41.3], [0, 72, 28.4], [0, 0, 1]])
SIZE = (80, 60)


def check(root, **options) -> list[str]:
    return check_written(ScanNetpp("all", root, (64, 48), **options), root, "plane", num_pairs=3)


def test_a_good_data_set_has_no_warnings_and_a_sheet(write_tree):
    root = write_tree()
    assert check(root) == []
    sheet = cv2.imread(str(root / "contact_sheet.png"))
    assert min(sheet.shape[:2]) > 200


def test_upright_images_are_shown_upright(write_tree):
    """The check fails with depth and cameras of a view that travels transposed."""
    assert check(write_tree(size=(72, 96))) == []


def test_wrong_poses_are_told(write_tree):
    poses = np.tile(np.eye(4), (12, 1, 1))
    poses[1::2, 2, 3] = 0.6
    assert any("off by" in warning for warning in check(write_tree(trajectories=poses)))
    poses[1::2, :3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    warnings = check(write_tree(trajectories=poses))
    assert any("hardly see each other" in warning for warning in warnings)


def test_a_wrong_unit_is_told_of_metric_data_alone(write_tree):
    root = write_tree()
    for path in root.rglob("depth/*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 100)
    assert any("median depth is 0.0" in warning for warning in check(root))
    assert not any("median depth" in warning for warning in check(root, is_metric_scale=False))


def test_samples_that_cannot_be_read_are_told(write_tree):
    root = write_tree()
    for path in root.rglob("images/*.jpg"):
        path.unlink()
    warnings = check(root)
    assert len(warnings) == 3 and all("cannot be read" in warning for warning in warnings)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_worlds_mesh_is_what_it_renders(seed):
    world = World(seed)
    mesh = world.mesh()
    points, _ = trimesh.sample.sample_surface(mesh, 20_000, seed=0)
    for pose in world.poses(3, step_deg=120):
        _, depth = world.render(pose, INTRINSICS, SIZE)
        pixels, z = project(geotrf(inv(pose), points), INTRINSICS)
        x, y = pixels.astype(np.float32).T
        inside = (z > 0) & (x > 1) & (y > 1) & (x < SIZE[0] - 2) & (y < SIZE[1] - 2)
        nearest = cv2.remap(cv2.erode(depth, np.ones((3, 3))), x, y, cv2.INTER_NEAREST).ravel()
        seen = cv2.remap(depth, x, y, cv2.INTER_LINEAR).ravel()
        # No point of the mesh stands before what is seen, and many are what is seen.
        assert (z > nearest - 0.02)[inside].all()
        assert (np.abs(z - seen) < 0.01)[inside].mean() > 0.3


def test_the_worlds_cameras_see_mostly_the_same():
    world = World()
    poses = world.poses(60)
    for first, second in zip(poses, poses[1:], strict=False):
        _, depth = world.render(first, INTRINSICS, SIZE)
        points = depthmap_to_pts3d(depth.astype(float), INTRINSICS, first)
        pixels, z = project(geotrf(inv(second), points), INTRINSICS)
        inside = (z > 0) & (pixels > 0).all(-1) & (pixels < np.array(SIZE) - 1).all(-1)
        assert inside.mean() > 0.6
        assert world.object_mask(first, INTRINSICS, SIZE).mean() > 0.02


def test_rays_of_any_camera():
    world = World()
    pose = world.poses(2)[1]
    colours, depth = world.render(pose, INTRINSICS, SIZE)
    rays = depthmap_to_pts3d(np.ones(SIZE[::-1]), INTRINSICS)
    same, length = world.render_rays(pose, rays)
    np.testing.assert_array_equal(same, colours)
    np.testing.assert_allclose(length, depth)
    _, distance = world.render_rays(pose, rays / np.linalg.norm(rays, axis=-1, keepdims=True))
    np.testing.assert_allclose(distance, depth * np.linalg.norm(rays, axis=-1), rtol=1e-5)
