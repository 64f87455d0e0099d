"""Models agree with the published ones on weights and images made from names and seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.utils.spec import MODELS, build
from tests.golden.fill import fill_state_dict, golden_image

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(p.stem for p in (GOLDEN / "models").glob("*.json"))
FULL_SIZE = sorted(p.stem for p in (GOLDEN / "checkpoints").glob("*.json"))


@pytest.fixture(params=CASES)
def case(request):
    path = GOLDEN / "models" / request.param
    return json.loads(path.with_suffix(".json").read_text()), np.load(path.with_suffix(".npz"))


def golden_model(spec: str) -> torch.nn.Module:
    model = build(spec, MODELS)
    fill_state_dict(model)
    return model.eval()


def golden_views(described: dict) -> list[dict]:
    batch = described["batch"]
    both = golden_image(described["image_seed"], 2 * batch, described["height"], described["width"])
    return [
        {
            "img": torch.from_numpy(both[batch * k : batch * (k + 1)]),
            "true_shape": torch.tensor(described["true_shape"][k]),
            "instance": [f"{k}-{i}" for i in range(batch)],
        }
        for k in (0, 1)
    ]


def test_golden_outputs(case):
    described, expected = case
    model = golden_model(described["model"])
    with torch.no_grad():
        predictions = model(*golden_views(described))
    outputs = {
        f"pred{i}.{name}": tensor.numpy()
        for i, prediction in enumerate(predictions, 1)
        for name, tensor in prediction.items()
    }
    assert {n: list(t.shape) for n, t in outputs.items()} == described["outputs"]
    for name, tensor in outputs.items():
        bound = (1e-3 if "_var" in name else 1e-4) * np.abs(expected[name]).max()
        alpha = name.replace("_var", "_alpha")
        if alpha != name and alpha in expected:
            # A variance divides by alpha - 1. Where that is near 0, the last bit of alpha alone,
            # which the order of any sum before it decides, moves the quotient by so much.
            last_bit = np.finfo(np.float32).eps
            surplus = np.maximum(expected[alpha] - 1, last_bit)
            bound = bound + expected[name] * last_bit / surplus
        assert (np.abs(tensor - expected[name]) <= bound).all(), name


def test_golden_names(case):
    described, _ = case
    model = build(described["model"], MODELS)
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    assert shapes == described["state_dict"]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names(name):
    described = json.loads((GOLDEN / "checkpoints" / f"{name}.json").read_text())
    with torch.device("meta"):
        model = build(described["model"], MODELS)
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    assert shapes == described["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == described["parameters"]
