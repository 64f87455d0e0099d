# The three stages of uncertainty training. Source it after env.sh and call train_stage.
# Every launcher and the quick start go through here, so that they cannot drift apart.
#   DATA_TRAIN  specification of the training set      DATA_TEST  of the test set, or "[None]"
#   WIDTHS      widths of the model, as "enc_embed_dim=..., ..."; empty for the published size
#   MODEL_CLASS another class than AsymmetricMASt3R
#   PROCESSES   processes on this machine              EXTRA      further arguments of train.py
LOSS="ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2)"

train_stage() { # stage (geom, mean, variance), checkpoint to start from, output folder
    local head="dpt_uq_feat" terms
    case "$1" in
        geom)
            head="dpt_uq"
            terms="--uq_mode geom --lambda_uq 1.0 --lambda_evi 1e-3" ;;
        mean)
            terms="--uq_mode feat --phase 1 --lambda_evi_feat 0.0 --lambda_mean_gt 1.0
                   --lambda_mean_distill 0.1 --lambda_var_distill 0.0" ;;
        variance)
            terms="--uq_mode feat --phase 2 --lambda_evi_feat 0.1 --lambda_mean_gt 1.0
                   --lambda_mean_distill 1.0 --lambda_var_distill 0.1 --save_steps 20000" ;;
        *)
            echo "no stage '$1': geom, mean or variance" >&2
            return 2 ;;
    esac
    # shellcheck disable=SC2086
    torchrun --standalone --nproc_per_node="${PROCESSES:-1}" train.py \
        --train_dataset "$DATA_TRAIN" --test_dataset "${DATA_TEST:-[None]}" \
        --model "${MODEL_CLASS:-AsymmetricMASt3R}(patch_embed_cls='ManyAR_PatchEmbed', img_size=(224, 224),
                 head_type='$head'${WIDTHS:+, $WIDTHS})" \
        --pretrained "$2" --train_criterion "$LOSS" --test_criterion "$LOSS" \
        $terms --output_dir "$3" ${EXTRA:-}
}

train_stage_full_size() { # stage, ROOT, checkpoint to start from, output folder, further arguments
    if [ $# -lt 4 ]; then
        echo "usage: bash scripts/train_stage<N>.sh ROOT START OUT [arguments of train.py]" >&2
        return 2
    fi
    PROCESSES="${PROCESSES:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
    DATA_TRAIN="ScanNetpp(split='train', ROOT='$2', resolution=${RESOLUTION:-224}, aug_crop=16)"
    EXTRA="--batch_size 8 --epochs 20 --blr 1e-4 ${*:5}"
    train_stage "$1" "$3" "$4"
}
