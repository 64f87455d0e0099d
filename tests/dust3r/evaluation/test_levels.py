"""Levels of Student's t by the table and by the function itself."""

import numpy as np
import torch
from scipy import special

from dust3r.evaluation.levels import LEVELS, student_levels


def random_values(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrees of freedom from 2 to a million, and distances from within rounding to far out."""
    rng = np.random.default_rng(0)
    freedom = np.concatenate(
        [2 + rng.exponential(1, number), np.exp(rng.uniform(np.log(2), np.log(1e6), number))]
    )
    return freedom, np.abs(rng.standard_t(3, 2 * number)) * np.exp(2 * rng.standard_normal(1))


def test_histograms_are_those_of_the_function_itself():
    freedom, distance = random_values(100_000)
    exact = 2 * special.stdtr(freedom, distance) - 1
    found = student_levels(torch.from_numpy(freedom), torch.from_numpy(distance))
    np.testing.assert_allclose(found, exact, atol=1e-5)
    np.testing.assert_array_equal(np.floor(found * LEVELS), np.floor(exact * LEVELS))


def test_what_is_beyond_the_table_is_computed():
    freedom = torch.tensor([0.5, 1.0, 4.0, 1e300, 3.0], dtype=torch.float64)
    distance = torch.tensor([2.0, 1.0, np.inf, 1.0, np.nan], dtype=torch.float64)
    found = student_levels(freedom, distance)
    exact = 2 * special.stdtr(freedom.numpy(), distance.numpy()) - 1
    np.testing.assert_allclose(found, exact, atol=1e-5)
