"""``map_colmap.py``: photographs of a corner become a COLMAP model, or an error that helps."""

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import ExifTags, Image

import map_colmap
from dust3r.utils.geometry import inv

WIDTH, HEIGHT, FOCAL = 128, 96, 130.0
INTRINSICS = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
SLOPE = 0.9


def pose_of(number):
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0.02 * number, -0.1 * (number - 2), 0.03 * number]))[0]
    pose[:3, 3] = 0.35 * (number - 2), 0.1 * number, 0.02 * number * number
    return pose


def photograph(number):
    """Two walls that meet in a corner, coloured by the world's coordinates."""
    pose = pose_of(number)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ inv(INTRINSICS).T @ pose[:3, :3].T
    centre = pose[:3, 3]
    reach = [
        (3 - centre[2] - slope * centre[0]) / (rays[..., 2] + slope * rays[..., 0])
        for slope in (SLOPE, -SLOPE)
    ]
    world = centre + np.minimum(*reach)[..., None] * rays
    unit = (world - (-2.2, -1.3, 1.0)) / (4.4, 2.9, 2.2)
    return Image.fromarray((unit * 255).round().clip(0, 255).astype(np.uint8))


@pytest.fixture
def run(tmp_path, monkeypatch, colour_network):
    """Runs the script on five photographs, one of them stored turned by its EXIF tag."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(5):
        photograph(number).save(folder / f"room {number}.png")
    turned = photograph(2).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(folder / "room 2.png", exif=exif)
    model = colour_network()
    monkeypatch.setattr(map_colmap.weights, "load", lambda *_: (model, "colours"))
    monkeypatch.setattr(pycolmap.logging, "minloglevel", pycolmap.logging.minloglevel)

    def call(*more, images=(folder,)):
        given = ["--images", *images, "--output_dir", tmp_path / "out", "--weights", "any.pth"]
        given += ["--image_size", "128", "--device", "cpu", "--subsample", "8", "--silent", *more]
        return map_colmap.main([str(part) for part in given])

    call.folder = folder
    return call


def test_photographs_become_a_model(run, tmp_path, capsys):
    assert run("--shared_intrinsics", "--camera_model", "SIMPLE_PINHOLE") == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and "5 of 5 images" in told[0] and "track length" in told[0]
    model = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
    (camera,) = model.cameras.values()
    assert camera.model_name == "SIMPLE_PINHOLE" and abs(camera.focal_length / FOCAL - 1) < 0.05
    images = {image.name: image for image in model.images.values()}
    assert sorted(images) == [f"room_{n}.png" for n in range(5)]
    for name in images:
        assert Image.open(tmp_path / "out" / "images" / name).size == (WIDTH, HEIGHT)
    found = np.stack([images[f"room_{n}.png"].projection_center() for n in range(5)])
    true = np.stack([pose_of(n)[:3, 3] for n in range(5)])
    similarity = pycolmap.estimate_sim3d(found, true)
    assert max(np.linalg.norm(similarity * a - b) for a, b in zip(found, true, strict=True)) < 0.03
    colours = np.stack([point.color for point in model.points3D.values()])
    assert colours.std(0).max() > 20


def test_an_older_run_is_replaced_when_asked_for(run, tmp_path, caplog):
    known = ("--focal", FOCAL, "--shared_intrinsics", "--camera_model", "SIMPLE_PINHOLE")
    assert run(*known) == 0
    before = (tmp_path / "out" / "database.db").read_bytes()
    assert run(*known) == 2 and "exists already" in caplog.text
    assert run(*known, "--subsample", "64", "--overwrite") == 2
    assert "of 10 pairs with matches none has 15" in caplog.text
    assert (tmp_path / "out" / "database.db").read_bytes() == before, "nothing verified"
    assert run(*known, "--overwrite", "--mapper", "global") == 0
    model = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
    assert model.num_reg_images() == 5
    assert model.cameras[1].params.tolist() == [FOCAL, WIDTH / 2, HEIGHT / 2]


def test_what_the_script_cannot_do_is_said(run, tmp_path, caplog):
    large = tmp_path / "large.png"
    photograph(0).resize((256, 192)).save(large)
    one, two = (run.folder / f"room {n}.png" for n in (0, 1))
    for more, images, message in (
        ((), (one,), "two images or more, and there is 1"),
        (("--min_conf", "9"), (one, two), "none of the 2 images has a match"),
        (("--shared_intrinsics",), (one, large), "128x96, 256x192"),
        (("--scene_graph", "swim"), (one, two), "did you mean 'swin'"),
        (("--camera_model", "ROUND"), (one, two), "ROUND"),
        (("--focal", "0"), (one, two), "focal of 0"),
        ((), (one, tmp_path / "none.png"), "no image file"),
    ):
        caplog.clear()
        assert run(*more, images=images) == 2
        assert message in caplog.text
    assert not (tmp_path / "out" / "database.db").exists()
    assert not (tmp_path / "out" / "sparse").exists()
