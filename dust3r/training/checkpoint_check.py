"""What is wrong with a checkpoint file that does not load, told without running any of it."""

import argparse
import codecs
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")

_LISTED = 10
_MEND_COPY = "; download or copy it again"


def missing_message(path: Path) -> str:
    """Message for a ``path`` that is no file: what its folder, or itself as one, holds instead."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f"no checkpoint {path}: the folder {folder} does not exist"
    candidates = sorted(item.name for item in folder.iterdir() if item.suffix in SUFFIXES)
    visible = [name for name in candidates if not name.startswith(".")]
    holds = f"holds {_list(visible)}" if visible else "holds no checkpoint at all"
    return f"no checkpoint {path}: the folder {folder} {holds}"


def is_safetensors(path: Path) -> bool:
    """Whether the content of ``path`` begins like safetensors: a length, then a JSON header."""
    start = _head(path, 9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**27


def failure_message(path: Path, error: Exception) -> str:
    """Message for a file whose loading raised ``error``: what it is, what is missing, what to do.

    Args:
        path: an existing file.
        error: what ``torch.load(weights_only=True)`` or safetensors raised.
    """
    foreign = _foreign_kind(path)
    if foreign is not None:
        return f"{path} is no checkpoint: {foreign}"
    found = unsafe_globals(path)
    if found:
        return (
            f"{path} is refused: unpickling it would import and run what is not plain tensors and "
            f"settings, namely {_list(found)}. It was not run. If you trust where the file comes "
            "from, load it there, in the code that wrote it, and save its state dict again with "
            "safetensors.torch.save_file, or as torch.save({'model': state_dict, 'args': "
            "argparse.Namespace(model='...')}, path)"
        )
    return f"{path} cannot be read: {_damage(path, error)}"


def unsafe_globals(path: Path) -> list[str]:
    """Dotted names of all functions and classes in the pickle of ``path`` that are not allowed.

    The pickle is disassembled, never run. Allowed are torch's own list for ``weights_only`` and
    ``argparse.Namespace``.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        # It reads zip archives with pickles of protocol 2 alone; the file may be anything.
        names = {name for name in _pickled_globals(path) if not _USUAL_GLOBALS.fullmatch(name)}
        return sorted(names)


# What torch.save itself puts into files; used for those that torch's own scan cannot read.
_USUAL_GLOBALS = re.compile(
    r"argparse\.Namespace|collections\.(OrderedDict|Counter|defaultdict)"
    r"|torch\._utils\._rebuild_\w+|torch(\.cuda)?\.\w+(Storage|Tensor)|torch\.(Size|device)"
    r"|torch\.storage\.\w+Storage|torch\.nn\.parameter\.Parameter|torch\.b?float\d*|torch\.u?int\d*"
)

# A torch file from before zip archives is a row of pickles: magic number, protocol, system,
# the object, the keys of its storages.
_LEGACY_PICKLES = 5
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def _pickled_globals(path: Path) -> Iterator[str]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        with archive.open(name) as pickled:
                            yield from _globals_of_one(pickled)
            return
        with path.open("rb") as pickled:
            for _ in range(_LEGACY_PICKLES):
                yield from _globals_of_one(pickled)
    except Exception:
        # Damaged or no pickle at all: what was found up to here is the answer.
        return


def _globals_of_one(pickled: BinaryIO) -> Iterator[str]:
    memo: dict[int, object] = {}
    strings: list[object] = []
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "GLOBAL" | "INST":
                yield str(argument).replace(" ", ".", 1)
            case "STACK_GLOBAL":
                yield ".".join(str(part) for part in strings[-2:])
            case "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else None
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = strings[-1] if strings else None
            case "GET" | "BINGET" | "LONG_BINGET":
                strings.append(memo.get(argument))
            case _ if isinstance(argument, str):
                strings.append(argument)


def _foreign_kind(path: Path) -> str | None:
    """What a file is that plainly is no checkpoint, and how to mend that."""
    head = _head(path, 1024)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "it is empty (0 bytes)" + _MEND_COPY
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, which stands for the file; run 'git lfs pull'"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            "it is a web page (HTML), as a failed download leaves behind; open the address in a "
            "browser to see what it says, then download the file itself"
        )
    if head[257:262] == b"ustar":
        return "it is a tar archive; unpack it and give the weights inside"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return f"it is {kind}, not a file of torch.save or safetensors"
    if not is_safetensors(path) and _is_text(head):
        return f"it is a text file that begins {head[:60].decode(errors='replace')!r}"
    names = _archived(path)
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        return "it is a TorchScript archive, a program; save the model's state dict instead"
    if names and not any(name.endswith("data.pkl") for name in names):
        return f"it is a zip archive without the data.pkl of torch.save; it has {_list(names)}"
    return None


def _archived(path: Path) -> list[str]:
    """What a zip archive holds; nothing if ``path`` is none or its table of contents is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:
        return []


_MAGIC = {
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
}


def _damage(path: Path, error: Exception) -> str:
    size = path.stat().st_size
    # Torch's own reason stands behind a page of advice to allow everything.
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
    reason = _printable(reason or type(error).__name__)
    if is_safetensors(path):
        kind = "safetensors"
        truncated = (
            int.from_bytes(_head(path, 8), "little") + 8 > size or "incomplete" in reason.lower()
        )
    elif _head(path, 2) == b"PK":
        kind = "a zip archive of torch.save"
        truncated = not _has_zip_end(path)
    elif _head(path, 1) == b"\x80":
        legacy = _head(path, len(_LEGACY_MAGIC)) == _LEGACY_MAGIC
        kind = "an older file of torch.save" if legacy else "a pickle"
        truncated = "EOF" in reason or _pickle_ends_early(path, _LEGACY_PICKLES if legacy else 1)
        if not legacy and not truncated:
            return "it is a pickle that torch.save did not write; save it again with torch.save"
    else:
        return (
            f"it begins with {_head(path, 8)!r}, neither a torch.save file nor safetensors "
            f"({size} bytes)" + _MEND_COPY
        )
    if truncated:
        return f"it begins as {kind}, but its end is missing: truncated at {size} bytes{_MEND_COPY}"
    return f"it begins as {kind} of {size} bytes, but {reason}"


_ZIP_END_SIZE = 22


def _pickle_ends_early(path: Path, pickles: int) -> bool:
    with path.open("rb") as file:
        try:
            for _ in range(pickles):
                for _ in pickletools.genops(file):
                    pass
        except Exception:
            return not file.read(1)
    return False


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _has_zip_end(path: Path) -> bool:
    # The record that closes a zip archive may be followed by a comment of 64 KiB at most.
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _ZIP_END_SIZE - 2**16, 0))
        tail = file.read()
    position = tail.rfind(b"PK\x05\x06")
    return position >= 0 and len(tail) - position >= _ZIP_END_SIZE


def _is_text(head: bytes) -> bool:
    try:
        # The head may end within a character, which this decoder waits for.
        decoded = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t" for char in decoded)


def _list(names: list[str]) -> str:
    shown = ", ".join(_printable(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _printable(text: str) -> str:
    # Names come from files that may be hostile: no control character reaches the terminal.
    return text if text.isprintable() else ascii(text)
