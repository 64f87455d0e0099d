"""Several evaluations as one: the same methods, trained with different seeds, in one table."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dust3r.evaluation.measure import CONFIDENCE, OWN
from dust3r.evaluation.methods import DEPTH, POINT
from dust3r.evaluation.report import TARGETS, number, table

Found = Mapping[str, Any]

# Columns of the tables; numbers that a method has beside them, as means over images; and those that
# are divided by the reference's as well.
MEASURES = ("mae", "aurc", "ause", "rho", "nll", "calibration_error")
WITHIN_IMAGES = ("aurc_image", "ause_image", "rho_image")
RATIOS = ("mae", "aurc", "ause", "aurc_image", "ause_image")

_TITLES = {"mae": "MAE (m)", "aurc": "AURC (m)", "ause": "AUSE (m)", "rho": "rho",
           "nll": "NLL (nats)", "calibration_error": "calibration error"}  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """``mean`` and sample ``deviation`` of a number over ``count`` seeds; NaN of a single one."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), deviation, len(values))

    def __str__(self) -> str:
        if not math.isfinite(self.deviation):
            return number(self.mean)
        return f"{number(self.mean)} ± {self.deviation:.2g}"


@dataclass(frozen=True)
class Row:
    """A method on a benchmark, ranked against ``target``, over seeds.

    Attributes:
        numbers: by ``MEASURES`` and ``WITHIN_IMAGES``, as far as the method has them, and with
            ``_ratio`` behind ``RATIOS``, divided by the reference's in the same evaluation.
    """

    benchmark: str
    method: str
    target: str
    numbers: Mapping[str, Spread]

    def __getitem__(self, name: str) -> Spread | None:
        return self.numbers.get(name)


def read_results(folders: Sequence[Path]) -> list[list[Found]]:
    """The results of ``evaluate.py uq`` in each of ``folders``, one for each seed.

    Raises:
        FileNotFoundError: a folder has none.
    """
    runs = []
    for folder in folders:
        path = folder / "results.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no results.json; give folders that evaluate.py uq --output_dir wrote"
            )
        runs.append(json.loads(path.read_text())["results"])
    return runs


def over_seeds(runs: Sequence[Sequence[Found]], reference: str) -> list[Row]:
    """All methods on all benchmarks and targets, with spreads over the runs that have them.

    Ratios are to method ``reference`` ranked by its own uncertainty against points, and for the
    target depth, which it does not have, to its ranking of the method's own errors. A run without
    it takes it from the first one, as it need not depend on seeds.

    Raises:
        ValueError: no run has the reference on a benchmark.
    """
    collected: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    shared = _references(runs, reference)
    for run in runs:
        own = {**shared, **_references([run], reference)}
        for found in run:
            if found["benchmark"] not in own:
                raise ValueError(
                    f"no evaluation has {reference!r} on {found['benchmark']}, which numbers are "
                    "divided by; evaluate it with the others"
                )
            for target, measured in found["targets"].items():
                key = found["benchmark"], found["method"], target
                numbers = collected.setdefault(key, {})
                against = own[found["benchmark"]]
                for name, value in _numbers(found, measured, target, against).items():
                    # JSON has null for what is not finite.
                    if value is not None and math.isfinite(value):
                        numbers.setdefault(name, []).append(value)
    return [
        Row(*key, {name: Spread.of(values) for name, values in numbers.items()})
        for key, numbers in collected.items()
    ]


def tables(rows: Sequence[Row]) -> str:
    """Markdown: a table for each benchmark and target, rows in the order given."""
    text = []
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        text.append(f"## {benchmark}")
        for target, title in TARGETS.items():
            chosen = [row for row in rows if (row.benchmark, row.target) == (benchmark, target)]
            if chosen:
                text.append(f"{title}:\n\n{_table(chosen)}")
    return "\n\n".join(text) + "\n"


def overview(rows: Sequence[Row], name: str) -> str:
    """Markdown: one number of every method (rows) against points, on every benchmark (columns)."""
    rows = [row for row in rows if row.target == POINT]
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        cells = {row.benchmark: row[name] for row in rows if row.method == method}
        lines.append([method, *(_cell(cells.get(one)) for one in benchmarks)])
    return table(["method", *benchmarks], lines)


def plain_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as nested dicts of numbers, for JSON."""
    return [
        {**{key: getattr(row, key) for key in ("benchmark", "method", "target")},
         **{name: asdict(spread) for name, spread in row.numbers.items()}}
        for row in rows
    ]  # fmt: skip


def _references(runs: Sequence[Sequence[Found]], reference: str) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for run in runs:
        for one in run:
            if one["method"] == reference:
                found.setdefault(one["benchmark"], one)
    return found


def _numbers(
    found: Found, measured: Found, target: str, reference: Found
) -> dict[str, float | None]:
    own = measured[OWN]
    ranked = ("aurc", "ause", "rho", *WITHIN_IMAGES)
    numbers = {key: own[key] for key in ranked} | {"mae": measured["mae"]}
    numbers |= {key: found[key] for key in ("nll", "calibration_error") if key in found}
    if target == DEPTH:
        divisors = measured.get(CONFIDENCE, {})
    else:
        of_points = reference["targets"][POINT]
        divisors = {**of_points[OWN], "mae": of_points["mae"]}
    for name in RATIOS:
        if numbers[name] is not None and divisors.get(name):
            numbers[f"{name}_ratio"] = numbers[name] / divisors[name]
    return numbers


def _table(rows: Sequence[Row]) -> str:
    header, keys = ["method"], []
    for name in MEASURES:
        for key, title in ((name, _TITLES[name]), (f"{name}_ratio", "/ conf")):
            if any(row[key] is not None for row in rows):
                header.append(title)
                keys.append(key)
    return table(header, [[row.method, *(_cell(row[key]) for key in keys)] for row in rows])


def _cell(spread: Spread | None) -> str:
    return "" if spread is None else str(spread)
