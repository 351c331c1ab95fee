#!/usr/bin/env bash
# Pre-train with official DINOv3, unedited: train.sh SPEC [further train.py options, as train.batch_size_per_gpu=32]
# Environment: DINOV3_ROOT, DATASET (as ImageNet:split=TRAIN:root=...:extra=...), OUT, CONFIG; see ../start.sh.
set -euo pipefail
HERE=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
SPEC=${1:?SPEC, as entmax15}
shift
: "${DINOV3_ROOT:?a checkout of github.com/facebookresearch/dinov3}" "${DATASET:?the dataset string}"
: "${CONFIG:=$DINOV3_ROOT/dinov3/configs/train/vitl_im1k_lin834.yaml}" "${OUT:=$PWD/out/$SPEC}" "${NODES:=4}"
SLURM_TASKS=gpu  # DINOv3 takes its ranks from SLURM's variables
# shellcheck source=../start.sh
. "$HERE/../start.sh"
absolute DINOV3_ROOT CONFIG OUT
export PYTHONPATH=$DINOV3_ROOT${PYTHONPATH:+:$PYTHONPATH}

start -m attn_plugins.launch ${DEVICE:+--device "$DEVICE"} --attn-plugins "$SPEC" -- \
    "$DINOV3_ROOT/dinov3/train/train.py" --config-file "$CONFIG" --output-dir "$OUT" \
    train.dataset_path="$DATASET" "$@"
