import numpy as np
import pytest
import torch
from PIL import Image

from dust3r.datasets.transforms import ColorJitter
from dust3r.utils.image import ImgNorm


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def test_jitter_is_a_function_of_the_generator(image):
    jitter = ColorJitter()
    first = jitter(image, np.random.default_rng(5))
    torch.testing.assert_close(jitter(image, np.random.default_rng(5)), first, rtol=0, atol=0)
    assert not torch.equal(jitter(image, np.random.default_rng(6)), first)


def test_jitter_leaves_the_global_generators_alone(image):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    ColorJitter()(image, np.random.default_rng(0))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_jitter_of_no_strength_is_the_plain_input(image):
    still = ColorJitter(brightness=0, contrast=0, saturation=0, hue=0)
    # A hue shift of zero still goes to HSV in bytes and back, which rounds.
    levels = (still(image, np.random.default_rng(0)) - ImgNorm(image)).abs() * 255 / 2
    assert levels.max() <= 8 and levels.mean() < 1


def test_jitter_stays_in_range_and_moves_all_of_colour(image):
    outputs = torch.stack(
        [ColorJitter()(Image.fromarray(image), np.random.default_rng(seed)) for seed in range(32)]
    )
    assert outputs.shape == (32, 3, 12, 20) and outputs.dtype == torch.float32
    assert outputs.abs().max() <= 1
    means = outputs.mean((2, 3))
    assert (means.std(0) > 0.05).all()


@pytest.mark.parametrize("strengths", [{"brightness": -0.1}, {"hue": 0.6}])
def test_refuses_strengths_out_of_range(strengths):
    with pytest.raises(ValueError, match="strengths"):
        ColorJitter(**strengths)
