# Sourced by the scripts beside it. `start TRAINER ARGS...` starts one process a GPU:
#
#   RUN=local    on this machine (the default)
#   RUN=nodes    on NODES machines by torchrun: run the same command on each, with HEAD=<name of the first>
#   RUN=slurm    as a SLURM job on NODES machines; SBATCH_ARGS="--partition=... --time=..." is passed on
#
# GPUS is the number on each machine. DEVICE=cpu runs on the CPU instead, to check that everything is in place.
# OUT is where the job's own output goes.

: "${RUN:=local}" "${NODES:=1}" "${GPUS:=8}" "${CPUS_PER_GPU:=10}"

start() {
    if [ "${DEVICE:-}" = cpu ] && [ "$1 $2" != "-m attn_plugins.launch" ]; then
        set -- -m attn_plugins.launch --device cpu -- "$@"
    fi
    case "$RUN" in
        local) torchrun --standalone --nproc_per_node "$GPUS" "$@" ;;
        nodes) torchrun --nnodes "$NODES" --nproc_per_node "$GPUS" \
                   --rdzv_backend c10d --rdzv_id "${JOB_ID:-0}" --rdzv_endpoint "$HEAD:29500" "$@" ;;
        slurm) submit "$@" ;;
        *) echo "RUN is local, nodes or slurm, not '$RUN'" >&2; return 2 ;;
    esac
}

# SLURM_TASKS=node: torchrun on every machine. SLURM_TASKS=gpu: the trainer reads SLURM's variables itself.
submit() {
    local command job=(--nodes "$NODES" --gpus-per-node "$GPUS" --output "$OUT/slurm-%j.txt" --job-name attn_plugins)
    command=$(printf '%q ' "$@")
    mkdir -p "$OUT"
    if [ "${SLURM_TASKS:-node}" = gpu ]; then
        job+=(--ntasks-per-node "$GPUS" --cpus-per-task "$CPUS_PER_GPU")
        command="srun python $command"
    else
        job+=(--ntasks-per-node 1 --cpus-per-task "$((GPUS * CPUS_PER_GPU))")
        command="srun torchrun --nnodes $NODES --nproc_per_node $GPUS --rdzv_backend c10d \
            --rdzv_id \$SLURM_JOB_ID --rdzv_endpoint \$HEAD:29500 $command"
    fi
    # shellcheck disable=SC2086
    sbatch "${job[@]}" ${SBATCH_ARGS:-} --wrap "export HEAD=\$(scontrol show hostnames | head -n 1); $command"
}
