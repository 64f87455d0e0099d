"""How good predicted depths and their uncertainties are, over the pairs of a loader."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dust3r.datasets.loader import StereoLoader
from dust3r.uncertainty.estimates import (
    DepthEstimate,
    inverse_confidence,
    pointmap_depth,
    stated_depths,
)
from dust3r.uncertainty.metrics import ause, gaussian_nll
from dust3r.utils.device import view_to_device
from dust3r.utils.view import check_view

MAX_PIXELS = 20_000_000

Maps = Mapping[str, Any]
Views = tuple[Maps, Maps]
Predictions = tuple[Maps, Maps]


@dataclass(frozen=True)
class Baselines:
    """What a model without uncertainty heads would know from the training set.

    Attributes:
        constant_depth: one depth for every pixel, in metres, as the training set's median.
        residual_variance: by head, the mean squared error of its mean on the training set, which
            is the maximum-likelihood variance of a Gaussian with one variance for all pixels.
    """

    constant_depth: float
    residual_variance: Mapping[str, float] = field(default_factory=dict)


def evaluate_depth(
    model: nn.Module,
    loader: StereoLoader,
    device: torch.device | str,
    baselines: Baselines | None = None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Errors of all depths a model predicts, over both views of all pairs of one epoch.

    Every view counts against its own depth map, in its own camera.

    Args:
        model: a pairwise model, in any mode; put on ``device`` and in eval mode.
        loader: of the pairs.
        device: to run on.
        baselines: to compare with.
        max_pixels: see ``DepthEvaluator``.

    Returns:
        See ``DepthEvaluator.result``.

    Raises:
        ValueError: the model has neither an uncertainty head nor a confidence, or no pixel of the
            loader is valid.
    """
    evaluator = DepthEvaluator(baselines, keep_one_in=thinning(loader, max_pixels))
    for views, predictions in predict(model, loader, device):
        evaluator.update(views, predictions)
    return evaluator.result()


def fit_baselines(model: nn.Module, loader: StereoLoader, device: torch.device | str) -> Baselines:
    """The baselines that the pairs of a training loader give; raises as ``evaluate_depth``."""
    evaluator = DepthEvaluator(keep_one_in=thinning(loader))
    for views, predictions in predict(model, loader, device, "training set"):
        evaluator.update(views, predictions)
    heads = evaluator.result()["heads"]
    variance = {
        name: numbers["rmse"] ** 2
        for name, numbers in heads.items()
        if "nll" in numbers and numbers["rmse"]
    }
    return Baselines(evaluator.pooled().depth.median().item(), variance)


@torch.no_grad()
def predict(
    model: nn.Module, loader: StereoLoader, device: torch.device | str, title: str = "pairs"
) -> Iterator[tuple[Views, Predictions]]:
    """Views and predictions of every batch of one epoch, on ``device``, with a progress bar."""
    device = torch.device(device)
    model = model.to(device).eval()
    with tqdm(total=len(loader.dataset), desc=title, unit="pair", dynamic_ncols=True) as bar:
        for views in loader:
            for view in views:
                check_view(view)
            first, second = (view_to_device(view, device) for view in views)
            yield (first, second), model(first, second)
            bar.update(len(first["img"]))


def thinning(loader: StereoLoader, max_pixels: int = MAX_PIXELS) -> int:
    """Of how many pixels one is to be kept, for at most about ``max_pixels`` of a loader."""
    largest = max(width * height for width, height in loader.dataset.resolutions)
    return max(1, math.ceil(2 * len(loader.dataset) * largest / max_pixels))


