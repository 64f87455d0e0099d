import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from dust3r.export import write_nerfstudio
from dust3r.utils.image import read_depth_png

OPENGL = np.diag([1, -1, -1])


@pytest.fixture
def out(reconstruction, tmp_path):
    write_nerfstudio(reconstruction, tmp_path / "out", max_points=400)
    return tmp_path / "out"


def frames(out):
    return json.loads((out / "transforms.json").read_text())["frames"]


def projected(frame, points):
    """Pixels, in the corner-origin convention, and depths of world points."""
    pose = np.array(frame["transform_matrix"])
    x, y, z = OPENGL @ (pose[:3, :3].T @ (points - pose[:3, 3]).T)
    u = frame["fl_x"] * x / z + frame["cx"]
    v = frame["fl_y"] * y / z + frame["cy"]
    inside = (z > 0) & (u > 0) & (v > 0) & (u < frame["w"]) & (v < frame["h"])
    return np.stack([u, v], -1)[inside], z[inside], inside


def test_points_land_on_their_colour_and_depth_in_every_image(out):
    cloud = trimesh.load(out / "sparse_pc.ply")
    assert len(cloud.vertices) == 400
    for frame in frames(out):
        pixels, z, inside = projected(frame, cloud.vertices)
        assert inside.sum() > 100
        picture = np.asarray(Image.open(out / frame["file_path"]), float)
        assert picture.shape == (frame["h"], frame["w"], 3)
        u, v = np.floor(pixels).astype(int).T
        assert np.abs(picture[v, u] - cloud.colors[inside, :3]).max() < 12
        depth = read_depth_png(out / frame["depth_file_path"])
        across, down = np.divide(depth.shape[::-1], (frame["w"], frame["h"]))
        seen = depth[(v * down).astype(int), (u * across).astype(int)]
        assert np.abs(seen / z - 1)[seen > 0].max() < 0.02
        assert (seen > 0).mean() > 0.7


def test_depth_of_a_cropped_image_covers_the_whole_original(out, reconstruction):
    depth = read_depth_png(out / frames(out)[1]["depth_file_path"])
    assert depth.shape == (72, 120)
    assert (depth[:, :12] == 0).all() and (depth[:, -12:] == 0).all()
    assert np.allclose(depth[:, 12:-12], reconstruction.depthmaps[1], atol=0.0006)


def test_depth_is_none_where_nothing_is_kept(reconstruction, tmp_path):
    kept = [mask.copy() for mask in reconstruction.valid]
    kept[0][:30] = False
    write_nerfstudio(reconstruction, tmp_path, kept=kept, max_points=10)
    depth = read_depth_png(tmp_path / frames(tmp_path)[0]["depth_file_path"])
    assert np.array_equal(depth > 0, kept[0])


@pytest.mark.parametrize("scale", [0.001, 1000])
def test_depth_of_very_small_or_large_scenes_is_kept_as_floats(reconstruction, tmp_path, scale):
    for depth in reconstruction.depthmaps:
        depth *= scale
    reconstruction.poses[:, :3, 3] *= scale
    write_nerfstudio(reconstruction, tmp_path, max_points=10)
    depth = np.load(tmp_path / frames(tmp_path)[0]["depth_file_path"])
    assert depth.dtype == np.float32
    assert np.allclose(depth / 1000, reconstruction.depthmaps[0])


def test_what_nerfstudio_is_told_of_the_whole(out):
    content = json.loads((out / "transforms.json").read_text())
    assert content["applied_transform"] == np.eye(4)[:3].tolist()
    assert content["ply_file_path"] == "sparse_pc.ply"
    assert content["camera_model"] == "OPENCV"
