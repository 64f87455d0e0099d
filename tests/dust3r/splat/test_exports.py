"""What an export's files say is read in the project's conventions."""

import json
import shutil

import numpy as np
import pycolmap
import pytest
from PIL import Image
from splat_scene import INTRINSICS, SIZE, pose, reconstruct

from dust3r.export import export_all
from dust3r.splat.clouds import most_certain, read_cloud, thinned, within
from dust3r.splat.exports import open_export
from dust3r.splat.views import hold_out, photograph_key
from dust3r.utils.geometry import geotrf, project


@pytest.fixture(params=["", "transforms.json"], ids=["colmap", "nerfstudio"])
def opened(export, request):
    return open_export(export / request.param)


def test_cameras_are_those_that_were_written(opened):
    assert len(opened.views) == 9
    for number, view in enumerate(opened.views):
        assert photograph_key(view.name) == f"room{number}"
        assert np.allclose(view.intrinsics, INTRINSICS, atol=1e-9)
        assert np.allclose(view.pose, pose(number), atol=1e-9)
        assert view.read().shape == (SIZE[1], SIZE[0], 3)


@pytest.mark.parametrize("source", ["maps", "ply", "model"])
def test_points_have_the_colour_of_the_pixels_that_they_project_to(opened, source):
    cloud = read_cloud(opened, source)
    assert len(cloud) == 9 * SIZE[0] * SIZE[1]
    for view in opened.views:
        in_camera = geotrf(np.linalg.inv(view.pose), cloud.xyz)
        pixels, depth = project(in_camera, view.intrinsics)
        u, v = pixels.round().astype(int).T
        inside = (depth > 0) & (u >= 0) & (v >= 0) & (u < SIZE[0]) & (v < SIZE[1])
        assert inside.sum() > 1000
        difference = np.abs(view.read()[v[inside], u[inside]] - cloud.rgb[inside].astype(float))
        # A pixel is never more than half a pixel off, and the paint is smooth.
        assert np.median(difference) < 8 and difference.max() < 80


def test_resized_views_see_the_same_directions(opened):
    view = opened.views[3].resized(24)
    assert view.size == (24, 18) and view.read().shape == (18, 24, 3)
    corner = np.array([-0.5, -0.5, 1])
    assert np.allclose(np.linalg.inv(view.intrinsics) @ corner, np.linalg.inv(INTRINSICS) @ corner)
    with pytest.raises(ValueError, match="needed for SSIM"):
        opened.views[0].resized(20)


def test_what_held_out_photographs_say_is_no_start(export):
    opened = open_export(export)
    assert len(read_cloud(opened, "maps", {"room0", "room8"})) == 7 * SIZE[0] * SIZE[1]
    model = pycolmap.Reconstruction(export / "sparse/0")
    others = {f"room{n}" for n in range(1, 9)}
    seen = {image.image_id for image in model.images.values() if image.name == "room_0.png"}
    expected = sum(
        bool(seen & {element.image_id for element in point.track.elements})
        for point in model.points3D.values()
    )
    found = len(read_cloud(opened, "model", others))
    assert found == expected < len(model.points3D)


def test_the_most_certain_points(export):
    opened = open_export(export)
    centres = np.stack([view.pose[:3, 3] for view in opened.views])
    whole = read_cloud(opened, "maps")
    kept = most_certain(whole, 0.5, centres)
    # The left half of each image is the more certain.
    assert len(kept) == len(whole) // 2
    assert np.allclose(kept.radius90 / kept.depth, 0.02, rtol=1e-3)
    from_ply = most_certain(read_cloud(opened, "ply"), 0.5, centres)
    assert from_ply.radius90.max() < 0.09 and len(from_ply) == len(kept)
    near = within(whole, 0.05)
    assert 0 < len(near) < len(whole) and near.radius90.max() <= 0.05
    with pytest.raises(ValueError, match="most certain are within"):
        within(whole, 1e-4)
    with pytest.raises(ValueError, match="no radius90, sigma or confidence"):
        most_certain(read_cloud(opened, "model"), 0.5, centres)
    assert np.array_equal(thinned(whole, 50, 1).xyz, thinned(whole, 50, 1).xyz)


def test_without_a_calibration_there_is_no_radius(tmp_path):
    export_all(reconstruct(views=3, calibrated=False), tmp_path / "raw")
    cloud = read_cloud(open_export(tmp_path / "raw"))
    with pytest.raises(ValueError, match="calibrated reconstruction"):
        within(cloud, 1.0)
    assert most_certain(cloud, 0.5, np.zeros((1, 3))).sigma.max() < 0.04


def test_distorted_cameras_are_refused(export):
    model = pycolmap.Reconstruction(export / "sparse/0")
    model.cameras[1].model = pycolmap.CameraModelId.SIMPLE_RADIAL
    model.cameras[1].params = [30.0, 16, 12, 0.01]
    model.write_binary(export / "sparse/0")
    with pytest.raises(ValueError, match="undistort"):
        open_export(export)
    model.cameras[1].params = [30.0, 16, 12, 0.0]
    model.write_binary(export / "sparse/0")
    assert open_export(export).views[0].intrinsics[0].tolist() == [30, 0, 15.5]
    transforms = json.loads((export / "transforms.json").read_text())
    transforms["k1"] = 0.01
    (export / "transforms.json").write_text(json.dumps(transforms))
    with pytest.raises(ValueError, match="undistort"):
        open_export(export / "transforms.json")


def test_what_cannot_be_used_is_named(export, tmp_path):
    with pytest.raises(FileNotFoundError, match="no export"):
        open_export(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no reconstruction"):
        open_export(export / "images")
    Image.new("RGB", (40, 30)).save(export / "images/room_1.png")
    with pytest.raises(ValueError, match="40x30 pixels and its camera 32x24"):
        open_export(export).views[1].read()
    (export / "images/room_1.png").unlink()
    with pytest.raises(FileNotFoundError, match="room_1.png"):
        open_export(export)
    (export / "sparse/0/images.bin").unlink()
    with pytest.raises(ValueError, match="cannot read the COLMAP model"):
        open_export(export)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_truncated_models_are_refused_before_they_are_believed(export, name):
    file = export / "sparse/0" / f"{name}.bin"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{name}.bin"):
        open_export(export)


def test_photographs_of_a_model_without_any_are_found_by_their_letters(export, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(export / "sparse", bare / "sparse")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for file in (export / "images").iterdir():
        shutil.copy(file, photographs / f"Room {file.stem[-1]}.PNG")
    found = open_export(bare, photographs)
    assert [view.path.name for view in found.views] == [f"Room {n}.PNG" for n in range(9)]


def test_each_eighth_common_view_is_held_out(export):
    views = open_export(export).views
    assert hold_out([views], 8) == {"room0", "room8"}
    assert hold_out([views, views[1:]], 8) == {"room1"}
    with pytest.raises(ValueError, match="larger --test_every"):
        hold_out([views], 1)
    with pytest.raises(ValueError, match="no photograph in common"):
        hold_out([views[:4], views[4:]], 8)
    with pytest.raises(ValueError, match="do not compare"):
        hold_out([views, [view.resized(24) for view in views]], 8)
    with pytest.raises(ValueError, match="same letters"):
        hold_out([[*views, views[0].resized(24)]], 8)
