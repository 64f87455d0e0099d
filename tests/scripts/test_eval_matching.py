"""What the evaluation of matches measures: an oracle is right, chance is chance."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.training import checkpoint
from dust3r.utils.spec import MODELS, build
from mast3r.fast_nn import fast_reciprocal_NNs
from mast3r.matching import Matches

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = (
    "enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=4, "
    "dec_num_heads=2, dpt_dim=16, landscape_only=False, img_size=(64, 64), "
    "head_type='catmlp+dpt', output_mode='pts3d+desc8', two_confs=True"
)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("eval_matching")


@pytest.fixture
def dataset(write_tree):
    return ScanNetpp("all", write_tree({"desk": 5, "lamp": 4}, (96, 72)), 64, seed=0)


def oracle(shuffled=False):
    """Matches by world coordinates; those of image 2 can be dealt out anew."""
    rng = np.random.default_rng(0)

    def matcher(view1, view2):
        points = [view["pts3d"].astype(np.float32) for view in (view1, view2)]
        if shuffled:
            flat = points[1].reshape(-1, 3)
            points[1] = rng.permutation(flat).reshape(points[1].shape)
        first, second = fast_reciprocal_NNs(*points, 4, device="cpu", dist="l2")
        return Matches(first.astype(float), second.astype(float), np.ones(len(first), np.float32))

    return matcher


def test_an_oracle_is_right_and_shuffled_descriptors_are_chance(script, dataset, colour_network):
    chosen, overlaps = script.choose_pairs(dataset, 20, 0.0, 0)
    matchers = {
        "oracle": oracle(),
        "shuffled": oracle(shuffled=True),
        "model": script.network_matcher(colour_network(2), 4),
        "random": script.random_matcher(0),
    }
    told = script.report(script.evaluate(dataset, chosen, matchers), overlaps)
    rows = {name: row["hidden is wrong"] for name, row in told["rows"].items()}
    assert told["pairs"] == len(chosen) == 7
    assert rows["oracle"]["1"] > 0.99 and rows["model"]["3"] > 0.9
    assert told["rows"]["oracle"]["coverage"] > 0.95
    chance = np.pi * 8**2 / 64**2
    for name in ("shuffled", "random"):
        assert abs(told["rows"][name]["hidden left out"]["8"] - chance) < 0.03
        assert rows[name]["1"] < 0.01
    shares = list(rows["random"].values())
    assert shares == sorted(shares)
    assert told["bands"]["0.6 to 0.8"]["pairs"] == 7
    json.dumps(told)


def views_of(depth2, valid1=None):
    """A wall 2 m ahead, and a second camera 0.2 m to the right of the first, 10 pixels apart."""
    views = []
    for number, depth in enumerate((np.full((40, 60), 2.0, np.float32), depth2)):
        pose = np.eye(4, dtype=np.float32)
        pose[0, 3] = 0.2 * number
        views.append(
            {
                "depthmap": depth,
                "valid_mask": depth > 0,
                "camera_pose": pose,
                "camera_intrinsics": np.float32([[100, 0, 30], [0, 100, 20], [0, 0, 1]]),
            }
        )
    if valid1 is not None:
        views[0]["valid_mask"] = valid1
    return views


def test_errors_are_pixels_from_where_the_point_lies(script):
    views = views_of(np.full((40, 60), 2.0, np.float32))
    xy1 = np.array([[40.0, 20], [40, 20], [40.4, 10], [5, 20]])
    xy2 = np.array([[30.0, 20], [33, 24], [30.4, 10], [5, 20]])
    judged = script.judge(*views, Matches(xy1, xy2, np.array([1, 2, 4, 3], np.float32)))
    assert judged.state.tolist() == [script.SEEN] * 3 + [script.HIDDEN]
    np.testing.assert_allclose(judged.error, [0, 5, 0, np.inf], atol=1e-4)
    assert judged.precision(1, hidden=True) == 0.5
    assert judged.precision(1, hidden=False) == pytest.approx(2 / 3)
    assert judged.precision(5.001, hidden=False) == 1
    assert judged.surest(0.5).confidence.tolist() == [4, 3]
    assert script.judge(*views, Matches(xy1[:0], xy2[:0], np.zeros(0))).precision(5, True) is None


def test_occluded_points_are_hidden_and_unmeasured_ones_are_not_judged(script):
    depth = np.full((40, 60), 2.0, np.float32)
    depth[:, 20:25] = 1.0  # a post in front of the wall
    depth[:, 25:30] = 0.0  # no measurement
    valid = np.ones((40, 60), bool)
    valid[:, 45:] = False
    views = views_of(depth, valid)
    columns = np.array([31.0, 36, 41, 50])
    xy1 = np.stack([columns, np.full(4, 20.0)], 1)
    judged = script.judge(*views, Matches(xy1, xy1 - (10, 0), np.ones(4, np.float32)))
    states = [script.HIDDEN, script.UNKNOWN, script.SEEN, script.UNKNOWN]
    assert judged.state.tolist() == states
    assert judged.precision(1, hidden=True) == 0.5 and judged.precision(1, hidden=False) == 1
    seen = script.seen_pixels(*views)
    expected = np.zeros((40, 60), bool)
    expected[:, 10:30] = expected[:, 40:45] = True
    np.testing.assert_array_equal(seen, expected)


def test_coverage_is_of_cells_that_the_other_image_sees(script):
    seen = np.zeros((48, 70), bool)
    seen[:, :32] = True
    xy = np.array([[3.0, 3], [10, 12], [20, 40], [60, 8], [69, 47]])
    assert script.coverage(xy, seen) == pytest.approx(2 / 6)
    assert script.coverage(xy, np.zeros((48, 70), bool)) is None


def test_sift_finds_a_shift_and_nothing_in_a_blank_image(script):
    rng = np.random.default_rng(0)
    world = rng.integers(0, 256, (30, 45, 3), dtype=np.uint8)
    world = np.asarray(Image.fromarray(world).resize((180, 120), Image.Resampling.BICUBIC))
    parts = world[:112, :160], world[8:, 16:176], np.full((112, 160, 3), 128, np.uint8)
    views = [
        {"img": torch.from_numpy(part.transpose(2, 0, 1) / 127.5 - 1).float()} for part in parts
    ]
    found = script.sift_matches(*views[:2])
    off = np.abs(found.xy1 - found.xy2 - (16, 8)).max(1)
    assert len(found) > 20 and (off < 1).mean() > 0.95
    assert (found.confidence >= 1 - 0.8).all() and len(np.unique(found.xy2, axis=0)) > 20
    assert len(script.sift_matches(views[0], views[2])) == 0


def test_the_script_writes_numbers_tables_and_a_picture(script, write_tree, monkeypatch, tmp_path):
    torch.manual_seed(0)
    spec = f"AsymmetricMASt3R({SMALL})"
    state = {"model": build(spec, MODELS).state_dict(), "args": argparse.Namespace(model=spec)}
    checkpoint.save(tmp_path / "c.pth", state | {"epoch": 0})
    root = write_tree({"desk": 4}, (96, 72))
    given = ["--ckpt", tmp_path / "c.pth", "--root", root, "--size", "64", "--device", "cpu"]
    given += ["--num_pairs", "2", "--output", tmp_path / "out" / "matching"]
    monkeypatch.setattr(sys, "argv", ["eval_matching.py", *map(str, given)])
    script.main()
    stored = json.loads((tmp_path / "out" / "matching.json").read_text())
    told = stored[f"{tmp_path.name}/processed"]
    assert told["pairs"] == 2 and set(told["curves"]) == {"model", "SIFT", "same pixel", "random"}
    assert {"model, surest 25%", "SIFT, surest 50%"} <= set(told["rows"])
    text = (tmp_path / "out" / "matching.md").read_text().splitlines()
    widths = {line.count("|") for line in text if "surest 25%" in line or "right to, px" in line}
    assert len(widths) == 1
    assert Image.open(tmp_path / "out" / "matching.png").size[0] > 800
    with pytest.raises(ValueError, match="overlaps by 0.9"):
        script.choose_pairs(ScanNetpp("all", root, 64), 2, 0.9, 0)
