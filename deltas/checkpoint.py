"""Weights of DELTAS: the published file of three state dicts, and the project's own checkpoints."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltas.model import Deltas
from dust3r.training import checkpoint
from dust3r.training.checkpoint import CheckpointError, LoadReport
from dust3r.utils.spec import MODELS, SpecError, build

log = logging.getLogger(__name__)

# Names in the published file -> parts of Deltas.
PARTS = {
    "state_dict": "interest",
    "state_dict_tri": "triangulation",
    "state_dict_depth": "densification",
}
# Of models that state evidence; the published file has none.
EVIDENCE = "state_dict_evidence"


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Deltas:
    """The model of a file, in eval mode: of the size it names, else of the published size.

    Raises:
        FileNotFoundError, CheckpointError: see ``load_file`` and ``load``.
    """
    content = load_file(path)
    spec = getattr(content.get("args"), "model", None)
    try:
        model = build(spec, MODELS) if spec else Deltas()
    except SpecError as error:
        raise CheckpointError(f"{path} names a model that is not Deltas: {error}") from error
    if not isinstance(model, Deltas):
        raise CheckpointError(
            f"{path} is of a {type(model).__name__}, expected Deltas: dust3r.model.load_model or "
            "mast3r.model.load_model reads it"
        )
    report = checkpoint.load_state_dict(model, content["model"])
    log.info("%s: %s", path, report)
    return model.eval().to(device)


def load(model: Deltas, path: str | Path) -> LoadReport:
    """Copy the weights of a file into ``model``; all three parts or, on an error, none.

    Returns:
        what was loaded, missing and unexpected, by the names of ``Deltas``.

    Raises:
        FileNotFoundError, CheckpointError: see ``load_file``; or the file's sizes are others.
        ValueError: the model's batch norms are folded.
    """
    return checkpoint.load_state_dict(model, load_file(path)["model"])


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth.tar`` with the three published names, or a checkpoint of this project.

    Nothing in it is run: ``weights_only=True``, with ``argparse.Namespace`` allowed.

    Returns:
        ``model``: name in ``Deltas`` -> tensor; ``args`` (with the specification ``model``, or
        None), and whatever else the file holds.

    Raises:
        FileNotFoundError: no such file; names those in the folder.
        CheckpointError: the file is damaged, foreign, would run code, or lacks one of the names.
    """
    path = Path(path)
    content = checkpoint.read_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(_names_message(path, {}, list(PARTS)))
    if not any(name in content for name in PARTS):
        if isinstance(content.get("model"), dict):
            return {"args": None, **content}
        raise CheckpointError(_names_message(path, content, list(PARTS)))
    missing = [name for name in PARTS if not _is_weights(content.get(name))]
    if missing:
        raise CheckpointError(_names_message(path, content, missing))
    parts = PARTS | ({EVIDENCE: "evidence"} if _is_weights(content.get(EVIDENCE)) else {})
    weights = {
        f"{part}.{key}": tensor
        for name, part in parts.items()
        for key, tensor in _without_module(content[name]).items()
    }
    rest = {key: value for key, value in content.items() if key not in parts}
    return {"args": None, **rest, "model": weights}


def save(path: str | Path, model: Deltas, spec: str | None = None, **extra: Any) -> None:
    """Write the weights in the published form, whole or not at all.

    Args:
        path: the file; ``.pth.tar`` by custom.
        model: whose batch norms are not folded.
        spec: the model's specification string, which ``load_model`` builds it from; without one it
            takes the published size.
        extra: more entries, of what ``dust3r.training.checkpoint.save`` allows.

    Raises:
        ValueError: the batch norms are folded.
    """
    if model.folded:
        raise ValueError("batch norms are folded, the published names lost: save the model before")
    parts = PARTS | ({EVIDENCE: "evidence"} if model.evidence is not None else {})
    state = {name: getattr(model, part).state_dict() for name, part in parts.items()}
    args = {"args": Namespace(model=spec)} if spec else {}
    checkpoint.save(path, {**extra, **args, **state})


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _without_module(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the ``module.`` that a parallel wrapper puts before all of them."""
    return {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}


def _names_message(path: Path, content: Mapping[str, Any], missing: list[str]) -> str:
    found = ", ".join(str(key) for key in list(content)[:10]) or "no names"
    return (
        f"{path} holds {found}, but no weights under {', '.join(missing)}: a checkpoint of DELTAS "
        f"has {', '.join(PARTS)} (encoder with detector, triangulation, densification), or all of "
        "them under 'model' as this project writes them"
    )
