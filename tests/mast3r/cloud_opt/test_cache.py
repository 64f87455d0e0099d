"""Forward results on disk: found again when they may be, never when they may not."""

import errno
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dust3r.reconstruction import Source
from mast3r.cloud_opt import cache as cache_module
from mast3r.cloud_opt.cache import CacheError, ForwardCache, ForwardResult, image_key
from mast3r.cloud_opt.forward import forward_results

SHAPE = 32, 48


class Network(nn.Module):
    """Descriptors are colours, points a plane; counts the passes it makes."""

    landscape_only = False
    patch_size = 16
    desc_dim = 4

    def __init__(self, weight=1.0, depth=2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), weight))
        self.plane_depth = depth
        self.passes = 0

    def encode_image(self, image, true_shape):
        return image, torch.zeros(len(image), 1)

    def predict(self, features1, shape1, features2, shape2):
        self.passes += len(features1[0])
        found = []
        for image, _ in (features1, features2):
            image = image.permute(0, 2, 3, 1)
            points = F.pad(image[..., :2], (0, 1), value=self.plane_depth)
            key = "pts3d" if not found else "pts3d_in_other_view"
            ones = torch.ones(image.shape[:3])
            descriptors = F.normalize(F.pad(image, (0, 1), value=1.0), dim=-1)
            found.append({key: points, "conf": 2 * ones, "desc": descriptors, "desc_conf": ones})
        return tuple(found)


def views(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "img": torch.rand(1, 3, *SHAPE, generator=generator) * 2 - 1,
            "true_shape": np.array([SHAPE], np.int32),
            "idx": n,
            "instance": str(n),
            "source": Source(f"{n}.png", None, SHAPE[::-1], np.eye(3)),
        }
        for n in range(count)
    ]


def run(folder, network, images=None, edges=None, **settings):
    images = views() if images is None else images
    edges = list(combinations(range(len(images)), 2)) if edges is None else edges
    return forward_results(images, edges, network, folder, verbose=False, **settings)


def test_both_orders_of_all_pairs_are_there(tmp_path):
    network = Network()
    results = run(tmp_path, network)
    assert network.passes == results.computed == 6
    one = results.get(2, 0)
    assert one.points.shape == (*SHAPE, 3)
    assert torch.allclose(one.points[..., 2], torch.full(SHAPE, 2.0), rtol=1e-3)
    assert one.pixels.shape[1] == 4


def test_a_second_run_computes_nothing_whatever_its_graph_and_names(tmp_path):
    run(tmp_path, Network())
    again = Network()
    images = [view | {"idx": 7 - n, "instance": "x"} for n, view in enumerate(views())]
    results = run(tmp_path, again, images, edges=[(0, 2)])
    assert again.passes == results.computed == 0
    assert len(results.get(0, 2).points) == SHAPE[0]


def test_a_run_that_was_stopped_goes_on(tmp_path):
    run(tmp_path, Network(), edges=[(0, 1)])
    again = Network()
    assert run(tmp_path, again).computed == 4


@pytest.mark.parametrize(
    ("network", "settings"),
    [(Network(1.5), {}), (Network(depth=3.0), {}), (Network(), {"subsample": 4})],
)
def test_other_weights_and_settings_are_other_results(tmp_path, network, settings):
    run(tmp_path, Network())
    assert run(tmp_path, network, **settings).computed == 6


def test_other_pixels_and_masks_are_other_images(tmp_path):
    images = views()
    run(tmp_path, Network())
    images[0]["img"] = images[0]["img"].clone()
    images[0]["img"][0, 0, 0, 0] += 1e-6
    assert run(tmp_path, Network(), images).computed == 4
    masked = [view | {"mask": torch.ones(1, *SHAPE, dtype=torch.bool)} for view in views()]
    assert image_key(masked[0]) != image_key(views()[0])


def test_a_result_written_half_is_never_there(tmp_path, monkeypatch):
    """The writer ends in the middle, as at a kill."""

    def half(tensors, path):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Network())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert run(tmp_path, Network()).computed == 6


