"""The arguments of ``train.py``; names and defaults are those that people know."""

import argparse
from collections.abc import Mapping
from typing import Any

from dust3r.utils.arguments import count

# A line of usage for each group; details stand in docs/training.md.
EPILOG = "Specification strings are explained in README.md, stages and losses in docs/training.md."

# Those that say what train.py learns from predictions, and mean nothing to other commands.
OF_LOSSES = (
    "train_criterion",
    "test_criterion",
    "uq_mode",
    "phase",
    "lambda_uq",
    "lambda_evi",
    "lambda_evi_feat",
    "lambda_mean_gt",
    "lambda_mean_distill",
    "lambda_var_distill",
    "var_distill",
    "lambda_uq_xyz",
    "lambda_evi_xyz",
    "lambda_hetero_xyz",
    "hetero_beta",
    "uq_align",
    "lambda_gate_tv",
    "gate_tv_warmup_steps",
    "uq_lr_scale",
    "freeze_geom_for_uq",
    "train_geom_for_uq",
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a pairwise pointmap model, with or without depth uncertainty.",
        epilog=EPILOG,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _what(parser.add_argument_group("model, data and losses"))
    _uncertainty(parser.add_argument_group("uncertainty"))
    _optimisation(parser.add_argument_group("optimisation"))
    _running(parser.add_argument_group("running, checkpoints and logs"))
    _large_runs(parser.add_argument_group("large runs (docs/large_runs.md)"))
    return parser


def make_sibling_parser(refused: Mapping[str, str], **kwargs: Any) -> argparse.ArgumentParser:
    """The arguments of another command that trains in the same loop: those of ``train.py``.

    Args:
        refused: name -> how to mend it, of those that mean nothing there: they are errors, left
            out of the help, and keep the default that the loop reads.
        kwargs: of ``argparse.ArgumentParser``.
    """
    train = make_parser()
    parser = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        parents=[train],
        conflict_handler="resolve",
        **kwargs,
    )
    for name, mend in refused.items():
        parser.add_argument(
            f"--{name}",
            action=_Refused,
            nargs="*",
            default=train.get_default(name),
            help=argparse.SUPPRESS,
            mend=mend,
        )
    return parser


class _Refused(argparse.Action):
    def __init__(self, *args: Any, mend: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mend = mend

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} is an argument of train.py, not of this command{self._mend}")


def _what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        default="AsymmetricCroCo3DStereo(patch_embed_cls='ManyAR_PatchEmbed')",
        help="specification of the model",
    )
    group.add_argument(
        "--pretrained", default=None, help="checkpoint file or hub name to start from"
    )
    group.add_argument(
        "--train_criterion",
        default="ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2)",
        help="specification of the loss",
    )
    group.add_argument(
        "--test_criterion", default=None, help="the same for the test set; that of training if none"
    )
    group.add_argument("--train_dataset", required=True, help="specification of the training set")
    group.add_argument(
        "--test_dataset", default="[None]", help="specification of the test set; '[None]' for none"
    )
    group.add_argument(
        "--skip_bad_samples",
        action="store_true",
        help="replace samples whose files cannot be read by the next one, and count them",
    )


