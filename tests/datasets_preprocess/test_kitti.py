"""KITTI: the chain of calibration, far depth, and what is missing on one of two servers."""

import json
from pathlib import Path

import numpy as np
import pytest
from raw.kitti import CENTRES, DATE, oxts, unit_poses, write_calibration, write_drive, write_release
from rgbd_raw import steps, write_image

from datasets_preprocess.layout import depth_path, read_depth, read_metadata
from datasets_preprocess.preprocess_kitti import drive_poses, main
from dust3r.datasets.kitti import KITTI

DRIVE = f"{DATE}_drive_0001_sync"


def run(raw: Path, depth: Path, root: Path, *options: str) -> int:
    arguments = ["--kitti_raw_dir", str(raw), "--kitti_depth_dir", str(depth)]
    fixed = ["--output_dir", str(root), "--num_workers", "1", "--max_overlap", "1"]
    return main([*arguments, *fixed, *options])


def test_mercator_gives_back_the_metres_driven(tmp_path):
    poses = unit_poses(4)
    poses[:, :3, 3] *= 50
    files = []
    for number, pose in enumerate(poses):
        files.append(tmp_path / f"{number:010d}.txt")
        files[-1].write_text(oxts(pose))
    found = drive_poses(files)
    for file, pose in zip(files, poses, strict=True):
        expected = np.linalg.inv(poses[0]) @ pose
        # Mercator's scale is that of the first latitude: 0.2 mm at 100 m from there.
        np.testing.assert_allclose(found[file.stem], expected, atol=2e-3)


def test_both_cameras_of_a_drive_and_depth_beyond_65_metres(tmp_path):
    raw, depth_dir, root = tmp_path / "raw", tmp_path / "depth", tmp_path / "out"
    write_calibration(raw / DATE)
    write_drive(raw, depth_dir / "val", DRIVE, unit_poses(2))
    truth = depth_dir / "val" / DRIVE / "proj_depth" / "groundtruth" / "image_02"
    far = np.full((112, 208), 81.25)
    far[:, ::2] = 0
    write_image(truth / "0000000001.png", steps(far, 256))
    assert run(raw, depth_dir, root) == 0
    index = read_metadata(root)
    assert index.images.tolist() == [f"image_{c}_000000000{k}" for c in CENTRES for k in (0, 1)]
    assert index.depth_unit.tolist() == [256] and index.splits.tolist() == ["val"]
    left, right = index.trajectories[0].astype(float), index.trajectories[2].astype(float)
    apart = np.linalg.inv(left) @ right
    np.testing.assert_allclose(apart[:3, 3], CENTRES["03"] - CENTRES["02"], atol=1e-5)
    stored = read_depth(depth_path(root, DRIVE, "image_02_0000000001"), 256)
    np.testing.assert_allclose(np.unique(stored), [0, 81.25])

    data = KITTI(split="val", ROOT=root, resolution=(96, 64))
    path = depth_path(root, DRIVE, "image_02_0000000001")
    assert data.read_depth(path, 0).max() == pytest.approx(81.25)
    with pytest.raises(ValueError, match="its scenes are of val"):
        KITTI(split="train", ROOT=root, resolution=(96, 64))


def test_sparse_depth_still_finds_its_pairs(tmp_path):
    """With one pixel in seven, as annotated depth has it, overlap is that of the surfaces."""
    raw, depth_dir, root = tmp_path / "raw", tmp_path / "depth", tmp_path / "out"
    write_calibration(raw / DATE)
    write_drive(raw, depth_dir / "train", DRIVE, unit_poses(2))
    rng = np.random.default_rng(0)
    for path in depth_dir.rglob("*.png"):
        stored = (read_depth(path, 1)).astype(np.uint16)
        stored[rng.random(stored.shape) < 0.8] = 0
        write_image(path, stored)
    assert run(raw, depth_dir, root, "--cameras", "image_03") == 0
    index = read_metadata(root)
    assert index.images.tolist() == ["image_03_0000000000", "image_03_0000000001"]
    assert index.pairs[0, 2] > 0.6


def test_what_is_missing_is_reported(tmp_path, capsys):
    raw, depth_dir = write_release(tmp_path)
    root = tmp_path / "out"
    drive = raw / DATE / DRIVE
    (drive / "oxts" / "data" / "0000000000.txt").unlink()
    (drive / "image_02" / "data" / "0000000001.png").unlink()
    lost = depth_dir / "train" / f"{DATE}_drive_0009_sync"
    (lost / "proj_depth").mkdir(parents=True)
    assert run(raw, depth_dir, root) == 0
    report = json.loads((root / "preprocess.json").read_text())
    assert report["scenes"][DRIVE]["skipped"] == {"no oxts file": 2, "no colour file": 1}
    assert report["scenes"][DRIVE]["examples"]["no colour file"] == "image_02_0000000001"
    assert "no raw data" in report["failed"][lost.name]
    assert "drive_0009" in capsys.readouterr().out


def test_calibration_that_lacks_a_camera_is_named(tmp_path, capsys):
    raw, depth_dir = write_release(tmp_path)
    file = raw / DATE / "calib_cam_to_cam.txt"
    file.write_text(file.read_text().replace("P_rect_03", "P_roi_03"))
    assert run(raw, depth_dir, tmp_path / "out") == 1
    assert "lack something: 'P_rect_03'" in capsys.readouterr().err
