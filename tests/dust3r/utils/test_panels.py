"""Figures of depth and uncertainty: what stands in them, whatever model and view they are of."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from dust3r.heads.dpt_uq import depth_outputs
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.utils.panels import depth_figure, pair_figure, summary_figure, take_sample
from dust3r.utils.plots import Colours, band_medians, log_ticks, scatter_sigma_error

HEIGHT, WIDTH = 16, 32


def poses(batch: int) -> torch.Tensor:
    turn = torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]])
    pose = torch.eye(4).repeat(batch, 1, 1)
    pose[:, :3, :3] = turn
    pose[:, :3, 3] = torch.tensor([0.3, -0.1, 0.5])
    return pose


def make_view(batch: int = 2, portrait: bool = False, seed: int = 0) -> dict:
    """A view in the contract, in landscape layout; the second row of pixels is not valid."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + 3 * torch.rand(batch, HEIGHT, WIDTH, generator=generator)
    valid = torch.ones(batch, HEIGHT, WIDTH, dtype=torch.bool)
    valid[:, 1] = False
    points = torch.randn(batch, HEIGHT, WIDTH, 3, generator=generator)
    points[..., 2] = depth
    pose = poses(batch)
    world = torch.einsum("bij,bhwj->bhwi", pose[:, :3, :3], points) + pose[:, None, None, :3, 3]
    shape = (WIDTH, HEIGHT) if portrait else (HEIGHT, WIDTH)
    return {
        "img": 2 * torch.rand(batch, 3, HEIGHT, WIDTH, generator=generator) - 1,
        "true_shape": torch.tensor([shape] * batch),
        "depthmap": torch.where(valid, depth, 0.0),
        "valid_mask": valid,
        "pts3d": world,
        "camera_pose": pose,
        "label": [f"scene/{i}" for i in range(batch)],
    }


def make_prediction(view: dict, heads: int, conf: bool = True, view2: bool = False) -> dict:
    """The truth with noise, in camera 1 = world, at an arbitrary scale."""
    generator = torch.Generator().manual_seed(7)
    depth = view["depthmap"][:, None]
    prediction = {"pts3d_in_other_view" if view2 else "pts3d": 0.2 * view["pts3d"]}
    if conf:
        prediction["conf"] = 1 + torch.rand(depth[:, 0].shape, generator=generator)
    for suffix in ("", "_feat")[:heads]:
        raw = torch.randn(len(depth), 4, HEIGHT, WIDTH, generator=generator)
        raw[:, :1] = depth + 0.3 * raw[:, :1]
        nig = NormalInverseGamma.from_raw(raw)
        prediction |= depth_outputs(nig, suffix)
        if suffix:
            prediction["depth_mean_feat"] = nig.mean
    return prediction


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def shown(figure: Figure, title: str) -> np.ma.MaskedArray:
    return image_of(figure, title).get_array()


def image_of(figure: Figure, title: str):
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return axes.images[0]


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (2, ["GeoUQ mean (m)", "FeatUQ mean (m)", "FeatUQ standard deviation (m)"]),
        (1, ["GeoUQ mean (m)", "GeoUQ standard deviation (m)", "GeoUQ absolute error (m)"]),
        (0, ["pointmap depth, scaled (m)", "1 / confidence", "pointmap absolute error (m)"]),
    ],
)
def test_figure_shows_every_head_of_the_model(heads: int, expected: list[str]) -> None:
    view = make_view()
    found = titles(depth_figure(view, make_prediction(view, heads), index=1, title="a title"))
    assert {"image", "true depth (m)", *expected} <= set(found)
    assert len(found) == 2 + 3 * max(heads, 1)


