"""Forward passes and matches of the pairs of a scene, from the cache where they are."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dust3r.inference import Prediction, for_each_batch
from dust3r.model import AsymmetricCroCo3DStereo
from mast3r.cloud_opt.cache import ForwardCache, ForwardResult, image_key
from mast3r.matching import match_predictions

log = logging.getLogger(__name__)

View = dict[str, Any]


class ForwardResults:
    """Results of ordered pairs of images, read from disk when asked for.

    Attributes:
        views: of the images.
        edges: (i, j), i < j, places in ``views`` of the pairs; both orders have results.
        computed: how many passes of the network it took.
    """

    def __init__(
        self, views: Sequence[View], edges: Sequence[tuple[int, int]], cache: ForwardCache
    ):
        self.views, self.edges = list(views), list(edges)
        self.shapes = [tuple(int(side) for side in view["img"].shape[-2:]) for view in views]
        self.computed = 0
        self._cache = cache
        self._keys = [image_key(view) for view in views]

    def get(self, first: int, second: int) -> ForwardResult:
        """What the pass with image ``first`` as its first and ``second`` as its second gave."""
        return self._cache.get(self._keys[first], self._keys[second], self.shapes[first])

    def compute_missing(
        self,
        model: AsymmetricCroCo3DStereo,
        device: torch.device,
        batch_size: int,
        subsample: int,
        verbose: bool,
        progress: Callable[[float], None] | None,
    ) -> None:
        """Run the network on all ordered pairs that the cache does not have."""
        ordered = [pair for i, j in self.edges for pair in ((i, j), (j, i))]
        missing = [(i, j) for i, j in ordered if not self._cache.has(self._keys[i], self._keys[j])]
        self.computed = len(missing)
        log.info(
            "%d of %d passes are in %s",
            len(ordered) - len(missing),
            len(ordered),
            self._cache.folder,
        )
        if not missing:
            if progress is not None:
                progress(1.0)
            return

        def take(batch: Sequence[int], first: Prediction, second: Prediction) -> None:
            for place, number in enumerate(batch):
                i, j = missing[number]
                own, other = (
                    {name: values[place] for name, values in prediction.items()}
                    for prediction in (first, second)
                )
                result = _result(own, other, self.views[i], self.views[j], device, subsample)
                self._cache.put(self._keys[i], self._keys[j], result)

        pairs = [(self.views[i], self.views[j]) for i, j in missing]
        for_each_batch(pairs, model, take, device, batch_size, verbose, progress=progress)


def forward_results(
    views: Sequence[View],
    edges: Sequence[tuple[int, int]],
    model: AsymmetricCroCo3DStereo,
    cache_path: str | Path,
    *,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    subsample: int = 8,
    verbose: bool = True,
    progress: Callable[[float], None] | None = None,
) -> ForwardResults:
    """Results of both orders of all pairs ``edges``.

    Only those that ``cache_path`` does not hold are computed, and each is there as soon as it is
    known, so that a run that was stopped goes on where it was.

    Raises:
        ValueError: the model has no descriptors, or what ``dust3r.inference.inference`` raises.
        mast3r.cloud_opt.cache.CacheError: the folder cannot be written.
    """
    device = next(model.parameters()).device if device is None else torch.device(device)
    cache = ForwardCache(cache_path, model, {"subsample": subsample})
    results = ForwardResults(views, edges, cache)
    results.compute_missing(model, device, batch_size, subsample, verbose, progress)
    return results


def _result(
    own: dict[str, Tensor],
    other: dict[str, Tensor],
    view1: View,
    view2: View,
    device: torch.device,
    subsample: int,
) -> ForwardResult:
    found = match_predictions(
        own, other, view1, view2, device=device, subsample_or_initxy1=subsample
    )
    pixels = torch.cat([torch.from_numpy(found.pixels1), torch.from_numpy(found.pixels2)], 1)
    return ForwardResult(
        points=own["pts3d"].float().cpu(),
        confidence=own["conf"].float().cpu(),
        pixels=pixels,
        match_confidence=torch.from_numpy(found.confidence),
    )
