"""How good DELTAS is on sequences of posed frames, at one or several gaps between frames.

Dense depth is measured as ``evaluate.py depth`` does, without any alignment, and its uncertainty,
where the model states one, by the measures of ``evaluate.py uq``, on the true depth as it is.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from deltas.data.sequences import Sequences, within
from deltas.epipolar import back_project
from deltas.model import Deltas, DeltasPrediction
from dust3r.datasets.bad_samples import SampleError
from dust3r.evaluation.depth_cli import DepthMeasures
from dust3r.evaluation.levels import LEVELS, levels_of
from dust3r.evaluation.summary import ImageMeans, Likelihood
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.metrics import aurc, ause, spearman
from dust3r.utils.device import view_to_device
from dust3r.utils.geometry import inv

log = logging.getLogger(__name__)

# As evaluate.py depth has it by default.
MIN_DEPTH = 1e-3

Batch = dict[str, Any]
Nested = TypeVar("Nested")


def sequences_at(
    root: str | Path, gaps: Sequence[int], *, check: bool = True, **options: Any
) -> dict[int, Sequences]:
    """Sequences of the same anchors at each gap, ascending.

    A gap that no stretch of the recordings is long enough for is left out, with a warning.

    Args:
        gaps: values of ``seq_gap``.
        check, options: of ``Sequences``.

    Raises:
        ValueError, FileNotFoundError: see ``Sequences``; also where no gap is left.
    """
    smallest, *larger = sorted(set(gaps))
    found = {smallest: Sequences(root, seq_gap=smallest, check=check, **options)}
    while larger and len(found) == 1:
        gap = larger.pop()
        try:
            found[gap] = Sequences(root, seq_gap=gap, check=False, **options)
        except ValueError as error:
            log.warning("seq_gap=%d is left out: %s", gap, error)
    reach = max(found)
    if reach > smallest:
        for gap in (smallest, *larger):
            found[gap] = Sequences(root, seq_gap=gap, anchor_gap=reach, check=False, **options)
    return dict(sorted(found.items()))


def evaluate(
    model: Deltas,
    sequences: Mapping[int, Sequences],
    indices: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 4,
    num_workers: int = 0,
    verbose: bool = False,
) -> dict[int, "GapMeasures"]:
    """Measure a model at every gap, on the same anchors and the same points of them.

    Anchors that cannot be loaded at one of the gaps are left out of all, with a warning.

    Args:
        model: in eval mode, on its device; its ``depth_range`` is that of the true depths that
            count, too.
        sequences: of ``sequences_at``.
        indices: of anchors, in each of them.
        seed: of the random points.
        verbose: show progress.

    Raises:
        ValueError: no anchor can be loaded, or none has a true depth within the range.
    """
    measures = {gap: GapMeasures(model.depth_range) for gap in sequences}
    with tqdm(total=len(indices), unit="anchor", disable=not verbose) as bar:
        for numbers, batches in load(sequences, indices, batch_size, num_workers):
            for gap, batch, prediction in predict(model, batches, seed):
                for place, number in enumerate(numbers):
                    measures[gap].update(number, *only(place, batch, prediction))
            bar.update(len(numbers))
    for measured in measures.values():
        measured.left_out = len(indices) - len(measured.images)
        _need_pixels(measured, len(indices))
    return measures


def load(
    sequences: Mapping[int, Sequences],
    indices: Sequence[int],
    batch_size: int = 1,
    num_workers: int = 0,
) -> Iterator[tuple[list[int], dict[int, Batch]]]:
    """Batches of anchors, in order: their indices and, by gap, what ``Sequences`` gives, collated.

    Anchors that cannot be loaded are left out, with a warning.
    """
    loader = DataLoader(
        _Anchors(dict(sequences), tuple(indices)),
        batch_size=batch_size,
        num_workers=min(num_workers, -(-len(indices) // batch_size)),
        collate_fn=_collate,
        worker_init_fn=_prepare_worker,
    )
    for numbers, batches, reasons in loader:
        for reason in reasons:
            log.warning("left out: %s", reason)
        if numbers:
            yield numbers, batches


@torch.no_grad()
def predict(
    model: Deltas, batches: Mapping[int, Batch], seed: int = 0
) -> Iterator[tuple[int, Batch, DeltasPrediction]]:
    """Gap, batch on the model's device, and prediction, of batches of the same anchors.

    The points of an anchor depend on its image, its label and ``seed`` alone: not on the gap nor on
    what else is in the batch.
    """
    device = next(model.parameters()).device
    for gap, batch in batches.items():
        batch = view_to_device(batch, device)
        frames = (batch[key] for key in ("img", "camera_pose", "camera_intrinsics"))
        yield gap, batch, model(*frames, [_generator(seed, label) for label in batch["label"][0]])


def only(place: int, batch: Batch, prediction: DeltasPrediction) -> tuple[Batch, DeltasPrediction]:
    """A batch of one of the samples, and its prediction, on the host."""
    alone = {
        key: value[place : place + 1].cpu() if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
    for key in ("label", "instance"):
        alone[key] = [names[place : place + 1] for names in batch[key]]
    return alone, _cut(prediction, place)


def true_depth(batch: Batch, depth_range: tuple[float, float]) -> Tensor:
    """Anchors' true depth (B, H, W), NaN where there is none within the range."""
    depth = batch["depthmap"][:, 0]
    return torch.where(within(depth, batch["valid_mask"][:, 0], depth_range), depth, torch.nan)


