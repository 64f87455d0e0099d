"""The comparison: what is counted, pointmaps in metres, files, and errors that name the mistake."""

import dataclasses
import json
import mmap
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import textured_plane
import torch
from deltas_scenes import small_model
from torch import nn

from deltas.checkpoint import save
from deltas.compare import cli as compare
from deltas.compare import measures as compare_measures
from deltas.compare.methods import DeltasDepth, Depth, DepthMethod, Frames, MedianDepth
from deltas.compare.pointmap_depth import PointmapDepth
from dust3r.uncertainty.evidential import NormalInverseGamma
from dust3r.uncertainty.metrics import aurc
from dust3r.utils.geometry import depthmap_to_pts3d, geotrf

MEASURE = {"prior_depth": 2.0, "depth_range": (0.5, 10.0)}


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames.of(textured_plane.sample())


class TruePointmaps(nn.Module):
    """Says the true pointmaps in a scale of each pair's own, as the network of some size.

    The images tell it which frame they are: the first value of the first pixel is made its number.
    """

    patch_size = 16
    landscape_only = False

    def __init__(self, scales: tuple[float, float], relative: float | None = None):
        super().__init__()
        self.scales, self.relative = scales, relative
        self.weight = nn.Parameter(torch.ones(1))

    def encode_image(self, image, true_shape):
        return image, torch.zeros(len(image), 1)

    def predict(self, features1, shape1, features2, shape2):
        size = tuple(shape1[0].tolist())
        number = int(features2[0].mean().item() > 0) + 1
        to_view = np.linalg.inv(textured_plane.poses()[number]) @ textured_plane.poses()[0]
        maps = []
        for motion in (np.eye(4), to_view):
            points = depthmap_to_pts3d(*self.at(size, textured_plane.depth(motion)))
            points = geotrf(np.linalg.inv(motion), points) / self.scales[number - 1]
            maps.append(torch.from_numpy(points[None]).float())
        conf = torch.full((1, *size), 3.0)
        said = {"conf": conf}
        if self.relative is not None:
            said |= {
                "depth_mu": torch.full((1, 1, *size), 5.0),
                "depth_var": torch.full((1, 1, *size), (5.0 * self.relative) ** 2),
            }
        return {"pts3d": maps[0], **said}, {"pts3d_in_other_view": maps[1], **said}

    @staticmethod
    def at(size, depth):
        """Depth of the plane, and intrinsics, at another size: inverse depth is linear in pixels"""
        height, width = depth.shape
        scale = np.array([size[1] / width, size[0] / height])
        camera = textured_plane.CAMERA.copy()
        camera[:2, 2] = (camera[:2, 2] + 0.5) * scale - 0.5
        camera[[0, 1], [0, 1]] *= scale
        inverse = 1 / depth
        y, x = np.mgrid[: size[0], : size[1]]
        x, y = (x + 0.5) / scale[0] - 0.5, (y + 0.5) / scale[1] - 0.5
        across, down = inverse[0, 1] - inverse[0, 0], inverse[1, 0] - inverse[0, 0]
        return 1 / (inverse[0, 0] + x * across + y * down), camera


def told_apart(frames: Frames) -> Frames:
    """With images by which ``TruePointmaps`` knows the second neighbour from the first."""
    images = torch.stack([torch.full_like(frames.images[0], v) for v in (0.0, -0.5, 0.5)])
    return dataclasses.replace(frames, images=images)


@pytest.mark.parametrize("long_side", [None, 64, 176])
def test_pointmaps_get_metres_from_the_cameras_distance(frames, long_side):
    model = TruePointmaps((0.2, 7.0))
    said = PointmapDepth(model, long_side).predict(told_apart(frames))
    inside = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(said.depth[inside], textured_plane.depth()[inside], rtol=3e-3)
    np.testing.assert_allclose(said.uncertainty, 1 / 3, rtol=1e-5)
    assert said.distribution is None


