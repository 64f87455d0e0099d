"""StaticThings3D from its release: float3 files, cameras, lists of pairs, bad sources."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from raw import staticthings3d as raw
from world import World

from datasets_preprocess.preprocess_staticthings3d import main, read_float3
from dust3r.datasets.indexed_pairs import read_camera
from dust3r.datasets.staticthings3d import PAIRS, StaticThings3D
from dust3r.utils.image import read_rgb

FIRST, SECOND = "TRAIN/A/0000", "TRAIN/C/0749"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A release of two sequences, not to be changed."""
    release = tmp_path_factory.mktemp("staticthings3d")
    for sequence in (FIRST, SECOND):
        raw.write_sequence(release, sequence, World().poses(2))
    return release


@pytest.fixture
def release(tmp_path, recorded) -> Path:
    return shutil.copytree(recorded, tmp_path / "raw")


def run(release: Path, *options: str) -> tuple[int, Path, dict]:
    root = release.parent / "processed"
    given = ["--StaticThings3D_dir", str(release), "--output_dir", str(root), "--max_overlap", "1"]
    status = main([*given, *options])
    report = root / "preprocess.json"
    return status, root, json.loads(report.read_text()) if report.is_file() else {}


def test_cameras_passes_and_the_stereo_baseline(release):
    status, root, report = run(release)
    assert status == 0 and report["scenes"][FIRST]["frames"] == 4
    poses = {}
    for camera in ("left", "right"):
        view = root / FIRST / camera / "0006"
        intrinsics, poses[camera] = read_camera(Path(f"{view}.npz"))
        np.testing.assert_allclose(intrinsics, raw.CAMERA, rtol=1e-6)
        clean, final = (read_rgb(f"{view}_{kind}.jpg").astype(float) for kind in ("clean", "final"))
        np.testing.assert_allclose(final.mean() / clean.mean(), 0.6, atol=0.02)
    between = np.linalg.inv(poses["left"]) @ poses["right"]
    expected = np.eye(4)
    expected[0, 3] = raw.BASELINE / raw.UNIT_M
    np.testing.assert_allclose(between, expected, atol=1e-5)


def test_a_list_of_pairs_is_followed(release):
    listed = np.array([("C", 749, "r", 7, "l", 6), ("A", 3, "l", 6, "l", 7)], PAIRS)
    np.save(release / "pairs.npy", listed)
    status, root, report = run(release, "--precomputed_pairs", str(release / "pairs.npy"))
    assert status == 0 and set(report["scenes"]) == {SECOND}
    assert np.load(root / "staticthings_pairs.npy").tolist() == listed[:1].tolist()
    dataset = StaticThings3D(ROOT=root, resolution=(64, 48))
    labels = [view["label"] for view in dataset[0]]
    assert labels == [f"{SECOND}/right/0007", f"{SECOND}/left/0006"]
    assert len(list((root / SECOND).glob("*/*.exr"))) == 2


def test_bad_frames_are_left_out_and_named(release):
    (release / "frames_finalpass" / FIRST / "left/0006.png").unlink()
    (release / "poses" / FIRST / "right/0006.float3").write_bytes(b"float\n2\n4\n4\nshort")
    raw.write_float3(release / "depths" / FIRST / "left/0007.float3", np.full((96, 160), np.inf))
    status, root, report = run(release)
    assert status == 0 and set(report["scenes"]) == {SECOND}
    failed = report["failed"][FIRST]
    assert "1 missing file" in failed and "frames_finalpass" in failed
    assert "1 unreadable file" in failed and "right/0006" in failed
    assert "1 less than 1.0% with depth (first: left/0007)" in failed
    assert not (root / FIRST).exists()


def test_archives_that_are_missing_are_named(release, capsys):
    shutil.rmtree(release / "intrinsics")
    assert run(release)[0] == 1
    assert "has no intrinsics/TRAIN" in capsys.readouterr().err


def test_float3_states_the_fastest_dimension_first(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw.write_float3(tmp_path / "a.float3", array)
    assert (tmp_path / "a.float3").read_bytes().startswith(b"float\n2\n3\n2\n")
    np.testing.assert_array_equal(read_float3(tmp_path / "a.float3"), array)
    for content in (b"", b"Pf\n3 2\n", b"float\n2\nthree\n", b"float\n2\n3\n2\n1234"):
        (tmp_path / "a.float3").write_bytes(content)
        with pytest.raises(ValueError, match="a.float3"):
            read_float3(tmp_path / "a.float3")
