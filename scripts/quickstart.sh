#!/usr/bin/env bash
# From nothing to depth with uncertainty: makes the environment, renders rooms, trains the three
# stages from the small model that the project ships, draws pictures and prints one table.
# Under 10 minutes on two cores, after the installation.
#   --rgbd DIR   real recordings (7-Scenes, ScanNet or SUN3D folders) instead of rooms
#   --output DIR where everything goes (default output/quickstart)
set -euo pipefail
RGBD="" OUT=""
while [ $# -gt 0 ]; do
    case "$1" in
        --rgbd) RGBD="$(realpath "$2")"; shift 2 ;;
        --output) OUT="$(realpath -m "$2")"; shift 2 ;;
        *) sed -n '2,6p' "$0" | sed 's/^# \{0,1\}//'; exit 2 ;;
    esac
done
source "$(dirname "$0")/env.sh"
source scripts/stages.sh
OUT="${OUT:-output/quickstart}"
mkdir -p "$OUT"

if [ -n "$RGBD" ]; then
    python -m datasets_preprocess.preprocess_rgbd --input "$RGBD" --output_dir "$OUT/data" --max_pairs 300
else
    [ -f "$OUT/data/all_metadata.npz" ] || python -m datasets_preprocess.make_rooms \
        --output_dir "$OUT/data" --num_scenes 12 --images_per_scene 20 --max_pairs 20 --seed 2000
fi

PROCESSES="$(python -c 'import os, torch; print(torch.cuda.device_count() or min(2, os.cpu_count()))')"
WIDTHS="enc_embed_dim=192, enc_depth=6, enc_num_heads=3, dec_embed_dim=192, dec_depth=4, dec_num_heads=3, dpt_dim=32"
DATA_TRAIN="120 @ ScanNetpp(split='train', ROOT='$OUT/data', resolution=224, aug_crop=16)"
DATA_HELD_OUT="16 @ ScanNetpp(split='test', ROOT='$OUT/data', resolution=224, seed=777)"
EXTRA="--batch_size 2 --epochs 2 --warmup_epochs 0.2 --lr 1e-4 --uq_lr_scale 30 --grad_clip 1.0
       --num_workers 1 --keep_freq 0"

RUNS=()
stage() { # name of the table's row, stage, start, folder
    local began=$SECONDS
    rm -rf "$4"
    train_stage "$2" "$3" "$4"
    RUNS+=("$1=$4/checkpoint-last.pth=$((SECONDS - began))")
}
stage "1 geometry" geom checkpoints/rooms_small.safetensors "$OUT/1_geom"
stage "2 depth mean" mean "$OUT/1_geom/checkpoint-best.pth" "$OUT/2_mean"
stage "3 variance" variance "$OUT/2_mean/checkpoint-last.pth" "$OUT/3_variance"

python viz_uq.py --ckpt "$OUT/3_variance/checkpoint-last.pth" --dataset "$DATA_HELD_OUT" \
    --num_samples 4 --output_dir "$OUT/pictures"
echo
python scripts/stage_table.py --dataset "$DATA_HELD_OUT" --output_dir "$OUT" "${RUNS[@]}"
echo
echo "pictures: $OUT/pictures    curves: tensorboard --logdir $OUT"
