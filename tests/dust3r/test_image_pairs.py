"""Scene graphs: which pairs they hold, in which order, and what they refuse."""

import pytest

from dust3r.image_pairs import make_pairs, pair_count


def numbers(count, *args, symmetrize=False, **kwargs):
    imgs = [{"idx": i} for i in range(count)]
    pairs = make_pairs(imgs, *args, symmetrize=symmetrize, **kwargs)
    return [(a["idx"], b["idx"]) for a, b in pairs]


@pytest.mark.parametrize(
    ("graph", "count", "expected"),
    [
        ("complete", 4, "01 02 03 12 13 23"),
        ("swin-1", 5, "01 04 12 23 34"),
        ("swin-1-noncyclic", 5, "01 12 23 34"),
        ("swin-2-noncyclic", 5, "01 02 12 13 23 24 34"),
        ("swin-2", 6, "01 02 04 05 12 13 15 23 24 34 35 45"),
        ("logwin-1", 5, "01 04 12 23 34"),
        ("logwin-3-noncyclic", 6, "01 02 04 12 13 15 23 24 34 35 45"),
        ("logwin-3", 8, "01 02 04 06 07 12 13 15 17 23 24 26 34 35 37 45 46 56 57 67"),
        ("oneref", 4, "01 02 03"),
        ("oneref-2", 4, "20 21 23"),
        ("swin", 2, "01"),
    ],
)
def test_graphs(graph, count, expected):
    assert numbers(count, graph) == [(int(a), int(b)) for a, b in expected.split()]


def test_the_pairs_hold_the_views_themselves():
    imgs = [{"idx": i} for i in range(3)]
    assert make_pairs(imgs, symmetrize=False)[2][1] is imgs[2]


@pytest.mark.parametrize("graph", ["complete", "swin-4", "logwin-4-noncyclic", "oneref-1"])
def test_symmetrised_pairs_come_in_both_orders_once(graph):
    one_way = numbers(9, graph)
    both = numbers(9, graph, symmetrize=True)
    assert both == one_way + [(j, i) for i, j in one_way]
    assert len(set(both)) == len(both) and all(i != j for i, j in both)


@pytest.mark.parametrize("name", ["swin", "logwin"])
@pytest.mark.parametrize("end", ["", "-noncyclic"])
def test_windows_are_three_wide_by_default(name, end):
    assert numbers(12, name + end) == numbers(12, f"{name}-3{end}")


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("name", ["swin", "swin-999999999", "logwin-999999999"])
def test_windows_wider_than_the_scene_have_no_pair_twice_or_of_one_image(count, name):
    pairs = numbers(count, name)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert all(i != j for i, j in pairs)
    if name == "swin-999999999":
        assert pairs == numbers(count, "complete")


def test_filters_keep_what_is_near():
    assert numbers(5, prefilter="seq1") == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert numbers(5, prefilter="cyc1") == [(0, 1), (0, 4), (1, 2), (2, 3), (3, 4)]
    assert numbers(9, prefilter="seq") == numbers(9, prefilter="seq3")
    assert numbers(6, prefilter="cyc2") == numbers(6, "swin-2")
    assert (4, 0) in numbers(5, prefilter="cyc1", symmetrize=True)


@pytest.mark.parametrize("symmetrize", [False, True])
@pytest.mark.parametrize("graph", ["complete", "swin-2", "oneref-3"])
def test_pairs_are_counted(graph, symmetrize):
    expected = len(numbers(7, graph, "seq2", symmetrize=symmetrize))
    assert pair_count(7, graph, "seq2", symmetrize) == expected
    assert pair_count(50) == 2450


@pytest.mark.parametrize(
    ("count", "graph", "prefilter", "message"),
    [
        (1, "complete", None, "two images or more, and there is 1"),
        (0, "complete", None, "two images or more, and there is 0"),
        (4, "complet", None, "'complet' is unknown; did you mean 'complete'"),
        (4, "Swin-3", None, "did you mean 'swin'"),
        (4, "logwn-3-noncyclic", None, "did you mean 'logwin'"),
        (4, "", None, "known are complete, swin, logwin, oneref"),
        (4, "swin-", None, "did you mean 'swin'"),
        (4, "swin-2.5", None, "did you mean 'swin'"),
        (4, "swin-0", None, "its number is 0, and must be 1 or more"),
        (4, "logwin--2", None, "its number is -2"),
        (4, "complete-3", None, "'complete' stands alone"),
        (4, "oneref-1-noncyclic", None, "only 'swin' and 'logwin'"),
        (4, "oneref-4", None, "no image 4.*numbered from 0 to 3"),
        (4, "oneref--1", None, "no image -1"),
        (4, "complete", "sec3", "'sec3' is unknown; did you mean 'seq'"),
        (4, "complete", "seq0", "'seq0' leaves no pair: its number is 0"),
        (9, "oneref-0", "oneref", "known are seq, cyc"),
        (2, "oneref", "cyc-1", "its number is -1"),
    ],
)
def test_mistakes_are_named(count, graph, prefilter, message):
    with pytest.raises(ValueError, match=message):
        numbers(count, graph, prefilter)


@pytest.mark.parametrize("prefilter", ["seq1", "cyc1"])
@pytest.mark.parametrize("graph", ["complete", "swin-1", "logwin-1-noncyclic", "oneref-4"])
@pytest.mark.parametrize("count", [5, 8])
def test_the_narrowest_filter_leaves_neighbours_in_every_graph(count, graph, prefilter):
    assert numbers(count, graph, prefilter)
