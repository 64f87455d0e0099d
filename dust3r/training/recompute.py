"""Activation checkpointing: memory for time.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016: of each transformer block only
its input is kept, and the rest is computed again when the gradient asks for it.
"""

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from croco.blocks import Block, DecoderBlock


def recompute_blocks(model: nn.Module) -> int:
    """Keep of every encoder and decoder block its input alone, in place; how many there are.

    Names, weights and results stay, and so does chance: random numbers are drawn again from the
    same state. Without gradients nothing changes.
    """
    blocks = [module for module in model.modules() if isinstance(module, (Block, DecoderBlock))]
    for block in blocks:
        # ``forward`` and not the call: hooks that gather a sharded block run outside of it, once.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)
