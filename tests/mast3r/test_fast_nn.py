"""Reciprocal matching: published matches, brute force, ties, masks, seeds, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mast3r import nearest
from mast3r.fast_nn import fast_reciprocal_NNs

GOLDEN = Path(__file__).parents[1] / "golden" / "fast_reciprocal_nns.npz"


def descriptors(height, width, dim=8, seed=0, unit=True):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(height, width, dim, generator=generator)
    return F.normalize(values, dim=-1) if unit else values


def match(first, second, subsample=4, **kwargs):
    return fast_reciprocal_NNs(first, second, subsample, device="cpu", **kwargs)


def mutual(first, second, dist):
    """Indices (K,), (K,) of all reciprocal pairs, from the full matrix in double precision."""
    a, b = (np.asarray(part, np.float64).reshape(-1, part.shape[-1]) for part in (first, second))
    if dist == "dot":
        score = a @ b.T
    else:
        score = -((a[:, None] - b) ** 2).sum(-1)
    there, back = score.argmax(1), score.argmax(0)
    mine = np.flatnonzero(back[there] == np.arange(len(a)))
    return mine, there[mine]


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("subsample", [4, 8])
@pytest.mark.parametrize("dist", ["dot", "l2"])
def test_matches_are_the_published_ones(case, subsample, dist):
    golden = np.load(GOLDEN)
    found = match(golden[f"{case}.desc1"], golden[f"{case}.desc2"], subsample, dist=dist)
    for side in (0, 1):
        np.testing.assert_array_equal(found[side], golden[f"{case}.sub{subsample}.xy{side + 1}"])


@pytest.mark.parametrize("dist", ["dot", "l2"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("shapes", [((13, 17), (19, 11)), ((1, 1), (5, 5)), ((30, 20), (2, 70))])
def test_seeds_everywhere_find_all_reciprocal_pairs(dist, unit, shapes):
    first, second = (descriptors(*s, seed=n, unit=unit) for n, s in enumerate(shapes))
    expected = mutual(first, second, dist)
    found = match(first, second, 1, dist=dist, ret_xy=False, max_iter=1)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        match(first, second, 1, dist=dist, ret_xy=False, max_iter=50), expected
    )


@pytest.mark.parametrize("subsample", [2, 5])
def test_seeds_of_a_grid_find_reciprocal_pairs_only(subsample):
    first, second = descriptors(24, 31, seed=3), descriptors(20, 29, seed=4)
    everything = set(zip(*mutual(first, second, "dot"), strict=True))
    found = match(first, second, subsample, dist="dot", ret_xy=False)
    assert 0 < len(found[0]) and set(zip(*found, strict=True)) <= everything


def test_an_image_matches_itself_at_the_grid():
    image = descriptors(21, 34)
    xy1, xy2 = match(image, image, 8)
    expected = [(x, y) for y in (4, 12, 20) for x in (4, 12, 20, 28)]
    np.testing.assert_array_equal(xy1, expected)
    np.testing.assert_array_equal(xy2, expected)


def test_a_shifted_noisy_image_matches_at_the_shift():
    image = descriptors(48, 64, dim=24)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)) / 24**0.5
    moved = torch.roll(image, (5, 9), (0, 1)) + 0.3 * noise
    xy1, xy2 = match(image, F.normalize(moved, dim=-1), 4)
    assert len(xy1) == 12 * 16
    np.testing.assert_array_equal(xy2, (xy1 + (9, 5)) % (64, 48))


@pytest.mark.parametrize("dist", ["dot", "l2"])
def test_sizes_of_blocks_do_not_change_the_result(dist, monkeypatch):
    first, second = descriptors(40, 50, seed=1), descriptors(45, 60, seed=2)
    expected = match(first, second, 3, dist=dist)
    for block_size in (1, 7, 100, None):
        np.testing.assert_array_equal(
            match(first, second, 3, dist=dist, block_size=block_size), expected
        )
    monkeypatch.setattr(nearest, "_TILES", {"cpu": (10, 256)})
    np.testing.assert_array_equal(match(first, second, 3, dist=dist), expected)


def test_distances_agree_on_unit_vectors():
    first, second = descriptors(40, 50, seed=1), descriptors(45, 60, seed=2)
    np.testing.assert_array_equal(
        match(first, second, 3, dist="dot"), match(first, second, 3, dist="l2")
    )


@pytest.mark.parametrize("dist", ["dot", "l2"])
@pytest.mark.parametrize("most", [0, 1000])
def test_exact_ties_go_to_the_lowest_index(dist, most, monkeypatch):
    # Whether close groups are looked at one by one or all keys are compared.
    monkeypatch.setattr(nearest, "_MOST_CLOSE_GROUPS", most)
    kinds = descriptors(1, 6)[0]
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(6, (3000,), generator=generator)
    keys = nearest.NearestNeighbours(kinds[label], dist)
    expected = [int((label == kind).nonzero()[0]) for kind in range(6)]
    assert keys.nearest(kinds).tolist() == expected


def test_images_of_one_colour_match_once():
    flat = torch.ones(40, 60, 4)
    for dist in ("dot", "l2"):
        xy1, xy2 = match(flat, flat, 4, dist=dist)
        assert xy1.tolist() == xy2.tolist() == [[0, 0]]


def test_points_far_from_the_origin_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    points = 500 + torch.rand(30, 40, 3, generator=generator)
    order = torch.randperm(1200, generator=generator)
    found = match(points, points.reshape(-1, 3)[order].reshape(40, 30, 3), 1, ret_xy=False)
    np.testing.assert_array_equal(order[found[1]], found[0])
    assert len(found[0]) > 1150


def test_precision_of_products_set_by_others_does_not_matter():
    first, second = descriptors(40, 50, seed=1), descriptors(45, 60, seed=2)
    expected = match(first, second, 3)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            np.testing.assert_array_equal(match(first, second, 3), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda t: t.requires_grad_()])
def test_arrays_and_tensors_give_arrays(kind):
    first, second = descriptors(20, 30, seed=1), descriptors(25, 35, seed=2)
    expected = match(first, second)
    found = match(kind(first.clone()), kind(second.clone()))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, np.ndarray) and one.dtype == np.int64
        np.testing.assert_array_equal(one, other)


def test_mirrored_arrays_are_taken():
    image = descriptors(12, 16).numpy()[:, ::-1]
    assert len(match(image, image, mask1=np.ones((12, 16), bool)[::-1])[0]) == 12


def test_half_precision_descriptors_are_searched_as_their_values():
    first, second = (descriptors(20, 30, seed=n).bfloat16() for n in (1, 2))
    np.testing.assert_array_equal(
        match(first, second), match(first.float().numpy(), second.float().numpy())
    )


def test_masked_pixels_do_not_match():
    first, second = descriptors(24, 30, seed=1), descriptors(26, 28, seed=2)
    rng = np.random.default_rng(0)
    masks = rng.random((24, 30)) > 0.5, rng.random((26, 28)) > 0.4
    found = match(first, second, 1, dist="dot", ret_xy=False, mask1=masks[0], mask2=masks[1])
    places = [np.flatnonzero(mask) for mask in masks]
    kept = [
        image.reshape(-1, 8)[place][None]
        for image, place in zip((first, second), places, strict=True)
    ]
    pairs = mutual(*kept, "dot")
    for side in (0, 1):
        np.testing.assert_array_equal(found[side], places[side][pairs[side]])
    # Bytes and tensors are masks as well.
    again = match(
        first,
        second,
        1,
        dist="dot",
        ret_xy=False,
        mask1=torch.from_numpy(masks[0]),
        mask2=masks[1].astype(np.uint8) * 255,
    )
    np.testing.assert_array_equal(found, again)


def test_values_that_are_not_finite_may_be_masked_and_are_refused_otherwise():
    image = descriptors(12, 16)
    broken = image.clone()
    broken[3, 5] = torch.nan
    mask = broken.isfinite().all(-1)
    np.testing.assert_array_equal(
        match(broken, image, mask1=mask, mask2=mask), match(image, image, mask1=mask, mask2=mask)
    )
    with pytest.raises(ValueError, match="pts2 has values that are not finite.*mask2"):
        match(image, broken)


def test_given_seeds_and_where_each_ends():
    first, second = descriptors(24, 31, seed=3), descriptors(20, 29, seed=4)
    x, y = np.array([3, 0, 30, 3, 7]), np.array([2, 0, 23, 2, 9])
    xy1, xy2, row = match(first, second, (x, y), ret_basin=True, max_iter=50)
    assert row.shape == (5,) and row[0] == row[3] and row.max() == len(xy1) - 1
    for seed in range(5):
        alone = match(first, second, (x[[seed]], y[[seed]]), max_iter=50)
        np.testing.assert_array_equal(alone[0][0], xy1[row[seed]])
        np.testing.assert_array_equal(alone[1][0], xy2[row[seed]])
    grid = np.meshgrid(np.arange(2, 31, 4), np.arange(2, 24, 4))
    np.testing.assert_array_equal(
        match(first, second, [part.ravel() for part in grid]), match(first, second, 4)
    )


def test_seeds_under_way_have_no_match():
    first, second = descriptors(24, 31, seed=3), descriptors(20, 29, seed=4)
    xy1, _, row = match(first, second, 2, ret_basin=True, max_iter=1)
    grid = np.stack(np.meshgrid(np.arange(1, 31, 2), np.arange(1, 24, 2)), -1).reshape(-1, 2)
    assert (row == -1).any() and (row >= 0).any()
    np.testing.assert_array_equal(grid[row >= 0], xy1[row[row >= 0]])


def test_a_tolerance_takes_those_that_come_back_beside():
    first, second = descriptors(24, 31, seed=3), descriptors(20, 29, seed=4)
    strict = match(first, second, 1, max_iter=1, ret_xy=False)
    loose = match(first, second, 1, max_iter=1, ret_xy=False, pixel_tol=3)
    assert len(loose[0]) > len(strict[0]) and set(strict[0]) <= set(loose[0])
    assert len(match(first, second, 1, max_iter=1, pixel_tol=31)[0]) == 24 * 31


def test_most_alike_matches_are_kept_in_order():
    first, second = descriptors(24, 31, seed=3), descriptors(20, 29, seed=4)
    for dist in ("dot", "l2"):
        xy1, xy2, row = match(first, second, 2, dist=dist, ret_basin=True)
        few1, few2, few_row = match(first, second, 2, dist=dist, ret_basin=True, max_matches=7)
        alike = (first[xy1[:, 1], xy1[:, 0]] * second[xy2[:, 1], xy2[:, 0]]).sum(-1)
        best = np.sort(np.argsort(-alike.numpy())[:7])
        np.testing.assert_array_equal(few1, xy1[best])
        np.testing.assert_array_equal(few2, xy2[best])
        np.testing.assert_array_equal(few1[few_row[few_row >= 0]], xy1[row[few_row >= 0]])


def test_a_machine_without_a_gpu_takes_the_default_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    image = descriptors(12, 16)
    assert len(fast_reciprocal_NNs(image, image, 4)[0]) == 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_matches():
    first, second = descriptors(96, 128, seed=1), descriptors(90, 120, seed=2)
    expected = match(first, second, 2)
    np.testing.assert_array_equal(
        fast_reciprocal_NNs(first.cuda(), second.cuda(), 2, device="cuda"), expected
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dist": "cosine"}, "'cosine' is none of 'dot', 'l2'"),
        ({"block_size": 0}, "block_size=0 must be 1 or more"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"pixel_tol": -1}, "pixel_tol=-1"),
        ({"max_matches": 0}, "max_matches=0"),
        (
            {"pts1": torch.rand(1, 12, 16, 8)},
            r"\(1, 12, 16, 8\) and \(12, 16, 8\).*without a batch",
        ),
        ({"pts2": torch.rand(12, 16, 9)}, r"\(12, 16, 9\): expected .*same model"),
        ({"pts2": torch.rand(0, 16, 8)}, "image 2 has no pixel.*empty"),
        ({"mask1": np.zeros((12, 16))}, "image 1 has no pixel.*zero everywhere"),
        ({"mask2": np.ones((16, 12))}, r"mask2 has the shape \(16, 12\).*\(12, 16\)"),
        ({"subsample_or_initxy1": 0}, "subsample=0"),
        ({"subsample_or_initxy1": np.zeros((5, 2), int)}, "two arrays, x and y, and 5"),
        ({"subsample_or_initxy1": ([16], [0])}, "outside of image 1, which is 16x12"),
        ({"subsample_or_initxy1": ([0.5], [0.5])}, "integer arrays"),
    ],
)
def test_what_cannot_be_matched_is_said(change, message):
    given = {"pts1": descriptors(12, 16), "pts2": descriptors(12, 16), "device": "cpu"}
    with pytest.raises(ValueError, match=message):
        fast_reciprocal_NNs(**given | change)
