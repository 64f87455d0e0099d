#!/usr/bin/env bash
# Stage 2 (mean) at full size on ScanNet++-like data in the processed layout.
#   bash scripts/train_stage2.sh ROOT START OUT [further arguments of train.py]
# ROOT: processed data set; START: checkpoint to start from (of the stage before); OUT: folder to write.
# PROCESSES (default: one per GPU) and RESOLUTION (224) may be set.
set -euo pipefail
source "$(dirname "$0")/env.sh"
source scripts/stages.sh
ROOT_DIR="$1" START="$2" OUT="$3"
PROCESSES="${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
WIDTHS="${WIDTHS:-}"
DATA_TRAIN="ScanNetpp(split='train', ROOT='$ROOT_DIR', resolution=${RESOLUTION:-224}, aug_crop=16)"
EXTRA="--batch_size 8 --epochs 20 --blr 1e-4 ${*:4}"
train_stage mean "$START" "$OUT"
