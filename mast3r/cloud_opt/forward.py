"""Forward passes and matches of the pairs of a scene, from the cache where they are."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dust3r.inference import Prediction, for_each_batch
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.reconstruction import Source
from mast3r.cloud_opt.cache import ForwardCache, ForwardResult, image_key
from mast3r.matching import match_predictions, need_descriptors

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
    known, so that a run that was stopped goes on where it was. Pixels whose descriptors are not
    finite do not match.

    Raises:
        ValueError: the model has no descriptors, a mask covers a whole image, ``subsample`` is
            below 1 or more than an image's side, or what ``dust3r.inference.inference`` raises.
        mast3r.cloud_opt.cache.CacheError: the folder cannot be written.
    """
    # Before the network works for minutes.
    need_descriptors(model)
    masks_of(views)
    shortest = min((side for view in views for side in view["img"].shape[-2:]), default=subsample)
    if not 1 <= subsample <= shortest:
        raise ValueError(
            f"subsample={subsample} must be from 1 to {shortest} pixels, the shortest side of an "
            "image"
        )
    device = next(model.parameters()).device if device is None else torch.device(device)
    cache = ForwardCache(cache_path, model, {"subsample": subsample})
    results = ForwardResults(views, edges, cache)
    results.compute_missing(model, device, batch_size, subsample, verbose, progress)
    return results


def images_of(pairs: Sequence[tuple[View, View]]) -> tuple[list[View], list[tuple[int, int]]]:
    """Distinct views in the order of their ``idx``, and pairs of places i < j among them.

    Views made without ``load_images`` are their own originals.

    Raises:
        ValueError: no pairs, or two images with one ``idx``.
    """
    if not pairs:
        raise ValueError("there are no pairs: make some with dust3r.image_pairs.make_pairs")
    views: dict[int, View] = {}
    for view in (view for pair in pairs for view in pair):
        known = views.setdefault(int(view["idx"]), view)
        if known is not view and not torch.equal(known["img"], view["img"]):
            raise ValueError(
                f"two different images have the idx {int(view['idx'])}: load all images in one "
                "call of load_images, or number them anew"
            )
    place = {name: n for n, name in enumerate(sorted(views))}
    edges = {tuple(sorted(place[int(view["idx"])] for view in pair)) for pair in pairs}
    return [_with_source(views[name]) for name in sorted(views)], sorted(
        edge for edge in edges if len(set(edge)) == 2
    )


def masks_of(views: Sequence[View]) -> list[Tensor]:
    """Which pixels of every view are used, (H, W) bool; all where there is no mask.

    Raises:
        ValueError: a mask covers a whole image.
    """
    masks = [_mask_of(view) for view in views]
    for mask, view in zip(masks, views, strict=True):
        if not mask.any():
            raise ValueError(
                f"the mask of {view['source'].name} covers all of it: leave the image out, or "
                "mend the mask (nonzero pixels are used, zero ones are not)"
            )
    return masks


def _with_source(view: View) -> View:
    if "source" in view:
        return view
    height, width = view["img"].shape[-2:]
    name = f"image_{int(view['idx']):03d}.png"
    return view | {"source": Source(name, None, (width, height), np.eye(3))}


def _mask_of(view: View) -> Tensor:
    shape = tuple(view["img"].shape[-2:])
    if view.get("mask") is None:
        return torch.ones(shape, dtype=torch.bool)
    return torch.as_tensor(view["mask"]).reshape(shape).bool()


def _result(
    own: dict[str, Tensor],
    other: dict[str, Tensor],
    view1: View,
    view2: View,
    device: torch.device,
    subsample: int,
) -> ForwardResult:
    pixels, match_confidence = torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0)
    views = [_of_finite(view, said) for view, said in ((view1, own), (view2, other))]
    if all(view["mask"].any() for view in views):
        found = match_predictions(own, other, *views, device=device, subsample_or_initxy1=subsample)
        pixels = torch.cat([torch.from_numpy(found.pixels1), torch.from_numpy(found.pixels2)], 1)
        match_confidence = torch.from_numpy(found.confidence)
    return ForwardResult(
        points=own["pts3d"].float().cpu(),
        confidence=own["conf"].float().cpu(),
        pixels=pixels,
        match_confidence=match_confidence,
    )


def _of_finite(view: View, prediction: dict[str, Tensor]) -> View:
    """The view, its mask without pixels whose descriptors are not finite."""
    finite = prediction["desc"].isfinite().all(-1).cpu()
    if not finite.all():
        name = view["source"].name
        log.warning("%d descriptors of %s are not finite and do not match", (~finite).sum(), name)
    return view | {"mask": (_mask_of(view) & finite)[None]}
