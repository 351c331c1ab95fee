#!/usr/bin/env bash
# Train with timm's train.py, unedited: train.sh SPEC [options of train.py]
# Environment: TIMM_ROOT (a checkout, for train.py), DATA (ImageNet's folder), OUT; see ../start.sh for the rest.
set -euo pipefail
cd "$(dirname "$0")"
SPEC=${1:?SPEC, as entmax15}
shift
: "${TIMM_ROOT:?a checkout of github.com/huggingface/pytorch-image-models}" "${DATA:?the folder that holds train/ and val/}"
: "${OUT:=$PWD/out/$SPEC}"
# shellcheck source=../start.sh
. ../start.sh

start -m attn_plugins.launch ${DEVICE:+--device "$DEVICE"} --attn-plugins "$SPEC" -- \
    "$TIMM_ROOT/train.py" "$DATA" --output "$OUT" --model vit_small_patch16_224 "$@"
