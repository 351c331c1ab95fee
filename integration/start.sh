# Sourced by the scripts beside it. `start TRAINER ARGS...` starts one process a GPU:
#
#   RUN=local    on this machine (the default)
#   RUN=nodes    on NODES machines by torchrun: run the same command on each, with HEAD=<name of the first>
#   RUN=slurm    as a SLURM job on NODES machines; SBATCH_ARGS="--partition=... --time=..." is passed on, quotes and all
#
# GPUS is the number on each machine. DEVICE=cpu runs on the CPU instead, to check that everything is in place.
# OUT is where the job's own output goes. Paths may be relative to the folder in which the script is called.
#
# A SLURM job that is preempted, loses a machine or comes to within REQUEUE seconds of its time limit is queued again,
# and goes on from its last checkpoint. For trainers that do not find that by themselves, the word @resume in the
# command stands for `--resume $RESUME_FROM` if there is such a file when the job starts, and for nothing otherwise.

: "${RUN:=local}" "${NODES:=1}" "${GPUS:=8}" "${CPUS_PER_GPU:=10}" "${REQUEUE:=120}" "${RESUME_FROM:=}"

# absolute VARIABLE...: make the paths in these variables absolute.
absolute() {
    local name
    for name; do
        case ${!name} in /*) ;; *) printf -v "$name" '%s/%s' "$PWD" "${!name}" ;; esac
    done
}

start() {
    if [ "${DEVICE:-}" = cpu ] && [ "$1 $2" != "-m attn_plugins.launch" ]; then
        set -- -m attn_plugins.launch --device cpu -- "$@"
    fi
    case $RUN in
        local) with_resume torchrun --standalone --nproc_per_node "$GPUS" "$@" ;;
        nodes) with_resume torchrun --nnodes "$NODES" --nproc_per_node "$GPUS" --rdzv_backend c10d \
                   --rdzv_id "${JOB_ID:-0}" --rdzv_endpoint "${HEAD:?the name of the first machine}:29500" "$@" ;;
        slurm) submit "$@" ;;
        *) echo "RUN is local, nodes or slurm, not '$RUN'" >&2; return 2 ;;
    esac
}

with_resume() {
    local word command=()
    for word; do
        if [ "$word" != @resume ]; then
            command+=("$word")
        elif [ -e "$RESUME_FROM" ]; then
            command+=(--resume "$RESUME_FROM")
        fi
    done
    "${command[@]}"
}

# SLURM_TASKS=node: torchrun on every machine. SLURM_TASKS=gpu: the trainer reads SLURM's variables itself.
submit() {
    local word words command="" extra=() job=(--nodes "$NODES" --gpus-per-node "$GPUS" --chdir "$PWD" --job-name attn_plugins
        --output "${OUT//%/%%}/slurm-%j.txt" --open-mode append --requeue --signal "B:USR1@$REQUEUE")
    mkdir -p "$OUT"
    for word; do
        if [ "$word" = @resume ]; then command+=' "$@"'; else command+=" $(quoted "$word")"; fi
    done
    if [ "${SLURM_TASKS:-node}" = gpu ]; then
        job+=(--ntasks-per-node "$GPUS" --cpus-per-task "$CPUS_PER_GPU")
        command="srun python$command"
    else
        job+=(--ntasks-per-node 1 --cpus-per-task "$((GPUS * CPUS_PER_GPU))")
        command="srun torchrun --nnodes $NODES --nproc_per_node $GPUS --rdzv_backend c10d \
            --rdzv_id \$SLURM_JOB_ID --rdzv_endpoint \$HEAD:29500$command"
    fi
    if [ -n "${SBATCH_ARGS:-}" ]; then
        words=$(xargs printf '%s\n' <<< "$SBATCH_ARGS")
        mapfile -t extra <<< "$words"
    fi
    # A shell acts on a signal only while it waits, not while a command runs in its foreground.
    sbatch "${job[@]}" ${extra[@]+"${extra[@]}"} --wrap "export HEAD=\$(scontrol show hostnames | head -n 1)
run() { \"\$@\" & wait \$!; }
trap 'scontrol requeue \$SLURM_JOB_ID' USR1
if [ -e $(quoted "$RESUME_FROM") ]; then set -- --resume $(quoted "$RESUME_FROM"); fi
run $command"
}

# A word as any POSIX shell reads it; bash's own %q writes what sh, which runs the job, may not understand.
quoted() {
    local LC_ALL=C
    case $1 in
        *[!A-Za-z0-9_./:=,@%+-]* | "") printf "'%s'" "${1//\'/\'\\\'\'}" ;;
        *) printf '%s' "$1" ;;
    esac
}
