"""Heads with descriptors, added to ``dust3r.heads.HEADS`` under their names.

``catmlp+dpt`` is MASt3R's. ``+xyz_evi_dpt``, ``+xyz_niw_dpt`` and ``+xyz_hetero_dpt`` add a
distribution of each point; ``+residual_gated`` after one of these refines the points first, and
``+residual_gated_bilinear`` does so on a coarser, interpolated gate.
"""

from functools import partial

from dust3r.heads import HEADS
from mast3r.heads.catmlp_dpt import CatMlpDPT
from mast3r.heads.xyz_dpt import EvidentialDPT, HeteroscedasticDPT, WishartDPT

HEADS["catmlp+dpt"] = CatMlpDPT.build
for _name, _head in {
    "catmlp+dpt+xyz_evi_dpt": EvidentialDPT,
    "catmlp+dpt+xyz_niw_dpt": WishartDPT,
    "catmlp+dpt+xyz_hetero_dpt": HeteroscedasticDPT,
}.items():
    HEADS[_name] = _head.build
    HEADS[f"{_name}+residual_gated"] = partial(_head.build, gate_mode="pixel_shuffle")
    HEADS[f"{_name}+residual_gated_bilinear"] = partial(_head.build, gate_mode="bilinear")
