"""visloc.py on a rendered corner of a room: poses of SIFT, files, a lost query, clear errors."""

import argparse
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import visloc
from dust3r.utils.spec import MODELS, build

WIDTH, HEIGHT, FOCAL = 320, 240, 300.0
INTRINSICS = np.array([[FOCAL, 0, 158.0], [0, FOCAL, 122.0], [0, 0, 1]])
TINY = (
    "AsymmetricMASt3R(img_size=(64, 64), enc_embed_dim=32, enc_depth=2, enc_num_heads=2, "
    "dec_embed_dim=32, dec_depth=4, dec_num_heads=2, dpt_dim=8, "
)
DESCRIPTORS = "head_type='catmlp+dpt', output_mode='pts3d+desc8')"


def texture(seed):
    """(1024, 1024, 3) uint8, with detail at several scales; 256 pixels a metre."""
    rng = np.random.default_rng(seed)
    image = np.zeros((1024, 1024, 3), np.float32)
    for cells in (32, 96, 256):
        noise = rng.random((cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    return np.clip(image / 3 * 1.6 * 255 - 80, 0, 255).astype(np.uint8)


TEXTURES = [texture(seed) for seed in range(3)]


def render(pose):
    """RGB and depth of the planes x = 0, y = 0 and z = 0, seen from where all are positive."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([u, v, np.ones_like(u)], -1)
    rays = pixels @ np.linalg.inv(INTRINSICS).T @ pose[:3, :3].T
    depths = np.where(rays < 0, -pose[:3, 3] / np.minimum(rays, -1e-9), np.inf)
    depth, plane = depths.min(-1), depths.argmin(-1)
    world = pose[:3, 3] + rays * depth[..., None]
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for axis, image in enumerate(TEXTURES):
        across, down = (256 * world[..., other] for other in range(3) if other != axis)
        seen = cv2.remap(
            image,
            across.astype(np.float32),
            down.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )
        rgb[plane == axis] = seen[plane == axis]
    return rgb, depth


def looking(centre, tilt=0.0):
    """A camera that looks into the corner."""
    forward = np.array([0.3, 0.3, 0.3]) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec([0, 0, tilt]).as_matrix()
    pose[:3, 3] = centre
    return pose


MAP = [looking(np.array(c)) for c in ((2.0, 1.6, 1.5), (1.6, 2.0, 1.6), (1.8, 1.8, 1.3))]
QUERIES = [looking(np.array([1.9, 1.75, 1.5]), 0.1), looking(np.array([1.7, 1.8, 1.6]), -0.1)]
LOST = "queries/frame-000002.color.png"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Folders of frames ``map`` and ``queries``, the last query of which is grey."""
    root = tmp_path_factory.mktemp("recording")
    for folder, poses in (("map", MAP), ("queries", [*QUERIES, QUERIES[0]])):
        (root / folder).mkdir()
        for number, pose in enumerate(poses):
            rgb, depth = render(pose)
            if number == 2 and folder == "queries":
                rgb[:] = 128
            stem = root / folder / f"frame-{number:06d}"
            Image.fromarray(rgb).save(f"{stem}.color.png")
            cv2.imwrite(f"{stem}.depth.png", (depth * 1000).round().astype(np.uint16))
            np.savetxt(f"{stem}.pose.txt", pose)
    np.savetxt(root / "camera-intrinsics.txt", INTRINSICS)
    return root


def arguments(root, output, *more):
    given = ["--dataset", "seven_scenes", "--root", str(root), "--output_dir", str(output)]
    return [*given, "--map", "map", "--queries", "queries", "--device", "cpu", "--silent", *more]


@pytest.fixture(scope="module")
def done(recording, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    assert visloc.main(arguments(recording, output, "--sift")) == 0
    return output


def test_sift_localises_within_a_centimetre(done):
    found = json.loads((done / "localisation.json").read_text())
    for entry in found["queries"][:2]:
        assert entry["error_position"] < 0.01 and entry["error_rotation_deg"] < 0.2
        assert entry["inliers"] > 50 and entry["reason"] == ""
        assert 0 < entry["std_position"] < 0.01
        assert np.linalg.eigvalsh(entry["covariance"]).min() > 0
    assert found["summary"]["all"]["recall"]["0.1m_1deg"] == pytest.approx(2 / 3)


def test_a_lost_query_is_told_and_the_run_goes_on(done):
    lost = json.loads((done / "localisation.json").read_text())["queries"][2]
    assert lost["name"] == LOST and lost["pose"] is None and lost["error_position"] is None
    page = (done / "report.md").read_text()
    assert "| all | 3 | 2 |" in page and f"- {LOST}: 0 matches" in page


def test_poses_are_written_for_the_evaluation_server(done):
    lines = [line.split() for line in (done / "poses.txt").read_text().splitlines()]
    assert len(lines) == 2
    for line, pose in zip(lines, QUERIES, strict=True):
        numbers = np.array(line[1:], float)
        turn = Rotation.from_quat(numbers[:4], scalar_first=True).as_matrix()
        np.testing.assert_allclose(-turn.T @ numbers[4:], pose[:3, 3], atol=0.01)


def test_the_picture_is_there_and_no_temporary_file(done):
    assert Image.open(done / "localisation.png").size[0] > 1000
    names = {"poses.txt", "localisation.json", "report.md", "localisation.png"}
    assert {path.name for path in done.iterdir()} == names


def save_model(path, head):
    torch.manual_seed(0)
    specification = TINY + head
    state = {
        "model": build(specification, MODELS).state_dict(),
        "args": argparse.Namespace(model=specification),
        "epoch": 0,
        "best_so_far": 0.0,
    }
    torch.save(state, path)
    return path


def test_several_scenes_have_a_folder_each_and_one_table(recording, tmp_path):
    root = tmp_path / "scenes"
    for name in ("one", "two"):
        (root / name).mkdir(parents=True)
        for split, number, folder in (("Train", 1, "map"), ("Test", 2, "queries")):
            (root / name / f"{split}Split.txt").write_text(f"sequence{number}\n")
            (root / name / f"seq-{number:02d}").symlink_to(recording / folder)
    camera = f"intrinsics={FOCAL},{FOCAL},158,122"
    given = ["--dataset", "seven_scenes", "--root", str(root), "--output_dir", str(tmp_path / "o")]
    more = ["--sift", "--option", camera, "--max_queries", "1", "--map_step", "2", "--silent"]
    assert visloc.main([*given, *more]) == 0
    for name in ("one", "two"):
        assert len((tmp_path / "o" / name / "poses.txt").read_text().splitlines()) == 1
    page = (tmp_path / "o" / "report.md").read_text()
    assert all(f"| {name} | {count} |" in page for name, count in (("one", 1), ("all", 2)))


@pytest.mark.parametrize("more", [(), ("--coarse_to_fine", "--max_image_size", "96")])
def test_a_network_runs_from_end_to_end(recording, tmp_path, more):
    """One of random weights, whose matches mean nothing."""
    weights = save_model(tmp_path / "tiny.pth", DESCRIPTORS)
    output = tmp_path / "out"
    given = ("--weights", str(weights), "--image_size", "64", "--topk", "2", "--max_queries", "1")
    assert visloc.main(arguments(recording, output, *given, *more)) == 0
    found = json.loads((output / "localisation.json").read_text())
    (entry,) = found["queries"]
    assert entry["matches"] > 0 and len(entry["images"]) == 2
    assert found["settings"]["retrieval"] == "network, 2 images"


def test_unknown_intrinsics_need_a_focal(recording, tmp_path, monkeypatch, caplog):
    def read(**options):
        (scene,) = read_scenes(**options)
        return [replace(scene, queries=tuple(replace(q, camera=None) for q in scene.queries))]

    read_scenes = visloc.read_scenes
    monkeypatch.setattr(visloc, "read_scenes", read)
    given = arguments(recording, tmp_path / "out", "--sift")
    assert visloc.main(given) == 2
    assert "queries/frame-000000.color.png" in caplog.text and "give --focal" in caplog.text
    assert visloc.main([*given, "--focal", str(FOCAL)]) == 0
    entry = json.loads((tmp_path / "out" / "localisation.json").read_text())["queries"][0]
    # The centre of the image is a pixel or two beside the principal point.
    assert entry["error_position"] < 0.05


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "nothing to match by"),
        (("--sift", "--retrieval", "network"), "needs a model"),
        (("--sift", "--retrieval", "pairs"), "gives no pairs"),
        (("--sift", "--coarse_to_fine"), "is of the network"),
        (("--sift", "--max_image_size", "64"), "with --coarse_to_fine only"),
        (("--sift", "--pnp_threshold", "0"), "--pnp_threshold 0.0 must be above 0"),
        (("--sift", "--option", "hold_out"), "expected NAME=VALUE"),
        (("--sift", "--option", "hold_out=3"), "has no option hold_out"),
        (("--weights", "gone.pth"), "no weights file gone.pth"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(recording, tmp_path, caplog, more, message):
    output = tmp_path / "out"
    assert visloc.main(arguments(recording, output, *more)) == 2
    assert message in caplog.text and not output.exists()


def test_a_model_without_descriptors_is_refused_before_it_works(recording, tmp_path, caplog):
    weights = save_model(tmp_path / "plain.pth", "head_type='dpt', output_mode='pts3d')")
    assert visloc.main(arguments(recording, tmp_path / "out", "--weights", str(weights))) == 2
    assert "plain has no descriptors to match by" in caplog.text
