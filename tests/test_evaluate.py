"""``evaluate.py`` from its arguments to its files, over several processes, and its messages."""

import argparse
import csv
import json
import os
import re
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import stored_predictions as helpers
import torch

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.evaluation import cli, uq
from dust3r.evaluation.measure import point_errors
from dust3r.evaluation.methods import parse_methods
from dust3r.evaluation.predictions import Stored, pair_file
from dust3r.evaluation.records import RecordStore
from dust3r.training import checkpoint
from dust3r.training.distributed import World
from dust3r.uncertainty.metrics import ause
from dust3r.utils.spec import MODELS, build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

SIDE = 32
# Pictures take most of the time.
BARE = ("--num_panels", "0")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.store(tmp_path_factory.mktemp("stored"))


@pytest.fixture
def logged(caplog):
    """What was logged as an error."""
    return lambda: "\n".join(r.getMessage() for r in caplog.records if r.levelname == "ERROR")


@pytest.fixture
def save(tmp_path: Path):
    """Writer of a checkpoint of a small random model; its path."""

    def write(head_type: str = "dpt_uq_feat", name: str = "model.pth") -> Path:
        spec = (
            f"AsymmetricMASt3R(patch_embed_cls='ManyAR_PatchEmbed', img_size=({SIDE}, {SIDE}), "
            f"head_type='{head_type}', enc_embed_dim=24, enc_depth=1, enc_num_heads=2, "
            "dec_embed_dim=24, dec_depth=4, dec_num_heads=2, dpt_dim=8)"
        )
        torch.manual_seed(len(name))
        content = {"model": build(spec, MODELS).state_dict()}
        checkpoint.save(tmp_path / name, content | {"args": argparse.Namespace(model=spec)})
        return tmp_path / name

    return write


def uq_of(folder: Path, out: Path, *more: str, methods: str = "conf,geom") -> int:
    fixed = ["uq", "--predictions", str(folder), "--output_dir", str(out), "--methods", methods]
    return cli.main([*fixed, "--device", "cpu", *BARE, *more])


def results(out: Path) -> dict[str, dict]:
    found = json.loads((out / "results.json").read_text())["results"]
    return {one["method"]: one for one in found}


def test_numbers_are_those_of_all_pixels_together(stored, tmp_path, capsys):
    assert uq_of(stored, tmp_path) == 0
    errors, doubts, squares = [], [], []
    provider = Stored(stored, (helpers.SOURCE,))
    for pair in provider.pairs(helpers.WALLS, range(5)):
        for view, prediction in zip(pair.views, pair.predictions[helpers.SOURCE], strict=True):
            maps = point_errors(view, prediction, "umeyama")
            errors.append(maps.point[maps.valid])
            doubts.append(1 / prediction["conf"][0][maps.valid])
            squares.append(maps.point[maps.valid].double().square())
    found = results(tmp_path)["conf"]["targets"]["point"]
    errors, doubts = torch.cat(errors), torch.cat(doubts)
    assert found["mae"] == pytest.approx(errors.double().mean().item(), rel=1e-6)
    assert found["rmse"] == pytest.approx(torch.cat(squares).mean().sqrt().item(), rel=1e-6)
    assert found["own"]["ause"] == pytest.approx(ause(errors, doubts).item(), rel=1e-5)
    assert (tmp_path / "results.md").read_text().split("\n\n", 1)[1] in capsys.readouterr().out


def test_what_is_known_of_the_errors_comes_out(stored, tmp_path):
    assert uq_of(stored, tmp_path) == 0
    found = results(tmp_path)
    conf, geom = found["conf"], found["geom"]
    # The deviation that made the errors ranks them better than one that is blurred.
    assert geom["targets"]["point"]["own"]["ause"] < conf["targets"]["point"]["own"]["ause"]
    shared = geom["targets"]["point"]["conf"]
    assert shared["ause"] == pytest.approx(conf["targets"]["point"]["own"]["ause"], rel=1e-9)
    assert geom["targets"]["depth"]["own"]["rho"] > geom["targets"]["depth"]["conf"]["rho"] > 0.1
    # Nine tenths of the variance are aleatoric, a tenth more epistemic: stated as it is.
    assert geom["calibration_error"] < 0.02 and "nll" not in conf
    assert geom["coverage"]["90"] == pytest.approx(0.9, abs=0.02)


