"""The command line of pre-training: cross-view completion in the loop that trains all the rest.

Everything but the model, the loss and the pictures is that of ``train.py``: data sets, schedule,
accumulation, precision, processes, checkpoints, resuming.
"""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from croco.croco import CroCoNet
from croco.masking import RandomMask
from dust3r.datasets.loader import StereoLoader
from dust3r.training import cli
from dust3r.training.arguments import OF_LOSSES, make_sibling_parser
from dust3r.training.distributed import World, unwrap
from dust3r.training.engine import Run
from dust3r.training.pretrain_completion import CompletionFigures, MaskedMSE, take_views
from dust3r.utils.arguments import count
from dust3r.utils.spec_arguments import arguments_of

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Pre-train as the arguments say; the exit status."""
    args = make_parser().parse_args(arguments)
    args.train_criterion = args.test_criterion = repr(MaskedMSE(bool(args.norm_pix_loss)))

    def prepare(world: World) -> tuple[Run, Callable[[], None]]:
        kwargs = croco_kwargs(args.model, args.mask_ratio)
        run, tests = set_up(args, world)
        # The schedule is laid out for --epochs, and left at --max_epoch.
        until = argparse.Namespace(**vars(args) | {"epochs": min(args.epochs, args.max_epoch)})
        extra = {"croco_kwargs": kwargs, "args": args}
        return run, partial(cli.train, run, tests, run.stage.criterion, until, extra)

    return cli.execute(prepare, args.hang_timeout)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of ``train.py`` for optimisation and running, and those of pre-training."""
    parser = make_sibling_parser(
        refused={name: "" for name in OF_LOSSES} | {"train_dataset": ": give --dataset"},
        prog="python -m croco.pretrain",
        description="Cross-view completion: a CroCo network from pairs of images.",
        epilog="Specification strings are explained in README.md, the rest in docs/pretraining.md.",
    )
    group = parser.add_argument_group("pre-training")
    group.add_argument(
        "--dataset",
        dest="train_dataset",
        metavar="DATASET",
        required=True,
        help="specification of the pairs to train on, as --train_dataset of train.py",
    )
    group.add_argument(
        "--mask_ratio",
        type=float,
        default=None,
        help="share of the first view's patches to hide; if none, that of --model, which is 0.9 "
        "where it does not say",
    )
    group.add_argument(
        "--norm_pix_loss",
        type=int,
        choices=(0, 1),
        default=1,
        help="compare patches after each true one is brought to zero mean and unit variance",
    )
    group.add_argument(
        "--max_epoch",
        type=count,
        default=400,
        help="epoch to stop at, of the --epochs that the learning rate is laid out for",
    )
    parser.set_defaults(model="CroCoNet()")
    return parser


def set_up(args: argparse.Namespace, world: World) -> tuple[Run, dict[str, StereoLoader]]:
    """A run of ``train.py`` with a network, a loss and pictures of cross-view completion.

    Raises:
        USER_ERRORS: an argument, a file or a data set is not what it has to be.
    """
    run, tests = cli.set_up(args, world)
    net = unwrap(run.model)
    if args.mask_ratio is not None:
        net.mask_generator = RandomMask(args.mask_ratio)
    for loader in (run.loader, *tests.values()):
        check_sizes(net, loader)
    take_views(net)
    run.recorder.figures = CompletionFigures(net, bool(args.norm_pix_loss), Path(args.output_dir))
    return run, tests


def croco_kwargs(spec: str, mask_ratio: float | None = None) -> dict[str, Any]:
    """The arguments of ``CroCoNet`` that a specification stands for, defaults included.

    Args:
        spec: as ``--model``.
        mask_ratio: in place of that of ``spec``.

    Raises:
        SpecError, ValueError: ``spec`` is none of a CroCoNet.
    """
    found = arguments_of(spec, CroCoNet, "network of pre-training", defaults=True)
    return found if mask_ratio is None else found | {"mask_ratio": mask_ratio}


def check_sizes(net: CroCoNet, loader: StereoLoader) -> None:
    """Check the sizes of a data set's images against the network's positions and its masks.

    Raises:
        ValueError: images are larger than those that the network knows positions of, or so small
            that none of their patches is hidden.
    """
    for width, height in loader.dataset.resolutions:
        rows, columns = height // net.patch_size, width // net.patch_size
        known = net.patch_embed.grid_size
        if net.enc_rope is None and (rows > known[0] or columns > known[1]):
            raise ValueError(
                f"images of {width}x{height} are larger than img_size "
                f"{known[1] * net.patch_size}x{known[0] * net.patch_size}, to which "
                "pos_embed='cosine' ties the network: give another resolution in --dataset, or "
                "CroCoNet(pos_embed='RoPE100', ...), which takes all sizes"
            )
        patches = rows * columns
        if int(net.mask_generator.mask_ratio * patches) == 0:
            raise ValueError(
                f"a mask ratio of {net.mask_generator.mask_ratio} hides none of the {patches} "
                f"patches of a {width}x{height} image, so that there is nothing to complete: use "
                "larger images, or a larger --mask_ratio (0.9 is the published one)"
            )
