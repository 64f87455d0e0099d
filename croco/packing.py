"""Linear layers for inference on the CPU with weights in the order that oneDNN multiplies fastest.

A plain product reorders its weights on every call; at the few hundred rows of one image pair that
is a sixth of its time. Autocast also rounds them to bf16. ``scripts/bench_forward.py`` measures it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """``nn.Linear`` that also keeps a reordered copy of its weights, and names as before.

    An fp32 copy serves fp32 inputs outside of autocast, a bf16 copy autocast in bf16; both on the
    CPU and outside of autograd. Everything else, and weights that have changed since, take the
    ordinary way. Writing through ``weight.data`` is the one change that is not noticed: pack again
    after it.
    """

    def pack(self, dtype: torch.dtype) -> None:
        """Take the copy from the weights as they are now."""
        weight = self.weight.detach().to(dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.packed_bias = None if self.bias is None else self.bias.detach().to(dtype)
        self.packed_type = dtype
        self.packed_from = _state(self.weight), _state(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self._serves(x):
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(
            x.to(self.packed_type), self.packed, self.packed_bias, "none", [], ""
        )

    def _serves(self, x: Tensor) -> bool:
        if self.packed is None or x.device.type != "cpu" or torch.is_grad_enabled():
            return False
        # The type in which F.linear would compute.
        computes = x.dtype
        if torch.is_autocast_enabled("cpu"):
            computes = torch.get_autocast_dtype("cpu")
        now = _state(self.weight), _state(self.bias)
        return computes == self.packed_type and now == self.packed_from

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's tensors can be neither pickled nor copied.
        return self.__dict__ | {"packed": None}


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, and multiplies this type on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linear_layers(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Make every fp32 ``nn.Linear`` on the CPU inside ``model`` a ``PackedLinear``, in place.

    Args:
        dtype: of the copies: fp32, or bf16 for inference under ``torch.autocast``.

    Returns:
        the number of layers; 0, and the model stays as it is, where torch was built without
        oneDNN, or the processor does not know the instructions that ``dtype`` needs.

    Raises:
        ValueError: another ``dtype``.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"weights are packed as torch.float32 or torch.bfloat16, not {dtype}")
    if not can_pack(dtype):
        return 0
    count = 0
    for layer in model.modules():
        if not isinstance(layer, nn.Linear) or layer.weight.dtype != torch.float32:
            continue
        if layer.weight.device.type == "cpu":
            layer.__class__ = PackedLinear
            layer.pack(dtype)
            count += 1
    return count


def _state(parameter: Tensor | None) -> tuple[int, int] | None:
    if parameter is None:
        return None
    # Tensors made in inference mode cannot change outside of it and count no versions.
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version
