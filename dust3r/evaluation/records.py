"""Measures of pairs on disk, one file each, so that an evaluation goes on where it was stopped."""

import difflib
import json
import logging
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dust3r.evaluation.measure import ImageMeasure
from dust3r.evaluation.sketch import Sparse
from dust3r.utils.files import atomic_path

log = logging.getLogger(__name__)

SETTINGS = "settings.json"

_SKETCH = {"bins": np.int32, "counts": np.int32, "sums": np.float64}


@dataclass
class PairRecord:
    """All that was measured of a pair: method -> one or two images; or why it was left out."""

    measures: dict[str, list[ImageMeasure]] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True)
class RecordStore:
    """The records of an evaluation, ``root/<benchmark>/<pair>.npz``."""

    root: Path

    def claim(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Make the folder one of evaluations with ``settings``, of JSON's types.

        With ``resume`` records of the same settings stay and are used; without, they go.

        Raises:
            ValueError: ``resume``, and the records there are of other settings.
        """
        path = self.root / SETTINGS
        settings = json.loads(json.dumps(settings))
        if path.is_file() and resume:
            found = json.loads(path.read_text())
            if found == settings:
                log.info("going on with the records in %s", self.root)
                return
            raise ValueError(
                f"{self.root} holds the records of an evaluation with other settings "
                f"({_difference(found, settings)}): give another --output_dir, the same settings "
                "to go on with it, or --no-resume to start anew"
            )
        if path.is_file():
            for name in json.loads(path.read_text()).get("benchmarks", {}):
                shutil.rmtree(self.root / name, ignore_errors=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n")

    def has(self, benchmark: str, pair: int) -> bool:
        return self.path(benchmark, pair).is_file()

    def path(self, benchmark: str, pair: int) -> Path:
        return self.root / benchmark / f"{pair:07d}.npz"

    def write(self, benchmark: str, pair: int, record: PairRecord) -> None:
        """Write a record, whole or not at all."""
        arrays: dict[str, np.ndarray] = {}
        told = {
            method: [_pack(measure, f"{method}/{n}", arrays) for n, measure in enumerate(images)]
            for method, images in record.measures.items()
        }
        told = json.dumps({"skipped": record.skipped, "measures": told})
        with atomic_path(self.path(benchmark, pair)) as temporary:
            np.savez(temporary, told=np.array(told), **arrays)

    def read(self, benchmark: str, pair: int, methods: Sequence[str] | None = None) -> PairRecord:
        """A record, of some methods or all.

        Raises:
            ValueError: the file is missing or damaged.
        """
        path = self.path(benchmark, pair)
        try:
            with np.load(path, allow_pickle=False) as archive:
                told = json.loads(str(archive["told"]))
                measures = {
                    method: [
                        _unpack(image, f"{method}/{n}", archive) for n, image in enumerate(images)
                    ]
                    for method, images in told["measures"].items()
                    if methods is None or method in methods
                }
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is missing or damaged ({error}); remove it and start the same command "
                "again, which measures this pair alone"
            ) from error
        return PairRecord(measures, told["skipped"])


def _pack(measure: ImageMeasure, place: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    arrays[f"{place}/levels"] = measure.levels
    for name, values in measure.pixels.items():
        arrays[f"{place}/pixels/{name}"] = values
    # In one array of each kind, because every array costs a file inside the archive.
    parts = [part for sketch in measure.sketches.values() for part in sketch]
    for key, dtype in _SKETCH.items() if parts else ():
        values = [getattr(part, key).astype(dtype, copy=False) for part in parts]
        arrays[f"{place}/sketch/{key}"] = np.concatenate(values)
    return {
        "label": measure.label,
        "view": measure.view,
        "counts": measure.counts,
        "errors": measure.errors,
        "nll": measure.nll,
        "numbers": [[*key, numbers] for key, numbers in measure.numbers.items()],
        "pixels": list(measure.pixels),
        "sketches": [
            [*key, [[len(getattr(part, name)) for name in _SKETCH] for part in sketch]]
            for key, sketch in measure.sketches.items()
        ],
    }


def _unpack(told: Mapping[str, Any], place: str, arrays: Mapping[str, np.ndarray]) -> ImageMeasure:
    joined = {key: arrays[f"{place}/sketch/{key}"] for key in _SKETCH if told["sketches"]}
    begins = dict.fromkeys(_SKETCH, 0)

    def part(lengths: Sequence[int]) -> Sparse:
        values = []
        for key, length in zip(_SKETCH, lengths, strict=True):
            values.append(joined[key][begins[key] : begins[key] + length])
            begins[key] += length
        return Sparse(*values)

    return ImageMeasure(
        told["label"],
        told["view"],
        told["counts"],
        {target: tuple(sums) for target, sums in told["errors"].items()},
        tuple(told["nll"]),
        arrays[f"{place}/levels"],
        {(target, by): numbers for target, by, numbers in told["numbers"]},
        {name: arrays[f"{place}/pixels/{name}"] for name in told["pixels"]},
        {
            (target, by): tuple(part(lengths) for lengths in parts)
            for target, by, parts in told["sketches"]
        },
    )


def _difference(found: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    parts = []
    for key in sorted(found.keys() | given.keys()):
        old, new = (json.dumps(one.get(key)) for one in (found, given))
        if old != new:
            near = difflib.SequenceMatcher(None, old, new).find_longest_match()
            cut = max(0, near.size - 40) if near.a == near.b == 0 else 0
            old, new = (text[cut : cut + 80] for text in (old, new))
            parts.append(f"{key} was {old}, and is now {new}")
    return "; ".join(parts)
