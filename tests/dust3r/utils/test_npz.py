"""Arrays of .npz files: what is asked for comes back, and what cannot be used says why."""

import zipfile

import numpy as np
import pytest

from dust3r.utils.npz import load_arrays


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, a=np.arange(3), b=np.eye(2), c=np.zeros(1))
    return path


def test_keys_and_the_optional_ones_that_are_there(path):
    found = load_arrays(path, ("b",), ("a", "z"))
    assert list(found) == ["b", "a"]
    np.testing.assert_array_equal(found["a"], np.arange(3))


def test_a_missing_key_is_named_with_those_there_are(path):
    with pytest.raises(ValueError, match="some.npz lacks x, y; it has a, b, c; try another"):
        load_arrays(path, ("a", "x", "y"), mend="try another")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz does not exist; preprocess"):
        load_arrays(tmp_path / "none.npz", ())


@pytest.mark.parametrize("keep", [0, 20, 300, -40])
def test_a_file_that_was_cut_short_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="some.npz is damaged"):
        load_arrays(path, ("a",))


def test_a_flipped_byte_within_an_array_is_found(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 140] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="some.npz.* is damaged"):
        load_arrays(path, ("a", "b", "c"))


def test_python_objects_are_not_read(path):
    np.savez(path, a=np.array([{"x": 1}], object))
    with pytest.raises(ValueError, match="'a' holds Python objects.*a pickle can run code"):
        load_arrays(path, ("a",))


def test_a_single_array_is_refused(path):
    np.save(path.with_suffix(".npy"), np.arange(3))
    path.with_suffix(".npy").rename(path)
    with pytest.raises(ValueError, match="some.npz is a single array and no .npz file"):
        load_arrays(path, ())


def test_what_is_no_array_is_refused(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("text.txt", "hello")
    with pytest.raises(ValueError, match="'text.txt' is no array"):
        load_arrays(path, ("text.txt",))
