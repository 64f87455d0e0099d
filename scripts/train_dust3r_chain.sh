#!/usr/bin/env bash
# The published recipe from CroCo weights to DUSt3R: 224 linear, 512 linear, 512 DPT, each stage from
# the one before. Killed, the same command goes on where it was.
#   bash scripts/train_dust3r_chain.sh CROCO OUT [further arguments of train.py]
# CROCO is a CroCo file (published, or checkpoint-final.pth of python -m croco.pretrain); stages go to
# OUT/224_linear, OUT/512_linear, OUT/512_dpt. Knobs, by environment variables:
#   TRAIN, TEST      specifications of the data, with RESOLUTION where theirs goes (required; TEST may
#                    be "[None]"), as "1000 @ Co3d(split='train', ROOT='...', resolution=RESOLUTION)"
#   WIDTHS           widths of the model, as "enc_embed_dim=192, ..."   (the published large ones)
#   DPT_DIM          width of the DPT head                              (256)
#   SMALL, LARGE     sizes of the images: of the first stage, of the other two
#   EPOCHS           passes over TRAIN in each stage                    (10)
#   LR, MIN_LR       peak and last learning rate                        (1e-4, 1e-6)
#   BATCH_SMALL, BATCH_LARGE    pairs per process                       (16, 4)
#   PROCESSES        processes on this machine                          (one for each GPU)
#   STAGES           which to run, as "512_linear 512_dpt"              (all)
set -euo pipefail
source "$(dirname "$0")/env.sh"
if [ $# -lt 2 ] || [ -z "${TRAIN:-}" ]; then
    echo "usage: TRAIN=SPECIFICATION [TEST=...] bash scripts/train_dust3r_chain.sh CROCO OUT [...]" >&2
    exit 2
fi
CROCO="$1" OUT="$2"
shift 2
PROCESSES="${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
SMALL="${SMALL:-224}"
LARGE="${LARGE:-[(512, 384), (512, 336), (512, 288), (512, 256), (512, 160)]}"
WIDTHS="${WIDTHS:-enc_embed_dim=1024, enc_depth=24, enc_num_heads=16, dec_embed_dim=768, dec_depth=12, dec_num_heads=12}"
LOSS="ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2)"

stage() { # name, images, what the model takes, pairs per process, checkpoint to start from, ...
    local name="$1" images="$2" takes="$3" batch="$4" start="$5" test="${TEST:-[None]}"
    shift 5
    case " ${STAGES:-224_linear 512_linear 512_dpt} " in *" $name "*) ;; *) return 0 ;; esac
    echo "stage $name, from $start"
    torchrun --standalone --nproc_per_node="$PROCESSES" train.py \
        --train_dataset "${TRAIN//RESOLUTION/$images}" --test_dataset "${test//RESOLUTION/$images}" \
        --model "AsymmetricCroCo3DStereo(pos_embed='RoPE100', $takes, output_mode='pts3d',
                 depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), $WIDTHS)" \
        --train_criterion "$LOSS" --test_criterion "Regr3D_ScaleShiftInv(L21, gt_scale=True)" \
        --pretrained "$start" --lr "${LR:-0.0001}" --min_lr "${MIN_LR:-1e-06}" --warmup_epochs 1 \
        --epochs "${EPOCHS:-10}" --batch_size "$batch" --accum_iter 1 --save_freq 1 --keep_freq 5 \
        --eval_freq 1 --output_dir "$OUT/$name" "$@"
}
stage 224_linear "$SMALL" "img_size=(224, 224), head_type='linear'" "${BATCH_SMALL:-16}" "$CROCO" "$@"
stage 512_linear "$LARGE" "patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), head_type='linear'" \
    "${BATCH_LARGE:-4}" "$OUT/224_linear/checkpoint-best.pth" "$@"
stage 512_dpt "$LARGE" "patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), head_type='dpt',
                 dpt_dim=${DPT_DIM:-256}" \
    "${BATCH_LARGE:-4}" "$OUT/512_linear/checkpoint-best.pth" "$@"
