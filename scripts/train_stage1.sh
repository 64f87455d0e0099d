#!/usr/bin/env bash
# Stage 1, geometry and its evidence, at the published size on data in the processed layout:
#   bash scripts/train_stage1.sh ROOT START OUT [further arguments of train.py]
# START is published DUSt3R or MASt3R weights. One process per GPU (PROCESSES), RESOLUTION 224.
set -euo pipefail
source "$(dirname "$0")/env.sh"
source scripts/stages.sh
train_stage_full_size geom "$@"
