"""The command line of ``viz_uq.py``: pictures and tables of a checkpoint's depth uncertainty."""

import argparse
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dust3r.datasets import get_data_loader
from dust3r.datasets.combine import StereoDataset
from dust3r.datasets.loader import StereoLoader
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.training import checkpoint
from dust3r.uncertainty.calibration_file import AUTO, load_for
from dust3r.uncertainty.evaluation import (
    Baselines,
    DepthEvaluator,
    finite,
    fit_baselines,
    predict,
    thinning,
)
from dust3r.uncertainty.reliability import HEAD_OF_FAMILY, Reliability
from dust3r.uncertainty.tables import markdown, summary_line, uncertainty_or_all
from dust3r.utils.arguments import count
from dust3r.utils.device import chosen_device
from dust3r.utils.files import atomic_path
from dust3r.utils.panels import (
    calibrated_sample,
    pair_figure,
    reliability_figure,
    summary_figure,
    take_sample,
)
from dust3r.utils.plots import save_png
from dust3r.utils.spec import DATASETS, MODELS, build

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError, checkpoint.CheckpointError)

_LABEL = 48
_DESCRIPTION = """\
Depth, standard deviation and error of a checkpoint on a dataset: a PNG for each of some pairs, and
summary.png, summary.json and summary.md over them, or with --all over all pairs of the dataset.
Of models with a distribution of points, deviations and errors are of points, after a similarity.
With --calibration also calibration.png: what share of true depths, or points, lies within what was
to hold it.
"""