def test_maps_show_mean_deviation_and_error_of_the_sample_asked_for() -> None:
    view = make_view()
    prediction = make_prediction(view, heads=2)
    figure = depth_figure(view, prediction, index=1)
    mean = prediction["depth_mean_feat"][1, 0].numpy()
    error = np.abs(mean - view["depthmap"][1].numpy())
    valid = view["valid_mask"][1].numpy()
    assert_allclose(shown(figure, "FeatUQ mean (m)"), mean)
    assert_allclose(shown(figure, "FeatUQ absolute error (m)")[valid], error[valid], atol=1e-6)
    deviation = shown(figure, "FeatUQ standard deviation (m)")
    lowest = image_of(figure, "FeatUQ standard deviation (m)").norm.vmin
    wanted = prediction["depth_var_feat"][1, 0].sqrt().numpy()
    assert_allclose(deviation, np.maximum(wanted, lowest), rtol=1e-6)
    assert_allclose(shown(figure, "image"), view["img"][1].permute(1, 2, 0) / 2 + 0.5, atol=1e-6)


def test_pixels_without_truth_are_grey_in_truth_and_error() -> None:
    view = make_view()
    figure = depth_figure(view, make_prediction(view, heads=1))
    for title in ("true depth (m)", "GeoUQ absolute error (m)"):
        assert_array_equal(np.ma.getmaskarray(shown(figure, title)), ~view["valid_mask"][0].numpy())
    assert not np.ma.getmaskarray(shown(figure, "GeoUQ mean (m)")).any()


def test_heads_share_their_colours() -> None:
    view = make_view()
    figure = depth_figure(view, make_prediction(view, heads=2))
    for panel in ("mean (m)", "standard deviation (m)", "absolute error (m)"):
        assert image_of(figure, f"GeoUQ {panel}").norm is image_of(figure, f"FeatUQ {panel}").norm
    assert image_of(figure, "true depth (m)").norm is image_of(figure, "GeoUQ mean (m)").norm


def test_colour_bars_stand_beside_every_map_but_the_image() -> None:
    view = make_view()
    figure = depth_figure(view, make_prediction(view, heads=2))
    figure.canvas.draw()
    bars = [axes for axes in figure.axes if not axes.get_title()]
    assert len(bars) == len(titles(figure)) - 1
    for bar in bars:
        labels = [label.get_text() for label in bar.get_yticklabels()]
        assert len(set(labels)) >= 2 and all(labels)


def test_wild_prediction_leaves_the_colours_of_the_truth() -> None:
    view = make_view()
    prediction = make_prediction(view, heads=1)
    prediction["depth_mu"] = 1e6 * torch.ones_like(prediction["depth_mu"])
    norm = image_of(depth_figure(view, prediction), "true depth (m)").norm
    truth = view["depthmap"][0][view["valid_mask"][0]].numpy()
    assert_allclose((norm.vmin, norm.vmax), np.percentile(truth, (1, 99)), rtol=1e-5)


def test_portrait_sample_of_a_transposed_batch_is_upright() -> None:
    landscape, portrait = make_view(), make_view(portrait=True)
    prediction = make_prediction(landscape, heads=1)
    lying = depth_figure(landscape, prediction)
    upright = depth_figure(portrait, prediction)
    for title in ("true depth (m)", "GeoUQ mean (m)", "GeoUQ standard deviation (m)", "image"):
        turned = shown(upright, title)
        assert turned.shape[:2] == (WIDTH, HEIGHT)
        assert_array_equal(turned.filled(0), shown(lying, title).filled(0).swapaxes(0, 1))


def test_portrait_sample_that_travels_upright_stays_so() -> None:
    view = make_view(portrait=True)
    turned = {key: view[key].transpose(1, 2) for key in ("depthmap", "valid_mask", "pts3d")}
    upright = {**view, **turned, "img": view["img"].transpose(2, 3)}
    prediction = make_prediction(view, heads=1)
    same = {k: v.transpose(1, 2) if k == "pts3d" else v for k, v in prediction.items()}
    same = {k: v.transpose(-2, -1) if k != "pts3d" else v for k, v in same.items()}
    first, second = (depth_figure(v, p) for v, p in ((view, prediction), (upright, same)))
    assert_array_equal(pixels(first), pixels(second))


