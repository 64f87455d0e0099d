"""What is measured of DELTAS: which pixels, which anchors, which numbers; and what is written."""

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from deltas_scenes import small_model
from rgbd_raw import spoil

import test_learnabledepth
from deltas import checkpoint
from deltas.evaluation.figures import Canvas, followed, sample_figure, true_places
from deltas.evaluation.measure import (
    GapMeasures,
    evaluate,
    load,
    only,
    parallax_of,
    predict,
    sequences_at,
    true_depth,
)
from deltas.model import Deltas
from dust3r.evaluation.depth_cli import MEASURES, depth_measures
from dust3r.uncertainty.evidential import NormalInverseGamma

SIZE = {"width": 96, "height": 72}
SPEC = "Deltas(num_kps=24, width=8, depths=(1, 1, 1, 1), evidential=True)"


class PlaneModel(Deltas):
    """Knows the plane of the test's scene: its depth, times ``factor``, and that of its points."""

    def __init__(self, plane, factor=1.0):
        super().__init__(num_kps=24, width=8, depths=(1, 1, 1, 1))
        self.plane, self.factor = plane, factor
        self.eval()

    def forward(self, images, poses, intrinsics, generator=None, points=None):
        said = super().forward(images, poses, intrinsics, generator, points)
        height, width = images.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = torch.stack([x, y, torch.ones_like(x)], -1).double()
        rays = pixels @ intrinsics[:, :1].double().inverse().mT
        normal = torch.from_numpy(self.plane["normal"])
        pose = poses[:, 0, None].double()
        above = self.plane["offset"] - pose[..., :3, 3] @ normal
        depth = above[..., None] / (rays @ pose[..., :3, :3].mT @ normal)
        points3d = said.points3d.clone()
        x, y = said.points.long().unbind(-1)
        points3d[..., 2] = depth.flatten(1).gather(1, y * width + x)
        depth = self.factor * depth[:, None].float()
        return replace(said, depth=(depth, *said.depth[1:]), points3d=points3d)


def sequences(root, gaps=(1, 3), **options):
    return sequences_at(root, gaps, **{**SIZE, "split": "all", "check": False} | options)


def measure(model, found, **options):
    indices = range(len(next(iter(found.values()))))
    measures = evaluate(model, found, list(indices), **options)
    return {gap: one.compute() for gap, one in measures.items()}


@pytest.fixture
def tiny(tmp_path):
    """The file of a small untrained network that states evidence."""
    torch.manual_seed(0)
    model = Deltas(num_kps=24, width=8, depths=(1, 1, 1, 1), evidential=True)
    checkpoint.save(tmp_path / "tiny.pth.tar", model, spec=SPEC)
    return tmp_path / "tiny.pth.tar"


def test_the_truth_has_no_error(write_tree, plane):
    for numbers in measure(PlaneModel(plane), sequences(write_tree({"desk": 8}))).values():
        assert all(numbers[key] < 1e-3 for key in MEASURES[:5])
        assert [numbers[key] for key in ("a1", "a2", "a3")] == [1, 1, 1]
        assert numbers["point_abs_rel"] < 1e-3
        assert "nll" not in numbers


def test_the_numbers_are_those_of_evaluate_depth(write_tree):
    found = sequences(write_tree({"desk": 6}), [2])
    model = small_model()
    numbers = measure(model, found, batch_size=2)[2]
    rows = []
    for _, batches in load(found, range(len(found[2]))):
        for _, batch, said in predict(model, batches):
            truth = batch["depthmap"][0, 0]
            used = (truth >= 0.5) & (truth <= 10)
            rows.append(depth_measures(said.depth[0][0, 0][used], truth[used]))
            depth = said.depth[0][0, 0][used].double().clamp(min=1e-3)
            error = (depth - truth[used]).abs() / truth[used]
            assert rows[-1]["abs_rel"] == pytest.approx(error.mean().item(), rel=1e-6)
    assert numbers["images"] == len(rows) == 2
    for key in MEASURES:
        assert numbers[key] == pytest.approx(np.mean([row[key] for row in rows]), rel=1e-5)


