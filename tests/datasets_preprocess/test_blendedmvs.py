"""BlendedMVS from its release: bad sources, full disks, lists of pairs, and its file formats."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from raw import blendedmvs as raw
from world import World

from datasets_preprocess import indexed_pairs
from datasets_preprocess.preprocess_blendedmvs import main, read_camera_file, read_pfm
from dust3r.datasets.blendedmvs import PAIRS, BlendedMVS

PROJECT, OTHER = raw.PROJECTS
SIZE = (72, 48)


@pytest.fixture(scope="module")
def poses() -> np.ndarray:
    return World().poses(6)


@pytest.fixture
def release(tmp_path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def run(tmp_path, release):
    """Run the script; returns its exit status and the report it wrote."""

    def call(*options: str) -> tuple[int, dict]:
        root = tmp_path / "processed"
        status = main(["--blendedmvs_dir", str(release), "--output_dir", str(root), *options])
        report = root / "preprocess.json"
        return status, json.loads(report.read_text()) if report.is_file() else {}

    return call


def folders(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "processed").iterdir() if path.is_dir()}


def test_bad_views_are_left_out_and_named(tmp_path, release, run, poses, capsys):
    folder = raw.write_project(release, PROJECT, poses, SIZE)
    image = folder / "blended_images" / "00000001.jpg"
    image.write_bytes(image.read_bytes()[:800])
    (folder / "rendered_depth_maps" / "00000002.pfm").unlink()
    raw.write_pfm(folder / "rendered_depth_maps" / "00000003.pfm", np.zeros(SIZE[::-1]))
    raw.write_camera(folder / "cams" / "00000004_cam.txt", raw.camera(SIZE), poses[0] * np.nan)
    status, report = run("--max_overlap", "1")
    assert status == 0
    scene = report["scenes"][PROJECT]
    assert (scene["frames"], scene["pairs"]) == (2, 1)
    assert scene["skipped"] == {
        "unreadable file": 1,
        "missing file": 1,
        "less than 1.0% with depth": 1,
        "camera is not finite": 1,
    }
    assert "00000001.jpg" in scene["examples"]["unreadable file"]
    assert "00000002.pfm" in scene["examples"]["missing file"]
    assert scene["examples"]["less than 1.0% with depth"] == "00000003"
    printed = capsys.readouterr().out
    assert all(reason in printed for reason in scene["skipped"])
    assert len(BlendedMVS(ROOT=tmp_path / "processed", resolution=(64, 48))) == 1
    assert (tmp_path / "processed" / "contact_sheet.png").is_file()


def test_projects_that_cannot_be_used_leave_nothing(tmp_path, release, run, poses):
    raw.write_project(release, PROJECT, poses[:3], SIZE)
    empty = raw.write_project(release, OTHER, poses[:3], SIZE)
    for depth in (empty / "rendered_depth_maps").iterdir():
        raw.write_pfm(depth, np.zeros(SIZE[::-1]))
    raw.write_project(release, "castle", poses[:3], SIZE)
    status, report = run()
    assert status == 0
    assert set(report["scenes"]) == folders(tmp_path) == {PROJECT}
    assert "3 less than 1.0% with depth (first: 00000000)" in report["failed"][OTHER]
    assert "24 hexadecimal digits" in report["failed"]["castle"]


def test_nothing_usable_is_an_error(release, run, poses, capsys):
    folder = raw.write_project(release, PROJECT, poses[:2], SIZE)
    (folder / "blended_images" / "00000000.jpg").unlink()
    assert run()[0] == 1
    assert "1 usable view(s), 2 are needed" in capsys.readouterr().err
    assert run("--blendedmvs_dir", "/none")[0] == 1
    assert "--blendedmvs_dir='/none' is not a folder" in capsys.readouterr().err
    assert run("--blendedmvs_dir", str(folder / "cams"))[0] == 1
    assert "has no project" in capsys.readouterr().err


def test_a_full_disk_keeps_whole_scenes_and_goes_on(
    tmp_path, release, run, poses, monkeypatch, capsys
):
    raw.write_project(release, OTHER, poses[:3], SIZE)
    raw.write_project(release, PROJECT, poses[3:], SIZE)
    write, left = indexed_pairs.write_exr_depth, [4]

    def write_until_full(path: Path, depth: np.ndarray) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, depth)

    monkeypatch.setattr(indexed_pairs, "write_exr_depth", write_until_full)
    status, report = run()
    assert status == 1 and "the disk is full" in capsys.readouterr().err
    assert set(report["scenes"]) == folders(tmp_path) == {OTHER}
    done = (tmp_path / "processed" / OTHER / "00000000.exr").stat().st_mtime_ns

    monkeypatch.undo()
    status, report = run()
    assert status == 0 and set(report["scenes"]) == {OTHER, PROJECT}
    assert (tmp_path / "processed" / OTHER / "00000000.exr").stat().st_mtime_ns == done
    sequences = np.load(tmp_path / "processed" / "blendedmvs_pairs.npy")["seq_low"]
    assert set(sequences.tolist()) == {int(name[8:], 16) for name in (OTHER, PROJECT)}


def test_a_list_of_pairs_is_followed(tmp_path, release, run, poses):
    raw.write_project(release, PROJECT, poses[:4], SIZE)
    raw.write_project(release, OTHER, poses[:3], SIZE)
    high, low = int(PROJECT[:8], 16), int(PROJECT[8:], 16)
    listed = [(low, high, 3, 1, 0.75), (low, high, 1, 9, 0.5)]
    np.save(tmp_path / "pairs.npy", np.array(listed, PAIRS))
    status, report = run("--precomputed_pairs", str(tmp_path / "pairs.npy"))
    assert status == 0 and set(report["scenes"]) == {PROJECT}
    assert report["scenes"][PROJECT]["skipped"] == {"listed pair of a view that is not there": 1}
    images = {path.name for path in (tmp_path / "processed" / PROJECT).glob("*.jpg")}
    assert images == {"00000001.jpg", "00000003.jpg"}
    stored = np.load(tmp_path / "processed" / "blendedmvs_pairs.npy")
    assert stored.dtype == PAIRS and stored.tolist() == listed[:1]


def test_pairs_are_limited_to_the_range(tmp_path, release, run, poses):
    raw.write_project(release, PROJECT, poses, SIZE)
    assert run("--min_overlap", "0.5", "--max_overlap", "0.8", "--max_pairs", "4")[0] == 0
    stored = np.load(tmp_path / "processed" / "blendedmvs_pairs.npy")
    assert len(stored) == 4
    assert (stored["score"] >= 0.5).all() and (stored["score"] <= 0.8).all()


def test_pfm_rows_go_up(tmp_path):
    depth = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw.write_pfm(tmp_path / "depth.pfm", depth)
    np.testing.assert_array_equal(read_pfm(tmp_path / "depth.pfm"), depth)
    (tmp_path / "depth.pfm").write_bytes(b"Pf\n3 2\n-1\n")
    with pytest.raises(ValueError, match="depth.pfm"):
        read_pfm(tmp_path / "depth.pfm")


def test_camera_files_are_read_by_their_words(tmp_path):
    pose = World().poses(1)[0]
    raw.write_camera(tmp_path / "cam.txt", raw.camera(SIZE), pose)
    intrinsics, extrinsic = read_camera_file(tmp_path / "cam.txt")
    np.testing.assert_allclose(extrinsic @ pose, np.eye(4), atol=1e-7)
    np.testing.assert_allclose(intrinsics[:2, 2], raw.camera(SIZE)[:2, 2] + 0.5)
    (tmp_path / "cam.txt").write_text("extrinsic 1 0 0")
    with pytest.raises(ValueError, match="cam.txt is no camera file"):
        read_camera_file(tmp_path / "cam.txt")
