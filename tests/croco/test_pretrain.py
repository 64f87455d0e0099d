"""``python -m croco.pretrain``: the loss, the views, the command and its checkpoints."""

import ast
import json
import os
import signal
from pathlib import Path

import cv2
import pytest
import torch

from croco.croco import CroCoNet
from croco.pretrain import main
from dust3r.training import checkpoint
from dust3r.training.pretrain_completion import (
    MaskedMSE,
    denormalise,
    load_croco,
    normalise,
    take_views,
)

REPOSITORY = Path(__file__).parents[2]
WIDTHS = {
    "enc_embed_dim": 24,
    "enc_depth": 1,
    "enc_num_heads": 2,
    "dec_embed_dim": 24,
    "dec_depth": 1,
    "dec_num_heads": 2,
}
SETTINGS = {"img_size": 64, "pos_embed": "RoPE100", **WIDTHS}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tree(write_tree):
    return write_tree(frames={"a": 7, "b": 5})


def pretrain(tree, out, *extra, settings=SETTINGS):
    described = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return main(
        [
            "--dataset", f"ScanNetpp(split='train', ROOT='{tree}', resolution=64, aug_crop=4)",
            "--model", f"CroCoNet({described})",
            "--batch_size", "2",
            "--epochs", "2",
            "--warmup_epochs", "0",
            "--lr", "1e-3",
            "--num_workers", "0",
            "--output_dir", str(out),
            *extra,
        ]
    )  # fmt: skip


def prediction(completed, target, hidden):
    return {"completed": completed, "target": target, "hidden": hidden}, {}


class TestLoss:
    def test_knowing_nothing_costs_one_whatever_the_contrast(self):
        target = torch.rand(2, 9, 48) * (0.2 + torch.rand(2, 9, 1)) + torch.rand(2, 9, 1)
        hidden = torch.rand(2, 9) > 0.5
        mse = MaskedMSE(norm_pix_loss=True)
        loss = mse({}, {}, *prediction(torch.zeros_like(target), target, hidden))[0]
        assert loss.item() == pytest.approx(1, abs=1e-3)
        shown = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
        assert mse({}, {}, *prediction(shown, target, hidden))[0].item() < 2e-3

    def test_an_even_patch_does_not_blow_up(self):
        even = torch.full((1, 4, 48), 0.3)
        completed = torch.zeros_like(even)
        loss = MaskedMSE()({}, {}, *prediction(completed, even, torch.ones(1, 4).bool()))[0]
        assert loss.item() == pytest.approx(0, abs=1e-6)

    def test_only_hidden_patches_count(self):
        target, hidden = torch.rand(1, 3, 12), torch.tensor([[True, False, True]])
        completed = target.clone()
        completed[:, 0] += 2
        completed[:, 1] += 100
        loss, details = MaskedMSE(norm_pix_loss=False)(
            {}, {}, *prediction(completed, target, hidden)
        )
        assert loss.item() == pytest.approx(2) and details["masked_mse"] == loss


class TestViews:
    def test_images_get_the_statistics_of_imagenet(self):
        white, black = normalise(torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, 3, 1, 1))
        assert white.flatten().tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-3)
        assert black.flatten().tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-3)
        image = torch.rand(2, 3, 4, 5) * 2 - 1
        assert torch.allclose(denormalise(normalise(image)), image, atol=1e-5)

    def test_the_network_completes_the_first_view_from_the_second(self):
        net = CroCoNet(**SETTINGS)
        image1, image2 = torch.rand(2, 2, 3, 64, 64).unbind()
        names = list(net.state_dict())
        take_views(net.eval())
        completed = net({"img": image1}, {"img": image2})[0]
        assert list(net.state_dict()) == names
        expected = CroCoNet.forward(net, normalise(image1), normalise(image2), completed["hidden"])
        assert torch.equal(completed["completed"], expected[0])
        assert torch.equal(completed["target"], net.patchify(normalise(image1)))

    def test_masks_of_a_test_are_the_same_each_time_and_cost_no_chance(self):
        net = CroCoNet(**SETTINGS)
        take_views(net)
        views = tuple({"img": image} for image in torch.rand(2, 2, 3, 64, 64))

        def hidden():
            return net(*views)[0]["hidden"]

        assert not torch.equal(hidden(), hidden())
        net.eval()
        torch.manual_seed(1)
        state, first = torch.get_rng_state(), hidden()
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(hidden(), first) and (first.sum(1) == 14).all()