def _uncertainty(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--uq_mode", default=None, help="geom, feat, xyz, hetero_xyz, or none")
    group.add_argument("--phase", type=int, default=None, help="1 or 2, of --uq_mode feat")
    group.add_argument("--lambda_uq", type=float, default=1.0, help="weight of GeoUQ's loss")
    group.add_argument(
        "--lambda_evi", type=float, default=1e-3, help="weight of the evidence penalty in a loss"
    )
    group.add_argument(
        "--lambda_evi_feat", type=float, default=0.1, help="weight of FeatUQ's loss (phase 2)"
    )
    group.add_argument(
        "--lambda_mean_gt", type=float, default=1.0, help="FeatUQ's mean against the depth"
    )
    group.add_argument(
        "--lambda_mean_distill", type=float, default=0.1, help="FeatUQ's mean against GeoUQ's"
    )
    group.add_argument(
        "--lambda_var_distill",
        type=float,
        default=0.1,
        help="FeatUQ's variance against GeoUQ's (phase 2)",
    )
    group.add_argument(
        "--var_distill",
        choices=("linear", "log"),
        default="linear",
        help="compare variances (as published) or their logarithms",
    )
    group.add_argument(
        "--lambda_uq_xyz", type=float, default=1.0, help="weight of the loss of --uq_mode xyz"
    )
    group.add_argument(
        "--lambda_evi_xyz", type=float, default=1e-3, help="weight of the evidence penalty in it"
    )
    group.add_argument(
        "--lambda_hetero_xyz",
        type=float,
        default=1.0,
        help="weight of the loss of --uq_mode hetero_xyz",
    )
    group.add_argument(
        "--hetero_beta",
        type=float,
        default=0.0,
        help="weigh pixels in it by their variance to this power, 0 to 1: 0 is the likelihood, and "
        "0.5 keeps pixels of a small variance from pulling at a geometry that trains along",
    )
    group.add_argument(
        "--uq_align",
        choices=("none", "sim3"),
        default="none",
        help="errors that --uq_mode xyz and hetero_xyz learn: as they are in camera 1's frame (as "
        "published), or what a similarity of each image leaves of them, in metres",
    )
    group.add_argument(
        "--lambda_gate_tv",
        type=float,
        default=0.0,
        help="weight of the gate's total variation, of heads that end in +residual_gated",
    )
    group.add_argument(
        "--gate_tv_warmup_steps",
        type=int,
        default=0,
        help="batches over which that weight grows from 0",
    )
    group.add_argument(
        "--uq_lr_scale",
        type=float,
        default=1.0,
        help="learning rate of the uncertainty heads over that of the rest; they start at random",
    )
    group.add_argument(
        "--freeze_geom_for_uq",
        action="store_true",
        help="with --uq_mode geom: train the evidential head alone",
    )
    group.add_argument(
        "--train_geom_for_uq",
        action="store_true",
        help="with --uq_mode xyz or hetero_xyz: train everything, not the head on points alone",
    )


def _optimisation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, default=0, help="of weights, sample order, crops")
    group.add_argument("--batch_size", type=count, default=64, help="pairs per process")
    group.add_argument(
        "--accum_iter", type=count, default=1, help="batches whose gradients make one update"
    )
    group.add_argument("--epochs", type=count, default=800, help="passes over the training set")
    group.add_argument(
        "--max_steps", type=count, default=None, help="stop after so many batches in all"
    )
    group.add_argument("--weight_decay", type=float, default=0.05, help="none on vectors")
    group.add_argument("--lr", type=float, default=None, help="peak learning rate; if none:")
    group.add_argument(
        "--blr", type=float, default=1.5e-4, help="rate of 256 pairs; lr = blr x pairs / 256"
    )
    group.add_argument("--min_lr", type=float, default=0.0, help="learning rate at the end")
    group.add_argument(
        "--warmup_epochs",
        type=float,
        default=None,
        help="of linear warm-up; if none, a twentieth of --epochs (40 of the default 800)",
    )
    group.add_argument(
        "--grad_clip", type=float, default=None, help="largest norm of the gradients"
    )
    group.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of matrix products"
    )
    group.add_argument(
        "--amp", type=int, choices=(0, 1), default=0, help="fp16 with loss scaling on CUDA"
    )
    group.add_argument(
        "--compile", action="store_true", help="run blocks and heads by torch.compile"
    )
    group.add_argument(
        "--disable_cudnn_benchmark", action="store_true", help="do not search convolution kernels"
    )


def _running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num_workers", type=int, default=8, help="loading processes, per process")
    group.add_argument("--output_dir", default="./output", help="where checkpoints and logs go")
    group.add_argument("--eval_freq", type=count, default=1, help="epochs between tests")
    group.add_argument(
        "--save_freq", type=count, default=1, help="epochs between checkpoint-last.pth"
    )
    group.add_argument(
        "--keep_freq", type=int, default=20, help="epochs between checkpoint-<epoch>.pth; 0: none"
    )
    group.add_argument(
        "--save_steps", type=int, default=0, help="batches between checkpoint-step-<N>.pth; 0: none"
    )
    group.add_argument(
        "--print_freq", type=count, default=20, help="batches between points in TensorBoard"
    )
    group.add_argument(
        "--stop_after_nan",
        type=count,
        default=20,
        help="stop after so many updates in a row whose loss was not finite",
    )


def _large_runs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fsdp",
        action="store_true",
        help="shard weights, gradients and moments over the processes, instead of a copy on each",
    )
    group.add_argument(
        "--activation_checkpointing",
        action="store_true",
        help="compute what is inside a transformer block again for the gradient, not keep it",
    )
    group.add_argument(
        "--resume_every",
        type=int,
        default=0,
        help="batches between checkpoint-last.pth within an epoch; 0: at --save_steps alone",
    )
    group.add_argument(
        "--hang_timeout",
        type=count,
        default=1800,
        help="seconds that a process waits for the others before it takes them for lost",
    )
    group.add_argument(
        "--log_samples",
        action="store_true",
        help="write the pairs of every update to samples-<rank>.jsonl",
    )
