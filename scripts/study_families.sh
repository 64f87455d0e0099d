# The families of uncertainty that the study compares, and how each of them trains. Source it after
# env.sh and call study_train, after study_base where BASE is to see the data first. All start from
# the same weights, see the same data in the same order, and take the same number of updates of the
# same size: first at 112 pixels, where a pair costs a quarter, then at 224.
#   BASE       weights that all start from          TRAIN      ROOT of the rooms to train on
#   TRAIN_MORE ROOT of recordings that a quarter of the pairs are of; none where empty
#   RUNS       where checkpoints go                 BATCH      pairs of an update, over all processes
#   STEPS_112, STEPS_224  updates at either size    LR         peak rate of what starts at random
#   LR_BASE    peak rate of what starts from BASE   PROCESSES, PRECISION, NORM, WIDTHS, DESCRIPTORS
LOSS="ConfLoss(Regr3D(L21, norm_mode='$NORM'), alpha=0.2)"
AN_EPOCH=100 # updates; a run that was killed goes on from the last whole epoch

study_base() { # updates
    STEPS_112=0 STEPS_224="$1" run 0 "$RUNS/base" dpt "$BASE" 1 1 --lr "$LR_BASE"
}

study_train() { # family, seed
    local head="" start="$BASE" folder="$RUNS/$1/$2"
    case "$1" in
        conf)
            # All updates at 224 pixels: at 112, geometry that was learnt at 224 gets worse first.
            local updates=$((STEPS_112 + STEPS_224))
            STEPS_112=0 STEPS_224="$updates" run "$2" "$folder" dpt "$start" 1 1 --lr "$LR_BASE" ;;
        geom) run "$2" "$folder" dpt_uq "$start" 1 1 --lr "$LR" --uq_mode geom --freeze_geom_for_uq ;;
        feat)
            study_train geom "$2"
            # The same number of updates in all, half of them for the mean.
            run "$2" "$folder/mean" dpt_uq_feat "$RUNS/geom/$2/final.pth" 1 2 --lr "$LR" \
                --uq_mode feat --phase 1 --lambda_mean_gt 1.0 --lambda_mean_distill 0.1
            run "$2" "$folder" dpt_uq_feat "$folder/mean/final.pth" 1 2 --lr "$LR" \
                --uq_mode feat --phase 2 --lambda_evi_feat 0.1 --lambda_mean_gt 1.0 \
                --lambda_mean_distill 1.0 --lambda_var_distill 0.1 ;;
        xyz) run "$2" "$folder" catmlp+dpt+xyz_evi_dpt "$start" 1 1 --lr "$LR" --uq_mode xyz ;;
        niw) run "$2" "$folder" catmlp+dpt+xyz_niw_dpt "$start" 1 1 --lr "$LR" --uq_mode xyz ;;
        niw_gated)
            run "$2" "$folder" catmlp+dpt+xyz_niw_dpt+residual_gated "$start" 1 1 --lr "$LR" \
                --uq_mode xyz --lambda_gate_tv 0.01 --gate_tv_warmup_steps 100 ;;
        hetero)
            run "$2" "$folder" catmlp+dpt+xyz_hetero_dpt "$start" 1 1 --lr "$LR" \
                --uq_mode hetero_xyz ;;
        # The same families, taught what a similarity of the image leaves of errors.
        niw_sim3)
            run "$2" "$folder" catmlp+dpt+xyz_niw_dpt "$start" 1 1 --lr "$LR" --uq_mode xyz \
                --uq_align sim3 ;;
        hetero_sim3)
            run "$2" "$folder" catmlp+dpt+xyz_hetero_dpt "$start" 1 1 --lr "$LR" \
                --uq_mode hetero_xyz --uq_align sim3 ;;
        # Everything trains: errors of shape shrink while they are learnt.
        hetero_joint)
            run "$2" "$folder" catmlp+dpt+xyz_hetero_dpt "$start" 1 1 --lr "$LR_BASE" \
                --uq_lr_scale 5 --uq_mode hetero_xyz --uq_align sim3 --train_geom_for_uq ;;
        *)
            echo "no family '$1' to train: conf, geom, feat, xyz, niw, niw_gated, hetero, niw_sim3," \
                "hetero_sim3 or hetero_joint" >&2
            return 2 ;;
    esac
}

run() { # seed, folder, head type, start, share of the updates (over, under), arguments of train.py
    local seed="$1" folder="$2" head="$3" start="$4" over="$5" under="$6" size steps
    shift 6
    [ ! -f "$folder/final.pth" ] || return 0
    for size in 112 224; do
        steps="STEPS_$size"
        steps=$((${!steps} * over / under))
        [ "$steps" -gt 0 ] || continue
        if [ ! -f "$folder/$size/checkpoint-final.pth" ]; then
            echo "== $folder, $steps updates at $size pixels"
            torchrun --standalone --nproc_per_node="$PROCESSES" train.py --model "$(model "$head")" \
                --pretrained "$start" --train_criterion "$LOSS" --test_dataset "[None]" \
                --train_dataset "$(train_set "$size")" \
                --batch_size $((BATCH / PROCESSES)) --epochs $(((steps + AN_EPOCH - 1) / AN_EPOCH)) \
                --max_steps "$steps" --min_lr 1e-5 --grad_clip 1.0 --keep_freq 0 --num_workers 1 \
                --seed "$seed" --precision "$PRECISION" --output_dir "$folder/$size" "$@"
        fi
        start="$folder/$size/checkpoint-final.pth"
    done
    # A name that is there once both sizes are done.
    ln -sfn "$(realpath --relative-to="$folder" "$start")" "$folder/final.pth"
}

train_set() { # resolution
    local rest="resolution=$1, aug_crop=16, transform=ColorJitter)" more=0
    if [ -n "${TRAIN_MORE:-}" ]; then
        more=$((AN_EPOCH * BATCH / 4))
        printf '%s' "$more @ ScanNetpp(split='all', ROOT='$TRAIN_MORE', $rest + "
    fi
    echo "$((AN_EPOCH * BATCH - more)) @ ScanNetpp(split='all', ROOT='$TRAIN', $rest"
}

model() { # head type
    local more=""
    [[ "$1" != catmlp* ]] || more=", $DESCRIPTORS"
    echo "AsymmetricMASt3R(patch_embed_cls='ManyAR_PatchEmbed', img_size=(224, 224), head_type='$1'$more${WIDTHS:+, $WIDTHS})"
}
