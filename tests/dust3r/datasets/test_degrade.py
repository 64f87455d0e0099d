"""Pictures made worse on purpose: light is conserved, strengths mean what they say."""

import numpy as np
import pytest
import torch

from dust3r.datasets.degrade import Blur, Dark, Noise, degradation_of, to_bytes, to_light
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.utils.spec import DATASETS, build

GREY = 120
EVERY = [Blur(), Noise(), Dark()]


@pytest.fixture
def grey() -> np.ndarray:
    return np.full((64, 96, 3), GREY, np.uint8)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_light_and_bytes_are_inverse():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_bytes(to_light(levels)), levels)
    # The standard's mid grey, and its ends.
    np.testing.assert_allclose(
        to_light(np.array([0, 118, 255], np.uint8)), [0, 0.181, 1], atol=1e-3
    )


@pytest.mark.parametrize("worse", EVERY, ids=lambda one: type(one).__name__)
def test_the_result_is_an_image_and_a_function_of_the_generator(worse, picture):
    first = worse(picture, np.random.default_rng(4))
    assert first.dtype == np.uint8 and first.shape == picture.shape
    np.testing.assert_array_equal(first, worse(picture, np.random.default_rng(4)))
    assert (first != worse(picture, np.random.default_rng(5))).any()
    assert (first != picture).mean() > 0.5


def test_blur_keeps_light_and_spreads_a_point_over_the_stated_size():
    dot = np.zeros((65, 65, 3), np.uint8)
    dot[32, 32] = 255
    spread = to_light(Blur(defocus=0, motion=0.2)(dot, np.random.default_rng(0)))[..., 0]
    rows, columns = np.nonzero(spread)
    length = np.hypot(np.ptp(rows), np.ptp(columns))
    assert abs(length - 0.2 * 65) < 3
    # A line, not a disc: its points lie along one direction.
    across = np.linalg.svd(np.stack([rows - 32.0, columns - 32.0]), compute_uv=False)
    assert across[1] < 0.2 * across[0]
    assert abs(spread.sum() - 1) < 0.1


def test_blur_of_a_flat_picture_or_of_no_strength_is_that_picture(grey, picture):
    np.testing.assert_array_equal(Blur()(grey, np.random.default_rng(0)), grey)
    still = Blur(defocus=0, motion=0)(picture, np.random.default_rng(0))
    assert np.abs(still.astype(int) - picture).max() <= 1


def test_blur_averages_light_and_not_its_encoding():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    mixed = Blur(defocus=0.2, motion=0)(stripes, np.random.default_rng(0))
    assert abs(mixed[20:44, 20:44].mean() - 188) < 3


def test_noise_has_the_deviation_of_photons_and_of_reading(grey):
    noisy = to_light(Noise(electrons=400, read=5)(grey, np.random.default_rng(0)))
    light = float(to_light(grey)[0, 0, 0])
    expected = np.sqrt(400 * light + 5**2) / 400
    assert abs(noisy.std() / expected - 1) < 0.05
    assert abs(noisy.mean() / light - 1) < 0.02


def test_every_stop_halves_the_light(grey):
    light = float(to_light(grey)[0, 0, 0])
    for stops in (1, 3):
        dark = to_light(Dark(stops, electrons=1e6, read=0)(grey, np.random.default_rng(0)))
        assert abs(dark.mean() * 2**stops / light - 1) < 0.03


def test_a_dark_picture_has_few_levels_left(picture):
    dark = Dark()(picture, np.random.default_rng(0))
    assert dark.max() < 90 and dark.mean() < picture.mean() / 2


@pytest.mark.parametrize("wrong", ["fog", 3])
def test_refuses_what_it_does_not_know(wrong):
    with pytest.raises(ValueError, match="blur, noise, dark"):
        degradation_of(wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Blur(motion=0.7),
        lambda: Blur(defocus=-1),
        lambda: Noise(electrons=0),
        lambda: Noise(read=-1),
        lambda: Dark(stops=-1),
    ],
)
def test_refuses_strengths_that_cannot_be(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("name", ["blur", "noise", "dark"])
def test_a_degraded_sample_differs_in_its_picture_alone(write_tree, name):
    options = {"split": "all", "ROOT": write_tree(), "resolution": (64, 48), "aug_crop": 16}
    clean, worse = ScanNetpp(**options)[3], ScanNetpp(**options, degrade=name)[3]
    again = ScanNetpp(**options, degrade=name)[3]
    for a, b, c in zip(clean, worse, again, strict=True):
        assert not torch.equal(a["img"], b["img"])
        assert torch.equal(b["img"], c["img"])
        for key in set(a) - {"img"}:
            np.testing.assert_array_equal(a[key], b[key])
    # Views of a pair are degraded independently: the same image twice would be noise twice.
    assert worse[0]["img"].shape == worse[1]["img"].shape


def test_specifications_name_degradations_and_their_strengths(write_tree):
    root = write_tree()
    spec = f"ScanNetpp('all', ROOT='{root}', resolution=64, degrade={{}})"
    named, made = (build(spec.format(said), DATASETS) for said in ("'dark'", "Dark(stops=4)"))
    assert torch.equal(named[0][0]["img"], made[0][0]["img"])
    with pytest.raises(ValueError, match="unknown"):
        build(spec.format("'fog'"), DATASETS)


def test_metadata_of_another_name_gives_its_pairs(write_tree):
    root = write_tree()
    stored = dict(np.load(root / "all_metadata.npz"))
    np.savez(root / "other.npz", **{**stored, "pairs": np.array([[0, 5, 0.0]])})
    dataset = ScanNetpp("all", root, 64, metadata="other.npz")
    assert dataset.pairs.tolist() == [[0, 5]]
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        ScanNetpp("all", root, 64, metadata="nothing.npz")
