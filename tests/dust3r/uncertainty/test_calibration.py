"""Calibration: coverage on fresh errors, what is left out, and what is refused."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

from dust3r.uncertainty.calibration import LEVELS, STATED, Calibration, coverage, least_levels
from dust3r.uncertainty.calibration_fit import fit
from dust3r.uncertainty.calibration_samples import ErrorCollector, ErrorSamples, weighted_quantile
from dust3r.uncertainty.points import NormalInverseWishart
from dust3r.uncertainty.stated import (
    ELLIPSOID_SIGMA,
    mahalanobis,
    probability_at_truth,
    radial_cdf,
    radial_quantile,
    stated,
)

IMAGES, PIXELS = 200, 120
TOLD = {"family": "geom", "region": "interval", "dataset": "Synthetic()", "checkpoint": "a.pth"}
KINDS = ("conformal", "isotonic", "scale")


def draw(
    seed: int, shape: str = "gaussian", factor: float = 2.5, images: int = IMAGES
) -> tuple[np.ndarray, np.ndarray]:
    """Errors (images, PIXELS) and sigmas that are ``factor`` times too small."""
    rng = np.random.default_rng(seed)
    sigmas = rng.lognormal(0, 0.7, (images, PIXELS))
    unit = {
        "gaussian": rng.standard_normal,
        "student": lambda size: rng.standard_t(3, size) / np.sqrt(3),
        "laplace": lambda size: rng.laplace(size=size) / np.sqrt(2),
        "skewed": lambda size: rng.exponential(size=size) - 1,
    }[shape]
    return factor * sigmas * unit((images, PIXELS)), sigmas


def fitted(errors, sigmas, **more) -> Calibration:
    arrays = {name: more.pop(name) for name in ("df", "depths") if name in more}
    return fit(ErrorSamples.from_arrays(errors, sigmas, **arrays), **{**TOLD, **more})


def ball_errors(rng: np.random.Generator, sigmas: np.ndarray, df: float | None = None):
    """Distances whose root mean square is ``sigmas``, of points in three dimensions."""
    points = rng.standard_normal((*sigmas.shape, 3)) / np.sqrt(3)
    length = np.linalg.norm(points, axis=-1)
    if df is not None:
        length /= np.sqrt(rng.chisquare(df, sigmas.shape) / (df - 2))
    return length * sigmas


@pytest.mark.parametrize("shape", ["gaussian", "student", "laplace", "skewed"])
@pytest.mark.parametrize("kind", ["conformal", "isotonic"])
def test_fresh_errors_are_covered_whatever_their_distribution(shape, kind) -> None:
    found = fitted(*draw(0, shape))
    fresh = draw(1, shape)
    before = coverage(*fresh)
    after = coverage(*fresh, calibration=found, kind=kind)
    assert before.shares[2] < 0.75
    assert after.shares == pytest.approx(LEVELS, abs=0.015)


def test_factor_alone_covers_where_the_shape_is_as_stated() -> None:
    found = fitted(*draw(0))
    assert found.scale == pytest.approx(2.5, rel=0.02)
    assert coverage(*draw(1), calibration=found, kind="scale").shares == pytest.approx(
        LEVELS, abs=0.015
    )
    assert found.sigma([2.0]) == pytest.approx([2 * found.scale])


@pytest.mark.parametrize("scale_by", ["nll", "median"])
def test_factor_of_student_t_takes_their_tails_into_account(scale_by) -> None:
    rng = np.random.default_rng(0)
    df = rng.uniform(2.2, 9, (IMAGES, PIXELS))
    unit = rng.standard_t(df) * np.sqrt((df - 2) / df)
    sigmas = rng.lognormal(0, 0.5, df.shape)
    found = fitted(3 * sigmas * unit, sigmas, df=df, scale_by=scale_by)
    assert found.scale == pytest.approx(3, rel=0.03)
    shares = coverage(3 * sigmas * unit, sigmas, calibration=found, kind="scale", df=df).shares
    assert shares == pytest.approx(LEVELS, abs=0.015)
    # A Gaussian of that factor is too wide in the middle.
    assert fitted(3 * sigmas * unit, sigmas).coverage["scale"][0] > 0.55


def test_median_factor_stays_where_a_few_errors_are_wild() -> None:
    errors, sigmas = draw(0)
    errors[:, :4] *= 1000
    assert fitted(errors, sigmas, scale_by="median").scale == pytest.approx(2.5, rel=0.05)
    assert fitted(errors, sigmas).scale > 100


@pytest.mark.parametrize("df", [None, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_points_lie_within_their_balls(df, kind) -> None:
    rng = np.random.default_rng(0)
    sigmas = rng.lognormal(0, 0.5, (2, IMAGES, PIXELS))
    errors = 0.4 * ball_errors(rng, sigmas, df)
    tails = None if df is None else np.full(sigmas.shape[1:], df)
    found = fitted(errors[0], sigmas[0], region="ball", family="niw", df=tails)
    assert found.scale == pytest.approx(0.4, rel=0.02)
    after = coverage(errors[1], sigmas[1], calibration=found, kind=kind, df=tails)
    assert after.shares == pytest.approx(LEVELS, abs=0.015)
    with pytest.raises(ValueError, match="no interval: use radius"):
        found.interval(0, 1, 0.9)


def test_promise_holds_on_average_over_draws_of_few_images_that_differ() -> None:
    """19 images whose errors share a factor: a pixel of a new one is held at 90% or more."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        factors = rng.lognormal(0, 0.6, (20, 1))
        errors = factors * rng.standard_normal((20, 30))
        samples = ErrorSamples.from_arrays(errors[:19], np.ones((19, 30)))
        weights = samples.weights * 19 / 20
        radius = weighted_quantile(samples.ratios, weights, [0.9])[0]
        shares.append((np.abs(errors[19]) <= radius).mean())
    # Its mean is at least 0.9 and at most a 20th more; its standard error is 0.01.
    assert 0.88 < np.mean(shares) < 0.96
    found = fitted(errors[:19], np.ones((19, 30)))
    assert found.radius(1.0, 0.9) == pytest.approx(radius)


