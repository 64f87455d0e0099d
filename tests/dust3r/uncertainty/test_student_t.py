"""The multivariate Student-t: its density, its moments, and that it is a torch distribution."""

import pytest
import torch
from scipy.stats import multivariate_t
from torch.distributions import MultivariateNormal, StudentT

from dust3r.uncertainty.student_t import MultivariateStudentT

LOWER = torch.tensor([[1.5, 0, 0], [-0.7, 0.4, 0], [0.2, 1.1, 2.0]], dtype=torch.float64)
LOC = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def student(df, dim=3):
    df = torch.as_tensor(df, dtype=torch.float64)
    return MultivariateStudentT(df, LOC[:dim], LOWER[:dim, :dim])


def test_density_is_that_of_scipy():
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double() * 5
    reference = multivariate_t(LOC.numpy(), (LOWER @ LOWER.T).numpy(), df=2.7)
    expected = torch.from_numpy(reference.logpdf(values.numpy()))
    torch.testing.assert_close(student(2.7).log_prob(values), expected)


def test_one_dimension_is_torchs_student_t():
    values = torch.linspace(-9, 9, 20, dtype=torch.float64)
    expected = StudentT(3.5, LOC[0], LOWER[0, 0]).log_prob(values)
    torch.testing.assert_close(student(3.5, dim=1).log_prob(values[:, None]), expected)


def test_many_degrees_of_freedom_are_a_gaussian():
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = MultivariateNormal(LOC, scale_tril=LOWER).log_prob(values)
    torch.testing.assert_close(student(1e7).log_prob(values), expected, rtol=1e-5, atol=1e-5)


def test_samples_have_its_moments():
    torch.manual_seed(0)
    distribution = student(9.0)
    samples = distribution.sample((200_000,))
    torch.testing.assert_close(samples.mean(0), distribution.mean, rtol=0.03, atol=0.03)
    covariance = distribution.covariance_matrix
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0.05, atol=0.1)
    torch.testing.assert_close(distribution.variance, covariance.diagonal())


def test_moments_that_do_not_exist_are_not_numbers():
    heavy = student([0.5, 1.5, 2.5])
    assert heavy.mean.isnan().all(-1).tolist() == [True, False, False]
    variance = heavy.variance
    assert variance[0].isnan().all() and variance[1].isinf().all() and variance[2].isfinite().all()


def test_batches_expand():
    expanded = student([3.0, 4.0]).expand((5, 2))
    assert expanded.batch_shape == (5, 2) and expanded.event_shape == (3,)
    assert expanded.sample((7,)).shape == (7, 5, 2, 3)
    assert expanded.log_prob(torch.zeros(3, dtype=torch.float64)).shape == (5, 2)


def test_arguments_are_checked_where_asked():
    with pytest.raises(ValueError, match="df"):
        MultivariateStudentT(torch.tensor(-1.0), torch.zeros(3), torch.eye(3), validate_args=True)
