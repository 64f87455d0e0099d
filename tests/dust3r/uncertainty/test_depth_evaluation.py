"""Numbers of a depth evaluation against the same numbers computed from the pixels at hand."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from dust3r.datasets.combine import Draw, StereoDataset
from dust3r.datasets.loader import get_data_loader
from dust3r.heads.dpt_uq import depth_outputs
from dust3r.uncertainty.evaluation import (
    Baselines,
    DepthEvaluator,
    evaluate_depth,
    finite,
    fit_baselines,
    thinning,
)
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.metrics import ause, gaussian_nll
from dust3r.uncertainty.tables import comparisons, markdown, summary_line

HEIGHT, WIDTH = 16, 32


def make_view(number: int) -> dict:
    """A view without batch dimension, in the contract; the share of valid pixels differs."""
    generator = torch.Generator().manual_seed(number)
    depth = 1 + 3 * torch.rand(HEIGHT, WIDTH, generator=generator)
    valid = torch.rand(HEIGHT, WIDTH, generator=generator) < 0.2 + 0.1 * (number % 7)
    points = torch.cat([torch.randn(HEIGHT, WIDTH, 2, generator=generator), depth[..., None]], -1)
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.1 * number, 0.2, -0.3])
    return {
        "img": 2 * torch.rand(3, HEIGHT, WIDTH, generator=generator) - 1,
        "true_shape": torch.tensor((HEIGHT, WIDTH)),
        "depthmap": torch.where(valid, depth, 0.0),
        "valid_mask": valid,
        "pts3d": points + pose[:3, 3],
        "camera_pose": pose,
        "camera_intrinsics": torch.eye(3),
        "label": f"scene/{number}",
        "instance": f"{number}.jpg",
    }


class Pairs(StereoDataset):
    """Views 2i and 2i + 1 as pair i."""

    def __init__(self, length: int) -> None:
        self.length = length

    @property
    def resolutions(self) -> tuple[tuple[int, int], ...]:
        return ((WIDTH, HEIGHT),)

    def __len__(self) -> int:
        return self.length

    def load(self, draw: Draw) -> list[dict]:
        return [make_view(2 * draw.index), make_view(2 * draw.index + 1)]

    def draw_paths(self, draw: Draw) -> list:
        return []


class Guess(nn.Module):
    """The truth with noise that is a function of the image alone, in each head its own."""

    def __init__(self, heads: int = 2, conf: bool = True, scale: float = 0.2) -> None:
        super().__init__()
        self.heads, self.conf, self.scale = heads, conf, scale

    def forward(self, view1: dict, view2: dict) -> tuple[dict, dict]:
        pose1 = view1["camera_pose"][:, None, None, :3, 3]
        return self.guess(view1, pose1, "pts3d"), self.guess(view2, pose1, "pts3d_in_other_view")

    def guess(self, view: dict, pose1: Tensor, key: str) -> dict:
        image, depth = view["img"], view["depthmap"][:, None]
        points = view["pts3d"] - pose1
        points = points * (1 + 0.1 * image.permute(0, 2, 3, 1))
        prediction = {key: self.scale * points}
        if self.conf:
            prediction["conf"] = 2 + image[:, 0]
        for number, suffix in enumerate(("", "_feat")[: self.heads]):
            raw = torch.cat([depth + image[:, number, None], image], dim=1)
            prediction |= depth_outputs(NormalInverseGamma.from_raw(raw), suffix)
            if suffix:
                prediction["depth_mean_feat"] = depth + 0.5 * image[:, 2, None]
        return prediction


def loader_of(length: int, batch_size: int = 2):
    return get_data_loader(Pairs(length), batch_size, 0, shuffle=False, drop_last=False)


def by_hand(length: int) -> list[dict[str, Tensor]]:
    """Per image: valid depths, and the mean, NLL and uncertainty of FeatUQ there."""
    images = []
    for number in range(2 * length):
        view = {k: v[None] if isinstance(v, Tensor) else v for k, v in make_view(number).items()}
        prediction = Guess().guess(view, torch.zeros(1), "pts3d")
        valid = view["valid_mask"][0]
        nig = NormalInverseGamma.from_prediction(prediction, "_feat")
        depth = view["depthmap"][0][valid]
        images.append(
            {
                "depth": depth,
                "error": (prediction["depth_mean_feat"][0, 0][valid] - depth).abs(),
                "nll": -nig.predictive().log_prob(view["depthmap"][:, None])[0, 0][valid],
                "sigma": prediction["depth_var_feat"][0, 0][valid].sqrt(),
                "doubt": 1 / prediction["conf"][0][valid],
            }
        )
    return images


def test_numbers_are_those_of_all_valid_pixels() -> None:
    result = evaluate_depth(Guess(), loader_of(3), "cpu")
    images = by_hand(3)
    together = {key: torch.cat([image[key] for image in images]) for key in images[0]}
    error = together["error"].double()
    expected = {
        "rmse": error.square().mean().sqrt(),
        "mae": error.mean(),
        "nll": together["nll"].double().mean(),
        "ause": ause(together["error"], together["sigma"]),
        "ause_conf": ause(together["error"], together["doubt"]),
        "ause_per_image": torch.stack([ause(i["error"], i["sigma"]) for i in images]).mean(),
        "ause_conf_per_image": torch.stack([ause(i["error"], i["doubt"]) for i in images]).mean(),
    }
    found = result["heads"]["FeatUQ"]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value.item(), rel=1e-4), key
    assert found["ause"] != pytest.approx(found["ause_per_image"], rel=1e-3)
    assert result["images"] == 6
    assert result["pixels"] == result["ranked_pixels"] == len(error)


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_every_head_of_the_model_is_counted(heads: int) -> None:
    result = evaluate_depth(Guess(heads), loader_of(1), "cpu")
    assert list(result["heads"]) == [*("GeoUQ", "FeatUQ")[:heads], "pointmap"]
    assert "ause" not in result["heads"]["pointmap"] and "nll" not in result["heads"]["pointmap"]
    for name in list(result["heads"])[:-1]:
        assert {"nll", "ause", "ause_conf"} <= result["heads"][name].keys()


def test_batches_do_not_matter() -> None:
    one, other = (evaluate_depth(Guess(), loader_of(5, size), "cpu") for size in (1, 4))
    for name, numbers in one["heads"].items():
        assert numbers == pytest.approx(other["heads"][name], rel=1e-6)


def test_pointmap_scale_does_not_matter_and_its_camera_does() -> None:
    small, large = (
        evaluate_depth(Guess(0, scale=scale), loader_of(2), "cpu")["heads"]["pointmap"]
        for scale in (0.003, 40.0)
    )
    assert small == pytest.approx(large, rel=1e-4)

    class Exact(Guess):
        def guess(self, view: dict, pose1: Tensor, key: str) -> dict:
            exact = self.scale * (view["pts3d"] - pose1)
            return super().guess(view, pose1, key) | {key: exact}

    assert evaluate_depth(Exact(0), loader_of(2), "cpu")["heads"]["pointmap"]["rmse"] < 1e-5


def test_thinning_changes_rankings_alone() -> None:
    full, thin = DepthEvaluator(), DepthEvaluator(keep_one_in=3)
    again = DepthEvaluator(keep_one_in=3)
    for views in loader_of(6):
        for evaluator in (full, thin, again):
            evaluator.update(views, Guess()(*views))
    full, thin, again = (evaluator.result() for evaluator in (full, thin, again))
    assert thin == again
    assert thin["ranked_pixels"] == pytest.approx(thin["pixels"] / 3, rel=0.15)
    for name, numbers in thin["heads"].items():
        exact = full["heads"][name]
        for key in numbers.keys() - {"ause", "ause_conf"}:
            assert numbers[key] == exact[key]
        assert numbers["ause_conf"] == pytest.approx(exact["ause_conf"], rel=0.15)


def test_thinning_keeps_within_the_limit() -> None:
    pixels = 2 * 4 * HEIGHT * WIDTH
    assert thinning(loader_of(4), pixels) == 1
    assert thinning(loader_of(4), pixels - 1) == 2
    limited = evaluate_depth(Guess(), loader_of(4), "cpu", max_pixels=pixels // 4)
    assert limited["ranked_pixels"] <= 1.2 * pixels // 4


def test_baselines_are_median_depth_and_mean_squared_residual() -> None:
    baselines = fit_baselines(Guess(), loader_of(3), "cpu")
    images = by_hand(3)
    depth = torch.cat([image["depth"] for image in images])
    squares = torch.cat([image["error"] for image in images]).double().square()
    assert baselines.constant_depth == pytest.approx(depth.median().item())
    assert baselines.residual_variance["FeatUQ"] == pytest.approx(squares.mean().item(), rel=1e-5)
    # A pointmap that is fitted to the truth it is measured by has no likelihood to compare.
    assert baselines.residual_variance.keys() == {"GeoUQ", "FeatUQ"}


def test_comparison_with_baselines() -> None:
    baselines = Baselines(constant_depth=2.5, residual_variance={"FeatUQ": 0.09})
    result = evaluate_depth(Guess(), loader_of(2), "cpu", baselines)
    images = by_hand(2)
    depth, error = (torch.cat([i[key] for i in images]).double() for key in ("depth", "error"))
    assert result["constant"]["rmse"] == pytest.approx((depth - 2.5).square().mean().sqrt().item())
    assert result["constant"]["mae"] == pytest.approx((depth - 2.5).abs().mean().item())
    var = torch.tensor(0.09, dtype=torch.float64)
    expected = gaussian_nll(error, torch.zeros_like(error), var).mean().item()
    assert result["heads"]["FeatUQ"]["gaussian_nll"] == pytest.approx(expected, rel=1e-5)
    assert "gaussian_nll" not in result["heads"]["GeoUQ"]

    rows = {(row[0], row[2]): row[1::2] for row in comparisons(result)}
    heads = result["heads"]
    assert rows["FeatUQ RMSE", "GeoUQ RMSE"] == (heads["FeatUQ"]["rmse"], heads["GeoUQ"]["rmse"])
    assert rows["GeoUQ RMSE", "training median RMSE"][1] == result["constant"]["rmse"]
    assert rows["FeatUQ NLL", "Gaussian of one variance"][1] == pytest.approx(expected, rel=1e-5)
    assert ("GeoUQ NLL", "Gaussian of one variance") not in rows
    assert rows["FeatUQ AUSE, pooled", "1/conf, pooled"][1] == heads["FeatUQ"]["ause_conf"]


def test_variance_fitted_on_the_same_pixels_is_the_best_one() -> None:
    loader = loader_of(2)
    best = fit_baselines(Guess(), loader, "cpu")
    fitted = evaluate_depth(Guess(), loader, "cpu", best)["heads"]["FeatUQ"]["gaussian_nll"]
    for factor in (0.8, 1.25):
        variance = {"FeatUQ": factor * best.residual_variance["FeatUQ"]}
        other = evaluate_depth(Guess(), loader, "cpu", Baselines(2.0, variance))
        assert other["heads"]["FeatUQ"]["gaussian_nll"] > fitted


def test_image_without_valid_pixel_is_left_out() -> None:
    (views,) = loader_of(1, 1)
    full = DepthEvaluator()
    full.update(views, Guess()(*views))
    views[1]["valid_mask"][:] = False
    partial = DepthEvaluator()
    records = partial.update(views, Guess()(*views))
    assert [record["view"] for record in records] == [1]
    assert records == full.records[:1]
    assert partial.result()["images"] == 1


def test_nothing_valid_is_an_error() -> None:
    (views,) = loader_of(1, 1)
    for view in views:
        view["valid_mask"][:] = False
    evaluator = DepthEvaluator()
    evaluator.update(views, Guess()(*views))
    with pytest.raises(ValueError, match="no pixel of these pairs has a valid depth"):
        evaluator.result()


def test_model_that_ranks_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither an uncertainty head nor a confidence.*dpt_uq"):
        evaluate_depth(Guess(heads=0, conf=False), loader_of(1), "cpu")


def test_heads_without_confidence_are_counted() -> None:
    result = evaluate_depth(Guess(conf=False), loader_of(1), "cpu")
    assert "ause" in result["heads"]["FeatUQ"]
    assert not any("ause_conf" in numbers for numbers in result["heads"].values())


def test_prediction_that_is_not_finite_gives_no_numbers_but_json() -> None:
    class Diverged(Guess):
        def guess(self, view: dict, pose1: Tensor, key: str) -> dict:
            return {k: math.nan * v for k, v in super().guess(view, pose1, key).items()}

    result = evaluate_depth(Diverged(), loader_of(1), "cpu", Baselines(2.0))
    assert all(value is None for value in result["heads"]["FeatUQ"].values())
    assert result["constant"]["rmse"] > 0
    json.dumps(result, allow_nan=False)
    assert "not finite" in markdown(result) and "not finite" in summary_line(result)


def test_finite_keeps_everything_else() -> None:
    value = {"a": [1.5, math.nan, {"b": -math.inf}], "c": "text", "d": 3, "e": None}
    assert finite(value) == {"a": [1.5, None, {"b": None}], "c": "text", "d": 3, "e": None}


def test_markdown_says_what_was_measured() -> None:
    result = evaluate_depth(Guess(), loader_of(2), "cpu", Baselines(2.0, {"FeatUQ": 0.1}))
    text = markdown(result)
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("| depth"))
    assert "AUSE, pooled (m)" in header and "AUSE, image mean (m)" in header
    assert sum(line.startswith(("| GeoUQ ", "| FeatUQ ", "| pointmap ")) for line in lines) >= 3
    assert "drawn at random" not in text
    assert f"{result['pixels']:,} valid pixels" in text
    assert f"| {result['heads']['FeatUQ']['rmse']:.4g} " in text
    thinned = markdown({**result, "ranked_pixels": 7})
    assert "over 7 of them drawn at random" in thinned
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {header.count("|"), 7}
