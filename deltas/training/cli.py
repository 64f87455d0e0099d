"""The command line of training DELTAS: sequences of posed frames in the loop that trains the rest.

Everything but the data, the model, the loss and the pictures is that of ``train.py``: schedule,
accumulation, precision, processes, checkpoints, resuming, logs.
"""

import argparse
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from deltas.data.sequences import Sequences
from deltas.model import Deltas, DeltasPrediction
from deltas.training.losses import DeltasLoss
from deltas.training.panels import batch_figures
from dust3r.datasets.loader import StereoLoader
from dust3r.training import cli
from dust3r.training.arguments import OF_LOSSES, make_sibling_parser
from dust3r.training.batches import Inputs
from dust3r.training.distributed import World, unwrap
from dust3r.training.engine import Run
from dust3r.utils.arguments import count
from dust3r.utils.spec_arguments import arguments_of

log = logging.getLogger(__name__)

_EVALUATION_SEED = 0
# Arguments that are the model's, whose specification they complete.
_OF_MODEL = ("num_kps", "detection_threshold", "frac_superpoint", "mindepth", "maxdepth")
_WEIGHTS = {
    "w_ip": "cross entropy of the detector with a teacher's points",
    "w_2d": "distance of matches from the truth",
    "w_3d": "distance of triangulated points from the truth",
    "w_sm": "slope of the depth where the image has none",
    "w_d": "error of the depth at four scales",
    "w_evi": "likelihood of the depth, of a model with evidential=True",
}
# What speeds up or splits transformers, of which there are none here.
_OF_TRANSFORMERS = ("compile", "fsdp", "activation_checkpointing")
_KEYS = {"img": 5, "depthmap": 4, "valid_mask": 4, "camera_pose": 4, "camera_intrinsics": 4}


def main(arguments: list[str] | None = None) -> int:
    """Train as the arguments say; the exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    complete(parser, args)

    def prepare(world: World) -> tuple[Run, Callable[[], None]]:
        args.model = model_spec(args)
        run, tests = set_up(args, world)
        return run, partial(cli.train, run, tests, run.stage.criterion, args)

    return cli.execute(prepare, args.hang_timeout)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of ``train.py`` for optimisation and running, and those of DELTAS."""
    refused = {name: "" for name in (*OF_LOSSES, *_OF_TRANSFORMERS)}
    parser = make_sibling_parser(
        refused,
        prog="train_deltas.py",
        description="Train DELTAS: depth of posed frames by learned triangulation.",
        epilog="docs/deltas.md explains data, losses and what they are worth.",
    )
    _data(parser.add_argument_group("sequences"))
    model = parser.add_argument_group("DELTAS")
    model.add_argument(
        "--model",
        default="Deltas(evidential=True)",
        help="specification of the model, of which the following are in place of its own",
    )
    defaults = inspect.signature(Deltas).parameters
    for name in _OF_MODEL:
        kind = count if name == "num_kps" else float
        default = defaults[name].default
        help_text = f"see Deltas; if none, that of --model, which is {default} if it does not say"
        model.add_argument(f"--{name}", type=kind, default=None, help=help_text)
    _losses(parser.add_argument_group("losses"))
    parser.set_defaults(lr=1e-4, batch_size=8, epochs=20, weight_decay=1e-4)
    return parser


def _data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="ROOT",
        help="processed data sets or raw recordings to train on: their training split",
    )
    group.add_argument(
        "--test_data", nargs="+", default=[], metavar="ROOT", help="the same to test on, whole"
    )
    group.add_argument(
        "--train_dataset", default=None, help="specification of the training set, not --data"
    )
    group.add_argument(
        "--samples", type=count, default=None, help="sequences of an epoch from each --data"
    )
    group.add_argument("--test_samples", type=count, default=100, help="and of each --test_data")
    group.add_argument("--seq_length", type=count, default=3, help="frames of a sequence")
    group.add_argument("--seq_gap", type=count, default=10, help="frames from one to the next")
    group.add_argument("--height", type=count, default=240, help="of images in pixels")
    group.add_argument("--width", type=count, default=320, help="likewise")


