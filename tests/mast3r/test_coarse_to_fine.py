"""Matches at full resolution: exact where descriptors are colours, covered, each pixel once."""

import numpy as np
import pytest
from PIL import Image

from mast3r.coarse_to_fine import choose_windows, match_coarse_to_fine
from mast3r.matching import Matches

SHIFT = (40, 24)


def photographs(size=(256, 192), shift=SHIFT):
    width, height = size
    world = np.random.default_rng(0).integers(
        0, 256, (height + shift[1], width + shift[0], 3), dtype=np.uint8
    )
    return world[:height, :width], world[shift[1] :, shift[0] :]


def run(model, first, second, **kwargs):
    return match_coarse_to_fine(
        model,
        first,
        second,
        **{"size": 64, "min_confidence": 5, "subsample_or_initxy1": 4} | kwargs,
    )


def assert_shifted(found, shift=SHIFT):
    assert isinstance(found, Matches)
    np.testing.assert_array_equal(found.xy1 - found.xy2, np.tile(shift, (len(found), 1)))


def test_matches_are_exact_pixels_of_the_originals(colour_model):
    found = run(colour_model, *photographs())
    assert_shifted(found)
    # One seed in 16 pixels of what both show; windows overlap, so that there are more.
    assert len(found) > 0.9 * (256 - 40) * (192 - 24) / 16
    assert set(colour_model.shapes[0][-2:]) == {48, 64}
    assert all(shape[-2:] == (48, 64) for shape in colour_model.shapes)


def test_each_pixel_matches_once_and_rows_are_sorted(colour_model):
    found = run(colour_model, *photographs(), overlap=0.75, min_confidence=0)
    for xy in (found.xy1, found.xy2):
        assert len(np.unique(xy, axis=0)) == len(xy)
    order = found.xy1[:, 1] * 1000 + found.xy1[:, 0]
    assert (np.diff(order) > 0).all()
    assert (found.confidence == 1).any() and (found.confidence == 9).any()


def test_sizes_and_orientations_may_differ(colour_model, tmp_path):
    first, second = photographs((256, 192))
    second = second[:, 30:150]
    assert second.shape == (192, 120, 3)
    paths = tmp_path / "a.png", tmp_path / "b.png"
    for path, image in zip(paths, (first, second), strict=True):
        Image.fromarray(image).save(path)
    found = run(colour_model, *paths, size=96, coverage=1.0)
    assert len(found) > 0
    assert_shifted(found, (70, 24))


def test_a_limit_of_the_size_bounds_the_resolution(colour_model):
    found = run(colour_model, *photographs(), max_image_size=128)
    assert len(found) > 300
    assert_shifted(found)
    # Half the resolution: centres of pixels of twice the size.
    np.testing.assert_array_equal(found.xy1 % 2, 0.5)


def test_small_images_are_looked_at_whole(colour_model):
    first, second = photographs((64, 48), (8, 4))
    found = run(colour_model, first, second)
    assert len(found) > 60 and set(colour_model.shapes) == {(2, 3, 48, 64)}
    assert_shifted(found, (8, 4))


def test_masks_hold_at_full_resolution(colour_model):
    mask = np.zeros((192, 256), bool)
    mask[60:130, 101:180] = True
    found = run(colour_model, *photographs(), mask1=mask)
    assert len(found) > 200
    assert_shifted(found)
    inside = mask[found.xy1[:, 1].astype(int), found.xy1[:, 0].astype(int)]
    assert inside.all()


def test_the_most_confident_are_kept(colour_model):
    found = run(colour_model, *photographs(), min_confidence=0, max_matches=50)
    assert len(found) == 50 and (found.confidence == 9).all()


def test_images_that_share_nothing_give_no_matches(colour_model):
    first, second = np.zeros((192, 256, 3), np.uint8), photographs()[1]
    assert len(run(colour_model, first, second)) == 0


def test_windows_cover_what_is_asked_for_with_the_fullest_first():
    rng = np.random.default_rng(0)
    inside1, inside2 = rng.random((500, 12)) > 0.7, rng.random((500, 9)) > 0.7
    for coverage in (0.3, 0.9):
        pairs = choose_windows(inside1, inside2, coverage)
        held = [inside1[:, i] & inside2[:, j] for i, j in pairs]
        gains = np.diff([0, *(np.any(held[:n], axis=0).sum() for n in range(1, len(held) + 1))])
        assert gains.sum() >= coverage * 500 > gains[:-1].sum()
        assert (np.diff(gains) <= 0).all() and gains[0] == (inside1.T.astype(int) @ inside2).max()
    assert choose_windows(inside1[:0], inside2[:0], 0.9) == []
    # A match that no window of image 2 holds cannot be covered.
    assert choose_windows(np.ones((3, 1), bool), np.zeros((3, 2), bool), 0.9) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlap": 1.0}, "overlap=1.0 must be in"),
        ({"coverage": 0}, "coverage=0 in"),
        ({"max_image_size": 0}, "max_image_size=0 must be 1 or more"),
        ({"mask2": np.zeros((192, 256), bool)}, "the mask of image_001.png leaves nothing"),
        ({"mask1": np.ones((19, 25), bool)}, "mask of image_000.png has 25x19 pixels"),
    ],
)
def test_impossible_arguments_are_refused(colour_model, change, message):
    with pytest.raises(ValueError, match=message):
        run(colour_model, *photographs(), **change)
