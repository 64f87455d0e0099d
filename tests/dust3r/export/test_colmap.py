from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from dust3r.export import write_colmap


@pytest.fixture
def model(reconstruction, tmp_path):
    write_colmap(reconstruction, tmp_path / "out", max_points=600)
    return pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")


def sightings(model):
    """(point, image, keypoint) of every element of every track."""
    for point in model.points3D.values():
        for element in point.track.elements:
            image = model.images[element.image_id]
            yield point, image, image.points2D[element.point2D_idx].xy


def test_points_project_to_the_pixels_that_gave_them(model):
    errors = [
        np.linalg.norm(image.project_point(point.xyz) - keypoint)
        for point, image, keypoint in sightings(model)
    ]
    assert len(model.points3D) == 600
    assert max(errors) < 0.01
    assert model.compute_mean_reprojection_error() < 0.01


def test_originals_show_the_points_colour_where_it_is_said_to_be_seen(model, tmp_path):
    pictures = {
        image.name: np.asarray(Image.open(tmp_path / "out" / "images" / image.name), float)
        for image in model.images.values()
    }
    for point, image, keypoint in sightings(model):
        u, v = np.floor(keypoint).astype(int)
        assert np.abs(pictures[image.name][v, u] - point.color).max() < 12


def test_every_point_has_its_own_pixel_and_most_are_seen_by_others(model, shots):
    to_network = [np.linalg.inv(shot.to_original) for shot in shots]
    lengths = []
    for point in model.points3D.values():
        offsets = []
        for element in point.track.elements:
            keypoint = model.images[element.image_id].points2D[element.point2D_idx].xy - 0.5
            pixel = to_network[element.image_id - 1] @ (*keypoint, 1)
            offsets.append(np.abs(pixel - pixel.round()).max())
        assert min(offsets) < 1e-6
        lengths.append(point.track.length())
    assert np.mean(np.array(lengths) > 1) > 0.8


def test_cameras_are_pinholes_of_the_upright_files(model, shots, tmp_path):
    for number, shot in enumerate(shots, 1):
        camera = model.cameras[number]
        size = (camera.width, camera.height)
        picture = Image.open(tmp_path / "out" / "images" / model.images[number].name)
        assert camera.model_name == "PINHOLE" and size == shot.size == picture.size
        half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        assert np.allclose(camera.calibration_matrix(), shot.intrinsics + half)
        assert 0x0112 not in picture.getexif() or picture.getexif()[0x0112] == 1


def test_poses_are_world_to_camera(model, reconstruction):
    for number, pose in enumerate(reconstruction.poses, 1):
        camera_to_world = model.images[number].cam_from_world().inverse().matrix()
        assert np.allclose(camera_to_world, pose[:3], atol=1e-12)


def test_upright_files_are_copied_and_turned_ones_encoded(reconstruction, tmp_path):
    write_colmap(reconstruction, tmp_path / "out", max_points=10)
    first, second, third, _ = (source.path for source in reconstruction.sources)
    images = tmp_path / "out" / "images"
    assert (images / "room_1.jpg").read_bytes() == first.read_bytes()
    assert (images / "e.png").read_bytes() == second.read_bytes()
    assert (images / "IMG_0003.jpg").read_bytes() != third.read_bytes()


def test_one_camera_where_all_are_equal(build, shots, tmp_path):
    write_colmap(build(names=["a.jpg", "b.jpg"], shots=shots[:1] * 2), tmp_path, max_points=50)
    model = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    assert len(model.cameras) == 1 and len(model.images) == 2


def test_seeded_choice(reconstruction, tmp_path):
    def points(name: str, seed: int) -> np.ndarray:
        folder = write_colmap(reconstruction, tmp_path / name, max_points=20, seed=seed)
        model = pycolmap.Reconstruction(folder)
        return np.array([model.points3D[number].xyz for number in sorted(model.points3D)])

    assert np.array_equal(points("a", 0), points("b", 0))
    assert not np.array_equal(points("a", 0), points("c", 1))


def test_points_hidden_from_a_camera_are_not_seen_by_it(reconstruction, tmp_path):
    reconstruction.depthmaps[1][:] *= 0.5  # something stands in front of the second camera
    model = pycolmap.Reconstruction(write_colmap(reconstruction, tmp_path, max_points=300))
    for point in model.points3D.values():
        seen = {element.image_id for element in point.track.elements}
        assert 2 not in seen or seen == {2}


def test_names_never_leave_the_folder(build, tmp_path):
    names = ["../../etc/passwd", "a/CON.jpg", "", "..\\con.png"]
    out = tmp_path / "deep" / "out"
    write_colmap(build(names=names), out, max_points=10)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    outside = {path for path in written if path.parts[:2] != ("deep", "out")}
    assert outside == {Path("photos/0.jpg"), Path("photos/1.png"), Path("photos/2.jpg")}
    images = {path.name for path in (out / "images").iterdir()}
    assert images == {"passwd.jpg", "image_CON.png", "image_003.jpg", "image_con_2.png"}


def test_an_original_that_was_exchanged_is_refused(reconstruction, tmp_path):
    Image.new("RGB", (50, 40)).save(reconstruction.sources[0].path)
    with pytest.raises(ValueError, match="room 1.jpg is 50x40 pixels and was 192x144"):
        write_colmap(reconstruction, tmp_path / "out")
    reconstruction.sources[0].path.unlink()
    with pytest.raises(FileNotFoundError, match="room 1.jpg is gone"):
        write_colmap(reconstruction, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))


def test_photographs_in_the_target_are_left_alone(reconstruction, tmp_path):
    photos = reconstruction.sources[0].path.parent
    photos.rename(tmp_path / "images")
    sources = [
        replace(source, path=source.path and tmp_path / "images" / source.path.name)
        for source in reconstruction.sources
    ]
    moved = replace(reconstruction, sources=tuple(sources))
    before = {path: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    with pytest.raises(ValueError, match="photographs themselves"):
        write_colmap(moved, tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "images").iterdir()} == before
