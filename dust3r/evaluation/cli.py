"""The command line of ``evaluate.py``: one module for each subcommand."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from dust3r.evaluation import calibrate_cli, depth_cli, pose_cli, uq_cli
from dust3r.training.checkpoint import CheckpointError
from dust3r.training.distributed import World
from dust3r.utils.device import best_device, chosen_device

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError, CheckpointError)
# Each has HELP, add_arguments(parser) and run(args, world, aligners=...) -> what to print.
COMMANDS: dict[str, ModuleType] = {
    "uq": uq_cli,
    "calibrate": calibrate_cli,
    "depth": depth_cli,
    "pose": pose_cli,
}


def main(
    given: Sequence[str] | None = None, aligners: dict[str, Callable[..., Any]] | None = None
) -> int:
    """Run a subcommand; the exit status, 2 for what the user can mend.

    Args:
        given: arguments; those of this process where None.
        aligners: further ways from images to a ``Reconstruction`` for ``pose``, by name, called
            as ``dust3r.pipeline.reconstruct``.
    """
    args = make_parser(aligners or {}).parse_args(given)
    rank = int(os.environ.get("RANK", 0))
    level = logging.WARNING if rank else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    world = None
    try:
        world = World.join(_device(args.device))
        printed = COMMANDS[args.command].run(args, world, aligners=aligners or {})
    except USER_ERRORS as error:
        # What a user wrote is mended by the message, not by the stack.
        log.error("%s", error)
        log.debug("raised here", exc_info=True)
        return 2
    finally:
        if world is not None:
            world.leave()
    if world.is_main:
        sys.stdout.write(printed)
    return 0


def make_parser(aligners: dict[str, Callable[..., Any]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Tables of how good it is.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP), aligners=aligners)
    return parser


def _device(name: str | None) -> torch.device:
    if "LOCAL_RANK" in os.environ and name is None:
        device = best_device(int(os.environ["LOCAL_RANK"]))
        # The metrics count in float64, which MPS does not have.
        return torch.device("cpu") if device.type == "mps" else device
    return chosen_device(name, torch.float64)
