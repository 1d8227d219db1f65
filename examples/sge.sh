#!/bin/bash
# qsub examples/sge.sh
#
# For Grid Engine: the hosts come from the file that PE_HOSTFILE names. "orte" stands for a parallel
# environment of your site: qconf -spl lists them.
# Where ssh between nodes is not allowed, add --rsh 'qrsh -inherit {host}'.
#$ -N minscoop
#$ -pe orte 8
#$ -l h_rt=00:10:00
#$ -cwd
.venv/bin/python minscoop.py -v examples/where.py  # the environment with pyzmq: see README
