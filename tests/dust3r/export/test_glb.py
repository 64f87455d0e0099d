import json
import struct

import numpy as np
import pytest
import trimesh

from dust3r.export import write_glb

TURN = np.diag([1, -1, -1])


def seen_by_first_camera(reconstruction, points):
    """In the first camera with y up and z towards the viewer."""
    pose = reconstruction.poses[0]
    return (points - pose[:3, 3]) @ pose[:3, :3] @ TURN


def decoded(linear):
    """sRGB in [0, 255] of linear colours in [0, 255]."""
    value = linear / 255
    return 255 * np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def test_points_are_turned_for_viewers(reconstruction, tmp_path):
    scene = trimesh.load(write_glb(reconstruction, tmp_path / "scene.glb", camera_size=0))
    (cloud,) = scene.geometry.values()
    points = np.concatenate([reconstruction.pts3d(n).reshape(-1, 3) for n in range(4)])
    assert np.allclose(cloud.vertices, seen_by_first_camera(reconstruction, points), atol=1e-5)
    first = cloud.vertices[: reconstruction.depthmaps[0].size].reshape(72, 96, 3)
    assert (first[0, :, 1] > first[-1, :, 1]).all()  # the upper row is above
    assert (first[:, 0, 0] < first[:, -1, 0]).all()
    assert (first[..., 2] < 0).all()


def test_colours_are_linear(reconstruction, tmp_path):
    scene = trimesh.load(write_glb(reconstruction, tmp_path / "scene.glb", camera_size=0))
    (cloud,) = scene.geometry.values()
    colours = 255 * np.concatenate([image.reshape(-1, 3) for image in reconstruction.images])
    # Eight bits of linear colour are coarse in the dark.
    error = np.abs(decoded(cloud.colors[:, :3]) - colours)
    assert error[colours > 60].max() < 3 and error.max() < 8


def test_cameras_stand_where_they_took_the_photographs(reconstruction, tmp_path):
    scene = trimesh.load(write_glb(reconstruction, tmp_path / "scene.glb", camera_size=0.1))
    points = np.concatenate([reconstruction.pts3d(n).reshape(-1, 3) for n in range(4)])
    extent = np.linalg.norm(np.ptp(points, axis=0))
    for number, pose in enumerate(reconstruction.poses, 1):
        photo = scene.geometry[f"photo_{number:03d}"]
        corners = seen_by_first_camera(reconstruction, pose[:3, 3])
        base = photo.vertices.mean(0)
        axis = TURN @ reconstruction.poses[0][:3, :3].T @ pose[:3, 2]
        assert (base - corners) @ axis > 0.9 * np.linalg.norm(base - corners)
        long_side = np.linalg.norm(np.diff(photo.vertices, axis=0), axis=-1).max()
        assert 0.05 * extent < long_side < 0.15 * extent
        wires = scene.geometry[f"camera_{number:03d}"].vertices
        assert np.linalg.norm(wires - corners, axis=-1).min() < 0.01 * extent
    wires = [scene.geometry[f"camera_{number:03d}"] for number in range(1, 5)]
    assert len({tuple(one.visual.vertex_attributes["color"][0]) for one in wires}) == 4


def test_photographs_on_cameras_are_the_right_way_up(reconstruction, tmp_path):
    scene = trimesh.load(write_glb(reconstruction, tmp_path / "scene.glb", camera_size=0.1))
    photo = scene.geometry["photo_001"]
    picture = np.asarray(photo.visual.material.baseColorTexture, float)[..., :3]
    height, width = picture.shape[:2]
    for vertex, (u, v) in zip(photo.vertices, photo.visual.uv, strict=True):
        # The first camera's corner on the image, from where it stands in space.
        image = reconstruction.images[0]
        right, lower = vertex[0] > 0, vertex[1] < 0
        colour = image[-2 if lower else 1, -2 if right else 1] * 255
        row = min(int((1 - v) * height), height - 2)
        shown = picture[max(row, 1), max(min(int(u * width), width - 2), 1)]
        assert np.abs(shown - colour).max() < 20


def test_mesh_has_no_triangle_across_a_depth_edge(reconstruction, tmp_path):
    reconstruction.depthmaps[0][20:50, 30:70] *= 0.6
    kept = [reconstruction.valid[0]] + [mask & False for mask in reconstruction.valid[1:]]
    path = write_glb(reconstruction, tmp_path / "a.glb", kept=kept, as_mesh=True, camera_size=0)
    (mesh,) = trimesh.load(path).geometry.values()
    depths = -mesh.vertices[:, 2][mesh.faces]
    assert (depths.max(-1) / depths.min(-1) < 1.051).all()
    # Squares across the border of the block are open; two of its corners keep half of theirs.
    crossing = 2 * 41 + 2 * 31 - 4
    assert len(mesh.faces) == 2 * (71 * 95 - crossing) + 2
    # Front faces look at the camera, which is at the origin.
    assert (np.einsum("ij,ij->i", mesh.face_normals, mesh.triangles_center) < 0).all()


def test_mesh_stays_within_what_is_kept(reconstruction, tmp_path):
    kept = [mask & False for mask in reconstruction.valid]
    kept[0][10:20, 10:30] = True
    path = write_glb(reconstruction, tmp_path / "a.glb", kept=kept, as_mesh=True, camera_size=0)
    (mesh,) = trimesh.load(path).geometry.values()
    assert len(mesh.vertices) == 200 and len(mesh.faces) == 2 * 9 * 19
    inside = seen_by_first_camera(reconstruction, reconstruction.pts3d(0)[10:20, 10:30])
    assert np.allclose(mesh.bounds, [inside.min((0, 1)), inside.max((0, 1))], atol=1e-5)


def test_a_mesh_without_triangles_is_refused(reconstruction, tmp_path):
    kept = [mask & False for mask in reconstruction.valid]
    kept[0][::2, ::2] = True
    with pytest.raises(ValueError, match="as_mesh=False"):
        write_glb(reconstruction, tmp_path / "a.glb", kept=kept, as_mesh=True)


@pytest.mark.parametrize("as_mesh", [False, True])
def test_points_are_capped(reconstruction, tmp_path, as_mesh):
    path = write_glb(
        reconstruction, tmp_path / "a.glb", as_mesh=as_mesh, camera_size=0, max_points=5000
    )
    count = sum(len(one.vertices) for one in trimesh.load(path).geometry.values())
    assert 2500 < count <= 5000


@pytest.mark.parametrize("as_mesh", [False, True])
def test_nothing_is_lit(reconstruction, tmp_path, as_mesh):
    content = write_glb(reconstruction, tmp_path / "a.glb", as_mesh=as_mesh).read_bytes()
    (length,) = struct.unpack("<I", content[12:16])
    tree = json.loads(content[20 : 20 + length])
    used = {p["material"] for mesh in tree["meshes"] for p in mesh["primitives"]}
    assert all("KHR_materials_unlit" in tree["materials"][n]["extensions"] for n in used)
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert sum("baseColorTexture" in str(tree["materials"][n]) for n in used) == 4


def test_sizes_out_of_range(reconstruction, tmp_path):
    with pytest.raises(ValueError, match="camera_size -1"):
        write_glb(reconstruction, tmp_path / "a.glb", camera_size=-1)
