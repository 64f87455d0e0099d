"""Pre-training entry: ``python -m croco.pretrain`` or ``torchrun --nproc_per_node=N -m ...``.

Cross-view completion (Weinzaepfel et al., CroCo, 2022, and CroCo v2, 2023) on pairs of any data
set of the project; docs/pretraining.md says how.
"""

import sys


def main(arguments: list[str] | None = None) -> int:
    """Pre-train as the arguments say; the exit status."""
    # The model library stands below dust3r and knows nothing of it; only this command, which is
    # run and never imported by the library, is made of dust3r's data sets and training loop.
    from dust3r.training import pretrain

    return pretrain.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
