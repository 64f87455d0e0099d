#!/usr/bin/env bash
# Stage 3, variance from features, at the published size on data in the processed layout:
#   bash scripts/train_stage3.sh ROOT START OUT [further arguments of train.py]
# START is stage 2's checkpoint-last.pth. One process per GPU (PROCESSES), RESOLUTION 224.
set -euo pipefail
source "$(dirname "$0")/env.sh"
source scripts/stages.sh
train_stage_full_size variance "$@"
