import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from datasets_preprocess import make_shards
from datasets_preprocess.make_shards import main
from dust3r.datasets import get_data_loader
from dust3r.datasets.base import RawView
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.datasets.shard_format import pack_view, unpack_view
from dust3r.datasets.shards import Shards

AS_TRAINED = {"resolution": [(64, 48), (64, 32)], "aug_crop": 8, "n_corres": 20}


@pytest.fixture
def root(write_tree) -> Path:
    return write_tree(frames={"desk": 7, "hall": 6}, size=(150, 110))


def specification(root: Path) -> str:
    return f"ScanNetpp(split='all', ROOT='{root}', resolution=64)"


@pytest.fixture
def packed(root, tmp_path) -> Path:
    out = tmp_path / "shards"
    assert main([specification(root), "--output_dir", str(out), "--shard_size", "4"]) == 0
    return out


def raw_view(depth: np.ndarray, image: np.ndarray | None = None) -> RawView:
    height, width = depth.shape
    image = np.zeros((height, width, 3), np.uint8) if image is None else image
    return RawView(image, depth, np.eye(4), np.eye(3), "set", "scene/0", "/raw/0.jpg")


def test_views_are_bit_for_bit_those_of_the_data_set(root, packed):
    dataset = ScanNetpp(split="all", ROOT=root, **AS_TRAINED)
    shards = Shards(ROOT=packed, split="all", **AS_TRAINED)
    assert len(shards) == len(dataset) == 11
    assert len(shards.index.samples_of) == 3
    for place in [(index, aspect) for index in range(11) for aspect in (0, 1)]:
        for view, other in zip(shards[place], dataset[place], strict=True):
            assert view.keys() == other.keys()
            for key in view.keys() - {"instance"}:
                np.testing.assert_array_equal(view[key], other[key], err_msg=key)
    assert [view["instance"] for view in shards[5]] == [str(p) for p in shards.sample_paths(5)]


def test_an_image_stays_the_file_it_was(root, packed):
    view = Shards(ROOT=packed, split="all", resolution=64)._get_views(2, (64, 64), None)[0]
    assert view.image.content == (root / "desk" / "images" / "desk_0002.jpg").read_bytes()


def test_a_view_of_several_pairs_is_stored_once_in_a_shard(packed):
    """Chains of 5, 5 and 4 views: a break of the scenes adds a view, each pair one."""
    index = Shards(ROOT=packed, split="all", resolution=64).index
    assert index.samples_of == [4, 4, 3] and index.views == 5 + 6 + 4


@pytest.mark.parametrize("unit", [1000, 256])
def test_depth_in_steps_becomes_a_png(unit):
    steps = np.random.default_rng(0).integers(0, 65536, (12, 9)).astype(np.uint16)
    raw = raw_view(steps.astype(np.float32) / np.float32(unit))
    content = pack_view(raw, "000000")[1]
    names = tarfile.open(fileobj=io.BytesIO(content)).getnames()
    assert names == ["000000.json", "000000.png", "000000.depth.png"]
    np.testing.assert_array_equal(unpack_view(content, "s").depthmap, raw.depthmap)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("holes", [(0, 0), (np.nan, np.inf)])
def test_any_other_depth_comes_back_exactly(each, holes):
    """In more values than a PNG could have, and in as many as it could."""
    values = np.arange(300 * 300) // each * 0.7e-5
    raw = raw_view(values.astype(np.float32).reshape(300, 300))
    raw.depthmap[0, :2] = holes
    again = unpack_view(pack_view(raw, "000000")[1], "s")
    np.testing.assert_array_equal(again.depthmap, raw.depthmap)
    assert again.depthmap.dtype == np.float32


def test_pixels_without_a_file_come_back_exactly():
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    raw = raw_view(np.ones((8, 6), np.float32), image)
    again = unpack_view(pack_view(raw, "000000")[1], "s")
    np.testing.assert_array_equal(np.asarray(again.image), image)
    assert (again.dataset, again.label, again.instance) == ("set", "scene/0", "s/000000.png")


def test_shards_are_as_webdataset_reads_them(packed):
    """Regular files, those of a view next to each other with all up to the first dot in common."""
    with tarfile.open(packed / "all" / "shard-000000" / "views.tar") as tar:
        members = tar.getmembers()
        camera = json.loads(tar.extractfile("000001.json").read())
    assert all(member.isfile() for member in members)
    keys = [member.name.partition(".")[0] for member in members]
    assert keys == sorted(keys) and {keys.count(key) for key in keys} == {3}
    assert camera["label"] == "desk/desk_0001" and camera["depth_unit"] == 1000
    assert np.shape(camera["camera_pose"]) == (4, 4)