def test_a_file_that_was_cut_is_made_again(tmp_path):
    run(tmp_path, Network())
    path = sorted(tmp_path.rglob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert run(tmp_path, Network()).computed == 1


def test_a_file_of_another_image_is_named(tmp_path):
    results = run(tmp_path, Network())
    path = results._cache.path(*(results._keys[n] for n in (0, 1)))
    with pytest.raises(ValueError, match="delete it and run again"):
        results._cache.get(*(results._keys[n] for n in (0, 1)), (16, 16))
    path.unlink()
    with pytest.raises(ValueError, match=str(path)):
        results.get(0, 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_no_space_and_no_rights_are_told(tmp_path, monkeypatch, number):
    def full(tensors, path):
        raise OSError(number, "it does not work")

    monkeypatch.setattr(cache_module, "save_file", full)
    said = "no space left" if number == errno.ENOSPC else "may write to"
    with pytest.raises(CacheError, match=said):
        run(tmp_path, Network())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="choose a cache folder"):
        run(tmp_path / "file", Network())


def test_what_is_not_finite_or_too_large_to_store_is_not_finite_when_read():
    points = torch.ones(*SHAPE, 3)
    points[0, 0], points[0, 1], points[0, 2, 0] = torch.inf, torch.nan, 1e6
    confidence = torch.full(SHAPE, 2.0)
    confidence[1, :3] = torch.tensor([torch.inf, torch.nan, 1e6])
    one = ForwardResult(points, confidence, torch.zeros(0, 4).long(), torch.zeros(0))
    back = ForwardResult.unpacked(one.packed(), SHAPE)
    assert not back.points[0, :3].isfinite().all(-1).any()
    assert back.points[1:].isfinite().all()
    # A confidence that is only too large is as large as can be.
    assert back.confidence[1, :3].isfinite().tolist() == [False, False, True]
    assert back.confidence[1, 2] > 60000


def test_stored_values_are_close_whatever_their_unit():
    generator = torch.Generator().manual_seed(0)
    for unit in (1e-4, 1.0, 1e6):
        points = unit * torch.randn(*SHAPE, 3, generator=generator)
        points[0, 0] = torch.inf
        one = ForwardResult(
            points, torch.ones(SHAPE), torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0)
        )
        back = ForwardResult.unpacked(one.packed(), SHAPE)
        assert torch.allclose(back.points[1:], points[1:], rtol=1e-3, atol=1e-4 * unit)
        assert back.pixels.shape == (0, 4)


@pytest.mark.parametrize("spoilt", ["points", "unit", "pixels"])
def test_spoilt_contents_are_refused(spoilt):
    one = ForwardResult(
        torch.ones(*SHAPE, 3),
        torch.ones(SHAPE),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.zeros(2),
    )
    stored = one.packed()
    stored[spoilt] = stored[spoilt][:1] if spoilt != "unit" else torch.ones(2)
    with pytest.raises(ValueError, match="shapes"):
        ForwardResult.unpacked(stored, SHAPE)
    stored = one.packed() | {"pixels": torch.full((2, 4), 1000, dtype=torch.int16)}
    with pytest.raises(ValueError, match="outside"):
        ForwardResult.unpacked(stored, SHAPE)


def test_a_model_without_descriptors_says_so(tmp_path):
    class Bare(Network):
        desc_dim = 0

        def encode_image(self, image, true_shape):
            raise AssertionError("the network worked before the model was looked at")

    with pytest.raises(ValueError, match="no descriptors"):
        run(tmp_path, Bare())


@pytest.mark.parametrize("rows", [8, SHAPE[0]])
def test_descriptors_that_are_not_finite_do_not_match(tmp_path, caplog, rows):
    class Broken(Network):
        def predict(self, *inputs):
            first, second = super().predict(*inputs)
            first["desc"][:, :rows] = torch.nan
            return first, second

    images = [views(1)[0] | {"idx": n} for n in range(2)]
    pixels = run(tmp_path, Broken(), images).get(0, 1).pixels
    assert (len(pixels) > 0) == (rows < SHAPE[0])
    assert (pixels[:, 1] >= rows).all()
    assert "not finite" in caplog.text


@pytest.mark.parametrize("subsample", [0, SHAPE[0] + 1])
def test_an_impossible_spacing_of_seeds(tmp_path, subsample):
    network = Network()
    with pytest.raises(ValueError, match=f"subsample={subsample} must be from 1 to {SHAPE[0]}"):
        run(tmp_path, network, subsample=subsample)
    assert not network.passes


def test_a_mask_that_covers_all_is_named_before_the_network_works(tmp_path):
    network, images = Network(), views()
    images[1]["mask"] = torch.zeros(1, *SHAPE, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask of 1\.png covers all"):
        run(tmp_path, network, images)
    assert not network.passes


def test_one_image_twice(tmp_path):
    """Its passes have one name, and are of one content."""
    images = views(2)
    images += [images[0] | {"idx": 2, "instance": "2"}]
    results = run(tmp_path, Network(), images)
    own, other = results.get(0, 2), results.get(1, 2)
    assert (own.pixels[:, :2] == own.pixels[:, 2:]).all()
    assert torch.equal(other.pixels, results.get(1, 0).pixels)
    assert run(tmp_path, Network(), images).computed == 0


def test_two_runs_at_once_in_one_folder(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: run(tmp_path, Network()), range(4)))
    one = runs[0].get(0, 1)
    for other in runs[1:]:
        assert torch.equal(other.get(0, 1).pixels, one.pixels)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 6


def test_keys_do_not_depend_on_where_tensors_are(tmp_path):
    network = Network()
    folders = [ForwardCache(tmp_path, network, {"subsample": 8}).folder for _ in range(2)]
    assert folders[0] == folders[1]
