"""Data sets of JPEG, EXR and NPZ files: their indices, splits, options, and what is damaged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dust3r.datasets import SampleError
from dust3r.datasets.blendedmvs import PAIRS as BLENDED_PAIRS
from dust3r.datasets.blendedmvs import BlendedMVS
from dust3r.datasets.indexed_pairs import read_camera
from dust3r.datasets.megadepth import MegaDepth
from dust3r.datasets.staticthings3d import PAIRS as THINGS_PAIRS
from dust3r.datasets.staticthings3d import StaticThings3D
from dust3r.datasets.waymo import Waymo
from dust3r.utils.exr import write_exr_depth

SIZE = (64, 48)
CAMERA = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
POSE = np.array([[0.0, -1, 0, 3], [1, 0, 0, 4], [0, 0, 1, 5], [0, 0, 0, 1]])


def write_view(path: Path, depth: float = 2.0, images: dict[str, int] | None = None) -> None:
    """A view of one depth and one grey, ``path`` being what its files' names begin with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, grey in (images or {"": 100}).items():
        Image.new("RGB", SIZE, (grey, grey, grey)).save(f"{path}{suffix}.jpg")
    write_exr_depth(f"{path}.exr", np.full(SIZE[::-1], depth))
    np.savez(f"{path}.npz", intrinsics=CAMERA, cam2world=POSE)


@pytest.fixture
def blended(tmp_path) -> Path:
    """Two projects of two views each, of which the second is held out."""
    records = []
    for high, low in ((0x5A618C72, 0x784780334BC1972D), (0, 0xA0)):
        for number in (3, 12):
            write_view(tmp_path / f"{high:08x}{low:016x}" / f"{number:08d}")
        records.append((low, high, 3, 12, 0.5))
    np.save(tmp_path / "blendedmvs_pairs.npy", np.array(records, BLENDED_PAIRS))
    return tmp_path


@pytest.fixture
def mega(tmp_path) -> Path:
    for folder in ("0015/0", "0204/1"):
        for name in ("a_o", "b_o"):
            write_view(tmp_path / folder / name)
    write_mega_index(tmp_path)
    return tmp_path


def write_mega_index(root: Path, suffix: str = "", pairs: np.ndarray | None = None) -> None:
    np.savez(
        root / "all_metadata.npz",
        scenes=np.array(["0015 0", "0204 1"]),
        images=np.array([f"{name}{suffix}" for name in ("a_o", "b_o")]),
        pairs=np.array([[0, 0, 1], [1, 1, 0]]) if pairs is None else pairs,
    )


@pytest.fixture
def things(tmp_path) -> Path:
    """Eight sequences of one pair: near things, and a backdrop where the sequence is even."""
    records = []
    for seq in range(8):
        folder = tmp_path / "TRAIN/B" / f"{seq:04d}"
        for camera in ("left", "right"):
            write_view(folder / camera / "0007", 900.0, {"_clean": 200, "_final": 60})
            write_exr_depth(folder / camera / "0007.exr", _half_backdrop())
        records.append(("B", seq, "l", 7, "r", 7))
    np.save(tmp_path / "staticthings_pairs.npy", np.array(records, THINGS_PAIRS))
    return tmp_path


def _half_backdrop() -> np.ndarray:
    depth = np.full(SIZE[::-1], 20.0)
    depth[:24] = 900
    return depth


def opened(kind: type, root: Path, **options: object):
    return kind(**{"ROOT": root, "resolution": (64, 48), "seed": 0} | options)


def test_blendedmvs_holds_out_every_tenth_project(blended):
    labels = {
        split: [dataset[i][0]["label"] for i in range(len(dataset))]
        for split in ("train", "val", "test", "all")
        for dataset in [opened(BlendedMVS, blended, split=split)]
    }
    assert labels["train"] == ["5a618c72784780334bc1972d/00000003"]
    assert labels["val"] == labels["test"] == ["0000000000000000000000a0/00000003"]
    assert labels["all"] == labels["train"] + labels["val"]
    assert not opened(BlendedMVS, blended)[0][0]["is_metric_scale"]


def test_megadepth_holds_out_two_landmarks(mega):
    assert opened(MegaDepth, mega, split="val")[0][0]["label"] == "0015/0/a_o"
    train = opened(MegaDepth, mega, split="train")
    assert [view["label"] for view in train[0]] == ["0204/1/b_o", "0204/1/a_o"]


@pytest.mark.parametrize(
    "pairs",
    [
        np.array([[0, 0, 1, 0.4]]),
        np.array([(0, 0, 1, 0.4)], [("scene", "i4"), ("im1", "i8"), ("im2", "i8"), ("s", "f4")]),
    ],
)
def test_pairs_may_have_scores_and_names(mega, pairs):
    write_mega_index(mega, pairs=pairs)
    dataset = opened(MegaDepth, mega)
    assert [view["label"] for view in dataset[0]] == ["0015/0/a_o", "0015/0/b_o"]


def test_megadepth_finds_views_whose_index_names_files(mega):
    write_mega_index(mega, suffix=".jpg")
    assert opened(MegaDepth, mega)[0][0]["label"] == "0015/0/a_o"
    for name in ("a_o", "b_o"):
        for folder in ("0015/0", "0204/1"):
            write_view(mega / folder / f"{name}.jpg", depth=7)
    assert opened(MegaDepth, mega)[0][0]["depthmap"].max() == 7


