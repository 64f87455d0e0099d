#!/usr/bin/env bash
# Trains checkpoints/rooms_small.safetensors from scratch on synthetic rooms: first at 112 pixels,
# where a pair costs a quarter, then at 224. Hours on two cores, minutes on a GPU; killed, it goes on
# where it was.
#   DATA, OUT   where rooms and checkpoints go          (data/rooms_small, output/rooms_small)
#   SCENES      rooms to render for training            (586)
#   PROCESSES   training processes                      (2)
#   EPOCHS_112, EPOCHS_224   lengths of the two parts   (30, 15)
#   PRECISION   fp32, or bf16 where the machine has it    (fp32)
set -euo pipefail
source "$(dirname "$0")/env.sh"
DATA="${DATA:-data/rooms_small}" OUT="${OUT:-output/rooms_small}"
SCENES="${SCENES:-586}" PROCESSES="${PROCESSES:-2}"

MODEL="AsymmetricCroCo3DStereo(patch_embed_cls='ManyAR_PatchEmbed', img_size=(224, 224), head_type='dpt',
    enc_embed_dim=192, enc_depth=6, enc_num_heads=3, dec_embed_dim=192, dec_depth=4, dec_num_heads=3, dpt_dim=32)"
LOSS="ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2)"

[ -f "$DATA/train/all_metadata.npz" ] || python -m datasets_preprocess.make_rooms --seed 0 \
    --output_dir "$DATA/train" --first_scene 103 --num_scenes "$SCENES" --max_pairs 60
[ -f "$DATA/test/all_metadata.npz" ] || python -m datasets_preprocess.make_rooms --seed 100000 \
    --output_dir "$DATA/test" --num_scenes 20 --max_pairs 60

train() { # resolution, pairs an epoch, epochs, peak rate, further arguments
    torchrun --standalone --nproc_per_node="$PROCESSES" train.py --model "$MODEL" \
        --train_dataset "$2 @ ScanNetpp(split='all', ROOT='$DATA/train', resolution=$1, aug_crop=16, transform=ColorJitter)" \
        --test_dataset "128 @ ScanNetpp(split='all', ROOT='$DATA/test', resolution=$1, seed=777)" \
        --train_criterion "$LOSS" --test_criterion "$LOSS" \
        --batch_size 4 --epochs "$3" --lr "$4" --min_lr 1e-6 --grad_clip 1.0 \
        --eval_freq 5 --keep_freq 0 --num_workers 1 --compile --precision "${PRECISION:-fp32}" \
        --output_dir "$OUT/$1" "${@:5}"
}
train 112 1600 "${EPOCHS_112:-30}" 7e-4
train 224 800 "${EPOCHS_224:-15}" 4e-4 --pretrained "$OUT/112/checkpoint-final.pth"

python scripts/export_weights.py "$OUT/224/checkpoint-final.pth" checkpoints/rooms_small.safetensors
