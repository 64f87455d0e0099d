"""Folders written whole or not at all, that never take a stranger's files with them."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place once the block ends without error.

    Raises:
        FileExistsError: ``path`` is a file, or a folder with files that the new one does not
            replace: these may be somebody's photographs, or left by another reconstruction, and
            either way programs that list the folder would read them as part of this one.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        _refuse_others(path, temporary)
        if not path.exists():
            os.rename(temporary, path)
            return
        old = _sibling(path)
        os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(old, path)
            raise
        shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")


def _refuse_others(path: Path, new: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file where a folder is to be written; move it away")
    others = sorted(
        entry.relative_to(path)
        for entry in path.rglob("*")
        if not entry.is_dir() and not (new / entry.relative_to(path)).is_file()
    )
    if others:
        raise FileExistsError(
            f"{path} holds other files ({others[0]}{', ...' if len(others) > 1 else ''}); export "
            "into a new folder, or move them away"
        )
