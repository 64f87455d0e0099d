"""Shards: views of a data set packed into tar files, with an index of where each of them lies.

``ROOT/<split>`` holds ``shard-000000/views.tar`` and so on, ``index.json`` (counts, checksums) and
``index.npz``: ``views`` (V, 3), the shard, offset and size in bytes of each view; ``names`` (V,),
those of their images; ``pairs`` (P, 2), the two views of each sample. The tar files are
webdataset's: the files of a view stand next to each other and share a key:

    000012.json        camera and names
    000012.jpg         the image's file as it was (or .png and so on)
    000012.depth.png   16 bits, ``depth_unit`` steps a metre, where that holds the depth exactly
    000012.depth.npz   else: ``depth`` float32, or ``values`` and which of them (``steps``)

so that one read of a range gives a view, and other programs read the shards as posed RGB-D images.
"""

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import dataclass, fields

import cv2
import numpy as np
from PIL import Image

from dust3r.datasets.base import RawView
from dust3r.utils.pixels import OVERSAMPLING, EncodedImage, decode_depth_png

VERSION = 1
INDEX = "index.json"
ARRAYS = "index.npz"
TAR = "views.tar"
END = bytes(1024)  # two empty blocks end a tar file

_UNITS = (1000.0, 256.0, 5000.0)
_MOST_STEPS = 65535
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}
_NAMES = ("dataset", "label")


def shard_folder(number: int) -> str:
    """The folder of a shard in that of its split."""
    return f"shard-{number:06d}"


def shard_file(number: int) -> str:
    """A shard's tar file in the folder of its split."""
    return f"{shard_folder(number)}/{TAR}"


@dataclass(frozen=True)
class ShardIndex:
    """What ``index.json`` says.

    Attributes:
        source: what the shards were made from, for people.
        split: which part of it.
        samples, views: how many there are.
        is_metric_scale: whether depths and poses are in metres.
        sizes, sha256: of each shard's file.
        samples_of: how many samples each shard holds, which are consecutive.
        skipped: samples of the source that could not be used, with the reasons.
        version: of the format.
    """

    source: str
    split: str
    samples: int
    views: int
    is_metric_scale: bool
    sizes: list[int]
    sha256: list[str]
    samples_of: list[int]
    skipped: list[str]
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(vars(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "ShardIndex":
        """Raises ValueError where it is damaged or of another version."""
        stored = json.loads(text)
        if not isinstance(stored, dict) or stored.keys() != {field.name for field in fields(cls)}:
            raise ValueError("it is no index of shards")
        if stored["version"] != VERSION:
            raise ValueError(f"it has version {stored['version']}, and {VERSION} is read here")
        return cls(**stored)


def digest(raw: RawView) -> bytes:
    """What tells a view from others."""
    hashed = hashlib.blake2b(digest_size=16)
    image = raw.image
    hashed.update(image.content if isinstance(image, EncodedImage) else np.asarray(image).tobytes())
    for array in (raw.depthmap, raw.camera_pose, raw.camera_intrinsics):
        hashed.update(np.ascontiguousarray(array, np.float32))
    hashed.update("\0".join((raw.dataset, raw.label, raw.instance)).encode())
    return hashed.digest()


def pack_view(raw: RawView, key: str) -> tuple[str, bytes]:
    """The name of a view's image, and its files as members of a tar file, without the end.

    Pixels, depths and the camera (as float32) come back from ``unpack_view`` as they were.
    """
    camera = {
        "camera_pose": np.asarray(raw.camera_pose, np.float32).tolist(),
        "camera_intrinsics": np.asarray(raw.camera_intrinsics, np.float32).tolist(),
        **{name: getattr(raw, name) for name in _NAMES},
        "source": raw.instance,
    }
    depth = np.asarray(raw.depthmap, np.float32)
    unit = _unit_of(depth)
    if unit is None:
        depth_file = {"depth.npz": _depth_npz(depth)}
    else:
        camera["depth_unit"] = unit
        steps = np.round(depth * np.float64(unit)).astype(np.uint16)
        depth_file = {"depth.png": cv2.imencode(".png", steps)[1].tobytes()}
    suffix, image = _image_file(raw)
    files = {"json": json.dumps(camera).encode(), suffix: image, **depth_file}
    packed = io.BytesIO()
    tar = tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT)
    for extension, content in files.items():
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return f"{key}.{suffix}", packed.getvalue()[: tar.offset]


def unpack_view(packed: bytes, shard: str, oversampling: float = OVERSAMPLING) -> RawView:
    """The view that ``pack_view`` packed; its ``instance`` is ``<shard>/<name of the image>``.

    Raises:
        ValueError: something is missing or damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        by_extension = {name.partition(".")[2]: name for name in files}
        camera = json.loads(files[by_extension.pop("json")])
        kind = next(extension for extension in by_extension if extension.startswith("depth."))
        depth_name = by_extension.pop(kind)
        (image_name,) = by_extension.values()
        if kind == "depth.png":
            depth = decode_depth_png(
                files[depth_name], f"{shard}/{depth_name}", camera["depth_unit"]
            )
        else:
            depth = _read_depth_npz(files[depth_name])
        return RawView(
            image=EncodedImage(files[image_name], f"{shard}/{image_name}", oversampling),
            depthmap=depth,
            camera_pose=np.array(camera["camera_pose"], np.float32),
            camera_intrinsics=np.array(camera["camera_intrinsics"], np.float32),
            **{name: camera[name] for name in _NAMES},
            instance=f"{shard}/{image_name}",
        )
    except (tarfile.TarError, zipfile.BadZipFile, KeyError, StopIteration, AttributeError) as error:
        raise ValueError(
            f"damaged: no whole view where the index says ({type(error).__name__}: {error}); copy "
            "the shards again, or check them with datasets_preprocess.make_shards --check"
        ) from error


def _image_file(raw: RawView) -> tuple[str, bytes]:
    image = raw.image
    if isinstance(image, EncodedImage):
        return _SUFFIXES.get(image.format, image.format.lower()), image.content
    pixels = image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(image)
    encoded = io.BytesIO()
    pixels.save(encoded, "PNG", compress_level=1)
    return "png", encoded.getvalue()


def _unit_of(depth: np.ndarray) -> float | None:
    """Steps a metre of which all depths are whole numbers, exactly as they are read again."""
    if not np.isfinite(depth).all() or depth.min(initial=0) < 0:
        return None
    for unit in _UNITS:
        steps = np.round(depth * np.float64(unit))
        if steps.max(initial=0) <= _MOST_STEPS:
            again = steps.astype(np.float32) / np.float32(unit)
            if np.array_equal(again, depth):
                return unit
    return None


def _depth_npz(depth: np.ndarray) -> bytes:
    values, steps = np.unique(depth, return_inverse=True)
    arrays = {"depth": depth}
    if len(values) <= _MOST_STEPS + 1:
        arrays = {"values": values, "steps": steps.reshape(depth.shape).astype(np.uint16)}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue()


def _read_depth_npz(content: bytes) -> np.ndarray:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return stored["depth"] if "depth" in stored else stored["values"][stored["steps"]]
