from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dust3r.datasets.combine import Draw, StereoDataset
from dust3r.utils.spec import Registry, build


class Echo(StereoDataset):
    """A dataset whose samples are the draws that reach it."""

    def __init__(self, name: str, length: int, resolutions=((64, 48), (64, 32))) -> None:
        self.name = name
        self.length = length
        self._resolutions = tuple(resolutions)

    @property
    def resolutions(self):
        return self._resolutions

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return self.name

    def load(self, draw):
        return [{"name": self.name, "draw": draw}]

    def draw_paths(self, draw):
        return [Path(f"{self.name}/{draw.index}.jpg")]


def indices(dataset: StereoDataset, key=(0, 0)) -> list[int]:
    return [dataset[Draw(i, 0, key)][0]["draw"].index for i in range(len(dataset))]


@pytest.mark.parametrize("num_samples", [7, 10, 11, 25, 40])
def test_resized_sees_every_sample_before_any_repeats(num_samples):
    chosen = indices(num_samples @ Echo("a", 10))
    assert len(chosen) == num_samples
    counts = [Counter(chosen)[i] for i in range(10)]
    assert max(counts) - min(counts) <= 1


def test_resized_selection_is_a_function_of_the_key():
    dataset = 6 @ Echo("a", 100)
    first = indices(dataset, (0, 0))
    assert indices(dataset, (0, 1)) != first
    assert indices(dataset, (1, 0)) != first
    assert indices(dataset, (0, 0)) == first
    assert indices(6 @ Echo("a", 100), (0, 0)) == first


def test_set_epoch_chooses_the_selection_of_plain_indices():
    dataset = 6 @ Echo("a", 100)
    dataset.set_epoch(3)
    assert [dataset[i][0]["draw"].index for i in range(6)] == indices(dataset, (0, 3))


@pytest.mark.parametrize("make", [lambda a: 20 @ a, lambda a: 2 * a], ids=["resized", "repeated"])
def test_a_repeated_sample_has_other_chance(make):
    dataset = make(Echo("a", 10))
    draws = [dataset[Draw(i, 0, (0, 0))][0]["draw"] for i in range(20)]
    keys = {draw.key for draw in draws if draw.index == 4}
    assert len(keys) == 2


def test_repeated_goes_round_in_order():
    assert indices(3 * Echo("a", 4)) == 3 * [0, 1, 2, 3]


def test_added_datasets_keep_their_own_indices():
    dataset = Echo("a", 3) + Echo("b", 2) + 2 * Echo("c", 1)
    seen = [dataset[i][0] for i in range(len(dataset))]
    assert [(view["name"], view["draw"].index) for view in seen] == [
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("c", 0), ("c", 0),
    ]  # fmt: skip


def test_a_sum_lists_its_terms():
    terms = [Echo("a", 3), 4 @ Echo("b", 2), Echo("c", 1)]
    assert (terms[0] + terms[1] + terms[2]).datasets == terms
    assert (terms[0] + (terms[1] + terms[2])).datasets == terms


def test_the_aspect_ratio_passes_through():
    dataset = 5 @ (2 * Echo("a", 3) + Echo("b", 2))
    assert {dataset[(i, 1)][0]["draw"].aspect for i in range(5)} == {1}
    assert {dataset[i][0]["draw"].aspect for i in range(5)} == {0}


def test_paths_are_those_of_the_sample_loaded():
    dataset = 9 @ (Echo("a", 4) + Echo("b", 5))
    for i in range(9):
        view = dataset[i][0]
        assert dataset.sample_paths(i) == [Path(f"{view['name']}/{view['draw'].index}.jpg")]


def test_the_algebra_reads_as_in_specifications():
    registry = Registry("dataset")
    registry.register()(Echo)
    dataset = build("6 @ Echo('a', 3) + 2 * Echo('b', 2)", registry)
    assert len(dataset) == 10
    assert Counter(dataset[i][0]["name"] for i in range(10)) == {"a": 6, "b": 4}
    assert repr(dataset) == "6 @ a + 2 * b"


def test_indices_are_checked():
    dataset = Echo("a", 3)
    assert dataset[-1][0]["draw"].index == 2
    assert dataset[np.int64(1)][0]["draw"].index == 1
    with pytest.raises(IndexError, match="sample 3 of a dataset of 3"):
        dataset[3]
    with pytest.raises(IndexError, match="aspect ratio 2"):
        dataset[(0, 2)]


@pytest.mark.parametrize("count", [0, -5, 2.5, "10", True])
def test_refuses_counts_that_are_not_positive_integers(count):
    with pytest.raises(ValueError, match="positive whole number, as in 1000 @ dataset"):
        Echo("a", 3).__rmatmul__(count)
    with pytest.raises(ValueError, match=r"positive whole number, as in 1000 \* dataset"):
        Echo("a", 3).__rmul__(count)


def test_refuses_to_draw_from_nothing():
    with pytest.raises(ValueError, match="empty"):
        5 @ Echo("a", 0)


def test_refuses_to_add_other_resolutions():
    with pytest.raises(ValueError, match="same resolutions.*64, 48.*32, 32"):
        Echo("a", 3) + Echo("b", 3, [(32, 32)])
    with pytest.raises(TypeError):
        Echo("a", 3) + [1]
