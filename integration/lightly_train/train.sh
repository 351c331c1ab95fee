#!/usr/bin/env bash
# Pre-train with lightly-train: train.sh SPEC [options of lightly_train.pretrain, as model=dinov2/vitb14 epochs=100]
# Environment: DATA (a folder of images), OUT; see ../start.sh for the rest.
set -euo pipefail
HERE=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
SPEC=${1:?SPEC, as entmax15}
shift
: "${DATA:?a folder of images}" "${OUT:=$PWD/out/$SPEC}"
# shellcheck source=../start.sh
. "$HERE/../start.sh"
absolute DATA OUT

start -m attn_plugins.launch ${DEVICE:+--device "$DEVICE"} --attn-plugins "$SPEC" -- \
    "$HERE/train.py" "$OUT" "$DATA" devices="$GPUS" num_nodes="$NODES" resume_interrupted=true "$@"
