#!/usr/bin/env python3
"""minscoop: one Python file that turns machines you can reach with ssh into one pool for ``map`` and ``submit``.

    python minscoop.py --hosts hosts.txt script.py       # or -n 4: four workers on this machine
    >>> with Executor(4) as executor:                    # minscoop.Executor, in any Python program
    ...     list(executor.map(abs, [-1, 2, -3]))
    [1, 2, 3]

Futures emanate from workers: any task may create tasks and wait for them, to any depth.

    you ── python minscoop.py --hosts hosts.txt script.py
             │
           root      your script: creates tasks and collects results, executes none
             │ ipc
           broker    one per host: routes messages, never opens a payload, stores no task
           ╱ │ ╲     to another host: ØMQ TCP with CURVE, or the remote command's stdin and stdout
     worker  …  broker on hostA ── worker …
             ipc

* The **root** is the process the user started: its terminal, Ctrl-C and exit code are the script's own.
* A **keeper**, one per host, is a clean process without threads or ØMQ contexts: it forks the broker and the
  workers, learns of each death at once, with its status, and replaces the dead. Its stdin is its lifeline:
  when that closes, for whatever reason, the keeper ends everything on its host. The root's keeper also forks a
  **gateway** per other host, which runs the remote command and hands this file to the **agent** at its far end.
* The **broker** matches nodes that are HUNGRY for work with nodes that have a TASK to give, remembers who
  holds which task, and tells the owner when a holder dies. It is a state machine without I/O; the
  **switchboard** around it has its sockets. To the broker above, a host looks like one large worker. If a
  broker dies, another takes over and holds a census: who is there, and who holds what?
* A **worker** has one socket, to its broker. One thread at a time holds the worker's baton and runs user code; a
  task that waits parks its thread, and another thread goes on. A deputy thread answers during long calls.
* The **owner** of a task (the root or a worker) keeps its callable and arguments until the result is
  in. That is the whole basis of recovery.

Work stays where it was made until somebody else is hungry: a worker runs its newest work, and gives away its
oldest (Blumofe and Leiserson, "Scheduling multithreaded computations by work stealing", JACM 1999). A map
is one range: the root gives each worker an equal share, which its holder splits on demand (Tzannes, Caragea,
Barua, Vishkin, "Lazy binary-splitting", PPoPP 2010). A submit is a range of one call. Within a host, large
objects travel through shared memory.

Licence: MIT, (c) 2026 the minscoop authors. Needs CPython 3.8 or newer, pyzmq 22 or newer, Linux or macOS.

Sections, in reading order:
     1  Tunables                   8  Node                     15  Module functions
     2  Errors                     9  Root                     16  SCOOP's names
     3  Messages                  10  Worker                   17  During a run
     4  Sending objects           11  Keeper                   18  Report
     5  Futures                   12  Other hosts              19  Command line
     6  Jobs and spans            13  Lists of hosts
     7  Broker                    14  Executor
"""
import gc
import signal
import _signal  # its functions take a tenth of the time of signal's, which look for an enum's names

_AS_SCRIPT = __name__ == "__main__"
if _AS_SCRIPT:
    __name__ = "minscoop"  # classes defined below must pickle under a name that every process can import
    gc.disable()  # until the program runs: what is created now stays, and a collection would search it for 5 ms
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # likewise until then: Ctrl-C just ends this process

import abc
import array
import atexit
import builtins
import codecs
import collections
import collections.abc
import concurrent.futures
import contextlib
import contextvars
import copy
import copyreg
import errno
import faulthandler
import fcntl  # an ImportError here: this is Windows, but Linux (such as WSL) or macOS is needed
import functools
import glob
import importlib
import importlib.machinery
import importlib.util
import io
import itertools
import json
import logging
import marshal
import math
import mmap
import operator
import os
import pickle
import re
import resource
import select
import shutil
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import traceback
import types
import warnings
import weakref
import zlib
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, TimeoutError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING

# A file named like one of these modules (glob.py, say) beside the script or this file is imported in its place.
for _path in [getattr(module, "__file__", None) for module in list(globals().values())]:
    if _path and os.path.dirname(_path) in {*sys.path[:1], os.path.dirname(__file__)} - {os.path.dirname(os.__file__)}:
        raise ImportError(f"{_path} has the name of a standard module and is imported in its place: rename it")

sys.modules["minscoop"] = sys.modules["__main__" if _AS_SCRIPT else __name__]
if sys.modules["minscoop"].__dict__ is not globals():  # python -m cProfile runs programs in a bare namespace
    sys.modules["minscoop"] = types.ModuleType("minscoop")
    sys.modules["minscoop"].__getattr__ = lambda name: globals()[name] if name in globals() else __getattr__(name)
_CODE = sys._getframe().f_code  # of this module, for the keeper

__version__ = "0.1.0"
__all__ = ["Executor", "Future", "submit", "map", "map_as_completed", "map_reduce", "map_scan", "wait",
           "as_completed", "shutdown", "set_const", "get_const", "allocation", "FIRST_COMPLETED", "FIRST_EXCEPTION",
           "ALL_COMPLETED", "CancelledError", "TimeoutError", "MinscoopError", "CannotSend", "TaskError",
           "WorkerLost", "PoolError", "RemoteTraceback"]

logger = logging.getLogger("minscoop")
map_builtin = map  # the module's own `map`, in section 15, takes the name

# ---------------------------------------------------------------------------------------------------
# 1  Tunables
#
# Seconds, bytes or counts. All time is measured with monotonic clocks.

SLICE = 0.25         # s of a map run in one go, unless the deputy cuts it short. Smaller: the work between slices shows
                     # (0.2 ms, since little of this file is still in the processor's caches; with 50 ms, tasks of 10
                     # ms took 0.4 % longer); larger: results wait, and more is run twice when a worker dies
ATTEND = 10e-3       # s that a message may wait until a worker looks for it between two slices, or else its deputy
                     # does. Smaller: the two interrupt each other; larger: others wait for an answer
FLUSH = 10e-3        # s for which the first results of a task are collected before they are sent. Smaller: more
                     # messages for the owner; larger: the reader of a lazy map sees its first results later
MAX_FLUSH = 0.25     # s for which results are collected at most: the wait doubles with each message. Smaller: messages
                     # took 2 % of the time of two workers; larger: results wait. For parts of a reduction it is 1 ms
                     # per worker of the pool, if that is more
ASK_EARLY = 12e-3    # s of work left at which a worker asks for more. Smaller than a round trip (0.5 ms) plus what the
                     # giver is just busy with: it idles; larger: it hoards what others could run
TOO_LATE = 0.1e-3    # s of work left below which the request goes with the last result instead. Smaller: one more
                     # message per task; larger: the wait for the next task shows
SPIN = 1e-3          # s that the root looks for results before it sleeps, if a single task is away. Smaller: sleeping
                     # and waking take a quarter of the time of submit(f).result(); larger: a processor is busy in vain
TICK = 40e-3         # s between the deputy's looks at what could be given away, while others want work. Smaller: it
                     # wakes up for nothing, which hundreds of workers on a host feel; larger: others wait longer
SWITCH = 1e-3        # s for which a task in Python code keeps the interpreter's lock from the deputy, which releases
                     # the lock and needs it again some eight times per answer. Smaller: threads of tasks switch without
                     # need; larger (Python's own 5e-3): others wait for 40 ms
HOLD = 2e-6          # s per worker of the pool: how long a host's broker collects what its workers say to one owner.
                     # Smaller: the top broker is always busy (25 us a message); larger: results are late
PATROL = 1.0         # s between looks at things that report no event (is the keeper alive?). Smaller: processes wake up
                     # for nothing; larger: such things are noticed later
GRACE = 2.0          # s that the end of a pool may take before what is left is killed. Smaller: last words are lost;
                     # larger: a pool that hangs takes longer to end
MAX_INLINE = 32      # tasks run on top of each other on one stack. Larger: programs that recurse modestly hit Python's
                     # recursion limit (1000); smaller: more threads for deep chains
MAX_WAITING = 1000   # threads of a worker whose tasks wait, beyond which endless recursion is suspected. Fewer: deep
                     # chains of tasks end in RecursionError (32 000 are possible); more: memory runs out first
MAX_PARKED = 200     # parked threads at which a worker stops asking others for work. Fewer: it idles while its tasks
                     # wait; more: each takes memory for its stack
SPARE_THREADS = 4    # threads kept for reuse when their task is done. Fewer: more are started; more: memory
MAX_BODY = 4 << 20   # bytes of arguments in one message, at most, unless it has a single item. Smaller: more messages;
                     # larger: more memory, and what comes behind it waits longer
PACKING = 20e-3      # s that the arguments of one message may take to be pickled, unless it has a single item. Smaller:
                     # more messages; larger: workers idle meanwhile, as one cannot begin before all is pickled
MAX_CALLS = 4096     # submitted calls in one task. Fewer: more messages; larger: its taker can run and give away none
                     # before all are unpickled (4096 tiny ones: 1 ms)
OUT_OF_BAND = 1 << 16  # bytes from which a buffer has a frame of its own, and a frame is sent and received uncopied.
                     # Smaller: handling the frame costs more than the copy; larger: copies of large objects
SHARED = 1 << 18     # bytes from which a frame travels through shared memory within a host. Smaller: making a
                     # file and mapping it (0.1 ms) costs more than it saves
MAPPINGS = 256       # file descriptors in use up to which shared memory is mapped (one each); above, it is read. Fewer:
                     # large values are copied once more; more: the program has less of the usual 1024
READ_AHEAD = 4       # inputs pulled ahead of a map's reader if their number is unknown: per worker, at first. Fewer:
                     # workers idle at the beginning; more: inputs are made that nobody may want
MAX_READ_AHEAD = 1 << 16  # and in all, at most, when the reader is fast. Fewer: tiny calls wait for them; more: memory
MANY_RESULTS = 1000  # in one message, from which on they are freed together. Fewer: large results stay in memory after
                     # they were read; more: reading a map of tiny ones takes 18 ns longer for each
OUTPUT_AHEAD = 1 << 20  # bytes that a host's workers may print ahead of the root's screen. Smaller: they wait for a
                     # round trip; larger: memory of the root, if it is slow
HEARTBEAT = 3.0      # s between signs of life of two brokers. Smaller: messages for nothing; larger: see SILENCE
SILENCE = 12.0       # s without any sign after which a host is lost. Smaller: a busy network loses hosts; larger:
                     # its tasks start again that much later
PIECE = 1 << 17      # bytes per piece of a large message between hosts; each that arrives is a sign of life. Smaller:
                     # more messages; larger: a link that needs SILENCE for one (11 KB/s) loses its host
PATIENCE = 0.3       # s that a node which said it has more may take to give it. Smaller: others are asked in vain;
                     # larger: the hungry idle while it computes without releasing the interpreter's lock
TCP_PATIENCE = 1.0   # s in which a TCP address of the root has to answer; else the remote command carries the data.
                     # Smaller: so it does where the network is slow; larger: hosts behind a firewall start later
LOGIN_PATIENCE = 60.0  # s that a remote command may take until Python answers. Smaller: hosts of a slow batch system
                     # are left out; larger: it is said later that a host does not answer
MESSAGES = 64        # taken by a broker from one socket before it looks at others and answers. Smaller: more messages
                     # travel alone; larger: other sockets wait longer
LOGINS = 8           # at a time. Fewer: many hosts start later; more: sshd begins to refuse, at 10 (MaxStartups)
CENSUS_PATIENCE = 5.0  # s that a census waits for a worker; at the top, twice that. Smaller: one that computes without
                     # releasing the interpreter's lock is not heard; larger: the others wait that long
RECORDS = 0.25       # s between a worker's RECORDs, if they are wanted, plus 1 ms per worker of the pool. Smaller:
                     # more messages; larger: more is lost with a worker
MAX_EVENTS = 40000   # tasks in a report, those merged with their neighbours counted as one; the workers together take
                     # 3 s or more to send as many. Smaller: less is seen; larger: slow pages, and memory of the root
ANSWER = 0.5         # s that workers have to write down their stacks. Smaller: not all do; larger: the keeper, which
                     # waits for them, notices deaths later
DESCRIPTORS = 30     # file descriptors that have to be free in a process. Fewer than it needs: libzmq may abort it;
                     # more: it is refused where it could run
JOIN_PATIENCE = 600.0  # s that --join waits for its file, as jobs start in any order. Shorter: those that start early
                     # give up; longer: one whose program never starts occupies its node in vain
RETURNS = 10         # times that a host is logged in to again after the run was suspended. Fewer: a run that is often
                     # suspended loses hosts; more: a host that ends at once is tried for that long
BROKER_DEATHS = 40   # deaths of a host's brokers within SILENCE, beyond which the host gives up. Fewer: it is lost to
                     # accidents; more: one on which no broker can run is tried for longer
UNHEARD = 100        # calls that failed and that the program has not asked for, remembered to warn of them at the end.
                     # Fewer: the warning says less; more: memory
LOOK = 0.25          # s between looks at what is done, for the progress line. Smaller: it costs and flickers
PROGRESS_DELAY = 1.0  # s after which the line appears. Shorter: it flashes up in short runs; longer: one wonders
PLAIN_PAUSE = 10.0   # s between lines of progress where there is no terminal (smaller: they fill log files); and until
                     # the user is told that the end of the run may wait for ever
STARTUP_DEATHS = 3   # workers in a row that die before they are ready, after which no more are started. Fewer: one that
                     # is killed by chance may end the pool; more: a program that cannot run takes longer to fail


# The controllers of a cgroup that limit CPU time, where they are mounted, and the files with quota and period. No name:
# version 2 of cgroups, which puts both into one file, and "max" for no limit. Version 1 writes -1.
QUOTAS = {"": ("/sys/fs/cgroup", "cpu.max"), "cpu": ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")}


def usable_cores():
    """Number of CPUs that this process may use: affinity and the quotas of its cgroups respected."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no Linux
        cores = min([cores, *(max(1, int(quota)) for quota in cpu_quotas() if quota > 0)])
    return cores


def cpu_quotas():
    """Yield the quotas, in CPUs, of the cgroups that this process is in, all of which hold: see cgroups(7)."""
    for line in read_text("/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        for top, *files in filter(None, map_builtin(QUOTAS.get, controllers.split(","))):
            for path in itertools.accumulate([top, *group.strip("/").split("/")], os.path.join):
                with contextlib.suppress(OSError, ValueError):  # there is none; or it is no number
                    quota, period = (int(word) for name in files for word in read_text(f"{path}/{name}").split())
                    yield quota / period


# ---------------------------------------------------------------------------------------------------
# 2  Errors


FAULTS = (Exception, SystemExit, GeneratorExit)  # what user code such as a __reduce__ may raise; Ctrl-C is not its own


class MinscoopError(Exception):
    """Base of all errors that minscoop itself raises. What a task raises arrives as it was raised."""


class CannotSend(MinscoopError, pickle.PicklingError):
    """A callable, an argument or a result that pickle cannot take, or that cannot be unpickled.

    The text names the part that is to blame. The future of that one call gets it, nothing else."""


class TaskError(MinscoopError):
    """Stands in for an exception of a task that cannot itself be pickled; the text has its type."""


class WorkerLost(MinscoopError, concurrent.futures.BrokenExecutor):
    """The workers that ran this task died, as often as ``retries`` allows."""


class PoolError(MinscoopError, concurrent.futures.BrokenExecutor):
    """The pool as a whole cannot start or cannot go on; the text says why."""

    told = False  # whether a future has handed it to the program


class RemoteTraceback(Exception):
    """Traceback text from the process where an exception was raised; here that exception's ``__cause__``."""

    def __str__(self):
        return f'\n"""\n{self.args[0]}"""'


# ---------------------------------------------------------------------------------------------------
# 3  Messages
#
# A message is a list of frames: its name, then the fields below, numbers as decimal digits; `body` is
# the rest, opaque to every broker. A node is the root or a worker. Each message has one handler, on_<NAME>.
#
#   name     from → to           fields                     why it is sent
#   HELLO    node → broker       facts                      it is there; answered by what it missed: CONSTs, SIZE, STOP,
#                                                           and all that was for it before
#   HUNGRY   node ↔ broker       count width                the sender would take that many tasks; said only once. From
#                                                           a broker: each for `width` workers (else for one), or (0)
#                                                           none any more, see Broker.unask; for a broker below, the
#                                                           items of a TASK count as that many tasks
#   DRY      node → broker                                  it said it had more, but has none; it remembers the HUNGRY
#   IDLE     worker → broker     tasks                      nothing to do, having received so many TASKs; void if
#                                                           another is in flight. A broker below says it of its host,
#                                                           which voids its HUNGRYs: it asks anew
#   TASK     giver → taker       id avoid more lo hi        run the items lo..hi of a job; `avoid`: the host where they
#                                singly body                failed; `more`: the giver has more; `singly`: one by one.
#                                                           Several items void what was asked of the taker before.
#                                                           From the root also unasked: see Root.called_for
#   SPLIT    holder → owner      id lo hi new               it gives the items lo..hi away, as task `new`
#   SINGLY   holder → owner      id                         cannot be unpickled as a whole: send item by item
#   RESULT   holder → owner      id lo count last body      results of `count` items from lo on, of a reduction one for
#                                                           all of them; `last`: the holder has no more of the task
#   MANY     broker → owner      owner new done body        SPLITs and RESULTs of a host in one; the ids of the parts
#                                                           split off, and of the tasks that are no longer held
#   CANCEL   owner → holder      id                         nobody wants the rest; from the broker: the owner died
#   LOST     broker → owner      id lo hi flags obituary    its holder died, running lo..hi; flags: Broker.bury; no
#                                                           obituary: nobody can take it, or its holder has left
#   CONST    node → broker → *   name setter body           a shared constant; the first of its name holds
#   FAILED   worker → root       reason                     no worker can start (the keeper says so), import the
#                                                           script, or be initialised
#   DIED     keeper → broker     name id lo hi flags        a worker process has ended, running lo..hi of a task (id -:
#                                begun obituary             of none); or a host is gone (no id); a broker below says so
#                                                           of both, without id
#   WHO      broker → node       round                      messages were lost: say again who you are and what you do;
#                                                           from a broker below: have everybody asked
#   HELD     holder → owner      round id (lo hi)*          what it will still answer; said after WHO
#   TOLD     node → broker → *   round                      that was all; from the broker: all have said it, so
#                                                           what was not HELD is lost
#   RECORD   worker → root       worker body                what it ran and when, if that is wanted; may be lost
#   STOP     root → worker                                  end when all is done
#   BYE      worker → broker → root                         its last word: what it still holds, it has not begun; to a
#                                                           broker below: end, since you count as lost, or we leave;
#                                                           from a keeper: leave
#   HOST     keeper → root       facts                      why a host is not there (JSON); from the broker: it is, or
#                                                           it was lost
#   SIZE     broker → *          workers                    of the whole pool, whenever that changes; brokers below
#                                                           pass it on
#   PROBE    broker → broker     anything                   a sign of life; a stranger's is echoed, to time the link
#   FETCH    worker → root       path                       wanted: a source file, the names in a directory/, or (?) the
#                                                           program's own part of sys.path. Brokers on the way answer
#                                                           it, or ask once for all that are behind them
#   FILE     root → worker       path body                  its content, if there is any; brokers on the way keep it
#   OUTPUT   broker → root       worker stream text         lines that a worker has printed; from the keeper: its stacks
#   SHOWN    root → broker       host count                 so many bytes of that host's OUTPUT are on the screen
#   LOG      worker → root       record                     what it has logged (JSON); the keeper's, too
#   PROFILE  worker → root       worker stats               its profile
#   STACKS   root → broker                                  have all workers say where they are; the broker tells the
#                                                           keeper by a signal
#   COUNT    root ↔ broker       idle                       how many workers are idle: asked by the root, then answered
#
# Beneath these: an empty message tells a node that it has connected, and a broker that a node has reconnected, so that
# messages may be lost; BUNDLE is several messages in one; between hosts, a large message travels as several PIECEs,
# each of which counts as a PROBE; with PRINTS the keeper hands the broker the ends of pipes.
#
# Brokers form a tree: the root's at the top, one per further host below. To each, the other is a node
# that wants work and has some; a message for a node elsewhere is routed by the host in the node's name.
#
# The id of a task is `owner:serial/lo`: serial counts what the owner shipped, lo is the first item. Parts
# that are split off keep owner and serial, so that ids are unique without asking anybody. The body of a TASK is the
# pickle of a Recipe, empty for submitted calls, and the frames of the arguments.


# A message's name and short fields travel in one frame, separated by NUL, since a frame costs as much as handling a
# field. Messages sent together from one sender to one receiver travel as one: BUNDLE, how many short fields and frames
# each has, and these fields, in one frame; then all these frames. This also wakes the receiver only once, so that its
# answer comes sooner.

# The fields of each message: n is a number, i a task's id, s a short field, b anything; after the * comes the kind of
# any further fields, in any number. The message without a name is the empty one.
FIELDS = dict(entry.split(":") for entry in """
    : HELLO:*b HUNGRY:n*n DRY: IDLE:n TASK:issnnsb*b SPLIT:inni SINGLY:i RESULT:innsb*b MANY:sbbb CANCEL:i LOST:innnb
    CONST:bbb*b FAILED:b DIED:ssnnnnb WHO:n HELD:ni*n TOLD:n RECORD:sb STOP: BYE: HOST:b SIZE:n PROBE:*b FETCH:s
    FILE:s*b OUTPUT:ssb SHOWN:sn LOG:b PROFILE:sb STACKS: COUNT:n""".split())
PATTERNS = {"n": rb"\0[0-9]{1,19}", "i": rb"\0[\w.]{1,255}:[0-9]{1,19}/[0-9]{1,19}", "s": rb"\0[^\0]{0,4096}",
            "b": b"", "": b""}


@functools.lru_cache(None)
def shape_of(name):
    """What a message of this name looks like: (least and greatest number of frames, how many of them are joined into
    the first, a matcher for these, its handler's name). Raises an error if there is no such message."""
    kinds, _, more = FIELDS[name.decode()].partition("*")
    short = sys.maxsize if more == "n" else 1 + len(kinds.rstrip("b"))
    pattern = name + b"".join(PATTERNS[kind] for kind in kinds) + b"(%s)*" % PATTERNS[more]
    return (1 + len(kinds), sys.maxsize if more else 1 + len(kinds), short, re.compile(pattern).fullmatch,
            sys.intern("on_" + name.decode()))


def check_shape(message):
    """Return the name of a message's handler. Raises an error if the message is malformed: a socket may bring any."""
    least, most, short, match, handler = shape_of(message[0])
    if not (least <= len(message) <= most and match(b"\0".join(message[:short]))):
        raise ValueError("no such message")
    return handler


def owner_of(task_id):
    """The name of the node that waits for the results of this task."""
    return task_id.partition(b":")[0]


def host_of(name):
    """The host part of a node's name: names are `host.number`, and `host.root`."""
    return name.partition(b".")[0]


POLLIN, NOBLOCK, SNDMORE = 1, 1, 2  # as in zmq.h: arithmetic with pyzmq's enums takes longer than sending


def readable_now(socket):
    """Whether a message is there."""
    return len(zmq.zmq_poll([(socket, POLLIN)], 0)) > 0  # socket.get(zmq.EVENTS) takes twice as long


def receive(socket):
    """Receive a message, which must be there already: small frames as bytes, large ones uncopied, as zmq.Frame."""
    frames = []
    while True:
        frame = socket.recv(NOBLOCK, copy=False)
        frames.append(frame.bytes if len(frame) < OUT_OF_BAND else frame)
        if not frame.more:
            return frames


def transmit(socket, frames, flags=0):
    """Send a message; large frames without a copy."""
    for frame in frames[:-1]:
        socket.send(frame, flags | SNDMORE, len(frame) < OUT_OF_BAND)
    socket.send(frames[-1], flags, len(frames[-1]) < OUT_OF_BAND)


def bundled(messages):
    """The frames of several messages that travel as one."""
    fields, rest, counts = [], [], []
    for message in messages:
        short = min(len(message), shape_of(message[0])[2])
        fields += message[:short]
        rest += message[short:]
        counts.append(b"%d %d" % (short, len(message) - short))
    if len(counts) > 1:
        fields[:0] = b"BUNDLE", b" ".join(counts)
    return [b"\0".join(fields), *rest]


def unbundled(frames):
    """The messages in frames made by ``bundled``; nonsense is one message, as it is."""
    try:
        fields = bytes(frames[0]).split(b"\0")
        if fields[0] != b"BUNDLE":
            return [fields + frames[1:]]
        counts, fields, rest = map_builtin(int, fields[1].split()), iter(fields[2:]), iter(frames[1:])
        return [[next(fields), *itertools.islice(fields, short - 1), *itertools.islice(rest, count)]
                for short, count in zip(counts, counts)] or [frames]
    except (IndexError, ValueError, StopIteration):
        return [frames]  # nonsense, which check_shape will reject


# A large message may keep a slow link busy for longer than SILENCE, with the sender's signs of life queued behind it.
# So it travels in pieces, one right after the other: PIECE, the message's number, how many bytes are still to come and,
# in the first, the sizes of the message's own frames; then some bytes, in one or more frames.


def in_pieces(frames):
    """The messages as which one travels to another host: just itself, or its pieces."""
    sizes = list(map_builtin(len, frames))
    left = sum(sizes)
    if left <= PIECE:
        return [frames]
    number, pieces = time.monotonic_ns(), []  # number: unlike all before, also those of a predecessor
    for view in map_builtin(memoryview, frames):
        while view:
            if not pieces or left % PIECE == 0:  # all but the first are of full size
                pieces.append([b"PIECE" + b"".join(b"\0%d" % i for i in (number, left, *(() if pieces else sizes)))])
            part = view[:left % PIECE or PIECE]
            pieces[-1].append(part)
            left, view = left - len(part), view[len(part):]
    return pieces


class Pieces:
    """Puts a message together from its pieces. If some are lost, with a connection, the whole message is dropped."""

    def __init__(self):
        self.number, self.sizes, self.body = None, [], bytearray()

    def add(self, frames):
        """Take the next piece, or a message that came whole. Returns a message if one is complete now, else None.
        Raises an error for a piece that does not follow the one before."""
        name, *numbers = bytes(frames[0]).split(b"\0")
        if name != b"PIECE":
            self.__init__()
            return frames
        number, left, *sizes = map_builtin(int, numbers)
        if sizes:
            self.number, self.sizes, self.body = number, sizes, bytearray()
        total = sum(self.sizes)
        if (number, left) != (self.number, total - len(self.body)):
            self.__init__()
            raise ValueError("pieces before this one were lost")
        for part in frames[1:]:
            self.body += part
        if len(self.body) < total:
            return None
        whole, sizes = memoryview(self.body), self.sizes
        self.__init__()
        views = [whole[end - size:end] for size, end in zip(sizes, itertools.accumulate(sizes))]
        return [bytes(view) if len(view) < OUT_OF_BAND else view for view in views]


def connect(context, address, name, keys=None):
    """Return a DEALER socket of this name that connects to a broker. Does not wait for the connection.

    keys: for TCP, those of CURVE: the server's public key, our public key, our secret key."""
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.sndhwm = dealer.rcvhwm = 0  # a high-water mark would drop or block; demand bounds what is in flight
    dealer.reconnect_ivl = 5           # ms; the broker may start after us, or be replaced
    dealer.identity = name
    if keys:
        dealer.ipv6 = True
        dealer.reconnect_ivl_max = 1000
        dealer.curve_serverkey, dealer.curve_publickey, dealer.curve_secretkey = (key.encode() for key in keys)
    dealer.connect(address)
    return dealer


def readable(timeout, *descriptors):
    """Return those of these file descriptors that can be read; waits `timeout` seconds at most (None: no limit)."""
    poll = select.poll()  # select() cannot take descriptors from 1024 on
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1000)]


def import_zmq(descriptors=DESCRIPTORS, encrypts=False):
    """Import the module's global ``zmq``: not at the top of the file, but while the keeper starts.

    descriptors: how many have to be free. More in the root: if its keeper fails, silently, the root is to fail, too.
    encrypts: whether other hosts are to be let in by TCP."""
    global zmq
    try:
        import zmq
        from zmq import pyzmq_version_info as version  # if a zmq.py of the program was imported, the error names it
    except ImportError as error:
        raise PoolError(f"pyzmq is needed, which {sys.executable} cannot import ({error}): "
                        f"run '{sys.executable} -m pip install pyzmq', or use -n 0 or Executor(0), which do without "
                        "it") from None
    if version() < (22,):
        raise PoolError(f"pyzmq 22 or newer is needed, found {zmq.__version__}: "
                        f"run '{sys.executable} -m pip install --upgrade pyzmq'")
    if encrypts and not zmq.has("curve"):
        raise PoolError("this pyzmq was built without CURVE, the encryption that TCP links between hosts need: "
                        "reinstall it from PyPI, or use --transport stdio")
    importlib.import_module("zmq.utils.garbage")  # else pyzmq does at the first large frame, when it may ask the root
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(descriptors):
                stack.enter_context(socket.socket(socket.AF_UNIX))
    except OSError as error:
        raise PoolError(f"cannot open {descriptors} more file descriptors ({error}): raise the limit with "
                        "ulimit -n") from None


# ---------------------------------------------------------------------------------------------------
# 4  Sending objects
#
# Pickle protocol 5, with buffers of OUT_OF_BAND bytes or more in frames of their own. What can be
# imported by name on the other side travels by name; other functions and classes travel by value: their
# code, closure, and those globals that importing their module there would not give.


class Chunks(list):
    """A file for pickle to write to; large bytes objects become chunks without a copy."""

    def write(self, data):
        """Add a chunk; a view is copied, since what it shows may change."""
        self.append(bytes(data))


def dumps(obj, memory=None, lasting=False, whole=False):
    """Frames for one object, made by ``frame_of``: its pickle, and each large buffer in one of its own, unless it is to
    stay whole. Raises what pickling it raises."""
    return Pickler(memory, lasting, whole).frames(obj)


def unpickle(pickled, **options):
    """As ``pickle.loads``, but only of what begins like a pickle: other bytes might announce billions of objects."""
    if pickled[:1] != pickle.PROTO:
        raise pickle.UnpicklingError("this is no pickle")
    while True:
        try:
            return pickle.loads(pickled, **options)
        except ModuleNotFoundError as error:
            if not main.loaded:
                main.load()  # the script may add to sys.path the place where the module is
            elif this_worker is None or not this_worker.learn_path(error.name):
                raise
        except BaseException as error:
            raise as_fault(error)


def as_fault(error):
    """What to raise for an error that user code raised as it was pickled or read: that error; or, if it is none of
    FAULTS, such as asyncio's CancelledError, one of these in its place, since it would pass for Ctrl-C."""
    if isinstance(error, (*FAULTS, KeyboardInterrupt, Terminated)):
        return error
    fault = pickle.PickleError(f"{type(error).__name__}: {text_of(error)}")
    fault.__cause__ = error
    return fault


def loads(frames):
    """The object in frames made by ``dumps``; large buffers are used in place, writable."""
    pickled, *buffers = map_builtin(content, frames)
    return unpickle(pickled, buffers=[bytearray(b) if isinstance(b, bytes) else b for b in buffers])


# Shared memory: within a host, a large frame is a file in the pool's directory in /dev/shm, that is, memory with a
# name. What travels is a reference to it, which no broker opens. The reader maps the file and removes its name; the
# memory lives on as long as it is used. A lasting file keeps its name, and many readers map it: a host has a constant
# in memory only once. On the way to another host, the broker replaces the reference by the content. A file that nobody
# reads is removed by the process that gives it up, or, if that died, at the end of the pool.

TOKEN = os.urandom(16)  # what every reference begins with, and no other frame; the same throughout a pool
spare = []              # file descriptors, kept in case the program has used up all others


def frame_of(chunks, memory=None, lasting=False):
    """A frame for some chunks: their content or, if that is large, a reference to a file that holds it.

    memory: the directory for shared memory, if there is one. lasting: the file is not removed when it is read."""
    size = sum(map_builtin(len, chunks))
    if memory and size >= SHARED:
        path = f"{memory}/{os.urandom(8).hex()}"
        try:
            with open(path, "xb") as file:
                file.writelines(chunks)
            return TOKEN + b"%d %d " % (lasting, size) + os.fsencode(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            if not isinstance(error, OSError):  # Ctrl-C; else the file system is full
                raise
    return b"".join(chunks)


def reference(frame):
    """(whether it is lasting, size, path) if a frame is a reference, else None."""
    if not (isinstance(frame, bytes) and frame.startswith(TOKEN)):
        return None
    match = re.fullmatch(rb"([01]) ([0-9]{1,19}) (/.+/[0-9a-f]{16})", frame[len(TOKEN):], re.DOTALL)
    return match and (match[1] == b"1", int(match[2]), match[3])


def size_of(frame):
    """The number of bytes that a frame stands for."""
    known = reference(frame)
    return known[1] if known else len(frame)


def content(frame):
    """What a frame stands for, as bytes or as a writable view. Raises OSError if its file is gone."""
    known = reference(frame)
    if known is None:
        return frame if isinstance(frame, bytes) else memoryview(frame)
    lasting, size, path = known
    with contextlib.suppress(IndexError):  # another thread is just using them
        os.close(spare.pop())
    try:
        with open(path, "rb") as file:
            if not lasting:
                os.unlink(path)
            with contextlib.suppress(OSError):  # no descriptor is left
                number = os.dup(file.fileno())  # the lowest free one, for mmap's duplicate; the file took a spare one
                os.close(number)
                if number < MAPPINGS:
                    return memoryview(mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE))  # nobody else sees writes
            data = bytearray(size)
            file.readinto(data)
            return memoryview(data)
    finally:
        keep_spare()


def keep_spare():
    """Keep file descriptors, one for ``content`` and one for ``Root.patrol``."""
    with contextlib.suppress(OSError):
        while len(spare) < 2:
            spare.append(os.open(os.devnull, os.O_RDONLY))


def content_if_there(frame):
    """As ``content``, but b"" if the file is gone: the receiver then reports that it cannot read it."""
    try:
        return content(frame)
    except OSError:
        return b""


def discard(frames, even_lasting=False):
    """Remove the files of frames that nobody will read; lasting ones only if that is said."""
    for lasting, _, path in filter(None, map_builtin(reference, frames)):
        if even_lasting or not lasting:
            with contextlib.suppress(OSError):  # it was read
                os.unlink(path)


def make_memory_directory():
    """A fresh directory for shared memory; None if this machine has none."""
    with contextlib.suppress(OSError):
        return make_directory("/dev/shm")


def make_directory(parent):
    """Make a directory of mode 0700, which the pool's keeper will lock. Removes those of pools killed as a whole."""
    directory = tempfile.mkdtemp(".pool", "minscoop-", parent)
    for path in glob.glob(f"{glob.escape(parent)}/minscoop-*.pool"):
        with contextlib.suppress(OSError):  # it is locked, or no directory: one cannot open a pipe
            ours, other = os.stat(directory), os.lstat(path)  # another user's may be a trap: as deep as a stack, say
            if other.st_uid == ours.st_uid and ours.st_mtime - other.st_mtime > 60:  # a newer one may not be locked yet
                descriptor = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                finally:
                    os.close(descriptor)
    return directory


class Pickler(pickle.Pickler):
    """Pickles functions, classes and the like by value where their name would not lead to them elsewhere.

    A small object takes half the time with a Pickler that has pickled others before, an instance of a class by value a
    twentieth. For one thread at a time."""

    def __init__(self, memory=None, lasting=False, whole=False, several=False):
        # as for ``dumps``; several: it is for more objects than one, each of which is read alone
        self.chunks, self.buffers, self.options = Chunks(), [], (memory, lasting)
        self.definitions = {} if several else None  # id of a class or function -> (itself, how it is pickled)
        keep_in_band = functools.partial(self.keep_in_band, self.buffers, self.options)
        super().__init__(self.chunks, 5, buffer_callback=None if whole else keep_in_band)

    @staticmethod
    def keep_in_band(buffers, options, buffer):
        """Called by pickle for each buffer: whether it is to be part of the pickle."""
        with buffer.raw() as data:
            if data.nbytes >= OUT_OF_BAND:
                buffers.append(frame_of([data], *options))  # a copy: arrays may change once we return
            return data.nbytes < OUT_OF_BAND

    def frames(self, obj):
        """Frames for one object, see ``dumps``."""
        chunks, buffers = self.chunks, self.buffers
        try:
            self.dump(obj)
            if len(chunks) == 1 and len(chunks[0]) < OUT_OF_BAND and not buffers:
                return [chunks.pop()]  # what follows does the same, in twice the time
            return [frame_of(chunks, *self.options), *buffers]
        except BaseException as error:
            discard(buffers, even_lasting=True)
            raise as_fault(error)
        finally:
            chunks.clear()
            buffers.clear()
            self.memo = {}  # clear_memo would go through as much as the largest object has ever needed

    def reducer_override(self, obj):
        """Called by pickle for each object that is not of a basic type."""
        reducer = reducer_of(type(obj))
        if reducer is reduce_definition and self.definitions is not None:
            return self.definition(obj)
        return reducer(obj) if reducer else NotImplemented

    def definition(self, obj):
        """As ``reduce_definition``, but a class that travels by value is pickled once, for all its instances, unless it
        is large. A function may refer to what changes in between."""
        if id(obj) not in self.definitions:
            reduced = reduce_definition(obj)
            if reduced is not NotImplemented:
                pickled = b"" if type(obj) is types.FunctionType else dumps(obj, whole=True)[0]
                if not 0 < len(pickled) < OUT_OF_BAND:
                    return reduced
                reduced = unpickle_once, (pickled,)
            self.definitions[id(obj)] = obj, reduced
        return self.definitions[id(obj)][1]


@functools.lru_cache(256)
def reducer_of(kind):
    """What reduces instances of a type for pickle, or says NotImplemented; None if pickle takes them as they are."""
    # Not isinstance, which asks obj.__class__: that of list[int] (until 3.10), or of a proxy, may lie
    if kind is types.FunctionType or issubclass(kind, type):
        return reduce_definition
    if kind in REDUCERS:
        return REDUCERS[kind]
    module = getattr(kind, "__module__", None)
    named = NAMED.get((module, kind.__name__))
    if named:
        return lambda obj: NotImplemented if found_by_name(obj) else named(obj)
    if module == "dataclasses":  # MISSING is compared by identity
        return lambda obj: reduce_by_identity(obj, [sys.modules[module]])
    if issubclass(kind, getattr(sys.modules.get("multiprocessing.managers"), "BaseProxy", ())):
        return reduce_proxy
    return reduce_array if (module, kind.__name__) == ("numpy", "ndarray") else None


@functools.lru_cache(64)
def unpickle_once(pickled):
    """The class in a pickle, with which each of its instances comes."""
    return unpickle(pickled)


IMMUTABLE, HEAP = 1 << 8, 1 << 9  # Py_TPFLAGS_IMMUTABLETYPE (since Python 3.10) and Py_TPFLAGS_HEAPTYPE


def made_in_python(cls):
    """Whether a `class` statement or the like made a class; one in C has methods that cannot travel by value."""
    return cls.__flags__ & (IMMUTABLE | HEAP) == HEAP


def reduce_definition(obj):
    """Pickle a function or a class."""
    is_function = type(obj) is types.FunctionType
    if is_function and this_worker is None and home_of(obj) == "__main__":
        main.warn_of_globals(obj)
    if found_by_name(obj) or not is_function and type(obj) in copyreg.dispatch_table:
        return NotImplemented
    if not (is_function or made_in_python(obj)):
        return reduce_by_identity(obj, [types])  # FunctionType, say, whose own name is `builtins.function`
    if main.by_name_only:
        raise pickle.PicklingError(f"{describe(obj)} would travel by value, which --mixed rules out: define it "
                                   "at the top level of a module")
    return reduce_function(obj) if is_function else reduce_class(obj)


def reduce_by_identity(obj, modules, *names):
    """Pickle by a name under which one of these modules has the very object, which may not know that name; if one has
    it. names: those to try; all, if there are none."""
    return next(((getattr, (module, name)) for module in modules for name in names or [*vars(module)]
                 if vars(module).get(name) is obj), NotImplemented)


def reduce_ufunc(ufunc):
    """Pickle a ufunc of NumPy or SciPy that does not know its module. Pickle itself would look for one that has it, and
    take the main module under its second name, if that has imported it: workers do not have all of its globals."""
    modules = [module for name, module in [*sys.modules.items()]
               if name not in ("__mp_main__", "__main__") and type(module) is types.ModuleType]
    return reduce_by_identity(ufunc, modules, ufunc.__name__)


def reduce_array(array):
    """Pickle a small array of NumPy as protocol 4 does: that takes half the time, since no buffer is made. Not
    one in the other byte order, which would get this machine's."""
    return array.__reduce__() if array.nbytes < OUT_OF_BAND and array.dtype.isnative else NotImplemented


def found_by_name(obj):
    """Whether importing obj's module elsewhere and looking up its qualified name gives the same."""
    module = getattr(obj, "__module__", None)
    path = getattr(obj, "__qualname__", getattr(obj, "__name__", "")).split(".")
    if module is None:
        return isinstance(obj, type)
    if main.by_value(path[0], module, obj):
        return False
    found = sys.modules.get(module)
    for name in path:
        found = getattr(found, name, None)
    return found is obj


def operands(code, *operations):
    """The names on which a code object performs these operations (opcode names)."""
    import dis
    return {step.argval for step in dis.get_instructions(code) if step.opname in operations}


@functools.lru_cache(1000)
def names_in(code):
    """(names of the globals read, all names) in a code object and those nested in it. Slow, hence the cache."""
    read, names, codes = set(), set(), [code]
    for part in codes:  # which grows
        read |= operands(part, "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
        names.update(part.co_names)
        codes += [const for const in part.co_consts if isinstance(const, types.CodeType)]
    return read, names


def home_of(fn):
    """The name of the module whose globals a function has; None if they are of no module (exec, eval)."""
    home = sys.modules.get(fn.__globals__.get("__name__"))  # fn.__module__ may be that of what it wraps
    return home.__name__ if home is not None and home.__dict__ is fn.__globals__ else None


def shipped_globals(fn):
    """The globals that a function takes along, since its module will not have them where it goes. Names with an @ are
    those that pytest adds to a module whose assert statements it rewrites."""
    home = home_of(fn)
    shipped = {name: fn.__globals__[name] for name in names_in(fn.__code__)[0] if name in fn.__globals__ and (
        home is None or name.startswith("@") or main.by_value(name, home, fn.__globals__[name]))}
    return {name: value.resolve() if type(value).__name__ == "lazy_import" else value  # since Python 3.15 (PEP 810)
            for name, value in shipped.items()}


def modules_of(fn, values):
    """Dotted names of the modules among these values, and of submodules, loaded or to be imported lazily, that fn
    mentions: `import xml.dom` only binds xml, and importing that elsewhere would not load xml.dom."""
    _, names = names_in(fn.__code__)
    found = [value.__name__ for value in values if type(value) is types.ModuleType]
    for module in found:  # found grows meanwhile: xml, xml.dom, xml.dom.minidom
        found += [f"{module}.{name}" for name in names if f"{module}.{name}" in sys.modules]
    return found + [module for module in [*getattr(sys, "lazy_modules", ())] if names.issuperset(module.split("."))]


def variables_of(fn):
    """(name, cell, value) of the variables in a function's closure that have a value yet."""
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
        with contextlib.suppress(ValueError):
            yield name, cell, cell.cell_contents


def reduce_function(fn):
    """Pickle a function by value: an empty one first, then its state, so that it may refer to itself."""
    contents = [variable[1:] for variable in variables_of(fn)]
    looks = {name: getattr(fn, name) for name in ("__defaults__", "__kwdefaults__", "__dict__", "__doc__",
             "__qualname__", "__module__", "__type_params__") if hasattr(fn, name)}  # the last: since Python 3.12
    looks["__annotations__"] = annotations_of(fn)
    shipped = shipped_globals(fn)
    imports = modules_of(fn, [*shipped.values(), *(value for _, value in contents)])
    state = shipped, contents, imports, looks
    return make_function, (fn.__code__, home_of(fn), fn.__name__, fn.__closure__), state, None, None, fill_function


def annotations_of(obj):
    """The annotations of a function or class, which are evaluated only now (PEP 649, from Python 3.14 on); as text, if
    one cannot be: it may use a name that only a type checker imports."""
    try:
        return obj.__annotations__
    except Exception:
        return importlib.import_module("annotationlib").get_annotations(obj, format=4)  # Format.STRING


def imported(module):
    """The module of this name; in a worker, the script for the main module."""
    return main.load() if module in ("__main__", "__mp_main__") else importlib.import_module(module)


def make_function(code, module, name, cells):
    """The first half of unpickling a function by value."""
    namespace = {"__builtins__": __builtins__} if module is None else imported(module).__dict__
    return types.FunctionType(code, namespace, name, None, cells)


def fill_function(fn, state):
    """The second half: globals, closure, defaults and attributes."""
    shipped, contents, imports, looks = state
    for path in imports:
        with contextlib.suppress(ImportError):  # a module made at run time, which has not been made here
            importlib.import_module(path)
    for name, value in shipped.items():
        if this_worker is not None and "__name__" in fn.__globals__:  # else they are this function's only
            bind(fn.__globals__, name, value)
        else:
            fn.__globals__.setdefault(name, value)  # the root's own are newer
    for cell, value in contents:
        cell.cell_contents = value
    for name, value in looks.items():
        setattr(fn, name, value)


def bind(owner, name, value, again=False):
    """Bind a global, or an attribute of a class, that came with a function or class. again: it came before, with a
    Recipe that is about to be used again, and is left alone if no other came since: a task may have changed it."""
    latest = LATEST.setdefault(owner, {}) if isinstance(owner, type) else ARRIVED.setdefault(id(owner), {})
    if again and latest.get(name) == id(value):
        return
    latest[name] = id(value)
    if not again and arriving is not None:
        arriving[id(owner), name] = owner, name, value
    if not isinstance(owner, type):
        owner[name] = value
        return
    guarded = isinstance(type(owner).__setattr__, types.FunctionType)  # by the user's code: it may refuse or repeat
    with contextlib.suppress(AttributeError):  # a read-only one, such as __doc__ of some bases
        (type if guarded else type(owner)).__setattr__(owner, name, value)


arriving = None                             # what the Recipe that is being unpickled brings: arguments of `bind`
ARRIVED = {}                                # id of a module's namespace -> global by value -> id of the latest value
LATEST = weakref.WeakKeyDictionary()        # class by value -> attribute -> id of the latest value
CLASS_IDS = weakref.WeakKeyDictionary()     # class -> id, so that a class that comes back is the very one that left
CLASSES = weakref.WeakValueDictionary()     # id -> class; both hold functions with an lru_cache, too
IMPORTED = weakref.WeakSet()                # classes that came by value, and were here already under an alias


def identify(obj, ident=None):
    """The identity of a class or the like, which survives the journey there and back. ident: that with which it
    came; without effect if it has one already."""
    ident = CLASS_IDS.setdefault(obj, ident or f"{os.getpid()}-{id(obj)}-{time.monotonic_ns()}")
    CLASSES[ident] = obj
    return ident


def reduce_cached(fn):
    """Pickle a function of ``functools.lru_cache`` by value; each process has a cache of its own."""
    if not hasattr(fn, "cache_parameters"):  # which it has since Python 3.9
        return NotImplemented
    return make_cached, (identify(fn), fn.cache_parameters(), fn.__wrapped__)


def make_cached(ident, wishes, fn):
    """Unpickle a function of ``functools.lru_cache``: the one that is here already, or a fresh one."""
    cached = CLASSES.get(ident) or functools.lru_cache(**wishes)(fn)
    identify(cached, ident)
    return cached


SENTINELS = {}  # id -> sentinel that came or went by value; they take no weak references


def reduce_sentinel(mark):
    """Pickle a sentinel (since Python 3.15) by value."""
    ident = next((ident for ident, known in [*SENTINELS.items()] if known is mark), os.urandom(16))
    SENTINELS[ident] = mark
    return make_sentinel, (ident, mark.__name__, repr(mark), mark.__module__)


def make_sentinel(ident, name, text, module):
    """Unpickle a sentinel: the one that is here already, or a fresh one."""
    mark = SENTINELS.setdefault(ident, builtins.sentinel(name, repr=text))
    mark.__module__ = module
    return mark


def reduce_class(cls):
    """Pickle a class by value, with an identity that survives the journey there and back."""
    ident, bases = identify(cls), cls.__bases__
    members = vars(cls).get("_member_map_", {})  # of an Enum; no attribute is sent that leads to them
    attributes = {name: value for name, value in attributes_of(cls).items()
                  if name not in ("_member_map_", "_value2member_map_", *members)}
    registered = [subclass() for subclass in (abc._get_dump(cls)[0] if "_abc_impl" in vars(cls) else ())]
    if type(cls).__name__ == "_TypedDictMeta":  # which adds dict itself
        bases = tuple(base for base in bases if base is not dict)
    head = {name: attributes.pop(name) for name in ("__slots__", "__orig_bases__") if name in attributes}
    head.update(members and members_of(cls), __module__=cls.__module__, __qualname__=cls.__qualname__)
    looks = {name: vars(member) for name, member in members.items()}  # with what __init__ has set
    made_of = ident, type(cls), cls.__name__, bases, head, alias_of(cls)
    return make_class, made_of, (ident, in_order(cls, ident, attributes), looks, registered), None, None, fill_class


def alias_of(cls):
    """(module, name) of a global that is bound to a class whose own name does not lead to it, such as what a decorator
    has put in a class's place, or `P = namedtuple("Q", "x")`. None if there is none, or workers may have another."""
    for module in cls.__module__, "__main__":
        for name, value in [*getattr(sys.modules.get(module), "__dict__", {}).items()]:
            if value is cls and not main.by_value(name, module, again=True):
                return module, name
    return None


def class_at(module, name, qualname):
    """The class with this qualified name to which that global is bound here, too; None if there is none."""
    with contextlib.suppress(ImportError, AttributeError):
        found = getattr(imported(module), name)
        return found if issubclass(type(found), type) and found.__qualname__ == qualname else None


def attributes_of(cls):
    """A class's own attributes, except those that a copy of it gets by itself: slots, __dict__, __weakref__."""
    lazy = {"__annotations__": annotations_of(cls)} if "__annotate_func__" in vars(cls) else {}
    return {**{name: value for name, value in vars(cls).items() if getattr(value, "__objclass__", None) is not cls
               and (name not in ("__dict__", "__weakref__") or type(value) is not types.GetSetDescriptorType)
               and name not in ("_abc_impl", "__annotate_func__", "__annotations_cache__")}, **lazy}


def members_of(cls):
    """What the body of an Enum has to bind to make its members anew. A ``__new__`` of its own, or ``__init__`` of the
    dataclass that they are, takes the arguments from which the values were made, which are not known any more:
    ``make_member`` and ``no_init`` then replace them, until the Enum's own attributes are set. A date, say, cannot be
    made from a date, but from what it gives to pickle."""
    members, kind = cls.__members__.items(), cls._member_type_
    makers = getattr(cls, "_new_member_", getattr(cls, "__new_member__", None)), kind.__init__
    reduced = kind.__reduce__ is not object.__reduce__ and kind.__init__ is object.__init__
    if not reduced and not any(isinstance(maker, types.FunctionType) for maker in makers):
        member_of = getattr(sys.modules["enum"], "member", lambda value: value)  # a value may be a function
        return {name: member_of(member._value_) for name, member in members}
    content = getattr(kind, "__getnewargs__",  # the int or str that it is, say
                      lambda member: kind.__reduce_ex__(member, 4)[1] if reduced else ())
    return {"__new__": make_member, "__init__": no_init,
            **{name: (member._value_, *content(member)) for name, member in members}}


def make_member(cls, value, *content):
    """Make a member of an Enum, in place of the Enum's own ``__new__``."""
    member = cls._member_type_.__new__(cls, *content)
    member._value_ = value
    return member


def no_init(member, *args):
    """Leave a member of an Enum as it is: what its ``__init__`` has set comes later."""


def in_order(cls, ident, attributes):
    """A class's attributes, each to be set as soon as it is unpickled. Its data, or globals of its methods, may contain
    instances, even as keys of a dict, which are unpickled before the class is complete: so what these need comes first,
    hashing before other special methods. Then other methods, which the data may contain; last the data.
    ``__init_subclass__`` waits for it, as do ``__new__`` and ``__init__`` if pickle has no arguments for them: those of
    a singleton, say, look for it."""
    bare = all(getattr(cls, name, None) is getattr(object, name, None)
               for name in ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"))
    makers = ("__init_subclass__", "__new__", "__init__") if bare else ("__init_subclass__",)

    def late(name):
        value = attributes[name]
        method = isinstance(value, (types.FunctionType, staticmethod, classmethod))
        special = method and name.startswith("__") and not isinstance(value, classmethod)
        return name in makers, name not in ("__hash__", "__eq__"), not special, not method
    return [Made(set_attribute, (cls, ident, name, attributes[name])) for name in sorted(attributes, key=late)]


class Made:
    """Unpickles as whatever its parts make; they are what its ``__reduce__`` returns."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def set_attribute(cls, ident, name, value):
    """Set an attribute of a class that is being unpickled. In the root a class that is here already stays as it is:
    like the root's globals, it is newer; so does one that this process has imported."""
    if cls in IMPORTED or this_worker is None and CLASSES.get(ident) is cls:
        return
    bind(cls, name, value)


def make_class(ident, metaclass, name, bases, head, alias):
    """The first half of unpickling a class by value: the class that is here already, or an empty one."""
    def body(namespace):
        for key, value in head.items():  # one by one: an Enum's namespace does not notice `update`
            namespace[key] = value
    cls = CLASSES.get(ident)
    if cls is None and alias:
        cls = class_at(*alias, head["__qualname__"])
        if cls is not None:
            IMPORTED.add(cls)
    return types.new_class(name, bases, {"metaclass": metaclass}, body) if cls is None else cls


def fill_class(cls, state):
    """The second half, after its attributes were set: those of an Enum's members, and an ABC's registered classes."""
    ident, _, looks, registered = state
    if CLASSES.get(ident) is not cls:
        for name, look in looks.items():
            vars(cls.__members__[name]).update(look)
        for subclass in filter(None, registered):  # by ABCMeta
            cls.register(subclass)
        CLASS_IDS[cls], CLASSES[ident] = ident, cls  # even if it was sent meanwhile, with an id of its own


def reduce_method(method):
    """Pickle a bound method by value where its name does not lead to it: __private, of super(), or decorated."""
    fn, owner = method.__func__, method.__self__
    found = getattr(owner, getattr(method, "__name__", ""), None)
    if type(found) is types.MethodType and found == method:
        return NotImplemented
    return types.MethodType, (fn, owner)


def reduce_proxy(proxy):
    """Pickle a proxy of a multiprocessing.Manager with its key, which only multiprocessing's own children have."""
    rebuild, (*rest, options) = proxy.__reduce__()
    return rebuild, (*rest, dict(options, authkey=bytes(proxy._authkey)))


def reduce_variable(var):
    """Pickle a TypeVar, ParamSpec or TypeVarTuple by value."""
    options = {name: getattr(var, f"__{name}__") for name in OF_VARIABLES if hasattr(var, f"__{name}__")
               and (name != "default" or var.has_default())}  # NoDefault does not know its module
    return functools.partial(type(var), var.__name__, **options), getattr(var, "__constraints__", ())


def reduce_alias(alias):
    """Pickle a type alias by value: first one without a value, which may contain the alias itself."""
    if alias.__type_params__:
        return functools.partial(type(alias), type_params=alias.__type_params__), (alias.__name__, alias.__value__)
    namespace = {}
    return make_alias, (alias.__name__, namespace), Made(operator.setitem, (namespace, "value", alias.__value__))


def make_alias(name, namespace):
    """Unpickle a type alias. Its value is a global, looked up when somebody asks for it."""
    exec(f"type {name} = value", namespace)
    return namespace[name]


def reduce_forward(ref):
    """Pickle a forward reference of Python 3.14. It may refer to all globals; those of its owner replace them."""
    options = {"owner": ref.__owner__, "module": ref.__forward_module__, "is_class": ref.__forward_is_class__}
    return functools.partial(type(ref), ref.evaluate(format=4), **options), ()  # Format.STRING


# Keywords; with underscores, attributes, which typing_extensions sets in older versions, too: they lack the keywords.
OF_VARIABLES = ["bound", "covariant", "contravariant", *["infer_variance"] * (sys.version_info >= (3, 12)),
                *["default"] * (sys.version_info >= (3, 13))]

NAMED = {  # (module, name) of types whose instances pickle sends by their own name only, if no name leads to these. By
           # name, since this Python may lack the type, and the program need not have imported the module
    **dict.fromkeys((("typing", name) for name in ("TypeVar", "ParamSpec", "TypeVarTuple")), reduce_variable),
    ("typing", "NewType"): lambda new: (type(new), (new.__name__, new.__supertype__)),
    ("typing", "TypeAliasType"): reduce_alias,
    ("annotationlib", "ForwardRef"): reduce_forward,
    ("functools", "_lru_cache_wrapper"): reduce_cached,
    ("builtins", "sentinel"): reduce_sentinel,
    ("numpy", "ufunc"): reduce_ufunc,
}

REDUCERS = {  # types met inside functions and classes, whose instances pickle does not take by itself
    types.CellType: lambda cell: (types.CellType, ()),  # empty: fill_function fills it
    types.MethodType: reduce_method,
    types.ModuleType: lambda module: (importlib.import_module, (module.__name__,)),
    # A function's default argument, say; to stdout and stderr of the process that prints, no other file
    io.TextIOWrapper: lambda file: reduce_by_identity(file, [sys], "stdout", "stderr"),
    types.CodeType: lambda code: (marshal.loads, (marshal.dumps(code),)),
    **dict.fromkeys((types.MappingProxyType, weakref.WeakKeyDictionary),  # the latter of singledispatch
                    lambda mapping: (type(mapping), (dict(mapping),))),
    **dict.fromkeys((staticmethod, classmethod), lambda method: (type(method), (method.__func__,))),
    functools.cached_property: lambda p: (functools.cached_property, (p.func,), {"attrname": p.attrname}),
    property: lambda p: (property, (p.fget, p.fset, p.fdel, p.__doc__)),
}


def explain(obj, where, depth=6, pickler=None):
    """The smallest part of obj that cannot be pickled, as text: where it is, and pickle's complaint.

    pickler: what the parts of a whole share is pickled once, not with each part that refers to it."""
    pickler = pickler or Pickler()
    try:
        pickler.dump(obj)
        return None
    except BaseException as error:
        fault = as_fault(error)
        if not isinstance(fault, FAULTS):  # Ctrl-C
            raise
        complaint = f"{where}: {text_of(fault)}"
    finally:
        pickler.chunks.clear()
        pickler.buffers.clear()
    with contextlib.suppress(Exception):  # an object whose parts cannot even be looked at
        pickler = Pickler()  # another: the one that has failed remembers what it has not finished
        for name, part in parts_of(obj) if depth else ():
            deeper = explain(part, f"{where}{name}", depth - 1, pickler)
            if deeper:
                return deeper
    return complaint


def reason_of(error, *suspects):
    """Why pickling has failed with this error, as text. suspects: pairs of an object that was pickled, and its name."""
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):  # from Python 3.14 on: where it was, one level each, of which there may be thousands
        notes[:] = [note for note in notes if not str(note).startswith("when serializing ")]
    return next(filter(None, itertools.starmap(explain, suspects)), None) or text_of(error)


def parts_of(obj):
    """Pairs of a name and a part of obj, in which ``explain`` looks for the culprit."""
    kind = type(obj)
    if isinstance(obj, (list, tuple, dict)):
        for key, part in obj.items() if isinstance(obj, dict) else enumerate(obj):
            yield f"[{key!r}]", part
    elif isinstance(obj, types.FunctionType):
        for name, _, value in variables_of(obj):
            yield f", variable {name!r} of its closure", value
        for name, value in shipped_globals(obj).items():
            yield f", global variable {name!r}", value
    elif isinstance(obj, type):
        for base in obj.__bases__:
            yield f", its base {describe(base)}", base
        for name, value in attributes_of(obj).items():
            yield f", attribute {name!r}", value
    elif isinstance(obj, types.MethodType):
        yield ", the instance it is bound to", obj.__self__
    elif isinstance(obj, functools.partial):
        yield ", its function", obj.func
        yield ", its argument ", obj.args
        yield ", its argument ", obj.keywords
    elif kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        if made_in_python(kind) and not found_by_name(kind):
            for name, part in parts_of(kind):
                yield f", its class {describe(kind)}{name}", part
        for name, value in [*getattr(obj, "__dict__", {}).items()]:  # pickling one may add to it
            yield f", attribute {name!r}", value
    # else it is pickled in its own way: its complaint says more than its attributes would


def describe(fn):
    """The name of a callable, for messages and totals: the same in every process. Runs none of its own code."""
    while type(fn) in (functools.partial, types.MethodType):
        fn = fn.func if type(fn) is functools.partial else fn.__func__
    name = None
    with contextlib.suppress(AttributeError):
        name = object.__getattribute__(fn, "__qualname__")
    return cut(name if type(name) is str else type(fn).__qualname__, 80)


def cut(text, most):
    """A text of at most so many characters, which shows where some were left out."""
    return text if len(text) <= most else text[:most - 1] + "…"


def counted(number, noun):
    """So many of what a noun names, in words."""
    return f"{number} {noun}" + "s" * (number != 1)


def text_of(thing, words=str):
    """What `words` makes of something, or a placeholder if that raises."""
    try:
        return words(thing)
    except FAULTS:
        return f"<{type(thing).__name__} whose str() or repr() failed>"


# Results travel as one pickle of (values, parts, failures): those that are sure to be read, see ``copier_of``, are
# `values`; of any other, so that it does not harm them, `parts` has {offset: its pickle}, or its frames, with None in
# the places of large ones, which follow.

PLAIN = frozenset((int, float, bool, complex, type(None), str, bytes))  # always pickle and unpickle


class Pickled:
    """What this process has pickled: its frames, whose files are removed with it."""

    __slots__ = "frames", "pid"

    def __init__(self, frames):
        self.frames, self.pid = frames, os.getpid()

    def take(self):
        """Its frames, whose files are now the caller's to discard."""
        self.pid = None
        return self.frames

    def __del__(self):
        if self.pid and self.pid == os.getpid():  # not in a forked child
            discard(self.frames, even_lasting=True)


# type -> what copies one whose items cannot change
CONTAINERS = {tuple: tuple, list: list.copy, dict: dict.copy, set: set.copy}


def copier_of(value, inner=False):
    """What copies a value that is not PLAIN but sure to be pickled and read: NumPy's numbers and small arrays, and
    short containers of such and of PLAIN ones. None for any other value. To pickle and read each alone takes 2 to 15
    us; of a long container that is little, and looking at its items takes as long as pickling it."""
    kind, numpy = type(value), sys.modules.get("numpy")
    if kind in CONTAINERS:
        if inner or len(value) >= 20:
            return None
        items = [*value, *value.values()] if kind is dict else value
        copiers = {copier_of(item, inner=True) for item in items if type(item) not in PLAIN}
        return None if None in copiers else copy.deepcopy if copy.deepcopy in copiers else CONTAINERS[kind]
    array = kind is getattr(numpy, "ndarray", None) and value.nbytes < OUT_OF_BAND  # none yet: it is being imported
    number = value.dtype.type if array else kind
    if made_in_python(number) or getattr(number, "__module__", None) != "numpy" \
            or not issubclass(number, (numpy.number, numpy.bool_)):  # a subclass, say, which has attributes
        return None
    return copy.deepcopy if array and inner else copy.copy  # an array itself: copy does it, too, and sooner


def encode_results(values, failures, title, memory=None, frozen=False):
    """Frames for a slice of results. failures: {offset: exception}. A value that cannot be sent becomes a failure.

    title(offset): names what was run, for error messages. memory: see ``frame_of``. frozen: the values have come from
    ``Slice.frozen``."""
    where = f", on worker {this_worker.label}" if failures and this_worker else ""
    failures = {offset: encode_failure(error, "" if isinstance(error, MinscoopError) else title(offset) + where)
                for offset, error in failures.items()}  # minscoop's own errors say it themselves
    values, parts, large = [*values], {}, []
    apart = {Pickled} if frozen else {*map_builtin(type, values)} - PLAIN
    for offset, value in enumerate(values) if apart.intersection(map_builtin(type, values)) else ():
        if type(value) not in apart:
            continue
        try:
            frames = value.take() if type(value) is Pickled else dumps(value, memory)
        except FAULTS as error:
            failures[offset] = encode_failure(refusal(error, value, title(offset)))
            frames = dumps(None)
        part = [frame if size_of(frame) < OUT_OF_BAND else None for frame in frames]
        values[offset], parts[offset] = None, part if None in part else frames[0]
        large += [frame for frame in frames if size_of(frame) >= OUT_OF_BAND]
    return [*dumps((values, parts, failures), memory, whole=True), *large]


def refusal(error, value, title):
    """The failure of an item whose result cannot be pickled, which raised this error. title: names what was run."""
    why = reason_of(error, (value, f"the result of {title}"))
    return CannotSend(f"{why} (a result of type {type(value).__name__})")


def read_results(frames, count, op=None):
    """(values, failures) in frames made by ``encode_results``. There have to be `count` values; with an `op`, one to
    `count`. If something is wrong with the frames, every result is a failure that says so."""
    try:
        values, parts, failures = loads(frames[:1])
        failures = {offset: decode_failure(*failure) for offset, failure in failures.items()}
        decode_parts(values, parts, iter(frames[1:]), failures)
        if not (0 < len(values) <= count if op else len(values) == count) or \
                not all(offset in range(count) for offset in failures):
            raise ValueError("the number of results is wrong")
        return values, failures
    except FAULTS as error:
        count = 1 if op else count
        why = CannotSend(f"results arrived, but cannot be read: {type(error).__name__}: {error}")
        return [None] * count, dict.fromkeys(range(count), why)


def decode_parts(values, parts, large, failures):
    """Add the values in these parts; for one that cannot be read, add the reason to the failures."""
    for offset, part in parts.items():
        try:
            if type(part) is bytes:
                values[offset] = unpickle(part)  # takes a fraction of the time of `loads`
            else:
                values[offset] = loads([next(large) if frame is None else frame for frame in part])
        except FAULTS as error:
            failures[offset] = CannotSend("a result arrived but cannot be unpickled: "
                                          f"{type(error).__name__}: {text_of(error)}")
            failures[offset].__cause__ = error


def encode_failure(error, where=""):
    """(pickle, traceback text) of an exception, or of a TaskError in its place if it would not arrive as it is: that is
    tried out here, where its text and traceback are known. where: what raised it, and on which worker."""
    text = text_of(error, traceback_text)  # which asks for __notes__, and these may raise
    text = f"{where}:\n{text}" if where else text
    found = None
    for form in (lambda error: error), without_init:
        with contextlib.suppress(*FAULTS):
            blob, = dumps(form(error), whole=True)
            copy = decode_failure(blob, text)
            if type(copy) is type(error):
                if text_of(copy) == text_of(error):
                    return blob, text
                found = found or blob  # pickle's own way: __init__ may have put its words around the text twice
    if found:
        return found, text
    words = text_of(error, lambda error: "".join(traceback.format_exception_only(type(error), error)).rstrip())
    return dumps(TaskError(f"a task raised an exception that cannot be pickled: {words}"), whole=True)[0], text


def without_init(error):
    """A stand-in that unpickles as this exception, made without its ``__init__``. That may take other arguments than
    ``args``, so that pickle's own way fails for many classes, or changes the text; it also leaves out slots. A group's
    members likewise."""
    base = type(error)
    while made_in_python(base):
        base = base.__base__
    _, args, *state = base.__reduce__(error)
    if isinstance(error, getattr(builtins, "BaseExceptionGroup", ())):
        args = error.message, [without_init(part) for part in error.exceptions]
    slots = {name: getattr(error, name) for name in copyreg._slotnames(type(error)) if hasattr(error, name)}
    return Made(make_error, (type(error), base, args), {**dict(*state), **slots} or None)


def make_error(kind, base, args):
    """Make an exception as its base in C does, which may keep some of the arguments, such as ``errno``."""
    error = base.__new__(kind, *args)
    base.__init__(error, *args)
    return error


def traceback_text(error):
    """The traceback of an exception as Python prints it, without frames of this file. If a module is missing on another
    host than the root's, the error's own text gets a hint, too."""
    if isinstance(error, ModuleNotFoundError) and this_worker is not None and this_worker.config["below"] \
            and "(on host" not in str(error.msg):
        error.msg = f"{error.msg} (on host {this_worker.config['name']}, for {sys.executable}: install it there, " \
                    "or name another interpreter with --python)"
        error.args = (error.msg,)
    lines = traceback.TracebackException.from_exception(error)
    lines.stack[:] = [frame for frame in lines.stack if frame.filename != __file__] or lines.stack
    return "".join(lines.format())


def without_ours(tb):
    """A traceback, beginning with the first frame that is not of this file; None if there is none."""
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    return tb


def hint_for_global(error):
    """What to add to a task's traceback if it lacks a global that the script only binds under its own guard."""
    missing = re.match(r"name '(\w+)' is not defined", str(error))
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # the script is not there any more, or being edited
        if missing and this_worker is None and main.path and missing[1] in main.bindings.guarded:
            return f"(the script binds {missing[1]} under if __name__ == '__main__', which workers do not run: bind " \
                   "it at the top level, pass it as an argument, or use set_const)\n"
    return ""


def decode_failure(blob, text):
    """The exception that was given to ``encode_failure``, with the text of its traceback as its cause."""
    try:
        error = loads([blob])
    except FAULTS:
        error = TaskError("a task raised an exception that cannot be pickled: " + text.rstrip().rpartition("\n")[2])
    if type(error) is NameError:
        text += hint_for_global(error)
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))
    return error


class MainModule(types.ModuleType):
    """What a worker has as ``__main__``: the user's script, imported when it is first needed.

    It runs under the name ``__mp_main__``, as with multiprocessing, so that what stands under
    ``if __name__ == "__main__"`` runs in the root only."""

    def __getattr__(self, name):
        if name.startswith("__") and name.endswith("__") or main.loaded:
            raise AttributeError(f"the script that workers import has no {name!r} at its top level")
        main.load()
        return getattr(self, name)


@contextlib.contextmanager
def without_syntax_warnings():
    """While the script is compiled again: Python has shown them already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        yield


Bindings = collections.namedtuple("Bindings", "guarded again outside declared")  # names of globals, see Main.bindings

# What multiprocessing makes in these is shared with forked children, and with nobody if workers make it, too.
INHERITED = ("multiprocessing.synchronize", "multiprocessing.sharedctypes", "multiprocessing.queues")


class Main:
    """The program's main module: where it comes from, and which of its names travel by value."""

    lock = threading.RLock()  # held by the thread that imports the script
    importing = False         # whether that is going on: map, submit and new pools are refused then
    context = contextvars.Context()  # as script and initializer left it (decimal's precision, say); tasks get copies

    def __init__(self, path=None, name=None, by_name_only=False):
        self.path, self.name = path, name  # a file; or a module's name, as in python -m
        self.by_name_only = by_name_only   # several Python versions take part: they cannot read each other's code
        self.loaded, self.error, self.module = True, None, sys.modules["__main__"]
        self.known = None         # the script's globals as they were at its end, if a prompt follows
        self.warned = set()       # globals that ``warn_of_globals`` has warned of

    @classmethod
    def of_this_process(cls):
        """As found in ``sys.modules``. A prompt, a notebook and ``-c`` have neither path nor name; nor has a program
        that is there as bytecode only, since it cannot be parsed, or whose path means another file in each process."""
        module = sys.modules["__main__"]
        spec, path = getattr(module, "__spec__", None), getattr(module, "__file__", None)
        if spec is not None and spec.name == "_pyrepl.__main__":  # the prompt of Python 3.13
            return cls()
        if spec is not None and spec.name and spec.name not in ("minscoop", "__main__"):
            return cls(path, spec.name)
        elsewhere = path and re.match("/dev/(stdin|fd/)|/proc/", path)
        source = path and os.path.isfile(path) and not elsewhere and not path.endswith(".pyc")
        return cls(os.path.abspath(path)) if source else cls()

    def by_value(self, name, module="__main__", value=None, again=False):
        """Whether this global has to travel by value: it is of the main module, and workers that import the script may
        not have it, or another one. again: also if it may be bound again."""
        return module in ("__main__", "__mp_main__") and (
            self.path is None  # they have nothing to import
            or self.module is not sys.modules.get("__main__")  # IPython's %run has replaced it since the pool was made
            # The prompt of python -i has begun, which may change all. From Python 3.14 on, it forgets `inspect`
            or (sys.flags.inspect or sys.flags.interactive) and hasattr(sys, "ps1")
            or name in self.bindings.guarded  # they do not run what is under the guard
            or again and name in self.bindings.again | self.bindings.declared
            or type(value) is types.FunctionType and name not in self.bindings.outside  # exec or a debugger made it
            or self.known is not None  # after -i: the prompt has bound it again, or what it uses
            and not self.rebound.isdisjoint(self.reached(name, value)))

    @property
    def rebound(self):
        """The globals that the prompt has bound, or bound again."""
        return {name for name, value in [*self.module.__dict__.items()]
                if name not in self.known or self.known[name] is not value}

    def reached(self, name, value):
        """The name of a global and, of a function or class, those that it uses, also by way of others."""
        names, found = {name}, [value]
        for obj in found:  # which grows
            classes = obj.__mro__ if isinstance(obj, type) else ()
            for fn in (obj, *itertools.chain.from_iterable(vars(cls).values() for cls in classes)):
                new = names_in(fn.__code__)[0] - names if isinstance(fn, types.FunctionType) else set()
                names |= new
                found += [self.module.__dict__[name] for name in new if name in self.module.__dict__]
        return names

    def warn_of_globals(self, fn):
        """Warn, once each, of globals of fn of which workers have others: those that ``if __name__ == "__main__"``
        binds again, and multiprocessing's locks, queues and shared values, which only forked children inherit."""
        again = self.bindings.again if self.path and self.known is None else set()
        shared = self.bindings.outside if self.path and "multiprocessing.synchronize" in sys.modules else set()
        for name in names_in(fn.__code__)[0] - self.warned if again or shared else ():  # mostly both are empty
            value = fn.__globals__.get(name)
            if name in again:
                self.warned.add(name)
                same = isinstance(value, types.ModuleType) or isinstance(  # most likely: it was imported again
                    value, (type, types.FunctionType, types.BuiltinFunctionType)) and value.__module__ != "__main__"
                if not same:
                    logger.warning("%s uses the global %s, which is bound again under if __name__ == '__main__': "
                                   "workers do not run that block, so they see the value bound at the top level. Pass "
                                   "it as an argument, or use set_const or initializer=", describe(fn), name)
            elif name in shared and type(value).__module__ in INHERITED:
                self.warned.add(name)
                logger.warning("%s uses the global %s, of which each worker makes its own when it imports the script: "
                               "nothing is shared by it. Return results instead, or pass one of a "
                               "multiprocessing.Manager() as an argument", describe(fn), name)

    @functools.cached_property
    def source(self):
        """The bytes of its file, as they were when they were first asked for: it may be edited during a run."""
        return read_source(self.path)

    @functools.cached_property
    def program(self):
        """Its (code, spec). The keeper compiles a script for all its workers; to find a module runs code of its own."""
        if self.name:
            return read_module(self.name)
        with without_syntax_warnings():
            return compile(self.source, self.path, "exec"), None

    def keep_source(self):
        """Read the file now, if there is one and it can be read."""
        with contextlib.suppress(OSError):
            return self.path and self.source

    @functools.cached_property
    @without_syntax_warnings()
    def bindings(self):
        """The script's globals: those that only ``if __name__ == "__main__"`` binds (guarded), those that it binds
        again, all that are bound outside of it, and of the latter those that functions declare as global."""
        import ast
        skipped, run = [], []  # by workers
        for node in ast.parse(self.source, self.path).body:
            guard = isinstance(node, ast.If) and "__name__" in ast.dump(node.test)
            body, orelse = (node.body, node.orelse) if guard else ([], [node])
            if guard and isinstance(getattr(node.test, "ops", [None])[0], ast.NotEq):
                body, orelse = orelse, body
            skipped += body
            run += orelse
        codes = [compile(ast.Module(nodes, []), self.path, "exec", dont_inherit=True) for nodes in (skipped, run)]
        inside, outside = (operands(code, "STORE_NAME", "STORE_GLOBAL") for code in codes)
        declared = operands(codes[1], "STORE_GLOBAL")  # what no function declares takes STORE_NAME here
        return Bindings(inside - outside, inside & outside, outside, declared)

    def load(self):
        """Return the main module; in a worker, import it first. Raises what the script raises."""
        with self.lock:
            if self.loaded:
                return self.module
            self.loaded, module = True, self.module
            self.importing = True
            try:
                code, spec = self.program
                module.__file__, module.__spec__, module.__package__ = self.path, spec, spec.parent if spec else None
                module.__loader__ = spec.loader if spec else RootLoader("__mp_main__", self.path)
                exec(code, module.__dict__)
                self.context = contextvars.copy_context()
            except BaseException as error:
                self.error = error
                raise
            finally:
                self.importing = False
            return module

    def adopt(self):
        """Make this the process's ``main``; its module is also known as ``__mp_main__``, as it is in workers."""
        global main
        main = self
        sys.modules["__mp_main__"] = self.module

    def install(self):
        """Make this process's ``__main__`` a stand-in for the user's script, to be loaded when it is needed."""
        self.loaded, self.module = self.path is None, MainModule("__mp_main__")
        self.module.__builtins__ = __builtins__  # for functions that come by value; until 3.9 nothing adds it
        sys.modules["__main__"] = self.module
        self.adopt()


main = Main()  # this process's; the root's Executor and the keeper set it


def read_source(path):
    """The bytes of a source file; on another host, those that the root has, if any."""
    source = this_worker.fetch_file(path) if this_worker is not None and this_worker.config["below"] else None
    if source is None:
        with io.open_code(path) as file:
            source = file.read()
    return source


def read_module(name):
    """(code, spec) of a module that is to be run, or of a package's ``__main__``."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(name + ".__main__")
    if spec is None or spec.loader is None:
        raise ImportError(f"no module named {name} that can be run")
    code = spec.loader.get_code(spec.name)
    if code is None:
        raise ImportError(f"{name} is written in C: it has no code that can be run")
    return code, spec


# ---------------------------------------------------------------------------------------------------
# 5  Futures
#
# States of a call, as concurrent.futures names them, with the legal moves:
#
#   PENDING    in the queue of its owner          → RUNNING (taken), CANCELLED_AND_NOTIFIED (cancel),
#                                                   FINISHED (the pool broke)
#   RUNNING    on a stack here, or shipped away   → FINISHED; CANCELLED_AND_NOTIFIED (the program ends by an
#                                                   error); stays RUNNING when lost and shipped again
#   CANCELLED_AND_NOTIFIED, FINISHED                final
#
# `cancel` has no effect on a RUNNING call. A shipped call is RUNNING even while it waits in its taker's queue, and one
# that is being cancelled is RUNNING for a moment, so that nobody else takes it.

DONE = frozenset((CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED))  # CANCELLED is set by nobody but CPython's tests
birth = threading.RLock()  # held while a future creates an attribute on demand, or settles without a condition


class Future(concurrent.futures.Future):
    """The result-to-be of a submitted call (PEP 3148). Made by ``submit`` only.

    The methods of ``concurrent.futures.Future`` apply, from any thread. While a task waits for one, its worker
    runs other tasks. The condition and the lists of callbacks and waiters are created on demand, since most
    futures of a large program are created, run and read by one thread."""

    _state, _result, _exception = PENDING, None, None
    several = False
    lo, hi = 0, 1  # as a Span's or a Slice's: it is a range of one call
    job, columns = None, ()  # its job, a Bundle, is made when it is shipped

    def __init__(self, node, call, parent):
        self._node, self._call, self._parent = node, call, parent  # call: (callable, arguments, keyword arguments)
        self.mark = parent and parent.mark                         # as Job.mark

    def __getattr__(self, name):
        factory = {"_condition": threading.Condition, "_done_callbacks": list,
                   "_waiters": lambda: Waiters(self)}.get(name)
        if factory is None:
            refuse_attribute("'Future' object", name)
        with birth:
            return self.__dict__.setdefault(name, factory())

    def __reduce__(self):
        raise TypeError("a Future cannot be sent to another process: send its result()")

    @property
    def stale(self):
        """Whether its entry in a queue is void, since it was taken or cancelled."""
        return self._state != PENDING

    def done(self):
        """True when it was cancelled or has finished. Does not block; a task that asks may let others run meanwhile."""
        if self._state not in DONE:
            self._node.glance(self._state == PENDING)
        return self._state in DONE

    def cancel(self):
        """Cancel the call if it has neither started nor been sent to a worker; return whether it is cancelled."""
        with self._node.lock:
            mine = self._state == PENDING
            if mine:
                self._state = RUNNING  # from here on nobody else takes it
        if mine:
            self._settle(CANCELLED_AND_NOTIFIED)
        return self._state == CANCELLED_AND_NOTIFIED

    def result(self, timeout=None):
        """The value that the call returned; blocks until it is there.

        timeout: seconds, None for no limit. Raises what the call raised, ``CancelledError``, or
        ``TimeoutError``. Any thread may call it, tasks too: these may run the call meanwhile, to its end."""
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                error = self = None  # no cycle between this frame and the traceback
        return self._result

    def exception(self, timeout=None):
        """The exception that the call raised, or None; blocks and raises as ``result`` does."""
        if timeout is not None and timeout <= 0:
            self.done()  # the caller polls: let other tasks run
        if self._state not in DONE and not self._node.wait_for(lambda: self._state in DONE, self, timeout):
            raise TimeoutError(f"the call of {describe((self._call or [self])[0])} "
                               f"is not done after {timeout} s")
        if self._state != FINISHED:
            raise CancelledError()
        if self._exception is not None:
            self._node.unheard.pop(self, None)
            if isinstance(self._exception, PoolError):
                self._exception.told = True
        return self._exception

    def add_done_callback(self, fn):
        """Call fn with this future when it is done; at once, if it is. What fn raises is logged.

        Any thread of this process may run it, such as one that waits for a result; others may wait meanwhile."""
        super().add_done_callback(fn)
        asyncio = sys.modules.get("asyncio")
        if self._node.executes and self._state not in DONE and asyncio and asyncio._get_running_loop():
            self._node.yield_baton()  # the event loop that awaits it cannot run other tasks meanwhile

    def run(self):
        """Run the call here and now; its state is RUNNING already."""
        fn, args, kwargs = self._call
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:  # SystemExit too: as in ProcessPoolExecutor, it is the call's outcome
            error.with_traceback(without_ours(error.__traceback__))  # no assignment: its class may be frozen
            self._settle(FINISHED, None, error)
            if interrupts(error, self._node):
                raise
        else:
            self._settle(FINISHED, result)

    def _settle(self, state, result=None, error=None, later=False):
        """Take a final state (only the first one counts), wake the waiters and call the callbacks. later: leave these
        to ``Node.call_back``, since they may wait for what the caller is about to settle."""
        with birth:
            condition = self.__dict__.get("_condition")
            if self._state in DONE:
                return
            if error is not None:
                self._node.note_failures(self, 1, self._call[0], error)
            if condition is None:
                self._result, self._exception, self._state = result, error, state
        if condition is not None:
            with condition:
                if self._state in DONE:
                    return
                self._result, self._exception, self._state = result, error, state
                for waiter in self.__dict__.get("_waiters", ()):
                    (waiter.add_cancelled if state != FINISHED else
                     waiter.add_result if error is None else waiter.add_exception)(self)
                condition.notify_all()
        self._call = self._parent = None
        if self._node.parked or self._node.attended:
            self._node.wake(self)
        if "_done_callbacks" in self.__dict__:
            if later or self._node.serving._is_owned():  # amid a message, whose rest may settle more
                self._node.due.append(self)
            else:
                self._call_back()

    def _call_back(self):
        """Call the callbacks; log what they raise."""
        for callback in self._done_callbacks:
            try:
                callback(self)
            except (KeyboardInterrupt, Terminated):
                raise
            except BaseException:  # its result() raises what the call raised, even asyncio's CancelledError
                logger.exception("exception in a callback of %r", self)


def run_apart(unit):
    """Run a unit with no event loop set: the one that is set may be that of another task, below it on the stack."""
    asyncio = sys.modules.get("asyncio")
    loop = asyncio and asyncio._get_running_loop()
    if not loop:
        unit.run()
        return
    coroutine = asyncio.current_task(loop)  # from Python 3.14 on there is one for each thread, not for each loop
    if coroutine:
        asyncio.tasks._leave_task(loop, coroutine)
    asyncio._set_running_loop(None)
    try:
        unit.run()
    finally:
        asyncio._set_running_loop(loop)
        if coroutine:
            asyncio.tasks._enter_task(loop, coroutine)


def interrupts(error, node):
    """Whether an exception out of an inline task, or of a map's inputs, is meant for the program itself: Ctrl-C, or
    SIGTERM. Workers get neither."""
    return isinstance(error, (KeyboardInterrupt, Terminated)) and not node.executes and \
        threading.current_thread() is threading.main_thread()


class Waiters(list):
    """The waiters that the standard library's wait and as_completed register with a future.

    These functions block on the waiter's Event. Since we replace it by one of ours, waiting inside a task runs
    other tasks, and a thread that waits in the root reads the socket itself."""

    def __init__(self, future):
        super().__init__()
        self.future = weakref.ref(future)  # no cycle, which would keep its result

    def append(self, waiter):
        """Register a waiter, whose Event becomes one of ours. Raises PoolError if it would wait for ever."""
        future = self.future()
        if future._state not in DONE:
            if future._node.forked:
                raise future._node.broken
            if not isinstance(waiter.event, Event):
                waiter.event = Event(future._node)
        super().append(waiter)


class Event(threading.Event):
    """An Event whose ``wait`` goes through its node's ``wait_for``."""

    def __init__(self, node):
        super().__init__()
        self.node = node

    def wait(self, timeout=None):
        """As ``threading.Event.wait``; other tasks run meanwhile."""
        if timeout is not None and timeout <= 0 and not self.is_set():
            self.node.glance()
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        try:
            return self.node.wait_for(self.is_set, self, timeout)
        except PoolError:
            if self.node.forked:
                raise
        return super().wait(None if timeout is None else max(0, deadline - time.monotonic()))  # another pool may set it

    def set(self):
        """As ``threading.Event.set``."""
        super().set()
        self.node.wake(self)


# ---------------------------------------------------------------------------------------------------
# 6  Jobs and spans
#
# A job is one callable and the n items it is applied to: a map, a reduction, or a bundle of submitted calls. A
# span is a part [lo, hi) of a job that waits in the queue of one node; a slice is a part of a span that is
# being run. Spans and slices know the job they belong to, which takes the results.


class Recipe:
    """What to do with each item: the callable and, for a reduction, the operation. A worker has one Recipe
    for equal pickles, so that it unpickles a callable once, and remembers how long its calls take."""

    brought = ()   # globals and attributes of classes that came with it: arguments of ``bind``
    pace = None    # s per item, from the latest slices
    grain = 1      # items in the next slice, at most
    bulky = False  # of a reduction: the part that was sent last was large

    def __init__(self, fn, op=None, frame=None):
        self.fn, self.op, self.frame = fn, op, frame  # frame: its pickle, made when it first travels

    def encode(self, memory=None):
        """Its pickle, as one frame. Raises CannotSend, naming the part that cannot be sent."""
        if self.frame is None:
            try:
                pickled = Pickled(dumps((self.fn, self.op), memory, lasting=True, whole=True))
                # It removes its file in the end; at once, if another thread was quicker: what that has sent must stay
                self.frame, = vars(self).setdefault("pickled", pickled).frames
            except FAULTS as error:
                why = reason_of(error, (self.fn, f"the callable {describe(self.fn)}"),
                                (self.op, f"the operation {describe(self.op)}"))
                raise CannotSend(f"cannot be sent to a worker: {why}") from error
        return self.frame

    @staticmethod
    def decode(frame):
        """The recipe of a frame; the same one for the same frame, with the globals that came with it."""
        recipe = Recipe.decoded(frame) if frame else CALLS
        for owner, name, value in recipe.brought:
            bind(owner, name, value, again=True)
        return recipe

    @staticmethod
    @functools.lru_cache(64)
    def decoded(frame):
        """The recipe of a frame, for ``decode``."""
        global arriving
        if size_of(frame) >= SHARED:
            Recipe.decoded.cache_clear()  # else up to 64 large ones stay in memory
        brought, outer = {}, arriving
        arriving = brought
        try:
            recipe = Recipe(*loads([frame]), frame)
        finally:
            arriving = outer
        recipe.brought = brought.values()  # not `arriving`: another thread may have unpickled meanwhile
        return recipe

    def learn(self, count, seconds):
        """Learn that `count` items took `seconds`. That tells little of many: the next slice has at most four times as
        many."""
        pace = seconds / count
        self.pace = pace if self.pace is None else (self.pace + pace) / 2
        self.grain = 4 * count


def perform(call):
    """Run a submitted call, see Future._call. Its StopIteration must not end the ``map`` over the slice."""
    fn, args, kwargs = call
    try:
        return fn(*args, **kwargs)
    except StopIteration as error:
        raise Stopped(error) from None


class Stopped(Exception):
    """Carries the StopIteration of a submitted call out of that ``map``."""


CALLS = Recipe(perform, frame=b"")  # of submitted calls


class Span:
    """Items [lo, hi) of a job, in a queue. columns[k][i - base] is argument k of item i; None while still pickled."""

    widths = ()     # in the root: for how many workers the parts are that are given away next; see Root.takers

    def __init__(self, job, columns, base, lo, hi, singly=False, avoid=b""):
        self.job, self.columns, self.base, self.lo, self.hi = job, columns, base, lo, hi
        self.singly, self.avoid = singly, avoid  # whether to run it item by item; the host where it failed
        self._parent = job._parent

    @property
    def stale(self):
        """Whether nothing is left to run here."""
        return self.lo >= self.hi or self.job.cancelled

    @property
    def several(self):
        """Whether a part can be given away while we run the rest."""
        return self.hi - self.lo > 1

    def cut(self, lo, hi):
        """The part [lo, hi) as a new span. It is up to the caller to shrink this one."""
        return Span(self.job, self.columns, self.base, lo, hi, self.singly, self.avoid)

    def items(self, lo, hi):
        """The columns of [lo, hi) only."""
        return [column[lo - self.base:hi - self.base] for column in self.columns]

    def call(self, item):
        """(callable, arguments, keyword arguments) of an item."""
        row = [column[0] for column in self.items(item, item + 1)]
        return row[0] if self.job.recipe is CALLS else (self.job.recipe.fn, row, {})

    def size_of_first(self):
        """Bytes of its first item, if they are known without pickling it; else None."""
        first = [column[self.lo - self.base] for column in self.columns]
        return sum(map_builtin(sys.getsizeof, first)) if PLAIN.issuperset(map_builtin(type, first)) else None

    def claim(self):
        """Take a slice off the front, to be run now: one item of a span that is still pickled. Towards the end slices
        get smaller, half of what is left but no less than a quarter of a whole one, so that others can take the rest,
        and the worker asks for more before it runs dry."""
        rest, grain = self.hi - self.lo, self.job.grain
        count = 1 if self.singly or self.columns is None else min(grain, max(-(-rest // 2), min(rest, grain // 4)))
        self.lo += count
        return Slice(self, self.lo - count, self.lo)


FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()  # PEP 703: Python without a global interpreter lock


class Slice:
    """Items [lo, hi) of a span that are being run, results so far in ``values``."""

    source = None  # while it runs: the iterator that walks along the first column
    sent = 0       # results that were handed over
    watched = False  # the deputy has seen that it runs

    def __init__(self, span, lo, hi):
        self.span, self.job, self.lo, self.hi, self._parent = span, span.job, lo, hi, span._parent
        self.values, self.failures = [], {}

    @property
    def mark(self):
        """For obituaries: (id, lo, hi), the part of another node's task that this is, or that led to it; or None."""
        return (self.job.id, self.lo, self.hi) if isinstance(self.job, Guest) else self.job.mark

    def run(self):
        """Run the items one after the other; an exception is the result of its item only."""
        recipe, values, start, count = self.job.recipe, self.values, time.perf_counter(), self.hi - self.lo
        columns = [list(column) for column in self.span.items(self.lo, self.hi)]
        self.source = iter(columns[0])
        results = map_builtin(recipe.fn, self.in_turn() if FREE_THREADED else self.source, *columns[1:])
        if isinstance(self.job, Guest) and recipe.op is None:  # results for another process
            results = map_builtin(self.frozen, results)
        while len(values) < self.hi - self.lo:
            try:
                if FREE_THREADED:  # list.extend would keep others from reading `values` until its end
                    collections.deque(maxlen=0).extend(map_builtin(values.append, results))
                else:
                    values.extend(results)
                with self.job.node.lock:  # shorten may be changing hi
                    if len(values) < self.hi - self.lo:
                        raise StopIteration from RuntimeError(  # it was the callable's; `map` took it for its own end
                            "its traceback is lost: was next() called on an iterator that had ended?")
            except BaseException as error:
                if interrupts(error, self.job.node):
                    raise
                error = error.args[0] if type(error) is Stopped else error
                error.with_traceback(without_ours(error.__traceback__))  # no assignment: its class may be frozen
                self.failures[len(values)] = error
                values.append(None)
        self.source = None  # from here on there is nothing to shorten
        if self.hi - self.lo == count:
            recipe.learn(count, time.perf_counter() - start)
        if recipe.op is not None:
            self.values, self.failures = reduced(recipe.op, values, self.failures)

    def in_turn(self):
        """Walk along ``source``, but not amid ``shorten``, which holds the lock: without an interpreter's lock, that
        might find a step half done, and an item would run twice."""
        source, end = self.source, object()
        while True:
            with self.job.node.lock:
                item = next(source, end)
            if item is end:
                return
            yield item

    @functools.cached_property
    def pickler(self):
        """For results that are pickled one by one."""
        return Pickler(self.job.node.memory, several=True)

    def frozen(self, value):
        """A result as it is now: a copy if that is cheap, else pickled, since calls that follow may change it, as they
        do with a global buffer or model. Raises CannotSend if that fails."""
        if type(value) in PLAIN:
            return value
        try:
            copier = copier_of(value)
            return copier(value) if copier else Pickled(self.pickler.frames(value))
        except FAULTS as error:
            failure = refusal(error, value, self.job.title(self.lo + len(self.values)))
        raise failure  # without a context, whose frames would keep the value

    def shorten(self):
        """Give the items behind the running one back to the queue, since it takes long. Called with the lock held.

        Of 10 items, the third of which is running, the last 7 go back. ``map`` walks along the first column with
        ``source``. We cut the list where that iterator stands, and only then read from its state, which is now final,
        how far it came: the thread that runs the slice may have gone on in between."""
        source = self.source  # the running thread may set that to None at any time
        if source is None or self.hi - self.lo - len(self.values) <= 1:
            return
        _, (column,), *_ = source.__reduce__()  # (iter, (list,), position), or without position at its end
        del column[len(column) - operator.length_hint(source):]
        state = source.__reduce__()
        end = self.lo + (state[2] if len(state) > 2 else len(self.values))
        if end >= self.hi:
            return
        if self.span.lo == self.hi < self.span.hi:  # they adjoin what is left of the span: it keeps its place
            self.span.lo = end
        else:
            self.job.requeue(self.span.cut(end, self.hi))
        self.hi = end

    def deliver(self):
        """Hand over to the job the results made since the last call; also called while the slice is still running."""
        with self.job.node.lock:
            first = self.sent
            self.sent = len(self.values) if self.job.recipe.op is None else self.hi - self.lo  # one result is for all
            count, values = self.sent - first, self.values[first:self.sent]
            failures = {i - first: self.failures[i] for i in list(self.failures) if first <= i < self.sent}
            self.failures.update((first + i, None) for i in failures)  # their frames refer to us; the keys still count
        if count:
            self.job.deliver(self.lo + first, count, values, failures)


def reduced(op, values, failures):
    """Values and failures of a reduction: one value, that of the operation over all; or one exception, that of the
    first item that has failed, or of the operation."""
    if failures:
        return [None], {0: failures[min(failures)]}
    try:
        return [functools.reduce(op, values)], {}
    except BaseException as error:
        return [None], {0: error}


class Ranges(list):
    """Disjoint ranges [lo, hi) of items."""

    def cut(self, lo, hi):
        """Remove whatever lies in [lo, hi); return the parts removed."""
        if lo >= hi:
            return []
        parts = [(max(first, lo), min(end, hi)) for first, end in self if first < hi and lo < end]
        self[:] = [part for first, end in self for part in ((first, min(end, lo)), (max(first, hi), end))
                   if part[0] < part[1]]
        return parts

    def cut_all(self, ranges):
        """Remove whatever lies in these ranges; return it."""
        return Ranges(part for bounds in ranges for part in self.cut(*bounds))

    def close(self, lo, hi):
        """Remove [lo, hi) if all of it is there; return whether it was."""
        for i, (first, end) in enumerate(self):
            if first <= lo < hi <= end:
                self[i:i + 1] = [part for part in ((first, lo), (hi, end)) if part[0] < part[1]]
                return True
        return False


def trim(units):
    """Drop stale units from both ends of a queue, so that their inputs can be freed. Called with the lock held."""
    while units and units[-1].stale:  # run by those who waited for them
        units.pop()
    while units and units[0].stale:  # older inputs of a map than those that are left
        units.popleft()


class Job:
    """Base of jobs. The owner has a ``Bundle`` or a ``Mapping``; a ``Guest`` stands for a job of another node.

    Each has a method ``deliver``, which takes the results of `count` items from lo on. values: one for each item, or
    one for all of them if it is a reduction. failures: {offset: exception}."""

    recipe, cancelled, lo = CALLS, False, 0  # lo: the item with which its columns begin
    id = left = None  # those of a Guest
    pause = math.inf  # s that a slice may take for the sake of those who await its results, see Guest: here, any
    item_bytes = None  # mean size of a pickled item, once one was pickled
    item_seconds = 0.0  # how long pickling one took the last time

    def __init__(self, node, parent=None):
        # parent: the task of this process that made it; the Worker, if a thread without the baton did; or None
        self.node, self._parent = node, parent
        self.mark = parent and parent.mark             # (id, lo, hi) of another node's task that led to it, or None
        self.deaths = collections.defaultdict(list)    # item -> obituaries of workers that died over it
        self.spans = collections.deque()               # its spans that were queued by push or requeue, see claim
        self.shipments = weakref.WeakSet()             # its Shipments in flight; for calls, those of all Bundles

    @property
    def grain(self):
        """Items in the next slice: few enough to take no longer than SLICE and `pause`, and those that this process may
        run yet."""
        recipe, seconds = self.recipe, min(self.pause, SLICE)
        return max(1, min(recipe.grain, int(seconds / max(recipe.pace or 0, 1e-9)), self.node.calls_left))

    def cancel(self):
        """Drop what has not started, here and elsewhere."""
        if not self.cancelled:
            self.cancelled = True
            self.node.forget(self)

    def title(self, item):
        """A description of an item, for error messages."""
        if self.recipe is CALLS:
            return f"the call of {describe(self.columns[0][item - self.lo][0])}"
        return f"item {item} of the {'reduce' if self.recipe.op else 'map'} of {describe(self.recipe.fn)}"

    def fail(self, lo, hi, error):
        """Deliver an exception as the result of each of these items."""
        self.deliver(lo, hi - lo, [None] * (hi - lo), dict.fromkeys(range(hi - lo), error))

    def claim(self):
        """A slice of what is queued here, or None. Called with the node's lock held."""
        trim(self.spans)
        return self.spans[0].claim() if self.spans else None

    def requeue(self, span):
        """Put a span that was taken off the queue back: it is run last here and given away first."""
        with self.node.lock:
            self.node.queue.appendleft(span)
            self.spans.append(span)

    def push(self, columns, lo, hi):
        """Queue a span of this job at its node."""
        span = Span(self, columns, lo, lo, hi)
        with self.node.lock:
            self.spans.append(span)
        self.node.push(span)


class Bundle(Job):
    """Submitted calls that are shipped together."""

    def __init__(self, node, futures):
        super().__init__(node, futures[0]._parent)
        self.futures, self.shipments = futures, node.calls_away
        self.columns = ([future._call for future in futures],)

    def deliver(self, lo, count, values, failures):
        """Settle the futures of these calls."""
        self.node.calls += count
        for i, value in enumerate(values):
            self.futures[lo + i]._settle(FINISHED, value, failures.get(i))
            self.futures[lo + i] = None  # its result may be large, and the rest may take long

    def cancel(self):
        """Settle all calls, started or not: cancelled if the program ends by an error, failed if the pool broke."""
        super().cancel()
        for future in filter(None, self.futures):
            state = CANCELLED_AND_NOTIFIED if self.node.broken is None else FINISHED
            future._settle(state, None, self.node.broken, later=True)


class Guest(Job):
    """A task that came from another node: its id, which names the owner, and what has not gone back yet."""

    number = 0     # its number among the TASKs received
    ended = False  # the last results are being sent
    flushes = 0    # how often results were sent

    def __init__(self, node, task_id, lo, hi, body):
        super().__init__(node)
        self.id, self.body, self.lo, self.hi = task_id, body, lo, hi
        self.left = hi - lo           # items whose results this node has yet to make
        self.open = Ranges([(lo, hi)])  # and has yet to send
        self.outcomes = []            # (lo, count, values, failures) not yet sent
        self.flushed = time.monotonic()  # when results were sent last
        self.flushing = threading.Lock()  # one thread sends at a time, so that the last message goes last

    def unpack(self):
        """Unpickle callable and arguments. Raises whatever unpickling raises."""
        recipe, *data = self.body
        self.body, self.item_bytes = None, sum(map_builtin(size_of, data)) // (self.hi - self.lo)
        try:
            self.recipe = Recipe.decode(bytes(recipe))  # first, since it imports the script
            self.columns = loads(data)
        finally:
            discard(data)  # frees shared memory that was not read; reading frees the rest
        if set(map_builtin(len, self.columns)) != {self.hi - self.lo}:
            raise ValueError("its number of items is not the announced one")
        if self.recipe is CALLS and not all(isinstance(call, tuple) and len(call) == 3 for call in self.columns[0]):
            raise ValueError("some of its items are not calls")

    def deliver(self, lo, count, values, failures):
        """Collect results; send them when the last one is in, or `pause` has passed."""
        with self.node.lock:
            self.left -= count
            if not self.cancelled:  # else an exception, whose frames refer to us, would keep itself alive
                self.outcomes.append((lo, count, values, failures))
        self.flush()

    def flush(self, aside=False):
        """Send the collected results, if it is time; the last message says that nothing is left here. aside: do not
        run the operation of a reduction, which is user code: this thread, or another, may be amid a task."""
        if self.left and time.monotonic() - self.flushed < self.pause:
            if self.postpones:  # the next item may take long: the sleeper on the socket is to reckon its timeout anew
                self.node.rouse(deputy=self.node.watching > MAX_FLUSH)
            return
        # A thread that is sending looks again when it is done. We do not wait for it: its operation may wait for us
        while self.flushing.acquire(blocking=False):
            try:
                self.send_outcomes(aside)
            finally:
                self.flushing.release()
            if self.left or self.ended or self.cancelled:
                return

    def send_outcomes(self, aside):
        """Send what was collected by now, for ``flush``."""
        with self.node.lock:
            last = self.left == 0
            if self.cancelled or self.ended or not (last or self.postpones):
                return
            self.ended = last
            outcomes, self.outcomes, self.flushed = self.outcomes, [], time.monotonic()
            self.flushes += not last and self.recipe is not CALLS
        unsent = outcomes
        try:
            unsent = (outcomes if aside and self.recipe.op else self.join(outcomes)) or \
                [(self.hi, 0, [], {})]  # all else was sent before, or given away
            while unsent:
                self.send(*unsent[0], last and len(unsent) == 1)
                del unsent[0]
        except BaseException:  # no memory is left: they are still to be sent
            with self.node.lock:
                self.outcomes[:0], self.ended = unsent, False
            raise

    @property
    def pause(self):
        """Seconds for which results are held back to travel together: FLUSH for calls; for a map twice as long each
        time, since its reader has been served by then. Parts of a reduction only show that it goes on: they may wait
        1 ms for each worker of the pool, so that the root of a large one gets one each millisecond."""
        most = max(MAX_FLUSH, 1e-3 * self.node.size) if self.recipe.op else MAX_FLUSH
        return most if self.recipe.bulky else min(FLUSH * 2 ** min(self.flushes, 16), most)

    @property
    def postpones(self):
        """Whether results are held back here only to travel together. Large parts of a reduction do not count:
        they wait for the last one, so that only the whole is sent."""
        return bool(self.outcomes) and not self.recipe.bulky

    def untouched(self, lo, hi):
        """Whether [lo, hi) are all its items, and thus none was begun: what is left of a begun task is less."""
        return (lo, hi) == (self.lo, self.hi)

    def join(self, outcomes):
        """Merge adjacent outcomes, by concatenation or by the operation of the reduction."""
        joined = []
        for lo, count, values, failures in sorted(outcomes, key=operator.itemgetter(0)):
            if not joined or sum(joined[-1][:2]) != lo:
                joined.append([lo, 0, [], {}])
            run = joined[-1]
            run[3].update((len(run[2]) + i, error) for i, error in failures.items())
            run[2] += values
            run[1] += count
            if self.recipe.op:
                run[2:] = reduced(self.recipe.op, *run[2:])
        return joined

    def send(self, lo, count, values, failures, last):
        """Send one RESULT."""
        def title(offset):
            return f"the reduce of {describe(self.recipe.fn)}" if self.recipe.op else self.title(lo + offset)
        frames = encode_results(values, failures, title, self.node.memory, frozen=self.recipe.op is None)
        self.recipe.bulky = self.recipe.op is not None and sum(map_builtin(size_of, frames)) > OUT_OF_BAND
        result = b"RESULT", self.id, b"%d" % lo, b"%d" % count, b"%d" % last, *frames
        with self.node.lock:  # until it is sent, a census must find that we hold these
            self.open.cut(lo, lo + count)
            if last:
                self.node.guests.pop(self.id, None)
            self.node.send_all(result, *(self.node.wishes_if_done() if last else ()))


def is_bounded(it):
    """Whether inputs can be taken at once: they have a length. That of a huge range is more than `len` can say."""
    return hasattr(it, "__len__") and not (isinstance(it, range) and it[sys.maxsize:])


def snapshot(it):
    """A copy of inputs, since a list may change after the call; but not of an array with rows, which is large."""
    if type(it).__module__ == "numpy" and type(it).__name__ in ("ndarray", "memmap"):
        return it if it.ndim > 1 else it.copy()
    return it if type(it) in (range, tuple) else list(it)


class Mapping(Job):
    """A map or reduction of this node: its inputs, pulled as needed, and its results, kept for their reader.

    Inputs that have a length are taken at once. Others, or all if there is a buffersize, are pulled in the
    user's threads, at most `window` items ahead of the reader."""

    pulled = read = 0          # items pulled; items read. Those between are queued, running or unread
    made = 0                   # items that have results
    filled = -math.inf         # when the inputs last filled the window
    begun = None               # the thread that was the first to ask its iterator for results
    abandoned = False          # its iterator is gone, and was never asked
    inputs_error = None        # the exception that ended the inputs, or Ctrl-C that came in the latest pull

    def __init__(self, node, recipe, iterables, ordered=True, buffersize=None, label=None):
        super().__init__(node, node.current_task())
        self.recipe, self.ordered = recipe, ordered
        self.chunks = {}                # first item (unordered: results so far) -> (count, values, failures), unread
        self.pulling = threading.RLock()
        self.fixed = buffersize
        self.window = buffersize or READ_AHEAD * max(1, node.size)
        self.exhausted = buffersize is None and all(map_builtin(is_bounded, iterables))
        if self.exhausted:
            columns = [*map_builtin(snapshot, iterables)]
            self.pulled = min(map_builtin(len, columns), default=0)
        else:
            self.rows = zip(*iterables)
            node.check_open()
        self.tally = progress.find_tally(node, label, self.pulled, not self.exhausted)
        try:
            if self.pulled:
                self.push(columns, 0, self.pulled)
            elif not self.exhausted:
                node.sources.append(self)
                self.pull()
        except BaseException:  # Ctrl-C came, or the pool is broken: nobody gets the iterator
            self.cancel()
            raise

    def pull(self, beyond=False):
        """Queue inputs, if the reader is close behind; beyond: as if all results were read. Return whether any came.

        Runs the user's iterators: call it without the node's lock, from a thread of the user."""
        if self.exhausted or near_limit() or self.pulling._is_owned():  # by the iterator that is being pulled
            return False
        try:
            if not self.pulling.acquire(blocking=False):
                return False
            before = self.pulled  # only now that no other thread pulls
            ahead = before - (self.made if beyond else self.read)
            if self.exhausted or self.cancelled or ahead > self.window // 2:
                return False
            self.widen()
            if self.take_rows(self.window - ahead):
                self.exhausted = True
                self.tell(growing=-1)
                with contextlib.suppress(ValueError):  # it was cancelled meanwhile
                    self.node.sources.remove(self)
                self.node.wake(self)
            return self.pulled > before
        finally:  # Ctrl-C may come just as we have got it: see ``Node.listen``
            try:
                self.pulling.release()
            except RuntimeError:
                pass

    def take_rows(self, want):
        """Queue at most `want` inputs, fewer if the iterators are slow. Return whether these have ended."""
        rows, start = [], time.monotonic()
        try:
            for row in itertools.islice(self.rows, want):
                self.inputs_error = None  # if Ctrl-C came in the pull before, it has not ended them
                rows.append(row)
                if time.monotonic() - start > ATTEND:
                    return False
        except BaseException as error:  # an iterator's: raised when the reader has come this far
            self.inputs_error = error.with_traceback(without_ours(error.__traceback__))  # our frames keep the reader
            if interrupts(error, self.node):  # it ends a generator; all else would hit whatever task pulls just now
                raise
            self.tell_of_inputs()
        finally:
            if rows:  # also those that were pulled before Ctrl-C came
                lo, self.pulled = self.pulled, self.pulled + len(rows)
                self.filled = time.monotonic() if len(rows) == want else self.filled
                self.tell(known=len(rows))
                self.push(tuple(zip(*rows)), lo, self.pulled)
        return len(rows) < want

    def widen(self):
        """Double the window if half of it was used up within 50 ms, unless its inputs would take too much memory."""
        most = min(MAX_READ_AHEAD, MAX_BODY * 16 // (self.item_bytes or 1))
        if self.fixed is None and time.monotonic() - self.filled < 0.05 and self.window * 2 <= most:
            self.window *= 2

    def deliver(self, lo, count, values, failures):
        """Keep results for the reader, unless nobody can read them any more."""
        with self.node.lock:
            trim(self.spans)  # even the last: the cycle of span and job keeps inputs until the garbage collector runs
            if not self.abandoned:
                self.chunks[lo if self.ordered else self.made] = count, values, failures
            if failures and not self.begun:
                self.node.note_failures(id(self), len(failures), self.recipe.fn, failures[min(failures)])
            self.made += count
        self.tell(made=count)
        self.node.wake(self)

    def cancel(self):
        """Drop what has not started, and count it no more in the progress line."""
        super().cancel()
        self.rows = ()  # closes a generator that has not ended
        self.tell(known=self.made - self.pulled, growing=self.exhausted - 1)
        self.tally = None

    def tell(self, known=0, made=0, growing=0):
        """Add to what the progress line counts, if it counts this map: items known, items that have results, maps that
        may have more."""
        if self.tally is not None:
            with progress.lock:
                self.tally[:] = map_builtin(operator.add, self.tally, (known, made, growing))
                if progress.drawn and not progress.live():  # a moment later Python's prompt may stand there
                    progress.wipe()

    def available(self):
        """Whether the reader can go on: there is a chunk for it, or there never will be."""
        return self.cancelled or self.read in self.chunks or self.exhausted and self.read >= self.pulled

    def next_chunk(self, deadline):
        """(values, failures) to be read next, or None at the end. Blocks."""
        while not self.available():
            if not (self.pull() or self.node.wait_for(self.available, self, deadline - time.monotonic())):
                raise TimeoutError("the next result of map did not arrive within the timeout")
        if self.read in self.chunks:
            count, values, failures = self.chunks.pop(self.read)
            self.read += count
            return values, failures
        if self.cancelled:
            raise self.node.broken or CancelledError()
        if self.inputs_error is not None:
            try:
                raise self.inputs_error
            finally:
                self.inputs_error = None  # no cycle between this and the traceback
        return None

    def reader(self, deadline):
        """The iterator over the results. No frame that pulls inputs may hold it: an error's traceback would keep it."""
        results = self.results(deadline)
        weakref.finalize(results, self.abandon).atexit = False
        return results

    def results(self, deadline):
        """The iterator that ``map`` returns. Closed or dropped once it was begun, it cancels the rest."""
        self.begun = threading.current_thread()
        self.node.unheard.pop(id(self), None)
        try:
            while True:
                self.pull()
                chunk = self.next_chunk(deadline)
                if chunk is None:
                    return
                values, failures = chunk
                first = min(failures, default=len(values))
                del values[first:]
                if first < MANY_RESULTS:
                    values.reverse()
                    yield from map_builtin(list.pop, itertools.repeat(values, first))  # none is kept once it is read
                else:
                    yield from values  # in less than half the time
                if failures:
                    raise failures.pop(first)
        finally:
            self.cancel()

    def abandon(self):
        """The iterator is gone. If it was never begun, run the rest all the same, but keep no results."""
        if not self.begun:
            self.abandoned = True
            self.chunks.clear()
            if self.fixed:  # nobody makes room for more
                self.rows = ()
            self.tell_of_inputs()

    def tell_of_inputs(self):
        """Log the exception by which the inputs ended, if there is one and nobody can read it any more."""
        error = self.inputs_error
        if self.abandoned and error is not None and not interrupts(error, self.node):  # that was raised where it came
            logger.error("the inputs of a map that nobody reads raised an exception", exc_info=error)


# ---------------------------------------------------------------------------------------------------
# 7  Broker
#
# States of a link to a worker, or to a broker below, as the broker sees it, with the messages that move it:
#
#   (none)   → IDLE on HELLO; → BUSY during a census, since it may have been there before us
#   BUSY     → HUNGRY on HUNGRY; → IDLE on IDLE
#   HUNGRY   → BUSY on the last TASK that it wants; → IDLE on IDLE (a worker is both then; a broker asks anew)
#   IDLE     → BUSY on a TASK for it
#   any      → BUSY, and holding nothing, when it is sent WHO; it says again what it wants and holds
#   any      → gone on BYE, DIED, or (a broker) after SILENCE
#
# In the code IDLE is Link.idle, HUNGRY is Link.demand > 0, and BUSY is neither.
#
# HUNGRY is demand: the number of tasks that a node would take. A node with tasks to give is rich: it said `more` with
# its last TASK, or is a worker that holds several items. It is asked by HUNGRY, once, and remembers that; DRY says that
# it has nothing after all. A broker below has boasted if it told the one above that it has more.

ROOT = b"0.root"
UP = b"up"  # a broker's name for the one above it
KEEPER = b""  # and for the keeper of its host, whose notices carry no sender
ALL = b"%d" % (1 << 62)  # the upper bound of a range that goes to the end, whatever that is


class Link:
    """What a broker knows of one node, or of another broker, which counts as one node with all those behind it."""

    def __init__(self, name, facts, heard, idle):
        self.name, self.facts = name, facts  # facts: what the HELLO of a broker below says; else None
        self.heard, self.idle = heard, idle  # when it last said something; whether it has been IDLE since its last TASK
        self.role = {UP: b"above", ROOT: b"root"}.get(name, b"broker" if facts else b"worker")
        self.size = facts["workers"] if facts else 1
        # All are set here: one that is set later takes 232 bytes of each of a thousand hosts
        self.demand = 0      # tasks that it would take; see Broker.want
        self.width = 1       # workers that each of these tasks is for
        self.asked = 0       # tasks that it was asked for and has not given; see Broker.owe
        self.since = 0.0     # when that last changed
        self.more = False    # it said that it has more
        self.items = 0       # of a worker: items that it holds whose results have not come yet
        self.tasks = 0       # number of TASKs sent to it so far
        self.held = {}       # id of a task that it holds -> its number among the TASKs sent to it; 0: it may have begun


BLAME, BEGUN, PARTED = 1, 2, 4  # flags of DIED and, but for the last, of LOST
ANYTHING = b"", b"0", ALL, b"0", b"0"  # id, lo, hi, flags and begun in a DIED of who may have run any of its tasks
NOTHING = b"-", b"0", b"0", b"0", b"-1", b""  # and of who was running none, nor had begun any; without an obituary

MAY_SAY = {role: frozenset(names.encode().split()) for role, names in {
    b"stranger": "HELLO PROBE", b"keeper": "BYE DIED FAILED HOST OUTPUT LOG",
    b"root": "HELLO DRY TASK CANCEL CONST TOLD STOP FILE SHOWN STACKS COUNT",
    b"worker": "HELLO DRY TASK CANCEL CONST HELD TOLD HUNGRY IDLE SPLIT SINGLY RESULT FAILED FETCH RECORD BYE "
               "LOG PROFILE",
    b"broker": "MANY LOST DIED OUTPUT WHO PROBE",
    b"above": "TASK CANCEL CONST HELD TOLD HUNGRY SPLIT SINGLY RESULT MANY LOST WHO SIZE STOP BYE PROBE FILE SHOWN "
              "STACKS"}.items()}
MAY_SAY[b"broker"] |= MAY_SAY[b"worker"]  # it speaks for its workers
TAKERS = b"worker", b"broker"  # the roles of those that execute tasks: workers, and brokers below
ALL_BELOW = b"root", *TAKERS   # everybody but the broker above
OF_TASKS = frozenset(b"SINGLY RESULT LOST CANCEL".split())  # as SPLIT and TASK, only a task's holder or owner says them
OF_WISHES = frozenset(b"HELLO HUNGRY DRY TASK HELD TOLD WHO BYE DIED".split())  # change who wants work, or has some
URGENT = frozenset(b"HUNGRY DRY PROBE OUTPUT FETCH RECORD".split())  # may overtake what `collect` delays


class Broker:
    """Routes messages between nodes. No socket, clock or process inside: ``handle`` takes a message and
    returns those to be sent, as (name of the receiver, frames).

    The policy: HUNGRY nodes are served by the rich, which said that they have more or hold several items; if these do
    not suffice, everybody is asked once, and a node with nothing to give remembers that. A task for which nobody is
    hungry any more goes to the node that holds least, which is to keep it. To spare the top broker, however many hosts
    there are, a broker below asks for all its workers at once (they share what comes) and before they run dry, and
    bundles its messages. When all is done it asks anew: what it had asked for meanwhile would have the next map shared
    unevenly."""

    wanted = 0            # tasks that the hungry would take
    plenty = None         # the latest TASK from above had several items and `more`; None: no TASK came from there
    boasted = False       # the one above was told that we have more
    received = 0          # TASKs from above
    told = None           # how many these were when we said IDLE to the one above; or None
    weight, due = 0, 0.0  # bytes in `parcels`; when these have to go, or those that are to come
    facts = None          # the JSON of our HELLO to the one above
    probed = -math.inf    # when other brokers were last asked for a sign of life
    round = None          # number of the census under way, as WHO and TOLD carry it
    census_began = 0.0    # when that was
    over_above = True     # during a census: no broker above has yet to end it
    again = False         # and: another has to follow; just one, however many nodes connect anew
    printing = 0          # bytes of OUTPUT from here that are not yet SHOWN
    stopping = False      # True: the root has no more to do; "said": so all were told to STOP
    finished = False      # nobody is left: the loop may end
    dropped = 0           # messages that made no sense
    changed = False       # maybe it is time to ask around: who wants work or has some has changed, or parcels have gone
    now = 0.0             # when that came
    message = out = ()    # that message; those to which it leads

    def __init__(self, host=b"0", size=0, heirs=None):
        heirs = heirs or {}                     # after another broker's death: name -> id of the task it is running
        self.host = host
        self.below = host != host_of(ROOT)      # there is a broker above this one
        self.links = {}                         # name -> Link
        self.hungry = {}                        # those of them that would take tasks, the longest hungry first
        self.rich = {}                          # those that have more, as far as we know
        self.unasked = {}                       # those that owe no task that they were asked for
        self.parcels = {}                       # owner -> SPLITs and RESULTs that go up together
        self.placed = {}                        # task id -> name of its holder, if its results pass through here
        self.consts = {}                        # name -> its CONST
        self.keep = lambda frame: frame         # puts a constant's frame where all workers of this host can share it
        self.discard = lambda frames: None      # called with frames that nobody will read
        self.files = {}                         # path -> its FILE
        self.fetching = {}                      # path -> names of those that wait for it
        self.dead = set()                       # names that are not coming back
        self.parting = {}                       # names of the DIED whose BYE may yet come -> (since when, that DIED)
        self.missed = set()                     # names for which something was discarded since the last census began
        self.own_size, self.size = size, 0      # workers of this host; of the pool, if there are hosts
        self.present = {}                       # names that have connected, maybe again, and not said HELLO since
        # name of a node that is to come -> messages that it will be sent after its HELLO
        self.late = {name: [] for name in heirs or ([] if self.below else [ROOT])}
        # names that have not TOLD yet -> the tasks that they had
        self.silent = {name: {task_id: 0} if task_id else {} for name, task_id in heirs.items()}
        self.presumed = {}                      # the same, of those that did not answer in time
        self.counted = bool(heirs)              # there was or will be a census: `placed` may have gaps
        if self.below:
            self.meet(UP)

    def handle(self, sender, frames, now):
        """Take a message; return the messages it leads to. Nonsense is dropped and counted."""
        self.message, self.out, self.now = frames, [], now
        link = self.links.get(sender)
        role = link.role if link else b"stranger" if sender else b"keeper"
        try:
            name, handler = frames[0], check_shape(frames)
            known = name in MAY_SAY[role] or sender and not name  # the empty message: whoever connects says it
            if not known or name in OF_TASKS and not self.concerns(sender, frames[1]):
                raise ValueError(f"not from a {role.decode()}, or from who does not hold the task")
            if link:
                link.heard = now
            self.changed = name in OF_WISHES
            getattr(self, handler)(sender, *frames[1:])
        except Exception as error:
            self.dropped += 1
            self.discard(frames)  # its task may have been cancelled: nobody will read what a RESULT or TASK refers to
            logger.debug("broker: dropped a message of %r: %r", sender, error)
        self.conclude()
        return self.out

    def concerns(self, sender, task_id):
        """Whether the sender may speak of a task: as its holder by our records (which have gaps after a census: then it
        is believed), or as the link that leads to its owner."""
        return sender == self.placed.get(task_id, sender if self.counted else None) or \
            sender == self.way_to(owner_of(task_id))

    def tick(self, now):
        """Every HEARTBEAT (PATIENCE while `waiting`): show that we live, notice who does not. Returns messages."""
        self.out, self.now, self.changed = [], now, True
        self.notice_silence()
        if self.finished:
            return []
        if self.again or self.silent and self.round is None:  # the last: we have taken over
            self.begin_census()
        for link in list(self.rich.values()):
            if link.asked and now - link.since >= PATIENCE:  # it may compute without releasing the interpreter's lock
                del self.rich[link.name]
        for name, (since, died) in list(self.parting.items()):
            if now - since >= (PATIENCE if self.stopping else GRACE):  # its BYE was lost, with a connection
                self.bury(name, *died)
        if self.size:  # else no host is there yet, and nodes reckon with those that are to come
            self.resize(least=0)
        if self.round is not None:
            self.ask_again()
        self.conclude()
        if now - self.probed >= HEARTBEAT / 2:
            self.probed = now
            self.tell([b"broker", b"above"], b"PROBE")
        return self.out

    def notice_silence(self):
        """Give up other brokers that have been silent for SILENCE; if it is the one above, end."""
        for link in list(self.linked(b"broker", b"above")):
            link.heard = link.heard or self.now
            silent = self.now - link.heard > SILENCE
            if silent and link.name == UP:
                self.finished = True
            elif silent:
                self.give_up(link, f"not heard from for {SILENCE:.0f} s")

    def give_up(self, link, reason):
        """Another host is lost: tell the root."""
        self.send(ROOT, *host_notice(link.name.decode(), link.facts["host"], reason))
        self.bury(link.name, *ANYTHING, f"host {link.facts['host']} was lost: {reason}".encode())

    def conclude(self):
        """Do what may follow from a message or a tick: ask for tasks, stop, report to the broker above."""
        if self.below:
            self.report()
        if self.changed and self.hungry:
            self.ask_around()
        if self.stopping:
            self.stop_if_quiet()

    def report(self):
        """Let the broker above know how things are."""
        if self.plenty and UP in self.unasked and self.lack() > self.own_size // 4:  # before workers run dry
            self.ask(self.links[UP], 1)
        if self.boasted and not self.rich:
            self.boasted = False
            self.send(UP, b"DRY")
        before, self.told = self.told, self.received if self.quiet() else None
        if self.told not in (None, before):  # as a worker would: all that we received is done
            self.send(UP, b"IDLE", b"%d" % self.told)
            above = self.links[UP]
            self.owe(above, 0)
            if self.wanted > above.demand:  # ask anew for what is wanted here now, and for no more
                self.ask(above, self.wanted - above.demand)
        if self.parcels and (self.now >= self.due or self.weight > MAX_BODY):
            self.send_parcels()

    def send(self, name, *frames):
        """Send a message to a node, now or after its HELLO; discard it if the node is gone."""
        way = self.way_to(name)
        if way is None:
            late = self.late.get(name, self.late.get(host_of(name)))
            if late is not None:
                late.append(list(frames))
            else:
                self.missed.update((name, host_of(name)))
                self.discard(frames)
            return
        if way == UP and self.parcels and frames[0] not in URGENT:
            self.send_parcels()
        self.out.append((way, list(frames)))

    def pass_on(self, name):
        """Forward the message that is being handled to a node."""
        self.send(name, *self.message)

    def tell(self, roles, *frames):
        """Say something to all who have one of these roles."""
        for link in self.linked(*roles):
            self.send(link.name, *frames)

    def way_to(self, name):
        """The name of the link that leads to a node: its own, its host's broker, or UP; None if there is none."""
        if name in self.links:
            return name
        host = host_of(name)
        return None if host == self.host else host if host in self.links else UP if self.below else None

    @property
    def waiting(self):
        """Whether some are hungry while others seem to have more, which these may not give; or the last words of one
        that has DIED are awaited. If nothing comes, `tick` will notice."""
        return bool(self.hungry and self.rich or self.parting)

    def linked(self, *roles):
        """The links of those that have one of these roles."""
        return (link for link in self.links.values() if link.role in roles)

    # SPLITs and RESULTs for owners on other hosts are collected, for a time that grows with the pool, and go up as one
    # MANY for each owner, whose body brokers on the way do not open. The first after a quiet time goes at once.

    def collect(self, owner):
        """Forward the SPLIT or RESULT that is being handled to an owner, now or with others."""
        small = HOLD * self.size < 1e-3  # a pool of less than 500 workers does not keep the top broker busy
        if small or self.way_to(owner) != UP or \
                any(reference(frame) or not isinstance(frame, bytes) for frame in self.message):  # large: uncopied
            self.pass_on(owner)
            return
        self.parcels.setdefault(owner, []).append(self.message)
        self.weight += sum(map_builtin(len, self.message))

    def send_parcels(self):
        """Send what was collected, with the ids of the tasks that it splits off or ends, for brokers on the way."""
        parcels, self.parcels, self.weight, self.due = self.parcels, {}, 0, self.now + HOLD * self.size
        self.changed = True  # as long as there are parcels, `ask_around` does not ask for all that is wanted
        for owner, messages in parcels.items():
            new = [message[4] for message in messages if message[0] == b"SPLIT"]
            done = [message[1] for message in messages if message[0] == b"RESULT" and message[4] == b"1"]
            self.send(owner, b"MANY", owner, b" ".join(new), b" ".join(done), pickle.dumps(messages, 5))

    def flush(self, now):
        """Send what was collected, since it is due. Returns messages."""
        self.out, self.now = [], now
        self.conclude()
        return self.out

    def gone(self, name):
        """Whether a node or its host has died."""
        return bool(self.dead) and (name in self.dead or host_of(name) in self.dead)

    # -- who is there

    def introduced(self, sender, facts):
        """The facts in a HELLO, if the sender's name is that of a broker; None for a node. Raises an error if name and
        facts do not fit each other, or do not belong here."""
        host, number = re.fullmatch(rb"(\w+)(\.root|\.[0-9]+)?", sender).groups()
        if bool(facts) == bool(number) or facts and self.below or (host == self.host) != bool(number):
            raise ValueError("it does not belong here, or says of itself what is not true")
        if sender in self.dead:
            raise ValueError("a late word of one that has died meanwhile")
        if number:
            return None
        known = json.loads(bytes(facts))
        if not (known["number"] == host.decode() and 0 <= known["workers"] <= MAX_HOSTS and known["host"]):
            raise ValueError("facts of another, or none")
        return known

    def meet(self, name, facts=None):
        """Make a fresh link to a node: idle, except during a census, since it may have had work before we came."""
        self.links[name] = self.unasked[name] = Link(name, facts, self.now, self.round is None and not self.silent)

    def forget(self, name):
        """Drop the link to a node, with all records of what it wants, has and holds; return the link."""
        link = self.links.pop(name)
        self.want(link, 0)
        for task_id in link.held:
            del self.placed[task_id]
        for index in self.rich, self.unasked:
            index.pop(name, None)
        return link

    def remove(self, name):
        """Drop a node that is gone, and do not wait for its answer in a census."""
        self.parting.pop(name, None)
        if name in self.links and self.forget(name).role == b"broker":
            self.resize()
        self.hear_out(name)

    def on_HELLO(self, sender, facts=b""):
        """A node is there: tell it what it missed."""
        known = self.introduced(sender, facts)
        if sender not in self.links:
            self.meet(sender, known)
            if sender in self.silent and sender not in self.present and self.round is not None:
                self.send_who(sender)  # it takes this for its first connection, and so has not announced it
        self.present.pop(sender, None)
        for frames in [*self.late.pop(sender, ()), *self.consts.values()]:
            self.send(sender, *frames)
        if self.size:
            self.send(sender, b"SIZE", b"%d" % self.size)
        if known:
            self.send(ROOT, b"HOST", facts)
            self.resize()
        if self.stopping == "said" and sender != ROOT:
            self.send(sender, b"STOP")

    def on_BYE(self, sender):
        """A worker, or a broker below, has ended as it was told; or we are to end, since the broker above has given us
        up, or our keeper leaves."""
        if sender in (UP, KEEPER):
            self.finished = True
            self.tell([b"broker"], b"BYE")
        elif self.links[sender].role == b"broker" and self.stopping != "said":
            self.give_up(self.links[sender], "it has left")  # by itself, as one that joined, or has not heard from us
        elif self.links[sender].held:  # it leaves early, since it has run as many calls as it may
            self.bury(sender, *NOTHING)
        else:
            self.remove(sender)

    def on_DIED(self, sender, name, task_id, lo, hi, flags, begun, obituary):
        """A process or a host has ended. Its last words may come later than this: if it has said BYE (flags: PARTED),
        or all were told to STOP, they are awaited."""
        if sender and host_of(name) != sender:
            raise ValueError("only a keeper knows of deaths, and of those of its host")
        died = task_id, lo, hi, b"%d" % (int(flags) & ~PARTED), begun, obituary
        if name in self.links and (int(flags) & PARTED or self.stopping == "said"):
            self.parting[name] = self.now, died
        else:
            self.bury(name, *died)

    def bury(self, name, task_id, lo, hi, flags, begun, obituary):
        """Tell the owners of the tasks that a node or a host held, and cancel the tasks that it owned.

        flags: BLAME if the items lo..hi that it was running are suspected; BEGUN if it may have begun others of that
        task, too. begun: the highest number of a TASK (see Link.held) that it had begun."""
        self.dead.add(name)
        link = self.links.get(name)
        tasks = dict.fromkeys(self.silent.get(name, ()), 0)  # it may still have had these
        tasks.update({task_id: 0} if b":" in task_id else {})  # it had this one in any case
        tasks.update(link.held if link else {})
        for held, number in tasks.items():
            ran = held == task_id or not task_id  # the last: ANYTHING, as if a host is gone
            span = (lo, hi, flags) if ran else (b"0", b"0", b"%d" % (BEGUN * (number <= int(begun))))
            self.send(owner_of(held), b"LOST", held, *span, obituary)
        owners = name + b":", name + b"."  # it, or the nodes of that host
        for orphan in [task for task in self.placed if task.startswith(owners)]:
            self.on_CANCEL(name, orphan)
        for frames in self.late.pop(name, ()):
            self.discard(frames)
        self.present.pop(name, None)
        if self.below:
            self.send(UP, b"DIED", name, *ANYTHING, obituary)
        self.remove(name)

    def on_SIZE(self, sender, count):
        """The pool has grown or shrunk: tell everybody."""
        self.size = int(count)
        self.tell(ALL_BELOW, b"SIZE", count)

    def resize(self, least=1 / 8):
        """Recount the pool's workers. Tell everybody only if they have changed by more than the share `least`: else a
        thousand hosts that come one after another would cause a million messages. The root, which shares maps out by
        their number, is told of any change."""
        size = self.own_size + sum(link.size for link in self.linked(b"broker"))
        if not self.below and abs(size - self.size) > size * least:
            self.on_SIZE(KEEPER, b"%d" % size)
        elif size != self.size and ROOT in self.links:
            self.send(ROOT, b"SIZE", b"%d" % size)

    def on_PROBE(self, sender, *body):
        """Another broker lives. A stranger gets an echo: if we have taken over amid a large message, its HELLO comes
        only after that. Or BYE, if we have given it up or cannot know it: its HELLO may have been refused."""
        if sender not in self.links:
            known = self.counted or b"?" in sender  # the last: a trial, see first_answer
            self.out.append((sender, [b"BYE"] if sender in self.dead or not known else [b"PROBE", *body]))

    # -- the census: what is still held, after messages were lost
    #
    # Messages are lost when a broker or a connection dies. A node that reconnects says so, by an empty message; a
    # broker that takes over knows anyway. Then the top broker asks everybody: WHO. Each node starts afresh: it says
    # HELLO, what it HELD, and TOLD; after that, what it wants (HUNGRY, IDLE). An owner doubts all that it has shipped
    # until a holder says HELD. Brokers below pass WHO on, and say TOLD when all of their nodes have. When everybody
    # has, the top broker says TOLD, and owners queue again what is still in doubt. Each census has a number; answers to
    # an earlier one do not count.
    #
    # A node that does not answer in time may be computing without releasing the interpreter's lock: it is presumed to
    # hold what it had. When it answers after all, or dies, there is another census, since some of that may be lost.

    def on_(self, name):
        """A node has connected anew: messages may be lost, or we have taken over, and it is new to us."""
        if name == UP:  # it may have lost what we said, and has to begin a census
            self.send(UP, b"")
            return
        if name in self.dead:  # a late message
            return
        self.present[name] = None
        if name not in self.links:
            self.late.setdefault(name, [])  # what is for it, or for those behind it, waits for its HELLO
        if self.round is not None and name not in self.links and name not in self.missed:  # the census waits for it
            self.send_who(name)
        elif self.round is None or self.below:
            self.begin_census()
        else:  # it was here before; or it came by --join, and what others say they hold of its tasks has not reached it
            self.again = True

    def begin_census(self, number=None):
        """Begin a census. A broker below asks the one above for one, and begins when a WHO brings its number."""
        if self.below and number is None:
            self.send(UP, b"WHO", self.round or b"0")  # the census that we take part in: we want another
            return
        self.round = number or b"%d" % (self.now * 1e6)  # never used before, nor by a broker that has died
        self.census_began, self.counted, self.over_above = self.now, True, not self.below
        self.fetching.clear()  # a FETCH, or its FILE, may be lost with a broker above: workers that wait ask again
        self.printing = 0      # and so may an OUTPUT, or its SHOWN
        self.again = False
        self.missed.clear()
        self.silent, self.presumed = {**self.presumed, **self.silent}, {}
        for name in {**self.links, **self.present}:
            if name != UP:
                self.send_who(name)
        self.hear_out()

    def send_who(self, name):
        """Send WHO to a node, even before its HELLO. What it had is LOST if it dies before it answers."""
        had = self.silent.setdefault(name, {})
        if name in self.links:
            had.update(self.renew(name))
        self.out.append((name, [b"WHO", self.round]))

    def renew(self, name):
        """Start afresh with a node, as it does with us. Returns what it held."""
        link = self.forget(name)
        self.meet(name, link.facts)
        return link.held

    def on_WHO(self, sender, number):
        """The broker above asks; or one below wants a new census."""
        if sender != UP:
            if number == self.round or sender not in self.silent:  # else it has yet to get our latest WHO, and ask all
                self.begin_census()
            return
        self.received, self.plenty, self.boasted = 0, None, False
        self.renew(UP)
        self.send(UP, b"HELLO", self.facts)
        self.begin_census(number)

    def on_HELD(self, sender, number, task_id, *bounds):
        """A node holds a task: tell the owner at once, not when all have answered, since its RESULT may come next."""
        if sender != UP and self.round not in (None, number):  # it answers an earlier question
            return
        owner = owner_of(task_id)
        if self.gone(owner):
            self.send(sender, b"CANCEL", task_id)
            return
        if sender in self.links:
            self.place(task_id, self.links[sender], number=0)  # not that of a TASK which has crossed this
            if sender not in self.presumed:  # of what it had, the bounds are not known
                count = sum(map_builtin(int, bounds[1::2])) - sum(map_builtin(int, bounds[::2]))
                self.add_items(self.links[sender], count, owner)
        self.send(owner, b"HELD", number, task_id, *bounds)

    def on_TOLD(self, sender, number):
        """A node has answered in full; or, from above, everybody has: owners then queue again what nobody holds."""
        if sender == UP:
            self.over_above = number == self.round  # else it is of a census that began before we took over
            if self.over_above and not self.silent:  # else our own nodes have yet to answer: WHO reached us late
                self.finish_census()
        elif sender in self.presumed or number == self.round:  # else it has yet to get the latest WHO
            self.hear_out(sender)
        elif self.round is None and not self.below and b"." not in sender:  # that is over; it answers late, or twice
            self.send(sender, b"TOLD", number)

    def ask_again(self):
        """Ask nodes again that have not said HELLO: they may take this for their first connection. Give up in time."""
        for name in self.silent:
            if name not in self.links:
                self.send_who(name)
        if self.silent and self.now - self.census_began > CENSUS_PATIENCE * (1 if self.below else 2):
            self.presumed, self.silent = self.silent, {}  # these are presumed to hold what they had: see above
            for name, had in list(self.presumed.items()):
                for task_id in had:
                    self.on_HELD(name, self.round, task_id, b"0", ALL)
                if name in self.present and b"." not in name and not had:  # a host that had joined, but not said HELLO:
                    del self.present[name], self.presumed[name]            # if it is gone, nobody else will notice
            self.hear_out()

    def hear_out(self, name=None):
        """Do not wait for a node's answer any more; once none is awaited, say TOLD. If we only presumed what this node
        holds, begin another census."""
        if self.presumed.pop(name, None) is not None:
            self.begin_census()
            return
        self.silent.pop(name, None)
        if self.round is None or self.silent:
            return
        if self.below:
            self.send(UP, b"TOLD", self.round)
        if self.again:
            self.begin_census()
        elif self.over_above:
            self.finish_census()

    def finish_census(self):
        """The census is over: say so to all but the broker above."""
        self.tell(ALL_BELOW, b"TOLD", self.round)
        self.round = None

    # -- who wants work, and who has some

    def on_HUNGRY(self, sender, count, width=b"1"):
        """A node would take tasks; or (0) none any more."""
        link = self.links[sender]
        if sender in self.silent and link.role != b"broker":  # said before it heard WHO: it will say it again
            return
        link.width = int(width)
        self.want(link, link.demand + int(count) if int(count) else 0)

    def on_DRY(self, sender):
        """A node has no more, after all."""
        self.links[sender].more = False
        self.rich.pop(sender, None)

    def want(self, link, demand):
        """Set how many tasks a node would take."""
        self.wanted += demand - link.demand
        link.demand = demand
        if demand:
            self.hungry[link.name] = link
        else:
            self.hungry.pop(link.name, None)

    def owe(self, link, asked):
        """Set how many requested tasks a node still owes; `unasked` has the nodes that owe none."""
        link.asked, link.since = asked, self.now
        if asked:
            self.unasked.pop(link.name, None)
        else:
            self.unasked[link.name] = link

    def on_IDLE(self, sender, tasks):
        """A worker, or a host, has nothing to do; out of date if a TASK has been sent to it since."""
        link = self.links[sender]
        link.idle = int(tasks) == link.tasks and sender not in self.silent  # else said before it heard WHO
        if link.idle and link.role == b"broker":
            self.want(link, 0)  # it asks anew

    def ask_around(self):
        """Ask for as many tasks as the hungry would take: the rich first; for what is still wanted, everybody once."""
        wanted = self.ask_the_rich()
        if wanted > 0:
            for link in [link for link in self.unasked.values() if link.demand < wanted]:  # else the wish is its own
                self.ask(link, 1)
            # A giver of single tasks is asked for all that is wanted: the root, if it is here; the one above, if its
            # latest TASK was of one item, or its last (else the root is looked up, which a broker below does not have)
            ample = self.links.get(UP if self.plenty is False else ROOT)
            if ample and wanted > ample.demand + ample.asked and not self.parcels:  # else once when these go, for all
                self.ask(ample, wanted - ample.demand - ample.asked)

    def ask_the_rich(self):
        """Ask those that have more, and are not hungry themselves; return how many tasks are wanted beyond these."""
        rich = [link for link in self.rich.values() if link.demand == 0]
        wanted = self.wanted - sum(link.asked for link in rich)
        if wanted > 0:  # sorted once: to search them anew for each request kept a broker of 256 workers busy
            rich.sort(key=lambda link: (link.role == b"root", link.items))
            each = wanted / max(1, sum(link.items for link in rich))  # per item: twice as many give twice as much
        while wanted > 0 and rich:
            link = rich.pop()
            if not link.more:
                count = min(wanted, link.items - 1 - link.asked, math.ceil(link.items * each))
            else:  # how much is not known: all from the root, which needs none for itself, else an equal share
                count = wanted if link.role == b"root" else math.ceil(wanted / (len(rich) + 1))
            if count > 0:
                self.ask(link, count)
                wanted -= count
        return wanted

    def lack(self):
        """How many items the workers of this host lack until each has one to run and another in reserve."""
        return 2 * self.own_size - sum(link.items for link in self.links.values())

    def ask(self, link, count):
        """Ask a node for so many tasks, as wide as the newest of the hungry said; a single one from above is for as
        many of our workers as lack an item."""
        self.owe(link, link.asked + count)
        if link.name != UP:
            width = next(reversed(self.hungry.values())).width
        else:
            width = max(1, min(self.own_size, self.lack())) if count == 1 else 1
        self.send(link.name, b"HUNGRY", b"%d" % count, *([b"%d" % width] if width > 1 else ()))

    def unask(self, *links):
        """Nobody is hungry: have these forget what they were asked for. Else a task that comes to one that has long to
        go would be given to another such at once, and so on: a hundred times a second."""
        for link in links:
            if link.asked and link.name != UP:  # what is asked of the one above is for a reserve, too
                self.owe(link, 0)
                self.send(link.name, b"HUNGRY", b"0")

    # -- tasks and results

    def on_TASK(self, sender, task_id, avoid, more, lo, hi, *rest):
        """Choose a taker for a task, pass it on, and remember who holds it."""
        owner, count = owner_of(task_id), int(hi) - int(lo)
        if count <= 0:
            raise ValueError("a task of nothing")
        self.note_giver(self.links[sender], more == b"1", count, owner)
        if not self.concerns(sender, task_id):  # it was cancelled, or never was the sender's
            self.send(sender, b"CANCEL", task_id)
            raise ValueError("another's task")
        self.lift(task_id)
        for had in self.silent, self.presumed:  # if it never answers WHO, this at least it does not hold any more
            had.get(sender, {}).pop(task_id, None)
        if self.gone(owner):
            raise ValueError("nobody's task")
        taker = self.choose(sender, avoid, sender == ROOT and count > 1 and self.size > 0)
        if taker is None:
            self.send(owner, b"LOST", task_id, b"0", b"0", b"0", b"")
            return
        unwanted = not self.hungry
        self.note_taker(taker, count, owner)
        if unwanted:
            self.unask(taker, self.links[sender])
        if taker.name == UP:
            self.boasted = more == b"1" or len(self.rich) > 0
            more = b"%d" % self.boasted
        self.place(task_id, taker)
        self.send(taker.name, b"TASK", task_id, avoid, more, lo, hi, *rest)

    def note_giver(self, giver, more, count, owner):
        """Note that a node has given a task of so many items, and has more or not."""
        if giver.asked:
            self.owe(giver, max(0, giver.asked - (count if giver.name == UP else 1)))
        if giver.name == UP:  # not rich, even if it has more: that may be for others only
            self.received, self.plenty = self.received + 1, more and count > 1
            if count > 1:
                self.want(giver, 0)
        else:
            giver.more = more
            self.add_items(giver, -count, owner)

    def note_taker(self, taker, count, owner):
        """Note that a node gets a task of so many items. If several, it forgets what it was asked for before."""
        if taker.demand:
            self.want(taker, max(0, taker.demand - (count if taker.role == b"broker" else 1)))
        if count > 1 and taker.name != UP:
            self.owe(taker, 0)
        self.add_items(taker, count, owner)
        taker.idle = False
        taker.tasks += 1

    def add_items(self, link, count, owner):
        """Note that a worker holds so many more items of an owner's. Several, or a word that there is more, make a node
        rich. Of its own, which have come back, none are counted: if it cancels them, nobody is told."""
        link.items += count if link.role == b"worker" and link.name != owner else 0
        if link.more or link.items > 1:
            self.rich[link.name] = link
        else:
            self.rich.pop(link.name, None)

    def choose(self, giver, avoid, largest=False):
        """Choose the taker of a task: the longest hungry (of the largest, if that is said), if possible not on the host
        `avoid`, and rather here than above; if there is none, the least loaded of the others, or of all here. None:
        there is no worker."""
        fit = (link for name, link in self.hungry.items() if name not in (giver, UP) and host_of(name) != avoid)
        taker = max(fit, key=operator.attrgetter("size"), default=None) if largest else next(fit, None)
        if taker:
            return taker
        hungry = [link for name, link in self.hungry.items() if name != giver]
        return min((link for link in hungry or self.linked(*TAKERS) if link.size), default=None, key=lambda link: (
            link.name == giver, host_of(link.name) == avoid, link.name == UP, len(link.held) / link.size, link.items))

    def place(self, task_id, link, number=None):
        """Remember who holds a task, unless the same link leads to its owner: then its results do not pass us."""
        owner = owner_of(task_id)
        self.lift(task_id)
        if self.gone(owner):
            self.send(link.name, b"CANCEL", task_id)
        elif self.way_to(owner) != link.name:
            self.placed[task_id] = link.name
            link.held[task_id] = link.tasks if number is None else number

    def lift(self, task_id):
        """Forget who holds a task; returns who did."""
        name = self.placed.pop(task_id, None)
        if name is not None:
            link = self.links[name]
            link.held.pop(task_id, None)
            if not link.held:
                link.items = 0
        return name

    def on_SPLIT(self, sender, task_id, lo, hi, new):
        """Pass the news of a split on to the owner."""
        if not self.concerns(sender, task_id):  # it was cancelled meanwhile: the owner is to hear no more of it
            self.send(sender, b"CANCEL", new)
            raise ValueError("another's task")
        self.place(new, self.links[sender])  # until its TASK comes: if the sender dies before that, this is LOST, too
        self.collect(owner_of(task_id))

    def on_RESULT(self, sender, task_id, lo, count, last, *body):
        """Pass results on to the owner."""
        link, owner = self.links[sender], owner_of(task_id)
        link.items -= int(count) if link.role == b"worker" and sender != owner else 0  # as `add_items` counts
        if sender in self.rich and link.items <= 1 and not link.more:
            del self.rich[sender]
            self.changed = True  # others may have to be asked for what it still owes
        if last == b"1":
            self.lift(task_id)
        self.collect(owner)

    def on_MANY(self, sender, owner, new, done, body):
        """Pass on what several holders say to one owner; note which tasks are new and which are done."""
        new, done = bytes(new).split(), bytes(done).split()
        if any(owner_of(task_id) != owner or self.placed.get(task_id, sender) != sender for task_id in new + done):
            raise ValueError("another's task")
        for task_id in new:
            self.place(task_id, self.links[sender])
        for task_id in done:
            self.lift(task_id)
        self.pass_on(owner)

    def on_LOST(self, sender, task_id, *fields):
        """Tell the owner that its task is not held any more: a death elsewhere, or (SINGLY) it cannot be unpickled."""
        self.lift(task_id)
        self.pass_on(owner_of(task_id))

    on_SINGLY = on_LOST

    def on_CANCEL(self, sender, task_id):
        """Tell the holder of a task, if there is one, that it is not wanted any more."""
        holder = self.lift(task_id)
        if holder is not None:
            self.send(holder, b"CANCEL", task_id)

    # -- what everybody may ask for, and what they print

    def on_CONST(self, sender, name, *body):
        """Keep a constant for nodes that come later, and pass it on to everybody. The top decides which one holds."""
        if self.below and sender != UP:
            self.pass_on(UP)
        elif name not in self.consts:  # the first one holds; the message names its setter
            self.consts[name] = b"CONST", name, *map_builtin(self.keep, body)
            self.tell(ALL_BELOW, *self.consts[name])

    def on_FETCH(self, sender, path):
        """A worker needs a file of the root's: give what we have, or ask for it once."""
        if path in self.files:
            self.send(sender, *self.files[path])
            return
        if path not in self.fetching:
            self.pass_on(ROOT)
        self.fetching.setdefault(path, []).append(sender)

    def on_FILE(self, sender, path, *body):
        """The root's answer, for all who asked so far and for those who will."""
        self.files[path] = self.message
        for name in self.fetching.pop(path, ()):
            self.pass_on(name)

    def on_LOG(self, sender, *fields):
        """Pass on what is for the root, now or after its HELLO."""
        self.pass_on(ROOT)

    on_PROFILE = on_RECORD = on_FAILED = on_HOST = on_LOG

    def on_STACKS(self, sender):
        """Have the stacks of all workers shown: the keeper sees to those of this host, brokers below to theirs."""
        self.out.append((KEEPER, [b"STACKS"]))
        self.tell([b"broker"], b"STACKS")

    def on_OUTPUT(self, sender, *fields):
        """Pass on what a worker printed."""
        self.printing += len(fields[2]) * (not sender)
        self.pass_on(ROOT)

    def on_SHOWN(self, sender, host, count):
        """The root has shown output; so the broker of that host reads on."""
        if host == self.host:
            self.printing = max(0, self.printing - int(count))
        else:
            self.pass_on(host)

    def on_COUNT(self, sender, _):
        """Tell the root how many workers are idle: they would take work, and hold none."""
        idle = sum(link.demand * link.width for link in self.hungry.values() if not link.items)
        self.send(sender, b"COUNT", b"%d" % idle)

    # -- the end

    def on_STOP(self, sender):
        """The root has no more to do."""
        self.stopping = self.stopping or True

    def quiet(self):
        """Whether nothing is held or queued anywhere behind our links."""
        return self.round is None and not self.silent and not self.placed and \
            all(link.idle for link in self.linked(*TAKERS))

    def stop_if_quiet(self):
        """Once nothing is held or queued anywhere, say STOP; once all have said BYE, be finished."""
        if self.stopping is True and (self.below or self.quiet()):
            self.stopping = "said"
            self.tell(TAKERS, b"STOP")
        if self.stopping == "said" and not any(self.linked(*TAKERS)):
            self.finished = True


class Switchboard:
    """The loop around a ``Broker``: its sockets, the notices of the keeper, and what workers print."""

    def __init__(self, keeper, heirs=None):
        import_zmq()
        config = self.config = keeper.config
        self.notices, self.context, self.keeper = keeper.notices_read, zmq.Context(), os.getppid()
        self.broker = Broker(config["host"].encode(), config["size"], heirs)
        self.broker.keep = lambda frame: frame_of([memoryview(frame)], config["memory"], lasting=True)
        self.broker.discard = discard
        self.sources = {}    # socket or file descriptor -> what reads it
        self.routes = {}     # name -> the socket by which its latest message came; UP -> the one to the broker above
        self.pieces = collections.defaultdict(Pieces)  # name of another broker -> what has come of its latest message
        self.prints = collections.defaultdict(dict)  # worker -> file descriptor -> (stream, beginning of a line)
        self.paused = set()  # those of these descriptors that are not read for now, since the root is slow
        self.said = []       # messages to be sent, most of them the broker's: (receiver, frames)
        self.poller = zmq.Poller()
        self.watch(self.notices.fileno(), self.take_notice)
        self.local = self.router(config["address"])
        for name, _, *ends in keeper.workers.values():
            self.watch_prints(name, ends)
        if keeper.listener is not None:
            self.let_in(keeper.listener)

    def watch(self, source, reader):
        """Have reader(source) called when there is something to read."""
        self.sources[source] = reader
        self.poller.register(source, zmq.POLLIN)

    def router(self, address, **options):
        """A ROUTER socket for nodes, or for brokers below."""
        router = self.context.socket(zmq.ROUTER)
        router.linger = 0
        router.sndhwm = router.rcvhwm = 0  # no limit, at which a ROUTER drops messages silently
        router.router_mandatory = True     # as it does with those that it cannot route, unless told to raise an error
        router.router_handover = True      # a node that connects anew takes its name over from its old connection
        router.probe_router = True         # greet whoever connects with an empty message: see Node.fetch
        for name, value in options.items():
            setattr(router, name, value)
        router.bind(address)
        self.watch(router, self.take)
        return router

    def run(self):
        """Handle what comes, and send the messages to which it leads, until nobody is left."""
        broker, ticked = self.broker, -math.inf
        if broker.below:
            self.connect_up()
            self.deliver()
        while not broker.finished:
            for source, _ in self.poller.poll(self.pause() * 1000):
                if source in self.sources:  # else it is a pipe that `take` has just read to its end, before a RESULT
                    self.sources[source](source)
            if broker.parcels and time.monotonic() >= broker.due:
                self.said += broker.flush(time.monotonic())
            while self.paused and broker.printing <= OUTPUT_AHEAD:
                self.poller.register(self.paused.pop(), zmq.POLLIN)
            if time.monotonic() - ticked >= (PATIENCE if broker.waiting else HEARTBEAT):
                ticked = time.monotonic()
                self.said += broker.tick(ticked)
                self.forget_pieces()
            self.deliver()
        self.leave()

    def leave(self):
        """Pass on what workers have printed last, and say BYE."""
        for worker in self.prints:
            self.read_all(worker)
        self.said.append((UP if self.broker.below else ROOT, [b"BYE"]))
        self.deliver()
        self.context.destroy(linger=1000)

    def pause(self):
        """How many seconds to wait for messages."""
        if self.broker.parcels:
            return max(0.0, self.broker.due - time.monotonic()) + 1e-3  # poll rounds down to milliseconds
        return PATIENCE if self.broker.waiting else HEARTBEAT

    def take(self, router):
        """Handle messages of nodes or brokers below: those that are there, up to MESSAGES, since other sources wait."""
        for _ in range(MESSAGES):
            sender, *frames = receive(router)
            if sender == UP or router is not self.local and b"." in sender:  # only brokers come by TCP
                self.broker.dropped += 1
            else:
                self.routes[sender] = router
                messages = unbundled(frames) if b"." in sender else self.gather(sender, frames)
                if sender in self.prints and any(b"RESULT" in message[:1] for message in messages):
                    self.read_all(sender)  # what a task printed is shown before its result
                self.handle(sender, *messages)
            if not readable_now(router):
                break

    def gather(self, sender, frames):
        """The messages of another broker that came as one; PROBE, while more pieces are to come."""
        try:
            whole = self.pieces[sender].add(frames)
        except Exception:  # pieces before this one are lost; still it is a sign of life
            self.broker.dropped += 1
            whole = None
        return [[b"PROBE"]] if whole is None else unbundled(whole)

    def forget_pieces(self):
        """Drop incomplete messages of brokers that are gone."""
        for name in self.pieces.keys() - self.broker.links.keys():
            del self.pieces[name]

    def handle(self, sender, *messages):
        """Let the broker handle messages."""
        for frames in messages:
            self.said += self.broker.handle(sender, frames, time.monotonic())

    def deliver(self):
        """Send what is in `said`, bundled for each receiver. If one is gone, that is for the keeper to notice."""
        parcels = {}
        for name, frames in self.said:
            parcels.setdefault(name, []).append(frames)
        self.said.clear()
        if parcels.pop(KEEPER, None):  # it is told nothing but STACKS
            os.kill(self.keeper, signal.SIGUSR1)
        for name, parcel in parcels.items():
            pieces = [bundled(parcel)]
            if b"." not in name:  # to another host
                pieces = in_pieces([content_if_there(frame) if reference(frame) else frame for frame in pieces[0]])
            with contextlib.suppress(zmq.ZMQError):
                for piece in pieces:
                    transmit(self.routes.get(name, self.local), piece if name == UP else [name, *piece], NOBLOCK)

    def take_notice(self, _):
        """Handle a notice of the keeper: JSON; with PRINTS come our ends of the pipes that a new worker prints into."""
        data, ancillary, _, _ = self.notices.recvmsg(NOTICE, socket.CMSG_SPACE(2 * 4))
        try:
            frames = [frame.encode("latin-1") for frame in json.loads(data)]
            for _, _, descriptors in ancillary:
                ends = array.array("i", descriptors)
                if frames[1] in self.prints:  # we have taken over, and inherited them already
                    close_all(ends)
                else:
                    self.watch_prints(frames[1], ends)
            if frames[0] != b"PRINTS":
                self.handle(KEEPER, frames)
        except Exception:
            self.handle(KEEPER, [data])  # it is nonsense, which the broker drops

    def watch_prints(self, worker, ends):
        """Read what a worker prints to stdout and stderr, from now on."""
        for stream, descriptor in zip((b"out", b"err"), ends):
            os.set_blocking(descriptor, False)
            self.prints[worker][descriptor] = stream, b""
            self.watch(descriptor, functools.partial(self.read_prints, worker))

    def read_all(self, worker):
        """Read what a worker has printed by now."""
        for descriptor in list(self.prints[worker]):
            self.read_prints(worker, descriptor)

    def read_prints(self, worker, descriptor):
        """Send what a worker printed to the root, in whole lines (those of up to OUTPUT_AHEAD bytes) unless `at_once`;
        pause while the root is slow."""
        stream, rest = self.prints[worker][descriptor]
        last = self.broker.finished  # workers have said BYE then, and no pipe holds more than this
        if self.broker.printing > OUTPUT_AHEAD and not last:
            self.paused.add(descriptor)
            self.poller.register(descriptor, 0)
            return
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            if not last:
                return
            data = b""
        text = rest + data
        length = text.rfind(b"\n") + 1
        at_once = not (self.broker.below or self.config["tag_output"])  # as if the worker wrote to the terminal itself
        if last or at_once or not data or len(text) - length > OUTPUT_AHEAD:
            length = len(text)
        self.prints[worker][descriptor] = stream, text[length:]
        if length:
            self.handle(KEEPER, [b"OUTPUT", worker, stream, text[:length]])
        if not data:
            self.poller.register(descriptor, 0)
            self.paused.discard(descriptor)
            del self.prints[worker][descriptor], self.sources[descriptor]
            os.close(descriptor)

    # -- the way in for hosts, and the way up

    def let_in(self, listener):
        """Accept TCP connections, encrypted by CURVE (RFC 26), from those that have the clients' key of this run."""
        guard = self.context.socket(zmq.REP)
        guard.bind("inproc://zeromq.zap.01")  # libzmq asks here, before it lets anybody in (RFC 27)
        self.watch(guard, self.admit)
        self.router(f"tcp://*:{listener.getsockname()[1]}", ipv6=listener.family == socket.AF_INET6,
                    use_fd=os.dup(listener.fileno()), curve_server=True,
                    handshake_ivl=5000,  # ms until a stranger is cut off: so long it may fill our memory
                    curve_secretkey=self.config["server_secret"].encode())

    def admit(self, guard):
        """Say whether a client has the key of this run's clients."""
        from zmq.utils import z85
        version, request, _, _, _, mechanism, *credentials = guard.recv_multipart()
        known = mechanism == b"CURVE" and z85.encode(credentials[0]).decode() == self.config["keys"][1]
        guard.send_multipart([version, request, *((b"200", b"OK") if known else (b"400", b"no")), b"", b""])

    def connect_up(self):
        """Find the way to the broker above, and say HELLO: by TCP if one of its addresses answers, else by tunnel."""
        config, addresses = self.config, self.config["addresses"] * (self.config["transport"] != "stdio")
        caller = os.environ.get("SSH_CONNECTION", "").split()[:1]  # the root's machine, as seen from here
        if addresses and not config["external_hostname"]:
            addresses = [*caller, *addresses]
        address = self.first_answer(addresses)
        if address is None and config["transport"] == "tcp":
            raise PoolError(f"cannot reach the root's broker by TCP at {' or '.join(addresses)}: a firewall is in the "
                            "way, or this host cannot resolve or route to that address; see --external-hostname, "
                            "--transport stdio")
        way, keys = address or f"ipc://{config['directory']}/up", address and config["keys"]
        figures = self.measure(way, keys) if config["check"] else {}
        up = self.routes[UP] = connect(self.context, way, self.broker.host, keys)
        facts = dict(about_this_machine(), host=config["name"], number=config["host"], workers=config["size"],
                     transport="tcp" if address else "stdio", address=address, login=config.get("login"), **figures)
        self.broker.facts = json.dumps(facts).encode()
        if not up.poll(SILENCE * 1000):
            raise PoolError("the root's broker has stopped answering")
        receive(up)  # the empty message. What is sent before it may be lost with the connection, unnoticed
        self.said.append((UP, [b"HELLO", self.broker.facts]))
        if self.broker.counted:  # we take over: the one above has to find out what was lost
            self.said.append((UP, [b""]))
        self.watch(up, self.take_up)

    def take_up(self, up):
        """Handle a message of the broker above."""
        self.handle(UP, *self.gather(UP, receive(up)))

    def first_answer(self, addresses):
        """Connect to all these addresses; return the first at which the root's broker answers with its empty message
        (see router), as an endpoint for ØMQ. None: it does at none."""
        config, trials = self.config, {}
        for i, address in enumerate(addresses):
            host = f"[{address}]" if ":" in address else address
            endpoint = f"tcp://{host}:{config['port']}"
            with contextlib.suppress(zmq.ZMQError, ValueError):  # no valid name
                trial = connect(self.context, endpoint, b"%s?%d" % (self.broker.host, i), config["keys"])
                trials[trial] = endpoint
        patience = SILENCE if config["transport"] == "tcp" else TCP_PATIENCE  # there is no other way
        answered = zmq.zmq_poll([(trial, POLLIN) for trial in trials], int(patience * 1000)) if trials else []
        for trial in trials:
            trial.close()
        return trials[answered[0][0]] if answered else None

    def measure(self, way, keys):
        """Measure round trip and bandwidth of the way up, on a connection of its own; as --check shows them."""
        trial = connect(self.context, way, self.broker.host + b"?", keys)

        def echo(body):
            start, pieces = time.perf_counter(), Pieces()
            trial.send_multipart([b"PROBE", body])
            while trial.poll(SILENCE * 1000):
                if pieces.add(receive(trial)) not in (None, [b""]):  # [b""] only said that the socket has connected
                    return time.perf_counter() - start
            raise PoolError("the root's broker has stopped answering")
        round_trip = min(echo(b"") for _ in range(5))
        for size in (1 << 16, 1 << 20, 1 << 23, 1 << 26):
            seconds = echo(os.urandom(size))
            if seconds > 0.2:
                break
        trial.close()
        return {"round_trip": f"{round_trip * 1e3:.2f} ms", "bandwidth": f"{2 * size / seconds / 1e6:.0f} MB/s"}


def run_broker(keeper, heirs):
    """The life of a broker process. heirs, if it takes over: node -> id of the task that it runs."""
    # The handler inherited from the keeper sends notices, whose receiver we are
    log_to(logging.StreamHandler(), logger.level)
    if keeper.leaves:  # a batch system, or a terminal that closes, signals all of us: see take_leave
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Switchboard(keeper, heirs).run()


def host_notice(number, host, reason):
    """The message that tells the root why a host is not in the pool, or not any more."""
    facts = {"host": host, "number": number, "state": "gone", "reason": reason[:1000]}
    return b"HOST", json.dumps(facts).encode()


def about_this_machine():
    """Facts of this host, which is ready, as --check shows them: cores, memory, load, Python, pyzmq."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"state": "ready", "node": os.uname().nodename, "cores": usable_cores(),
            "memory": f"{memory / 2**30:.0f} GiB", "load": f"{os.getloadavg()[0]:.1f}",
            "python": ".".join(map_builtin(str, sys.version_info[:3])), "executable": sys.executable,
            "pyzmq": zmq.__version__}


# ---------------------------------------------------------------------------------------------------
# 8  Node
#
# What the root and the workers have in common: a queue of what is to be run, newest at the right; a
# record of what was shipped; the decision what to give; the socket, and the threads around it.


class Shipment:
    """A task that this node owns and another holds: its items, and which are still open (without a result)."""

    def __init__(self, task_id, span, frames=()):
        self.id, self.span, self.open = task_id, span, Ranges([(span.lo, span.hi)])
        self.doubt = Ranges()  # open items that no holder has HELD since the last WHO
        self.references = [frame for frame in frames if reference(frame)]  # to shared memory, sent with it
        span.job.shipments.add(self)


# What is said to the owner of a task. Some of it runs user code, all of it has to keep its order: see Node.serve.
OWNERS_BUSINESS = frozenset((b"RESULT", b"SPLIT", b"MANY", b"SINGLY", b"LOST", b"HELD", b"TOLD"))


def near_limit():
    """Whether the calling thread's stack has less than a tenth left of what the recursion limit allows. A message that
    is handled or sent there may be lost to a RecursionError, and who waits for it would hang."""
    try:
        return sys._getframe(sys.getrecursionlimit() * 9 // 10) is not None
    except ValueError:  # it is not as deep as that
        return False


class Node:
    """A process that creates tasks. Base of Root, Worker and Inline; see there who runs what.

    `lock` guards queue, records and socket; no user code runs under it. Messages are handled in order of
    arrival, by one thread at a time, which holds `serving`. `attending` is held by the thread that sleeps
    on the socket; no thread handles messages while holding it."""

    executes = False  # whether tasks are run here
    memory = None     # the directory for shared memory
    width = 1         # workers that each of the tasks `wanted` is meant for, on average
    rich = False      # the broker believes that we have more
    call_bytes = None  # mean size of a pickled call
    waiting = 0       # threads whose tasks wait while other threads run tasks
    known = None      # `received` of a worker when it last considered asking for more
    round = None      # number of the latest census
    connections = 0   # made by the socket
    sending = False   # a thread is emptying the outbox
    attended = None   # the thread that sleeps on the socket, or is about to
    watching = 0.0    # s: timeout of the deputy's sleep on the socket; 0: it does not sleep there
    looked = 0.0      # when a thread other than the deputy last looked at the socket
    seen = None       # id of the newest queue entry at the deputy's last look: has the queue moved since?
    dropped = 0       # messages that made no sense
    calls = 0         # submitted calls that were shipped and are done
    retried = 0       # calls that were lost and may have begun; they run again
    idle_workers = 0  # of the whole pool, when the broker was asked last
    inside = False    # the calling thread runs a task, in the script's own process: see Inline
    forked = False    # this is a child that the program, or a task, has forked; the pool is none of its business
    ended_by = None   # the PoolError by which the pool ended, if it was not just shut down
    most_calls = calls_left = math.inf  # that a worker process runs in all, and that this one may run yet

    def __init__(self, name, size, retries):
        self.name, self.size, self.retries = name, size, retries
        self.lock, self.serving, self.attending = threading.RLock(), threading.RLock(), threading.RLock()
        self.queue = collections.deque()  # given away from the left, run here from the right
        self.pinned = collections.deque()  # spans of a worker that cannot be pickled: run here, from the right
        self.wanted = 0                   # tasks that others would take from here
        self.sources = []                 # jobs whose inputs are not all pulled
        self.in_hand = []                 # jobs of spans that are being pickled (to be shipped) or unpickled
        self.serial = itertools.count()   # of what is shipped
        self.away = {}                    # task id -> Shipment
        self.calls_away = weakref.WeakSet()  # the Shipments of submitted calls
        self.guests = {}                  # task id -> Guest
        self.parked = {}                  # what is waited for -> Events and Strands to be set
        self.consts = {}                  # name -> (its CONST, function that returns the value)
        self.inbox, self.outbox = collections.deque(), collections.deque()
        self.due = collections.deque()    # futures that are done, with callbacks yet to be called
        self.unheard = {}                 # Future, or id of a map -> see ``note_failures``
        self.unanswered = {}              # key -> a message that awaits its answer, sent again at each WHO
        self.stopped, self.alarm = threading.Event(), threading.Event()
        self.broken = None                # the PoolError after which nothing works any more
        self.socket = None

    # -- the socket, and the threads that watch it
    #
    # A thread that waits sleeps on the socket in `attend`, and the deputy rests on `alarm` meanwhile; else the deputy
    # sleeps there, in `watch`, and stands in for threads that are busy: ATTEND after one of these has `looked` last,
    # since it may well look again by then. Both wake for a message, or for what `rouse` writes to a pipe.

    def open(self):
        """Connect to the broker and say HELLO; start the deputy."""
        self.context = zmq.Context()
        self.socket = connect(self.context, self.address, self.name)
        self.descriptor = self.socket.fd
        self.wake_read, self.wake_write = os.pipe()  # to wake the thread that sleeps on the socket
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        self.send(b"HELLO")
        zmq.Frame(bytes(OUT_OF_BAND), copy=False)  # pyzmq opens descriptors for its first; later, none may be left
        keep_spare()
        threading.Thread(target=self.deputise, name="minscoop deputy", daemon=True).start()

    def send(self, *frames):
        """Send a message. Does not block; any thread may call it.

        The garbage collector may close a map's iterator, and so call this between two frames of another
        message: hence the outbox. Sending can consume the (edge-triggered) event by which the socket's
        descriptor announces incoming messages, so the thread that sleeps on it is woken if there are any."""
        self.send_all(frames)

    def send_all(self, *messages):
        """Send messages, if there are any, bundled as one; none if the socket is closed."""
        with self.lock:
            if self.socket is None or not messages:
                return
            self.outbox.append(messages)
            if self.sending:
                return
            self.sending = True
            try:
                while self.outbox:
                    transmit(self.socket, bundled(self.outbox.popleft()))
            finally:
                self.sending = False
            if (self.watching or self.attended) and readable_now(self.socket):
                self.rouse(self.watching)

    def insist(self, key, *message):
        """Send a message, and again at each WHO, until its key is taken out of `unanswered`."""
        self.unanswered[key] = message
        self.send(*message)

    def close(self, linger=0):
        """Close the socket; wait at most `linger` seconds until what was sent is out."""
        with self.lock:
            self.stopped.set()
            self.alarm.set()
            self.rouse(self.watching)
            socket, self.socket = self.socket, None
            if socket is None:
                return
            socket.close(linger=int(linger * 1000))
        self.context.term()
        ends, self.wake_read, self.wake_write = (self.wake_read, self.wake_write), -1, -1
        close_all(ends)

    def disown(self):
        """In a forked child: let go of the parent's socket, of locks that its other threads may have held, and of all
        that is queued or under way. It is kept, though: generators that are dropped end, and may remove files."""
        self.kept = vars(self).copy()
        Node.__init__(self, self.name, self.size, self.retries)
        self.forked, self.attended, self.broken = True, None, PoolError("this pool belongs to the parent process")

    def attend(self, timeout):
        """Sleep until a message comes or a thread calls ``rouse``; at most a PATROL. The caller holds `attending`."""
        if not self.hears() and self.wake_read in readable(min(timeout, PATROL), self.wake_read, self.descriptor):
            with contextlib.suppress(OSError):  # another thread was quicker, or has closed it
                os.read(self.wake_read, 4096)

    def hears(self):
        """Whether a message is there, or none can come any more."""
        with self.lock:
            return self.socket is None or len(self.inbox) > 0 or readable_now(self.socket)

    def listen(self, ready, timeout, patience=-1):
        """Sleep until a message comes, unless ready() is true by then; then serve. Returns whether it could serve.

        patience: seconds to wait while another thread sleeps on the socket; negative: for ever. After that ready() is
        asked once more: the deputy may have handled what we wait for, without seeing anybody to rouse."""
        if near_limit():
            raise RecursionError("maximum recursion depth nearly exceeded: too little is left to handle messages")
        me = threading.get_ident()
        try:
            if not self.attending.acquire(timeout=patience):
                return False
            self.attended = me
            if not ready():
                self.attend(timeout)
        finally:  # Ctrl-C may come just as we have got the lock, or at a call: so none comes before it is released
            if self.attended == me:
                self.attended = None
            try:
                self.attending.release()
            except RuntimeError:  # we have not got it
                pass
        return self.serve()

    def rouse(self, deputy=False):
        """Wake the thread that sleeps in ``attend``, if there is one. deputy: also the deputy, in ``watch``."""
        if deputy or self.attended:
            with contextlib.suppress(OSError):  # pipe full: it will wake; closed: nobody sleeps there
                os.write(self.wake_write, b"!")

    def serve(self, as_deputy=False):
        """Handle all messages that have come. Returns False, at once, if another thread is doing so.

        Results run user code (unpickling, callbacks), which may call this again: that call then goes on with
        the next message. The deputy of a worker leaves results to the thread that holds the baton."""
        if not self.alarm.is_set():
            self.alarm.set()  # the deputy may be resting, since somebody slept on the socket: that is over
        if not self.serving.acquire(blocking=False):
            return False
        left = 0  # messages at the inbox's beginning that stay there; a callback, which may wait for one, finds them
        try:
            if not as_deputy:
                self.looked = time.monotonic()
            self.fetch()
            while len(self.inbox) > left:
                message = self.inbox[left]
                if as_deputy and self.executes and message[0] in OWNERS_BUSINESS:
                    left += 1
                else:
                    del self.inbox[left]
                    self.handle(message)
            if self.wanted and not as_deputy:
                self.give()  # before call_back: what cannot be pickled fails here
            self.call_back()
        finally:
            self.serving.release()
        if as_deputy or not self.executes:  # a thread that waits for us to be done may sleep on the socket
            self.rouse()
        return True

    def handle(self, message):
        """Handle a message; when all that it says has been noted, call the callbacks that this makes due."""
        self.take_note(message)
        self.call_back()

    def call_back(self):
        """Call the callbacks of futures that are done."""
        while self.due:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self.due.popleft()._call_back()

    def take_note(self, message):
        """Handle a message, but leave callbacks to ``call_back``. Nonsense is dropped and counted."""
        try:
            getattr(self, check_shape(message))(*message[1:])
        except Exception as error:
            self.dropped += 1
            logger.debug("%s: dropped a message: %r", self.name.decode(), error, exc_info=True)

    def fetch(self):
        """Move what has come from the socket to the inbox."""
        with self.lock:
            while self.socket is not None and readable_now(self.socket):
                message = receive(self.socket)
                if message == [b""]:  # the socket has connected
                    if self.connections:  # reconnected: messages may be lost, and the broker may be new
                        self.send(b"")
                    self.connections += 1
                    keep_spare()  # see Root.patrol
                else:
                    self.inbox.extend(unbundled(message))

    def deputise(self):
        """The deputy: stand in if no other thread looks at the socket within ATTEND; rest while one sleeps on it.

        Besides messages, it wakes once per TICK while others want work that we may come to have (per ATTEND if some is
        queued, which may go at the second look), per MAX_FLUSH while results wait to be sent, else per PATROL."""
        while not self.stopped.wait(TICK):
            self.alarm.clear()
            if self.attended:
                self.alarm.wait(PATROL)
            while not (self.attended or self.stopped.is_set()):
                try:
                    if self.watch((ATTEND if self.queue else TICK) if self.wanted else PATROL):
                        self.stand_in()
                except Exception:
                    if not self.stopped.is_set():  # else the socket was closed meanwhile
                        logger.exception("the deputy of %s", self.name.decode())

    def watch(self, timeout):
        """Sleep until a message is there and no other thread has looked within ATTEND, at most `timeout` seconds; under
        an event loop, no other ever does. Returns whether no thread has looked meanwhile. For the deputy only."""
        with self.lock:
            self.watching = timeout = min(timeout, MAX_FLUSH if self.held_back() else PATROL)
            ready = self.socket is None or readable_now(self.socket)
        looked = self.looked  # later ones only: an earlier look has not seen what wakes us now
        came = ready or readable(timeout, self.wake_read, self.descriptor)
        self.watching = 0.0
        if came:
            self.stopped.wait(max(0.0, self.looked + ATTEND - time.monotonic()))  # who looked lately will do so again
            self.hear()
        return self.looked == looked

    def held_back(self):
        """The guests of which results wait here to be sent."""
        return [guest for guest in list(self.guests.values()) if guest.postpones]

    def hear(self):
        """Drain what ``rouse`` wrote, unless another thread sleeps in ``attend`` by now: it may be meant for that."""
        if self.attending.acquire(blocking=False):
            with contextlib.suppress(OSError):  # nothing is there, or it is closed
                os.read(self.wake_read, 4096)
            self.attending.release()

    def stand_in(self):
        """One look at the socket by the deputy."""
        self.serve(as_deputy=True)
        with self.lock:
            newest = id(self.queue[-1]) if self.queue else None
        self.give(last=newest == self.seen)  # if so, its maker is busy
        self.seen = newest

    def wake(self, what):
        """Let the threads that wait for `what` look again: it has changed."""
        if self.parked:
            with self.lock:
                sleepers = self.parked.pop(what, ())
            for sleeper in sleepers:
                sleeper.set()
        self.rouse()

    def wait_for(self, ready, what=None, timeout=None):
        """Block until ready() is true, at most `timeout` seconds; returns whether it is. Any thread may call this.

        what: the object passed to ``wake`` when ready() may have become true."""
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while not ready():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self.broken is not None and self.socket is None:
                raise self.broken
            self.sleep(ready, what, left)
        return True

    def glance(self, pending=True):
        """Called when a thread polls for results instead of waiting. pending: some calls may not have begun."""

    def sleep(self, ready, what, timeout):
        """Sleep until ``wake(what)``, at most `timeout` seconds or a TICK: who sleeps on the socket may leave it."""
        sleeper = threading.Event()
        with self.lock:
            self.parked.setdefault(what, []).append(sleeper)
        if not ready():  # asked once more, now that changes reach us
            sleeper.wait(min(timeout, TICK))
        self.unlist(what, sleeper)

    def unlist(self, what, sleeper):
        """Take a sleeper off the list of those to wake; returns whether it was still there."""
        with self.lock:
            sleepers = self.parked.get(what, ())
            if sleeper not in sleepers:
                return False
            sleepers.remove(sleeper)
            if not sleepers:
                del self.parked[what]
            return True

    # -- what is to be run

    def submit(self, fn, args, kwargs):
        """Queue a call and return its Future."""
        self.check_depth()
        future = Future(self, (fn, args, kwargs), self.current_task())
        self.push(future)
        return future

    def check_depth(self):
        """Raise RecursionError if tasks seem to create tasks without end. To be called before one is made."""
        if self.waiting >= MAX_WAITING:
            raise RecursionError(f"{self.waiting} threads wait for tasks: does one create another like it, without "
                                 "end?")

    def current_task(self):
        """What the calling thread is running, if it is a task."""
        return None

    def push(self, unit):
        """Queue a Future or a Span, and give something away if others wait."""
        with self.lock:
            self.check_open()
            trim(self.queue)
            self.queue.append(unit)
            give = (len(self.queue) > self.executes or unit.several) and (
                self.wanted or len(self.queue) == 1 and self.called_for())  # unasked: unless an older one still waits
        if give and not near_limit():  # else at the next look at the socket
            self.give()

    def check_open(self):
        """Raise if no more work can be taken."""
        if self.broken is not None:
            raise self.broken.with_traceback(None)  # else each raise would add frames to it

    def feed(self, beyond=False):
        """Pull inputs of maps; returns whether any came. beyond: only of maps nobody reads yet, as if they were
        read, and of none with a buffersize. Not if this thread waits amid a pull: the inputs of another map may be the
        results of that one, which would wait below on this stack."""
        sources = list(self.sources)
        return not any(job.pulling._is_owned() for job in sources) and \
            any([job.pull(job.abandoned or beyond and not job.fixed)  # a list: each of them is to pull
                 for job in sources if not (job.begun and beyond)])

    def forget(self, job):
        """Recall what was shipped of a cancelled job. Its spans here are stale, and are dropped when they are met."""
        with self.lock:
            for shipment in sorted(job.shipments, key=operator.attrgetter("id")):  # not all that is away: each map that
                if shipment.span.job is job and self.away.pop(shipment.id, None):  # was read to its end comes here, too
                    discard(shipment.references)
                    self.recall(shipment.id)
            if job in self.sources:
                self.sources.remove(job)
            trim(job.spans)
            self.known = None  # a worker about to rest looks once more: it may be IDLE now
        self.wake(job)
        self.shorten(job)

    def shorten(self, job):
        """Let this job's running slices end with the item that runs now. See ``Worker``: the root runs none."""

    def recall(self, task_id):
        """Cancel a task that we shipped: tell its holder. That may be this node itself, of which no broker knows."""
        self.send(b"CANCEL", task_id)
        self.on_CANCEL(task_id)

    def drop(self, shipped=False):
        """Cancel what has not started; shipped: also calls that were sent to workers, started or not."""
        for pending in self.pending():
            if shipped or not isinstance(pending, Bundle):
                pending.cancel()
        if shipped:
            self.unheard.clear()  # the program has an exception of its own
        self.call_back()

    def note_failures(self, key, count, fn, error):
        """Note that so many calls of fn have raised what the program has not asked for as yet; a task that asks for
        nothing is left alone. UNHEARD of them are enough: they keep their futures, and what these refer to."""
        told = isinstance(error, PoolError) or interrupts(error, self)  # Ctrl-C in an inline call is raised there
        if not (self.executes or told) and len(self.unheard) < UNHEARD:
            self.unheard[key] = count + self.unheard.get(key, (0,))[0], describe(fn), error

    def tell_failures(self):
        """Warn of what the program never asked for: it may have forgotten to."""
        failures = [*self.unheard.values()]
        for _, name, error in failures[:1]:
            calls = counted(sum(count for count, *_ in failures), "call") + " or more" * (len(failures) == UNHEARD)
            what = cut(f"{type(error).__name__}: {first_line(text_of(error))}", 200)
            logger.warning("%s failed, and the program never asked for results; the first: %s raised %s. "
                           "Call result() of each future, and read what map returns", calls, name, what)

    def pending(self):
        """The futures that wait here, and the jobs that are not done, each once."""
        with self.lock:
            units = [unit for unit in self.queue if not unit.stale] + [shipment.span for shipment in self.away.values()]
            return list(dict.fromkeys([unit.job or unit for unit in units] + self.sources + self.in_hand))

    def break_off(self, error):
        """The pool cannot go on: everything that waits fails with this error."""
        with self.lock:
            if self.broken is not None:
                return
            self.broken = error
            failing = self.pending()
            self.queue.clear()
        for pending in failing:
            if isinstance(pending, Future):
                pending._settle(FINISHED, None, error, later=True)
            else:
                pending.cancel()
        self.wake("const")
        self.call_back()

    # -- what is given away

    def called_for(self):
        """Whether something is to be given away."""
        return self.wanted > 0

    def give(self, last=False):
        """Give away as much as others want and we can spare; `last`: even what is left to be run here next."""
        while (self.queue or self.rich) and self.called_for():  # a look before the lock: mostly there is nothing
            with self.lock:
                asked = self.wanted > 0
                if not self.called_for():
                    return
                span = self.spare(last)
                if span is None:
                    # Not DRY if we may soon have more to give: the oldest task is still pickled (it goes as a whole
                    # or not at all, but in parts once unpickled), or something is being pickled or unpickled
                    if self.rich and not (self.in_hand or self.queue and self.queue[0].several
                                          and self.queue[0].columns is None):
                        self.rich = False
                        self.send(b"DRY")
                    return
                self.wanted -= asked
                self.in_hand.append(span.job)
            shipped = False
            try:
                shipped = self.ship(span)
            finally:
                with self.lock:
                    self.in_hand.remove(span.job)
                    self.wanted += asked and not shipped

    def spare(self, last):
        """Take the oldest work off the queue, as a span; None if there is none to spare."""
        queue = self.queue
        trim(queue)
        alone = self.executes and not last and len(queue) == 1
        if not queue or alone and not queue[0].several:
            return None
        return self.bundle() if isinstance(queue[0], Future) else self.part_of(queue[0], alone)

    def part_of(self, span, alone):
        """Cut a part off a span: its end if this node runs the rest, else its beginning. None: no part is to spare."""
        share = count = span.hi - span.lo
        if span.singly:
            share = 1
        elif span.columns is not None:
            share = self.portion(count, span.job.item_bytes or span.size_of_first(), span)
        elif alone or not span.job.untouched(span.lo, span.hi):  # still pickled: to be had as a whole, or not at all
            return None
        if self.executes:
            part = span.cut(span.hi - share, span.hi)
            span.hi -= share
        else:
            part = span.cut(span.lo, span.lo + share)
            span.lo += share
        if span.stale:
            self.queue.popleft()
        elif not self.executes:
            self.queue.rotate(-1)  # two maps at the same time get equal shares
        return part

    def portion(self, count, item_bytes, span=None):
        """How many of `count` items go to one taker. span: the one they are of; None: they are submitted calls.

        A worker keeps as much as it gives to each taker: of 90 items that two want, each gets 30; one that asks for the
        8 workers of a host gets half. The root runs none, so each worker gets an equal share of all the span's items
        at once (from `base` on, whatever was given away before), and takes from others when it is done. Submitted calls
        are less alike: of these a taker gets two thirds of an equal share of what is left. Maps were once shared like
        that, too: it took twice the messages."""
        if item_bytes is None:
            return 1  # pickling this first one tells how large they are
        if self.executes:
            whole, workers = count, max(2 * self.width, 1 + self.width * self.wanted)
        else:
            whole, workers = span.hi - span.base if span else 2 * count / 3, self.size or 1
        width = span.widths.pop() if span and span.widths else self.width
        share = min(math.ceil(whole * width / workers), self.most_calls * width)
        quick = PACKING / max(span.job.item_seconds, 1e-9) if span else math.inf
        return int(max(1, min(count, share, MAX_BODY // max(1, item_bytes), quick)))

    def bundle(self):
        """Make a span of the oldest calls, all with the same parent."""
        queue, parent, futures = self.queue, self.queue[0]._parent, []
        count = min(self.portion(len(queue), self.call_bytes), MAX_CALLS)
        while queue and len(futures) < count:
            unit = queue[0]
            if not unit.stale:
                if unit.job or unit._parent is not parent:
                    break
                unit._state = RUNNING
                futures.append(unit)
            queue.popleft()
        job = Bundle(self, futures)
        return Span(job, job.columns, 0, 0, len(futures))

    def ship(self, span):
        """Send a span to whoever is hungry; returns whether it went. What cannot be pickled stays here, or fails."""
        job = span.job
        try:
            frames = self.pack(span)
        except FAULTS as error:
            self.keep(span, error)
            return False
        except BaseException:  # Ctrl-C: it is still to be run
            job.requeue(span)
            raise
        with self.lock:
            if job.cancelled:
                discard(frames)
                return False
            trim(self.queue)
            self.rich = len(self.queue) > self.executes or bool(self.queue and self.queue[0].several)
            task_id, bounds = self.register(span, frames), (b"%d" % span.lo, b"%d" % span.hi)
            news = [(b"SPLIT", job.id, *bounds, task_id)] if job.id not in (None, task_id) else []
            self.send_all(*news,  # as one: no CANCEL comes between them
                          (b"TASK", task_id, span.avoid, b"%d" % self.rich, *bounds, b"%d" % span.singly, *frames))
        if job.left == 0:
            job.flush(aside=True)
        return True

    def pack(self, span):
        """The body of a TASK: recipe and columns."""
        job = span.job
        if span.columns is None:
            return job.body
        recipe, start, count = job.recipe.encode(self.memory), time.perf_counter(), span.hi - span.lo
        frames = dumps(span.items(span.lo, span.hi), self.memory)
        job.item_bytes = sum(map_builtin(size_of, frames)) // count
        job.item_seconds = (time.perf_counter() - start) / count
        if isinstance(job, Bundle):
            self.call_bytes = job.item_bytes
        return [recipe, *frames]

    def register(self, span, frames):
        """Note that a span leaves, and return its task id. An owner records a Shipment; a holder updates its Guest."""
        job, lo, hi = span.job, span.lo, span.hi
        if job.id is None:
            task_id = b"%s:%d/%d" % (self.name, next(self.serial), lo)
            self.away[task_id] = Shipment(task_id, span, frames)
            return task_id
        if job.untouched(lo, hi):
            self.guests.pop(job.id, None)
            return job.id
        task_id = b"%s/%d" % (job.id.rpartition(b"/")[0], lo)
        job.open.cut(lo, hi)
        job.left -= hi - lo
        return task_id

    def keep(self, span, error):
        """Requeue a span that cannot be pickled in halves, until those to blame are found: items sent one by one would
        each take along what all of them refer to. A single item, or all if a map's callable is to blame, runs here, or
        fails if this node runs no tasks."""
        job = span.job
        if span.several and not (isinstance(error, CannotSend) and job.recipe is not CALLS):
            middle = (span.lo + span.hi) // 2
            job.requeue(span.cut(middle, span.hi))
            job.requeue(span.cut(span.lo, middle))
        elif self.executes:  # it runs where it was made, which needs no pickling
            with self.lock:
                self.pinned.append(span)
        else:
            job.fail(span.lo, span.hi, error if isinstance(error, CannotSend) else self.blame(span, error))
        self.rouse()  # we may be the deputy, and the holder of the baton may sleep by now

    def blame(self, span, error):
        """A CannotSend that names what cannot be pickled: an argument, or the callable."""
        fn, args, kwargs = span.call(span.lo)
        why = reason_of(error, *((arg, f"argument {i}") for i, arg in enumerate(args, 1)), (fn, "the callable"),
                        *((value, f"argument {key!r}") for key, value in kwargs.items()))
        result = CannotSend(f"{span.job.title(span.lo)} cannot be sent to a worker: {why}")
        result.__cause__ = error
        return result

    # -- messages

    def on_HUNGRY(self, count, width=b"1"):
        """Others would take tasks from here; remembered until they are given, or (0) nobody wants any."""
        count, width = int(count), int(width)
        with self.lock:
            before, self.wanted = self.wanted, count and self.wanted + count
            if count:
                self.width = max(1, (self.width * before + width * count) // max(1, self.wanted))

    def on_MANY(self, owner, new, done, body):
        """SPLITs and RESULTs, collected by a broker."""
        for message in unpickle(bytes(body)):
            self.take_note(message)

    def on_RESULT(self, task_id, lo, count, last, *body):
        """Results of a task that we shipped. If we do not wait for them, drop them, and cancel what may follow."""
        lo, count = int(lo), int(count)
        shipment = self.away.get(task_id)
        results = read_results(body, count, shipment.span.job.recipe.op) if shipment and count else ()
        with self.lock:  # only now: reading runs user code, which Ctrl-C may end
            fresh = task_id in self.away and shipment.open.close(lo, lo + count)
            if fresh and not shipment.open:
                discard(self.away.pop(task_id).references)  # unread if its holder failed to unpickle even the callable
        if not fresh:
            discard(body)
            if last == b"0":
                self.recall(task_id)
        elif count:
            shipment.span.job.deliver(lo, count, *results)

    def on_SPLIT(self, task_id, lo, hi, new):
        """The holder of a task that we shipped has given a part of it away, as task `new`."""
        lo, hi = int(lo), int(hi)
        with self.lock:
            shipment = self.away.get(task_id)
            if shipment is None or not shipment.open.close(lo, hi):
                self.recall(new)
                return
            self.away[new] = part = Shipment(new, shipment.span.cut(lo, hi))
            part.doubt.extend(shipment.doubt.cut(lo, hi))
            if not shipment.open:
                del self.away[task_id]

    def on_SINGLY(self, task_id):
        """A holder cannot unpickle what we shipped: have it run item by item."""
        self.take_back(task_id, suspects=(0, math.inf))

    def on_LOST(self, task_id, lo, hi, flags, obituary):
        """The holder of a task that we shipped died: queue it again, but fail items that may not run once more."""
        lo, hi, flags, obituary = int(lo), int(hi), int(flags), bytes(obituary)
        begun = 0, int(ALL) if flags & BEGUN else hi  # also those before lo: they may have run, their results unsent
        self.take_back(task_id, begun, (lo, hi) if flags & BLAME else (0, 0), obituary.decode(errors="replace"),
                       host_of(obituary.partition(b" ")[0]))

    def take_back(self, task_id, begun=(0, 0), suspects=(0, 0), why=None, avoid=b"", lost=((0, math.inf),)):
        """Queue the `lost` ones of a shipment's open items again, to be given away first; `suspects` one by one.

        why: an obituary, or what else has happened to their holder; None: nothing has. If so, some fail: suspects that
        have killed enough workers; with retries=0 all that may have begun. So may, amid a census, what is in doubt:
        elsewhere, news of a SPLIT being lost. avoid: the host where they were lost."""
        fatal = []
        with self.lock:
            shipment = self.away.get(task_id)
            if shipment is None:
                return
            job, lost = shipment.span.job, shipment.open.cut_all(lost)
            begun = Ranges(lost).cut_all([] if why is None else [begun, *shipment.doubt])
            items = ((i, i + 1) for part in Ranges(lost).cut(*suspects) for i in range(*part))
            for part in () if why is None else items if self.retries else begun:
                deaths = job.deaths[part[0]]
                deaths.append(why)
                if len(deaths) >= self.retries and lost.close(*part):
                    fatal.append(part)
            self.retried += sum(end - first for first, end in Ranges(lost).cut_all(begun))
            suspected = lost.cut(*suspects)
            for part in sorted(suspected + lost, reverse=True):
                span = shipment.span.cut(*part)
                span.columns, span.base = span.items(*part), span.lo  # to be shared out anew: see ``portion``
                span.avoid, span.singly = avoid, span.singly or part in suspected
                job.requeue(span)
            shipment.doubt = Ranges()
            if not shipment.open:
                discard(self.away.pop(task_id).references)
        for part in fatal:  # without the lock: this may call the user's callbacks
            self.fail_lost(job, *part)

    def fail_lost(self, job, lo, hi):
        """Fail items that are not to be run again."""
        deaths = job.deaths[lo]
        killed = "its worker" if len(deaths) == 1 else f"{len(deaths)} workers in a row"
        what = "may have begun before it was lost" if self.retries == 0 else f"killed {killed}"
        advice = "" if "SIGKILL" not in deaths[-1] else \
            ". SIGKILL often means that memory ran out: see the kernel's log (dmesg), or run fewer workers (-n)"
        job.fail(lo, hi, WorkerLost(
            f"{job.title(lo)} {what} (retries={self.retries}): {'; '.join(deaths)}{advice}"))

    def on_CANCEL(self, task_id):
        """The owner of a task that we hold does not want it any more."""
        with self.lock:
            guest = self.guests.pop(task_id, None)
            if guest is not None:
                guest.cancelled, guest.outcomes = True, []
                discard(guest.body or ())
                self.shorten(guest)

    def on_CONST(self, name, setter, *frames):
        """A shared constant; unpickled when it is first asked for, and then kept."""
        const = (b"CONST", name, setter, *frames), functools.lru_cache(None)(lambda: loads(frames))
        self.consts.setdefault(name.decode(), const)
        self.wake("const")

    def on_SIZE(self, workers):
        """The pool has grown or shrunk."""
        self.size = int(workers)

    # -- a census, after messages were lost

    def on_WHO(self, number):
        """Say who we are, what we want and what we hold; doubt what we shipped."""
        with self.lock:
            self.wanted, self.rich = 0, False
            for shipment in list(self.away.values()) if number != self.round else ():  # else HELDs may have come since
                shipment.doubt = Ranges(shipment.open)
            self.round = number
            consts = [const for const, _ in self.consts.values()  # large ones only from root and setter
                      if self.name in (ROOT, owner_of(const[2])) or sum(map_builtin(size_of, const)) < OUT_OF_BAND]
            held = [(b"HELD", number, guest.id, *(b"%d" % bound for part in guest.open for bound in part))
                    for guest in list(self.guests.values())]
            self.send_all((b"HELLO",), *consts, *self.unanswered.values(), *held, (b"TOLD", number))

    def on_HELD(self, number, task_id, *bounds):
        """A holder will answer this task; if we do not wait for it, let the holder know."""
        with self.lock:
            shipment = self.away.get(task_id)
            if shipment is None:
                self.recall(task_id)
            elif number == self.round:
                numbers = map_builtin(int, bounds)
                shipment.doubt.cut_all(zip(numbers, numbers))

    def on_TOLD(self, number):
        """The census is over: what no node holds runs again; with retries=0 it fails."""
        for task_id, shipment in list(self.away.items()) if number == self.round else ():
            self.take_back(task_id, lost=shipment.doubt,
                           why="messages about it were lost, with a broker or a connection")

    # -- what the interface is made of

    def map(self, fn, iterables, kwargs, timeout=None, buffersize=None, progress=None, ordered=True, op=None):
        """See ``Interface.map``. op: that of a reduction; the results are then those of its parts, in order."""
        if not callable(fn):
            raise TypeError(f"map needs a callable as its first argument, not {fn!r}")
        self.check_depth()
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        fn = functools.partial(fn, **kwargs) if kwargs else fn
        return Mapping(self, Recipe(fn, op), iterables, ordered, buffersize, progress).reader(deadline)

    def set_const(self, constants):
        """See ``Interface.set_const``."""
        for name, value in constants.items():
            setter = b"%s:%d" % (self.name, next(self.serial))
            if name not in self.consts:
                try:
                    frames = dumps(value, self.memory, lasting=True)
                except FAULTS as error:
                    raise CannotSend(reason_of(error, (value, f"the constant {name!r}"))) from error
                self.insist(setter, b"CONST", name.encode(), setter, *frames)
                try:
                    self.wait_for(lambda: name in self.consts or self.broken, "const")
                finally:
                    del self.unanswered[setter]
                self.check_open()
                # our frames are not needed if another's value was quicker, or ours came back, as a copy, from elsewhere
                discard([frame for frame in frames if frame not in self.consts[name][0]], even_lasting=True)
            if self.consts[name][0][2] != setter:
                raise TypeError(f"the constant {name!r} exists already: constants are set once")

    def get_const(self, name, timeout):
        """See ``Interface.get_const``."""
        self.wait_for(lambda: name in self.consts or self.broken, "const", timeout)
        return self.consts[name][1]() if name in self.consts else None


# ---------------------------------------------------------------------------------------------------
# 9  Root


def signals_wait(method):
    """Decorator: defer Ctrl-C, and the program's own handlers of SIGALRM and SIGTERM, which may raise to set a time
    limit or to exit, while the main thread handles or sends messages: one cut short is lost, and whoever waits for it
    hangs. The command line's handler of SIGTERM ends the pool at once, and is left alone.

    Only the first signal is kept for later: a callback may not end. Nor is any in a process that another thread has
    forked meanwhile: there is no later there."""
    @functools.wraps(method)
    def whole(*args, **options):
        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM) if in_main_thread else ():
            handler = _signal.getsignal(number)
            if callable(handler) and handler is not terminate and getattr(handler, "defers", None) is not True:
                break
        else:
            return method(*args, **options)
        late, process = [], os.getpid()

        def defer(*call):
            handler(*call) if late or os.getpid() != process else late.append(call)
        defer.defers = True
        _signal.signal(number, defer)
        try:
            return whole(*args, **options)  # for the next of these signals
        finally:
            if _signal.getsignal(number) is defer:  # else a callback has set another
                _signal.signal(number, handler)
            if late:
                handler(*late.pop())  # it refers to frames, and so to what these hold: a message, large results
    return whole


class Root(Node):
    """The process of the user: starts the keeper of this host, creates tasks and runs none."""

    keeper = profile = None   # profile: the sum of those of workers
    closing = ended = False   # the end has begun; the broker has ended

    def __init__(self, options):
        super().__init__(ROOT, options["total"], options["retries"])
        self.options, self.most_calls = options, options.get("max_tasks_per_child") or math.inf
        self.decoders = {}  # (worker, stream) -> decoder of its output
        self.hosts = {options["host"]: {"state": "ready", "workers": options["size"]},  # number -> facts
                      **{number: {"host": name} for number, name, _ in options["hosts"]}}  # of those to come
        self.directory, self.memory = make_socket_directory(), make_memory_directory()
        self.address = f"ipc://{self.directory}/broker"
        try:
            self.start_keeper(options)
            with contextlib.suppress(OSError, SyntaxError, ValueError):
                main.by_value("")  # parse the script, for pickling: now, while the keeper starts and before an edit
            import_zmq(DESCRIPTORS + 8, options["listens"])
            self.open()
            logger.info("%s on this machine (root: pid %d, keeper: pid %d), sockets in %s",
                        counted(options["size"], "worker"), os.getpid(), self.keeper.pid, self.directory)
        except BaseException:
            self.abort()
            raise

    def start_keeper(self, options):
        """Start the keeper: as a fork of this process if that is pristine; else as a fresh interpreter, since threads
        do not survive a fork."""
        config = dict(options, directory=self.directory, address=self.address, memory=self.memory, token=TOKEN.hex())
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the keeper itself does that
        try:
            fork = pristine and None not in (sys.stdin, sys.stdout, sys.stderr)  # else a pipe may get number 0, 1 or 2
            self.keeper = ForkedKeeper() if fork else subprocess.Popen(self.keepers_command(), stdin=subprocess.PIPE)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)  # Ctrl-C may come now: ``abort`` has to know the keeper
        tell(self.keeper, json.dumps(config, default=str).encode() + b"\n")  # of sys.path, maybe a Path

    def keepers_command(self):
        """The command that runs a keeper in an interpreter like this one."""
        code = os.path.join(self.directory, "minscoop.bytecode")
        with open(code, "wb") as file:
            marshal.dump(_CODE, file)
        flags = subprocess._args_from_interpreter_flags()
        return [sys.executable, *flags, "-c", BOOT, os.path.abspath(__file__), code]

    def sleep(self, ready, what, timeout):
        """Of the threads that wait, one sleeps on the socket and serves it; the others wait to be woken."""
        if self.wanted and not (self.queue or self.closing) and self.feed():  # only the inputs of maps can give more
            return
        if not self.listen(ready, timeout, 0):
            super().sleep(ready, what, timeout)
        elif not ready():
            self.patrol()

    def attend(self, timeout):
        """As any node; but first look for a while, if a single task is away: all else is idle, and slow to wake."""
        limit = time.monotonic() + min(timeout, SPIN)
        while len(self.away) == 1 and time.monotonic() < limit and not self.hears():
            os.sched_yield()
        super().attend(timeout)

    def disown(self):
        """As any node; also close the keeper's lifeline, or the keeper would not see that the parent is gone."""
        super().disown()
        self.keeper.stdin.close()

    # As any node, as a whole: else work in hand would stay so for ever, half a message sent would end everything
    serve, give, send_all = map_builtin(signals_wait, (Node.serve, Node.give, Node.send_all))

    def take_note(self, message):
        """As any node; then give what is called for at once, not when the inbox is empty: the results of a large pool
        never end."""
        super().take_note(message)
        if self.queue and self.called_for():
            self.give()

    def called_for(self):
        """As any node; but if other jobs keep all workers busy, parts of the oldest in the queue go unasked, one per
        worker, which runs it in turns with what it has; and one more, as the first item of a map goes alone."""
        with self.lock:
            if self.wanted > 0 or not (self.queue and self.size):
                return self.wanted > 0
            job = self.queue[0].job
            own = len(job.shipments if job else self.calls_away)
            return own <= self.size <= len(self.away) - own

    def patrol(self):
        """Notice that the keeper is gone, and everything else with it; or that the socket is still not connected: the
        program may have taken all file descriptors but our spare one."""
        if not self.connections and spare:
            os.close(spare.pop())
        if self.keeper.poll() is not None and self.broken is None and not self.closing:
            code = self.keeper.returncode
            self.break_off(PoolError(f"the pool of this host ended unexpectedly (keeper, pid {self.keeper.pid}: "
                                     f"{status_text(code)}); what it printed above may say why"))

    def stand_in(self):
        """One look by the deputy, who also notices that the keeper is gone."""
        super().stand_in()
        self.patrol()

    def check_open(self):
        """Raise if no more work can be taken: a thread that reads a map without end would feed the pool for ever."""
        super().check_open()
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def part_of(self, span, alone):
        """As any node; if all workers are idle, each other host gets one part, for all its workers."""
        if not self.away:
            span.widths = self.takers(span.hi - span.lo)
        return super().part_of(span, alone)

    def takers(self, most):
        """How many workers each taker of a task stands for, the largest last, as the broker chooses them: other hosts,
        and up to `most` workers of this one. Empty if some hosts have yet to come."""
        others = [facts for number, facts in list(self.hosts.items()) if number != host_of(ROOT).decode()]
        hosts = sorted(facts["workers"] for facts in others if facts.get("state") == "ready")
        return [1] * min(most, self.size - sum(hosts)) + hosts if all("state" in facts for facts in others) else []

    def present(self):
        """How many workers are there, and on how many hosts: without those yet to come, or gone."""
        there = [facts["workers"] for facts in list(self.hosts.values()) if facts.get("state") == "ready"]
        return min(self.size, sum(there)), sum(workers > 0 for workers in there)

    def quiet(self):
        """Whether no work is queued, in hand or away, no unread map has inputs that it may pull, and no other thread
        serves."""
        if not self.serving.acquire(blocking=False):
            return False
        try:
            with self.lock:
                trim(self.queue)
                return not (self.queue or self.in_hand or self.away) and \
                    all(job.begun or job.fixed for job in self.sources)
        finally:
            self.serving.release()

    def drain(self):
        """Wait until all that was submitted is done; warn if that may take for ever."""
        due = time.monotonic() + PLAIN_PAUSE
        while self.broken is None and not self.quiet():
            for job in list(self.sources):
                if job.begun and job.begun.daemon:  # its reader is not waited for, and would go on to feed the pool
                    job.window = 0
            try:
                moved = self.feed(beyond=True)
                if time.monotonic() > due and not all(job.begun or job.fixed for job in self.sources):
                    due = math.inf
                    logger.warning("waiting for a map whose inputs go on, and whose results nobody reads: close "
                                   "the iterator that map returned, if they are not wanted")
            except PoolError as error:  # the pool broke while the program's iterator ran
                error.__traceback__ = None  # a traceback would mean that the program has seen it
                return
            self.wait_for(self.quiet, None, 0.001 if moved else ATTEND if self.sources else PATROL)

    def finish(self):
        """Wait for what is under way, then end the pool."""
        def over():
            return self.ended or self.broken
        try:
            self.drain()
            for facts in list(self.hosts.values()):
                if "state" not in facts and self.broken is None:
                    logger.info("host %s was not ready before all was done", facts["host"])
            self.closing = True
            self.insist("the end", b"STOP")
            due = time.monotonic() + PLAIN_PAUSE
            while self.keeper.poll() is None and not self.wait_for(over, None, 0.01):
                if time.monotonic() > due:
                    due = math.inf
                    logger.warning("waiting for work that tasks have left behind, maybe for ever if it is a map whose "
                                   "inputs go on: close its iterator in the task, if its results are not wanted")
            self.wait_for(over, None, GRACE / 4)  # the last messages may be yet to be read
        finally:
            self.abort()
            if self.profile:
                self.profile.strip_dirs().sort_stats("cumulative").print_stats(25)

    def abort(self):
        """End the pool now, whatever is under way. Waits for it, at most GRACE seconds."""
        if self.options["profile"] and not self.closing and self.broken is None:
            logger.warning("no profile: workers that are ended at once, as by Ctrl-C, send none")
        self.closing = True
        if not self.stopped.is_set():
            self.ended_by = self.broken
        self.stopped.set()  # first: callbacks may call this, too
        self.break_off(PoolError("the pool was shut down"))
        if self.keeper is not None:
            with contextlib.suppress(OSError):
                self.keeper.stdin.close()  # the keeper kills its children when it sees that
            try:
                self.keeper.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.keeper.kill()
                self.keeper.wait()
        self.close()
        remove(self.directory, self.memory)

    # -- messages

    def on_FAILED(self, reason):
        """No worker can work."""
        self.break_off(PoolError(bytes(reason).decode()))

    def on_BYE(self):
        """The broker has ended, after everybody else; all that was printed is here."""
        self.ended = True

    def on_HOST(self, facts):
        """A host is ready, or not to be had. The latter is reported when it is news, with what can be done about it."""
        facts = json.loads(bytes(facts))
        before = self.hosts.get(facts["number"], {})
        self.hosts[facts["number"]] = {**before, **facts}
        state, was = facts["state"], before.get("state")
        if state == "ready" != was:
            logger.info("host %s: Python %s, %s, data by %s%s", facts["host"], facts["python"],
                        counted(facts["workers"], "worker"), facts["transport"],
                        f" ({facts['address']})" if facts["address"] else "")
        elif state != "ready" and was in (None, "ready") and not self.closing:
            text = f"host {facts['host']}: {'lost: ' if was else ''}{facts['reason']}"
            if self.options["all_hosts"]:
                self.break_off(PoolError(f"{text}; the pool ends, since all hosts are required"))
            elif not self.options["check"]:
                logger.warning("%s; going on without it", text)
        self.wake("hosts")

    def on_FETCH(self, path):
        """A worker elsewhere imports a module: send its source; for a path that ends with a slash, the names in that
        directory; for one that begins with a question mark, the program's own part of sys.path."""
        name, body = path.decode(errors="surrogatepass"), []
        own = name.startswith(tuple(entry.rstrip("/") + "/" for entry in own_path())) and "/../" not in name
        with contextlib.suppress(OSError):
            if name.startswith("?"):
                body = [json.dumps(own_path()).encode()]
            elif own and name.endswith("/"):
                names = [entry.name + "/" * entry.is_dir() for entry in os.scandir(name)]
                body = [json.dumps([entry for entry in names if entry.endswith(("/", ".py"))]).encode()]
            elif name == main.path:
                body = [main.source]
            elif own and name.endswith(".py"):
                body = [read_source(name)]
        self.send(b"FILE", path, *body)

    def on_OUTPUT(self, worker, stream, lines):
        """Show what a worker has printed, and let its host's broker know."""
        decoder = self.decoders.setdefault((worker, stream), codecs.getincrementaldecoder("utf-8")("replace"))
        file, text = sys.stdout if stream == b"out" else sys.stderr, decoder.decode(bytes(lines))
        if self.options["tag_output"]:
            host = self.hosts.get(host_of(worker).decode(), {}).get("host") or os.uname().nodename
            text = "".join(f"{host} {worker.decode()}: {line}" for line in io.StringIO(text))  # by "\n" only
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or disk full: no task can be told
            encoding = getattr(file, "encoding", None) or "utf-8"  # may lack characters that are printed elsewhere
            file.write(text.encode(encoding, "backslashreplace").decode(encoding))
            file.flush()
        self.send(b"SHOWN", host_of(worker), b"%d" % len(lines))

    def on_RECORD(self, worker, body):
        """Ignored, unless records are wanted: see ``Collector``."""

    def on_LOG(self, record):
        """Handle what was logged elsewhere as if it had been logged here."""
        record = logging.makeLogRecord(json.loads(bytes(record)))
        target = logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            target.handle(record)

    def on_PROFILE(self, worker, stats):
        """Keep a worker's profile: in a file of its own if there is a directory, and in the sum of all."""
        import pstats
        stats = unpickle(bytes(stats))
        if self.options["profile"] is not True:
            path = os.path.join(self.options["profile"], f"worker-{worker.decode()}.prof")
            try:
                with open(path, "wb") as file:
                    marshal.dump(stats, file)  # which is what pstats reads
            except OSError as error:  # the disk is full, the directory is gone: the table is shown all the same
                logger.error("the profile could not be written to %s: %s", path, error.strerror)
        self.profile = self.profile or pstats.Stats(stream=sys.stderr or io.StringIO())  # None would be stdout
        stats = tasks_part(stats)
        if stats:  # pstats refuses an empty one
            self.profile.add(types.SimpleNamespace(create_stats=lambda: None, stats=stats))  # like a cProfile.Profile

    def on_COUNT(self, idle):
        """So many workers have nothing to do."""
        self.idle_workers = int(idle)


def own_path():
    """Those directories of sys.path that are the program's own: neither Python's nor of installed packages, nor what we
    have added at its end. Hosts look into them first, and so must not find there what the program does not."""
    entries = map_builtin(os.path.abspath, sys.path[:len(sys.path) - (sys.path[-1:] == [beside])])
    return [entry for entry in entries if os.path.isdir(entry) and not installed(entry)]


beside = None  # this file's directory, if `prepare_program` has added it to sys.path


def installed(path):
    """Whether a directory is for Python's own modules, or for installed packages."""
    return (path + "/").startswith(os.path.dirname(os.__file__) + "/") or \
        re.search("/(site|dist)-packages/", path + "/") is not None


def make_socket_directory():
    """A fresh directory of mode 0700 whose path is short enough for a socket's name (108 bytes), and in UTF-8, as ØMQ
    takes it. If possible not in one that everybody may write to, without the sticky bit: there others can put a
    directory of theirs in its place."""
    def unsafe(parent):
        return os.path.exists(parent) and os.stat(parent).st_mode & 0o1002 == 0o0002

    for parent in sorted((tempfile.gettempdir(), "/tmp", "/var/tmp"), key=unsafe):
        path = os.fsencode(parent)
        if len(path) < 70 and path == parent.encode(errors="replace") and os.access(parent, os.W_OK | os.X_OK):
            return make_directory(parent)
    raise PoolError(f"no directory for sockets: {tempfile.gettempdir()}, /tmp and /var/tmp are too long, not UTF-8 or "
                    "not writable; set TMPDIR to a writable directory with a short path")


def close_all(descriptors):
    """Close file descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def remove(*directories):
    """Remove directories with all that is in them. None, or one that is gone already, is ignored."""
    for directory in filter(None, directories):
        shutil.rmtree(directory, ignore_errors=True)


def label(config, name, pid):
    """How messages to the user name a worker."""
    return f"{name.decode()} (host {config['name']}, pid {pid})"


def flush_output():
    """Flush stdout and stderr. A failure, for instance since a task has closed them, is no error of ours."""
    for file in sys.stdout, sys.stderr:  # Python 3.8 buffers stderr, too
        with contextlib.suppress(OSError, ValueError, AttributeError):
            file.flush()


def status_text(code):
    """What a process's exit code says, in words. Negative: a signal."""
    names = {number: f" ({number.name})" for number in signal.Signals}  # real-time signals have none
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}{names.get(-code, '')}"


# ---------------------------------------------------------------------------------------------------
# 10  Worker


class Strand:
    """A thread of a worker that can hold the baton."""

    ident = None  # of its thread
    mark = None   # (id, lo, hi) of the other node's task that it works for; see Slice.mark

    def __init__(self, worker):
        self.worker = worker
        self.gate = threading.Lock()  # released by the thread that passes the baton to this one
        self.gate.acquire()
        self.stack = [None]  # the Futures and Slices that it is running, the newest last; None at the bottom

    @property
    def slices(self):
        """The Slices on its stack."""
        return [unit for unit in self.stack if isinstance(unit, Slice)]

    def set(self):
        """What this thread waits for has come: let it resume, before any new task is begun."""
        self.worker.resumable.append(self)
        self.worker.rouse()


def start_profile():
    """Begin a profile of the calling thread, and return it. From Python 3.12 on a Profile receives the events of all
    threads, and takes them for one thread's: so each event is handed to the Profile of its own thread."""
    import cProfile
    profile, ident = cProfile.Profile(), threading.get_ident
    with contextlib.suppress(ValueError):  # there is one already; what this one counts is set all the same
        profile.enable()
    for method, (own, *names) in PROFILED.items() if hasattr(profile, "_pystart_callback") else ():
        own[ident()] = getattr(profile, method)
        for name in names:
            sys.monitoring.register_callback(sys.monitoring.PROFILER_ID, getattr(sys.monitoring.events, name),
                                             lambda *args, own=own: own.get(ident(), ignore)(*args))
    return profile


def ignore(*_):
    """Ignore a signal, or an event of a thread that has no profile."""


# Method of a Profile -> ({thread's ident: its Profile's bound method}, *the events for which it is called).
PROFILED = {"_pystart_callback": ({}, "PY_START", "PY_RESUME", "PY_THROW"), "_ccall_callback": ({}, "CALL"),
            "_pyreturn_callback": ({}, "PY_RETURN", "PY_YIELD", "PY_UNWIND"),
            "_creturn_callback": ({}, "C_RETURN", "C_RAISE")}


class Worker(Node):
    """Runs tasks: its own, and those that it asked for. One thread, the holder of the baton, at a time.

    What a thread without the baton creates has the worker itself as its parent, and the mark of what runs meanwhile."""

    executes = True
    _parent = None
    asked = False  # HUNGRY was sent, and no TASK has come since
    idle = False   # IDLE was sent, and is still true
    received = 0   # TASKs; each is numbered by this count
    begun = 0      # the highest number of a TASK that was begun
    latest = None  # id() of the guest's Span of which a slice was taken last

    def __init__(self, name, config, marker):
        super().__init__(name, config["total"], config["retries"])
        self.config, self.marker, self.address, self.memory = config, marker, config["address"], config.get("memory")
        self.label = label(config, name, os.getpid())
        self.most_calls = self.calls_left = config.get("max_tasks_per_child") or math.inf
        self.holder = Strand(self)
        self.resumable = collections.deque()
        self.spare_strands = []
        self.aside = []        # Slices that threads without the baton run
        self.profiles = []
        self.files = {}        # path -> content; None: there is no such file

    # -- the baton

    def start(self, me=None):
        """The life of a thread: the first joins the pool, others (me: their Strand) await the baton; then all work."""
        if me is not None:
            me.gate.acquire()
        me = self.holder
        me.ident = threading.get_ident()
        if self.config["profile"]:
            self.profiles.append(start_profile())
        if self.socket is None:
            self.open()
            sys.setswitchinterval(SWITCH)
            self.initialise()
            self.regain(me)
            logger.debug("worker %s is ready", self.label)
        try:
            self.work()
        except BaseException as error:  # the baton would be lost with this thread: better to die, which is noticed
            self.exit(error)

    def initialise(self):
        """Run the initializer, if there is one."""
        if self.config["initializer"]:
            try:
                initializer, *initargs = loads([self.config["initializer"].encode("latin-1")])
                initializer(*initargs)
                main.context = contextvars.copy_context()
            except BaseException as error:
                self.fail("cannot start, since its initializer failed", error)

    def fail(self, what, error):
        """Tell the root why no task can run here, which ends the pool. Stay alive until then: messages of a worker that
        is known to be dead are dropped."""
        text = f"worker {self.label} {what}:\n{traceback_text(error).rstrip()}"
        self.insist("failure", b"FAILED", text.encode(errors="backslashreplace"))
        self.stopped.wait()
        self.leave()

    def work(self):
        """The loop of the thread that holds the baton and has no task on its stack."""
        me = self.holder
        while True:
            if self.stopped.is_set():
                self.leave()
            if self.calls_left <= 0 and self.may_leave():
                self.hand_back()
                self.leave(renewed=True)
            if self.resumable:
                if len(self.spare_strands) >= SPARE_THREADS and me.ident != threading.main_thread().ident:
                    self.pass_baton()
                    return
                self.spare_strands.append(me)
                self.pass_baton()
                me.gate.acquire()
                continue
            if time.monotonic() - self.looked > ATTEND:
                self.serve()
                self.flush()
            unit = self.take(None, None)
            if unit is not None:
                self.run(unit)
                unit = None  # it may be large, and this thread may sleep next
            elif not self.feed(beyond=not self.waiting):  # a waiting task may be about to read the map itself
                self.rest()

    def may_leave(self):
        """Whether all that is here belongs to others: no task waits, and all that tasks have made here is done."""
        with self.lock:
            return not (self.waiting or self.resumable or self.sources or self.away or self.in_hand or
                        any(not (unit.stale or isinstance(unit.job, Guest)) for unit in [*self.queue, *self.pinned]))

    def hand_back(self):
        """Send the results that were held back. The rest of their tasks is given to others: see ``Broker.on_BYE``."""
        for guest in list(self.guests.values()):
            guest.recipe.bulky = False  # else large parts of a reduction would wait for the last one
            with guest.flushing:
                guest.send_outcomes(aside=False)

    def rest(self):
        """Nothing to run: say so, and sleep until a message comes."""
        self.marker[0] = SEVERAL if self.waiting else RESTING
        flush_output()
        with self.lock:
            self.send_all(*self.wishes(done=True))
        self.doze(self.stopped.is_set, PATROL)

    def wishes(self, done=False):
        """The messages to send when there is nothing to run: HUNGRY, unless it was sent and still stands, or too many
        threads are parked. done: no task is on the stack, and the lock is held; then also IDLE, if that is so."""
        self.known, said = self.received, []
        if not (self.asked or self.waiting >= MAX_PARKED):
            self.asked = True
            said.append((b"HUNGRY", b"1"))
        if done and not (self.idle or self.waiting or self.away or self.in_hand or self.queue or self.pinned):
            self.idle = True
            said.append((b"IDLE", b"%d" % self.received))
        return said

    def wishes_if_done(self):
        """The messages that go with a task's last result: if there is nothing else to do, that we would take more."""
        me = self.holder
        trim(self.queue)
        trim(self.pinned)
        done = len(me.stack) == 2 and me.ident == threading.get_ident() and self.calls_left > 0 and not (
            self.queue or self.pinned or self.resumable or self.waiting or self.sources or self.stopped.is_set())
        return self.wishes(done) if done else ()

    def doze(self, ready, timeout):
        """Unless ready(), sleep until a message comes or another thread has work for us; then serve."""
        self.flush()
        if not self.listen(lambda: self.queue or self.pinned or self.resumable or self.received != self.known or
                           ready(), min(timeout, MAX_FLUSH if self.held_back() else PATROL)):
            self.stopped.wait(ATTEND / 10)  # another thread is handling messages, maybe for long: do not spin

    def flush(self):
        """Send the results that were held back to travel together, if they have waited long enough."""
        for guest in self.held_back():
            guest.flush(aside=True)

    def pass_baton(self):
        """Pass the baton to another thread: to one that can resume, else to a spare one, which takes new work. The
        caller has seen to it, by ``find_strand``, that there is one."""
        self.holder = self.resumable.popleft() if self.resumable else self.spare_strands.pop()
        self.holder.gate.release()

    def find_strand(self):
        """See that there is a thread to pass the baton to. Raises RuntimeError if the system allows no more threads."""
        if not (self.resumable or self.spare_strands):
            strand = Strand(self)
            in_background(main.context.copy().run, self.start, strand)
            self.spare_strands.append(strand)

    def glance(self, pending=True):
        """A task polls instead of waiting: handle the results that are here. pending: what it polls for may not have
        begun, and maybe only this worker would run it; so other threads go on until the task is done."""
        if pending:
            self.yield_baton()
        if self.inbox:
            self.serve()

    def yield_baton(self):
        """Let other threads go on until this task is done: it polls, or its event loop awaits futures without us."""
        if self.current_task() is not self and not self.serving._is_owned():
            self.shorten()
            self.find_strand()
            self.waiting += 1
            self.pass_baton()

    def regain(self, me):
        """Block until the baton is back, if user code that was run in this thread, that of `me`, has yielded it."""
        if self.holder is not me:
            me.set()
            me.gate.acquire()
            self.waiting -= 1
            self.note(me.mark)

    def feed(self, beyond=False):
        """As any node; the iterators may yield the baton."""
        me, fed = self.holder, super().feed(beyond)
        self.regain(me)
        return fed

    def execute(self, unit):
        """Run user code."""
        main.context.copy().run(run_apart, unit)  # a context of its own: another task may wait below it on this stack
        self.calls_left -= unit.hi - unit.lo
        if self.forked:
            self.exit(unit.failures.get(len(unit.values) - 1) if unit.job else unit._exception)

    def disown(self):
        """As any node; besides, the child runs no further item of a map."""
        super().disown()
        for piece in self.holder.slices + self.aside:
            piece.shorten()

    def exit(self, error):
        """End this process as a program would that has ended, maybe by an exception; but run nothing else: in a child
        that a task has forked, and that has returned from that task, all else belongs to the parent."""
        code = error.code if isinstance(error, SystemExit) else error
        if not isinstance(code, (int, type(None))):
            traceback.print_exception(type(error), error, error.__traceback__)
            code = 1
        flush_output()
        os._exit((code or 0) & 255)

    def wait_for(self, ready, what=None, timeout=None):
        """As any node; if a callback waits, in the middle of a message, other threads may handle messages meanwhile."""
        serving = self.serving._is_owned() and self.serving._release_save()
        try:
            return super().wait_for(ready, what, timeout)
        finally:
            if serving:
                self.serving._acquire_restore(serving)

    def sleep(self, ready, what, timeout):
        """Run something else, or sleep, while the calling task waits for `what` to change.

        Run `what` itself, if it is still here; else the newest unit, if it descends from the waiting task.
        Others never run on top of this stack: for those, and to pull inputs of their maps, which may be the result of
        this very task, this thread parks and another goes on."""
        me = self.holder
        if me.ident != threading.get_ident():
            self.sleep_aside(ready, what, timeout)
            return
        unit = self.take(what, me.stack[-1]) if len(me.stack) <= MAX_INLINE else None
        if unit is not None:
            self.run(unit)
            return
        self.shorten()
        if self.resumable or self.queue or self.pinned or \
                not all(descends(job, me.stack[-1]) for job in list(self.sources)):
            self.park(me, ready, what, timeout)
        elif not self.feed():
            self.send_all(*self.wishes())
            self.doze(ready, timeout)

    def sleep_aside(self, ready, what, timeout):
        """Wait in a thread without the baton, such as one that a task started; it may run what it waits for itself."""
        unit = self.take(what, self)
        if unit is None:
            self.shorten()  # what we wait for may be up to an item behind the one that waits here
            unit = self.take(what, self)
        if unit is None:
            if self.inbox:  # the baton's holder may wait for this thread, and not look at what the deputy left it
                self.serve()
            self.give(last=True)
            super().sleep(ready, what, timeout)
        elif unit.job is None:
            self.execute(unit)
        else:
            self.aside.append(unit)
            try:
                self.execute(unit)
            finally:
                self.aside.remove(unit)
            unit.deliver()

    def park(self, me, ready, what, timeout):
        """Pass the baton on, and block until `what` has changed or the time is over, and the baton is back."""
        self.find_strand()
        with self.lock:
            self.parked.setdefault(what, []).append(me)
            if ready() and self.unlist(what, me):  # it changed before we were listed
                return
            self.waiting += 1
        self.pass_baton()
        if not me.gate.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            if self.unlist(what, me):
                me.set()
            me.gate.acquire()
        self.waiting -= 1
        self.note(me.mark)

    # -- what to run

    @property
    def mark(self):
        """(id, lo, hi) of the other node's task for which a thread without the baton is most likely to work."""
        return self.holder.mark

    def current_task(self):
        """What the calling thread is running; this worker, if it does not have the baton."""
        me = self.holder
        return me.stack[-1] if me.ident == threading.get_ident() else self

    def push(self, unit):
        """Queue a Future or a Span; if others want work, give away something older, or a part of this."""
        self.idle = False
        super().push(unit)
        if self.attended:
            self.rouse()

    def take(self, what, task):
        """Take the next unit off the queue, or None: `what`, if it is still here; else the newest, if `task` or one of
        its descendants made it. Without a task: the newest, whoever made it; but guests take turns, slice by slice."""
        with self.lock:
            queue = self.queue
            if isinstance(what, Future) and what._state == PENDING:
                what._state = RUNNING
                if queue and queue[-1] is what:
                    queue.pop()
                else:
                    trim(queue)
                return what
            piece = what.claim() if isinstance(what, Job) else None
            if piece is not None:
                return piece
            trim(queue)  # also of stale children of the latest, which would hide it
            trim(self.pinned)
            if self.pinned and (task is None or descends(self.pinned[-1], task)):
                queue = self.pinned
            elif task is None and queue and id(queue[-1]) == self.latest:  # now it is another guest's turn, if any
                queue.rotate(1)
                trim(queue)  # what now is the newest may be stale
            if not queue or task is not None and not descends(queue[-1], task):
                return None
            unit = queue[-1]
            if isinstance(unit, Future):
                unit._state = RUNNING
                return queue.pop()
            if isinstance(unit.job, Guest):
                self.latest = id(unit)
            return unit.claim()

    def run(self, unit):
        """Run a future or a slice on top of this thread's stack."""
        me = self.holder
        me.stack.append(unit)
        try:
            guest = isinstance(unit.job, Guest)
            if len(me.stack) == 2 and not guest:
                self.note(unit.mark)
            if isinstance(unit, Future):
                self.execute(unit)
            elif not guest or self.begin_guest(unit):
                self.run_slice(unit)
        finally:
            me.stack.pop()
        self.regain(me)  # only now: callbacks of a slice's submitted calls may have yielded it

    def begin_guest(self, piece):
        """Unpickle a task that came from another node, if this is its first slice, and note what will run; says
        whether it can be run."""
        job = piece.job
        self.begun = max(self.begun, job.number)
        if job.body is not None:
            self.note((job.id, job.lo, job.hi))  # it is unpickled as a whole, which may kill us
            if not self.unpack(piece):
                return False
            if piece.span.several:
                self.serve()  # HUNGRY from others here may have come with it: now they can get a part
        if job.hi - job.lo > 1:  # else that is noted already
            self.note(piece.mark)
        return True

    def run_slice(self, piece):
        """Run a slice and deliver its results."""
        recipe, rest = piece.job.recipe, piece.span.hi - piece.lo  # rest <= grain: one item's pace tells little of many
        if not (self.asked or self.pinned) and len(self.queue) <= 1 and rest <= recipe.grain \
                and rest < self.calls_left and TOO_LATE < rest * (recipe.pace or 0) < ASK_EARLY:  # little is left
            self.send_all(*self.wishes())
        self.execute(piece)
        piece.deliver()

    def unpack(self, piece):
        """Unpickle a guest; says whether it could. If not, have its items sent one by one; a single item fails."""
        job, span = piece.job, piece.span
        with self.lock:
            rest = not span.stale
            if rest:
                self.queue.remove(span)  # if unpickling waits, another thread goes on, and must not run this
                self.in_hand.append(job)
        try:
            job.unpack()
            with self.lock:
                span.columns = job.columns
                if not span.stale:
                    self.queue.append(span)
            return True
        except BaseException as error:
            if main.error is not None:
                self.fail(f"cannot import the script {main.path}, as workers do to find its functions", main.error)
            if job.left > 1:
                self.on_CANCEL(job.id)  # drop it: none of its results will be sent
                self.send(b"SINGLY", job.id)
            else:
                failure = CannotSend(f"the callable or an argument cannot be unpickled on worker {self.label}: "
                                     f"{type(error).__name__}: {text_of(error)}")
                failure.__cause__ = error
                job.fail(piece.lo, piece.hi, failure)
                del failure  # its cause refers to this frame: else what was unpickled would stay until a collection
            return False
        finally:
            if rest:
                with self.lock:
                    self.in_hand.remove(job)

    def shorten(self, job=None):
        """Give the items of running slices that have not begun back to the queue, and hand over the results so far.
        job: only of its slices, and no results: it is cancelled."""
        me = self.holder
        for piece in me.slices + self.aside:
            if job in (None, piece.job):
                with self.lock:
                    piece.shorten()
                if job is None and piece.job.recipe.op is None:
                    piece.deliver()
        if me.ident == threading.get_ident():
            self.regain(me)  # a callback may have yielded it

    def note(self, mark):
        """Write down what is being run, where the keeper reads it if we die."""
        self.holder.mark = mark
        self.marker[:MARK.size] = MARK.pack(SEVERAL if self.waiting else READY, self.begun, *(mark or (b"", 0, 0)),
                                            time.monotonic())

    def stand_in(self):
        """One look by the deputy, which also sends results that have waited long enough, and shortens the running slice
        if that takes long (it was seen before) or if there is something better to do than the rest of it."""
        self.flush()
        for newest in self.holder.slices[-1:] + self.aside:
            if newest.watched:
                self.shorten()
            newest.watched = True
        super().stand_in()
        with self.lock:  # guests take turns, so one that came last and has not been begun is next
            guest_waits = len(self.queue) > 1 and self.queue[0].columns is None
        if guest_waits or self.inbox or self.resumable or self.wanted:  # there is else to do, or others want work
            self.shorten()
            self.give()  # a sole entry may be about to be run, and goes at the next look: see seen

    # -- messages

    def on_TASK(self, task_id, avoid, more, lo, hi, singly, *body):
        """Queue a task of another node. First come, first run; the latest is given away first."""
        lo, hi = int(lo), int(hi)
        guest = self.guests[task_id] = Guest(self, task_id, lo, hi, body)
        with self.lock:
            self.asked = self.idle = False
            if hi - lo > 1:
                self.wanted, self.rich = 0, True
            self.received += 1
            guest.number = self.received
            self.queue.appendleft(Span(guest, None, lo, lo, hi, singly == b"1", avoid))
            # Our own: was it recalled while it came back to us? Not if some of its family are away: SPLITs may be late
            family = task_id.rpartition(b"/")[0] + b"/"
            if owner_of(task_id) == self.name and not any(other.startswith(family) for other in self.away):
                self.on_CANCEL(task_id)

    def on_STOP(self):
        """All is done."""
        self.stopped.set()

    def on_WHO(self, number):
        """As any node; besides, ask anew for work, and count TASKs anew."""
        with self.lock:
            super().on_WHO(number)
            self.asked = self.idle = False
            self.received = self.begun = 0
            for guest in list(self.guests.values()):
                guest.number = 0  # as the broker takes it: what is HELD may have begun, and later TASKs have not

    # -- modules that are on the root's machine only

    def fetch_file(self, path):
        """A source file of the root's, or None if there is none. Blocks, and runs nothing else: imports hold locks."""
        if path not in self.files:
            self.insist(path, b"FETCH", path.encode(errors="surrogatepass"))
        while path not in self.files:
            if not self.listen(lambda: path in self.files, PATROL, TICK):
                self.serve()  # the answer may be in the inbox, if we are called amid the handling of messages
        self.unanswered.pop(path, None)
        return self.files[path]

    def learn_path(self, missing):
        """Take over what the program has added to its sys.path since the pool began, at a prompt, say, as a module is
        missing; returns whether there was anything. Blocks as ``fetch_file`` does."""
        own = json.loads(self.fetch_file(f"?{missing}"))  # brokers keep the answer, hence the name
        added = [entry for entry in own if entry not in sys.path]
        sys.path += added
        self.config["own_path"] += added  # so that RootFinder serves them
        return bool(added)

    def on_FILE(self, path, *body):
        """Keep the answer for which ``fetch_file`` waits."""
        path = path.decode(errors="surrogatepass")
        self.files[path] = bytes(body[0]) if body else None
        self.wake(path)

    def leave(self, renewed=False):
        """Say BYE and end this process. renewed: a fresh one is to take its place."""
        self.note(None)
        self.marker[0] = RENEWED if renewed else LEAVING
        if self.profiles:
            import pstats
            self.send(b"PROFILE", self.name, pickle.dumps(pstats.Stats(*self.profiles).stats, 5))
        util = sys.modules.get("multiprocessing.util")
        children = getattr(sys.modules.get("multiprocessing.process"), "_children", None)
        if children or getattr(util, "_finalizer_registry", None):  # else a directory that it has made, say, would stay
            in_background(end_multiprocessing, util, children).join(GRACE)
        flush_output()
        self.send(b"BYE")
        self.close(linger=GRACE)
        os._exit(0)


def descends(unit, task):
    """Whether a unit was created by this task, or by one of its descendants."""
    while unit is not None and unit is not task:
        unit = unit._parent
    return unit is task


# ---------------------------------------------------------------------------------------------------
# 11  Keeper

BOOT = """import sys
sys.path[:] = [path for path in sys.path if path]  # the working directory may have a types.py of its own
import marshal, types
module = sys.modules['minscoop'] = types.ModuleType('minscoop')
module.__file__ = sys.argv[1]
with open(sys.argv[2], 'rb') as file:  # the byte code that the root runs: compiling this file anew takes 70 ms
    exec(marshal.load(file), module.__dict__)
module.Keeper.main()"""
# A marker page begins with a MARK: the worker's state; the highest number of a TASK that it has begun; id, lo and hi of
# what it is running (its latest task, once it rests), and since when. States (0: it is not ready): ready; has begun
# several tasks, some of them parked; leaves as told; ready, with nothing to run; leaves, and is to be replaced.
MARK = struct.Struct(">BQ100pQQd")
READY, SEVERAL, LEAVING, RESTING, RENEWED = 1, 2, 3, 4, 5


FREE = "free memory, or raise the limits on processes (ulimit -u) and open files (ulimit -n)"
ROOTS_OWN = signal.SIGINT, signal.SIGQUIT, signal.SIGUSR2  # which terminals and batch systems send to all of us
pristine = _AS_SCRIPT  # nothing of the user's has run in this process


class ForkedKeeper(subprocess.Popen):
    """A keeper that is a fork of this process, which saves 30 ms of imports.

    Only while this process is pristine: a program may have what does not survive a fork, above all threads."""

    def __init__(self):
        self.args, self.returncode = "keeper", None
        self._waitpid_lock, self._sigint_wait_secs = threading.Lock(), 0  # as Popen's methods expect
        read, write = os.pipe()
        flush_output()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                sys.setprofile(None)  # that of `python -m profile` fails at a signal's handler amid a call of C code
                os.dup2(read, 0)
                known = os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else ["99"]  # where /proc is not mounted
                os.closerange(3, max(map_builtin(int, known)) + 1)
                Keeper.main()
            except BaseException:
                traceback.print_exc()
            finally:
                flush_output()
                os._exit(1)  # the child never returns, or there would be two roots
        os.close(read)
        self.stdin = open(write, "wb")


def preload(code):
    """Import, once for all workers, the standard library's modules that a script imports before it uses any name or
    makes a function or a class: these start no threads. What the script does later may change what imports find, and
    what modules do: sys.path, os.environ.

    64 workers of a script that imports a dozen are ready in half the time."""
    standard = getattr(sys, "stdlib_module_names", ())  # since Python 3.10
    if not any(name.partition(".")[0] in standard and name not in sys.modules for name in code.co_names):
        return  # which saves importing dis
    import dis
    own, acts = own_path(), ("LOAD_NAME", "MAKE_FUNCTION")  # the latter is all that shows of a class, whose body runs
    for step in itertools.takewhile(lambda step: step.opname not in acts, dis.get_instructions(code)):
        top = step.argval.partition(".")[0] if step.opname == "IMPORT_NAME" else None
        if top in standard and not importlib.machinery.PathFinder.find_spec(top, own):
            with contextlib.suppress(Exception):  # workers will report it
                importlib.import_module(step.argval)


def track_no_shared_memory():
    """Have Python's resource tracker ignore ``multiprocessing.shared_memory``. Each worker would start a tracker of its
    own, which removes whatever the worker has attached as soon as that ends, while the program and other workers still
    use it (https://bugs.python.org/issue38119)."""
    with contextlib.suppress(ImportError):  # on a system without semaphores
        from multiprocessing import resource_tracker
        for name in ("register", "unregister"):
            def act(path, kind, original=getattr(resource_tracker, name)):
                if kind != "shared_memory":
                    original(path, kind)
            setattr(resource_tracker, name, act)


def end_multiprocessing(util, children):
    """End what tasks have begun and left behind, as at the end of a process of multiprocessing's, but executors first:
    their processes, loky's too, would be waited for, and then stay for ever. util: the module multiprocessing.util;
    children: the processes that are left, if there are any."""
    for end in reversed(getattr(threading, "_threading_atexits", ()) if children else ()):
        with contextlib.suppress(Exception):
            end()
    util._exit_function()


def in_background(target, *args):
    """Run target(*args) in a thread that does not outlive this process's main thread; return the thread."""
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def tell(process, data):
    """Write to a process's stdin. If it has ended, that is noticed elsewhere."""
    with contextlib.suppress(OSError):
        process.stdin.write(data)
        process.stdin.flush()


class Keeper:
    """Starts the processes of a host and stays clean itself: one thread, nothing of ØMQ open, no code of the user.

    Each process that it forks holds the read end of its lifeline, a pipe. When the keeper is gone, the kernel kills the
    broker and the workers (on macOS a thread in each does); gateways end their remote commands first. The keeper's own
    lifeline is its stdin, which closes with the root. The root's keeper also starts the gateways of other hosts."""

    def __init__(self, config, stdin):
        self.config, self.stdin = config, stdin
        self.lifeline_read, self.lifeline = os.pipe()
        self.notices_read, self.notices = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.setblocking(False)
        self.notices.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NOTICE)  # macOS allows only 2 KB else
        self.backlog = collections.deque()  # notices that the broker is too slow to take
        self.patient = False                # whether to wait until it does: a gateway, which uses its copy of this
        self.sending = threading.RLock()    # a gateway has two threads
        self.signalled, self.signal_write = os.pipe()
        os.set_blocking(self.signal_write, False)
        self.broker = self.listener = None
        self.workers = {}          # pid -> (name, marker page, ends of the pipes into which it prints)
        self.broker_deaths = []    # when brokers died
        self.gateways = {}         # pid -> Gateway
        self.numbers = itertools.count(1)
        self.startup_deaths = 0
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)  # of the program, and so of workers
        self.failure = None        # why no worker can start
        self.exit_code = None

    @classmethod
    def main(cls):
        """The life of a keeper process: its configuration comes through stdin."""
        line, stdin = open(0, "rb", closefd=False).readline(), os.dup(0)  # sys.stdin may be None
        with open(os.devnull, "rb") as null:
            os.dup2(null.fileno(), 0)
        if line.endswith(b"\n"):  # else the root has ended already, maybe amid it: a pipe holds 64 KB
            cls(json.loads(line), stdin).live()

    def live(self):
        """Prepare, start and supervise until the end; never returns."""
        # These go to the whole process group, but are the root's business: we end after it. `fork` lets them in again.
        signal.pthread_sigmask(signal.SIG_SETMASK, (signal.SIGTERM, signal.SIGHUP, *ROOTS_OWN))
        try:
            self.prepare()
            self.run()
        except (PoolError, OSError) as error:  # such as no permission to write a file
            if self.config["below"] or self.broker or isinstance(error, OSError):  # else the root says it, too
                lacking = getattr(error, "errno", None) in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE)
                say(f"minscoop: {error}" + f": {FREE}" * lacking)
        except Exception:
            traceback.print_exc()
        finally:
            flush_output()
            self.clean_up()
            os._exit(1 if self.exit_code is None else self.exit_code)

    def prepare(self):
        """Import and set what all children share."""
        config = self.config
        sys.path[:], sys.argv = config["sys_path"] or find_modules(config), config["argv"]
        install_names(config["aliases"])
        log_to(Records(self.notify), config["log_level"], worker="keeper", host=config["name"])
        if config["profile"]:  # workers need these before they are connected, and so able to import
            importlib.import_module("cProfile")
            importlib.import_module("pstats")
        with contextlib.suppress(PermissionError):  # only the superuser may lower it
            os.nice(config["nice"])
        global TOKEN
        TOKEN = bytes.fromhex(config["token"])
        for directory in filter(None, (config["directory"], config["memory"])):
            fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_SH)  # while one of us lives, no pool removes it
        Main(*config["main"], config["mixed"]).install()
        if not config["below"]:  # else the file is not here
            main.keep_source()
            if main.path and not main.name:  # -m: finding it runs the program's code
                with contextlib.suppress(OSError, SyntaxError, ValueError):  # workers will report it
                    preload(main.program[0])
        import_zmq(encrypts=config["listens"])
        cores = usable_cores()
        config["size"] = cores if config["size"] is None else config["size"]
        config["threads"] = max(1, cores // max(1, config["size"]))  # for libraries: a worker's share of the cores
        self.leaves = config["listen"] or not config["tunnel"]  # whether others learn of our end by the broker's BYE
        if config["listens"]:
            self.make_keys()
        gc.freeze()  # all this stays: children share its pages, which their collections need not touch
        gc.enable()

    def make_keys(self):
        """Open a TCP port for other hosts, and make CURVE keys: the server's pair, and one that all clients share."""
        dual = socket.has_dualstack_ipv6()
        self.listener = socket.create_server(("", 0), family=socket.AF_INET6 if dual else socket.AF_INET,
                                             dualstack_ipv6=dual)
        config, config["port"] = self.config, self.listener.getsockname()[1]
        public, config["server_secret"], *clients = [
            key.decode() for key in (*zmq.curve_keypair(), *zmq.curve_keypair())]
        config["keys"] = [public, *clients]
        config["addresses"] = own_addresses(config)
        if config["listen"]:
            joining = self.config_for("join", None, None)
            write_private(config["listen"], json.dumps(dict(joining, program=checksum(joining))))

    def config_for(self, number, name, size):
        """The configuration of the keeper of another host."""
        return dict(self.config, host=number, name=name, size=0 if self.config["check"] else size, below=True,
                    hosts=[], server_secret=None, listens=False, listen=None, sys_path=None, piped=True)

    def run(self):
        """Fork broker, workers and gateways; then reap and replace until the broker or the root ends."""
        signal.signal(signal.SIGCHLD, ignore)
        signal.signal(signal.SIGUSR1, ignore)
        signal.set_wakeup_fd(self.signal_write, warn_on_full_buffer=False)
        with contextlib.suppress(OSError, ValueError):  # we, and the broker, need up to three descriptors per worker
            most = 10240 if sys.platform == "darwin" else self.limits[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, self.limits[1]))
        self.broker = self.fork(run_broker, self, None)
        self.tokens = os.pipe()
        os.write(self.tokens[1], b"." * LOGINS)
        for host in self.config["hosts"]:
            self.start_gateway(self.config_for(*host))
        track_no_shared_memory()  # here, since it takes 4 ms, and the broker takes as long to start
        for _ in range(self.config["size"]):
            self.start_worker()
        while self.exit_code is None:
            self.send_notices()
            ready = readable(TICK if self.backlog else None, self.stdin, self.signalled)
            if self.signalled in ready:
                if signal.SIGUSR1 in os.read(self.signalled, 4096):
                    self.tell_stacks()
                self.reap()
            if self.stdin in ready and self.exit_code is None and not os.read(self.stdin, 4096):
                self.exit_code = 0
                if self.leaves:
                    self.take_leave()

    def take_leave(self):
        """Have the broker tell that this host ends, which came by --join, or let others come so: there is no remote
        command whose end would tell, and it would be missed only after SILENCE. Blocks, for GRACE / 2 at most."""
        self.notify(b"BYE")
        deadline = time.monotonic() + GRACE / 2
        while time.monotonic() < deadline and os.waitpid(self.broker, os.WNOHANG)[0] == 0:
            time.sleep(TICK / 4)

    def replace_broker(self, code):
        """The broker has died: start another, which learns by a census what it cannot know; or end this host."""
        text = f"the broker (host {self.config['name']}, pid {self.broker}) ended: {status_text(code)}"
        now = time.monotonic()
        self.broker_deaths = [then for then in self.broker_deaths if now - then < SILENCE] + [now]
        if self.config["below"] and code in (1, -signal.SIGTERM):  # it has said why; or the host is being drained
            self.exit_code = 1
            return
        if len(self.broker_deaths) > BROKER_DEATHS:
            raise PoolError(text)
        logger.warning("%s; a new broker takes over", text)
        heirs = {name: running(marker)[2] for name, marker, *_ in self.workers.values()}
        if not self.config["below"]:
            hosts = [gateway.number for gateway in self.gateways.values()]
            heirs.update(dict.fromkeys([ROOT, *hosts], b""))
        self.broker = self.fork(run_broker, self, heirs)
        if self.failure:
            self.notify(b"FAILED", self.failure)

    def fork(self, target, *args, tied=True):
        """Run target(*args) in a child process; return its pid. tied: the kernel kills it when the keeper is gone."""
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, *ROOTS_OWN):
                if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    signal.signal(number, ignore if number in ROOTS_OWN else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            close_all((self.stdin, self.lifeline, self.signalled, self.signal_write))
            for _, ends in self.backlog:
                close_all(ends)
            self.backlog.clear()  # the keeper itself sends these
            sys.stdin = open(os.devnull, encoding="utf-8")
            if target is not run_broker:
                resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
                for _, _, *ends in self.workers.values():
                    close_all(ends)
            if tied:
                tie_to(self.lifeline_read)
            target(*args)
            os._exit(0)
        except PoolError as error:
            say(f"minscoop: {error}")
        except BaseException:
            traceback.print_exc()
        finally:
            flush_output()
            os._exit(1)

    def start_worker(self):
        """Fork one worker. It writes what it is running to its marker, a page of memory that we share."""
        name, marker = f"{self.config['host']}.{next(self.numbers)}".encode(), mmap.mmap(-1, 4096)
        ends, theirs = (), ()
        try:
            for _ in range(2 if self.config["piped"] else 0):
                end, their = os.pipe()
                ends, theirs = (*ends, end), (*theirs, their)
            if ends:  # before the fork: it needs descriptors, and may fail
                self.notify(b"PRINTS", name, descriptors=ends)
            self.workers[self.fork(run_worker, name, self.config, marker, ends, theirs)] = name, marker, *ends
        except OSError:
            close_all(ends)
            raise
        finally:
            close_all(theirs)

    def start_gateway(self, config, returns=0):
        """Fork the gateway of another host."""
        gateway = Gateway(self, config, returns)
        self.gateways[self.fork(gateway.run, tied=False)] = gateway

    def reap(self):
        """Reap the children that have ended, and act on each death."""
        while self.exit_code is None:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
            if pid == self.broker and code == 0:
                self.exit_code = 0
            elif pid == self.broker:
                self.replace_broker(code)
            elif pid in self.gateways:
                gateway = self.gateways.pop(pid)
                if code not in (0, SILENT):  # it was killed, and could not tell why
                    gateway.report(f"its gateway (pid {pid}) ended: {status_text(code)}")
                self.notify(b"DIED", gateway.number, *ANYTHING, f"host {gateway.host} is gone".encode())
                if code == SILENT and gateway.returns < RETURNS:  # else it would be launched anew for ever
                    number = f"{gateway.config['host'].partition('r')[0]}r{gateway.returns + 1}"  # 3r1, after 3
                    self.start_gateway(dict(gateway.config, host=number), gateway.returns + 1)
                self.give_up_if_alone("no host is left")
            else:
                self.bury(pid, code, *self.workers.pop(pid))

    def bury(self, pid, code, name, marker, *ends):
        """Tell the broker that a worker has ended, and start another in its place."""
        ready, begun, task_id, lo, hi = running(marker)
        marker.close()
        close_all(ends)
        with contextlib.suppress(OSError):  # it died before it made the file
            os.unlink(stacks_path(self.config, name))
        obituary = f"{label(self.config, name, pid)} {status_text(code)}"
        by_itself = code != -signal.SIGTERM  # sent on purpose, by somebody or a batch system
        flags = PARTED if ready == RENEWED else BLAME * by_itself | BEGUN * (ready == SEVERAL)
        self.notify(b"DIED", name, task_id or b"-", lo, hi, b"%d" % flags, begun, obituary.encode())
        if ready == LEAVING:
            return
        self.startup_deaths = 0 if ready else self.startup_deaths + 1
        if self.startup_deaths >= STARTUP_DEATHS:
            logger.warning("worker %s", obituary)
            self.give_up_if_alone(f"{STARTUP_DEATHS} workers in a row died before they were ready; the last one: "
                                  f"{obituary}" + f": {FREE}" * (code == -signal.SIGABRT))  # libzmq: without threads
            return
        if ready != RENEWED:
            logger.warning("worker %s; another takes its place", obituary)
        try:
            self.start_worker()
        except OSError as error:  # such as no memory, or too many processes; those that are there go on
            why = f"cannot start another worker ({error.strerror}): {FREE}"
            logger.warning(why)
            self.give_up_if_alone(why)

    def tell_stacks(self):
        """Have every worker dump its stacks to a file, by SIGUSR1: see ``dump_when_asked``. Send them to the root as if
        printed, with what each worker is running and for how long. Blocks for ANSWER seconds."""
        for pid in self.workers:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(ANSWER)
        for pid, (name, marker, *_) in self.workers.items():
            task = doing(marker)
            text = f"worker {label(self.config, name, pid)} is running {task or 'nothing'}\n"
            with contextlib.suppress(OSError), open(stacks_path(self.config, name), "r+", encoding="utf-8") as file:
                text += of_tasks(file.read(STACKS_LENGTH)) if task else ""
                file.truncate(0)
            self.notify(b"OUTPUT", name, b"err", f"{text.rstrip()}\n\n".encode())

    def give_up_if_alone(self, reason):
        """If no worker is left, nor a host that may bring some, end the pool; on another host, raise PoolError."""
        if self.workers or self.gateways or self.config["listen"] or self.config["check"]:
            return
        if self.config["below"]:
            raise PoolError(reason)
        self.failure = reason.encode()
        self.notify(b"FAILED", self.failure)

    def notify(self, *frames, descriptors=()):
        """Send a notice to the broker: JSON in a datagram, and file descriptors with it. Blocks only if `patient`."""
        data = json.dumps([frame.decode("latin-1") for frame in frames]).encode()
        ends = [os.dup(descriptor) for descriptor in descriptors]  # it may wait, and these be closed meanwhile
        self.backlog.append((data, ends))
        self.send_notices()

    def send_notices(self):
        """Send the notices for which there is room. If we waited for the broker, we would miss deaths and the end."""
        with self.sending:
            while self.backlog:
                data, ends = self.backlog.popleft()
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", ends))] if ends else []
                try:
                    self.notices.sendmsg([data], rights)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.ENOBUFS):  # there is no room now
                        self.backlog.appendleft((data, ends))
                        if not self.patient:
                            return
                        time.sleep(TICK)
                        continue
                    logger.debug("keeper: a notice of %d bytes is lost: %s", len(data), error)  # maybe a notice, too
                close_all(ends)

    def clean_up(self):
        """Kill what is left, and remove the sockets. Gateways end by themselves, when the lifeline does."""
        for pid in filter(None, [self.broker, *self.workers]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        remove(self.config["directory"], self.config["memory"])
        if self.config["listen"]:
            with contextlib.suppress(OSError):
                os.unlink(self.config["listen"])


def running(marker):
    """What a worker has written to its marker page, without the time; all but the state as bytes."""
    state, begun, task_id, lo, hi, _ = MARK.unpack_from(marker)
    return state, b"%d" % begun, task_id, b"%d" % lo, b"%d" % hi


def doing(marker):
    """What a worker is running and for how long, in words, by its marker page; None if it runs nothing."""
    state, _, task_id, lo, hi, since = MARK.unpack_from(marker)
    if not task_id or state == RESTING:
        return None
    items = f"item {lo}" if hi - lo == 1 else f"items {lo} to {hi - 1}"
    return f"{items} of task {task_id.decode()}, for {time.monotonic() - since:.1f} s"


NOTICE = 1 << 18         # bytes in a notice, at most
STACKS_LENGTH = 1 << 15  # characters of a worker's stacks, at most: they fit into a notice, whatever they are


def stacks_path(config, name):
    """The file for the stacks of a worker."""
    return f"{config['directory']}/{name.decode()}.stacks"


def of_tasks(stacks):
    """Of a worker's stacks, those of tasks, without our frames; all if there are none: we may be stuck."""
    ours = re.escape('"%s"' % __file__.encode("ascii", "backslashreplace").decode())  # as faulthandler writes it
    beneath = r'"<(string|frozen runpy)>"|/(threading|garbage|runpy)\.py"'  # what the program or a thread begins with
    text = re.sub(rf"\n.*{ours}.*", "", stacks)
    text = re.sub(rf"(\n.*({beneath}).*)+(?=\n\n|\s*\Z)", "", text)
    tasks = [stack for stack in text.split("\n\n") if "\n" in stack.strip()]
    return "\n\n".join(tasks) or stacks or f"(it wrote no stacks within {ANSWER} s)"


# By these, libraries learn how many threads to start: OpenMP and what goes by it, such as NumPy's linear algebra, MKL
# and PyTorch; Numba; Polars. With a thread per core in each worker, matrices of 100 x 100 took five times as long.
THREADS = "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"


def run_worker(name, config, marker, ends, theirs):
    """The life of a worker process. theirs: pipes for its stdout and stderr, if it is not to print where the root does;
    in UTF-8, whatever the encoding is here. ends: their other ends, which the broker reads."""
    for descriptor, stream, pipe in zip((1, 2), ("stdout", "stderr"), theirs):
        os.dup2(pipe, descriptor)
        setattr(sys, stream, open(descriptor, "w", 1, "utf-8", "backslashreplace", closefd=False))
    close_all(ends + theirs)
    with contextlib.suppress(AttributeError, ValueError):  # what a task prints appears at once
        sys.stdout.reconfigure(line_buffering=True)
    stacks = open(stacks_path(config, name), "a", encoding="utf-8")
    dump_when_asked(stacks, lambda *_: (stacks.truncate(0), faulthandler.dump_traceback(stacks)))
    for variable in THREADS:
        os.environ.setdefault(variable, str(config["threads"]))
    if "PYTHONBREAKPOINT" not in os.environ:
        sys.breakpointhook = refuse_breakpoint
    global this_worker, pristine
    pristine = False
    this_worker = (RecordingWorker if config["record"] else Worker)(name, config, marker)
    log_to(Records(this_worker.send), config["log_level"], worker=name.decode(), host=config["name"])
    this_worker.start()


def dump_when_asked(file, further):
    """On SIGUSR1, write the main thread's stack to a file at once, even if that thread is deep in C code; then call
    `further`, in Python, which may look at other threads: it holds the interpreter's lock, so they stand still."""
    signal.signal(signal.SIGUSR1, further)
    faulthandler.register(signal.SIGUSR1, file, all_threads=False, chain=True)
    os.register_at_fork(after_in_child=dump_no_more)


def dump_no_more():
    """Give SIGUSR1 back its usual meaning in a child that the program, or a task, forks: it is not asked."""
    if faulthandler.unregister(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def refuse_breakpoint(*_, **__):
    """Take the place of ``breakpoint`` in a worker, which has no terminal: raise RuntimeError."""
    raise RuntimeError("breakpoint() works in tasks with -n 0, where they run in your own process (or set "
                       "PYTHONBREAKPOINT to a debugger that needs no terminal)")


def tie_to(lifeline):
    """Have this process killed when the other end of a pipe is closed.

    On Linux the kernel itself sends SIGKILL then, also to a process that never releases the interpreter's
    lock. Which process gets it is set per open file, not per descriptor: hence the pipe is opened anew."""
    if hasattr(fcntl, "F_SETSIG") and os.path.exists(f"/proc/self/fd/{lifeline}"):
        own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY)
        fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(own, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        if readable(0, own):  # it is closed already
            os._exit(1)
    else:
        in_background(lambda: (os.read(lifeline, 1), os._exit(1)))


# ---------------------------------------------------------------------------------------------------
# 12  Other hosts
#
# A gateway, one per host, runs the remote command. Its life, step by step, with what travels:
#
#   login     →  a few lines for `sh`, which find Python and hand over to it   (no quoting: they go by stdin)
#             ←  after whatever login files print: a token, and facts about that Python
#   hand over →  this file, the configuration with the keys, pyzmq if it is missing
#   carry     ↔  blocks of bytes between the broker there and the one here, if TCP does not work
#
# On the other side that Python process becomes the agent: it forks a keeper, as the root does here, and carries the
# blocks. However the remote command ends, the agent then reads the end of its stdin and closes the keeper's stdin,
# which ends everything there.


class HostError(MinscoopError):
    """A host cannot take part; the text says why, and what to do."""


SILENT = 3  # a gateway's exit code if its host ended in good order, as it does when it no longer hears from us, since
            # we were stopped or asleep: then it is launched anew, under another number


SSH_OPTIONS = [
    "-T",                            # no terminal, which would change bytes
    "-x",                            # nothing to show: do not wait for X11
    "-oBatchMode=yes",               # ask nothing: nobody would answer
    "-oConnectTimeout=10",           # s
    "-oServerAliveInterval=4",       # s between keepalives;
    "-oServerAliveCountMax=3",       # with this many unanswered, the connection is lost: see SILENCE
    "-oControlMaster=no",            # use a connection that is shared already, but leave none behind
    "-oClearAllForwardings=yes",     # the user's forwarded ports are taken, maybe by the user's own login
    "-oLogLevel=INFO",               # the table below looks for its messages
]

# What ssh says (a regular expression), why the host cannot be reached and what to do. The first that matches counts.
SSH_SAYS = {  # causes before their consequences
    "host identification has changed":
        "its host key has changed: if you know why, run 'ssh-keygen -R {name}' and then 'ssh {host}' once",
    "host key verification failed": "its host key is unknown: run 'ssh {host}' once by hand, and accept it",
    "unprotected private key|bad permissions": "your private key may be read by others: run chmod 600 on it",
    "cannot execute command-line": "RemoteCommand is set for it: give another name without it in ~/.ssh/config",
    "configuration option|bad owner|command-line": "ssh's options or configuration are wrong: mend {line!r}",
    "too many authentication failures":
        "too many keys were offered: set IdentityFile and 'IdentitiesOnly yes' for it in ~/.ssh/config",
    r"permission denied \(":
        "no key was accepted: check the user's name; run 'ssh-copy-id {host}', or load your key with ssh-add",
    "no matching": "ssh here and there have no method in common: allow in ~/.ssh/config what it offers",
    "temporary failure in name": "names cannot be looked up now: is the network, or the VPN, up?",
    "could not resolve hostname":
        "unknown name: check the spelling (if you meant a hosts file: there is no such file here), or add it to "
        "~/.ssh/config",
    "stdio forwarding failed|unknown port 65535": "the jump host cannot reach it: try 'ssh {host}' by hand",
    "connection refused": "connection refused: is sshd running there, and on that port?",
    "no route to host|network is unreachable": "no route to it: is it switched on, and the network up?",
    "timed out": "no answer in time: is it switched on? is a VPN or a jump host needed? does a firewall drop ssh?",
    "kex_exchange|ssh_exchange":
        "it hung up before the login: too many logins at a time (MaxStartups), or it blocks this machine: try again",
    "no active jobs": "only users with a job there may log in: allocate it first (salloc, sbatch)",
    "(account|password) .*(expired|not available)|not permitted to log in":
        "your account may not log in there: ask its administrators",
    "invalid generic resource": "srun gives it none of the job's GPUs: ask for them by --gpus-per-node or --gres",
    "request failed|open failed": "it started no process for you: too many sessions or processes there",
    "connection (reset|closed)|broken pipe|closed by remote": "the connection broke: try again",
}

FIND_PYTHON = """\
PROLOG={prolog}
if [ -n "$PROLOG" ]; then
    if [ -r "$PROLOG" ]; then . "$PROLOG" </dev/null; else echo; echo '{token} {{"error": "prolog"}}'; exit 1; fi
fi
PYTHON={python}
if [ -z "$PYTHON" ]; then PYTHON={here}; [ -x "$PYTHON" ] || PYTHON=python3; fi
command -v "$PYTHON" >/dev/null 2>&1 || {{ echo; echo '{token} {{"error": "python"}}'; exit 1; }}
exec "$PYTHON" -c '{boot}' {token}
"""

BOOT_THERE = """\
import sys
sys.path[:] = [path for path in sys.path if path]
import json, os, pickle, types
facts = {"python": list(sys.version_info[:3]), "executable": sys.executable, "machine": os.uname()[4],
         "platform": sys.platform}
try:
    import zmq
    facts["pyzmq"] = zmq.__version__
except Exception:
    facts["pyzmq"] = None
sys.stdout.write("\\n%s %s\\n" % (sys.argv[1], json.dumps(facts)))
sys.stdout.flush()
with os.fdopen(os.dup(0), "rb") as stdin:
    text, config, library = pickle.load(stdin)
module = sys.modules["minscoop"] = types.ModuleType("minscoop")
module.__file__ = config["source"]
exec(compile(text, module.__file__, "exec"), module.__dict__)
module.run_agent(config, library)
"""


class Gateway:
    """Brings one host into the pool, and keeps it there. Runs in a process of its own, forked by the root's keeper."""

    def __init__(self, keeper, config, returns=0):
        self.keeper, self.config, self.host, self.number = keeper, config, config["name"], config["host"].encode()
        self.returns = returns                          # how often the host has been in the pool before
        self.process, self.seen = None, b""             # the remote command, and its stdout until Python answers
        self.complaints = collections.deque(maxlen=50)  # the last lines of its stderr
        self.up = None                                  # since when the program is being handed over

    def run(self):
        """Serve the host from login to the end, and tell the root why it ended. Ends at once when the keeper does."""
        self.keeper.patient = True
        try:
            in_background(lambda: (os.read(self.keeper.lifeline_read, 1), self.end()))
            if self.returns:
                time.sleep(GRACE)  # if the pool is ending, so do we, before any warning
                logger.warning("host %s: will log in again in %.0f s", self.host, SILENCE)
                time.sleep(SILENCE)
                logger.warning("host %s: logging in again", self.host)
            os.read(self.keeper.tokens[0], 1)
            start = time.monotonic()
            try:
                self.start()
                there = self.log_in()
            finally:
                os.write(self.keeper.tokens[1], b".")
            self.config["login"] = f"{time.monotonic() - start:.2f} s"
            self.hand_over(there)
            Tunnel(self.process.stdout, self.process.stdin, self.open_connection).pour()
            raise self.diagnosis("the connection has ended")
        except Exception as error:
            reason = str(error) if isinstance(error, (HostError, OSError)) else repr(error)
            self.report(reason)
        self.end(SILENT if self.up and self.process.poll() == 0 else 0)

    def report(self, reason):
        """Tell the root why the host is not in the pool, or not any more. The keeper does, if we could not."""
        self.keeper.notify(*host_notice(self.config["host"], self.host, reason))

    def start(self):
        """Start the remote command, and a thread that reads its stderr."""
        command = remote_command(self.config["rsh"], self.host)
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise HostError(f"cannot run {command[0]!r}: {error.strerror}: install it, or name another remote "
                            f"command with --rsh") from None
        self.ears = in_background(self.listen)

    def listen(self):
        """Read stderr all the time, lest the remote command block; log it once the host is in the pool."""
        for line in iter(lambda: self.process.stderr.readline(1000), b""):
            text = line.decode(errors="replace").rstrip()
            self.complaints.append(text)
            patience = GRACE + (SILENCE if self.config["transport"] == "tcp" else 0)  # see ``first_answer``
            if text and self.up and time.monotonic() > self.up + patience:  # before that, see ``diagnosis``
                logger.warning("host %s: %s", self.host, text)

    def log_in(self):
        """Start Python on the host, and return the facts that it reports. Raises HostError."""
        token = "minscoop-" + os.urandom(8).hex()  # tells our line from what login files print
        config, quote = self.config, shlex.quote
        prolog = config["prolog"] and os.path.join(".", config["prolog"])  # without a slash, `.` looks in PATH only
        script = FIND_PYTHON.format(prolog=quote(prolog or ""), python=quote(config["python"] or ""),
                                    here=quote(sys.executable), boot=BOOT_THERE, token=token)
        tell(self.process, script.encode())
        deadline = time.monotonic() + LOGIN_PATIENCE
        while True:
            left = deadline - time.monotonic()
            if left < 0 or not readable(left, self.process.stdout):
                raise self.diagnosis(f"no Python answers within {LOGIN_PATIENCE:.0f} s")
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            self.seen = (self.seen + data)[-(1 << 16):]
            answer = re.search(rb"%s (.*)\n" % token.encode(), self.seen)
            if answer:
                return self.check(answer[1])
            if not data:
                raise self.diagnosis("the remote command ended before Python ran")

    def check(self, answer):
        """Return the facts in Python's answer. Raises HostError if there is no Python, or one that does not fit."""
        config, there = self.config, json.loads(answer)
        if there.get("error") == "python":
            raise HostError(f"no Python there ({config['python'] or 'python3'}): install it, or say where it is "
                            "with --python or --prolog")
        if "error" in there:
            raise HostError(f"cannot read the prolog {config['prolog']}: the file has to exist there (a relative path "
                            "starts at your home directory)")
        version, here = tuple(there["python"]), sys.version_info[:2]
        found = f"Python {'.'.join(map_builtin(str, version))} ({there['executable']})"
        if version < (3, 8):
            raise HostError(f"has {found}, and 3.8 is the oldest that works: name another with --python")
        if version[:2] != here and not config["mixed"]:
            raise HostError(f"has {found}, but this machine runs {here[0]}.{here[1]}: functions can be sent by value "
                            "only between equal versions. Name another with --python, or use --mixed if your program "
                            "sends no function by value")
        return there

    def hand_over(self, there):
        """Send this program, its configuration and, where it is missing, pyzmq."""
        library = b""
        if not there["pyzmq"]:
            here = [*sys.version_info[:2], sys.platform, os.uname().machine]
            if [*there["python"][:2], there["platform"], there["machine"]] != here:
                raise HostError(f"pyzmq is missing there, and this machine's build does not fit {there['platform']} "
                                f"{there['machine']}: run '{there['executable']} -m pip install pyzmq' there")
            library = pack_pyzmq()
        data = pickle.dumps((read_source(__file__), self.config, library), 5)
        in_background(tell, self.process, data)  # the host may not read it
        self.up = time.monotonic()
        if not readable(LOGIN_PATIENCE, self.process.stdout) or not self.process.stdout.peek(1):
            raise self.diagnosis(
                f"logged in, but the program did not start there ({LOGIN_PATIENCE:.0f} s are allowed)")

    def diagnosis(self, otherwise):
        """The HostError that says in one line why the remote command failed, and what to do. otherwise: why, if no
        known message tells."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # its last words may still be on their way
            self.process.wait(1)
        self.ears.join(1)
        noise = b"" if self.up else self.seen[-1000:]  # nologin complains on stdout
        said = [*noise.decode(errors="replace").splitlines(), *self.complaints]
        for pattern, advice in SSH_SAYS.items() if not self.up else ():
            found = re.search(f".*({pattern}).*", "\n".join(said), re.IGNORECASE)
            if found:
                return HostError(advice.format(host=self.host, name=self.host.rpartition("@")[2], line=found[0]))
        last = next(filter(str.strip, reversed(said)), "").strip()
        code = self.process.poll()
        if code:
            otherwise += f" ({status_text(code)})"
        if last:
            otherwise += f": {last.rstrip('.')}"
        return HostError(otherwise)

    def open_connection(self):
        """Connect to the broker here, on behalf of the one there. If there is none, since another is to take over, the
        connection ends at once, and the one there connects again."""
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            connection.connect(self.config["address"][len("ipc://"):])
        return connection

    def end(self, code=0):
        """End the remote command, then this process. At the end of its stdin it should exit; if not, kill it."""
        process = self.process
        if process is not None:
            for step in (lambda: os.close(process.stdin.fileno()),
                         process.terminate,  # on SIGTERM srun cancels its step; on SIGKILL it cannot
                         lambda: os.killpg(process.pid, signal.SIGKILL)):
                with contextlib.suppress(OSError):  # it may be another user's, as with sudo
                    step()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE / 4)
        os._exit(code)


def remote_command(rsh, host):
    """Return the words of the command that runs `sh` on a host: `rsh` with the host's name for {host}, or at its end.

    Raises ValueError if `rsh` is empty, or its quotes do not match."""
    try:
        words = shlex.split(rsh or "")
        if not words:
            raise ValueError("it is empty")
    except ValueError as error:
        raise ValueError(f"the remote command {rsh!r} cannot be understood: {error}") from None
    if "{host}" not in " ".join(words):
        words.append("{host}")
    if os.path.basename(words[0]) == "ssh":
        at = next((i for i, word in enumerate(words) if re.fullmatch(r"(.*@)?\{host\}", word)), 1)
        words[at:at] = SSH_OPTIONS  # after the user's: of an option given twice, ssh takes the first
    return [*(word.replace("{host}", host) for word in words), "sh"]


class Tunnel:
    """Carries the bytes of one local connection at a time through a pair of pipes, in blocks. Each begins with the
    connection's serial number and its own length; an empty one says that the connection was closed."""

    BLOCK = 1 << 16  # bytes in one, at most

    def __init__(self, source, sink, connect=None):
        self.source, self.sink, self.connect = source, sink, connect
        self.current = 0, socket.socket(socket.AF_UNIX)  # serial number and connection; none as yet

    def write(self, serial, data):
        """Write a block; blocks until the pipe has taken it. Any thread may: a buffered file has a lock."""
        self.sink.write(struct.pack(">II", serial, len(data)) + data)
        self.sink.flush()

    def drain(self, serial, connection):
        """Copy from a connection into the pipe, until either is closed."""
        with contextlib.suppress(OSError):
            for data in iter(lambda: connection.recv(self.BLOCK), b""):
                self.write(serial, data)
        with contextlib.suppress(OSError):
            self.write(serial, b"")

    def listen(self, path):
        """On the lower side: accept the connections of the broker there, in a thread."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)  # not in the thread: the directory may be gone before that begins
        server.listen()
        in_background(self.accept, server)

    def accept(self, server):
        """Serve one connection after the other, for ever."""
        for serial in itertools.count(1):
            self.current = serial, server.accept()[0]
            self.drain(*self.current)
            self.current[1].close()

    def pour(self):
        """Copy from the pipe into the current connection, until the pipe ends. On the upper side, a block with a new
        serial number opens a new connection. Raises HostError for what is no block."""
        while True:
            head = self.source.read(8)
            if len(head) < 8:
                return
            serial, size = struct.unpack(">II", head)
            if size > self.BLOCK or self.connect and serial > self.current[0] + 1:
                raise HostError(f"unexpected bytes from the remote command: {head!r} (something on that host prints "
                                "to its stdout)")
            data = self.source.read(size)
            current, connection = self.current  # both in one read: ``accept`` may replace the pair
            if serial > current and self.connect:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                current, connection = self.current = serial, self.connect()
                in_background(self.drain, *self.current)
            if serial == current:
                with contextlib.suppress(OSError):
                    if data:
                        connection.sendall(data)
                    else:
                        connection.shutdown(socket.SHUT_RDWR)


def run_agent(config, library=b""):
    """Live as the agent, the first process on another host and the parent of its keeper, as the root is at home.

    It ends when its keeper does, and the keeper when our stdin ends, unless there is none (--join). Never returns."""
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):  # a batch system's notice to all of a job's steps
        signal.signal(number, ignore)
    directory, memory = make_socket_directory(), make_memory_directory()
    config.update(directory=directory, memory=memory, address=f"ipc://{directory}/broker")
    if config["tunnel"]:
        tunnel = Tunnel(open(os.dup(0), "rb"), open(os.dup(1), "wb"))
        os.dup2(2, 1)  # what is printed goes to stderr, so that only blocks go to the old stdout
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    if library:
        unpack_pyzmq(library, directory)
    keeper = ForkedKeeper()
    if config["tunnel"]:
        tunnel.write(0, b"")  # tells the gateway that the program runs
        tunnel.listen(f"{directory}/up")  # before the keeper knows the directory: it may end at once, and remove it
    tell(keeper, json.dumps(config).encode() + b"\n")
    if config["tunnel"]:
        def pour():
            with keeper.stdin:  # whose end ends the keeper
                tunnel.pour()
        in_background(pour)
    try:
        keeper.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one comes at once if `timeout`, say, passes it on
        keeper.stdin.close()
        keeper.wait()
    remove(directory, memory)
    os._exit(1 if keeper.returncode else 0)


def pack_pyzmq():
    """This machine's pyzmq, as the bytes of a zip file."""
    import pathlib
    import zipfile
    root, buffer = pathlib.Path(zmq.__file__).parent.parent, io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
        for path in itertools.chain(root.glob("zmq/**/*"), root.glob("pyzmq.libs/**/*")):
            name = path.relative_to(root)
            if not {"__pycache__", "tests"}.intersection(name.parts):
                archive.write(path, name)
    return buffer.getvalue()


def unpack_pyzmq(library, directory):
    """Unpack the pyzmq that was sent into the directory, and let this process and its children import it."""
    import zipfile
    zipfile.ZipFile(io.BytesIO(library)).extractall(f"{directory}/library")
    sys.path.append(f"{directory}/library")


def own_addresses(config):
    """Host names and addresses by which other hosts may reach this one; they try which of these work."""
    if config["external_hostname"]:
        return [config["external_hostname"].strip("[]")]  # the brackets of an IPv6 address, as in a URL
    addresses = [os.uname().nodename]
    for name in ["192.0.2.1", *(name.rpartition("@")[2] for _, name, _ in config["hosts"][:8])]:  # up to 10 s each
        with contextlib.suppress(OSError, TypeError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((name, 9))  # sends nothing: only asks which address of ours leads there; TypeError: no name
            addresses.append(probe.getsockname()[0])
    return list(dict.fromkeys(address for address in addresses if not address.startswith("127.")))


def find_modules(config):
    """On another host: set the working directory, and return a sys.path on which --pythonpath comes first, then the
    root's own directories, which RootFinder serves. Raises PoolError."""
    path = config["path"] or config["cwd"]
    try:
        os.chdir(path)
    except OSError as error:
        if config["path"]:
            raise PoolError(f"cannot work in {path} (--path): {error.strerror}") from None
        os.chdir(config["directory"])
    sys.path_hooks.insert(0, functools.partial(RootFinder, config["own_path"]))  # the list: see learn_path
    sys.path_importer_cache.clear()
    return [*filter(None, (config["pythonpath"] or "").split(os.pathsep)), *config["own_path"], *sys.path]


class RootFinder(importlib.machinery.FileFinder):
    """Finds modules beside the program on the root's machine, in one directory of sys.path or of a package (PEP 302).

    The root's file takes precedence over one of the same name here, so that the same program runs everywhere."""

    def __init__(self, tops, entry):
        if installed(entry) or not any((entry + "/").startswith(top.rstrip("/") + "/") for top in tops):
            raise ImportError("not the root's business")
        super().__init__(entry, (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
                         (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES))

    @staticmethod
    @functools.lru_cache(None)
    def listing(path):
        """The modules (name.py) and directories (name/) in a directory on the root's machine."""
        return frozenset(json.loads(this_worker.fetch_file(path + "/") or "[]"))

    def find_spec(self, fullname, target=None):
        """See importlib.abc.PathEntryFinder."""
        here = super().find_spec(fullname, target)
        if this_worker is None:  # the keeper has nobody to ask
            return here
        beside, name = self.listing(self.path), fullname.rpartition(".")[2]
        path, directory = os.path.join(self.path, name), name + "/" in beside
        package = directory and "__init__.py" in self.listing(path)
        if package or name + ".py" in beside:
            file = path + "/__init__.py" if package else path + ".py"
            return importlib.util.spec_from_file_location(fullname, file, loader=RootLoader(fullname, file))
        if here is None and directory:  # a namespace package (PEP 420)
            here = importlib.machinery.ModuleSpec(fullname, None)
            here.submodule_search_locations = [path]
        return here


class RootLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from source that the root sends. Tracebacks get its lines from here, too."""

    get_data = staticmethod(read_source)  # the bytes of a file

    def path_stats(self, path):
        """Raise OSError, so that importlib neither reads nor writes cached bytecode."""
        raise OSError


def write_private(path, text):
    """Write a file that only its owner may read, atomically."""
    with tempfile.TemporaryDirectory(prefix=".minscoop-", dir=os.path.dirname(path)) as directory:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=directory, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)


def checksum(config):
    """CRC-32 of this file and a configuration, by which --join detects another version or a damaged file."""
    return zlib.crc32(json.dumps(config, sort_keys=True).encode(), zlib.crc32(read_source(__file__)))


def join(path, size):
    """Add this host's workers to the pool that a connection file describes. Never returns; raises PoolError."""
    for waited in range(int(JOIN_PATIENCE / 0.2)):
        if os.path.exists(path):
            break
        if waited == 10:
            logger.warning("waiting for %s, for %.0f s at most", path, JOIN_PATIENCE)
        time.sleep(0.2)
    else:
        raise PoolError(f"{path} has not appeared within {JOIN_PATIENCE:.0f} s: is the pool started with "
                        f"--listen {path}, on a file system that this host sees?")
    here = "%d.%d" % sys.version_info[:2]
    try:
        descriptor = os.open(path, os.O_RDONLY)
        status = os.fstat(descriptor)
        config = json.loads(read_text(descriptor))
        program, mixed, there = config.pop("program"), config["mixed"], "%d.%d" % tuple(config["main_python"])
    except Exception as error:
        raise PoolError(f"{path} is not a connection file of minscoop: {error!r}") from None
    if status.st_uid != os.getuid() and status.st_mode & 0o077:  # what --listen writes, its owner alone can read
        raise PoolError(f"{path} is another user's, whose tasks would run as you: join a pool of your own")
    if there != here and not mixed:
        raise PoolError(f"the pool of {path} runs Python {there}, this is {here}: use the same, or --mixed on the "
                        "root's side")
    if program != checksum(config):
        raise PoolError(f"{path} is damaged, or of another version of minscoop.py: use the same file on both sides")
    interruptible()
    run_agent(dict(config, host="j" + os.urandom(4).hex(), name=os.uname().nodename, tunnel=None,
                   transport="tcp", size=size))


# ---------------------------------------------------------------------------------------------------
# 13  Lists of hosts

MAX_HOSTS = 100_000  # in one list: a mistyped bracket form may stand for more than memory can hold
MAX_TEXT = 1 << 26   # characters of a file of hosts: a wrong path may lead to one without an end, such as /dev/zero
MAX_WORKERS = 2000   # of one host in a list; a larger number must be a port, and is refused
MARKS = r"""\s,:@\[\]={}();*"'\x00-\x1f\x7f\ud800-\udfff"""  # in no name; surrogates: bytes that are not UTF-8
WORD = rf"(?![0-9]+/)[^{MARKS}-][^{MARKS}]*"  # no option (-x), nor 8/name, GNU parallel's way to say 8 workers
NAME = rf"(?!.{{300}})(?:{WORD}@)?(?:{WORD}|%s)"  # of less than 300 characters; %s: how an IPv6 address is written
IPV6 = r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?:%[\w.-]+)?"
HOST = "(" + NAME % rf"\[{IPV6}\]" + r")(?:(?::|\s+(?:slots=|workers=)?)([0-9]{1,9}))?(?:\s+max[-_]slots=[0-9]+)?"
ITEM = r"(?:\[[^\[\]]*\]|[^,%s])+"  # of a list: up to a comma outside brackets, or another separator (%s)
HOW_TO_SAY = "write name, user@name, name:4 (or 'name 4', 'name slots=4' on a line) for 4 workers, [::1]:4 or " \
             "node[01-16]:8; a port belongs in ~/.ssh/config, or -e 'ssh -p 2222'"


def expand(text):
    """The names for which a bracket form stands, as Slurm writes it: n[1,5-9], a[1-2]b[03-04]. Raises ValueError."""
    forms = [""]
    for i, piece in enumerate(re.split(r"\[([^\[\]:]*)\]", text)):  # every second one was in brackets
        choices = list(itertools.islice(numbers_of(piece, text), MAX_HOSTS + 1)) if i % 2 else [piece]
        if len(forms) * len(choices) > MAX_HOSTS:
            raise ValueError(f"{text[:80]!r} names more than {MAX_HOSTS} hosts")
        forms = [form + choice for form in forms for choice in choices]
    return forms


def numbers_of(bracket, text):
    """Yield the numbers in a bracket such as 1,05-09, as strings with their zeros. text: the whole form, for errors."""
    for part in bracket.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", part)
        lo, hi = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if lo > hi:
            raise ValueError(f"{part!r} in {text[:80]!r} is not a number or a range such as 01-16")
        for number in range(lo, hi + 1):
            yield f"{number:0{len(match[1])}}"


def parse_item(item):
    """Yield (name, workers or None) of each host in an item: name, name:4, user@name:4, node[01-16]:8, [IPv6]:4 or
    name 4, or several of these separated by commas. Raises ValueError."""
    for text in filter(None, map_builtin(str.strip, re.findall(ITEM % "", item))):
        for form in expand(text):
            match = re.fullmatch(HOST, form)
            if match is None or int(match[2] or 0) > MAX_WORKERS:
                raise ValueError(f"{text[:60]!r} is not a host: {HOW_TO_SAY}")
            yield re.sub(r"[\[\]]", "", match[1]), match[2] and int(match[2])


def parse_items(items, path=None):
    """Yield the hosts of items that are strings, and other items as they are. path: the file whose lines they are."""
    for number, item in enumerate(items, 1):
        try:
            yield from parse_item(item) if isinstance(item, str) else [item]
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}" if path else str(error)) from None


def read_text(path):
    """Read a file whose path may be wrong. Raises OSError; ValueError from MAX_TEXT characters on."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        text = file.read(MAX_TEXT)
    if len(text) == MAX_TEXT:
        raise ValueError(f"it has {MAX_TEXT} characters or more")
    return text


def read_lines(path):
    """The lines of a file that lists hosts, without comments. Raises what ``read_text`` does."""
    return [line.partition("#")[0] for line in read_text(path).splitlines()]


def add_up(pairs):
    """Merge the entries of each host, in the order in which hosts first occur, and add up their workers: an entry
    without a number counts as one, unless it is the only one. Raises ValueError for what cannot be a host."""
    numbers = {}
    for entry, pair in enumerate(pairs):
        name, workers = pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else (pair, None)
        if not (isinstance(name, str) and re.fullmatch(NAME % IPV6, name)) \
                or not (workers is None or hasattr(workers, "__index__") and workers >= 0):
            raise ValueError(f"{pair!r} is not a host: expected a name, or a pair of a name and a number of workers")
        workers = None if workers is None else operator.index(workers)  # NumPy's numbers too
        if name in numbers:
            workers = sum(1 if number is None else number for number in (numbers[name], workers))
        numbers[name] = workers
        if len(numbers) > MAX_HOSTS or entry > 10 * MAX_HOSTS:
            raise ValueError(f"more than {MAX_HOSTS} hosts, or {10 * MAX_HOSTS} entries")
    return list(numbers.items())


def parse_hosts(source):
    """[(name, workers)] from the path of a file, a list in a string, a mapping, or a sequence of items or pairs.

    workers: None for one per core. The workers of a name that occurs repeatedly add up, one each time if no
    number is given. Raises ValueError, with the line number if it is a file."""
    path, items = None, source
    if isinstance(source, os.PathLike) or isinstance(source, str) and (
            os.path.isfile(source) or "/" in source or source.endswith(".txt")):
        try:
            path = os.fspath(source)
            items = read_lines(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the hosts file {path!r}: {first_line(error, path)}") from None
    elif isinstance(source, str):
        items = re.findall(ITEM % r"\s" + r"(?:\s+[0-9]+(?![^,\s]))?", source)
    elif isinstance(source, collections.abc.Mapping):
        items = source.items()
    elif not isinstance(source, collections.abc.Iterable):
        raise ValueError(f"{source!r} is no list of hosts: {HOW_TO_SAY}")
    found = add_up(parse_items(items, path))
    if not found:
        raise ValueError(f"no hosts in {path or source!r}: {HOW_TO_SAY}")
    return found


def deal(hosts, total):
    """Distribute `total` workers over hosts as SCOOP does: fill the hosts in order, then deal the rest round robin.
    A host without a number has room for one worker; one with 0 gets none. Hosts without workers are left out."""
    rooms = {name: 1 if workers is None else min(workers, total) for name, workers in hosts if workers != 0}
    places = itertools.chain(*map_builtin(itertools.repeat, rooms, rooms.values()), itertools.cycle(rooms))
    return list(collections.Counter(itertools.islice(places, total)).items())


def is_local(name):
    """Whether a name means this machine. Asks no name server."""
    node, env = os.uname().nodename, os.environ
    of_sge = env.get("PE_HOSTFILE") and env.get("HOSTNAME")  # in SGE, fully qualified where `node` may be short
    return name in ("localhost", "127.0.0.1", "::1", node, node.partition(".")[0], env.get("SLURMD_NODENAME"), of_sge)


# Readers for batch systems. Each gets the environment, and the value of the variable beside it in BATCH_SYSTEMS.

def slurm_hosts(env, nodes):
    """Each node with as many workers as it has tasks or, if no node has more than one task, CPUs."""
    in_shell = env.get("SLURM_PTY_PORT") and env.get("SLURM_PROCID") == "0"  # srun -n4 --pty bash: the others ended
    if int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and not in_shell:
        raise ValueError(f"srun started this program {env['SLURM_STEP_NUM_TASKS']} times; start it once, without srun "
                         "(or unset SLURM_STEP_NUM_TASKS, which a job has from the step that submitted it)")
    if env.get("SLURM_HET_SIZE", "1") != "1":  # srun reaches those of one component at a time
        logger.warning("this job has several components, and only the nodes of the first take part: others can join, "
                       "with --listen FILE here, and srun --het-group=1 python minscoop.py --join FILE there")
    names = dict(add_up(parse_item(nodes)))
    if len(names) > 1 and not (env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID")):
        raise ValueError("SLURM_JOB_ID is not set, without which srun does not reach them, but asks for a further job")
    tasks, cpus = (slurm_counts(env.get(variable) or f"1(x{len(names)})")
                   for variable in ("SLURM_TASKS_PER_NODE", "SLURM_JOB_CPUS_PER_NODE"))
    if not len(tasks) == len(cpus) == len(names):
        raise ValueError(f"{counted(len(names), 'node')}, but counts of tasks for {len(tasks)} and of CPUs for "
                         f"{len(cpus)}: if srun started this program, start it without srun")
    return zip(names, tasks if max(tasks, default=1) > 1 else cpus)


def slurm_counts(text):
    """The numbers of a list of counts: 2(x3),1 is 2, 2, 2, 1."""
    numbers = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", item.strip())
        if match is None or len(numbers) + int(match[2] or 1) > MAX_HOSTS:
            raise ValueError(f"{item!r} in {text!r} is not a count such as 2 or 2(x3)")
        numbers += [int(match[1])] * int(match[2] or 1)
    return numbers


def hosts_of_lines(env, path):
    """Read a file with a line per worker, as PBS, Torque and OAR write it."""
    lines = collections.Counter(" ".join(read_lines(path)).split())
    if {*lines.values()} == {1} and env.get("NCPUS", "").isdecimal():  # PBS: select=2:ncpus=8 has one line per chunk
        lines = dict.fromkeys(lines, int(env["NCPUS"]))
    return lines.items()


SRUN = ("env -u SRUN_CPUS_PER_TASK -u SLURM_LABELIO -u SLURM_EXCLUSIVE "  # would narrow the step, or label its bytes
        "srun --nodes=1 --ntasks=1 --nodelist={host} "
        "--overlap --mem=0 --cpu-bind=none "        # share CPUs and memory of the job with all its other steps
        "--unbuffered --input=all --output=all "    # bytes at once and unchanged, whatever SLURM_STD... say
        "--mpi=none --export=ALL --chdir=/")        # no MPI that waits for its ranks; our environment

BATCH_SYSTEMS = [  # name, a variable that is set in its jobs, a reader of that, the remote command
    ("Slurm", "SLURM_JOB_NODELIST", slurm_hosts, SRUN),
    ("Slurm", "SLURM_JOB_NODELIST_HET_GROUP_0", lambda env, nodes: slurm_hosts(  # salloc: a heterogeneous job has but
        {name.replace("_HET_GROUP_0", ""): env[name] for name in env}, nodes), SRUN),  # these; sbatch sets both
    ("PBS", "PBS_NODEFILE", hosts_of_lines, "ssh"),
    ("SGE", "PE_HOSTFILE", lambda env, path: parse_items(
        " ".join(line.split()[:2]) for line in read_lines(path)), "ssh"),
    ("SGE", "NSLOTS", lambda env, slots: parse_item(f"localhost {slots}"), "ssh"),  # no parallel environment
    ("LSF", "LSB_MCPU_HOSTS", lambda env, words: parse_hosts(words), "ssh"),  # a 4 b 2
    ("OAR", "OAR_NODEFILE", hosts_of_lines, "ssh"),
]


def allocation(env=None):
    """What a batch job was given, as arguments of an Executor: {"hosts": ..., "rsh": ...}; {} outside of a job.

    Reads the variables and files of Slurm, PBS, Torque, SGE, LSF and OAR; runs no program. Raises ValueError
    if they make no sense.

    >>> with Executor(**allocation()) as executor:
    ...     executor.submit(abs, -1).result()
    1
    """
    env = os.environ if env is None else env  # no default value: help() would print it, secrets and all
    for system, variable, read, rsh in BATCH_SYSTEMS:
        if env.get(variable):
            try:
                here = os.uname().nodename  # may be short where the list has node1.lab.org, or the other way round
                found = add_up((here if host.partition(".")[0] == here.partition(".")[0] else host, count)
                               for host, count in read(env, env[variable]))
                if not found or None in dict(found).values():
                    raise ValueError("it names no host, or one without a number of workers")
            except (OSError, ValueError) as error:
                raise ValueError(f"cannot read the hosts of this {system} job from {variable}={env[variable]!r}: "
                                 f"{error}; name them with --hosts") from None
            logger.info("%s job, by %s: %s", system, variable, ", ".join(f"{host}:{count}" for host, count in found))
            return {"hosts": found, "rsh": rsh}
    return {}


# ---------------------------------------------------------------------------------------------------
# 14  Executor


class Inline(Node):
    """Runs everything in this process and in the thread that asks: ``-n 0``, and calls without a pool.

    Calls run when they are submitted, maps when they are read; what is unread is run at the end."""

    closing = True  # nothing is under way that the end could interrupt

    def __init__(self, options=None):
        super().__init__(ROOT, 0, 0)
        self.options, self.depth = options, threading.local()

    @property
    def inside(self):
        """Whether the calling thread is running a task: a map made there is the task's, not the script's."""
        return getattr(self.depth, "tasks", 0) > 0

    def push(self, unit):
        """Run a call at once; queue a map."""
        if isinstance(unit, Span):
            super().push(unit)
        else:
            unit._state = RUNNING
            self.run(unit)

    def run(self, unit):
        """Run a call or a slice on top of this thread's stack; where that has grown deep, in a fresh thread."""
        depth = getattr(self.depth, "tasks", 0)
        if depth >= MAX_INLINE:
            thread = threading.Thread(target=self.run, args=(unit,))
            self.waiting += 1
            try:
                thread.start()
                thread.join()
            finally:
                self.waiting -= 1
            return
        self.depth.tasks = depth + 1
        try:
            self.execute(unit)
        finally:
            self.depth.tasks = depth

    def execute(self, unit):
        """Run user code; see ``Worker.execute``."""
        run_apart(unit)

    def sleep(self, ready, what, timeout):
        """Run a slice of the map that is waited for; if there is none to run, wait for other threads."""
        with self.lock:
            piece = what.claim() if isinstance(what, Job) else None
        if piece is None:
            super().sleep(ready, what, timeout)
        else:
            self.run(piece)
            piece.deliver()

    def send(self, name, *fields):
        """There is nobody to send to; a constant comes straight back."""
        if name == b"CONST":
            self.on_CONST(*fields)

    def finish(self):
        """Run the maps that nobody has begun to read."""
        try:
            while self.feed(beyond=True) or self.queue:
                span = self.queue.popleft()
                self.wait_for(lambda: span.stale or span.job.begun, span.job)
        finally:
            self.abort()

    def abort(self):
        """Nothing is under way, ever."""


INSTEAD = {  # what other pools and their futures have -> what to use here
    "starmap": "map(lambda row: f(*row), rows)", "imap": "map", "imap_unordered": "map_as_completed",
    "map_async": "map, which starts at once and may be read later", "apply": "submit(f, *args).result()",
    "apply_async": "submit", "close": "shutdown()", "join": "shutdown()", "terminate": "terminate_workers()",
    "gather": "[future.result() for future in futures]", "scatter": "set_const", "get": "result()", "ready": "done()"}


def refuse_attribute(owner, name):
    """Raise AttributeError for a name that `owner` does not have; if it is another pool's, with what to use here."""
    hint = f": use {INSTEAD[name]}" if name in INSTEAD else ""
    raise AttributeError(f"{owner} has no attribute {name!r}{hint}")


class Interface(concurrent.futures.Executor):
    """The methods that ``Executor`` shares with ``Here``, whose methods are the module's functions (section 15).
    Both define ``_pool``, which returns the node that does the work, or raises RuntimeError after shutdown."""

    def __getattr__(self, name):
        refuse_attribute("'Executor' object", name)

    def submit(self, fn, /, *args, **kwargs):  # a SyntaxError here: this Python is older than 3.8, which is needed
        """Schedule the call fn(*args, **kwargs) in the pool and return its Future.

        Does not block (without worker processes, it runs the call at once); any thread may call it. A task submitted
        by a task stays queued on its worker until another worker is idle; if awaited before then, it runs on the
        spot, at a cost of a few microseconds. A call that cannot be sent fails its future with CannotSend. Raises
        TypeError if fn is not callable, PoolError if the pool is broken. After shutdown an executor raises
        RuntimeError; the module's function runs the call at once, with a warning, as it does before there is a pool.

        >>> submit(pow, 2, 10).result()
        1024
        """
        if not callable(fn):
            raise TypeError(f"submit needs a callable as its first argument, not {fn!r}")
        return self._pool().submit(fn, args, kwargs)

    def map(self, fn, *iterables, timeout=None, chunksize=None, buffersize=None, progress=None, **kwargs):
        """Return an iterator over fn(*row, **kwargs) for each row of zip(*iterables), in the order of the rows.

        The work starts now (without worker processes: when it is read), and is done even if nobody reads it; a warning
        at the end then tells how many calls have failed. Iterables may be endless: those without a length are pulled a
        little ahead of the reader. Once reading has begun, closing or dropping the iterator, or an exception from it,
        cancels the calls not yet started: it ends an endless map.

        timeout: seconds from this call after which reading raises TimeoutError; None for no limit.
        chunksize: accepted but ignored, since slices are sized by measurement.
        buffersize: number of inputs to pull ahead of the reader at most, even from iterables that have a length, and
            if nobody reads.
        progress: True or a label shows on stderr how far the map is; False does not, even under the launcher; None
            does if the launcher shows progress. Not passed on to fn; ignored in tasks.
        Raises TypeError or ValueError for bad arguments, and as ``submit``; reading raises what a call raised.

        >>> list(map(pow, [2, 3], [5, 2]))
        [32, 9]
        """
        for name, value in ("chunksize", chunksize), ("buffersize", buffersize):
            if value is not None and not hasattr(value, "__index__"):
                raise TypeError(f"{name} must be an integer or None, not {value!r}")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, not {value}")
        return self._pool().map(fn, iterables, kwargs, timeout, buffersize, progress)

    def map_as_completed(self, fn, *iterables, timeout=None, progress=None, **kwargs):
        """Like ``map``, but yield the results in the order in which they arrive.

        >>> sorted(map_as_completed(abs, [-1, 2, -3]))
        [1, 2, 3]
        """
        return self._pool().map(fn, iterables, kwargs, timeout, progress=progress, ordered=False)

    def map_reduce(self, map_fn, reduce_fn, *iterables, **kwargs):
        """Return the reduction by reduce_fn of map_fn(*row, **kwargs) over the rows of zip(*iterables). Blocks.

        reduce_fn must be associative, but need not be commutative: workers reduce adjacent results, the caller the
        rest. The iterables have to end. Raises what a call raised, or TypeError if there are no rows.

        >>> map_reduce(len, operator.add, ["to", "be", "or"])
        6
        """
        return functools.reduce(reduce_fn, self._pool().map(map_fn, iterables, kwargs, op=reduce_fn))

    def map_scan(self, map_fn, reduce_fn, *iterables, **kwargs):
        """Return an iterator over the running reductions of map_fn(*row, **kwargs), as itertools.accumulate does.

        map_fn runs in the pool; reduce_fn runs in the thread that reads, which blocks until the next result is in.

        >>> list(map_scan(len, operator.add, ["to", "be", "or"]))
        [2, 4, 6]
        """
        return itertools.accumulate(self._pool().map(map_fn, iterables, kwargs), reduce_fn)

    def set_const(self, **constants):
        """Share constants with the whole pool; each name can be set only once. Blocks until the broker has them.

        Values may be anything that can be sent, including functions and lambdas; what a task changes in one, only its
        worker sees. Raises TypeError if a name is already set, CannotSend if a value cannot be pickled.

        >>> with Executor(2) as executor:
        ...     executor.set_const(rate=1.25, rounded=lambda value: round(value, 1))
        ...     executor.get_const("rate")
        1.25
        """
        self._pool().set_const(constants)

    def get_const(self, name, timeout=0.1):
        """Return a shared constant, waiting until somebody sets it; None if nobody does within `timeout` seconds (None:
        for ever).

        >>> get_const("discount", timeout=0) is None
        True
        """
        return self._pool().get_const(name, timeout)


class Executor(Interface):
    """A pool of worker processes on this and other machines, as a PEP 3148 executor and context manager.

    max_workers: number of worker processes in all; None for one per usable core, or as the hosts say; 0 to
        run everything inline in the calling thread (for debuggers).
    retries: a call fails with WorkerLost when this many workers have died running it; with 0, so does every call
        that may have begun in a worker that died.
    nice: niceness added to that of the workers (see nice(1)).
    initializer, initargs: initializer(*initargs) runs in every worker before its first task, including workers that
        replace dead ones. If it raises there, the pool is broken and everything fails with PoolError.
    max_tasks_per_child: after so many calls, a worker process is replaced by a fresh one: for libraries that leak
        memory. None: never. As ``ProcessPoolExecutor`` has it since Python 3.11.
    profile: True prints to stderr, at the end, a table of the functions in which the workers spent their time; the
        name of a directory does so too, and writes a file for ``pstats`` there for every worker.
    hosts: where to run the workers: the name of a file, a list such as "a,b:4,user@c,node[01-16]:8,localhost", a
        sequence of such items or of (name, workers) pairs, or a mapping {name: workers}. None for this machine
        only. See also ``allocation``.
    listen: a file to write (mode 0600); further hosts join the pool with `python minscoop.py --join FILE`.
    summary: at the end, print to stderr what each host did and what limited the program.
    report: a file to write at the end: a page (HTML) that shows what each worker ran when.
    trace: the same in Chrome's trace event format (JSON), for Perfetto or chrome://tracing.
    **options: named as on the command line, with its defaults: rsh, python, prolog, pythonpath, path, transport,
        external_hostname, mixed, all_hosts, tag_output.

    A worker's environment has OMP_NUM_THREADS, NUMBA_NUM_THREADS and POLARS_MAX_THREADS, if they were not set: its
    share of its host's cores, so that the threads of libraries in different workers do not compete.

    Starts at once and does not wait for the workers. Raises TypeError or ValueError for bad arguments, CannotSend
    if the initializer cannot be sent, PoolError if the pool cannot start. While it lives, the module's functions use
    it (of several, the one made last). Its methods may be called from any thread; tasks use the module's functions.

    Leaving the ``with`` block waits for all that was submitted. If an exception ends it, nothing more is started and
    all unfinished futures are cancelled, even of running calls; KeyboardInterrupt also ends the workers at once.

    >>> with Executor(2) as executor:
    ...     list(executor.map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """

    _ender = None    # the thread that ends it; from then on nothing can be submitted
    _max_workers = property(lambda self: max(1, self._node.size))  # by this name dask asks for it
    _unnoticed = False  # the pool broke, and the program has not asked for a result since

    def __init__(self, max_workers=None, *, retries=3, nice=0, initializer=None, initargs=(),
                 max_tasks_per_child=None, profile=None, hosts=None, listen=None, summary=False, report=None,
                 trace=None, **options):
        max_workers = None if max_workers is None else whole("max_workers", max_workers)
        if max_tasks_per_child is not None:
            max_tasks_per_child = whole("max_tasks_per_child", max_tasks_per_child, 1)
        retries, nice = whole("retries", retries), whole("nice", nice, -100, 100)
        refuse_in_import()
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {initializer!r}")
        self._ending, self._ended = threading.RLock(), threading.Event()  # the former is for the thread that shuts down
        options = plan(max_workers, hosts, listen, options, options.pop("_check", False))  # of check_hosts
        wishes = {"summary": summary, "report": report and writable(report), "trace": trace and writable(trace),
                  "record": 2 if report or trace else int(summary)}
        if report and wishes["report"] == wishes["trace"]:
            raise ValueError(f"report and trace must be two different files, not both {report}")
        vain = dict(max_tasks_per_child=max_tasks_per_child, profile=profile, hosts=hosts, listen=listen)
        if max_workers == 0 and any(vain.values()):
            logger.warning("no effect with max_workers=0, which runs everything in this process: %s",
                           ", ".join(name for name, value in vain.items() if value))
        if profile and profile is not True:
            profile = os.path.abspath(profile)
            os.makedirs(profile, exist_ok=True)
        self._main = Main.of_this_process()
        self._main.keep_source()
        self._main.by_name_only = options["mixed"] or any(other._main.by_name_only for other in executors)
        if this_worker is None:
            self._main.adopt()
        if max_workers == 0:
            if initializer:
                initializer(*initargs)
            self._node = (RecordingInline if wishes["record"] else Inline)(wishes)
        else:
            self._node = (RecordingRoot if wishes["record"] else Root)(dict(
                options, **wishes, retries=retries, nice=nice, main=(main.path, main.name), profile=profile,
                max_tasks_per_child=max_tasks_per_child,
                initializer=initializer and packed(initializer, tuple(initargs)),
                listen=listen and writable(listen, beside=True)))
        executors.append(self)

    def _pool(self):
        if self._ender:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._node.forked:
            raise RuntimeError("this Executor belongs to the parent process: make another one here")
        return self._node

    def __reduce__(self):
        raise TypeError("an Executor cannot be sent to another process: in tasks, use minscoop.map and minscoop.submit")

    def shutdown(self, wait=True, *, cancel_futures=False):
        """End the pool once all that was submitted is done. May be called more than once.

        wait: block until then; if false, a thread waits in the background. cancel_futures: cancel the calls that have
        not been sent to a worker, and what has not started of maps; calls already sent are run to their end."""
        if self._node.forked:
            return
        if cancel_futures:
            self._node.drop()
        # It was called before, maybe by another thread; not if Ctrl-C came before the end began
        if not self._ending.acquire(blocking=False) or self._ender:
            if wait and not (threading.current_thread() is self._ender or self._node.serving._is_owned()):
                self._ended.wait()  # not in a callback, which would wait for the thread that waits for it
        elif wait:
            self._finish()
        else:
            ender = threading.Thread(target=self._finish, name="minscoop shutdown")
            try:
                ender.start()
                self._ender = ender
            except RuntimeError:  # no more threads, as at the interpreter's end in Python 3.12
                self._finish()

    def terminate_workers(self):
        """End the pool at once, tasks that are running too. What is not done fails with PoolError; nothing can be
        submitted any more. Blocks for up to GRACE seconds. As ``ProcessPoolExecutor`` has it since Python 3.14."""
        self._finish("abort")

    kill_workers = terminate_workers

    def _finish(self, end="finish"):
        if self._ended.is_set() or self._node.forked:
            return
        self._ender = threading.current_thread()
        try:
            getattr(self._node, end)()
            if end == "finish" and not self._node.ended_by:
                self._node.tell_failures()
        finally:
            with contextlib.suppress(ValueError):
                executors.remove(self)
            if executors and this_worker is None:
                executors[-1]._main.adopt()  # ours may have been a script that another program ran as `__main__`
            error = self._node.ended_by
            self._unnoticed = error is not None and not (error.told or error.__traceback__)
            if self._unnoticed:
                logger.error("%s", error)
            self._ended.set()

    def __exit__(self, kind, error, tb):
        try:
            if isinstance(error, (KeyboardInterrupt, Terminated)):
                self._finish("abort")
            elif error is not None and not (isinstance(error, SystemExit) and not error.code):
                self._node.drop(shipped=True)
            self.shutdown()
        except (KeyboardInterrupt, Terminated):  # it may have come before the end began
            self._finish("abort")
            raise


def whole(name, number, least=0, most=math.inf):
    """An argument, which may be an integer of NumPy's, as an int. Raises ValueError if it is none, or out of bounds."""
    if isinstance(number, bool) or not hasattr(number, "__index__") or not least <= operator.index(number) <= most:
        bounds = f">= {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {bounds}, not {number!r}")
    return operator.index(number)


def packed(initializer, initargs):
    """An initializer and its arguments, as text for the workers. Raises CannotSend."""
    try:
        return dumps((initializer, *initargs), whole=True)[0].decode("latin-1")
    except FAULTS as error:
        raise CannotSend(reason_of(error, (initializer, "the initializer"), (initargs, "initargs"))) from error


def writable(path, beside=False):
    """The absolute path, links resolved, of a file to be written later; beside: by moving a new file into its place.
    Raises ValueError if it cannot be written, or is nothing to overwrite: a device such as /dev/null, or a program."""
    link, path = path, os.path.realpath(path)
    try:
        if os.path.islink(link) and os.lstat(link).st_uid not in (0, os.getuid()):  # in /tmp anybody may put one
            raise OSError(errno.EACCES, "another user's link, which may lead anywhere")
        if os.path.exists(path) and (path.endswith(".py") or not os.path.isfile(path)):
            raise OSError(errno.EINVAL, "a Python program, which will not be overwritten" if os.path.isfile(path)
                          else "not a regular file")
        with tempfile.TemporaryFile(dir=os.path.dirname(path)) if beside else open(path, "ab"):
            return path
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None


OPTIONS = {"rsh": "ssh", "python": None, "prolog": None, "pythonpath": os.environ.get("PYTHONPATH", ""), "path": None,
           "transport": "auto", "external_hostname": None, "mixed": False, "all_hosts": False, "tag_output": False}
ARGUMENTS = ["max_workers", *Executor.__init__.__kwdefaults__, *OPTIONS]


def did_you_mean(word, words):
    """A hint for an error text, if an unknown word resembles one of the known `words`; else an empty string."""
    import difflib
    return "".join(f" (did you mean {close}?)" for close in difflib.get_close_matches(word, words, 1))


def plan(size, hosts, listen, options, check):
    """Check an Executor's arguments; return the configuration of its pool, which the keepers of all hosts get."""
    for name in options.keys() - OPTIONS.keys():
        raise TypeError(f"Executor has no option {name}{did_you_mean(name, ARGUMENTS)}; it has {', '.join(ARGUMENTS)}")
    options = {**OPTIONS, **options}
    for name, value in options.items():
        if isinstance(value, os.PathLike):
            options[name] = os.fspath(value)
        elif not isinstance(OPTIONS[name], bool) and not isinstance(value, (str, type(None))):
            raise TypeError(f"{name} must be a string, not {value!r}")
    if options["transport"] not in ("auto", "tcp", "stdio"):
        raise ValueError(f"transport must be 'auto', 'tcp' or 'stdio', not {options['transport']!r}")
    remote_command(options["rsh"], "host")
    pairs = [("localhost", None)] if hosts is None else parse_hosts(hosts)
    if size:
        pairs = deal(pairs, size)
    if not (listen or check or any(workers != 0 for _, workers in pairs)):
        raise ValueError("no workers: every host in the list has 0")
    here = [usable_cores() if workers is None else workers for name, workers in pairs if is_local(name)]
    others = [(name, workers) for name, workers in pairs if not is_local(name)]
    return dict(
        options, host="0", name=os.uname().nodename, check=check, size=0 if check else sum(here),
        total=sum(here) + sum(1 if workers is None else workers for _, workers in others),
        hosts=[(str(number), name, workers) for number, (name, workers) in enumerate(others, 1)],
        listens=bool(listen or others and options["transport"] != "stdio"), addresses=[], keys=None, below=False,
        piped=options["tag_output"] or bool(progress.wanted) and on_terminal(),  # so that prints make room for the line
        tunnel=True, sys_path=sys.path, own_path=own_path(), cwd=os.getcwd(), argv=sys.argv,
        log_level=logger.getEffectiveLevel(), main_python=sys.version_info[:2], source=os.path.abspath(__file__),
        aliases=[name for name, module in list(sys.modules.items()) if module is sys.modules["minscoop"]])


executors = []       # the live Executors of this process; the module's functions use the last one
this_worker = None   # in a worker process, its Worker


@atexit.register
def shut_down_all():
    """At the interpreter's end: wait for what was submitted, as ProcessPoolExecutor does."""
    for executor in list(executors):
        executor.shutdown()
    if here.inline:
        here.inline.finish()


def forget_pools():
    """In a child that the program or a task has forked: disown the parent's pools, and show no progress."""
    global this_worker, birth
    birth, Main.lock = threading.RLock(), threading.RLock()  # other threads may have held the old ones at the fork
    for executor in executors:
        executor._node.disown()
    if this_worker is not None:
        this_worker.disown()
    executors.clear()
    vars(here).clear()
    this_worker = None
    progress.__init__(False)


os.register_at_fork(after_in_child=forget_pools)


def refuse_in_import():
    """Raise RuntimeError while a worker imports the script: then the call is not under a ``__name__`` guard."""
    if main.importing:
        raise RuntimeError(
            "minscoop was called while a worker imported the script. Workers import it to find its functions; "
            "put the code that starts the program under  if __name__ == \"__main__\":  so that only the root runs it")


# ---------------------------------------------------------------------------------------------------
# 15  Module functions


class Here(Interface):
    """The module's functions: in a task they use its worker's pool, else that of the Executor made last, else none."""

    inline = None  # the Inline that runs calls made without a pool; the first such call makes it, with a warning

    def _pool(self):
        refuse_in_import()
        if this_worker is not None:
            return this_worker
        if executors:
            return executors[-1]._pool()
        if self.inline is None:
            vars(self).setdefault("inline", Inline())  # check and set in one, as several threads may be here
            warnings.warn("minscoop runs everything serially: there is no pool. Run 'python minscoop.py script.py', "
                          "or use 'with minscoop.Executor():'", RuntimeWarning, stacklevel=3)
        return self.inline

    def shutdown(self, wait=True, **kwargs):
        """End the pool that the module's functions use, as ``Executor.shutdown``. Raises RuntimeError in a task."""
        if this_worker is not None or executors and executors[-1]._node.inside:
            raise RuntimeError("a task cannot shut the pool down")
        if executors:
            executors[-1].shutdown(wait, **kwargs)

    def __reduce__(self):
        return "here"


here = Here()
submit, map, map_as_completed = here.submit, here.map, here.map_as_completed
map_reduce, map_scan, shutdown = here.map_reduce, here.map_scan, here.shutdown
set_const, get_const = here.set_const, here.get_const


def wait(fs, timeout=None, return_when=ALL_COMPLETED):
    """Wait for futures and return (done, not_done), like ``concurrent.futures.wait``.

    timeout: seconds; None, or -1 as in SCOOP, for no limit. return_when: ALL_COMPLETED, FIRST_COMPLETED
    or FIRST_EXCEPTION. Blocks; any thread may call it. In a task, other tasks run meanwhile.

    >>> done, not_done = wait([submit(abs, -1), submit(abs, 2)])
    >>> len(done), len(not_done)
    (2, 0)
    """
    return concurrent.futures.wait(all_futures(fs, "wait"), None if timeout == -1 else timeout, return_when)


def as_completed(fs, timeout=None):
    """Return an iterator over futures as they complete, like ``concurrent.futures.as_completed``. Reading it blocks.

    >>> sorted(future.result() for future in as_completed([submit(abs, -1), submit(abs, 2)]))
    [1, 2]
    """
    return concurrent.futures.as_completed(all_futures(fs, "as_completed"), timeout)


def all_futures(fs, name):
    """These futures, as a list. Raises TypeError for anything else, such as the results of a map, which in dask are
    futures: the standard library would complain about an attribute that these lack."""
    fs = list(fs)
    for thing in fs:
        if not isinstance(thing, concurrent.futures.Future) and not hasattr(thing, "_condition"):
            raise TypeError(f"{name} takes futures, as submit returns them, not {short(thing)}: a map gives "
                            "results themselves, map_as_completed as they arrive")
    return fs


# ---------------------------------------------------------------------------------------------------
# 16  SCOOP's names
#
# `from minscoop import futures, shared` always works; the same from `scoop`, in programs that the launcher runs.

mapReduce, setConst, getConst = map_reduce, set_const, get_const
SCOOP_NAMES = ("scoop", "scoop.futures", "scoop.shared", "minscoop.futures", "minscoop.shared")


def mapScan(map_fn, reduce_fn, *iterables, **kwargs):
    """SCOOP's spelling of ``map_scan``; returns a list."""
    return list(map_scan(map_fn, reduce_fn, *iterables, **kwargs))


def __dir__():
    """The public names: what a prompt completes."""
    return __all__ + ("__version__ logger futures shared mapReduce mapScan setConst getConst IS_RUNNING IS_ORIGIN SIZE "
                      "DEBUG BROKER worker").split()


def __getattr__(name):
    """SCOOP's module attributes whose values depend on the process and the moment in which they are read."""
    pool, this = this_worker or (executors[-1]._node if executors else None), sys.modules[__name__]
    values = {"IS_RUNNING": pool is not None, "IS_ORIGIN": this_worker is None, "SIZE": pool.size if pool else 0,
              "DEBUG": logger.isEnabledFor(logging.DEBUG), "BROKER": getattr(pool, "address", None),
              "worker": pool.name.decode() if pool else None, "futures": this, "shared": this}
    if name not in values:
        refuse_attribute("module 'minscoop'", name)
    return values[name]


def install_names(names):
    """Make these module names, such as ``scoop.futures``, aliases of this module."""
    this = sys.modules["minscoop"]
    this.__path__ = []  # makes `import minscoop.futures` look into sys.modules
    sys.modules.update(dict.fromkeys(names, this))


# ---------------------------------------------------------------------------------------------------
# 17  During a run
#
# What the user sees and does meanwhile. The progress line stands on the terminal's last line until somebody prints:
# then it is wiped, and drawn again below. To notice that, all that the program prints goes through ``Screen``; under
# the launcher, what workers print goes through pipes and the root. Nothing is drawn while anybody else's line is
# unfinished. What other processes log goes through the root's handlers.


class Progress:
    """The progress line of this process, drawn by a thread.

    wanted: True, show all that the program does; None, only the maps that ask for it; False, nothing."""

    def __init__(self, wanted=None):
        self.wanted, self.lock, self.thread = wanted, threading.RLock(), None
        self.tallies = {}              # label -> [known items of its maps, items done, maps with inputs still to come]
        self.calls = 0, 0, 0           # likewise of submitted calls, at the last look
        self.nodes = weakref.WeakKeyDictionary()  # -> its ``calls`` when none was under way: these are not counted
        self.since = 0.0               # when the current counts began
        self.said = -PLAIN_PAUSE       # when a plain line was written
        self.drawn = 0                 # columns of the line on the screen
        self.hidden = False            # the line stays away: somebody has printed an unfinished line
        self.asking = False            # the program waits for input

    def find_tally(self, node, label, known, growing):
        """The tally that counts a map of this node from now on, or None. label: the map's ``progress`` argument."""
        if label is False or node.inside or not (self.wanted or label and self.wanted is not False):
            return None
        label = "" if label in (None, True) else " ".join(str(label).split())
        with self.lock:
            self.watch(node)
            if not self.live():  # all earlier work is done: count anew
                self.tallies.clear()
                self.since = time.monotonic()
                self.nodes.update({node: node.calls for node in list(self.nodes)})
            tally = self.tallies.setdefault(label, [0, 0, 0])
            tally[0] += known
            tally[2] += growing
            return tally

    def live(self):
        """Whether anything that is counted is under way, as far as is known."""
        return any(made < known or growing for known, made, growing in [self.calls, *self.tallies.values()])

    def watch(self, node):
        """Show what this node does, from now on."""
        with self.lock:
            self.nodes.setdefault(node, node.calls)
            if self.thread is None:
                install_screens()
                self.thread = threading.Thread(target=self.run, name="minscoop progress", daemon=True)
                self.thread.start()

    def run(self):
        """The progress thread: look and draw every LOOK seconds, for as long as there may be something to show."""
        began = time.monotonic()  # or when nothing was last under way
        while self.wanted is not False:
            time.sleep(LOOK)
            with self.lock:  # ``watch`` adds to them
                nodes = list(self.nodes)
            for node in nodes if self.live() else ():
                node.send(b"COUNT", b"0")  # without our lock: a thread that holds the node's may want ours
            left = {node: calls_left(node) for node in nodes if self.wanted}  # else only maps count
            with self.lock:
                now = time.monotonic()
                if not self.live():  # all earlier work is done: count anew, from the last look on
                    self.tallies.clear()
                    self.since = now - LOOK
                counts = self.look(left)
                if not counts:
                    self.wipe()
                    began = now
                    if not self.wanted:
                        self.thread = None  # under the lock: from here on, ``watch`` starts another
                        return
                elif now - began > PROGRESS_DELAY:
                    with contextlib.suppress(OSError, ValueError):  # stderr is full, or closed
                        self.draw(progress_text(counts, now - self.since, nodes))

    def look(self, left):
        """The tallies to show, calls included; empty if nothing is under way. left: node -> its calls not yet done."""
        done = sum(node.calls - self.nodes[node] for node in left)
        self.calls = done + sum(left.values()), done, 0
        if not self.live():
            self.nodes.update({node: node.calls for node in left})
            return {}
        counts = dict(self.tallies)
        if any(self.calls):
            counts[""] = [*map_builtin(operator.add, counts.get("", (0, 0, 0)), self.calls)]
        return counts

    def draw(self, text):
        """Show a text: on a terminal by redrawing the line, elsewhere as a plain line, one in PLAIN_PAUSE seconds."""
        if not on_terminal():
            if time.monotonic() - self.said > PLAIN_PAUSE:
                self.said = time.monotonic()
                say(text)
        elif not (self.hidden or self.asking) and in_foreground():
            self.wipe()
            text = text[:(os.get_terminal_size(2).columns or 80) - 1]
            self.drawn = len(text)
            text = f"\33[?7l{text}\33[?7h"  # meanwhile the terminal does not wrap lines: some characters are wide
            os.write(2, text.encode(getattr(sys.stderr, "encoding", None) or "ascii", "replace"))

    def wipe(self):
        """Erase the line, in all the rows that it takes if the terminal has become narrower; not if it is in somebody
        else's hands, such as the shell's after Ctrl-Z and `bg`."""
        if self.drawn and in_foreground():
            with contextlib.suppress(OSError):  # the terminal may be gone while the program goes on
                rows = (self.drawn - 1) // (os.get_terminal_size(2).columns or 80)
                os.write(2, b"\r\33[K" + b"\33[A\33[K" * rows)
        self.drawn = 0

    def make_room(self, hidden):
        """Erase the line so that somebody else can print; hidden: keep it away until the next call."""
        with self.lock:
            self.wipe()
            self.hidden = hidden

    def close(self):
        """Show nothing any more."""
        self.wanted = False
        self.make_room(True)


progress = Progress()


class Screen(io.FileIO):
    """The raw file below sys.stdout or sys.stderr on a terminal: erases the progress line before it writes."""

    def write(self, data):
        """As FileIO does, with the progress line wiped before."""
        with progress.lock:
            text = re.sub(rb"\x1b\[[0-?]*[A-Za-z]|\r", b"", bytes(data))  # empty if it only shows the cursor again, say
            progress.make_room(hidden=text[-1:] != b"\n" if text else progress.hidden)
            return super().write(data)


def say(*lines):
    """Print lines on stderr, if the program has one: else `print` would take stdout."""
    if sys.stderr is not None:
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def on_terminal():
    """Whether stderr is a terminal on which a line can be drawn."""
    return os.isatty(2) and os.environ.get("TERM") != "dumb"


def in_foreground():
    """Whether the terminal is ours now, as far as can be told: a pager or an editor reads single keys, not lines."""
    try:
        lines = termios.ICANON | termios.ECHO  # ECHO is off while a password is typed
        return os.tcgetpgrp(2) == os.getpgrp() and termios.tcgetattr(2)[3] & lines == lines
    except (OSError, termios.error):  # it is not the controlling terminal of our session
        return True


def install_screens():
    """On a terminal, let sys.stdout, sys.stderr and ``input`` wipe the progress line first. The files stay the same
    objects: handlers of logging, for instance, keep the one that there was when they were made."""
    for descriptor, file in (1, sys.__stdout__), (2, sys.__stderr__):
        if on_terminal() and os.isatty(descriptor) and isinstance(file, io.TextIOWrapper) and file not in screens:
            with contextlib.suppress(ValueError):  # the program has closed it, or detached its buffer
                file.flush()
                screen = Screen(descriptor, "w", closefd=False)
                screen.name = file.name
                screens[file] = file.buffer  # kept, since another thread may be writing to it now
                buffer = screen if file.write_through else io.BufferedWriter(screen)  # python -u
                file.__init__(buffer, file.encoding, file.errors, None, file.line_buffering, file.write_through)
                builtins.input = ask


screens = {}  # file -> what was below it before


@functools.wraps(input)
def ask(*args, original=input):
    """``input``, with the progress line away meanwhile."""
    progress.make_room(hidden=False)
    progress.asking = True
    try:
        return original(*args)
    finally:
        progress.asking = False


def calls_left(node):
    """How many submitted calls are queued or away; an estimate if the queue is very long."""
    with node.lock:
        away = sum(hi - lo for shipment in node.calls_away for lo, hi in shipment.open)
        return 0 if node.broken else items_queued(node, Future) + away


def items_queued(node, kinds=object):
    """How many items are queued, in units of these kinds; beyond 10 000 units, each counts as one."""
    with node.lock:
        return max(0, len(node.queue) + len(node.pinned) - 10_000) + sum(
            unit.hi - unit.lo for unit in itertools.islice(itertools.chain(node.queue, node.pinned), 10_000)
            if isinstance(unit, kinds) and not unit.stale)


def progress_text(counts, seconds, nodes):
    """The progress line."""
    known, made, growing = map_builtin(sum, zip(*counts.values()))
    rest, rate = "others" if len(counts) > 1 else "", made / max(seconds, 1e-3)
    parts = [f"{label or rest} {m}".strip() + (f" of {k}" if not g else "") for label, (k, m, g) in counts.items()]
    parts[-1] += "" if growing else f" ({100 * made // max(known, 1)} %)"
    parts.append(f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
    if made and not growing:
        left = round((known - made) / rate)
        parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
    for root in nodes:
        if isinstance(root, Root) and not root.broken:
            size, hosts = root.present()
            parts.append((f"{max(0, size - root.idle_workers)} of {counted(size, 'worker')}" if size else
                          "no workers as yet") + (f" on {hosts} hosts" if hosts > 1 else ""))
            parts += [f"{root.retried} {'retry' if root.retried == 1 else 'retries'}"] * (root.retried > 0)
    return "minscoop: " + ", ".join(parts)


def tasks_part(stats):
    """The tasks' share of a profile: without our functions, and without the built-in functions that ours called, unless
    as tasks. Those that a map calls run inside an `extend`, without entries of their own: its time is theirs."""
    rest, names = {}, (__file__, os.path.abspath(__file__))  # in Python 3.8 that of a script is as it was given
    ours = {key for key in stats if key[0] in names}
    this_file = min(ours, default=names)[0]
    *submits, maps = [(this_file, run.__code__.co_firstlineno, run.__code__.co_name)
                      for run in (Future.run, CALLS.fn, Slice.run)]
    for key in stats.keys() - ours:
        *figures, callers = stats[key]
        if "method 'extend' of '" in key[2] and maps in callers:
            calls, _, seconds, _ = callers[maps]
            rest["~", 0, "<built-in functions that maps call>"] = calls, calls, seconds, seconds, {}
        theirs = {caller: callers[caller] for caller in callers.keys() - ours}
        if key[0] == "~":
            counted = [callers[caller] for caller in callers.keys() & {*theirs, *submits}]
            every, *figures = map_builtin(sum, zip((0, 0, 0, 0), *counted))
            figures.insert(1, every)  # of a function, the primitive calls come first
        if figures[0] > 0:
            rest[key] = *figures, theirs
    return rest


def prompt(namespace, node):
    """Run an interactive prompt, like that of `python -i`, until its input ends; the pool stays up meanwhile."""
    import code
    if hasattr(sys, "__interactivehook__") and sys.stdin.isatty():
        sys.__interactivehook__()  # completion of names, and a history
    main.known, console = dict(namespace), code.InteractiveConsole(namespace)

    def show_error():
        error = sys.exc_info()[1]
        if isinstance(error, Terminated):  # by a signal: not an error of the line that was typed
            raise error
        show(error, error.__traceback__.tb_next)
    console.showtraceback = show_error
    try:
        console.interact(
            f"minscoop {__version__} on Python {sys.version.partition(' ')[0]}, "
            f"{counted(node.size, 'worker')}: {'map' if namespace.get('map') is map else 'futures.map'}, submit, "
            "futures, executor. Ctrl-D to exit.", "")
    except SystemExit as error:  # exit()
        if error.code:
            raise
    maps = [job for job in node.pending() if isinstance(job, Mapping)]
    more = not all(job.exhausted or job.begun for job in maps)  # the end pulls all inputs of unread maps
    left = calls_left(node) + sum(job.pulled - job.made for job in maps) or int(more)
    if left:
        logger.warning("waiting for %s%s; press Ctrl-C to end at once", counted(left, "call"), " or more" * more)


def answer_with_stacks(node):
    """Let SIGUSR1 print the stacks of the program's threads and of the workers, unless it is handled already."""
    def ask_workers(*_):
        frames, text = sys._current_frames(), ""
        for ident, thread in list(threading._active.items())[1:]:  # enumerate() takes a lock that may be held now
            if ident in frames and not re.match("minscoop|.*Garbage", thread.name + type(thread).__name__):
                stack = "".join(traceback.format_stack(frames[ident]))
                text += f"Thread {thread.name} (most recent call last):\n{stack}"
        with contextlib.suppress(OSError):  # no print: the signal may have interrupted one
            follows = "; workers follow" * (node.size > 0)
            os.write(2, f"{text}the above is the root, pid {os.getpid()}{follows}\n\n".encode())
        node.send(b"STACKS")
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        dump_when_asked(2, ask_workers)


def is_ours(record):
    """Whether a record is of our logger, or of one below it."""
    return str(record.name).partition(".")[0] == "minscoop"  # str: ``makeLogRecord`` makes records without a name


class Formatter(logging.Formatter):
    """Puts `minscoop:` before our records and, with -v, the host and worker from which they come."""

    def format(self, record):
        """Format a record, with its origin as in `--tag-output`; those of other loggers as usual."""
        if not is_ours(record):
            return super().format(record)
        origin = {**place, **record.__dict__}  # handmade ones may lack it
        shown = origin["worker"] not in ("root", "keeper") and logger.getEffectiveLevel() <= logging.INFO
        where = f"{origin['host']} {origin['worker']}: " if shown else ""
        return f"minscoop: {where}{super().format(record)}"


if logging.lastResort:  # Python's handler where the program has set up no logging
    logging.lastResort.setFormatter(Formatter())


def log_to(handler, level, **here):
    """What this process logs with the logger ``minscoop``, and with those below it, goes to this handler only. here:
    the names of this worker and its host."""
    place.update(here)
    handler.setFormatter(Formatter())
    logger.setLevel(level)
    logger.handlers[:], logger.propagate = [handler], False


place = {"worker": "root", "host": os.uname().nodename}  # of this process, for log records


def located(*args, make=logging.getLogRecordFactory(), **kwargs):
    """Make a log record; if it is ours, with the names of this worker and host."""
    record = make(*args, **kwargs)
    if is_ours(record):
        record.__dict__.update(place)
    return record


logging.setLogRecordFactory(located)  # not a filter of our logger, which records of loggers below it do not pass


class Records(logging.Handler):
    """Sends the records of the logger ``minscoop`` and those below it to the root, for its handlers."""

    def __init__(self, send):
        super().__init__()
        self.transmit = send

    def emit(self, record):
        """Send a record; its arguments and its exception go as text."""
        try:
            self.format(record)  # makes the texts of both
            fields = dict({**place, **record.__dict__}, msg=record.message, args=None, exc_info=None)
            self.transmit(b"LOG", json.dumps(fields, default=str).encode())
        except Exception:
            self.handleError(record)


# ---------------------------------------------------------------------------------------------------
# 18  Report
#
# What ran where and when. It is recorded only on request (`record` in the configuration: 1 for totals, 2 for each task
# too), by subclasses that replace Worker, Root and Inline, so that other runs spend no time on it, not even for a test.
#
# Totals are exact: each RECORD has all of its worker's totals so far, so the next one makes up for one that is lost.
# An event is one call, or a slice of a map or of short calls. If there are too many, neighbours are merged (see thin).
# Times are read from the worker's monotonic clock; within a host these clocks agree. Times of another host are
# converted by adding the smallest difference seen between a RECORD's arrival here and its sending there: they are late
# by as long as that RECORD travelled, some milliseconds.

# An event has: worker; fn, its function's name; start; end; own, the seconds in its own code, waiting excluded; calls,
# their number; failed, how many of these raised an exception; task, its name; parent, that of its parent or, if that
# ran on another worker, the shipment ("owner:serial") with which it came; arguments, as text; again, whether it ran
# again because a worker had died running it. While it runs, also clock, which measures its own time.


def short(value, depth=2):
    """A value in a few characters, for the reader of a report. Runs no user code, and never takes long."""
    kind = type(value)
    if kind in (str, bytes):
        return repr(value[:30]) + "…" * (len(value) > 30)
    if kind in PLAIN and (kind is not int or value.bit_length() < 100):
        return repr(value)
    if kind in BRACKETS and depth:
        rows = itertools.islice(value.items() if kind is dict else zip(value), 3)
        items = [": ".join(short(part, depth - 1) for part in row) for row in rows]
        return BRACKETS[kind] % ", ".join(items + ["…"] * (len(value) > 3))
    if kind.__module__ == "numpy":
        return f"{kind.__name__}{value.shape}" if getattr(value, "shape", ()) else repr(value)
    return value.__qualname__ if kind is types.FunctionType else f"<{kind.__name__}>"


BRACKETS = {list: "[%s]", tuple: "(%s)", set: "{%s}", frozenset: "{%s}", dict: "{%s}"}


def thin(events, cap):
    """Merge neighbouring events of one worker and function, in place, shortest pairs first, until at most `cap` are
    left; if that is not enough, then those of any function. Counts and times stay exact, arguments are dropped."""
    for fields in ("worker", "fn"), ("worker",):
        group = operator.attrgetter(*fields)
        events.sort(key=operator.attrgetter(*fields, "start"))
        while len(events) > cap:
            spans = sorted(b.end - a.start for a, b in zip(events, events[1:]) if group(a) == group(b))
            if not spans:  # each group is one event
                break
            limit = spans[:len(events) - cap][-1]  # as many pairs as there are events too many
            kept = events[:1]
            for event in events[1:]:
                if group(event) == group(kept[-1]) and event.end - kept[-1].start <= limit:
                    merge(kept[-1], event)
                else:
                    kept.append(event)
            events[:] = kept


def merge(event, later):
    """Make an event stand for another one, too, which began later."""
    event.fn = event.fn if event.fn == later.fn else "(several)"
    event.parent = event.parent if event.parent == later.parent else None
    event.arguments = None
    event.end = max(event.end, later.end)
    event.own += later.own
    event.calls += later.calls
    event.failed += later.failed
    event.again |= later.again


def no_totals(host):
    """The totals of a worker of this host that has not run anything: when it came, and when it said this; start of its
    first event, end of its last; events ended; bytes of its messages, including those in shared memory; seconds in
    each function; calls by (function, log2 of seconds); when it left to be replaced; for the root, when it died, and
    how many items ran again since it did."""
    return types.SimpleNamespace(
        host=host, came=0.0, now=0.0, first=math.inf, last=0.0, runs=0, received=0, sent=0,
        seconds=collections.Counter(), calls=collections.Counter(), left=math.inf, gone=math.inf, again=0)


class Recording:
    """Mixed into a node: it counts what travels and what is lost, and times what it runs.

    What is recorded is read and written with `lock` held: threads that tasks start run tasks, too."""

    def __init__(self, *args, level, cap=MAX_EVENTS):
        self.level, self.cap, self.local = level, cap, threading.local()
        self.totals, self.numbers = no_totals(place["host"]), itertools.count(1)  # these are in the names of events
        self.events, self.losses, self.parents = [], [], {}  # since the last RECORD
        self.born = self.totals.came = time.monotonic()
        self.fresh = True  # there is something new
        super().__init__(*args)

    def switch(self, event):
        """From here on, this thread works on `event`, or waits (None); returns on which it has worked until now."""
        before, self.local.event = getattr(self.local, "event", None), event
        if before is not None:
            before.own += before.clock()
        if event is not None:
            event.own -= event.clock()
        return before

    def execute(self, unit):
        """Run user code, and record it as an event."""
        event = unit.event = self.begin(unit)
        outer = self.switch(event)
        try:
            super().execute(unit)
        finally:
            self.switch(outer)
            event.own, event.end = max(0.0, event.own), time.monotonic()
            self.end(event, unit)

    def wait_for(self, ready, what=None, timeout=None):
        """As ever; the time spent waiting is not the event's own."""
        event = self.switch(None)
        try:
            return super().wait_for(ready, what, timeout)
        finally:
            self.switch(event)

    def begin(self, unit):
        """A new event, for a Future or Slice that is about to be run."""
        parent, name = getattr(unit._parent, "event", None), self.name.decode()
        event = types.SimpleNamespace(
            worker=name, fn="?", own=0.0, task=f"{name}#{next(self.numbers)}", arguments=None,
            parent=parent.task if parent else (unit.job and unit.job.id or b"").decode().partition("/")[0],
            again=isinstance(unit, Slice) and unit.span.singly and unit.span.avoid != b"",  # a worker died over it
            clock=time.monotonic)
        try:
            fn, args, kwargs = unit.span.call(unit.lo) if unit.job else unit._call
            event.fn = describe(fn)
            if self.level > 1:
                words = [short(value) for value in args[:5]] + ["…"] * (len(args) > 5)
                words += [f"{key}={short(value)}" for key, value in itertools.islice(kwargs.items(), 5)]
                event.arguments = cut(", ".join(words + ["…"] * (len(kwargs) > 5)), 120)
        except Exception:
            pass  # the arguments' own slicing raises, say
        event.start = time.monotonic()
        return event

    def end(self, event, unit):
        """Add a finished event to the totals. The calls of one slice are taken to have lasted equally long."""
        del event.clock
        event.failed = int(unit._exception is not None) if isinstance(unit, Future) else len(unit.failures)
        event.calls = unit.hi - unit.lo
        names, mean, totals = {event.fn: event.calls}, event.own / event.calls, self.totals
        if event.calls > 1 and unit.job.recipe is CALLS:
            names = collections.Counter(describe(call[0]) for call in unit.span.items(unit.lo, unit.hi)[0])
        with self.lock:
            for name, count in names.items():
                name = name if name in totals.seconds or len(totals.seconds) < 300 else "(others)"
                totals.seconds[name] += mean * count
                totals.calls[name, math.frexp(max(mean, 1e-7))[1]] += count
            totals.first, totals.last = min(totals.first, event.start), event.end
            totals.runs += 1
            self.fresh = True
            if self.level > 1:
                self.collect(event)

    def collect(self, *events):
        """Keep events, to send or to publish them; merge neighbours if they become too many."""
        self.events += events
        if len(self.events) > 2 * self.cap:
            thin(self.events, self.cap)

    def handle(self, message):
        """Count the bytes of a message, and handle it."""
        self.totals.received += sum(map_builtin(size_of, message))
        super().handle(message)

    def send_all(self, *messages):
        """Count the bytes of messages, and send them."""
        size = sum(map_builtin(size_of, itertools.chain(*messages)))
        with self.lock:
            self.totals.sent += size
        super().send_all(*messages)

    def register(self, span, frames):
        """As ever; note the parent event of what is shipped: its holder knows only the task id."""
        task_id, parent = super().register(span, frames), getattr(span._parent, "event", None)
        if parent and self.level > 1 and len(self.parents) < self.cap:
            self.parents[task_id.partition(b"/")[0].decode()] = parent.task
        return task_id

    def on_LOST(self, task_id, lo, hi, flags, obituary):
        """Note who died, and how many items run again."""
        known, before = task_id in self.away, self.retried
        super().on_LOST(task_id, lo, hi, flags, obituary)
        if known and obituary:
            with self.lock:
                self.losses.append([self.name.decode(), time.monotonic(), bytes(obituary).decode(errors="replace"),
                                    self.retried - before])
                self.fresh = True

    def news(self):
        """The content of a RECORD, to be pickled at once: totals so far; events, losses and parents since the last."""
        vars(self.totals).update(now=time.monotonic(), queued=items_queued(self), events=self.events,
                                 losses=self.losses, parents=self.parents)
        self.events, self.losses, self.parents, self.fresh = [], [], {}, False
        return self.totals


class RecordingWorker(Recording, Worker):
    """A worker that says what it runs, a few times per second and at its end."""

    started = False  # it has run something

    def __init__(self, name, config, marker):
        share = MAX_EVENTS // 24 // max(1, config["total"])  # half of a RECORD; total: 0 if all are yet to join
        super().__init__(name, config, marker, level=config["record"], cap=max(4, share))

    def yield_baton(self):
        """As ever; from here on the task shares its worker with others, so only its CPU time is its own."""
        event = self.switch(None)
        if event is not None:
            event.clock = time.thread_time
            self.switch(event)
        super().yield_baton()

    def attend(self, timeout):
        """As ever; but first send a RECORD, if one is due. The first is at once: the first task may never end."""
        self.tell()
        super().attend(min(timeout, RECORDS) if self.fresh else timeout)

    def begin(self, unit):
        """As ever; but before the first event, send a RECORD again: it says what waits here, as the first could not."""
        if not self.started:
            self.started = True
            self.tell(at_once=True)
        return super().begin(unit)

    def end(self, event, unit):
        """As ever; then send a RECORD, if one is due: a busy worker never sleeps in ``attend``."""
        super().end(event, unit)
        self.tell()

    def tell(self, at_once=False):
        """Send a RECORD: `at_once`, or only if there is news and the last one is some time ago: see RECORDS."""
        with self.lock:
            if at_once or self.fresh and time.monotonic() - self.totals.now > RECORDS + self.size * 1e-3:
                self.send(b"RECORD", self.name, pickle.dumps(self.news(), 5))

    def leave(self, renewed=False):
        """Send the last RECORD, and leave."""
        self.totals.left = time.monotonic() if renewed else math.inf
        self.tell(at_once=True)
        super().leave(renewed)


class Collector(Recording):
    """Mixed into the node that has the script: it collects what all have recorded, and publishes it at the end."""

    together = 1   # the most workers that were there at a time
    asked = 0.0    # when the script first asked for something
    arrived = 0.0  # when the last result came
    interrupted = unpublished = False

    def __init__(self, options):
        self.records, self.offsets = {}, {"0": 0.0}   # worker -> its latest RECORD; host -> what to add to its times
        self.slowest = []                      # the slowest events, as they were before any merging here
        self.queues = [(0.0, 0)]               # (seconds since the run began, items that wait)
        self.used = time.process_time()
        super().__init__(options, level=options["record"])
        self.unpublished = True                # only now: a pool that cannot start has nothing to publish

    def push(self, unit):
        """As ever; note when the script first did so."""
        self.asked = self.asked or time.monotonic()
        super().push(unit)

    def on_RESULT(self, *frames):
        """As ever; note when: large results travel for long after their tasks have ended."""
        super().on_RESULT(*frames)
        self.arrived = time.monotonic()

    def on_RECORD(self, worker, body):
        """Keep a worker's latest totals, and its new events."""
        news, now, worker = unpickle(bytes(body)), time.monotonic(), worker.decode()
        host = worker.partition(".")[0]
        self.offsets[host] = min(self.offsets.get(host, math.inf), now - news.now)
        self.losses += news.losses
        if len(self.parents) < 2 * MAX_EVENTS:
            self.parents.update(news.parents)
        slowest = sorted(self.slowest + news.events, key=lambda event: -event.own / event.calls)[:20]
        self.slowest = [types.SimpleNamespace(**vars(event)) for event in slowest]  # copies: ``thin`` changes its own
        self.collect(*news.events)
        self.records[worker] = news
        age = now - self.born
        if len(self.queues) < 100 or age - self.queues[-1][0] > age / 1000:  # the first come all at once
            self.queues.append((age, items_queued(self) + sum(news.queued for news in self.records.values())))

    def abort(self):
        """As ever; then publish, once, however the pool ended."""
        self.interrupted = self.interrupted or not self.closing
        super().abort()
        if self.unpublished:
            self.unpublished = False
            try:
                self.publish()
            except Exception as error:  # stderr is closed, or a record is malformed: the program goes on
                logger.error("cannot write the report, trace or summary: %s", error)

    def publish(self):
        """Write whichever of report, trace and summary were asked for."""
        if isinstance(self, Inline):
            self.on_RECORD(self.name, pickle.dumps(self.news(), 5))
        run = digest(self)
        shown = dict(vars(run), traceEvents=[*trace_entries(run)], records=None, events=None)
        text = json.dumps(shown, separators=(",", ":"))
        page = PAGE.replace("@DATA@", text.replace("<", "\\u003c"))  # data cannot end the element that it is in
        for key, content in ("report", page), ("trace", text):
            try:
                if self.options[key]:
                    with open(self.options[key], "w", encoding="utf-8") as file:
                        file.write(content)
            except OSError as error:  # the disk is full, the directory is gone: write the other
                logger.error("the %s could not be written to %s: %s", key, self.options[key], error.strerror)
        if self.options["summary"]:
            say(f"minscoop: {counted(run.tasks, 'task')} in {run.seconds:.2f} s" +
                ", without what lost workers ran after their last record" * bool(run.losses),
                *aligned(run.table), f"minscoop: {run.verdict}")


class RecordingRoot(Collector, Root):
    """A root that publishes when the pool has ended."""

    def on_RECORD(self, worker, body):
        """As ever; note how many workers are there."""
        super().on_RECORD(worker, body)
        self.together = max(self.together, self.present()[0])


class RecordingInline(Collector, Inline):
    """Without a pool: all is run by the script's own process, in one row."""


def digest(root):
    """What is known of a run; times in seconds since it began."""
    def since(worker, moment):
        return max(0.0, moment + root.offsets.get(worker.partition(".")[0], 0.0) - root.born)

    thin(root.events, MAX_EVENTS)
    for event in root.events + root.slowest:
        event.start, event.end = since(event.worker, event.start), since(event.worker, event.end)
        parent = event.parent  # a shipment that stays unresolved is the script's, or its RECORD is lost
        event.parent = root.parents.get(parent, None if parent and ":" in parent else parent)
    for worker, news in root.records.items():
        vars(news).update({key: since(worker, getattr(news, key)) for key in ("came", "now", "first", "last", "left")})
    losses, seconds = {}, time.monotonic() - root.born
    for owner, moment, obituary, again in root.losses:  # each owner of what it held reports the same death
        name, host = re.match(r"(?:(\w+\.\d+) )?(?:\(?host (.+?)(?:, pid| is| was))?", obituary).groups()
        moment = since(owner, moment)
        gone = [name] if name else [worker for worker, news in root.records.items()
                                    if news.host == host and news.came < moment] or ["?"]
        loss = losses.setdefault(obituary, [gone[0], moment, obituary, 0])
        loss[3] += again
        for worker in gone:  # of which no RECORD may have come
            news = root.records.setdefault(worker, no_totals(host or "(a lost host)"))
            news.gone = min(news.gone, loss[1])
        root.records[gone[0]].again += again
    records = dict(sorted(root.records.items(), key=lambda item: [(len(word), word) for word in item[0].split(".")]))
    run = types.SimpleNamespace(
        title=cut(" ".join(map_builtin(str, sys.argv)).strip(), 200) or "-", ended=time.strftime("%Y-%m-%d %H:%M"),
        seconds=seconds, cpu=(time.process_time() - root.used) / seconds, inline=isinstance(root, Inline),
        asked=since("0", root.asked), arrived=since("0", root.arrived), together=root.together,
        interrupted=root.interrupted, failure=root.ended_by and first_line(root.ended_by).rstrip(":"),
        events=root.events, slowest=[*map_builtin(vars, root.slowest)], records=records, losses=[*losses.values()],
        waiting=root.queues, moved=root.totals.received + root.totals.sent, **sums(records))
    run.verdict, run.table = verdict(run), host_table(run.hosts)
    return run


def sums(records):
    """Sums over all workers: hosts, {host: its figures}; functions, {name: [calls, seconds, {log2 of seconds: calls}]};
    tasks, the number of calls; runs, that of events; code, their own seconds; workers, {worker: its host}."""
    hosts, seconds, lengths = {}, collections.Counter(), collections.defaultdict(collections.Counter)
    for news in records.values():
        seconds.update(news.seconds)
        for (name, power), count in news.calls.items():
            lengths[name][power] += count
        hosts.setdefault(news.host, collections.Counter()).update(
            workers=1, tasks=sum(news.calls.values()), code=sum(news.seconds.values()), life=news.now - news.came,
            received=news.received, sent=news.sent, again=news.again)
    functions = {name: [sum(lengths[name].values()), own, lengths[name]] for name, own in seconds.most_common()}
    return dict(hosts=hosts, functions=functions, tasks=sum(row["tasks"] for row in hosts.values()),
                runs=sum(news.runs for news in records.values()), code=sum(seconds.values()),
                workers={name: news.host for name, news in records.items()})


def verdict(run):
    """One sentence: how the program ended, or what it was limited by, and what to change."""
    if run.failure:
        return f"The run failed: {run.failure}"
    if run.inline:
        return "Everything ran in the script's own process (-n 0)."
    if run.interrupted:
        return "The run was interrupted; what was under way, or had only just ended, is not counted."
    if not run.tasks:
        return "No task was run." if not run.losses else "No task is known to have ended: see what killed the workers."
    return limit(run)


def limit(run):
    """What a program that has ended in good order was limited by, and what to change."""
    records, seconds = [news for news in run.records.values() if news.now], run.seconds
    if run.tasks < len(records) and not run.losses:  # what lost workers ran is not all known
        return f"Limited by too few tasks: {run.tasks} for {len(records)} workers."
    ready, end = min(news.came for news in records), max(news.last for news in records)
    if ready > seconds / 2 and seconds > 1:
        return f"Limited by the start: the first worker was ready only after {ready:.1f} of {seconds:.1f} s."
    begun = min(news.first for news in records)
    first = min(begun, max(ready, run.asked))  # by then, the first task was on its way: its arguments may be large
    whole = lost = tail = 0.0  # worker-seconds: in all; running what a death undid, it seems; after the last task
    for news in records:
        came, gone = max(news.came, first), min(news.gone, news.left, end)
        whole += max(gone - came, 1e-9)
        rest = max(0.0, gone - max(news.last, came))
        lost, tail = (lost + rest, tail) if news.again else (lost, tail + rest)
    code, size, heavy = run.code, run.moved / run.tasks, run.moved > 5e7 * (end - first)
    crossing = (f"Limited by the network, or by pickling what crosses it: {scaled(run.moved, 'B')} in and out of "
                f"the root, {scaled(size, 'B')} for each task. Send less: constants, map_reduce, file names.")
    if run.arrived - end > max(1.0, (seconds - ready) / 2):  # the last results were on their way
        return crossing
    idle = first - ready + seconds - max(end, run.arrived)
    if idle > (seconds - ready) * (0.2 if code > 0.8 * whole else 0.5) and seconds - ready > 2:
        return (f"Limited by the root: the script gave the pool nothing to do for {idle:.1f} of "
                f"{seconds - ready:.1f} s. Move that work into tasks, or submit earlier.")
    busy = f"{code / whole:.0%} of the time between the first and the last task"
    if code > 0.8 * whole:
        return f"Limited by nothing but the number of workers: they ran tasks {busy}."
    if lost > (whole - code) / 2:
        deaths = sum(news.gone < math.inf for news in run.records.values())
        return (f"Limited by lost workers: {deaths} died, and {lost / whole:.0%} of the time went into calls that had "
                "to run again. See what killed them.")
    if begun - first > max(1.0, (end - first) / 2) and not heavy:
        return (f"Limited by the start: the first task began only {begun - first:.1f} s after the script had asked for "
                "it: until then, workers run the initializer, import the script, and read large arguments.")
    # Slices of a map take longer than 1 ms; there, what each item costs beside its call counts
    if size < 1e5 and (code / run.runs < 1e-3 or code / run.tasks < 1e-5 and not heavy and tail < (whole - code) / 2):
        return (f"Limited by too-short tasks: {scaled(code / run.tasks, 's')} each on average; workers ran them "
                f"{busy}. Let each do more, or use map, which runs many at a time.")
    if tail > (whole - code) / 2:
        return (f"Limited by imbalance: workers waited {tail / whole:.0%} of the time for the last tasks. Make tasks "
                "smaller, or submit the longest first.")
    if heavy:
        return crossing
    if run.cpu > 0.7:
        return (f"Limited by the root: its process was busy {run.cpu:.0%} of the time; workers ran tasks {busy}. "
                "Make tasks larger, create them in tasks, or reduce results where they are made (map_reduce).")
    return (f"Limited by the root: workers ran tasks {busy}, and waited for more. Submit more before you wait for "
            "results, or create tasks in tasks" +
            f". If the network is slow, send less than {scaled(size, 'B')} for each" * (size > 1e5) + ".")


def scaled(number, unit):
    """A number with its unit, in three digits."""
    number = float(f"{number:.2e}")
    power = max(-3, min(3, math.floor(math.log10(number) / 3))) if number else 0
    return f"{number / 1000 ** power:.4g} {['', *'kMGnµm'][power]}{unit}"


def host_table(hosts):
    """What each host did, as rows of a table."""
    return [("HOST", "WORKERS", "TASKS", "BUSY", "RECEIVED", "SENT", "RETRIES"), *(
        (host, str(row["workers"]), str(row["tasks"]), f"{row['code'] / max(row['life'], 1e-9):.0%}",
         scaled(row["received"], "B"), scaled(row["sent"], "B"), str(row["again"])) for host, row in hosts.items())]


def lanes(events):
    """Yield (event, lane), by worker and start; no two events in one lane of a worker overlap."""
    import heapq
    taken, free = collections.defaultdict(list), collections.defaultdict(list)  # worker -> (end, lane)s, lanes: heaps
    for event in sorted(events, key=operator.attrgetter("worker", "start")):
        while taken[event.worker] and taken[event.worker][0][0] <= event.start:
            heapq.heappush(free[event.worker], heapq.heappop(taken[event.worker])[1])
        lane = heapq.heappop(free[event.worker]) if free[event.worker] else len(taken[event.worker])
        heapq.heappush(taken[event.worker], (event.end, lane))
        yield event, lane


def trace_entries(run):
    """Yield the run in Chrome's trace event format: hosts are processes, workers threads. Where events of a worker
    overlap, as a task and its children do, the inner ones go to further threads. Arguments that are zero or not known
    are left out. The page draws the same."""
    hosts, numbers = [*run.hosts], {name: i for i, name in enumerate(run.workers, 1)}

    def entry(ph, title, worker, moment=0.0, lane=0, **args):
        return dict(ph=ph, name=title, ts=round(moment * 1e6), tid=100_000 * numbers[worker] + lane,
                    pid=hosts.index(run.workers[worker]) + 1,
                    args={key: value for key, value in args.items() if value})

    placed = [*lanes(run.events)]
    for name, lane in sorted({(name, 0) for name in numbers}.union((event.worker, lane) for event, lane in placed)):
        yield entry("M", "process_name", name, name=run.workers[name])
        yield entry("M", "thread_name", name, lane=lane, name=f"worker {name}" + f", within ({lane})" * (lane > 0))
    for event, lane in placed:
        where = event.worker, event.start, lane
        bar = entry("X", event.fn, *where, task=event.task, parent=event.parent, arguments=event.arguments,
                    calls=event.calls, own=round(event.own * 1e6), again=event.again, failed=event.failed)
        yield dict(bar, dur=round(event.end * 1e6) - bar["ts"])
        if event.again:
            yield entry("i", "retry", *where)
    for name, moment, obituary, again in run.losses:
        yield entry("i", "worker lost", name, moment, why=obituary, again=again)


# The report page: one file that loads nothing from the network. It draws the trace, which replaces @DATA@.
PAGE = r"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>minscoop</title>
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --bad: #c4001d }
@media screen and (prefers-color-scheme: dark) {
  :root { --back: #14171b; --text: #e6e9ed; --soft: #a3adb8; --line: #3a424c; --bad: #ff7b72 } }
body { margin: 1.2em; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif;
  overflow-wrap: anywhere }
h1 { font-size: 1.3em } h2 { font-size: 1.05em } .soft { color: var(--soft) }
.scroll { overflow: auto; max-height: 14em } table { overflow-wrap: normal } bdi { overflow-wrap: anywhere }
td, th { padding: .15em .9em .15em 0; text-align: left } #hosts { white-space: nowrap }
#box { position: relative } canvas { width: 100%; border: 1px solid var(--line) }
#tip { position: absolute; pointer-events: none; background: var(--back); border: 1px solid var(--soft);
  max-width: 32em; padding: .3em .6em; white-space: pre-wrap } #tip:empty { display: none }
i { display: inline-block; width: .8em; height: .8em; margin: 0 .4em 0 1em }
.bars { display: flex; align-items: flex-end; height: 2.2em; gap: 1px } b { width: 7px; min-height: 1px }
@media print { .scroll { max-height: none } i, b { print-color-adjust: exact } }
</style></head><body>
<h1 id="title"></h1><p id="facts" class="soft"></p><p id="verdict"></p>
<div class="scroll"><table id="hosts"></table></div>
<h2>Timeline</h2><p id="legend"></p>
<div id="box"><canvas id="view" tabindex="0"></canvas><div id="tip"></div></div>
<p class="soft">Wheel: time. Shift and wheel: workers. Drag to move, double click to see all; or click, then use the
arrow keys, + and -, and 0. A bar is a call, or a slice of a map or of short calls; the paler, the more it waited. Below
it are those that began before it ended: its children, or what its worker ran meanwhile. ✕: a worker died. △: something
ran again. !: a call raised an exception.
<span id="merged"></span></p>
<h2>Functions</h2><div class="scroll"><table id="functions"></table></div>
<h2>Slowest calls</h2><div class="scroll"><table id="slowest"></table></div>
<section id="losses"><h2>Lost workers</h2><div class="scroll"><table id="lost"></table></div></section>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict"
const $ = id => document.getElementById(id), D = JSON.parse($("data").textContent)
const functions = Object.entries(D.functions), workers = Object.keys(D.workers), homes = Object.values(D.workers)
const tasks = D.traceEvents.filter(({ ph }) => ph === "X").map(({ name, ts, dur, tid, args }) => ({ own: 0, ...args,
  name, from: ts, to: ts + Math.max(dur, 1), w: Math.floor(tid / 1e5) - 1, lane: tid % 1e5 }))
const HUES = ["#3393d6", "#e08e00", "#00a87a", "#cc6fa5", "#7cc4ea", "#e0661a", "#a08d10", "#9a7fdd"]
const hues = new Map(functions.map(([name], f) => [name, HUES[f]])), hue = name => hues.get(name) ?? "#8a8f96"
const whole = n => n.toLocaleString("en"), time = s => s < 1000 ? scaled(s, "s") : clock(s)
const clamp = (x, low, high) => Math.min(Math.max(x, low), high)
const counted = (n, noun) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`
function scaled(x, unit, digits = 4) {
  const power = x ? clamp(Math.floor(Math.log10(x) / 3), -3, 3) : 0
  return `${+(x / 1000 ** power).toPrecision(digits)}\u00a0${["n", "µ", "m", "", "k", "M", "G"][power + 3]}${unit}`
}
function clock(s, places = 0) {  // h:mm:ss, since nobody reads ks
  const n = +s.toFixed(places), two = x => String(Math.floor(x)).padStart(2, "0")
  return `${Math.floor(n / 3600)}:${two(n / 60 % 60)}:${two(n % 60)}${(n % 1).toFixed(places).slice(1)}`
}
const make = (parent, tag, facts) => parent.appendChild(Object.assign(document.createElement(tag), facts))
function named(parent, name) {  // a function's, and its colour
  make(parent, "i", { style: `background: ${hue(name)}` }), make(parent, "bdi", { textContent: name })
}
function table(id, head, ...rows) {  // a cell may be a function that fills it
  for (const row of [head, ...rows]) {
    const line = make($(id), "tr")
    for (const cell of row)
      cell.call ? cell(make(line, "td")) : make(line, row === head ? "th" : "td", { textContent: cell })
  }
}

// -- what stands around the picture
$("title").append(document.title = `minscoop: ${D.title}`), $("verdict").append(D.verdict)
$("facts").append([`ended ${D.ended} after ${time(D.seconds)}`,
  counted(D.tasks, "call") + (D.losses.length ? ", without what lost workers ran after their last record" : ""),
  counted(workers.length, "worker") + (D.together < workers.length ? `, at most ${whole(D.together)} at a time` : ""),
  `the root's process was busy ${Math.round(100 * D.cpu)} % of the time`].join(" · "))
$("losses").hidden = !D.losses.length
$("merged").append(tasks.length >= D.runs ? "" : `${whole(tasks.length)} bars stand for ${whole(D.runs)} calls and
  slices: neighbours of one function on one worker were merged, shortest first; numbers and times stay exact.`)
table("hosts", ...D.table)
table("slowest", ["own time", "from", "to", "calls", "function", "worker", "arguments (of the first)"],
  ...D.slowest.map(({ own, start, end, calls, fn, worker, arguments: text }) =>
    [time(own), time(start), time(end), whole(calls), fn, worker, text ?? ""]))
table("lost", ["at", "worker", "why", "run again"], ...D.losses.map(
  ([worker, at, why, again]) => [time(at), worker, why, whole(again)]))
const powers = functions.flatMap(([, [, , bins]]) => Object.keys(bins).map(Number))
const low = Math.min(...powers), high = Math.max(...powers)
function histogram(cell, name, bins) {
  const limit = power => time(+(2 ** power).toPrecision(2))
  const bars = make(cell, "div", { className: "bars", textContent: limit(low - 1) })
  for (let p = low; p <= high; p++) {
    const count = bins[p] ?? 0, title = `${limit(p - 1)} to ${limit(p)}: ${whole(count)}`
    const height = Math.max(count && 10, 100 * count / Math.max(...Object.values(bins)))  // one is seen, too
    make(bars, "b", { title, style: `height: ${height}%; background: ${hue(name)}` })
  }
  bars.append(limit(high))
}
table("functions", ["function", "calls", "own time", "mean", "how long calls took (those of a slice: their mean)"],
  ...functions.map(([name, [count, own, bins]]) => [
    cell => named(cell, name), whole(count), time(own), time(own / count), cell => histogram(cell, name, bins)]))
for (const [name] of functions.slice(0, HUES.length)) named($("legend"), name)

// -- the picture: times are in µs; rows count from 0, each worker having as many as its tasks need
const canvas = $("view"), pen = canvas.getContext("2d"), lanes = workers.map(() => 1), begins = [0]
for (const { w, lane } of tasks) lanes[w] = Math.max(lanes[w], lane + 1)
lanes.forEach((n, w) => begins.push(begins[w] + n))
for (const task of tasks) task.row = begins[task.w] + task.lane
const rows = begins[lanes.length] || 1, end = Math.max(D.seconds * 1e6, 1), long = end >= 1e9
const AXIS = 20, STRIP = 44, HEAD = AXIS + 2 * STRIP + 14, GUTTER = 170
const deaths = D.losses.map(([worker, at]) => [at * 1e6, begins[workers.indexOf(worker)]])
const most = Math.max(1, ...D.waiting.map(([, n]) => n))
let t0 = 0, t1 = end, y0 = 0, y1 = rows, width = 1, height = 1, ink = {}, frame = 0
const linear = (x, from, to, a, b) => a + (x - from) / (to - from) * (b - a)
const X = t => linear(t, t0, t1, GUTTER, width), Y = r => linear(r, y0, y1, HEAD, height)
const timeAt = x => linear(x, GUTTER, width, t0, t1), rowAt = y => linear(y, HEAD, height, y0, y1)
const digits = t => Math.ceil(Math.log10(t / (t1 - t0))) + 3  // as near as one looks
const moment = t => long ? clock(t / 1e6, Math.max(0, digits(1e6))) : scaled(t / 1e6, "s", Math.max(4, digits(t)))
function show(a, b, c, d) {  // these times and rows, within what there is
  const dt = clamp(b - a, 5, end), dy = clamp(d - c, 1, rows)
  t0 = clamp(a, 0, end - dt), t1 = t0 + dt, y0 = clamp(c, 0, rows - dy), y1 = y0 + dy
  cancelAnimationFrame(frame), frame = requestAnimationFrame(paint)
}
function paint() {
  const scale = devicePixelRatio || 1, style = getComputedStyle(document.documentElement)
  for (const key of ["text", "soft", "line", "back", "bad"]) ink[key] = style.getPropertyValue(`--${key}`)
  width = canvas.clientWidth, height = clamp(HEAD + rows * 18, 230, Math.max(innerHeight * .75, 300))
  canvas.style.height = `${height}px`, canvas.width = width * scale, canvas.height = height * scale
  pen.setTransform(scale, 0, 0, scale, 0, 0), pen.font = "12px system-ui, sans-serif", pen.textBaseline = "middle"
  names(Y(1) - Y(0) < 11), strips(), bars()
  for (const { failed, again, from, row } of tasks) if (failed || again) mark(failed ? "!" : "△", from, row)
  for (const [t, r] of deaths) mark("✕", t, r)
}
function names(many) {  // of workers, or of hosts only if there are many
  for (let w = 0, free = HEAD, next; w < workers.length; w = next) {
    for (next = w + 1; many && homes[next] === homes[w];) next++
    const top = Math.max(Y(begins[w]), HEAD), bottom = Y(begins[next])
    if (bottom <= HEAD || top > height) continue
    line(ink.line, 1, [0, bottom], [width, bottom])
    pen.fillStyle = ink.soft
    if (top >= free) pen.fillText(homes[w] + (many ? "" : ` ${workers[w]}`), 6, top + 8, GUTTER - 12), free = top + 13
  }
}
function line(colour, thick, ...points) {
  pen.strokeStyle = colour, pen.lineWidth = thick, pen.beginPath()
  points.forEach(([x, y]) => pen.lineTo(x, y)), pen.stroke()
}
function strips() {  // the axis of time; who is busy, each event's own time spread over all its time; who waits
  const base = AXIS + STRIP, bottom = base + STRIP + 4, tall = STRIP - 6
  const load = new Float64Array(width)
  const raw = (t1 - t0) / Math.max(2, (width - GUTTER) / 110), power = 10 ** Math.floor(Math.log10(raw))
  const round = long && raw > 1e6 ? [1, 60, 3600].flatMap(unit => [1, 2, 5, 10, 30].map(n => n * unit * 1e6)) : []
  const step = round.find(t => t >= raw) ?? power * [1, 2, 5, 10].find(f => f * power >= raw)
  pen.fillStyle = ink.soft
  for (let t = Math.ceil(t0 / step) * step; t <= t1; t += step) {
    if (X(t) + pen.measureText(moment(t)).width < width - 3) pen.fillText(moment(t), X(t) + 3, AXIS / 2)
    line(ink.line, 1, [X(t), 0], [X(t), height])
  }
  for (const { from, to, own } of tasks) {
    const a = Math.max(X(from), GUTTER), b = Math.min(X(to), width)
    for (let x = Math.floor(a); x < b; x++) load[x] += own / (to - from) * (Math.min(b, x + 1) - Math.max(a, x))
  }
  pen.fillStyle = HUES[0]
  load.forEach((n, x) => { const h = Math.min(n / D.together, 1) * tall; pen.fillRect(x, base - h, 1, h) })
  line(HUES[5], 1.5, ...D.waiting.map(([t, n]) => [X(t * 1e6), bottom - n / most * tall]))
  pen.clearRect(0, base, GUTTER - 1, STRIP + 6)  // where the line was before the first time in view
  pen.fillStyle = ink.soft, pen.fillText(`busy, 0–${D.together}`, 6, base - tall / 2)
  pen.fillText(`waiting, 0–${scaled(most, "")}`, 6, bottom - tall / 2)
}
function bars() {
  const edges = []  // of each row: how far it is painted
  for (const { name, from, to, row, own, calls } of tasks) {
    const y = Y(row), h = Y(row + 1) - y, a = Math.max(X(from), GUTTER), b = Math.max(X(to), a + 1)
    if (y < HEAD - 1 || y > height || X(to) < GUTTER || a > width || b <= edges[row]) continue
    edges[row] = Math.ceil(b)
    const strength = .3 + .7 * Math.min(1, own / (to - from)), gap = b - a > 4
    pen.globalAlpha = strength, pen.fillStyle = hue(name), pen.fillRect(a, y, b - a - gap, Math.max(h - (h > 4), .5))
    pen.globalAlpha = 1, pen.fillStyle = strength < .6 ? ink.text : "#000"
    const label = name + (calls > 1 ? ` × ${whole(calls)}` : "")
    if (h > 10 && pen.measureText(label).width < b - a - 8) pen.fillText(label, a + 4, y + h / 2)
  }
}
function mark(sign, t, r) {
  if (t < t0 || t > t1 || Y(r) < HEAD) return
  pen.strokeStyle = ink.back, pen.lineWidth = 4, pen.strokeText(sign, X(t) - 5, Y(r) + 6)
  pen.fillStyle = ink.bad, pen.fillText(sign, X(t) - 5, Y(r) + 6)
}

// -- asking it
function about(x, y) {  // the death or the event there, or one that is too narrow to be met
  const death = D.losses[deaths.findIndex(([t, r]) => Math.hypot(X(t) - x, Y(r) + 6 - y) < 9)]
  if (death) return `${death[2]}\nrun again: ${death[3]}`
  let it = null, near = timeAt(3) - timeAt(0)
  for (const task of tasks) {
    const away = Math.max(task.from - timeAt(x), timeAt(x) - task.to, 0)
    if (task.row === Math.floor(rowAt(y)) && away <= near) it = task, near = away
  }
  return !it ? "" : [it.name + (it.calls > 1 ? `: ${whole(it.calls)} calls` : ""),
    it.arguments && `arguments${it.calls > 1 ? " of the first" : ""}: ${it.arguments}`,
    `from ${moment(it.from)}, ${time((it.to - it.from) / 1e6)}, of that ${time(it.own / 1e6)} in its own code`,
    `task ${it.task} on ${homes[it.w]}`, it.parent && `child of ${it.parent}`,
    it.failed && `raised an exception: ${whole(it.failed)}`,
    it.again && "ran again, since a worker died"].filter(text => text).join("\n")
}
function tell(x, y) {
  const tip = $("tip")
  tip.textContent = y > HEAD && x > GUTTER ? about(x, y) : ""
  tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth - 8))}px`, tip.style.top = `${y + 16}px`
}
canvas.onpointerleave = () => { $("tip").textContent = "" }
canvas.onpointermove = e => {
  tell(e.offsetX, e.offsetY)
  if (!e.buttons) return
  const dt = timeAt(e.movementX) - timeAt(0), dy = rowAt(e.movementY) - rowAt(0)
  show(t0 - dt, t1 - dt, y0 - dy, y1 - dy)
}
canvas.ondblclick = () => show(0, end, 0, rows)
canvas.onwheel = e => {
  const f = Math.exp((e.deltaY || e.deltaX) * .0015), t = timeAt(e.offsetX), r = rowAt(e.offsetY)
  e.preventDefault()
  e.shiftKey ? show(t0, t1, r - (r - y0) * f, r + (y1 - r) * f) : show(t - (t - t0) * f, t + (t1 - t) * f, y0, y1)
}
canvas.onkeydown = e => {
  const dt = (t1 - t0) / 8, dy = (y1 - y0) / 8, steps = {
    ArrowLeft: [-dt, -dt, 0, 0], ArrowRight: [dt, dt, 0, 0], ArrowUp: [0, 0, -dy, -dy], ArrowDown: [0, 0, dy, dy],
    "+": [dt, -dt, 0, 0], "=": [dt, -dt, 0, 0], "-": [-dt, dt, 0, 0], 0: [-end, end, -rows, rows] }
  const step = !e.ctrlKey && !e.metaKey && !e.altKey && steps[e.key]  // else it is the browser's
  if (!step) return
  e.preventDefault()
  show(t0 + step[0], t1 + step[1], y0 + step[2], y1 + step[3])
}
addEventListener("resize", paint), paint()
for (const media of ["(prefers-color-scheme: dark)", "print"]) matchMedia(media).addEventListener("change", paint)
</script></body></html>
"""


# ---------------------------------------------------------------------------------------------------
# 19  Command line

USAGE_EXAMPLES = """\
examples:
  python minscoop.py script.py data.csv           one worker per core that may be used
  python minscoop.py -n 4 -m package.module       as python -m, on four workers
  python minscoop.py -n 2 -c 'from minscoop import futures; print(list(futures.map(abs, [-1, 2])))'
  python minscoop.py -n 0 script.py               everything in this process: for pdb, and for teaching
  python minscoop.py --hosts a,b:4,localhost script.py       on three machines: those of ssh, and this one
  python minscoop.py --check --hosts hosts.txt               test whether these hosts can be used
  sbatch, qsub, bsub: in a batch job, 'python minscoop.py script.py' uses what was allocated

In the program:
  from minscoop import futures
  if __name__ == "__main__":
      print(sum(futures.map(abs, range(-10, 0))))
"""


def make_parser():
    """The parser of the command line, up to the program; what follows that is the program's own."""
    import argparse
    parser = argparse.ArgumentParser(
        prog="minscoop.py", usage="python minscoop.py [options] [script.py | -m module | -c code] [arguments]",
        description="Run a Python program with a pool of worker processes behind its map and submit.",
        epilog=USAGE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    program = parser.add_argument_group("program (everything after it belongs to the program)")
    # The next three are for the help only: split_words removes them
    program.add_argument("script.py", nargs="?", help="a Python file; or a directory or a zip file with a __main__.py")
    program.add_argument("-m", metavar="module", help="a module or package, as with python -m")
    program.add_argument("-c", metavar="code", help="Python code, as with python -c")
    program.add_argument("-i", dest="interactive", action="store_true",
                         help="an interactive prompt afterwards, also after an exception; the default without a "
                              "program on a terminal (else the program is read from stdin)")
    pool = parser.add_argument_group("pool")
    pool.add_argument("-n", type=int, metavar="N", dest="max_workers",
                      help=f"workers in all (default: usable cores, here {usable_cores()}, or as the hosts say); "
                           "0: run inline")
    pool.add_argument("--retries", type=int, metavar="N",
                      help="fail a task after N workers died running it; 0: never run again what may have begun "
                           "(default: 3)")
    pool.add_argument("--max-tasks-per-child", type=int, metavar="N",
                      help="start a fresh process in the place of a worker that has run N calls, for libraries that "
                           "leak memory (default: never)")
    pool.add_argument("--nice", type=int, metavar="N", help="niceness of the workers (default: 0)")
    add_host_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-v", "--verbose", action="count", default=0,
                        help="log what happens and, at the end, what each host did and what limited the run; -vv: "
                             "debug messages, too")
    output.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    output.add_argument("--progress", action="store_true", default=on_terminal() or None,
                        help="a line that says how far the run is (the default on a terminal); elsewhere, one "
                             "every 10 s")
    output.add_argument("--no-progress", dest="progress", action="store_false", help="no progress line")
    output.add_argument("--tag-output", action="store_true", help="host and worker before each line that tasks print")
    output.add_argument("--report", metavar="FILE", help="write a page (HTML) with what each worker ran when")
    output.add_argument("--trace", metavar="FILE", help="the same as JSON, for Perfetto or chrome://tracing")
    output.add_argument("--profile", metavar="DIR", nargs="?", const=True, type=lambda name: name or True,
                        help="at the end, a table of the time spent in functions, on all workers; with DIR (a "
                             "directory, created if need be), also a file per worker there, for pstats")
    output.add_argument("--version", action="version", version=f"minscoop {__version__}")
    return parser


def add_host_options(parser):
    """The options about other hosts."""
    where = parser.add_argument_group("hosts (default: those of the batch job, if this is one; else this machine)")
    where.add_argument("--hosts", "--host", "--hostfile", metavar="HOSTS", action="append",
                       help="a file with lines 'name [workers]', or a list: a,b:4,user@c,node[01-16]:8,localhost")
    where.add_argument("--all-hosts", action="store_true",
                       help="fail if any host cannot be used (default: warn and go on without it)")
    where.add_argument("--check", action="store_true",
                       help="test every host, report whether it can be used, and run nothing")
    where.add_argument("--listen", metavar="FILE", help="write FILE, with which --join adds hosts to this run")
    where.add_argument("--join", metavar="FILE", help="add this machine's workers (or -n N) to the run that wrote FILE")
    reach = parser.add_argument_group("how hosts are reached")
    reach.add_argument("-e", "--rsh", "--ssh-executable", metavar="COMMAND",
                       help="the remote command; {host} stands for the host, else it comes last (default: ssh; "
                            "srun for the nodes of a Slurm job)")
    reach.add_argument("--python", "--python-interpreter", metavar="PATH",
                       help="interpreter there (default: the path of this one if it exists there, else python3)")
    reach.add_argument("--prolog", metavar="FILE",
                       help="a shell script that exists there, sourced first (a relative path starts at your home "
                            "directory there)")
    reach.add_argument("--pythonpath", metavar="PATH",
                       help="directories there, in which modules are looked for first (default: PYTHONPATH)")
    reach.add_argument("--path", "-p", metavar="DIR",
                       help="working directory there (default: as here, where it exists; else a temporary one)")
    reach.add_argument("--mixed", action="store_true",
                       help="let hosts with other versions of Python take part; then functions travel by name only")
    reach.add_argument("--transport", choices=("auto", "tcp", "stdio"),
                       help="how data goes: tcp, encrypted; stdio, through the remote command's stdin and stdout; "
                            "auto, by TCP if that is found to work, else by stdio (default)")
    reach.add_argument("--tunnel", dest="transport", action="store_const", const="stdio",
                       help="the same as --transport stdio")
    reach.add_argument("--external-hostname", metavar="ADDRESS", help="this machine's address, for other hosts")


def parse_options(parser):
    """The options on the command line. Raises SystemExit, with a message, if they make no sense."""
    words, kind, program = split_words(parser, sys.argv[1:])
    options, unknown = parser.parse_known_args(words)
    options.kind, options.program = kind, program
    for word in unknown:
        parser.error(f"no such option: {word}" + did_you_mean(word.partition("=")[0], parser._option_string_actions))
    if kind in ("-m", "-c") and not program:
        parser.error("no program: -m needs a module, -c needs code")
    for name, value, least in (("-n", options.max_workers, 0), ("--retries", options.retries, 0),
                               ("--max-tasks-per-child", options.max_tasks_per_child, 1)):
        if value is not None and value < least:
            parser.error(f"argument {name}: must be {least} or more, not {value}")
    unfit = "hosts", "check", "listen", "join", "max_tasks_per_child", "profile"
    for name in unfit if options.max_workers == 0 else ():
        if getattr(options, name):
            parser.error(f"-n 0 runs everything in this process, and does not go with --{name.replace('_', '-')}" +
                         (" (see python -m cProfile)" if name == "profile" else ""))
    return options


def command_line():
    """Run a program as the command line says; returns or raises SystemExit with its exit code."""
    parser = make_parser()
    options = parse_options(parser)
    options.interactive |= not options.program and sys.stdin is not None and sys.stdin.isatty()
    progress.wanted = False if options.quiet else options.progress
    log_to(logging.StreamHandler(), logging.ERROR if options.quiet else
           max(logging.DEBUG, logging.WARNING - 10 * options.verbose))
    try:
        if not options.join:  # which needs none
            os.getcwd()
    except OSError as error:
        parser.exit(2, f"minscoop.py: cannot use the working directory ({error.strerror}): change to one that exists\n")
    try:
        pool = pool_options(options)
        if options.join:
            join(options.join, options.max_workers)
        if options.check:
            sys.exit(check_hosts(pool))
    except (ValueError, PoolError) as error:
        parser.exit(2, f"minscoop.py: {error}\n")
    try:
        code = prepare_program(options)
    except (OSError, ImportError, SyntaxError, ValueError) as error:
        name = "the code" if options.kind == "-c" else (options.program or ["-"])[0]
        parser.exit(2, f"minscoop.py: cannot run {name}: {first_line(error, name)}\n")
    try:
        run_program(code, pool, options.interactive)
    except Terminated as error:
        sys.exit(128 + error.args[0])
    finally:
        forget_handlers()


def split_words(parser, words):
    """The command line as (our options; -m, -c, -- or ""; the program and its arguments). `--host a a b` among our
    options becomes `--host a,a,b`, and --profile takes what follows only if that cannot be the program."""
    def goes_on():
        """Whether the next word can be a value of an option: it is there, is no option, and cannot be the program."""
        word = words[0] if words else "-"
        program = os.path.join(word, "__main__.py") if os.path.isdir(word) else word
        return not (word.startswith("-") or word.endswith(".py") or os.path.exists(program))

    valued = {option for action in parser._actions if action.nargs is None for option in action.option_strings}
    options, words = [], [*words]
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        program = re.fullmatch("-([ivq]*)([mc])(.*)", word, re.DOTALL)  # -m module, -mmodule, -im module
        if program:
            flags, kind, attached = program.groups()
            options += ["-" + flags] if flags else []
            return options, "-" + kind, [attached, *words] if attached else words
        if word == "--":
            return options, word, words
        options.append(word)
        if words and (word in valued or re.fullmatch("-[ivq]+[nep]", word) or word == "--profile" and goes_on()):
            options.append(words.pop(0))
        while word in ("--host", "--hosts", "--hostfile") and goes_on():
            options[-1] += "," + words.pop(0)
    return options, "", words


def pool_options(options):
    """The Executor's arguments, by command line and batch job. Raises ValueError if hosts make no sense."""
    found = {name: value for name, value in vars(options).items() if name in ARGUMENTS and value is not None}
    found["summary"] = options.verbose > 0 and not (options.quiet or options.check)
    vain = ", ".join("--" + name.replace("_", "-") for name in OPTIONS if found.get(name, False) is not False
                     and name not in ("tag_output", "mixed"))  # these two work without other hosts, too
    if options.hosts:
        found["hosts"] = [pair for source in options.hosts for pair in parse_hosts(source)]
    elif not options.join and options.max_workers != 0:
        found = {**allocation(), **found}
    if vain and not (options.listen or options.join) and all(is_local(name) for name, _ in found.get("hosts", ())):
        logger.warning("without effect, since only this machine takes part: %s; name other hosts with --hosts", vain)
    return found


def check_hosts(options):
    """Try every host and print a table; returns the exit code: 0 only if all are fit."""
    with Executor(_check=True, **options) as executor:  # it logs in to its hosts, and starts no worker
        root = executor._node
        root.wait_for(lambda: root.broken or all("state" in facts for facts in root.hosts.values()), "hosts")
        root.check_open()
        every = {**root.hosts, "0": dict(about_this_machine(), host="(here)", transport="ipc")}.values()
    columns = "host login python pyzmq cores memory load transport round_trip bandwidth".split()
    rows = [[str(facts.get(column, "-")) for column in columns] if facts["state"] == "ready"
            else [facts["host"], facts["reason"]] for facts in every]
    print(*aligned([[column.replace("_", " ").upper() for column in columns], *rows]), sep="\n")
    return 0 if all(facts["state"] == "ready" for facts in every) else 1


def aligned(rows):
    """The lines of a table, its columns aligned; a row of only two cells has free text in the second."""
    widths = [max(len(row[i]) for row in rows if len(row) > 2 or i == 0) for i in range(len(rows[0]))]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]


def first_line(error, known=None):
    """An error in one line, with its file unless that is `known`; a SyntaxError as Python shows it, with the place."""
    if isinstance(error, SyntaxError):
        return "\n" + "".join(traceback.format_exception_only(type(error), error)).rstrip()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename in (None, known) else f"{error.strerror}: {error.filename}"
    return str(error).partition("\n")[0]


def prepare_program(options):
    """Compile the program and set up sys.argv, sys.path and ``__main__`` as Python would; returns the code. Only the
    last entry of sys.path is ours, by which processes that multiprocessing starts afresh (its default from Python 3.14
    on) find minscoop."""
    global beside
    module = types.ModuleType("__main__")
    module.__builtins__ = __builtins__
    name, *rest = options.program or [""]
    sys.argv, spec = [options.kind if options.kind in ("-c", "-m") else name, *rest], None
    front = [""] if getattr(sys.flags, "safe_path", False) else sys.path  # python -P: no entry to replace
    front[0] = ""
    if options.kind == "-c":
        code = compile(name, "<string>", "exec")
    elif options.kind == "-m":
        front[0] = os.getcwd()
        code, spec = read_module(name)
        sys.argv[0] = spec.origin  # only now: its package, which this has imported, saw -m
    elif name in ("", "-"):  # as python, and python -
        prompt_only = options.interactive and not name
        code = compile("" if prompt_only or sys.stdin is None else sys.stdin.read(), "<stdin>", "exec")
        if prompt_only:
            module.map = map  # a script has Python's, unless it imports ours
    else:
        path = name if sys.version_info < (3, 9) else os.path.join(os.getcwd(), name)
        spec = importlib.machinery.PathFinder.find_spec("__main__", [path])
        if spec and spec.loader:  # it is a directory or a zip file that has a __main__.py
            code, front[0] = spec.loader.get_code("__main__"), path
            if front is not sys.path:
                sys.path.insert(0, path)  # as Python does with -P, too
        elif os.path.isdir(name):
            raise ImportError("is a directory without __main__.py; for a package use -m")
        else:
            code, module.__file__ = compile(read_source(name), name, "exec"), path
            front[0] = os.path.dirname(os.path.realpath(name))  # links resolved, as Python does
    if spec:
        module.__spec__, module.__package__, module.__file__ = spec, spec.parent, spec.origin
    sys.modules["__main__"] = module
    directory = os.path.dirname(os.path.abspath(__file__))
    if directory not in sys.path:
        sys.path.append(directory)
        beside = directory
    return code


def run_program(code, pool, interactive):
    """Execute the program with an Executor around it. pool: the Executor's arguments. interactive: a prompt follows."""
    for number in ENDS:
        if signal.getsignal(number) is signal.SIG_DFL:  # else it is ignored, as with nohup
            signal.signal(number, terminate)
    os.register_at_fork(before=put_off, after_in_parent=let_come, after_in_child=forget_handlers)
    os.register_at_fork(after_in_child=let_come)
    install_names(SCOOP_NAMES)
    try:
        executor = Executor(**pool)
    except (MinscoopError, OSError, ValueError) as error:
        sys.exit(f"minscoop: {error}")
    global pristine
    pristine = False
    gc.freeze()  # what exists now stays: looking through it at exit takes 10 ms
    gc.enable()
    interruptible()
    try:
        with contextlib.closing(progress), executor:
            answer_with_stacks(executor._node)
            if progress.wanted:
                progress.watch(executor._node)
            execute(code, executor, interactive)
    except SystemExit as error:
        if error.code not in (None, 0):  # else it is a normal end: sys.exit(main())
            raise
    except KeyboardInterrupt:  # maybe raised as the pool ends: a traceback would show only our frames
        executor._finish("abort")  # if it came just before that
        sys.excepthook = lambda *_: None
        raise
    if executor._unnoticed:
        sys.exit(1)


def interruptible():
    """From here on, Ctrl-C is a KeyboardInterrupt again; unless it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def execute(code, executor, interactive):
    """Execute the program, and show the exception that ends it; then a prompt, if that is wanted."""
    namespace = sys.modules["__main__"].__dict__
    try:
        exec(code, namespace)
    except Terminated:
        raise
    except BaseException as error:
        if interactive or not isinstance(error, SystemExit):
            show(error, error.__traceback__)
        if not interactive:
            sys.excepthook = lambda *_: None  # shown already; Python does the rest: exit handlers, exit code or SIGINT
            raise
    finally:
        flush_output()
    if interactive and not getattr(sys.stdin, "closed", True):
        namespace.update({"submit": submit, "futures": sys.modules["minscoop"], "executor": executor,
                          **namespace})  # the script's own names take precedence
        prompt(namespace, executor._node)  # not its _pool(): the script may have shut it down


ENDS = signal.SIGTERM, signal.SIGHUP
masks = threading.local()


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: raised in the main thread of a program that the command line runs. Not a SystemExit:
    while an object is pickled, that is taken for a fault of the object (see FAULTS)."""

    raised = -math.inf  # when it was raised last


def terminate(number, _):
    """Handler of SIGTERM and SIGHUP: end with exit code 128 + number, as in shells. Only once in GRACE, so that the
    clean-up is not interrupted: systemd and closing terminals send both. But a bare `except:` may swallow the first."""
    if time.monotonic() - Terminated.raised > GRACE:
        Terminated.raised = time.monotonic()
        raise Terminated(number)


def forget_handlers():
    """In a child that the program forks, by multiprocessing for instance: let SIGTERM and SIGHUP end it at once. If one
    came just before a blocking call, a handler in Python would not run until that call returns. Likewise once the pool
    has ended: exit handlers, and threads that go on, would swallow what it raises."""
    for number in ENDS:
        if signal.getsignal(number) is terminate:
            signal.signal(number, signal.SIG_DFL)


def put_off():
    """Before a fork: block these signals, since one that reached the child before ``forget_handlers`` would be lost."""
    masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)


def let_come():
    """After the fork, in parent and child: restore the signal mask; blocked signals arrive now."""
    signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)


def show(error, tb):
    """Print an error of the program with its traceback, without our frames; a PoolError as its message only."""
    if isinstance(error, PoolError):
        say(f"minscoop: {error}")
        return
    tb = without_ours(tb)
    sys.last_type, sys.last_value, sys.last_traceback, last = type(error), error, tb, tb  # for pdb.pm() at a prompt
    sys.last_exc = error  # the same from Python 3.12 on
    while isinstance(error, KeyboardInterrupt) and last is not None:  # nor, at its end, those where we waited
        if last.tb_next is not without_ours(last.tb_next):
            last.tb_next = None
        last = last.tb_next
    sys.excepthook(type(error), error.with_traceback(tb), tb)


if _AS_SCRIPT:
    command_line()
