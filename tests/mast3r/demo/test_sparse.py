"""``demo.py --alignment sparse`` without a browser."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh

import demo
from dust3r.demo import weights
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.training import checkpoint
from dust3r.utils.spec import MODELS, build
from mast3r.cloud_opt import sparse_ga
from mast3r.cloud_opt.cache import CacheError
from mast3r.demo.sparse import PUBLISHED, SparseAlignment

SPEC = (
    "AsymmetricMASt3R(img_size=(224, 224), head_type='catmlp+dpt', output_mode='pts3d+desc8', "
    "two_confs=True, enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, "
    "dec_depth=4, dec_num_heads=2, dpt_dim=8)"
)
SIDE = 224


@pytest.fixture(scope="module")
def problems() -> Iterator:
    """The module ``sparse_problems`` of the scripts."""
    scripts = str(Path(__file__).parents[3] / "scripts")
    sys.path.insert(0, scripts)
    import sparse_problems

    yield sparse_problems
    sys.path.remove(scripts)


@pytest.fixture(scope="module")
def truth(problems):
    """Four views of a room."""
    from alignment_problems import room

    return room(0, 4, (SIDE, SIDE))


@pytest.fixture
def given(tmp_path) -> list[str]:
    """The command line for four images and an untrained network, but for settings."""
    torch.manual_seed(0)
    saved = {"model": build(SPEC, MODELS).state_dict(), "args": argparse.Namespace(model=SPEC)}
    checkpoint.save(tmp_path / "small.pth", saved)
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"photo{number}.png"), image)
    paths = [str(tmp_path / name) for name in ("images", "out", "small.pth")]
    names = ("--images", "--output_dir", "--weights")
    pairs = [part for pair in zip(names, paths, strict=True) for part in pair]
    return [*pairs, "--alignment", "sparse", "--device", "cpu", "--silent"]


@pytest.fixture
def oracle(monkeypatch, problems, truth) -> list:
    """Let the network know the room, but nothing of image 3; the cache folders it was given."""
    folders = []

    class Known(problems.KnownResults):
        def get(self, first: int, second: int):
            found = super().get(first, second)
            if 3 not in (first, second):
                return found
            none = found.pixels[:0], found.match_confidence[:0]
            return replace(found, pixels=none[0], match_confidence=none[1])

    def forward_results(views, edges, model, cache_path, **options):
        folders.append(Path(cache_path))
        results = Known(truth, 0.01, 0.5, edges=edges)
        results.views = views
        return results

    monkeypatch.setattr(sparse_ga, "forward_results", forward_results)
    return folders


def test_writes_what_matches_hold_together(given, oracle, truth, tmp_path, caplog):
    more = ["--cache_dir", str(tmp_path / "cache"), "--shared_intrinsics"]
    assert demo.main([*given, *more]) == 0
    assert oracle == [tmp_path / "cache"]
    assert "photo3.png" in caplog.text and "left out" in caplog.text
    out = tmp_path / "out"
    maps = [np.load(path) for path in sorted((out / "maps").glob("*.npz"))]
    assert len(maps) == 3
    for found, true in zip(maps, truth.depths, strict=False):
        valid = found["valid"] & (true > 0)
        ratio = found["depth"][valid] / true[valid]
        assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.02
        assert (found["sigma"][valid] > 0).all()
    assert len(trimesh.load(out / "points.ply").vertices) > 10_000
    assert (out / "overview.png").is_file()


def test_settings_reach_the_alignment(given, oracle, tmp_path):
    assert demo.main(given) == 0
    assert demo.main([*given, "--output_dir", str(tmp_path / "out2"), "--depth", "tsdf"]) == 0
    assert oracle[0] != oracle[1] and not any(folder.exists() for folder in oracle)
    first, second = (
        np.load(next((tmp_path / name / "maps").glob("*.npz")))["depth"] for name in ("out", "out2")
    )
    assert np.abs(first - second).max() > 0


def test_images_that_do_not_match_give_a_message(given, tmp_path, caplog):
    assert demo.main([*given, "--cache_dir", str(tmp_path / "cache")]) == 2
    assert "no two images share enough mutual matches" in caplog.text
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 12


def test_a_model_without_descriptors_is_refused(given, tmp_path, caplog):
    small = weights.FOLDER / "rooms_small.safetensors"
    assert demo.main([str(small) if part.endswith(".pth") else part for part in given]) == 2
    assert "no descriptors to match by" in caplog.text
    model = AsymmetricCroCo3DStereo(
        enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=4,
        dec_num_heads=2, dpt_dim=8, img_size=(224, 224), head_type="linear",
    )  # fmt: skip
    assert PUBLISHED in SparseAlignment.obstacle(model)
    assert SparseAlignment.obstacle(build(SPEC, MODELS)) is None


def test_weights_with_descriptors_are_preferred(tmp_path, monkeypatch):
    for name in (*SparseAlignment.shipped, *weights.SHIPPED):
        (tmp_path / name).touch()
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    asked = []
    monkeypatch.setattr(
        weights, "load_model", lambda path: asked.append(path) or build(SPEC, MODELS)
    )
    weights.load(None, None, SparseAlignment.shipped)
    weights.load(None, None)
    assert [path.name for path in asked] == [SparseAlignment.shipped[0], weights.SHIPPED[0]]


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(monkeypatch):
    def full(*args, **kwargs):
        raise CacheError("there is no space left")

    monkeypatch.setattr("mast3r.demo.sparse.reconstruct_sparse", full)
    with pytest.raises(ValueError, match="no space left"):
        SparseAlignment().reconstruct(None, [])
