"""python minscoop.py -n 2 examples/where.py

Where tasks run: how many each host and each worker ran. Meant for `--hosts` and batch jobs (hosts.txt, slurm.sh,
pbs.sh, sge.sh); each task takes a tenth of a second.
"""
import collections
import os
import time

import minscoop
from minscoop import futures


def where(_):
    time.sleep(0.1)
    return os.uname().nodename, minscoop.worker


if __name__ == "__main__":
    counts = collections.Counter(futures.map(where, range(40)))
    for (host, worker), count in sorted(counts.items()):
        print(f"host {host}, worker {worker}: {count} tasks")
