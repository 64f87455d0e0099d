#!/usr/bin/env bash
# Trains checkpoints/rooms_small_points.safetensors: rooms_small_mast3r with a Gaussian of every point,
# which learns what a similarity of each image leaves of its error (--uq_align sim3), and the geometry
# along with it. On rooms that its start has not seen. An hour of two cores; killed, it goes on where
# it was.
#   DATA, OUT   where rooms and checkpoints go (data/rooms_points, output/rooms_small_points)
#   SCENES      rooms to render (200)          PROCESSES   training processes (2)
#   EPOCHS      of 100 updates each (9)       PRECISION   fp32, or bf16 where the machine has it (fp32)
#   START, RATE checkpoint to start from, and peak rate of what is trained already (3e-4)
#   HEAD_RATE   rate of the new head over that (3)
#   MORE        ROOT of recordings that a quarter of the pairs are of; none where empty
set -euo pipefail
source "$(dirname "$0")/env.sh"
DATA="${DATA:-data/rooms_points}" OUT="${OUT:-output/rooms_small_points}"
PROCESSES="${PROCESSES:-2}" START="${START:-checkpoints/rooms_small_mast3r.safetensors}"

[ -f "$DATA/all_metadata.npz" ] || python -m datasets_preprocess.make_rooms --output_dir "$DATA" \
    --seed 0 --first_scene 689 --num_scenes "${SCENES:-200}" --max_pairs 60

of() { echo "$1 @ ScanNetpp(split='all', ROOT='$2', resolution=224, aug_crop=16, transform=ColorJitter)"; }
PAIRS="$(of 400 "$DATA")"
[ -z "${MORE:-}" ] || PAIRS="$(of 300 "$DATA") + $(of 100 "$MORE")"

torchrun --standalone --nproc_per_node="$PROCESSES" train.py \
    --model "AsymmetricMASt3R(patch_embed_cls='ManyAR_PatchEmbed', img_size=(224, 224),
        head_type='catmlp+dpt+xyz_hetero_dpt', output_mode='pts3d+desc16', two_confs=True, desc_mlp_ratio=0.4,
        enc_embed_dim=192, enc_depth=6, enc_num_heads=3, dec_embed_dim=192, dec_depth=4, dec_num_heads=3, dpt_dim=32)" \
    --pretrained "$START" --train_dataset "$PAIRS" --test_dataset "[None]" \
    --train_criterion "ConfLoss(Regr3D(L21, norm_mode='?avg_dis'), alpha=0.2)" \
    --uq_mode hetero_xyz --uq_align sim3 --train_geom_for_uq --lambda_hetero_xyz 0.5 --hetero_beta 0.5 \
    --uq_lr_scale "${HEAD_RATE:-3}" \
    --batch_size $((4 / PROCESSES)) --epochs "${EPOCHS:-9}" --lr "${RATE:-3e-4}" --min_lr 1e-5 \
    --grad_clip 1.0 --keep_freq 0 --num_workers 1 --precision "${PRECISION:-fp32}" --output_dir "$OUT"

[ -n "${MORE:-}" ] || python scripts/export_weights.py "$OUT/checkpoint-final.pth" \
    checkpoints/rooms_small_points.safetensors
