#!/usr/bin/env bash
# Trains checkpoints/rooms_small_mast3r.safetensors: rooms_small with descriptors for matching, on the
# rooms of train_rooms_small.sh, first at 112 pixels and then at 224. Hours on two cores, minutes on a
# GPU; killed, it goes on where it was.
#   DATA, OUT   where the rooms of train_rooms_small.sh are, and checkpoints go
#   PROCESSES   training processes (2)
#   EPOCHS_112, EPOCHS_224   lengths of the two parts (10, 20)
#   NORM        '?avg_dis' teaches metres, which the rooms are in; 'avg_dis' any scale ('?avg_dis')
#   PRECISION   fp32, or bf16 where the machine has it (fp32)
set -euo pipefail
source "$(dirname "$0")/env.sh"
DATA="${DATA:-data/rooms_small}" OUT="${OUT:-output/rooms_small_mast3r}"
PROCESSES="${PROCESSES:-2}" NORM="${NORM:-?avg_dis}"

MODEL="AsymmetricMASt3R(patch_embed_cls='ManyAR_PatchEmbed', img_size=(224, 224), head_type='catmlp+dpt',
    output_mode='pts3d+desc16', two_confs=True, desc_mlp_ratio=0.4,
    enc_embed_dim=192, enc_depth=6, enc_num_heads=3, dec_embed_dim=192, dec_depth=4, dec_num_heads=3, dpt_dim=32)"
REGRESSION="Regr3D(L21, norm_mode='$NORM')"
# Four times the published weight of matching: geometry is learnt already, descriptors are not.
LOSS="ConfLoss($REGRESSION, alpha=0.2) + 0.3*ConfMatchingLoss(MatchingLoss(
    InfoNCE(mode='proper', temperature=0.05), negatives_padding=0, blocksize=8192), alpha=10.0, confmode='mean')"
TEST_LOSS="ConfLoss($REGRESSION, alpha=0.2) + MatchingLoss(APLoss(nq='torch'), negatives_padding=2048)"

# At 112 pixels, crops around what both images show: nothing is lost on pixels without a match.
train() { # resolution, correspondences, pairs an epoch, epochs, peak rate, where to start, crops
    torchrun --standalone --nproc_per_node="$PROCESSES" train.py --model "$MODEL" --pretrained "$6" \
        --train_dataset "$3 @ ScanNetpp(split='all', ROOT='$DATA/train', resolution=$1, aug_crop=16, transform=ColorJitter, n_corres=$2, nneg=0.25, crop_around_corres=$7)" \
        --test_dataset "64 @ ScanNetpp(split='all', ROOT='$DATA/test', resolution=$1, seed=777, n_corres=$2, nneg=0.5)" \
        --train_criterion "$LOSS" --test_criterion "$TEST_LOSS" \
        --batch_size $((4 / PROCESSES)) --epochs "$4" --lr "$5" --min_lr 1e-6 --grad_clip 1.0 \
        --eval_freq 2 --keep_freq 0 --num_workers 1 --compile --precision "${PRECISION:-fp32}" \
        --output_dir "$OUT/$1"
}
train 112 512 1600 "${EPOCHS_112:-10}" 6e-4 checkpoints/rooms_small.safetensors True
train 224 2048 800 "${EPOCHS_224:-20}" 5e-4 "$OUT/112/checkpoint-final.pth" False

python scripts/export_weights.py "$OUT/224/checkpoint-final.pth" checkpoints/rooms_small_mast3r.safetensors
