import io
import math

import numpy as np
import pytest
from PIL import Image

from dust3r.datasets.cropping import Frame, crop_and_resize
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.utils.image import EncodedImage

ODD = (1001, 667)


def waves(width: int, height: int) -> np.ndarray:
    """A picture so smooth that any way to shrink it gives the same, if nothing moves."""
    v, u = np.mgrid[:height, :width] / 40
    channels = [np.sin(u), np.sin(v), np.sin(u + v)]
    return (128 + 100 * np.stack(channels, -1)).round().astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", oversampling: float = 1.5) -> EncodedImage:
    file = io.BytesIO()
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(file, kind, **options)
    return EncodedImage(file.getvalue(), "a file", oversampling)


def frame(image: np.ndarray | EncodedImage, cx: float, cy: float) -> Frame:
    height, width = image.shape[:2]
    depth = np.arange(height * width, dtype=np.float32).reshape(height, width) + 1
    intrinsics = np.array([[800, 0, cx], [0, 810, cy], [0, 0, 1]], np.float32)
    return Frame(image, depth, intrinsics)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("resolution", [(96, 64), (512, 384), (1024, 704)])
def test_full_decoding_is_what_arrays_give(kind, resolution):
    rng = np.random.default_rng(0)
    stored = encoded(rng.integers(0, 256, (*ODD[::-1], 3)).astype(np.uint8), kind, math.inf)
    crops = [
        crop_and_resize(frame(image, 480, 350), resolution, np.random.default_rng(1), 16)
        for image in (stored, np.asarray(stored))
    ]
    for one, other in zip(*crops, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [ODD, (1000, 667), (1003, 672)])
@pytest.mark.parametrize("resolution, by", [((272, 176), 2), ((128, 96), 4), ((64, 48), 8)])
@pytest.mark.parametrize("window", [None, (3, 5, 998, 661), (120, 31, 971, 660)])
def test_reduced_decoding_moves_nothing(size, resolution, by, window, monkeypatch):
    """A quarter of a pixel of the result would change it by two grey levels in the mean."""
    pixels = waves(*size)
    used = []
    decoded = EncodedImage.decoded
    monkeypatch.setattr(
        EncodedImage, "decoded", lambda self, by: used.append(by) or decoded(self, by)
    )
    fast, full = (
        crop_and_resize(
            frame(encoded(pixels, oversampling=oversampling), 499, 333),
            resolution,
            np.random.default_rng(0),
            window=window,
        )
        for oversampling in (1.5, math.inf)
    )
    assert used == [by, 1]
    np.testing.assert_array_equal(fast.intrinsics, full.intrinsics)
    np.testing.assert_array_equal(fast.depth, full.depth)
    inner = np.s_[2:-2, 2:-2]
    difference = fast.image[inner].astype(float) - full.image[inner]
    assert np.abs(difference).mean() < 0.7
    assert np.linalg.norm(displacement(fast.image[inner], full.image[inner])) < 0.04


def displacement(image: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The shift (2,) in pixels that best explains the difference of two images."""
    down, right = np.gradient(expected.astype(float), axis=(0, 1))
    slopes = np.stack([right.ravel(), down.ravel()], 1)
    return np.linalg.lstsq(slopes, (expected.astype(float) - image).ravel(), rcond=None)[0]


@pytest.mark.parametrize("oversampling", [1.0, 1.5, 2.0, 3.0])
def test_what_is_decoded_is_large_enough(oversampling, monkeypatch):
    sizes = []
    decoded = EncodedImage.decoded

    def seen(self, by):
        image = decoded(self, by)
        sizes.append(image.size)
        return image

    monkeypatch.setattr(EncodedImage, "decoded", seen)
    image = encoded(waves(1600, 1200), oversampling=oversampling)
    for width in range(100, 1600, 100):
        image.resized((0, 0, 1600, 1200), (width, width * 3 // 4), Image.Resampling.LANCZOS)
        assert sizes[-1][0] >= min(1600, oversampling * width)
        assert sizes[-1][0] < 2 * oversampling * width + 16 or sizes[-1][0] == 200


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_any_colours_become_rgb(mode):
    file = io.BytesIO()
    picture = Image.fromarray(waves(640, 480)).convert(mode)
    picture.save(file, "JPEG", quality=98)
    image = EncodedImage(file.getvalue(), "a file")
    small = np.asarray(image.resized((0, 0, 640, 480), (64, 48), Image.Resampling.LANCZOS))
    whole = np.asarray(image)
    assert image.shape == whole.shape == (480, 640, 3) and small.shape == (48, 64, 3)
    assert np.abs(small.mean((0, 1)) - whole.mean((0, 1))).max() < 1


def test_stands_for_an_array():
    image = encoded(waves(60, 40), "PNG")
    np.testing.assert_array_equal(np.asarray(image), waves(60, 40))
    np.testing.assert_array_equal(image[..., 0], waves(60, 40)[..., 0])
    assert np.asarray(image, np.float32).dtype == np.float32 and image.format == "PNG"


def test_refuses_what_is_cut_short_or_no_image():
    content = encoded(waves(640, 480)).content
    with pytest.raises(ValueError, match="cannot read the image b.jpg"):
        EncodedImage(content[: len(content) // 2], "b.jpg").decoded(2)
    with pytest.raises(ValueError, match="cannot read the image b.jpg"):
        EncodedImage(b"not an image", "b.jpg")
    with pytest.raises(FileNotFoundError, match="no image file /nowhere.jpg"):
        EncodedImage.read("/nowhere.jpg")


def test_a_data_set_can_ask_for_every_pixel(write_tree):
    dataset = ScanNetpp(split="all", ROOT=write_tree(size=(960, 720)), resolution=64)
    fast = dataset[0][0]
    dataset.oversampling = math.inf
    full = dataset[0][0]
    assert (fast["img"] != full["img"]).any()
    assert (fast["img"] - full["img"]).abs().mean() < 2 / 127.5
    for key in ("pts3d", "camera_intrinsics", "depthmap"):
        np.testing.assert_array_equal(fast[key], full[key])
