"""Forward results on disk: found again when they may be, never when they may not."""

import errno
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
    network = Network()

    def bare(*inputs):
        return tuple(
            {k: v for k, v in one.items() if "desc" not in k}
            for one in Network.predict(network, *inputs)
        )

    network.predict = bare
    with pytest.raises(ValueError, match="no descriptors"):
        run(tmp_path, network)


def test_keys_do_not_depend_on_where_tensors_are(tmp_path):
    network = Network()
    folders = [ForwardCache(tmp_path, network, {"subsample": 8}).folder for _ in range(2)]
    assert folders[0] == folders[1]
