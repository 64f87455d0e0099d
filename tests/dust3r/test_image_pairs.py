"""Scene graphs: which pairs they hold, in which order, and what they refuse."""

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

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
        (4, "", None, "known are complete, swin, logwin, oneref, retrieval"),
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


def cosines(count, seed=0, dimension=6):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors @ vectors.T).astype(np.float32)


def on_a_line(places):
    """Similarities that fall with the distance of the images' places."""
    return -np.abs(np.subtract.outer(places, places)).astype(float)


def test_key_images_lie_far_apart_and_every_image_has_its_nearest_ones():
    # Two groups and one image between them; the first key image is the one most like all.
    places = np.array([0, 1, 2, 10, 20, 21, 22])
    pairs = numbers(7, "retrieval-3-0", sim_mat=on_a_line(places))
    assert pairs == [(0, 1), (0, 2), (0, 3), (0, 6), (3, 6), (4, 6), (5, 6)]
    nearest = numbers(7, "retrieval-1-1", sim_mat=on_a_line(places))
    for i in range(7):
        distance = np.abs(places - places[i]) + 99 * (np.arange(7) == i)
        assert any(
            (min(i, j), max(i, j)) in nearest for j in np.flatnonzero(distance == min(distance))
        )


@pytest.mark.parametrize("graph", ["retrieval", "retrieval-4", "retrieval-1-0", "retrieval-5-2"])
@pytest.mark.parametrize("count", [2, 3, 9, 60])
def test_retrieval_joins_all_images(graph, count):
    pairs = numbers(count, graph, sim_mat=cosines(count))
    assert len(set(pairs)) == len(pairs) and all(i < j for i, j in pairs)
    links = coo_matrix((np.ones(len(pairs)), tuple(zip(*pairs, strict=True))), (count, count))
    assert connected_components(links, directed=False)[0] == 1
    assert pair_count(count, graph, symmetrize=False, sim_mat=cosines(count)) == len(pairs)


def test_retrieval_in_full_is_complete_and_by_default_20_10():
    assert numbers(15, "retrieval", sim_mat=cosines(15)) == numbers(15)
    by_default = numbers(90, "retrieval", sim_mat=cosines(90))
    assert by_default == numbers(90, "retrieval-20-10", sim_mat=cosines(90))
    assert 20 * 19 / 2 < len(by_default) <= 20 * 19 / 2 + 70 + 90 * 10
    assert len(by_default) < 90 * 89 / 2


def test_a_torch_similarity_will_do_and_symmetrised_pairs_follow():
    similarity = cosines(9)
    one_way = numbers(9, "retrieval-2-2", sim_mat=similarity)
    assert numbers(9, "retrieval-2-2", sim_mat=torch.from_numpy(similarity)) == one_way
    both = numbers(9, "retrieval-2-2", sim_mat=similarity, symmetrize=True)
    assert both == one_way + [(j, i) for i, j in one_way]


def test_other_graphs_need_no_similarity_and_ignore_one():
    assert numbers(5, "swin-2", sim_mat=cosines(5)) == numbers(5, "swin-2")


@pytest.mark.parametrize(
    ("graph", "similarity", "message"),
    [
        ("retrieval", None, r"sim_mat=s.*Retrieval\.build\(model, imgs\)\.similarity"),
        ("retrieval-3-2", cosines(5), r"shape \(5, 5\), and \(4, 4\) is expected with 4 images"),
        ("retrieval", np.full((4, 4), np.nan), "16 values that are not finite"),
        ("retrieval-0-2", cosines(4), "0 key images, which must be 1 or more"),
        ("retrieval-2--1", cosines(4), "-1 neighbours"),
        ("retrieval-2-3-4", cosines(4), "did you mean 'retrieval-20-10'"),
        ("retrieval-3-noncyclic", cosines(4), "did you mean 'retrieval-20-10'"),
        ("retreival-3-2", cosines(4), "did you mean 'retrieval'"),
    ],
)
def test_mistakes_of_retrieval_are_named(graph, similarity, message):
    with pytest.raises(ValueError, match=message):
        numbers(4, graph, sim_mat=similarity)
