import argparse
import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dust3r.training import checkpoint
from dust3r.training.checkpoint import CheckpointError


class Hostile:
    """Unpickles into a shell command that leaves ``marker`` behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load_file(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


@pytest.fixture
def state() -> dict:
    return {
        "model": nn.TransformerEncoderLayer(4, 2, 8).state_dict(),
        "args": argparse.Namespace(model="Net(width=4)", lr=1e-4),
        "epoch": 3,
    }


def hostile_files(content: object, folder: Path) -> list[Path]:
    """``content`` in each of the ways that a torch file can be pickled."""
    paths = [folder / f"{name}.pth" for name in ("zip", "legacy", "plain2", "plain4", "zip4")]
    torch.save(content, paths[0])
    torch.save(content, paths[1], _use_new_zipfile_serialization=False)
    paths[2].write_bytes(pickle.dumps(content, protocol=2))
    paths[3].write_bytes(pickle.dumps(content, protocol=4))
    torch.save(content, paths[4], pickle_protocol=4)
    return paths


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_code_in_a_pickle_is_named_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    nested = {"model": OrderedDict(a=torch.ones(2), b=[{"c": (1, Hostile(marker))}])}
    for content in (Hostile(marker), nested):
        for path in hostile_files(content, tmp_path):
            message = refusal(path)
            assert "posix.system" in message
            assert "refused" in message and "safetensors" in message
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_every_foreign_name_of_a_pickle_is_listed(tmp_path):
    content = {"model": [Path("a"), np.float64(1), Hostile(tmp_path / "marker")]}
    for path in hostile_files(content, tmp_path):
        message = refusal(path)
        for name in ("pathlib.PosixPath", "posix.system", "scalar"):
            assert name in message
    assert not (tmp_path / "marker").exists()


def test_code_by_a_renamed_allowed_class_is_not_run(tmp_path):
    # A pickle by hand: Namespace's name with the state of a callable.
    program = b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00acposix\nsystem\nsb."
    (tmp_path / "a.pth").write_bytes(program)
    assert "posix.system" in refusal(tmp_path / "a.pth")


def test_whole_modules_are_refused(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "a.pth")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("keep", [0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_say_so(kind, keep, state, tmp_path):
    path = tmp_path / f"a.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        checkpoint.save_safetensors(path, state["model"])
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert f"truncated at {path.stat().st_size} bytes" in refusal(path)


def test_any_flipped_byte_loads_or_is_a_checkpoint_error(state, tmp_path):
    path = tmp_path / "a.pth"
    generator = random.Random(0)
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            try:
                checkpoint.load_file(path)
            except CheckpointError as error:
                assert str(path) in str(error)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_pickles_of_others_are_told_apart(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"a": [1.0]}}))
    assert "torch.save did not write" in refusal(tmp_path / "a.pkl")


FOREIGN = {
    "empty": (b"", "it is empty (0 bytes)"),
    "html": (b"\n<!DOCTYPE html><html><body>404", "web page (HTML)"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
    "text": ("Accès refusé : quota".encode(), "text file that begins 'Accès refusé"),
    "json": (b'{"error": "not found"}', 'text file that begins \'{"error"'),
    "numpy": (b"\x93NUMPY\x01\x00", "a numpy array"),
    "gzip": (b"\x1f\x8b\x08\x00", "compressed with gzip"),
    "tar": (b"a.pth".ljust(257, b"\0") + b"ustar\x0000", "tar archive; unpack it"),
    "zeros": (bytes(4096), "neither a torch.save file nor safetensors"),
    "noise": (bytes(range(256)), "neither a torch.save file nor safetensors"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_foreign_files_say_what_they_are(kind, suffix, tmp_path):
    content, told = FOREIGN[kind]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert told in refusal(path)


def test_other_archives_say_what_they_hold(tmp_path):
    np.savez(tmp_path / "a.npz", depth=np.zeros(3))
    assert "without the data.pkl of torch.save; it has depth.npy" in refusal(tmp_path / "a.npz")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", b"")
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/net.py", "")
    (tmp_path / "a.pt").write_bytes(buffer.getvalue())
    assert "TorchScript" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds a list, expected a dict"),
        ({"epoch": 3}, "holds epoch, but no 'model'"),
        ({}, "holds nothing, but no 'model'"),
        ({"model": {}}, "an unusable 'model'"),
        ({"model": "Net()"}, "an unusable 'model'"),
        ({"state_dict": {"a": torch.ones(1)}, "lr": 1}, "its 'state_dict' looks like weights"),
    ],
)
def test_files_without_weights_say_what_is_missing(content, told, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    assert told in refusal(tmp_path / "a.pth")


def test_missing_file_names_the_candidates(state, tmp_path):
    checkpoint.save(tmp_path / "checkpoint-best.pth", state)
    with pytest.raises(FileNotFoundError, match="holds checkpoint-best.pth"):
        checkpoint.load_file(tmp_path / "checkpoint-lst.pth")
    with pytest.raises(FileNotFoundError, match="folder .*nowhere does not exist"):
        checkpoint.load_file(tmp_path / "nowhere" / "a.pth")
    with pytest.raises(CheckpointError, match="holds checkpoint-best.pth; give one of its files"):
        checkpoint.load_file(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoint.load_file(tmp_path / "empty" / "a.pth")