def test_the_command_trains_and_leaves_files_that_load(tree, tmp_path):
    out = tmp_path / "out"
    test = f"ScanNetpp(split='val', ROOT='{tree}', resolution=64, seed=7)"
    assert (
        pretrain(
            tree,
            out,
            "--epochs",
            "5",
            "--lr",
            "3e-3",
            "--test_dataset",
            test,
            "--mask_ratio",
            "0.5",
        )
        == 0
    )
    entries = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert entries[-1]["test_loss"] < entries[0]["test_loss"] - 0.02
    for name in ("last", "final", "best"):
        content = checkpoint.load_file(out / f"checkpoint-{name}.pth")
        assert content["croco_kwargs"] == {
            **SETTINGS,
            "mask_ratio": 0.5,
            "patch_size": 16,
            "mlp_ratio": 4.0,
            "norm_im2_in_dec": True,
        }
    net = load_croco(out / "checkpoint-last.pth")
    assert net.mask_generator.mask_ratio == 0.5 and not net.training
    saved = checkpoint.load_file(out / "checkpoint-final.pth")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    for group in ("train", "test"):
        assert cv2.imread(str(out / f"completion_{group}.png")).std() > 10


def test_stopped_and_resumed_equals_uninterrupted(tree, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain(tree, whole, "--accum_iter", "2") == 0
    save, saved = checkpoint.save, []

    def save_then_stop(path, state):
        save(path, state)
        saved.append(Path(path).name)
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save", save_then_stop)
    assert pretrain(tree, parts, "--accum_iter", "2", "--save_steps", "2") == 0
    assert saved[0] == "checkpoint-step-2.pth" and "checkpoint-final.pth" not in saved
    assert "croco_kwargs" in checkpoint.load_file(parts / "checkpoint-last.pth")
    assert pretrain(tree, parts, "--accum_iter", "2") == 0
    first, second = (checkpoint.load_file(d / "checkpoint-final.pth") for d in (whole, parts))
    assert first["step"] == second["step"] > 2
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name


def test_max_epoch_leaves_the_schedule_where_it_is(tree, tmp_path):
    out = tmp_path / "out"
    assert pretrain(tree, out, "--epochs", "4", "--max_epoch", "2") == 0
    entries = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert len(entries) == 2 and entries[-1]["lr"] == pytest.approx(0.5e-3)
    assert checkpoint.load_file(out / "checkpoint-final.pth")["args"].epochs == 4


@pytest.mark.parametrize(
    ("extra", "settings", "message"),
    [
        (("--model", "AsymmetricCroCo3DStereo()"), SETTINGS, "registered are: CroCoNet"),
        (("--mask_ratio", "0.05"), SETTINGS, "hides none of the 16 patches"),
        (("--mask_ratio", "1"), SETTINGS, r"outside [0, 1)"),
        ((), {**WIDTHS, "img_size": 48}, "64x64 are larger than img_size 48x48"),
        (("--pretrained", "gone.pth"), SETTINGS, "gone.pth"),
    ],
)
def test_mistakes_are_explained(tree, tmp_path, caplog, monkeypatch, extra, settings, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pretrain(tree, tmp_path / "out", *extra, settings=settings) == 2
    assert message in caplog.text


@pytest.mark.parametrize("name", ["--uq_mode", "--train_criterion", "--train_dataset"])
def test_arguments_of_train_are_refused(tree, tmp_path, capsys, name):
    with pytest.raises(SystemExit):
        pretrain(tree, tmp_path / "out", name, "geom")
    assert f"{name} is an argument of train.py" in capsys.readouterr().err


def test_the_library_below_does_not_know_dust3r():
    for path in (REPOSITORY / "croco").glob("*.py"):
        # What a function imports is not imported with the module.
        for statement in ast.parse(path.read_text()).body:
            names = [getattr(statement, "module", None) or ""]
            names += [alias.name for alias in getattr(statement, "names", ())]
            assert not any(name.split(".")[0] in ("dust3r", "mast3r") for name in names), path
