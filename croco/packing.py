"""Linear layers for inference on the CPU with weights in the order that oneDNN multiplies fastest.

A plain product reorders its weights on every call; at the few hundred rows of one image pair that
is a sixth of its time (``scripts/bench_forward.py`` measures both).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """``nn.Linear`` that also keeps a reordered copy of its weights, and names as before.

    The copy serves fp32 inputs on the CPU outside of autograd and autocast. Everything else, and
    weights that have changed since, take the ordinary way. Writing through ``weight.data`` is the
    one change that is not noticed: pack again after it.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> "PackedLinear":
        """A layer that shares the parameters of ``linear``."""
        packed = cls.__new__(cls)
        packed.__dict__ = linear.__dict__.copy()
        packed.pack()
        return packed

    def pack(self) -> None:
        """Take the copy from the weights as they are now."""
        weight = self.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.packed_from = _state(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self._serves(x):
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def _serves(self, x: Tensor) -> bool:
        return (
            self.packed is not None
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and self.packed_from == _state(self.weight)
        )

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's tensors can be neither pickled nor copied.
        return self.__dict__ | {"packed": None}


def pack_linear_layers(model: nn.Module) -> int:
    """Replace every fp32 ``nn.Linear`` on the CPU inside ``model`` by its packed form, in place.

    Takes as much memory again as those weights. Returns the number of layers, 0 where torch was
    built without oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear) or child.weight.dtype != torch.float32:
                continue
            if child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear.of(child))
                count += 1
    return count


def _state(weight: Tensor) -> tuple[int, int]:
    # Tensors made in inference mode cannot change outside of it and count no versions.
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
