#!/usr/bin/env bash
# Trains checkpoints/rooms_small_uq.safetensors: the uncertainty heads of both kinds, in three stages,
# on rooms_small whose own weights stay as they are. An hour on two cores; killed, it goes on where it
# was.
#   DATA, OUT   where the rooms of train_rooms_small.sh are, and checkpoints go
#   PROCESSES   training processes (2)
#   EPOCHS_1, EPOCHS_2, EPOCHS_3   of the stages, 200 updates each (6, 6, 3)
#   PRECISION   fp32, or bf16 where the machine has it (fp32)
set -euo pipefail
source "$(dirname "$0")/env.sh"
source scripts/stages.sh
DATA="${DATA:-data/rooms_small}" OUT="${OUT:-output/rooms_small_uq}"
PROCESSES="${PROCESSES:-2}"

# The weights are to load without the mast3r package.
MODEL_CLASS="AsymmetricCroCo3DStereo"
WIDTHS="enc_embed_dim=192, enc_depth=6, enc_num_heads=3, dec_embed_dim=192, dec_depth=4, dec_num_heads=3, dpt_dim=32"
DATA_TRAIN="800 @ ScanNetpp(split='all', ROOT='$DATA/train', resolution=224, aug_crop=16, transform=ColorJitter)"
DATA_TEST="64 @ ScanNetpp(split='all', ROOT='$DATA/test', resolution=224, seed=777)"
COMMON="--batch_size $((4 / PROCESSES)) --lr 5e-4 --min_lr 1e-5 --grad_clip 1.0
    --eval_freq 2 --keep_freq 0 --num_workers 1 --precision ${PRECISION:-fp32}"

EXTRA="$COMMON --epochs ${EPOCHS_1:-6} --freeze_geom_for_uq"
train_stage geom checkpoints/rooms_small.safetensors "$OUT/1_geom"
EXTRA="$COMMON --epochs ${EPOCHS_2:-6}"
train_stage mean "$OUT/1_geom/checkpoint-last.pth" "$OUT/2_mean"
EXTRA="$COMMON --epochs ${EPOCHS_3:-3}"
train_stage variance "$OUT/2_mean/checkpoint-last.pth" "$OUT/3_variance"

python scripts/export_weights.py "$OUT/3_variance/checkpoint-last.pth" checkpoints/rooms_small_uq.safetensors
