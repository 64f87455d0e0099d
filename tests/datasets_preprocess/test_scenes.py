"""The runner of conversions: what a kill, a bad scene, a full disk and many processes leave."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from datasets_preprocess.scenes import (
    SceneError,
    SceneReport,
    preprocess_scenes,
    run_command,
)


def convert(item: str, folder: Path, *, log: Path | None = None) -> SceneReport:
    """A scene of two files; names of items say what goes wrong."""
    (folder / "images").mkdir()
    (folder / "images" / "first.txt").write_text(item)
    if "bad" in item:
        raise SceneError("no frame has a pose")
    if "damaged" in item:
        raise KeyError("viewpoint")
    if "full" in item:
        raise OSError(errno.ENOSPC, "No space left on device")
    if "hidden" in item:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("the image could not be written") from error
    if "mistake" in item:
        raise TypeError("a mistake of the program")
    if "dies" in item:
        os._exit(1)
    if "slow" in item:
        time.sleep(30)
    if log is not None:
        with log.open("a") as file:
            file.write(f"{item}\n")
    (folder / "second.txt").write_text(item)
    report = SceneReport(frames=2, pairs=1)
    report.skip("unreadable image", "frame7.jpg")
    report.skip("unreadable image", "frame9.jpg")
    return report


def run(items: list[str], output_dir: Path, log: Path | None = None, num_workers: int = 1):
    return preprocess_scenes(
        items, partial(convert, log=log), output_dir, name=str, num_workers=num_workers
    )


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def scenes(root: Path) -> set[str]:
    """The scenes there, all of which must be whole, and nothing else."""
    found = {str(p.parent.relative_to(root)) for p in root.rglob("second.txt")}
    others = {p.parts[0] for p in map(Path, tree(root))} - {Path(scene).parts[0] for scene in found}
    assert others <= {"preprocess.json"}
    return found


def test_scenes_are_written_and_reported(tmp_path):
    report = run(["cats/one", "cats/two", "three"], tmp_path)
    assert scenes(tmp_path) == {"cats/one", "cats/two", "three"}
    assert report.scenes["three"] == SceneReport(
        2, 1, {"unreadable image": 2}, {"unreadable image": "frame7.jpg"}
    )
    assert not report.failed and report.resumed == 0
    summary = report.summary()
    assert "3 scenes: 6 frames, 3 pairs" in summary
    assert "left out 6: unreadable image (first: cats/one: frame7.jpg)" in summary


def test_a_second_run_makes_only_what_is_missing(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    run(["a", "bad"], out, log)
    before = tree(out / "a")
    report = run(["a", "b", "bad"], out, log)
    assert log.read_text().split() == ["a", "b"]
    assert tree(out / "a") == before
    assert report.resumed == 1 and set(report.scenes) == {"a", "b"}
    # The report covers all runs, also those of other scenes.
    report = run(["c"], out, log)
    assert set(report.scenes) == {"a", "b", "c"} and set(report.failed) == {"bad"}
    assert json.loads((out / "preprocess.json").read_text())["scenes"]["a"]["frames"] == 2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_bad_scene_fails_alone_and_is_named(tmp_path, num_workers):
    report = run(["a", "bad/one", "b", "damaged"], tmp_path, num_workers=num_workers)
    assert scenes(tmp_path) == {"a", "b"}
    assert report.failed == {"bad/one": "no frame has a pose", "damaged": "KeyError: 'viewpoint'"}
    assert "bad/one: no frame has a pose" in report.summary()


@pytest.mark.parametrize("item", ["full", "hidden"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_stops_the_run_with_whole_scenes(tmp_path, item, num_workers):
    with pytest.raises(OSError, match="disk is full.*run the same command again") as caught:
        run(["a", item, "b"], tmp_path, num_workers=num_workers)
    assert caught.value.errno == errno.ENOSPC
    assert "a" in scenes(tmp_path) and item not in scenes(tmp_path)
    assert "a" in json.loads((tmp_path / "preprocess.json").read_text())["scenes"]
    assert set(run(["a", "b"], tmp_path).scenes) == {"a", "b"}


def test_a_silent_writer_on_a_full_disk(tmp_path, monkeypatch):
    """OpenCV does not say why it could not write; the disk does."""

    def silent(item: str, folder: Path) -> SceneReport:
        raise OSError(f"{folder}: the image could not be written")

    assert preprocess_scenes(["a"], silent, tmp_path, name=str).failed
    usage = type("Usage", (), {"free": 4096})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="disk is full"):
        preprocess_scenes(["a"], silent, tmp_path, name=str)


def test_a_mistake_of_the_program_is_not_hidden(tmp_path):
    with pytest.raises(TypeError, match="mistake"):
        run(["a", "mistake"], tmp_path)
    assert scenes(tmp_path) == {"a"}


def test_a_worker_that_dies_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match="worker process died.*fewer --num_workers"):
        run(["dies", "dies too"], tmp_path, num_workers=2)


def test_a_killed_run_goes_on(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    code = (
        "from pathlib import Path; from tests.datasets_preprocess.test_scenes import run; "
        f"run(['a', 'slow', 'b'], Path({str(out)!r}), Path({str(log)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob(".unfinished/slow/images/first.txt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "a").is_dir() and not (out / "slow").exists()
    (out / ".unfinished" / "slow").rename(out / ".unfinished" / "b")
    report = run(["a", "b"], out, log)
    assert scenes(out) == {"a", "b"} and report.resumed == 1
    assert report.scenes["a"].frames == 2, "the killed run's report of a whole scene is lost"
    assert log.read_text().split() == ["a", "b"]
    assert {p.name for p in (out / "b").iterdir()} == {"images", "second.txt", "preprocess.json"}


def test_several_processes_give_the_same_files(tmp_path):
    items = ["x/1", "x/2", "bad", "y", "z"]
    run(items, tmp_path / "one")
    run(items, tmp_path / "many", num_workers=3)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


@pytest.mark.parametrize("name", ["../out", "/abs", ".hidden", "a//b", "", "a/../b"])
def test_names_stay_in_the_output_folder(tmp_path, name):
    with pytest.raises(ValueError, match="relative path"):
        run([name], tmp_path)


def test_names_are_unique_and_workers_positive(tmp_path):
    with pytest.raises(ValueError, match="two scenes are named 'a'"):
        run(["a", "a"], tmp_path)
    with pytest.raises(ValueError, match="num_workers"):
        run(["a"], tmp_path, num_workers=0)


def test_a_command_says_users_errors_in_one_line(capsys):
    def fail(options: argparse.Namespace) -> str:
        raise FileNotFoundError("no folder raw")

    assert run_command(fail, argparse.ArgumentParser(), []) == 1
    assert capsys.readouterr().err == "error: no folder raw\n"
    assert run_command(lambda options: "done", argparse.ArgumentParser(), []) == 0
    assert capsys.readouterr().out == "done\n"
