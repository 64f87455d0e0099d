"""Arrays out of .npz files, which strangers may have written."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def load_arrays(
    path: str | Path,
    keys: Sequence[str],
    optional: Sequence[str] = (),
    mend: str = "preprocess the data again",
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name: all of ``keys``, and those of ``optional`` that it has.

    Pickled arrays are refused, as a pickle can run code.

    Args:
        mend: what to tell whoever has a file that cannot be used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or none, or lacks one of ``keys``, or has Python objects in one.
    """
    path = Path(path)
    try:
        opened = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; {mend}") from None
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or no .npz file; {mend}") from error
    if not isinstance(opened, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is a single array and no .npz file; {mend}")
    try:
        with opened as archive:
            missing = [key for key in keys if key not in archive.files]
            if missing:
                found = ", ".join(archive.files) or "nothing"
                raise ValueError(f"{path} lacks {', '.join(missing)}; it has {found}; {mend}")
            chosen = [*keys, *(key for key in optional if key in archive.files)]
            return {key: _load_array(archive, key, path) for key in chosen}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); {mend}") from error


def _load_array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        found = archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise ValueError(f"{path}: {key!r} is damaged ({error})") from error
        raise ValueError(
            f"{path}: {key!r} holds Python objects, which are not read because a pickle can run "
            f"code ({error}). If you trust the file, save it again with plain arrays: "
            "data = dict(np.load(path, allow_pickle=True)); "
            "np.savez(path, **{key: np.array(value.tolist()) for key, value in data.items()})"
        ) from error
    if not isinstance(found, np.ndarray):
        # What is in a zip without being an array comes as its bytes.
        raise ValueError(f"{path}: {key!r} is no array")
    return found
