"""Runs that lose processes or nodes: the same samples, the same weights; who shares what."""

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import time

import pytest
import torch
from large_runs import REPOSITORY, arguments, finish, furthest, samples, start, weights
from torch.distributed import TCPStore

from dust3r.datasets.sampler import AspectRatioBatchSampler
from dust3r.training import checkpoint, resume
from dust3r.training.distributed import World
from dust3r.training.engine import Progress
from dust3r.training.share import Share, SharedBatches

# 8 pairs an epoch, on two processes: 4 steps.
PAIRS = 8
EPOCHS = 2
OPTIONS = ("--epochs", str(EPOCHS), "--log_samples", "--resume_every", "2")


def reference(tree, folder):
    return {"arguments": arguments(tree, folder / "whole", *OPTIONS, pairs=PAIRS)}


def assert_every_sample_once(out):
    """Each pair of the data once in each epoch, and all steps there."""
    drawn = samples(out)
    assert list(drawn) == list(range(1, 4 * EPOCHS + 1))
    for epoch in range(EPOCHS):
        pairs = list(itertools.chain(*(drawn[4 * epoch + step] for step in range(1, 5))))
        assert len(set(pairs)) == len(pairs) == PAIRS
    return drawn


def test_killed_workers_restart_and_finish_as_if_nothing_happened(write_tree, tmp_path):
    """One dies inside the first epoch a step after a checkpoint, another one in the second."""
    tree = write_tree(frames={"a": PAIRS + 1})
    run = {"arguments": arguments(tree, tmp_path / "killed", *OPTIONS, pairs=PAIRS)}
    run["faults"] = [
        {"kind": "kill", "rank": 1, "restart": 0, "step": 3},
        {"kind": "kill", "rank": 0, "restart": 1, "step": 6},
    ]
    options = ("--standalone", "--nproc_per_node=2", "--max_restarts=2")
    errors = finish(start(tmp_path, [reference(tree, tmp_path), run], *options))
    assert errors.count("resumed from") == 2
    assert "epoch 0, step 2" in errors and "epoch 1, step 0" in errors
    drawn = assert_every_sample_once(tmp_path / "killed")
    assert drawn == assert_every_sample_once(tmp_path / "whole")
    final = [weights(tmp_path / name / "checkpoint-final.pth") for name in ("whole", "killed")]
    assert furthest(*final) == 0
    logs = [
        [json.loads(line)["train_loss"] for line in (tmp_path / name / "log.txt").open()]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


def test_a_lost_node_leaves_the_run_to_the_others(write_tree, tmp_path):
    """Two torchruns, as on two machines; one dies with its process, the other goes on alone."""
    tree = write_tree(frames={"a": PAIRS + 1})
    run = {"arguments": arguments(tree, tmp_path / "lost", *OPTIONS, pairs=PAIRS)}
    run["faults"] = [{"kind": "lose node", "rank": 1, "restart": 0, "step": 3}]
    runs = [reference(tree, tmp_path), run]
    # The node that is lost is not to be the one that keeps the rendezvous.
    rendezvous = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    options = (
        "--nnodes=1:2",
        "--nproc_per_node=1",
        "--max_restarts=2",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{rendezvous.port}",
        "--rdzv_conf=is_host=false,last_call_timeout=2,keep_alive_interval=1,"
        "keep_alive_max_attempt=2",
    )
    first = start(tmp_path, runs, *options)
    second = start(tmp_path, runs, *options)
    ends = [process.communicate(timeout=280)[1] for process in (first, second)]
    codes = {first.returncode, second.returncode}
    assert codes == {0, -signal.SIGKILL}, "\n".join(end[-4000:] for end in ends)
    drawn = assert_every_sample_once(tmp_path / "lost")
    assert drawn == assert_every_sample_once(tmp_path / "whole")
    state = checkpoint.load_file(tmp_path / "lost/checkpoint-final.pth")
    assert len(state["rng"]) == 1 and state["processes"] == 2
    whole = weights(tmp_path / "whole/checkpoint-final.pth")
    assert furthest(whole, state["model"]) < 1e-4


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def taken(share, rank, start=0, epoch=1):
    """Batches of a process: (pair, aspect) of every draw, 48 pairs in batches of 2."""
    samplers = [
        AspectRatioBatchSampler(48, 3, 2, rank=r, world_size=share.began, seed=5)
        for r in range(share.began)
    ]
    batches = SharedBatches(samplers, share, rank)
    batches.set_epoch(epoch, start)
    drawn = list(batches)
    assert len(drawn) + start == len(batches)
    return drawn


@pytest.mark.parametrize(("began", "size", "accum"), [(4, 2, 1), (4, 1, 3), (2, 4, 2), (4, 6, 3)])
def test_other_processes_share_the_batches_of_every_update(began, size, accum):
    share = Share(began, size, accum)
    before = [taken(Share(began, began, accum), rank) for rank in range(began)]
    now = [taken(share, rank) for rank in range(size)]
    assert len({len(batches) for batches in now}) == 1
    count = share.batches_per_update
    for update in range(len(before[0]) // accum):
        old = [b for rank in before for b in rank[update * accum : (update + 1) * accum]]
        new = [b for rank in now for b in rank[update * count : (update + 1) * count]]
        assert len(new) == len(old) and sorted(new) == sorted(old)
    resumed = [taken(share, rank, start=count) for rank in range(size)]
    assert resumed == [batches[count:] for batches in now]


@pytest.mark.parametrize(("began", "size", "accum"), [(4, 2, 1), (3, 3, 2), (2, 4, 2), (4, 6, 3)])
def test_progress_counts_steps_of_the_beginning(began, size, accum):
    share = Share(began, size, accum)
    progress = Progress()
    ends = []
    for _ in range(2 * share.batches_per_update):
        progress.advance(share)
        if share.ends_step(progress.batch) and progress.epoch_step % accum == 0:
            ends.append((progress.batch, progress.step))
            assert share.batches(progress.epoch_step) == progress.batch
    count = share.batches_per_update
    assert ends == [(count, accum), (2 * count, 2 * accum)]


def test_processes_that_cannot_share_evenly_are_refused():
    with pytest.raises(ValueError, match="1, 2, 4 or 8 processes"):
        Share(began=4, size=3, accum_iter=2)
    samplers = [AspectRatioBatchSampler(10, 1, 2, world_size=1)]
    with pytest.raises(ValueError, match="5 steps of 1 batches"):
        SharedBatches(samplers, Share(1, 2, 2), rank=0)


def saved(path, step, **more):
    names = ("optimizer", "scaler", "rng", "best_so_far", "epoch", "epoch_step")
    state = dict.fromkeys(names, 0) | {"model": {"a": torch.ones(100)}, "step": step} | more
    checkpoint.save(path, state | {"args": more.get("args")})
    return path


def test_the_newest_whole_checkpoint_is_resumed_from(tmp_path):
    last = saved(tmp_path / checkpoint.LAST, 20)
    saved(tmp_path / "checkpoint-step-9.pth", 9)
    saved(tmp_path / "checkpoint-step-20.pth", 20)
    assert resume.find(tmp_path) == last
    newer = saved(tmp_path / "checkpoint-step-100.pth", 100)
    assert resume.find(tmp_path) == newer
    newer.write_bytes(newer.read_bytes()[:-100])
    assert resume.find(tmp_path) == last
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    assert resume.find(tmp_path) == tmp_path / "checkpoint-step-20.pth"


def test_only_damaged_checkpoints_are_an_error_and_no_new_run(tmp_path):
    (tmp_path / checkpoint.LAST).write_bytes(b"PK\x03\x04 and no more")
    assert resume.find(tmp_path) == tmp_path / checkpoint.LAST
    with pytest.raises(checkpoint.CheckpointError):
        resume.read(tmp_path, World(0, 1, torch.device("cpu")))


def test_other_batches_are_refused_with_what_to_do(tmp_path):
    given = {"uq_mode": None, "phase": None, "freeze_geom_for_uq": False, "accum_iter": 2}
    given["train_geom_for_uq"] = False
    args = argparse.Namespace(batch_size=8, **given)
    saved(tmp_path / checkpoint.LAST, 3, args=args)
    resumed = resume.read(tmp_path, World(0, 1, torch.device("cpu")))
    resume.check_same_run(resumed, args)
    with pytest.raises(ValueError, match="--batch_size 8, and this one has --batch_size 4"):
        resume.check_same_run(resumed, argparse.Namespace(batch_size=4, **given))


def test_a_process_whose_fellows_never_come_gives_up(monkeypatch):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (environment | {"MASTER_PORT": str(_free_port())}).items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(torch.distributed.DistError):
        World.join(torch.device("cpu"), hang_seconds=1)
    assert time.monotonic() - began < 60


@pytest.fixture
def slurm(tmp_path):
    """Runs scripts/train_slurm.sh with commands that stand in for Slurm's and for torchrun."""
    commands = {
        "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; '
        f'else echo "$*" >>{tmp_path}/scontrol; fi',
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        # A torchrun that dies of USR1, unless it is kept from it, and a process that does not.
        "torchrun": f'echo "$*" >{tmp_path}/torchrun; python3 {tmp_path}/worker.py & wait $!',
    }
    (tmp_path / "bin").mkdir()
    for name, body in commands.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(0o755)
    (tmp_path / "worker.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def save(*_):\n"
        "    (here / 'saved').touch()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGUSR1, save)\n"
        "(here / 'started').touch()\n"
        "if (here / 'endless').exists():\n"
        "    time.sleep(100)\n"
        "sys.exit(int(os.environ.get('STATUS', '0')))\n"
    )
    variables = {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "ENVIRONMENT": "/dev/null",
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }

    def begin(**more):
        script = REPOSITORY / "scripts/train_slurm.sh"
        command = ["bash", str(script), "--model", "A(b='c d')"]
        return subprocess.Popen(command, env=os.environ | variables | more)

    return begin


def test_slurm_script_starts_torchrun_on_all_nodes(slurm, tmp_path):
    assert slurm(MIN_NODES="1").wait(60) == 0
    given = (tmp_path / "torchrun").read_text()
    assert "--nnodes=1:2 --nproc_per_node=8 --rdzv_backend=c10d" in given
    assert "--rdzv_endpoint=node1:23456 --rdzv_id=123456-0" in given
    assert given.endswith("train.py --model A(b='c d')\n")
    assert not (tmp_path / "scontrol").exists()


def test_slurm_script_fails_where_training_fails(slurm, tmp_path):
    assert slurm(STATUS="7").wait(60) == 7
    assert not (tmp_path / "scontrol").exists()


def test_slurm_script_saves_and_requeues_before_the_time_limit(slurm, tmp_path):
    (tmp_path / "endless").touch()
    process = slurm()
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "scontrol").read_text() == "requeue 123456\n"


def test_slurm_script_outside_of_slurm_says_so():
    environment = {name: value for name, value in os.environ.items() if "SLURM" not in name}
    script = str(REPOSITORY / "scripts/train_slurm.sh")
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "sbatch" in done.stderr
