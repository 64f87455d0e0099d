#!/usr/bin/env bash
# The study of docs/uncertainty.md: every family of uncertainty trained on the same geometry, data,
# updates and seeds, and measured on unseen rooms, on a real recording, and on rooms degraded on
# purpose. Hours on two cores; killed, it goes on where it was.
#   --quick     a small version of all of it with one seed, on rooms of its own: under 30 minutes
#   DATA        ROOT of rooms, with train/ and test/; made where missing (data/rooms_small)
#   OUT         where checkpoints, tables and pictures go (output/study)
#   KITCHEN     a recording that is held out: processed, or in a naming of preprocess_rgbd.py;
#               left out of the study where not given
#   KITCHEN_TRAIN  another recording, as KITCHEN, that a quarter of the pairs to train on are of
#   BASE        geometry that all families start from (checkpoints/rooms_small.safetensors)
#   BASE_STEPS  updates of that geometry on the same data, at 224 pixels, before the study (0)
#   FAMILIES    trained ones ("conf geom feat xyz niw niw_gated hetero
#               niw_sim3 hetero_sim3 hetero_joint"); mcd and ensembles come free
#   SEEDS       ("0 1 2")
#   STEPS_112, STEPS_224   updates at either resolution (800, 200)
#   PAIRS       of each benchmark (200)
#   TRAIN_ROOMS, TEST_ROOMS, IMAGES   rooms to render, and images of each (586, 20, 25)
#   PROCESSES   training processes (2)
#   PRECISION   fp32, or bf16 where the machine has it (fp32)
# It ends with study.md, study.json and PNGs in OUT.
set -euo pipefail
QUICK=""
while [ $# -gt 0 ]; do
    case "$1" in
        --quick) QUICK=1; shift ;;
        *) sed -n '2,21p' "$0" | sed 's/^# \{0,1\}//'; exit 2 ;;
    esac
done
source "$(dirname "$0")/env.sh"
if [ -n "$QUICK" ]; then
    OUT="${OUT:-output/study_quick}" DATA="${DATA:-$OUT/rooms}"
    SEEDS="${SEEDS:-0}" STEPS_112="${STEPS_112:-80}" STEPS_224="${STEPS_224:-16}" PAIRS="${PAIRS:-12}"
    TRAIN_ROOMS="${TRAIN_ROOMS:-24}" TEST_ROOMS="${TEST_ROOMS:-8}" IMAGES="${IMAGES:-16}" SAMPLES="${SAMPLES:-4}"
fi
OUT="${OUT:-output/study}" DATA="${DATA:-data/rooms_small}"
SEEDS="${SEEDS:-0 1 2}" STEPS_112="${STEPS_112:-800}" STEPS_224="${STEPS_224:-200}" PAIRS="${PAIRS:-200}"
TRAIN_ROOMS="${TRAIN_ROOMS:-586}" TEST_ROOMS="${TEST_ROOMS:-20}" IMAGES="${IMAGES:-25}" SAMPLES="${SAMPLES:-8}"
FAMILIES="${FAMILIES:-conf geom feat xyz niw niw_gated hetero niw_sim3 hetero_sim3 hetero_joint}"
BASE="${BASE:-checkpoints/rooms_small.safetensors}" BASE_STEPS="${BASE_STEPS:-0}"
PROCESSES="${PROCESSES:-2}" PRECISION="${PRECISION:-fp32}"
[ $((4 % PROCESSES)) -eq 0 ] || { echo "PROCESSES=$PROCESSES does not share out 4 pairs: 1, 2 or 4" >&2; exit 2; }
BATCH=4 LR="${LR:-1e-3}" LR_BASE="${LR_BASE:-1e-4}" NORM="${NORM:-avg_dis}"
WIDTHS="enc_embed_dim=192, enc_depth=6, enc_num_heads=3, dec_embed_dim=192, dec_depth=4, dec_num_heads=3, dpt_dim=32"
# Heads that state distributions of points have descriptors beside them, which do not train here.
DESCRIPTORS="output_mode='pts3d+desc16', two_confs=True, desc_mlp_ratio=0.4"
RUNS="$OUT/runs" TRAIN="$DATA/train"
source scripts/study_families.sh

# What was made with other settings is not to be mixed in.
SETTINGS="BASE=$BASE+$BASE_STEPS DATA=$DATA STEPS=$STEPS_112+$STEPS_224 BATCH=$BATCH LR=$LR/$LR_BASE NORM=$NORM PRECISION=$PRECISION PAIRS=$PAIRS MORE=${KITCHEN_TRAIN:-}"
mkdir -p "$OUT"
[ -f "$OUT/settings.txt" ] || echo "$SETTINGS" >"$OUT/settings.txt"
if [ "$(cat "$OUT/settings.txt")" != "$SETTINGS" ]; then
    printf '%s is of a study with other settings:\n  %s\nand this one has\n  %s\ngive another OUT\n' \
        "$OUT" "$(cat "$OUT/settings.txt")" "$SETTINGS" >&2
    exit 2
