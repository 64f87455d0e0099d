"""What a training run of DELTAS shows of the first samples of a batch."""

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from deltas.evaluation.figures import depth_maps
from deltas.evaluation.measure import only
from deltas.model import DeltasPrediction
from dust3r.training.logging import PANEL_SAMPLES
from dust3r.utils.image import rgb
from dust3r.utils.plots import Block, Map, sheet

_PANEL_INCHES = 1.9


def batch_figures(
    depth_range: tuple[float, float],
    inputs: tuple[Mapping[str, Any]],
    predictions: tuple[DeltasPrediction],
    step: int,
    group: str,
) -> Iterator[tuple[str, Figure]]:
    """Image, triangulated, dense and true depth, and its error, a row for each sample.

    Args:
        depth_range: of the true depths that count, metres.
        inputs, predictions, step, group: of ``Recorder.panels``.
    """
    (batch,), (prediction,) = inputs, predictions
    blocks = []
    for index in range(min(PANEL_SAMPLES, len(batch["img"]))):
        alone, said = only(index, batch, prediction)
        image = rgb(alone["img"][0, 0])
        height, width = image.shape[:2]
        maps = [Map("anchor", image), *depth_maps(alone, said, depth_range)]
        panel = (_PANEL_INCHES * width / height, _PANEL_INCHES)
        blocks.append(Block([maps], panel, str(alone["label"][0][0])))
    yield "depth", sheet(blocks, f"batch {step}")
