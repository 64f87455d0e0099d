"""Runs of ``train.py`` one after another in processes of torchrun, so that these start once.

``torchrun ... tests/shared/train_sequence.py RUNS.json``: a list of objects with ``arguments``, and
optionally ``copy`` ([from, to] files, before the run) and ``faults``: what one process does to
itself after an update, ``{"kind": "stop" | "kill" | "lose node", "rank", "step", "restart"}``.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import torch

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.training import cli, engine
from dust3r.training.distributed import World

RESTART = int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def main() -> int:
    # Processes meet once: where they met they would find what the run before left.
    world = World.join(torch.device("cpu"))
    cli.World = Mock(join=lambda *_: world, side_effect=World)
    world.leave = world.barrier
    for run in json.loads(Path(sys.argv[1]).read_text()):
        output_dir = Path(run["arguments"][run["arguments"].index("--output_dir") + 1])
        if (output_dir / "checkpoint-final.pth").is_file():
            continue
        if world.is_main:
            for source, target in run.get("copy", ()):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        world.barrier()
        engine.update = with_faults(run.get("faults", ()))
        status = cli.main(run["arguments"])
        if status:
            return status
    return 0


def with_faults(faults, update=engine.update):
    """The engine's ``update``, after which this process stops, dies, or dies with its torchrun."""
    here = {
        "rank": int(os.environ["RANK"]),
        "restart": int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
    }

    def faulty(run, losses, rate):
        result = update(run, losses, rate)
        for fault in faults:
            if fault.items() >= here.items() and fault["step"] == run.progress.step:
                if fault["kind"] == "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
                    continue
                if fault["kind"] == "lose node":
                    os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    return faulty


if __name__ == "__main__":
    sys.exit(main())
