"""Which scenes of a data set without an official split are kept from training."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

SHARE = 0.1


def held_out_scenes(names: Sequence[str]) -> np.ndarray:
    """Mask (S,) of the scenes, by their names, that are not to be trained on: about a tenth.

    By a hash of the name, so that adding scenes leaves the others where they are. Of two scenes or
    more at least one is on either side; a single one is not held out.
    """
    if len(names) < 2:
        return np.zeros(len(names), bool)
    place = np.array([_hash_fraction(str(name)) for name in names])
    held_out = place < max(SHARE, np.nextafter(place.min(), 1))
    if held_out.all():
        held_out[place.argmax()] = False
    return held_out


def first_held_out(num_frames: int) -> int:
    """The first frame of a single scene, its last tenth, that is not to be trained on."""
    return num_frames - math.ceil(SHARE * num_frames)


def _hash_fraction(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56
