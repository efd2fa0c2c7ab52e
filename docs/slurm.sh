#!/bin/bash
# A run on a Slurm cluster, from folio's folder, which all nodes share:
#   sbatch docs/slurm.sh config/shakespeare_char.py
#SBATCH --job-name=folio
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --output=%x-%j.log
set -euo pipefail
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150  # seconds to save in, after SIGTERM
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="${nodes%%$'\n'*}:29500" \
    train.py "$@" --resume=True