def test_the_scale_follows_the_poses(frames):
    poses = frames.poses.copy()
    poses[:, :3, 3] *= 1.3
    said = PointmapDepth(TruePointmaps((0.2, 7.0))).predict(
        dataclasses.replace(told_apart(frames), poses=poses)
    )
    np.testing.assert_allclose(said.depth, 1.3 * textured_plane.depth(), rtol=2e-3)


def test_variances_of_pointmaps_are_taken_to_metres(frames):
    said = PointmapDepth(TruePointmaps((0.2, 7.0), relative=0.1)).predict(told_apart(frames))
    np.testing.assert_allclose(said.uncertainty, 0.1 * said.depth, rtol=1e-3)
    np.testing.assert_allclose(said.distribution.stddev, said.uncertainty)
    np.testing.assert_allclose(said.distribution.mean, said.depth)


def test_pointmaps_without_a_baseline_have_no_scale(frames):
    poses = np.tile(frames.poses[:1], (3, 1, 1))
    still = dataclasses.replace(told_apart(frames), poses=poses)
    assert not PointmapDepth(TruePointmaps((1.0, 1.0))).predict(still).stated.any()


def test_deltas_is_the_same_every_time_and_states_its_evidence(frames):
    method = DeltasDepth(small_model())
    said, again = method.predict(frames), method.predict(frames)
    assert said.depth.shape == frames.size and np.array_equal(said.depth, again.depth)
    assert said.uncertainty is None

    gamma = torch.from_numpy(said.depth)[None, None]
    evidence = NormalInverseGamma(gamma, *(torch.full_like(gamma, v) for v in (1.0, 2.0, 0.5)))

    class Told(nn.Module):
        def forward(self, *args, **options):
            return SimpleNamespace(depth=(gamma,), evidence=evidence)

    told = DeltasDepth(Told()).predict(frames)
    np.testing.assert_allclose(told.uncertainty, 1.0, rtol=1e-5)
    truth = torch.full(frames.size, 1.5)
    torch.testing.assert_close(
        -told.distribution.log_prob(truth), evidence.nll(truth[None, None])[0, 0]
    )


class Half(DepthMethod):
    """Right on the left half, silent on the right; the larger the depth, the more uncertain."""

    name = "half"

    def predict(self, frames):
        depth = textured_plane.depth().astype(np.float32)
        depth[:, 64:] = np.nan
        return Depth(depth, np.where(np.isfinite(depth), depth, np.nan))


def test_pixels_without_a_depth_get_the_prior_one_and_are_counted():
    dataset = [textured_plane.sample()] * 3
    found = compare_measures.measure(Half, dataset, [0, 2], **MEASURE)
    truth = textured_plane.depth()
    wrong = np.abs(2.0 - truth) / truth
    wrong[:, :64] = 0
    assert found.errors["abs_rel"] == pytest.approx(wrong.mean(), rel=1e-5)
    assert found.pixels_without == pytest.approx(0.5) and found.frames_without == 0
    assert found.frames == 2 and len(found.shown) == 2
    assert (found.shown[0][:, 64:] == 2.0).all()
    # What is silent ranks as the most uncertain.
    error = torch.from_numpy(np.where(wrong > 0, np.abs(2.0 - truth), 0.0))
    doubt = torch.from_numpy(np.where(np.arange(128) < 64, truth, np.inf))
    assert found.uncertainty["aurc"] == pytest.approx(float(aurc(error, doubt)), abs=1e-5)
    assert np.isnan(found.uncertainty["nll"])


def test_true_depths_out_of_range_do_not_count():
    dataset = [textured_plane.sample()]
    found = compare_measures.measure(
        lambda: MedianDepth(1.5), dataset, [0], prior_depth=1.0, depth_range=(1.5, 1.6)
    )
    assert 0 < found.errors["abs_diff"] < 0.1
    assert np.isnan(found.uncertainty["aurc"])
    with pytest.raises(ValueError, match="no frame has a true depth from 50"):
        compare_measures.measure(
            lambda: MedianDepth(1.5), dataset, [0], prior_depth=1.0, depth_range=(50, 60)
        )


