#!/usr/bin/env bash
# Trains the small DELTAS of docs/deltas.md on the rooms of train_rooms_small.sh and on a recording: at
# 160x128, then at 320x240. About an hour of two cores; killed, it goes on where it was.
#   DATA, OUT            where the rooms are (data/rooms_small), and checkpoints go
#   RECORDING, HELD_OUT  recordings to train on and to test on: processed, or raw
#                        (data/kitchen_a, data/kitchen_b)
#   PROCESSES            training processes, which share batches of four: batch norms see what one
#                        of them has (1)
#   EPOCHS_160, EPOCHS_320   lengths of the two parts, of 400 sequences an epoch (18, 6)
#   PRECISION            fp32, or bf16 where the machine has it (fp32)
set -euo pipefail
source "$(dirname "$0")/env.sh"
DATA="${DATA:-data/rooms_small}" OUT="${OUT:-output/deltas_small}" PROCESSES="${PROCESSES:-1}"
RECORDING="${RECORDING:-data/kitchen_a}" HELD_OUT="${HELD_OUT:-data/kitchen_b}"

# In rooms a step is 0.17 m; the recording's frames are closer to each other.
train() { # width, height, points, epochs, peak rate, more
    local size="width=$1, height=$2" fitted
    fitted="split='all', transform=ColorJitter, $size"
    torchrun --standalone --nproc_per_node="$PROCESSES" train_deltas.py \
        --model "Deltas(width=16, depths=(2,2,3,2), evidential=True)" --num_kps "$3" \
        --train_dataset "280 @ Sequences(ROOT='$DATA/train', seq_gap=1, $fitted)
            + 60 @ Sequences(ROOT='$RECORDING', seq_gap=8, $fitted)
            + 60 @ Sequences(ROOT='$RECORDING', seq_gap=16, $fitted)" \
        --test_dataset "24 @ Sequences(ROOT='$DATA/test', seq_gap=1, $size, seed=777)
            + 24 @ Sequences(ROOT='$HELD_OUT', seq_gap=10, $size, seed=777)" \
        --w_d 2 --homographies 2 --batch_size $((4 / PROCESSES)) --epochs "$4" --lr "$5" --min_lr 1e-5 \
        --grad_clip 1 --eval_freq 2 --num_workers 1 --precision "${PRECISION:-fp32}" \
        --output_dir "$OUT/$1" "${@:6}"
}
train 160 128 256 "${EPOCHS_160:-18}" 1e-3
train 320 240 512 "${EPOCHS_320:-6}" 5e-4 --pretrained "$OUT/160/checkpoint-final.pth"
