"""Files of pixels: photographs, masks and depth maps, each read whole or refused by its name.

Pillow opens every photograph in one place here, so that all of the project agrees on which files
are images, how large they may be and what becomes of alpha, palettes and 16 bits.
"""

import functools
import io
import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

log = logging.getLogger(__name__)

Pixels = Image.Image | np.ndarray
Box = tuple[float, float, float, float]

# How many times as large as needed an image is decoded at least, see ``EncodedImage``. At 1.45 the
# frames of ScanNet++ (1752x1168) are halved for 512x384 whatever ``aug_crop=16`` draws.
OVERSAMPLING = 1.45
_REDUCTIONS = (8, 4, 2)

# A file's header states its size before anything is decoded: a few bytes may claim terabytes. The
# largest photographs of phones have 108 megapixels; Pillow by itself refuses from 179 on.
MAX_PIXELS = 150_000_000

# Others that Pillow knows are no photographs, or run programs (EPS) to be decoded.
FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF",
)  # fmt: skip

_MEND = "the file is damaged or of another format, copy or preprocess it again"
_LOSSY = ("JPEG", "MPO")
_DEEP = ("I", "F")  # how the names of Pillow's modes of more than 8 bits begin
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def ImgNorm(image: Pixels, rng: np.random.Generator | None = None) -> Tensor:
    """The network's input of an RGB image: (3, H, W) float32, [0, 255] mapped to [-1, 1].

    Args:
        image: PIL image or (H, W, 3) uint8 array.
        rng: not used; every transform of a dataset takes one.
    """
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(pixels).div_(127.5).sub_(1)


def read_rgb(path: str | Path) -> np.ndarray:
    """RGB image (H, W, 3) uint8 as stored: the EXIF orientation is not applied.

    What is transparent comes out white, 16 bits as their upper 8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, is truncated, or has more than ``MAX_PIXELS``.
    """
    with _opened(path) as image:
        return np.asarray(_to_rgb(image))


