"""Arguments that the subcommands of ``evaluate.py`` share."""

import argparse
import re
from pathlib import Path
from typing import Any

from dust3r.evaluation.benchmarks import EXAMPLE
from dust3r.evaluation.methods import parse_methods
from dust3r.evaluation.networks import Sampling, sources_of
from dust3r.evaluation.uq import Evaluation, from_networks, from_stored
from dust3r.training.distributed import World
from dust3r.uncertainty.families import FAMILIES
from dust3r.utils.arguments import count


def add_shared(parser: argparse.ArgumentParser, example: str) -> None:
    """Which data, which checkpoints, how many pairs, and where to compute."""
    add = parser.add_argument
    add(
        "--benchmarks",
        help=f"named data sets, such as {example}; with --predictions, names by semicolons",
    )
    add(
        "--ckpt",
        nargs="+",
        default=[],
        metavar="[METHOD=]PATH",
        help="checkpoint of a method, or without a name of all others",
    )
    add("--num_pairs", type=count, help="pairs of each benchmark, at random; by default all")
    add("--seed", type=int, default=0, help="of the choice of pairs (%(default)s)")
    add("--batch_size", type=count, default=4, help="pairs at a time (%(default)s)")
    add(
        "--num_workers",
        type=int,
        default=2,
        help="processes that load, or that measure --predictions (%(default)s)",
    )
    add("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    add("--samples", type=count, default=8, help="of mcd (%(default)s)")
    add("--dropout", type=float, default=0.1, help="rate of mcd (%(default)s)")
    add(
        "--same_scale",
        action="store_true",
        help="bring samples of mcd and ensemble to one scale, for models without a metric one",
    )
    add("--save_predictions", type=Path, metavar="DIR", help="store predictions, to evaluate again")
    add("--predictions", type=Path, metavar="DIR", help="read stored ones; no --ckpt is needed")


def add_families(parser: argparse.ArgumentParser) -> None:
    """Which families of uncertainty."""
    parser.add_argument(
        "--methods",
        required=True,
        help=f"families by commas, of {', '.join(FAMILIES)}; label:family where one comes twice",
    )


def evaluation_of(
    args: argparse.Namespace, world: World, depths: bool = False, **options: Any
) -> Evaluation:
    """What the arguments ask for.

    Args:
        depths: methods are what states a depth.
        options: of ``Evaluation``.

    Raises:
        ValueError, FileNotFoundError, dust3r.training.checkpoint.CheckpointError: an argument or a
            file is wrong, and the message says how to mend it.
    """
    methods = parse_methods(args.methods, depths)
    if args.predictions is not None:
        if args.ckpt or args.save_predictions:
            raise ValueError(
                "--predictions are read in place of running networks: leave --ckpt and "
                "--save_predictions out"
            )
        chosen = names_or_none(args.benchmarks)
        options |= {"num_workers": args.num_workers}
        return from_stored(args.predictions, chosen, methods, args.num_pairs, args.seed, **options)
    if not args.benchmarks:
        raise ValueError(f"give --benchmarks, such as {EXAMPLE}, or --predictions")
    sampling = Sampling(args.samples, args.dropout, args.same_scale)
    return from_networks(
        args.benchmarks,
        methods,
        sources_of(methods, args.ckpt, sampling),
        device=world.device,
        num_pairs=args.num_pairs,
        seed=args.seed,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        save_to=args.save_predictions,
        is_main=world.is_main,
        **options,
    )


def names_or_none(text: str | None) -> list[str] | None:
    """The names of ``"Name:Dataset(...); Name"``, whose data sets are not needed; None where None.

    Raises:
        ValueError: nothing is named.
    """
    if text is None:
        return None
    names = [part.partition(":")[0].strip() for part in re.split(r";", text) if part.strip()]
    if not names or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", n) for n in names):
        raise ValueError(f"--benchmarks {text!r}: with --predictions give names, such as A;B")
    return names
