"""Calibrations as JSON beside their checkpoint, read as what a stranger may have written."""

import glob
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np

from dust3r.uncertainty.alignment import POINT_ALIGNMENTS
from dust3r.uncertainty.calibration import (
    LEVELS,
    STATED,
    UNALIGNED,
    BinnedBy,
    Calibration,
    Kind,
    ScaleBy,
)
from dust3r.uncertainty.families import FAMILIES
from dust3r.uncertainty.stated import DIMENSIONS
from dust3r.utils.files import atomic_path

SUFFIX = ".calibration.json"
SCHEMA = 2
# Files of the first schema do not tell the alignment, for there was none.
_UNALIGNED_SCHEMA = 1
AUTO = "auto"

_MOST_BYTES = 1_000_000
_MOST_NUMBERS = 4096
_LONGEST_TEXT = 10_000
_LARGEST = 1e15
_KINDS_OF_COVERAGE = (STATED, *get_args(Kind))


def path_beside(checkpoint: str | Path, family: str, region: str | None = None) -> Path:
    """``<checkpoint>.<family>.calibration.json``, since a checkpoint may have several families.

    Of ellipsoids, which come besides the balls of the same family,
    ``<checkpoint>.<family>-ellipsoid.calibration.json``.
    """
    checkpoint = Path(checkpoint)
    what = f"{family}-{region}" if region == "ellipsoid" else family
    return checkpoint.with_name(f"{checkpoint.name}.{what}{SUFFIX}")


def sha256_of(checkpoint: str | Path) -> str:
    """Of a file's content, by which a calibration knows its checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint {checkpoint}: check its path")
    with Path(checkpoint).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(calibration: Calibration, path: str | Path) -> Path:
    """Write a calibration, whole or not at all."""
    content = {"schema": SCHEMA}
    for one in fields(calibration):
        value = getattr(calibration, one.name)
        content[one.name] = value.tolist() if isinstance(value, np.ndarray) else value
    content["levels_of_coverage"] = list(LEVELS)
    content["coverage"] = {
        name: [None if math.isnan(share) else share for share in shares]
        for name, shares in calibration.coverage.items()
    }
    # In memory first: what JSON cannot hold must not cost the file that was there.
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def load(
    path: str | Path, *, family: str | None = None, checkpoint: str | Path | None = None
) -> Calibration:
    """Read a calibration and check every number of it.

    Args:
        path: the file.
        family: that it is wanted for; None for any.
        checkpoint: file of the weights that it is wanted for; None for any. One whose hash the
            calibration does not know is told by its name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no calibration, or one of another family or checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no calibration {path}: check its path, or make one with evaluate.py calibrate"
        )
    try:
        calibration = _checked(_content(path))
    except _DamagedError as error:
        raise ValueError(
            f"{path} is no calibration that can be used: {error}. Make it anew with evaluate.py "
            "calibrate"
        ) from error
    if family is not None and calibration.family != family:
        raise ValueError(_other_family(path, calibration, repr(family)))
    if checkpoint is not None:
        _check_checkpoint(calibration, path, Path(checkpoint))
    return calibration


def load_for(name: str | Path, checkpoint: str | Path, families: Sequence[str]) -> Calibration:
    """The calibration of a checkpoint that a user named.

    Args:
        name: a file; a folder that holds the calibrations of checkpoints under the names of
            ``path_beside``; or ``'auto'`` for the checkpoint's own folder.
        checkpoint: file of the weights.
        families: that can be used; of a folder's files the first of them is taken.

    Raises:
        FileNotFoundError, ValueError: see ``load``; or it is of another family.
    """
    path = Path(name)
    if str(name) == AUTO or path.is_dir():
        folder = Path(checkpoint).parent if str(name) == AUTO else path
        wanted = [folder / path_beside(checkpoint, one).name for one in families]
        path = next((one for one in wanted if one.is_file()), None)
        if path is None:
            others = sorted(folder.glob(f"{glob.escape(Path(checkpoint).name)}.*{SUFFIX}"))
            having = f" (there is {', '.join(one.name for one in others)})" if others else ""
            raise FileNotFoundError(
                f"no calibration {' or '.join(map(str, wanted))}{having}: make one with "
                f"evaluate.py calibrate --methods {families[0]}"
            )
    found = load(path, checkpoint=checkpoint)
    if found.family not in families:
        raise ValueError(_other_family(path, found, " or ".join(map(repr, families))))
    return found


class _DamagedError(Exception):
    """What is wrong with the content of a file."""


def _other_family(path: Path, calibration: Calibration, wanted: str) -> str:
    return (
        f"{path} calibrates the family {calibration.family!r}, not {wanted}: give a calibration of "
        "the family that is used"
    )


def _check_checkpoint(calibration: Calibration, path: Path, checkpoint: Path) -> None:
    if calibration.checkpoint_sha256:
        same = calibration.checkpoint_sha256 == sha256_of(checkpoint)
    else:
        same = calibration.checkpoint == checkpoint.name
    if not same:
        raise ValueError(
            f"{path} calibrates other weights ({calibration.checkpoint or 'unnamed'}) than those "
            f"of {checkpoint}: what was true of them need not be of these. Make one for these with "
            "evaluate.py calibrate"
        )


