#!/usr/bin/env bash
# The chain CroCo, 224 linear, 512 linear, 512 DPT in small, on two processes and a mixture of three data
# sets with landscape and upright images: shows that all of it runs and learns, in about half an hour
# on two cores. The releases of Co3d and MegaDepth are made by the tests' writers, in the releases' own
# format, and go through their preprocessing; ScanNetpp reads rooms.
#   bash scripts/chain_small.sh OUT [rooms in the processed layout; rendered where none are given]
#   SAMPLES   pairs of an epoch, as Co3d, ScanNetpp and MegaDepth  ("200 100 50")
#   EPOCHS    of each stage (2)          CROCO_STEPS   updates of pre-training (150)
set -euo pipefail
source "$(dirname "$0")/env.sh"
[ $# -ge 1 ] || { sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
OUT="$1" ROOMS="${2:-$1/rooms}"
read -r CO3D SCANNETPP MEGADEPTH <<<"${SAMPLES:-200 100 50}"
WIDTHS="enc_embed_dim=96, enc_depth=4, enc_num_heads=3, dec_embed_dim=96, dec_depth=4, dec_num_heads=3"

[ -f "$ROOMS/all_metadata.npz" ] || python -m datasets_preprocess.make_rooms --output_dir "$ROOMS" \
    --seed 0 --num_scenes 8 --images_per_scene 16 --max_pairs 40
PYTHONPATH=".:tests/shared" python - "$OUT" <<'PYTHON'
import sys
from pathlib import Path

from raw import co3d, megadepth
from world import World

from datasets_preprocess import preprocess_co3d, preprocess_megadepth

out = Path(sys.argv[1])
if not (out / "co3d_raw").exists():
    sizes = [co3d.WIDE, co3d.TALL]
    sequences = {f"{n}_1_2": sizes[n % 2] for n in range(100, 112)}
    co3d.write_co3d(out / "co3d_raw", sequences, splits={
        "train": list(sequences)[:-2], "test": list(sequences)[-2:]})
if not (out / "megadepth_raw").exists():
    poses = World(2).poses(32)
    megadepth.write_pinhole(out / "megadepth_raw", "0001", poses[:16])
    megadepth.write_radial(out / "megadepth_raw", "0002", poses[16:])
    megadepth.write_pinhole(out / "megadepth_raw", "0015", World(3).poses(6))
raw = "--co3d_dir", str(out / "co3d_raw"), "--output_dir", str(out / "co3d")
assert preprocess_co3d.main([*raw, "--img_size", "200"]) == 0
raw = "--megadepth_dir", str(out / "megadepth_raw"), "--output_dir", str(out / "megadepth")
assert preprocess_megadepth.main([*raw]) == 0
PYTHON

mixture() { # split, numbers of pairs, options
    echo "$2 @ Co3d('$1', ROOT='$OUT/co3d', resolution=RESOLUTION, $5) + $3 @ ScanNetpp('$1', ROOT='$ROOMS', resolution=RESOLUTION, $5) + $4 @ MegaDepth('$1', ROOT='$OUT/megadepth', resolution=RESOLUTION, $5)"
}
TRAIN="$(mixture train "$CO3D" "$SCANNETPP" "$MEGADEPTH" "aug_crop=16, transform=ColorJitter")"
TEST="$(mixture test 8 8 8 "seed=777")"
export PROCESSES="${PROCESSES:-2}" TRAIN TEST WIDTHS DPT_DIM=32 EPOCHS="${EPOCHS:-2}" LR="${LR:-3e-4}"
export BATCH_SMALL=4 BATCH_LARGE=2

python -m dust3r.datasets.inspect "${TRAIN//RESOLUTION/224}" --num_pairs 24 --output_dir "$OUT/inspect"
[ -f "$OUT/croco/checkpoint-final.pth" ] || torchrun --standalone --nproc_per_node="$PROCESSES" \
    -m croco.pretrain --dataset "${TRAIN//RESOLUTION/224}" --model "CroCoNet(img_size=224, pos_embed='RoPE100', $WIDTHS)" \
    --batch_size 4 --lr 1e-3 --epochs 20 --max_steps "${CROCO_STEPS:-150}" --num_workers 1 --output_dir "$OUT/croco"
bash scripts/train_dust3r_chain.sh "$OUT/croco/checkpoint-final.pth" "$OUT" --num_workers 1 --print_freq 20
for stage in 224_linear 512_linear 512_dpt; do
    python - "$OUT/$stage" <<'PYTHON'
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
for line in (folder / "log.txt").read_text().splitlines():
    told = json.loads(line)
    values = {key: told[key] for key in told if key.endswith("loss") or key == "seconds"}
    print(folder.name, "epoch", told["epoch"], *(f"{k} {v:.4g}" for k, v in values.items()))
PYTHON
done
