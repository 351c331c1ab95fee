#!/bin/bash
# One command for each task of a SLURM array:
#
#   attn-plugins sweep ... --print > commands.txt
#   sbatch --array=1-$(wc -l < commands.txt)%8 array.sh commands.txt
#
# A task that is preempted, loses its machine or comes to within two minutes of its time limit is queued again; the
# commands go on from their last checkpoint (--resume).
#SBATCH --job-name=attn_plugins
#SBATCH --output=slurm-%A_%a.txt
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
set -u
commands=${1:?the file of commands, one a line}
command=$(sed -n "${SLURM_ARRAY_TASK_ID:?start this with sbatch --array}p" "$commands")
if [ -z "$command" ]; then
    echo "$commands has no line $SLURM_ARRAY_TASK_ID" >&2
    exit 2
fi
echo "$command"
# A shell acts on a signal only while it waits, not while a command runs in its foreground.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
bash -c "$command" &
wait $!
