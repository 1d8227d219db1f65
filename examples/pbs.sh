#!/bin/bash
# qsub examples/pbs.sh
#
# For PBS and Torque: the hosts come from the file that PBS_NODEFILE names; ssh between nodes has to be allowed.
#PBS -N minscoop
#PBS -l select=2:ncpus=4:mpiprocs=4
# With Torque, that is  -l nodes=2:ppn=4
#PBS -l walltime=00:10:00
cd "$PBS_O_WORKDIR" || exit 1
.venv/bin/python minscoop.py -v examples/where.py  # the environment with pyzmq: see README
