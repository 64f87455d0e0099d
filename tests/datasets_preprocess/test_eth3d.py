"""ETH3D: depth of distorted images on the pixels of undistorted ones."""

import json
from pathlib import Path

import numpy as np
from raw.eth3d import PINHOLES, write_scene

from datasets_preprocess.layout import depth_path, read_depth, read_metadata
from datasets_preprocess.preprocess_eth3d import main


def run(raw: Path, root: Path, *options: str) -> int:
    arguments = ["--eth3d_dir", str(raw), "--output_dir", str(root), "--num_workers", "1"]
    return main([*arguments, *options])


def test_a_large_place_keeps_its_far_depth(tmp_path):
    raw, root = tmp_path / "raw", tmp_path / "out"
    write_scene(raw / "facade", 2, scale=20.0)
    assert run(raw, root, "--max_side", "160") == 0
    index = read_metadata(root)
    largest = max(
        read_depth(depth_path(root, "facade", name), index.depth_unit[0]).max()
        for name in index.images
    )
    assert 70 < largest < 120


def test_full_size_keeps_the_pixels_with_their_centres_at_whole_numbers(tmp_path):
    raw, root = tmp_path / "raw", tmp_path / "out"
    write_scene(raw / "facade", 2)
    assert run(raw, root) == 0
    index = read_metadata(root)
    assert index.depth_unit.tolist() == [256]
    for number, camera in enumerate(PINHOLES):
        fx, fy, cx, cy = camera.params
        expected = [[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]]
        np.testing.assert_allclose(index.intrinsics[number], expected, rtol=1e-6)
        depth = read_depth(depth_path(root, "facade", index.images[number]), 256)
        assert depth.shape == (camera.height, camera.width)
        assert (depth > 0).mean() > 0.85


def test_damaged_files_are_named(tmp_path, capsys):
    raw, root = tmp_path / "raw", tmp_path / "out"
    scene = write_scene(raw / "facade", 4)
    truth = scene / "ground_truth_depth" / "dslr_images"
    (truth / "DSC_0286.JPG").write_bytes(b"\0" * 400)
    (truth / "DSC_0287.JPG").unlink()
    tilted = write_scene(raw / "office", 2)
    cameras = tilted / "dslr_calibration_undistorted" / "cameras.txt"
    cameras.write_text(cameras.read_text().replace("PINHOLE", "SIMPLE_RADIAL"))
    (write_scene(raw / "relief", 2) / "dslr_calibration_jpg" / "images.txt").unlink()
    assert run(raw, root) == 0
    report = json.loads((root / "preprocess.json").read_text())
    found = report["scenes"]["facade"]
    assert found["skipped"] == {"no depth file": 1, "unreadable colour or depth": 1}
    assert "100 values, expected 240 x 160" in found["examples"]["unreadable colour or depth"]
    assert "expected PINHOLE" in report["failed"]["office"]
    assert "dslr_calibration_jpg/images.txt" in report["failed"]["relief"]
    assert "scene left out: office" in capsys.readouterr().out
