"""Runs the conversion of many scenes: resumes, several processes, whole scenes only, one report."""

import argparse
import errno
import json
import multiprocessing
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

import cv2
from tqdm import tqdm

from dust3r.utils.files import atomic_path

Item = TypeVar("Item")

REPORT_FILE = "preprocess.json"

_UNFINISHED = ".unfinished"
_ENOUGH_SPACE = 2**20
_SHOWN_FAILURES = 10
# What damaged or incomplete sources raise; anything else is a mistake of the program.
_SOURCE_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    IndexError,
    zipfile.BadZipFile,
    zlib.error,
    cv2.error,
)


class SceneError(ValueError):
    """A scene that cannot be used as a whole; the message is the reason, in words."""


@dataclass
class SceneReport:
    """What came of a scene: frames and pairs written, and what was left out.

    ``skipped`` counts what was left out by reason, ``examples`` names the first one of each.
    """

    frames: int = 0
    pairs: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        """Count ``name`` (a frame, a file, a pair) as left out for ``reason``."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        self.examples.setdefault(reason, name)


@dataclass
class RunReport:
    """What came of all scenes of an output folder, over all runs that wrote into it.

    ``scenes`` maps the names of finished scenes to their reports, ``failed`` those of unusable
    ones to the reason. ``resumed`` counts the scenes that this run found finished.
    """

    scenes: dict[str, SceneReport] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    resumed: int = 0

    def summary(self) -> str:
        """The report in a few lines to read: counts, what was left out and why, what failed."""
        frames = sum(scene.frames for scene in self.scenes.values())
        pairs = sum(scene.pairs for scene in self.scenes.values())
        before = f" ({self.resumed} finished before)" if self.resumed else ""
        paired = f", {pairs} pairs" if pairs else ""
        lines = [f"{len(self.scenes)} scenes{before}: {frames} frames{paired}"]
        for reason, (count, scene, example) in sorted(self._left_out().items()):
            lines.append(f"left out {count}: {reason} (first: {scene}: {example})")
        for name, reason in list(self.failed.items())[:_SHOWN_FAILURES]:
            lines.append(f"scene left out: {name}: {reason}")
        if len(self.failed) > _SHOWN_FAILURES:
            lines.append(f"and {len(self.failed) - _SHOWN_FAILURES} more, see {REPORT_FILE}")
        return "\n".join(lines)

    def _left_out(self) -> dict[str, tuple[int, str, str]]:
        """Count, first scene and first example of each reason."""
        found: dict[str, tuple[int, str, str]] = {}
        for name, scene in self.scenes.items():
            for reason, count in scene.skipped.items():
                known = found.get(reason, (0, name, scene.examples.get(reason, "")))
                found[reason] = (known[0] + count, *known[1:])
        return found


def preprocess_scenes(
    items: Sequence[Item],
    convert: Callable[[Item, Path], SceneReport],
    output_dir: Path,
    *,
    name: Callable[[Item], str],
    num_workers: int = 1,
    description: str = "",
) -> RunReport:
    """Convert every item into the folder ``output_dir/<name(item)>``, whole or not at all.

    ``convert(item, folder)`` writes one scene into an empty temporary ``folder``, which is renamed
    once it returned. An existing scene is finished and not made again, so that the same call goes
    on after a kill. A scene whose source is damaged (``SceneError``, unreadable files, missing
    keys) fails alone. The report, with those of earlier runs, is ``output_dir/preprocess.json``.

    Args:
        items: one for each scene.
        convert: module function or a ``functools.partial`` of one: it is pickled, as are items,
            where there are several processes; deterministic in its item.
        output_dir: made where missing.
        name: an item's scene, which may hold '/'; unique.
        num_workers: processes.
        description: what the progress bar says.

    Raises:
        ValueError: a name is used twice or is no relative path, or ``num_workers`` is below 1.
        OSError: the disk is full (``errno.ENOSPC``); finished scenes and the report are kept.
        RuntimeError: a worker process died; finished scenes and the report are kept.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    todo = {}
    for item in items:
        scene = _checked_name(name(item))
        if scene in todo:
            raise ValueError(f"two scenes are named {scene!r}; every one needs its own name")
        todo[scene] = item
    report = _earlier(output_dir)
    before = _add_finished(report, todo, output_dir)
    report.resumed = len(before)
    todo = {scene: item for scene, item in todo.items() if scene not in before}
    try:
        make = partial(_make_scene, convert=convert, output_dir=output_dir)
        with tqdm(total=len(todo), desc=description or None, unit="scene") as progress:
            for scene, outcome in _outcomes(make, list(todo.items()), num_workers):
                if outcome is not None:
                    report.failed[scene] = outcome
                progress.update()
    except OSError as error:
        if _is_disk_full(error, output_dir):
            raise _disk_full(output_dir) from error
        raise
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died, most often for want of memory; finished scenes are kept: run "
            "the same command again, with fewer --num_workers"
        ) from error
    finally:
        _add_finished(report, todo, output_dir)
        _write_report(output_dir, report)
    return report


