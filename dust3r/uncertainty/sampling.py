"""Uncertainty from several predictions of one pair: dropout at test time, and deep ensembles.

Both are used in place of a model: called with two views, or with ``encode_image`` and ``predict``
by ``dust3r.inference``, they give the two predictions of ``DESIGN``. The points are the mean of
the samples, with their variance beside it; read them by ``dust3r.uncertainty.families``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from croco.blocks import Mlp
from croco.dpt import FusionBlock
from dust3r.heads.linear import PointmapLinear
from dust3r.model import AsymmetricCroCo3DStereo, load_model
from dust3r.uncertainty.families import FAMILIES, family_of, sampled_keys
from dust3r.utils.view import points_key

Prediction = dict[str, Tensor]
Encoded = tuple[Tensor, Tensor]


class _Sampled(nn.Module):
    """What stands in for a model: ``predict`` is the subclass's, the rest is the same."""

    landscape_only = False
    states_variance = False

    def forward(
        self, view1: dict[str, Any], view2: dict[str, Any]
    ) -> tuple[Prediction, Prediction]:
        """Predictions of two views, as a model's."""
        shapes = [_upright_shape(view) for view in (view1, view2)]
        encoded = [
            self.encode_image(view["img"], shape)
            for view, shape in zip((view1, view2), shapes, strict=True)
        ]
        return self.predict(encoded[0], shapes[0], encoded[1], shapes[1])


