"""Which pixels become points."""

import torch

from deltas.interest import CELL, point_scores, select_points, suppress


def random_scores(height: int = 60, width: int = 80) -> torch.Tensor:
    return torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))


def chosen(scores: torch.Tensor, count: int = 40, **options) -> tuple[torch.Tensor, torch.Tensor]:
    return select_points(scores, count, generator=torch.Generator().manual_seed(0), **options)


def test_channels_are_the_pixels_of_a_cell_row_by_row():
    logits = torch.zeros(1, CELL**2 + 1, 3, 4)
    row, column, y, x = 1, 2, 5, 3
    logits[0, y * CELL + x, row, column] = 9
    scores = point_scores(logits)
    assert scores.shape == (1, 24, 32)
    assert scores[0].argmax() == (row * CELL + y) * 32 + column * CELL + x


def test_a_cell_may_have_no_point():
    logits = torch.zeros(1, CELL**2 + 1, 1, 1)
    logits[:, -1] = 20
    assert point_scores(logits).max() < 1e-6


def test_points_keep_their_distance():
    for image in suppress(random_scores(), radius=9):
        pixels = image.nonzero()
        apart = (pixels[:, None] - pixels).abs().amax(-1)
        apart.fill_diagonal_(99)
        assert len(pixels) > 10
        assert apart.min() > 9


def test_second_best_points_are_found_in_the_next_round():
    # A falling row: the middle is lost to the first, the last one lost to the middle alone.
    scores = torch.zeros(1, 40, 40)
    scores[0, 20, 5], scores[0, 20, 12], scores[0, 20, 19] = 3, 2, 1
    kept = suppress(scores, radius=9)
    assert kept[0, 20].nonzero().flatten().tolist() == [5, 19]


def test_best_points_first_then_random_pixels():
    scores = random_scores()
    points, found = chosen(scores, fraction=0.25)
    assert points.shape == (2, 40, 2) and found.shape == (2, 40)
    assert torch.equal(points, points.floor())
    assert (found[:, :10] > 0).all() and (found[:, 10:] == 0).all()
    assert (found.diff(dim=1) <= 0).all()
    x, y = points[:, :10].long().unbind(-1)
    assert torch.equal(scores[torch.arange(2)[:, None], y, x], found[:, :10])
    best = suppress(scores, 9)[:, 4:-4, 4:-4].flatten(1).amax(1)
    assert torch.equal(found[:, 0], best)
    spread = points[:, 10:].flatten(0, 1)
    assert (spread >= 0).all() and (spread < torch.tensor([80, 60])).all()
    assert (spread.amax(0) > torch.tensor([70, 50])).all()


def test_no_points_at_the_border():
    scores = torch.zeros(1, 40, 60)
    scores[0, 3, 30] = scores[0, 20, 56] = scores[0, 36, 10] = scores[0, 20, 3] = 1
    assert not chosen(scores)[1].any()
    scores[0, 35, 55] = 1
    points, found = chosen(scores)
    assert points[0, 0].tolist() == [55, 35] and found[0].count_nonzero() == 1


def test_scores_below_the_threshold_are_no_points():
    scores = torch.zeros(1, 40, 60)
    scores[0, 20, 20], scores[0, 20, 40] = 0.4, 0.6
    assert chosen(scores, threshold=0.5)[1].count_nonzero() == 1


def test_random_pixels_follow_the_seed():
    scores = torch.zeros(1, 40, 60)
    again, other = chosen(scores)[0], select_points(scores, 40)[0]
    assert torch.equal(chosen(scores)[0], again)
    assert not torch.equal(other, again)
