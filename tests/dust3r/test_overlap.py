"""Images of one place are told from images of another by matches."""

from itertools import combinations

import cv2
import numpy as np
import pytest

from dust3r.image_pairs import make_pairs
from dust3r.overlap import LEAST_MATCHES, matches, overlapping_parts
from dust3r.utils.image import load_images

WIDTH, HEIGHT = 224, 160


def wall(seed):
    """A long textured wall (HEIGHT, 5 WIDTH, 3) of overlapping rectangles."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, 5 * WIDTH, 3), 128, np.uint8)
    for _ in range(900):
        x, y = rng.integers(-20, 5 * WIDTH), rng.integers(-20, HEIGHT)
        w, h = rng.integers(5, 40, 2)
        colour = rng.integers(0, 256, 3).tolist()
        cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
    return cv2.GaussianBlur(image, (0, 0), 0.8)


def look(wall, at, tilt=0.0):
    """The wall from ``at`` widths along it, seen at a slant."""
    x = at * WIDTH
    there = np.float32([[x, 0], [x + WIDTH, 0], [x + WIDTH, HEIGHT], [x, HEIGHT]])
    lean = tilt * HEIGHT
    here = np.float32([[0, 0], [WIDTH, lean], [WIDTH, HEIGHT - lean], [0, HEIGHT]])
    return cv2.warpPerspective(wall, cv2.getPerspectiveTransform(there, here), (WIDTH, HEIGHT))


def blank():
    return np.full((HEIGHT, WIDTH, 3), 180, np.uint8)


def parts(images, graph="complete", **options):
    views = load_images(images, WIDTH, verbose=False)
    return overlapping_parts(views, make_pairs(views, graph), **options)


A, B = wall(1), wall(2)
OF_A = [look(A, at, tilt) for at, tilt in ((1, 0), (1.2, 0.1), (1.4, -0.05), (1.1, 0.05))]
OF_B = [look(B, at, tilt) for at, tilt in ((1, 0), (1.3, 0.08), (1.1, 0))]


def test_two_places_are_told_apart():
    assert parts([OF_A[0], OF_B[0], *OF_A[1:], *OF_B[1:]]) == [[0, 2, 3, 4], [1, 5, 6]]


def test_parts_of_one_size_come_in_the_order_of_images():
    assert parts([*OF_B, *OF_A[:3]]) == [[0, 1, 2], [3, 4, 5]]


def test_matches_of_the_same_place_are_more_than_of_another():
    views_a, views_b = (load_images(images, WIDTH, verbose=False) for images in (OF_A, OF_B))
    same = [matches(a, b) for a, b in combinations(views_a, 2)]
    other = [matches(a, b) for a in views_a for b in views_b]
    assert min(same) > 2 * LEAST_MATCHES > LEAST_MATCHES > max(other)


@pytest.mark.parametrize("graph", ["complete", "swin-1-noncyclic", "swin-2-noncyclic"])
def test_a_walk_in_which_only_neighbours_overlap_stays_whole(graph):
    walk = [look(A, 0.5 * step) for step in range(7)]
    assert parts(walk, graph) == [[0, 1, 2, 3, 4, 5, 6]]


def test_only_the_given_pairs_are_looked_at():
    assert parts([OF_A[0], OF_B[0], OF_A[1]], "swin-1-noncyclic") == [[0], [1], [2]]


def test_a_blank_image_counts_as_overlapping():
    assert parts([OF_A[0], blank(), OF_A[1]]) == [[0, 1, 2]]
    assert parts([blank()] * 3) == [[0, 1, 2]]


def test_a_blank_image_does_not_join_two_places():
    assert parts([*OF_B, blank(), *OF_A]) == [[3, 4, 5, 6, 7], [0, 1, 2]]


def test_one_photograph_twice():
    assert parts([OF_A[0], OF_A[0].copy(), OF_B[0], OF_B[0].copy()]) == [[0, 1], [2, 3]]


def test_what_is_masked_does_not_count():
    join = [np.concatenate([a[:, :112], b[:, :112]], 1) for a, b in zip(OF_A, OF_B, strict=False)]
    images = [join[0], join[1]]
    masks = [np.ones((HEIGHT, WIDTH), np.uint8) for _ in images]
    masks[0][:, 112:] = 0
    masks[1][:, :112] = 0
    views = load_images(images, WIDTH, masks=masks, verbose=False)
    assert overlapping_parts(views, make_pairs(views)) == [[0], [1]]
    assert parts(images) == [[0, 1]]
