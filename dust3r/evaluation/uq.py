"""How well uncertainty ranks, and states, the errors of a model: the run from pairs to numbers."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dust3r.evaluation import benchmarks as named
from dust3r.evaluation.measure import measure_image, metres_of_unit, point_errors, rankings_of
from dust3r.evaluation.methods import Method
from dust3r.evaluation.networks import Source, prediction_keys
from dust3r.evaluation.pooled import pooled
from dust3r.evaluation.predictions import (
    Networks,
    Predicted,
    Stored,
    read_index,
    stored_sources,
    write_index,
)
from dust3r.evaluation.rankings import Columns
from dust3r.evaluation.records import PairRecord, RecordStore, Run
from dust3r.evaluation.report import write_json
from dust3r.evaluation.summary import MethodMetrics, to_device
from dust3r.evaluation.workers import mapped
from dust3r.training.distributed import World

log = logging.getLogger(__name__)

RECORDS = "records"
FORMAT = 2

# Fewer pairs than these for each worker process are done sooner without it.
_WORTH_A_WORKER = 4


@dataclass(frozen=True)
class PairSet:
    """Pairs to evaluate: ``benchmark`` has at least a ``name``."""

    benchmark: Any
    spec: str
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.benchmark.name


@dataclass
class Evaluation:
    """What is evaluated, where it comes from, and how.

    Attributes:
        methods: rows of the tables.
        pairs: of each benchmark.
        provider: gives predictions, by source name.
        sources: label of a method -> source name.
        alignment: of points, see ``alignment.align_points``.
        streaming: sketches in place of all pixels.
        scale_free: labels of methods whose points have no scale, and what they state neither; see
            ``measure.metres_of_unit``.
        num_workers: processes that measure stored predictions; the numbers do not depend on it.
    """

    methods: Sequence[Method]
    pairs: Sequence[PairSet]
    provider: Networks | Stored
    sources: Mapping[str, str]
    alignment: str = "umeyama"
    streaming: bool = False
    scale_free: frozenset[str] = frozenset()
    has_confidence: bool = True
    num_workers: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What records depend on."""
        return {
            "format": FORMAT,
            "benchmarks": {one.name: [one.spec, list(one.indices)] for one in self.pairs},
            "methods": {method.label: method.family for method in self.methods},
            "sources": dict(self.sources),
            "alignment": self.alignment,
            "mode": "streaming" if self.streaming else "exact",
            "scale_free": sorted(self.scale_free),
        }

    def write_pairs(self, folder: Path) -> None:
        """``pairs.json``: which pairs of each benchmark are evaluated."""
        chosen = {one.name: {"spec": one.spec, "pairs": list(one.indices)} for one in self.pairs}
        write_json(folder / "pairs.json", chosen)

    def measure(self, store: RecordStore, world: World) -> None:
        """Measure all pairs without a record, this rank its share of them."""
        for one in self.pairs:
            # Shares that do not depend on what is done: other ranks may be ahead of this one.
            share = one.indices[world.rank :: world.size]
            mine = [
                index
                for index in share
                if not store.has(one.name, index) or self.provider.missing(one.name, index)
            ]
            if len(mine) < len(share) and world.is_main:
                done = len(share) - len(mine)
                whose = "" if world.size == 1 else " of this process"
                log.info("%s: %d of %d pairs%s are done", one.name, done, len(share), whose)
            if not mine:
                continue
            with tqdm(
                total=len(mine), desc=one.name, unit="pair", disable=not world.is_main
            ) as bar:
                for _ in self._measured(one, mine, store):
                    bar.update()

    def _measured(
        self, pairs: PairSet, indices: Sequence[int], store: RecordStore
    ) -> Iterator[None]:
        if isinstance(self.provider, Stored):
            work = partial(_measure_stored, self, pairs.benchmark, store)
            return mapped(work, indices, self._workers(len(indices)))
        work = partial(_measure, self, pairs.benchmark, store)
        # Networks use all threads; what they found is measured here, by one.
        return mapped(work, self.provider.pairs(pairs.benchmark, indices))

    def _workers(self, pairs: int) -> int:
        return min(self.num_workers, pairs // _WORTH_A_WORKER)

    def measure_pair(self, pair: Predicted) -> PairRecord:
        """Both images of a pair by all methods."""
        if pair.views is None:
            return PairRecord(skipped=pair.skipped)
        pose1 = pair.views[0]["camera_pose"]
        geometry = {
            source: [
                point_errors(view, prediction, self.alignment)
                for view, prediction in zip(pair.views, predictions, strict=True)
            ]
            for source, predictions in pair.predictions.items()
        }
        metres = {
            source: metres_of_unit(pair.views, pair.predictions[source])
            for source in {self.sources[label] for label in self.scale_free}
        }
        record = PairRecord()
        columns = [None if self.streaming else Columns() for _ in pair.views]
        for method in self.methods:
            source = self.sources[method.label]
            method.check(pair.predictions[source][0], f"{method.label}'s {source}")
            record.measures[method.label] = [
                measure_image(
                    view,
                    pair.predictions[source][n],
                    pose1,
                    method,
                    geometry[source][n],
                    n + 1,
                    columns[n],
                    metres[source] if method.label in self.scale_free else 1.0,
                )
                for n, view in enumerate(pair.views)
            ]
        return record

    def summarise(self, store: RecordStore, world: World) -> tuple[list[dict], list[dict]]:
        """Numbers of all methods on all benchmarks, and rows about each image.

        Raises:
            ValueError: a benchmark has no pixel to measure, or a method no finite prediction.
        """
        found, images = [], []
        for one in self.pairs:
            numbers, rows, skipped = self._summarise(one, store, world)
            self.skipped[one.name] = skipped
            for method in numbers:
                _check_something(method, skipped)
            found += numbers
            images += rows
        return found, images

    def _summarise(
        self, one: PairSet, store: RecordStore, world: World
    ) -> tuple[list[dict], list[dict], list[str]]:
        every = {
            method.label: MethodMetrics.of(
                method, rankings_of(method, self.has_confidence), self.streaming
            )
            for method in self.methods
        }
        for metrics in every.values():
            to_device(metrics, world)
        rows: dict[str, list[dict]] = {label: [] for label in every}
        columns: dict[tuple[str, str], list[Run]] = {}
        skipped: list[str] = []
        for place, index in enumerate(one.indices):
            mine = place % world.size == world.rank
            # Where pixels are is for every rank to know, for pooled rankings have no bounds.
            if self.streaming and not mine:
                continue
            record = store.read(one.name, index)
            skipped += [record.skipped] if record.skipped and mine else []
            for method in self.methods:
                for measure in record.measures.get(method.label, ()):
                    for name, run in measure.pixels.items():
                        columns.setdefault((method.label, name), []).append(run)
                    if mine:
                        every[method.label].update(measure)
                        rows[method.label].append(_row(one.name, method, index, measure))
        self._pool(one, columns, every, store, world)
        skipped = [reason for part in world.gather(skipped) for reason in part]
        numbers = [
            {
                "benchmark": one.name,
                "pairs": len(one.indices),
                **metrics.compute(),
                "pairs_left_out": len(skipped),
            }
            for metrics in every.values()
        ]
        gathered = world.gather(rows)
        return numbers, [row for key in rows for part in gathered for row in part[key]], skipped

    def _pool(
        self,
        one: PairSet,
        columns: Mapping[tuple[str, str], Sequence[Run]],
        every: Mapping[str, MethodMetrics],
        store: RecordStore,
        world: World,
    ) -> None:
        """Rankings over all images, of pixels that stay on disk."""
        rankings = [
            ((label, target), (label, by))
            for label, metrics in every.items()
            for target, by in metrics.rankings
        ]
        if self.streaming:
            return
        workers = self._workers(len(one.indices))
        for (error, doubt), part in pooled(columns, rankings, store.root, world, workers).items():
            every[error[0]].rankings[error[1], doubt[1]].update(part.sums, part.groups, part.total)


def _measure_stored(evaluation: Evaluation, benchmark: Any, store: RecordStore, index: int) -> None:
    for pair in evaluation.provider.pairs(benchmark, [index]):
        _measure(evaluation, benchmark, store, pair)


def _measure(evaluation: Evaluation, benchmark: Any, store: RecordStore, pair: Predicted) -> None:
    store.write(benchmark.name, pair.index, evaluation.measure_pair(pair))


def from_networks(
    benchmarks: str,
    methods: Sequence[Method],
    sources: Mapping[str, Source],
    *,
    device: torch.device,
    num_pairs: int | None = None,
    seed: int = 0,
    batch_size: int = 4,
    num_workers: int = 2,
    save_to: Path | None = None,
    is_main: bool = True,
    **options: Any,
) -> Evaluation:
    """An evaluation of checkpoints.

    Raises:
        ValueError, FileNotFoundError, dust3r.training.checkpoint.CheckpointError: a benchmark or a
            checkpoint cannot be used, or is of another family.
    """
    # Specifications first: a typo should not cost the time to read a large checkpoint.
    chosen = [
        PairSet(one, one.spec, tuple(one.choose(num_pairs, seed)))
        for one in named.parse_benchmarks(benchmarks)
    ]
    networks, keys = {}, {}
    for source in dict.fromkeys(sources.values()):
        networks[source.name] = network = source.build(device, seed)
        keys[source.name] = prediction_keys(source, network, device)
    for method in methods:
        source = sources[method.label]
        method.check(keys[source.name], str(source))
    if save_to is not None and is_main:
        stored = {one.name: {"spec": one.spec, "pairs": list(one.indices)} for one in chosen}
        write_index(save_to, stored, sources)
    return Evaluation(
        methods,
        chosen,
        Networks(networks, device, batch_size, num_workers, seed, save_to),
        {label: source.name for label, source in sources.items()},
        has_confidence=all("conf" in found for found in keys.values()),
        **options,
    )


def from_stored(
    folder: Path,
    benchmarks: Sequence[str] | None,
    methods: Sequence[Method],
    num_pairs: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """An evaluation of predictions that ``from_networks(..., save_to=folder)`` stored.

    Args:
        benchmarks: names of those to take; all where None.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a benchmark or a method is not among them, or is of another family.
    """
    index = read_index(folder)
    unknown = [name for name in benchmarks or () if name not in index["benchmarks"]]
    if unknown:
        raise ValueError(
            f"--predictions: {folder} has no {', '.join(unknown)}; it has "
            f"{', '.join(index['benchmarks'])}"
        )
    chosen = []
    for name in benchmarks or index["benchmarks"]:
        stored = index["benchmarks"][name]
        places = named.choose(name, len(stored["pairs"]), num_pairs, seed)
        indices = tuple(stored["pairs"][place] for place in places)
        chosen.append(PairSet(StoredName(name), stored["spec"], indices))
    sources = stored_sources(index, methods)
    provider = Stored(folder, tuple(dict.fromkeys(sources.values())))
    first = next(
        (p for one in chosen for p in provider.pairs(one.benchmark, one.indices) if p.views), None
    )
    keys = {name: set(pair[0]) for name, pair in first.predictions.items()} if first else {}
    for method in methods if first else ():
        name = sources[method.label]
        method.check(keys[name], f"{folder}, {index['sources'][name]},")
    has_confidence = all("conf" in found for found in keys.values())
    return Evaluation(methods, chosen, provider, sources, has_confidence=has_confidence, **options)


@dataclass(frozen=True)
class StoredName:
    """A benchmark of which there are predictions alone."""

    name: str


def _row(benchmark: str, method: Method, index: int, measure: Any) -> dict[str, Any]:
    row = {"benchmark": benchmark, "method": method.label, "pair": index, "view": measure.view}
    row |= {"label": measure.label, **measure.counts}
    used = max(1, measure.counts["used"])
    for target, (total, squares) in measure.errors.items():
        row |= {f"{target}_mae": total / used, f"{target}_rmse": (squares / used) ** 0.5}
    if measure.nll[1]:
        row["nll"] = measure.nll[0] / measure.nll[1]
    for (target, by), numbers in measure.numbers.items():
        row |= {f"{target}_{key}_{by}": value for key, value in numbers.items()}
    return row


def _check_something(numbers: Mapping[str, Any], skipped: Sequence[str]) -> None:
    name, counts = numbers["benchmark"], numbers["counts"]
    if not counts["valid"]:
        why = f" The first of {len(skipped)} pairs left out: {skipped[0]}" if skipped else ""
        raise ValueError(
            f"benchmark {name} has no pixel with a valid depth, so there is nothing to compare "
            f"with; check its depth files and their unit.{why}"
        )
    if not counts["used"]:
        raise ValueError(
            f"benchmark {name}: none of {counts['valid']:,} pixels can be used for "
            f"{numbers['method']!r}: predicted points or depths are not finite at "
            f"{counts['bad_prediction']:,}, uncertainties at {counts['bad_uncertainty']:,}, and "
            f"{counts['unaligned']:,} are in images whose points have no alignment"
        )