def test_all_files_are_there_and_the_page_needs_no_other(stored, tmp_path):
    assert uq_of(stored, tmp_path, "--num_panels", "3") == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "results.csv", "images.csv", "results.json", "results.md", "results.html", "pairs.json",
        "Walls_curves.png", "records",
    }  # fmt: skip
    assert cv2.imread(str(tmp_path / "Walls_curves.png")).std() > 10
    page = (tmp_path / "results.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 1 + 2 * 3
    for name in ("best", "median", "worst"):
        assert page.count(f"geom, {name}:") == 2
    with (tmp_path / "images.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len(images) == 2 * 10
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["conf", "geom"]
    mean = np.mean([float(r["point_ause_own"]) for r in images if r["method"] == "geom"])
    assert float(rows[1]["point_ause_image_own"]) == pytest.approx(mean)


def test_streaming_is_within_its_bounds_of_the_exact_numbers(stored, tmp_path):
    assert uq_of(stored, tmp_path / "exact") == 0
    assert uq_of(stored, tmp_path / "streamed", "--streaming") == 0
    exact, found = results(tmp_path / "exact"), results(tmp_path / "streamed")
    for method, target, by in (
        ("conf", "point", "own"), ("geom", "point", "conf"), ("geom", "depth", "own")
    ):  # fmt: skip
        one, other = (r[method]["targets"][target] for r in (exact, found))
        assert other["mae"] == one["mae"] and other["rmse"] == one["rmse"]
        for key in ("aurc", "ause", "rho"):
            difference = abs(other[by][key] - one[by][key])
            assert difference <= other[by][f"{key}_bound"] + 1e-7
            assert difference < 0.005
    assert found["geom"]["nll"] == exact["geom"]["nll"]
    assert "differ by at most" in (tmp_path / "streamed/results.md").read_text()


def _one_rank(rank: int, port: int, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    assert cli.main(arguments) == 0


@pytest.mark.parametrize("mode", [[], ["--streaming"]])
def test_two_processes_give_what_one_gives(stored, tmp_path, mode):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = ["uq", "--predictions", str(stored), "--methods", "conf,geom", "--num_pairs", "3"]
    both = [*fixed, *BARE, "--output_dir", str(tmp_path / "two"), "--device", "cpu", *mode]
    torch.multiprocessing.start_processes(_one_rank, (port, both), nprocs=2, start_method="fork")
    assert uq_of(stored, tmp_path / "one", "--num_pairs", "3", *mode) == 0
    one, two = (
        {k: v for k, v in json.loads((tmp_path / n / "results.json").read_text()).items()}
        for n in ("one", "two")
    )
    assert _rounded(one) == _rounded(two)
    images = [
        sorted((tmp_path / n / "images.csv").read_text().splitlines()) for n in ("one", "two")
    ]
    assert images[0] == images[1]


@pytest.mark.parametrize("mode", [[], ["--streaming"]])
def test_any_number_of_workers_gives_the_same_digits(stored, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(uq, "_WORTH_A_WORKER", 1)
    names = "results.json", "images.csv", "results.md"
    texts = []
    for workers in ("0", "2", "3"):
        assert uq_of(stored, tmp_path / workers, "--num_workers", workers, *mode) == 0
        texts.append([(tmp_path / workers / name).read_text() for name in names])
        found = [path.read_bytes() for path in sorted((tmp_path / workers / "records").rglob("*"))
                 if path.is_file()]  # fmt: skip
        texts[-1].append(found)
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0][-1]) == 6 and not list(tmp_path.glob("*/records/.ranks*"))


def test_what_a_worker_cannot_read_is_named(stored, tmp_path, monkeypatch, logged):
    monkeypatch.setattr(uq, "_WORTH_A_WORKER", 1)
    helpers.store(tmp_path / "some")
    pair_file(tmp_path / "some", "Walls", helpers.SOURCE, 3).unlink()
    assert uq_of(tmp_path / "some", tmp_path / "out", "--num_workers", "2") == 2
    assert "0000003.safetensors is missing or damaged" in logged()


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def test_a_stopped_evaluation_goes_on(stored, tmp_path, monkeypatch, caplog):
    measured = []
    original = uq.Evaluation.measure_pair

    def counted(self, pair):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(pair.index)
        return original(self, pair)

    monkeypatch.setattr(uq.Evaluation, "measure_pair", counted)
    with pytest.raises(KeyboardInterrupt):
        uq_of(stored, tmp_path)
    assert not (tmp_path / "results.json").exists()
    assert len(list((tmp_path / "records/Walls").iterdir())) == 3
    monkeypatch.setattr(uq.Evaluation, "measure_pair", lambda self, pair: (
        measured.append(pair.index) or original(self, pair)))  # fmt: skip
    assert uq_of(stored, tmp_path) == 0
    assert measured == [0, 1, 2, 3, 4]
    assert uq_of(stored, tmp_path / "whole") == 0
    assert results(tmp_path) == results(tmp_path / "whole")


def test_a_process_that_is_ahead_leaves_the_others_their_shares(stored, tmp_path):
    """The second begins when the first has ended: what it has to do may not depend on that."""
    evaluation = uq.from_stored(stored, None, parse_methods("conf"))
    store = RecordStore(tmp_path / "records")
    store.claim(evaluation.settings(), resume=True)
    for rank in range(2):
        evaluation.measure(store, World(rank, 2, torch.device("cpu")))
    for one in evaluation.pairs:
        assert all(store.has(one.name, index) for index in one.indices)


def test_records_of_other_settings_are_refused_or_replaced(stored, tmp_path, logged):
    assert uq_of(stored, tmp_path, "--num_pairs", "2") == 0
    assert uq_of(stored, tmp_path, "--num_pairs", "2", "--streaming") == 2
    assert 'mode was "exact", and is now "streaming"' in logged()
    assert "--no-resume" in logged() and "--output_dir" in logged()
    assert uq_of(stored, tmp_path, "--num_pairs", "2", "--streaming", "--no-resume") == 0


def test_a_damaged_record_is_named(stored, tmp_path, logged):
    assert uq_of(stored, tmp_path) == 0
    (tmp_path / "records/Walls/0000002.safetensors").write_bytes(b"half")
    assert uq_of(stored, tmp_path) == 2
    assert "0000002.safetensors is missing or damaged" in logged()


def test_nan_in_predictions_is_counted_and_left_out(tmp_path):
    helpers.store(tmp_path / "clean", pairs=2)
    helpers.store(tmp_path / "spoilt", pairs=2, spoil=7)
    for name in ("clean", "spoilt"):
        assert uq_of(tmp_path / name, tmp_path / f"out {name}") == 0
    clean, spoilt = (results(tmp_path / f"out {n}")["conf"] for n in ("clean", "spoilt"))
    counts = spoilt["counts"]
    assert 0 < counts["bad_prediction"] <= 4 * 7
    assert counts["used"] == counts["valid"] - counts["bad_prediction"]
    assert clean["counts"]["bad_prediction"] == 0
    assert np.isfinite(spoilt["targets"]["point"]["own"]["ause"])
    text = (tmp_path / "out spoilt/results.md").read_text()
    assert f"**conf: {counts['bad_prediction']} pixels with predicted points" in text
    assert "not finite" in (tmp_path / "out spoilt/results.html").read_text()
    assert "not finite" not in (tmp_path / "out clean/results.md").read_text()


def test_nothing_finite_and_nothing_valid_are_errors(tmp_path, logged):
    helpers.store(tmp_path / "nan", pairs=2, spoil=helpers.SIDE**2)
    assert uq_of(tmp_path / "nan", tmp_path / "out") == 2
    assert re.search(r"Walls: none of .* pixels can be used for 'conf'", logged())
    helpers.store(tmp_path / "void", pairs=2, valid=False)
    assert uq_of(tmp_path / "void", tmp_path / "out void") == 2
    assert "benchmark Walls has no pixel with a valid depth" in logged()


def test_stored_predictions_that_are_missing_are_named(stored, tmp_path, logged):
    assert uq_of(tmp_path, tmp_path / "out") == 2
    assert "--predictions" in logged() and "has no predictions.json" in logged()
    assert uq_of(stored, tmp_path / "out", "--benchmarks", "Rooms") == 2
    assert "has no Rooms; it has Walls" in logged()
    assert uq_of(stored, tmp_path / "out", methods="feat") == 2
    assert "cannot be read as 'feat'" in logged()
    helpers.store(tmp_path / "part", pairs=2)
    pair_file(tmp_path / "part", "Walls", helpers.SOURCE, 1).unlink()
    assert uq_of(tmp_path / "part", tmp_path / "out part") == 2
    assert "0000001.safetensors is missing or damaged" in logged()


def fresh(command: str, root: Path, out: Path, *more: str, split: str = "all") -> int:
    dataset = f"Desk:ScanNetpp(split={split!r}, ROOT={str(root)!r}, resolution={SIDE})"
    fixed = [command, "--benchmarks", dataset, "--output_dir", str(out), "--device", "cpu"]
    return cli.main([*fixed, *more])


def test_a_network_its_stored_predictions_and_their_numbers(write_tree, save, tmp_path):
    root, ckpt = write_tree(frames={"desk": 5}, size=(48, 40)), save()
    more = [*BARE, "--methods", "conf,feat,again:feat", "--num_pairs", "3", "--num_workers", "0"]
    kept = ["--save_predictions", str(tmp_path / "kept")]
    ckpts = ["--ckpt", str(ckpt)]
    assert fresh("uq", root, tmp_path / "now", *ckpts, *more, *kept) == 0
    assert uq_of(tmp_path / "kept", tmp_path / "later", methods="conf,feat,again:feat") == 0
    now, later = (results(tmp_path / name) for name in ("now", "later"))
    assert list(now) == ["conf", "feat", "again"]
    assert _close(now, later)
    assert _close({**now["feat"], "method": ""}, {**now["again"], "method": ""})
    pairs = json.loads((tmp_path / "now/pairs.json").read_text())["Desk"]["pairs"]
    assert (
        len(pairs) == 3
        and pairs
        == json.loads((tmp_path / "kept/predictions.json").read_text())["benchmarks"]["Desk"][
            "pairs"
        ]
    )


def _close(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_close(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return one == (other if isinstance(one, str) else pytest.approx(other, rel=1e-4, abs=1e-6))


def test_methods_and_checkpoints_that_do_not_fit(write_tree, save, tmp_path, logged):
    root, ckpt = write_tree(frames={"desk": 3}, size=(48, 40)), save("dpt")
    out = tmp_path / "out"
    assert fresh("uq", root, out, "--methods", "conf,feat", "--ckpt", f"conf={ckpt}") == 2
    assert "no checkpoint for feat: add --ckpt feat=PATH" in logged()
    assert fresh("uq", root, out, "--methods", "conf", "--ckpt", f"niw={ckpt}") == 2
    assert "--ckpt names niw, and --methods conf" in logged()
    assert fresh("uq", root, out, "--methods", "feat", "--ckpt", str(ckpt)) == 2
    assert re.search(r"model.pth cannot be read as 'feat'.*can be read as conf", logged())
    assert fresh("uq", root, out, "--methods", "conf", "--ckpt", "nowhere.pth") == 2
    assert "there is no file nowhere.pth" in logged()
    assert fresh("uq", root, out, "--methods", "ensemble", "--ckpt", str(ckpt)) == 2
    assert "an ensemble has two members or more" in logged()
    free = ("--methods", "conf", "--ckpt", str(ckpt), "--scale_free", "conf")
    assert fresh("uq", root, out, *free) == 2
    assert "--scale_free conf: of --methods, none state something of points" in logged()
    assert not out.exists()


def test_ensembles_and_dropout_run(write_tree, save, tmp_path):
    root = write_tree(frames={"desk": 3}, size=(48, 40))
    first, second = save("dpt", "a.pth"), save("dpt", "bb.pth")
    ckpts = ["--ckpt", f"ensemble={first},{second}", str(first)]
    more = [*BARE, "--methods", "conf,mcd,ensemble", "--samples", "2", "--num_workers", "0"]
    assert fresh("uq", root, tmp_path / "out", *ckpts, *more) == 0
    found = results(tmp_path / "out")
    assert np.isfinite(found["mcd"]["targets"]["point"]["own"]["ause"])
    assert np.isfinite(found["ensemble"]["nll"])
    assert fresh("uq", root, tmp_path / "free", *ckpts, *more, "--scale_free", "mcd") == 0
    free = results(tmp_path / "free")
    assert free["mcd"]["nll"] != found["mcd"]["nll"]
    assert free["ensemble"]["nll"] == pytest.approx(found["ensemble"]["nll"])


def test_pairs_without_any_depth_are_left_out_and_said(write_tree, save, tmp_path, logged):
    root, ckpt = write_tree(frames={"desk": 4}, size=(48, 40)), save("dpt")
    more = [*BARE, "--methods", "conf", "--ckpt", str(ckpt), "--num_workers", "0"]
    for number in (0, 1):
        cv2.imwrite(str(root / f"desk/depth/desk_{number:04d}.png"), np.zeros((40, 48), np.uint16))
    assert fresh("uq", root, tmp_path / "some", *more) == 0
    assert results(tmp_path / "some")["conf"]["pairs_left_out"] == 1
    assert "1 of 3 pairs could not be loaded" in (tmp_path / "some/results.md").read_text()
    for number in (2, 3):
        cv2.imwrite(str(root / f"desk/depth/desk_{number:04d}.png"), np.zeros((40, 48), np.uint16))
    assert fresh("uq", root, tmp_path / "none", *more) == 2
    assert "Desk has no pixel with a valid depth" in logged()
    assert "sample 0: no pixel" in logged()


def test_depth_of_a_scaled_truth(stored, tmp_path):
    fixed = ["depth", "--predictions", str(stored), "--device", "cpu", "--methods"]
    arguments = [*fixed, "pointmap,geom", "--output_dir", str(tmp_path)]
    assert cli.main(arguments) == 0
    found = json.loads((tmp_path / "depth.json").read_text())["results"]
    pointmap, geom = found
    # Stored points are twice as large as the truth, and the noise of theirs is half of GeoUQ's.
    assert pointmap["abs_rel"] < geom["abs_rel"] < 0.2 and pointmap["a1"] > 0.95
    assert cli.main([*arguments, "--alignment", "none"]) == 0
    unaligned = json.loads((tmp_path / "depth.json").read_text())["results"]
    assert unaligned[0]["abs_rel"] == pytest.approx(1, abs=0.1)
    assert unaligned[1]["abs_rel"] == pytest.approx(geom["abs_rel"], rel=0.05)
    assert "| pointmap | " in (tmp_path / "depth.md").read_text()


def test_poses_of_a_set_and_what_is_no_way_to_them(write_tree, save, tmp_path, logged):
    root, ckpt = write_tree(frames={"desk": 5, "lamp": 5}, size=(48, 40)), save("dpt")
    more = ["--ckpt", str(ckpt), "--images", "3", "--size", str(SIDE), "--batch_size", "2"]
    dataset = f"Desk:ScanNetpp('all', ROOT={str(root)!r}, resolution={SIDE})"
    fixed = ["pose", "--benchmarks", dataset, "--output_dir", str(tmp_path / "out"), *more]

    def given(model, images, **options):
        raise ValueError("no camera could be placed")

    arguments = [*fixed, "--device", "cpu", "--methods", "pairs,mine"]
    assert cli.main(arguments, aligners={"mine": given}) == 0
    found = json.loads((tmp_path / "out/pose.json").read_text())["results"]
    pairs, mine = found
    assert (pairs["sets"], pairs["pairs"]) == (2, 6)
    assert mine["failed"] == 2 and mine["rotation_median"] == 180 and mine["mAA@30"] == 0
    assert len(json.loads((tmp_path / "out/sets.json").read_text())) == 2
    assert cli.main(arguments) == 2
    assert "'mine' is unknown; choose of dense, pairs" in logged()


def test_the_command_itself_knows_its_subcommands(capsys):
    import evaluate

    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    shown = capsys.readouterr().out
    assert "uq" in shown and "depth" in shown and "pose" in shown
    assert "evaluate" in sys.modules