def test_pixels_out_of_the_range_do_not_count(write_tree, plane):
    found = sequences(write_tree({"desk": 3}), [1])
    truth = found[1][0]["depthmap"][0]
    low, high = np.quantile(truth, (0.3, 0.8)).tolist()

    class FarWrong(PlaneModel):
        def forward(self, *args, **options):
            said = super().forward(*args, **options)
            depth = said.depth[0]
            outside = (depth < low - 0.01) | (depth > high + 0.01)
            return replace(said, depth=(torch.where(outside, 100.0, depth), *said.depth[1:]))

    model = FarWrong(plane)
    assert measure(model, found)[1]["abs_rel"] > 1
    model.depth_range = low, high
    numbers = measure(model, found)[1]
    assert numbers["abs_rel"] < 1e-3
    assert numbers["valid"] == ((truth >= low) & (truth <= high)).sum() < truth.size


def test_anchors_and_their_points_are_the_same_at_all_gaps_and_in_all_batches(write_tree):
    found = sequences(write_tree({"desk": 10, "lamp": 8}))
    assert len(found[1]) == len(found[3]) == 6
    model = small_model()
    seen = {}
    for size, seed in ((1, 0), (3, 0), (3, 1)):
        for _, batches in load(found, (0, 3, 5), size):
            said = {
                gap: (batch["label"][0], one) for gap, batch, one in predict(model, batches, seed)
            }
            assert said[1][0] == said[3][0]
            assert torch.equal(said[1][1].points, said[3][1].points)
            assert torch.equal(said[1][1].scores, said[3][1].scores)
            for label, points, scores in zip(
                said[1][0], said[1][1].points, said[1][1].scores, strict=True
            ):
                # Rounding may change the order of the best ones.
                seen.setdefault((label, seed), []).append(points[scores == 0])
    labels = sorted({label for label, _ in seen})
    assert len(labels) == 3
    for label in labels:
        alone, batched = seen[label, 0]
        assert len(alone) and torch.equal(alone, batched)
        assert not torch.equal(alone[-5:], seen[label, 1][0][-5:])
    assert not torch.equal(seen[labels[0], 0][0][-5:], seen[labels[1], 0][0][-5:])


def test_points_are_those_of_the_model(write_tree):
    """Chosen outside of the network, they are what it would choose by itself."""
    found = sequences(write_tree({"desk": 3}, size=(90, 70)), [1], width=90, height=70)
    model = small_model(frac_superpoint=1.0)
    _, batches = next(load(found, [0]))
    _, batch, said = next(predict(model, batches))
    with torch.no_grad():
        own = model(batch["img"], batch["camera_pose"], batch["camera_intrinsics"])
    scored = own.scores > 0
    assert scored.any() and torch.allclose(said.scores, own.scores, rtol=1e-4)
    given, wanted = ({*map(tuple, one.points[scored].tolist())} for one in (said, own))
    assert given == wanted


def test_a_gap_that_is_too_large_is_left_out(write_tree, caplog):
    root = write_tree({"desk": 9})
    found = sequences(root, [20, 4, 1, 30])
    assert list(found) == [1, 4] and len(found[1]) == len(found[4]) == 1
    assert "seq_gap=20 is left out" in caplog.text and "seq_gap=30" in caplog.text
    with pytest.raises(ValueError, match="smaller seq_gap"):
        sequences(root, [20, 30])


def test_what_cannot_be_loaded_at_one_gap_is_left_out_of_all(write_tree, plane, caplog):
    root = write_tree({"desk": 9})
    spoil(root / "desk" / "images" / "desk_0000.jpg")
    found = sequences(root)
    measures = evaluate(PlaneModel(plane), found, range(len(found[1])), batch_size=2)
    labels = [[one["label"] for one in measured.images] for measured in measures.values()]
    assert labels[0] == labels[1] == ["desk/desk_0004", "desk/desk_0005"]
    assert [one.left_out for one in measures.values()] == [1, 1]
    assert "desk_0000" in caplog.text
    with pytest.raises(ValueError, match="none of the 1 anchors"):
        evaluate(PlaneModel(plane), found, [0])


