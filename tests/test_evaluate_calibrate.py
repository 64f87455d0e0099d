"""``evaluate.py calibrate`` from its arguments to its files, and what it refuses."""

import argparse
import csv
import json
import os
import re
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
import stored_predictions as helpers
import torch

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
import viz_uq
from dust3r.evaluation import cli
from dust3r.evaluation.predictions import Stored
from dust3r.training import checkpoint
from dust3r.uncertainty import calibration_file
from dust3r.uncertainty.calibration import coverage
from dust3r.uncertainty.stated import stated
from dust3r.utils.spec import MODELS, build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

SIDE = 32
FACTOR = 2.5


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Errors ``FACTOR`` times what is stated, to fit and to measure on; and others, of 4 times."""
    folder = tmp_path_factory.mktemp("stored")
    told = {"pairs": 20, "factor": FACTOR}
    helpers.store(folder, seed=0, name="fit", room="a", **told)
    helpers.store(folder, seed=1, name="rooms", room="b", **told)
    return helpers.store(folder, seed=2, name="kitchen", room="c", pairs=6, factor=4 * FACTOR)


@pytest.fixture
def logged(caplog):
    """What was logged as an error."""
    return lambda: "\n".join(r.getMessage() for r in caplog.records if r.levelname == "ERROR")


def calibrate(folder: Path, out: Path, *more: str, benchmarks: str = "rooms;kitchen") -> int:
    fixed = ["calibrate", "--predictions", str(folder), "--dataset", "fit", "--device", "cpu"]
    fixed += ["--benchmarks", benchmarks, "--output_dir", str(out)]
    fixed += ["--calibration_dir", str(out / "fitted")]
    # An argument that is given twice counts as it was given last.
    return cli.main([*fixed, "--methods", "geom,conf", "--pixels_per_image", "200", *more])


def results(out: Path) -> dict[tuple[str, str], dict]:
    found = json.loads((out / "calibration.json").read_text())["results"]
    return {(one["benchmark"], one["method"]): one for one in found}


def at(found: dict, kind: str, level: float) -> float:
    return found["kinds"][kind]["coverage"][found["levels"].index(level)]


def test_nine_tenths_are_held_in_domain_and_fewer_outside(stored, tmp_path, capsys):
    assert calibrate(stored, tmp_path) == 0
    found = results(tmp_path)
    rooms, kitchen = found["rooms", "geom"], found["kitchen", "geom"]
    assert at(rooms, "stated", 0.9) < 0.6 and at(kitchen, "stated", 0.9) < 0.25
    for kind in ("conformal", "isotonic", "scale"):
        for level in (0.5, 0.8, 0.9, 0.95):
            # The radii of 40 images have a 41st to provide for.
            promised = level * 41 / 40 if kind == "conformal" else level
            assert at(rooms, kind, level) == pytest.approx(promised, abs=0.02)
        assert at(kitchen, kind, 0.9) < 0.5
        assert rooms["kinds"][kind]["calibration_error"] < 0.02
    wide, narrow = (rooms["kinds"][kind]["radius"] for kind in ("scale", "stated"))
    assert np.divide(wide, narrow) == pytest.approx(FACTOR, rel=0.06)
    # 1 / confidence has no unit, and so nothing that it stated before.
    conf = found["rooms", "conf"]
    assert list(conf["kinds"]) == ["conformal", "isotonic", "scale"]
    assert at(conf, "conformal", 0.9) == pytest.approx(0.9, abs=0.03)
    assert 0.3 < conf["scale"] < 0.6
    text = capsys.readouterr().out
    assert re.search(r"conf: true distances are 0\.\d+ times the predicted ones", text)
    assert "geom: true distances" not in text


def test_coverage_is_that_of_the_stored_calibration_on_all_pixels(stored, tmp_path):
    assert calibrate(stored, tmp_path, "--pixels_per_image", "10000", "--levels", "0.7", "0.9") == 0
    found = calibration_file.load_for(tmp_path / "fitted", Path("net.pth"), ["geom"])
    assert (found.images, found.pairs, found.dataset) == (40, 20, "made up")
    errors, sigmas, df = [], [], []
    for pair in Stored(stored, (helpers.SOURCE,)).pairs(
        argparse.Namespace(name="rooms"), range(20)
    ):
        for view, one in zip(pair.views, pair.predictions[helpers.SOURCE], strict=True):
            valid, said = view["valid_mask"], stated(one, "geom")
            errors.append((one["depth_mu"][:, 0] - view["depthmap"])[valid])
            sigmas.append(said.sigma[valid])
            df.append(said.df[valid])
    one = results(tmp_path)["rooms", "geom"]
    for kind in ("conformal", "isotonic", "scale"):
        expected = coverage(errors, sigmas, (0.7, 0.9), found, kind=kind, df=df)
        assert one["kinds"][kind]["coverage"] == pytest.approx(expected.shares, abs=1e-6)
    radii = [found.radius(s, 0.9, df=d).mean() for s, d in zip(sigmas, df, strict=True)]
    assert one["kinds"]["conformal"]["radius"][1] == pytest.approx(np.mean(radii))


def test_all_files_are_there_and_the_page_needs_no_other(stored, tmp_path):
    assert calibrate(stored, tmp_path, "--kinds", "conformal") == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "calibration.csv", "images.csv", "calibration.json", "calibration.md", "calibration.html",
        "pairs.json", "rooms_reliability.png", "kitchen_reliability.png", "fitted",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "fitted").iterdir()) == [
        "net.pth.conf.calibration.json", "net.pth.geom.calibration.json"
    ]  # fmt: skip
    assert cv2.imread(str(tmp_path / "rooms_reliability.png")).std() > 10
    page = (tmp_path / "calibration.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    assert len(re.findall(r'src="data:image/png', page)) == 2 and page.count("<h2>") == 3
    with (tmp_path / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * (2 + 1)
    with (tmp_path / "images.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len(images) == (40 + 12) * (2 + 1)
    shares = [
        float(row["coverage_90"])
        for row in images
        if (row["benchmark"], row["method"], row["calibration"]) == ("rooms", "geom", "conformal")
    ]
    row = next(r for r in rows if r["calibration"] == "conformal" and r["level"] == "0.9")
    assert float(row["coverage"]) == pytest.approx(np.mean(shares))
    assert float(row["image_p10"]) == pytest.approx(np.percentile(shares, 10))


def _one_rank(rank: int, port: int, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    assert calibrate(Path(arguments[0]), Path(arguments[1])) == 0


def test_two_processes_give_what_one_gives(stored, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [str(stored), str(tmp_path / "two")]
    torch.multiprocessing.start_processes(_one_rank, (port, both), nprocs=2, start_method="fork")
    assert calibrate(stored, tmp_path / "one") == 0
    for name in ("calibration.csv", "images.csv", "fitted/net.pth.geom.calibration.json"):
        one, two = ((tmp_path / folder / name).read_text() for folder in ("one", "two"))
        assert one == two


def test_nan_in_predictions_is_counted_and_left_out(stored, tmp_path, capsys):
    folder = helpers.store(tmp_path / "in", pairs=12, spoil=7, name="fit", room="a")
    helpers.store(folder, pairs=3, spoil=7, name="rooms", room="b")
    assert calibrate(folder, tmp_path / "out", benchmarks="rooms") == 0
    found = results(tmp_path / "out")
    assert 0 < found["rooms", "conf"]["left_out"] <= 6 * 7
    assert found["rooms", "geom"]["left_out"] == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"conf: \d+ pixels whose prediction is not finite", text)) == 2
    assert "geom: " not in text
    assert np.isfinite(at(found["rooms", "conf"], "conformal", 0.9))
    page = (tmp_path / "out/calibration.html").read_text()
    assert page.count('class="problem"') >= 2


@pytest.mark.parametrize("by", ["relative", "sigma"])
def test_groups_of_pixels_have_radii_of_their_own(stored, tmp_path, by):
    more = ("--binned_by", by, "--bins", "3", "--methods", "geom")
    assert calibrate(stored, tmp_path, *more, benchmarks="rooms") == 0
    found = calibration_file.load_for(tmp_path / "fitted", Path("net.pth"), ["geom"])
    assert found.binned_by == by and len(found.radii) == 3
    assert at(results(tmp_path)["rooms", "geom"], "conformal", 0.9) == pytest.approx(0.91, abs=0.02)


def test_what_nothing_can_be_fitted_or_measured_on(stored, tmp_path, logged):
    out = tmp_path / "out"
    assert calibrate(stored, out, "--num_pairs", "9") == 2
    assert "radii that hold 95% need 19 images or more" in logged()
    assert "--dataset gives 18" in logged()
    assert calibrate(stored, out, "--levels", "0.5", "0.99") == 2
    assert "radii that hold 99% need 99 images or more" in logged()
    assert calibrate(stored, out, "--bins", "3") == 2
    assert "--bins 3 needs --binned_by" in logged()
    for valid, spoil, message in (
        (False, 0, "--dataset has no pixel with a valid depth"),
        (True, helpers.SIDE**2, "none of .* pixels can be used for 'conf'"),
    ):
        folder = tmp_path / f"in{spoil}"
        helpers.store(folder, pairs=12, valid=valid, spoil=spoil, name="fit", room="a")
        helpers.store(folder, pairs=2, name="rooms", room="b")
        assert calibrate(folder, out, "--methods", "conf", benchmarks="rooms") == 2
        assert re.search(message, logged())
    helpers.store(tmp_path / "void", pairs=12, name="fit", room="a")
    helpers.store(tmp_path / "void", pairs=2, valid=False, name="rooms", room="b")
    assert calibrate(tmp_path / "void", tmp_path / "out void", benchmarks="rooms") == 2
    assert "benchmark rooms has no pixel with a valid depth" in logged()
    assert not (tmp_path / "out void/calibration.json").exists() and not out.exists()


def test_images_that_were_fitted_on_are_no_benchmark(tmp_path, logged):
    helpers.store(tmp_path / "in", pairs=12, name="fit", room="a")
    helpers.store(tmp_path / "in", pairs=3, name="rooms", room="a", seed=1)
    assert calibrate(tmp_path / "in", tmp_path / "out", benchmarks="rooms") == 2
    assert "benchmark rooms shares 6 images with --dataset, such as a/0.jpg" in logged()
    assert calibrate(tmp_path / "in", tmp_path / "out", benchmarks="fit") == 2
    assert "name one of them in --dataset" in logged()


def test_methods_that_do_not_fit(stored, tmp_path, logged):
    assert calibrate(stored, tmp_path, "--methods", "feat") == 2
    assert "cannot be read as 'feat'" in logged()
    assert calibrate(stored, tmp_path, "--methods", "geom,again:geom") == 2
    assert "again and another would both be stored as" in logged()
    fixed = ["calibrate", "--predictions", str(stored), "--dataset", "fit", "--methods", "geom"]
    assert cli.main([*fixed, "--output_dir", str(tmp_path), "--device", "cpu"]) == 2
    assert "nothing can be stored beside it; give --calibration_dir" in logged()


@pytest.fixture
def save(tmp_path: Path):
    """Writer of a checkpoint of a small random model; its path."""

    def write(head_type: str, name: str = "model.pth") -> Path:
        more = ", output_mode='pts3d+desc8'" if head_type.startswith("catmlp") else ""
        spec = (
            f"AsymmetricMASt3R(patch_embed_cls='ManyAR_PatchEmbed', img_size=({SIDE}, {SIDE}), "
            f"head_type='{head_type}', enc_embed_dim=24, enc_depth=1, enc_num_heads=2, "
            f"dec_embed_dim=24, dec_depth=4, dec_num_heads=2, dpt_dim=8{more})"
        )
        torch.manual_seed(0)
        content = {"model": build(spec, MODELS).state_dict()}
        checkpoint.save(tmp_path / name, content | {"args": argparse.Namespace(model=spec)})
        return tmp_path / name

    return write


def network(root: Path, out: Path, ckpt: Path, *more: str, splits=("train", "val")) -> int:
    fit, measure = (f"ScanNetpp({s!r}, ROOT={str(root)!r}, resolution={SIDE})" for s in splits)
    fixed = ["calibrate", "--ckpt", str(ckpt), "--dataset", fit, "--output_dir", str(out)]
    fixed += ["--benchmarks", f"rooms:{measure}", "--device", "cpu", "--num_workers", "0"]
    return cli.main([*fixed, "--pixels_per_image", "100", *more])


def test_a_network_is_calibrated_beside_its_checkpoint_and_drawn(write_tree, save, tmp_path):
    root, ckpt = write_tree(frames={"desk": 12, "lamp": 12}, size=(48, 40)), save("dpt_uq_feat")
    methods = ("--methods", "geom,feat,conf")
    assert network(root, tmp_path / "out", ckpt, *methods) == 0
    for family in ("geom", "feat", "conf"):
        found = calibration_file.load_for("auto", ckpt, [family])
        assert found.family == family and found.images == 22
        assert found.checkpoint_sha256 == calibration_file.sha256_of(ckpt)
        assert found.region == ("ball" if family == "conf" else "interval")
    dataset = f"ScanNetpp('val', ROOT={str(root)!r}, resolution={SIDE})"
    given = ["--ckpt", str(ckpt), "--dataset", dataset, "--output_dir", str(tmp_path / "drawn")]
    given += ["--num_samples", "1", "--device", "cpu", "--num_workers", "0"]
    assert viz_uq.main([*given, "--calibration", "auto"]) == 0
    told = json.loads((tmp_path / "drawn/summary.json").read_text())["calibration"]
    assert told["head"] == "FeatUQ"


def test_ellipsoids_are_stored_besides_balls(write_tree, save, tmp_path):
    root = write_tree(frames={"desk": 12, "lamp": 12}, size=(48, 40))
    ckpt = save("catmlp+dpt+xyz_hetero_dpt")
    assert network(root, tmp_path / "out", ckpt, "--methods", "hetero", "--ellipsoids") == 0
    names = sorted(path.name for path in tmp_path.glob("*.calibration.json"))
    assert names == [
        "model.pth.hetero-ellipsoid.calibration.json", "model.pth.hetero.calibration.json"
    ]  # fmt: skip
    found = calibration_file.load(tmp_path / names[0], checkpoint=ckpt)
    assert found.region == "ellipsoid" and found.unit == ""
    assert [one["region"] for one in results(tmp_path / "out").values()] == ["ball", "ellipsoid"]


def test_regions_of_errors_of_shape_are_smaller(write_tree, save, tmp_path, logged, capsys):
    root = write_tree(frames={"desk": 12, "lamp": 12}, size=(48, 40))
    ckpt = save("catmlp+dpt+xyz_hetero_dpt")
    radii = {}
    for alignment in ("none", "umeyama"):
        out = tmp_path / alignment
        more = ("--methods", "hetero", "--alignment", alignment)
        assert network(root, out, ckpt, *more) == 0
        found = calibration_file.load_for("auto", ckpt, ["hetero"])
        assert (found.region, found.alignment) == ("ball", alignment)
        one = results(out)["rooms", "hetero"]
        assert one["alignment"] == alignment
        radii[alignment] = one["kinds"]["conformal"]["radius"][0]
        aligned = "aligned to its truth by a similarity first (umeyama)"
        assert (aligned in capsys.readouterr().out) == (alignment == "umeyama")
    assert radii["umeyama"] < 0.9 * radii["none"]
    ckpt = save("dpt_uq")
    assert network(root, tmp_path, ckpt, "--methods", "geom", "--alignment", "umeyama") == 2
    assert "--alignment umeyama is of points, and geom state(s) intervals of depth" in logged()


def test_the_same_data_and_other_families_are_refused(write_tree, save, tmp_path, logged):
    root, ckpt = write_tree(frames={"desk": 12, "lamp": 12}, size=(48, 40)), save("dpt")
    out = tmp_path / "out"
    given = ("--methods", "conf")
    assert network(root, out, ckpt, *given, splits=("train", "train")) == 2
    assert "benchmark rooms is the data set of --dataset" in logged()
    assert network(root, out, ckpt, *given, splits=("train", "all")) == 2
    assert "shares 12 images with --dataset" in logged()
    assert network(root, out, ckpt, "--methods", "feat") == 2
    assert re.search(r"model.pth cannot be read as 'feat'.*can be read as conf", logged())
    assert network(root, out, tmp_path / "none.pth", *given) == 2
    assert "there is no file" in logged()
    assert not out.exists() and not list(tmp_path.glob("*.calibration.json"))