class DepthEvaluator:
    """Collects the errors of predictions, and sums them up.

    Means over pixels are exact whatever their number. Rankings over all images together need the
    pixels themselves: with ``keep_one_in`` = n a random n-th of them is kept, the same in every
    run, at 8 bytes each and 8 more for each head.

    Args:
        baselines: to compare with.
        keep_one_in: n, from 1.
    """

    def __init__(self, baselines: Baselines | None = None, keep_one_in: int = 1) -> None:
        self.baselines = baselines
        self.keep_one_in = keep_one_in
        self.records: list[dict[str, Any]] = []
        self._kept: list[Pixels] = []
        self._generator = torch.Generator().manual_seed(0)

    def update(self, views: Views, predictions: Predictions) -> list[dict[str, Any]]:
        """Add a batch.

        Returns:
            A record per image that has a valid pixel, those of view 1 first: ``label``, ``view``
            (1 or 2), ``index`` (in the batch), ``pixels``, and ``heads``: name -> ``rmse``,
            ``mae``, ``nll`` and ``ause`` (with a distribution), ``ause_conf`` (with a confidence:
            of 1 / confidence, against the errors of this head); with baselines ``constant``:
            ``rmse`` and ``mae``.

        Raises:
            ValueError: the prediction holds nothing that ranks pixels.
        """
        pose1 = views[0]["camera_pose"]
        added = []
        for number, (view, prediction) in enumerate(zip(views, predictions, strict=True), 1):
            estimates = _rankable_estimates(view, prediction, pose1)
            likelihoods = [estimate.nll(view["depthmap"].float()) for estimate in estimates]
            for index, valid in enumerate(view["valid_mask"]):
                if not valid.any():
                    continue
                pixels = Pixels.select(view, prediction, estimates, index)
                record = {
                    "label": view["label"][index],
                    "view": number,
                    "index": index,
                    "pixels": len(pixels.depth),
                    "heads": {name: pixels.measure(name) for name in pixels.error},
                }
                for estimate, nll in zip(estimates, likelihoods, strict=True):
                    if nll is not None:
                        record["heads"][estimate.name]["nll"] = _mean(nll[index][valid])
                if self.baselines is not None:
                    record["constant"] = _errors(pixels.depth - self.baselines.constant_depth)
                added.append(record)
                self._kept.append(pixels.thinned(self.keep_one_in, self._generator))
        self.records += added
        return added

    def result(self) -> dict[str, Any]:
        """All numbers so far, ready for JSON: None stands for what is not a finite number.

        Returns:
            ``images``, ``pixels``, ``ranked_pixels`` (those that the pooled rankings use),
            ``heads``: name -> ``rmse``, ``mae`` (metres) and ``nll`` (nats), over all pixels;
            ``ause``, ``ause_conf`` (metres), all pixels ranked together; ``ause_per_image``,
            ``ause_conf_per_image``, pixels ranked within each image, then the mean over images.
            With baselines: ``constant`` (``depth``, ``rmse``, ``mae``) and, in ``heads``,
            ``residual_variance`` and ``gaussian_nll``, the NLL with this one variance.

        Raises:
            ValueError: there was no valid pixel.
        """
        if not self.records:
            raise ValueError(
                "no pixel of these pairs has a valid depth, so there is nothing to compare with; "
                "check the data set's depth files and their unit"
            )
        pooled = self.pooled()
        result = {
            "images": len(self.records),
            "pixels": sum(record["pixels"] for record in self.records),
            "ranked_pixels": len(pooled.depth),
            "heads": {name: self._sum_up(name, pooled) for name in pooled.error},
        }
        if self.baselines is not None:
            measured = self._over_pixels([record["constant"] for record in self.records])
            result["constant"] = {"depth": self.baselines.constant_depth, **measured}
        return finite(result)

    def pooled(self) -> "Pixels":
        """The kept pixels of all images, together."""
        return Pixels.concatenate(self._kept)

    def _sum_up(self, name: str, pooled: "Pixels") -> dict[str, float]:
        records = [record["heads"][name] for record in self.records]
        numbers = self._over_pixels(records)
        for key, value in pooled.rankings(name).items():
            numbers[key] = value
            numbers[f"{key}_per_image"] = float(np.mean([record[key] for record in records]))
        if self.baselines is not None and name in self.baselines.residual_variance:
            variance = self.baselines.residual_variance[name]
            numbers["residual_variance"] = variance
            # The NLL is linear in the squared error, so that the mean of this is enough.
            rmse, var = (torch.tensor(n, dtype=torch.float64) for n in (numbers["rmse"], variance))
            numbers["gaussian_nll"] = gaussian_nll(rmse, torch.zeros_like(rmse), var).item()
        return numbers

    def _over_pixels(self, records: list[dict[str, float]]) -> dict[str, float]:
        """Means over all pixels from those over each image's."""
        weights = [record["pixels"] for record in self.records]
        means = {
            key: float(np.average([record[key] for record in records], weights=weights))
            for key in ("mae", "nll")
            if key in records[0]
        }
        squares = np.square([record["rmse"] for record in records])
        return {"rmse": float(np.sqrt(np.average(squares, weights=weights))), **means}


