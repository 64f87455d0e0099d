"""Measures of pairs on disk, one file each, so that an evaluation goes on where it was stopped.

Columns of pixels stay there: what is read of them is where they are (``Run``).
"""

import difflib
import json
import logging
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from dust3r.evaluation.measure import ImageMeasure
from dust3r.evaluation.rankings import Ordered
from dust3r.evaluation.sketch import Sparse
from dust3r.utils.files import atomic_path

log = logging.getLogger(__name__)

SETTINGS = "settings.json"

_SKETCH = {"bins": np.int32, "counts": np.int32, "sums": np.float64}
_TOLD, _PIXELS = "told", "pixels"
_DTYPES = {"I32": np.int32, "F64": np.float64}


@dataclass(frozen=True)
class Run:
    """A column of ``size`` pixels in a record: an ``Ordered``, at a byte of a file."""

    path: str
    offset: int
    size: int

    def read_keys(self, begin: int, end: int, into: np.ndarray) -> None:
        """Sorted keys from ``begin`` to ``end``, into an array of this length."""
        _read(self.path, self.offset + 4 * begin, into[: end - begin])

    def keys(self) -> np.ndarray:
        """The sorted keys in the file, of which only those pages are read that are looked at."""
        try:
            return np.memmap(self.path, np.int32, "r", self.offset, (self.size,))
        except (OSError, ValueError) as error:
            raise ValueError(_cut_short(self.path)) from error

    def read(self) -> Ordered:
        keys, order = both = np.empty((2, self.size), np.int32)
        _read(self.path, self.offset, both)
        return Ordered(keys, order)


@dataclass
class PairRecord:
    """All that was measured of a pair: method -> one or two images; or why it was left out."""

    measures: dict[str, list[ImageMeasure]] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True)
class RecordStore:
    """The records of an evaluation, ``root/<benchmark>/<pair>.safetensors``."""

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
        return self.root / benchmark / f"{pair:07d}.safetensors"

    def write(self, benchmark: str, pair: int, record: PairRecord) -> None:
        """Write a record, whole or not at all."""
        arrays: dict[str, np.ndarray] = {}
        columns: list[Ordered] = []
        told = {
            method: [
                _pack(measure, f"{method}/{n}", arrays, columns) for n, measure in enumerate(images)
            ]
            for method, images in record.measures.items()
        }
        sizes = [len(column.keys) for column in columns]
        told = json.dumps({"skipped": record.skipped, "measures": told, "columns": sizes})
        if columns:
            parts = [part for column in columns for part in (column.keys, column.order)]
            arrays[_PIXELS] = np.concatenate(parts, dtype=np.int32, casting="same_kind")
        with atomic_path(self.path(benchmark, pair)) as temporary:
            save_file(arrays, temporary, {_TOLD: told})

    def read(self, benchmark: str, pair: int) -> PairRecord:
        """A record, with the place of its pixels in place of them: ``Run`` for ``Ordered``.

        Raises:
            ValueError: the file is missing or damaged.
        """
        path = self.path(benchmark, pair)
        try:
            told, arrays, begin = _open(path)
            runs = []
            for size in told["columns"]:
                runs.append(Run(str(path), begin, size))
                begin += 8 * size
            measures = {
                method: [
                    _unpack(image, f"{method}/{n}", arrays, runs) for n, image in enumerate(images)
                ]
                for method, images in told["measures"].items()
            }
        except (OSError, KeyError, ValueError, struct.error) as error:
            raise ValueError(
                f"{path} is missing or damaged ({error}); remove it and start the same command "
                "again, which measures this pair alone"
            ) from error
        return PairRecord(measures, told["skipped"])


def _open(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], int]:
    """What a record tells, its small arrays, and the byte at which its pixels begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("its header is cut short")
        header = json.loads(file.read(length))
        told = json.loads(header.pop("__metadata__")[_TOLD])
        ends = [value["data_offsets"][1] for value in header.values()]
        if path.stat().st_size != 8 + length + max(ends, default=0):
            raise ValueError("it is cut short")
        pixels = header.pop(_PIXELS, {"data_offsets": [0, 0]})["data_offsets"][0]
        arrays = {}
        for name, value in header.items():
            begin, end = value["data_offsets"]
            file.seek(8 + length + begin)
            arrays[name] = np.frombuffer(file.read(end - begin), _DTYPES[value["dtype"]])
    return told, arrays, 8 + length + pixels


def _read(path: str, offset: int, into: np.ndarray) -> None:
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        if file.readinto(memoryview(into).cast("B")) != into.nbytes:
            raise ValueError(_cut_short(path))


def _cut_short(path: str) -> str:
    return f"{path} is cut short; remove it and start the same command again"


def _pack(
    measure: ImageMeasure, place: str, arrays: dict[str, np.ndarray], columns: list[Ordered]
) -> dict[str, Any]:
    for column in measure.pixels.values():
        if not any(column is known for known in columns):
            columns.append(column)
    # In one array of each kind, because every array costs a line of the header.
    parts = [part for sketch in measure.sketches.values() for part in sketch]
    for key, dtype in _SKETCH.items() if parts else ():
        values = [getattr(part, key).astype(dtype, copy=False) for part in parts]
        arrays[f"{place}/{key}"] = np.concatenate(values)
    places = {id(column): n for n, column in enumerate(columns)}
    return {
        "label": measure.label,
        "view": measure.view,
        "counts": measure.counts,
        "errors": measure.errors,
        "nll": measure.nll,
        "levels": measure.levels.tolist(),
        "numbers": [[*key, numbers] for key, numbers in measure.numbers.items()],
        "pixels": {name: places[id(column)] for name, column in measure.pixels.items()},
        "sketches": [
            [*key, [[len(getattr(part, name)) for name in _SKETCH] for part in sketch]]
            for key, sketch in measure.sketches.items()
        ],
    }


def _unpack(
    told: Mapping[str, Any], place: str, arrays: Mapping[str, np.ndarray], runs: Sequence[Run]
) -> ImageMeasure:
    joined = {key: arrays[f"{place}/{key}"] for key in _SKETCH if told["sketches"]}
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
        np.array(told["levels"]),
        {(target, by): numbers for target, by, numbers in told["numbers"]},
        {name: runs[n] for name, n in told["pixels"].items()},
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
