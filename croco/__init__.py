"""ViT building blocks and CroCo, cross-view completion (Weinzaepfel et al., 2022 and 2023)."""
