import numpy as np
import pytest
import torch
from PIL import Image

import dust3r.datasets  # noqa: F401  (registers the names used in specification strings)
from dust3r.datasets import SampleError
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.utils.geometry import geotrf, inv, project
from dust3r.utils.image import rgb
from dust3r.utils.spec import DATASETS, build

SHAPES = {
    "img": (3, 48, 64),
    "true_shape": (2,),
    "depthmap": (48, 64),
    "valid_mask": (48, 64),
    "pts3d": (48, 64, 3),
    "camera_pose": (4, 4),
    "camera_intrinsics": (3, 3),
}
NAMES = ("instance", "dataset", "label")


def upright(view: dict) -> dict:
    """The view's maps as its camera saw them."""
    height, width = view["true_shape"]
    if height <= width:
        return {**view, "img": view["img"].permute(1, 2, 0).numpy()}
    turned = {key: view[key].swapaxes(0, 1) for key in ("depthmap", "valid_mask", "pts3d")}
    return {**view, **turned, "img": view["img"].permute(2, 1, 0).numpy()}


def test_a_view_has_the_agreed_keys_shapes_and_types(write_tree):
    dataset = ScanNetpp(split="train", ROOT=write_tree(), resolution=(64, 48))
    views = dataset[3]
    assert len(views) == 2
    for number, view in enumerate(views):
        assert {key: tuple(view[key].shape) for key in SHAPES} == SHAPES
        assert set(view) == {*SHAPES, "is_metric_scale", "idx", *NAMES}
        assert view["img"].dtype == torch.float32 and view["valid_mask"].dtype == bool
        for key in ("depthmap", "pts3d", "camera_pose", "camera_intrinsics"):
            assert view[key].dtype == np.float32
        assert view["idx"] == (3, 0, number)
        assert view["true_shape"].tolist() == [48, 64]
        assert view["label"] == f"desk/desk_{3 + number:04d}"
    assert [view["instance"] for view in views] == [str(p) for p in dataset.sample_paths(3)]


@pytest.mark.parametrize("size", [(96, 72), (72, 96), (301, 217)], ids=["wide", "upright", "large"])
@pytest.mark.parametrize("aug_crop", [0, 16])
def test_points_depth_and_colours_agree(write_tree, plane, size, aug_crop):
    dataset = ScanNetpp(
        split="train", ROOT=write_tree(size=size), resolution=(64, 48), aug_crop=aug_crop
    )
    first, second = (upright(view) for view in dataset[4])
    assert first["valid_mask"].all()
    # Depth is that of the nearest source pixel, so a point leaves the slanted plane by a little.
    assert np.abs(first["pts3d"] @ plane["normal"] - plane["offset"]).max() < 0.02

    in_second = geotrf(inv(second["camera_pose"]), first["pts3d"])
    pixels, depth = project(in_second, second["camera_intrinsics"])
    columns, rows = np.rint(pixels).astype(int).transpose(2, 0, 1)
    height, width = second["depthmap"].shape
    seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    assert seen.mean() > 0.5
    assert np.abs(depth[seen] / second["depthmap"][rows[seen], columns[seen]] - 1).max() < 0.02

    # Colours encode where the surface is, so the second image says which point it shows there.
    shown = plane["decode_world_xy"](second["img"][rows[seen], columns[seen]])
    metres = shown - second["pts3d"][rows[seen], columns[seen], :2]
    metres_per_pixel = np.median(second["depthmap"]) / second["camera_intrinsics"][0, 0]
    assert (np.abs(np.median(metres, 0)) / metres_per_pixel < 0.5).all()


def test_upright_images_travel_transposed(write_tree):
    wide, tall = (
        ScanNetpp(split="train", ROOT=write_tree(size=size), resolution=(64, 48))[0][0]
        for size in ((96, 72), (72, 96))
    )
    assert wide["img"].shape == tall["img"].shape
    assert tall["true_shape"].tolist() == [64, 48]
    np.testing.assert_allclose(tall["camera_intrinsics"][:2, 2], (23.5, 31.5), atol=1)
    assert rgb(tall["img"], tall["true_shape"]).shape == (64, 48, 3)