def test_goes_on_where_it_was_stopped(root, packed):
    """What is whole stays as it is; the rest is made as it was."""
    shards = [packed / "all" / f"shard-00000{n}" / "views.tar" for n in range(3)]
    content = shards[1].read_bytes()
    kept = shards[0].stat().st_mtime_ns
    for name in ("index.json", "shard-000001/views.tar", "shard-000001/index.npz"):
        (packed / "all" / name).unlink()
    (packed / "all" / "shard-000001" / "preprocess.json").unlink()
    (packed / "all" / "shard-000001").rmdir()
    assert main([specification(root), "--output_dir", str(packed), "--shard_size", "4"]) == 0
    assert shards[1].read_bytes() == content and shards[0].stat().st_mtime_ns == kept
    assert len(Shards(ROOT=packed, split="all", resolution=64)) == 11


def test_without_its_index_a_folder_is_no_data_set(packed):
    (packed / "all" / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="no all/index.json.*goes on when started again"):
        Shards(ROOT=packed, split="all", resolution=64)


def test_other_shards_are_not_added_to(root, packed, capsys):
    assert main([specification(root), "--output_dir", str(packed), "--shard_size", "5"]) == 1
    assert "was begun with" in capsys.readouterr().err


def test_bad_samples_are_left_out_and_named(root, tmp_path, capsys):
    (root / "desk" / "depth" / "desk_0001.png").write_bytes(b"")
    image = root / "hall" / "images" / "hall_0005.jpg"
    image.write_bytes(image.read_bytes()[:900])
    out = tmp_path / "shards"
    assert main([specification(root), "--output_dir", str(out), "--shard_size", "4"]) == 0
    said = capsys.readouterr().out
    assert "8 samples" in said and "left out 3 samples" in said and "desk_0001.png" in said
    shards = Shards(ROOT=out, split="all", resolution=64)
    assert len(shards) == 8 and "hall_0005.jpg" in shards.index.skipped[-1]
    assert {view["label"] for i in range(8) for view in shards[i]} == {
        *(f"desk/desk_000{n}" for n in range(2, 7)),
        *(f"hall/hall_000{n}" for n in range(5)),
    }


def test_views_that_depend_on_chance_are_refused(root, tmp_path, capsys, monkeypatch):
    get = ScanNetpp._get_views

    def by_chance(self, idx, resolution, rng):
        rng.integers(2)
        return get(self, idx, resolution, rng)

    monkeypatch.setattr(ScanNetpp, "_get_views", by_chance)
    assert main([specification(root), "--output_dir", str(tmp_path / "x")]) == 1
    assert "depend on chance" in capsys.readouterr().err


@pytest.mark.parametrize(
    "source, message",
    [("{}", "pack each data set by itself"), ("nowhere", "has no all_metadata.npz")],
)
def test_refuses_what_is_no_data_set(root, tmp_path, capsys, source, message):
    source = source.format(f"4 @ {specification(root)}")
    assert main([source, "--output_dir", str(tmp_path / "x")]) == 1
    assert message in capsys.readouterr().err


def test_a_processed_root_is_packed_by_split(root, tmp_path):
    out = tmp_path / "shards"
    assert main([str(root), "--output_dir", str(out)]) == 0
    for split in ("train", "val"):
        dataset = ScanNetpp(split=split, ROOT=root, resolution=64)
        shards = Shards(ROOT=out, split=split, resolution=64)
        assert [v["label"] for v in shards[0]] == [v["label"] for v in dataset[0]]
        assert len(shards) == len(dataset)


def test_checks_find_damage(packed, capsys):
    assert main(["--check", str(packed)]) == 0
    shard = packed / "all" / "shard-000001" / "views.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    assert main(["--check", str(packed)]) == 1
    assert f"{shard} has another checksum" in capsys.readouterr().err
    shard.write_bytes(content[:-1])
    assert [problem[-20:] for problem in make_shards.damaged(packed)]
    shard.unlink()
    assert make_shards.damaged(packed) == [f"{shard} is missing"]


def test_loads_in_batches_with_workers(packed):
    text = f"8 @ Shards(ROOT='{packed}', split='all', resolution=64)"
    loader = get_data_loader(text, batch_size=2, num_workers=1)
    assert sum(len(first["instance"]) for first, _ in loader) == 8
