"""Which checkpoints each method's predictions come from, and the networks they hold."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dust3r.evaluation.methods import Method
from dust3r.uncertainty.sampling import DeepEnsemble, MonteCarloDropout
from dust3r.viz import load

DROPOUT, ENSEMBLE = MonteCarloDropout.family, DeepEnsemble.family

_HASHED = 1 << 20


@dataclass(frozen=True)
class Sampling:
    """How families that sample do it; see ``dust3r.uncertainty.sampling.MonteCarloDropout``."""

    samples: int = 8
    rate: float = 0.1
    same_scale: bool = False


@dataclass(frozen=True)
class Source:
    """A network: ``name`` for files, its checkpoints, and how it samples: '', mcd or ensemble."""

    name: str
    paths: tuple[Path, ...]
    family: str = ""
    sampling: Sampling = Sampling()

    @classmethod
    def of(cls, paths: Sequence[Path], family: str, sampling: Sampling) -> "Source":
        """Named by files and their content (size, first and last megabyte), and by the sampling.

        Args:
            family: of the method that it is for; all that do not sample share a network.

        Raises:
            ValueError: more files than one, but for an ensemble, or an ensemble of one.
            FileNotFoundError: a file is not there.
        """
        if family == ENSEMBLE and len(paths) < 2:
            raise ValueError(
                "--ckpt: an ensemble has two members or more, whose disagreement is its "
                f"uncertainty, and {', '.join(map(str, paths))} is one; give "
                f"{ENSEMBLE}=FIRST.pth,SECOND.pth"
            )
        if family != ENSEMBLE and len(paths) > 1:
            raise ValueError(
                f"--ckpt: {len(paths)} files for one method of family {family!r}; only "
                f"{ENSEMBLE!r} takes more than one"
            )
        digest = hashlib.sha256()
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"--ckpt: there is no file {path}")
            digest.update(_fingerprint(path))
        family = family if family in (DROPOUT, ENSEMBLE) else ""
        if family:
            digest.update(repr((family, sampling)).encode())
        stem = "+".join(dict.fromkeys(path.stem for path in paths))[:60]
        name = "-".join(filter(None, (family, stem, digest.hexdigest()[:10])))
        return cls(name, tuple(paths), family, sampling)

    def build(self, device: torch.device, seed: int = 0) -> nn.Module:
        """The network, in eval mode, for batches in landscape layout.

        Raises:
            ValueError, FileNotFoundError, dust3r.training.checkpoint.CheckpointError: see
                ``dust3r.viz.load`` and ``dust3r.uncertainty.sampling``.
        """
        members = [load(path, None, seed)[0].to(device).eval() for path in self.paths]
        options = self.sampling
        if self.family == DROPOUT:
            return MonteCarloDropout(
                members[0], options.samples, options.rate, seed, options.same_scale
            ).eval()
        if self.family == ENSEMBLE:
            return DeepEnsemble(members, options.same_scale).eval()
        return members[0]

    def __str__(self) -> str:
        return ",".join(map(str, self.paths))


def sources_of(
    methods: Sequence[Method], given: Sequence[str], sampling: Sampling
) -> dict[str, Source]:
    """Label of a method -> its network, of ``name=path`` arguments, or a path for all others.

    Raises:
        ValueError: a method has none, or a name is no method's; and as ``Source.of``.
        FileNotFoundError: a file is not there.
    """
    named: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else ("", text)
        if name in named:
            raise ValueError(f"--ckpt: {name or 'the one for all methods'} is given twice")
        named[name] = path
    labels = [method.label for method in methods]
    unknown = [name for name in named if name and name not in labels]
    if unknown:
        raise ValueError(
            f"--ckpt names {', '.join(unknown)}, and --methods {', '.join(labels)}: a checkpoint "
            "goes to a method by its label"
        )
    missing = [label for label in labels if label not in named and "" not in named]
    if missing:
        raise ValueError(
            f"no checkpoint for {', '.join(missing)}: add --ckpt "
            f"{' '.join(f'{label}=PATH' for label in missing)}, or a PATH without a name for all "
            "methods that have none of their own"
        )
    sources = {}
    for method in methods:
        paths = [Path(path) for path in named.get(method.label, named.get("", "")).split(",")]
        sources[method.label] = Source.of(paths, method.family, sampling)
    return sources


@torch.no_grad()
def prediction_keys(source: Source, network: nn.Module, device: torch.device) -> set[str]:
    """The maps that a network predicts of its first view, found by showing it two grey images."""
    model = {DROPOUT: lambda: network.model, ENSEMBLE: lambda: network.members[0]}
    model = model.get(source.family, lambda: network)()
    height, width = (side * model.patch_size for side in model.patch_embed.grid_size)
    view = {
        "img": torch.zeros(1, 3, height, width, device=device),
        "true_shape": torch.tensor([[height, width]]),
    }
    return set(network(view, view)[0])


def _fingerprint(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HASHED)
        file.seek(max(0, size - _HASHED))
        return f"{size}".encode() + head + file.read()
