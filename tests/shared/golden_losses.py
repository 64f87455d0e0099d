"""Criteria against the numbers of the published ones, for both packages."""

import json
from pathlib import Path

import pytest

from dust3r.utils.spec import LOSSES, build

GOLDEN = Path(__file__).parents[1] / "golden"


def cases_of(package):
    """Specification -> loss and details, of the cases ``<package> | specification``."""
    cases = json.loads((GOLDEN / "losses.json").read_text())
    head = f"{package} | "
    return {name.removeprefix(head): one for name, one in cases.items() if name.startswith(head)}


def assert_agrees(text, case, batch):
    value, details = build(text, LOSSES)(*batch)
    assert value.shape == () and value.requires_grad
    assert value.item() == pytest.approx(case["loss"], rel=1e-4)
    assert not any(detail.requires_grad for detail in details.values())
    assert {name: float(d) for name, d in details.items()} == pytest.approx(
        case["details"], rel=1e-4
    )
