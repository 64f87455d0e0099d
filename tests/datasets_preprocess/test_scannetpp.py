"""ScanNet++: lenses straightened, poses of both files, masks, splits, listed pairs, bad sources."""

import errno
import shutil

import cv2
import numpy as np
import pytest
from raw.scannetpp import (
    DSLR,
    DSLR_SIZE,
    PHONE,
    PHONE_SIZE,
    SCENES,
    lens_rays,
    run,
    write_release,
    write_scene,
)
from world import World

from datasets_preprocess import layout
from datasets_preprocess.colmap_text import ColmapCamera, read_cameras, read_images
from datasets_preprocess.scannetpp_release import read_scene
from datasets_preprocess.undistort import Lens, Undistortion
from dust3r.datasets.scannetpp import ScanNetpp

FISHEYE = ColmapCamera("OPENCV_FISHEYE", *DSLR_SIZE, DSLR)
RADIAL = ColmapCamera("OPENCV", *PHONE_SIZE, PHONE)
SMALL = ("--target_resolution", "112")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("scannetpp"))


@pytest.mark.parametrize("camera", [FISHEYE, RADIAL], ids=["fisheye", "radial"])
@pytest.mark.parametrize("max_side", [None, 100])
def test_straightened_image_is_what_a_pinhole_camera_sees(camera, max_side):
    """Colours meet those of the world to a tenth of a pixel, so that half a pixel would show."""
    pose, size = World().poses(1)[0], (camera.width, camera.height)
    rays = lens_rays(camera.params, size, camera.model == "OPENCV_FISHEYE")
    undistortion = Undistortion(Lens.of_colmap(camera), max_side)
    image = undistortion.image(World().render_rays(pose, rays)[0])
    expected, depth = World().render(pose, undistortion.intrinsics, undistortion.size)
    assert max(undistortion.size) == (max_side or max(size))
    assert undistortion.valid.mean() > 0.999
    steady = cv2.dilate(depth, np.ones((5, 5))) - cv2.erode(depth, np.ones((5, 5))) < 0.1
    steady[:3], steady[-3:], steady[:, :3], steady[:, -3:] = False, False, False, False
    blurred = [cv2.GaussianBlur(a, (0, 0), 1).astype(float) for a in (image, expected)]
    down, right, _ = np.gradient(blurred[1])
    slopes = np.stack([right[steady].ravel(), down[steady].ravel()], 1)
    shift = np.linalg.lstsq(slopes, (blurred[1] - blurred[0])[steady].ravel(), rcond=None)[0]
    assert np.linalg.norm(shift) < 0.1


def test_widest_view_without_an_empty_pixel():
    undistortion = Undistortion(Lens.of_colmap(FISHEYE), 100)
    wider = undistortion.intrinsics.copy()
    width, height = DSLR_SIZE
    rays = undistortion.lens.rays(np.array([[width / 2, 0], [0, height / 2]]))
    reach = np.abs(rays).max(0)
    half = (np.array(undistortion.size) / 2) / np.diag(wider)[:2]
    assert (half <= reach * 1.02).all() and (half > 0.9 * reach).any()


