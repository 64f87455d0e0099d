"""3-D Gaussian splats (Kerbl et al., 2023) of a reconstruction's export, and how good they are.

``python -m dust3r.splat EXPORT --output_dir OUT``; ``docs/splats.md`` says how. Splats are
trained on an export's photographs, from its poses and points, and judged by views left out.
"""
