"""The ``resolution`` argument of datasets."""

from collections.abc import Sequence

from dust3r.datasets.cropping import Size

PATCH = 16

Resolution = int | Size | Sequence[Size]


def parse_resolutions(resolution: Resolution) -> tuple[Size, ...]:
    """The sizes (width, height) given as an int r, meaning (r, r), a pair, or a list of pairs.

    Raises:
        ValueError: it has another form, a side is not a positive multiple of 16, or a size is
            higher than wide.
    """
    if _is_int(resolution):
        sizes = [(resolution, resolution)]
    elif isinstance(resolution, tuple) and len(resolution) == 2 and all(map(_is_int, resolution)):
        sizes = [resolution]
    elif isinstance(resolution, list | tuple) and resolution and all(map(_is_pair, resolution)):
        sizes = [tuple(size) for size in resolution]
    else:
        raise ValueError(
            f"resolution={resolution!r}: expected a whole number (224), a pair (width, height) "
            "(512, 384), or a list of pairs [(512, 384), (512, 336)]"
        )
    for size in sizes:
        _check(size)
    return tuple(sizes)


def _check(size: Size) -> None:
    width, height = size
    if width % PATCH or height % PATCH or min(size) <= 0:
        below = tuple(max(PATCH, side // PATCH * PATCH) for side in size)
        above = tuple(max(PATCH, -(-side // PATCH) * PATCH) for side in size)
        nearest = f"{below}" if below == above else f"{below} and {above}"
        raise ValueError(
            f"resolution {size}: both sides must be positive multiples of {PATCH}; the nearest "
            f"allowed: {nearest}"
        )
    if width < height:
        raise ValueError(
            f"resolution {size}: give (width, height) with width >= height, that is "
            f"{(height, width)}; upright images turn it by themselves"
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_int, value))
