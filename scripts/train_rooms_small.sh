#!/usr/bin/env bash
# Trains checkpoints/rooms_small.safetensors from scratch on synthetic rooms, by the recipe of the
# published models at half their resolution: a linear head at 112 pixels, where a pair is cheap, then
# at 224, then the DPT head at 224. Killed, it goes on where it was.
#   DATA, OUT   where rooms and checkpoints go          (data/rooms_small, output/rooms_small)
#   SCENES      rooms to render for training            (293)
#   PROCESSES   training processes                      (2)
set -euo pipefail
source "$(dirname "$0")/env.sh"
DATA="${DATA:-data/rooms_small}" OUT="${OUT:-output/rooms_small}"
SCENES="${SCENES:-293}" PROCESSES="${PROCESSES:-2}"

WIDTHS="enc_embed_dim=192, enc_depth=6, enc_num_heads=3, dec_embed_dim=192, dec_depth=4, dec_num_heads=3, dpt_dim=32"
LOSS="ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2)"

[ -f "$DATA/train/all_metadata.npz" ] || python -m datasets_preprocess.make_rooms --seed 0 \
    --output_dir "$DATA/train" --first_scene 103 --num_scenes "$SCENES" --max_pairs 60
[ -f "$DATA/test/all_metadata.npz" ] || python -m datasets_preprocess.make_rooms --seed 100000 \
    --output_dir "$DATA/test" --num_scenes 20 --max_pairs 60

train() { # head, resolution, pairs an epoch, epochs, peak rate, folder, further arguments
    torchrun --standalone --nproc_per_node="$PROCESSES" train.py \
        --model "AsymmetricCroCo3DStereo(patch_embed_cls='ManyAR_PatchEmbed', img_size=(224, 224),
                 head_type='$1', $WIDTHS)" \
        --train_dataset "$3 @ ScanNetpp(split='all', ROOT='$DATA/train', resolution=$2, aug_crop=16)" \
        --test_dataset "128 @ ScanNetpp(split='all', ROOT='$DATA/test', resolution=$2, seed=777)" \
        --train_criterion "$LOSS" --test_criterion "$LOSS" \
        --batch_size 4 --epochs "$4" --lr "$5" --min_lr 1e-6 --grad_clip 1.0 \
        --eval_freq 4 --keep_freq 0 --num_workers 1 --compile --output_dir "$6" "${@:7}"
}
train linear 112 3200 "${EPOCHS_1:-14}" 5e-4 "$OUT/1_linear_112"
train linear 224 1600 "${EPOCHS_2:-8}" 2e-4 "$OUT/2_linear_224" \
    --pretrained "$OUT/1_linear_112/checkpoint-final.pth"
train dpt 224 1600 "${EPOCHS_3:-8}" 2e-4 "$OUT/3_dpt_224" \
    --pretrained "$OUT/2_linear_224/checkpoint-final.pth"

python scripts/export_weights.py "$OUT/3_dpt_224/checkpoint-final.pth" checkpoints/rooms_small.safetensors
