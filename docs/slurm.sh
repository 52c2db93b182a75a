#!/usr/bin/env bash
#SBATCH --job-name=kyon
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1        # one task a GPU: the number of trainer.devices
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --signal=SIGUSR1@120       # two minutes before the end Lightning saves, and puts the job into the queue again
#SBATCH --requeue
#SBATCH --open-mode=append         # after a requeue, the log goes on
# submitted again by hand it goes on too: configs/lora.yaml says auto_resume: true
set -euo pipefail
srun kyon-pl fit --config configs/lora.yaml --trainer.devices "${SLURM_NTASKS_PER_NODE:-1}" "$@"
