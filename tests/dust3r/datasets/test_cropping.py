import json
from pathlib import Path

import numpy as np
import pytest

from dust3r.datasets.cropping import Frame, crop_and_resize

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = json.loads((GOLDEN / "crops.json").read_text())


def golden_source(case: dict) -> Frame:
    """The golden cases' input: 16-pixel blocks of uniform colour and depth."""
    width, height = case["width"], case["height"]
    rng = np.random.default_rng(case["source_seed"])
    blocks = (height // 16 + 1, width // 16 + 1)
    colours = rng.integers(0, 256, (*blocks, 3)).astype(np.uint8)
    depths = rng.uniform(1, 4, blocks).astype(np.float32)
    image, depth = (
        coarse.repeat(16, 0).repeat(16, 1)[:height, :width] for coarse in (colours, depths)
    )
    return Frame(image, depth, pinhole(*case["fx_fy_cx_cy"]))


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)


def blank(width: int, height: int, cx: float | None = None, cy: float | None = None) -> Frame:
    cx = width / 2 if cx is None else cx
    cy = height / 2 if cy is None else cy
    image = np.zeros((height, width, 3), np.uint8)
    return Frame(image, np.ones((height, width), np.float32), pinhole(500, 500, cx, cy))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")
def test_agrees_with_published_crops(case):
    resolution = case["resolution"]
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution[0])
    rng = np.random.default_rng(case["rng_seed"])
    cropped = crop_and_resize(golden_source(case), size, rng, case["aug_crop"])
    golden = np.load(GOLDEN / "crops.npz")
    number = case["case"]
    np.testing.assert_array_equal(cropped.depth, golden[f"{number}.depth"])
    np.testing.assert_allclose(cropped.intrinsics, golden[f"{number}.K"], atol=1e-4)
    # Pillow's Lanczos may round the last bit differently from version to version.
    difference = cropped.image.astype(int) - golden[f"{number}.image"]
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("cx, cy", [(260.3, 260.8), (420.0, 190.0), (320.0, 240.0)])
def test_principal_point_lands_in_the_middle(cx, cy):
    cropped = crop_and_resize(blank(640, 480, cx, cy), (224, 160), np.random.default_rng(0))
    assert cropped.size == (224, 160)
    np.testing.assert_allclose(cropped.intrinsics[:2, 2], (111.5, 79.5), atol=1)


def test_small_images_are_enlarged():
    cropped = crop_and_resize(blank(100, 80), (224, 224), np.random.default_rng(0))
    assert cropped.image.shape == (224, 224, 3)
    assert cropped.intrinsics[0, 0] == pytest.approx(500 * 224 / 80, rel=1e-5)


def test_upright_images_get_the_transposed_size():
    assert crop_and_resize(blank(480, 640), (64, 48), np.random.default_rng(0)).size == (48, 64)
    assert crop_and_resize(blank(640, 480), (64, 48), np.random.default_rng(0)).size == (64, 48)


def test_square_images_toss_a_coin():
    sizes = {
        crop_and_resize(blank(400, 400), (64, 48), np.random.default_rng(seed)).size
        for seed in range(20)
    }
    assert sizes == {(64, 48), (48, 64)}


def test_draws_only_what_it_needs():
    rng = np.random.default_rng(3)
    untouched = rng.bit_generator.state
    crop_and_resize(blank(640, 480), (64, 48), rng, aug_crop=1)
    crop_and_resize(blank(400, 400), (48, 48), rng)
    assert rng.bit_generator.state == untouched
    crop_and_resize(blank(640, 480), (64, 48), rng, aug_crop=2)
    assert rng.bit_generator.state != untouched


def test_augmentation_varies_the_scale_within_its_range():
    focals = {
        float(
            crop_and_resize(
                blank(640, 480), (224, 160), np.random.default_rng(seed), aug_crop=16
            ).intrinsics[0, 0]
        )
        for seed in range(60)
    }
    assert len(focals) == 16
    # The target grows by 0 to 15 pixels on both sides: 224 / 640 > 160 / 480 rules the first.
    assert min(focals) == pytest.approx(500 * 224 / 640, rel=1e-5)
    assert max(focals) == pytest.approx(500 * max(239 / 640, 175 / 480), rel=1e-5)


def test_geometry_survives():
    """A point of the scene is seen where its pixel went: a ramp of depth marks the columns."""
    frame = blank(640, 480, 310, 250)
    frame = frame._replace(depth=np.tile(np.arange(1, 641, dtype=np.float32), (480, 1)))
    cropped = crop_and_resize(frame, (224, 160), np.random.default_rng(0))
    columns = np.arange(224)
    ray = (columns - cropped.intrinsics[0, 2]) / cropped.intrinsics[0, 0]
    source = ray * 500 + 310
    scale = 500 / cropped.intrinsics[0, 0]
    assert np.abs(cropped.depth[80] - 1 - source).max() < scale


@pytest.mark.parametrize(
    "frame, message",
    [
        (blank(64, 48)._replace(depth=np.ones((24, 32), np.float32)), r"64x48.*depth map is 32x24"),
        (blank(64, 48, cx=70), r"principal point \(70, 24\) lies outside the 64x48 image"),
        (blank(64, 48, cy=0), "another image size"),
        (blank(64, 48, cx=np.nan), "finite 3x3"),
        (blank(64, 48)._replace(intrinsics=pinhole(-1, 1, 32, 24)), "positive"),
    ],
)
def test_refuses_inconsistent_frames(frame, message):
    with pytest.raises(ValueError, match=message):
        crop_and_resize(frame, (32, 32), np.random.default_rng(0))