@dataclass
class GapMeasures:
    """What is measured at one gap, image by image.

    Attributes:
        depth_range: of the true depths that count, in metres.
        images: a record per image: ``index``, ``label``, and its numbers.
        left_out: anchors that could not be loaded.
    """

    depth_range: tuple[float, float]
    images: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0

    def __post_init__(self) -> None:
        self._depth = DepthMeasures()
        self._ranking = ImageMeans()
        self._likelihood = Likelihood()
        self._point_errors: list[Tensor] = []
        self._parallax: list[Tensor] = []

    def update(self, index: int, batch: Batch, prediction: DeltasPrediction) -> None:
        """Add an image: a batch of one, and its prediction, on the host; its index tells it."""
        truth = true_depth(batch, self.depth_range)
        valid, depth = truth.isfinite(), prediction.depth[0][:, 0].float()
        record = {"index": index, "label": batch["label"][0][0]}
        record |= self._depth(depth[valid], truth[valid], "none", MIN_DEPTH)
        record |= self._points(truth[0], batch, prediction)
        if prediction.evidence is not None:
            record |= self._uncertainty(prediction.evidence, depth, truth)
        self.images.append(record)

    def compute(self) -> dict[str, float]:
        """Means over images, but for what is of all points or pixels together.

        ``MEASURES`` and counts of ``DepthMeasures``; ``baseline`` (m) to the neighbours;
        ``parallax`` (degrees) of points of known depth, mean over points; ``triangulated``, the
        share of points; ``point_abs_rel``, the median relative error of their z; ``left_out``, as
        the attribute. Where there is
        evidence also ``aurc`` and ``ause`` (m), ``rho``; over pixels ``nll`` (nats),
        ``calibration_error`` and ``coverage`` of central intervals by percent.
        """
        numbers = self._depth.compute() | {"left_out": self.left_out}
        for key in ("baseline", "triangulated"):
            numbers[key] = float(np.mean([one[key] for one in self.images]))
        numbers["parallax"] = torch.cat(self._parallax).mean().item()
        numbers["point_abs_rel"] = _median(torch.cat(self._point_errors))
        if self._likelihood.update_called:
            ranked, likelihood = self._ranking.compute(), self._likelihood.compute()
            numbers |= {key: ranked[f"{key}_image"] for key in ("aurc", "ause", "rho")}
            numbers |= {key: likelihood[key] for key in ("nll", "calibration_error", "coverage")}
        return numbers

    def extremes(self) -> dict[str, int]:
        """``best``, ``median`` and ``worst`` by abs_rel: the indices of these images, if any."""
        known = [one for one in self.images if math.isfinite(one["abs_rel"])]
        known.sort(key=lambda one: one["abs_rel"])
        places = {"best": 0, "median": (len(known) - 1) // 2, "worst": -1} if known else {}
        return {name: known[place]["index"] for name, place in places.items()}

    def _points(self, truth: Tensor, batch: Batch, prediction: DeltasPrediction) -> dict[str, Any]:
        points, found = prediction.points[0], prediction.valid[0]
        x, y = points.long().unbind(-1)
        at_points = truth[y, x]
        known = at_points.isfinite()
        errors = ((prediction.z[0] - at_points).abs() / at_points)[known & found]
        self._point_errors.append(errors)
        poses = batch["camera_pose"][0].double()
        centres = (inv(poses[:1]) @ poses[1:])[:, :3, 3]
        seen = back_project(
            points[None, known].double(),
            at_points[None, known].double(),
            batch["camera_intrinsics"][:, 0].double(),
        )[0]
        parallax = parallax_of(seen, centres)
        self._parallax.append(parallax.flatten())
        return {
            "baseline": centres.norm(dim=-1).mean().item(),
            "parallax": parallax.mean().item(),
            "triangulated": found.double().mean().item(),
            "point_abs_rel": _median(errors),
        }

    def _uncertainty(
        self, evidence: NormalInverseGamma, depth: Tensor, truth: Tensor
    ) -> dict[str, float]:
        sigma, nll = evidence.total.sqrt()[:, 0], evidence.nll(truth[:, None])[:, 0]
        used = truth.isfinite() & depth.isfinite() & sigma.isfinite() & nll.isfinite()
        if not used.any():
            return {}
        error, sigma, nll = (depth - truth).abs()[used], sigma[used], nll[used].double()
        numbers = {
            "aurc": aurc(error, sigma).item(),
            "ause": ause(error, sigma).item(),
            "rho": spearman(error, sigma).item(),
        }
        self._ranking.update(numbers)
        levels = levels_of(evidence, truth[..., None], used)
        places = np.minimum((levels * LEVELS).astype(int), LEVELS - 1)
        self._likelihood.update((nll.sum().item(), len(nll)), np.bincount(places, minlength=LEVELS))
        return numbers | {"nll": nll.mean().item(), "coverage_90": float((levels < 0.9).mean())}


def parallax_of(points: Tensor, centres: Tensor) -> Tensor:
    """Angles (V, N), in degrees, at points (N, 3) between the origin and centres (V, 3)."""
    other = points - centres[:, None]
    across = torch.linalg.cross(points.expand_as(other), other).norm(dim=-1)
    return torch.atan2(across, (points * other).sum(-1)).rad2deg()


@dataclass(frozen=True)
class _Anchors(Dataset):
    """Of each anchor its sample at every gap, or why there is none."""

    sequences: dict[int, Sequences]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[int, dict[int, Batch] | str]:
        index = self.indices[place]
        try:
            return index, {gap: one[index] for gap, one in self.sequences.items()}
        except SampleError as error:
            return index, str(error)


def _collate(
    samples: list[tuple[int, dict[int, Batch] | str]],
) -> tuple[list[int], dict[int, Batch], list[str]]:
    good = [(index, found) for index, found in samples if not isinstance(found, str)]
    reasons = [found for _, found in samples if isinstance(found, str)]
    batches = default_collate([found for _, found in good]) if good else {}
    return [index for index, _ in good], batches, reasons


def _prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)


def _generator(seed: int, label: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {label}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _cut(value: Nested, place: int) -> Nested:
    """One sample of all tensors of a prediction, on the host, free of their graph."""
    if isinstance(value, Tensor):
        return value[place : place + 1].detach().cpu()
    if isinstance(value, tuple):
        return tuple(_cut(item, place) for item in value)
    if is_dataclass(value):
        return replace(
            value, **{f.name: _cut(getattr(value, f.name), place) for f in fields(value)}
        )
    return value


def _need_pixels(measured: GapMeasures, wanted: int) -> None:
    if not measured.images:
        raise ValueError(
            f"none of the {wanted} anchors can be loaded: the warnings say why, file by file"
        )
    if not any(one["valid"] for one in measured.images):
        low, high = measured.depth_range
        raise ValueError(
            f"no anchor has a true depth between {low:g} and {high:g} m, so there is nothing to "
            "compare with; check --mindepth and --maxdepth, and the unit of the depth files"
        )


def _median(values: Tensor) -> float:
    return values.median().item() if len(values) else math.nan