def test_waymo_reads_frames_in_metres(tmp_path):
    for name in ("00000_1", "00003_4"):
        write_view(tmp_path / "segment-1.tfrecord" / name)
    np.savez(
        tmp_path / "waymo_pairs.npz",
        scenes=np.array(["segment-1.tfrecord"]),
        frames=np.array(["00000_1", "00003_4"]),
        pairs=np.array([[0, 1, 0]]),
    )
    first, second = opened(Waymo, tmp_path)[0]
    assert first["label"] == "segment-1.tfrecord/00003_4" and first["is_metric_scale"]
    assert not opened(Waymo, tmp_path, is_metric_scale=False)[0][0]["is_metric_scale"]
    assert len(opened(Waymo, tmp_path, split="train")) == 1
    with pytest.raises(ValueError, match="no pair for split='val'"):
        opened(Waymo, tmp_path, split="val")


def test_staticthings_splits_by_sequence(things):
    train, held_out = (opened(StaticThings3D, things, split=split) for split in ("train", "test"))
    sequences = [set(dataset.pairs["seq"].tolist()) for dataset in (train, held_out)]
    assert sequences[0] and sequences[1] and not sequences[0] & sequences[1]
    assert sequences[0] | sequences[1] == set(range(8))


@pytest.mark.parametrize(("mask_bg", "shares"), [(True, {0.5}), (False, {1}), ("rand", {0.5, 1})])
def test_staticthings_masks_the_backdrop(things, mask_bg, shares):
    dataset = opened(StaticThings3D, things, mask_bg=mask_bg)
    samples = [dataset[i] for i in range(len(dataset))]
    assert {view["valid_mask"].mean() for views in samples for view in views} == shares
    # Both views of a pair, or neither.
    assert all(len({view["valid_mask"].mean() for view in views}) == 1 for views in samples)


def test_staticthings_draws_a_pass_for_each_view(things):
    dataset = opened(StaticThings3D, things)
    seen = set()
    for index in range(len(dataset)):
        views, paths = dataset[index], dataset.sample_paths(index)
        for view, path in zip(views, paths, strict=True):
            assert view["instance"] == str(path)
            assert (view["img"].mean() > 0) == path.name.endswith("_clean.jpg")
        seen.add(tuple(path.name for path in paths))
    assert len(seen) > 2
    clean = opened(StaticThings3D, things, render_pass="final")
    assert all(view["img"].mean() < 0 for i in range(len(clean)) for view in clean[i])


@pytest.mark.parametrize("option", [{"mask_bg": "sometimes"}, {"render_pass": "dirty"}])
def test_staticthings_refuses_other_options(things, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        opened(StaticThings3D, things, **option)


def test_split_poses_mean_the_same_as_whole_ones(tmp_path):
    np.savez(tmp_path / "a.npz", intrinsics=CAMERA, cam2world=POSE)
    parts = {"R_cam2world": POSE[:3, :3], "t_cam2world": POSE[:3, 3]}
    np.savez(tmp_path / "b.npz", intrinsics=CAMERA, **parts)
    cameras = (read_camera(tmp_path / f"{name}.npz") for name in "ab")
    for whole, split in zip(*cameras, strict=True):
        np.testing.assert_array_equal(whole, split)
        assert whole.dtype == np.float32


def test_what_is_missing_or_damaged_is_named(blended):
    view = blended / "5a618c72784780334bc1972d" / "00000012"
    whole = {suffix: Path(f"{view}{suffix}").read_bytes() for suffix in (".jpg", ".exr", ".npz")}
    for suffix, content in whole.items():
        for spoiled in (None, content[: len(content) // 2], b""):
            Path(f"{view}{suffix}").unlink()
            if spoiled is not None:
                Path(f"{view}{suffix}").write_bytes(spoiled)
            with pytest.raises(SampleError, match=f"00000012{suffix}") as caught:
                opened(BlendedMVS, blended)[0]
            assert caught.value.path == f"{view}{suffix}"
            Path(f"{view}{suffix}").write_bytes(content)
    np.savez(f"{view}.npz", intrinsics=CAMERA)
    with pytest.raises(SampleError, match="neither cam2world nor R_cam2world"):
        opened(BlendedMVS, blended)[0]


def test_an_index_that_cannot_be_used_is_named(tmp_path, mega):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        opened(MegaDepth, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    for kind in (BlendedMVS, MegaDepth, StaticThings3D, Waymo):
        with pytest.raises(FileNotFoundError, match=rf"{kind.INDEX}.*{kind.PREPROCESS}"):
            opened(kind, tmp_path / "empty")
    write_mega_index(mega, pairs=np.array([[0, 0, 2]]))
    with pytest.raises(ValueError, match=r"pair 0 is \[0, 0, 2\], out of range"):
        opened(MegaDepth, mega)
    write_mega_index(mega, pairs=np.array([[0, 1]]))
    with pytest.raises(ValueError, match="rows of a scene and two images"):
        opened(MegaDepth, mega)
    index = mega / "all_metadata.npz"
    for spoiled in (index.read_bytes()[:200], b"text", b""):
        index.write_bytes(spoiled)
        with pytest.raises(ValueError, match=r"all_metadata.npz is damaged or no .npz file"):
            opened(MegaDepth, mega)


def test_pickles_are_not_run(tmp_path):
    np.save(tmp_path / "staticthings_pairs.npy", np.array([("B", 1)], object), allow_pickle=True)
    with pytest.raises(ValueError, match="staticthings_pairs.npy cannot be used"):
        opened(StaticThings3D, tmp_path)
    np.save(tmp_path / "blendedmvs_pairs.npy", np.zeros((3, 5)))
    with pytest.raises(ValueError, match="structured array with the fields seq_low"):
        opened(BlendedMVS, tmp_path)
