"""Sharded runs: the losses and weights of DDP, and checkpoints that go both ways."""

import pytest
import torch
from large_runs import LINEAR, arguments, finish, furthest, start, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dust3r.training import checkpoint
from dust3r.training.cli import main

STEPS = 20
HALF = STEPS // 2
# Mixed precision, a frozen encoder, accumulated and clipped gradients, blocks computed again.
MIXED = (
    "--precision", "bf16", "--accum_iter", "2", "--grad_clip", "0.5", "--max_steps", "4",
    "--uq_mode", "geom",
)  # fmt: skip
FROZEN = LINEAR.replace("head_type='linear'", "head_type='dpt_uq', freeze='encoder'")

_MADE = []


@pytest.fixture
def runs(write_tree, tmp_path):
    """The folder of all runs, on two processes, made once; and the data they train on."""
    if not _MADE:
        tree = write_tree(frames={"a": 9})
        make_runs(tmp_path, tree)
        _MADE.append((tmp_path, tree))
    return _MADE[0]


def make_runs(folder, tree):

    def run(name, *extra, model=LINEAR, **more):
        common = ("--print_freq", "1", *extra)
        return {
            "arguments": arguments(tree, folder / name, *common, pairs=2 * STEPS, model=model)
        } | more

    # Read by the next update.
    stopped = {"kind": "stop", "rank": 1, "restart": 0, "step": HALF - 1}
    last = str(folder / "sharded" / checkpoint.LAST)
    sequence = [
        run("copies", "--save_steps", str(HALF)),
        run("sharded", "--fsdp", faults=[stopped]),
        run("joined", copy=[(last, str(folder / "joined" / checkpoint.LAST))]),
    ]
    step = f"checkpoint-step-{HALF}.pth"
    whole = (str(folder / "copies" / step), str(folder / "parted" / step))
    sequence += [
        run("parted", "--fsdp", copy=[whole]),
        run("mixed-copies", *MIXED, model=FROZEN),
        run("mixed-sharded", *MIXED, "--fsdp", "--activation_checkpointing", model=FROZEN),
    ]
    finish(start(folder, sequence, "--standalone", "--nproc_per_node=2"))


def losses(folder, name):
    board = EventAccumulator(str(folder / name / "tensorboard")).Reload()
    return {event.step: event.value for event in board.Scalars("train/loss")}


def test_loss_curve_is_that_of_ddp(runs):
    """20 steps: up to the stop sharded, from there on by copies; and the other way round."""
    folder, _ = runs
    copies = losses(folder, "copies")
    halves = [losses(folder, "sharded"), losses(folder, "joined"), losses(folder, "parted")]
    assert [list(half) for half in halves] == [list(range(1, HALF + 1))] + 2 * [
        list(range(HALF + 1, STEPS + 1))
    ]
    assert len(set(copies.values())) == STEPS
    for half in halves:
        assert all(abs(half[step] - copies[step]) < 1e-4 for step in half)


def test_sigterm_on_one_process_saves_all_shards_as_ddp_does(runs):
    folder, _ = runs
    whole = checkpoint.load_file(folder / "copies" / f"checkpoint-step-{HALF}.pth")
    gathered = checkpoint.load_file(folder / "sharded" / checkpoint.LAST)
    assert gathered["step"] == HALF and gathered.keys() == whole.keys()
    assert furthest(whole["model"], gathered["model"]) < 1e-5
    ours, theirs = gathered["optimizer"], whole["optimizer"]
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, moments in theirs["state"].items():
        assert furthest(moments, ours["state"][number]) < 1e-5


@pytest.mark.parametrize("name", ["joined", "parted"])
def test_checkpoints_resume_with_and_without_shards(runs, name):
    folder, _ = runs
    final = weights(folder / "copies" / "checkpoint-final.pth")
    assert furthest(final, weights(folder / name / "checkpoint-final.pth")) < 1e-4


def test_shards_of_two_resume_on_one_process(runs, tmp_path, monkeypatch):
    folder, tree = runs
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    state = checkpoint.load_file(folder / "sharded" / checkpoint.LAST)
    checkpoint.save(tmp_path / checkpoint.LAST, state)
    # --fsdp where there is nothing to shard over is no error.
    assert main(arguments(tree, tmp_path, "--fsdp", pairs=2 * STEPS)) == 0
    torch.set_flush_denormal(False)
    final = weights(folder / "copies" / "checkpoint-final.pth")
    assert furthest(final, weights(tmp_path / "checkpoint-final.pth")) < 1e-3


def test_mixed_precision_accumulation_clipping_and_frozen_parts(runs):
    folder, _ = runs
    curves = [losses(folder, f"mixed-{kind}") for kind in ("copies", "sharded")]
    assert list(curves[0]) == list(curves[1]) == [2, 4]
    assert all(abs(curves[0][step] - curves[1][step]) < 1e-2 for step in curves[0])
    ends = [
        checkpoint.load_file(folder / f"mixed-{kind}" / "checkpoint-final.pth")
        for kind in ("copies", "sharded")
    ]
    names = ends[0]["model"]
    assert list(names) == list(ends[1]["model"])
    frozen = [name for name in names if name.startswith(("enc_", "patch_embed", "mask_token"))]
    assert len(frozen) > 20
    assert all(torch.equal(ends[0]["model"][n], ends[1]["model"][n]) for n in frozen)
    assert furthest(ends[0]["model"], ends[1]["model"]) < 3e-3


def test_fp16_scaling_is_refused(tmp_path, monkeypatch):
    from dust3r.training.arguments import make_parser
    from dust3r.training.cli import precision

    args = make_parser().parse_args(["--train_dataset", "A()", "--fsdp", "--amp", "1"])
    with pytest.raises(ValueError, match="--precision bf16"):
        precision(args, torch.device("cuda"))
    assert precision(args, torch.device("cpu"))[0] is torch.bfloat16