fi

rooms() { # folder, seed, number, further arguments
    [ -f "$1/all_metadata.npz" ] || python -m datasets_preprocess.make_rooms --output_dir "$1" \
        --seed "$2" --num_scenes "$3" --images_per_scene "$IMAGES" --max_pairs 60 "${@:4}"
}
# The rooms of rooms_small itself, in the full study.
rooms "$DATA/train" 0 "$TRAIN_ROOMS" --first_scene 103
rooms "$DATA/test" 100000 "$TEST_ROOMS"
rooms "$DATA/test_plain" 100000 "$TEST_ROOMS" --plain_walls
[ -f "$DATA/test/pairs_apart.npz" ] || python -m datasets_preprocess.pairs_apart \
    --root "$DATA/test" --max_pairs 40 --max_overlap 0.01
recording() { # what is given, where it goes
    [ -z "$1" ] || [ -f "$1/all_metadata.npz" ] || [ -f "$2/all_metadata.npz" ] ||
        python -m datasets_preprocess.preprocess_rgbd --input "$1" --output_dir "$2" \
            --max_pairs 200 >&2
    [ -f "$2/all_metadata.npz" ] && echo "$2" || echo "$1"
}
KITCHEN="$(recording "${KITCHEN:-}" "$OUT/kitchen")"
TRAIN_MORE="$(recording "${KITCHEN_TRAIN:-}" "$OUT/kitchen_train")"

at() { echo "$1:ScanNetpp(split='all', ROOT='$2', resolution=224, seed=777${3:+, $3})"; }
BENCHMARKS="$(at rooms "$DATA/test")"
[ -z "$KITCHEN" ] || BENCHMARKS+="; $(at kitchen "$KITCHEN")"
for one in blur noise dark; do BENCHMARKS+="; $(at $one "$DATA/test" "degrade='$one'")"; done
BENCHMARKS+="; $(at plain_walls "$DATA/test_plain"); $(at no_overlap "$DATA/test" "metadata='pairs_apart.npz'")"

if [ "$BASE_STEPS" -gt 0 ]; then
    study_base "$BASE_STEPS"
    BASE="$RUNS/base/final.pth"
fi
for seed in $SEEDS; do
    for family in $FAMILIES; do study_train "$family" "$seed"; done
done

# An ensemble has two members or more, also where there is one seed.
MEMBERS="" ENSEMBLE="$SEEDS"
[ "$(wc -w <<<"$SEEDS")" -gt 1 ] || ENSEMBLE="$SEEDS $((SEEDS + 1))"
if [[ " $FAMILIES " == *" conf "* ]]; then
    for seed in $ENSEMBLE; do
        study_train conf "$seed"
        MEMBERS+="${MEMBERS:+,}$RUNS/conf/$seed/final.pth"
    done
fi

# What depends on no seed is measured with the first one.
FOLDERS=() FIRST=1
for seed in $SEEDS; do
    METHODS="" CKPT=() FREE=""
    method() { METHODS+="$1,"; CKPT+=("${1%%:*}=$2"); } # label:family, checkpoint
    # As method; what it states of points is in their unit, which are metres only with '?avg_dis'.
    of_points() { method "$@"; [[ "$NORM" == "?"* ]] || FREE+="${1%%:*},"; }
    if [ -n "$FIRST" ]; then
        method conf:conf "$BASE"
        of_points mcd:mcd "$BASE"
        [ -z "$MEMBERS" ] || of_points ensemble:ensemble "$MEMBERS"
    fi
    for family in $FAMILIES; do
        last="$RUNS/$family/$seed/final.pth"
        case "$family" in
            conf) method conf_trained_on:conf "$last" ;;
            niw) of_points niw:niw "$last"; of_points niw_spread:niw_spread "$last" ;;
            niw_gated) of_points niw_gated:niw "$last" ;;
            xyz | hetero) of_points "$family:$family" "$last" ;;
            niw_sim3) method niw_sim3:niw "$last" ;;
            hetero_sim3 | hetero_joint) method "$family:hetero" "$last" ;;
            *) method "$family:$family" "$last" ;;
        esac
    done
    torchrun --standalone --nproc_per_node="$PROCESSES" evaluate.py uq --benchmarks "$BENCHMARKS" \
        --methods "${METHODS%,}" --ckpt "${CKPT[@]}" --num_pairs "$PAIRS" --streaming --same_scale \
        --scale_free "${FREE%,}" \
        --samples "$SAMPLES" --num_workers 1 --num_panels 0 --output_dir "$OUT/seed_$seed"
    [ -z "$FIRST" ] || python scripts/study.py cost --methods "${METHODS%,}" --ckpt "${CKPT[@]}" \
        --samples "$SAMPLES" --output "$OUT/cost.json"
    FOLDERS+=("$OUT/seed_$seed") FIRST=""
done
python scripts/study.py tables --cost "$OUT/cost.json" --output_dir "$OUT" "${FOLDERS[@]}"
