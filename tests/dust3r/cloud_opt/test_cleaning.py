"""Points that hide what was seen with more confidence, and the sky."""

import numpy as np
import pytest
import torch

from dust3r.cloud_opt.cleaning import sky_of


def floating(task, image, rows, columns, conf):
    """Move points of one image halfway to its camera, in all pairs alike."""
    for prediction, pair, key in task.maps(image):
        first = task.edges[pair][0]
        to_first = torch.linalg.inv(task.poses[first]) @ task.poses[image]
        centre = (task.scales[pair] * to_first[:3, 3]).float()
        points = prediction[key][pair]
        points[rows, columns] = (points[rows, columns] + centre) / 2
        prediction["conf"][pair][rows, columns] = conf
    return task


def test_a_point_in_front_of_a_surface_that_others_are_sure_of_goes(problem):
    rows, columns = slice(18, 22), slice(20, 28)
    scene = floating(problem(3), 1, rows, columns, 3.5).aligned()
    before = [conf.clone() for conf in scene.get_conf()]
    cleaned = scene.clean_pointcloud()
    gone = scene.get_valid()[1] & ~cleaned.get_valid()[1]
    assert gone[rows, columns].all()
    assert gone.sum() < 1.5 * gone[rows, columns].numel()
    assert all(torch.equal(a, b) for a, b in zip(scene.get_conf(), before, strict=True))
    assert all(valid.all() for valid in scene.get_valid())
    kept = scene.clean_pointcloud(max_bad_conf=2.0)
    assert (kept.get_conf()[1][rows, columns] == 2).all()
    assert kept.get_valid()[1].all() and not kept.get_masks()[1][rows, columns].any()


def test_a_point_that_is_surer_than_the_surface_stays(problem):
    rows, columns = slice(18, 22), slice(20, 28)
    scene = floating(problem(3), 1, rows, columns, 40.0).aligned()
    assert scene.clean_pointcloud().get_valid()[1][rows, columns].all()


def test_the_fraction_of_depth_that_is_tolerated(problem):
    rows, columns = slice(18, 22), slice(20, 28)
    scene = floating(problem(3), 1, rows, columns, 3.5).aligned()
    assert scene.clean_pointcloud(tol=0.9).get_valid()[1][rows, columns].all()


def test_a_scene_that_agrees_keeps_its_points(problem):
    scene = problem(4).aligned()
    kept = torch.stack(scene.clean_pointcloud(tol=0.05).get_valid())
    # At the rim of the ball a pixel of one image falls beside that of another.
    assert kept.float().mean() > 0.97


def landscape(height=60, width=80):
    image = np.zeros((height, width, 3), np.float32)
    image[:25] = 0.45, 0.65, 0.95
    ground = np.random.default_rng(0).uniform(0.1, 0.5, (height - 25, width, 1))
    image[25:] = ground * np.array([0.6, 1.0, 0.4])
    return image


def test_a_blue_top_is_sky():
    sky = sky_of(landscape())
    assert sky[:24].all() and not sky[26:].any()


def test_an_overcast_top_is_sky():
    image = landscape()
    image[:25] = 0.92
    assert sky_of(image)[:24].all()


@pytest.mark.parametrize("what", ["blue below", "rough blue", "dark", "speck"])
def test_what_is_no_sky(what):
    image = landscape()
    image[:25] = image[25:50]
    if what == "blue below":
        image[40:] = 0.45, 0.65, 0.95
    elif what == "rough blue":
        noise = np.random.default_rng(1).uniform(0.4, 1, (25, 80, 1))
        image[:25] = noise * np.array([0.45, 0.65, 0.95])
    elif what == "dark":
        image[:25] = 0.02, 0.03, 0.05
    else:
        image[:4, :4] = 0.45, 0.65, 0.95
    assert not sky_of(image).any()


def test_the_sky_is_masked_in_a_copy(problem):
    task = problem(2)
    picture = torch.from_numpy(landscape(36, 48)).permute(2, 0, 1) * 2 - 1
    for view in ("view1", "view2"):
        task.output[view]["img"][:] = picture
    scene = task.aligned()
    masked = scene.mask_sky()
    for image in range(2):
        assert not masked.get_valid()[image][:24].any()
        assert masked.get_valid()[image][26:].all()
        assert scene.get_valid()[image].all()