def test_chance_is_a_function_of_seed_or_epoch_and_index(write_tree):
    arguments = {
        "split": "train",
        "ROOT": write_tree(),
        "resolution": 48,
        "aug_crop": 16,
        "transform": DATASETS.get("ColorJitter"),
    }
    free, fixed = ScanNetpp(**arguments), ScanNetpp(**arguments, seed=1)

    def sample(dataset, epoch):
        dataset.set_epoch(epoch)
        return dataset[2][0]["img"]

    assert torch.equal(sample(free, 0), sample(free, 0))
    assert not torch.equal(sample(free, 0), sample(free, 1))
    assert torch.equal(sample(fixed, 0), sample(fixed, 1))
    assert not torch.equal(sample(fixed, 0), sample(ScanNetpp(**arguments, seed=2), 0))


def test_the_aspect_ratio_is_that_asked_for(write_tree):
    dataset = ScanNetpp(split="train", ROOT=write_tree(), resolution=[(64, 48), (64, 32)])
    assert dataset[(0, 1)][0]["img"].shape == (3, 32, 64)
    assert dataset[(0, 1)][0]["idx"] == (0, 1, 0)


def test_depth_that_is_none_or_not_finite_is_not_valid(write_tree, monkeypatch):
    dataset = ScanNetpp(split="train", ROOT=write_tree(), resolution=(96, 64))

    def with_holes(path, idx):
        depth = np.full((72, 96), 2, np.float32)
        depth[30:40, 30:40] = 0
        depth[40:50, 30:40] = np.nan
        depth[30:40, 40:50] = np.inf
        depth[40:50, 40:50] = -1
        return depth

    monkeypatch.setattr(dataset, "read_depth", with_holes)
    view = dataset[0][0]
    holes = (~view["valid_mask"]).sum()
    assert 0.5 * 400 < holes < 1.5 * 400
    assert (view["depthmap"][~view["valid_mask"]] == 0).all()
    assert np.isfinite(view["pts3d"]).all()


def test_builds_from_a_specification(write_tree):
    root = write_tree()
    dataset = build(
        f"""4 @ ScanNetpp(split='train', ROOT='{root}',
                resolution=[(64, 48), (64, 32)], aug_crop=16, transform=ColorJitter)
            + 2 * ScanNetpp(split='val', ROOT='{root}', resolution=[(64, 48), (64, 32)],
                            transform=ImgNorm, seed=3)""",
        DATASETS,
    )
    assert len(dataset) == 6
    assert dataset[5][0]["img"].shape == (3, 48, 64)


class TestSplit:
    @staticmethod
    def scenes(root, split):
        dataset = ScanNetpp(split=split, ROOT=root, resolution=16)
        return {str(dataset.scenes[i]) for i in dataset.sceneids[dataset.pairs.ravel()]}

    def test_scenes_are_on_one_side_and_stay_there(self, write_tree):
        frames = {f"room{i}": 2 for i in range(40)}
        root = write_tree(frames, size=(32, 32))
        train, test = self.scenes(root, "train"), self.scenes(root, "test")
        assert train.isdisjoint(test) and train | test == set(frames)
        assert self.scenes(root, "val") == test
        assert self.scenes(root, "all") == set(frames)
        assert 1 <= len(test) <= 10
        root = write_tree(frames | {"another": 2, "third": 2}, size=(32, 32))
        assert train <= self.scenes(root, "train") and test <= self.scenes(root, "test")

    def test_two_scenes_give_one_to_each_side(self, write_tree):
        for number in range(5):
            root = write_tree({f"a{number}": 2, f"b{number}": 2}, size=(32, 32))
            assert len(self.scenes(root, "train")) == len(self.scenes(root, "test")) == 1

    def test_a_single_scene_is_split_by_frames(self, write_tree):
        root = write_tree({"desk": 30}, size=(32, 32))
        train, test = (
            set(ScanNetpp(split=split, ROOT=root, resolution=16).pairs.ravel().tolist())
            for split in ("train", "test")
        )
        assert train == set(range(27)) and test == {27, 28, 29}
        assert len(ScanNetpp(split="all", ROOT=root, resolution=16)) == 29


