"""train_deltas.py from arguments to checkpoints: it learns, resumes, and says what is wrong."""

import json
import logging
import shutil

import pytest
import torch

from deltas.checkpoint import load_model
from deltas.detector.superpoint import SuperPoint
from deltas.training.cli import SequenceBatches, complete, main, make_parser, model_spec
from dust3r.training import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = "Deltas(width=8, depths=(1, 1, 1, 1), evidential=True)"


@pytest.fixture
def room(write_tree):
    """A processed scene of a walk, each of whose frames overlaps with the next ones."""
    return write_tree(frames={"scene": 9})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "corners.pth"
    torch.save(SuperPoint(width=4).state_dict(), path)
    return path


def train(room, out, *more, **changed):
    given = {
        "train_dataset": f"4 @ Sequences(ROOT='{room}', seq_gap=1, width=64, height=48)",
        "test_dataset": f"2 @ Sequences(ROOT='{room}', seq_gap=1, width=64, height=48, seed=7)",
        "model": SMALL, "num_kps": 24, "batch_size": 2, "epochs": 2, "num_workers": 0,
        "lr": 1e-3, "w_ip": 0, "output_dir": out,
    } | changed  # fmt: skip
    arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    return main([*arguments, *more])


def losses(out, name="train_loss"):
    return [json.loads(line)[name] for line in (out / "log.txt").read_text().splitlines()]


def parsed(*arguments):
    parser = make_parser()
    args = parser.parse_args([str(part) for part in arguments])
    complete(parser, args)
    return args


def test_it_learns_and_its_checkpoints_load(room, teacher, tmp_path):
    out = tmp_path / "out"
    more = {"w_ip": 0.1, "superpoint": teacher, "homographies": 2, "epochs": 3}
    assert train(room, out, **more) == 0
    found = losses(out)
    assert found[-1] < found[0]
    logged = json.loads((out / "log.txt").read_text().splitlines()[-1])
    for name in ("ip", "2d", "3d", "sm", "d", "evi"):
        assert logged[f"train_loss_{name}"] >= 0 or name == "evi"
    assert {"train_abs_rel", "test_abs_rel"} <= logged.keys()
    model = load_model(out / "checkpoint-best.pth")
    assert model.num_kps == 24 and model.evidence is not None
    assert any((out / "tensorboard").iterdir())


def test_a_stopped_run_goes_on_to_the_same_weights(room, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert train(room, whole, "--save_steps", "1") == 0
    half.mkdir()
    shutil.copy(whole / "checkpoint-step-3.pth", half)
    assert train(room, half) == 0
    whole, resumed = (
        checkpoint.load_file(out / "checkpoint-final.pth")["model"] for out in (whole, half)
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_arguments_become_specifications(teacher):
    args = parsed(
        "--data", "a", "b", "--test_data", "c", "--samples", 100, "--seq_gap", 5, "--w_3d", 2,
        "--superpoint", teacher, "--num_kps", 64, "--mindepth", 0.3, "--width", 160,
    )  # fmt: skip
    assert args.train_dataset.count("100 @ Sequences(ROOT=") == 2
    assert "seq_gap=5, width=160, height=240" in args.train_dataset
    assert "ROOT='c', split='all', seed=777" in args.test_dataset
    assert "w_3d=2.0" in args.train_criterion and f"teacher='{teacher}'" in args.train_criterion
    assert "mindepth=0.3" in args.train_criterion
    assert model_spec(args) == "Deltas(evidential=True, num_kps=64, mindepth=0.3)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --data"),
        (["--data", "a", "--train_dataset", "b"], "either --data"),
        (["--data", "a", "--uq_mode", "geom"], "is an argument of train.py"),
        (["--data", "a", "--fsdp"], "is an argument of train.py"),
    ],
)
def test_arguments_that_do_not_belong_here(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "Regr3D(L21)"}, "Deltas"),
        ({"model": "Deltas"}, "is no Deltas(...)"),
        ({"w_ip": 1, "superpoint": "nowhere.pth"}, "nowhere.pth"),
        ({"train_dataset": "Sequences(ROOT='nowhere')"}, "nowhere"),
        ({"num_kps": 24, "mindepth": 20}, "less than"),
    ],
)
def test_what_cannot_run_says_why(room, tmp_path, caplog, changed, message):
    with caplog.at_level(logging.ERROR):
        assert train(room, tmp_path / "out", **changed) == 2
    assert message in caplog.text


def test_pairs_are_no_sequences():
    pair = [{"img": torch.zeros(1, 3, 8, 8)}] * 2
    with pytest.raises(ValueError, match="not on pairs of views"):
        SequenceBatches().inputs(pair)