def test_uncertainty_that_is_true(write_tree):
    """Errors drawn from what is stated: intervals hold what they should, and sigma ranks."""
    found = sequences(write_tree({"desk": 3}), [1])
    model = small_model()
    ((_, batches),) = load(found, [0])
    batch, said = only(0, *next(predict(model, batches))[1:])
    torch.manual_seed(0)
    truth = batch["depthmap"][:, :1]
    beta = torch.linspace(0.001, 0.3, truth.numel()).view_as(truth)
    stated = NormalInverseGamma(truth, torch.ones_like(beta), torch.full_like(beta, 3.0), beta)
    measured = {}
    for name, scale in (("true", 1.0), ("doubled", 2.0)):
        error = scale * (stated.predictive().sample() - truth)
        nig = replace(stated, gamma=truth + error)
        one = replace(said, depth=(truth + error, *said.depth[1:]), evidence=nig)
        measured[name] = GapMeasures((0.01, 100.0))
        measured[name].update(0, batch, one)
    true, doubled = (one.compute() for one in measured.values())
    for percent, share in true["coverage"].items():
        assert share == pytest.approx(percent / 100, abs=0.02)
    assert true["calibration_error"] < 0.02 < doubled["calibration_error"]
    assert doubled["coverage"][90] < 0.8 and doubled["nll"] > true["nll"]
    assert 0.3 < true["rho"] < 0.9 and 0 < true["ause"] < true["aurc"]
    assert measured["true"].images[0]["coverage_90"] == pytest.approx(
        true["coverage"][90], abs=1e-3
    )
    exact = replace(
        said, depth=(truth + beta, *said.depth[1:]), evidence=replace(stated, gamma=truth + beta)
    )
    ranked = GapMeasures((0.01, 100.0))
    ranked.update(0, batch, exact)
    assert ranked.compute()["rho"] > 0.999 and abs(ranked.compute()["ause"]) < 1e-6


def test_parallax_is_the_angle_between_rays():
    points = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    centres = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    expected = torch.tensor([[45.0, math.degrees(math.atan(0.5))], [0.0, 0.0]])
    torch.testing.assert_close(parallax_of(points, centres), expected)


def test_baseline_is_in_metres_and_grows_with_the_gap(write_tree, plane):
    numbers = measure(PlaneModel(plane), sequences(write_tree({"desk": 8})))
    step = math.hypot(0.05, 0.03, 0.02)
    assert numbers[1]["baseline"] == pytest.approx(step, rel=1e-4)
    assert numbers[3]["baseline"] == pytest.approx(3 * step, rel=1e-4)
    assert 2 < numbers[3]["parallax"] / numbers[1]["parallax"] < 4


def test_dots_are_centred_on_their_pixels():
    canvas = Canvas(np.zeros((30, 40, 3)), (400 / 110, 300 / 110))
    canvas.dot(np.array([12, 7]), (255, 255, 255), 6, edge=False)
    rows, columns = np.nonzero(canvas.pixels[..., 0] > 128)
    assert columns.mean() == pytest.approx(124.5, abs=0.2)
    assert rows.mean() == pytest.approx(74.5, abs=0.2)
    assert len(rows) == pytest.approx(math.pi * 36, rel=0.25)


def test_followed_points_are_triangulated_and_apart(write_tree, plane):
    found = sequences(write_tree({"desk": 3}), [1])
    ((_, batches),) = load(found, [0])
    model = PlaneModel(plane)
    batch, said = only(0, *next(predict(model, batches))[1:])
    chosen = followed(said)
    assert len(set(chosen)) == 8
    able = said.valid[0] & said.matches.segments.seen[0].all(0)
    assert able[chosen].all() and able.sum() > 8
    nearest = torch.pdist(said.points[0, chosen].double()).min()
    assert nearest > torch.pdist(said.points[0, able].double()).min()
    # Nothing known and nothing found is a picture, too.
    blind = replace(said, valid=torch.zeros_like(said.valid))
    blind.matches.segments.seen[:] = False
    sample_figure(batch, blind, (90.0, 100.0))


