"""Depth of a mesh is that of the rays through the pixels' centres."""

import numpy as np
import pytest
import trimesh
from world import World

from datasets_preprocess import mesh_depth
from datasets_preprocess.mesh_depth import MeshDepth

SIZE = (67, 45)
CAMERA = np.array([[40.0, 0, 30.3], [0, 42.0, 24.1], [0, 0, 1]])


def test_closed_room_is_exact_and_has_no_gap_at_shared_edges():
    """Across the walls' diagonals and the ball's thousands of triangles every ray meets one."""
    world, (pose, *_) = World(), World().poses(3)
    mesh = world.mesh()
    depth = MeshDepth(mesh.vertices, mesh.faces).render(CAMERA, pose, SIZE)
    _, exact = world.render(pose, CAMERA, SIZE)
    assert depth.dtype == np.float32 and depth.shape == (45, 67)
    assert (depth > 0).all()
    error = np.abs(depth - exact) / exact
    assert np.percentile(error, 99) < 2e-4
    assert (error > 0.01).sum() < 5, "only rays along the ball's outline may differ"


def test_rays_through_edges_and_corners_of_triangles_meet_them():
    grid = np.arange(-20.0, 21)
    x, y = np.meshgrid(grid, grid)
    vertices = np.stack([x.ravel(), y.ravel(), np.full(x.size, 10.0)], 1)
    corner = (np.arange(40)[:, None] * 41 + np.arange(40)).ravel()
    first = np.stack([corner, corner + 1, corner + 41], 1)
    faces = np.concatenate([first, np.stack([corner + 1, corner + 42, corner + 41], 1)])
    # Every pixel's centre is at a vertex: ten pixels are a unit at a distance of ten.
    camera = np.array([[10.0, 0, 15], [0, 10.0, 15], [0, 0, 1]])
    depth = MeshDepth(vertices, faces).render(camera, np.eye(4), (31, 31))
    np.testing.assert_allclose(depth, 10, rtol=1e-12)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1]])
def test_triangles_behind_and_across_the_camera(order):
    """A floor that goes from far behind to far ahead is seen below the horizon, from both sides."""
    floor = np.array([[-1e3, 1, -1e3], [1e3, 1, -1e3], [0, 1, 2e3]])
    depth = MeshDepth(floor, [order]).render(CAMERA, np.eye(4), SIZE)
    rows = np.arange(SIZE[1])
    with np.errstate(divide="ignore"):
        expected = np.where(rows > CAMERA[1, 2], 42.0 / (rows - CAMERA[1, 2]), 0)
    np.testing.assert_allclose(depth, np.repeat(expected[:, None], 67, 1), rtol=1e-6)


def test_the_nearest_of_surfaces_and_what_is_too_near():
    square = np.array([[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0.0]])
    vertices = np.concatenate([square + [0, 0, z] for z in (3, 2, 0.04, -2)])
    faces = np.concatenate([[[0, 1, 2], [0, 2, 3]]] * 4) + np.repeat(4 * np.arange(4), 2)[:, None]
    mesh = MeshDepth(vertices, faces)
    assert (mesh.render(CAMERA, np.eye(4), SIZE) == 2).all()
    assert mesh.render(CAMERA, np.eye(4), SIZE, near=0.01) == pytest.approx(0.04)
    assert (mesh.render(CAMERA, np.diag([-1.0, 1, -1, 1]), SIZE) == 2).all()


def test_no_surface_is_no_depth():
    triangle = np.array([[0, 0, 2], [0.1, 0, 2], [0, 0.1, 2.0]])
    depth = MeshDepth(triangle, [[0, 1, 2]]).render(CAMERA, np.eye(4), SIZE)
    seen = np.argwhere(depth)
    assert 0 < len(seen) < 5 and (seen >= [24, 30]).all() and (seen <= [27, 33]).all()


def test_batches_do_not_change_the_result(monkeypatch):
    mesh, pose = World().mesh(), World().poses(1)[0]
    renderer = MeshDepth(mesh.vertices, mesh.faces)
    whole = renderer.render(CAMERA, pose, SIZE)
    monkeypatch.setattr(mesh_depth, "_BATCH", 500)
    monkeypatch.setattr(mesh_depth, "_CHUNK", 999)
    np.testing.assert_array_equal(renderer.render(CAMERA, pose, SIZE), whole)


def test_files(tmp_path):
    mesh = trimesh.creation.box((4, 4, 4))
    mesh.export(tmp_path / "box.ply")
    depth = MeshDepth.from_file(tmp_path / "box.ply").render(CAMERA, np.eye(4), SIZE)
    assert depth == pytest.approx(2)
    (tmp_path / "bad.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex")
    with pytest.raises(ValueError, match="bad.ply"):
        MeshDepth.from_file(tmp_path / "bad.ply")
    with pytest.raises(FileNotFoundError, match="gone.ply"):
        MeshDepth.from_file(tmp_path / "gone.ply")


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.zeros((3, 2)), [[0, 1, 2]], "vertices"),
        (np.zeros((3, 3)), [[0, 1, 3]], "of which there are 3"),
        (np.zeros((3, 3)), np.zeros((0, 3), int), "no triangle"),
        (np.full((3, 3), np.nan), [[0, 1, 2]], "finite"),
    ],
)
def test_what_is_no_mesh_is_refused(vertices, faces, message):
    with pytest.raises(ValueError, match=message):
        MeshDepth(vertices, faces)
