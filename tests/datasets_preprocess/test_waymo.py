"""Waymo from its release: records, lidar points, lists of pairs, bad sources."""

import json
from pathlib import Path

import numpy as np
import pytest
from raw import waymo as raw
from world import World

from datasets_preprocess.preprocess_waymo import main
from datasets_preprocess.waymo.records import read_frames, transform
from datasets_preprocess.waymo.sensors import camera_view, lidar_points
from dust3r.datasets.waymo import Waymo

NAME = "segment-1_000_020_with_camera_labels"


@pytest.fixture(scope="module")
def poses() -> np.ndarray:
    return World().poses(3)


@pytest.fixture(scope="module")
def release(tmp_path_factory, poses) -> Path:
    """A segment of three frames; the second's side image is damaged, the third has no depth."""
    folder = tmp_path_factory.mktemp("waymo")
    raw.write_segment(folder / f"{NAME}.tfrecord", poses, {1: "jpeg", 2: "no depth"})
    return folder


@pytest.fixture
def run(tmp_path, release):
    def call(*options: str) -> tuple[int, Path, dict]:
        root = tmp_path / "processed"
        status = main(["--waymo_dir", str(release), "--output_dir", str(root), *options])
        report = root / "preprocess.json"
        return status, root, json.loads(report.read_text()) if report.is_file() else {}

    return call


def test_lidar_points_lie_on_the_worlds_surfaces(release, poses):
    number, frame = next(read_frames(release / f"{NAME}.tfrecord"))
    assert number == 0
    np.testing.assert_array_equal(transform(frame.pose), raw.vehicle_pose(poses[0]))
    lidar = lidar_points(frame)
    assert len(lidar.points) > 10_000
    world = np.linalg.inv(raw.GLOBAL)
    points = lidar.points @ world[:3, :3].T + world[:3, 3]
    # Seen from the front camera, nothing is farther than what a ray to it meets.
    camera = world @ transform(frame.pose) @ raw.EXTRINSICS[raw.FRONT]
    rays = (points - camera[:3, 3]) @ camera[:3, :3]
    distance = np.linalg.norm(rays, axis=-1)
    _, met = World().render_rays(camera, rays / distance[:, None])
    off = np.abs(met - distance)
    assert np.median(off) < 2e-3 and (off < 0.01).mean() > 0.9


def test_bad_frames_are_left_out_and_named(run):
    status, root, report = run("--max_overlap", "1")
    assert status == 0
    scene = report["scenes"][NAME]
    assert scene["frames"] == 3
    assert scene["skipped"] == {"unreadable file": 1, "less than 1.0% with depth": 2}
    assert "00001_2" in scene["examples"]["unreadable file"]
    assert scene["examples"]["less than 1.0% with depth"] == "00002_1"
    assert sorted(path.name for path in (root / NAME).glob("*.jpg")) == [
        "00000_1.jpg",
        "00000_2.jpg",
        "00001_1.jpg",
    ]


def test_a_list_of_pairs_is_followed(tmp_path, run):
    np.savez(
        tmp_path / "waymo_pairs.npz",
        scenes=np.array([f"{NAME}.tfrecord"]),
        frames=np.array(["00001_1", "00000_2", "00000_1"]),
        pairs=np.array([[0, 1, 0]]),
    )
    status, root, _ = run("--precomputed_pairs", str(tmp_path / "waymo_pairs.npz"))
    assert status == 0
    dataset = Waymo(ROOT=root, resolution=(64, 48))
    folder = f"{NAME}.tfrecord"
    assert [view["label"] for view in dataset[0]] == [f"{folder}/00000_2", f"{folder}/00001_1"]
    assert len(list((root / folder).glob("*.jpg"))) == 2


def test_files_that_are_cut_short_leave_nothing(tmp_path, release, capsys):
    whole = (release / f"{NAME}.tfrecord").read_bytes()
    (tmp_path / "raw").mkdir()
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"<html>not found</html>"):
        (tmp_path / "raw" / "segment-2.tfrecord").write_bytes(content)
        root = tmp_path / "processed"
        assert main(["--waymo_dir", str(tmp_path / "raw"), "--output_dir", str(root)]) == 1
        assert "scene left out: segment-2" in capsys.readouterr().err
        assert not (root / "segment-2").exists()


def test_folders_without_segments_are_refused(tmp_path, run, capsys):
    assert run("--waymo_dir", str(tmp_path))[0] == 1
    assert "has no *.tfrecord file" in capsys.readouterr().err


def test_smaller_images_shrink_about_pixel_corners(release):
    _, frame = next(read_frames(release / f"{NAME}.tfrecord"))
    lidar = lidar_points(frame)
    large, small = (camera_view(frame, raw.FRONT, lidar, side) for side in (168, 84))
    assert small.rgb.shape[:2] == small.depth.shape == (62, 84)
    np.testing.assert_allclose(small.intrinsics[0, 0], large.intrinsics[0, 0] / 2)
    corners = [view.intrinsics[:2, 2] + 0.5 for view in (large, small)]
    np.testing.assert_allclose(corners[1], corners[0] / 2)
