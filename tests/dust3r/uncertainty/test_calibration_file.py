"""Calibrations on disk: what comes back, and what is refused."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dust3r.uncertainty import calibration_file
from dust3r.uncertainty.calibration import LEVELS, Calibration
from dust3r.uncertainty.calibration_fit import fit
from dust3r.uncertainty.calibration_samples import ErrorSamples


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    sigmas = rng.lognormal(size=(25, 100))
    samples = ErrorSamples.from_arrays(sigmas * rng.standard_normal(sigmas.shape), sigmas)
    told = {"family": "geom", "region": "interval", "dataset": "Rooms(split='test')"}
    return fit(samples, **told, checkpoint="model.pth", bins=3, binned_by="sigma")


@pytest.fixture
def stored(calibration: Calibration, tmp_path: Path) -> Path:
    return calibration_file.save(calibration, tmp_path / "model.pth.geom.calibration.json")


def test_round_trip(calibration, stored) -> None:
    back = calibration_file.load(stored)
    for one in fields(Calibration):
        wrote, read = getattr(calibration, one.name), getattr(back, one.name)
        if one.name == "coverage":
            assert list(read) == list(wrote)
            np.testing.assert_array_equal([*read.values()], [*wrote.values()])
        else:
            np.testing.assert_array_equal(wrote, read, strict=isinstance(wrote, np.ndarray))
            assert type(wrote) is type(read)
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]


def test_what_json_cannot_hold_costs_no_file(calibration, stored) -> None:
    before = stored.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        calibration_file.save(replace(calibration, scale=float("nan")), stored)
    assert stored.read_bytes() == before


def test_other_family_or_checkpoint(calibration, stored, tmp_path) -> None:
    assert calibration_file.load(stored, family="geom").family == "geom"
    with pytest.raises(ValueError, match="calibrates the family 'geom', not 'niw'"):
        calibration_file.load(stored, family="niw")
    weights, other = tmp_path / "model.pth", tmp_path / "other.pth"
    weights.write_bytes(b"weights")
    other.write_bytes(b"weights")
    assert calibration_file.load_for("auto", weights, ["geom"]).images == 25
    with pytest.raises(ValueError, match=r"other weights \(model.pth\) than those of .*other.pth"):
        calibration_file.load_for(stored, other, ["geom"])

    hashed = replace(calibration, checkpoint_sha256=calibration_file.sha256_of(weights))
    calibration_file.save(hashed, stored)
    assert calibration_file.load_for(stored, other, ["geom"]).images == 25
    weights.write_bytes(b"trained further")
    with pytest.raises(ValueError, match="other weights"):
        calibration_file.load_for("auto", weights, ["geom"])


def test_families_of_one_checkpoint_are_told_apart(calibration, tmp_path) -> None:
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"weights")
    for family in ("geom", "feat"):
        path = calibration_file.path_beside(weights, family)
        calibration_file.save(replace(calibration, family=family), path)
    for name in ("auto", tmp_path):
        for first, second in (("geom", "feat"), ("feat", "geom")):
            found = calibration_file.load_for(name, weights, [first, second])
            assert found.family == first
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / path.name)
    assert calibration_file.load_for("auto", weights, ["feat", "geom"]).family == "geom"
    assert calibration_file.load_for(moved.parent, weights, ["feat"]).family == "feat"
    with pytest.raises(FileNotFoundError, match=r"there is model.pth.geom.*--methods feat"):
        calibration_file.load_for("auto", weights, ["feat"])
    with pytest.raises(ValueError, match="calibrates the family 'feat', not 'geom' or 'niw'"):
        calibration_file.load_for(moved, weights, ["geom", "niw"])
    assert calibration_file.path_beside(weights, "niw", "ball").name == (
        "model.pth.niw.calibration.json"
    )
    assert calibration_file.path_beside(weights, "niw", "ellipsoid").name == (
        "model.pth.niw-ellipsoid.calibration.json"
    )


def test_the_first_schema_knew_no_alignment(calibration, stored) -> None:
    aligned = replace(calibration, alignment="umeyama")
    assert calibration_file.load(calibration_file.save(aligned, stored)).alignment == "umeyama"
    content = json.loads(stored.read_text())
    stored.write_text(json.dumps(content | {"alignment": "by eye"}))
    with pytest.raises(ValueError, match="alignment is 'by eye', none of none, umeyama"):
        calibration_file.load(stored)
    old = {k: v for k, v in content.items() if k != "alignment"} | {"schema": 1}
    stored.write_text(json.dumps(old))
    assert calibration_file.load(stored).alignment == "none"
    stored.write_text(json.dumps(old | {"schema": 2}))
    with pytest.raises(ValueError, match="keys are missing or unknown: alignment"):
        calibration_file.load(stored)


def test_files_that_are_not_there(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="make one with evaluate.py calibrate"):
        calibration_file.load_for("auto", tmp_path / "model.pth", ["geom"])
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        calibration_file.sha256_of(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "holds a list"),
        (b'{"schema": 1}', "keys are missing"),
        (b'{"schema": 2}', "keys are missing"),
        (b'{"schema": 3}', "its schema is 3, this reads up to 2"),
        (b'{"schema": true}', "its schema is True"),
        (b'{"schema": NaN}', "NaN is no number"),
        (b" " * 1_000_001, "larger than"),
        (b"9" * 10_000, "no JSON"),
    ],
)
def test_files_that_are_no_calibration(stored, content, expected) -> None:
    stored.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as raised:
        calibration_file.load(stored)
    assert "Make it anew with evaluate.py calibrate" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scale": 0}, "scale is not above 0"),
        ({"scale": True}, "in place of a number"),
        ({"scale": "2"}, "in place of a number"),
        ({"scale": 10**400}, "not finite or too large"),
        ({"family": "__class__"}, "family is '__class__', none of"),
        ({"region": None}, "region is None"),
        ({"binned_by": None}, "edges and binned_by do not agree"),
        ({"pixels": -1}, "pixels is -1, not a count"),
        ({"images": 1.5}, "images is 1.5, not a count"),
        ({"dataset": "x" * 20_000}, "dataset is no text"),
        ({"checkpoint_sha256": "../../etc"}, "no SHA-256"),
        ({"dataset": "Rooms()\u001b[2J"}, "letters that cannot be printed"),
        ({"knots": [[0, 1]]}, "not two rows"),
        ({"knots": [[0, 0.5, 1], [0, 1]]}, "differ in length"),
        ({"knots": [[0, 0.5, 0.5, 1], [0, 0.5, 0.6, 1]]}, "stated knots do not increase"),
        ({"knots": [[0, 0.5, 1], [0, 1.5, 1]]}, "observed knots do not increase"),
        ({"knots": [[0, 1], [0.1, 1]]}, "do not go from 0 to 1"),
        ({"knots": [[0] * 5000] * 2}, "no list of at most"),
        ({"levels": []}, "levels are not between"),
        ({"edges": [1.0]}, "radii are"),
        ({"radii": [[]]}, "empty, or differ"),
        ({"radii": 3}, "no list of rows"),
        ({"coverage": {"stated": [0.5]}}, "not of 4 levels"),
        ({"coverage": {"stated": [0.5, 0.8, 0.9, 7]}}, "not between 0 and 1"),
        ({"coverage": {"other": []}}, "coverage has other keys"),
        ({"levels_of_coverage": [0.5]}, "levels_of_coverage"),
        ({"more": 1}, "keys are missing or unknown: more"),
    ],
)
def test_numbers_that_are_refused(stored, change, expected) -> None:
    stored.write_text(json.dumps(json.loads(stored.read_text()) | change))
    with pytest.raises(ValueError, match=expected):
        calibration_file.load(stored)


def test_radii_that_sink_or_overflow_are_refused(stored) -> None:
    content = json.loads(stored.read_text())
    content["radii"][1][3] = content["radii"][1][5] + 1
    stored.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="sink where the level rises"):
        calibration_file.load(stored)
    stored.write_text(json.dumps(content).replace('"scale": ', '"scale": 1e400, "was": ', 1))
    with pytest.raises(ValueError, match="unknown: was"):
        calibration_file.load(stored)


@pytest.mark.parametrize(
    ("name", "family", "alignment"),
    [
        ("rooms_small_uq", "geom", "none"),
        ("rooms_small_uq", "feat", "none"),
        ("rooms_small_uq", "conf", "none"),
        ("rooms_small_points", "hetero", "umeyama"),
        ("rooms_small_points", "conf", "umeyama"),
    ],
)
def test_the_shipped_calibrations_are_of_the_shipped_weights(name, family, alignment) -> None:
    weights = Path(__file__).parents[3] / "checkpoints" / f"{name}.safetensors"
    found = calibration_file.load_for("auto", weights, [family])
    assert found.family == family and found.alignment == alignment
    assert found.coverage["conformal"][LEVELS.index(0.9)] == pytest.approx(0.9, abs=0.02)