class MonteCarloDropout(_Sampled):
    """Dropout in the heads at test time (Gal and Ghahramani, 2016).

    The trunk, encoder and decoders, runs once and is shared by all samples. Dropped are whole
    channels of the DPTs' fused maps, since single entries would average out in the convolutions
    and interpolations that follow, and entries of what the MLPs and linear heads read.

    Args:
        model: in eval mode; its weights are not changed, and need not have known dropout.
        samples: 2 or more.
        rate: the share that is dropped, between 0 and 1.
        seed: of the masks; the same call gives the same prediction. None to leave torch's state
            of random numbers as it is.
        same_scale: scale each sample's points to the first sample's, one factor for both views of a
            pair, for models whose scale is arbitrary.

    Raises:
        ValueError: ``samples`` or ``rate`` are not as above.
    """

    family = "mcd"

    def __init__(
        self,
        model: AsymmetricCroCo3DStereo,
        samples: int = 8,
        rate: float = 0.1,
        seed: int | None = 0,
        same_scale: bool = False,
    ):
        super().__init__()
        if samples < 2:
            raise ValueError(f"samples={samples}: a variance needs 2 samples or more")
        if not 0 < rate < 1:
            raise ValueError(f"rate={rate}: the share that is dropped lies between 0 and 1")
        self.model = model
        self.landscape_only = model.landscape_only
        self.patch_size = model.patch_size
        self.samples, self.rate, self.seed, self.same_scale = samples, rate, seed, same_scale

    def encode_image(self, image: Tensor, true_shape: Tensor) -> Encoded:
        return self.model.encode_image(image, true_shape)

    def predict(
        self, features1: Encoded, true_shape1: Tensor, features2: Encoded, true_shape2: Tensor
    ) -> tuple[Prediction, Prediction]:
        """As a model's, with the keys of ``sampled_keys('mcd')``; descriptors are undropped."""
        net = self.model
        layers1, layers2 = net.decode(*features1, *features2)

        def heads() -> tuple[Prediction, Prediction]:
            first = net.run_head(net.downstream_head1, layers1, true_shape1)
            second = net.run_head(net.downstream_head2, layers2, true_shape2)
            second["pts3d_in_other_view"] = second.pop("pts3d")
            return first, second

        moments = Moments(self.family, self.same_scale)
        device = features1[0].device
        devices = [device] if device.type == "cuda" else []
        undropped = heads()
        with torch.random.fork_rng(devices, enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(self.seed)
            with head_dropout(net, self.rate):
                for _ in range(self.samples):
                    moments.add(heads())
        return moments.predictions(like=undropped)


class DeepEnsemble(_Sampled):
    """Models trained apart from different seeds (Lakshminarayanan et al., 2017), run in turn.

    Args:
        members: two models or more, of one head type, in eval mode.
        same_scale: as of ``MonteCarloDropout``; members trained on scale-free losses need it.

    Raises:
        ValueError: fewer than two members, or of different head types.
    """

    family = "ensemble"

    def __init__(
        self,
        members: Sequence[AsymmetricCroCo3DStereo],
        same_scale: bool = False,
    ):
        super().__init__()
        _check_enough(len(members))
        kinds = sorted({f"{type(m).__name__}(head_type={m.head_type!r})" for m in members})
        if len(kinds) > 1:
            raise ValueError(f"members of an ensemble are of one kind; these are {kinds}")
        self.members = nn.ModuleList(members)
        self.same_scale = same_scale
        self.landscape_only = members[0].landscape_only
        self.patch_size = members[0].patch_size

    @classmethod
    def from_checkpoints(
        cls,
        paths: Sequence[str | Path],
        device: str | torch.device = "cpu",
        same_scale: bool = False,
    ) -> "DeepEnsemble":
        """The ensemble of the models of these checkpoint files.

        Raises:
            ValueError: as of the class, or a file is given twice.
            FileNotFoundError, dust3r.training.checkpoint.CheckpointError: see ``load_model``.
        """
        repeated = sorted({str(path) for path in paths if list(paths).count(path) > 1})
        if repeated:
            raise ValueError(
                f"{', '.join(repeated)} is a member more than once: it would agree with itself"
            )
        _check_enough(len(paths))
        return cls([load_model(path, device, verbose=False) for path in paths], same_scale)

    def encode_image(self, image: Tensor, true_shape: Tensor) -> Encoded:
        """The members' tokens side by side, (B, N, members x enc_dim), and the positions."""
        encoded = [member.encode_image(image, true_shape) for member in self.members]
        return torch.cat([tokens for tokens, _ in encoded], dim=-1), encoded[0][1]

    def predict(
        self, features1: Encoded, true_shape1: Tensor, features2: Encoded, true_shape2: Tensor
    ) -> tuple[Prediction, Prediction]:
        """As a model's, with the keys of ``sampled_keys('ensemble')``."""
        moments = Moments(self.family, self.same_scale)
        tokens1, tokens2 = (f[0].chunk(len(self.members), dim=-1) for f in (features1, features2))
        for member, own1, own2 in zip(self.members, tokens1, tokens2, strict=True):
            own1, own2 = (own1, features1[1]), (own2, features2[1])
            moments.add(member.predict(own1, true_shape1, own2, true_shape2))
        return moments.predictions()


class Moments:
    """Mean and variance of the points of predictions of one pair, added one at a time (Welford).

    Args:
        family: whose ``sampled_keys`` the result has.
        same_scale: as of ``MonteCarloDropout``.
    """

    def __init__(self, family: str, same_scale: bool = False):
        self.between_key, self.within_key = sampled_keys(family)
        self.same_scale = same_scale
        self.count = 0
        self.first: list[Tensor] = []
        self.mean: list[Tensor] = []
        self.deviations: list[Tensor] = []
        self.within: list[Tensor | None] = []
        self.others: list[Prediction] = []

    def add(self, predictions: tuple[Prediction, Prediction]) -> None:
        """Count the predictions of one more sample."""
        points = [prediction[points_key(prediction)].float() for prediction in predictions]
        within = [_variance_within(prediction) for prediction in predictions]
        if self.same_scale and self.count:
            factor = _scale_to(self.first, points)
            points = [factor * p for p in points]
            within = [None if w is None else factor.square() * w for w in within]
        others = [{k: p[k].float() for k in _AVERAGED if k in p} for p in predictions]
        self.count += 1
        if self.count == 1:
            self.first, self.mean, self.within, self.others = points, points, within, others
            self.deviations = [torch.zeros_like(p) for p in points]
            self.keys = [points_key(prediction) for prediction in predictions]
            return
        for view in range(len(points)):
            step = points[view] - self.mean[view]
            self.mean[view] = self.mean[view] + step / self.count
            self.deviations[view] = self.deviations[view] + step * (points[view] - self.mean[view])
            self.within[view] = self._averaged(self.within[view], within[view])
            self.others[view] = {
                name: self._averaged(value, others[view][name])
                for name, value in self.others[view].items()
            }

    def predictions(
        self, like: tuple[Prediction, Prediction] | None = None
    ) -> tuple[Prediction, Prediction]:
        """What the samples say together.

        The points are their mean, (B,H,W,3); the variance between them is unbiased, (B,3,H,W), and
        the mean of the variances that each stated is there if all did. Where a sample is not
        finite, neither is the result. Confidences and descriptors are averaged, or those of
        ``like``.
        """
        made = []
        for view, key in enumerate(self.keys):
            others = self.others[view] if like is None else like[view]
            prediction = {name: others[name] for name in _AVERAGED if name in others}
            if "desc" in prediction:
                prediction["desc"] = F.normalize(prediction["desc"], dim=-1)
            prediction[key] = self.mean[view]
            variance = self.deviations[view] / (self.count - 1)
            prediction[self.between_key] = variance.movedim(-1, 1)
            if self.within[view] is not None:
                prediction[self.within_key] = self.within[view]
            made.append(prediction)
        return made[0], made[1]

    def _averaged(self, mean: Tensor | None, new: Tensor | None) -> Tensor | None:
        if mean is None or new is None:
            return None
        return mean + (new - mean) / self.count


@contextmanager
def head_dropout(model: AsymmetricCroCo3DStereo, rate: float) -> Iterator[None]:
    """Within it, the heads of ``model`` drop a share ``rate``, in eval mode too."""

    def drop_channels(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return F.dropout2d(output, rate, training=True)

    def drop_entries(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (F.dropout(inputs[0], rate, training=True),)

    hooks = []
    for head in (model.downstream_head1, model.downstream_head2):
        for part in head.modules():
            if isinstance(part, FusionBlock):
                hooks.append(part.register_forward_hook(drop_channels))
            elif isinstance(part, Mlp):
                hooks.append(part.fc2.register_forward_pre_hook(drop_entries))
            elif isinstance(part, PointmapLinear):
                hooks.append(part.proj.register_forward_pre_hook(drop_entries))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


_AVERAGED = ("conf", "desc", "desc_conf")


def _check_enough(members: int) -> None:
    if members < 2:
        raise ValueError(
            f"an ensemble has two members or more, and this one has {members}: give more "
            "checkpoints, trained with different --seed"
        )


def _variance_within(prediction: Prediction) -> Tensor | None:
    """(B,3,H,W) that a prediction states by itself of its points' noise; None if it does not."""
    if not any(name in prediction for name in ("xyz_gamma", "xyz_niw_L", "xyz_logvar")):
        return None
    return FAMILIES[family_of(prediction)].points(prediction).aleatoric


def _scale_to(wanted: list[Tensor], given: list[Tensor]) -> Tensor:
    """(B,1,1,1): the median ratio of distances from camera 1, over the pixels of both views."""
    far, near = (
        torch.cat([points.norm(dim=-1).flatten(1) for points in views], dim=1)
        for views in (wanted, given)
    )
    ratio = (far / near.clamp(min=torch.finfo(near.dtype).tiny)).nanmedian(dim=1).values
    return ratio[:, None, None, None]


def _upright_shape(view: dict[str, Any]) -> Tensor:
    shape = view.get("true_shape")
    if shape is None:
        return torch.tensor(view["img"].shape[-2:]).expand(len(view["img"]), 2)
    return torch.as_tensor(shape)