def test_masks_take_no_pixel_that_touches_a_masked_one():
    undistortion = Undistortion(Lens.of_colmap(FISHEYE), 100)
    keep = np.ones(DSLR_SIZE[::-1], bool)
    assert (undistortion.mask(keep) == undistortion.valid).all()
    keep[:, : DSLR_SIZE[0] // 2] = False
    seen = undistortion.mask(keep)
    assert not seen[:, :49].any() and seen[:, 53:].all()


def test_unknown_lens_and_wrong_size_are_refused():
    with pytest.raises(ValueError, match="FOV"):
        Lens.of_colmap(ColmapCamera("FOV", 10, 10, (1.0, 1, 1, 1, 1)))
    with pytest.raises(ValueError, match="8 parameters, got 4"):
        Lens.of_colmap(ColmapCamera("OPENCV", 10, 10, (1.0, 1, 1, 1)))
    with pytest.raises(ValueError, match="its camera 192x128"):
        Undistortion(Lens.of_colmap(FISHEYE)).image(np.zeros((10, 10, 3), np.uint8))


def test_poses_of_colmap_and_of_nerfstudio_are_the_same(raw, tmp_path):
    scene = shutil.copytree(raw / "data" / SCENES[1], tmp_path / SCENES[1])
    frames = read_scene(scene, SCENES[1], 112, 1).frames
    shutil.rmtree(scene / "dslr" / "colmap")
    others = read_scene(scene, SCENES[1], 112, 1).frames
    assert [frame.name for frame in frames] == [frame.name for frame in others]
    for frame, other, pose in zip(frames, others, World().poses(9)[6:], strict=True):
        np.testing.assert_allclose(frame.pose, pose, atol=1e-9)
        np.testing.assert_allclose(other.pose, pose, atol=1e-9)


def test_colmap_text(tmp_path):
    (tmp_path / "cameras.txt").write_text("# c\n3 PINHOLE 64 48 50 51 32 24\n")
    assert read_cameras(tmp_path / "cameras.txt")[3].params == (50, 51, 32, 24)
    # World to camera: a quarter turn about z, then a step; an image may have no points.
    half = np.sqrt(0.5)
    (tmp_path / "images.txt").write_text(
        f"1 {half} 0 0 {half} 1 2 3 3 a b.jpg\n\n2 1 0 0 0 0 0 -1 3 c.jpg\n1 2 -1 3 4 -1\n"
    )
    first, second = read_images(tmp_path / "images.txt")
    assert (first.name, second.name, first.camera) == ("a b.jpg", "c.jpg", 3)
    np.testing.assert_allclose(first.pose[:3, 3], [-2, 1, -3], atol=1e-12)
    np.testing.assert_allclose(second.pose[:3, 3], [0, 0, 1])
    for name, read in (("cameras.txt", read_cameras), ("images.txt", read_images)):
        (tmp_path / name).write_text("1 2 x\n")
        with pytest.raises(ValueError, match=f"{name}:1"):
            read(tmp_path / name)


def test_official_split_and_resuming(raw, tmp_path, capsys):
    root = tmp_path / "out"
    assert run(raw, root, *SMALL) == 0
    first = capsys.readouterr().out
    assert "2 scenes" in first
    train, val = (ScanNetpp(split, root, 64) for split in ("train", "val"))
    assert {path.parents[1].name for path in train._get_paths(0)} == {SCENES[0]}
    assert {path.parents[1].name for path in val._get_paths(0)} == {SCENES[1]}
    stamp = (root / SCENES[0] / "scene.npz").stat().st_mtime_ns
    assert run(raw, root, *SMALL) == 0
    assert "2 finished before" in capsys.readouterr().out
    assert (root / SCENES[0] / "scene.npz").stat().st_mtime_ns == stamp
    # Where a person was blurred there is no depth.
    depth = layout.read_depth(layout.depth_path(root, SCENES[0], "DSC00000"))
    assert not depth[0, 0] and depth[-1, -1] and 0 < (depth == 0).mean() < 0.1


def test_listed_pairs(raw, tmp_path, capsys):
    root, pairs = tmp_path / "out", tmp_path / "pairs"
    (pairs / SCENES[0]).mkdir(parents=True)
    np.savez(
        pairs / SCENES[0] / "pairs.npz",
        images=np.array(["DSC00001", "frame_000010", "frame_000020", "DSC09999"]),
        pairs=np.array([[0, 1], [2, 1], [1, 3]]),
    )
    assert run(raw, root, *SMALL, "--precomputed_pairs", str(pairs)) == 0
    assert "DSC09999" in capsys.readouterr().out
    index = layout.read_metadata(root)
    assert index.scenes.tolist() == [SCENES[0]]
    named = index.images[index.pairs[:, :2].astype(int)].tolist()
    assert named == [["DSC00001", "frame_000010"], ["frame_000020", "frame_000010"]]
    assert run(raw, tmp_path / "other", "--precomputed_pairs", str(tmp_path)) == 1
    assert "no list" in capsys.readouterr().err


def test_bad_sources_are_named(raw, tmp_path, capsys):
    release = tmp_path / "raw"
    scene = write_scene(release, "00good", World().poses(4))
    images = scene / "dslr" / "resized_images"
    (images / "DSC00001.JPG").write_bytes(b"\xff\xd8 cut short")
    (images / "DSC00002.JPG").unlink()
    transforms = scene / "dslr" / "nerfstudio" / "transforms.json"
    text = transforms.read_text()
    bad = write_scene(release, "01nomesh", World().poses(2))
    (bad / "scans" / "mesh_aligned_0.05.ply").unlink()
    root = tmp_path / "out"
    assert run(release, root, *SMALL) == 0
    report = capsys.readouterr().out
    for expected in ("DSC00001", "no colour file", "DSC00002", "01nomesh", "no depth file"):
        assert expected in report
    assert layout.complete_scenes(root) == ["00good"]
    first = text.replace('"is_bad": false', '"is_bad": true', 1)
    transforms.write_text(first)
    recording = read_scene(scene, "00good", 112, 1)
    assert recording.examples["marked as bad by the release"] == "DSC00000.JPG"


def test_full_disk_leaves_whole_scenes(raw, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "_imwrite", full)
    assert run(raw, tmp_path / "out", *SMALL) == 1
    assert "disk is full" in capsys.readouterr().err
    assert layout.complete_scenes(tmp_path / "out") == []


def test_a_folder_that_is_no_release(tmp_path, capsys):
    assert run(tmp_path / "gone", tmp_path / "out") == 1
    assert "gone" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "out") == 1
    assert "data" in capsys.readouterr().err