@dataclass(frozen=True)
class Pixels:
    """Valid pixels, all (N,): true depth; by head absolute errors and standard deviations.

    ``doubt`` is 1 / confidence, or None; ``deviation`` has the heads that state one alone.
    """

    depth: Tensor
    doubt: Tensor | None
    error: dict[str, Tensor]
    deviation: dict[str, Tensor]

    @classmethod
    def select(
        cls, view: Maps, prediction: Maps, estimates: list[DepthEstimate], index: int
    ) -> "Pixels":
        valid = view["valid_mask"][index]
        depth = view["depthmap"][index][valid].float()
        doubt = inverse_confidence(prediction)
        return cls(
            depth,
            None if doubt is None else doubt[index][valid],
            {e.name: e.errors_at(index, valid, depth) for e in estimates},
            {e.name: e.uncertainty[index][valid] for e in estimates if e.is_deviation},
        )

    @classmethod
    def concatenate(cls, parts: list["Pixels"]) -> "Pixels":
        first = parts[0]
        return cls(
            torch.cat([part.depth for part in parts]),
            None if first.doubt is None else torch.cat([part.doubt for part in parts]),
            {name: torch.cat([part.error[name] for part in parts]) for name in first.error},
            {name: torch.cat([part.deviation[name] for part in parts]) for name in first.deviation},
        )

    def thinned(self, keep_one_in: int, generator: torch.Generator) -> "Pixels":
        """A random share of the pixels, on the host."""
        kept = torch.rand(len(self.depth), generator=generator) * keep_one_in < 1
        return Pixels(
            self.depth.cpu()[kept],
            None if self.doubt is None else self.doubt.cpu()[kept],
            {name: values.cpu()[kept] for name, values in self.error.items()},
            {name: values.cpu()[kept] for name, values in self.deviation.items()},
        )

    def measure(self, name: str) -> dict[str, float]:
        return _errors(self.error[name]) | self.rankings(name)

    def rankings(self, name: str) -> dict[str, float]:
        """``ause`` by the head's own deviation and ``ause_conf`` by 1 / confidence, if there."""
        by = {"ause": self.deviation.get(name), "ause_conf": self.doubt}
        return {
            key: ause(self.error[name], uncertainty).item()
            for key, uncertainty in by.items()
            if uncertainty is not None
        }


def finite(value: Any) -> Any:
    """``value``, nested as it is, with None in place of NaN and infinities, unknown to JSON."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rankable_estimates(view: Maps, prediction: Maps, pose1: Tensor) -> list[DepthEstimate]:
    pointmap = pointmap_depth(view, prediction, pose1)
    heads = stated_depths(view, prediction, pose1)
    if not heads and pointmap.uncertainty is None:
        raise ValueError(
            "this model has neither an uncertainty head nor a confidence, so nothing says how "
            "certain its depth is; give one with head_type='dpt_uq', 'dpt_uq_feat' or "
            "'catmlp+dpt+xyz_hetero_dpt', or with conf_mode=('exp', 1, inf)"
        )
    return [*heads, pointmap]


def _errors(error: Tensor) -> dict[str, float]:
    return {"rmse": math.sqrt(_mean(error.square())), "mae": _mean(error.abs())}


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
