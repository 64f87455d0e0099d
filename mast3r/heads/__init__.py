"""Heads with descriptors, added to ``dust3r.heads.HEADS`` under their names."""

from dust3r.heads import HEADS
from mast3r.heads.catmlp_dpt import CatMlpDPT

HEADS["catmlp+dpt"] = CatMlpDPT.build
