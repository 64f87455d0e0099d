"""MegaDepth from its release: COLMAP's cameras, HDF5 depth, lists of pairs, bad sources."""

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from raw import megadepth as raw
from world import World

from datasets_preprocess.preprocess_megadepth import main, read_depth_h5
from dust3r.datasets.indexed_pairs import read_camera
from dust3r.datasets.megadepth import MegaDepth
from dust3r.utils.exr import read_exr_depth
from dust3r.utils.image import read_rgb

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def poses() -> np.ndarray:
    return World().poses(3)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, poses) -> Path:
    """A release of two reconstructions, not to be changed."""
    release = tmp_path_factory.mktemp("megadepth")
    raw.write_pinhole(release, "0015", poses)
    raw.write_radial(release, "0204", poses)
    return release


@pytest.fixture
def release(tmp_path, recorded) -> Path:
    return shutil.copytree(recorded, tmp_path / "raw")


def run(release: Path, *options: str) -> tuple[int, Path, dict]:
    root = release.parent / "processed"
    status = main(["--megadepth_dir", str(release), "--output_dir", str(root), *options])
    report = root / "preprocess.json"
    return status, root, json.loads(report.read_text()) if report.is_file() else {}


def dense(release: Path, landmark: str = "0015", number: int = 0) -> Path:
    return release / "phoenix/S6/zl548/MegaDepth_v1" / landmark / f"dense{number}"


def test_smaller_images_keep_their_geometry(release, poses):
    status, root, _ = run(release, "--max_side", "80")
    assert status == 0
    stem = sorted(path.stem for path in (dense(release) / "imgs").iterdir())[1]
    intrinsics, pose = read_camera(root / "0015/0" / f"{stem}.npz")
    depth = read_exr_depth(root / "0015/0" / f"{stem}.exr")
    assert depth.shape == (60, 80)
    pose[:3, 3] *= raw.UNIT_M
    np.testing.assert_allclose(pose, poses[1], atol=1e-5)
    _, expected = World().render(pose, intrinsics, (80, 60))
    within = (depth > 0) & (np.abs(depth * raw.UNIT_M - expected) < 0.01 * expected)
    assert within.mean() > 0.85
    # Each of its pixels is the mean of four of a camera with half the pixels' pitch.
    intrinsics[:2] *= 2
    intrinsics[:2, 2] += 0.5
    rgb, _ = World().render(pose, intrinsics, (160, 120))
    expected = rgb.reshape(60, 2, 80, 2, 3).mean((1, 3)) @ LUMA
    # JPEG keeps brightness at every pixel, colour at every other one.
    stored = read_rgb(root / "0015/0" / f"{stem}.jpg") @ LUMA
    assert np.median(np.abs(stored - expected)) < 2


def test_a_list_may_name_photographs_by_file(release):
    names = sorted(path.name for path in (dense(release) / "imgs").iterdir())
    np.savez(
        release / "pairs.npz",
        scenes=np.array(["0015 0", "5000 0"]),
        images=np.array([*names, "gone.jpg"]),
        pairs=np.array([[0, 0, 2, 0.4], [0, 0, 3, 0.6], [1, 0, 1, 0.5]]),
    )
    status, root, report = run(release, "--precomputed_pairs", str(release / "pairs.npz"))
    assert status == 0 and set(report["scenes"]) == {"0015/0"}
    assert report["scenes"]["0015/0"]["skipped"] == {
        "not in the release": 1,
        "listed pair of a view that is not there": 1,
    }
    dataset = MegaDepth(ROOT=root, resolution=(64, 48))
    assert [view["label"] for view in dataset[0]] == [f"0015/0/{name}" for name in names[::2]]
    with np.load(root / "all_metadata.npz") as index:
        np.testing.assert_allclose(index["scores"], [0.4])


def test_bad_photographs_are_left_out_and_named(release, capsys):
    folder = dense(release)
    first, second, third = sorted((folder / "imgs").iterdir())
    first.write_bytes(first.read_bytes()[:900])
    shutil.copy(second, folder / "imgs" / "unknown.jpg")
    raw.write_depth(folder / "depths" / f"{second.stem}.h5", np.full((120, 160), -1.0))
    (folder / "depths" / f"{third.stem}.h5").write_bytes(b"no depth")
    status, root, report = run(release)
    assert status == 0 and set(report["scenes"]) == {"0204/1"}
    failed = report["failed"]["0015/0"]
    for reason in ("2 unreadable file", "1 not in COLMAP's model", "1 less than 1.0% with depth"):
        assert reason in failed
    assert not (root / "0015" / "0").exists()
    assert "scene left out: 0015/0" in capsys.readouterr().out


def test_sizes_that_do_not_belong_together_are_refused(release):
    for depth in (dense(release) / "depths").iterdir():
        raw.write_depth(depth, np.ones((160, 120)))
    _, _, report = run(release)
    assert "the photograph is 160x120, its depth map 120x160" in report["failed"]["0015/0"]


def test_models_that_are_undistorted_are_found(release, poses):
    model = release / "MegaDepth_v1_SfM" / "0015" / "sparse/manhattan/0"
    model.rename(dense(release) / "sparse")
    (release / "MegaDepth_v1_SfM" / "0204" / "sparse/manhattan/1/images.txt").unlink()
    status, root, report = run(release)
    assert status == 0 and set(report["scenes"]) == {"0015/0"}
    assert "there is no COLMAP model of it: expected" in report["failed"]["0204/1"]


def test_h5py_that_is_missing_is_said_at_once(release, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)
    status, root, _ = run(release)
    assert status == 1 and not root.exists()
    assert "pip install h5py" in capsys.readouterr().err


def test_depth_files(tmp_path):
    raw.write_depth(tmp_path / "a.h5", np.array([[1.5, -1, 0, -2]]))
    np.testing.assert_array_equal(read_depth_h5(tmp_path / "a.h5"), [[1.5, 0, 0, 0]])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["other"] = np.ones((2, 2))
    with pytest.raises(ValueError, match="b.h5 is damaged or holds no depth"):
        read_depth_h5(tmp_path / "b.h5")
    with pytest.raises(FileNotFoundError):
        read_depth_h5(tmp_path / "c.h5")
