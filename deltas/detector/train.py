"""Train the detector that teaches DELTAS interest points, on drawn shapes.

python -m deltas.detector.train --output output/corners.safetensors

The run's state lies beside the output (``corners-last.pth``); the same command goes on from it.
At the end the detector is measured on shapes it has not seen.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from deltas.detector.adaptation import adapted_scores, random_homographies, warp
from deltas.detector.corners import SyntheticCorners
from deltas.detector.metrics import Detection, detection, repeatability
from deltas.detector.superpoint import SuperPoint
from deltas.interest import suppress
from dust3r.training import checkpoint
from dust3r.training.checkpoint import CheckpointError
from dust3r.training.schedule import Schedule, make_optimizer
from dust3r.utils.command import exit_status

log = logging.getLogger(__name__)

WEIGHT_DECAY = 0.01
USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError, CheckpointError)


@dataclass(frozen=True)
class Settings:
    """What a run is; a run goes on from a state of the same settings alone.

    Attributes:
        steps, batch_size: number of batches, and of images in each.
        size: (width, height) of the images.
        width: of ``SuperPoint``.
        lr: largest learning rate.
        warmup_steps: until it is reached; half a cosine to 0 follows.
        seed: of weights and images. Images to measure on have the next one.
        precision: of convolutions, 'fp32' or 'bf16', the faster one where processors have it.
    """

    steps: int = 1000
    batch_size: int = 16
    size: tuple[int, int] = (160, 120)
    width: int = 16
    lr: float = 3e-3
    warmup_steps: int = 100
    seed: int = 0
    precision: str = "fp32"


def train(
    settings: Settings, state_path: Path, save_steps: int = 200, workers: int = 0
) -> SuperPoint:
    """Train a detector, going on from the state at ``state_path`` if there is one.

    Args:
        settings: of the run.
        state_path: of its state, written every ``save_steps`` and at the end.
        save_steps: batches from one state to the next.
        workers: processes that draw images.

    Returns:
        the detector with its batch norms, in eval mode.

    Raises:
        CheckpointError: there is a state of other settings, or it cannot be read.
        FloatingPointError: the loss is not finite; the last state stays.
    """
    torch.manual_seed(settings.seed)
    detector = SuperPoint(settings.width, batch_norms=True)
    detector = detector.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(detector, WEIGHT_DECAY)
    first = _resume(settings, state_path, detector, optimizer)
    schedule = Schedule(settings.lr, 0.0, settings.warmup_steps, settings.steps)
    bar = tqdm(total=settings.steps, initial=first, desc="training")
    for step, batch in enumerate(_batches(settings, first, workers), start=first):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step + 1)
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            logits = detector(images)
        loss = F.cross_entropy(logits.float(), batch["labels"])
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step + 1}: lr={settings.lr} is too large"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if (step + 1) % save_steps == 0 or step + 1 == settings.steps:
            checkpoint.save(
                state_path,
                {
                    "model": detector.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "settings": _plain(settings),
                },
            )
            log.info("step %d: loss %.4f", step + 1, loss.item())
    bar.close()
    return detector.eval()


def measure(
    detector: SuperPoint, data: SyntheticCorners, threshold: float = 0.015
) -> tuple[Detection, float]:
    """Precision and the rest against the corners of ``data``, and repeatability.

    Args:
        detector: in eval mode.
        data: images it was not trained on.
        threshold: of points; average precision takes the better points first.

    Returns:
        detection, and the mean part of points found again in warped images.
    """
    found, scores, corners, repeated = [], [], [], []
    generator = torch.Generator().manual_seed(data.seed)
    for index in range(len(data)):
        drawn, known = data.draw(index)
        image = torch.from_numpy(drawn)[None]
        points, score = _points(detector, image, threshold)
        found.append(points), scores.append(score), corners.append(known)
        homography = random_homographies(1, image.shape[-2:], generator)
        again, _ = _points(detector, warp(image[None], homography.inverse())[0], threshold)
        if len(points):
            repeated.append(repeatability(points, again, homography[0].double().numpy(), data.size))
    return detection(found, scores, corners), float(torch.tensor(repeated).nanmean())


def main(argv: Sequence[str] | None = None) -> int:
    """Train, write and measure; the exit status."""
    return exit_status(run, _parse(argv), USER_ERRORS)


def run(args: argparse.Namespace) -> list[str]:
    """The lines that tell how good the detector is; raises as ``train``."""
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    settings = Settings(**{**given, "size": tuple(args.size)})
    state_path = args.output.with_name(f"{args.output.stem}-last.pth")
    detector = train(settings, state_path, args.save_steps, args.workers).folded()
    metadata = {
        "detector": "SuperPoint",
        "trained_on": "synthetic corners (deltas.detector.corners.SyntheticCorners)",
        **{name: str(value) for name, value in _plain(settings).items()},
    }
    checkpoint.save_safetensors(args.output, detector.state_dict(), metadata)
    held_out = SyntheticCorners(args.test_images, settings.size, settings.seed + 1)
    result, repeated = measure(detector, held_out, args.threshold)
    return [
        f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB",
        f"on {len(held_out)} unseen images, within 3 px, score above {args.threshold}:",
        f"precision {result.precision:.3f}, recall {result.recall:.3f}, average precision "
        f"{result.average_precision:.3f}, error {result.error:.2f} px",
        f"repeatability {repeated:.3f}",
    ]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    plain = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument("--steps", type=int, default=plain.steps)
    parser.add_argument("--batch_size", type=int, default=plain.batch_size)
    parser.add_argument(
        "--size", type=int, nargs=2, default=plain.size, metavar=("WIDTH", "HEIGHT")
    )
    parser.add_argument("--width", type=int, default=plain.width, help="64 is the published one")
    parser.add_argument("--lr", type=float, default=plain.lr)
    parser.add_argument("--warmup_steps", type=int, default=plain.warmup_steps)
    parser.add_argument("--seed", type=int, default=plain.seed)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=plain.precision)
    parser.add_argument("--save_steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw images")
    parser.add_argument("--test_images", type=int, default=200)
    parser.add_argument("--threshold", type=float, default=0.015, help="of points, to measure")
    parser.add_argument("--silent", action="store_true", help="only warnings and errors")
    args = parser.parse_args(argv)
    if args.output.suffix != ".safetensors":
        parser.error(f"--output {args.output}: expected a name that ends in .safetensors")
    if min(args.steps, args.batch_size, args.save_steps, args.test_images) < 1:
        parser.error("--steps, --batch_size, --save_steps and --test_images are at least 1")
    return args


def _batches(settings: Settings, first: int, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    count = settings.steps * settings.batch_size
    data = SyntheticCorners(count, settings.size, settings.seed)
    rest = Subset(data, range(first * settings.batch_size, count))
    return iter(DataLoader(rest, settings.batch_size, num_workers=workers))


def _resume(
    settings: Settings, path: Path, detector: SuperPoint, optimizer: torch.optim.Optimizer
) -> int:
    """Batches that the state at ``path`` has seen; 0 where there is none."""
    if not path.exists():
        return 0
    state = checkpoint.load_file(path)
    theirs, ours = state.get("settings"), _plain(settings)
    if theirs != ours:
        raise CheckpointError(
            f"{path} is the state of a run with {theirs}, and this one has {ours}: take the same "
            "arguments, another --output, or remove the file"
        )
    detector.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _points(
    detector: SuperPoint, image: torch.Tensor, threshold: float, radius: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 2), (x, y), and their scores (N,), of a grey image (1, H, W)."""
    kept = suppress(adapted_scores(detector, image[None], 1), radius)[0]
    rows, columns = (kept > threshold).nonzero(as_tuple=True)
    return torch.stack([columns, rows], -1).double().numpy(), kept[rows, columns].numpy()


def _plain(settings: Settings) -> dict[str, int | float | list[int]]:
    return {**vars(settings), "size": list(settings.size)}


if __name__ == "__main__":
    sys.exit(main())
