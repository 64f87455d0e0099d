"""Drawn corners: where they are, that they can be seen, and that a seed tells all."""

import cv2
import numpy as np
import pytest
import torch

from deltas.detector import corners
from deltas.detector.corners import SyntheticCorners, corner_labels, draw_shapes
from deltas.detector.superpoint import NO_POINT
from deltas.detector.train import Settings, main, train
from deltas.interest import CELL, point_scores
from dust3r.training import checkpoint
from dust3r.training.checkpoint import CheckpointError

SIZE = 96, 64
TINY = Settings(steps=4, batch_size=2, size=SIZE, width=2, warmup_steps=2)


def kind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw images of one kind alone, and as they are: neither blurred nor noisy."""
    monkeypatch.setattr(corners, "_KINDS", {name: corners._KINDS[name]})
    monkeypatch.setattr(
        corners,
        "_photographed",
        lambda canvas, size, rng: cv2.resize(canvas, size, interpolation=cv2.INTER_AREA) / 255,
    )


def test_a_corner_is_the_class_of_its_pixel_in_its_cell():
    labels = corner_labels(np.array([[43.4, 21.6]]), SIZE)
    assert labels.shape == (8, 12) and labels.dtype == torch.int64
    row, column = 22 // CELL, 43 // CELL
    assert labels[row, column] == (22 % CELL) * CELL + 43 % CELL
    assert (labels != NO_POINT).sum() == 1
    logits = 20 * torch.nn.functional.one_hot(labels, 65).permute(2, 0, 1)[None].float()
    assert point_scores(logits)[0].argmax() == 22 * SIZE[0] + 43


@pytest.mark.parametrize("corner", [(-0.6, 10), (95.6, 10), (10, 63.6), (10, -0.51)])
def test_corners_outside_are_left_out(corner):
    assert (corner_labels(np.array([corner]), SIZE) == NO_POINT).all()


def test_of_several_corners_in_a_cell_one_is_taken():
    both = np.array([[1.0, 2.0], [5.0, 6.0]])
    chosen = {
        int(corner_labels(both, SIZE, np.random.default_rng(seed))[0, 0]) for seed in range(20)
    }
    assert chosen == {2 * CELL + 1, 6 * CELL + 5}
    assert corner_labels(both, SIZE)[0, 0] == 2 * CELL + 1


def test_a_seed_and_an_index_tell_the_sample():
    first, again = SyntheticCorners(5, SIZE, 3), SyntheticCorners(9, SIZE, 3)
    for name, value in first[4].items():
        assert torch.equal(value, again[4][name])
    assert not torch.equal(first[4]["image"], first[3]["image"])
    assert not torch.equal(first[4]["image"], SyntheticCorners(5, SIZE, 4)[4]["image"])


def test_samples_are_what_the_detector_takes():
    data = SyntheticCorners(12, SIZE)
    samples = [data[n] for n in range(len(data))]
    for sample in samples:
        assert sample["image"].shape == (1, 64, 96) and sample["image"].dtype == torch.float32
        assert 0 <= sample["image"].min() and sample["image"].max() <= 1
        assert sample["labels"].shape == (8, 12)
    labels = torch.stack([sample["labels"] for sample in samples])
    assert 0 <= labels.min() and 0.5 < (labels == NO_POINT).float().mean() < 0.99


def test_a_squares_corners_are_where_it_is_drawn():
    # Half a pixel, or a side of the canvas taken for another, would show here.
    scene = corners._Scene(SIZE, np.random.default_rng(0))
    scene.canvas[:] = 0
    box = np.array([[19.5, 9.5], [59.5, 9.5], [59.5, 39.5], [19.5, 39.5]])
    scene.fill(box, 200)
    image = cv2.resize(scene.canvas, SIZE, interpolation=cv2.INTER_AREA).astype(float)
    total = image.sum()
    x, y = (image.sum(0) @ np.arange(96)) / total, (image.sum(1) @ np.arange(64)) / total
    assert (x, y) == pytest.approx((39.5, 24.5), abs=0.1)
    # OpenCV fills what an outline touches: up to half a fine pixel more on each side.
    assert total / 200 == pytest.approx(40 * 30, rel=0.05)


@pytest.mark.parametrize("name", ["polygon", "checkerboard", "stripes"])
def test_corners_are_corners_of_the_image(name, monkeypatch):
    # The least eigenvalue of the gradients' covariance (Shi and Tomasi) is large at corners alone.
    kind(name, monkeypatch)
    at, mirrored = [], []
    for seed in range(12):
        image, found = draw_shapes((160, 120), np.random.default_rng(seed))
        strength = cv2.cornerMinEigenVal(image.astype(np.float32), 5)
        strength = cv2.dilate(strength, np.ones((3, 3)))
        inner = found[((found > 4) & (found < np.array([155, 115]))).all(1)]
        for place, of in ((inner, at), (np.array([159, 119]) - inner, mirrored)):
            x, y = np.rint(place).astype(int).T
            of.extend(strength[y, x])
    assert len(at) > 15
    assert np.mean(np.array(at) > 1e-4) > 0.9
    assert np.median(at) > 5 * np.median(mirrored)


def test_crossing_lines_cross():
    first, second = np.array([[0.0, 0], [10, 10]]), np.array([[0.0, 10], [10, 0]])
    np.testing.assert_allclose(corners._crossing(first, second), [[5, 5]])
    assert len(corners._crossing(first, second + [11, 0])) == 0
    assert len(corners._crossing(first, first + [1, 0])) == 0


def test_noise_has_no_corners(monkeypatch):
    kind("noise", monkeypatch)
    assert len(draw_shapes(SIZE, np.random.default_rng(0))[1]) == 0


@pytest.mark.parametrize("wrong", [{"size": (100, 64)}, {"size": (32, 64)}, {"seed": -1}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SyntheticCorners(4, **wrong)


def test_a_killed_run_ends_with_the_weights_of_a_whole_one(tmp_path, monkeypatch, one_thread):
    whole = train(TINY, tmp_path / "whole.pth").state_dict()
    save, written = checkpoint.save, []

    def save_and_die(path, state):
        save(path, state)
        written.append(state["step"])
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "killed.pth", save_steps=2)
    resumed = train(TINY, tmp_path / "killed.pth", save_steps=2).state_dict()
    assert written == [2, 4]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_state_of_other_settings_is_refused(tmp_path):
    train(TINY, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match="--output"):
        train(Settings(**{**vars(TINY), "width": 3}), tmp_path / "state.pth")


def test_training_from_the_command_line(tmp_path, capsys):
    output = tmp_path / "corners.safetensors"
    main(
        ["--output", str(output), "--steps", "2", "--batch_size", "2", "--width", "2"]
        + ["--size", "96", "64", "--test_images", "3", "--warmup_steps", "1"]
    )
    printed = capsys.readouterr().out
    assert "precision" in printed and "recall" in printed and "repeatability" in printed
    content = checkpoint.load_file(output)
    assert content["trained_on"].startswith("synthetic corners") and content["width"] == 2
    assert not any("bn" in name for name in content["model"])