def test_memory_is_that_of_the_method():
    class Greedy(MedianDepth):
        def predict(self, frames):
            # Pages that are new, where numpy may be given some that others left.
            with mmap.mmap(-1, 60_000_000) as pages:
                pages.write(bytes(60_000_000))
            return super().predict(frames)

    dataset = [textured_plane.sample()]
    spare = compare_measures.measure(lambda: MedianDepth(1.5), dataset, [0], **MEASURE).memory
    greedy = compare_measures.measure(lambda: Greedy(1.5), dataset, [0], **MEASURE).memory
    assert spare < 30e6 < 50e6 < greedy + 30e6


@pytest.fixture
def tree(write_tree):
    return write_tree({"desk": 6})


def arguments(tree, folder, *more: str) -> list[str]:
    return [
        "--data", str(tree), "--split", "all", "--seq_gap", "1", "--num", "2", "--silent",
        "--width", "80", "--height", "64", "--output_dir", str(folder / "out"), *more,
    ]  # fmt: skip


def test_command_line_writes_tables_and_pictures(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "in_own_process", compare.evaluate)
    weights = tmp_path / "deltas.pth.tar"
    save(weights, small_model(), "Deltas(num_kps=24, width=8, depths=(1, 1, 1, 1))")
    names = "median,sift,planesweep,deltas"
    train = ["--train", str(tree), "--train_split", "all"]
    asked = [*train, "--methods", names, "--deltas_weights", str(weights)]
    assert compare.main(arguments(tree, tmp_path, *asked)) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(found["results"]) == names.split(",")
    prior = found["settings"]["prior_depth"]
    assert 0.5 < prior < 5
    for numbers in found["results"].values():
        assert numbers["frames"] == 2 and numbers["errors"]["abs_rel"] > 0
        assert numbers["seconds"] > 0 and numbers["cpu_seconds"] >= 0
    assert found["results"]["median"]["uncertainty"]["aurc"] is None
    table = (tmp_path / "out" / "compare.md").read_text()
    assert table in told and "abs_rel" in table and "AURC" in table and "memory" in table
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_runs_in_a_process_of_its_own(tree, tmp_path):
    settings = compare.Settings(
        str(tree), ("median",), 2.0, split="all", seq_gap=1, num=2, width=80, height=64
    )
    here = compare.evaluate(settings, "median")
    there = compare.in_own_process(settings, "median")
    assert there.errors == here.errors and there.memory < 100e6


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--methods", "median,shift"], "shift is unknown"),
        (["--methods", "sift,sift"], "each once of median,sift"),
        (["--methods", "deltas"], "needs --deltas_weights"),
        (["--methods", "pointmap"], "needs --pointmap_weights"),
        (["--seq_gap", "40"], "reaches over 81 frames"),
        (["--mindepth", "5", "--maxdepth", "4"], "below --maxdepth"),
        (["--methods", "pointmap", "--pointmap_weights", "nowhere.pth"], "nowhere.pth"),
        (["--methods", "pointmap", "--pointmap_weights", "DELTAS"], "is of Deltas, expected a"),
    ],
)
def test_mistakes_are_named(tree, tmp_path, monkeypatch, caplog, asked, message):
    monkeypatch.setattr(compare, "in_own_process", compare.evaluate)
    path = tmp_path / "deltas.pth"
    if "DELTAS" in asked:
        model = small_model()
        spec = "Deltas(num_kps=24, width=8, depths=(1, 1, 1, 1))"
        torch.save({"model": model.state_dict(), "args": Namespace(model=spec)}, path)
    asked = [str(path) if value == "DELTAS" else value for value in asked]
    assert compare.main(arguments(tree, tmp_path, "--prior_depth", "2", *asked)) == 2
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_prior_depth_is_needed(tree, tmp_path, caplog):
    assert compare.main(arguments(tree, tmp_path)) == 2
    assert "give --train" in caplog.text