def test_isotonic_probabilities_rise_and_are_uniform() -> None:
    found = fitted(*draw(0, "skewed"))
    grid = np.linspace(-20, 20, 2001)
    cdf = found.cdf(grid, np.ones_like(grid))
    # An error is the prediction less the truth: the larger it is, the lower the truth.
    assert (np.diff(cdf) <= 0).all() and cdf.min() >= 0 and cdf.max() <= 1
    errors, sigmas = (one.ravel() for one in draw(1, "skewed"))
    assert stats.kstest(found.cdf(errors, sigmas), "uniform").statistic < 0.015
    assert stats.kstest(probability_at_truth(errors, sigmas, "interval"), "uniform")[0] > 0.1


def test_isotonic_interval_leaves_out_as_much_above_as_below() -> None:
    found = fitted(*draw(0, "skewed"))
    errors, sigmas = draw(1, "skewed")
    low, high = found.interval(5.0, sigmas, 0.8, kind="isotonic")
    truth = 5.0 - errors
    assert [(truth < low).mean(), (truth > high).mean()] == pytest.approx([0.1, 0.1], abs=0.01)
    low, high = found.interval(5.0, sigmas, 0.8)
    assert (high + low) / 2 == pytest.approx(np.full(sigmas.shape, 5.0))


def test_every_image_counts_the_same() -> None:
    rng = np.random.default_rng(0)
    errors = [rng.standard_normal(40) for _ in range(30)]
    errors += [10 * rng.standard_normal(4000) for _ in range(30)]
    sigmas = [np.ones(len(one)) for one in errors]
    shares = coverage(errors, sigmas, [0.9]).shares
    by_image = [(np.abs(one) < 1.645).mean() for one in errors]
    assert shares == pytest.approx([np.mean(by_image)], abs=0.01)


