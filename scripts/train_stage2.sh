#!/usr/bin/env bash
# Stage 2, depth mean from features, at the published size on data in the processed layout:
#   bash scripts/train_stage2.sh ROOT START OUT [further arguments of train.py]
# START is stage 1's checkpoint-best.pth. One process per GPU (PROCESSES), RESOLUTION 224.
set -euo pipefail
source "$(dirname "$0")/env.sh"
source scripts/stages.sh
train_stage_full_size mean "$@"
