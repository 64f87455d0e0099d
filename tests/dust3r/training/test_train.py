"""``train.py`` end to end: stages that follow each other, resuming, faults."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.training import checkpoint
from dust3r.training.cli import main

REPOSITORY = Path(__file__).parents[3]
WIDTHS = (
    "enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=4, "
    "dec_num_heads=2, dpt_dim=16"
)


def spec(head_type="dpt_uq", widths=WIDTHS):
    return (
        "AsymmetricMASt3R(patch_embed_cls='ManyAR_PatchEmbed', img_size=(224, 224), "
        f"head_type={head_type!r}, {widths})"
    )


pytestmark = pytest.mark.usefixtures("offline", "one_thread")


@pytest.fixture
def tree(write_tree):
    return write_tree(frames={"a": 7, "b": 5})


def arguments(tree, out, *extra, head_type="dpt_uq", dataset=None):
    dataset = dataset or f"ScanNetpp(split='train', ROOT='{tree}', resolution=32, aug_crop=4)"
    return [
        "--train_dataset", dataset,
        "--model", spec(head_type),
        "--batch_size", "2",
        "--epochs", "2",
        "--warmup_epochs", "1",
        "--blr", "1e-2",
        "--num_workers", "0",
        "--output_dir", str(out),
        *extra,
    ]  # fmt: skip


GEOM = ("--uq_mode", "geom")


def weights(path):
    return checkpoint.load_file(path)["model"]


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def run_process(args, **kwargs):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "train.py", *args],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_three_stages_follow_each_other(tree, tmp_path):
    one, two, three = (tmp_path / n for n in ("geom", "mean", "variance"))
    test_set = f"ScanNetpp(split='val', ROOT='{tree}', resolution=32, seed=7)"
    assert main(arguments(tree, one, *GEOM, "--test_dataset", test_set)) == 0
    feat = ("--uq_mode", "feat", "--phase")
    start = ("--pretrained", str(one / "checkpoint-best.pth"))
    assert main(arguments(tree, two, *feat, "1", *start, head_type="dpt_uq_feat")) == 0
    start = ("--pretrained", str(two / "checkpoint-last.pth"))
    assert main(arguments(tree, three, *feat, "2", *start, head_type="dpt_uq_feat")) == 0

    geometry, mean, variance = (
        weights(one / "checkpoint-best.pth"),
        weights(two / "checkpoint-last.pth"),
        weights(three / "checkpoint-final.pth"),
    )
    for name in variance:
        in_mean, in_variance = "depth_mean_head" in name, "depth_evi_head_feat" in name
        if name in geometry:
            assert torch.equal(mean[name], geometry[name]), name
        assert torch.equal(variance[name], mean[name]) == (not in_mean and not in_variance), name

    entries = [json.loads(line) for line in (one / "log.txt").read_text().splitlines()]
    assert [e["epoch"] for e in entries] == [0, 1]
    assert {"train_loss", "train_loss_uq_geom", "test_loss", "lr", "memory_mb"} <= entries[0].keys()
    assert list((one / "tensorboard").glob("events*"))
    assert not list(one.glob(".*tmp*"))


def test_plain_training_lowers_the_loss(tree, tmp_path):
    args = arguments(tree, tmp_path / "o", "--epochs", "8", head_type="dpt")
    assert main([*args, "--lr", "3e-3"]) == 0
    entries = [json.loads(line) for line in (tmp_path / "o/log.txt").read_text().splitlines()]
    assert entries[-1]["train_loss"] < entries[0]["train_loss"] - 0.1


def test_stopped_and_resumed_equals_uninterrupted(tree, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(arguments(tree, whole, *GEOM)) == 0
    args = arguments(tree, parts, *GEOM, "--save_steps", "1", "--num_workers", "1")
    process = run_process(args, start_new_session=True)
    while not (parts / "checkpoint-step-2.pth").is_file():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    # As Slurm does: to every process of the job, loader workers among them.
    os.killpg(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert main(arguments(tree, parts, *GEOM)) == 0
    assert_same(weights(whole / "checkpoint-final.pth"), weights(parts / "checkpoint-final.pth"))
    logs = [
        [{k: v for k, v in json.loads(line).items() if k.startswith("train_")} for line in lines]
        for lines in ((d / "log.txt").read_text().splitlines() for d in (whole, parts))
    ]
    assert logs[0] == logs[1]


def test_killed_at_random_moments_always_resumes(tree, tmp_path):
    chance = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(arguments(tree, whole, *GEOM)) == 0
    last = killed / "checkpoint-last.pth"
    patience = 1.5
    for _ in range(10):
        process = run_process(arguments(tree, killed, *GEOM, "--save_steps", "1"))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            # Start-up takes seconds and writes nothing: kill once files are being written.
            if (killed / "tensorboard").is_dir():
                time.sleep(chance.uniform(0, patience))
                break
            time.sleep(0.05)
        process.kill()
        process.communicate()
        # On a machine that is busy with other things a step may take that long.
        patience = patience if last.is_file() else 2 * patience
    assert checkpoint.load_file(last)["step"] > 0
    process = run_process(arguments(tree, killed, *GEOM))
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert_same(weights(whole / "checkpoint-final.pth"), weights(killed / "checkpoint-final.pth"))


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU has no such mode")
def test_denormal_gradients_do_not_slow_a_run(tree, tmp_path):
    """Seven times, in a step of the third stage."""
    torch.set_flush_denormal(False)
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    assert tiny / 4 > 0
    assert main(arguments(tree, tmp_path / "o", *GEOM, "--max_steps", "1")) == 0
    assert tiny / 4 == 0


def test_finished_run_is_left_alone(tree, tmp_path):
    assert main(arguments(tree, tmp_path / "o", *GEOM)) == 0
    before = weights(tmp_path / "o/checkpoint-last.pth")
    assert main(arguments(tree, tmp_path / "o", *GEOM)) == 0
    assert_same(before, weights(tmp_path / "o/checkpoint-last.pth"))
    assert len((tmp_path / "o/log.txt").read_text().splitlines()) == 2


def test_accumulation_equals_a_larger_batch(tree, tmp_path):
    # Two batches of one pair, or one of two: mean losses agree when every pixel is valid, and
    # AdamW's first update has the sign of the gradient, so weights agree up to rounding.
    common = (*GEOM, "--epochs", "1", "--max_steps")
    dataset = f"ScanNetpp(split='train', ROOT='{tree}', resolution=32, seed=1)"
    small = arguments(tree, tmp_path / "a", *common, "2", "--accum_iter", "2", dataset=dataset)
    small[small.index("--batch_size") + 1] = "1"
    large = arguments(tree, tmp_path / "b", *common, "1", dataset=dataset)
    for args in (small, large):
        rates = ("--lr", "1e-3", "--min_lr", "1e-3", "--warmup_epochs", "0")
        assert main([*args, *rates]) == 0
    a, b = (weights(tmp_path / d / "checkpoint-final.pth") for d in "ab")
    for name in a:
        agree = (a[name] - b[name]).abs() < 2e-4
        assert agree.float().mean() > 0.95, name


def test_loss_that_is_not_finite_stops_with_the_files_named(tree, tmp_path, caplog):
    args = arguments(tree, tmp_path / "o", *GEOM, "--stop_after_nan", "2", "--lr", "1e30")
    assert main([*args, "--warmup_epochs", "0", "--epochs", "50"]) == 1
    assert "2 updates in a row" in caplog.text and "--stop_after_nan" in caplog.text
    assert str(tree) in caplog.text and ".jpg" in caplog.text


def test_unreadable_image_stops_or_is_skipped(tree, tmp_path, caplog):
    broken = sorted((tree / "a/images").glob("*.jpg"))[2]
    broken.write_bytes(broken.read_bytes()[:200])
    dataset = f"ScanNetpp(split='all', ROOT='{tree}', resolution=32)"
    args = arguments(tree, tmp_path / "stop", *GEOM, dataset=dataset)
    assert main(args) == 1
    assert broken.name in caplog.text and "sample" in caplog.text
    args = arguments(tree, tmp_path / "skip", *GEOM, "--skip_bad_samples", dataset=dataset)
    assert main(args) == 0
    entry = json.loads((tmp_path / "skip/log.txt").read_text().splitlines()[0])
    assert entry["bad_samples"] > 0


def zero_depth(tree):
    for path in tree.glob("*/depth/*.png"):
        cv2.imwrite(str(path), np.zeros((72, 96), np.uint16))


def test_depth_that_is_all_zero_says_so(tree, tmp_path, caplog):
    zero_depth(tree)
    assert main(arguments(tree, tmp_path / "o", *GEOM)) == 1
    assert "no pixel has a valid depth" in caplog.text


def test_nan_poses_say_which_image(tree, tmp_path, caplog):
    data = dict(np.load(tree / "all_metadata.npz"))
    data["trajectories"][:] = np.nan
    np.savez(tree / "all_metadata.npz", **data)
    assert main(arguments(tree, tmp_path / "o", *GEOM)) == 1
    assert "pose" in caplog.text and ".jpg" in caplog.text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--model", "AsymmetricMASt3R(head_typ='dpt')"), "head_type"),
        (("--model", "__import__('os').system('true')"), r"\^"),
        (("--train_dataset", "ScanNetpp(split='train', ROOT='/nowhere', resolution=32)"), "ROOT"),
        (("--uq_mode", "feat", "--phase", "3"), "--phase 2"),
        (("--uq_mode", "feat", "--phase", "1"), "dpt_uq_feat"),
        (("--batch_size", "64"), "nproc_per_node"),
        (("--pretrained", "nowhere/nothing.pth"), "no file here"),
        (("--train_criterion", "L21"), "criterion"),
        (("--test_criterion", "Regr3D(L12)"), "L21"),
    ],
)
def test_mistakes_end_with_a_message_before_anything_is_written(
    tree, tmp_path, caplog, extra, message
):
    args = arguments(tree, tmp_path / "o", *GEOM, *extra)
    assert main(args) == 2
    assert any(message.replace("\\", "") in r.getMessage() for r in caplog.records)
    assert not (tmp_path / "o").exists()


def test_bad_resolution_and_missing_metadata(tree, tmp_path, caplog):
    dataset = f"ScanNetpp(split='train', ROOT='{tree}', resolution=100)"
    assert main(arguments(tree, tmp_path / "o", *GEOM, dataset=dataset)) == 2
    assert "16" in caplog.text
    (tree / "all_metadata.npz").unlink()
    assert main(arguments(tree, tmp_path / "o", *GEOM)) == 2
    assert "all_metadata.npz" in caplog.text


def test_checkpoint_of_another_width_lists_shapes(tree, tmp_path, caplog):
    assert main(arguments(tree, tmp_path / "o", *GEOM, "--max_steps", "1")) == 0
    wider = spec(widths=WIDTHS.replace("dec_embed_dim=24", "dec_embed_dim=32"))
    extra = ("--pretrained", str(tmp_path / "o/checkpoint-last.pth"), "--model", wider)
    assert main(arguments(tree, tmp_path / "p", *GEOM, *extra)) == 2
    assert "decoder_embed" in caplog.text


def test_another_stage_in_the_same_folder_is_refused(tree, tmp_path, caplog):
    assert main(arguments(tree, tmp_path / "o", *GEOM, head_type="dpt_uq_feat")) == 0
    again = arguments(
        tree, tmp_path / "o", "--uq_mode", "feat", "--phase", "1", head_type="dpt_uq_feat"
    )
    assert main(again) == 2
    assert "--output_dir" in caplog.text


def test_two_processes_train_one_model(tree, tmp_path):
    """Under torchrun with gloo, from a data set both can draw from."""
    dataset = f"8 @ ScanNetpp(split='train', ROOT='{tree}', resolution=32)"
    args = arguments(tree, tmp_path / "o", *GEOM, "--epochs", "1", dataset=dataset)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--nproc_per_node=2", "train.py", *args],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    state = checkpoint.load_file(tmp_path / "o/checkpoint-last.pth")
    assert state["step"] == 2 and len(state["rng"]) == 2
