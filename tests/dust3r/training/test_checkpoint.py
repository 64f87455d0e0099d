import argparse
import itertools
import multiprocessing
import os
import random
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dust3r.training import checkpoint, resume
from dust3r.training.checkpoint import CheckpointError


class Net(nn.Module):
    """Names and structure like those of the pairwise models, at toy size."""

    def __init__(self, width: int = 4, depth: int = 3, evidential: bool = False) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.enc_norm = nn.LayerNorm(width)
        blocks = [nn.ModuleDict({"fc": nn.Linear(width, width)}) for _ in range(depth)]
        self.dec_blocks2 = nn.ModuleList(blocks)
        self.downstream_head1 = nn.ModuleDict({"dpt": nn.Linear(width, 4)})
        if evidential:
            head = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 1))
            self.downstream_head1["depth_evi_head"] = head


@pytest.fixture
def state() -> dict:
    return {
        "model": Net().state_dict(),
        "args": argparse.Namespace(model="Net(width=4)", lr=1e-4),
        "epoch": 3,
        "best_so_far": 0.5,
    }


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("zipped", [True, False])
def test_contract_survives_the_file(zipped, state, tmp_path):
    path = tmp_path / "new" / "a.pth"
    checkpoint.save(path, state)
    if not zipped:
        torch.save(state, path, _use_new_zipfile_serialization=False)
    read = checkpoint.load_file(path)
    assert same(read["model"], state["model"])
    assert read["args"] == state["args"]
    assert (read["epoch"], read["best_so_far"]) == (3, 0.5)
    assert [item.name for item in path.parent.iterdir()] == ["a.pth"]


def test_bare_state_dict_is_wrapped(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "bare.pth")
    read = checkpoint.load_file(tmp_path / "bare.pth")
    assert read["args"] is None
    assert read["model"].keys() == Net().state_dict().keys()


def test_croco_files_keep_their_settings(tmp_path):
    content = {"model": Net().state_dict(), "croco_kwargs": {"enc_depth": 3}}
    torch.save(content, tmp_path / "croco.pth")
    assert checkpoint.load_file(tmp_path / "croco.pth")["croco_kwargs"] == {"enc_depth": 3}


@pytest.mark.parametrize("name", ["a.safetensors", "misnamed.pth"])
def test_safetensors_carry_specification_and_numbers(name, tmp_path):
    metadata = {"model": "Net(width=4)", "epoch": 12, "best_so_far": 0.25, "note": "12 rooms"}
    checkpoint.save_safetensors(tmp_path / name, Net().state_dict(), metadata)
    read = checkpoint.load_file(tmp_path / name)
    assert read["args"] == argparse.Namespace(model="Net(width=4)")
    assert (read["epoch"], read["best_so_far"], read["note"]) == (12, 0.25, "12 rooms")
    assert set(read) == {"model", "args", "epoch", "best_so_far", "note"}


def test_safetensors_of_others_have_no_arguments(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert checkpoint.load_file(tmp_path / "a.safetensors")["args"] is None


def test_export_in_bf16_halves_the_file_and_loads_as_fp32(tmp_path):
    torch.manual_seed(0)
    net = Net(width=64)
    weights = net.state_dict() | {"tied": net.enc_norm.weight, "steps": torch.tensor(7)}
    checkpoint.save_safetensors(tmp_path / "full.safetensors", weights)
    checkpoint.save_safetensors(tmp_path / "half.safetensors", weights, dtype=torch.bfloat16)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    read = checkpoint.load_file(tmp_path / "half.safetensors")["model"]
    assert read["steps"].dtype == torch.int64
    assert read["enc_norm.weight"].dtype == torch.bfloat16
    other = Net(width=64)
    checkpoint.load_state_dict(other, read)
    loaded = other.state_dict()
    for name, tensor in net.state_dict().items():
        assert loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name], tensor, rtol=2**-8, atol=0)


