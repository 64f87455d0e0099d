"""Parameters of Gaussians, and their files."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from torch.nn import functional as F

from dust3r.splat.gaussians import (
    Gaussians,
    Normalisation,
    harmonic_basis,
    initialise,
    make_parameters,
    rotations,
)
from dust3r.splat.ply import read_splats, read_vertices, write_splats
from dust3r.splat.rasterise import Camera
from dust3r.splat.reference import render, seen_colours

CAMERA = Camera(torch.eye(4), torch.tensor([[20.0, 0, 7.5], [0, 20, 7.5], [0, 0, 1]]), (16, 16))


@pytest.fixture
def params():
    torch.manual_seed(0)
    return make_parameters(
        means=torch.randn(20, 3) + torch.tensor([0.0, 0, 4]),
        scales=torch.randn(20, 3) - 2,
        quats=torch.randn(20, 4),
        opacities=torch.randn(20),
        sh0=torch.randn(20, 1, 3),
        shN=torch.randn(20, 15, 3),
    )


def test_splats_start_round_as_large_as_their_neighbours_are_far():
    xyz = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [50, 0, 0]])
    rgb = np.array([[255, 0, 51]] * 5, np.uint8)
    gaussians = Gaussians.of(initialise(xyz, rgb, 2))
    assert torch.allclose(gaussians.scales[0], torch.full((3,), (1 + 2 + 3) / 3))
    assert torch.allclose(gaussians.opacities, torch.tensor(0.1))
    assert gaussians.sh.shape == (5, 9, 3)
    colours = seen_colours(gaussians, CAMERA, 2)
    assert torch.allclose(colours, torch.tensor([1.0, 0, 0.2]), atol=1e-6)


def test_points_in_one_place_and_too_few():
    same = Gaussians.of(initialise(np.zeros((5, 3)), np.zeros((5, 3), np.uint8), 0))
    assert (same.scales > 0).all()
    with pytest.raises(ValueError, match="4 points"):
        initialise(np.zeros((3, 3)), np.zeros((3, 3), np.uint8), 0)


def test_harmonics_are_the_real_ones_of_the_sphere():
    directions = F.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    x, y, z = directions.double().T.numpy()
    polar, azimuth = np.arccos(z), np.arctan2(y, x)
    basis = harmonic_basis(directions.double(), 3).numpy()
    for degree in range(4):
        for order in range(-degree, degree + 1):
            # With the Condon-Shortley phase, which scipy's has as well.
            value = sph_harm_y(degree, abs(order), polar, azimuth)
            real = np.sqrt(2) * (value.imag if order < 0 else value.real) if order else value.real
            column = degree * (degree + 1) + order
            assert np.allclose(basis[:, column], real, atol=1e-6), (degree, order)


def test_rotations_turn_as_scipy_does():
    from scipy.spatial.transform import Rotation

    quats = F.normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    expected = Rotation.from_quat(quats[:, [1, 2, 3, 0]].numpy()).as_matrix()
    assert np.allclose(rotations(quats).numpy(), expected, atol=1e-6)


def test_a_file_of_splats_draws_the_same_image(params, tmp_path):
    path = write_splats(params, tmp_path / "splats.ply")
    again = read_splats(path)
    before = render(Gaussians.of(params), CAMERA, sh_degree=3).image
    after = render(Gaussians.of(again), CAMERA, sh_degree=3).image
    assert before.max() > 0.2
    assert torch.allclose(before, after, atol=1e-6)


def test_the_file_has_the_usual_columns(params, tmp_path):
    vertices = read_vertices(write_splats(params, tmp_path / "splats.ply"))
    assert vertices.dtype.names == (
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{n}" for n in range(45)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    )
    with torch.no_grad():
        # All of red come first.
        assert np.allclose(vertices["f_rest_14"], params["shN"][:, 14, 0])
        assert np.allclose(vertices["f_rest_15"], params["shN"][:, 0, 1])
        assert np.allclose(vertices["scale_1"], params["scales"][:, 1])
        assert np.allclose(vertices["opacity"], params["opacities"])
        assert np.allclose(vertices["rot_0"], F.normalize(params["quats"], dim=-1)[:, 0])


def test_degree_zero_has_no_further_harmonics(tmp_path):
    params = initialise(np.eye(4)[:, :3], np.zeros((4, 3), np.uint8), 0)
    again = read_splats(write_splats(params, tmp_path / "flat.ply"))
    assert again["shN"].shape == (4, 0, 3)


def test_vertices_of_text_and_what_is_no_ply(tmp_path):
    path = tmp_path / "points.ply"
    header = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty uchar red\n"
    path.write_text(header + "end_header\n1.5 200\n-2 7\n")
    assert read_vertices(path).tolist() == [(1.5, 200), (-2.0, 7)]
    path.write_text(header + "end_header\n1.5 200\n")
    with pytest.raises(ValueError, match="1 vertices and says it has 2"):
        read_vertices(path)
    path.write_bytes(header.replace("ascii", "binary_little_endian").encode() + b"end_header\n1234")
    with pytest.raises(ValueError, match="does not hold"):
        read_vertices(path)
    path.write_text("solid")
    with pytest.raises(ValueError, match="no PLY"):
        read_vertices(path)


def test_the_world_of_training_is_left_again(params):
    world = Normalisation.of(np.array([[1.0, 2, 3], [1, 4, 3]]), np.array([[1.0, 3, 50]]))
    assert np.allclose(world.centre, [1, 3, 3]) and np.isclose(world.unit, 4.7)
    pose = np.eye(4)
    pose[:3, 3] = 1, 4, 3
    moved = world.pose(pose)
    xyz = np.array([[2.0, -1, 7]])
    # What a camera sees of a point, it sees of the moved one from the moved place.
    assert np.allclose((xyz - pose[:3, 3]) / 4.7, world.points(xyz) - moved[:3, 3])
    back = world.undone(params)
    with torch.no_grad():
        assert np.allclose(world.points(back["means"].numpy()), params["means"], atol=1e-5)
        assert torch.allclose(back["scales"].exp(), 4.7 * params["scales"].exp())
    with pytest.raises(ValueError, match="one place"):
        Normalisation.of(np.zeros((2, 3)), np.zeros((2, 3)))
