"""The published recipe at small widths: CroCo, 224 linear, 512 linear, 512 DPT, reconstruction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from raw import co3d

import demo
from croco import pretrain
from datasets_preprocess.preprocess_co3d import main as preprocess_co3d
from dust3r.training import checkpoint
from dust3r.training.cli import main as train

ROOM = sorted((Path(__file__).parent.parent / "docs/images/example_room").glob("*.jpg"))
WIDTHS = (
    "enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=4, dec_num_heads=2"
)
SIZES = "[(64, 48), (64, 32)]"
REPORTED = {
    "linear from CroCo": ("downstream_head1: 2 tensors missing", "prediction_head: 2 tensors unex"),
    "DPT from linear": (
        "downstream_head1: 68 tensors missing",
        "downstream_head1.proj: 2 tensors u",
    ),
}


pytestmark = pytest.mark.usefixtures("offline", "one_thread")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # Most of a short run's time goes into its pictures, which other tests look at.
    monkeypatch.setattr("dust3r.training.logging.Recorder.panels", lambda *_: None)


def pairs(root, resolution, split="train", extra=""):
    return f"4 @ Co3d(split={split!r}, ROOT='{root}', resolution={resolution}{extra})"


def stage(root, resolution, start, out, head="linear", model=""):
    """The stage as people type it, short; its weights after it."""
    augmented = ", aug_crop=16, mask_bg='rand', transform=ColorJitter"
    status = train(
        [
            "--train_dataset", pairs(root, resolution, extra=augmented),
            "--test_dataset", pairs(root, resolution, "test", ", seed=777"),
            "--model",
            f"AsymmetricCroCo3DStereo(pos_embed='RoPE100', {model}, head_type='{head}', "
            "output_mode='pts3d', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
            f"{WIDTHS}{', dpt_dim=8' if head == 'dpt' else ''})",
            "--train_criterion", "ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2)",
            "--test_criterion", "Regr3D_ScaleShiftInv(L21, gt_scale=True)",
            "--pretrained", str(start),
            "--lr", "0.0001", "--min_lr", "1e-06", "--warmup_epochs", "0", "--epochs", "1",
            "--batch_size", "2", "--accum_iter", "1", "--save_freq", "1", "--keep_freq", "5",
            "--eval_freq", "1", "--num_workers", "0", "--output_dir", str(out),
        ]
    )  # fmt: skip
    assert status == 0
    last = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()][-1]
    assert np.isfinite([last["train_loss"], last["test_loss"]]).all()
    return checkpoint.load_file(out / "checkpoint-best.pth")["model"]


def test_from_croco_to_a_reconstruction(tmp_path, caplog):
    caplog.set_level("INFO")
    sequences = {"100_1_1": co3d.WIDE, "101_1_1": co3d.TALL, "102_1_1": co3d.WIDE}
    raw = co3d.write_co3d(tmp_path / "raw", sequences)
    root = tmp_path / "co3d"
    given = ["--co3d_dir", str(raw), "--output_dir", str(root), "--single_sequence_subset"]
    assert preprocess_co3d(given) == 0
    assert pretrain.main(
        [
            "--dataset", pairs(root, 64),
            "--model", f"CroCoNet(img_size=64, pos_embed='RoPE100', {WIDTHS})",
            "--epochs", "1", "--batch_size", "2", "--num_workers", "0",
            "--output_dir", str(tmp_path / "croco"),
        ]
    ) == 0  # fmt: skip
    croco_file = tmp_path / "croco/checkpoint-final.pth"

    trained = stage(root, 48, croco_file, tmp_path / "1", model="img_size=(16, 16)")
    assert all(line in caplog.text for line in REPORTED["linear from CroCo"])
    # Two updates at a rate of 1e-4 move no weight far from where it was loaded.
    croco = checkpoint.load_file(croco_file)["model"]
    for name in croco.keys() & trained.keys():
        assert torch.allclose(croco[name], trained[name], atol=1e-3), name
        if name.startswith("dec_blocks."):
            second = trained[name.replace("dec_blocks", "dec_blocks2")]
            assert torch.allclose(croco[name], second, atol=1e-3), name

    mixed = "patch_embed_cls='ManyAR_PatchEmbed', img_size=(64, 64)"
    first = tmp_path / "1/checkpoint-best.pth"
    stage(root, SIZES, first, tmp_path / "2", model=mixed)
    caplog.clear()
    second = tmp_path / "2/checkpoint-best.pth"
    stage(root, SIZES, second, tmp_path / "3", model=mixed, head="dpt")
    assert all(line in caplog.text for line in REPORTED["DPT from linear"])

    for weights in (first, tmp_path / "3/checkpoint-best.pth"):
        out = tmp_path / f"scene of {weights.parent.name}"
        given = ["--weights", weights, "--images", *ROOM[:2], "--niter", 5, "--device", "cpu"]
        given += ["--silent", "--output_dir", out]
        assert demo.main([str(part) for part in given]) == 0
        maps = [np.load(path) for path in sorted((out / "maps").glob("*.npz"))]
        assert len(maps) == 2 and all(np.isfinite(m["depth"]).all() for m in maps)


def test_a_head_that_does_not_fit_is_no_reason_to_stop_but_another_width_is(
    write_tree, tmp_path, caplog
):
    root = write_tree()
    data = f"2 @ ScanNetpp(split='train', ROOT='{root}', resolution={{}})"
    croco = "CroCoNet(img_size=64, pos_embed='RoPE100', enc_embed_dim=48, enc_depth=1, "
    croco += "enc_num_heads=2, dec_embed_dim=24, dec_depth=4, dec_num_heads=2)"
    settings = ["--epochs", "1", "--batch_size", "2", "--num_workers", "0"]
    out = ["--output_dir", str(tmp_path / "croco")]
    assert pretrain.main(["--dataset", data.format(64), "--model", croco, *settings, *out]) == 0
    status = train(
        [
            "--train_dataset", data.format(48), *settings,
            "--model", f"AsymmetricCroCo3DStereo(img_size=(16, 16), {WIDTHS})",
            "--pretrained", str(tmp_path / "croco/checkpoint-last.pth"),
            "--output_dir", str(tmp_path / "out"),
        ]
    )  # fmt: skip
    assert status == 2
    assert "given (48, 3, 16, 16), expected (24, 3, 16, 16)" in caplog.text
