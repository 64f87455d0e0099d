"""Hypersim: distance along rays, asset units, lenses, and images that are not public."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from raw.hypersim import (
    CAMERA,
    METRES,
    SIZE,
    split_row,
    write_camera,
    write_csv,
    write_release,
    write_scene_csv,
)
from rgbd_raw import spoil
from world import World

from datasets_preprocess.layout import depth_path, read_depth, read_metadata
from datasets_preprocess.preprocess_hypersim import main, pinhole, z_of_distance


def run(raw: Path, root: Path, *options: str) -> int:
    arguments = ["--hypersim_dir", str(raw), "--output_dir", str(root), "--num_workers", "1"]
    return main([*arguments, *options])


def uv_matrix(intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The release's matrix of a pinhole camera: from [-1, 1] to rays with y up and z backward."""
    width, height = size
    to_pixel = np.array([[width / 2, 0, (width - 1) / 2], [0, -height / 2, (height - 1) / 2]])
    to_pixel = np.concatenate([to_pixel, [[0, 0, 1]]])
    return np.diag([1.0, -1, -1]) @ np.linalg.inv(intrinsics) @ to_pixel


def test_z_is_shorter_than_the_ray_away_from_the_centre():
    distance = np.full((3, 3), 2.0)
    distance[0, 0] = np.nan
    z = z_of_distance(distance, np.array([[1.0, 0, 1], [0, 1.0, 1], [0, 0, 1]]))
    expected = 2 / np.sqrt([[np.inf, 2, 3], [2, 1, 2], [3, 2, 3]])
    np.testing.assert_allclose(z, expected, rtol=1e-6)


def test_a_lens_is_read_off_its_matrix_and_a_tilted_one_refused():
    shifted = np.array([[130.0, 0, 40.25], [0, 128.0, 60.5], [0, 0, 1]])
    np.testing.assert_allclose(pinhole(uv_matrix(shifted, SIZE), *SIZE), shifted, rtol=1e-9)
    usual = np.diag([np.tan(np.pi / 6), np.tan(np.pi / 6) * 0.75, -1])
    np.testing.assert_allclose(pinhole(usual, 1024, 768)[0], [886.81, 0, 511.5], atol=1e-2)
    tilted = usual.copy()
    tilted[2, 1] = 0.05
    with pytest.raises(ValueError, match="tilted or skewed"):
        pinhole(tilted, 1024, 768)


def test_frames_splits_and_lenses_are_those_of_the_tables(tmp_path, capsys):
    raw, root = write_release(tmp_path / "raw"), tmp_path / "out"
    table = raw / "metadata_images_split_scene_v1.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    rows[0].update(split_row("ai_001_001", "cam_00", 3, "train", "excluded by hand"))
    write_csv(table, rows)
    shifted = CAMERA + [[0, 0, 6.0], [0, 0, -4.0], [0, 0, 0]]
    write_scene_csv(raw / "ai_002_002")
    write_camera(raw / "ai_002_002", "cam_00", World().poses(2), shifted)
    write_scene_csv(raw / "ai_002_003")
    write_camera(raw / "ai_002_003", "cam_00", World().poses(1))
    tilted = uv_matrix(CAMERA, SIZE)
    tilted[2, 0] = 0.1
    lenses = []
    for scene, matrix in (("ai_002_002", uv_matrix(shifted, SIZE)), ("ai_002_003", tilted)):
        lenses.append({"scene_name": scene})
        lenses[-1] |= {f"M_cam_from_uv_{i}{j}": matrix[i, j] for i in range(3) for j in range(3)}
    write_csv(raw / "metadata_camera_parameters.csv", lenses)
    assert run(raw, root) == 0

    index = read_metadata(root)
    assert index.scenes.tolist() == ["ai_001_001", "ai_002_002", "ai_003_010"]
    assert index.splits.tolist() == ["train", "", "test"]
    assert index.images[:4].tolist() == ["cam_00_0004", "cam_00_0005", "cam_01_0003", "cam_01_0004"]
    np.testing.assert_allclose(index.intrinsics[4], shifted, rtol=1e-6)
    report = json.loads((root / "preprocess.json").read_text())
    skipped = report["scenes"]["ai_001_001"]["skipped"]
    assert skipped == {"not public (excluded by hand)": 1}
    assert "tilted or skewed" in report["failed"]["ai_002_003"]
    assert "60 degrees" not in capsys.readouterr().out
    _, exact = World().render(World().poses(2)[1], shifted, SIZE)
    stored = read_depth(depth_path(root, "ai_002_002", "cam_00_0004"))
    assert np.abs(stored - exact)[:, 4:].max() < 0.001 and not stored[:, :4].any()


def test_damaged_and_missing_files_are_named(tmp_path, capsys):
    raw, root = tmp_path / "raw", tmp_path / "out"
    for scene in ("ai_001_001", "ai_001_002", "ai_001_003"):
        write_scene_csv(raw / scene)
        write_camera(raw / scene, "cam_00", World().poses(4))
    images = raw / "ai_001_001" / "images"
    spoil(images / "scene_cam_00_geometry_hdf5" / "frame.0003.depth_meters.hdf5")
    spoil(images / "scene_cam_00_final_preview" / "frame.0004.tonemap.jpg")
    write_csv(
        raw / "ai_001_002" / "_detail" / "metadata_scene.csv",
        [{"parameter_name": "unit", "parameter_value": METRES}],
    )
    (raw / "ai_001_003" / "_detail" / "cam_00" / "camera_keyframe_positions.hdf5").unlink()
    assert run(raw, root) == 0
    report = json.loads((root / "preprocess.json").read_text())
    assert report["scenes"]["ai_001_001"]["skipped"] == {"unreadable colour or depth": 2}
    assert "states no meters_per_asset_unit" in report["failed"]["ai_001_002"]
    assert "camera_keyframe_positions.hdf5" in report["failed"]["ai_001_003"]
    printed = capsys.readouterr().out
    for table in ("metadata_images_split_scene_v1.csv", "metadata_camera_parameters.csv"):
        assert f"warning: no {table}" in printed


def test_without_h5py_the_message_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert run(tmp_path, tmp_path / "out") == 1
    assert "pip install h5py" in capsys.readouterr().err
