#!/usr/bin/env bash
# Trains on one or more nodes under Slurm:
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 scripts/train_slurm.sh [arguments of train.py]
# Submit it from the repository's root; --output_dir has to be a folder that all nodes see.
#   PROCESSES    processes per node      (SLURM_GPUS_ON_NODE, or 1)
#   MIN_NODES    go on with so many when nodes are lost   (all of them: wait for a new one)
#   MAX_RESTARTS how often processes that fail are started again   (10)
#   ENVIRONMENT  file to source for torchrun and Python   (scripts/env.sh)
# Some minutes before the time limit the run saves, ends, and is put back into the queue; it goes on
# from there. Lost nodes: docs/large_runs.md.
#SBATCH --job-name=train
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "scripts/train_slurm.sh runs under Slurm: sbatch --nodes=N scripts/train_slurm.sh ..." >&2
    exit 2
fi
# Slurm runs a copy of this file from a folder of its own.
cd "$SLURM_SUBMIT_DIR"
# shellcheck disable=SC1090
source "${ENVIRONMENT:-scripts/env.sh}"
HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
export ENDPOINT="${HOSTS%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))"
export RENDEZVOUS="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
# Else processes that are started again look for each other where the dead ones were.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export NODES="${MIN_NODES:-$SLURM_JOB_NUM_NODES}:$SLURM_JOB_NUM_NODES"

# Waits for a process to end, through signals that this shell takes meanwhile; its exit status.
wait_for() { # process
    local status=0
    while true; do
        signalled=0 status=0
        wait "$1" || status=$?
        [ "$signalled" = 1 ] || return "$status"
    done
}

# What runs once on each node. torchrun kills its processes half a minute after a signal of its own,
# too early for large checkpoints: they are told directly, and it ends when they have ended.
on_node() { # arguments of train.py
    signalled=0
    (
        # Slurm signals the whole group; ignored, too, by processes that are still starting.
        trap '' USR1
        exec torchrun --nnodes="$NODES" --nproc_per_node="${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}" \
            --rdzv_backend=c10d --rdzv_endpoint="$ENDPOINT" --rdzv_id="$RENDEZVOUS" \
            --max_restarts="${MAX_RESTARTS:-10}" train.py "$@"
    ) &
    local agent=$!
    trap 'signalled=1; pkill -USR1 -P "$agent" || true' USR1
    wait_for "$agent"
}
export -f wait_for on_node

signalled=0 out_of_time=0
srun --kill-on-bad-exit=0 bash -c 'on_node "$@"' on_node "$@" &
STEP=$!
trap 'signalled=1 out_of_time=1; kill -USR1 "$STEP"' USR1
status=0
wait_for "$STEP" || status=$?
if [ "$out_of_time" = 1 ]; then
    echo "out of time: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
