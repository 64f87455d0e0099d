"""Depth maps in EXR files: what is written is read, and what is damaged is named."""

import errno
from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from dust3r.utils.exr import read_exr_depth, write_exr_depth


@pytest.fixture
def depth() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 3e4, (37, 53)).astype(np.float32)


def test_depth_comes_back_bit_for_bit(tmp_path, depth):
    write_exr_depth(tmp_path / "a" / "depth.exr", depth)
    stored = read_exr_depth(tmp_path / "a" / "depth.exr")
    assert stored.dtype == np.float32 and stored.flags.writeable
    np.testing.assert_array_equal(stored, depth)


def test_arrays_in_any_order_keep_their_axes(tmp_path, depth):
    write_exr_depth(tmp_path / "depth.exr", depth.T.astype(np.float64))
    np.testing.assert_array_equal(read_exr_depth(tmp_path / "depth.exr"), depth.T)


def test_what_is_no_depth_becomes_zero(tmp_path):
    write_exr_depth(tmp_path / "depth.exr", np.array([[1.0, -2, np.nan, np.inf, 0]]))
    np.testing.assert_array_equal(read_exr_depth(tmp_path / "depth.exr"), [[1, 0, 0, 0, 0]])


def test_the_file_has_one_float_channel_as_opencv_writes_it(tmp_path, depth):
    write_exr_depth(tmp_path / "depth.exr", depth)
    with OpenEXR.File(str(tmp_path / "depth.exr"), separate_channels=True) as file:
        assert list(file.channels()) == ["Y"]
        assert file.channels()["Y"].pixels.dtype == np.float32


def test_half_floats_and_colour_files_are_read(tmp_path, depth):
    _write(tmp_path / "half.exr", {"Z": depth.astype(np.float16)})
    np.testing.assert_allclose(read_exr_depth(tmp_path / "half.exr"), depth, rtol=1e-3)
    _write(tmp_path / "rgb.exr", {"B": depth * 0, "G": depth * 0, "R": depth})
    np.testing.assert_array_equal(read_exr_depth(tmp_path / "rgb.exr"), depth)


def test_files_that_are_no_depth_maps_are_named(tmp_path, depth):
    _write(tmp_path / "other.exr", {"U": depth, "V": depth})
    (tmp_path / "text.exr").write_text("no image")
    write_exr_depth(tmp_path / "cut.exr", depth)
    whole = (tmp_path / "cut.exr").read_bytes()
    (tmp_path / "cut.exr").write_bytes(whole[: len(whole) // 2])
    for name in ("other", "text", "cut"):
        with pytest.raises(ValueError, match=f"{name}.exr"):
            read_exr_depth(tmp_path / f"{name}.exr")
    with pytest.raises(FileNotFoundError, match="none.exr"):
        read_exr_depth(tmp_path / "none.exr")


def test_a_full_disk_is_told_by_its_number(tmp_path, depth, monkeypatch):
    # The library's own words for a write to a device that has no room.
    monkeypatch.setattr(OpenEXR, "File", _WritesTo("/dev/full"))
    with pytest.raises(OSError) as caught:
        write_exr_depth(tmp_path / "depth.exr", depth)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 3, 1)])
def test_other_arrays_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="depth map"):
        write_exr_depth(tmp_path / "depth.exr", np.ones(shape))


class _WritesTo:
    """``OpenEXR.File`` that writes to ``target`` whatever path it is given."""

    def __init__(self, target: str) -> None:
        self.target, self.file = target, OpenEXR.File

    def __call__(self, *arguments: object) -> "_WritesTo":
        self.opened = self.file(*arguments)
        return self

    def __enter__(self) -> "_WritesTo":
        return self

    def __exit__(self, *_: object) -> None:
        del self.opened

    def write(self, path: str) -> None:
        self.opened.write(self.target)


def _write(path: Path, channels: dict[str, np.ndarray]) -> None:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))
