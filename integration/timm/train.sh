#!/usr/bin/env bash
# Train with timm's train.py, unedited: train.sh SPEC [options of train.py]
# Environment: TIMM_ROOT (a checkout, for train.py), DATA (ImageNet's folder), OUT, EXPERIMENT (a folder in OUT; it is
# resumed if it has a checkpoint); see ../start.sh for the rest.
set -euo pipefail
HERE=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
SPEC=${1:?SPEC, as entmax15}
shift
: "${TIMM_ROOT:?a checkout of github.com/huggingface/pytorch-image-models}" "${DATA:?the folder that holds train/ and val/}"
: "${OUT:=$PWD/out/$SPEC}" "${EXPERIMENT:=run}"
# shellcheck source=../start.sh
. "$HERE/../start.sh"
absolute TIMM_ROOT DATA OUT
RESUME_FROM=$OUT/$EXPERIMENT/last.pth.tar

start -m attn_plugins.launch ${DEVICE:+--device "$DEVICE"} --attn-plugins "$SPEC" -- \
    "$TIMM_ROOT/train.py" "$DATA" --output "$OUT" --experiment "$EXPERIMENT" @resume --model vit_small_patch16_224 "$@"