def test_state_that_could_not_be_read_again_is_not_written(state, tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, state)
    with pytest.raises(CheckpointError, match="pathlib.PosixPath"):
        checkpoint.save(path, state | {"args": argparse.Namespace(output_dir=tmp_path)})
    with pytest.raises(CheckpointError, match="numpy.*scalar"):
        checkpoint.save(path, state | {"best_so_far": np.float64(1)})
    assert checkpoint.load_file(path)["best_so_far"] == 0.5
    assert list(tmp_path.iterdir()) == [path]


def save_forever(path: Path, started: Event) -> None:
    # A forked process must not wait for OpenMP threads that stayed in its parent.
    torch.set_num_threads(1)
    for number in itertools.count():
        weights = {str(index): torch.full((500,), float(number)) for index in range(20)}
        checkpoint.save(path, {"model": weights, "epoch": number})
        started.set()


def test_killed_while_saving_leaves_a_whole_file(tmp_path):
    generator = random.Random(1)
    forking = multiprocessing.get_context("fork")
    for _ in range(10):
        started = forking.Event()
        run = forking.Process(target=save_forever, args=(tmp_path / checkpoint.LAST, started))
        run.start()
        assert started.wait(60)
        time.sleep(generator.uniform(0, 0.05))
        run.kill()
        run.join()
        read = checkpoint.load_file(resume.find(tmp_path))
        assert all((tensor == read["epoch"]).all() for tensor in read["model"].values())


def test_leftovers_of_killed_runs_go_once_they_are_old(state, tmp_path):
    old, fresh, other = (
        tmp_path / name
        for name in (
            ".checkpoint-step-7-ab_d1f9h.tmp.pth",
            ".checkpoint-last-zzzzzzzz.tmp.pth",
            ".my-notes.tmp.pth",
        )
    )
    for leftover in (old, fresh, other):
        leftover.write_bytes(b"half")
    for leftover in (old, other):
        os.utime(leftover, (time.time() - 3600,) * 2)
    checkpoint.save(tmp_path / checkpoint.LAST, state)
    assert not old.exists()
    assert fresh.exists() and other.exists()


def test_the_names_of_temporaries_are_those_removed(tmp_path):
    with checkpoint.atomic_path(tmp_path / "checkpoint-last.pth") as temporary:
        temporary.write_bytes(b"half")
        os.utime(temporary, (0, 0))
        checkpoint.save(tmp_path / "checkpoint-best.pth", {"model": {"a": torch.ones(1)}})
        assert not temporary.exists()
        temporary.write_bytes(b"whole")


def test_resume_finds_only_whole_files(state, tmp_path):
    assert resume.find(tmp_path / "nowhere") is None
    (tmp_path / ".checkpoint-last-zzzzzzzz.tmp.pth").write_bytes(b"half")
    checkpoint.save(tmp_path / "checkpoint-best.pth", state)
    assert resume.find(tmp_path) is None
    checkpoint.save(tmp_path / "checkpoint-last.pth", state)
    assert resume.find(tmp_path) == tmp_path / "checkpoint-last.pth"


def test_report_of_a_full_load_is_one_line():
    report = checkpoint.load_state_dict(Net(), Net().state_dict())
    assert str(report) == "11 tensors loaded"
    assert (report.missing, report.unexpected) == ((), ())


