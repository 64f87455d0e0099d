from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dust3r.export.frames import stems_of, write_images


@pytest.fixture
def only(build, shots):
    """A reconstruction whose one image has this file and name."""

    def make(path, name=None):
        one = build(shots=shots[:1])
        return replace(one, sources=(replace(one.sources[0], path=path, name=name or path.name),))

    return make


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", ".jpg", ("JPEG", True)),
        ("RGB", ".png", ("PNG", True)),
        ("RGBA", ".png", ("PNG", False)),
        ("L", ".png", ("PNG", False)),
        ("CMYK", ".jpg", ("JPEG", False)),
        ("RGB", ".tif", ("PNG", False)),
        ("RGB", ".webp", ("JPEG", False)),
    ],
)
def test_formats_that_every_trainer_reads(only, tmp_path, mode, suffix, expected):
    path = tmp_path / f"photo{suffix}"
    Image.new("RGB", (192, 144), (200, 100, 50)).convert(mode).save(path)
    (frame,) = write_images(only(path), tmp_path / "out")
    written = tmp_path / "out" / "images" / frame.name
    kind, copied = expected
    with Image.open(written) as image:
        assert (image.format, image.mode, image.size) == (kind, "RGB", (192, 144))
        if mode != "L":
            assert np.abs(np.asarray(image).astype(int) - (200, 100, 50)).max() < 12
    assert (written.read_bytes() == path.read_bytes()) == copied


def test_colour_profiles_survive_turning(only, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (144, 192))
    image.save(tmp_path / "photo.jpg", exif=exif, icc_profile=b"profile of a display")
    (frame,) = write_images(only(tmp_path / "photo.jpg"), tmp_path / "out")
    with Image.open(tmp_path / "out" / "images" / frame.name) as written:
        assert written.info["icc_profile"] == b"profile of a display"
        assert not written.getexif() and written.size == (192, 144)


def test_a_damaged_original_is_refused(only, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.effect_noise((192, 144), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="photo.jpg"):
        write_images(only(path), tmp_path / "out")
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("A.jpg", "a.png"), ["A", "a_2"]),
        (("a.jpg", "a_2.jpg", "a.png"), ["a", "a_2", "a_3"]),
        (("a.b.jpg", "a.c.jpg"), ["a_b", "a_c"]),
        (("../../etc/passwd", "..\\..\\boot.ini"), ["passwd", "boot"]),
        (("", ".", "..", "/"), ["image_001", "image_002", "image_003", "image_004"]),
        (("CON", "nul.png", "LPT1.jpg"), ["image_CON", "image_nul", "image_LPT1"]),
        (("кухня.jpg", "Küche 1.jpg", "台所.jpg"), ["image_001", "Kuche_1", "image_003"]),
        (("a\nb\0c.jpg", "-rf.jpg", "x" * 300 + ".jpg"), ["a_b_c", "rf", "x" * 80]),
    ],
)
def test_names_are_safe_and_unique(reconstruction, names, expected):
    sources = tuple(replace(reconstruction.sources[0], name=name) for name in names)
    assert stems_of(replace(reconstruction, sources=sources)) == expected
