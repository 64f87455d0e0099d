"""Where predictions come from: a network that works now, or files that one left.

Stored predictions are ``DIR/predictions.json`` and, per benchmark and pair, a safetensors file of
the truth and one of each model's maps: ``DIR/<benchmark>/<truth or model>/<pair>.safetensors``.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dust3r.evaluation.benchmarks import Benchmark, load_pairs
from dust3r.evaluation.methods import Method
from dust3r.evaluation.networks import Source
from dust3r.utils.device import to_cpu, view_to_device
from dust3r.utils.files import atomic_path
from dust3r.utils.geometry import depthmap_to_pts3d

log = logging.getLogger(__name__)

Maps = Mapping[str, Any]
Pair = tuple[dict[str, Any], dict[str, Any]]

INDEX = "predictions.json"
TRUTH = "truth"
LEFT_OUT = ("desc", "desc_conf")

_SAME = "same "


@dataclass(frozen=True)
class Predicted:
    """A pair, a batch of one: its views, and by source its predictions; or why there are none."""

    index: int
    views: Pair | None
    predictions: dict[str, Pair]
    skipped: str = ""


class Networks:
    """Predictions of networks, made now, and stored where ``save_to`` is given.

    Args:
        networks: by source name, on ``device`` and in eval mode.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        device: torch.device,
        batch_size: int,
        num_workers: int,
        seed: int,
        save_to: Path | None = None,
    ) -> None:
        self.networks, self.device, self.save_to = dict(networks), device, save_to
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def missing(self, benchmark: str, index: int) -> bool:
        """Whether a pair is yet to be stored."""
        if self.save_to is None:
            return False
        # A pair that was left out has a truth alone, which says so.
        truth = pair_file(self.save_to, benchmark, TRUTH, index)
        files = [pair_file(self.save_to, benchmark, name, index) for name in self.networks]
        if not truth.is_file():
            return True
        return not all(file.is_file() for file in files) and "skipped" not in _read_pair(truth)[1]

    @torch.no_grad()
    def pairs(self, benchmark: Benchmark, indices: Sequence[int]) -> Iterator[Predicted]:
        """Pairs in order, each with its predictions, on the device."""
        arguments = benchmark.dataset, indices, self.batch_size, self.num_workers, self.seed
        for batch, views, reasons in load_pairs(*arguments):
            if views is None:
                predicted = Predicted(batch[0], None, {}, reasons[0])
                self._store(benchmark.name, predicted)
                yield predicted
                continue
            first, second = (view_to_device(view, self.device) for view in views)
            found = {name: network(first, second) for name, network in self.networks.items()}
            for place, index in enumerate(batch):
                predicted = Predicted(
                    index,
                    tuple(_only(view, place) for view in (first, second)),
                    {
                        name: tuple(_only(prediction, place) for prediction in pair)
                        for name, pair in found.items()
                    },
                )
                self._store(benchmark.name, predicted)
                yield predicted

    def _store(self, benchmark: str, pair: Predicted) -> None:
        if self.save_to is not None:
            store_pair(self.save_to, benchmark, pair)


def store_pair(folder: Path, benchmark: str, pair: Predicted) -> None:
    """Write a pair's predictions and truth, each file whole or not at all."""
    for name, predictions in pair.predictions.items():
        kept = tuple(
            {key: value for key, value in prediction.items() if key not in LEFT_OUT}
            for prediction in predictions
        )
        _write_pair(pair_file(folder, benchmark, name, pair.index), kept, {})
    # The truth comes last: where it is, the pair is whole.
    path = pair_file(folder, benchmark, TRUTH, pair.index)
    if pair.views is None:
        _write_pair(path, ({}, {}), {"skipped": pair.skipped})
        return
    told = {
        f"{key}{n}": view[key][0]
        for n, view in enumerate(pair.views)
        for key in ("label", "instance")
    }
    _write_pair(path, tuple(_stored_view(view) for view in pair.views), told)


@dataclass(frozen=True)
class Stored:
    """Predictions that ``Networks`` stored, by the names of their sources."""

    folder: Path
    names: tuple[str, ...]

    def missing(self, benchmark: str, index: int) -> bool:
        return False

    def pairs(self, benchmark: Any, indices: Sequence[int]) -> Iterator[Predicted]:
        """As ``Networks.pairs``; of the benchmark only the name counts.

        Raises:
            ValueError: a pair is not there or damaged.
        """
        for index in indices:
            views, told = _read_pair(pair_file(self.folder, benchmark.name, TRUTH, index))
            if "skipped" in told:
                yield Predicted(index, None, {}, told["skipped"])
                continue
            for n, view in enumerate(views):
                _finish_view(view)
                view |= {key: [told[f"{key}{n}"]] for key in ("label", "instance")}
            files = {name: pair_file(self.folder, benchmark.name, name, index)
                     for name in self.names}  # fmt: skip
            yield Predicted(index, views, {n: _read_pair(path)[0] for n, path in files.items()})


