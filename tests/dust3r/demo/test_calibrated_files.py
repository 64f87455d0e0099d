"""``demo.py --calibration``: the radius that holds 90% of the points, in files and pictures."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import demo
from dust3r.demo import weights
from dust3r.training import checkpoint
from dust3r.uncertainty import calibration_file
from dust3r.uncertainty.calibration_fit import fit
from dust3r.uncertainty.calibration_samples import ErrorSamples
from dust3r.utils.spec import MODELS, build

ROOM = sorted((Path(__file__).parents[3] / "docs/images/example_room").glob("*.jpg"))
GIVEN = ["--images", *map(str, ROOM[:2]), "--niter", "10", "--silent", "--device", "cpu"]


def calibration_of(path: Path, family: str = "geom"):
    errors = np.random.default_rng(0).standard_normal((30, 20))
    samples = ErrorSamples.from_arrays(errors, np.ones_like(errors))
    region = "interval" if family == "geom" else "ball"
    told = {"family": family, "region": region, "dataset": "Rooms()", "checkpoint": path.name}
    return fit(samples, **told, checkpoint_sha256=calibration_file.sha256_of(path))


def with_head(shipped: str, head_type: str, more: str, path: Path) -> Path:
    """A shipped model with another head type, whose new part is random."""
    small = checkpoint.load_file(weights.FOLDER / shipped)
    spec = re.sub(r"head_type='[^']*'", f"head_type='{more}'", small["args"].model)
    assert f"head_type='{head_type}'" in small["args"].model
    torch.manual_seed(0)
    net = build(spec, MODELS)
    checkpoint.load_state_dict(net, small["model"])
    checkpoint.save(path, {"model": net.state_dict(), "args": argparse.Namespace(model=spec)})
    return path


def test_files_hold_the_radius_of_the_weights_own_calibration(tmp_path, caplog):
    path = with_head("rooms_small.safetensors", "dpt", "dpt_uq", tmp_path / "uq.pth")
    given = [*GIVEN, "--weights", str(path), "--calibration", "auto"]
    assert demo.main([*given, "--output_dir", str(tmp_path / "none")]) == 2
    assert "make one with evaluate.py calibrate" in caplog.text

    found = calibration_of(path)
    beside = calibration_file.save(found, calibration_file.path_beside(path, "geom"))
    assert demo.main([*given, "--output_dir", str(tmp_path / "out")]) == 0
    with np.load(next((tmp_path / "out/maps").glob("*.npz"))) as maps:
        expected = found.radius(maps["sigma"], 0.9)
        np.testing.assert_allclose(maps["radius90"], expected, rtol=1e-5)
    assert b"property float radius90" in (tmp_path / "out/points.ply").read_bytes()[:1000]

    calibration_file.save(replace(found, family="feat"), beside)
    assert demo.main([*given, "--output_dir", str(tmp_path / "none")]) == 2
    assert "calibrates the family 'feat', not 'geom'" in caplog.text
    assert not (tmp_path / "none").exists()


def test_a_model_of_points_has_balls(tmp_path, caplog):
    head = "catmlp+dpt+xyz_hetero_dpt"
    path = with_head("rooms_small_mast3r.safetensors", "catmlp+dpt", head, tmp_path / "points.pth")
    given = [*GIVEN, "--weights", str(path), "--output_dir", str(tmp_path / "out")]
    found = calibration_of(path, "hetero")
    calibration_file.save(found, calibration_file.path_beside(path, "hetero"))
    assert demo.main([*given, "--weights_by", "uncertainty", "--calibration", "auto"]) == 0
    with np.load(next((tmp_path / "out/maps").glob("*.npz"))) as maps:
        assert maps["sigma_of"] == "point" and (maps["sigma"] > 0).all()
        expected = found.radius(maps["sigma"], 0.9)
        np.testing.assert_allclose(maps["radius90"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--alignment", "dense"], "--calibration needs a model that states a deviation"),
        (["--alignment", "sparse"], "--calibration does not go with --alignment sparse"),
    ],
)
def test_what_has_no_deviations_to_calibrate(tmp_path, caplog, more, expected):
    given = [part for part in GIVEN if part not in ("--niter", "10")] + more
    small = str(weights.FOLDER / "rooms_small.safetensors")
    given += ["--weights", small, "--calibration", "auto", "--output_dir", str(tmp_path / "out")]
    assert demo.main(given) == 2
    assert expected in caplog.text
