"""Writing files whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it once the ``with`` block ends without error.

    The parent folder is made where missing. The temporary keeps the suffix of ``path``, because
    writers such as ``cv2.imwrite`` and ``numpy.savez`` choose the format by it. The content reaches
    the disk before the rename, so that a crash or a kill leaves the old file or the new one, whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}", dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _umask() -> int:
    # The umask can only be read by setting it; mkstemp makes files private, which shared data
    # sets and checkpoints should not be.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
