"""Where a demo keeps what it is given and what it makes, and what it takes from strangers.

All lies under one private folder that ends with the server:

    <root>/gradio   what gradio keeps: uploads, and what may be downloaded
    <root>/work     what no address leads to: copies of uploads under names of our own, and
                    what alignments keep for later runs on the same images, whoever's they are

Names that people give their files are shown, and never become paths.
"""

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

MOST_IMAGES = 200
MOST_PIXELS = 100_000_000
MOST_BYTES = 50 * 2**20
MOST_CACHED = 4 * 2**30

_LONGEST_NAME = 60
# Suffixes by decoded format; what a file calls itself is not asked. An MPO is a JPEG with a second
# image behind it, as some phones write.
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "HEIF": ".heic",
    "AVIF": ".avif",
}
_FOLDERS = re.compile(r"(?<![^\s'\"(=])(?:/[^\s/'\":]+)+/")


@dataclass(frozen=True)
class Upload:
    """An image that was received: ``path`` under a name of ours, ``name`` the sender's, to show."""

    path: Path
    name: str


@dataclass(frozen=True)
class Session:
    """Folders of one reconstruction, under names that cannot be guessed.

    ``work`` is never served; ``served`` holds what its owner may download.
    """

    work: Path
    served: Path

    def close(self) -> None:
        """Remove everything."""
        for folder in (self.work, self.served):
            shutil.rmtree(folder, ignore_errors=True)


class Workspace:
    """The folders of a server, private to this user, new under ``parent`` or the system's own.

    Raises FileNotFoundError where ``parent`` cannot be a folder.
    """

    def __init__(self, parent: Path | None = None):
        if parent is not None:
            try:
                parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FileNotFoundError(
                    f"--tmp_dir {parent} cannot be a folder ({error.strerror}); give another"
                ) from error
        # So that the photographs of phones are known for images.
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
        self.root = Path(tempfile.mkdtemp(prefix="dust3r-demo-", dir=parent)).resolve()
        self.served = self.root / "gradio"
        self.work = self.root / "work"
        self.cache = self.work / "cache"
        for folder in (self.served, self.work, self.cache):
            folder.mkdir()

    def new_session(self) -> Session:
        name = secrets.token_urlsafe(16)
        session = Session(self.work / name, self.served / name)
        for folder in (session.work, session.served):
            folder.mkdir()
        return session

    def take_images(
        self, received: Sequence[str | Path], folder: Path, kind: str = "image"
    ) -> list[Upload]:
        """Copies of uploads in ``folder``, as ``<kind>_000.jpg`` and so on.

        Raises ValueError, for the sender to read, where one was not uploaded or is no image, or
        there are too many.
        """
        if len(received) > MOST_IMAGES:
            raise ValueError(f"{len(received)} files are too many: give {MOST_IMAGES} at most")
        folder.mkdir(parents=True)
        uploads = []
        for number, given in enumerate(received):
            path = self._uploaded(given)
            name = display_name(path.name)
            target = folder / f"{kind}_{number:03d}{_suffix(path, name)}"
            shutil.copyfile(path, target)
            uploads.append(Upload(target, name))
        return uploads

    def take_masks(
        self, received: Sequence[str | Path], images: Sequence[Upload], folder: Path
    ) -> dict[str, Upload]:
        """Copies of uploaded masks in ``folder``, by the names (``path.name``) of their images.

        A mask is of the image whose file its sender gave the same name but for the suffix.

        Raises ValueError as ``take_images``, and where a mask is of no image or of several.
        """
        masks: dict[str, Upload] = {}
        for mask in self.take_images(received, folder, "mask"):
            of = [i for i in images if Path(i.name).stem == Path(mask.name).stem]
            if len(of) != 1:
                raise ValueError(
                    f"the mask {mask.name} is of {len(of)} images, not of one: name each mask as "
                    "its image, such as photo.png for photo.jpg, and images apart"
                )
            if of[0].path.name in masks:
                raise ValueError(f"there are two masks for {of[0].name}: give one")
            masks[of[0].path.name] = mask
        return masks

    def trim_cache(self, most: int = MOST_CACHED) -> None:
        """Remove the oldest files of the cache, until it has ``most`` bytes or fewer."""
        found = [(path, path.stat()) for path in self.cache.rglob("*") if path.is_file()]
        total = 0
        for path, about in sorted(found, key=lambda one: one[1].st_mtime, reverse=True):
            total += about.st_size
            if total > most:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _uploaded(self, given: str | Path) -> Path:
        # Gradio refuses such paths as well; that the server reads what was sent to it and nothing
        # else should not hang on one check in another project.
        path = Path(given).resolve()
        if not path.is_relative_to(self.served) or not path.is_file():
            raise ValueError("a file that was not uploaded cannot be used: upload it")
        return path


def display_name(name: str) -> str:
    """A file's name to show: letters of any alphabet, digits, spaces and ``._-`` alone."""
    name = re.sub(r"[^\w. -]+", "_", name).strip(" .")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}...{name[-_LONGEST_NAME // 2 :]}"
    return name or "image"


def in_their_words(message: str, uploads: Iterable[Upload]) -> str:
    """A message with the senders' names for their files, and no folder of this machine."""
    for upload in uploads:
        message = message.replace(str(upload.path), upload.name)
        message = message.replace(upload.path.name, upload.name)
    return _FOLDERS.sub("", message)


def _suffix(path: Path, name: str) -> str:
    """Raises ValueError where the file is no image of a format that the demo takes."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{name} is larger than {MOST_BYTES // 2**20} MB: make it smaller")
    try:
        with Image.open(path) as image:
            suffix, pixels = _SUFFIXES.get(image.format), image.width * image.height
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is no image that can be read: give JPEG or PNG files") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels: make it smaller") from error
    if suffix is None:
        raise ValueError(f"{name} is of a format that is not taken: give JPEG or PNG files")
    if pixels > MOST_PIXELS:
        raise ValueError(
            f"{name} has {pixels / 1e6:.0f} million pixels, and {MOST_PIXELS // 10**6} million are "
            "allowed: make it smaller"
        )
    return suffix
