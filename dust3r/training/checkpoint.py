"""Checkpoints: written whole or not at all, read without running what is in them."""

import json
import logging
import random
import re
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dust3r.training import checkpoint_check as check
from dust3r.utils.files import atomic_path

log = logging.getLogger(__name__)

LAST = "checkpoint-last.pth"

_LISTED_SHAPES = 6
_STALE_SECONDS = 600


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: the message says what was found and how to mend it."""


def load_file(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, whether ``torch.save`` (zip or older) or safetensors, told by content.

    Torch files are unpickled with ``weights_only=True`` and one class allowed beyond torch's own,
    ``argparse.Namespace``. A bare state dict is wrapped.

    Args:
        path: the file.
        map_location: device that the tensors go to.

    Returns:
        ``model`` (the state dict: name -> tensor, in the dtype of the file), ``args`` (a
        ``Namespace`` with ``model`` = the specification string, or None), and whatever else the
        file holds (``epoch``, ``optimizer``, ``croco_kwargs``, ...). From safetensors, the entries
        of the metadata, with ``args`` made from the entry ``model``.

    Raises:
        FileNotFoundError: no such file; names those in the folder.
        CheckpointError: the file is damaged, foreign, would run code, or holds no state dict.
    """
    return _with_model(read_file(path, map_location), Path(path))


def read_file(path: str | Path, map_location: str | torch.device = "cpu") -> Any:
    """What a file holds, read as ``load_file`` does it, whatever that is.

    Raises:
        FileNotFoundError: no such file; names those in the folder.
        CheckpointError: the file is damaged, foreign, or would run code.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{check.missing_message(path)}; give one of its files")
    if not path.is_file():
        raise FileNotFoundError(check.missing_message(path))
    try:
        if check.is_safetensors(path):
            return _load_safetensors(path, map_location)
        # Given a path, torch.load would go by its suffix.
        with path.open("rb") as file, torch.serialization.safe_globals([Namespace]):
            return torch.load(file, map_location=map_location, weights_only=True)
    except PermissionError:
        raise
    except Exception as error:
        # Bytes that are not a checkpoint can make the readers raise nearly anything.
        raise CheckpointError(check.failure_message(path, error)) from error


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` with ``torch.save``; a kill at any instant leaves the former file whole.

    It must be readable by ``load_file``: tensors, numbers, strings, lists, tuples, dicts and
    ``argparse.Namespace``. What earlier, killed runs left half-written in the folder is removed
    once nothing has written to it for ten minutes.

    Raises:
        CheckpointError: ``state`` holds objects that ``load_file`` would refuse (numpy numbers and
            paths, often); nothing is written.
    """
    path = Path(path)
    _remove_stale(path.parent)
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)
        found = check.unsafe_globals(temporary)
        if found:
            raise CheckpointError(
                f"{path} is not written, because it could not be read again: the state holds "
                f"{', '.join(found)}; turn these into tensors, numbers, strings, lists or dicts"
            )


def save_safetensors(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, str | int | float] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a state dict as safetensors, atomically.

    Args:
        path: the file to write.
        state_dict: name -> tensor.
        metadata: kept in the header; ``model`` is the specification string.
        dtype: cast floating-point tensors to it (``torch.bfloat16`` halves the file); the others
            stay as they are.
    """
    tensors = {}
    for name, tensor in state_dict.items():
        cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        # Tensors that share memory, as tied weights do, are refused by safetensors.
        tensors[name] = tensor.detach().to("cpu", cast, copy=True).contiguous()
    header = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (metadata or {}).items()
    }
    path = Path(path)
    _remove_stale(path.parent)
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt", **header})


@dataclass(frozen=True)
class LoadReport:
    """What a state dict did not fill, and what it held beyond the model; ``str`` lists it.

    Attributes:
        loaded: how many tensors were loaded.
        missing: names of the model that the state dict lacks.
        unexpected: names of the state dict that the model lacks.
        lines: both grouped by module, one line each.
    """

    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"{_tensors(self.loaded)} loaded", *self.lines))


def load_state_dict(module: nn.Module, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copy ``state_dict`` into ``module``, in the module's dtype and device, where names agree.

    Missing and unexpected names are reported by the largest module that is missing or unexpected
    as a whole, with the indices of repeated blocks drawn together: ``dec_blocks2.8-11``.

    Returns:
        The report. Names that ``module.load_state_dict`` derives from others count as loaded.

    Raises:
        CheckpointError: shapes differ, or no name agrees; the module is then unchanged.
    """
    own = module.state_dict()
    common = own.keys() & state_dict.keys()
    if own and not common:
        raise CheckpointError(
            f"no tensor of the checkpoint belongs to {type(module).__name__}: given are "
            f"{_groups(state_dict, ())}, expected {_groups(own, ())}; "
            "was it saved from another model?"
        )
    unlike = [name for name in own if name in common and _differ(own[name], state_dict[name])]
    if unlike:
        raise CheckpointError(_shapes_message(module, own, state_dict, unlike))
    result = module.load_state_dict(state_dict, strict=False)
    missing, unexpected = tuple(result.missing_keys), tuple(result.unexpected_keys)
    filled = own.keys() - set(missing)
    lines = [
        *(f"{group} missing (left as initialised)" for group in _grouped(missing, filled)),
        *(f"{group} unexpected (ignored)" for group in _grouped(unexpected, own)),
    ]
    return LoadReport(len(filled), missing, unexpected, tuple(lines))


