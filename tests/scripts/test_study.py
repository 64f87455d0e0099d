"""What the study ends with: prices of families, and tables and pictures over seeds."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dust3r.evaluation.sketch import COVERAGES
from mast3r.model import AsymmetricMASt3R

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = {"enc_embed_dim": 24, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 24,
        "dec_depth": 4, "dec_num_heads": 2, "dpt_dim": 16}  # fmt: skip


@pytest.fixture
def study():
    spec = importlib.util.spec_from_file_location("study", SCRIPTS / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(method: str, benchmark: str, ause: float) -> dict:
    curve = np.linspace(0.1, 0.3, len(COVERAGES)).tolist()
    own = {"aurc": 0.1 + ause, "ause": ause, "rho": 0.4}
    own |= {f"{name}_image": value for name, value in own.items()}
    own |= {"risk": curve, "oracle_risk": curve}
    return {
        "benchmark": benchmark,
        "method": method,
        "family": method,
        "targets": {"point": {"mae": 0.3, "rmse": 0.4, "own": own}},
    }


def test_descriptors_are_not_counted_as_the_price_of_uncertainty(study):
    plain = AsymmetricMASt3R(head_type="dpt", **TINY)
    described = AsymmetricMASt3R(head_type="catmlp+dpt", output_mode="pts3d+desc8", **TINY)
    assert study.counted(plain) == study.counted(described)
    stating = AsymmetricMASt3R(
        head_type="catmlp+dpt+xyz_hetero_dpt", output_mode="pts3d+desc8", **TINY
    )
    added = sum(p.numel() for n, p in stating.named_parameters() if "dpt_xyz_logvar" in n)
    assert study.counted(stating) == study.counted(plain) + added


def test_prices_stand_beside_the_reference_s(study):
    one = {"parameters": 2e6, "milliseconds": 30.0, "processor_milliseconds": 50.0}
    price = {
        "device": "cpu",
        "threads": 2,
        "conf": one,
        "niw": {**one, "processor_milliseconds": 75.0},
    }
    lines = study.cost_table(price).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["niw", "2", "30", "75", "1.5"]
    assert lines[-1] == "On cpu, 2 thread(s)."


def test_seeds_become_one_document_with_its_pictures(study, tmp_path, monkeypatch, capsys):
    for seed, ause in enumerate((0.06, 0.08)):
        folder = tmp_path / f"seed_{seed}"
        folder.mkdir()
        results = [found("niw", name, ause) for name in ("rooms", "blur")]
        if seed == 0:
            results += [found("conf", name, 0.1) for name in ("rooms", "blur")]
        (folder / "results.json").write_text(json.dumps({"results": results}))
    folders = [str(tmp_path / f"seed_{seed}") for seed in (0, 1)]
    command = ["study.py", "tables", "--output_dir", str(tmp_path / "all"), *folders]
    monkeypatch.setattr(sys, "argv", command)
    study.main()
    text = (tmp_path / "all" / "study.md").read_text()
    assert "0.7 ± 0.14" in text and "## blur" in text and "over 2 seed(s)" in text
    assert "0.7 ± 0.14" in capsys.readouterr().out
    rows = json.loads((tmp_path / "all" / "study.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"conf", "niw"}
    pictures = {path.name for path in (tmp_path / "all").glob("*.png")}
    bars = {f"{name}.png" for name in study.DRAWN}
    assert pictures == {*bars, "rooms_curves.png", "blur_curves.png"}


def test_an_unknown_family_is_refused_with_those_there_are():
    script = "NORM=avg_dis RUNS=runs BASE=base; source scripts/study_families.sh; study_train fog 0"
    ran = subprocess.run(
        ["bash", "-euc", script], cwd=SCRIPTS.parent, capture_output=True, text=True
    )
    assert ran.returncode == 2 and "conf, geom, feat, xyz, niw, niw_gated, hetero" in ran.stderr
