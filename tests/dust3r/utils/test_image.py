import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dust3r.utils.image import ImgNorm, read_depth_png, read_rgb, rgb


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_normalised_images_span_minus_one_to_one():
    assert ImgNorm(np.zeros((2, 2, 3), np.uint8)).unique().tolist() == [-1]
    assert ImgNorm(Image.new("RGB", (2, 2), (255, 255, 255))).unique().tolist() == [1]


def test_rgb_undoes_the_normalisation(pixels):
    tensor = ImgNorm(pixels)
    assert tensor.shape == (3, 6, 8) and tensor.dtype == torch.float32
    np.testing.assert_allclose(rgb(tensor), pixels / 255, atol=1e-6)
    np.testing.assert_allclose(rgb(tensor.numpy()), pixels / 255, atol=1e-6)
    np.testing.assert_allclose(rgb(tensor.bfloat16()[None])[0], pixels / 255, atol=0.01)


def test_rgb_takes_batches_lists_channels_last_and_bytes(pixels):
    tensor = ImgNorm(pixels)
    assert rgb(torch.stack([tensor] * 4)).shape == (4, 6, 8, 3)
    assert [one.shape for one in rgb([tensor, tensor[:, :4]])] == [(6, 8, 3), (4, 8, 3)]
    np.testing.assert_allclose(rgb(tensor.permute(1, 2, 0)), pixels / 255, atol=1e-6)
    np.testing.assert_allclose(rgb(pixels), pixels / 255, atol=1e-6)
    np.testing.assert_allclose(rgb(torch.from_numpy(pixels)), pixels / 255, atol=1e-6)


def test_rgb_clips():
    assert rgb(torch.full((3, 2, 2), 3.0)).max() == 1


def test_rgb_turns_transposed_images_back(pixels):
    tensor = ImgNorm(pixels)
    upright = rgb(tensor, torch.tensor([8, 6]))
    np.testing.assert_allclose(upright, (pixels / 255).swapaxes(0, 1), atol=1e-6)
    mixed = rgb(torch.stack([tensor, tensor]), [(6, 8), (8, 6)])
    assert [one.shape for one in mixed] == [(6, 8, 3), (8, 6, 3)]
    assert rgb(torch.stack([tensor, tensor]), [(8, 6), (8, 6)]).shape == (2, 8, 6, 3)


def test_rgb_refuses_what_is_no_image():
    with pytest.raises(ValueError, match=r"expected images.*\(4, 5\)"):
        rgb(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="nor its transpose"):
        rgb(torch.zeros(3, 4, 5), (4, 4))


def test_read_rgb_ignores_the_exif_orientation(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), pixels)


def test_read_rgb_gives_three_channels(tmp_path, pixels):
    Image.fromarray(pixels).convert("L").save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png").shape == (6, 8, 3)


def test_read_depth_is_in_metres_with_zero_for_none(tmp_path):
    steps = np.array([[0, 1, 1234], [65535, 1000, 500]], np.uint16)
    cv2.imwrite(str(tmp_path / "depth.png"), steps)
    depth = read_depth_png(tmp_path / "depth.png")
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[0, 0.001, 1.234], [65.535, 1, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(read_depth_png(tmp_path / "depth.png", unit=5000), depth / 5)


@pytest.mark.parametrize("read", [read_rgb, read_depth_png])
def test_reading_says_what_is_wrong(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="absent.png"):
        read(tmp_path / "absent.png")
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "whole.png"), noise)
    content = (tmp_path / "whole.png").read_bytes()
    for damaged in (b"", b"<html>", content[: len(content) // 2]):
        path = tmp_path / "damaged.png"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot read.*damaged.png.*copy or preprocess"):
            read(path)


def test_read_rgb_refuses_truncated_jpegs(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="cut.jpg.*truncated"):
        read_rgb(path)


def test_depth_of_eight_bits_or_three_channels_is_refused(tmp_path, pixels):
    for name, content in (("grey", pixels[..., 0]), ("colour", pixels)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), content)
        with pytest.raises(ValueError, match="one channel of 16 bits.*uint8"):
            read_depth_png(tmp_path / f"{name}.png")
