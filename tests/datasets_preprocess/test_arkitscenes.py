"""ARKitScenes: times, turns, depth on the image's grid, the published layout, bad sources."""

import errno

import cv2
import numpy as np
import pytest
from raw.arkitscenes import CAMERA, SIZE, VIDEOS, build, run, write_video
from scipy.spatial.transform import Rotation
from world import World

from datasets_preprocess import layout
from datasets_preprocess.arkitscenes_release import (
    Trajectory,
    _enlarged,
    quarter_turns,
    read_scene,
    turned_intrinsics,
)
from dust3r.datasets import SampleError
from dust3r.datasets.arkitscenes import ARKitScenes
from dust3r.utils.geometry import project


@pytest.fixture(scope="module")
def processed(tmp_path_factory):
    return build(tmp_path_factory.mktemp("arkit"))["ROOT"]


def test_written_layout_is_the_published_one(processed):
    video = "Training/40753679"
    names = sorted(path.name for path in (processed / video).iterdir())
    assert {"vga_wide", "lowres_depth", "scene_metadata.npz"} <= set(names)
    assert not {"images", "depth", "scene.npz"} & set(names)
    with np.load(processed / video / "scene_metadata.npz") as scene:
        assert {"images", "intrinsics", "trajectories", "pairs"} <= set(scene.files)
        assert all(str(name).endswith(".png") for name in scene["images"])
    with np.load(processed / "Training" / "all_metadata.npz") as index:
        assert index["scenes"].tolist() == ["40753679", "40753686"]
        assert index["trajectories"].shape == (6, 4, 4)


def test_splits_are_the_releases(processed):
    lengths = [len(ARKitScenes(split, processed, 64)) for split in ("train", "test", "val", "all")]
    assert lengths[1] == lengths[2] > 0 and lengths[0] + lengths[1] == lengths[3]
    everything = ARKitScenes("all", processed, 64)
    videos = [path.parents[1].name for i in range(lengths[3]) for path in everything._get_paths(i)]
    assert set(videos) == {name.split("/")[1] for name in VIDEOS}


def test_the_sky_is_up_in_every_video(processed):
    dataset = ARKitScenes("all", processed, (64, 48), seed=0)
    shapes = set()
    for index in range(len(dataset)):
        for view in dataset[index]:
            sky = view["camera_pose"][:3, :3].T @ [0, 0, 1]
            assert -sky[1] > abs(sky[0])
            shapes.add(tuple(view["true_shape"]))
    assert shapes == {(48, 64), (64, 48)}


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turned_camera_sees_points_where_the_turned_image_shows_them(turns):
    camera = np.array([[100.0, 0, 70.3], [0, 90.0, 41.8], [0, 0, 1]])
    width, height, point = 150, 80, np.array([0.2, -0.13, 1.7])
    (x, y), _ = project(point, camera)
    for _ in range(turns):
        x, y, width, height = y, width - 1 - x, height, width
    turned = turned_intrinsics(camera, (150, 80), turns)
    roll = Rotation.from_euler("z", -90 * turns, degrees=True).as_matrix()
    seen, _ = project(roll @ point, turned)
    np.testing.assert_allclose(seen, [x, y], atol=1e-9)


