#!/usr/bin/env bash
# Pre-train DINOv1 ViT-S/16 as in Table 1: train.sh METHOD [further arguments of main_dino.py]
# METHOD: softmax, registers:num=4, specialization, entmax15, or any other spec.
# Environment: DINO_ROOT (patched checkout), DATA (ImageNet's folder with train/), OUT; see ../start.sh for the rest.
set -euo pipefail
HERE=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
METHOD=${1:?METHOD, one of: softmax registers:num=4 specialization entmax15}
shift
: "${DINO_ROOT:?a checkout of github.com/facebookresearch/dino}" "${DATA:?the folder that holds train/}"
: "${OUT:=$PWD/out/$METHOD}" "${NODES:=2}"
# shellcheck source=../start.sh
. "$HERE/../start.sh"
absolute DINO_ROOT DATA OUT
attn-plugins apply dino "$DINO_ROOT"
mkdir -p "$OUT"

paper=(--arch vit_small --patch_size 16 --epochs 200)
# Left open by the paper. DINO's README, section "Boosting DINO performance", for ViT-S; total batch 1024 as there.
readme=(--teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --norm_last_layer false)
batch=(--batch_size_per_gpu "$((1024 / (NODES * GPUS)))")

start "$DINO_ROOT/main_dino.py" "${paper[@]}" "${readme[@]}" "${batch[@]}" \
    --data_path "$DATA/train" --output_dir "$OUT" --attn_plugins "$METHOD" "$@"