def _losses(group: argparse._ArgumentGroup) -> None:
    defaults = inspect.signature(DeltasLoss).parameters
    for name, text in _WEIGHTS.items():
        group.add_argument(
            f"--{name}", type=float, default=defaults[name].default, help=f"weight: {text}"
        )
    group.add_argument(
        "--lambda_evi",
        type=float,
        default=defaults["lambda_evi"].default,
        help="weight of the evidence penalty within --w_evi's",
    )
    group.add_argument(
        "--superpoint",
        default="checkpoints/corners_small.safetensors",
        metavar="FILE",
        help="detector whose points are learnt: of deltas.detector.train, or SuperPoint's weights",
    )
    group.add_argument(
        "--homographies",
        type=int,
        default=defaults["homographies"].default,
        help="views of an image that its marks are averaged over; 1: its own scores",
    )


def complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Put --data and the losses' arguments into specifications; errors of use end the program."""
    if bool(args.data) == (args.train_dataset is not None):
        parser.error("give either --data ROOT ... or --train_dataset 'Sequences(...)'")
    if args.data:
        args.train_dataset = " + ".join(
            _sequences(args, root, args.samples, "split='train', transform=ColorJitter")
            for root in args.data
        )
    if args.test_data:
        args.test_dataset = " + ".join(
            _sequences(args, root, args.test_samples, "split='all', seed=777")
            for root in args.test_data
        )
    named = {name: getattr(args, name) for name in (*_WEIGHTS, "lambda_evi", "homographies")}
    named |= {name: getattr(args, name) for name in ("mindepth", "maxdepth")}
    given = [f"{name}={value!r}" for name, value in named.items() if value is not None]
    if args.w_ip:
        given.append(f"teacher={args.superpoint!r}")
    args.train_criterion = args.test_criterion = f"DeltasLoss({', '.join(given)})"


def _sequences(args: argparse.Namespace, root: str, samples: int | None, more: str) -> str:
    spec = (
        f"Sequences(ROOT={root!r}, {more}, seq_length={args.seq_length}, seq_gap={args.seq_gap}, "
        f"width={args.width}, height={args.height})"
    )
    return spec if samples is None else f"{samples} @ {spec}"


def model_spec(args: argparse.Namespace) -> str:
    """``--model`` with what other arguments say of it, all of it named.

    Raises:
        SpecError, ValueError: it is no specification of ``Deltas``.
    """
    found = arguments_of(args.model, Deltas, "network of train_deltas.py")
    found |= {name: getattr(args, name) for name in _OF_MODEL if getattr(args, name) is not None}
    return f"Deltas({', '.join(f'{name}={value!r}' for name, value in found.items())})"


def set_up(args: argparse.Namespace, world: World) -> tuple[Run, dict[str, StereoLoader]]:
    """A run of ``train.py`` with DELTAS, its loss and its pictures.

    Raises:
        USER_ERRORS: an argument, a file or a data set is not what it has to be.
    """
    run, tests = cli.set_up(args, world)
    take_batches(unwrap(run.model))
    run.batches = SequenceBatches()
    run.recorder.figures = partial(batch_figures, unwrap(run.model).depth_range)
    return run, tests


class SequenceBatches:
    """Batches of ``Sequences``: one input, the dictionary as it is."""

    def inputs(self, batch: Mapping[str, Any]) -> Inputs:
        wrong = [
            key
            for key, axes in _KEYS.items()
            if getattr(batch.get(key) if isinstance(batch, Mapping) else None, "ndim", 0) != axes
        ]
        if wrong:
            raise ValueError(
                f"a batch lacks {', '.join(wrong)} of frames (B, F, ...): DELTAS trains on "
                f"{Sequences.__name__}(...), not on pairs of views"
            )
        return (batch,)

    training_inputs = inputs

    def files(self, inputs: Inputs) -> list[tuple[str, ...]]:
        return list(zip(*inputs[0]["instance"], strict=True))


def take_batches(net: Deltas) -> None:
    """Make ``net(batch)`` take and give what the training loop passes around.

    A batch is that of ``Sequences``, and what comes out a tuple of one ``DeltasPrediction``. In
    eval mode random points are the same in every pass over the data, so that losses compare. Names
    and weights stay as they are: both are hooks.
    """
    net.register_forward_pre_hook(_frames_of_batch, with_kwargs=True)
    net.register_forward_hook(_as_tuple)


def _frames_of_batch(
    net: Deltas, inputs: tuple[Mapping[str, Any]], options: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    (batch,) = inputs
    if not net.training:
        options = options | {"generator": torch.Generator().manual_seed(_EVALUATION_SEED)}
    return (batch["img"], batch["camera_pose"], batch["camera_intrinsics"]), options


def _as_tuple(net: Deltas, inputs: Any, prediction: DeltasPrediction) -> tuple[DeltasPrediction]:
    return (prediction,)
