import numpy as np
import pytest
import trimesh

from dust3r.export import write_ply


def vertices(path):
    content = path.read_bytes()
    header, body = content.split(b"end_header\n", 1)
    types = {"float": "<f4", "uchar": "u1"}
    lines = [line.split() for line in header.decode("ascii").splitlines()]
    properties = [(line[2], types[line[1]]) for line in lines if line[0] == "property"]
    return np.frombuffer(body, properties)


def test_cloud_reads_back(reconstruction, tmp_path):
    path = write_ply(reconstruction, tmp_path / "cloud.ply")
    cloud = trimesh.load(path)
    points = np.concatenate([reconstruction.pts3d(n).reshape(-1, 3) for n in range(4)])
    colours = np.concatenate([image.reshape(-1, 3) for image in reconstruction.images])
    assert np.array_equal(cloud.vertices, points)
    assert np.array_equal(cloud.bounds, [points.min(0), points.max(0)])
    assert np.array_equal(cloud.colors[:, :3], (colours * 255).round())


def test_confidence_and_sigma_are_the_kept_pixels_own(reconstruction, tmp_path):
    kept = [np.zeros_like(mask) for mask in reconstruction.valid]
    kept[2][5, 7] = kept[3][1, 2] = True
    table = vertices(write_ply(reconstruction, tmp_path / "cloud.ply", kept=kept))
    assert len(table) == 2
    for name, maps in (
        ("confidence", reconstruction.confidences),
        ("sigma", reconstruction.deviations),
    ):
        assert table[name].tolist() == [maps[2][5, 7], maps[3][1, 2]]


def test_no_sigma_where_the_model_states_none(build, tmp_path):
    names = vertices(write_ply(build(deviations=False), tmp_path / "cloud.ply")).dtype.names
    assert "sigma" not in names and "confidence" in names


def test_normals_are_of_the_plane_towards_the_cameras(reconstruction, tmp_path):
    table = vertices(write_ply(reconstruction, tmp_path / "cloud.ply"))
    normals = np.stack([table["nx"], table["ny"], table["nz"]], -1)
    plane = np.array([0.15, -0.1, -1.0]) / np.linalg.norm([0.15, -0.1, -1.0])
    assert (normals @ plane).min() > 0.999


def test_depth_colours_run_over_the_scene(reconstruction, tmp_path):
    table = vertices(write_ply(reconstruction, tmp_path / "cloud.ply", colour="depth"))
    depth = np.concatenate([one.ravel() for one in reconstruction.depthmaps])
    near, far = depth < np.quantile(depth, 0.01), depth > np.quantile(depth, 0.99)
    # Turbo runs from dark blue to dark red.
    assert (table["blue"][near] > table["red"][near]).all()
    assert (table["red"][far] > table["blue"][far]).all()


def test_uncertain_points_are_bright_and_unusable_ones_harmless(reconstruction, tmp_path):
    doubt = np.concatenate([one.ravel() for one in reconstruction.doubts()])[2:]
    reconstruction.depthmaps[0][0, 0] = np.nan
    reconstruction.depthmaps[0][0, 1] = 0
    table = vertices(write_ply(reconstruction, tmp_path / "cloud.ply", colour="uncertainty"))
    brightness = table["red"].astype(int) + table["green"] + table["blue"]
    order = np.argsort(doubt)
    assert len(table) == len(doubt)
    assert (np.diff(brightness[order][::500]) >= -3).all() and np.ptp(brightness) > 400


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda valid: [mask & False for mask in valid], "lower the least confidence"),
        (lambda valid: valid[:2], "one .* mask per image"),
        (lambda valid: [mask.T for mask in valid], "one .* mask per image"),
    ],
)
def test_masks_that_give_nothing_are_refused(reconstruction, tmp_path, kept, message):
    with pytest.raises(ValueError, match=message):
        write_ply(reconstruction, tmp_path / "cloud.ply", kept=kept(reconstruction.valid))
    assert not (tmp_path / "cloud.ply").exists()


def test_unknown_colour(reconstruction, tmp_path):
    with pytest.raises(ValueError, match="rgb, depth, uncertainty"):
        write_ply(reconstruction, tmp_path / "cloud.ply", colour="colour")