def capture_rng() -> dict[str, Any]:
    """State of Python's, numpy's legacy, torch's CPU and all CUDA random generators.

    Made of tensors, numbers, strings and lists, so that ``load_file`` takes it back.
    """
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [
            str(numpy_state["bit_generator"]),
            torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            int(numpy_state["state"]["pos"]),
            int(numpy_state["has_gauss"]),
            float(numpy_state["gauss"]),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put the random generators into a state of ``capture_rng``, on whichever device it is now.

    With fewer or more CUDA devices than at the capture, those in common are restored.

    Raises:
        CheckpointError: ``state`` is not of ``capture_rng``.
    """
    try:
        version, words, gauss = state["python"]
        generator, key, *rest = state["numpy"]
        cpu, cuda = state["torch"].cpu(), [item.cpu() for item in state["cuda"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "the checkpoint's 'rng' is not a state of the random generators "
            f"({type(error).__name__}: {error}); expected what capture_rng gives"
        ) from error
    random.setstate((version, tuple(words.tolist()), gauss))
    np.random.set_state((generator, key.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(cpu)
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(cuda) != devices:
        log.warning(
            "The checkpoint has the random states of %d CUDA devices, here are %d: "
            "random numbers will differ from those of an uninterrupted run.",
            len(cuda),
            devices,
        )
    for device, item in zip(range(devices), cuda, strict=False):
        torch.cuda.set_rng_state(item, device)


def _load_safetensors(path: Path, device: str | torch.device) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
        metadata = dict(file.metadata() or {})
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata.pop("format", None)
    spec = metadata.pop("model", None)
    content = {key: _number_or_text(value) for key, value in metadata.items()}
    args = Namespace(model=spec) if spec is not None else None
    return {**content, "model": weights, "args": args}


def _number_or_text(value: str) -> str | int | float:
    with suppress(ValueError):
        number = json.loads(value)
        if type(number) in (int, float):
            return number
    return value


def _with_model(content: object, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict with the weights (name -> "
            "tensor) under 'model'"
        )
    if _is_state_dict(content):
        return {"model": content, "args": None}
    if _is_state_dict(content.get("model")):
        return {"args": None, **content}
    keys = ", ".join(str(key) for key in list(content)[:10]) or "nothing"
    elsewhere = [key for key, value in content.items() if _is_state_dict(value)]
    mend = (
        f"; its {elsewhere[0]!r} looks like weights: save {{'model': content[{elsewhere[0]!r}]}}"
        if elsewhere
        else ""
    )
    found = "an unusable 'model'" if "model" in content else "no 'model'"
    raise CheckpointError(
        f"{path} holds {keys}, but {found}: expected the weights (name -> tensor) there{mend}"
    )


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(item, Tensor) for item in value.values())
        and all(isinstance(item, Tensor) or "_extra_state" in key for key, item in value.items())
    )


# The names that atomic_path gives to temporaries.
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}\.tmp\.(pth|safetensors)")


def _remove_stale(folder: Path) -> None:
    # A live writer touches its file all the time, so that age tells the dead ones; the name
    # may be that of a checkpoint which is never written again.
    if not folder.is_dir():
        return
    for leftover in folder.iterdir():
        if _TEMPORARY.fullmatch(leftover.name):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink()
                    log.info("Removed %s, left half-written by a killed run.", leftover)


def _shapes_message(
    module: nn.Module,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    unlike: Iterable[str],
) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for name in unlike:
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        shapes = f"given {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
        groups.setdefault((pattern, shapes), []).append(name)
    lines = [
        f"  {pattern if len(names) > 1 else names[0]}: {shapes}"
        + (f" ({_tensors(len(names))})" if len(names) > 1 else "")
        for (pattern, shapes), names in groups.items()
    ]
    if len(lines) > _LISTED_SHAPES:
        lines[_LISTED_SHAPES:] = [f"  and {len(lines) - _LISTED_SHAPES} more like these"]
    return (
        f"a checkpoint of another width, depth or image size than this {type(module).__name__}; "
        "give the model the sizes it was saved with, or another checkpoint:\n" + "\n".join(lines)
    )


def _differ(own: object, given: object) -> bool:
    # A module's "_extra_state" may be anything.
    return isinstance(own, Tensor) and isinstance(given, Tensor) and own.shape != given.shape


def _groups(names: Iterable[str], known: Iterable[str]) -> str:
    listed = _grouped(names, known)
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "") or "none"


def _grouped(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """One text per group of ``names``: the outermost module with nothing among ``known``."""
    inner = {tuple(name.split(".")[:end]) for name in known for end in range(name.count(".") + 2)}
    counts: dict[tuple[str, ...], int] = {}
    for name in names:
        parts = tuple(name.split("."))
        end = next((n for n in range(1, len(parts)) if parts[:n] not in inner), len(parts))
        counts[parts[:end]] = counts.get(parts[:end], 0) + 1
    blocks: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for group in counts:
        pattern = tuple("*" if part.isdigit() else part for part in group)
        blocks.setdefault(pattern, []).append(group)
    return [
        f"{_joined(groups)}: {_tensors(sum(counts[group] for group in groups))}"
        for groups in blocks.values()
    ]


def _joined(groups: list[tuple[str, ...]]) -> str:
    columns = (dict.fromkeys(column) for column in zip(*groups, strict=True))
    return ".".join(
        next(iter(column)) if len(column) == 1 else _ranges(sorted(int(part) for part in column))
        for column in columns
    )


def _ranges(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _tensors(count: int) -> str:
    return f"{count} tensor" + ("s" if count != 1 else "")