def main(arguments: list[str] | None = None) -> int:
    """Draw and measure as the arguments say; the exit status."""
    args = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        result = run(args)
    except USER_ERRORS as error:
        # What a user wrote is mended by the message, not by the stack.
        log.error("%s", error)
        log.debug("raised here", exc_info=True)
        return 2
    sys.stdout.write(f"{markdown(result)}\n{summary_line(result)}\nin {args.output_dir}\n")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="viz_uq.py", description=_DESCRIPTION)
    add = parser.add_argument
    add("--model", help="its specification; by default the one that the checkpoint names")
    add("--ckpt", required=True, type=Path, help="the checkpoint, .pth or .safetensors")
    add("--dataset", required=True, help="specification of the dataset")
    add("--output_dir", required=True, type=Path, help="folder that the files go to")
    add("--num_samples", type=count, default=8, help="pairs to draw, at random (%(default)s)")
    add("--all", action="store_true", help="measure on all pairs of the dataset")
    add("--train_dataset", help="compare with its median depth, and with one variance fitted on it")
    add("--fit_samples", type=count, default=100, help="pairs of it to fit on (%(default)s)")
    add(
        "--calibration",
        metavar="FILE",
        help="draw deviations as this file of evaluate.py calibrate mends them, and whether they "
        f"hold what they should; a folder of such files, or {AUTO}: that of the checkpoint, where "
        "FeatUQ's comes before GeoUQ's, and those of distributions of points come last",
    )
    add("--batch_size", type=count, default=4, help="pairs at a time (%(default)s)")
    add("--num_workers", type=int, default=2, help="processes that load (%(default)s)")
    add("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    add("--seed", type=int, default=0, help="of the choice of pairs (%(default)s)")
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write all files; the numbers of summary.json.

    Raises:
        ValueError, FileNotFoundError: an argument is wrong, a file is missing or unreadable, or
            the model has nothing that tells its uncertainty.
        dust3r.training.checkpoint.CheckpointError: the checkpoint cannot be used.
    """
    # The metrics count in float64, which MPS does not have.
    device = chosen_device(args.device, torch.float64)
    # Specifications first: a typo should not cost the time to read a large checkpoint.
    dataset = _dataset(args.dataset, "--dataset")
    train_dataset = _dataset(args.train_dataset, "--train_dataset") if args.train_dataset else None
    reliability = None
    if args.calibration is not None:
        reliability = Reliability(load_for(args.calibration, args.ckpt, tuple(HEAD_OF_FAMILY)))
    model, spec = load(args.ckpt, args.model, args.seed)
    baselines = None
    if train_dataset is not None:
        loader = _loader(train_dataset, args, args.fit_samples)
        baselines = fit_baselines(model, loader, device)

    evaluator, samples = draw_samples(
        model,
        _loader(dataset, args, args.num_samples),
        device,
        args.output_dir,
        baselines,
        reliability,
    )
    if args.all:
        loader = _loader(dataset, args)
        evaluator = DepthEvaluator(baselines, thinning(loader))
        reliability = None if reliability is None else Reliability(reliability.calibration)
        for views, predictions in predict(model, loader, device):
            evaluator.update(views, predictions)
            if reliability is not None:
                reliability.update(views, predictions)
    result = evaluator.result()
    if reliability is not None:
        result["calibration"] = _reliability(args, reliability)
    told = {"ckpt": str(args.ckpt), "model": spec, "dataset": args.dataset}
    told |= {"train_dataset": args.train_dataset, "seed": args.seed, "all": args.all}
    write_summary(args.output_dir, {**told, **result, "samples": samples}, evaluator)
    return result


def load(ckpt: Path, spec: str | None, seed: int = 0) -> tuple[AsymmetricCroCo3DStereo, str]:
    """The model of a checkpoint, for batches in landscape layout, and its specification.

    Args:
        ckpt: the file.
        spec: specification to use in place of the checkpoint's own.
        seed: of weights that the checkpoint does not have; they are warned about.

    Raises:
        ValueError: neither names a model, or the specification is wrong.
        FileNotFoundError, dust3r.training.checkpoint.CheckpointError: see ``checkpoint.load_file``
            and ``checkpoint.load_state_dict``.
    """
    loaded = checkpoint.load_file(ckpt)
    spec = spec or getattr(loaded["args"], "model", None)
    if not spec:
        raise ValueError(
            f"{ckpt} does not say which model its weights belong to; give --model, such as "
            "\"AsymmetricMASt3R(img_size=(224, 224), head_type='dpt_uq_feat')\""
        )
    torch.manual_seed(seed)
    model = build(spec, MODELS)
    if not isinstance(model, AsymmetricCroCo3DStereo):
        raise ValueError(
            f"{spec!r} describes a {type(model).__name__}, which is no pairwise pointmap model; "
            "give AsymmetricMASt3R(...) or AsymmetricCroCo3DStereo(...)"
        )
    report = checkpoint.load_state_dict(model, loaded["model"])
    if report.missing:
        log.warning(
            "%s: %s\nWhat is missing is random, and so are the depths and uncertainties from it.",
            ckpt,
            report,
        )
    else:
        log.info("%s: %s", ckpt, report)
    return model, spec


def draw_samples(
    model: nn.Module,
    loader: StereoLoader,
    device: torch.device,
    output_dir: Path,
    baselines: Baselines | None = None,
    reliability: Reliability | None = None,
) -> tuple[DepthEvaluator, list[dict[str, Any]]]:
    """A PNG for each pair of a loader; with ``reliability``, which is updated, its deviations.

    Returns:
        What was measured on them together, and on each: ``file`` (the PNG's name) and ``images``,
        the records of ``DepthEvaluator.update``.
    """
    evaluator = DepthEvaluator(baselines, thinning(loader))
    drawn = []
    for views, predictions in predict(model, loader, device, "pictures"):
        records = evaluator.update(views, predictions)
        if reliability is not None:
            reliability.update(views, predictions)
        pose1 = views[0]["camera_pose"]
        for index, labels in enumerate(zip(*(view["label"] for view in views), strict=True)):
            of_pair = [record for record in records if record["index"] == index]
            samples = [
                take_sample(view, prediction, index, pose1)
                for view, prediction in zip(views, predictions, strict=True)
            ]
            if reliability is not None:
                name, calibration = reliability.head, reliability.calibration
                samples = [calibrated_sample(sample, name, calibration) for sample in samples]
            headings = [_heading(number, label, of_pair) for number, label in enumerate(labels, 1)]
            name = f"{len(drawn):03d}_{file_name('__'.join(labels))}.png"
            save_png(pair_figure(samples, headings), output_dir / name)
            told = [{k: v for k, v in record.items() if k != "index"} for record in of_pair]
            drawn.append({"file": name, "images": told})
    return evaluator, drawn


def write_summary(output_dir: Path, summary: dict[str, Any], evaluator: DepthEvaluator) -> None:
    """``summary.json``, ``summary.md`` and ``summary.png`` in ``output_dir``."""
    with atomic_path(output_dir / "summary.json") as temporary:
        temporary.write_text(json.dumps(finite(summary), indent=1, allow_nan=False) + "\n")
    with atomic_path(output_dir / "summary.md") as temporary:
        temporary.write_text(markdown(summary))
    pixels = evaluator.pooled()
    errors = {name: pixels.error[name] for name in pixels.deviation} or pixels.error
    figure = summary_figure(
        {name: values.numpy() for name, values in errors.items()},
        {name: values.numpy() for name, values in pixels.deviation.items()},
        None if pixels.doubt is None else pixels.doubt.numpy(),
        f"{len(evaluator.records)} images, {len(pixels.depth):,} pixels",
    )
    save_png(figure, output_dir / "summary.png")


def file_name(label: str, longest: int = 100) -> str:
    """A label as part of a file's name: letters, digits, dot, dash and underscore alone."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label)[:longest].strip("-.") or "sample"


def _reliability(args: argparse.Namespace, reliability: Reliability) -> dict[str, Any]:
    """Draw ``calibration.png``; its numbers, for summary.json."""
    curves, calibration = reliability.curves(), reliability.calibration
    before, after = curves.values()
    title = f"{reliability.head}, {after.images} images, {after.pixels:,} pixels"
    save_png(reliability_figure(curves, title), args.output_dir / "calibration.png")
    return finite(
        {
            "file": str(args.calibration),
            "head": reliability.head,
            "region": calibration.region,
            "alignment": calibration.alignment,
            "scale": calibration.scale,
            "fitted_on": calibration.dataset,
            "images": after.images,
            "pixels": after.pixels,
            "left_out": after.left_out,
            "levels": after.levels.tolist(),
            "stated": before.shares.tolist(),
            "calibrated": after.shares.tolist(),
            "standard_errors": after.standard_errors.tolist(),
        }
    )


def _heading(number: int, label: str, records: list[dict[str, Any]]) -> str:
    # The end of a long label tells more than its beginning.
    label = label if len(label) <= _LABEL else f"\N{HORIZONTAL ELLIPSIS}{label[1 - _LABEL :]}"
    for record in records:
        if record["view"] == number:
            heads = uncertainty_or_all(record["heads"])
            numbers = [
                f"{name} RMSE {head['rmse']:.3g} m{_more(head)}" for name, head in heads.items()
            ]
            return f"view {number}: {label}    {';  '.join(numbers)}"
    return f"view {number}: {label}    no pixel with a valid depth"


def _more(head: dict[str, float]) -> str:
    if "ause" in head:
        likelihood = f", NLL {head['nll']:.3g}" if "nll" in head else ""
        return f"{likelihood}, AUSE {head['ause']:.3g} m"
    return f", AUSE of 1/conf {head['ause_conf']:.3g} m" if "ause_conf" in head else ""


def _dataset(spec: str, option: str) -> StereoDataset:
    dataset = build(spec, DATASETS)
    if not isinstance(dataset, StereoDataset):
        raise ValueError(f"{option} {spec!r} describes {dataset!r}, which is no dataset")
    if len(dataset) == 0:
        raise ValueError(f"{option} {spec!r} is empty: it has no pair")
    return dataset


def _loader(
    dataset: StereoDataset, args: argparse.Namespace, pairs: int | None = None
) -> StereoLoader:
    """All pairs in order, or a random choice of ``pairs`` of them, at most all."""
    if pairs is not None:
        dataset = min(pairs, len(dataset)) @ dataset
    return get_data_loader(
        dataset,
        args.batch_size,
        min(args.num_workers, -(-len(dataset) // args.batch_size)),
        shuffle=False,
        drop_last=False,
        seed=args.seed,
    )
