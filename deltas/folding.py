"""Batch norms put into the convolutions before them, for inference."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> int:
    """Fold, in place, every 2-D batch norm that follows a convolution of its own name.

    ``bn1`` follows ``conv1``, ``sc_bn1`` follows ``sc_conv1``, a batch norm in a ``Sequential``
    what stands before it; others stay. An ``nn.Identity`` takes the place of each.

    Returns:
        how many were folded.

    Raises:
        ValueError: ``network`` is in training mode, in which batch norms are no fixed factors.
    """
    if network.training:
        raise ValueError("fold_batch_norms is for inference: call .eval() on the network before")
    count = 0
    for parent in network.modules():
        children = dict(parent.named_children())
        for name, norm in children.items():
            before = children.get(_convolution_of(parent, name))
            if isinstance(norm, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                fused = fuse_conv_bn_eval(before, norm)
                parent.add_module(_convolution_of(parent, name), fused)
                parent.add_module(name, nn.Identity())
                count += 1
    return count


def _convolution_of(parent: nn.Module, name: str) -> str:
    if isinstance(parent, nn.Sequential):
        return str(int(name) - 1)
    return name.replace("bn", "conv", 1)