def test_groups_of_sigma_hold_each() -> None:
    def sample(seed):
        rng = np.random.default_rng(seed)
        sigmas = rng.lognormal(0, 1, (IMAGES, PIXELS))
        # What is stated as certain is six times as wrong as what is not.
        factor = np.where(sigmas < 1, 3.0, 0.5)
        return factor * sigmas * rng.standard_normal(sigmas.shape), sigmas

    errors, sigmas = sample(1)
    one, binned = fitted(*sample(0)), fitted(*sample(0), bins=4, binned_by="sigma")
    assert binned.radii.shape[0] == 4
    low = sigmas < 1
    for calibration, expected in ((one, 0.11), (binned, 0.015)):
        covered = np.abs(errors) <= calibration.radius(sigmas, 0.9)
        gap = max(abs(covered[low].mean() - 0.9), abs(covered[~low].mean() - 0.9))
        assert gap < expected
    covered = np.abs(errors) <= one.radius(sigmas, 0.9)
    assert abs(covered[low].mean() - 0.9) > 0.05
    assert np.isnan(binned.radius([np.nan], 0.9)).all()


def test_groups_of_relative_sigma_do_not_mind_the_scale_of_the_scene() -> None:
    errors, sigmas = draw(0)
    depths = np.random.default_rng(5).uniform(1, 9, errors.shape)
    found = fitted(errors, sigmas, depths=depths, bins=3, binned_by="relative")
    metres = found.radius(sigmas, 0.9, depth=depths)
    assert found.radius(10 * sigmas, 0.9, depth=10 * depths) == pytest.approx(10 * metres)
    with pytest.raises(ValueError, match="give the depth of every pixel"):
        found.radius(sigmas, 0.9)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    errors, sigmas = draw(0)
    clean = fitted(errors[:, 5:], sigmas[:, 5:])
    errors[:, 0], sigmas[:, 1] = np.nan, np.inf
    sigmas[:, 2], sigmas[:, 3], errors[:, 4] = 0, -1, -np.inf
    found = fitted(errors, sigmas)
    assert found.left_out == 5 * IMAGES and found.pixels == IMAGES * (PIXELS - 5)
    assert found.scale == pytest.approx(clean.scale)
    assert found.radii == pytest.approx(clean.radii)
    told = coverage(errors, sigmas)
    assert told.left_out == 5 * IMAGES and np.isfinite(told.shares).all()
    with pytest.raises(ValueError, match="no pixel is usable"):
        coverage(errors[:, 0], sigmas[:, 0])


def test_standard_error_is_of_images_not_of_pixels() -> None:
    rng = np.random.default_rng(0)
    errors = rng.lognormal(0, 1, (50, 1)) * rng.standard_normal((50, PIXELS))
    told = coverage(errors, np.ones_like(errors), [0.9])
    shares = (np.abs(errors) < 1.645).mean(axis=1)
    assert told.standard_errors == pytest.approx([shares.std(ddof=1) / np.sqrt(50)], rel=0.15)
    assert np.isnan(coverage(errors[:1], np.ones((1, PIXELS)), [0.9]).standard_errors)


def test_coverage_of_the_fit_is_of_images_that_were_not_fitted_on() -> None:
    errors, sigmas = draw(0, "student")
    found = fitted(errors, sigmas)
    assert set(found.coverage) == {STATED, *KINDS}
    assert found.coverage[STATED] == pytest.approx(coverage(errors, sigmas).shares)
    assert found.coverage["conformal"] == pytest.approx(LEVELS, abs=0.02)
    few = fitted(errors[:20], sigmas[:20])
    assert np.isnan(few.coverage["conformal"][3]) and np.isfinite(few.coverage["conformal"][2])


def test_thinning_keeps_the_same_pixels_in_any_order_and_stays_bounded() -> None:
    errors, sigmas = draw(0)

    def collected(order, **options):
        collector = ErrorCollector(**options)
        for number in order:
            collector.add(errors[number], sigmas[number], f"image {number}")
        return collector.samples()

    one = collected(range(IMAGES), per_image=50)
    other = collected(reversed(range(IMAGES)), per_image=50)
    assert (one.errors == other.errors).all() and (one.images == other.images).all()
    assert len(one) == 50 * IMAGES and one.weights.sum() == pytest.approx(1)
    small = collected(range(IMAGES), max_pixels=1000)
    assert len(small) <= 1000 and small.count == IMAGES


