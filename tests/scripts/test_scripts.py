"""The command-line helpers: exports, baselines, launchers."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dust3r.model import AsymmetricCroCo3DStereo, load_model
from dust3r.training import checkpoint
from dust3r.utils.geometry import depthmap_to_pts3d
from dust3r.utils.view import check_view

SCRIPTS = Path(__file__).parents[2] / "scripts"
SPEC = (
    "AsymmetricCroCo3DStereo(head_type='dpt', enc_embed_dim=24, enc_depth=1,\n  enc_num_heads=2, "
    "dec_embed_dim=24, dec_depth=4, dec_num_heads=2, dpt_dim=16)"
)


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_exported_weights_load_by_themselves(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    net = AsymmetricCroCo3DStereo(
        head_type="dpt",
        enc_embed_dim=24,
        enc_depth=1,
        enc_num_heads=2,
        dec_embed_dim=24,
        dec_depth=4,
        dec_num_heads=2,
        dpt_dim=16,
    )
    state = {"model": net.state_dict(), "args": argparse.Namespace(model=SPEC), "epoch": 3}
    checkpoint.save(tmp_path / "run.pth", state)
    target = tmp_path / "small.safetensors"
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "run.pth"), str(target)])
    script("export_weights").main()
    loaded = load_model(target)
    for name, weight in net.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.bfloat16().float())
    assert str(target) in capsys.readouterr().out


def test_plane_baseline_is_exact_on_a_plane_and_only_there():
    evaluation = script("eval_pointmaps")
    v, u = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    plane = 1 / (0.3 + 0.01 * u - 0.02 * v)
    valid = torch.rand(12, 16) > 0.3
    torch.testing.assert_close(evaluation.fitted_plane(plane, valid), plane, atol=1e-4, rtol=1e-4)
    bumpy = plane * (1 + 0.3 * torch.sin(u))
    assert (evaluation.fitted_plane(bumpy, valid) - bumpy).abs().mean() > 0.1


def test_pointmap_errors_do_not_depend_on_the_prediction_s_scale():
    evaluation = script("eval_pointmaps")
    views = script("bench_common").random_views(2, 16, 32)
    for view in views:
        view["camera_intrinsics"] = torch.tensor([[[30.0, 0, 16], [0, 30, 8], [0, 0, 1]]] * 2)
        view["pts3d"] = depthmap_to_pts3d(view["depthmap"], view["camera_intrinsics"])
        check_view(view)
    perfect = [3 * view["pts3d"] for view in views]
    predictions = {"pts3d": perfect[0]}, {"pts3d_in_other_view": perfect[1]}
    errors = evaluation.pair_errors(views, predictions)
    assert max(errors["model, view 1"] + errors["model, view 2"]) < 1e-5
    baselines = [errors[name] for name in evaluation.NAMES if not name.startswith("model")]
    assert len(baselines) == 4 and min(sum(baselines, [])) > 0.05


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda p: p.name)
def test_shell_scripts_parse(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_stage_launcher_hands_on_what_the_stage_needs(tmp_path):
    """With a ``torchrun`` that prints its arguments."""
    (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    command = (
        f"PATH={tmp_path}:$PATH; cd {SCRIPTS.parent}; source scripts/stages.sh; "
        "PROCESSES=3 train_stage_full_size variance /data before.pth /out --seed 5"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    given = done.stdout.splitlines()
    assert "--nproc_per_node=3" in given and "head_type='dpt_uq_feat')" in done.stdout
    pairs = dict(zip(given, given[1:], strict=False))
    assert pairs["--phase"] == "2" and pairs["--lambda_var_distill"] == "0.1"
    assert pairs["--pretrained"] == "before.pth" and pairs["--seed"] == "5"
    assert "ROOT='/data', resolution=224" in pairs["--train_dataset"]