class EncodedImage:
    """RGB image of a file that is in memory, decoded when it is known how small it may be.

    ``resized`` shrinks JPEG files in two steps, the first of which is their decoder's: it can leave
    out the upper half of the frequencies (or 3/4, 7/8), which takes a fraction of the time and is a
    good low-pass filter. Elsewhere it stands for the (H, W, 3) uint8 array that ``read_rgb`` gives:
    ``np.asarray(image)``, ``image[rows, columns]``.

    The price of the first step is a small difference from shrinking all pixels at once. On seven
    photographs full of leaves and masonry, where it is largest, decoding 1.45 times as large as
    needed costs 0.89 grey levels of 255 (mean over an image; median of the images; at most 1.35, or
    41.2 dB), 2 times 0.48 (at most 0.68). Saving the shrunk image as a JPEG of quality 98 costs
    1.00 (at most 1.42).

    Args:
        content: the file's bytes.
        name: for messages.
        oversampling: at least how many times as large as needed the first step leaves an image;
            infinity for no such step.

    Attributes:
        shape: (H, W, 3).
        format: Pillow's name of the file's format, such as JPEG.

    Raises:
        ValueError: it is not an image, or has more than ``MAX_PIXELS``. (On decoding) it is
            truncated or damaged.
    """

    def __init__(self, content: bytes, name: str, oversampling: float = OVERSAMPLING) -> None:
        self.content, self.name = content, name
        self.oversampling = oversampling
        with _opened(io.BytesIO(content), name, load=False) as image:
            width, height = image.size
            self.format = image.format
        self.shape = (height, width, 3)

    @classmethod
    def read(cls, path: str | Path, oversampling: float = OVERSAMPLING) -> "EncodedImage":
        """That of a file; raises FileNotFoundError where there is none."""
        return cls(read_file(path, "image"), str(path), oversampling)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        pixels = np.asarray(self.decoded(1))
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def __getitem__(self, place: object) -> np.ndarray:
        return np.asarray(self)[place]

    def resized(self, box: Box, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
        """The part ``box`` (left, top, right, bottom) of the image at ``size`` (width, height).

        A pixel is a square around its centre, and ``box`` is in edges of the pixels as stored,
        whole ones; how the file is decoded does not move anything.
        """
        left, top, right, bottom = box
        room = min((right - left) / size[0], (bottom - top) / size[1]) / self.oversampling
        image = self.decoded(next((by for by in _REDUCTIONS if by <= room), 1))
        # The decoder's widths are rounded up, but each of its pixels covers as many as any other.
        by = math.ceil(self.shape[1] / image.width)
        if by == 1:
            return image.crop(box).resize(size, how)
        return image.resize(size, how, tuple(edge / by for edge in box))

    def decoded(self, by: int) -> Image.Image:
        """The image at 1/``by`` (1, 2, 4 or 8) of its size, rounded up; whole if it is no JPEG."""
        with _opened(io.BytesIO(self.content), self.name, by) as image:
            return _to_rgb(image)


def read_file(path: str | Path, what: str) -> bytes:
    """A file's bytes; ``what`` it is, "image" or "depth", is named where there is none."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no {what} file {path}") from None


def read_upright(source: str | Path | Image.Image) -> tuple[Image.Image, Image.Transpose | None]:
    """RGB image as a person sees it, and how its stored pixels were turned to get there.

    Args:
        source: a file, or an image of Pillow, whose EXIF orientation counts as well.

    Raises:
        FileNotFoundError, ValueError: as ``read_rgb``.
    """
    with _opened(source) as image:
        turn = _turn(image)
        pixels = _to_rgb(image)
        return (pixels if turn is None else pixels.transpose(turn)), turn


def read_mask(path: str | Path) -> np.ndarray:
    """Which pixels of a mask's file count, (H, W) bool, upright by the mask's own EXIF tag.

    Black does not count, any other colour does; of a file with transparent pixels, those that are
    not fully transparent. JPEG leaves noise around black, so there the middle grey divides.

    Raises:
        FileNotFoundError, ValueError: as ``read_rgb``.
    """
    with _opened(path) as image:
        turn = _turn(image)
        used = _used(image)
        return used if turn is None else np.asarray(Image.fromarray(used).transpose(turn))


def read_depth_png(path: str | Path, unit: float = 1000) -> np.ndarray:
    """Depth map (H, W) float32 of a 16-bit PNG that holds ``unit`` steps per metre; 0 = none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, is truncated, or has not one 16-bit channel.
    """
    return decode_depth_png(read_file(path, "depth"), str(path), unit)


def decode_depth_png(content: bytes, name: str, unit: float = 1000) -> np.ndarray:
    """As ``read_depth_png``, of a file in memory; ``name`` is for messages."""
    encoded = np.frombuffer(content, np.uint8)
    steps = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    if steps is None:
        raise ValueError(f"cannot read the depth map {name} ({encoded.size} bytes); {_MEND}")
    if steps.ndim != 2 or steps.dtype != np.uint16:
        raise ValueError(
            f"{name} is not a depth map: expected one channel of 16 bits, found shape "
            f"{steps.shape} of {steps.dtype}; write it with cv2.imwrite from an (H, W) uint16 array"
        )
    depth = steps.astype(np.float32)
    depth /= np.float32(unit)
    return depth


@contextmanager
def _opened(
    source: str | Path | Image.Image | io.BytesIO,
    name: str | None = None,
    by: int = 1,
    load: bool = True,
) -> Iterator[Image.Image]:
    """The decoded image; errors of opening it and of the ``with`` block name the file.

    Of a JPEG 1/``by`` of its size; without ``load`` only what its header says.
    """
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "given as pixels"
    elif name is None:
        name = source
    # Pillow refuses truncated JPEG files, which OpenCV decodes to partly grey images without error.
    try:
        with _file(source) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"it has {width}x{height} pixels")
            if image.format and image.format not in FORMATS:
                raise ValueError(f"{image.format} files are not read, convert it to PNG or JPEG")
            if by > 1:
                image.draft(None, (max(1, width // by), max(1, height // by)))
            if load:
                image.load()
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {name}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"the image {name} is too large: {error}, and at most {MAX_PIXELS / 1e6:.0f} million "
            "are read; resize it first"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # Each of Pillow's formats has its own kinds of errors at damaged files.
        raise ValueError(f"cannot read the image {name}: {error}; {_MEND}") from error


def _file(
    source: str | Path | Image.Image | io.BytesIO,
) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    with nullcontext(source) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not _can_read_heif():
        raise ValueError("it is a HEIF (HEIC) photograph: install pillow-heif to read these")
    return Image.open(source)


@functools.cache
def _can_read_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _turn(image: Image.Image) -> Image.Transpose | None:
    # The tag is written by thousands of cameras and editors; a damaged one is no reason to refuse
    # the photograph, and Pillow raises errors of many kinds at it.
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:
        log.debug("unreadable EXIF data, taken as upright: %s", error)
        return None


def _used(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(_DEEP):
        return np.asarray(image) != 0
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if not alpha.all():
            return alpha > 0
    return np.asarray(_to_rgb(image)).max(-1) > (127 if image.format in _LOSSY else 0)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(_DEEP):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
    steps = np.asarray(image)
    if image.mode == "F" or steps.min() < 0 or steps.max() > 65535:
        raise ValueError(f"its mode {image.mode!r} has 32 bits, save it with 8 or 16 per channel")
    return Image.fromarray((steps >> 8).astype(np.uint8))