def test_collector_takes_tensors_and_counts_no_masked_pixel() -> None:
    errors = torch.randn(4, 5, requires_grad=True)
    sigmas, mask = torch.ones(4, 5), torch.zeros(4, 5, dtype=torch.bool)
    sigmas[0, 0] = torch.nan
    mask[0] = True
    collector = ErrorCollector()
    collector.add(errors, sigmas, "a", mask=mask)
    assert len(collector.samples()) == 4 and collector.left_out == 1
    with pytest.raises(ValueError, match="'a' was added before"):
        collector.add(errors, sigmas, "a")
    with pytest.raises(ValueError, match="for all images or for none"):
        collector.add(errors, sigmas, "b", df=sigmas)
    with pytest.raises(ValueError, match="must have one shape"):
        collector.add(errors, sigmas[0], "b")


@pytest.mark.parametrize(
    ("count", "more", "expected"),
    [
        (5, {}, "600 usable pixels of 5 images are too few"),
        (15, {}, "too few images: radii that hold 95% need 19 images"),
        (IMAGES, {"bins": 3}, "bins=3 with binned_by=None"),
        (IMAGES, {"binned_by": "sigma"}, "bins=1 with binned_by='sigma'"),
        (IMAGES, {"bins": 2, "binned_by": "relative"}, "give the depth of every pixel"),
        (IMAGES, {"region": "box"}, "region 'box' is unknown; give one of interval, ball"),
        (IMAGES, {"scale_by": "mean"}, "scale_by 'mean' is unknown"),
    ],
)
def test_what_cannot_be_fitted(count, more, expected) -> None:
    with pytest.raises(ValueError, match=expected):
        fitted(*draw(0, images=count), **more)


def test_errors_that_are_all_zero_have_no_factor() -> None:
    sigmas = draw(0)[1]
    with pytest.raises(ValueError, match="no factor can mend that"):
        fitted(np.zeros_like(sigmas), sigmas)


def test_levels_and_kinds_that_there_are_not() -> None:
    found = fitted(*draw(0, images=20))
    with pytest.raises(ValueError, match="20 images allow at most 0.95"):
        found.radius(1.0, 0.99)
    assert found.radius(1.0, 0.99, kind="scale") > found.radius(1.0, 0.95, kind="scale")
    with pytest.raises(ValueError, match="level 90 is not a share"):
        found.radius(1.0, 90)
    with pytest.raises(ValueError, match="kind 'platt' is unknown"):
        found.radius(1.0, 0.9, kind="platt")


@pytest.mark.parametrize("region", ["interval", "ball"])
def test_stated_quantiles_are_those_of_scipy(region) -> None:
    levels = np.array([0.1, 0.5, 0.9, 0.99])
    dim = 1 if region == "interval" else 3
    gaussian = radial_quantile(levels, region)
    assert gaussian * np.sqrt(dim) == pytest.approx(stats.chi.ppf(levels, dim))
    df = np.full(4, 5.0)
    student = radial_quantile(levels, region, df)
    if dim == 1:
        assert student == pytest.approx(stats.t.ppf((1 + levels) / 2, 5) * np.sqrt(3 / 5))
    assert radial_cdf(student, region, df) == pytest.approx(levels)
    assert radial_cdf(gaussian, region) == pytest.approx(levels)


