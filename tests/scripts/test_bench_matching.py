"""The benchmark of matching: its two ways agree, its problem has a known answer."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

from mast3r.fast_nn import fast_reciprocal_NNs

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_ways_to_the_matches_of_a_known_shift_agree(monkeypatch):
    monkeypatch.setitem(sys.modules, "bench_common", script("bench_common"))
    bench = script("bench_matching")
    first, second = bench.matching_problem(50, 80)
    found = fast_reciprocal_NNs(first, second, 8, device="cpu", dist="dot", ret_xy=False)
    for one, other in zip(found, bench.full_reciprocal(first, second, 8), strict=True):
        np.testing.assert_array_equal(one, other.numpy())
    rows, columns = found[0] // 80, found[0] % 80
    shifted = (rows + 1) % 50 * 80 + (columns + 2) % 80
    assert (found[1] == shifted).mean() > 0.9 and len(found[0]) > 50
    first, second = bench.matching_problem(20, 30, itself=True)
    assert first.shape == (20, 30, 24) and first is second
