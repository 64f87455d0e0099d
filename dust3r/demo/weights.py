"""Which model the demo runs, and at what size of image."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download

from dust3r.model import AsymmetricCroCo3DStereo, for_upright_images, load_model
from dust3r.uncertainty.calibration import Calibration
from dust3r.uncertainty.calibration_file import load_for
from dust3r.uncertainty.families import family_of_head
from dust3r.utils.hub import HUB_ERRORS, not_found
from dust3r.utils.spec import MODELS

log = logging.getLogger(__name__)

# The project's own models, the one with uncertainty first.
SHIPPED = ("rooms_small_uq.safetensors", "rooms_small.safetensors")
FOLDER = Path(__file__).parents[2] / "checkpoints"
SMALL_SIZE, LARGE_SIZE = 224, 512


def load(
    weights: Path | None, model_name: str | None, preferred: Sequence[str] = ()
) -> tuple[AsymmetricCroCo3DStereo, str]:
    """The model of a checkpoint or of the hub, in eval mode on the CPU, and its name to show.

    The project's own small model where neither is given: the first there is of ``preferred``, then
    ``SHIPPED``.

    Raises:
        FileNotFoundError: there is no such file, or the hub has or gives none of that name.
        dust3r.training.checkpoint.CheckpointError: the file is no checkpoint, or not a safe one.
        ValueError: the checkpoint is not of a pairwise pointmap model.
    """
    path = weights or (Path(model_name) if model_name else _shipped(preferred))
    name = path.stem
    if path.is_file():
        model = load_model(path)
    elif (path / "config.json").is_file():
        model = _kind(path / "config.json").from_pretrained(path)
    elif path.is_dir():
        model = AsymmetricCroCo3DStereo.from_pretrained(path)
    elif model_name is not None:
        model, name = _from_hub(model_name), model_name
    else:
        raise FileNotFoundError(
            f"there is no weights file {path}; check the path of --weights, or give --model_name "
            "with a name on the Hugging Face hub"
        )
    if not isinstance(model, AsymmetricCroCo3DStereo):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, which is no pairwise pointmap model; give the "
            "weights of a DUSt3R or MASt3R model"
        )
    for_upright_images(model)
    return model.eval(), name


def load_calibration(
    name: str | None,
    weights: Path | None,
    model_name: str | None,
    model: AsymmetricCroCo3DStereo,
) -> Calibration | None:
    """The calibration of a checkpoint; None where ``name`` is.

    Args:
        name: file, folder, or 'auto' for the checkpoint's own folder; see ``load_for``.
        weights, model_name: as of ``load``, which made ``model``.
        model: of that checkpoint.

    Raises:
        FileNotFoundError, ValueError: see ``dust3r.uncertainty.calibration_file.load_for``; or
            the model states no deviation, or was not loaded from a file.
    """
    if name is None:
        return None
    if not model.states_variance:
        raise ValueError(
            "--calibration needs a model that states a deviation: give --weights whose head_type "
            "is dpt_uq or dpt_uq_feat, or has a distribution of points"
        )
    path = weights or (Path(model_name) if model_name else _shipped(()))
    if not path.is_file():
        raise ValueError(f"--calibration is for a file of weights, and {path} is none")
    return load_for(name, path, [family_of_head(model.head_type)])


def native_size(model: AsymmetricCroCo3DStereo) -> int:
    """Longer side of the images that a model is made for: 224, or 512 for all larger ones."""
    side = max(model.patch_embed.grid_size) * model.patch_size
    return SMALL_SIZE if side <= SMALL_SIZE else LARGE_SIZE


def _shipped(preferred: Sequence[str]) -> Path:
    paths = [FOLDER / name for name in (*preferred, *SHIPPED)]
    return next((path for path in paths if path.is_file()), paths[-1])


def _from_hub(name: str) -> AsymmetricCroCo3DStereo:
    repository = name if "/" in name else f"naver/{name}"
    try:
        settings = Path(hf_hub_download(repository, "config.json"))
    except HUB_ERRORS as error:
        raise not_found(repository, error) from error
    return _kind(settings).from_pretrained(repository)


def _kind(settings: Path) -> type[AsymmetricCroCo3DStereo]:
    """The class of published weights, whose settings do not name it: MASt3R's have descriptors."""
    has_descriptors = "desc" in str(json.loads(settings.read_text()).get("output_mode"))
    return MODELS.get("AsymmetricMASt3R" if has_descriptors else "AsymmetricCroCo3DStereo")