def test_stated_by_families_and_ellipsoids_of_points() -> None:
    torch.manual_seed(0)
    shape = (40, 1, 10, 10)
    lower = 0.1 * torch.randn(40, 6, 10, 10)
    lower[:, (0, 2, 5)] = lower[:, (0, 2, 5)].abs() + 0.1
    prediction = {
        "conf": torch.full((40, 10, 10), 4.0),
        "xyz_niw_m": torch.randn(40, 3, 10, 10),
        "xyz_niw_kappa": torch.rand(shape) + 0.5,
        "xyz_niw_nu": torch.rand(shape) * 5 + 6,
        "xyz_niw_L": lower,
    }
    said = stated(prediction)
    assert (said.family, said.region) == ("niw", "ball")
    assert torch.equal(said.df, prediction["xyz_niw_nu"][:, 0] - 2)
    assert stated(prediction, "conf").sigma.unique().tolist() == [0.25]

    points = NormalInverseWishart.from_prediction(prediction).predictive().rsample()
    lengths = mahalanobis(prediction, points)
    found = fitted(
        list(lengths.numpy()),
        [np.full((10, 10), ELLIPSOID_SIGMA)] * 40,
        family="niw",
        region="ellipsoid",
        df=list(said.df.numpy()),
    )
    assert found.scale == pytest.approx(1, rel=0.05)
    assert found.coverage[STATED] == pytest.approx(LEVELS, abs=0.03)
    with pytest.raises(ValueError, match="states no covariance of points"):
        mahalanobis(prediction, points, "conf")


def test_mahalanobis_of_independent_coordinates() -> None:
    prediction = {
        "xyz_mu": torch.zeros(1, 3, 2, 2),
        "xyz_logvar": torch.tensor([1.0, 4.0, 9.0]).log()[None, :, None, None].expand(1, 3, 2, 2),
    }
    points = torch.tensor([1.0, 2.0, 6.0]).expand(1, 2, 2, 3)
    assert mahalanobis(prediction, points).numpy() == pytest.approx(np.full((1, 2, 2), 6**0.5))
    assert stated(prediction).sigma.numpy() == pytest.approx(np.full((1, 2, 2), 14**0.5))


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("region", ["interval", "ball"])
@pytest.mark.parametrize("binned", [False, True])
def test_least_levels_give_the_coverage_of_all_levels_at_once(kind, region, binned) -> None:
    rng = np.random.default_rng(0)
    errors, sigmas = draw(2, "skewed", images=40)
    errors = errors if region == "interval" else np.abs(errors)
    samples = ErrorSamples.from_arrays(
        errors,
        sigmas,
        df=rng.uniform(2.5, 9, sigmas.shape),
        depths=rng.uniform(1, 3, sigmas.shape),
    )
    more = {"bins": 3, "binned_by": "relative"} if binned else {}
    told = {"family": "geom" if region == "interval" else "niw", "region": region}
    found = None if kind is None else fit(samples, dataset="Synthetic()", **told, **more)
    options = {"kind": kind or "scale", "region": region}
    least = least_levels(samples, found, **options)
    expected = coverage(samples, None, np.arange(1, 20) / 20, found, **options).shares
    reached = [(least <= level + 1e-9).mean() for level in np.arange(1, 20) / 20]
    assert reached == pytest.approx(expected, abs=2 / samples.errors.size)


@pytest.mark.parametrize("max_pixels", [10_000_000, 3_000])
def test_processes_gather_what_one_would_have_seen(max_pixels) -> None:
    errors, sigmas = draw(0, images=60)
    limits = {"per_image": 100, "max_pixels": max_pixels}
    alone, *ranks = (ErrorCollector(**limits) for _ in range(4))
    for number in range(60):
        for collector in (alone, ranks[number % 3]):
            collector.add(errors[number], sigmas[number], f"{number:03d}")
    barrier, values = threading.Barrier(3), [None] * 3

    def together(rank: int) -> ErrorSamples:
        def gather(value: object) -> list[object]:
            values[rank] = value
            barrier.wait()
            found = list(values)
            barrier.wait()
            return found

        return ranks[rank].gathered(gather).samples()

    expected = alone.samples()
    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(together, range(3)):
            np.testing.assert_array_equal(found.errors, expected.errors)
            np.testing.assert_array_equal(found.images, expected.images)
            assert 0 < len(found) <= max_pixels and found.left_out == 0