@pytest.mark.parametrize(("roll", "expected"), [(0, 0), (90, 3), (180, 2), (-90, 1), (30, 0)])
def test_turns_follow_the_sky(roll, expected):
    """A camera rolled clockwise has the sky at its image's left: a turn clockwise, or three."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", roll, degrees=True).as_matrix()
    assert quarter_turns([pose @ turn for pose in World().poses(4)]) == expected


def test_poses_between_those_of_the_trajectory(tmp_path):
    path = tmp_path / "a.traj"
    # World to camera: at 1 s the camera is at x = -1, at 2 s turned by 90 degrees about y.
    path.write_text(f"1.0 0 0 0 1 0 0\n1.4 0 {-np.pi / 2} 0 0 0 0\n")
    trajectory = Trajectory.from_file(path)
    np.testing.assert_allclose(trajectory.at(1.0)[:3, 3], [-1, 0, 0], atol=1e-12)
    middle = trajectory.at(1.2)
    np.testing.assert_allclose(middle[:3, 3], [-0.5, 0, 0], atol=1e-12)
    half = Rotation.from_euler("y", 45, degrees=True).as_matrix()
    np.testing.assert_allclose(middle[:3, :3], half, atol=1e-12)
    assert trajectory.at(0.9) is None and trajectory.at(1.5) is None
    path.write_text("1.0 0 0 0 1 0 0\n9.0 0 0 0 0 0 0\n")
    assert Trajectory.from_file(path).at(5.0) is None, "a gap of seconds is not bridged"
    path.write_text("1.0 0 0 0 1 0\n")
    with pytest.raises(ValueError, match="a.traj"):
        Trajectory.from_file(path)


def test_published_data_without_pairs_scores_and_with_validation_is_read(processed, tmp_path):
    folder = tmp_path / "Validation"
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(processed / "Test")
    published = ARKitScenes("test", tmp_path, 64, seed=0)
    np.testing.assert_array_equal(
        published[0][0]["depthmap"], ARKitScenes("test", processed, 64, seed=0)[0][0]["depthmap"]
    )
    with pytest.raises(FileNotFoundError, match="Training"):
        ARKitScenes("train", tmp_path, 64)


def test_listed_pairs_take_the_place_of_measured_ones(tmp_path):
    raw, root, pairs = tmp_path / "raw", tmp_path / "out", tmp_path / "pairs"
    write_video(raw / "Training/11", World().poses(4), 0)
    (pairs / "Training" / "11").mkdir(parents=True)
    names = sorted(path.name for path in (raw / "Training/11/vga_wide").iterdir())
    np.savez(
        pairs / "Training" / "11" / "scene_metadata.npz",
        images=np.array([*names, "11_1.000.png"]),
        pairs=np.array([[3, 1, 0.25], [0, 4, 0.5]]),
    )
    assert run(raw, root, "--precomputed_pairs", str(pairs)) == 0
    with np.load(root / "Training" / "11" / "scene_metadata.npz") as stored:
        kept = [[stored["images"][int(i)] for i in row[:2]] for row in stored["pairs"]]
    assert kept == [[names[3], names[1]]]


def test_bad_sources_are_named_and_only_whole_scenes_are_written(tmp_path, capsys):
    raw, root = tmp_path / "raw", tmp_path / "out"
    good = write_video(raw / "Training/1", World().poses(6), 0)
    images = sorted((good / "vga_wide").iterdir())
    images[1].write_bytes(b"no image")
    depths = sorted((good / "lowres_depth").iterdir())
    depths[2].unlink()
    cv2.imwrite(str(depths[3]), np.zeros((96, 128), np.uint16))
    no_depth = write_video(raw / "Validation/2", World().poses(2), 0)
    for path in (no_depth / "lowres_depth").iterdir():
        path.unlink()
    assert run(raw, root) == 0
    text = capsys.readouterr().out
    assert "no depth at that time" in text and images[2].name in text
    assert "unreadable colour or depth" in text and images[1].name in text
    assert "less than 1% with depth" in text
    assert "Test/2" in text and "lowres_depth" in text
    assert len(list((root / "Training/1/vga_wide").iterdir())) == 3
    assert not (root / "Test").exists() or not any((root / "Test").iterdir())


def test_full_disk(tmp_path, monkeypatch, capsys):
    raw, root = tmp_path / "raw", tmp_path / "out"
    write_video(raw / "Training/1", World().poses(3), 0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "_imwrite", full)
    assert run(raw, root) == 1
    assert "disk is full" in capsys.readouterr().err
    assert not (root / "Training").exists()


def test_a_depth_map_of_another_size_is_a_named_error(processed):
    dataset = ARKitScenes("test", processed, 64, seed=0)
    path = dataset._paths(0, dataset._pair(0)[1][0])[1]
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), stored[::2, ::2])
    try:
        with pytest.raises(SampleError, match="pixel grid"):
            dataset[0]
    finally:
        cv2.imwrite(str(path), stored)


def test_depth_of_a_slanted_plane_stays_that_plane_on_the_finer_grid():
    """A shift of a quarter of an image's pixel would show."""

    def plane(width, height):
        x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
        return (1 / (0.5 + 0.3 * x + 0.2 * y[:, None])).astype(np.float32)

    enlarged = _enlarged(plane(64, 48), (120, 160))
    np.testing.assert_allclose(enlarged[2:-2, 2:-2], plane(160, 120)[2:-2, 2:-2], rtol=1e-3)


def test_depth_is_interpolated_to_the_images_grid(tmp_path):
    folder = write_video(tmp_path / "7", World().poses(2), 0)
    recording = read_scene(folder, "7", 1)
    frame = recording.load(recording.frames[0])
    _, exact = World().render(recording.frames[0].pose, CAMERA, SIZE)
    np.testing.assert_allclose(frame.intrinsics, CAMERA)
    inner = (slice(4, -4), slice(4, -4))
    assert np.median(np.abs(frame.depth - exact)[inner] / exact[inner]) < 3e-4
