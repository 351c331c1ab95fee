#!/usr/bin/env bash
# Pre-train with official DINOv2: train.sh SPEC [further train.py options, as train.batch_size_per_gpu=32]
# Environment: DINOV2_ROOT (patched checkout), DATASET (as ImageNet:split=TRAIN:root=...:extra=...), OUT, CONFIG;
# see ../start.sh for the rest.
set -euo pipefail
HERE=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
SPEC=${1:?SPEC, as entmax15}
shift
: "${DINOV2_ROOT:?a checkout of github.com/facebookresearch/dinov2}" "${DATASET:?the dataset string}"
: "${CONFIG:=$DINOV2_ROOT/dinov2/configs/train/vitl16_short.yaml}" "${OUT:=$PWD/out/$SPEC}" "${NODES:=4}"
SLURM_TASKS=gpu  # DINOv2 takes its ranks from SLURM's variables
# shellcheck source=../start.sh
. "$HERE/../start.sh"
absolute DINOV2_ROOT CONFIG OUT
attn-plugins apply dinov2 "$DINOV2_ROOT"
export PYTHONPATH=$DINOV2_ROOT${PYTHONPATH:+:$PYTHONPATH}

start "$DINOV2_ROOT/dinov2/train/train.py" --config-file "$CONFIG" --output-dir "$OUT" \
    train.dataset_path="$DATASET" student.attn_plugins="$SPEC" "$@"
