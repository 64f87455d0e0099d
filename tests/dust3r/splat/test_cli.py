"""The whole path: exports in, splats, pictures and one table out."""

import json
import shutil

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image
from splat_scene import reconstruct

from dust3r.splat import cli, evaluate
from dust3r.splat.evaluate import Score, load_lpips, mean_score
from dust3r.splat.ply import read_splats

TINY = [
    "--rasteriser", "reference", "--strategy", "none", "--device", "cpu", "--steps", "16",
    "--max_points", "120", "--silent",
]  # fmt: skip


@pytest.fixture
def other(export, tmp_path):
    """Another model of the same photographs: another world, and poses that are a little off."""
    folder = tmp_path / "colmap"
    shutil.copytree(export / "sparse", folder / "sparse")
    model = pycolmap.Reconstruction(folder / "sparse/0")
    turn = pycolmap.Rotation3d(np.array([0.0, 0.6, 0, 0.8]))
    model.transform(pycolmap.Sim3d(3.0, turn, np.array([1.0, -2, 0.5])))
    model.write_binary(folder / "sparse/0")
    return folder


def test_export_to_table(export, other, tmp_path, capsys):
    out = tmp_path / "out"
    given = [str(export), "--output_dir", str(out), "--keep", "0.5", "--compare", str(other)]
    given += ["--points", "maps", *TINY]
    assert cli.main(given) == 0
    report = json.loads((out / "report.json").read_text())
    here, certain, theirs = report["runs"]
    assert [run["name"] for run in report["runs"]] == ["room", "room-certain", "colmap"]
    for run in report["runs"]:
        assert run["trained_on"] == 7 and run["started_from"] == 120
        assert [score["name"] for score in run["scores"]] == ["room_0.png", "room_8.png"]
        assert run["mean"]["lpips"] is None
        splats = read_splats(out / run["name"] / "splats.ply")
        assert len(splats["means"]) == run["splats"] == 120
    # Half of the scene has no certain points.
    assert here["mean"]["psnr"] > certain["mean"]["psnr"] + 2
    # Another world with another unit is as good.
    assert abs(here["mean"]["psnr"] - theirs["mean"]["psnr"]) < 2
    assert "keep 0.5" in certain["points"] and "sparse/0, all" in theirs["points"]
    printed = capsys.readouterr().out
    assert printed.startswith((out / "report.md").read_text())
    assert "| room-certain" in printed and "LPIPS is left out" in printed
    for name in ("room0", "room8"):
        picture = np.asarray(Image.open(out / "views" / f"{name}.png"))
        assert picture.shape[1] > 3 * picture.shape[0] / 2
    # A second call finds all of it trained, and says the same.
    assert cli.main(given) == 0
    again = json.loads((out / "report.json").read_text())
    assert again["runs"] == report["runs"]


def test_trained_splats_lie_in_the_world_of_the_export(export, tmp_path):
    out = tmp_path / "out"
    assert cli.main([str(export), "--output_dir", str(out), "--no_lpips", *TINY]) == 0
    means = read_splats(out / "room/splats.ply")["means"].detach().numpy()
    points = np.concatenate([reconstruct().pts3d(n).reshape(-1, 3) for n in range(9)])
    nearest = np.linalg.norm(means[:, None] - points[None, ::7], axis=-1).min(1)
    assert np.median(nearest) < 0.1


def test_points_of_one_file_that_may_be_of_held_out_views_are_told(export, tmp_path):
    out = tmp_path / "out"
    steps = ["--steps", "1", "--points", "ply", "--no_lpips"]
    assert cli.main([str(export), "--output_dir", str(out), *TINY, *steps]) == 0
    assert "some may be of held-out ones" in (out / "report.md").read_text()


def test_mistakes_are_told_in_one_line(export, tmp_path, caplog):
    def error(*given: str) -> str:
        caplog.clear()
        assert cli.main([*given, "--output_dir", str(tmp_path / "out")]) == 2
        return caplog.records[-1].getMessage()

    assert "needs a CUDA device" in error(str(export), "--device", "cpu")
    assert "no export" in error(str(tmp_path / "nothing"), *TINY)
    shutil.rmtree(export / "maps")
    (export / "points.ply").unlink()
    assert "--keep" in error(str(export), "--max_radius", "0.1", *TINY)
    assert "no maps" in error(str(export), "--points", "maps", *TINY)
    assert not (tmp_path / "out").exists()


def test_without_a_network_lpips_is_left_out_with_a_reason(monkeypatch):
    import torchmetrics.image.lpip as lpip

    def offline(*_, **__):
        raise evaluate.URLError("Name or service not known")

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", offline)
    metric, why = load_lpips(torch.device("cpu"), 64)
    assert metric is None and "weights of its VGG-16" in why
    metric, why = load_lpips(torch.device("cpu"), 24)
    assert metric is None and "32 pixels" in why


def test_the_mean_of_scores():
    mean = mean_score([Score("a", 20.0, 0.5, 0.2), Score("b", 30.0, 0.7, 0.4)])
    assert (mean.psnr, mean.ssim, mean.lpips) == (25.0, 0.6, pytest.approx(0.3))
    assert np.isnan(mean_score([Score("a", 20.0, 0.5)]).lpips)
