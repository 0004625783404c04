#!/usr/bin/env bash
# The replication (docs/results.md): all rows on five folds of a data set, each person tested once.
# experiments/replication.sh chaos|acdc|hippocampus DIR [flags of reproduce.py, such as --jobs 2]
# DIR is prepared as experiments/splits/replication/README.md says. The same command again goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "error: must be given a data set and its folder, such as acdc DIR" >&2; exit 2; }
name=$1 data=$2
shift 2
case $name in
# 800 to 900 batches of 8 slices each
chaos) epochs=20 ;;
acdc) epochs=15 ;;
hippocampus) epochs=2 ;;
*) echo "error: $name: must be chaos, acdc or hippocampus" >&2; exit 2 ;;
esac
folds=$(printf "experiments/splits/replication/$name-%s.json," 1 2 3 4 5)
# The modern recipe trains the paper's networks, with a smaller backbone.
recipe=(--preset modern --backbone resnet34 --epochs "$epochs" --seed 0)
flags=(--data "$data" --split_files "${folds%,}" --out "reproduced/replication-$name" "${recipe[@]}" "$@")
guided="--model ms_dual_guided --guidance --no_fine_decoder --no_neutral_guide --norm_by_scale"
quarter="--scales quarter --key_pooling 1 --semantic_channels 256"
.venv/bin/python reproduce.py I "${flags[@]}" --against MS-Dual \
    --row "smp.Unet: --model smp.Unet" \
    --row "MS-Dual-Guided, norms by scale: $guided $quarter" \
    --row "MS-Dual-Guided, native: $guided" \
    --row "MS-Dual, fine decoder: --model ms_dual_guided --no_guidance --fine_decoder $quarter"
.venv/bin/python reproduce.py III-chaos "${flags[@]}" --only "U-Net,Attention U-Net,MS-Dual-Guided"
