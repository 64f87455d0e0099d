"""The detector by its published names, and the points that it keeps under homographies."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltas.detector.adaptation import (
    MARGIN,
    adapted_scores,
    point_labels,
    random_homographies,
    warp,
)
from deltas.detector.metrics import detection, repeatability, transform
from deltas.detector.superpoint import NO_POINT, SuperPoint, cell_labels, grey_of, load_detector
from deltas.interest import CELL, point_scores
from dust3r.training import checkpoint
from dust3r.training.checkpoint import CheckpointError

PUBLISHED = {
    "conv1a": (64, 1, 3, 3),
    "conv1b": (64, 64, 3, 3),
    "conv2a": (64, 64, 3, 3),
    "conv2b": (64, 64, 3, 3),
    "conv3a": (128, 64, 3, 3),
    "conv3b": (128, 128, 3, 3),
    "conv4a": (128, 128, 3, 3),
    "conv4b": (128, 128, 3, 3),
    "convPa": (256, 128, 3, 3),
    "convPb": (65, 256, 1, 1),
    "convDa": (256, 128, 3, 3),
    "convDb": (256, 256, 1, 1),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(batch_norms: bool = False) -> SuperPoint:
    torch.manual_seed(0)
    detector = SuperPoint(4, batch_norms)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return detector.eval()


def blobs(height: int = 64, width: int = 80, scale: int = 4) -> Tensor:
    """(2, 1, H, W) in [0, 1], smooth enough to be interpolated."""
    coarse = torch.rand(2, 1, height // scale, width // scale, generator=seeded())
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


class Brightness(nn.Module):
    """A pixel's logit follows its grey value, wherever the pixel is: no view changes it."""

    def forward(self, grey: Tensor) -> Tensor:
        pixels = F.pixel_unshuffle(grey, CELL).clamp(1e-4, 1) / CELL**2 / 1.1
        return torch.cat([pixels, 1 - pixels.sum(1, keepdim=True)], 1).log()


def published_file(path, prefix: str = "") -> dict[str, Tensor]:
    weights = {}
    for name, shape in PUBLISHED.items():
        weights[f"{prefix}{name}.weight"] = torch.randn(shape, generator=seeded()) / 10
        weights[f"{prefix}{name}.bias"] = torch.randn(shape[0], generator=seeded()) / 10
    torch.save(weights, path)
    return weights


def test_published_weights_load_without_their_descriptors(tmp_path):
    weights = published_file(tmp_path / "superpoint_v1.pth")
    detector = load_detector(tmp_path / "superpoint_v1.pth")
    own = detector.state_dict()
    assert detector.width == 64 and not detector.training
    assert own.keys() == {n for n in weights if not n.startswith("convD")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())


def test_the_network_is_the_published_one(tmp_path):
    # Written once more, by hand: order of layers, pools after 1b, 2b and 3b, no ReLU at the end.
    weights = published_file(tmp_path / "superpoint_v1.pth")
    x = grey = blobs(32, 40)

    def layer(name, x):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    for name in ("conv1a", "conv1b", "conv2a", "conv2b", "conv3a", "conv3b", "conv4a", "conv4b"):
        x = layer(name, x).relu()
        if name in ("conv1b", "conv2b", "conv3b"):
            x = F.max_pool2d(x, 2)
    expected = layer("convPb", layer("convPa", x).relu())
    with torch.no_grad():
        given = load_detector(tmp_path / "superpoint_v1.pth")(grey)
    assert given.shape == (2, 65, 4, 5)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_own_files_load_with_batch_norms_folded(tmp_path, suffix):
    trained = small(batch_norms=True)
    path = tmp_path / f"detector.{suffix}"
    if suffix == "pth":
        checkpoint.save(path, {"model": trained.state_dict(), "step": 3})
    else:
        checkpoint.save_safetensors(path, trained.folded().state_dict(), dtype=torch.float16)
    loaded = load_detector(path)
    assert loaded.width == 4 and not any("bn" in name for name in loaded.state_dict())
    tolerance = 1e-5 if suffix == "pth" else 2e-2
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(blobs()), trained(blobs()), rtol=tolerance, atol=tolerance
        )
    assert any("bn" in name for name in trained.state_dict())


