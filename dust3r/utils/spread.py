"""Some of many, evenly."""

import numpy as np


def spread(length: int, number: int | None) -> list[int]:
    """Up to ``number`` of the indices below ``length``, evenly spread; all for None."""
    if number is None or number >= length:
        return list(range(length))
    return np.linspace(0, length - 1, number).round().astype(int).tolist()
