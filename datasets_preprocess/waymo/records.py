"""Waymo's TFRecord files of ``Frame`` messages, read without TensorFlow.

A TFRecord file is, for each record, its length (8 bytes, little-endian), a checksum of the length
(4), the record and a checksum of it (4) (https://www.tensorflow.org/tutorials/load_data/tfrecord).
Checksums are not looked at: damage shows as a message that cannot be parsed. Messages are those of
``dataset.proto`` (https://github.com/waymo-research/waymo-open-dataset, version 1 of the Perception
set), of which the fields stated here are read and all others passed over.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

_PACKAGE = "waymo.open_dataset"
_LENGTH = struct.Struct("<QI")
_CHECKSUM_BYTES = 4
# Message -> field: number and type; "[]" marks repeated ones. Enumerations are read as numbers.
_MESSAGES = {
    "MatrixShape": {"dims": (1, "int32[]")},
    "MatrixFloat": {"data": (1, "float[]"), "shape": (2, "MatrixShape")},
    "MatrixInt32": {"data": (1, "int32[]"), "shape": (2, "MatrixShape")},
    "Transform": {"transform": (1, "double[]")},
    "CameraCalibration": {
        "name": (1, "int32"),
        "intrinsic": (2, "double[]"),
        "extrinsic": (3, "Transform"),
        "width": (4, "int32"),
        "height": (5, "int32"),
    },
    "LaserCalibration": {
        "name": (1, "int32"),
        "beam_inclinations": (2, "double[]"),
        "beam_inclination_min": (3, "double"),
        "beam_inclination_max": (4, "double"),
        "extrinsic": (5, "Transform"),
    },
    "Context": {
        "name": (1, "string"),
        "camera_calibrations": (2, "CameraCalibration[]"),
        "laser_calibrations": (3, "LaserCalibration[]"),
    },
    "RangeImage": {
        "range_image_compressed": (2, "bytes"),
        "camera_projection_compressed": (3, "bytes"),
        "range_image_pose_compressed": (4, "bytes"),
    },
    "CameraImage": {"name": (1, "int32"), "image": (2, "bytes"), "pose": (3, "Transform")},
    "Laser": {
        "name": (1, "int32"),
        "ri_return1": (2, "RangeImage"),
        "ri_return2": (3, "RangeImage"),
    },
    "Frame": {
        "context": (1, "Context"),
        "timestamp_micros": (2, "int64"),
        "pose": (3, "Transform"),
        "images": (4, "CameraImage[]"),
        "lasers": (5, "Laser[]"),
    },
}


def read_frames(path: Path, step: int = 1) -> Iterator[tuple[int, Message]]:
    """Every ``step``-th ``Frame`` of a segment's file, and its number in it.

    Raises FileNotFoundError where there is no file, ValueError where it is cut short or damaged.
    """
    for number, record in enumerate(read_records(path)):
        if number % step == 0:
            frame = _CLASSES["Frame"]()
            try:
                frame.ParseFromString(record)
            except DecodeError as error:
                raise ValueError(f"{path}: record {number} is no frame ({error})") from error
            yield number, frame


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file. Raises ValueError where it is cut short or damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            start = file.tell()
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
            if file.tell() + length + _CHECKSUM_BYTES > size:
                raise ValueError(
                    f"{path} is cut short or no TFRecord file: the record at byte {start} goes "
                    f"beyond its {size} bytes; download it again"
                )
            yield file.read(length)
            file.seek(_CHECKSUM_BYTES, 1)


def transform(message: Message) -> np.ndarray:
    """The (4, 4) float64 matrix of a ``Transform``. Raises ValueError where it has none."""
    values = np.array(message.transform)
    if values.size != 16:
        raise ValueError(f"a transform has {values.size} numbers, expected 16")
    return values.reshape(4, 4)


def matrix(compressed: bytes, kind: str) -> np.ndarray:
    """The array of a compressed ``MatrixFloat`` or ``MatrixInt32``, in its own shape.

    Raises ValueError where it is damaged.
    """
    message = _CLASSES[kind]()
    try:
        message.ParseFromString(zlib.decompress(compressed))
        return np.array(message.data).reshape(tuple(message.shape.dims))
    except (zlib.error, DecodeError, ValueError) as error:
        raise ValueError(f"a range image is damaged ({error})") from error


def _message_classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="waymo_open_dataset.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            kind, repeated = kind.removesuffix("[]"), kind.endswith("[]")
            added = message.field.add(name=field, number=number)
            added.label = added.LABEL_REPEATED if repeated else added.LABEL_OPTIONAL
            if kind in _MESSAGES:
                added.type, added.type_name = added.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = getattr(added, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _message_classes()
