"""A network whose descriptors are colours, so that the matches of two images are known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class ColourModel(nn.Module):
    """Descriptors (H, W, 4) of colours; confidence 9 where the other image has the very colour."""

    landscape_only = False
    patch_size = 16

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shapes = []

    def encode_image(self, image, true_shape):
        self.shapes.append(tuple(image.shape))
        return image, torch.zeros(len(image), 1)

    def predict(self, features1, shape1, features2, shape2):
        images = [features[0].permute(0, 2, 3, 1) for features in (features1, features2)]
        codes = [((image + 1) * 127.5).round().long() @ CODE for image in images]
        return tuple(
            {
                "desc": F.normalize(F.pad(image, (0, 1), value=1.0), dim=-1),
                "desc_conf": torch.stack(
                    [1 + 8.0 * torch.isin(*pair) for pair in zip(mine, other, strict=True)]
                ),
            }
            for image, mine, other in zip(images, codes, codes[::-1], strict=True)
        )


CODE = torch.tensor([1, 256, 65536])


@pytest.fixture
def colour_model() -> ColourModel:
    return ColourModel()