def pair_file(folder: Path, benchmark: str, name: str, index: int) -> Path:
    return folder / benchmark / name / f"{index:07d}.safetensors"


def write_index(folder: Path, benchmarks: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    """Say what a folder of predictions holds.

    Args:
        benchmarks: name -> ``spec`` and ``pairs``.
        sources: label of a method -> its network.
    """
    content = {
        "benchmarks": benchmarks,
        "methods": {label: source.name for label, source in sources.items()},
        "sources": {source.name: str(source) for source in sources.values()},
    }
    path = folder / INDEX
    if path.is_file():
        found = json.loads(path.read_text())
        for key in ("benchmarks", "methods", "sources"):
            both = content[key].keys() & found[key].keys()
            changed = sorted(name for name in both if content[key][name] != found[key][name])
            if changed:
                raise ValueError(
                    f"--save_predictions: {folder} holds predictions of other {key} "
                    f"({', '.join(changed)}); give an empty folder"
                )
            content[key] = {**found[key], **content[key]}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def read_index(folder: Path) -> dict[str, Any]:
    """What ``write_index`` wrote.

    Raises:
        FileNotFoundError: there is none.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"--predictions: {folder} has no {INDEX}; give a folder that --save_predictions filled"
        )
    return json.loads(path.read_text())


def stored_sources(index: Mapping[str, Any], methods: Sequence[Method]) -> dict[str, str]:
    """Label of a method -> name of its stored source.

    Raises:
        ValueError: a label is not among those stored, which are of more than one network.
    """
    chosen = {}
    for method in methods:
        only = next(iter(index["sources"])) if len(index["sources"]) == 1 else None
        name = index["methods"].get(method.label, only)
        if name is None:
            raise ValueError(
                f"--predictions has none of {method.label!r}: there are "
                f"{', '.join(index['methods'])}, of {len(index['sources'])} checkpoints; use one "
                "of these labels in --methods, as in label:family"
            )
        chosen[method.label] = name
    return chosen


def _only(batch: Maps, place: int) -> dict[str, Any]:
    return {
        key: value[place : place + 1] if isinstance(value, (Tensor, list, tuple)) else value
        for key, value in batch.items()
        if key != "idx"
    }


def _stored_view(view: Maps) -> dict[str, Tensor]:
    image = ((view["img"].float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    keys = ("depthmap", "valid_mask", "camera_pose", "camera_intrinsics", "true_shape")
    return {"rgb": image, **{key: torch.as_tensor(view[key]) for key in keys}}


def _finish_view(view: dict[str, Any]) -> None:
    """The view of ``_stored_view`` again."""
    view["img"] = view.pop("rgb").float() / 127.5 - 1
    depth = view["depthmap"]
    upright = tuple(view["true_shape"][0].tolist())
    transposed = upright != tuple(depth.shape[1:])
    points = depthmap_to_pts3d(
        depth.mT if transposed else depth, view["camera_intrinsics"], view["camera_pose"]
    )
    view["pts3d"] = points.transpose(1, 2) if transposed else points


def _write_pair(path: Path, maps: tuple[Maps, Maps], told: Mapping[str, str]) -> None:
    tensors: dict[str, Tensor] = {}
    told, places = dict(told), {}
    for n, one in enumerate(to_cpu(maps)):
        for key, value in one.items():
            if isinstance(value, Tensor):
                # Maps that are one in memory, as a mean and its gamma, are one in the file.
                memory = value.data_ptr(), value.shape, value.stride(), value.dtype
                first = places.setdefault(memory, f"{n}.{key}")
                if first == f"{n}.{key}":
                    tensors[first] = value.clone(memory_format=torch.contiguous_format)
                else:
                    told[f"{_SAME}{n}.{key}"] = first
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, told)


def _read_pair(path: Path) -> tuple[Pair, dict[str, str]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            told = file.metadata() or {}
            maps: Pair = ({}, {})
            for key in file.keys():  # noqa: SIM118  (no mapping)
                maps[int(key[0])][key[2:]] = file.get_tensor(key)
            for key, first in told.items():
                if key.startswith(_SAME):
                    n, name = key.removeprefix(_SAME).split(".", 1)
                    maps[int(n)][name] = maps[int(first[0])][first[2:]]
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"the stored prediction {path} is missing or damaged ({error}); the command that "
            "stored it, started again, makes what is missing"
        ) from error
    return maps, told
