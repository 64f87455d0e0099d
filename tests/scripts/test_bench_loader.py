"""The loader's benchmark: that what it compares is the same, and that its numbers add up."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest

from dust3r.datasets.combine import Draw
from dust3r.datasets.scannetpp import ScanNetpp

PATH = Path(__file__).parents[2] / "scripts" / "bench_loader.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_loader", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def specification(root: Path) -> str:
    return f"ScanNetpp(split='all', ROOT='{root}', resolution=64)"


def test_a_row_for_each_way(bench, write_tree, capsys):
    root = write_tree(frames={"desk": 3}, size=(480, 360))
    bench.main([specification(root), "--samples", "2", "--repeats", "1"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1] for row in cells] == ["as trained", "full decoding", "straightforward"]
    assert cells[2][3] == "1.00" and float(cells[0][2]) > 0
    assert cells[1][4] == "0.00" and 0 < float(cells[0][4]) < 2
    assert all(len(row) == 5 + len(bench.COLUMNS) for row in cells)


def test_stages_add_up_to_the_whole(bench, write_tree):
    dataset = ScanNetpp(split="all", ROOT=write_tree(size=(640, 480)), resolution=64)

    def run():
        start = time.process_time()
        for index in range(3):
            dataset[index]
        return time.process_time() - start

    took = []
    split = bench.stages_of(lambda: took.append(run()))
    assert sum(split.values()) == pytest.approx(took[0], rel=0.1)
    assert all(split[stage] > 0 for stage in ("read", "decode", "resize", "geometry", "colour"))


def test_the_straightforward_way_gives_the_same_samples(bench, write_tree):
    dataset = ScanNetpp(split="all", ROOT=write_tree(size=(640, 480)), resolution=64, aug_crop=8)
    views = {}
    for way, entered in bench.WAYS.items():
        with entered():
            views[way] = dataset.load(Draw(3, 0, (0, 0)))[1]
    for key in ("img", "depthmap", "pts3d", "camera_intrinsics"):
        np.testing.assert_array_equal(views["full decoding"][key], views["straightforward"][key])
    assert (views["as trained"]["img"] != views["straightforward"]["img"]).any()


def test_a_made_up_tree_reads_like_a_real_one(bench, tmp_path):
    bench.make_tree(tmp_path / "made", 320, 240, frames=3)
    dataset = ScanNetpp(split="all", ROOT=tmp_path / "made", resolution=64)
    view = dataset[1][0]
    assert len(dataset) == 2 and 0.5 < view["valid_mask"].mean() < 1
    assert view["img"].std() > 0.1


def test_refuses_what_is_no_data_set(bench):
    with pytest.raises(SystemExit, match="no data set"):
        bench.main(["[None]"])