def test_files_of_something_else_are_told(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"conv1\.weight.*expected SuperPoint"):
        load_detector(tmp_path / "resnet.pth")
    weights = published_file(tmp_path / "part.pth")
    del weights["conv3a.bias"]
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"part\.pth.*\n.*\n.*conv3a.bias"):
        load_detector(tmp_path / "part.pth")
    weights["conv3a.bias"] = torch.zeros(7)
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"conv3a.bias: given \(7,\), expected \(128,\)"):
        load_detector(tmp_path / "part.pth")
    with pytest.raises(FileNotFoundError):
        load_detector(tmp_path / "none.pth")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"conv1a.weight": torch.zeros(1), "f": print}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError):
        load_detector(tmp_path / "evil.pth")


def test_sides_that_are_no_multiples_of_a_cell():
    with torch.no_grad():
        assert small()(blobs(60, 76)).shape == (2, 65, 8, 10)
    scores = adapted_scores(small(), blobs(60, 76), 2, seeded())
    assert scores.shape == (2, 60, 76)
    assert point_labels(scores, 0.0, 4).shape == (2, 8, 10)


def test_colours_become_grey():
    images = torch.full((1, 3, 8, 8), -1.0)
    assert grey_of(images).abs().max() == 0
    images[:, 1] = 1
    torch.testing.assert_close(grey_of(images), torch.full((1, 1, 8, 8), 0.587))
    with pytest.raises(ValueError, match="grey_of"):
        small()(images)


def test_labels_are_the_channels_of_the_scores():
    logits = torch.randn(2, 65, 6, 5, generator=seeded())
    logits[:, -1] = -9
    torch.testing.assert_close(cell_labels(point_scores(logits), 0), logits[:, :-1].argmax(1))
    assert (cell_labels(point_scores(logits), 1) == NO_POINT).all()


def test_labels_keep_the_best_point_of_a_neighbourhood():
    scores = torch.zeros(1, 32, 32)
    scores[0, 7, 9], scores[0, 8, 10], scores[0, 20, 30], scores[0, 26, 3] = 0.4, 0.5, 0.1, 0.001
    labels = point_labels(scores, 0.01, 4)
    expected = torch.full((1, 4, 4), NO_POINT)
    expected[0, 1, 1], expected[0, 2, 3] = 2, 4 * CELL + 6
    assert torch.equal(labels, expected)


def test_labels_cost_least_for_the_scores_they_are_of():
    logits = 10 * torch.randn(1, 65, 4, 4, generator=seeded())
    labels = point_labels(point_scores(logits), 0.3, 0)
    assert F.cross_entropy(logits, labels) < F.cross_entropy(logits, labels.mT)
    assert F.cross_entropy(logits, labels) < 1


def test_warping_by_whole_pixels_is_exact():
    images = blobs()
    to_source = torch.eye(3).repeat(2, 1, 1)
    to_source[:, 0, 2], to_source[:, 1, 2] = 3, -5
    moved = warp(images, to_source)
    torch.testing.assert_close(moved[..., 5:, :-3], images[..., :-5, 3:], atol=1e-5, rtol=0)
    assert moved[..., :5, :].abs().max() < 1e-5 and moved[..., -3:].abs().max() < 1e-5


def test_warping_is_that_of_opencv():
    images = blobs()
    homographies = random_homographies(2, (64, 80), seeded(4))
    warped = warp(images, homographies.inverse())
    for image, homography, ours in zip(images, homographies, warped, strict=True):
        theirs = cv2.warpPerspective(image[0].numpy(), homography.numpy(), (80, 64))
        np.testing.assert_allclose(ours[0, 8:-8, 8:-8], theirs[8:-8, 8:-8], atol=0.05)


def test_homographies_stay_near_the_image():
    homographies = random_homographies(200, (120, 160), seeded()).double().numpy()
    corners = np.array([[0.0, 0], [159, 0], [159, 119], [0, 119]])
    mapped = np.stack([transform(corners, h) for h in homographies])
    middle = np.stack([transform(np.array([[79.5, 59.5]]), h) for h in homographies])
    assert (np.abs(middle[:, 0] - [79.5, 59.5]) <= np.array([24, 18]) + 1e-6).all()
    assert np.ptp(middle[:, 0], axis=0).min() > 30
    areas = np.array([cv2.contourArea(m.astype(np.float32)) for m in mapped]) / (159 * 119)
    assert 0.4 < areas.min() < 0.8 and 1.5 < areas.max() < 4
    assert torch.equal(
        random_homographies(3, (8, 8), seeded(1)), random_homographies(3, (8, 8), seeded(1))
    )