@pytest.mark.parametrize("view2", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_pointmap_depth_is_scaled_and_taken_into_its_own_camera(view2: bool, scale: float) -> None:
    view = make_view()
    # Camera 1 is the world in view 2, and the view's own camera in view 1.
    prediction = make_prediction(view, heads=0, view2=True)
    points = scale * prediction.pop("pts3d_in_other_view")
    pose1 = torch.eye(4).repeat(2, 1, 1)
    if not view2:
        inverse = torch.linalg.inv(view["camera_pose"])
        points = torch.einsum("bij,bhwj->bhwi", inverse[:, :3, :3], view["pts3d"])
        points = scale * (points + inverse[:, None, None, :3, 3])
    prediction["pts3d_in_other_view" if view2 else "pts3d"] = points
    figure = depth_figure(view, prediction, other_pose=pose1)
    valid = view["valid_mask"][0].numpy()
    depth = shown(figure, "pointmap depth, scaled (m)")
    assert_allclose(depth[valid], view["depthmap"][0].numpy()[valid], rtol=1e-4)


def test_second_view_of_a_model_without_heads_needs_the_first_pose() -> None:
    view = make_view()
    with pytest.raises(ValueError, match="camera 1's frame: give camera 1's poses"):
        depth_figure(view, make_prediction(view, heads=0, view2=True))
    with pytest.raises(ValueError, match="neither pts3d nor pts3d_in_other_view; it has conf"):
        depth_figure(view, {"conf": torch.ones(2, HEIGHT, WIDTH)})


def test_model_without_confidence_has_a_figure_too() -> None:
    view = make_view()
    figure = depth_figure(view, make_prediction(view, heads=0, conf=False))
    assert "no 1 / confidence" in titles(figure)
    sample = take_sample(view, make_prediction(view, heads=0, conf=False))
    assert "no 1 / confidence" in titles(pair_figure([sample], ["view 1"]))


def test_half_precision_in_training_looks_like_single() -> None:
    view = make_view()
    prediction = make_prediction(view, heads=2)
    half = {key: value.bfloat16().requires_grad_() for key, value in prediction.items()}
    coarse = shown(depth_figure(view, half), "GeoUQ mean (m)")
    assert_allclose(coarse, shown(depth_figure(view, prediction), "GeoUQ mean (m)"), rtol=0.01)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_prediction_that_is_not_finite_is_drawn_grey(bad: float) -> None:
    view = make_view()
    prediction = {key: bad * v for key, v in make_prediction(view, heads=2).items()}
    sample = take_sample(view, prediction)
    figure = pair_figure([sample], ["diverged"])
    assert np.ma.getmaskarray(shown(figure, "GeoUQ mean (m)")).all()
    assert pixels(figure).any()


def test_view_without_any_valid_pixel_is_drawn() -> None:
    view = make_view()
    view["valid_mask"][:] = False
    figure = pair_figure([take_sample(view, make_prediction(view, heads=2))], ["nothing known"])
    assert np.ma.getmaskarray(shown(figure, "true depth (m)")).all()
    assert pixels(figure).any()


def test_titles_are_text_and_not_formulas() -> None:
    view = make_view()
    figure = depth_figure(view, make_prediction(view, heads=1), title="cost $x_ and $^")
    assert pixels(figure).any()


def test_pair_figure_compares_two_heads() -> None:
    view = make_view()
    prediction = make_prediction(view, heads=2)
    figure = pair_figure([take_sample(view, prediction)], ["view 1"])
    mean = prediction["depth_mean_feat"] - prediction["depth_mu"]
    ratio = (prediction["depth_var_feat"] / prediction["depth_var"]).sqrt().log2()
    assert_allclose(shown(figure, "FeatUQ − GeoUQ: mean (m)"), mean[0, 0], atol=1e-5)
    assert_allclose(shown(figure, "log2 of sigma FeatUQ / GeoUQ"), ratio[0, 0], atol=1e-4)
    for title in ("FeatUQ − GeoUQ: mean (m)", "log2 of sigma FeatUQ / GeoUQ"):
        norm = image_of(figure, title).norm
        assert norm.vmin == -norm.vmax < 0
    assert {"sparsification", "FeatUQ: error against sigma"} <= set(titles(figure))


def test_pair_figure_shares_colours_over_views() -> None:
    views = [make_view(seed=seed) for seed in (0, 1)]
    samples = [take_sample(view, make_prediction(view, heads=1)) for view in views]
    figure = pair_figure(samples, ["view 1", "view 2"])
    norms = [axes.images[0].norm for axes in figure.axes if axes.get_title() == "GeoUQ mean (m)"]
    assert len(norms) == 2 and norms[0] is norms[1]


def test_panels_lie_apart_within_the_figure() -> None:
    view = make_view(portrait=True)
    sample = take_sample(view, make_prediction(view, heads=2))
    figure = pair_figure([sample, sample], ["view 1", "view 2"], "title")
    boxes = [axes.get_position() for axes in figure.axes]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1
        for other in boxes[:number]:
            apart = box.x0 >= other.x1 or other.x0 >= box.x1
            assert apart or box.y0 >= other.y1 or other.y0 >= box.y1


def test_threads_draw_what_one_thread_draws() -> None:
    view = make_view()
    prediction = make_prediction(view, heads=1)
    alone = pixels(depth_figure(view, prediction))
    with ThreadPoolExecutor(3) as pool:
        drawn = pool.map(lambda _: pixels(depth_figure(view, prediction)), range(3))
        for picture in drawn:
            assert_array_equal(picture, alone)


def test_summary_has_curves_and_scatter_of_every_head() -> None:
    rng = np.random.default_rng(0)
    errors = {name: rng.gamma(1, 0.1, 500) for name in ("GeoUQ", "FeatUQ")}
    deviations = {name: rng.gamma(2, 0.1, 500) for name in errors}
    figure = summary_figure(errors, deviations, doubt=rng.uniform(0, 1, 500))
    wanted = [f"{n}: {what}" for what in ("sparsification", "error against sigma") for n in errors]
    assert titles(figure) == wanted
    for axes in figure.axes[:2]:
        own, confidence, oracle = (line.get_ydata() for line in axes.lines)
        assert (oracle <= own + 1e-6).all() and (oracle <= confidence + 1e-6).all()
    alone = summary_figure({"pointmap": errors["GeoUQ"]}, {}, doubt=deviations["GeoUQ"])
    assert titles(alone) == ["pointmap: sparsification", "pointmap: error against 1/confidence"]


def test_band_medians_follow_the_errors() -> None:
    sigma = np.geomspace(0.01, 1, 5000)
    centres, medians = band_medians(sigma, 0.5 * sigma, bands=10)
    assert len(centres) == 10
    assert_allclose(medians, 0.5 * centres, rtol=0.02)
    few = np.concatenate([np.full(100, 0.1), np.full(5, 1.0)])
    assert len(band_medians(few, few, at_least=20)[0]) == 1


def test_scatter_draws_the_identity_for_deviations_alone() -> None:
    rng = np.random.default_rng(0)
    sigma, error = rng.uniform(0.1, 1, 1000), rng.uniform(0.01, 1, 1000)
    for is_deviation in (True, False):
        axes = Figure().add_subplot()
        scatter_sigma_error(axes, sigma, error, is_deviation)
        lines = {line.get_label(): line for line in axes.lines}
        assert ("error = sigma" in lines) == is_deviation
        if is_deviation:
            assert_array_equal(*lines["error = sigma"].get_data())


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 1), (0.11, 0.12), (1e-4, 1e4), (0.3, 0.30001), (3, 70)]
)
def test_log_ticks_are_few_and_within_the_limits(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low * (1 - 1e-9) <= min(ticks) and max(ticks) <= high * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["linear", "from_zero", "logarithmic", "signed"])
@pytest.mark.parametrize(
    "values", [np.array([]), np.full(4, np.nan), np.zeros(4), np.full(4, 2.5), np.full(4, -1.0)]
)
def test_degenerate_maps_have_colours(kind: str, values: np.ndarray) -> None:
    colours = getattr(Colours, kind)([values])
    assert np.isfinite([colours.norm.vmin, colours.norm.vmax, *colours.ticks]).all()
    assert colours.norm.vmin < colours.norm.vmax and len(colours.ticks) >= 2


def test_figures_are_independent_of_pyplot() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    view = make_view()
    depth_figure(view, make_prediction(view, heads=2))
    assert pyplot.get_fignums() == before
