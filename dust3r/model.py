"""AsymmetricCroCo3DStereo: two images to two pointmaps in the first camera's frame.

Wang et al., "DUSt3R: Geometric 3D Vision Made Easy", 2024.
"""

import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from croco.croco import CroCoNet, CroCoTrunk
from croco.packing import pack_linear_layers
from dust3r.heads import build_head
from dust3r.heads.postprocess import Mode
from dust3r.patch_embed import PATCH_EMBEDS, PatchEmbedDust3R
from dust3r.training import checkpoint
from dust3r.uncertainty.families import family_of_head
from dust3r.utils.hub import HUB_ERRORS, not_found
from dust3r.utils.spec import MODELS, SpecError, build

log = logging.getLogger(__name__)

MODELS.register()(CroCoNet)

FREEZABLE = {
    "none": (),
    "mask": ("mask_token",),
    "encoder": ("mask_token", "patch_embed", "enc_blocks", "enc_norm"),
}


@MODELS.register()
class AsymmetricCroCo3DStereo(
    CroCoTrunk,
    PyTorchModelHubMixin,
    library_name="dust3r",
    tags=["image-to-3d", "uncertainty"],
):
    """A siamese encoder, two decoders that see each other, and a head for each view.

    Defaults are the published large size. State-dict names are those of the published weights.

    Args:
        head_type: a name of ``dust3r.heads.HEADS``.
        depth_mode, conf_mode: activations of points and confidences (``dust3r.heads.postprocess``).
        freeze: ``'none'``, ``'mask'`` or ``'encoder'``: what never trains.
        landscape_only: batches are in landscape layout, portrait images transposed; when False a
            batch has one upright shape.
        patch_embed_cls: ``'PatchEmbedDust3R'`` or ``'ManyAR_PatchEmbed'`` (mixed batches).
        dpt_dim: width of DPT heads.
    """

    def __init__(
        self,
        output_mode: str = "pts3d",
        head_type: str = "linear",
        depth_mode: Mode = ("exp", -torch.inf, torch.inf),
        conf_mode: Mode | None = ("exp", 1, torch.inf),
        freeze: str = "none",
        landscape_only: bool = True,
        patch_embed_cls: str = "PatchEmbedDust3R",
        img_size: int | tuple[int, int] = (224, 224),
        patch_size: int = 16,
        pos_embed: str = "RoPE100",
        enc_embed_dim: int = 1024,
        enc_depth: int = 24,
        enc_num_heads: int = 16,
        dec_embed_dim: int = 768,
        dec_depth: int = 12,
        dec_num_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm_im2_in_dec: bool = True,
        dpt_dim: int = 256,
    ):
        if patch_embed_cls not in PATCH_EMBEDS:
            raise ValueError(f"patch_embed_cls={patch_embed_cls!r} is none of {list(PATCH_EMBEDS)}")
        if freeze not in FREEZABLE:
            raise ValueError(f"freeze={freeze!r} is none of {list(FREEZABLE)}")
        # Read by make_patch_embed during the trunk's construction; nn.Module allows plain values.
        self._patch_embed_class = PATCH_EMBEDS[patch_embed_cls]
        super().__init__(
            img_size,
            patch_size,
            pos_embed,
            enc_embed_dim,
            enc_depth,
            enc_num_heads,
            dec_embed_dim,
            dec_depth,
            dec_num_heads,
            mlp_ratio,
            norm_im2_in_dec,
        )
        self.check_output_mode(output_mode, head_type)
        self.output_mode = output_mode
        self.head_type = head_type
        self.depth_mode = tuple(depth_mode)
        self.conf_mode = tuple(conf_mode) if conf_mode else None
        self.landscape_only = landscape_only
        self.dpt_dim = dpt_dim
        self.initialize_weights()
        self.dec_blocks2 = deepcopy(self.dec_blocks)
        self.downstream_head1 = build_head(head_type, self)
        self.downstream_head2 = build_head(head_type, self)
        # Kept for its name alone: only CroCo's pre-training hides patches.
        self.mask_token.requires_grad_(False)
        self.freeze = freeze
        for name in FREEZABLE[freeze]:
            getattr(self, name).requires_grad_(False)

    def make_patch_embed(self, img_size: tuple[int, int]) -> nn.Module:
        return self._patch_embed_class(img_size, self.patch_size, self.enc_embed_dim)

    @property
    def states_variance(self) -> bool:
        """Whether predictions hold a variance: of depth (GeoUQ, FeatUQ), or of points."""
        return family_of_head(self.head_type) is not None

    def check_output_mode(self, output_mode: str, head_type: str) -> None:
        """Raises ValueError where the head does not give what ``output_mode`` asks for."""
        if output_mode != "pts3d":
            raise ValueError(
                f"output_mode={output_mode!r}: head_type={head_type!r} gives 'pts3d'; descriptors "
                "('pts3d+desc24') come from AsymmetricMASt3R with head_type='catmlp+dpt'"
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "AsymmetricCroCo3DStereo":
        """A model from a checkpoint file, a folder that holds one, or a name on the hub.

        Raises:
            FileNotFoundError: no such file or folder here, and the hub cannot be asked or has none.
            dust3r.training.checkpoint.CheckpointError: the file is not a checkpoint, or not safe.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_file():
            return load_model(path, device=kwargs.get("map_location", "cpu"))
        if path.is_dir() and not (path / "config.json").is_file():
            return load_model(_checkpoint_in(path), device=kwargs.get("map_location", "cpu"))
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except HUB_ERRORS as error:
            raise not_found(pretrained_model_name_or_path, error) from error

    def load_state_dict(self, state_dict: Mapping[str, Tensor], **kwargs: Any) -> Any:
        """As ``nn.Module``'s; the one decoder of a CroCo file is used for both."""
        if not any(name.startswith("dec_blocks2") for name in state_dict):
            state_dict = dict(state_dict) | {
                name.replace("dec_blocks.", "dec_blocks2.", 1): tensor
                for name, tensor in state_dict.items()
                if name.startswith("dec_blocks.")
            }
        return super().load_state_dict(state_dict, **kwargs)

    def compile_layers(self) -> None:
        """As ``CroCoTrunk``'s, the heads as well."""
        super().compile_layers()
        for part in (*self.dec_blocks2, self.downstream_head1, self.downstream_head2):
            part.compile()

    def pack_weights(self, dtype: torch.dtype = torch.float32) -> int:
        """Make inference on the CPU faster, for a reordered copy of the weights in memory.

        Training, GPUs and other types go on as before. See ``croco.packing``.

        Args:
            dtype: fp32, or bf16 for inference under ``torch.autocast`` on CPUs that know bf16.

        Returns:
            the number of layers that were packed, 0 where torch was built without oneDNN or the
            processor does not know bf16.
        """
        return pack_linear_layers(self, dtype)

    def forward(
        self, view1: dict[str, Any], view2: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predictions of two views (DESIGN 2), both in camera 1's frame.

        A view needs ``img`` (B, 3, H, W); ``true_shape`` (B, 2) where portrait images travel
        transposed; ``instance`` to recognise a symmetrised batch, whose images are encoded once.
        """
        shape1, shape2 = _true_shape(view1), _true_shape(view2)
        features1, features2 = self.encode_pair(view1, view2)
        return self.predict(features1, shape1, features2, shape2)

    def predict(
        self,
        features1: tuple[Tensor, Tensor],
        true_shape1: Tensor,
        features2: tuple[Tensor, Tensor],
        true_shape2: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``forward`` from where both views are encoded.

        Args:
            features1, features2: tokens and positions of ``encode_image``.
            true_shape1, true_shape2: (B, 2), upright (height, width).
        """
        layers1, layers2 = self.decode(*features1, *features2)
        prediction1 = self.run_head(self.downstream_head1, layers1, true_shape1)
        prediction2 = self.run_head(self.downstream_head2, layers2, true_shape2)
        prediction2["pts3d_in_other_view"] = prediction2.pop("pts3d")
        return prediction1, prediction2

    def encode_image(self, image: Tensor, true_shape: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder tokens (B, N, enc_dim) and (row, column) positions (B, N, 2) of images."""
        tokens, positions = self.patch_embed(image, true_shape)
        return self.encode_tokens(tokens, positions), positions

    def encode_pair(
        self, view1: dict[str, Any], view2: dict[str, Any]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """``encode_image`` of both views, each distinct image of a symmetrised batch once."""
        images = view1["img"], view2["img"]
        shapes = _true_shape(view1), _true_shape(view2)
        symmetrised = is_symmetrised(view1, view2)
        if symmetrised:
            images = tuple(image[::2] for image in images)
            shapes = tuple(shape[::2] for shape in shapes)
        if images[0].shape == images[1].shape:
            tokens, positions = self.encode_image(torch.cat(images), torch.cat(shapes))
            first, second = zip(tokens.chunk(2), positions.chunk(2), strict=True)
        else:
            first, second = map(self.encode_image, images, shapes)
        if not symmetrised:
            return first, second
        return (
            tuple(_interleave(a, b) for a, b in zip(first, second, strict=True)),
            tuple(_interleave(b, a) for a, b in zip(first, second, strict=True)),
        )

    def decode(
        self, tokens1: Tensor, positions1: Tensor, tokens2: Tensor, positions2: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens of the encoder and of every decoder layer, the last one normalised, per view."""
        layers1, layers2 = [tokens1], [tokens2]
        x1, rotation1 = self.enter_decoder(self.decoder_embed(tokens1), positions1)
        x2, rotation2 = self.enter_decoder(self.decoder_embed(tokens2), positions2)
        for block1, block2 in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            x1, x2 = block1(x1, x2, rotation1, rotation2), block2(x2, x1, rotation2, rotation1)
            layers1.append(x1)
            layers2.append(x2)
        layers1[-1], layers2[-1] = self.dec_norm(x1), self.dec_norm(x2)
        return layers1, layers2

    def run_head(
        self, head: nn.Module, layers: list[Tensor], true_shape: Tensor
    ) -> dict[str, Tensor]:
        """One head's prediction from a decoder's layers, of images of ``true_shape`` (B, 2)."""
        if not self.landscape_only:
            if (true_shape != true_shape[:1]).any():
                raise ValueError(
                    "with landscape_only=False a batch has one upright shape, and this one has "
                    f"{true_shape.unique(dim=0).tolist()} (height, width): batch them apart, or "
                    "use landscape_only=True with portrait images transposed"
                )
            return head(layers, tuple(true_shape[0].tolist()))

        height, width = sorted(true_shape[0].tolist())
        is_landscape = true_shape[:, 1] >= true_shape[:, 0]
        if is_landscape.all():
            return head(layers, (height, width))
        if not is_landscape.any():
            return _transpose(head(layers, (width, height)), (width, height))
        is_landscape = is_landscape.to(layers[0].device)
        wide = head([layer[is_landscape] for layer in layers], (height, width))
        tall = head([layer[~is_landscape] for layer in layers], (width, height))
        tall = _transpose(tall, (width, height))
        order = torch.cat([is_landscape.nonzero(), (~is_landscape).nonzero()]).flatten().argsort()
        return {name: torch.cat([wide[name], tall[name]])[order] for name in wide}


def load_model(
    path: str | Path, device: str | torch.device = "cpu", verbose: bool = True
) -> AsymmetricCroCo3DStereo:
    """The model of a checkpoint file, in eval mode, for upright images of any one shape per batch.

    Raises:
        FileNotFoundError, dust3r.training.checkpoint.CheckpointError: see ``checkpoint.load_file``.
    """
    loaded = checkpoint.load_file(path)
    args = loaded.get("args")
    if not getattr(args, "model", None):
        raise checkpoint.CheckpointError(
            f"{path} does not say which model its weights belong to (no args.model): build the "
            "model yourself and use dust3r.training.checkpoint.load_state_dict"
        )
    try:
        model = build(args.model, MODELS)
    except SpecError as error:
        raise checkpoint.CheckpointError(
            f"{path} names a model that is not known here. For one of MASt3R's classes, write "
            f"'import mast3r.model' first: dust3r does not import it. {error}"
        ) from error
    report = checkpoint.load_state_dict(model, loaded["model"])
    if verbose:
        log.info("%s: %s", path, report)
    for_upright_images(model)
    return model.eval().to(device)


def for_upright_images(model: AsymmetricCroCo3DStereo) -> None:
    """Switch a model trained on landscape batches to batches of one upright shape, in place."""
    model.landscape_only = False
    trained = model.patch_embed
    if not isinstance(trained, PatchEmbedDust3R):
        size = tuple(side * model.patch_size for side in trained.grid_size)
        model.patch_embed = PatchEmbedDust3R(size, model.patch_size, model.enc_embed_dim)
        model.patch_embed.load_state_dict(trained.state_dict())


def is_symmetrised(view1: dict[str, Any], view2: dict[str, Any]) -> bool:
    """Whether a batch is (a, b), (b, a), (c, d), (d, c), ... by the views' instances and images."""
    first, second = view1.get("instance"), view2.get("instance")
    if first is None or second is None or len(first) != len(second) or len(first) % 2:
        return False
    swapped = all(
        first[i] == second[i + 1] and second[i] == first[i + 1] for i in range(0, len(first), 2)
    )
    # One file may stand in a batch twice with two crops, so instances alone are no proof; a few
    # rows of pixels are.
    a, b = (view["img"][:, :, ::32] for view in (view1, view2))
    return swapped and torch.equal(a[::2], b[1::2]) and torch.equal(a[1::2], b[::2])


def _true_shape(view: dict[str, Any]) -> Tensor:
    image = view["img"]
    shape = view.get("true_shape")
    if shape is None:
        return torch.tensor(image.shape[-2:]).expand(len(image), 2)
    return torch.as_tensor(shape)


def _interleave(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a, b], dim=1).flatten(0, 1)


def _transpose(prediction: dict[str, Tensor], upright: tuple[int, int]) -> dict[str, Tensor]:
    # Points, confidences and descriptors are (B, H, W, ...), depth maps (B, 1, H, W).
    return {
        name: t.transpose(1, 2) if tuple(t.shape[1:3]) == upright else t.transpose(2, 3)
        for name, t in prediction.items()
    }


def _checkpoint_in(folder: Path) -> Path:
    for name in ("model.safetensors", "checkpoint-best.pth", "checkpoint-final.pth"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder} holds no config.json, checkpoint-best.pth or checkpoint-final.pth"
    )
