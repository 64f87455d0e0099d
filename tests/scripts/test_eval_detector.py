"""How often points are found again: chance is chance, and a good detector beats it."""

import importlib
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deltas.detector.corners import SyntheticCorners
from deltas.detector.superpoint import SuperPoint
from dust3r.training import checkpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_detectors_are_compared_with_each_other_and_with_chance(tmp_path, monkeypatch, capsys):
    board = SyntheticCorners(3, (160, 120), seed=5)
    paths = []
    for number in range(2):
        paths.append(str(tmp_path / f"{number}.png"))
        cv2.imwrite(paths[-1], np.rint(board.draw(number)[0] * 255).astype(np.uint8))
    torch.manual_seed(0)
    weights = tmp_path / "detector.safetensors"
    checkpoint.save_safetensors(weights, SuperPoint(2).state_dict())
    picture = tmp_path / "points.png"
    arguments = ["--size", "160", "120", "--points", "30", "--views", "2", "--homographies", "2"]
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(
        sys, "argv", ["eval", str(weights), *paths, *arguments, "--picture", str(picture)]
    )
    importlib.import_module("eval_detector").main()
    rows = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines()}
    share = {name: float(row[2]) for name, row in rows.items() if row[-1] == "s"}
    assert len(share) == 5 and all(0 <= value <= 1 for value in share.values())
    assert share["Shi-Tomasi (goodFeatures)"] > share["random pixels"] + 0.1
    assert cv2.imread(str(picture)).shape == (2 * 240, 4 * 320, 3)


def test_a_file_that_is_no_image_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    (tmp_path / "none.jpg").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        importlib.import_module("eval_detector")._grey(tmp_path / "none.jpg", (64, 64))