def test_true_places_show_the_same_spot(write_tree, plane):
    """Colours tell the place on the plane, which is the anchor's there."""
    found = sequences(write_tree({"desk": 7}), [3])
    ((_, batches),) = load(found, [0])
    batch = batches[3]
    points = np.array([[30.0, 20.0], [50.0, 40.0], [60.0, 25.0], [44.0, 50.0]])
    depth = true_depth(batch, (0.1, 10.0))[0]
    places = true_places(batch, points, depth)
    shown = [plane["decode_world_xy"](image.permute(1, 2, 0).numpy()) for image in batch["img"][0]]
    x, y = points.astype(int).T
    for view, at in zip(shown[1:], places, strict=True):
        column, row = at.round().astype(int).T
        assert (np.abs(column - x) + np.abs(row - y) > 2).all()
        assert np.abs(view[row, column] - shown[0][y, x]).max() < 0.04
    depth[20, 30] = torch.nan
    assert np.isnan(true_places(batch, points, depth)[:, 0]).all()


def test_the_command_writes_tables_curves_and_pictures(write_tree, tiny, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--data", write_tree({"desk": 9}), "--pretrained", tiny, "--ttype2", "all"]
    given += ["--seq_gap", 3, 1, "--width", 80, "--height", 60, "--batch_size", 2]
    given += ["--num_workers", 0, "--num_kps", 16, "--num_samples", 2, "--pictures", 1]
    assert test_learnabledepth.main([*map(str, given), "--output_dir", str(out), "--silent"]) == 0
    printed = capsys.readouterr().out
    stored = json.loads((out / "depth.json").read_text())
    assert [one["seq_gap"] for one in stored["results"]] == [1, 3]
    assert stored["settings"]["num_kps"] == 16 and stored["settings"]["maxdepth"] == 10
    for one in stored["results"]:
        assert [image["label"][-4:] for image in one["per_image"]] == ["0003", "0005"]
        assert {*MEASURES, "parallax", "nll", "ause", "rho"} <= set(one)
        row = f"| {one['seq_gap']}       | {one['abs_rel']:.4g}"
        assert row in printed and row in (out / "depth.md").read_text()
    names = sorted(path.stem for path in (out / "pictures").iterdir())
    assert names[0].startswith("gap_01-00000") and all(name.count("-") > 1 for name in names)
    for gap in (1, 3):
        roles = "".join(name for name in names if name.startswith(f"gap_{gap:02d}"))
        assert all(roles.count(role) == 1 for role in ("best", "median", "worst"))
    for path in [out / "depth.png", *(out / "pictures").iterdir()]:
        assert str(path) in printed
        assert cv2.imread(str(path)).std() > 15


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("--data", "nowhere"), "not a folder"),
        (("--pretrained", "nowhere.pth.tar"), "nowhere.pth.tar"),
        (("--seq_gap", "40", "50"), "smaller seq_gap"),
        (("--seq_length", "1"), "seq_length=1"),
        (("--mindepth", "12"), "below --maxdepth"),
        (("--mindepth", "50", "--maxdepth", "60"), "between 50 and 60 m"),
        (("--frac_superpoint", "1.5"), "--frac_superpoint 1.5"),
        (("--width", "0"), "width=0"),
        (("--device", "abacus"), "--device abacus"),
    ],
)
def test_mistakes_are_told(write_tree, tiny, tmp_path, caplog, wrong, message):
    given = ["--data", write_tree({"desk": 3}), "--pretrained", tiny, "--num_workers", 0]
    given += ["--seq_gap", 1, "--ttype2", "all.txt", "--width", 64, "--height", 48, "--silent"]
    given += ["--output_dir", tmp_path / "out", *wrong]
    assert test_learnabledepth.main([str(one) for one in given]) == 2
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_told(write_tree, tmp_path, caplog):
    path = tmp_path / "other.pth"
    torch.save({"weights": {"enc_blocks.0.norm1.weight": torch.ones(3)}}, path)
    given = ["--data", str(write_tree({"desk": 3})), "--pretrained", str(path), "--silent"]
    assert test_learnabledepth.main(given) == 2
    assert "no weights under state_dict, state_dict_tri" in caplog.text