def test_one_view_is_the_image_itself():
    detector, grey = small(), blobs()
    with torch.no_grad():
        plain = point_scores(detector(grey))
    torch.testing.assert_close(adapted_scores(detector, grey, 1), plain, rtol=0, atol=0)
    assert not torch.allclose(adapted_scores(detector, grey, 3, seeded()), plain)


def test_what_no_view_changes_stays():
    # Wrong inverses, or counts of what is not seen, would move or darken it.
    grey = blobs(96, 128, 16)
    plain = point_scores(Brightness()(grey))
    adapted = adapted_scores(Brightness(), grey, 12, seeded())
    assert plain.std() / plain.mean() > 0.2
    torch.testing.assert_close(adapted, plain, rtol=0, atol=float(0.06 * plain.max()))
    assert (adapted - plain).abs().mean() < 0.1 * plain.std()


def test_points_at_the_border_of_a_view_do_not_count():
    class Border(nn.Module):
        """Finds a point wherever the border of what it is given is near."""

        def forward(self, grey):
            scores = torch.full_like(grey, 1e-6)
            scores[..., :3, :] = scores[..., -3:, :] = 1e-2
            scores[..., :3] = scores[..., -3:] = 1e-2
            pixels = F.pixel_unshuffle(scores, CELL)
            return torch.cat([pixels, 1 - pixels.sum(1, keepdim=True)], 1).log()

    scores = adapted_scores(Border(), blobs(), 8, seeded())
    assert scores[..., MARGIN:-MARGIN, MARGIN:-MARGIN].max() < 1e-4


def test_adaptation_follows_its_generator():
    detector, grey = small(), blobs()
    first, again, other = (adapted_scores(detector, grey, 3, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # Each image has its own views.
    twice = adapted_scores(detector, grey[:1].repeat(2, 1, 1, 1), 3, seeded(1))
    assert not torch.allclose(*twice)


def test_wrong_calls_are_named():
    with pytest.raises(ValueError, match="count=0"):
        adapted_scores(small(), blobs(), 0)
    with pytest.raises(ValueError, match="expected grey"):
        adapted_scores(small(), torch.zeros(1, 3, 8, 8), 1)
    with pytest.raises(ValueError, match="width=0"):
        SuperPoint(0)


def test_precision_and_recall():
    corners = [np.array([[10.0, 10], [20, 20], [30, 30]]), np.array([[5.0, 5]])]
    points = [np.array([[11.0, 10], [11, 11], [20, 22]]), np.zeros((0, 2))]
    result = detection(points, [np.array([0.9, 0.8, 0.7]), np.zeros(0)], corners)
    assert result.precision == pytest.approx(2 / 3) and result.recall == pytest.approx(0.5)
    assert result.average_precision == pytest.approx((1 + 2 / 3) / 4)
    assert result.error == pytest.approx(1.5)
    nothing = detection([np.zeros((0, 2))], [np.zeros(0)], corners[:1])
    assert (nothing.precision, nothing.recall, nothing.average_precision) == (0, 0, 0)


def test_repeatability_counts_what_both_images_show():
    homography = np.array([[1.0, 0.1, 50], [0, 1.1, 10], [1e-3, 0, 1]])
    points = np.random.default_rng(0).uniform(0, [159, 119], (60, 2))
    there = transform(points, homography)
    seen = there[((there >= -0.5) & (there < [159.5, 119.5])).all(1)]
    assert 10 < len(seen) < 55
    assert repeatability(points, seen, homography, (160, 120), 0.1) == 1
    assert repeatability(points, seen * 0.8 + 5, homography, (160, 120), 0.1) < 0.1
    half = seen[::2]
    found = repeatability(points, half, homography, (160, 120), 1e-6)
    assert found == pytest.approx(2 * len(half) / (len(seen) + len(half)))
    assert math.isnan(repeatability(points[:0], points[:0], homography, (160, 120)))
