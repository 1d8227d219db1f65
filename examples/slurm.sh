#!/bin/bash
# sbatch examples/slurm.sh
#
# No hosts are named below: minscoop reads what Slurm allocated, and reaches the other nodes by srun. Each node gets as
# many workers as it has tasks; or, with one task per node, as many as it has CPUs in this job.
#SBATCH --job-name=minscoop
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --time=00:10:00
.venv/bin/python minscoop.py -v examples/where.py  # the environment with pyzmq: see README