class TestErrors:
    @staticmethod
    def open(root, split="train", **options):
        return ScanNetpp(split=split, ROOT=root, **({"resolution": 32} | options))

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"split": "training"}, "split='training' is unknown; choose one of train, val, test"),
            ({"resolution": 100}, "multiples of 16"),
            ({"aug_crop": -1}, "aug_crop=-1"),
            ({"transform": 3}, "transform=3"),
            ({"seed": -2}, "seed=-2"),
        ],
    )
    def test_arguments(self, write_tree, options, message):
        with pytest.raises(ValueError, match=message):
            self.open(write_tree(), **options)

    def test_no_root_or_no_metadata(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent' is not a folder"):
            self.open(tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match=r"has no all_metadata.npz.*preprocess_rgbd.py"):
            self.open(tmp_path)

    @pytest.mark.parametrize(
        "metadata, message",
        [
            ({"trajectories": None, "pairs": None}, "lacks trajectories, pairs; it has scenes"),
            ({"pairs": np.array([[0, 1], [3, 99]])}, r"row 1 of 'pairs' is \[3, 99\].*12 images"),
            ({"pairs": np.array([[0, 1], [-1, 2]])}, "row 1 of 'pairs'"),
            ({"pairs": np.arange(4)}, "shape"),
            ({"sceneids": np.arange(12)}, "row 1 of 'sceneids' is 1, out of range for 1 scenes"),
            ({"intrinsics": np.eye(3)[None]}, r"'intrinsics' has shape \(1, 3, 3\).*\(12, 3, 3\)"),
            ({"images": np.array(["a", "b"], object)}, "'images' holds Python objects.*np.savez"),
            ({"pairs": np.empty((0, 3))}, "its 0 pairs over 12 images and 1 scenes"),
        ],
    )
    def test_bad_metadata(self, write_tree, metadata, message):
        with pytest.raises(ValueError, match=message):
            self.open(write_tree(**metadata))

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
    def test_damaged_metadata(self, tmp_path, content):
        (tmp_path / "all_metadata.npz").write_bytes(content)
        with pytest.raises(ValueError, match="all_metadata.npz is damaged or no .npz file"):
            self.open(tmp_path)

    def test_the_way_to_save_objects_again_works(self, write_tree):
        root = write_tree()
        path = root / "all_metadata.npz"
        data = dict(np.load(path))
        np.savez(path, **data | {"scenes": data["scenes"].astype(object)})
        with pytest.raises(ValueError, match="'scenes' holds Python objects"):
            self.open(root)
        data = dict(np.load(path, allow_pickle=True))
        np.savez(path, **{key: np.array(value.tolist()) for key, value in data.items()})
        assert len(self.open(root)) == 9

    def test_no_pair_in_the_split(self, write_tree):
        root = write_tree(pairs=np.array([[0, 1, 0.5]]))
        with pytest.raises(ValueError, match="the 2 images of this split.*split='test'"):
            self.open(root, "test")

    @pytest.mark.parametrize("kind, suffix", [("images", ".jpg"), ("depth", ".png")])
    @pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
    def test_unreadable_files_are_named(self, write_tree, kind, suffix, damage):
        root = write_tree()
        path = root / "desk" / kind / f"desk_0003{suffix}"
        content = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
        with pytest.raises(SampleError) as error:
            self.open(root)[3]
        assert str(path) in str(error.value) and "sample 3 " in str(error.value)
        assert (error.value.path, error.value.index) == (str(path), 3)

    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    def test_a_pose_that_is_not_finite(self, write_tree, value):
        root = write_tree()
        path = root / "all_metadata.npz"
        data = dict(np.load(path))
        data["trajectories"][5] = value
        np.savez(path, **data)
        dataset = self.open(root)
        dataset[0]
        with pytest.raises(ValueError, match="sample 4 .*desk_0005.jpg.*pose is not finite"):
            dataset[4]

    def test_depth_that_is_all_zero(self, write_tree):
        root = write_tree()
        for number in (2, 3):
            depth = root / "desk" / "depth" / f"desk_{number:04d}.png"
            Image.fromarray(np.zeros((72, 96), np.uint16)).save(depth)
        dataset = self.open(root)
        assert not dataset[1][1]["valid_mask"].any()
        with pytest.raises(SampleError, match="no pixel has a valid depth.*0002.jpg nor in.*0003"):
            dataset[2]

    def test_depth_of_another_size(self, write_tree):
        root = write_tree()
        depth = root / "desk" / "depth" / "desk_0000.png"
        Image.fromarray(np.ones((36, 48), np.uint16)).save(depth)
        with pytest.raises(SampleError, match="96x72 but its depth map is 48x36"):
            self.open(root)[0]
