"""``viz_uq.py`` from its arguments to its files and its error messages."""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import viz_uq
from dust3r import viz
from dust3r.training import checkpoint
from dust3r.uncertainty import calibration_file
from dust3r.uncertainty.calibration_fit import fit
from dust3r.uncertainty.calibration_samples import ErrorSamples
from dust3r.utils.spec import MODELS, build

SIDE = 32


def spec_of(head_type: str = "dpt_uq_feat", width: int = 24, **arguments: object) -> str:
    more = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return (
        f"AsymmetricMASt3R(patch_embed_cls='ManyAR_PatchEmbed', img_size=({SIDE}, {SIDE}), "
        f"head_type='{head_type}', enc_embed_dim={width}, enc_depth=1, enc_num_heads=2, "
        f"dec_embed_dim={width}, dec_depth=4, dec_num_heads=2, dpt_dim=8{more})"
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processed tree: four frames of a textured wall, two metres away, a tenth without depth."""
    folder = tmp_path_factory.mktemp("processed")
    rng = np.random.default_rng(0)
    for kind in ("images", "depth"):
        (folder / "a desk" / kind).mkdir(parents=True)
    for number in range(4):
        image = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        depth = (2000 + 100 * number + rng.integers(0, 500, (40, 48))).astype(np.uint16)
        depth[:4] = 0
        cv2.imwrite(str(folder / "a desk/images" / f"frame {number}.jpg"), image)
        cv2.imwrite(str(folder / "a desk/depth" / f"frame {number}.png"), depth)
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 0, 3] = 0.1 * np.arange(4)
    np.savez(
        folder / "all_metadata.npz",
        scenes=np.array(["a desk"]),
        sceneids=np.zeros(4, int),
        images=np.array([f"frame {number}" for number in range(4)]),
        intrinsics=np.tile([[40.0, 0, 24], [0, 40, 20], [0, 0, 1]], (4, 1, 1)),
        trajectories=poses,
        pairs=np.array([(i, j) for i in range(4) for j in range(i)]),
    )
    return folder


@pytest.fixture
def save(tmp_path: Path):
    """Writer of a checkpoint of a small random model; its path."""

    def write(spec: str, told: bool = True, drop: str | None = None) -> Path:
        torch.manual_seed(0)
        state = build(spec, MODELS).state_dict()
        kept = {name: t for name, t in state.items() if drop is None or drop not in name}
        content = {"model": kept, "args": argparse.Namespace(model=spec if told else None)}
        checkpoint.save(tmp_path / "model.pth", content)
        return tmp_path / "model.pth"

    return write


def run(root: Path, ckpt: Path, out: Path, *more: str, split: str = "all") -> int:
    dataset = f"ScanNetpp(split={split!r}, ROOT={str(root)!r}, resolution={SIDE})"
    fixed = ["--ckpt", str(ckpt), "--dataset", dataset, "--output_dir", str(out)]
    return viz_uq.main([*fixed, "--num_workers", "0", "--device", "cpu", *more])


def is_png(path: Path) -> bool:
    picture = cv2.imread(str(path))
    return picture is not None and picture.std() > 10


def test_files_and_table_of_a_model_with_both_heads(root, save, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert run(root, save(spec_of()), out, "--num_samples", "2", "--batch_size", "1") == 0
    summary = json.loads((out / "summary.json").read_text())
    names = [sample["file"] for sample in summary["samples"]]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*names, "summary.json", "summary.md", "summary.png"]
    )
    assert len(names) == 2
    for name in [*names, "summary.png"]:
        assert is_png(out / name)
    assert names[0].startswith("000_a-desk-frame-") and " " not in names[0] and "/" not in names[0]

    assert list(summary["heads"]) == ["GeoUQ", "FeatUQ", "pointmap"]
    assert summary["images"] == 4
    images = [image for sample in summary["samples"] for image in sample["images"]]
    for name, numbers in summary["heads"].items():
        pixels = np.array([image["pixels"] for image in images])
        squares = np.array([image["heads"][name]["rmse"] ** 2 for image in images])
        assert numbers["rmse"] == pytest.approx(np.sqrt(pixels @ squares / pixels.sum()))
    printed = capsys.readouterr().out
    assert printed.startswith((out / "summary.md").read_text())
    assert f"FeatUQ RMSE {summary['heads']['FeatUQ']['rmse']:.4g} m, NLL" in printed


def test_all_pairs_and_baselines(root, save, tmp_path) -> None:
    out = tmp_path / "out"
    train = f"ScanNetpp(split='train', ROOT={str(root)!r}, resolution={SIDE})"
    more = ("--num_samples", "1", "--all", "--train_dataset", train, "--fit_samples", "2")
    assert run(root, save(spec_of()), out, *more) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 2 * 6 and len(summary["samples"]) == 1
    assert 2.0 < summary["constant"]["depth"] < 3.0
    assert summary["heads"]["FeatUQ"]["residual_variance"] > 0
    text = (out / "summary.md").read_text()
    for row in ("GeoUQ RMSE", "FeatUQ NLL", "FeatUQ AUSE, pooled", "training median"):
        assert f"| {row} " in text


def calibration_of(ckpt: Path, family: str = "geom", factor: float = 3.0) -> Path:
    """A calibration beside the checkpoint, of errors ``factor`` times what was stated."""
    rng = np.random.default_rng(0)
    errors = factor * rng.standard_normal((30, 20))
    region = "interval" if family in ("geom", "feat") else "ball"
    made = fit(
        ErrorSamples.from_arrays(errors, np.ones_like(errors)),
        **{"family": family, "region": region, "dataset": "Rooms()", "checkpoint": ckpt.name},
        checkpoint_sha256=calibration_file.sha256_of(ckpt),
    )
    return calibration_file.save(made, calibration_file.path_beside(ckpt, family))


@pytest.mark.parametrize("more", [(), ("--all",)])
def test_calibrated_deviations_and_their_reliability(root, save, tmp_path, capsys, more) -> None:
    out, ckpt = tmp_path / "out", save(spec_of())
    calibration_of(ckpt)
    args = ("--num_samples", "2", "--calibration", "auto", *more)
    assert run(root, ckpt, out, *args) == 0
    told = json.loads((out / "summary.json").read_text())["calibration"]
    assert is_png(out / "calibration.png")
    assert told["head"] == "GeoUQ" and told["scale"] == pytest.approx(3, rel=0.1)
    assert told["images"] == (12 if more else 4) and told["left_out"] == 0
    assert len(told["levels"]) == len(told["calibrated"]) == 19
    # Radii are three times as long, so that they hold no less.
    assert (np.array(told["calibrated"]) >= told["stated"]).all()
    assert "| 90%     | " in capsys.readouterr().out


def test_a_distribution_of_points_is_drawn_and_its_balls_are_checked(
    root, save, tmp_path, capsys
) -> None:
    out = tmp_path / "out"
    ckpt = save(spec_of("catmlp+dpt+xyz_hetero_dpt", output_mode="pts3d+desc8"))
    calibration_of(ckpt, "hetero")
    assert run(root, ckpt, out, "--num_samples", "2", "--calibration", "auto") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["heads"]) == ["points", "pointmap"]
    points, pointmap = summary["heads"].values()
    # Distances of points after a similarity, of depths that are scaled alone.
    assert points["rmse"] != pytest.approx(pointmap["rmse"])
    assert "nll" not in points and "ause" in points and "ause" not in pointmap
    told = summary["calibration"]
    assert (told["head"], told["region"], told["alignment"]) == ("points", "ball", "none")
    assert told["scale"] == pytest.approx(3, rel=0.1)
    assert (np.array(told["calibrated"]) >= told["stated"]).all()
    for name in ("summary.png", "calibration.png", summary["samples"][0]["file"]):
        assert is_png(out / name)
    text = capsys.readouterr().out
    assert "Shares of true points within the balls of points" in text
    assert "| points AUSE, pooled" in text


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("conf", "calibrates the family 'conf', not 'feat' or 'geom'"),
        ("feat", "the prediction is not of family 'feat'"),
    ],
)
def test_calibration_of_another_family(root, save, tmp_path, caplog, family, expected) -> None:
    ckpt = save(spec_of("dpt_uq"))
    path = calibration_of(ckpt, family)
    assert run(root, ckpt, tmp_path / "out", "--calibration", str(path)) == 2
    assert expected in caplog.text


def test_calibration_of_other_weights(root, save, tmp_path, caplog) -> None:
    path = calibration_of(save(spec_of("dpt_uq")))
    ckpt = save(spec_of("dpt_uq_feat"))
    assert run(root, ckpt, tmp_path / "out", "--calibration", str(path)) == 2
    assert "calibrates other weights" in caplog.text


def test_seed_chooses_the_pairs(root, save, tmp_path) -> None:
    ckpt = save(spec_of("dpt_uq"))

    def chosen(seed: int) -> list[str]:
        out = tmp_path / f"out{seed}"
        assert run(root, ckpt, out, "--num_samples", "2", "--seed", str(seed)) == 0
        summary = json.loads((out / "summary.json").read_text())
        return [sample["file"] for sample in summary["samples"]]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


def test_more_samples_than_pairs_are_all_pairs_once(root, save, tmp_path) -> None:
    out = tmp_path / "out"
    dpt = save(spec_of("dpt"))
    assert run(root, dpt, out, "--num_samples", "99") == 0
    names = {path.name[4:] for path in out.glob("[0-9]*.png")}
    assert len(names) == 6
    assert list(json.loads((out / "summary.json").read_text())["heads"]) == ["pointmap"]


def test_missing_weights_are_warned_about(root, save, tmp_path, caplog) -> None:
    ckpt = save(spec_of("dpt_uq"))
    args = ("--model", spec_of("dpt_uq_feat"), "--num_samples", "1")
    assert run(root, ckpt, tmp_path / "out", *args) == 0
    assert "What is missing is random" in caplog.text
    assert "depth_mean_head" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--model", spec_of(width=16)), "given (24,), expected (16,)"),
        (("--model", "AsymmetricMASt3T()"), "AsymmetricMASt3R"),
        (("--model", "[None]"), "'[None]' describes a list, which is no pairwise pointmap model"),
        (
            ("--model", "CroCoNet(enc_depth=1, dec_depth=1)"),
            "describes a CroCoNet, which is no pairwise",
        ),
        (("--train_dataset", "[None]"), "--train_dataset '[None]' describes [None]"),
        (("--device", "nonsense"), "--device nonsense cannot be used here"),
    ],
)
def test_wrong_arguments(root, save, tmp_path, caplog, arguments, expected) -> None:
    assert run(root, save(spec_of()), tmp_path / "out", *arguments) == 2
    assert expected in caplog.text
    assert not (tmp_path / "out").exists()


def test_checkpoint_that_is_not_there(root, tmp_path, caplog) -> None:
    assert run(root, tmp_path / "nothing.pth", tmp_path / "out") == 2
    assert "nothing.pth" in caplog.text


def test_checkpoint_that_does_not_know_its_model(root, save, tmp_path, caplog) -> None:
    ckpt = save(spec_of(), told=False)
    assert run(root, ckpt, tmp_path / "out") == 2
    assert "does not say which model its weights belong to; give --model" in caplog.text
    assert run(root, ckpt, tmp_path / "out", "--model", spec_of(), "--num_samples", "1") == 0


def test_model_that_knows_no_uncertainty(root, save, tmp_path, caplog) -> None:
    assert run(root, save(spec_of("dpt", conf_mode=None)), tmp_path / "out") == 2
    assert "neither an uncertainty head nor a confidence" in caplog.text


def test_dataset_without_pairs_or_folder(root, save, tmp_path, caplog) -> None:
    ckpt = save(spec_of())
    assert run(root, ckpt, tmp_path / "out", split="test") == 2
    assert "leave nothing for split='test'" in caplog.text
    assert run(tmp_path / "gone", ckpt, tmp_path / "out") == 2
    assert "is not a folder" in caplog.text


def test_damaged_image_stops_with_its_name(root, save, tmp_path, caplog) -> None:
    damaged = tmp_path / "damaged"
    (damaged / "a desk").mkdir(parents=True)
    for kind in ("images", "depth"):
        (damaged / "a desk" / kind).mkdir()
        for path in (root / "a desk" / kind).iterdir():
            (damaged / "a desk" / kind / path.name).write_bytes(path.read_bytes()[:200])
    (damaged / "all_metadata.npz").write_bytes((root / "all_metadata.npz").read_bytes())
    assert run(damaged, save(spec_of()), tmp_path / "out") == 2
    assert "a desk/images/frame" in caplog.text


@pytest.mark.parametrize("count", ["0", "-3"])
def test_counts_are_positive(count, capsys) -> None:
    with pytest.raises(SystemExit):
        viz_uq.main(["--ckpt", "a", "--dataset", "b", "--output_dir", "c", "--batch_size", count])
    assert f"{count} is not 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("scene/frame-000012.color", "scene-frame-000012.color"),
        ("../../etc/passwd", "etc-passwd"),
        ("größe & Maß\n", "gr-e-Ma"),
        ("///", "sample"),
        ("x" * 500, "x" * 100),
    ],
)
def test_labels_become_names_of_files(label: str, expected: str) -> None:
    assert viz.file_name(label) == expected