def test_report_groups_by_module():
    weights = Net(depth=5).state_dict()
    for name in ("mask_token", "enc_norm.bias", "dec_blocks2.0.fc.bias", "dec_blocks2.1.fc.bias"):
        del weights[name]
    weights |= {"prediction_head.weight": torch.ones(1), "prediction_head.bias": torch.ones(1)}
    net = Net(depth=3, evidential=True)
    report = checkpoint.load_state_dict(net, weights)
    missing, unexpected = report.lines[:4], report.lines[4:]
    assert missing == (
        "mask_token: 1 tensor missing (left as initialised)",
        "enc_norm.bias: 1 tensor missing (left as initialised)",
        "dec_blocks2.0-1.fc.bias: 2 tensors missing (left as initialised)",
        "downstream_head1.depth_evi_head: 4 tensors missing (left as initialised)",
    )
    assert sorted(unexpected) == [
        "dec_blocks2.3-4: 4 tensors unexpected (ignored)",
        "prediction_head: 2 tensors unexpected (ignored)",
    ]
    assert str(report) == "\n".join(["7 tensors loaded", *missing, *unexpected])
    assert len(report.missing) == 8 and "prediction_head.bias" in report.unexpected
    assert torch.equal(net.enc_norm.weight, weights["enc_norm.weight"])


def test_names_that_a_module_derives_count_as_loaded():
    class Doubling(Net):
        def load_state_dict(self, state_dict, strict=True):
            return super().load_state_dict(
                {"mask_token": torch.ones(4), **state_dict}, strict=strict
            )

    weights = Net().state_dict()
    del weights["mask_token"]
    net = Doubling()
    assert str(checkpoint.load_state_dict(net, weights)) == "11 tensors loaded"
    assert net.mask_token.sum() == 4


def test_another_width_is_refused_and_changes_nothing():
    net = Net(width=4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load_state_dict(net, Net(width=6).state_dict())
    message = str(raised.value)
    assert message.startswith("a checkpoint of another width")
    assert "  mask_token: given (6,), expected (4,)" in message
    assert "  dec_blocks2.*.fc.weight: given (6, 6), expected (4, 4) (3 tensors)" in message
    assert len(message.split("\n")) <= 8
    assert same(net.state_dict(), before)


def test_weights_of_another_model_are_refused():
    weights = {f"module.{name}": tensor for name, tensor in Net().state_dict().items()}
    with pytest.raises(CheckpointError, match="no tensor .* given are module: 11 tensors"):
        checkpoint.load_state_dict(Net(), weights)
    with pytest.raises(CheckpointError, match="given are none"):
        checkpoint.load_state_dict(Net(), {})


def draw() -> list:
    # One normal number each leaves a second one in store for the next draw.
    return [
        random.gauss(0, 1),
        random.random(),
        np.random.normal(),
        np.random.rand(),
        *torch.rand(3),
    ]


def test_random_states_survive_the_file(tmp_path):
    draw()
    random.gauss(0, 1), np.random.normal()
    checkpoint.save(
        tmp_path / "a.pth", {"model": Net().state_dict(), "rng": checkpoint.capture_rng()}
    )
    expected = draw()
    assert draw() != expected
    checkpoint.restore_rng(checkpoint.load_file(tmp_path / "a.pth")["rng"])
    assert draw() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_random_states_survive_the_file(tmp_path):
    torch.rand(1, device="cuda")
    checkpoint.save(
        tmp_path / "a.pth", {"model": Net().state_dict(), "rng": checkpoint.capture_rng()}
    )
    expected = torch.rand(5, device="cuda")
    # The states too come back on the device, where the generators do not take them.
    checkpoint.restore_rng(checkpoint.load_file(tmp_path / "a.pth", map_location="cuda")["rng"])
    assert torch.equal(torch.rand(5, device="cuda"), expected)


def test_random_states_of_another_machine_are_taken_as_far_as_they_go(caplog):
    state = checkpoint.capture_rng()
    surplus = [torch.get_rng_state()] * (len(state["cuda"]) + 1)
    expected = draw()
    checkpoint.restore_rng(state | {"cuda": state["cuda"] + surplus})
    assert draw() == expected
    assert "random numbers will differ" in caplog.text


@pytest.mark.parametrize("broken", [{}, {"python": 3}, None])
def test_foreign_random_states_are_refused(broken):
    with pytest.raises(CheckpointError, match="'rng' is not a state"):
        checkpoint.restore_rng(broken)
