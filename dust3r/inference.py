"""The network on pairs of images: each image encoded once, the pairs decoded in batches."""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.utils.view import check_view

log = logging.getLogger(__name__)

View = dict[str, Any]
Shape = tuple[int, int]
Prediction = dict[str, Tensor]
Pairs = Sequence[tuple[View, View]]

# What allocators say: CUDA and MPS; the CPU's on Windows and on Linux; cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


def inference(
    pairs: Pairs,
    model: AsymmetricCroCo3DStereo,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    verbose: bool = True,
    *,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Predictions of all pairs, as calling the model on each of them would give.

    Every distinct image is encoded once, however many pairs it is in. Where memory ends, batches
    are halved for the rest of the run. Results go to the CPU batch by batch.

    Args:
        pairs: of views with one upright image each, as of ``dust3r.image_pairs.make_pairs``;
            shapes may differ.
        model: runs in eval mode, and is left in the mode it came in.
        device: where the network runs, and the model is moved to; its own where None.
        batch_size: images, then pairs, at a time.
        verbose: show a progress bar.
        progress: called with the fraction that is done, rising to 1.

    Returns:
        ``view1``, ``view2``, ``pred1``, ``pred2`` (DESIGN 2) over the P pairs, and ``loss`` None.
        Tensors are (P, ...) where ``check_if_same_size``; else images, masks and predictions are
        lists with one entry per pair, so that ``pred1['pts3d'][p]`` is (H, W, 3) in both cases.
        ``true_shape`` is (P, 2); ``idx``, ``instance``, ``source`` and other values are lists.

    Raises:
        ValueError: no pairs, a view that is not one upright image, ``batch_size`` below 1, or a
            portrait image for a model that knows landscape batches only.
        torch.OutOfMemoryError: even one pair at a time does not fit.
    """
    stores: list[_Store] = []

    def keep(batch: Sequence[int], *predictions: Prediction) -> None:
        if not stores:
            stores.extend(_Store(len(pairs), check_if_same_size(pairs)) for _ in predictions)
        for store, prediction in zip(stores, predictions, strict=True):
            store.put(batch, prediction)

    for_each_batch(pairs, model, keep, device, batch_size, verbose, progress=progress)
    same = check_if_same_size(pairs)
    first, second = zip(*pairs, strict=True)
    return {
        "view1": _collate(first, same),
        "view2": _collate(second, same),
        "pred1": stores[0].values,
        "pred2": stores[1].values,
        "loss": None,
    }


@torch.no_grad()
def for_each_batch(
    pairs: Pairs,
    model: AsymmetricCroCo3DStereo,
    take: Callable[[Sequence[int], Prediction, Prediction], None],
    device: str | torch.device | None = None,
    batch_size: int = 8,
    verbose: bool = True,
    *,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Predictions of all pairs, handed over batch by batch, for those that need not keep them all.

    Args:
        take: called with the places in ``pairs`` of a batch and its predictions for first and
            second images, tensors (B, ...) on the device; again for the same pairs, in smaller
            batches, where memory ended. What it holds on to fills the device's memory.
        Others, and errors, as ``inference``.
    """
    batches = _Batches(batch_size)
    if not pairs:
        raise ValueError("there are no pairs: make some with dust3r.image_pairs.make_pairs")
    images, ends = _distinct_images(pairs)
    shapes = [_upright_shape(image, model.landscape_only) for image in images]
    device = _placed(model, device)
    total = len(images) + len(pairs)
    with _evaluating(model), _Progress(total, "images and pairs", verbose, progress) as steps:
        tokens, positions = [None] * len(images), [None] * len(images)

        def keep(batch: Sequence[int], *encoded: Tensor) -> None:
            # On the host, because hundreds of images would crowd the pairs out of a small GPU.
            for i, *one in zip(batch, *(tensor.cpu() for tensor in encoded), strict=True):
                tokens[i], positions[i] = one

        for count in _encoded(images, shapes, model, device, batches, keep):
            steps.advance(count)

        def decode(batch: Sequence[int]) -> None:
            inputs = []
            for chosen in zip(*(ends[p] for p in batch), strict=True):
                features = ([values[i] for i in chosen] for values in (tokens, positions))
                inputs.append(tuple(torch.stack(values).to(device) for values in features))
                inputs.append(torch.tensor([shapes[i] for i in chosen]))
            take(batch, *model.predict(*inputs))

        for group in _groups([(shapes[i], shapes[j]) for i, j in ends]):
            for count in batches.run(group, decode):
                steps.advance(count)


@torch.no_grad()
def for_each_image(
    views: Sequence[View],
    model: AsymmetricCroCo3DStereo,
    take: Callable[[Sequence[int], Tensor, Tensor], None],
    device: str | torch.device | None = None,
    batch_size: int = 8,
    verbose: bool = True,
) -> None:
    """Tokens of all images, handed over batch by batch, for what needs the encoder alone.

    Args:
        views: of one upright image each; none comes twice.
        take: called with the places in ``views`` of a batch, its tokens (B, T, D) and their
            positions (B, T, 2) on the device.
        Others, and errors, as ``inference``.
    """
    batches = _Batches(batch_size)
    if not views:
        raise ValueError("there are no images: load some with dust3r.utils.image.load_images")
    for view in views:
        check_view(view, with_truth=False)
    shapes = [_upright_shape(view, model.landscape_only) for view in views]
    device = _placed(model, device)
    with _evaluating(model), _Progress(len(views), "images", verbose) as steps:
        for count in _encoded(views, shapes, model, device, batches, take):
            steps.advance(count)


def check_if_same_size(pairs: Pairs) -> bool:
    """Whether all first images have one shape, and all second images have one."""
    sides = zip(*pairs, strict=True)
    return all(len({view["img"].shape[-2:] for view in side}) <= 1 for side in sides)


def _placed(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """Where the model, moved there if need be, now is."""
    device = next(model.parameters()).device if device is None else torch.device(device)
    model.to(device)
    return device


def _encoded(
    views: Sequence[View],
    shapes: Sequence[Shape],
    model: AsymmetricCroCo3DStereo,
    device: torch.device,
    batches: "_Batches",
    take: Callable[[Sequence[int], Tensor, Tensor], None],
) -> Iterator[int]:
    """Encode all images; yields the number of each batch that ``take`` was given."""

    def encode(batch: Sequence[int]) -> None:
        pixels = torch.cat([views[i]["img"] for i in batch]).to(device)
        take(batch, *model.encode_image(pixels, torch.tensor([shapes[i] for i in batch])))

    for group in _groups(shapes):
        yield from batches.run(group, encode)


def _distinct_images(pairs: Pairs) -> tuple[list[View], list[tuple[int, int]]]:
    """Views of different images, and for each pair which two of them it is made of."""
    images: list[View] = []
    by_tensor: dict[int, int] = {}
    by_label: dict[Hashable, list[int]] = defaultdict(list)

    def place(view: View) -> int:
        check_view(view, with_truth=False)
        image = view["img"]
        if id(image) not in by_tensor:
            # Lists that were loaded apart count from 0 each, so that labels alone are no proof.
            alike = by_label[str(view.get("idx")), str(view.get("instance")), image.shape]
            known = [i for i in alike if torch.equal(images[i]["img"], image)]
            if not known:
                known = [len(images)]
                alike += known
                images.append(view)
            by_tensor[id(image)] = known[0]
        return by_tensor[id(image)]

    return images, [(place(first), place(second)) for first, second in pairs]


def _upright_shape(view: View, landscape_only: bool) -> Shape:
    batch, _, height, width = view["img"].shape
    stated = tuple(int(side) for side in view["true_shape"][0])
    if batch != 1 or stated != (height, width):
        raise ValueError(
            f"a view of a pair holds one upright image (1, 3, H, W), and this one has the shape "
            f"{tuple(view['img'].shape)} with true_shape {stated}: load images with "
            "dust3r.utils.image.load_images"
        )
    if landscape_only and height > width:
        raise ValueError(
            f"this model takes batches in landscape layout, and an image is {height}x{width} "
            "(height x width): call dust3r.model.for_upright_images(model) once, as "
            "dust3r.model.load_model does by itself"
        )
    return height, width


def _groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of equal keys, each group in rising order."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        groups[key].append(place)
    return list(groups.values())


def _collate(views: Sequence[View], same: bool) -> View:
    names = dict.fromkeys(name for view in views for name in view)
    return {name: _join(name, [view.get(name) for view in views], same) for name in names}


def _join(name: str, values: list[Any], same: bool) -> Tensor | list[Any]:
    if name == "true_shape":
        return torch.cat([torch.as_tensor(value) for value in values])
    if not any(isinstance(value, Tensor) for value in values):
        return values
    if same and all(isinstance(value, Tensor) for value in values):
        return torch.cat(values).cpu()
    return [value[0].cpu() if isinstance(value, Tensor) else value for value in values]


@dataclass
class _Store:
    """Predictions of all pairs on the CPU, by name: tensors (P, ...), or lists where mixed."""

    count: int
    same: bool
    values: dict[str, Any] = field(default_factory=dict)

    def put(self, batch: Sequence[int], prediction: dict[str, Tensor]) -> None:
        for name, tensor in prediction.items():
            if self.same:
                # Filled in place: joining batches in the end would take twice the memory.
                if name not in self.values:
                    shape = self.count, *tensor.shape[1:]
                    self.values[name] = torch.empty(shape, dtype=tensor.dtype)
                self.values[name][batch[0] : batch[-1] + 1].copy_(tensor)
            else:
                slots = self.values.setdefault(name, [None] * self.count)
                for place, one in zip(batch, tensor.cpu().contiguous(), strict=True):
                    slots[place] = one


class _Batches:
    """Work in batches of a size that halves, for good, where memory ends."""

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"batch_size={size} must be 1 or more")
        self.size = size

    def run(self, items: Sequence[int], work: Callable[[Sequence[int]], None]) -> Iterator[int]:
        """Give all items to ``work``, batch by batch; yields the number of each that is done."""
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            if self._fits(batch, work):
                start += len(batch)
                yield len(batch)

    def _fits(self, batch: Sequence[int], work: Callable[[Sequence[int]], None]) -> bool:
        try:
            work(batch)
            return True
        except (RuntimeError, MemoryError) as error:
            message = str(error)
            if not isinstance(error, MemoryError) and not any(
                sign in message for sign in _OUT_OF_MEMORY
            ):
                raise
            if len(batch) == 1:
                raise torch.OutOfMemoryError(
                    "memory ends even with one image or pair at a time: load the images at a "
                    "smaller size, take fewer pairs (another scene_graph) or a smaller model, run "
                    f"with device='cpu', or close other programs that use the device ({message})"
                ) from error
        # Past the handler nothing holds on to the tensors of the failed attempt any more.
        self.size = len(batch) // 2
        log.warning("out of memory with batches of %d, going on with %d", len(batch), self.size)
        _free_memory()
        return False


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


class _Progress:
    """A progress bar and a caller's function that are told the same."""

    def __init__(
        self,
        total: int,
        what: str,
        verbose: bool,
        report: Callable[[float], None] | None = None,
    ):
        self.bar = tqdm(total=total, desc=what, disable=not verbose)
        self.total, self.done, self.report = total, 0, report

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, count: int) -> None:
        self.done += count
        self.bar.update(count)
        if self.report is not None:
            self.report(self.done / self.total)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