def _content(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _DamagedError(f"it is larger than {_MOST_BYTES:,} bytes")
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _DamagedError(f"it is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise _DamagedError(f"it holds a {type(content).__name__} in place of an object")
    schema = content.get("schema")
    if schema not in (_UNALIGNED_SCHEMA, SCHEMA) or isinstance(schema, bool):
        raise _DamagedError(f"its schema is {schema!r:.40}, this reads up to {SCHEMA}")
    if schema == _UNALIGNED_SCHEMA:
        content = {**content, "alignment": content.get("alignment", UNALIGNED)}
    expected = {one.name for one in fields(Calibration)} | {"schema", "levels_of_coverage"}
    if set(content) != expected:
        odd = sorted(set(content) ^ expected)
        raise _DamagedError(f"keys are missing or unknown: {', '.join(odd)[:200]}")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _checked(content: Mapping[str, Any]) -> Calibration:
    read = {name: check(name, content[name]) for name, check in _CHECKS.items()}
    stated, observed = read["knots"]
    for name, values in (("stated knots", stated), ("observed knots", observed)):
        if values[0] != 0 or values[-1] != 1:
            raise _DamagedError(f"{name} do not go from 0 to 1")
        _check_increasing(name, values)
    levels, radii, edges = read["levels"], read["radii"], read["edges"]
    _check_increasing("levels", levels)
    _check_increasing("edges", edges)
    if not len(levels) or levels[0] <= 0 or levels[-1] >= 1:
        raise _DamagedError("levels are not between 0 and 1")
    if radii.shape != (len(edges) + 1, len(levels)):
        raise _DamagedError(
            f"radii are {radii.shape} for {len(edges) + 1} bins and {len(levels)} levels"
        )
    if (radii < 0).any() or (np.diff(radii, axis=1) < 0).any():
        raise _DamagedError("radii are negative, or sink where the level rises")
    if (read["binned_by"] is None) != (len(edges) == 0):
        raise _DamagedError("edges and binned_by do not agree")
    if read["scale"] <= 0:
        raise _DamagedError("scale is not above 0")
    if content["levels_of_coverage"] != list(LEVELS):
        raise _DamagedError(f"levels_of_coverage are not {list(LEVELS)}")
    return Calibration(**read, coverage=_coverage(content["coverage"]))


def _coverage(value: object) -> dict[str, tuple[float, ...]]:
    if not isinstance(value, dict) or not set(value) <= set(_KINDS_OF_COVERAGE):
        raise _DamagedError("coverage has other keys than " + ", ".join(_KINDS_OF_COVERAGE))
    read = {}
    for name, shares in value.items():
        if not isinstance(shares, list) or len(shares) != len(LEVELS):
            raise _DamagedError(f"coverage {name} is not of {len(LEVELS)} levels")
        read[name] = tuple(
            math.nan if share is None else _number("coverage", share) for share in shares
        )
        if any(not 0 <= share <= 1 for share in read[name] if not math.isnan(share)):
            raise _DamagedError(f"coverage {name} is not between 0 and 1")
    return read


def _number(name: str, value: object) -> float:
    # A bool is an int, and an int may be larger than any float.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _DamagedError(f"{name} holds {value!r:.40} in place of a number")
    if not -_LARGEST <= value <= _LARGEST:
        raise _DamagedError(f"{name} holds a number that is not finite or too large")
    return float(value)


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise _DamagedError(f"{name} is {value!r:.40}, not a count")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise _DamagedError(f"{name} is no text of at most {_LONGEST_TEXT:,} letters")
    # What a terminal would act on does not belong in a message.
    if not all(letter.isprintable() or letter in "\n\t" for letter in value):
        raise _DamagedError(f"{name} has letters that cannot be printed")
    return value


def _hash(name: str, value: object) -> str:
    if not re.fullmatch("([0-9a-f]{64})?", _text(name, value)):
        raise _DamagedError(f"{name} is no SHA-256")
    return str(value)


def _one_of(*allowed: str | None) -> Callable[[str, object], Any]:
    def check(name: str, value: object) -> Any:
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise _DamagedError(f"{name} is {value!r:.40}, none of {', '.join(map(str, allowed))}")
        return value

    return check


def _vector(name: str, value: object) -> np.ndarray:
    if not isinstance(value, list) or len(value) > _MOST_NUMBERS:
        raise _DamagedError(f"{name} is no list of at most {_MOST_NUMBERS} entries")
    return np.array([_number(name, one) for one in value], np.float64)


def _matrix(name: str, value: object) -> np.ndarray:
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_NUMBERS:
        raise _DamagedError(f"{name} is no list of rows")
    rows = [_vector(name, row) for row in value]
    if len({len(row) for row in rows}) != 1 or not len(rows[0]):
        raise _DamagedError(f"rows of {name} are empty, or differ in length")
    return np.stack(rows)


def _two_rows(name: str, value: object) -> np.ndarray:
    matrix = _matrix(name, value)
    if len(matrix) != 2 or matrix.shape[1] < 2:
        raise _DamagedError(f"{name} are {matrix.shape}, not two rows of two or more")
    return matrix


def _check_increasing(name: str, values: np.ndarray) -> None:
    if (np.diff(values) <= 0).any():
        raise _DamagedError(f"{name} do not increase")


_CHECKS: dict[str, Callable[[str, object], Any]] = {
    "family": _one_of(*FAMILIES),
    "region": _one_of(*DIMENSIONS),
    "unit": _text,
    "alignment": _one_of(UNALIGNED, *POINT_ALIGNMENTS),
    "scale": _number,
    "scale_by": _one_of(*get_args(ScaleBy)),
    "knots": _two_rows,
    "levels": _vector,
    "radii": _matrix,
    "edges": _vector,
    "binned_by": _one_of(None, *get_args(BinnedBy)),
    "dataset": _text,
    "checkpoint": _text,
    "checkpoint_sha256": _hash,
    "pixels": _count,
    "left_out": _count,
    "images": _count,
    "pairs": _count,
}
