"""The published file of three state dicts: read safely, written whole, told apart from others."""

import logging
from argparse import Namespace

import pytest
import torch
from deltas_scenes import small_model

from deltas import checkpoint
from deltas.checkpoint import PARTS, CheckpointError
from deltas.model import Deltas
from dust3r.utils.spec import Registry

SPEC = "Deltas(num_kps=24, width=8, depths=(1, 1, 1, 1))"


@pytest.fixture(scope="module")
def model() -> Deltas:
    return small_model()


@pytest.fixture
def published(model) -> dict[str, dict[str, torch.Tensor]]:
    return {name: model.get_submodule(part).state_dict() for name, part in PARTS.items()}


def empty_model() -> Deltas:
    return Deltas(width=8, depths=(1, 1, 1, 1))


def same_weights(a: Deltas, b: Deltas) -> bool:
    of_b = b.state_dict()
    return all(torch.equal(tensor, of_b[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_file_loads(tmp_path, model, published, prefix):
    path = tmp_path / "deltas.pth.tar"
    content = {
        part: {prefix + name: tensor for name, tensor in weights.items()}
        for part, weights in published.items()
    }
    torch.save({"epoch": 3, **content}, path)
    loaded = empty_model()
    report = checkpoint.load(loaded, path)
    assert same_weights(loaded, model)
    assert report.loaded == len(model.state_dict())
    assert not report.missing and not report.unexpected
    assert checkpoint.load_file(path)["epoch"] == 3


def test_what_is_saved_has_the_published_names(tmp_path, model, published):
    path = tmp_path / "deltas.pth.tar"
    checkpoint.save(path, model, SPEC, epoch=7)
    stored = torch.load(path, weights_only=False)
    for part, weights in published.items():
        assert stored[part].keys() == weights.keys()
    loaded = checkpoint.load_model(path)
    assert same_weights(loaded, model) and not loaded.training
    assert loaded.num_kps == 24


def test_checkpoint_of_the_projects_training(tmp_path, model, caplog):
    path = tmp_path / "checkpoint-last.pth"
    torch.save({"model": model.state_dict(), "args": Namespace(model=SPEC), "epoch": 1}, path)
    with caplog.at_level(logging.INFO):
        assert same_weights(checkpoint.load_model(path), model)
    assert "tensors loaded" in caplog.text


def test_what_is_missing_and_what_is_too_much_is_reported(tmp_path, published):
    del published["state_dict_depth"]["conv_final.bias"]
    published["state_dict"]["head.weight"] = torch.zeros(1)
    path = tmp_path / "deltas.pth.tar"
    torch.save(published, path)
    report = checkpoint.load(empty_model(), path)
    assert report.missing == ("densification.conv_final.bias",)
    assert report.unexpected == ("interest.head.weight",)


def test_a_part_is_missing(tmp_path, published):
    del published["state_dict_tri"]
    path = tmp_path / "deltas.pth.tar"
    torch.save(published, path)
    with pytest.raises(CheckpointError, match="no weights under state_dict_tri: a checkpoint"):
        checkpoint.load_file(path)


@pytest.mark.parametrize("content", [{"net": {"a": 1}}, {"state_dict": 5}, [1, 2]])
def test_other_files(tmp_path, content):
    path = tmp_path / "other.pth.tar"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="state_dict_depth"):
        checkpoint.load_file(path)


@pytest.mark.parametrize("spec", ["Other(width=8)", "OtherOfTheHouse()"])
def test_other_models(tmp_path, monkeypatch, spec):
    class OtherOfTheHouse(torch.nn.Module):
        pass

    monkeypatch.setattr(checkpoint, "MODELS", Registry("model"))
    checkpoint.MODELS.register()(OtherOfTheHouse)
    path = tmp_path / "other.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Namespace(model=spec)}, path)
    with pytest.raises(CheckpointError, match="Deltas"):
        checkpoint.load_model(path)


def test_another_width_leaves_the_model_alone(tmp_path, published):
    path = tmp_path / "deltas.pth.tar"
    torch.save(published, path)
    model = Deltas(width=4, depths=(1, 1, 1, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="another width"):
        checkpoint.load(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class _Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_code_is_refused(tmp_path, published, capsys):
    path = tmp_path / "deltas.pth.tar"
    torch.save({**published, "extra": _Harmful()}, path)
    with pytest.raises(CheckpointError, match="refused"):
        checkpoint.load_file(path)
    assert "run" not in capsys.readouterr().out


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load_file(tmp_path / "none.pth.tar")
    (tmp_path / "page.pth.tar").write_text("<html>")
    with pytest.raises(CheckpointError, match="web page"):
        checkpoint.load_file(tmp_path / "page.pth.tar")


def test_folded_models_are_not_saved(tmp_path):
    model = small_model()
    model.fold_batch_norms()
    with pytest.raises(ValueError, match="folded"):
        checkpoint.save(tmp_path / "deltas.pth.tar", model)
    assert not list(tmp_path.iterdir())