def run_command(
    run: Callable[[argparse.Namespace], str],
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
) -> int:
    """The body of a script's ``main``: parse, run, print; 0, or 1 after a user's error.

    ``run`` takes the parsed options and returns the text to print. ``ValueError``, ``OSError`` and
    the runner's ``RuntimeError`` become one line on stderr.
    """
    options = parser.parse_args(argv)
    try:
        print(run(options))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _outcomes(
    make: Callable[[tuple[str, Item]], str | None],
    todo: list[tuple[str, Item]],
    num_workers: int,
) -> Iterator[tuple[str, str | None]]:
    """Names of scenes as they get done, with the reason where one failed."""
    if num_workers == 1 or len(todo) < 2:
        for scene, item in todo:
            yield scene, make((scene, item))
        return
    # Forking a process in which OpenCV or torch have threads can hang: start fresh ones.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_workers, len(todo)), context, cv2.setNumThreads, (1,))
    try:
        futures = {pool.submit(make, entry): entry[0] for entry in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _make_scene(
    entry: tuple[str, Item], *, convert: Callable[[Item, Path], SceneReport], output_dir: Path
) -> str | None:
    """Make one scene; the reason where its source cannot be used."""
    scene, item = entry
    final = output_dir / scene
    folder = output_dir / _UNFINISHED / scene.replace("/", "+")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        report = convert(item, folder)
        with atomic_path(folder / REPORT_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(report), indent=1))
        final.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(final)
        return None
    except _SOURCE_ERRORS as error:
        if _is_disk_full(error, output_dir):
            raise _disk_full(output_dir) from error
        return _reason(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_if_empty(folder.parent)


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"


def _is_disk_full(error: BaseException | None, output_dir: Path) -> bool:
    """Whether an error, or what it came from, is a full disk; some writers do not say."""
    silent = isinstance(error, OSError) and error.errno is None
    if silent and shutil.disk_usage(output_dir).free < _ENOUGH_SPACE:
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _disk_full(output_dir: Path) -> OSError:
    return OSError(
        errno.ENOSPC,
        "the disk is full; finished scenes are kept: make room and run the same command again",
        str(output_dir),
    )


def _checked_name(scene: str) -> str:
    parts = PurePosixPath(scene).parts
    if not parts or scene != "/".join(parts) or any(part[0] in "./" for part in parts):
        raise ValueError(
            f"a scene's name becomes its folder: expected a relative path without leading dots, "
            f"got {scene!r}"
        )
    return scene


def _earlier(output_dir: Path) -> RunReport:
    """What earlier runs reported, but for scenes that are no longer there."""
    file = output_dir / REPORT_FILE
    if not file.is_file():
        return RunReport()
    stored = json.loads(file.read_text())
    scenes = {
        scene: SceneReport(**report)
        for scene, report in stored["scenes"].items()
        if (output_dir / scene).is_dir()
    }
    return RunReport(scenes, stored["failed"])


def _add_finished(report: RunReport, scenes: Iterable[str], output_dir: Path) -> set[str]:
    """Enter those of ``scenes`` that are there; another program's have no report of their own."""
    finished = {scene for scene in scenes if (output_dir / scene).is_dir()}
    for scene in finished:
        file = output_dir / scene / REPORT_FILE
        stored = json.loads(file.read_text()) if file.is_file() else {}
        report.scenes[scene] = SceneReport(**stored)
        report.failed.pop(scene, None)
    return finished


def _write_report(output_dir: Path, report: RunReport) -> None:
    report.scenes = dict(sorted(report.scenes.items()))
    report.failed = dict(sorted(report.failed.items()))
    stored = {"scenes": {k: asdict(v) for k, v in report.scenes.items()}, "failed": report.failed}
    try:
        with atomic_path(output_dir / REPORT_FILE) as temporary:
            temporary.write_text(json.dumps(stored, indent=1))
    except OSError as error:
        if _is_disk_full(error, output_dir):
            raise _disk_full(output_dir) from error
        raise


def _remove_if_empty(folder: Path) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        return
