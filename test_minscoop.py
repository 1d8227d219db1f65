"""Tests of minscoop, in the order of the module.

    python -m pytest -q test_minscoop.py

Nothing here measures time: timeouts only end what hangs. A test that hangs for BOUND seconds has every
process print its stacks, and fails; the run ends if that does not end it. A test that leaves a process, a
thread, a socket directory or shared memory behind fails.

The tests of hosts set up hosts of their own, which needs root on Linux with sshd, ip and nft, or with Slurm and
munge; others download something, or need chromium. Where that is impossible they are skipped, or fail if CI is set.
Set MINSCOOP_MEGABYTES=3000 to have large objects of 3000 MB instead of 50.
"""
import _thread
import abc
import array
import ast
import asyncio
import builtins
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import decimal
import enum
import faulthandler
import fcntl
import functools
import gc
import glob
import heapq
import importlib
import inspect
import io
import itertools
import json
import logging
import math
import mmap
import multiprocessing
import operator
import os
import pathlib
import pickle
import pkgutil
import pstats
import py_compile
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
import traceback
import types
import typing
import unittest
import weakref
import zipapp
import zlib
from concurrent.futures import _base
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, TimeoutError

from unittest import mock

import minscoop
from minscoop import CannotSend, MinscoopError, PoolError, TaskError, WorkerLost


class Unmarked:
    """Stands in for pytest's marks and fixtures in workers, which run functions of this file, but no tests."""

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **_):
        return args[0] if args and isinstance(args[0], types.FunctionType) else self


numpy = None
if minscoop.this_worker is not None:  # tests kill many workers, whose successors start sooner without these imports
    pytest = types.SimpleNamespace(mark=Unmarked(), fixture=Unmarked())
else:
    import pytest
    with contextlib.suppress(ImportError):
        import numpy

HERE = pathlib.Path(__file__).resolve().parent
MINSCOOP = HERE / "minscoop.py"
MEGABYTES = int(os.environ.get("MINSCOOP_MEGABYTES", 50))  # size of large objects; 3000 needs 20 GB of memory
BOUND = 60 + MEGABYTES // 10  # s that one test may take
WAIT = 40      # s that one result may take, or the end of one process
LINUX = sys.platform.startswith("linux")
linux_only = pytest.mark.skipif(not LINUX, reason="looks into /proc")


# ---------------------------------------------------------------------------------------------------
# What the tests are made of: who is left, guards, pools, programs


def stat_of(pid):
    """(state, parent, start time) of a process, from /proc; None if it is gone."""
    fields = read_proc(pid, "stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[1]), int(fields[19])) if fields else None


def read_proc(pid, name):
    """The content of a small file in /proc/PID, or b"". Not by pathlib, which is slow: tests read one per process."""
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    except OSError:
        return b""
    try:
        chunks = iter(lambda: os.read(descriptor, 1 << 16), b"")
        return b"".join(chunks)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def all_pids():
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()] if LINUX else []


def processes_of(marker):
    """The living processes, this one apart, that were started with MINSCOOP_TEST=marker."""
    wanted = f"MINSCOOP_TEST={marker}".encode()
    return [pid for pid in all_pids()
            if pid != os.getpid() and wanted in read_proc(pid, "environ").split(b"\0")]


def children_of(parent):
    """The children of a process, oldest first; zombies too."""
    stats = [(stat_of(pid), pid) for pid in all_pids()]
    return [pid for _, pid in sorted((stat[2], pid) for stat, pid in stats if stat and stat[1] == parent)]


def zombies():
    return {pid for pid in children_of(os.getpid()) if (stat_of(pid) or "?")[0] == "Z"}


def kill_all(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def abort_all(pids):
    """Have Python processes print their stacks, and die; the youngest first, since workers die with their keeper."""
    for pid in sorted(pids, reverse=True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.2)  # one after the other


def eventually(condition, timeout=WAIT):
    """Wait until condition() is true; returns what it returned last."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.01)


def two_seconds():
    """Two seconds, or more where more processes want to run than there are cores."""
    return 2 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


@contextlib.contextmanager
def environment(marker, directory):
    """A temporary directory and a marker for what is started meanwhile."""
    patch = pytest.MonkeyPatch()
    for name, value in dict(TMPDIR=directory, MINSCOOP_TEST=marker, PYTHONFAULTHANDLER="1").items():
        patch.setenv(name, value)
    for name in "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE":
        patch.delenv(name, raising=False)
    patch.setattr(tempfile, "tempdir", directory)
    try:
        yield directory
    finally:
        patch.undo()


@contextlib.contextmanager
def short_directory():
    """A directory whose path is short enough for sockets; pytest's own are not."""
    directory = tempfile.mkdtemp(prefix="mt-", dir="/tmp")
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def abort(executor):
    """End an Executor at once, as Ctrl-C in its block does."""
    executor.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


SHARED = f"{os.getpid()}-shared"  # the marker of the pool that tests share


class SharedPool:
    """The pool of two workers for the tests that leave it whole; one that a test has harmed is replaced."""

    def __init__(self, directory):
        self.executor, self.directory = None, directory

    def ensure(self):
        if self.executor is None:
            with environment(SHARED, self.directory):
                self.executor = minscoop.Executor(2, retries=2)
                self.executor.submit(os.getpid).result(WAIT)

    def check(self):
        """Drop the pool if it is broken, or if something of the latest test still runs there."""
        node = self.executor and self.executor._node
        if node and (not eventually(node.quiet, 5) or node.broken):
            self.drop()

    def drop(self):
        executor, self.executor = self.executor, None
        if executor is not None:
            abort(executor)


@pytest.fixture(scope="module")
def shared_pool():
    with short_directory() as directory:
        shared = SharedPool(directory)
        yield shared
        if shared.executor is not None:
            shared.executor.shutdown()
        assert not eventually_none(lambda: processes_of(SHARED) + os.listdir(directory))


@pytest.fixture(scope="session")
def terminal(request, tmp_path_factory):
    """The descriptor of the real stderr, which pytest captures."""
    tmp_path_factory.getbasetemp()  # now, before a test redirects temporary files to its own directory
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        return os.dup(2)


@pytest.fixture(scope="session", autouse=True)
def compiled():
    """Compile both files once, rather than in each worker, even if this Python has been told not to write bytecode."""
    with contextlib.suppress(OSError):
        for path in MINSCOOP, HERE / "test_minscoop.py":
            py_compile.compile(str(path))


@pytest.fixture(scope="session", autouse=True)
def terminated():
    """SIGTERM, as `timeout` sends it, ends the run as Ctrl-C does: tests and fixtures remove what they have made."""
    def end(*_):
        if os.getpid() == own:
            pytest.exit("SIGTERM", 128 + signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a child that a test has forked
        os.kill(os.getpid(), signal.SIGTERM)
    own, before = os.getpid(), signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


def eventually_none(found, timeout=5):
    """Wait until found() is empty; returns what was left when it was asked last."""
    left = None

    def empty():
        nonlocal left
        left = found()
        return not left
    eventually(empty, timeout)
    return left


def print_stacks(marker, terminal):
    """Have all processes of a test that hangs print their stacks, this one too."""
    abort_all(processes_of(marker) + processes_of(SHARED))
    with contextlib.suppress(OSError):
        os.write(terminal, os.pread(2, 1 << 20, 0))  # what was captured so far
    faulthandler.dump_traceback(terminal)


@pytest.fixture(autouse=True)
def guard(request, shared_pool, terminal):
    """Ends a hang; fails the test that leaves something behind."""
    def hang(*_):
        print_stacks(marker, terminal)
        pytest.fail(f"no end after {BOUND} s")
    marker = f"{os.getpid()}-{request.node.name}"[:200]
    faulthandler.dump_traceback_later(BOUND + 20, exit=True, file=terminal)  # should that not help
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(BOUND)
    if {"pool", "any_pool"} & set(request.fixturenames):
        shared_pool.ensure()
    before = zombies(), foreign_threads(), shared_memory()
    executors = list(minscoop.executors)
    with short_directory() as directory, environment(marker, directory):
        yield directory
        signal.alarm(0)
        shared_pool.check()
        left = {"processes": eventually_none(lambda: processes_of(marker)),
                "zombies": eventually_none(lambda: zombies() - before[0]),
                "threads": eventually_none(lambda: foreign_threads() - before[1]),
                "sockets": eventually_none(lambda: list(pathlib.Path(directory).glob("minscoop-*"))),
                "shared memory": eventually_none(lambda: shared_memory() - before[2])}
        commands = [command_of(pid) for pid in left["processes"]]
        kill_all(left["processes"])
        for executor in set(minscoop.executors) - set(executors):
            abort(executor)
    faulthandler.cancel_dump_traceback_later()
    assert not any(left.values()), f"left behind: {left} {commands}"


def foreign_threads():
    """All threads but the one that pyzmq keeps for ever after the first message sent without a copy."""
    return {thread for thread in threading.enumerate() if type(thread).__name__ != "GarbageCollectorThread"}


def shared_memory():
    """What pools have left in shared memory: their directories that no process has locked any more."""
    left = set()
    for path in pathlib.Path("/dev/shm").glob("minscoop-*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.add(path.name)
            finally:
                os.close(descriptor)
    return left


def command_of(pid, length=80):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:length]


@pytest.fixture
def pool(guard, shared_pool):
    """An Executor of two workers that other tests use too."""
    return shared_pool.executor


def workers_of(executor):
    """Pids of the workers of an Executor; the keeper's first child is the broker."""
    return children_of(executor._node.keeper.pid)[1:]


def finish(process, stdin=None, timeout=WAIT):
    """Wait for a Popen; one that does not end prints the stacks of all its processes."""
    try:
        out, err = process.communicate(stdin, timeout)
    except subprocess.TimeoutExpired:
        abort_all(processes_of(os.environ["MINSCOOP_TEST"]))
        out, err = process.communicate(timeout=10)
        pytest.fail(f"{process.args} did not end within {timeout} s\n{out}\n{err}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(*args, **kwargs):
    """A Python with these arguments, in a session of its own as a shell's job would be."""
    kwargs = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs}
    return subprocess.Popen([sys.executable, *map(str, args)], start_new_session=True, **kwargs)


def python(*args, stdin="", timeout=WAIT, **kwargs):
    """Run a Python with these arguments to its end."""
    return finish(start(*args, **kwargs), stdin, timeout)


def launch(*args, **kwargs):
    """Run `python minscoop.py` with these arguments to its end."""
    return python(MINSCOOP, *args, **kwargs)


def launch_together(commands, timeout=WAIT, **kwargs):
    """Run `python minscoop.py` with each of these arguments, all at once, to their ends."""
    processes = [start(MINSCOOP, *args, **kwargs) for args in commands]
    return [finish(process, "", timeout) for process in processes]


def in_groups(names, size):
    """A mark: the test takes `size` names at a time and runs their programs together, since these mostly wait."""
    names = list(names)
    return pytest.mark.parametrize("names", [names[i:i + size] for i in range(0, len(names), size)], ids=", ".join)


def output_of(*args, **kwargs):
    """The stdout of a program run under minscoop, which must exit with 0 and print nothing to stderr."""
    done = launch(*args, **kwargs)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def skip_or_fail(reason):
    """Skip a test that this machine cannot run; with CI set, fail it, since .ci/run installs what tests need."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture
def script(tmp_path):
    """A function that writes a program to a file and returns its path."""
    def write(text, name="program.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path
    return write


# Functions for tasks. They signal to each other and to the test through files, since they have nothing else in
# common with the test.

def identity(value):
    return value


def left(a, b):
    return a


def append(path, text="x"):
    """Note in a file that this was called."""
    with open(path, "a") as file:
        file.write(f"{text}\n")
    return text


def lines_of(path):
    path = pathlib.Path(path)
    return path.read_text().split() if path.exists() else []


def touch(path, value=None):
    pathlib.Path(path).touch()
    return value


def await_file(path, value=None, then=None):
    """Make the file `then`, if given, and block until another process makes `path`; returns `value`."""
    if then is not None:
        touch(then)
    if not eventually(lambda: os.path.exists(path)):
        raise TimeoutError(f"nobody has made {path}")
    return value


def meet(directory, me, other):
    """Two calls of this can only end if they run at the same time."""
    touch(f"{directory}/{me}")
    return await_file(f"{directory}/{other}", me)


def divide(a, b=0):
    return a / b


def die(code=9):
    os._exit(code)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_once(path, how=kill, value="survived"):
    """Kills its worker when it is called for the first time."""
    if not os.path.exists(path):
        touch(path)
        how()
    return value


# ---------------------------------------------------------------------------------------------------
# 0  The document


def sections():
    """The module's text by section: {title: text}."""
    parts = re.split(r"^# -{90,}\n# +\d+  (.+)\n", MINSCOOP.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def test_the_index_names_the_banners_when_the_docstring_is_read():
    """The index in the module's docstring has the sections' names in their order."""
    index = {int(number): title.strip() for number, title in
             re.findall(r"(\d+)  ([A-Z][\w' ]+?)(?=   |$)", minscoop.__doc__.split("Sections")[1], flags=re.M)}
    assert [index[number] for number in sorted(index)] == list(sections())


@pytest.mark.parametrize("name", minscoop.__all__)
def test_a_public_name_explains_itself_when_asked_for_help(name):
    """Each public name is there, and has a docstring of its own, as have its public methods."""
    value = getattr(minscoop, name)
    if getattr(value, "__module__", None) == "minscoop":
        members = vars(value).items() if isinstance(value, type) else ()
        assert value.__doc__
        assert [key for key, member in members if callable(member) and not key.startswith("_")
                and not (member.__doc__ or "").strip()] == []


def test_modules_and_builtins_stay_private_when_names_are_imported():
    """`from minscoop import *` brings the interface and nothing else."""
    names = {}
    exec("from minscoop import *", names)
    del names["__builtins__"]
    assert names.keys() == set(minscoop.__all__) and names.keys() & vars(builtins).keys() == {"map", "TimeoutError"}
    assert not any(isinstance(value, types.ModuleType) for value in names.values())


# ---------------------------------------------------------------------------------------------------
# 1  Tunables


@linux_only
def test_the_number_of_cores_shrinks_when_the_affinity_does():
    """Only CPUs that the process may use count."""
    code = "import os, minscoop; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); " \
           "print(minscoop.usable_cores())"
    assert python("-c", code, cwd=HERE).stdout == "1\n"


@pytest.mark.parametrize("groups, files, cores", [
    ("0::/a/b", {"/a/b/cpu.max": "max 100000"}, 64), ("0::/a/b", {"/a/b/cpu.max": "200000 100000"}, 2),
    ("0::/a/b", {"/a/b/cpu.max": "max 100000", "/a/cpu.max": "300000 100000"}, 3), ("0::/", {"/cpu.max": "?"}, 64),
    ("0::/a/b", {"/cpu.max": "50000 100000"}, 1), ("0::/", {}, 64), ("nonsense", {}, 64), (None, {}, 64),
    ("3:cpu,cpuacct:/a\n1:name=systemd:/a\n0::/", {"/cpu/a/cpu.cfs_quota_us": "450000",
                                                   "/cpu/a/cpu.cfs_period_us": "100000"}, 4),
    ("3:cpu:/a", {"/cpu/a/cpu.cfs_quota_us": "-1", "/cpu/a/cpu.cfs_period_us": "100000"}, 64),
    ("3:cpuset:/a", {"/cpuset/a/cpu.max": "100000 100000", "/a/cpu.max": "100000 100000"}, 64)])
def test_the_number_of_cores_follows_the_quota_when_a_cgroup_has_one(monkeypatch, groups, files, cores):
    """A container's share of CPUs counts as whole cores, at least one; in version 2 of cgroups, and in version 1."""
    texts = {"/proc/self/cgroup": groups, **{f"/sys/fs/cgroup{path}": text for path, text in files.items()}}

    def read(path, **kwargs):
        if texts.get(path) is None:
            raise FileNotFoundError(path)
        return io.StringIO(texts[path] + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    monkeypatch.setattr(minscoop, "open", read, raising=False)
    assert minscoop.usable_cores() == cores


# ---------------------------------------------------------------------------------------------------
# 2  Errors

ERRORS = [CannotSend, TaskError, WorkerLost, PoolError]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_keeps_type_and_text_when_it_travels(error):
    """minscoop's own errors must have its common base class and a docstring, and survive pickling."""
    assert issubclass(error, MinscoopError) and error.__doc__
    copy = pickle.loads(pickle.dumps(error("why")))
    assert type(copy) is error and str(copy) == "why"


def test_the_wall_clock_may_jump_when_nothing_looks_at_it():
    """The module must take every time from a monotonic clock."""
    assert not re.search(r"\btime\.time\b|datetime|\.timedwait", MINSCOOP.read_text())


def test_errors_of_the_standard_library_are_caught_when_ours_are_raised():
    """Programs written for concurrent.futures and pickle catch what they are used to."""
    assert issubclass(WorkerLost, concurrent.futures.BrokenExecutor)
    assert issubclass(PoolError, concurrent.futures.BrokenExecutor)
    assert issubclass(CannotSend, pickle.PicklingError)
    for name in ("TimeoutError", "CancelledError", "FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"):
        assert getattr(minscoop, name) is getattr(concurrent.futures, name)


# ---------------------------------------------------------------------------------------------------
# 3  Messages


def message_table():
    """{name: (senders, receivers)} of the table in the module, whose header says which column is which."""
    lines, table = sections()["Messages"].splitlines(), {}
    header = next(line for line in lines if "from → to" in line)
    name, way, fields = (header.index(title) for title in ("name", "from → to", "fields"))
    for line in lines[lines.index(header) + 1:lines.index("#", lines.index(header))]:
        current = line[name:way].strip() or current
        table[current] = f"{table.get(current, '')} {line[way:fields].strip()}".strip()
    return {name: way.partition(" → ")[::2] for name, way in table.items()}


def test_every_message_has_its_handlers_when_the_table_is_read():
    """Brokers and nodes must have a handler for each message that the table sends them, and for no other."""
    table = message_table()
    broker, root, worker = ({name[3:] for name in dir(cls) if name.startswith("on_")}
                            for cls in (minscoop.Broker, minscoop.Root, minscoop.Worker))
    only = {"root": root - worker, "worker": worker - root, "taker": worker - root}
    assert len(table) > 10
    for name, (senders, receivers) in table.items():
        assert name in broker or senders == "broker"
        assert name in only.get(receivers, root | worker) or receivers == "broker"
    assert root | worker | broker - {""} == set(table)  # the empty message is told of below it


def test_names_tell_owner_and_host_when_a_task_is_routed():
    """A task's id begins with its owner's name, a node's name with its host's."""
    assert minscoop.owner_of(b"0.root:17/3") == b"0.root"
    assert minscoop.host_of(b"4.2") == b"4"


@pytest.mark.parametrize("messages", [
    [[b"STOP"]],
    [[b"RESULT", b"0.root:1/0", b"", b"1", b"1", b"body", b""], [b"HUNGRY", b"1"], [b"PROBE"], [b"LOG", b"{}"]],
    [[b"SPLIT", b"0.root:%d/0" % i, b"0", b"9", b"0.root:%d/9" % i] for i in range(3 * minscoop.OUT_OF_BAND // 30)]])
def test_messages_are_the_same_when_they_travelled_as_one(messages):
    """However many, and however large the frame that has all their short fields."""
    zmq = pytest.importorskip("zmq")
    context = zmq.Context()
    sender, receiver = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    try:
        receiver.bind("inproc://here")
        sender.connect("inproc://here")
        minscoop.transmit(sender, minscoop.bundled(messages))
        came = minscoop.unbundled(minscoop.receive(receiver))
    finally:
        context.destroy(linger=0)
    assert came == messages


@pytest.mark.parametrize("frames", [
    [], [b"BUNDLE"], [b"BUNDLE\0"], [b"BUNDLE\0many\0STOP"], [b"BUNDLE\0001 0 1 0\0STOP"], [b"BUNDLE\0000 0 0 0"],
    [b"BUNDLE\0-1 1 1 -1\0STOP\0STOP", b"-"], [b"BUNDLE\0009 9 1 1\0STOP", b"-"], [b"BUNDLE\0001\0STOP"]])
def test_nothing_raises_when_a_bundle_is_nonsense(frames):
    """What comes out is handled like any other message: there is one at least, and none is empty."""
    messages = minscoop.unbundled(frames)
    assert messages and all(message == frames or isinstance(message[0], bytes) for message in messages)


# ---------------------------------------------------------------------------------------------------
# 4  Sending objects


def there_and_back(obj):
    return minscoop.loads(minscoop.dumps(obj))


def make_counter(start):
    def count():
        nonlocal start
        start += 1
        return start
    return count


def make_factorial():
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)
    return factorial


def make_mutual():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n > 0 and even(n - 1)
    return even


def doubled(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return 2 * fn(*args, **kwargs)
    return wrapper


@doubled
def decorated(value):
    """Travels by name, since that name leads to the decorated function."""
    return value + 1


def make_dispatching():
    @functools.singledispatch
    def kind(value):
        return "object"

    @kind.register(int)
    def of_int(value):
        return "int"
    return kind


class Adder:
    def __init__(self, value):
        self.value = value

    def add(self, other):
        return self.value + other

    __call__ = add

    @classmethod
    def of(cls, other):
        return cls(1).add(other)

    @staticmethod
    def plain(other):
        return other + 1


class Derived(Adder):
    def add(self, other):
        return 0

    def base(self):
        return super().add

    def __private(self, other):
        return self.value * other

    def private(self):
        return self.__private

    renamed = doubled(lambda self, other: self.value + other)
    renamed.__name__ = "other"


def make_function_with_attributes():
    def fn(value, *rest, factor=3, **more):
        """Text."""
        return fn.offset + value * factor
    fn.offset = 2
    return fn


def make_local_classes():
    class Base:
        kind = "base"

        def who(self):
            return f"{self.kind} {self.size}"

    class Derived(Base):
        __slots__ = ("size",)
        kind = "derived"

        def __init__(self, size):
            super().__init__()
            self.size = size

        @property
        def double(self):
            return 2 * self.size

        @classmethod
        def make(cls):
            return cls(3)

        @staticmethod
        def plain():
            return "plain"

        def twin(self):
            return Derived(self.size)
    return Derived


def make_enum():
    class Colour(enum.Enum):
        RED = 1
        BLUE = "b"

        def shout(self):
            return self.name + "!"
    return Colour


def make_flag():
    class Mode(enum.IntFlag):
        READ = 1
        WRITE = 2
    return Mode


def make_counted_enum():
    class Counting(enum.EnumMeta):
        def count(cls):
            return len(cls)

    class Side(enum.Enum, metaclass=Counting):
        LEFT = 1
        RIGHT = 2
    return Side


def make_planet():
    class Planet(enum.Enum):
        EARTH = 6, 2

        def __init__(self, mass, size):
            super().__init__()
            self.density, self._size = mass / size, size
    return Planet


def make_private():
    """An Enum with documentation, and with a private attribute, which is no member since Python 3.11."""
    class Private(enum.Enum):
        """Text."""

        __factor = 3
        ONE = 1

        def tripled(self):
            return self.value * self.__factor
    return Private


def make_empty():
    """One without members is there to be subclassed."""
    class Empty(enum.Enum):
        def half(self):
            return self.value[0]
    return Empty


def make_creature():
    """As the documentation of Enum has it, too: members that are of a dataclass."""
    @dataclasses.dataclass
    class Traits:
        legs: int
        tail: bool = True

    class Creature(Traits, enum.Enum):
        DOG = 4
        HUMAN = 2, False
    return Creature


def make_functions():
    class Functions(enum.Enum):
        @enum.member
        def double(self):
            return 2 * self
    return lambda value: Functions.double.value(value)


def make_status():
    """As the documentation of Enum has it: members made by a ``__new__``, which takes more than the value."""
    class Status(int, enum.Enum):
        def __new__(cls, value, phrase):
            member = int.__new__(cls, value)
            member._value_, member.phrase = str(value), phrase
            return member
        OK = 200, "fine"
        GONE = 410, "not there"

        @functools.cached_property
        def twice(self):
            return 2 * self
    Status.FINAL = {Status.GONE}
    return Status


def make_holiday():
    class Holiday(datetime.date, enum.Enum):
        EASTER = 4, 5, "moves"

        def __new__(cls, month, day, how):
            self = datetime.date.__new__(cls, 2026, month, day)
            self._value_ = how
            return self

        __repr__ = enum.Enum.__repr__  # since Python 3.11 it would be the date's, for which the value is none
    return Holiday


def make_mixed(kind, content):
    """An Enum whose member is of another type, too."""
    return enum.Enum("Mixed", {"ONE": content}, type=kind)


T = typing.TypeVar("T")


def make_generic():
    class Box(typing.Generic[T]):
        def __init__(self, content):
            self.content = content

        @functools.cached_property
        def twice(self):
            return [self.content] * 2
    return Box


def make_typed():
    """A function with a local TypeVar, NewType and generic class, which no name leads to either."""
    U, UserId = typing.TypeVar("U", bound=int), typing.NewType("UserId", int)

    class Pair(typing.Generic[U]):
        def second(self, other: U) -> U:
            return other

    def second(value: U) -> UserId:
        return UserId(Pair[int]().second(value))
    return second


def make_dataclass(**options):
    @dataclasses.dataclass(frozen=True, order=True, **options)
    class Point:
        x: int
        y: list = dataclasses.field(default_factory=list)
    return Point


def make_table():
    class Table:
        """Its attribute holds its own methods, looked up while it is being unpickled; Pydantic keeps validators so."""

        def own(self):
            return 1

        @classmethod
        def of_class(cls):
            return 2

        @staticmethod
        def static():
            return 3

        table = ()
    Table.table = Table().own, Table.of_class, Table.static
    return Table


def make_key():
    """A class whose instances are elements of a set that a method uses, and keys of a dict that is an attribute."""
    @dataclasses.dataclass(frozen=True)
    class Cell:
        x: int

        def known(self):
            return self in cells and self.names[Cell(self.x)]
    cells = {Cell(1), Cell(2)}
    Cell.names = {Cell(1): "one"}
    return Cell


def make_namedtuple():
    return collections.namedtuple("Pair", "left right")


def make_abstract():
    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self):
            pass

    @Shape.register
    class Square:
        base = Shape
    return Square


def make_typed_dict():
    class Movie(typing.TypedDict):
        name: str

    class Rated(Movie, total=False):
        stars: int

    def rated(movie: Movie, stars: Rated) -> Rated:
        return Rated(**movie, stars=stars)
    return rated


def make_error():
    class LocalError(ValueError):
        pass
    return LocalError


def make_generator_function():
    def generate(n):
        for i in range(n):
            yield i * i
    return lambda n: list(generate(n))


def locked(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        with LOCK:
            return fn(*args)
    return wrapper


CALLABLES = {  # name -> (callable, argument, result)
    "builtin": (abs, -3, 3),
    "lambda": (lambda x: x + 1, 1, 2),
    "lambda with a default": (lambda x, y=[4]: x + y[0], 1, 5),
    "lambda over a global": (lambda x: math.floor(x) + len(CALLABLES["builtin"]), 1.5, 4),
    "nested lambda": ((lambda k: lambda x: (lambda y: x + y + k)(1))(5), 1, 7),
    "closure": (make_counter(5), (), 6),
    "recursive closure": (make_factorial(), 5, 120),
    "mutually recursive closures": (make_mutual(), 10, True),
    "single dispatch": (make_dispatching(), 3, "int"),
    "keyword only and attributes": (make_function_with_attributes(), 4, 14),
    "generator function": (make_generator_function(), 4, [0, 1, 4, 9]),
    "decorated function": (decorated, 4, 10),
    "decorated lambda": (doubled(lambda x: x), 4, 8),
    "decorated function of another module": (locked(math.floor), 1.5, 1),
    "attribute with a global's name": (eval("lambda x: x.real", {"real": threading.Lock()}), 2, 2),
    "partial": (functools.partial(pow, 2), 5, 32),
    "partial of a lambda": (functools.partial(lambda a, b: a - b, 1), 2, -1),
    "bound method": (Adder(2).add, 3, 5),
    "bound method of a base class": (Derived(2).base(), 3, 5),
    "private bound method": (Derived(2).private(), 3, 6),
    "bound method of another name": (Derived(2).renamed, 3, 10),
    "bound method of a builtin": ("a-b".split, "-", ["a", "b"]),
    "callable instance": (Adder(2), 3, 5),
    "class method": (Adder.of, 3, 4),
    "static method": (Adder.plain, 3, 4),
    "class": (Adder, 3, None),
    "callable of a local class": (make_local_classes()(4).who, (), "derived 4"),
    "operator": (operator.itemgetter(1), "ab", "b"),
    "types without a name": (lambda fn, kinds=(types.FunctionType, type(None)): isinstance(fn, kinds), None, True),
    "numpy-like attribute": (operator.attrgetter("real"), 2, 2),
    "function with local type variables": (make_typed(), 3, 3),
    "function with local typed dicts": (functools.partial(make_typed_dict(), {"a": 1}), 3, {"a": 1, "stars": 3}),
}

if sys.version_info >= (3, 9):  # before, an lru_cache does not reveal its parameters
    CALLABLES["cached partial"] = functools.lru_cache(None)(functools.partial(pow, 2)), 3, 8

if sys.version_info >= (3, 11):
    CALLABLES["member of an enum"] = make_functions(), 3, 6

if sys.version_info >= (3, 15):
    made = {"__name__": __name__}
    exec("lazy import json\nlazy from xml import dom\ndef text(x): return json.dumps([x, dom.Node.TEXT_NODE])", made)
    CALLABLES["function that imports lazily"] = made["text"], 1, "[1, 3]"

if sys.version_info >= (3, 12):
    made = {"__name__": __name__}
    exec("type Number = int\ndef same[T](x: T) -> Number: return x * len(same.__type_params__)\n"
         "type Tree = list[Tree] | Leaves\ntype Leaves = tuple[Tree, ...]\ndef leaf(x: Tree): return x\n"
         "class Same[T]:\n    def __new__[K](cls, x: K): return x", made)
    CALLABLES["function with type parameters"] = made["same"], 3, 3
    CALLABLES["function with recursive type aliases"] = made["leaf"], 3, 3
    CALLABLES["class with type parameters"] = made["Same"], 3, 3


def call_with(fn, argument):
    return fn() if argument == () else fn(argument)


@pytest.mark.parametrize("name", CALLABLES)
def test_a_callable_does_the_same_when_it_was_sent(pool, name):
    """Any callable can be sent, by value if no name leads to it, and must return there what it returns here."""
    fn, argument, expected = CALLABLES[name]
    here, there = call_with(there_and_back(fn), argument), pool.submit(call_with, fn, argument).result(WAIT)
    if expected is not None:
        assert (here, there) == (expected, expected)
    assert type(here) is type(there)


def test_a_function_keeps_its_looks_when_it_travels_by_value():
    """The copy must have the function's names, docstring, defaults, annotations and attributes."""
    list_of, counter_of = collections.abc.Sequence, collections.Counter
    if sys.version_info >= (3, 9):
        list_of, counter_of = list_of[int], counter_of[str]

    def fn(a: int, b: list_of = 2, *, c: counter_of = 3) -> str:
        """Text."""
    fn.mark = 1
    copy = there_and_back(fn)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__",
                 "__annotations__", "__dict__"):
        assert getattr(copy, name) == getattr(fn, name)


class Proxy:
    """Stands for its target in every way but its type, as the proxies of wrapt and others do."""

    def __init__(self, target):
        self.target = target

    def __getattr__(self, name):
        return getattr(self.__dict__["target"], name)

    def __reduce__(self):
        return Proxy, (self.target,)

    __class__ = property(lambda self: type(self.target))


@pytest.mark.parametrize("target", [lambda: 1, make_error()], ids=["function", "class"])
def test_a_proxy_stays_one_when_its_class_says_that_it_is_its_target(monkeypatch, target):
    """Pickling must go by an object's type, not by its __class__, which may lie."""
    frames = minscoop.dumps(Proxy(target))
    monkeypatch.setattr(minscoop, "CLASSES", {})  # as in another process
    copy = minscoop.loads(frames)
    assert type(copy) is Proxy and copy.target.__qualname__ == target.__qualname__


def test_the_roots_globals_stay_when_a_function_comes_back(monkeypatch):
    """A function brings its globals along. A worker takes them all; the root, whose own are newer, those it lacks."""
    module = types.ModuleType("__main__")
    exec("number = 1\ndef read(): return number", module.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(minscoop, "main", minscoop.Main())
    frames = minscoop.dumps(module.read)
    module.number = 2
    assert minscoop.loads(frames)() == 2
    del module.number
    assert minscoop.loads(frames)() == 1
    module.number = 3
    monkeypatch.setattr(minscoop, "this_worker", types.SimpleNamespace())
    assert minscoop.loads(frames)() == 1


def test_a_function_prints_where_it_runs_when_a_stream_is_its_default_argument():
    """stdout and stderr go by name; no other file does, nor does stdin, which workers do not have."""
    done = launch("-n", 1, stdin="""
import sys, minscoop
def show(text, file=sys.stdout): print(text, file=file, flush=True)
def warn(text, file=sys.stderr): print(text, file=file, flush=True)
minscoop.submit(show, "shown").result()
minscoop.submit(warn, "warned").result()
try: minscoop.submit(show, "nowhere", sys.stdin).result()
except minscoop.CannotSend as error: print("argument 2: cannot pickle" in str(error))
""")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["shown", "True"], "warned\n")


def test_a_submodule_is_loaded_when_a_function_uses_it():
    """`import xml.dom.minidom` binds only xml, and a worker that imports just that would lack xml.dom.minidom."""
    assert output_of("-n", 1, "-c", """
import xml.dom.minidom
from minscoop import futures
print(futures.submit(lambda: xml.dom.minidom.parseString("<a/>").documentElement.tagName).result())
""") == "a\n"


def test_a_shared_variable_stays_shared_when_two_closures_travel_together():
    """Two closures over the same variable must share one in their copies, too."""
    def pair():
        value = 0

        def add():
            nonlocal value
            value += 1

        return add, lambda: value
    add, get = there_and_back(pair())
    add()
    assert get() == 1


def use_local_class(cls):
    obj = cls.make()
    return obj.who(), obj.double, cls.plain(), type(obj.twin()) is cls, isinstance(obj, cls.__mro__[1])


def test_a_local_class_works_when_a_worker_uses_it(pool):
    """Methods, properties, super(), slots and inheritance arrive with a class that has no name to import."""
    expected = ("derived 3", 6, "plain", True, True)
    assert use_local_class(make_local_classes()) == expected
    assert pool.submit(use_local_class, make_local_classes()).result(WAIT) == expected


@pytest.mark.parametrize("make", [make_local_classes, make_enum, make_counted_enum, make_flag, make_dataclass,
                                  make_namedtuple, make_error, make_generic], ids=lambda make: make.__name__)
def test_a_local_class_is_itself_when_it_returns(pool, make):
    """A class that went to a worker and comes back is the very same."""
    cls = make()
    assert there_and_back(cls) is cls
    assert pool.submit(identity, cls).result(WAIT) is cls


def grown(cls):
    """The class, with an attribute changed."""
    cls.size = 99
    return cls


def test_a_local_class_is_as_it_was_when_a_task_has_changed_its_own(pool):
    """A class that comes back must not overwrite the attributes that it has in the root, which are newer."""
    cls = type(make_singleton().one)
    cls.size = 2
    assert pool.submit(grown, cls).result(WAIT) is cls and cls.size == 2


def make_singleton():
    """A class that makes one instance, which it keeps itself."""
    class Only:
        one = None

        def __new__(cls):
            cls.one = cls.one or super().__new__(cls)
            return cls.one
    Only().size = 2
    return Only


def make_kept():
    """A class whose `__new__` returns what was made after it."""
    class Kept:
        def __new__(cls):
            return cls.kept
    Kept.kept = object.__new__(Kept)
    return Kept


def make_registered():
    """A class that registers itself with its base class and with its metaclass."""
    class Meta(type):
        made = {}

        def __init__(cls, *args):
            super().__init__(*args)
            cls.made[cls.__name__] = cls

    class Base(metaclass=Meta):
        below = {}

        def __init_subclass__(cls):
            cls.below[cls.__name__] = cls

    class Derived(Base):
        pass
    return Derived


def make_constant():
    """A class whose attributes cannot be set."""
    class Sealed(type):
        def __setattr__(cls, name, value):
            raise AttributeError("constants stay as they are")

    class Constant(metaclass=Sealed):
        size = 2
    return Constant


def make_with_arguments(name, how):
    """An instance kept by its class, whose ``__new__`` needs an argument: pickle gets it from the method `name`."""
    class Sized:
        def __new__(cls, size):
            self = super().__new__(cls)
            self.size = size
            return self
    setattr(Sized, name, how)
    Sized.one = Sized(2)
    return Sized.one


ARGUMENTS = {  # methods from which pickle gets the arguments of __new__
    "__getnewargs__": lambda self: (self.size,), "__getnewargs_ex__": lambda self: ((), {"size": self.size}),
    "__reduce__": lambda self: (type(self), (self.size,)),
    "__reduce_ex__": lambda self, protocol: (type(self), (self.size,)),
}
MEMBERS = {
    **{f"made by {name}": (functools.partial(make_with_arguments, name, how), lambda obj: obj.size == 2)
       for name, how in ARGUMENTS.items()},
    "whose class is sealed": (lambda: make_constant()(), lambda obj: obj.size == 2),
    "singleton": (lambda: make_singleton()(), lambda obj: obj is type(obj)() and obj.size == 2),
    "singleton made later": (lambda: make_kept()(), lambda obj: obj is type(obj)() is type(obj).kept),
    "registered with its base": (lambda: make_registered()(), lambda obj: obj.below == {"Derived": type(obj)} and
                                 type(type(obj)).made["Derived"] is type(obj) and list(type(obj).made)[0] == "Base"),
    "instance": (lambda: make_local_classes()(2), lambda obj: obj.size == 2),
    "enum member": (lambda: make_enum().RED, lambda obj: obj.shout() == "RED!" and obj is type(obj).RED),
    "flag member": (lambda: make_flag().WRITE, lambda obj: obj == 2 and obj.name == "WRITE"),
    "dataclass instance": (lambda: make_dataclass()(1, [2]),
                           lambda obj: obj == type(obj)(1, [2]) and obj < type(obj)(2) and type(obj)(3).y == []
                           and dataclasses.asdict(obj) == {"x": 1, "y": [2]}),
    "enum member with a metaclass": (lambda: make_counted_enum().RIGHT,
                                     lambda obj: obj is type(obj).RIGHT and type(obj).count() == 2),
    "enum member with __init__": (lambda: make_planet().EARTH,
                                  lambda obj: obj is type(obj).EARTH and obj.density == 3 and obj._size == 2),
    **{f"enum member that is a {kind.__name__}": (
        lambda kind=kind, content=content: make_mixed(kind, content).ONE,
        lambda obj, kind=kind, content=content: kind(obj) == kind(content) and type(obj)(obj.value) is obj)
       for kind, content in ((tuple, (1, 2)), (list, [1, 2]), (dict, {1: 2}), (frozenset, {1, 2}),
                             (decimal.Decimal, "1.5"), (float, 1.5))
       if sys.version_info >= (3, 11) or kind not in (list, dict)},  # else Python itself cannot pickle them
    **{f"enum member that is a {kind.__name__}": (
        lambda kind=kind, content=content: make_mixed(kind, content).ONE,
        lambda obj, kind=kind, content=content: obj == obj.value == kind(*content) and type(obj)(obj.value) is obj)
       for kind, content in ((datetime.date, (2026, 11, 28)), (datetime.time, (9, 5)), (datetime.timedelta, (1, 3600)),
                             (datetime.datetime, (2026, 11, 28, 9)))},
    "enum member with __new__ that is a date": (
        lambda: make_holiday().EASTER, lambda obj: obj is type(obj)("moves") and obj == datetime.date(2026, 4, 5)),
    "enum member with __new__": (lambda: make_status().GONE,
                                 lambda obj: obj == 410 and obj is type(obj)("410") and obj.phrase == "not there"
                                 and obj.twice == 820 and obj in type(obj).FINAL),
    "enum whose members come later": (
        make_empty, lambda obj: obj("Pair", {"HERE": (1, 2)}).HERE.half() == 1),
    "enum member of a dataclass": (lambda: make_creature().HUMAN, lambda obj: obj is type(obj).HUMAN and
                                   (obj.legs, obj.tail, type(obj).DOG.legs) == (2, False, 4)),
    "generic": (lambda: make_generic()(1), lambda obj: obj.twice is obj.twice == [1, 1] and type(obj)[int](2).content),
    "named tuple": (lambda: make_namedtuple()(1, 2), lambda obj: obj.right == 2 and obj._replace(left=0) == (0, 2)),
    "registered with an abstract class": (lambda: make_abstract()(), lambda obj: isinstance(obj, obj.base)),
    "key of a dict of its class": (lambda: make_key()(1), lambda obj: obj.known() == "one"),
    "exception": (lambda: make_error()("why"), lambda obj: isinstance(obj, ValueError) and str(obj) == "why"),
    "methods in an attribute of its class": (lambda: make_table()(), lambda obj: [f() for f in obj.table] == [1, 2, 3]),
}

if sys.version_info >= (3, 11):
    MEMBERS["enum member with a private attribute"] = (
        lambda: make_private().ONE, lambda obj: (obj.tripled(), type(obj).__doc__) == (3, "Text."))

if sys.version_info >= (3, 10):
    MEMBERS["dataclass with slots"] = lambda: make_dataclass(slots=True)(1, [2]), MEMBERS["dataclass instance"][1]


def test_a_class_in_c_is_refused_when_no_name_leads_to_it():
    """By value its methods would be missing: an empty class of its name would arrive, silently."""
    with pytest.raises(pickle.PicklingError):
        minscoop.dumps(type(re.compile("").scanner("")))


def test_an_attribute_is_not_lost_when_it_is_an_attribute_of_a_type_in_c():
    """Nobody can pickle it, which is said; a worker would miss it, or find another of this name in a base."""
    class Turned(array.array):
        typecode = array.array.itemsize
    with pytest.raises(TypeError):
        minscoop.dumps(Turned)


@pytest.mark.parametrize("name", MEMBERS)
def test_an_instance_has_its_class_when_it_returns(pool, name):
    """``isinstance``, ``==`` and ``is`` must hold on the worker as well as here, after the return."""
    make, check = MEMBERS[name]
    obj = make()
    copy, works = pool.submit(lambda obj: (obj, check(obj)), obj).result(WAIT)
    assert type(copy) is type(obj) and check(copy) and works
    assert copy is obj or not isinstance(obj, enum.Enum)


class LargeBytes(bytearray):
    """Gives its memory to pickle protocol 5 as arrays do."""

    def __reduce_ex__(self, protocol):
        return LargeBytes, (pickle.PickleBuffer(self),)


def test_large_memory_travels_in_frames_of_its_own_when_pickled():
    """A buffer of OUT_OF_BAND bytes or more has a frame of its own: a snapshot that later writes do not alter."""
    data = LargeBytes(b"a" * minscoop.OUT_OF_BAND)
    pickled, buffer = minscoop.dumps([data])
    data[0] = 0
    assert len(pickled) < 200 and len(buffer) == minscoop.OUT_OF_BAND
    assert minscoop.loads([pickled, buffer])[0][:2] == b"aa"
    assert len(minscoop.dumps([LargeBytes(b"a" * 1000)])) == 1


def test_large_bytes_are_right_when_they_come_and_go(pool):
    """10 MB there and back, as bytes and as a buffer out of band; what arrives can be written to."""
    data = os.urandom(10_000_000)
    assert pool.submit(identity, data).result(WAIT) == data
    for copy in pool.map(identity, [LargeBytes(data)] * 3, timeout=WAIT):
        assert type(copy) is LargeBytes and copy == data
        copy[0] = 1


LARGE = minscoop.SHARED


class Interrupted(list):
    """Chunks during whose second run, which writes them, Ctrl-C comes."""

    def __iter__(self):
        self.runs = getattr(self, "runs", 0) + 1
        yield self[0]
        if self.runs == 2:
            raise KeyboardInterrupt


def test_the_file_of_a_large_object_goes_when_ctrl_c_comes_as_it_is_written(tmp_path):
    """It would take memory until the pool's end: a prompt's `set_const`, say."""
    with pytest.raises(KeyboardInterrupt):
        minscoop.frame_of(Interrupted([b"a" * LARGE]), str(tmp_path))
    assert not [*tmp_path.iterdir()]


def test_a_large_frame_is_a_file_when_there_is_shared_memory(tmp_path):
    """A reference travels in its place. Reading removes the file unless it is lasting; writes stay the reader's own."""
    data = os.urandom(LARGE)
    once, lasting = (minscoop.frame_of([data[:9], data[9:]], tmp_path, lasting) for lasting in (False, True))
    assert minscoop.frame_of([data[1:]], tmp_path) == data[1:] and minscoop.frame_of([data]) == data  # small; nowhere
    assert len(once) < 300 and len(os.listdir(tmp_path)) == 2
    assert minscoop.size_of(once) == LARGE == minscoop.size_of(data)
    assert minscoop.content(once) == data and len(os.listdir(tmp_path)) == 1
    view = minscoop.content(lasting)
    view[0] = (view[0] + 1) % 256
    assert minscoop.content(lasting) == data != view
    with pytest.raises(FileNotFoundError):
        minscoop.content(once)
    assert minscoop.content_if_there(once) == b"" and minscoop.content_if_there(lasting) == data
    minscoop.discard([once, data, lasting])
    assert len(os.listdir(tmp_path)) == 1
    minscoop.discard([lasting], even_lasting=True)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("lasting", [False, True])
def test_no_shared_memory_is_left_when_what_follows_a_large_buffer_cannot_be_pickled(tmp_path, lasting):
    """Such as a part of a constant: each attempt to set it would take memory until the end of the pool."""
    with pytest.raises(TypeError):
        minscoop.dumps([pickle.PickleBuffer(bytearray(LARGE)), threading.Lock()], tmp_path, lasting)
    assert not os.listdir(tmp_path)


@contextlib.contextmanager
def files_limited_to(size):
    """No larger files can be written meanwhile, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_large_frame_is_read_when_there_are_few_descriptors(tmp_path, monkeypatch):
    """A mapping occupies one: from MAPPINGS on, a frame is read instead. If no file can be made, the data travels."""
    frame, data = minscoop.frame_of([bytes(LARGE)], tmp_path, lasting=True), bytes(LARGE)
    assert isinstance(minscoop.content(frame).obj, mmap.mmap)
    with mock.patch.object(minscoop.os, "dup", side_effect=OSError):  # none is left for the mapping
        assert isinstance(minscoop.content(frame).obj, bytearray)
    monkeypatch.setattr(minscoop, "MAPPINGS", 0)
    assert isinstance(minscoop.content(frame).obj, bytearray) and minscoop.content(frame) == data
    files = os.listdir(tmp_path)
    with files_limited_to(LARGE // 2):
        assert minscoop.frame_of([data], tmp_path) == data
    assert os.listdir(tmp_path) == files


def test_mappings_are_few_when_many_large_frames_are_kept(tmp_path, monkeypatch):
    """Mappings must count towards MAPPINGS, although a read first frees the spare descriptor, whose number is low."""
    monkeypatch.setattr(minscoop, "MAPPINGS", 20 + max(map(int, os.listdir("/dev/fd"))))
    minscoop.keep_spare()
    kept = [minscoop.content(minscoop.frame_of([bytes(LARGE)], tmp_path)) for _ in range(minscoop.MAPPINGS + 10)]
    kinds = [type(view.obj) for view in kept]
    assert kinds[0] is mmap.mmap and kinds[-1] is bytearray


@pytest.mark.parametrize("rest", [b"", b"x", b"0 1", b"0 x /dev/shm/minscoop-a.pool/0123456789abcdef",
                                  b"0 9 relative/0123456789abcdef", b"0 99999999999 /dev/zero", b"1 9 /etc/passwd",
                                  b"0 9 /tmp/0123456789abcdef/../precious"])
def test_a_frame_is_no_reference_when_it_does_not_lead_to_shared_memory(rest):
    """One host's mistake must neither end another's broker nor have it read, or remove, any other file."""
    frame, desk = minscoop.TOKEN + rest, Desk()
    assert minscoop.reference(frame) is None and minscoop.content_if_there(frame) == frame
    assert desk.broker.handle(b"0.1", [b"RESULT", b"0.root:0/0", b"0", b"1", b"1", frame], 0.0) == []
    assert desk.broker.dropped == 1


def test_no_file_is_left_when_pickling_fails_midway(tmp_path):
    """Files made before pickle met the culprit must be removed."""
    with pytest.raises(TypeError):
        minscoop.dumps([LargeBytes(LARGE), LOCK], tmp_path)
    assert not os.listdir(tmp_path)
    frames = minscoop.dumps([LargeBytes(LARGE), bytes(LARGE)], tmp_path)
    assert len(frames) == len(os.listdir(tmp_path)) == 2
    assert minscoop.loads(frames) == [bytes(LARGE)] * 2 and not os.listdir(tmp_path)


def shared_files(executor):
    """Names of the files in a pool's shared memory."""
    return os.listdir(executor._node.memory)


def die_once(path, data):
    """Kill this worker the first time; there is large data on its way."""
    if not os.path.exists(path):
        touch(path)
        os.kill(os.getpid(), signal.SIGKILL)
    return data


@linux_only
@pytest.mark.parametrize("what", ["read", "dead", "unread", "cancelled", "unpicklable", "unwanted"])
def test_no_large_data_is_left_in_shared_memory_when_it_was(guard, tmp_path, what):
    """Whatever becomes of a task and of its result, the files of their data must be removed while the pool goes on."""
    with minscoop.Executor(2) as executor:
        items = [LargeBytes(LARGE)] * 6
        if what == "read":
            assert list(executor.map(identity, items, timeout=WAIT)) == items
        elif what == "dead":
            assert list(executor.map(die_once, [tmp_path / "died"] * 6, items, timeout=WAIT)) == items
        elif what == "unread":
            executor.map(identity, items)
        elif what == "cancelled":
            results = executor.map(slow_identity, items * 3)
            next(results)
            results.close()
        elif what == "unpicklable":
            with pytest.raises(CannotSend):
                executor.submit(lambda: [LargeBytes(LARGE), threading.Lock()]).result(WAIT)
        else:
            for item in items:
                executor.submit(identity, item)
            assert executor.submit(identity, 1).result(WAIT) == 1
        assert not eventually_none(lambda: shared_files(executor), WAIT)


def slow_identity(x):
    time.sleep(0.01)
    return x


class Window:
    """Keeps the memory that it is given when it is unpickled, as an array does."""

    def __init__(self, memory):
        self.memory = memoryview(memory)

    def __reduce_ex__(self, protocol):
        return Window, (pickle.PickleBuffer(self.memory),)


def look_at_constant(name, directory):
    """This worker's pid, the files in shared memory that it has mapped, and the constant's first bytes. Ends when three
    workers have called it."""
    start = bytes(minscoop.get_const(name, WAIT).memory[:3])
    with open("/proc/self/maps") as maps:
        files = {line.split()[4] for line in maps if "/dev/shm/minscoop-" in line}
    touch(f"{directory}/{os.getpid()}")
    assert eventually(lambda: len(os.listdir(directory)) == 3)
    return os.getpid(), files, start


@linux_only
def test_a_large_constant_is_there_once_when_all_workers_use_it(guard, tmp_path):
    """All workers must map the same file. An attempt to set the constant again must fail, and leave no file."""
    with minscoop.Executor(3) as executor:
        executor.set_const(large=Window(b"abc" + bytes(LARGE)))
        looks = list(executor.map(look_at_constant, ["large"] * 3, [tmp_path] * 3, timeout=WAIT))
        assert len({pid for pid, _, _ in looks}) == 3
        assert {start for _, _, start in looks} == {b"abc"} and len(set.union(*(files for _, files, _ in looks))) == 1
        assert len(shared_files(executor)) == 1
        with pytest.raises(TypeError):
            executor.submit(minscoop.set_const, large=Window(bytes(LARGE))).result(WAIT)
        assert len(shared_files(executor)) == 1
        executor.submit(minscoop.set_const, small=1, other=Window(bytes(LARGE))).result(WAIT)
        assert len(executor.get_const("other", WAIT).memory) == LARGE and len(shared_files(executor)) == 2


def test_hosts_do_not_look_beside_this_file_when_only_we_have_put_it_on_the_path(script):
    """They look into the program's own directories first, where packages of theirs might be hidden."""
    done = launch("-n", 1, script("""
        import sys, minscoop
        if __name__ == "__main__":
            ours = sys.path[-1]
            print(ours, ours in minscoop.own_path())
            sys.path.insert(1, ours)
            print(minscoop.own_path().count(ours), minscoop.submit(eval, "__import__('sys').path[-1]").result() == ours)
    """))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{HERE} False\n1 True\n", "")


def squares_of_a_pool(how):
    """A task that uses a Pool of multiprocessing's."""
    with multiprocessing.get_context(how).Pool(1) as pool:
        return pool.map(abs, [-1, 2])


def test_nothing_is_left_when_tasks_have_used_multiprocessing(guard, tmp_path, monkeypatch):
    """Which removes its temporary directory at the end of a process, as if Python ended it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with minscoop.Executor(2) as executor:
        assert list(executor.map(squares_of_a_pool, ["forkserver"] * 4)) == [[1, 2]] * 4
    assert eventually(lambda: not list(tmp_path.glob("pymp-*"))), os.listdir(tmp_path)


def keep_an_executor(how):
    """A task that leaves an executor of the standard library's open; returns the pid of its process."""
    builtins.kept = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(how))
    return builtins.kept.submit(os.getpid).result()


def keep_a_daemon(how):
    """A task that leaves a daemonic process behind; returns its pid."""
    process = multiprocessing.get_context(how).Process(target=time.sleep, args=(BOUND,), daemon=True)
    process.start()
    return process.pid


@pytest.mark.skipif(sys.version_info < (3, 9), reason="threading does not know how executors end")
@pytest.mark.parametrize("task", [keep_an_executor, keep_a_daemon])
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_no_process_is_left_when_tasks_have_left_some(guard, task, how):
    """As with ProcessPoolExecutor. They would live for ever, and whoever reads the program's output would wait."""
    with minscoop.Executor(1) as executor:
        pid = executor.submit(task, how).result(WAIT)
    assert eventually(lambda: stat_of(pid) is None)


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_a_list_of_a_manager_is_shared_when_tasks_get_it(script, how):
    """The key to it does not travel with its proxy, which multiprocessing sends only to processes that it starts. Those
    that it starts afresh import the script, and with that minscoop, which need not be beside it."""
    done = launch("-n", 2, script(f"""
        import multiprocessing
        from minscoop import futures
        def note(shared, i):
            shared.append(i)
        if __name__ == "__main__":
            with multiprocessing.get_context("{how}").Manager() as manager:
                shared = manager.list()
                list(futures.map(note, [shared] * 9, range(9)))
                print(sorted(shared))
    """))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{[*range(9)]}\n", "")


def test_the_programs_shared_memory_stays_when_a_worker_that_has_used_it_ends(script):
    """As with ProcessPoolExecutor: no resource tracker of the worker's own removes it. Locks are tracked as ever."""
    done = python(script("""
        import multiprocessing, os, signal, minscoop
        from multiprocessing.resource_tracker import _resource_tracker as tracker
        from multiprocessing.shared_memory import SharedMemory

        def look(name):
            shared = SharedMemory(name)
            try:
                return bytes(shared.buf[:3]), tracker._fd is None
            finally:
                shared.close()

        def lock():
            multiprocessing.get_context("spawn").Lock()
            return tracker._fd is None

        if __name__ == "__main__":
            shared = SharedMemory(create=True, size=3)
            shared.buf[:3] = b"abc"
            with minscoop.Executor(1) as executor:
                print(executor.submit(look, shared.name).result())
                os.kill(executor.submit(os.getpid).result(), signal.SIGKILL)
                print(executor.submit(look, shared.name).result(), executor.submit(lock).result())
            shared.close()
            shared.unlink()
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout) == (0, "(b'abc', True)\n(b'abc', True) False\n")
    assert "resource_tracker" not in done.stderr


@linux_only
def test_a_callable_with_large_data_travels_once_when_a_map_uses_it(guard, monkeypatch):
    """What a partial holds is in shared memory as long as the map needs it."""
    frame_of, made = minscoop.frame_of, []
    monkeypatch.setattr(minscoop, "frame_of", lambda *args: made.append(frame_of(*args)) or made[-1])
    with minscoop.Executor(2) as executor:
        results = executor.map(functools.partial(pick, LargeBytes(b"x" * LARGE)), range(3000), timeout=WAIT)
        assert next(results) == ord("x") and len(shared_files(executor)) == 1
        assert sum(results) == 2999 * ord("x") and len([*filter(minscoop.reference, made)]) == 1
        del results
        gc.collect()
        assert not eventually_none(lambda: shared_files(executor), WAIT)


def pick(data, i):
    time.sleep(0.001)
    return data[i]


@linux_only
def test_what_a_killed_pool_left_is_removed_when_another_begins(guard, script):
    """If all processes of a pool die at once, the next pool must remove its old directories, but no live pool's."""
    process = start(MINSCOOP, "-n", "2", script("""
        import time
        import minscoop
        if __name__ == "__main__":
            minscoop.set_const(data=bytes(1 << 20))
            print(minscoop.executors[-1]._node.memory, minscoop.executors[-1]._node.directory, flush=True)
            time.sleep(60)
    """))
    memory, sockets = process.stdout.readline().split()
    assert eventually(lambda: len(processes_of(os.environ["MINSCOOP_TEST"])) == 5)  # nobody is yet to be forked
    pids = processes_of(os.environ["MINSCOOP_TEST"])
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    kill_all(pids)
    process.communicate()
    for path in (memory, sockets):
        assert os.path.isdir(path)
        os.utime(path, (0, 0))
    with minscoop.Executor(1) as executor:
        mine = executor._node.memory, executor._node.directory
        assert not os.path.exists(memory) and not os.path.exists(sockets) and executor.submit(abs, -1).result(WAIT) == 1
        for path in mine:
            os.utime(path, (0, 0))
        with minscoop.Executor(1):
            assert all(map(os.path.isdir, mine))


def test_a_pool_starts_when_another_user_has_put_something_under_the_name_of_a_pool(tmp_path):
    """In /tmp everybody may: opening a named pipe would block for ever, a link must not be followed, a directory may be
    a trap."""
    (tmp_path / "own").mkdir()
    os.mkfifo(tmp_path / "minscoop-a.pool")
    os.symlink("own", tmp_path / "minscoop-b.pool")
    for name in "minscoop-a.pool", "minscoop-b.pool", "own":
        os.utime(tmp_path / name, (0, 0), follow_symlinks=False)
    if os.getuid() == 0:  # a directory, to be left alone: to remove one may end in RecursionError
        (tmp_path / "minscoop-c.pool").mkdir()
        os.chown(tmp_path / "minscoop-c.pool", 65534, -1)
        os.utime(tmp_path / "minscoop-c.pool", (0, 0))
    before = set(os.listdir(tmp_path))
    directory = minscoop.make_directory(str(tmp_path))
    assert {*os.listdir(tmp_path)} - before == {os.path.basename(directory)} and before <= {*os.listdir(tmp_path)}


@linux_only
@pytest.mark.parametrize("kind", ["bytes", "bytearray"])
def test_a_large_thing_is_there_twice_at_most_when_it_arrives(script, kind):
    """Once as a message and once as the object: a process may grow by twice its size, not by three times.

    ru_maxrss would not do: it begins with the peak of the process that executed this Python, which is pytest."""
    grown = output_of("-n", 1, script("""
        import re, sys
        from minscoop import futures
        def kilobytes(name, thing=None):
            with open("/proc/self/status") as file: return int(re.search(name + r":\\s*(\\d+)", file.read())[1])
        if __name__ == "__main__":
            kind, size = eval(sys.argv[1]), int(sys.argv[2]) << 20
            before = [kilobytes("VmRSS"), futures.submit(kilobytes, "VmRSS").result()]
            assert len(futures.submit(kind, size).result()) == size
            while futures.submit(kilobytes, "VmRSS").result() > before[1] + (size >> 11): pass  # the result goes
            after = [kilobytes("VmHWM"), futures.submit(kilobytes, "VmHWM", kind(size)).result()]
            print(*(peak - now >> 10 for peak, now in zip(after, before)))
    """), kind, MEGABYTES, timeout=BOUND).split()
    assert all(int(megabytes) < 2.5 * MEGABYTES for megabytes in grown), grown


@pytest.mark.skipif(numpy is None, reason="no numpy")
def test_an_array_can_be_written_to_when_it_arrives(pool):
    """Arrays are writable on the worker and back here, whatever their size."""
    def fill(array):
        array += 1
        return array, array.flags.writeable
    for size in (10, 1_000_000):
        array = numpy.zeros(size)
        for copy, writable in [pool.submit(fill, array).result(WAIT),
                               *pool.map(fill, [array.copy() for _ in range(4)], timeout=WAIT)]:
            copy[0] += 1
            assert writable and copy[0] == 2 and copy[-1] == 1 and array[0] == 0


def test_a_ufunc_arrives_when_the_program_has_imported_it_by_name():
    """Most ufuncs do not know their module; pickle must not take the main one, which workers may not have."""
    pytest.importorskip("scipy")
    assert output_of("-n", 1, stdin="""
from scipy.special import expit
from minscoop import futures
def half(x): return float(expit(x))
print(*futures.map(half, [0, 0]), futures.submit(expit, 0).result(), futures.submit(lambda: expit).result() is expit)
""") == "0.5 0.5 0.5 True\n"


@pytest.mark.skipif(numpy is None, reason="no numpy")
def test_an_array_is_mapped_by_rows_when_it_is_an_iterable(pool):
    """map takes an array as any sequence."""
    table = numpy.arange(12.0).reshape(4, 3)
    assert list(pool.map(numpy.sum, table, timeout=WAIT)) == [3, 12, 21, 30]


class Holder:
    def __init__(self, value):
        self.value = value

    def method(self, *args):
        return args


def make_half_bound():
    """A function over two variables, of which the first has no value yet."""
    def fn():
        return a_late_one, lock
    lock = LOCK
    if lock is None:
        a_late_one = 1
    return fn


def make_locked():
    class Locked(collections.abc.Hashable):
        lock, __hash__ = LOCK, object.__hash__
    return type("Derived", (Locked,), {})


LOCK = threading.Lock()
CULPRITS = {
    "item of a list": (lambda: [1, LOCK], "[1]"),
    "value of a dict": (lambda: {"a": 1, "b": LOCK}, "['b']"),
    "deep inside": (lambda: {"a": [0, (LOCK,)]}, "['a'][1][0]"),
    "attribute": (lambda: Holder(LOCK), "'value'"),
    "variable of a closure": (lambda: (lambda lock: lambda: lock)(LOCK), "'lock' of its closure"),
    "variable of a closure behind one without a value": (make_half_bound, "'lock' of its closure"),
    "instance of a bound method": (lambda: Holder(LOCK).method, "instance it is bound to"),
    "argument of a partial": (lambda: functools.partial(identity, LOCK), "its argument [0]"),
    "function of a partial": (lambda: functools.partial((lambda lock: lambda: lock)(LOCK)), "its function"),
    "keyword argument of a partial": (lambda: functools.partial(identity, x=LOCK), "its argument ['x']"),
    "global variable": (lambda: eval("lambda: lock", {"lock": LOCK}), "global variable 'lock'"),
    "attribute of a base class": (make_locked, "its base make_locked.<locals>.Locked, attribute 'lock'"),
    "class of an instance": (lambda: make_locked()(), "its class Derived, its base"),
}


@pytest.mark.parametrize("name", CULPRITS)
def test_the_culprit_is_named_when_something_cannot_be_sent(name):
    """explain() says which part of an object is to blame, and why."""
    make, where = CULPRITS[name]
    text = minscoop.explain(make(), "the thing")
    assert text.startswith("the thing") and where in text and "lock" in text


def test_nothing_is_explained_when_an_object_can_be_sent():
    """No culprit, no text."""
    assert minscoop.explain([1, {"a": identity}], "the thing") is None


class Moody:
    """Cannot be pickled at the first attempt, like something that another thread is just changing."""

    asked = 0

    def __call__(self, x):
        return x

    def __reduce__(self):
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("changed size during iteration")
        return Moody, ()


def test_the_first_complaint_is_told_when_there_is_none_any_more():
    """If pickling succeeds when the culprit is looked for, the text must still have the first error's reason."""
    with pytest.raises(CannotSend, match="cannot be sent to a worker: changed size"):
        minscoop.Recipe(Moody()).encode()


class Reckoned:
    """Counts how often it is pickled."""

    asked = 0

    def __reduce__(self):
        self.asked += 1
        return Reckoned, ()


@pytest.mark.parametrize("size", [10, 100])
def test_what_many_parts_refer_to_is_pickled_a_few_times_when_another_part_cannot_be_sent(size):
    """The search for the culprit must not pickle with each of 10 000 records the table that all of them refer to."""
    table = Reckoned()
    assert f"the thing[{size}]: " in minscoop.explain([*([i, table] for i in range(size)), LOCK], "the thing")
    assert table.asked <= 2


def test_an_object_that_contains_itself_is_explained_when_it_cannot_be_sent():
    """The search for the culprit must end although the object is cyclic."""
    circle = [LOCK]
    circle.append(circle)
    assert "lock" in minscoop.explain(circle, "the thing")


def test_the_text_of_an_error_is_short_when_what_cannot_be_sent_is_nested_deeply():
    """Python 3.14's pickle notes each level at which it was, on a line of its own; those of others are left."""
    with pytest.raises(CannotSend) as caught:
        minscoop.Recipe(functools.partial(abs, make_nest())).encode()
    assert len(minscoop.traceback_text(caught.value).splitlines()) < 100
    error = TypeError("no")
    error.__notes__ = ["when serializing list item 0", "mine"]
    assert minscoop.reason_of(error) == "no" and error.__notes__ == ["mine"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before Python 3.14 annotations are evaluated at once")
def test_annotations_are_text_when_one_of_them_cannot_be_evaluated(pool):
    """A name that only a type checker imports is no error where it is only an annotation (PEP 649), nor when sent."""
    made = {"__name__": __name__}
    exec("class Noted:\n x: int\n y: Missing\n def f(self, z: int | 'Missing'): return z", made)
    texts = pool.submit(lambda cls: (cls().f(3), cls.__annotations__, cls.f.__annotations__), made["Noted"])
    assert texts.result(WAIT) == (3, {"x": "int", "y": "Missing"}, {"z": "int | 'Missing'"})


@pytest.mark.skipif(sys.version_info < (3, 10), reason="before Python 3.10 there was no | of types")
def test_a_dataclass_can_be_sent_when_its_fields_refer_to_itself(pool):
    """Python 3.14 notes as the type of such a field a reference that knows all globals, whatever they are."""
    made = {"__name__": __name__, "secret": LOCK}
    exec("import dataclasses\n@dataclasses.dataclass\nclass Node:\n item: int\n"
         f" rest: {'Node | None' if sys.version_info >= (3, 14) else repr('Node | None')} = None", made)
    node = made["Node"]

    def extend(chain):
        assert type(chain).__dataclass_fields__["rest"].default is None
        return type(chain)(1, chain)
    assert pool.submit(extend, node(2)).result(WAIT) == node(1, node(2))
    kind = pool.submit(lambda cls: cls.__dataclass_fields__["rest"].type, node).result(WAIT)
    assert getattr(kind, "__forward_arg__", kind) == "Node | None"


class Unreadable:
    """Can be pickled, and not unpickled."""

    def __reduce__(self):
        return divide, (1,)


class Picky(Exception):
    """An exception whose ``args`` are not the arguments that its __init__ needs: the usual mistake."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Pickier(Exception):
    """One whose __new__ needs them, too."""

    def __new__(cls, first, second):
        return super().__new__(cls, f"{first} and {second}")

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Refusing(Exception):
    """One that cannot be unpickled, however it is made."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.first = first

    def __setstate__(self, state):
        raise ValueError("no")


class Worded(Exception):
    """An exception whose __init__ puts words around its argument; pickle would call it with the finished text."""

    def __init__(self, name):
        super().__init__(f"no {name}")
        self.name = name


class Slotted(Exception):
    """An exception with a slot, which pickle leaves out; what its __init__ needs is not in its ``args`` either."""

    __slots__ = ("code",)

    def __init__(self, first, second):
        super().__init__()
        self.code = first + second

    def __str__(self):
        return f"code {self.code}"


class Gone(OSError):
    """One of a class in C that keeps more than ``args``, which its own __init__ sets: errno, filename."""

    def __init__(self, name, *, why):
        super().__init__(2, why, name)


class Numbered(Exception):
    """An exception whose text differs from instance to instance."""

    def __str__(self):
        return f"number {id(self)}"


class Locked(Exception):
    """An exception that carries something that cannot be pickled."""

    def __init__(self, text):
        super().__init__(text, threading.Lock())


class Stubborn(Exception):
    """One that raises KeyError, not AttributeError, for a missing attribute; Python 3.11 looks for __notes__."""

    def __getattr__(self, name):
        raise KeyError(name)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """One whose attributes cannot be set, not even __traceback__ and __cause__."""

    code: int

    def __reduce__(self):
        return Frozen, (self.code,)


def test_a_stubborn_object_has_a_text_when_it_has_no_name():
    """Whatever an object raises for an attribute that is not there, messages tell at least its type."""
    assert "Stubborn" in minscoop.describe(Stubborn(1))
    blob, text = minscoop.encode_failure(Stubborn(1))
    assert "Stubborn" in text and type(minscoop.decode_failure(blob, text)) is Stubborn


def test_results_keep_their_places_when_some_cannot_be_sent():
    """One result that cannot be pickled, or unpickled, is a failure at its own place only."""
    values = [0, LOCK, "two", Unreadable(), LargeBytes(b"4" * 100_000)]
    got, failures = minscoop.read_results(minscoop.encode_results(values, {}, "item {} of work".format), 5)
    assert (got[0], got[2], got[4]) == (0, "two", values[4])
    assert sorted(failures) == [1, 3] and {type(error) for error in failures.values()} == {CannotSend}
    assert "the result of item 1 of work" in str(failures[1]) and "lock" in str(failures[1])
    assert "ZeroDivisionError" in str(failures[3])


def slice_of(memory=None):
    """A slice that runs in a worker with that directory for shared memory."""
    running = minscoop.Slice(mock.Mock(), 0, 1)
    running.job.node.memory = memory
    return running


def test_results_travel_in_one_pickle_when_copies_of_them_are_cheap():
    """Short flat containers, small arrays and numbers of NumPy, too: alone they would take many times as long. All else
    is pickled at once; so are long tuples, whose items need not be looked at then."""
    numpy = pytest.importorskip("numpy")
    steady = [(1, "two", None), numpy.float64(3), numpy.bool_(True), (4, numpy.int8(5))]
    copied = [[1, 2], {"a": 1, "b": None}, {1, 2}, {}, [numpy.float32(3)], {"a": numpy.int64(1)}]
    nested = [[[1]], (1, [2]), ((1, 2), numpy.float64(3)), {"a": {}}, {1, (2,)}]
    fickle = [numpy.zeros(2, "i,i")[0], type("Number", (numpy.float64,), {})(6), numpy.dtype(int), (1,) * 1000,
              numpy.array([None]), numpy.zeros(2, "i,i"), type("Sub", (numpy.ndarray,), {})(2)]
    running = slice_of()
    assert [*map(running.frozen, steady)] == steady
    for value in copied:
        copy = running.frozen(value)
        assert copy == value and type(copy) is type(value) and copy is not value
    fickle.append(numpy.zeros(minscoop.OUT_OF_BAND))
    assert {type(running.frozen(value)) for value in nested + fickle} == {minscoop.Pickled}
    for values in steady[:1] * 9, copied[:4], steady[1:], copied[4:], [numpy.int64(i) for i in range(9)]:
        values = [*map(running.frozen, values)]
        frames = minscoop.encode_results(values, {}, "item {} of work".format, frozen=True)
        got, failures = minscoop.read_results(frames, len(values))
        assert got == values and [*map(type, got)] == [*map(type, values)] and not failures
        assert not minscoop.unpickle(frames[0])[1]


def test_large_frames_of_a_result_are_not_compared_with_each_other():
    """A list of thousands of arrays, which begin alike, took time with the square of their number."""
    class Frame(bytes):
        __hash__, __eq__ = bytes.__hash__, mock.Mock(side_effect=AssertionError)
    pickled, *buffers = minscoop.dumps([LargeBytes(bytes([i]) * 100_000) for i in range(3)])
    result = minscoop.Pickled([pickled, *map(Frame, buffers)])
    got, failures = minscoop.read_results(minscoop.encode_results([result], {}, str, frozen=True), 1)
    assert [value[:1] for value in got[0]] == [b"\0", b"\1", b"\2"] and not failures


class Unhashable(type):
    def __eq__(cls, other):
        return cls is other


def test_a_call_fails_alone_when_the_class_of_its_result_cannot_be_hashed(pool):
    """Neither can pickle take it. It killed worker after worker."""
    futures = [pool.submit(lambda i: Unhashable("Odd", (), {})() if i == 2 else i, i) for i in range(4)]
    with pytest.raises((TypeError, CannotSend), match="unhashable"):
        futures[2].result(60)
    assert [future.result(60) for future in futures[:2] + futures[3:]] == [0, 1, 3]


class Cancelling:
    """Raises what is no Exception when it is pickled, or when it is read."""

    def __init__(self, here=False):
        self.here = here

    def __reduce__(self):
        if self.here:
            raise asyncio.CancelledError("pickled")
        return cancelling, ()


def cancelling():
    """What a Cancelling is read by."""
    raise asyncio.CancelledError("read")


@pytest.mark.parametrize("fn, what, why", [(abs, True, "pickled"), (abs, False, "read"), (Cancelling, True, "pickled"),
                                           (Cancelling, False, "read")])
def test_a_call_fails_alone_when_what_is_sent_raises_a_base_exception(pool, fn, what, why):
    """It was taken for Ctrl-C: an argument was to be sent again for ever, and a result was lost."""
    futures = [pool.submit(fn, Cancelling(what) if fn is abs else what), pool.submit(abs, -1)]
    with pytest.raises(CannotSend, match=f"CancelledError: {why}"):
        futures[0].result(WAIT)
    assert futures[1].result(WAIT) == 1


def test_a_large_class_by_value_is_not_kept_when_its_instances_are_results():
    """It would stay in the reader's memory."""
    class Local:
        table = LargeBytes(b"a" * minscoop.OUT_OF_BAND)
    known = minscoop.unpickle_once.cache_info().currsize
    got, failures = minscoop.read_results(minscoop.encode_results([slice_of().frozen(Local())], {}, str), 1)
    assert got[0].table == Local.table and not failures and minscoop.unpickle_once.cache_info().currsize == known


def test_a_result_is_refused_when_it_changes_while_it_is_looked_at():
    """By another thread of the task, say."""
    with mock.patch.object(minscoop, "copier_of", side_effect=RuntimeError("dictionary changed size during iteration")):
        with pytest.raises(CannotSend, match="dictionary changed size.*type dict"):
            slice_of().frozen({"a": 1})


@pytest.mark.parametrize("module", [None, types.ModuleType("numpy")])
def test_a_result_is_pickled_when_another_thread_is_just_importing_numpy(module):
    """NumPy is there, but not all of it; or a stand-in."""
    with mock.patch.dict(sys.modules, numpy=module):
        kinds = [type(slice_of().frozen(value)) for value in ([[1]], Unreadable(), (1, 2))]
    assert kinds == [minscoop.Pickled] * 2 + [tuple]


def test_a_result_is_refused_for_good_when_it_cannot_be_pickled_as_its_call_returns(pool):
    """Calls that follow may change it: it arrived as the last one had left it. Those beside it arrive."""
    buffer = [None]

    def fill(item):
        buffer[0] = [item] if item % 3 else LOCK
        return buffer
    futures = [pool.submit(fill, item) for item in range(200)]
    for item, future in enumerate(futures):
        if item % 3:
            assert future.result(WAIT) == [[item]]
        else:
            with pytest.raises(CannotSend, match=r"the result of the call of .*\[0\]: .*lock.* of type list"):
                future.result(WAIT)


def test_each_result_has_its_own_class_when_every_call_makes_one():
    """A Pickler knows classes by their identity, which another may get when one is gone."""
    running = slice_of()
    values = []
    for number in range(600):  # beyond what `reducer_of` keeps
        values.append(running.frozen(type("Local", (), {"number": number})()))
        if number % 100 == 0:
            gc.collect()
    got, failures = minscoop.read_results(minscoop.encode_results(values, {}, str), 600)
    assert [value.number for value in got] == [*range(600)] and not failures


@pytest.mark.parametrize("away, looks, sleeps", [(1, 3, 0), (2, 1, 1), (0, 1, 1)])
def test_the_root_looks_again_before_it_sleeps_when_a_single_task_is_away(monkeypatch, away, looks, sleeps):
    """Its result comes soon or late; when it comes soon, to fall asleep would take longer."""
    root = object.__new__(minscoop.Root)
    root.away, root.wake_read, root.descriptor = dict.fromkeys(range(away)), -1, -1
    root.hears = mock.Mock(side_effect=[False, True, True] if away == 1 else [False])
    clock = types.SimpleNamespace(**{**vars(time), "monotonic": lambda: 0.0})
    monkeypatch.setattr(minscoop, "time", clock)
    monkeypatch.setattr(minscoop, "readable", mock.Mock(return_value=[]))
    root.attend(1.0)
    assert (root.hears.call_count, minscoop.readable.call_count) == (looks, sleeps)


def test_results_travel_alone_only_when_they_are_not_sure_to_be_read():
    """That is known once they are frozen: they are not looked at again. If those beside one travelled alone, too, a map
    that finds something in a few of a million calls would take forty times as long."""
    numpy = pytest.importorskip("numpy")
    for values, alone in (([[1], (2, "3"), 4], []), ([numpy.int8(1), numpy.zeros(2)], []), ([[[1]], [1]], [0]),
                          ([1, numpy.int8(1)], []), ([(1,), numpy.int8(1)], []), ([{}, [[]], None], [1])):
        with mock.patch.object(minscoop, "dumps", wraps=minscoop.dumps) as pickles:
            frames = minscoop.encode_results([*map(slice_of().frozen, values)], {}, str, frozen=True)
        assert pickles.call_count == 1 and [*minscoop.unpickle(frames[0])[1]] == alone
        assert str(minscoop.read_results(frames, len(values))) == str((values, {}))


def test_small_arrays_arrive_as_they_were():
    """Also inside results, and amid others; with their order in memory, and writable."""
    numpy = pytest.importorskip("numpy")
    grid = numpy.arange(6.0).reshape(2, 3)
    arrays = [grid, numpy.asfortranarray(grid), grid[:, ::2], numpy.zeros(0, "int8"), numpy.array(1j),
              numpy.array(["one", "two"]), numpy.array(["2001-01-01"], "M8[D]"), numpy.array([1, None])]
    values = [*arrays, *([array, 1] for array in arrays), *({"a": array} for array in arrays), ((grid,), grid)]
    for values in values, values[:1] * 3, values[-1:] * 3:
        running = slice_of()
        frames = minscoop.encode_results([*map(running.frozen, values)], {}, str, frozen=True)
        got, failures = minscoop.read_results(frames, len(values))
        assert not failures and [*map(repr, got)] == [*map(repr, values)]
        for array in [array for array in got if type(array) is numpy.ndarray]:
            array[...] = array
    assert got[0][0][0] is got[0][1]
    once = minscoop.loads(minscoop.dumps(arrays[:2]))  # their dtypes are copies, which do not know that NumPy made them
    assert [minscoop.copier_of(array) for array in once] == [minscoop.copy.copy] * 2
    frames = minscoop.encode_results([slice_of().frozen(arrays[1])], {}, str, frozen=True)
    (got,), _ = minscoop.read_results(frames, 1)
    assert got.flags.f_contiguous and not got.flags.c_contiguous


def test_a_pickler_takes_several_objects_when_some_cannot_be_pickled(tmp_path):
    """What it knows of one is forgotten, or a list that has changed would be the old one; files are removed."""
    pickler, changing = minscoop.Pickler(str(tmp_path), several=True), [[1]]
    large = LargeBytes(b"a" * minscoop.SHARED)
    assert minscoop.loads(pickler.frames(changing)) == [[1]]
    with pytest.raises(TypeError, match="pickle"):
        pickler.frames([large, LOCK])
    changing[0].append(2)
    assert minscoop.loads(pickler.frames(changing)) == [[1, 2]] and not [*tmp_path.iterdir()]
    assert minscoop.loads(pickler.frames(large)) == large and not [*tmp_path.iterdir()]


def test_a_pickler_is_as_small_as_before_when_it_has_pickled_something_large():
    """Its memo of a million lists was cleared, but not shrunk: clearing that took 8 ms after each small result."""
    pickler = minscoop.Pickler(several=True)
    pickler.frames([[1]])
    before = pickler.__sizeof__()
    pickler.frames([[i] for i in range(10_000)])
    assert pickler.__sizeof__() <= 2 * before


def test_a_class_by_value_is_pickled_once_when_many_results_are_its_instances():
    """Its methods would take a hundred times as long as an instance. A function is pickled anew: its variables may have
    changed."""
    class Local:
        def __init__(self, value):
            self.value = value

    def read():
        return total
    total, values = 0, []
    with mock.patch.object(minscoop, "reduce_class", wraps=minscoop.reduce_class) as reducer:
        running = slice_of()
        for total in range(3):
            values += [running.frozen(value) for value in (Local(total), read, Local)]
    got, failures = minscoop.read_results(minscoop.encode_results(values, {}, str), 9)
    assert reducer.call_count <= 2 and not failures
    assert [(type(a), a.value, b(), c) for a, b, c in zip(*[iter(got)] * 3)] == [(Local, i, i, Local) for i in range(3)]


def test_results_say_what_is_missing_when_their_reader_has_no_numpy():
    """It is named."""
    numpy = pytest.importorskip("numpy")
    frames = minscoop.encode_results([0, numpy.float64(1)], {}, str, frozen=True)
    with mock.patch.dict(sys.modules, {name: None for name in [*sys.modules] if name.partition(".")[0] == "numpy"}):
        _, failures = minscoop.read_results(frames, 2)
    assert sorted(failures) == [0, 1] and "numpy" in str(failures[1])


def test_all_of_its_text_is_told_when_an_exception_cannot_be_sent():
    """A TaskError must quote all lines, not only the last, which for a group is part of the frame drawn around it."""
    copy = minscoop.decode_failure(*minscoop.encode_failure(Locked("two\nlines")))
    assert type(copy) is TaskError and re.search(r"Locked: .*two.*lines", str(copy), re.DOTALL)
    if sys.version_info >= (3, 11):
        group = ExceptionGroup("several", [Locked("shut")])
        assert "ExceptionGroup: several" in str(minscoop.decode_failure(*minscoop.encode_failure(group)))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups")
def test_a_group_arrives_when_exceptions_in_it_cannot_be_made_from_their_args():
    """An exception that can be rebuilt only without its __init__ must be rebuilt so in a group, too."""
    copy = minscoop.decode_failure(*minscoop.encode_failure(ExceptionGroup("g", [Picky(1, 2), ValueError(3)])))
    assert [type(part) for part in copy.exceptions] == [Picky, ValueError] and str(copy.exceptions[0]) == "1 and 2"

    class Counted(ExceptionGroup):
        def __new__(cls, *parts):
            return super().__new__(cls, f"{len(parts)} errors", parts)

        def __init__(self, *parts):
            self.count = len(parts)

        def derive(self, parts):
            return Counted(*parts)
    copy = minscoop.decode_failure(*minscoop.encode_failure(Counted(KeyError(1))))
    assert type(copy) is Counted and copy.message == "1 errors" and type(copy.exceptions[0]) is KeyError


@pytest.mark.parametrize("error, type_, text", [
    (KeyError("k"), KeyError, "'k'"), (Picky(1, 2), Picky, "1 and 2"), (Numbered(1), Numbered, "number"),
    (Pickier(1, 2), Pickier, "1 and 2"), (Refusing(1, 2), TaskError, "Refusing: 1 and 2"), (Frozen(7), Frozen, "7"),
    (Slotted(1, 2), Slotted, "code 3"), (Gone("f", why="no file"), Gone, "[Errno 2] no file: 'f'"),
    (Locked("shut"), TaskError, "shut"), (SystemExit(3), SystemExit, "3"), (make_error()("w"), ValueError, "w")],
    ids=lambda value: getattr(value, "__name__", None))
def test_an_exception_keeps_text_and_traceback_when_it_travels(error, type_, text):
    """The exception itself if pickle takes it, else a TaskError with its type and text; never less."""
    try:
        raise error
    except BaseException as raised:
        blob, remote = minscoop.encode_failure(raised)
    copy = minscoop.decode_failure(blob, remote)
    assert isinstance(copy, type_) and text in str(copy)
    assert isinstance(copy.__cause__, minscoop.RemoteTraceback) and "test_minscoop.py" in str(copy.__cause__)


def test_a_failed_assertion_arrives_as_such_when_pytest_has_rewritten_its_module(pool):
    """A rewritten assert uses globals that pytest adds to the module here; workers lack them, so they must travel."""
    def is_two(x):
        assert x == 2, "no two"
    with pytest.raises(AssertionError, match="no two"):
        pool.submit(is_two, 1).result(WAIT)


def test_an_exception_has_no_other_text_when_its_class_puts_words_around_it():
    """pickle would call __init__ with the finished text and double the words: the copy must be made without it."""
    copy = minscoop.decode_failure(*minscoop.encode_failure(Worded("x")))
    assert (type(copy), str(copy), copy.args, copy.name) == (Worded, "no x", ("no x",), "x")


GUARDED = """
import os
both = here = told = other = 0
def top(): local = 1
def tell(): global told
if __name__ == "__main__":
    import json, os.path as p
    from math import cos as cosine, sin
    both = told = 1
    def inside(): hidden = 1
    count = 0
    def counts(): global count
    class Inner: attribute = 1
    for loop in (): pass
    with open(__file__) as handle: pass
    a, (b, *c) = 1, (2, 3)
    total: int = 0
else:
    elsewhere = other = 1
if here: conditional = 1
if __name__ != "__main__": elsewhere = 2
else: reverse = 1
"""


@pytest.mark.parametrize("kind, options, since", [
    ("TypeVar", dict(bound=int, covariant=True), (3, 8)), ("TypeVar", dict(constraints=(int, str)), (3, 8)),
    ("TypeVar", dict(infer_variance=True), (3, 12)), ("TypeVar", dict(default=None), (3, 13)),
    ("ParamSpec", dict(bound=int, contravariant=True), (3, 10)), ("ParamSpec", dict(default=[int]), (3, 13)),
    ("TypeVarTuple", {}, (3, 11)), ("TypeVarTuple", dict(default=typing.Tuple[int]), (3, 13))], ids=str)
def test_a_type_variable_has_all_that_it_was_made_with_when_it_goes_by_value(kind, options, since):
    """The copy must have every option that this version of Python has for it."""
    if sys.version_info < since:
        pytest.skip("it has not got that")
    keywords = {name: value for name, value in options.items() if name != "constraints"}
    var = getattr(typing, kind)("Nameless", *options.get("constraints", ()), **keywords)
    copy = minscoop.loads(minscoop.dumps(var))
    looks = [f"__{name}__" for name in options]
    assert copy is not var and type(copy) is type(var) and copy.__name__ == "Nameless"
    assert [getattr(copy, look) for look in looks] == [getattr(var, look) for look in looks]


def test_a_type_variable_arrives_when_the_program_has_imported_all_of_typing():
    """NoDefault, which it then has instead of a default, does not know its module: workers may lack the main one's."""
    assert output_of("-n", 1, stdin="""
from typing import *
from minscoop import futures
T = TypeVar("T")
class Box(Generic[T]): size = 2
print(futures.submit(lambda box: box.size, Box()).result())
""") == "2\n"


def test_names_travel_by_value_when_only_the_guard_binds_them(script):
    """Workers do not run what stands under `if __name__ == "__main__"`, and so lack the names bound only there."""
    bindings = minscoop.Main(str(script(GUARDED))).bindings
    assert {"json", "p", "cosine", "sin", "inside", "Inner", "loop", "handle", "a", "b", "c", "total",
            "count", "reverse"} <= bindings.guarded
    assert not {"os", "both", "here", "top", "conditional", "local", "hidden", "attribute", "elsewhere"} \
        & bindings.guarded
    assert bindings.again == {"both", "told"} and bindings.declared == {"told"}


def test_a_global_function_is_found_when_it_is_made_at_run_time(script):
    """By exec, at a debugger's prompt, or by a function that declares its name global: workers may lack it."""
    done = launch("-n", 1, script("""
        import code
        from minscoop import futures
        exec("def top(x): return -x")
        def make():
            global made
            def made(x): return x + 1
        if __name__ == "__main__":
            make()
            exec("def doubled(x): return 2 * made(x)")
            prompt = code.InteractiveConsole(globals())
            prompt.push("def squared(x): return doubled(x) ** 2")
            prompt.push("")
            print(*(list(futures.map(fn, range(3))) for fn in (top, made, doubled, squared)))
    """))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, -1, -2] [1, 2, 3] [2, 4, 6] [4, 16, 36]\n", "")


def test_who_binds_a_global_again_is_warned_when_a_function_uses_it(script):
    """Workers see only the value bound at the top level: without a warning, results would be wrong silently."""
    done = launch("-n", 2, script("""
        from minscoop import futures
        from math import sqrt
        import types
        lazy = types.ModuleType("lazy")
        lazy.__getattr__ = {}.__getitem__  # raises KeyError
        SCALE = UNUSED = OTHER = real = 1
        def scaled(x): return x * (lambda: SCALE)()
        def plain(x): return x + x.real - x.real + sqrt(0) + (lazy is None)
        if __name__ == "__main__":
            from math import sqrt
            lazy = lazy
            SCALE = UNUSED = real = 10
            OTHER_THING = 5
            print(*map(int, futures.map(plain, range(3))), *futures.map(scaled, range(3)),
                  *futures.map(scaled, range(3)))
    """))
    assert done.returncode == 0 and done.stdout.split() == list("012012012")
    assert done.stderr.count("scaled uses the global SCALE") == 1 and done.stderr.count("\n") == 1


def test_who_shares_a_lock_or_a_value_is_warned_when_each_worker_makes_its_own(script):
    """Children that are forked would inherit them. Here a counter would stay 0, and a lock shut out nobody, silently.
    A manager's are shared; threading's lock is meant for one process everywhere."""
    done = launch("-n", 2, script("""
        import functools, multiprocessing, threading
        from minscoop import futures
        counter, lock, queue = multiprocessing.Value("i"), multiprocessing.Lock(), multiprocessing.SimpleQueue()
        unused, own, context = multiprocessing.Lock(), threading.Lock(), multiprocessing.get_context("spawn")
        def count(x):
            with lock, own:
                counter.value += 1
                return x
        def put(x): return context and queue.put(x)
        def add(shared, x): shared.append(x)
        if __name__ == "__main__":
            with multiprocessing.Manager() as manager:
                shared = manager.list()
                for fn in (count, count, put, functools.partial(add, shared)):
                    print(*futures.map(fn, range(2)))
                print(counter.value, len(shared))
    """))
    assert (done.returncode, done.stdout) == (0, "0 1\n0 1\nNone None\nNone None\n0 2\n")
    assert sorted(line.split(",")[0] for line in done.stderr.splitlines()) == [
        "minscoop: count uses the global counter", "minscoop: count uses the global lock",
        "minscoop: put uses the global queue"]


def test_functions_travel_when_copyreg_has_an_entry_for_them(script):
    """As Twisted's persistence makes one. It is for functions that pickle would send, by their names."""
    done = launch("-n", 1, script("""
        import copyreg, types
        from minscoop import futures
        def refuse(fn): raise TypeError("cannot pickle a function")
        copyreg.pickle(types.FunctionType, refuse)
        if __name__ == "__main__":
            print(*futures.map(lambda x: x + 1, range(3)))
    """))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 2 3\n", "")


def test_a_class_keeps_its_identity_when_its_metaclass_sends_it_while_it_is_made(script):
    """On the worker, where it is pickled before it is complete: instances that return are still of the class here."""
    done = launch("-n", 2, script("""
        import minscoop
        class Meta(type):
            def __init__(cls, *args):
                super().__init__(*args)
                if minscoop.this_worker is not None:
                    minscoop.dumps(cls)
        def make():
            class Local(metaclass=Meta): pass
            return Local
        if __name__ == "__main__":
            Local = make()
            print(all(isinstance(one, Local) for one in minscoop.map(lambda _: Local(), range(5))))
    """))
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_class_is_not_taken_for_the_workers_own_when_a_function_binds_its_name_again(script):
    """The same code may have made both, so that even their qualified names are equal."""
    assert output_of("-n", 1, script("""
import collections
from minscoop import futures
def make(n):
    class Made:
        number = n
    return Made
Current, Point = make(1), collections.namedtuple("Pair", "x y")
def change():
    global Current, Point
    Current, Point = make(2), collections.namedtuple("Pair", "x y z")
def look(current, point): return current.number, point.z
if __name__ == "__main__":
    change()
    print(*futures.map(look, [Current()], [Point(1, 2, 3)]))
""")) == "(2, 3)\n"


def test_a_class_is_the_workers_own_when_the_script_binds_it_to_another_name(script):
    """Its name does not lead to it, so it goes by value; but functions that go by name know that of their own module.
    Not so if workers bind another class to that name, or none."""
    script("""
        import collections
        Pair = collections.namedtuple("Couple", "left right")
        def known(pair): return isinstance(pair, Pair), Pair(1, 2)
    """, "library.py")
    assert output_of("-n", 2, script("""
        import dataclasses, library
        from minscoop import futures
        def make(size):
            class Local:
                def get(self): return size
            return Local
        def grown(cls):
            class Grown(cls):
                def twice(self): return 2 * super().get()
            return Grown
        @grown
        class Item:
            def get(self): return 2
        Point, Local, Again, Later = dataclasses.make_dataclass("Spot", ["x"]), make(1), make(1), None
        def known(point, local, item):
            return type(point) is Point and point == Point(1), type(local) is Local, type(item) is Item and item.twice()
        def made(_): return Point(1), Local(), Item()
        def later():
            global Later
            Later = make(3)
            return Later()
        if __name__ == "__main__":
            Again = make(2)
            for _ in range(2): print(*futures.submit(known, Point(1), Local(), Item()).result())
            for one in futures.map(made, range(4)): assert known(*one) == (True, True, 4)
            print(*futures.submit(library.known, library.Pair(1, 2)).result(), library.known(library.Pair(1, 2))[0])
            print(*futures.map(lambda one: one.get(), [Again(), later()]))
    """)) == "True True 4\n" * 2 + "True Couple(left=1, right=2) True\n2 3\n"


def test_a_name_error_says_why_when_the_script_binds_the_name_under_its_guard(script):
    """A name that the script binds nowhere (a typo, say) must not get this hint."""
    done = launch("-n", 1, script("""
        from minscoop import futures
        def scaled(x): return x * scale
        def mistyped(x): return x * scael
        if __name__ == "__main__":
            scale = 10
            for fn in scaled, mistyped:
                try: futures.submit(fn, 1).result()
                except NameError as error: print("(the script binds scale under" in str(error.__cause__))
    """))
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["True", "False"], "")


@pytest.mark.parametrize("path", [None, "/nowhere/script.py", sys.executable])
def test_a_name_error_is_as_it_was_when_the_script_cannot_be_read(monkeypatch, path):
    """At a prompt there is none; or it has been moved, or does not parse: no hint then, and no other error."""
    monkeypatch.setattr(minscoop, "main", minscoop.Main(path))
    error = minscoop.decode_failure(*minscoop.encode_failure(NameError("name 'x' is not defined"), "the call of f"))
    assert type(error) is NameError and "the script binds" not in str(error.__cause__)


def test_classes_are_made_anew_when_their_metaclass_has_told_pickle_how(script):
    """As in DEAP's creator, even if a newer class has the name; the script is imported before arguments are made."""
    script("""
        import copyreg, sys
        class Meta(type):
            def __reduce__(cls): return make, (cls.__name__,)
        def make(name):
            cls = globals()[name] = Meta(name, (list,), {"__module__": __name__})
            return cls
        copyreg.pickle(Meta, Meta.__reduce__)
    """, "creator.py")
    assert output_of("-n", 2, script("""
        import creator
        from minscoop import futures
        assert not hasattr(creator, "Row")
        creator.make("Row")
        def live(row): return creator.Row(row + [1])
        if __name__ == "__main__":
            rows = [creator.Row() for _ in range(4)]
            for _ in range(5): rows = list(futures.map(live, rows))
            print(rows[0], type(rows[0]).__name__)
    """)) == "[1, 1, 1, 1, 1] Row\n"


SENDING = """
import enum, functools, operator, sys
from minscoop import futures
import minscoop

FACTOR = 10
class Point:
    def __init__(self, x): self.x = x
    def shifted(self, by): return Point(self.x + by)
    def __eq__(self, other): return type(other) is Point and self.x == other.x
class Colour(enum.Enum):
    RED = 1
def timed(fn):
    @functools.wraps(fn)
    def wrapper(*args): return fn(*args)
    return wrapper
@timed
def scale(x): return x * FACTOR
def __work(x): return x + 1
def is_point(x): return isinstance(x, Point), type(x) is Point, x.__class__.__module__
def nested(n): return 1 if n == 0 else sum(futures.map(nested, [n - 1] * 2))
def raises(x): raise CustomError(x)
class CustomError(Exception): pass

if __name__ == "__main__":
    import math
    offset = 5
    class Late(Point):
        def late(self): return self.x + offset
    def guarded(x): return math.floor(x) + offset + (guarded(0) if x else 0)
    def use(late): return late.late(), isinstance(late, Point), Late(1).late()
    def once(fn, *args):
        kept, = futures.map(fn, *[[arg] for arg in args])
        return kept
    assert once(__work, 1) == 2  # first: this has the worker import the script
    assert once(scale, 2) == 20
    assert once(lambda x: x * FACTOR + offset, 2) == 25
    assert once(guarded, 2.5) == 12
    assert once(Point(1).shifted, 2) == Point(3)
    assert isinstance(once(Point, 4), Point) and type(once(Point, 4)) is Point
    assert once(is_point, Point(1))[:2] == (True, True)
    assert once(use, Late(1)) == (6, True, 6)
    assert type(once(Late, 1)) is Late
    assert once(lambda c: (c is Colour.RED, c), Colour.RED) == (True, Colour.RED)
    assert once(functools.partial(operator.add, 1), 2) == 3
    assert once(nested, 3) == 8
    try: once(raises, 1)
    except CustomError as error: assert error.args == (1,)
    print("done")
"""


@pytest.mark.parametrize("how", ["script", "-m", "-c", "-n 0", "executor", "directory", "archive", "bytecode",
                                 "stdin"])
def test_the_programs_own_objects_work_when_it_runs_in_any_way(script, tmp_path, how):
    """Functions and classes of the main module keep one identity, also those under its guard."""
    path = script(SENDING)
    plain = SENDING.replace("assert once(__work", "minscoop.Executor(2)\n    assert once(__work")
    if how in ("executor", "directory", "archive", "bytecode"):
        path = script(plain, "app/__main__.py")
        bytecode = py_compile.compile(str(path), tmp_path / "program.pyc")
        path = {"executor": path, "directory": path.parent, "bytecode": bytecode}.get(how) or \
            shutil.make_archive(tmp_path / "program", "zip", path.parent)
        done = python(path, env=dict(os.environ, PYTHONPATH=str(HERE)))
    elif how == "stdin":
        done = python("-", stdin=plain, env=dict(os.environ, PYTHONPATH=str(HERE)))
    else:
        args = {"script": [path], "-m": ["-m", "program"], "-c": ["-c", SENDING], "-n 0": [path]}[how]
        done = launch("-n", 0 if how == "-n 0" else 2, *args, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_pool_says_what_is_missing_when_workers_do_not_find_the_script(script, tmp_path):
    """One error must take the place of all results, since no task can run without the script."""
    script("""
        import minscoop, sys
        def work(x): return x
        if __name__ == "__main__":
            del sys.path[0]
            minscoop.Executor(2)
            print(list(minscoop.map(work, range(9))))
    """)
    done = python("-m", "program", cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("cannot import the script") == 1, done
    assert "no module named program" in done.stderr


# ---------------------------------------------------------------------------------------------------
# 5  Futures


@pytest.fixture(params=["pool", "inline"])
def any_pool(request, guard):
    """A pool of processes, and the one that works inline."""
    if request.param == "pool":
        yield request.getfixturevalue("shared_pool").executor
    else:
        with minscoop.Executor(0) as executor:
            yield executor


def asks_again_and_again(how, count):
    """A task that polls the tasks that it has made, instead of waiting for them."""
    futures, limit = [minscoop.submit(identity, i) for i in range(count)], time.monotonic() + WAIT
    while time.monotonic() < limit:
        if how == "done" and all([future.done() for future in futures]) or \
                how == "wait" and not minscoop.wait(futures, timeout=0).not_done:
            return sum(future.result(timeout=0) for future in futures)
        with contextlib.suppress(TimeoutError):
            if how == "result":
                return sum([future.result(timeout=0) for future in futures])
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["done", "wait", "result"])
def test_tasks_are_done_when_the_one_that_made_them_asks_again_and_again(any_pool, how):
    """Polling must let a worker run other tasks: here every worker polls, so nobody else could run them."""
    assert list(any_pool.map(asks_again_and_again, [how] * 6, [1, 2, 3] * 2)) == [0, 1, 3] * 2


def runs_a_loop(depth):
    """A task whose coroutine waits, blocking its event loop, for tasks that run event loops themselves."""
    async def main():
        return 1 + sum(minscoop.map(runs_a_loop, [depth - 1] * 2)) if depth else 1
    return asyncio.run(main())


def test_a_task_may_run_an_event_loop_when_the_one_that_waits_for_it_does(any_pool):
    """A task that runs on the stack of another must not see its event loop, or asyncio would refuse to run a second."""
    assert any_pool.submit(runs_a_loop, 3).result() == 15


def test_a_future_has_the_result_when_the_call_returns(any_pool):
    """result(), exception(), done(), cancelled() and running() of PEP 3148."""
    future = any_pool.submit(pow, 2, 5, mod=7)
    assert isinstance(future, concurrent.futures.Future) and isinstance(future, minscoop.Future)
    assert future.result(WAIT) == 4 and future.exception(WAIT) is None
    assert future.done() and not future.cancelled() and not future.running() and not future.cancel()
    assert "finished" in repr(future)


def test_a_future_says_what_it_lacks_when_a_name_is_mistyped(any_pool):
    """As any object does; Python adds what may have been meant."""
    with pytest.raises(AttributeError, match="^'Future' object has no attribute 'results'$"):
        any_pool.submit(abs, -1).results()


@pytest.mark.parametrize("name, rest", [
    ("starmap", r": use map\(lambda row: f\(\*row\), rows\)"), ("imap_unordered", ": use map_as_completed"),
    ("get", r": use result\(\)"), ("results", "")])
def test_what_to_use_is_told_when_a_name_is_another_pools(name, rest):
    """By an executor, its futures and the module; any other wrong name is the usual error."""
    with minscoop.Executor(0) as executor:
        for thing in executor, executor.submit(abs, 1), minscoop:
            assert not hasattr(thing, name)
            with pytest.raises(AttributeError, match=f"has no attribute '{name}'{rest}$"):
                getattr(thing, name)


def test_a_future_has_the_exception_when_the_call_raises(any_pool):
    """result() raises the exception, exception() returns it."""
    future = any_pool.submit(divide, 1)
    with pytest.raises(ZeroDivisionError):
        future.result(WAIT)
    assert isinstance(future.exception(WAIT), ZeroDivisionError) and future.done()


def sums_patiently(number):
    """Wait for calls, some of which other workers run, with a timeout too long for locks (threading.TIMEOUT_MAX)."""
    futures = [minscoop.submit(time.sleep, 0.05) for _ in range(3)]
    return [future.result(sys.maxsize) for future in futures]


def test_a_task_waits_when_the_timeout_is_longer_than_any(guard):
    """A timeout beyond threading.TIMEOUT_MAX must not raise OverflowError, even if other tasks run meanwhile."""
    with minscoop.Executor(2) as executor:
        assert list(executor.map(sums_patiently, range(4))) == [[None] * 3] * 4


def test_the_traceback_of_the_worker_is_the_cause_when_a_call_raises(pool):
    """As concurrent.futures does: the remote traceback is chained, with the function where it happened."""
    for error in (pool.submit(divide, 1).exception(WAIT),
                  pytest.raises(ZeroDivisionError, list, pool.map(divide, [1])).value):
        assert isinstance(error.__cause__, minscoop.RemoteTraceback)
        assert "in divide" in str(error.__cause__) and "ZeroDivisionError" in str(error.__cause__)


def fails_with(argument):
    """Raise, keeping only a weak reference to the argument; the garbage collector is off until ``is_alive``."""
    gc.disable()
    identity.argument = weakref.ref(argument)
    raise ValueError


def is_alive():
    """Whether the argument of ``fails_with`` still exists."""
    gc.enable()
    return identity.argument() is not None


def test_arguments_are_released_in_the_worker_when_a_call_raises(guard):
    """At once, not at the next garbage collection: the exception's frames must not form a cycle with what keeps it."""
    with minscoop.Executor(1) as executor:
        assert executor.submit(fails_with, Holder(1)).exception(WAIT) is not None
        assert not executor.submit(is_alive).result(WAIT)


def test_waiting_ends_when_the_timeout_is_over(pool, tmp_path):
    """Every timeout is real: result, exception, wait, as_completed, map and map_as_completed."""
    future = pool.submit(await_file, tmp_path / "go", 1)
    try:
        for call in (future.result, future.exception):
            with pytest.raises(TimeoutError):
                call(timeout=0.02)
            with pytest.raises(TimeoutError):
                call(0)
        for module in (minscoop, concurrent.futures):
            assert module.wait([future], timeout=0.02) == (set(), {future})
            with pytest.raises(TimeoutError):
                list(module.as_completed([future], timeout=0.02))
        for mapping in (pool.map, pool.map_as_completed):
            with pytest.raises(TimeoutError):
                list(mapping(await_file, [tmp_path / "go"], timeout=0.02))
        assert not future.done()
    finally:
        touch(tmp_path / "go")
    assert future.result(WAIT) == 1


def works_on(argument):
    """Run until the deputy has looked at the task; keep only a weak reference to the argument."""
    identity.argument = weakref.ref(argument)
    minscoop.this_worker.seen = "nothing yet"
    assert eventually(lambda: minscoop.this_worker.seen != "nothing yet")


def test_arguments_are_released_when_a_worker_has_nothing_to_do(guard):
    """A long task leaves nothing behind in the worker that has run it."""
    with minscoop.Executor(1) as executor:
        assert list(executor.map(works_on, [Holder(1)])) == [None]
        assert executor.submit(lambda: gc.collect() >= 0 and identity.argument() is None).result(WAIT)


@pytest.mark.parametrize("watched", [False, True])
def test_a_future_keeps_its_state_when_it_is_settled_twice(watched):
    """The pool may break just as the result arrives: the first final state holds, and callbacks are called once."""
    future, called = minscoop.Future(HandNode(), (abs, (1,), {}), None), []
    if watched:
        future.add_done_callback(called.append)
    future._settle(minscoop.FINISHED, 1)
    future._settle(minscoop.CANCELLED_AND_NOTIFIED)
    assert future.result() == 1 and called == [future] * watched


@pytest.mark.parametrize("error", [Frozen, type("Empty", (Exception,), {"__len__": lambda self: 0})])
def test_a_call_has_failed_when_it_raises_whatever_exception(error):
    """An exception whose attributes cannot be set, or that is false as a bool, is an exception like any other."""
    future = minscoop.Future(HandNode(), (fails_on(1, error=error), (1,), {}), None)
    waiter = _base._AllCompletedWaiter(2, stop_on_exception=True)
    with future._condition:
        future._waiters.append(waiter)
    future.run()
    assert type(future.exception()) is error and waiter.event.is_set()


@pytest.mark.parametrize("what", ["call", "inputs"])
def test_frames_are_released_when_an_exception_was_handled(pool, what):
    """The caller's frames, and all that they hold, are freed at once, not at the next garbage collection."""
    def handles():
        argument = Holder(1)
        with contextlib.suppress(ZeroDivisionError):
            if what == "call":
                pool.submit(divide, 1).result(WAIT)
            else:
                list(pool.map(abs, (1 // (2 - i) for i in range(4))))
        return weakref.ref(argument)
    gc.disable()
    try:
        assert handles()() is None
    finally:
        gc.enable()


def test_a_call_never_runs_when_it_was_cancelled_in_time(guard, tmp_path):
    """cancel() succeeds while a call is queued in this process; result() then raises CancelledError; waiters wake."""
    with minscoop.Executor(1) as executor:
        blocker = executor.submit(await_file, tmp_path / "go", then=tmp_path / "started")
        await_file(tmp_path / "started")
        futures = [executor.submit(append, tmp_path / "ran", i) for i in range(50)]
        called = []
        futures[-1].add_done_callback(called.append)
        cancelled = {future for future in futures if future.cancel()}
        assert futures[-1] in cancelled and futures[-1].cancel() and called == [futures[-1]]
        assert all(future.cancelled() and future.done() for future in cancelled)
        with pytest.raises(CancelledError):
            futures[-1].result(WAIT)
        with pytest.raises(CancelledError):
            futures[-1].exception(WAIT)
        assert cancelled <= set(minscoop.as_completed(list(cancelled), timeout=WAIT))
        touch(tmp_path / "go")
        blocker.result(WAIT)
    assert {int(line) for line in lines_of(tmp_path / "ran")} == \
        {i for i, future in enumerate(futures) if future not in cancelled}


def test_callbacks_are_called_once_when_a_future_is_done(any_pool, caplog):
    """Whether they were added before or after; one that raises is logged, and harms neither the others nor the pool."""
    called, gate = [], threading.Event()
    future = any_pool.submit(identity, 5)
    for i in range(3):
        future.add_done_callback(lambda future, i=i: called.append((i, future.result())))
    future.add_done_callback(divide)
    future.add_done_callback(lambda future: gate.set())
    assert gate.wait(WAIT) and future.result(WAIT) == 5
    future.add_done_callback(lambda future: called.append("late"))
    assert called == [(0, 5), (1, 5), (2, 5), "late"]
    assert [record.exc_info[0] for record in caplog.records] == [TypeError]
    assert any_pool.submit(identity, 6).result(WAIT) == 6


def test_a_callback_may_use_the_pool_when_it_is_called(any_pool):
    """Submitting and waiting are allowed in a callback."""
    results, gate = [], threading.Event()

    def follow(future):
        results.append(any_pool.submit(identity, future.result() + 1).result(WAIT))
        gate.set()
    any_pool.submit(identity, 1).add_done_callback(follow)
    assert gate.wait(WAIT) and results == [2]


def test_a_callback_may_wait_for_other_calls_when_their_results_come_with_its_own(pool):
    """All results in a message are recorded before any callback is called: else one might wait for the next in vain."""
    results, gate = [], threading.Event()
    first, *others = [pool.submit(identity, i) for i in range(200)]

    def follow(one):
        results.append(others[one.result()].result(WAIT))
        if len(results) == 199:
            gate.set()
    for future in [first, *others[:-1]]:
        future.add_done_callback(follow)
    assert gate.wait(WAIT) and sorted(results) == list(range(1, 200))


def wait_in_a_callback_in_a_thread():
    """A thread that the task starts waits for a call, one of whose callbacks waits for another call."""
    results = []

    def wait():
        one, other = minscoop.submit(time.sleep, 0.2), minscoop.submit(time.sleep, 0.4)
        one.add_done_callback(lambda _: results.append(other.result(WAIT)))
        time.sleep(0.1)  # others have taken them
        one.result(WAIT)
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    return results


def test_others_handle_what_comes_when_a_callback_waits_in_a_thread_of_a_task(guard):
    """The result that the callback waits for comes in a later message, which other threads have to handle meanwhile."""
    with minscoop.Executor(3) as executor:
        assert executor.submit(wait_in_a_callback_in_a_thread).result(2 * WAIT) == [None]


@pytest.mark.parametrize("module", [minscoop, concurrent.futures], ids=lambda module: module.__name__)
def test_wait_returns_in_time_when_it_is_told_what_for(pool, tmp_path, module):
    """FIRST_COMPLETED, FIRST_EXCEPTION and ALL_COMPLETED of ours and of the standard library."""
    late = pool.submit(await_file, tmp_path / "go", "late")
    early, wrong = pool.submit(identity, "early"), pool.submit(divide, 1)
    try:
        done, pending = module.wait([early, late], WAIT, FIRST_COMPLETED)
        assert (done, pending) == ({early}, {late})
        done, pending = module.wait([wrong, late], WAIT, FIRST_EXCEPTION)
        assert (done, pending) == ({wrong}, {late})
        assert next(module.as_completed([late, early], WAIT)) is early
    finally:
        touch(tmp_path / "go")
    assert module.wait([early, late, wrong], WAIT, ALL_COMPLETED) == ({early, late, wrong}, set())
    assert set(module.as_completed([late, early, late], WAIT)) == {early, late}
    assert module.wait([], WAIT) == (set(), set())


@pytest.mark.parametrize("call", [minscoop.wait, minscoop.as_completed])
def test_it_is_said_what_is_waited_for_when_it_is_no_future(any_pool, call):
    """As those are used to who come from dask, whose map returns futures."""
    with pytest.raises(TypeError, match=f"{call.__name__} takes futures, .*, not .'1'.: a map gives results"):
        list(call(any_pool.map(list, ["1"])))
    with pytest.raises(TypeError, match="'Future' object is not iterable"):
        list(call(any_pool.submit(abs, -1)))


def test_futures_of_two_libraries_are_waited_for_when_mixed(pool):
    """The standard library's wait and as_completed accept our futures beside its own."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        mixed = [pool.submit(identity, 1), threads.submit(identity, 2)]
        assert concurrent.futures.wait(mixed, WAIT).not_done == set()
        assert sorted(future.result() for future in concurrent.futures.as_completed(mixed, WAIT)) == [1, 2]


def test_the_deputy_looks_at_once_when_nobody_else_has_lately():
    """As under an event loop. Otherwise, other threads have ATTEND to look first."""
    node, waits = minscoop.Inline(), []
    node.stopped, node.hear = types.SimpleNamespace(wait=waits.append), lambda: None
    node.looked = math.inf
    assert node.watch(1) and waits == [math.inf]
    node.looked = time.monotonic() - minscoop.ATTEND
    assert node.watch(1) and waits == [math.inf, 0]


def test_results_arrive_when_asyncio_awaits_them(any_pool):
    """asyncio.wrap_future and run_in_executor take our futures and executors."""
    async def main():
        loop = asyncio.get_running_loop()
        wrapped = [asyncio.wrap_future(any_pool.submit(identity, i)) for i in range(20)]
        ran = [loop.run_in_executor(any_pool, identity, i) for i in range(20)]
        wrong = asyncio.wrap_future(any_pool.submit(divide, 1))
        results = await asyncio.wait_for(asyncio.gather(*wrapped, *ran, wrong, return_exceptions=True), WAIT)
        assert results[:-1] == [*range(20)] * 2 and isinstance(results[-1], ZeroDivisionError)
    asyncio.run(main())


def await_all(depth, count):
    """A task whose event loop awaits calls, first one by one, then several at once, among them tasks like itself."""
    async def main():
        once = [await asyncio.wrap_future(minscoop.submit(identity, i)) for i in range(count)]
        deeper = [asyncio.wrap_future(minscoop.submit(await_all, depth - 1, count)) for _ in range(2) if depth]
        wrong = asyncio.wrap_future(minscoop.submit(divide, 1))
        *sums, error = await asyncio.gather(*deeper, wrong, return_exceptions=True)
        assert isinstance(error, ZeroDivisionError)
        return len(once) + sum(sums)
    return asyncio.run(main())


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_may_have_event_loops_when_they_await_futures(guard, workers):
    """An event loop sleeps in its own selector: another thread must take results in, even in the only worker."""
    with minscoop.Executor(workers) as executor:
        for depth, count in (0, 100), (4, 3):
            assert executor.submit(await_all, depth, count).result(WAIT) == count * (2 ** (depth + 1) - 1)


def test_every_thread_gets_the_result_when_several_wait(pool, tmp_path):
    """Any number of threads may wait for one future."""
    future, got = pool.submit(await_file, tmp_path / "go", 7), []
    threads = [threading.Thread(target=lambda: got.append(future.result(WAIT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    touch(tmp_path / "go")
    for thread in threads:
        thread.join(WAIT)
    assert got == [7] * 8


def test_threads_do_not_disturb_each_other_when_all_use_the_pool(pool):
    """The methods of an Executor may be called from any thread."""
    def use(k):
        assert sum(pool.map(identity, range(200), timeout=WAIT)) == 19900
        assert [pool.submit(identity, (k, i)).result(WAIT) for i in range(20)] == [(k, i) for i in range(20)]
        assert pool.map_reduce(str, operator.add, range(10)) == "0123456789"
        return k
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        assert list(threads.map(use, range(12), timeout=WAIT)) == list(range(12))


def sleep_by_map(seconds):
    """Sleep in a task by tasks of its own."""
    list(minscoop.map(time.sleep, [seconds / 4] * 4))


def sleep_by_calls(seconds):
    """The same by calls."""
    for future in [minscoop.submit(time.sleep, seconds / 4) for _ in range(4)]:
        future.result()


@pytest.mark.parametrize("sleep", [time.sleep, sleep_by_map, sleep_by_calls])
def test_what_comes_later_need_not_wait_when_a_long_map_has_been_given_away(pool, sleep):
    """Workers run later work and the long map in turns, also if more calls are submitted than there are workers."""
    with contextlib.closing(pool.map(sleep, [0.02] * 200 * WAIT)) as results:  # takes longer than WAIT
        next(results), next(results)
        assert pool.submit(identity, 1).result(WAIT) == 1
        assert list(pool.map(identity, range(100), timeout=WAIT)) == list(range(100))
        assert [future.result(WAIT) for future in [pool.submit(identity, i) for i in range(20)]] == list(range(20))


def test_a_future_stays_at_home_when_it_is_an_argument(pool):
    """A future means nothing in another process: the error says to send its result()."""
    with pytest.raises(TypeError, match="result"):
        pickle.dumps(pool.submit(identity, 1))
    with pytest.raises(CannotSend, match=r"argument 1\[0\].*result\(\)"):
        pool.submit(identity, [pool.submit(identity, 1)]).result(WAIT)


def test_arguments_are_released_when_the_call_is_done(pool):
    """A future keeps its result, not what led to it."""
    argument = Holder(1)
    alive = weakref.ref(argument)
    future = pool.submit(identity, argument)
    future.result(WAIT)
    del argument
    gc.collect()
    assert eventually(lambda: alive() is None), future


ENDS = {  # how a map of many items ends
    "read": lambda pool, inputs: list(pool.map(identity, inputs)),
    "not read": lambda pool, inputs: pool.map(identity, inputs),
    "closed": lambda pool, inputs: next(pool.map(identity, inputs)),
    "timeout": lambda pool, inputs: pytest.raises(TimeoutError, list, pool.map(stall, inputs, timeout=0)),
    "error": lambda pool, inputs: pytest.raises(AttributeError, list, pool.map(operator.attrgetter("none"), inputs)),
}


@pytest.mark.parametrize("how", ENDS)
def test_inputs_are_released_when_a_map_is_over(pool, how):
    """At once, not at the next garbage collection, which may be long in coming: a few large arrays trigger none."""
    argument = Holder(1)
    alive = weakref.ref(argument)
    gc.disable()
    try:
        ENDS[how](pool, [argument] * 50)
        del argument
        assert eventually(lambda: alive() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["map", "submit"])
@pytest.mark.parametrize("kind", ["flat", "nested", "array"])
def test_a_result_is_what_it_was_when_a_later_call_changes_it(pool, way, kind):
    """A buffer or a model, say, that the calls in one worker use again: results travel together, but as they were, one
    by one, as with ProcessPoolExecutor; also where the first ones cannot change."""
    buffer = pytest.importorskip("numpy").zeros(1, int) if kind == "array" else [0]

    def fill(item):
        buffer[0] = item
        return None if item < 5 else [buffer] if kind == "nested" else buffer
    results = pool.map(fill, range(200)) if way == "map" else [
        future.result() for future in [pool.submit(fill, item) for item in range(200)]]
    assert [result and str(result) for result in results] == [None] * 5 + [
        f"[[{item}]]" if kind == "nested" else f"[{item}]" for item in range(5, 200)]


def test_the_file_of_a_result_goes_when_nobody_takes_it(tmp_path):
    """One that was pickled already; what was taken stays."""
    kept, dropped = (slice_of(str(tmp_path)).frozen(bytearray(minscoop.SHARED)) for _ in range(2))
    kept.take()
    del kept, dropped
    gc.collect()
    assert len([*tmp_path.iterdir()]) == 1


def test_a_result_is_released_when_others_of_its_bundle_are_to_come():
    """Calls travel in bundles: while one of them takes long, the bundle must not keep results already delivered."""
    node = HandNode()
    futures = [minscoop.Future(node, (abs, (i,), {}), None) for i in range(2)]
    job = minscoop.Bundle(node, list(futures))
    job.deliver(0, 1, [Holder(1)], {})
    alive = weakref.ref(futures.pop(0).result())
    gc.collect()
    assert alive() is None
    job.cancel()
    assert futures[0].cancelled()


# ---------------------------------------------------------------------------------------------------
# 6  Jobs and spans


class HandNode(minscoop.Node):
    """A node without a socket: what it would send is written down."""

    wishes_if_done = tuple

    def __init__(self, name=b"0.root", size=2, retries=3):
        self.sent = []
        super().__init__(name, size, retries)

    def send_all(self, *messages):
        self.sent.extend(messages)

    def named(self, name):
        """The messages of this name so far, without it."""
        return [frames[1:] for frames in self.sent if frames[0] == name]


class Large(array.array):
    """A large frame as it is received: not bytes, but a buffer of them."""

    def __new__(cls, data):
        return super().__new__(cls, "B", data)

    split = partition = startswith = None


class HandJob(minscoop.Job):
    """A job that collects its results: {item: result or error}."""

    def __init__(self, fn, *columns, op=None, node=None):
        super().__init__(node or HandNode())
        self.recipe = minscoop.Recipe(fn, op)
        self.got, self.parts = {}, []
        self.span = minscoop.Span(self, columns, 0, 0, len(columns[0]))

    def deliver(self, lo, count, values, failures):
        self.parts.append((lo, count, values, failures))
        if self.recipe.op is None:
            assert not self.got.keys() & range(lo, lo + count), "an item has two results"
            self.got.update((lo + i, failures.get(i, value)) for i, value in enumerate(values))

    def run_all(self):
        """Run slice after slice until nothing is queued, as a worker does."""
        self.node.executes = True
        self.node.queue.append(self.span)
        while self.node.queue:
            if self.node.queue[-1].stale:
                self.node.queue.pop()
                continue
            piece = self.node.queue[-1].claim()
            self.piece = piece
            piece.run()
            piece.deliver()


def fails_on(*wrong, error=ValueError):
    def fn(x):
        if x in wrong:
            raise error(x)
        return x * 10
    return fn


@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, Frozen])
@pytest.mark.parametrize("wrong", [(), (0,), (4,), (1, 2), (0, 1, 2, 3, 4)])
def test_an_exception_belongs_to_its_item_when_a_slice_runs(error, wrong):
    """Whatever one item raises, StopIteration too, the others have their results."""
    job = HandJob(fails_on(*wrong, error=error), range(5))
    job.run_all()
    assert {i for i, value in job.got.items() if isinstance(value, error)} == set(wrong)
    assert {i: value for i, value in job.got.items() if i not in wrong} == {
        i: i * 10 for i in range(5) if i not in wrong}


def test_a_stop_iteration_is_whole_when_a_call_raises_it(any_pool):
    """A StopIteration must not end the loop over the calls of a bundle, and keeps its traceback."""
    futures = [any_pool.submit(raise_, StopIteration, i) for i in range(9)]
    for i, error in enumerate(future.exception(WAIT) for future in futures):
        assert error.value == i and "in raise_" in "".join(
            traceback.format_exception(type(error), error, error.__traceback__))


def test_a_stop_iteration_says_what_may_have_led_to_it_when_its_traceback_is_lost():
    """A slice runs in `map`, in C, which takes the callable's StopIteration for its own end and drops its traceback."""
    job = HandJob(lambda x: next(iter(())), range(2))
    job.run_all()
    _, text = minscoop.encode_failure(job.got[1], "item 1 of the map of f")
    assert text.startswith("item 1 of the map of f:\n") and "next()" in text and text.endswith("StopIteration\n")


def test_rows_are_made_of_all_columns_when_a_slice_runs():
    """Several iterables are zipped; argument k of item i in a span is columns[k][i - base]."""
    job = HandJob(pow, [2, 3, 4], (5, 2, 1))
    job.run_all()
    assert job.got == {0: 32, 1: 9, 2: 4}
    job = HandJob(str, "abcdef")
    part = minscoop.Span(job, ["cdef"], 2, 3, 5)
    assert [list(column) for column in part.items(part.lo, part.hi)] == [["d", "e"]]


def test_a_part_has_the_mark_of_a_task_when_a_thread_of_that_made_the_whole():
    """Else that task would not be blamed for the death if the part kills its worker."""
    worker = HandWorker(0)
    worker.holder.ident, worker.holder.mark = None, (b"0.root:0/0", 0, 1)
    minscoop.Mapping(worker, minscoop.Recipe(str), ["abcdef"])
    assert worker.queue.pop().cut(2, 4).claim().mark == (b"0.root:0/0", 0, 1)
    assert worker.submit(str, (1,), {}).mark == (b"0.root:0/0", 0, 1)


class Unsliceable(tuple):
    """A tuple that breaks when a part of it is taken."""

    def __getitem__(self, key):
        raise IndexError("no such luck")


def test_a_map_reads_its_inputs_only_once_when_they_cannot_be_sliced():
    """It slices copies of its own, and only what is known to bear that uncopied."""
    node = HandNode()
    job = minscoop.Mapping(node, minscoop.Recipe(str), [Unsliceable(range(3))])
    piece = node.queue[-1].claim()
    piece.run()
    assert piece.values == ["0"] and job.pulled == 3


class Counted:
    """Inputs without an end; Ctrl-C comes while one of them is made."""

    def __init__(self, bad):
        self.bad, self.count = bad, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        if self.count == self.bad:
            raise KeyboardInterrupt
        return self.count


@pytest.mark.parametrize("slow", [False, True])
def test_inputs_that_were_pulled_are_not_lost_when_ctrl_c_comes(monkeypatch, caplog, slow):
    """The program may catch it, and read on. A map whose inputs went on is complete, also if the next pull took few."""
    monkeypatch.setattr(minscoop, "ATTEND", WAIT)  # a slow machine is to pull no fewer items

    class Inputs:
        numbers = iter((0, 1, KeyboardInterrupt(), 2))

        def __iter__(self):
            return self

        def __next__(self):
            number = next(self.numbers)
            if isinstance(number, int):
                return number
            raise number
    node = HandNode()
    with monkeypatch.context() as patch:
        patch.setattr(minscoop, "ATTEND", -1)  # one item
        job = minscoop.Mapping(node, minscoop.Recipe(str), [Inputs()])
    with pytest.raises(KeyboardInterrupt):
        job.pull()
    job.abandon()  # which must not log Ctrl-C as an error of the inputs
    if slow:
        with monkeypatch.context() as patch:
            patch.setattr(minscoop, "ATTEND", -1)
            job.pull()
        assert not job.exhausted and job.pulled == 3
    job.pull()
    assert job.exhausted and [column for span in node.queue for column in span.columns] == [(0,), (1,), (2,)]
    assert job.inputs_error is None and not caplog.records


def test_a_map_is_dropped_when_ctrl_c_comes_before_its_iterator_is_there():
    """Nobody can read it, or close it: it must not take inputs for the rest of the program, which might never end."""
    node, progress = HandNode(), minscoop.Progress(True)
    progress.watch = lambda node: None
    inputs = Counted(2)
    with mock.patch.object(minscoop, "progress", progress), pytest.raises(KeyboardInterrupt):
        minscoop.Mapping(node, minscoop.Recipe(str), [inputs])
    node.feed(beyond=True)
    assert not node.sources and not node.pending() and inputs.count == 2 and not progress.live()


def test_a_map_is_not_counted_when_its_pool_is_broken():
    """The progress line would wait for it for ever, and count it among the maps of the pool that comes next."""
    node, progress = HandNode(), minscoop.Progress(True)
    node.broken, progress.watch = PoolError("broken"), lambda node: None
    with mock.patch.object(minscoop, "progress", progress), pytest.raises(PoolError):
        minscoop.Mapping(node, minscoop.Recipe(str), [range(3)])
    assert not progress.live()


def test_results_come_first_when_an_input_ends_the_program(any_pool):
    """Like any error of the inputs, a generator's sys.exit() is raised when the reader gets that far."""
    def inputs():
        yield -1
        sys.exit(3)
    results = any_pool.map(abs, inputs(), timeout=WAIT)
    assert next(results) == 1
    with pytest.raises(SystemExit, match="3"):
        next(results)


def quitting(count):
    """A generator that ends by an exception that is no Exception."""
    yield from range(count)
    raise asyncio.CancelledError("inputs")


def map_quitting(count):
    """A task whose map has such inputs, of which it reads all results, and another that it does not read."""
    minscoop.map(identity, quitting(count))
    results = []
    with contextlib.suppress(asyncio.CancelledError):
        results.extend(minscoop.map(identity, quitting(count), timeout=WAIT))
    return len(results)


@pytest.mark.parametrize("count", [0, 5, 2000])
def test_only_the_reader_gets_it_when_inputs_raise_what_is_no_exception(pool, count):
    """Raised where they are pulled, it would end a worker, or hit another task, and come before earlier results."""
    workers = workers_of(pool)
    for _ in range(3):
        assert pool.submit(map_quitting, count).result(WAIT) == count
    assert workers_of(pool) == workers
    results = []
    with pytest.raises(asyncio.CancelledError, match="inputs"):
        for result in pool.map(identity, quitting(count), timeout=WAIT):
            results.append(result)
    assert results == [*range(count)]


def test_a_reduction_leaves_one_value_when_its_slices_are_run():
    """The values of a slice are reduced in order; an error of the operation is the slice's."""
    job = HandJob(str, range(7), op=operator.add)
    job.recipe.grain = 28
    job.run_all()
    assert job.parts == [(0, 7, ["0123456"], {})]
    job = HandJob(str, range(3), op=operator.sub)
    job.recipe.grain = 12
    job.run_all()
    (lo, count, values, failures), = job.parts
    assert (lo, count, len(values)) == (0, 3, 1) and isinstance(failures[0], TypeError)


@pytest.mark.parametrize("at", [0, 3, 4, 9])
def test_the_items_behind_a_long_one_go_back_when_a_slice_is_shortened(at):
    """What is not begun returns to the queue, for others to take; what is running stays."""
    job = HandJob(None, range(10))
    shortened = []

    def fn(x):
        if x == at:
            job.piece.shorten()
            shortened.append((job.piece.hi, [(span.lo, span.hi) for span in job.node.queue if not span.stale]))
        return x
    job.recipe.fn, job.recipe.grain = fn, 5
    job.run_all()
    assert job.got == {x: x for x in range(10)}
    hi, queued = shortened[0]
    end = 5 if at < 5 else 10
    assert at < hi <= min(at + 2, end) and sum(b - a for a, b in queued) == 10 - hi


@pytest.mark.parametrize("seed", range(20))
def test_every_item_runs_once_when_slices_are_shortened_at_random(monkeypatch, seed):
    """Whenever and by whichever thread a slice is cut, no item is lost and none runs twice."""
    monkeypatch.setattr(minscoop, "FREE_THREADED", minscoop.FREE_THREADED or seed % 2 == 1)
    chance, count, ran, stop = random.Random(seed), 400, collections.Counter(), threading.Event()
    job = HandJob(None, list(range(count)), [1] * count)

    def fn(x, one):
        ran[x] += one
        if chance.random() < 0.1:
            with job.node.lock:
                job.piece.shorten()
        job.recipe.grain = chance.randrange(1, 40)
        if x % 17 == 3:
            raise ValueError(x)
        return x

    def disturb():
        while not stop.is_set():
            with job.node.lock:
                if getattr(job, "piece", None) is not None:
                    job.piece.shorten()
    job.recipe.fn = fn
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        job.run_all()
    finally:
        stop.set()
        thread.join()
    assert set(ran.values()) == {1} and len(ran) == count
    assert {x for x, value in job.got.items() if value == x} == {x for x in range(count) if x % 17 != 3}


def test_no_more_is_pulled_than_the_buffer_takes_when_two_threads_pull(monkeypatch):
    """What another thread pulled just before this one got the lock counts towards `buffersize`."""
    monkeypatch.setattr(minscoop, "ATTEND", WAIT)  # a slow machine is to pull no fewer items
    node = HandNode(b"0.1")
    job = minscoop.Mapping(node, minscoop.Recipe(identity), [itertools.count()], buffersize=4)
    job.read, pulling = 4, job.pulling

    def late(blocking):
        job.pulling = pulling
        return job.pull() and pulling.acquire(blocking=blocking)
    job.pulling = mock.Mock(wraps=pulling, acquire=late)
    job.pull()
    assert job.pulled - job.read == 4 and not pulling._is_owned()


@pytest.mark.parametrize("closed", [False, True])
def test_inputs_of_an_iterator_are_released_when_a_map_is_over(pool, closed):
    """At once, not at the next garbage collection; if the map is closed, so is the generator of its inputs."""
    arguments, ended = [Holder(i) for i in range(20)], []
    alive = [weakref.ref(argument) for argument in arguments]

    def generate(arguments):
        try:
            yield from arguments
            yield from itertools.repeat(1)
        finally:
            ended.append(True)
    gc.disable()
    try:
        if closed:
            results = pool.map(type, generate(arguments))
            assert next(results) is Holder
            results.close()
            assert ended
        else:
            assert len(list(pool.map(type, iter(arguments)))) == 20
        del arguments
        assert eventually(lambda: not any(reference() for reference in alive))
    finally:
        gc.enable()


def test_a_slice_grows_at_most_fourfold_when_items_are_fast():
    """The size of slices follows the measured pace, carefully."""
    job = HandJob(abs, range(1000))
    job.recipe.learn(1, 1e-6)
    assert job.grain == 4
    job.recipe.learn(1000, 1000 * minscoop.SLICE)
    assert job.grain == 1
    job.recipe.learn(1, 0)
    assert job.grain >= 1


def test_slices_get_smaller_when_a_task_comes_to_its_end():
    """So that others can take what is left, and the worker asks for more work before it runs dry."""
    job = HandJob(fails_on(), range(40))
    job.recipe.grain, sizes = 16, []
    while not job.span.stale:
        sizes.append(job.span.claim())
    assert [piece.hi - piece.lo for piece in sizes] == [16, 12, 6, 4, 2]


LONGER = [10, 20, 40, 80, 160, 250, 250]


@pytest.mark.parametrize("op, fn, size, expected, sent", [
    (None, str, 1000, LONGER, 7), (None, None, 1000, [10] * 7, 7), (operator.add, str, 1, LONGER, 7),
    (operator.add, str, 500, [10, 20, 40, 80, 160, 320, 500], 7),
    (operator.add, lambda i: str(i) * minscoop.OUT_OF_BAND, 1, [10] + [250] * 6, 1),
    (operator.add, lambda i: bytearray(minscoop.OUT_OF_BAND + 1), 500, [10] + [500] * 6, 1),
    (None, lambda i: str(i) * minscoop.OUT_OF_BAND, 1, LONGER, 7),
], ids=["map", "calls", "reduction", "reduction in a large pool", "large reduction", "of buffers", "large results"])
def test_a_slice_takes_as_long_as_its_results_would_wait_when_it_has_come_from_elsewhere(op, fn, size, expected, sent):
    """Longer each time, except for calls; but no longer than SLICE. A reduction with large parts sends only the first
    before the end."""
    node = HandNode(b"0.1")
    node.size = size
    guest = node.guests[b"0.root:0/0"] = minscoop.Guest(node, b"0.root:0/0", 0, 10, None)
    guest.recipe = minscoop.Recipe(fn, op) if fn else minscoop.CALLS
    with mock.patch.multiple(guest.recipe, pace=0.9999e-3, grain=10 ** 6):
        grains, pauses = [], []
        for i in range(7):
            grains.append(guest.grain)
            pauses.append(round(1e3 * guest.pause))
            guest.flushed = -math.inf
            guest.deliver(i, 1, [(fn or str)(i)], {})
        guest.flushes *= 10 ** 4
        assert guest.pause == (0.01 if fn is None else max(0.25, 1e-3 * size) if op else 0.25)
    assert pauses == expected and grains == [min(pause, 1e3 * minscoop.SLICE) for pause in pauses]
    assert len(node.named(b"RESULT")) == sent


def test_the_deputy_runs_no_operation_when_parts_of_a_reduction_are_to_go():
    """The operation is user code, which must not run beside a task: the deputy sends the parts unreduced."""
    worker, threads = HandWorker(), set()
    guest = worker.guests[b"0.root:0/0"] = minscoop.Guest(worker, b"0.root:0/0", 0, 3, None)
    guest.recipe = minscoop.Recipe(identity, lambda a, b: threads.add(threading.get_ident()) or a + b)
    guest.flushed = math.inf  # nothing is to go yet, however long this takes
    guest.deliver(0, 1, [1], {})
    guest.deliver(1, 1, [2], {})
    guest.flushed = -math.inf
    with concurrent.futures.ThreadPoolExecutor(1) as deputy:
        deputy.submit(worker.stand_in).result(WAIT)
    assert not threads and not guest.outcomes
    guest.deliver(2, 1, [3], {})
    parts = [message for message in worker.sent if message[0] == b"RESULT"]
    assert [message[2:5] for message in parts] == [(b"0", b"1", b"0"), (b"1", b"1", b"0"), (b"2", b"1", b"1")]


@pytest.mark.parametrize("who", ["the operation", "another thread"])
def test_the_last_message_goes_last_when_the_rest_is_done_while_the_operation_runs(who):
    """While the operation waits for tasks of its own, the rest may be given away, or run by another thread."""
    node = HandNode(b"0.1")
    guest = node.guests[b"0.root:0/0"] = minscoop.Guest(node, b"0.root:0/0", 0, 3, None)

    def finish_the_rest():
        if who == "another thread":
            guest.deliver(2, 1, [3], {})
        else:  # as `ship` does
            guest.open.cut(2, 3)
            guest.left = 0
            guest.flush(aside=True)

    def add(a, b):
        if guest.left and who == "another thread":
            with concurrent.futures.ThreadPoolExecutor(1) as other:
                other.submit(finish_the_rest).result(WAIT)
        elif guest.left:
            finish_the_rest()
        return a + b
    guest.recipe, guest.flushed = minscoop.Recipe(identity, add), math.inf
    guest.deliver(0, 1, [1], {})
    guest.deliver(1, 1, [2], {})
    guest.flushed = -math.inf
    guest.flush()
    rest = (b"2", b"1") if who == "another thread" else (b"3", b"0")
    assert [message[2:5] for message in node.sent] == [(b"0", b"2", b"0"), (*rest, b"1")] and not node.guests


def test_results_are_kept_when_there_is_no_memory_to_join_them():
    """Results that could not be merged or sent go with the next message, all of them."""
    node = HandNode(b"0.1")
    guest = node.guests[b"0.root:0/0"] = minscoop.Guest(node, b"0.root:0/0", 0, 3, None)
    guest.recipe, guest.flushed = minscoop.Recipe(identity), math.inf
    guest.deliver(0, 1, [1], {})
    guest.deliver(1, 1, [2], {})
    for step in "join", "send":
        with mock.patch.object(guest, step, side_effect=MemoryError), pytest.raises(MemoryError):
            guest.left = 0
            guest.flush()
        guest.left = 1
    guest.deliver(2, 1, [3], {})
    (message,) = node.sent
    assert message[2:5] == (b"0", b"3", b"1") and minscoop.read_results(message[5:], 3, None)[0] == [1, 2, 3]


def test_a_recipe_is_opened_once_when_its_pickle_comes_again():
    """Many tasks of one map share the callable, and what was learnt about it."""
    frame = minscoop.Recipe(identity, operator.add).encode()
    recipe = minscoop.Recipe.decode(frame)
    assert minscoop.Recipe.decode(bytes(frame)) is recipe
    assert (recipe.fn, recipe.op) == (identity, operator.add)
    with pytest.raises(CannotSend, match="the operation.*lock"):
        minscoop.Recipe(abs, functools.partial(left, LOCK)).encode()


class Twice:
    """A callable that is pickled again, as if by another thread, before this is done."""

    def __reduce__(self):
        if not hasattr(self, "second"):
            self.second = None
            self.second = self.recipe.encode(self.memory)
        return bytes, (minscoop.SHARED,)


def test_a_large_callable_is_there_for_all_when_two_threads_pickle_it(tmp_path):
    """The deputy gives away another part of the map: its file was removed when the first thread was done."""
    recipe = minscoop.Recipe(functools.partial(abs, twice := Twice(), bytes(minscoop.SHARED)))
    twice.recipe, twice.memory = recipe, str(tmp_path)
    assert recipe.encode(str(tmp_path)) == twice.second
    _, _, path = minscoop.reference(twice.second)
    assert [os.fsencode(file) for file in tmp_path.iterdir()] == [path]
    del recipe, twice.recipe
    assert not [*tmp_path.iterdir()]


def test_one_large_recipe_is_kept_when_several_have_come():
    """The cache is meant for small recipes: of the large ones, it keeps only the latest."""
    frames = [minscoop.Recipe(functools.partial(left, bytes([i]) * LARGE)).encode() for i in range(3)]
    recipes = [weakref.ref(minscoop.Recipe.decode(frame)) for frame in frames]
    gc.collect()
    assert [recipe() is None for recipe in recipes] == [True, True, False]


@pytest.mark.parametrize("op", [None, operator.add])
@pytest.mark.parametrize("seed", range(5))
def test_results_are_joined_in_order_when_they_go_back(seed, op):
    """A Guest sends the result of each item once, merges adjacent ones, and marks its last message as the last."""
    chance, node = random.Random(seed), HandNode(b"0.1")
    guest = node.guests[b"0.root:0/0"] = minscoop.Guest(node, b"0.root:0/0", 0, 10, None)
    guest.recipe = minscoop.Recipe(str, op)
    cuts = [0, *sorted(chance.sample(range(1, 10), 4)), 10]
    parts = chance.sample(list(zip(cuts, cuts[1:])), 5)
    for i, (lo, hi) in enumerate(parts):
        items = [str(i) for i in range(lo, hi)]
        guest.flushed = -math.inf if i == 2 else math.inf  # the first three go together, then the others
        guest.deliver(lo, hi - lo, ["".join(items)] if op else items, {})
    messages = sorted(node.named(b"RESULT"), key=lambda message: int(message[1]))
    covered = [i for _, lo, count, *_ in messages for i in range(int(lo), int(lo) + int(count))]
    values = [value for _, _, count, _, *body in messages for value in minscoop.read_results(body, int(count), op)[0]]
    assert covered == list(range(10)) and "".join(values) == "0123456789" and not node.guests
    assert len(messages) == 5 - sum(hi == lo for some in (parts[:3], parts[3:]) for _, hi in some for lo, _ in some)
    assert [frames[4] for frames in node.sent].count(b"1") == 1 and node.sent[-1][4] == b"1"


# ---------------------------------------------------------------------------------------------------
# 7  Broker


def fields_of(line):
    """A message that is written as `sender NAME field field`; the keeper as `keeper`, an empty field as `-`."""
    return [b"" if field in ("-", "keeper") else field.encode() for field in line.split(" ")]


def line_of(receiver, frames):
    """The line for an outgoing message, with the receiver first."""
    return " ".join(bytes(field).decode("latin-1") or "-" for field in (receiver, *frames))


class Desk:
    """A Broker driven by hand, with neither socket nor clock: messages go in and come out as lines."""

    def __init__(self, workers=2):
        self.broker = minscoop.Broker()
        self("0.root HELLO")
        for number in range(1, workers + 1):
            self(f"0.{number} HELLO")

    def __call__(self, line):
        return self.say(*fields_of(line))

    def say(self, sender, *frames):
        out = self.broker.handle(sender, list(frames), 0.0)
        return [line_of(*message) for message in out]


def satisfied(out):
    """The lines that come out, less all requests for more: the taker of several items may be asked for some at once."""
    return [re.sub(r"( TASK \S+ \S+) 1 ", r"\1 0 ", entry) for entry in out if " HUNGRY " not in entry]


TASK = "0.root:0/0 - 0 0 9 0 body"


def test_the_hungry_gets_the_task_when_somebody_gives_one():
    """HUNGRY is passed on to all that may have work; a TASK goes to whoever has been hungry longest."""
    desk = Desk()
    assert "0.root HUNGRY 1" in desk("0.2 HUNGRY 1")
    assert "0.root HUNGRY 1" in desk("0.1 HUNGRY 1")
    assert satisfied(desk(f"0.root TASK {TASK}")) == [f"0.2 TASK {TASK}"]
    assert desk(f"0.root TASK {TASK.replace(':0', ':1')}") == [f"0.1 TASK {TASK.replace(':0', ':1')}"]


def test_nobody_is_asked_twice_when_one_is_hungry():
    """A HUNGRY stands until a task comes: a node that has said DRY remembers it, and is not asked again."""
    desk = Desk()
    assert sorted(desk("0.1 HUNGRY 1")) == ["0.2 HUNGRY 1", "0.root HUNGRY 1"]
    assert desk("0.root DRY") == [] and desk("0.2 DRY") == []


def test_all_forget_what_they_were_asked_for_when_nobody_is_hungry_any_more():
    """Else a task that comes to one that has long to go would be given to another such at once, and so on. Whoever is
    hungry later has them asked again."""
    desk = Desk(3)
    assert sorted(desk("0.1 HUNGRY 1")) == ["0.2 HUNGRY 1", "0.3 HUNGRY 1", "0.root HUNGRY 1"]
    assert satisfied(desk("0.root TASK 0.root:0/0 - 0 0 1 0 x")) == ["0.1 TASK 0.root:0/0 - 0 0 1 0 x"]
    assert desk("0.2 TASK 0.2:0/0 - 0 0 1 0 x") == ["0.3 HUNGRY 0", "0.3 TASK 0.2:0/0 - 0 0 1 0 x"]
    assert sorted(desk("0.1 HUNGRY 1")) == ["0.2 HUNGRY 1", "0.3 HUNGRY 1", "0.root HUNGRY 1"]


def test_a_giver_forgets_what_else_it_was_asked_for_when_nobody_is_hungry_any_more():
    """A host that was asked for several tasks, say: those that it gives now have to be routed for nothing."""
    tree = Tree(2)
    top = tree.brokers[b"0"]
    tree("1.1 HUNGRY 1", "1.2 HUNGRY 1", "2.1 HUNGRY 1", "2.2 HUNGRY 1", "0.root TASK 0.root:0/0 - 0 0 9 0 x")
    top.owe(top.links[b"1"], 3)
    for link in [*top.hungry.values()]:
        top.want(link, 0)
    out = top.handle(b"1", [b"TASK", b"1.1:0/0", b"", b"0", b"0", b"1", b"0", b"x"], 0.0)
    assert [frames for receiver, frames in out if receiver == b"1"] == [[b"HUNGRY", b"0"]] and not top.links[b"1"].asked
    below = tree.brokers[b"1"]
    below.want(below.links[minscoop.UP], 3)
    below.handle(minscoop.UP, [b"HUNGRY", b"0"], 0.0)
    assert not below.links[minscoop.UP].demand


def test_nobody_asks_the_hungry_themselves_when_all_are_hungry():
    """HUNGRY is passed on to nodes that may have work; its sender has none."""
    desk = Desk(1)
    assert desk("0.1 HUNGRY 1") == ["0.root HUNGRY 1"]


def test_a_late_owner_is_asked_when_workers_are_hungry_already():
    """Workers may be there before the root, which is asked as soon as it says HELLO."""
    desk = Desk(0)
    desk.broker = minscoop.Broker()
    desk("0.1 HELLO")
    desk("0.1 HUNGRY 1")
    assert desk("0.root HELLO") == ["0.root HUNGRY 1"]


def test_the_rich_are_asked_first_when_they_said_that_there_is_more():
    """Only the node that said `more` is asked, for all that is wanted; once it is DRY, the holder of several items."""
    desk = Desk(3)
    desk("0.1 HUNGRY 1")
    desk("0.root TASK 0.root:0/0 - 1 0 9 0 body")
    assert desk("0.2 HUNGRY 1") == ["0.root HUNGRY 1"]
    assert desk("0.3 HUNGRY 1") == ["0.root HUNGRY 1"]
    assert desk("0.root DRY") == ["0.1 HUNGRY 2"]  # it has nine items


def test_all_are_asked_for_a_like_share_when_many_are_rich():
    """Who has more is asked for more, and first; nobody for all that it has, or it would soon be hungry itself."""
    desk = Desk(7)
    for number, items in (1, 9), (2, 9), (3, 18):
        desk(f"0.root TASK 0.root:{number}/0 - 0 0 {items} 0 body")
    assert desk("0.4 HUNGRY 1") == ["0.3 HUNGRY 1"]
    assert desk("0.5 HUNGRY 4") == ["0.3 HUNGRY 2", "0.2 HUNGRY 1", "0.1 HUNGRY 1"]


def test_who_has_nothing_is_not_asked_when_a_part_of_its_own_map_has_come_back():
    """Nobody is told if its owner cancels that; whoever is hungry would wait for it while others have more."""
    desk = Desk(3)
    desk("0.1 HUNGRY 1")
    desk("0.root TASK 0.root:0/0 - 0 0 1 0 body")
    desk("0.2 HUNGRY 1")
    desk("0.1 TASK 0.1:0/50 - 0 50 100 0 body")
    desk("0.1 HUNGRY 1")
    desk("0.2 SPLIT 0.1:0/50 70 100 0.1:0/70")
    assert "0.1 TASK 0.1:0/70 - 1 70 100 0 body" in desk("0.2 TASK 0.1:0/70 - 1 70 100 0 body")
    desk("0.1 HUNGRY 1")  # it has run or cancelled them
    desk("0.2 TASK 0.2:0/0 - 1 0 1 0 body")
    assert desk("0.3 HUNGRY 1") == ["0.2 HUNGRY 1"]


def test_a_worker_is_rich_when_it_has_run_a_part_of_its_own_map_before():
    """Whose items were not counted when they came back; if their results were, the worker would seem to have less."""
    desk = Desk(3)
    desk("0.2 HUNGRY 1")
    desk("0.1 TASK 0.1:0/50 - 0 50 100 0 body")
    desk("0.1 HUNGRY 1")
    desk("0.2 SPLIT 0.1:0/50 70 100 0.1:0/70")
    assert "0.1 TASK 0.1:0/70 - 1 70 100 0 body" in desk("0.2 TASK 0.1:0/70 - 1 70 100 0 body")
    desk("0.1 RESULT 0.1:0/70 70 30 1 x")
    desk("0.2 DRY")
    desk("0.1 HUNGRY 1")
    desk("0.root TASK 0.root:0/0 - 0 0 9 0 body")
    assert desk.broker.links[b"0.1"].items == 9 and b"0.1" in desk.broker.rich


def test_a_task_goes_to_another_host_when_it_failed_on_one():
    """`avoid` names the host where the task failed: that host gets it only if no other is hungry."""
    desk = Desk(0)
    for number in "4", "5":
        desk.say(number.encode(), b"HELLO", host_facts(number))
        desk(f"{number} HUNGRY 1")
    assert desk("0.root TASK 0.root:0/0 4 0 0 1 0 x") == ["5 TASK 0.root:0/0 4 0 0 1 0 x"]
    assert desk("0.root TASK 0.root:1/0 4 0 0 1 0 x") == ["4 TASK 0.root:1/0 4 0 0 1 0 x"]


def test_only_who_has_nothing_is_counted_when_the_root_asks_who_is_idle():
    """A worker that asked for more before it was done, and then takes long, is busy, not idle."""
    desk = Desk(2)
    desk("0.1 HUNGRY 1")
    assert desk("0.root COUNT 0") == ["0.root COUNT 1"]
    desk("0.root TASK 0.root:0/0 - 0 0 2 0 x")
    desk("0.1 HUNGRY 1")
    assert desk("0.root COUNT 0") == ["0.root COUNT 0"]
    desk("0.1 RESULT 0.root:0/0 0 2 1 x")
    assert desk("0.root COUNT 0") == ["0.root COUNT 1"]


def test_another_host_is_counted_when_results_have_come_from_it():
    """What another host's workers hold is not counted here: its own broker's HUNGRY says how many want work."""
    desk = Desk(0)
    desk.say(b"4", b"HELLO", host_facts("4"))
    desk("4 HUNGRY 1 2")
    desk("0.root TASK 0.root:0/0 - 0 0 9 0 x")
    desk("4 RESULT 0.root:0/0 0 3 0 x")
    desk("4 HUNGRY 1 2")
    assert desk("0.root COUNT 0") == ["0.root COUNT 2"]


def test_a_task_goes_to_who_holds_least_when_nobody_is_hungry():
    """Its intended taker may have died: it goes to the least loaded worker, to its giver only as a last resort."""
    desk = Desk(2)
    desk("0.1 HUNGRY 1")
    assert desk("0.root TASK 0.root:0/0 - 0 0 9 0 x")[0].startswith("0.1 TASK")
    assert desk("0.root TASK 0.root:1/0 - 0 0 9 0 x")[0].startswith("0.2 TASK")
    assert desk("0.2 TASK 0.2:0/0 - 0 0 9 0 x")[0].startswith("0.1 TASK")


def test_a_task_returns_unblamed_when_there_is_no_worker():
    """LOST without items: nobody died over it, and its owner queues it again."""
    assert Desk(0)(f"0.root TASK {TASK}") == ["0.root LOST 0.root:0/0 0 0 0 -"]


def test_a_body_passes_untouched_when_a_task_is_routed():
    """Payload frames are opaque to a broker: it neither copies nor opens them."""
    desk, body = Desk(1), [object(), object()]
    out = desk.broker.handle(b"0.root", [b"TASK", b"0.root:0/0", b"", b"0", b"0", b"9", b"0", *body], 0)
    assert out[0][1][-2:] == body
    out = desk.broker.handle(b"0.1", [b"RESULT", b"0.root:0/0", b"0", b"9", b"1", *body], 0)
    assert out[0][0] == b"0.root" and out[0][1][-2:] == body


def test_results_go_to_the_owner_when_a_worker_has_some():
    """The id of a task names its owner. After the last result nobody holds it any more."""
    desk = Desk()
    desk(f"0.root TASK {TASK}")
    assert desk("0.1 RESULT 0.root:0/0 0 4 0 x") == ["0.root RESULT 0.root:0/0 0 4 0 x"]
    assert desk.broker.placed
    assert desk("0.1 RESULT 0.root:0/0 4 5 1 x") == ["0.root RESULT 0.root:0/0 4 5 1 x"]
    assert not desk.broker.placed and not desk.broker.links[b"0.1"].held


def test_the_owner_is_told_when_a_holder_splits_a_task():
    """SPLIT goes to the owner ahead of the new task's results; the taker of the part is recorded as its holder."""
    desk = Desk()
    desk(f"0.root TASK {TASK}")
    desk("0.2 HUNGRY 1")
    assert desk("0.1 SPLIT 0.root:0/0 5 9 0.root:0/5") == ["0.root SPLIT 0.root:0/0 5 9 0.root:0/5"]
    assert desk("0.1 TASK 0.root:0/5 - 0 5 9 0 x") == ["0.2 TASK 0.root:0/5 - 0 5 9 0 x"]
    assert desk.broker.placed == {b"0.root:0/0": b"0.1", b"0.root:0/5": b"0.2"}


def test_the_owner_sends_items_singly_when_a_holder_cannot_open_a_task():
    """SINGLY goes to the owner, and the task is held no more."""
    desk = Desk()
    desk(f"0.root TASK {TASK}")
    assert desk("0.1 SINGLY 0.root:0/0") == ["0.root SINGLY 0.root:0/0"] and not desk.broker.placed


def test_the_holder_is_told_when_a_task_is_cancelled():
    """CANCEL goes to whoever holds the task now; for one that nobody holds it is void."""
    desk = Desk()
    desk(f"0.root TASK {TASK}")
    assert desk("0.root CANCEL 0.root:0/0") == ["0.1 CANCEL 0.root:0/0"]
    assert desk("0.root CANCEL 0.root:0/0") == []


def test_everybody_has_a_constant_when_it_was_set():
    """CONST goes to all, its setter too, and to those that come later; the first of a name holds."""
    desk = Desk()
    assert sorted(desk("0.1 CONST pi me 3.14")) == [f"{name} CONST pi me 3.14" for name in ("0.1", "0.2", "0.root")]
    assert desk("0.2 CONST pi you 4") == []
    assert desk("0.9 HELLO") == ["0.9 CONST pi me 3.14"]


def test_owners_hear_of_a_death_when_they_lose_tasks():
    """LOST names the items that were being run, for the one task that ran; none for tasks that were only queued."""
    desk = Desk()
    desk(f"0.root TASK {TASK}")
    desk("0.root TASK 0.root:1/0 - 0 0 9 0 x")
    desk("0.2 TASK 0.2:7/0 - 0 0 3 0 x")
    assert {desk.broker.placed[key] for key in (b"0.root:0/0", b"0.2:7/0")} == {b"0.1"}
    assert sorted(desk("keeper DIED 0.1 0.root:0/0 2 4 1 0 gone")) == \
        ["0.2 LOST 0.2:7/0 0 0 0 gone", "0.root LOST 0.root:0/0 2 4 1 gone"]
    assert b"0.1" not in desk.broker.links and set(desk.broker.placed) == {b"0.root:1/0"}
    assert desk("keeper DIED 0.1 x 0 0 1 0 gone") == []


def test_orphans_are_cancelled_when_their_owner_dies():
    """Nobody waits any more for what a dead worker had shipped."""
    desk = Desk()
    desk("0.1 TASK 0.1:0/0 - 0 0 9 0 x")
    assert desk("keeper DIED 0.1 x 0 0 1 0 gone") == ["0.2 CANCEL 0.1:0/0"] and not desk.broker.placed


def test_results_are_discarded_when_their_task_was_cancelled_meanwhile():
    """Else the shared memory that they refer to would leak."""
    desk, discarded = Desk(), []
    desk.broker.discard = discarded.extend
    desk("0.1 HUNGRY 1")
    assert desk(f"0.root TASK {TASK}") == [f"0.1 TASK {TASK}"]
    assert desk("0.root CANCEL 0.root:0/0") == ["0.1 CANCEL 0.root:0/0"]
    assert desk("0.1 RESULT 0.root:0/0 0 1 1 x") == []
    assert discarded[0] == b"RESULT" and discarded[-1] == b"x"


def test_arguments_are_discarded_when_their_task_is_refused():
    """Else shared memory would leak. A TASK is refused if it was cancelled or, after a census, if its owner is gone."""
    desk, discarded = Desk(), []
    desk.broker.discard = discarded.extend
    desk(f"0.root TASK {TASK}")
    assert desk("0.2 TASK 0.root:0/5 - 0 5 9 0 x") == ["0.2 CANCEL 0.root:0/5"] and discarded[-1:] == [b"x"]
    desk("keeper DIED 0.2 x 0 0 1 0 gone")
    desk("0.1 -")  # it has connected anew
    assert desk("0.1 TASK 0.2:0/5 - 0 5 9 0 y") == [] and discarded[-1:] == [b"y"]


def test_results_are_discarded_when_their_owner_has_died():
    """Also after a census, when the broker, whose records have gaps, believes whoever speaks of a task."""
    desk, discarded = Desk(), []
    desk.broker.discard = discarded.extend
    desk("0.1 -")
    desk("0.1 HELLO")
    desk("keeper DIED 0.2 x 0 0 1 0 gone")
    assert desk("0.1 RESULT 0.2:0/0 0 1 1 x") == [] and discarded[-1:] == [b"x"]


def test_results_are_discarded_when_their_owner_dies_before_its_hello():
    """What was kept for it, until it has connected anew, is read by nobody: shared memory would leak."""
    desk, discarded = Desk(0), []
    desk.broker = minscoop.Broker(heirs={b"0.root": b"", b"0.1": b"", b"0.2": b""})
    desk.broker.discard = discarded.extend
    desk("0.1 HELLO")
    assert desk("0.1 RESULT 0.2:0/0 0 9 1 y") == [] and not discarded
    desk("keeper DIED 0.2 x 0 0 1 0 gone")
    assert discarded[0] == b"RESULT" and discarded[-1] == b"y"


def test_the_broker_above_gives_signs_of_life_when_it_has_nothing_else_to_say():
    """An echo would not do: the PROBEs of a broker below may be stuck behind everything else that it sends."""
    broker = minscoop.Broker(size=1)
    facts = dict(host="a", number="1", workers=1, state="ready")
    broker.handle(b"1", [b"HELLO", json.dumps(facts).encode()], 0)
    asked = [now for now in range(60) if (b"1", [b"PROBE"]) in broker.tick(now)]
    assert asked and all(later - now <= minscoop.HEARTBEAT for now, later in zip(asked, asked[1:]))


def test_the_pipes_of_a_worker_are_read_once_when_another_broker_takes_over(monkeypatch):
    """The new broker has inherited them; a notice of the keeper's that comes only now must not add them again."""
    watched, (ours, theirs) = [], socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    board = object.__new__(minscoop.Switchboard)
    board.broker, board.notices, board.prints = minscoop.Broker(size=1), ours, {b"0.1": {}}
    monkeypatch.setattr(board, "watch_prints", lambda *args: watched.append(args), raising=False)
    with ours, theirs, open(os.devnull) as end:
        before = len(os.listdir("/proc/self/fd")) if LINUX else None
        for name in "0.1", "0.2":
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [end.fileno()] * 2))]
            theirs.sendmsg([json.dumps(["PRINTS", name]).encode()], rights)
            board.take_notice(None)
        ((name, ends),) = watched
        for descriptor in ends:
            os.close(descriptor)
        assert name == b"0.2" and (not LINUX or len(os.listdir("/proc/self/fd")) == before)


def test_an_empty_line_is_shown_when_it_is_printed_alone():
    """Output that is tagged, or comes from another host, travels in whole lines, and an empty line is a whole one."""
    board, shown, (read, write) = object.__new__(minscoop.Switchboard), [], os.pipe()
    board.broker, board.prints = minscoop.Broker(b"1"), {b"1.1": {read: (b"out", b"")}}
    board.config, board.handle = {}, lambda sender, frames: shown.append(frames[-1])
    with open(read), open(write, "wb", 0) as end:
        for text in b"a", b"\n", b"\n", b"b\n\nc":
            end.write(text)
            board.read_prints(b"1.1", read)
    assert shown == [b"a\n", b"\n", b"b\n\n"]


def test_a_long_line_is_shown_as_one_when_it_comes_in_many_parts():
    """Else what others print, or a tag, would come in its middle; one that never ends comes in parts."""
    board, shown, (read, write) = object.__new__(minscoop.Switchboard), [], os.pipe()
    board.broker, board.prints = minscoop.Broker(b"1"), {b"1.1": {read: (b"out", b"")}}
    board.config, board.handle = {}, lambda sender, frames: shown.append(frames[-1])
    part, several = b"x" * 50_000, minscoop.OUTPUT_AHEAD // 50_000
    with open(read), open(write, "wb", 0) as end:
        for text in [part] * several + [b"\n"] + [part] * (several + 1):
            end.write(text)
            board.read_prints(b"1.1", read)
    assert shown == [part * several + b"\n", part * (several + 1)]


def test_the_dead_get_nothing_when_they_were_hungry():
    """A worker's requests die with it, and messages for a dead node are dropped."""
    desk = Desk()
    desk("0.1 HUNGRY 3")
    desk("keeper DIED 0.1 x 0 0 1 0 gone")
    assert satisfied(desk(f"0.root TASK {TASK}")) == [f"0.2 TASK {TASK}"]
    assert desk("0.2 RESULT 0.1:0/0 0 1 1 x") == []


def test_the_root_hears_it_when_no_worker_can_start():
    """FAILED goes to the root, also if the root says HELLO only later."""
    assert Desk(1)("0.1 FAILED why") == ["0.root FAILED why"]
    desk = Desk(0)
    desk.broker = minscoop.Broker()
    assert desk("0.1 HELLO") == desk("0.1 FAILED why") == []
    assert desk("0.root HELLO") == ["0.root FAILED why"]


def test_the_root_hears_all_when_it_comes_late():
    """Whatever workers said before, such as what an initializer printed and logged, is kept and sent once, in order."""
    desk = Desk(0)
    desk.broker = minscoop.Broker()
    said = ["OUTPUT 0.1 out text", "LOG {}", "FETCH m.py"]
    assert desk("0.1 HELLO") == desk(f"keeper {said[0]}") == desk(f"0.1 {said[1]}") == desk(f"0.1 {said[2]}") == []
    assert desk("0.root HELLO") == [f"0.root {words}" for words in said] and desk("0.root HELLO") == []


def test_workers_are_stopped_when_all_is_quiet():
    """STOP waits for tasks that are held, and for workers that have not said IDLE after their last TASK."""
    desk = Desk()
    for name in ("0.1", "0.2"):
        desk(f"{name} IDLE 0")
    desk(f"0.root TASK {TASK}")
    assert desk("0.root STOP") == []
    assert desk("0.1 RESULT 0.root:0/0 0 9 1 x") == ["0.root RESULT 0.root:0/0 0 9 1 x"]
    assert desk("0.1 IDLE 0") == []
    assert sorted(desk("0.1 IDLE 1")) == ["0.1 STOP", "0.2 STOP"]
    assert desk("0.1 BYE") == [] and not desk.broker.finished
    assert desk("0.2 BYE") == [] and desk.broker.finished


def test_the_pool_ends_when_its_last_worker_dies_while_stopping():
    """A worker that dies cannot say BYE. It may have done so, and may have said more before: that is awaited, for as
    long as it usually takes."""
    desk = Desk(3)
    for name in ("0.1", "0.2", "0.3"):
        desk(f"{name} IDLE 0")
    desk("0.root STOP")
    desk("0.1 BYE")
    desk("keeper DIED 0.2 x 0 0 1 0 gone")
    assert desk("0.2 RECORD 0.2 x") == ["0.root RECORD 0.2 x"] and desk("0.2 BYE") == []
    desk("keeper DIED 0.3 x 0 0 1 0 gone")
    assert desk.broker.waiting and not desk.broker.finished
    desk.broker.tick(minscoop.PATIENCE)
    assert desk.broker.finished and not desk.broker.waiting


def test_a_worker_that_comes_late_is_stopped_when_the_end_was_said():
    """A replacement that joins during the end is told at once."""
    desk = Desk(1)
    desk("0.1 IDLE 0")
    desk("0.root STOP")
    assert desk("0.2 HELLO") == ["0.2 STOP"]


def test_nothing_is_forgotten_when_a_node_says_hello_again():
    """What a node holds does not depend on how often it introduces itself."""
    desk = Desk(1)
    desk(f"0.root TASK {TASK}")
    desk("0.1 HELLO")
    assert desk("keeper DIED 0.1 x 0 0 1 0 gone") == ["0.root LOST 0.root:0/0 0 0 0 gone"]


def set_clock(monkeypatch, clock):
    """For minscoop in this thread, the time is what clock() says; other threads keep theirs."""
    own = threading.get_ident()
    monkeypatch.setattr(minscoop, "time", types.SimpleNamespace(**{
        **vars(time), "monotonic": lambda: clock() if threading.get_ident() == own else time.monotonic()}))


@pytest.mark.parametrize("waiting, pause", [(False, minscoop.HEARTBEAT), (True, minscoop.PATIENCE)])
def test_a_broker_looks_at_the_clock_in_its_time_when_parcels_are_always_due(monkeypatch, waiting, pause):
    """It ticks every HEARTBEAT (PATIENCE while `waiting`), and not whenever parcels wake it up."""
    clock, ticks = [100.0], []
    set_clock(monkeypatch, lambda: clock[0])

    def poll(milliseconds):
        clock[0] += milliseconds / 1000
        board.broker.finished = clock[0] > 110
        return ()
    board = mock.Mock(paused=set(), prints=(), said=[], poller=mock.Mock(poll=poll))
    board.broker = mock.Mock(below=False, finished=False, parcels=True, due=0, waiting=waiting, printing=0,
                             flush=lambda now: [], tick=lambda now: ticks.append(now) or [])
    board.pause = functools.partial(minscoop.Switchboard.pause, board)
    minscoop.Switchboard.run(board)
    assert len(ticks) > 3 and all(pause <= later - now < pause + 0.01 for now, later in zip(ticks, ticks[1:]))


NONSENSE = ["0.root", "0.root NONSENSE", "0.root hello root", "0.1 HELLO worker", "0.1 HELLO worker extra",
            "0.1 HUNGRY", "0.1 HUNGRY many", "0.1 HUNGRY 1 2 3", "0.1 HUNGRY -", "0.1 IDLE", "0.1 IDLE no", "0.1 TASK",
            "0.1 TASK 0.root:0/0", "0.1 SPLIT 0.root:0/0 1", "0.1 RESULT 0.root:0/0", "0.1 SINGLY", "0.1 CANCEL",
            "0.1 CONST", "0.1 STOP now", "0.1 BYE bye", "0.1 REFUSED pi", "0.1 LOST 0.root:0/0 0 1 1 gone",
            "0.1 DIED 0.2 x 0 0 1 0 gone", "0.root DIED 0.1 x 0 0 1 0 gone", "9.9 DIED 0.1 x 0 0 1 0 gone",
            "keeper DIED", "keeper DIED 0.1", "9.9 HUNGRY 1", "9.9 STOP", "9.9 TASK 0.root:0/0 - 0 0 9 0 x",
            "9.9 BYE",
            "9.9 CONST pi 3", "9.9 RESULT 0.root:0/0 0 9 1 x", "keeper STOP", "keeper HUNGRY 1"]


@pytest.mark.parametrize("line", NONSENSE)
def test_nonsense_is_dropped_and_counted_when_it_arrives(line):
    """A message that is malformed, or not its sender's to say, changes nothing, and the broker goes on."""
    desk = Desk()
    assert desk(line) == []
    assert desk.broker.dropped == 1 and not desk.broker.placed and not desk.broker.consts
    assert set(desk.broker.links) == {b"0.root", b"0.1", b"0.2"} and not desk.broker.stopping
    desk("0.1 HUNGRY 1")
    assert desk(f"0.root TASK {TASK}") == [f"0.1 TASK {TASK}"]


@pytest.mark.parametrize("frames", [["TASK", "id", "", "0", "0", "9", "0", "x"], ["RESULT", "id", "0", "1", "1"],
                                    ["SPLIT", "id", "0", "1", "new"], ["SINGLY", "id"], ["CANCEL", "id"]],
                         ids=lambda frames: frames[0])
def test_large_fields_are_dropped_when_a_stranger_sends_them(frames):
    """A field as large as a body reaches the broker as a zmq.Frame, and does it no harm."""
    zmq = pytest.importorskip("zmq")
    desk = Desk()
    frames = [zmq.Frame(b"0.root" + b":" * 70_000) if field == "id" else field.encode() for field in frames]
    desk.broker.handle(b"0.1", frames, 0.0)
    assert "TASK" in desk("0.root TASK 0.root:0/0 - 0 0 9 0 x")[0]


@pytest.mark.parametrize("seed", range(30))
def test_the_broker_keeps_its_books_when_anything_happens(seed):
    """After any sequence of valid and invalid messages, its records agree, and it speaks to known nodes only."""
    chance, desk = random.Random(seed), Desk(3)
    names, serial = ["0.root", "0.1", "0.2", "0.3", "0.4", "7.1"], itertools.count()
    ids = ["0.root:0/0", "nobody:1/2"]

    def step():
        name, task = chance.choice(names), chance.choice(ids)
        fresh = f"{name}:{next(serial)}/0"
        return chance.choice([
            f"0.{10 + next(serial)} HELLO", f"{name} HUNGRY {chance.randrange(-1, 3)}", f"{name} DRY",
            f"{name} IDLE {chance.randrange(9)}", f"{name} TASK {fresh} - {chance.randrange(2)} 0 9 0 x",
            f"{name} TASK {task} 0 0 0 9 0 x", f"{name} SPLIT {task} 3 4 {fresh}", f"{name} SINGLY {task}",
            f"{name} RESULT {task} 0 1 {chance.randrange(2)} x", f"{name} CANCEL {task}", f"{name} BYE",
            f"{name} CONST c{chance.randrange(4)} x", f"keeper DIED {name} {task} 0 1 1 0 gone",
            chance.choice(NONSENSE)])
    for _ in range(500):
        line, known = step(), set(desk.broker.links)
        out = desk(line)
        names.extend({link.decode() for link in desk.broker.links} - set(names))
        ids.extend(word for word in line.split() if ":" in word and word not in ids)
        broker = desk.broker
        assert {entry.split()[0].encode() for entry in out} <= known | set(broker.links)
        assert broker.placed == {task: name for name, link in broker.links.items() for task in link.held}
        assert set(broker.hungry) == {name for name, link in broker.links.items() if link.demand > 0}


# -- Brokers of several hosts


def host_facts(number, state="ready", **more):
    """What HOST says of a host."""
    return json.dumps({"host": f"host{number}", "number": number, "workers": 2, "state": state, **more}).encode()


class Tree:
    """Brokers of several hosts, driven by hand as a ``Desk`` is: host 0 is on top, with the root and a worker;
    those of the others are below it, with two workers each. Their keepers are `0.keeper`, `1.keeper`...

    What one broker says to another is passed on in its turn; what comes out is what nodes get."""

    def __init__(self, hosts=2):
        self.brokers, self.now = {b"0": minscoop.Broker(size=1)}, 0.0
        self("0.root HELLO", "0.1 HELLO")
        for number in range(1, hosts + 1):
            self.add(f"{number}")

    def add(self, number):
        """A further host comes."""
        self.brokers[number.encode()] = minscoop.Broker(number.encode(), 2)
        return self.say(number.encode(), b"HELLO", host_facts(number)) + \
            self(f"{number}.1 HELLO", f"{number}.2 HELLO")

    def __call__(self, *lines):
        return [entry for line in lines for entry in self.say(*fields_of(line))]

    def say(self, sender, *frames):
        """Have the broker of the sender's host handle a message, or the one on top if the sender is a broker."""
        at = b"0" if sender in self.brokers else minscoop.host_of(sender)
        return self.carry(self.handle(at, b"" if sender.endswith(b".keeper") else sender, frames))

    def tick(self, now, *hosts):
        """The brokers of these hosts look at the clock."""
        self.now = now
        return self.carry([(host, *message) for host in hosts for message in self.brokers[host].tick(now)])

    def handle(self, at, sender, frames):
        broker = self.brokers[at]
        out = [(at, *message) for message in broker.handle(sender, list(frames), self.now)]
        return out + [(at, minscoop.UP, [b"BYE"])] * (broker.finished and broker.below)

    def carry(self, letters):
        """Deliver letters of (host, receiver, message), and those to which they lead; returns what nodes get."""
        letters, out = collections.deque(letters), []
        while letters:
            at, receiver, frames = letters.popleft()
            if receiver == minscoop.UP:
                letters.extend(self.handle(b"0", at, frames))
            elif receiver in self.brokers:
                letters.extend(self.handle(receiver, minscoop.UP, frames))
            else:
                out.append(line_of(receiver, frames))
        return out

    def give(self, owner, holder, serial=0, lo=0, hi=9):
        """Have a node ship a task, and another take it; returns its id."""
        task_id = f"{owner}:{serial}/{lo}"
        self(f"{holder} HUNGRY 1")
        out = satisfied(self(f"{owner} TASK {task_id} - 0 {lo} {hi} 0 body"))
        assert out == [f"{holder} TASK {task_id} - 0 {lo} {hi} 0 body"]
        return task_id

    @property
    def records(self):
        """What the brokers remember of tasks: {host: {task: who holds it}}, without those that remember nothing."""
        for broker in self.brokers.values():
            assert broker.placed == {task: name for name, link in broker.links.items() for task in link.held}
        return {at.decode(): {task.decode(): name.decode() for task, name in broker.placed.items()}
                for at, broker in self.brokers.items() if broker.placed}


NODES = ["0.root", "0.1", "1.1", "1.2", "2.1"]
PAIRS = [(owner, holder) for owner, holder in itertools.permutations(NODES, 2) if holder != "0.root"]


def test_the_pool_has_its_size_when_hosts_come_and_go():
    """SIZE goes to everybody when a broker says HELLO or is lost; HOST to the root, also if that says HELLO later."""
    tree = Tree(1)
    out = tree.add("2")
    assert {f"{name} SIZE 5" for name in ("0.root", "0.1", "1.1", "1.2", "2.1", "2.2")} == set(out) - {
        line_of(b"0.root", [b"HOST", host_facts("2")])} and len(out) == 7
    assert sorted(entry for entry in tree("0.keeper DIED 1 - 0 0 0 0 -") if "SIZE" in entry) == sorted(
        f"{name} SIZE 3" for name in ("0.root", "0.1", "2.1", "2.2"))
    late = minscoop.Broker(size=0)
    late.handle(b"1", [b"HELLO", host_facts("1")], 0)
    late.handle(b"", [b"HOST", host_facts("2", "gone", reason="why")], 0)
    assert late.handle(b"0.root", [b"HELLO"], 0) == [
        (b"0.root", [b"HOST", host_facts("1")]), (b"0.root", [b"HOST", host_facts("2", "gone", reason="why")]),
        (b"0.root", [b"SIZE", b"2"])]


@pytest.mark.parametrize("owner, holder", PAIRS)
def test_a_task_and_its_results_find_their_way_when_two_hosts_take_part(owner, holder):
    """HUNGRY reaches the node with work, TASK the hungry one, RESULT the owner; then no broker remembers the task."""
    tree = Tree()
    assert any(entry.startswith(f"{owner} HUNGRY 1") for entry in tree(f"{holder} HUNGRY 1"))
    task = f"{owner}:0/0 - 0 0 9 0 body"
    assert tree(f"{owner} TASK {task}") == [f"{holder} TASK {task}"]
    assert tree(f"{holder} RESULT {owner}:0/0 0 4 0 x") == [f"{owner} RESULT {owner}:0/0 0 4 0 x"]
    assert tree.records
    assert tree(f"{holder} RESULT {owner}:0/0 4 5 1 x") == [f"{owner} RESULT {owner}:0/0 4 5 1 x"]
    assert tree.records == {}


@pytest.mark.parametrize("owner, holder", PAIRS)
def test_every_message_about_a_task_arrives_when_two_hosts_take_part(owner, holder):
    """SINGLY and LOST reach the owner, CANCEL the holder, wherever they are."""
    tree = Tree()
    task_id = tree.give(owner, holder)
    assert tree(f"{owner} CANCEL {task_id}") == [f"{holder} CANCEL {task_id}"] and tree.records == {}
    task_id = tree.give(owner, holder, 1)
    assert tree(f"{holder} SINGLY {task_id}") == [f"{owner} SINGLY {task_id}"] and tree.records == {}
    task_id = tree.give(owner, holder, 2)
    assert tree(f"{holder[0]}.keeper DIED {holder} {task_id} 2 4 1 0 gone") == [f"{owner} LOST {task_id} 2 4 1 gone"]
    assert tree.records == {}


@pytest.mark.parametrize("owner, holder, third", [
    trio for trio in itertools.permutations([*NODES, "2.2"], 3) if "0.root" not in trio[1:]])
def test_a_part_is_held_by_who_has_it_when_a_holder_splits_a_task(owner, holder, third):
    """The owner hears SPLIT before the part's results; part and rest are finished or cancelled independently."""
    for end in ("results", "cancel"):
        tree = Tree()
        task_id, part = tree.give(owner, holder), f"{owner}:0/5"
        tree(f"{third} HUNGRY 1")
        assert tree(f"{holder} SPLIT {task_id} 5 9 {part}") == [f"{owner} SPLIT {task_id} 5 9 {part}"]
        assert satisfied(tree(f"{holder} TASK {part} - 0 5 9 0 x")) == [f"{third} TASK {part} - 0 5 9 0 x"]
        for name, where in ((part, third), (task_id, holder)):
            if end == "results":
                assert satisfied(tree(f"{where} RESULT {name} 0 1 1 x")) == [f"{owner} RESULT {name} 0 1 1 x"]
            else:
                assert satisfied(tree(f"{owner} CANCEL {name}")) == [f"{where} CANCEL {name}"]
        assert tree.records == {}


def test_a_part_is_lost_when_its_holder_dies_between_split_and_task():
    """SPLIT announced the part, whose TASK never comes: the owner hears LOST for the part, too."""
    tree = Tree()
    task_id = tree.give("0.root", "1.1")
    tree("2.1 HUNGRY 1", f"1.1 SPLIT {task_id} 5 9 0.root:0/5")
    assert sorted(tree(f"1.keeper DIED 1.1 {task_id} 0 1 1 0 gone")) == [
        "0.root LOST 0.root:0/0 0 1 1 gone", "0.root LOST 0.root:0/5 0 0 0 gone"]
    assert tree.records == {}


def test_a_task_stays_on_its_host_when_somebody_is_hungry_there():
    """A hungry worker on the giver's host comes first, even if others have waited longer; nobody else hears of it."""
    tree = Tree()
    tree("2.1 HUNGRY 1", "1.2 HUNGRY 1")
    assert "1.2 TASK 1.1:0/0 - 0 0 9 0 x" in tree("1.1 TASK 1.1:0/0 - 0 0 9 0 x")
    assert tree.records == {"1": {"1.1:0/0": "1.2"}}


def test_a_task_goes_to_another_host_when_it_failed_on_this_one():
    """`avoid` outweighs distance: a hungry worker of the avoided host does not get the task, though it is nearer."""
    tree = Tree()
    tree("1.2 HUNGRY 1", "2.1 HUNGRY 1")
    assert "2.1 TASK 1.1:0/0 1 0 0 9 0 x" in tree("1.1 TASK 1.1:0/0 1 0 0 9 0 x")


def test_a_task_is_held_once_when_it_comes_back_to_the_host_of_its_owner():
    """It goes from host 1 to host 2 and, untouched, to another worker of host 1; host 2 forgets it."""
    tree = Tree()
    task_id = tree.give("1.1", "2.1")
    assert tree.records == {"1": {task_id: "up"}, "0": {task_id: "2"}, "2": {task_id: "2.1"}}
    tree("1.2 HUNGRY 1")
    assert tree(f"2.1 TASK {task_id} - 0 0 9 0 x") == [f"1.2 TASK {task_id} - 0 0 9 0 x"]
    assert tree.records == {"1": {task_id: "1.2"}}
    assert tree(f"1.1 CANCEL {task_id}") == [f"1.2 CANCEL {task_id}"] and tree.records == {}


def test_a_task_goes_anywhere_else_when_nobody_is_hungry_any_more():
    """To the node with the fewest tasks per worker; if no worker is left, back to its owner, and nobody is blamed."""
    tree = Tree(1)
    for _ in range(3):
        tree("0.root TASK 0.root:0/0 - 0 0 9 0 x", "0.root TASK 0.root:1/0 - 0 0 9 0 x")
    assert sorted(tree.records["0"].values()) == ["0.1", "1"]
    tree = Tree(1)
    tree("1.keeper DIED 1.1 x 0 0 1 0 gone", "1.keeper DIED 1.2 x 0 0 1 0 gone", "0.keeper DIED 0.1 x 0 0 1 0 gone")
    assert tree("0.root TASK 0.root:0/0 - 0 0 9 0 x") == ["0.root LOST 0.root:0/0 0 0 0 -"] and tree.records == {}


def test_who_has_none_is_left_in_peace_when_it_was_asked_across_hosts():
    """A HUNGRY stands until a task comes, across two brokers too: a node that has said DRY is not asked again."""
    tree = Tree()
    assert sorted(tree("2.1 HUNGRY 1")) == sorted(
        ["2.2 HUNGRY 1", *(f"{name} HUNGRY 1 2" for name in ("0.root", "0.1", "1.1", "1.2"))])
    assert tree("1.1 DRY", "1.2 DRY", "0.1 DRY", "2.2 DRY", "0.root DRY") == []
    assert tree("1.1 TASK 1.1:0/0 - 1 0 1 0 x") == ["2.1 TASK 1.1:0/0 - 1 0 1 0 x"]
    assert satisfied(tree("2.2 HUNGRY 1")) == [] and "1.1 HUNGRY 1 2" in tree("2.1 HUNGRY 1")


def test_a_host_asks_for_all_its_workers_when_one_is_hungry():
    """One request brings one task, whose taker shares it with the others; more is asked for before they run dry."""
    tree = Tree(1)
    assert "0.root HUNGRY 1 2" in tree("1.1 HUNGRY 1")
    assert satisfied(tree("1.2 HUNGRY 1")) == [] and "0.root HUNGRY 1 2" not in tree("0.root DRY")
    assert tree("0.root TASK 0.root:0/0 - 1 0 9 0 x") == ["1.1 TASK 0.root:0/0 - 1 0 9 0 x", "1.1 HUNGRY 1"]
    assert tree("1.1 SPLIT 0.root:0/0 5 9 0.root:0/5", "1.1 TASK 0.root:0/5 - 0 5 9 0 x") == [
        "0.root SPLIT 0.root:0/0 5 9 0.root:0/5", "1.2 TASK 0.root:0/5 - 0 5 9 0 x"]
    out = [tree(f"1.1 RESULT 0.root:0/0 {lo} 1 0 x") for lo in range(5)] + [tree("1.2 RESULT 0.root:0/5 5 1 0 x")]
    assert [len(lines) for lines in out] == [1] * 5 + [2] and out[-1][-1] == "0.root HUNGRY 1"  # three items are left


def test_a_host_asks_anew_when_all_is_done():
    """Its IDLE voids what it has asked for, here and above; of what it asks for, a task takes as many as it has items.
    It is void itself if a TASK is on its way; then the one above believes that more is wanted, never less."""
    tree = Tree(1)
    top, below = tree.brokers[b"0"], tree.brokers[b"1"]

    def demand():
        return top.links[b"1"].demand, below.links[minscoop.UP].asked
    tree("1.1 HUNGRY 1", "1.2 HUNGRY 1", "0.root TASK 0.root:0/0 - 0 0 9 0 x")
    assert demand() == (0, 0)
    tree("1.1 RESULT 0.root:0/0 0 9 1 x", "1.1 HUNGRY 1")
    top.on_HUNGRY(b"1", b"5")
    below.owe(below.links[minscoop.UP], 7)
    tree("1.1 IDLE 1")
    assert demand() == (2, 2) and top.wanted == 2
    tree("0.root TASK 0.root:1/0 - 0 0 1 0 x")
    assert demand() == (1, 1)
    top.on_IDLE(b"1", b"1")  # said before that task came
    assert demand() == (1, 1) and not top.links[b"1"].idle


def test_the_top_is_asked_once_when_all_workers_of_a_host_run_dry():
    """With the results that travel together: else it gets a message for each of 64 000 workers as a map ends."""
    tree = Tree(1)
    for broker in tree.brokers.values():
        broker.size = 10_000
    below = tree.brokers[b"1"]
    tree("1.1 HUNGRY 1", "1.2 HUNGRY 1", "0.root TASK 0.root:0/0 - 0 0 1 0 x", "0.root TASK 0.root:1/0 - 0 0 1 0 x")
    out = [below.handle(*message, 1.0) for worker, serial in ((b"1.1", 0), (b"1.2", 1)) for message in (
        (worker, [b"RESULT", b"0.root:%d/0" % serial, b"0", b"1", b"1", b"x"]), (worker, [b"HUNGRY", b"1"]))]
    said = [message[0] for messages in out for _, message in messages]
    assert said == [b"MANY", b"HUNGRY"]  # the first of each goes at once
    assert [message[0] for _, message in below.flush(2.0)] == [b"MANY", b"HUNGRY"]


def test_what_a_host_says_travels_together_when_the_pool_is_large():
    """The first goes at once; what follows waits, longer in a larger pool, and goes as one MANY, ahead of any LOST."""
    tree = Tree(2)
    for broker in tree.brokers.values():
        broker.size = 10_000
    task_id = tree.give("0.root", "1.1")
    tree.now = 1.0
    tree("1.2 HUNGRY 1", f"1.1 SPLIT {task_id} 5 9 0.root:0/5")  # this was the first
    assert tree("1.1 TASK 0.root:0/5 - 0 5 9 0 x", f"1.1 RESULT {task_id} 0 5 1 x",
                "1.2 SPLIT 0.root:0/5 7 9 0.root:0/7", "1.2 RESULT 0.root:0/5 5 2 1 y") == [
                    "1.2 TASK 0.root:0/5 - 0 5 9 0 x"]
    assert tree.records == {"0": {task_id: "1", "0.root:0/5": "1"}, "1": {"0.root:0/7": "1.2"}}
    due = tree.brokers[b"1"].due
    assert due == 1.0 + 10_000 * minscoop.HOLD
    (owner, message), = [(name, frames) for name, frames in tree.brokers[b"1"].flush(due)]
    messages = [[b"RESULT", task_id.encode(), b"0", b"5", b"1", b"x"],
                [b"SPLIT", b"0.root:0/5", b"7", b"9", b"0.root:0/7"],
                [b"RESULT", b"0.root:0/5", b"5", b"2", b"1", b"y"]]
    assert owner == minscoop.UP and list(map(list, pickle.loads(message[-1]))) == messages
    large = [*message[:2], *map(Large, message[2:])]  # as they come if they are large
    assert len(tree.say(b"1", *large)) == 1 and tree.records == {
        "0": {"0.root:0/7": "1"}, "1": {"0.root:0/7": "1.2"}}
    tree.now = due
    assert tree("1.2 RESULT 0.root:0/7 7 1 0 z") == []
    lost = tree("1.keeper DIED 1.2 0.root:0/7 8 9 1 0 gone")
    assert [line.split()[1] for line in lost] == ["MANY", "LOST"] and tree.records == {}


@pytest.mark.parametrize("end", ["0.root CANCEL 0.root:0/0", "2.keeper DIED 2.1 - 0 0 0 0 gone"])
def test_a_part_is_cancelled_when_the_word_of_its_split_crosses_that_of_the_end(end):
    """Its owner does not learn of it, and cannot cancel it: else it would run on, and delay the end of the pool."""
    tree = Tree(2)
    task_id = tree.give("0.root" if "root" in end else "2.1", "1.1")
    part = task_id[:-1] + "5"
    tree("1.2 HUNGRY 1")
    said = []
    for line in f"1.1 SPLIT {task_id} 5 9 {part}", f"1.1 TASK {part} - 0 5 9 0 x":
        sender, *frames = fields_of(line)
        said += tree.handle(b"1", sender, frames)
    assert f"1.2 TASK {part} - 0 5 9 0 x" in [line_of(*message) for _, *message in said]
    assert f"1.1 CANCEL {task_id}" in tree(end)
    assert f"1.2 CANCEL {part}" in tree.carry([message for message in said if message[1] == minscoop.UP])
    assert tree.records == {}


def test_many_messages_are_dropped_when_they_are_about_anothers_task():
    """Only a broker may say MANY, and only of tasks that are held behind it."""
    tree = Tree(2)
    task_id = tree.give("0.root", "1.1").encode()
    for sender, owner, new, done in ((b"2", b"0.root", b"", task_id), (b"1", b"1.2", b"", task_id),
                                     (b"0.1", b"0.root", b"", task_id), (b"2", b"0.root", task_id, b"")):
        assert tree.say(sender, b"MANY", owner, new, done, b"x") == []
    assert tree.brokers[b"0"].dropped == 4 and tree.records["0"] == {task_id.decode(): "1"}


def test_the_pool_is_not_told_each_time_when_a_thousand_hosts_come():
    """SIZE goes to the root each time; to all others when it has changed by more than 1/8, or else at the next tick."""
    top, told = minscoop.Broker(), 0
    top.handle(minscoop.ROOT, [b"HELLO"], 0.0)
    for number in range(1, 1001):
        out = top.handle(b"%d" % number, [b"HELLO", host_facts(f"{number}")], 0.0)
        assert (b"%d" % number, [b"SIZE", b"%d" % top.size]) in out and abs(top.size - 2 * number) <= number / 4
        assert (minscoop.ROOT, [b"SIZE", b"%d" % (2 * number)]) in out
        told += len(out)
    assert told < 20_000
    top.tick(1.0)
    assert top.size == 2000


def test_a_constant_is_everywhere_when_a_worker_sets_it():
    """CONST goes up, and from there to all, its setter too. Of two set at the same time, the top broker keeps one."""
    tree, everybody = Tree(), ["0.1", "0.root", "1.1", "1.2", "2.1", "2.2"]
    assert sorted(tree("1.1 CONST pi me 3.14")) == [f"{name} CONST pi me 3.14" for name in everybody]
    assert tree("2.1 CONST pi you 4", "0.root CONST pi you 5") == []
    assert sorted(entry for entry in tree.add("3") if "CONST" in entry) == [f"3.{i} CONST pi me 3.14" for i in (1, 2)]


def test_a_file_is_asked_for_once_when_many_workers_import_it():
    """Brokers pass on only the first FETCH; FILE goes to all who asked, and is kept for those who ask later."""
    tree = Tree()
    assert tree("1.1 FETCH /m.py") == ["0.root FETCH /m.py"]
    assert tree("1.2 FETCH /m.py", "2.1 FETCH /m.py", "0.1 FETCH /m.py") == []
    assert sorted(tree("0.root FILE /m.py text")) == [f"{name} FILE /m.py text" for name in "0.1 1.1 1.2 2.1".split()]
    assert tree("2.2 FETCH /m.py") == ["2.2 FILE /m.py text"]
    tree.add("3")
    assert tree("3.1 FETCH /m.py") == ["3.1 FILE /m.py text"]
    assert tree("1.1 FETCH /none.py", "0.root FILE /none.py") == ["0.root FETCH /none.py", "1.1 FILE /none.py"]


def test_output_comes_with_its_worker_when_a_task_prints_elsewhere():
    """OUTPUT, with the worker's name, goes to the root; SHOWN goes back to the broker of that host, which reads on."""
    tree = Tree()
    assert tree("1.keeper OUTPUT 1.1 out lines") == ["0.root OUTPUT 1.1 out lines"]
    assert tree.brokers[b"1"].printing == 5 and tree.brokers[b"0"].printing == 0
    assert tree("0.root SHOWN 1 5") == [] and tree.brokers[b"1"].printing == 0 == tree.brokers[b"2"].printing


def test_orphans_are_cancelled_everywhere_when_their_owner_dies():
    """A worker of host 1 had shipped to its own host, to host 0 and to host 2."""
    tree = Tree()
    ids = [tree.give("1.1", holder, serial, hi=1) for serial, holder in enumerate(["1.2", "0.1", "2.1"])]
    assert sorted(tree("1.keeper DIED 1.1 x 0 0 1 0 gone")) == sorted(
        f"{holder} CANCEL {task_id}" for task_id, holder in zip(ids, ["1.2", "0.1", "2.1"]))
    assert tree.records == {}


def test_all_that_a_host_held_is_lost_when_it_dies():
    """Every owner hears LOST for each task, with the reason; what its workers owned is cancelled elsewhere."""
    tree = Tree()
    lost = [tree.give("0.root", "1.1", hi=1), tree.give("2.1", "1.2", 1, hi=1), tree.give("0.root", "1.1", 2, hi=1)]
    orphans = [tree.give("1.1", "2.2", 3, hi=1), tree.give("1.2", "0.1", 4, hi=1)]
    del tree.brokers[b"1"]
    out = tree("0.keeper DIED 1 - 0 0 0 0 reason")
    assert sorted(entry for entry in out if "SIZE" not in entry) == sorted(
        [*(f"{minscoop.owner_of(i.encode()).decode()} LOST {i} 0 0 0 reason" for i in lost),
         f"2.2 CANCEL {orphans[0]}", f"0.1 CANCEL {orphans[1]}"])
    assert tree.records == {} and tree("0.root CANCEL " + lost[0]) == []


def test_a_host_is_lost_when_nothing_is_heard_of_it():
    """After SILENCE seconds without any sign its tasks start again elsewhere; PROBEs are signs enough."""
    tree = Tree()
    task_id = tree.give("0.root", "1.1")
    late = minscoop.SILENCE + minscoop.HEARTBEAT
    assert tree.tick(minscoop.HEARTBEAT, b"1", b"2", b"0") == []
    assert tree.tick(late - 1, b"2", b"0") == []
    out = tree.tick(late + 1, b"2", b"0")
    facts = json.loads(next(entry for entry in out if " HOST " in entry).split(" ", 2)[2])
    assert (facts["number"], facts["state"]) == ("1", "gone") and "12 s" in facts["reason"]
    assert any(entry.startswith(f"0.root LOST {task_id} 0 ") for entry in out) and "0.root SIZE 3" in out
    assert tree.records.get("0") is None and not tree.brokers[b"2"].finished


def test_a_broker_ends_when_the_one_above_is_silent():
    """Its host must end rather than work for nobody; while PROBEs come from above, it goes on."""
    broker = minscoop.Broker(b"1", 2)
    assert broker.tick(1) and broker.tick(1 + minscoop.SILENCE) and not broker.finished
    assert broker.tick(2 + minscoop.SILENCE) == [] and broker.finished
    broker = minscoop.Broker(b"1", 2)
    for now in range(0, 100, int(minscoop.HEARTBEAT)):
        assert (minscoop.UP, [b"PROBE"]) in broker.tick(now)
        broker.handle(minscoop.UP, [b"PROBE"], now)
    assert not broker.finished


def test_a_broker_ends_when_it_was_given_up_while_stopping():
    """A BYE from the broker above ends it at once: nobody waits any more for the BYEs of its own workers."""
    broker = minscoop.Broker(b"1", 1)
    for sender, message in (b"1.1", [b"HELLO"]), (minscoop.UP, [b"STOP"]), (minscoop.UP, [b"BYE"]):
        assert not broker.finished
        broker.handle(sender, message, 0)
    assert broker.finished


@pytest.mark.parametrize("stop", [[], ["0.root STOP"]], ids=["running", "stopping"])
@pytest.mark.parametrize("host", ["1", "jx"])
def test_what_a_host_had_may_have_begun_when_it_leaves_by_itself(host, stop):
    """One that joined, or that has not heard from us for SILENCE, since we were stopped: with retries=0, its tasks are
    not to run a second time. Its BYE does not mean, as a worker's does, that it has begun none of those that it holds;
    nor while all else ends, but for what tasks have left behind."""
    desk = Desk(1)
    desk.say(host.encode(), b"HELLO", host_facts(host))
    desk(f"{host} HUNGRY 1")
    for line in ("0.root TASK 0.root:0/0 - 0 0 1 0 x", *stop):
        desk(line)
    out = desk(f"{host} BYE")
    lost, = (entry for entry in out if " LOST " in entry)
    assert lost.startswith("0.root LOST 0.root:0/0 0 %d 0 host " % (1 << 62)), lost
    assert any(entry.startswith("0.root HOST ") for entry in out) and host.encode() in desk.broker.dead


@pytest.mark.parametrize("said", [True, False])
def test_a_worker_that_is_replaced_may_have_its_last_word_when_its_death_is_told_first(said):
    """They may come after the keeper's notice. If they do not, since they are lost, what it held is LOST in the end."""
    broker, held = minscoop.Broker(b"0", 1), b"0.root:1/0"
    for sender, *message in ((b"0.root", b"HELLO"), (b"0.1", b"HELLO"), (b"0.1", b"HUNGRY", b"1"),
                             (b"0.root", b"TASK", held, b"", b"0", b"0", b"2", b"0", b"", b"")):
        broker.handle(sender, message, 0)
    assert broker.handle(b"", [b"DIED", b"0.1", b"-", b"0", b"0", b"%d" % minscoop.PARTED, b"1", b"x"], 1) == []
    assert broker.waiting and broker.handle(b"0.1", [b"RESULT", held, b"0", b"1", b"0", b"-"], 1)[0][0] == b"0.root"
    if said:
        assert broker.handle(b"0.1", [b"BYE"], 1) == [(b"0.root", [b"LOST", held, b"0", b"0", b"0", b""])]
    out = broker.tick(1 + minscoop.GRACE)
    assert not broker.waiting and b"0.1" not in broker.links
    lost = [b"LOST", held, b"0", b"0", b"%d" % minscoop.BEGUN, b"x"]
    assert [frames for name, frames in out if name == b"0.root" and frames[0] == b"LOST"] == [lost] * (not said)


def test_a_host_is_not_lost_when_a_large_message_comes_slowly():
    """Each piece counts as a PROBE: a sign of life, to the broker above as to the one below; a stranger hears that it
    was given up."""
    tree = Tree()
    for now in range(0, 100, int(minscoop.HEARTBEAT)):
        assert tree.tick(now, b"0", b"1", b"2") == []
        tree.now = now
        assert tree("1 PROBE") == [] and tree.handle(b"2", minscoop.UP, [b"PROBE"]) == []
    top, below = tree.brokers[b"0"], minscoop.Broker(b"3", 2)
    for now in range(0, 100, int(minscoop.HEARTBEAT)):
        assert below.tick(now) and below.handle(minscoop.UP, [b"PROBE"], now) == [] and not below.finished
        top.tick(100 + now)
        assert top.handle(b"1", [b"PROBE"], 100 + now) == []
        assert top.handle(b"9", [b"PROBE"], 100 + now) == [(b"9", [b"BYE"])]
        top.counted = True  # it may be the host of a predecessor of ours
        assert top.handle(b"9", [b"PROBE"], 100 + now) == [(b"9", [b"PROBE"])]
        top.counted = False
    assert b"1" in top.links and not {b"2", b"9"}.intersection(top.links)


SIZES = [[0], [1], [5], [100], [101], [3, 0, 97], [3, 0, 98], [0, 250, 0], [40] * 9, [1000, 1, 1000], [0, 0, 101, 0]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_message_is_whole_again_when_it_came_in_pieces(monkeypatch, sizes):
    """No piece is larger than PIECE; a message that is not larger travels whole and unchanged."""
    zmq = pytest.importorskip("zmq")
    monkeypatch.setattr(minscoop, "PIECE", 100)
    monkeypatch.setattr(minscoop, "OUT_OF_BAND", 60)
    message, pieces = [os.urandom(size) for size in sizes], minscoop.Pieces()
    for wrap in bytes, bytearray, memoryview, zmq.Frame:
        sent = minscoop.in_pieces([message[0], *map(wrap, message[1:])])
        assert len(sent) == max(1, -(-sum(sizes) // 100)) and (len(sent) > 1 or list(map(bytes, sent[0])) == message)
        assert all(sum(map(len, piece[1:])) <= 100 for piece in sent if len(sent) > 1)
        *early, whole = [pieces.add([bytes(piece[0]), *map(zmq.Frame, piece[1:])]) for piece in sent]
        assert early == [None] * len(early) and list(map(bytes, whole)) == message
        assert len(sent) == 1 or all(isinstance(frame, bytes) == (len(frame) < 60) for frame in whole)


def test_a_host_is_answered_when_we_take_over_amid_its_large_message():
    """Else it would hear nothing until it can say HELLO. The rest of that message is dropped; the next one is whole."""
    board = types.SimpleNamespace(broker=minscoop.Broker(), pieces=collections.defaultdict(minscoop.Pieces))
    gather = functools.partial(minscoop.Switchboard.gather, board, b"1")
    first, last = ([bytes(frame) for frame in piece] for piece in minscoop.in_pieces([b"PROBE", bytes(minscoop.PIECE)]))
    assert gather(last) == [[b"PROBE"]] and board.broker.dropped == 1 and gather([b"HELLO"]) == [[b"HELLO"]]
    board.broker.handle(b"1", [b"HELLO", host_facts("1")], 0)
    assert gather(last) == [[b"PROBE"]] and board.broker.dropped == 2
    assert gather(first) == [[b"PROBE"]] and len(gather(last)[0][1]) == minscoop.PIECE
    assert gather(first) == [[b"PROBE"]] and gather([b"DRY"]) == [[b"DRY"]] and gather(last) == [[b"PROBE"]]
    board.broker.handle(b"", [b"DIED", b"1", b"", b"0", b"0", b"0", b"0", b"gone"], 1)
    minscoop.Switchboard.forget_pieces(board)
    assert not board.pieces


class Echo(collections.deque):
    """A socket whose other end is a broker that echoes PROBEs, in pieces if they are large."""

    def send_multipart(self, frames):
        assert self in (collections.deque(), collections.deque([[b""]]))  # nothing of the answer before is left
        self.extend(minscoop.in_pieces(frames))

    def poll(self, timeout):
        return len(self)

    def close(self):
        assert not self


def test_all_of_an_answer_has_come_when_the_bandwidth_is_measured(monkeypatch):
    """Else the rest of this answer would be taken for the next one, which would seem to come at once."""
    board, echo = object.__new__(minscoop.Switchboard), Echo([[b""]])
    board.context, board.broker = None, minscoop.Broker(b"1")
    monkeypatch.setattr(minscoop, "connect", lambda *_: echo)
    monkeypatch.setattr(minscoop, "receive", Echo.popleft)
    assert set(board.measure("", None)) == {"round_trip", "bandwidth"}


@pytest.mark.parametrize("seed", range(20))
def test_no_message_is_made_of_the_pieces_of_two_when_some_are_lost(monkeypatch, seed):
    """A connection may break amid several messages: those whose pieces have all come arrive, the others do not."""
    monkeypatch.setattr(minscoop, "PIECE", 10)
    chance, pieces, got, due = random.Random(seed), minscoop.Pieces(), [], []
    for _ in range(200):
        message = [bytes([chance.randrange(256)]) * chance.choice((1, 9, 25)) for _ in range(chance.randrange(1, 4))]
        sent = minscoop.in_pieces(message)
        lost = chance.choice(([], [], range(chance.randrange(9)), range(chance.randrange(9), 9)))
        due += [message] * (not set(lost) & set(range(len(sent))))
        for i, piece in enumerate(sent):
            if i not in lost:
                with contextlib.suppress(ValueError):
                    got.append(pieces.add([bytes(frame) for frame in piece]))
    assert [message for message in got if message] == due
    for head in b"PIECE", b"PIECE 1 x 9", b"PIECE 1 0 -1", b"PIECE 1 0 " + b"9" * 30, b"PIECE 1 9 4 x":
        with pytest.raises(Exception):
            pieces.add([head.replace(b" ", b"\0"), b"x"])


def test_every_census_ends_when_one_node_stays_silent():
    """Also the second and the third: it may compute for an hour without releasing the interpreter's lock."""
    broker = minscoop.Broker(size=2)
    for name in b"0.root", b"0.1", b"0.2":
        broker.handle(name, [b"HELLO"], 0)
    for start in 100, 200, 300:
        broker.handle(b"0.1", [b""], start)  # it has connected anew
        number = broker.round
        for name in b"0.root", b"0.1":
            broker.handle(name, [b"TOLD", number], start)
        assert set(broker.silent) == {b"0.2"}
        out = broker.tick(start + 3 * minscoop.CENSUS_PATIENCE)
        assert broker.round is None and (b"0.root", [b"TOLD", number]) in out
    broker.handle(b"0.2", [b"TOLD", number], 400)
    assert broker.round not in (None, number)  # what it has is asked for, now that it answers


def test_a_task_may_have_begun_when_it_was_held_while_others_came():
    """Workers count TASKs anew from WHO on: what they held by then does not get the number of a later one."""
    desk = Desk(1)
    desk(f"0.root TASK {TASK}")
    desk.say(b"0.1", b"")  # it has connected anew
    number = desk.broker.round.decode()
    for serial in 1, 2:  # sent before the root heard WHO
        assert satisfied(desk(f"0.root TASK {TASK.replace(':0', f':{serial}')}"))
    for line in "HELLO", f"HELD {number} 0.root:0/0 0 9", f"TOLD {number}":
        desk(f"0.1 {line}")
    assert set(desk("keeper DIED 0.1 0.root:1/0 0 1 1 1 gone")) == {
        "0.root LOST 0.root:0/0 0 0 2 gone", "0.root LOST 0.root:1/0 0 1 1 gone", "0.root LOST 0.root:2/0 0 0 0 gone"}


def test_a_census_ends_for_a_host_when_it_was_asked_before_it_said_hello():
    """Its connection broke before its HELLO: the census waits for it or, if over by then, its TOLD is answered."""
    broker = minscoop.Broker()
    broker.handle(b"0.root", [b"HELLO"], 0)
    out = broker.handle(b"1", [b""], 1)  # it has connected anew, and never said who it is
    number = broker.round
    assert (b"1", [b"WHO", number]) in out
    broker.handle(b"0.root", [b"TOLD", number], 1)
    broker.handle(b"1", [b"HELLO", host_facts("1")], 2)
    assert (b"1", [b"TOLD", number]) in broker.handle(b"1", [b"TOLD", number], 3) and broker.round is None


def test_a_joined_host_delays_one_census_only_when_it_never_says_hello():
    """It may have died just after it connected: it has no link, and no keeper here that would tell of its death."""
    broker = minscoop.Broker(size=1, heirs=dict.fromkeys([b"0.root", b"0.1"], b""))
    ours = [b"0.root", b"0.1"]
    for name in [*ours, b"7"]:
        broker.handle(name, [b""], 1)
    for name, now in zip(ours * 2, (1, 1, 99, 99)):
        if now == 99 and name == ours[0]:
            broker.tick(1 + 3 * minscoop.CENSUS_PATIENCE)
            assert broker.round is None
            broker.handle(b"0.1", [b""], 99)
        broker.handle(name, [b"HELLO"], now)
        broker.handle(name, [b"TOLD", broker.round], now)
    assert broker.round is None and not broker.silent


def test_a_census_ends_for_all_when_the_question_was_long_under_way():
    """The host is presumed to hold what it had. If WHO and the final TOLD reach it together, it must hear its workers
    before it ends its own census and says TOLD; the top then begins another, to ask it what it really holds."""
    tree = Tree(1)
    task_id = tree.give("0.root", "1.1", hi=1)
    top, below = tree.brokers[b"0"], tree.brokers[b"1"]
    below.facts = host_facts("1")
    late = top.handle(b"0.1", [b""], 100)
    for name in b"0.root", b"0.1":
        late += top.handle(name, [b"TOLD", top.round], 100)
    late += top.handle(b"1", [b"PROBE"], 105) + top.tick(101 + 2 * minscoop.CENSUS_PATIENCE)
    assert top.round is None and task_id.encode() in top.placed
    number, = {frames[1] for name, frames in late if name == b"1" and frames[0] == b"TOLD"}
    for name, frames in late:
        if name == b"1":
            out = below.handle(minscoop.UP, frames, 200)
    assert below.round == number and (b"1.1", [b"TOLD", number]) not in out
    below.handle(b"1.1", [b"TOLD", number], 200)
    out = below.handle(b"1.2", [b"TOLD", number], 200)
    assert (minscoop.UP, [b"TOLD", number]) in out and (b"1.1", [b"TOLD", number]) in out and below.round is None
    out = top.handle(b"1", [b"TOLD", number], 200)
    assert top.round not in (None, number) and (b"1", [b"WHO", top.round]) in out


def test_a_census_ends_for_a_host_when_it_says_hello_after_that():
    """WHO took so long that the census ended without it: its late TOLD is answered with TOLD, or it would wait on."""
    top = minscoop.Broker(size=1, heirs=dict.fromkeys([b"0.root", b"0.1", b"1"], b""))
    for name in b"0.root", b"0.1", b"1":
        top.handle(name, [b""], 1)
    top.tick(1)
    number = top.round
    for name in b"0.root", b"0.1":
        top.handle(name, [b"HELLO"], 2)
        top.handle(name, [b"TOLD", number], 2)
    assert (b"1", [b"TOLD", number]) not in top.tick(3 + 2 * minscoop.CENSUS_PATIENCE) and top.round is None
    top.handle(b"1", [b"HELLO", host_facts("1")], 20)
    assert (b"1", [b"TOLD", number]) in top.handle(b"1", [b"TOLD", number], 20)


def test_those_of_a_host_are_heard_when_a_census_ends_that_began_before_its_broker_took_over():
    """The TOLD that ends its predecessor's census must not end its own, in which its workers have yet to be heard."""
    broker = minscoop.Broker(b"1", 1, heirs={b"1.1": b"0.root:0/0"})
    broker.facts = host_facts("1")
    broker.handle(minscoop.UP, [b"TOLD", b"7"], 0)
    out = broker.handle(minscoop.UP, [b"WHO", b"8"], 0)
    assert set(broker.silent) == {b"1.1"} and (minscoop.UP, [b"TOLD", b"8"]) not in out


@pytest.mark.parametrize("late", [False, True])
def test_a_host_that_has_joined_is_asked_too_when_another_broker_takes_over_on_top(late):
    """No keeper knows of it: it came by --join. It is asked once it connects; HELDs for its workers await its HELLO.
    If one was said before, all are asked again."""
    top = minscoop.Broker(size=1, heirs=dict.fromkeys([b"0.root", b"0.1"], b""))
    top.handle(b"0.root", [b""], 1)
    held = [b"HELD", top.round, b"jx.1:0/0", b"0", b"9"]
    for frames in [[b"HELLO"], held] if late else ():
        top.handle(b"0.1", frames, 1)
    out = top.handle(b"jx", [b""], 2) + (top.tick(2) if late else [])
    number = held[1] = top.round
    asked = dict.fromkeys(name for name, frames in out if frames == [b"WHO", number])
    assert [*asked] == [b"0.1", b"0.root"] * late + [b"jx"]
    for name, frames in itertools.product([b"0.1", b"0.root"], [[b""], [b"HELLO"], held, [b"TOLD", number]]):
        if (name, frames) not in [(b"0.root", [b""]), (b"0.root", held), (b"0.1", [b""] * late)]:
            top.handle(name, frames, 2)
    assert top.round == number and (b"jx", held) in top.handle(b"jx", [b"HELLO", host_facts("jx")], 2)
    assert (b"jx", [b"TOLD", number]) in top.handle(b"jx", [b"TOLD", number], 2) and top.round is None


def test_each_is_asked_once_when_many_hosts_that_have_joined_connect_anew():
    """A census for each of them, of which every one asks all, would keep the broker that takes over busy for longer
    than SILENCE."""
    top = minscoop.Broker(heirs={b"0.root": b""})
    names = [b"0.root", *(b"j%d" % i for i in range(50))]
    asked = [receiver for name in names for receiver, frames in top.handle(name, [b""], 1) if frames[0] == b"WHO"]
    assert asked == names


@pytest.mark.parametrize("end", [True, False])
def test_two_censuses_suffice_when_many_hosts_connect_anew(end):
    """As when a firewall forgets their connections. The first began when some were still cut off, and so does not end
    with TOLD: once all have answered, or at a broker's next look, since the question may be lost, too, the second
    begins."""
    top, names = minscoop.Broker(), [b"%d" % i for i in range(1, 51)]
    for name in names:
        top.handle(name, [b"HELLO", host_facts(name.decode())], 0)
    asked = [receiver for name in names for receiver, frames in top.handle(name, [b""], 1) if frames[0] == b"WHO"]
    assert asked == names
    first, out = top.round, []
    for name in names if end else ():
        out += top.handle(name, [b"TOLD", first], 2)
    out += [] if end else top.tick(2)
    assert top.round > first and not [frames for _, frames in out if frames[0] == b"TOLD"]
    assert [receiver for receiver, frames in out if frames == [b"WHO", top.round]] == names
    for name in names:
        out = top.handle(name, [b"TOLD", top.round or b""], 3)
    assert top.round is None and len(out) == len(names)


def test_files_and_output_go_on_when_the_broker_above_was_lost():
    """A FETCH lost with it is passed on again; OUTPUT whose SHOWN was lost no longer keeps more from being read."""
    broker = minscoop.Broker(b"1", 1)
    broker.facts = host_facts("1")
    broker.handle(b"1.1", [b"HELLO"], 0)
    assert broker.handle(b"1.1", [b"FETCH", b"a.py"], 0) == [(minscoop.UP, [b"FETCH", b"a.py"])]
    broker.handle(b"", [b"OUTPUT", b"1.1", b"out", b"x" * 10 * minscoop.OUTPUT_AHEAD], 0)
    broker.handle(minscoop.UP, [b"WHO", b"7"], 1)
    assert (minscoop.UP, [b"FETCH", b"a.py"]) in broker.handle(b"1.1", [b"FETCH", b"a.py"], 1)
    broker.handle(minscoop.UP, [b"SHOWN", b"1", b"10"], 1)
    assert broker.printing == 0


def test_one_census_is_begun_when_all_workers_of_a_host_connect_anew():
    """The new broker asks once per worker: the top ignores requests made before its WHO got there, not later ones."""
    tree = Tree()
    low = tree.brokers[b"1"] = minscoop.Broker(b"1", 2, dict.fromkeys([b"1.1", b"1.2"], b""))
    low.facts, tree.now = host_facts("1"), 1.0
    said = [frames for name in (b"1.1", b"1.2") for _, frames in low.handle(name, [b""], 0) if frames[0] == b"WHO"]
    out = [tree.say(b"1", *frames) for frames in [[b"HELLO", low.facts], [b""], *said]]
    assert len(said) == 2 and [sum("0.root WHO" in line for line in lines) for lines in out] == [0, 1, 0, 0]
    tree.now = 2.0
    for again in tree("1.1 HELLO", "1.1 -"), Tree()("1.1 -"):
        assert sum("0.root WHO" in line for line in again) == 1


def test_what_a_worker_wants_is_void_when_it_was_said_before_it_heard_who():
    """A worker says it again after TOLD. What a broker below wants counts: it may say so before its TOLD."""
    tree = Tree(1)
    tree("0.1 HUNGRY 1", "0.1 IDLE 0", "0.root -", "0.1 HUNGRY 1", "0.1 IDLE 0", "1.1 TOLD 0", "1.1 HUNGRY 1")
    top = tree.brokers[b"0"]
    assert [(link.demand, link.idle) for link in top.linked(*minscoop.TAKERS)] == [(0, False), (1, False)]
    tree("0.1 HELLO", f"0.1 TOLD {top.round.decode()}", "0.1 HUNGRY 1", "0.1 IDLE 0")
    assert (top.links[b"0.1"].demand, top.links[b"0.1"].idle) == (1, True)


def test_only_who_can_give_is_rich_when_all_have_said_what_they_hold():
    """A worker that holds several items is; the broker above is not, since what other hosts hold is not its to give."""
    tree = Tree(2)
    tree("0.root -", "1.1 HELD 0 0.root:0/0 0 9")
    low = tree.brokers[b"1"]
    assert list(low.rich) == [b"1.1"]
    tree("2.1 HELD 0 1.1:0/0 0 9", "2.1 TOLD 0", "2.1 HUNGRY 1", "1.2 TASK 1.2:0/0 - 0 0 1 0 x")
    assert low.placed[b"1.2:0/0"] == minscoop.UP and list(low.rich) == [b"1.1"]


def test_a_task_stays_with_its_taker_when_its_giver_does_not_answer():
    """The giver gave it away before it heard WHO: it must not be presumed to hold it still."""
    desk = Desk()
    desk("0.1 HUNGRY 1")
    desk(f"0.root TASK {TASK}")
    assert desk("0.root -") and f"0.2 TASK {TASK}" in desk(f"0.1 TASK {TASK}")
    for name in "0.root", "0.2":
        desk(f"{name} TOLD 0")
    desk.broker.tick(3 * minscoop.CENSUS_PATIENCE)
    assert desk.broker.round is None and desk.broker.placed == {b"0.root:0/0": b"0.2"}


def test_who_does_not_answer_a_census_is_not_asked_when_others_have_more():
    """It is presumed to hold all of what it had, in bounds that are not known: they must not count as items."""
    desk = Desk(3)
    for name in "0.1", "0.2":
        desk(f"{name} HUNGRY 1")
        desk(f"0.root TASK 0.root:{name[-1]}/0 - 0 0 9 0 body")
    desk("0.3 -")
    for line in "0.root TOLD 0", "0.2 HELD 0 0.root:2/0 0 9", "0.2 TOLD 0", "0.3 TOLD 0":
        desk(line)
    desk.broker.tick(3 * minscoop.CENSUS_PATIENCE)
    assert desk("0.3 HUNGRY 1") == ["0.2 HUNGRY 1"]


def test_a_held_task_is_cancelled_when_its_owner_is_gone():
    """CANCEL goes to the holder, and the items do not count as work that it could give."""
    broker = minscoop.Broker(size=2)
    for name in b"0.root", b"0.1", b"0.2":
        broker.handle(name, [b"HELLO"], 0)
    broker.handle(b"", [b"DIED", b"0.2", b"-", b"0", b"0", b"0", b"0", b"gone"], 1)
    broker.handle(b"0.1", [b""], 2)
    out = broker.handle(b"0.1", [b"HELD", broker.round, b"0.2:0/0", b"0", b"100"], 2)
    assert out == [(b"0.1", [b"CANCEL", b"0.2:0/0"])] and broker.links[b"0.1"].items == 0


def test_a_stranger_is_answered_when_it_only_asks_whether_a_way_is_open():
    """The PROBE of a trial connection, which has a `?` in its name, is echoed, but makes no link."""
    broker = minscoop.Broker()
    assert broker.handle(b"1?0", [b"PROBE", b"x"], 0) == [(b"1?0", [b"PROBE", b"x"])] and not broker.links


def test_a_host_goes_on_when_its_probe_comes_before_its_hello():
    """A broker that has taken over must not send BYE to a host that it does not know yet, unless the host has died."""
    broker = minscoop.Broker(heirs={b"1": b""})
    assert broker.handle(b"1", [b"PROBE"], 1) == [(b"1", [b"PROBE"])]
    broker.handle(b"1", [b""], 1)
    broker.handle(b"1", [b"HELLO", host_facts("1")], 1)
    broker.handle(b"", [b"DIED", b"1", b"", b"0", b"0", b"0", b"0", b"gone"], 3)
    assert broker.handle(b"1", [b"PROBE"], 3) == [(b"1", [b"BYE"])]
    assert minscoop.Broker().handle(b"1", [b"PROBE"], 3) == [(b"1", [b"BYE"])]


@pytest.mark.parametrize("host", [b"0", b"1"])
def test_a_worker_is_asked_when_it_comes_after_the_census(host):
    """It stood still, and the census ended without it. Unasked, it stays a stranger, whose results are dropped."""
    name, number, below = host + b".1", b"0", host != b"0"
    broker = minscoop.Broker(host, heirs={name: b"0.root:0/0"})
    broker.handle(minscoop.UP, [b"WHO", number], 0) if below else broker.tick(0)
    broker.tick(2.2 * minscoop.CENSUS_PATIENCE)  # less than SILENCE
    broker.handle(minscoop.UP, [b"TOLD", number], 0) if below else None
    assert broker.round is None and not broker.links.keys() - {minscoop.UP}
    out = broker.handle(name, [b""], 99)
    assert out[0][0] == (minscoop.UP if below else name) and out[0][1][0] == b"WHO"


def test_all_hosts_are_stopped_when_all_is_quiet():
    """STOP waits for every task on every host, and the end of the pool for the last BYE of the last host."""
    tree = Tree()
    task_id, own = tree.give("0.root", "1.1"), tree.give("1.1", "2.1", 1)
    idle = ["0.1 IDLE 0", "1.2 IDLE 0", "2.2 IDLE 0"]
    assert tree(*idle, "0.root STOP") == []
    assert tree(f"1.1 RESULT {task_id} 0 9 1 x") == [f"0.root RESULT {task_id} 0 9 1 x"]
    assert tree("1.1 IDLE 1") == []
    assert satisfied(tree(f"2.1 RESULT {own} 0 9 1 x", "1.1 IDLE 1")) == [f"1.1 RESULT {own} 0 9 1 x"]
    assert sorted(tree("2.1 IDLE 1")) == [f"{name} STOP" for name in ("0.1", "1.1", "1.2", "2.1", "2.2")]
    top = tree.brokers[b"0"]
    assert tree("0.1 BYE", "1.1 BYE", "1.2 BYE") == [f"{name} SIZE 3" for name in ("0.root", "2.1", "2.2")]
    assert tree.brokers[b"1"].finished and not top.finished
    tree("2.1 BYE", "2.2 BYE")
    assert top.finished and set(top.links) == {b"0.root"}


def test_a_host_that_comes_late_is_stopped_when_the_end_was_said():
    """It gets its STOP with the answer to HELLO, and so do its workers."""
    tree = Tree(0)
    tree("0.1 IDLE 0", "0.root STOP")
    assert [entry for entry in tree.add("1") if "STOP" in entry] == ["1.1 STOP", "1.2 STOP"]
    tree("0.1 BYE", "1.1 BYE", "1.2 BYE")
    assert tree.brokers[b"0"].finished


@pytest.mark.parametrize("how", ["1.keeper DIED 1.1 x 0 0 1 0 gone", "0.keeper DIED 1 - 0 0 0 0 gone"])
def test_the_end_comes_when_the_last_to_work_dies_while_stopping(how):
    """What it held is lost, which its owner hears; nobody waits for its BYE."""
    tree = Tree(1)
    task_id = tree.give("0.root", "1.1")
    tree("0.1 IDLE 0", "1.2 IDLE 0", "0.root STOP")
    out = tree(how)
    assert f"0.root LOST {task_id} 0 0 0 gone" in out and "0.1 STOP" in out


UNFIT = ["1 DIED 2.1 x 0 0 1 0 gone", "1 DIED 0.1 x 0 0 1 0 gone", "1.1 DIED 1.2 x 0 0 1 0 gone", "1.1 HOST {}",
         "0.root HOST {}",
         "1.1 SIZE 9", "0.1 OUTPUT 0.1 out x", "7 TASK 0.root:0/0 - 0 0 9 0 x", "7 HELLO",
         "7 HELLO {", "7 HELLO {}", "7 BYE", "7 RESULT 0.root:0/0 0 9 1 x", "7 OUTPUT 0.1 out x",
         "7 CONST a b c", "7 HUNGRY 1", "1.1 SHOWN", "1.1 FETCH", "1 LOST", "0.root SHOWN 0 many", "0.keeper SIZE 9"]


@pytest.mark.parametrize("line", UNFIT)
def test_brokers_drop_what_is_not_the_senders_to_say_when_it_arrives(line):
    """A broker speaks of its own host only, a node not of hosts, a stranger of nothing; the rest goes on."""
    tree = Tree()
    tree.brokers[b"7"] = minscoop.Broker(b"7")  # so that 7 is heard on top
    links = {at: set(broker.links) for at, broker in tree.brokers.items()}
    assert tree(line) == [] and sum(broker.dropped for broker in tree.brokers.values()) == 1
    assert {at: set(broker.links) for at, broker in tree.brokers.items()} == links
    task_id = tree.give("0.root", "1.1")
    assert tree(f"1.1 RESULT {task_id} 0 9 1 x") == [f"0.root RESULT {task_id} 0 9 1 x"] and tree.records == {}


# ---------------------------------------------------------------------------------------------------
# 8  Node


@pytest.mark.parametrize("open_, lo, hi, closed, left_", [
    ([(0, 9)], 0, 9, True, []), ([(0, 9)], 0, 3, True, [(3, 9)]), ([(0, 9)], 3, 9, True, [(0, 3)]),
    ([(0, 9)], 3, 5, True, [(0, 3), (5, 9)]), ([(0, 3), (5, 9)], 5, 6, True, [(0, 3), (6, 9)]),
    ([(0, 3), (5, 9)], 2, 6, False, None), ([(0, 3)], 3, 4, False, None), ([], 0, 1, False, None)])
def test_ranges_forget_what_has_come_when_results_arrive(open_, lo, hi, closed, left_):
    """Each item is closed only once: a range that overlaps items closed before is refused as a whole."""
    ranges = minscoop.Ranges(open_)
    assert ranges.close(lo, hi) is closed
    assert ranges == (open_ if left_ is None else left_)


@pytest.mark.parametrize("lo, hi", [(5, 5), (7, 3), (0, 0), (9, 0), (20, 10)])
def test_ranges_stay_as_they_are_when_nothing_is_cut_out(lo, hi):
    """A LOST whose bounds are in the wrong order must not have items run twice."""
    ranges = minscoop.Ranges([(0, 9)])
    assert (ranges.cut(lo, hi), ranges) == ([], [(0, 9)])


def given(job, wanted=1):
    """Queue a job's span at its node and send that a HUNGRY for `wanted` tasks; returns the TASKs that it gives."""
    job.node.queue.append(job.span)
    if wanted:
        job.node.on_HUNGRY(b"%d" % wanted)
    job.node.give()
    return job.node.named(b"TASK")


def results(values, failures=None):
    return minscoop.encode_results(values, failures or {}, str)


def test_a_map_is_given_in_parts_when_others_are_hungry():
    """Each worker gets an equal share, in order. The first item goes ahead alone if its type does not tell its size."""
    for items, expected in (range(100), [(0, 50), (50, 100)]), ([()] * 101, [(0, 1), (1, 52), (52, 101)]):
        job = HandJob(identity, items)
        assert [(int(task[3]), int(task[4])) for task in given(job, 5)] == expected
        assert job.span.stale and job.node.wanted == 5 - len(expected)


def test_a_small_part_is_given_when_items_are_large():
    """MAX_BODY bounds one message, unless one item is larger than that."""
    job = HandJob(identity, [bytes(minscoop.MAX_BODY // 3 + i) for i in range(20)])
    assert all(int(task[4]) - int(task[3]) <= 3 for task in given(job, 6))


def test_a_small_part_is_given_when_items_take_long_to_pickle(monkeypatch):
    """PACKING bounds one message, unless one item takes longer than that: others idle until all of it is pickled."""
    clock = types.SimpleNamespace(**vars(time))
    clock.perf_counter = lambda: Slow.now
    monkeypatch.setattr(minscoop, "time", clock)

    class Slow:
        now = 0.0

        def __reduce__(self):
            Slow.now += minscoop.PACKING * self.share
            return list, ()
    for Slow.share, sizes in (0.3, [1, 3, 3, 3, 3, 3]), (2.0, [1] * 6):
        job = HandJob(identity, [Slow() for _ in range(100)])
        assert [int(task[4]) - int(task[3]) for task in given(job, 6)] == sizes


def test_a_large_part_is_given_when_a_host_asks_for_its_workers():
    """HUNGRY with a `width` is answered by tasks of so many equal shares. A worker keeps as much as each taker gets."""
    job = HandJob(identity, list(range(1000)))
    job.node.size, job.item_bytes = 100, 1
    job.node.on_HUNGRY(b"2", b"10")
    assert [int(task[4]) - int(task[3]) for task in given(job, 0)] == [100, 100]
    worker = HandJob(identity, list(range(90)))
    worker.node.executes, worker.item_bytes = True, 1
    assert [int(task[4]) - int(task[3]) for task in given(worker, 2)] == [30, 30]


def test_nothing_is_given_when_those_who_asked_want_none_any_more():
    """HUNGRY 0 takes back what was asked, of a root as of a worker."""
    job = HandJob(identity, list(range(100)))
    job.node.on_HUNGRY(b"5", b"10")
    job.node.on_HUNGRY(b"0")
    assert given(job, 0) == [] and (job.node.wanted, job.node.width) == (0, 10)
    assert len(given(job, 1)) == 1 and job.node.width == 1


@pytest.mark.parametrize("kind", [bytes, Large])
def test_each_is_heard_when_many_messages_come_as_one(kind):
    """The owner handles the messages in a MANY as if each had come alone: only nonsense among them is dropped."""
    job = HandJob(identity, list(range(9)))
    job.item_bytes, job.node.size = 1, 0.5
    (task_id, *_), = given(job)
    messages = [(b"SPLIT", task_id, b"5", b"9", b"0.root:0/5"), (b"RESULT", task_id, b"x"), (b"NONSENSE",),
                (b"RESULT", b"0.root:0/5", b"5", b"4", b"1", *results([5, 6, 7, 8])),
                (b"RESULT", task_id, b"0", b"5", b"1", *results([0, 1, 2, 3, 4]))]
    job.node.handle([b"MANY", b"0.root", b"", b"", kind(pickle.dumps(messages, 5))])
    assert job.got == {i: i for i in range(9)} and not job.node.away and job.node.dropped == 2


def test_a_task_is_held_when_its_last_result_is_just_being_packed():
    """The holder must answer a census at that moment with HELD; otherwise the task would run again."""
    node = HandNode(b"0.1")
    guest = node.guests[b"0.root:0/0"] = minscoop.Guest(node, b"0.root:0/0", 0, 1, None)

    class Asking:
        def __reduce__(self):
            node.on_WHO(b"7")
            return int, ()
    guest.deliver(0, 1, [Asking()], {})
    assert [frames[0] for frames in node.sent] == [b"HELLO", b"HELD", b"TOLD", b"RESULT"] and not node.guests


def test_a_result_counts_once_when_it_comes_twice():
    """After a task was lost and run again, its first holder may still answer."""
    job = HandJob(identity, [5])
    (task_id, *_), = given(job)
    job.node.on_RESULT(task_id, b"0", b"1", b"1", *results([5]))
    job.node.on_RESULT(task_id, b"0", b"1", b"1", *results([6]))
    assert job.got == {0: 5} and not job.node.away


@pytest.mark.parametrize("holder", ["reads it", "does not"])
def test_no_large_argument_is_left_when_a_callable_cannot_be_unpickled(tmp_path, holder):
    """A holder that cannot read the callable discards the argument; the owner, what a finished task has left unread."""
    job = HandJob(Unreadable(), [LargeBytes(LARGE)])
    job.node.memory = tmp_path
    (task_id, _, _, _, _, _, *body), = given(job)
    assert len(os.listdir(tmp_path)) == 1
    if holder == "reads it":
        with pytest.raises(ZeroDivisionError):
            minscoop.Guest(HandNode(b"0.1"), task_id, 0, 1, body).unpack()
    else:
        job.node.on_RESULT(task_id, b"0", b"1", b"1", *results([None], {0: CannotSend("no callable")}))
    assert not os.listdir(tmp_path)


class Input:
    """Something that a weak reference can follow."""


@pytest.mark.parametrize("executes", [False, True])
def test_inputs_go_when_their_results_are_read(executes):
    """A map that is read lazily keeps in memory only the inputs under way, whether its node runs or gives them away."""
    node, refs = HandNode(), []
    node.executes = executes

    def inputs():
        for _ in range(2000):
            item = Input()
            refs.append(weakref.ref(item))
            yield item
    job = minscoop.Mapping(node, minscoop.Recipe(callable), [inputs()], buffersize=16)
    while len(refs) < 2000:
        if executes:
            with node.lock:
                piece = job.claim()
            piece.run()
            piece.deliver()
        else:
            node.on_HUNGRY(b"1")
            node.give()
            for task_id, _, _, lo, hi, *_ in node.named(b"TASK"):
                count = int(hi) - int(lo)
                node.on_RESULT(task_id, lo, b"%d" % count, b"1", *results([False] * count))
            node.sent.clear()
        while job.read in job.chunks:
            job.next_chunk(math.inf)
        job.pull()
    assert sum(ref() is not None for ref in refs) < 100


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(1), ValueError()])
def test_others_hear_of_their_results_when_a_callback_raises_what_its_task_did(caplog, error):
    """That future's other callbacks are still called, and the calls answered by the same message are still settled."""
    node, heard = HandNode(), []
    node.call_bytes = 1
    futures = [node.submit(abs, (-i,), {}) for i in range(9)]
    futures[0].add_done_callback(lambda future: future.result())
    futures[0].add_done_callback(heard.append)
    node.on_HUNGRY(b"1")
    node.give()
    (task_id, _, _, lo, hi, *_), = node.named(b"TASK")
    node.on_RESULT(task_id, lo, hi, b"1", *results([None, *range(1, int(hi))], {0: error}))
    assert int(hi) > 1 and heard == futures[:1] and all(future.done() for future in futures[:int(hi)])
    assert "exception in a callback of" in caplog.text


class Interrupting:
    """Ctrl-C comes while this is pickled, the first time."""

    seen = False

    def __reduce__(self):
        if not self.seen:
            self.seen = True
            raise KeyboardInterrupt
        return int, ()


def test_a_task_is_still_to_be_run_when_ctrl_c_comes_while_it_is_pickled():
    """It is queued again, and the request for it still stands, so that the next attempt ships it."""
    job = HandJob(identity, [Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        given(job)
    assert not job.node.away and not job.node.in_hand and job.node.wanted == 1
    job.node.give()
    assert len(job.node.named(b"TASK")) == 1


class PressesCtrlC:
    """Ctrl-C comes to a process while this is unpickled."""

    def __init__(self, pid):
        self.pid = pid

    def __reduce__(self):
        return os.kill, (self.pid, signal.SIGINT)


def test_no_message_is_lost_when_ctrl_c_comes_while_it_is_handled(pool, tmp_path):
    """KeyboardInterrupt reaches the program where it waits, as in a notebook cell; the result is there afterwards."""
    future = pool.submit(lambda path, pid: [await_file(path), PressesCtrlC(pid)][1:], tmp_path / "go", os.getpid())
    with pytest.raises(KeyboardInterrupt):
        touch(tmp_path / "go")
        future.result(WAIT / 2)
        time.sleep(WAIT)  # if the deputy was quicker to read the result, Ctrl-C may come here
    assert future.result(WAIT / 2) == [None] and list(pool.map(identity, range(5))) == list(range(5))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM, signal.SIGTERM])
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, lambda *_: None])
def test_signals_wait_once_only_when_something_must_be_done_as_a_whole(handler, number):
    """A second one is not deferred, since a callback may never end. What handlers raise must not cut messages short."""
    before, done = signal.signal(number, handler), []
    raises = handler is signal.default_int_handler

    def press(times):
        for _ in range(times):
            signal.raise_signal(number)
        done.append(times)
    twice = minscoop.signals_wait(minscoop.signals_wait(press))
    try:
        for times in 1, 2:
            with pytest.raises(KeyboardInterrupt) if raises else contextlib.nullcontext():
                twice(times)
            assert signal.getsignal(number) is handler
        assert done == [1] if raises else [1, 2]
    finally:
        signal.signal(number, before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_signals_do_not_wait_when_another_thread_has_forked_the_process_amid_a_message():
    """Such as Process.terminate of multiprocessing: nothing would ever handle them there."""
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    fork = multiprocessing.get_context("fork").Process

    def forked():
        child = fork(target=signal.raise_signal, args=(signal.SIGTERM,))
        child.start()
        child.join(WAIT)
        return child.exitcode
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as another:
            assert minscoop.signals_wait(lambda: another.submit(forked).result(WAIT))() == 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_messages_are_not_kept_when_a_signal_has_waited_for_them():
    """A program may have a timer that comes often: what large messages hold is not left to the garbage collector."""
    before, message = signal.signal(signal.SIGALRM, lambda *_: None), threading.Event()
    there = weakref.ref(message)
    gc.disable()
    try:
        minscoop.signals_wait(lambda message: signal.raise_signal(signal.SIGALRM))(message)
        del message
        assert there() is None
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_waits_when_the_root_gives_or_sends(monkeypatch):
    """Otherwise Ctrl-C would leave work in hand for ever, or half a message sent, which would end everything."""
    root, done = VirtualRoot(mock.Mock()), []

    def press(*args):
        signal.raise_signal(signal.SIGINT)
        done.append(args)
        return True
    monkeypatch.setattr(root, "ship", press)
    monkeypatch.setattr(minscoop, "transmit", press)
    job = minscoop.Mapping(root, minscoop.Recipe(identity), [range(9)])
    root.wanted, root.socket = 1, mock.Mock()
    pytest.raises(KeyboardInterrupt, root.give)
    assert len(done) == 1 and not root.in_hand and job.spans
    pytest.raises(KeyboardInterrupt, minscoop.Root.send_all, root, (b"STOP",))
    assert len(done) == 2 and not root.sending


def test_nothing_is_kept_to_be_sent_when_the_pool_has_ended():
    """The progress thread may go on to ask, for the sake of another pool, as long as the program keeps this one."""
    with minscoop.Executor(1) as executor:
        node = executor._node
    node.send(b"COUNT", b"0")
    assert not node.outbox


def test_others_may_sleep_on_the_socket_when_ctrl_c_comes_just_as_one_begins_to():
    """Else nobody would hear of results any more, in a program that catches Ctrl-C, or at a prompt."""
    node = HandNode()
    lock = node.attending

    def get_it(timeout):
        lock.acquire(timeout=timeout)
        raise KeyboardInterrupt
    node.attending = mock.Mock(wraps=lock, acquire=get_it)
    pytest.raises(KeyboardInterrupt, node.listen, bool, 0)
    with concurrent.futures.ThreadPoolExecutor(1) as another:
        assert another.submit(lock.acquire, blocking=False).result(WAIT) and not node.attended


def test_others_may_sleep_on_the_socket_when_ctrl_c_comes_at_any_call():
    """Python raises it as a function begins, for one: also of a function that would let others sleep there."""
    node, calls = HandNode(), itertools.count()

    def trace(frame, event, arg):
        if "minscoop" in frame.f_code.co_filename and next(calls) == wanted:
            raise KeyboardInterrupt
    for wanted in range(100):
        calls, before = itertools.count(), sys.gettrace()
        sys.settrace(trace)
        try:
            node.listen(lambda: True, 0)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        with concurrent.futures.ThreadPoolExecutor(1) as another:
            assert another.submit(node.attending.acquire, blocking=False).result(WAIT) and not node.attended
            another.submit(node.attending.release).result(WAIT)
    assert wanted > 1


def test_other_threads_pull_when_ctrl_c_comes_just_as_one_begins_to():
    """It may be one that waits for something else: whoever reads this map needs its inputs."""
    job = minscoop.Mapping(HandNode(), minscoop.Recipe(identity), [itertools.count()], buffersize=4)
    job.read, lock = 4, job.pulling

    def get_it(blocking):
        lock.acquire(blocking=blocking)
        raise KeyboardInterrupt
    job.pulling = mock.Mock(wraps=lock, acquire=get_it)
    pytest.raises(KeyboardInterrupt, job.pull)
    job.pulling = lock
    with concurrent.futures.ThreadPoolExecutor(1) as another:
        assert another.submit(job.pull).result(WAIT)


def test_results_are_read_as_they_came_when_any_order_will_do():
    """Else the first ones of an endless map would wait for ever, if new ones come faster than they are read."""
    job = minscoop.Mapping(HandNode(), minscoop.Recipe(identity), [range(9)], ordered=False)
    for lo, hi in (6, 9), (0, 2), (3, 6), (2, 3):
        job.deliver(lo, hi - lo, list(range(lo, hi)), {})
    assert list(job.reader(math.inf)) == [6, 7, 8, 0, 1, 3, 4, 5, 2]


def test_a_map_ends_with_an_error_when_ctrl_c_ended_its_generator(monkeypatch):
    """Even if Ctrl-C came amid a wait for something else: the results so far must not pass for the whole map."""
    def inputs():
        yield from range(20)
        raise KeyboardInterrupt
    monkeypatch.setattr(minscoop, "ATTEND", WAIT)  # a slow machine is to pull no fewer items
    node = HandNode()
    job = minscoop.Mapping(node, minscoop.Recipe(abs), [inputs()], buffersize=16)
    job.read = 16
    with pytest.raises(KeyboardInterrupt):
        node.feed()
    job.read = job.pulled
    job.pull()
    assert job.exhausted and job.pulled == 20 and isinstance(job.inputs_error, KeyboardInterrupt)


def test_results_are_sent_later_when_there_is_no_memory_now(monkeypatch):
    """The worker that made them keeps them, and does not send the task's last message without them."""
    node = HandNode(b"0.1")
    node.executes = True
    guest = minscoop.Guest(node, b"0.root:0/0", 0, 4, ())
    guest.recipe, guest.left, guest.outcomes, guest.flushed = minscoop.Recipe(abs), 2, [(0, 2, [*"ab"], {})], -math.inf
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(minscoop, "encode_results", mock.Mock(side_effect=MemoryError))
        guest.flush()
    guest.deliver(2, 2, ["c", "d"], {})
    assert [(lo, count, last) for _, lo, count, last, *_ in node.named(b"RESULT")] == [(b"0", b"4", b"1")]


def test_the_parents_memory_stays_when_a_child_that_was_forked_drops_a_map(tmp_path):
    """Shared memory belongs to the parent: the child must not remove arguments under way, nor the callable."""
    job = HandJob(functools.partial(max, bytes(LARGE)), [LargeBytes(LARGE)])
    job.node.memory = tmp_path
    given(job)
    before = sorted(os.listdir(tmp_path))
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            job.node.disown()
            job.cancel()
            job.recipe = None
            gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(before) == 2 and sorted(os.listdir(tmp_path)) == before
    job.cancel()


def test_a_worker_looks_once_more_what_to_say_when_a_map_is_dropped():
    """It may have nothing left to do, and must then tell its broker that it is idle: else the pool could not end."""
    worker, looks = HandWorker(), []
    job = minscoop.Mapping(worker, minscoop.Recipe(abs), [[1, 2]])
    worker.away[b"0.1:0/0"] = minscoop.Shipment(b"0.1:0/0", worker.queue.pop())  # given to another

    def listen(ready, timeout):
        looks.append(bool(ready()))
        job.cancel()
        looks.append(bool(ready()))
        return True
    worker.listen = listen
    worker.rest()
    assert looks == [False, True] and not worker.named(b"IDLE")
    assert looks == [False, True] and not worker.named(b"IDLE")
    worker.rest()
    assert worker.named(b"IDLE")


def test_a_cancelled_map_recalls_its_own_shipments_only():
    """And it does not search those of all others: every map that was read to its end is cancelled, too."""
    class Away(dict):
        items = values = keys = __iter__ = None
    node = HandNode()
    node.away = Away()
    jobs = [minscoop.Mapping(node, minscoop.Recipe(abs), [[1, 2]]) for _ in range(3)]
    ids = [node.register(node.queue.popleft(), []) for _ in jobs]
    jobs[1].cancel()
    assert node.named(b"CANCEL") == [(ids[1],)] and [task_id in node.away for task_id in ids] == [True, False, True]


def test_nothing_is_missing_when_a_task_was_split_and_split_again():
    """The owner learns of each part, and takes the results of all, in any order."""
    job = HandJob(identity, list(range(9)))
    job.item_bytes, job.node.size = 1, 0.5  # all in one go
    (task_id, *_), = given(job)
    parts = {task_id: (0, 9)}
    for new, (lo, hi), holder in [(b"0.root:0/5", (5, 9), task_id), (b"0.root:0/7", (7, 9), b"0.root:0/5")]:
        job.node.on_SPLIT(holder, b"%d" % lo, b"%d" % hi, new)
        parts[holder], parts[new] = (parts[holder][0], lo), (lo, hi)
    for part, (lo, hi) in reversed(list(parts.items())):
        job.node.on_RESULT(part, b"%d" % lo, b"%d" % (hi - lo), b"1", *results(list(range(lo, hi))))
    assert job.got == {i: i for i in range(9)} and not job.node.away


def test_who_runs_something_unwanted_is_told_when_it_reports():
    """The owner answers SPLIT, or any RESULT but the last, with CANCEL if it no longer knows the task."""
    node = HandNode()
    node.on_SPLIT(b"0.root:3/0", b"4", b"9", b"0.root:3/4")
    node.on_RESULT(b"0.root:5/0", b"0", b"1", b"0", *results([0]))
    assert node.named(b"CANCEL") == [(b"0.root:3/4",), (b"0.root:5/0",)]


def test_only_what_was_lost_runs_again_when_a_holder_dies():
    """Results that are in stay; the items that were running are sent singly; all that was lost avoids that host."""
    job = HandJob(identity, list(range(9)))
    job.item_bytes, job.node.size = 1, 1.5
    (task_id, *_), = given(job)  # items 0 to 5
    job.node.on_RESULT(task_id, b"0", b"2", b"0", *results([0, 1]))
    job.node.on_LOST(task_id, b"2", b"4", b"1", b"7.1 (host h, pid 1) killed")
    again = {(span.lo, span.hi): (span.singly, span.avoid) for span in job.node.queue if not span.stale}
    assert again == {(2, 4): (True, b"7"), (4, 6): (False, b"7"), (6, 9): (False, b"")}


def test_what_is_in_doubt_fails_when_its_holder_dies_amid_a_census_and_nothing_may_run_again():
    """With retries=0: a broker died with the news that a part was given away, which another worker may run by now."""
    job = HandJob(identity, list(range(9)), node=HandNode(size=0.5, retries=0))
    job.item_bytes = 1
    (task_id, *_), = given(job)
    job.node.on_WHO(b"7")
    job.node.on_HELD(b"7", task_id, b"2", b"6")  # the results of 0 and 1 were lost, and the SPLIT of 6 to 8
    job.node.on_LOST(task_id, b"2", b"4", b"1", b"0.1 (host h, pid 1) killed")
    assert [(span.lo, span.hi) for span in job.node.queue if not span.stale] == [(4, 6)]
    assert set(job.got) == {0, 1, 2, 3, 6, 7, 8} and {type(error) for error in job.got.values()} == {WorkerLost}


def test_an_item_fails_alone_when_it_has_killed_enough_workers():
    """The error names the item, and every worker that died over it; the other items go on."""
    job = HandJob(identity, list(range(3)))
    job.item_bytes, job.node.size = 1, 0.5
    given(job, 1)
    for death in range(3):
        tasks = {int(task[3]): task[0] for task in job.node.named(b"TASK")}
        for item, task_id in tasks.items():
            if task_id in job.node.away and job.node.away[task_id].open[0][0] <= 1 < job.node.away[task_id].open[0][1]:
                job.node.on_LOST(task_id, b"1", b"2", b"1", b"0.%d (host h, pid 4711) exit code 9" % death)
                break
        job.node.on_HUNGRY(b"3")
        job.node.give()
    assert list(job.got) == [1] and isinstance(job.got[1], WorkerLost)
    text = str(job.got[1])
    assert "item 1" in text and "identity" in text and text.count("pid 4711") == 3 and "exit code 9" in text


def test_the_innocent_are_not_blamed_when_they_only_waited():
    """A task that was lost while it waited in a queue may be lost any number of times."""
    job = HandJob(identity, [5])
    given(job)
    for _ in range(10):
        job.node.on_LOST(job.node.named(b"TASK")[-1][0], b"0", b"0", b"1", b"0.1 (host h, pid 1) killed")
        job.node.on_HUNGRY(b"1")
        job.node.give()
    assert job.got == {} and len(job.node.away) == 1


def test_an_error_without_words_is_told_when_nothing_else_explains_it():
    """Here the second attempt at pickling, which is to find the culprit, succeeds, and so explains nothing."""
    def moody():
        moods = iter([grumble])
        return At(pickling=lambda: next(moods, int)())
    job = HandJob(identity, [moody()])
    given(job)
    assert isinstance(job.got[0], CannotSend) and "Wordless whose str" in str(job.got[0])
    with pytest.raises(CannotSend, match="Wordless whose str"):
        job.node.set_const({"moody": moody()})


def test_a_constant_keeps_its_file_when_another_part_of_it_comes_back_uncopied(tmp_path):
    """A large frame comes back as a buffer that is neither bytes nor equal to the frame that was sent."""
    node = HandNode()
    node.memory, node.send_all = str(tmp_path), lambda message: node.on_CONST(message[1], message[2], *(
        Large(frame) if len(frame) > 1000 else frame for frame in message[3:]))
    node.set_const({"table": (b"x" * minscoop.OUT_OF_BAND, pickle.PickleBuffer(bytearray(minscoop.SHARED)))})
    assert len(os.listdir(tmp_path)) == 1 and len(node.get_const("table", 0)[1]) == minscoop.SHARED


def test_a_constant_is_not_said_again_when_ctrl_c_ends_the_wait_for_it():
    """No census may have it sent again, since nobody awaits its answer any more."""
    node = HandNode()
    with mock.patch.object(node, "wait_for", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        node.set_const({"a": 1})
    assert node.sent and not node.unanswered


def test_what_was_lost_with_a_broker_is_counted_when_it_runs_again():
    """Items that a census finds lost count as retried, just as those lost with a worker."""
    node = HandNode()
    span = HandJob(identity, range(9)).span
    node.away[b"0.root:0/0"] = shipment = minscoop.Shipment(b"0.root:0/0", span)
    node.on_WHO(b"1")
    node.on_HELD(b"1", b"0.root:0/0", b"0", b"4")
    node.on_TOLD(b"1")
    assert node.retried == 5 and shipment.open == [(0, 4)]


def test_nothing_goes_unasked_when_there_are_no_workers_yet():
    """With --listen, hosts may be yet to join: a task given now would come straight back, again and again."""
    root = VirtualRoot(mock.Mock())
    root.size = 0
    root.submit(abs, (1,), {})
    assert not root.called_for() and not root.away and len(root.queue) == 1


def test_a_line_is_tagged_once_when_it_has_other_marks_in_it(capsys):
    """A carriage return, as of progress bars, or a form feed ends no line."""
    root = VirtualRoot(mock.Mock())
    root.options["tag_output"], root.decoders = True, {}
    root.on_OUTPUT(b"0.1", b"out", "1 %\r2 %\f3 %\u2028\n\n4 %".encode())
    assert capsys.readouterr().out == "".join(f"{NODE} 0.1: {line}" for line in ("1 %\r2 %\f3 %\u2028\n", "\n", "4 %"))


# -- A pool of several hosts in virtual time: real brokers and nodes, a network and a clock of our own


class VirtualRoot(minscoop.Root):
    """A root without keeper and socket."""

    def __init__(self, world):
        self.world, self.hosts, self.closing, self.ended = world, {}, False, False
        self.options = {"all_hosts": False, "check": True, "tag_output": False}
        minscoop.Node.__init__(self, minscoop.ROOT, 1, 99)
        self.send(b"HELLO")

    def send_all(self, *messages):
        for frames in messages:
            self.world.post(self.name, b"0", frames)

    def step(self):
        self.serve()


class VirtualWorker(minscoop.Worker):
    """A worker without process and socket."""

    def __init__(self, world, name):
        self.world = world
        super().__init__(name, dict(total=1, retries=99, name="", profile=None, address=None), bytearray(4096))
        self.holder.ident = threading.get_ident()
        self.send(b"HELLO")

    def send_all(self, *messages):
        for frames in messages:
            self.world.post(self.name, minscoop.host_of(self.name), frames)

    def step(self):
        """The loop of ``Worker.work``, once round."""
        self.serve()
        unit = None if self.stopped.is_set() else self.take(None, None)
        if self.stopped.is_set():
            self.send(b"BYE")
            self.world.bury(self.name, left=True)
        elif unit is not None:
            self.world.active = self
            self.run(unit)
        elif not self.feed(beyond=not self.waiting):
            self.rest()


class World:
    """Hosts 0, 1 and 2 with one, two and two workers. Messages of one sender to one receiver keep their order; all
    else, when each arrives and who does what when, is chance. Stands in for the module `time`."""

    def __init__(self, seed):
        self.chance, self.now, self.ticked, self.active = random.Random(seed), 0.0, 0.0, None
        self.ways = collections.defaultdict(collections.deque)  # (from, to) -> messages
        self.cut, self.nodes, self.numbers, self.done = set(), {}, itertools.count(3), []
        self.brokers = {b"0": minscoop.Broker(b"0", 1)}
        self.brokers.update((host, minscoop.Broker(host, 2)) for host in (b"1", b"2"))
        self.root = self.nodes[minscoop.ROOT] = VirtualRoot(self)
        for host in b"1", b"2":
            facts = host_facts(host.decode(), python="3", transport="none", address=None)
            self.brokers[host].facts = facts
            self.post(host, b"0", [b"HELLO", facts])
        for name in b"0.1", b"1.1", b"1.2", b"2.1", b"2.2":
            self.nodes[name] = VirtualWorker(self, name)

    def monotonic(self):
        return self.now

    perf_counter = monotonic

    def post(self, sender, receiver, frames):
        self.ways[sender, receiver].append([bytes(frame) for frame in frames])

    def open_ways(self):
        return [way for way, messages in self.ways.items() if messages and not set(way) <= {b"0", *self.cut}]

    def step(self):
        """A message arrives, or a node does something; time passes, much of it if there is nothing to hear."""
        self.now += 1e-4
        ways = self.open_ways()
        choice = self.chance.choice(ways + list(self.nodes))
        if isinstance(choice, tuple):
            self.arrive(*choice, self.ways[choice].popleft())
        else:
            self.nodes[choice].step()
        if self.now - self.ticked > minscoop.HEARTBEAT or not ways and self.chance.random() < 0.01:
            self.now = self.ticked = max(self.now, self.ticked + minscoop.HEARTBEAT)
            for host, broker in list(self.brokers.items()):
                self.spread(host, broker.tick(self.now))

    def arrive(self, sender, receiver, frames):
        if receiver in self.brokers:
            name = minscoop.UP if sender == b"0" else b"" if b"keeper" in sender else sender
            self.spread(receiver, self.brokers[receiver].handle(name, frames, self.now))
        elif receiver in self.nodes:
            self.nodes[receiver].inbox.append(frames)

    def spread(self, host, messages):
        """Send what a broker has said. One that has finished says BYE, and its host ends."""
        for receiver, frames in messages:
            self.post(host, b"0" if receiver == minscoop.UP else receiver, frames)
        if self.brokers[host].finished and host != b"0":
            self.post(host, b"0", [b"BYE"])
            self.lose(host)

    def bury(self, name, left=False):
        """A worker ends; some of its last messages may be lost. Its keeper says what it was running, and starts another
        unless it left because it was told to."""
        worker, host = self.nodes.pop(name), minscoop.host_of(name)
        while not left and self.ways[name, host] and self.chance.random() < 0.5:
            self.ways[name, host].pop()
        _, begun, task_id, lo, hi = minscoop.running(worker.marker)
        self.post(host + b".keeper", host, [b"DIED", name, task_id, lo, hi, b"1", begun, name + b" died"])
        if not left:
            fresh = b"%s.%d" % (host, next(self.numbers))
            self.nodes[fresh] = VirtualWorker(self, fresh)

    def lose(self, host):
        """The broker and the workers of a host end at once; its gateway says so. Some last words may be lost."""
        stopped = self.brokers.pop(host).finished
        for name in [name for name in self.nodes if minscoop.host_of(name) == host]:
            del self.nodes[name]
        for sender, receiver in list(self.ways):
            if minscoop.host_of(sender) == host != sender or minscoop.host_of(receiver) == host:
                del self.ways[sender, receiver]
        while not stopped and self.ways[host, b"0"] and self.chance.random() < 0.5:
            self.ways[host, b"0"].pop()
        self.post(b"0.keeper", b"0", [b"HOST", host_facts(host.decode(), "gone", reason="why")])
        self.post(b"0.keeper", b"0", [b"DIED", host, b"", b"0", minscoop.ALL, b"0", b"0", b""])

    def replace(self, host):
        """A broker dies; messages to it are lost, and some of those that it sent arrive. Another takes over, to which
        everybody connects anew."""
        heirs = {name: minscoop.running(worker.marker)[2] for name, worker in self.nodes.items()
                 if minscoop.host_of(name) == host and worker is not self.root}
        neighbours = [name for name in [*self.nodes, *self.brokers] if minscoop.host_of(name) == host != name
                      or host == b"0" != name and name in self.brokers]
        if host == b"0":
            heirs.update((name, b"") for name in neighbours if name not in [*heirs, b"2"])  # 2 has joined
        for sender, receiver in list(self.ways):
            if receiver == host and not sender.endswith(b".keeper"):
                del self.ways[sender, receiver]
            while sender == host and self.ways[sender, receiver] and self.chance.random() < 0.5:
                self.ways[sender, receiver].pop()
        broker = minscoop.Broker(host, self.brokers[host].own_size, heirs)
        self.brokers[host] = broker
        if broker.below:
            facts = host_facts(host.decode(), python="3", transport="none", address=None)
            broker.facts = facts
            self.post(host, b"0", [b"HELLO", facts])
            self.post(host, b"0", [b""])
        for name in neighbours:
            self.post(name, host, [b""])

    def until(self, condition, blow=lambda: None):
        """Go on until a condition holds."""
        for _ in range(100_000):
            if condition():
                return
            blow()
            self.step()
        pytest.fail("the pool stands still")

    def quiet(self):
        """Whether nothing is under way, and the root has all that it wants."""
        return self.root.quiet() and not self.open_ways()


def spawn(item):
    """A task that makes others, and waits for none of them."""
    for child in range(item % 3):
        World.current.active.submit(note_child, (item, child), {})
    World.current.now += World.current.chance.random() / 1e3
    return item * item


def note_child(item, child):
    World.current.done.append((item, child))


BLOWS = {  # name: (chance at each step, how often at most, what happens)
    "peace": (0, 0, None),
    "workers die": (0.005, 8, lambda world: world.bury(world.chance.choice(list(world.nodes)[1:]))),  # not the root
    "a host dies": (0.001, 1, lambda world: world.lose(world.chance.choice([b"1", b"2"]))),
    "the top broker dies": (0.002, 5, lambda world: world.replace(b"0")),
    "a broker below dies": (0.002, 5, lambda world: world.replace(world.chance.choice([b"1", b"2"]))),
    "brokers and workers die": (0.005, 9, lambda world: world.bury(world.chance.choice(list(world.nodes)[1:]))
                                if world.chance.random() < 0.5 else
                                world.replace(world.chance.choice([*world.brokers]))),
    "a cable is cut": (0.001, 1, lambda world: world.cut.add(world.chance.choice([b"1", b"2"]))),
}


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("blow", BLOWS)
def test_every_item_has_its_result_when_hosts_work_together(monkeypatch, blow, seed):
    """Whatever arrives when, and whoever is lost: results are right, brokers forget what is done, and all hosts end."""
    world = World.current = World(seed)
    monkeypatch.setattr(minscoop, "time", world)
    chance, left_, happens = BLOWS[blow]

    def strike():
        nonlocal left_
        if left_ and world.chance.random() < chance:
            left_ -= 1
            happens(world)
    maps = [(n, world.root.map(spawn, [range(n)], {})) for n in (1, 30, 300)]
    calls = [world.root.submit(spawn, (i,), {}) for i in range(9)]
    total = world.root.map(spawn, [range(100)], {}, op=operator.add)
    world.until(world.quiet, strike)
    assert [list(results) for n, results in maps] == [[i * i for i in range(n)] for n, _ in maps]
    assert [call.result(0) for call in calls] == [i * i for i in range(9)]
    assert sum(total) == sum(i * i for i in range(100))
    for host, broker in world.brokers.items():
        assert {name for link in broker.links.values() for name in link.held} == set(broker.placed)
        assert host in world.cut or "broker" in blow or not any(task.startswith(b"0.root") for task in broker.placed)
    world.root.send(b"STOP")
    world.until(lambda: world.brokers[b"0"].finished)
    assert set(world.brokers) <= {b"0"} | world.cut and not world.brokers[b"0"].placed
    if blow == "peace":
        children = collections.Counter((i, j) for n in (1, 30, 300, 9, 100) for i in range(n) for j in range(i % 3))
        assert collections.Counter(world.done) == children


# -- A root and a worker, driven by hand


class HandWorker(VirtualWorker):
    """A worker that has got a task; what it would send is written down."""

    send_all, named, open, initialise = HandNode.send_all, HandNode.named, mock.Mock(), mock.Mock()

    def __init__(self, *items):
        self.sent, HandWorker.current = [], self
        super().__init__(None, b"0.1")
        self.on_TASK(b"0.root:0/0", b"", b"0", b"0", b"%d" % len(items), b"0", minscoop.Recipe(identity).encode(),
                     *minscoop.dumps([items]))


def test_the_root_waits_when_another_thread_handles_messages(monkeypatch):
    """The pool must not end before that thread has called their callbacks, and whoever waits for it must not spin."""
    root, rests = VirtualRoot(mock.Mock()), []
    root.inbox.append([b"SIZE", b"7"])
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        other.submit(root.serving.acquire).result(WAIT)
        assert not root.quiet()
        monkeypatch.setattr(threading.Event, "wait", lambda event, timeout: rests.append(timeout))
        root.sleep(lambda: bool(rests), None, 9)
        assert (rests, root.size) == ([minscoop.TICK], 1)
        other.submit(root.serving.release).result(WAIT)
    root.sleep(lambda: True, None, 9)
    assert root.quiet() and (len(rests), root.size) == (1, 7)


def test_calls_go_unasked_when_all_workers_have_something_else():
    """Also if they got that only after the calls were made. A few calls go at a time; the next, when one is done."""
    root, sent = VirtualRoot(mock.Mock()), []
    root.size, root.send_all = 2, lambda *messages: sent.extend(frames for frames in messages if frames[0] == b"TASK")
    root.handle([b"HUNGRY", b"1"])
    job = minscoop.Mapping(root, minscoop.Recipe(identity), [range(100)])
    futures = [root.submit(identity, (0,), {})]
    assert len(sent) == 1 and len(root.queue) == 2  # a worker that is not HUNGRY may still have no work
    root.handle([b"HUNGRY", b"1"])
    assert len(sent) == 3 and not root.queue
    futures += [root.submit(identity, (i,), {}) for i in range(1, 10)]
    assert len(root.calls_away) == 3 and len(job.shipments) == 2
    for frames in iter(lambda: sent.pop(2) if sent[2:] else None, None):
        for i in range(int(frames[4]), int(frames[5])):
            last = b"%d" % (i == int(frames[5]) - 1)
            root.handle([b"RESULT", frames[1], b"%d" % i, b"1", last, *results([i])])
        assert len(root.calls_away) == min(3, sum(not future.done() for future in futures))
    assert all(future.done() for future in futures) and root.wanted == 0


@pytest.mark.parametrize("lost", [0, 1])
def test_lost_items_are_shared_out_evenly_when_they_are_given_again(lost):
    """Wherever in the map they are: each of two workers gets half of them."""
    root, sent = VirtualRoot(mock.Mock()), []
    root.size, root.send_all = 2, lambda *messages: sent.extend(frames for frames in messages if frames[0] == b"TASK")
    minscoop.Mapping(root, minscoop.Recipe(identity), [range(1000)])
    root.handle([b"HUNGRY", b"2"])
    assert [(int(frames[4]), int(frames[5])) for frames in sent] == [(0, 500), (500, 1000)]
    root.handle([b"LOST", sent[lost][1], b"0", b"0", b"0", b"0.1 died"])
    root.handle([b"HUNGRY", b"2"])
    assert [int(frames[5]) - int(frames[4]) for frames in sent[2:]] == [250, 250]


def test_no_input_is_taken_when_the_pool_is_about_to_end():
    """A thread that reads a map without end would go on to feed the pool, which never would be quiet."""
    root = VirtualRoot(mock.Mock())
    root.closing = True
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        minscoop.Mapping(root, minscoop.Recipe(identity), [itertools.count()])
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        root.submit(identity, (1,), {})


def test_a_worker_waits_when_another_thread_handles_messages(monkeypatch):
    """It leaves the interpreter to that thread, instead of spinning."""
    worker, looks = HandWorker(0), []
    worker.take(None, None)
    worker.inbox.append([b"SIZE", b"7"])
    monkeypatch.setattr(worker.stopped, "wait", looks.append)
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        other.submit(worker.serving.acquire).result(WAIT)
        worker.sleep(lambda: False, None, 9)
        other.submit(worker.serving.release).result(WAIT)
    assert len(looks) == 1 and worker.size == 1
    worker.sleep(lambda: False, None, 9)
    assert len(looks) == 1 and worker.size == 7


def test_a_character_is_whole_when_it_comes_in_two_parts(capsys):
    """Each stream of each worker is decoded by itself, across messages; invalid bytes are replaced."""
    root = VirtualRoot(mock.Mock())
    root.decoders = {}
    for worker, stream, data in ("1", "out", b"1\xe2\x82"), ("2", "out", b"2\xff\xc3"), ("1", "err", b"\xc3"), \
            ("1", "out", b"\xac"), ("2", "out", b"\xa9"), ("1", "err", b"\xa4\n"):
        root.on_OUTPUT(f"0.{worker}".encode(), stream.encode(), data)
    assert tuple(capsys.readouterr()) == ("12\ufffd\u20ac\xe9", "\xe4\n")


@pytest.mark.parametrize("how", ["cancelled", "run by those who waited for it"])
def test_nothing_stale_is_run_when_its_turn_comes(how):
    """Guests take turns. What has become stale below the latest one must not be taken: a slice of it may be empty."""
    worker = HandWorker(0, 1, 2)
    for task_id in b"0.root:1/0", b"0.root:2/0":
        worker.on_TASK(task_id, b"", b"0", b"0", b"2", b"0", minscoop.Recipe(identity).encode(),
                       *minscoop.dumps([[1, 2]]))
    worker.begin_guest(worker.take(None, None))
    if how == "cancelled":
        worker.on_CANCEL(b"0.root:1/0")
    else:
        span, = (unit for unit in worker.queue if unit.job.id == b"0.root:1/0")
        span.lo = span.hi
    piece = worker.take(None, None)
    assert (piece.job.id, piece.lo, piece.hi) == (b"0.root:2/0", 0, 1)


def cancel_own_task(how):
    """A callable whose task is cancelled while it runs, by its owner or by whoever reads its results."""
    piece, = HandWorker.current.holder.slices
    piece.began.append(how)
    if how == "owner":
        HandWorker.current.on_CANCEL(b"0.root:1/0")
    else:
        piece.job.cancel()


@pytest.mark.parametrize("how", ["owner", "reader"])
def test_a_slice_ends_when_its_task_is_cancelled(how):
    """Its other items were run to the end, unless others wanted work meanwhile."""
    worker = HandWorker(0)
    worker.on_TASK(b"0.root:1/0", b"", b"0", b"0", b"6", b"0", minscoop.Recipe(cancel_own_task).encode(),
                   *minscoop.dumps([[how] * 6]))
    span, = (unit for unit in worker.queue if unit.job.id == b"0.root:1/0")
    span.lo, piece = 6, minscoop.Slice(span, 0, 6)
    piece.began = []
    worker.run(piece)
    assert piece.began == [how] and not worker.named(b"RESULT")


def test_a_slice_ends_when_its_map_is_cancelled_and_a_thread_without_the_baton_runs_it():
    """Its other items were run to the end: only slices of the baton's holder were known."""
    worker, began = HandWorker(0), []
    worker.holder.ident = None

    def begin(item):
        began.append(item)
        job.cancel()
    recipe = minscoop.Recipe(begin)
    recipe.grain = 24
    job = minscoop.Mapping(worker, recipe, [range(6)])
    worker.sleep(lambda: job.cancelled, job, WAIT)
    assert began == [0] and not worker.aside


def need_the_next(name, item):
    """An item that waits for a constant, which the one behind it sets."""
    if item == 501:
        minscoop.set_const(**{name: "set"})
    return minscoop.get_const(name, WAIT) if item == 500 else item


def map_in_a_thread(name):
    """A task whose thread reads a map, while the task itself waits for no future."""
    results = []
    thread = threading.Thread(target=lambda: results.extend(minscoop.map(
        functools.partial(need_the_next, name), range(1000))))
    thread.start()
    thread.join(BOUND)
    return results


def test_an_item_can_wait_for_the_next_when_a_thread_of_a_task_reads_their_map():
    """They may be in one slice, of which the items behind one that waits have to go back to the queue."""
    with minscoop.Executor(1) as executor:
        results = executor.submit(map_in_a_thread, "next").result(BOUND)
    assert results == [*range(500), "set", *range(501, 1000)]


@pytest.mark.parametrize("recalled", [False, True])
def test_a_task_of_our_own_that_comes_back_is_dropped_when_it_was_recalled_meanwhile(recalled):
    """CANCEL has not found it on its way. While others of its family are away, it is wanted: its SPLIT may be late."""
    worker = HandWorker(0)
    worker.away.update({b"0.1:31/0": None, **({} if recalled else {b"0.1:3/0": None})})
    worker.on_TASK(b"0.1:3/4", b"", b"0", b"4", b"6", b"0", minscoop.Recipe(identity).encode(),
                   *minscoop.dumps([[1, 2]]))
    assert (b"0.1:3/4" in worker.guests, worker.queue[0].stale) == (not recalled, recalled)


def test_a_task_does_not_count_as_begun_when_one_from_before_a_census_begins():
    """TASKs are counted anew from WHO on: if this worker then dies, only what was HELD may have begun."""
    worker = HandWorker(0)
    worker.on_WHO(b"1")
    worker.on_TASK(b"0.root:1/0", b"", b"0", b"0", b"1", b"0", minscoop.Recipe(identity).encode(),
                   *minscoop.dumps([[1]]))
    for first in b"0.root:0/0", b"0.root:1/0":
        piece = worker.take(None, None)
        worker.begin_guest(piece)
        assert (piece.job.id, worker.begun) == (first, first == b"0.root:1/0")


def test_messages_keep_their_order_when_a_callback_waits_amid_those_that_the_deputy_handles(monkeypatch):
    """It handles what the deputy leaves to others: a RESULT before the SPLIT that announced its task would be lost."""
    worker, handled = HandWorker(0), []
    monkeypatch.setattr(worker, "take_note", lambda message: handled.append(message[0]))
    worker.inbox.extend([[b"SPLIT"], [b"SIZE"], [b"RESULT"], [b"HUNGRY"], [b"LOST"]])
    worker.due.append(mock.Mock(_call_back=lambda: worker.wait_for(lambda: b"RESULT" in handled, None, WAIT)))
    with concurrent.futures.ThreadPoolExecutor(1) as deputy:
        deputy.submit(worker.serve, as_deputy=True).result(WAIT)
    assert handled == [b"SIZE", b"SPLIT", b"RESULT", b"HUNGRY", b"LOST"]


@pytest.mark.parametrize("busy", [False, True])
def test_results_go_when_a_later_item_of_their_task_waits(busy):
    """Whether or not there is other work meanwhile: the item may wait for something that the results' reader does."""
    worker, sent, rests = HandWorker(0, 1), [], []
    piece = worker.take(None, None)
    worker.begin_guest(piece)
    worker.take(None, None)  # the one that will wait
    piece.job.flushed = math.inf  # the first result is held back, to travel with more
    piece.run()
    piece.deliver()
    worker.attend, worker.leave = rests.append, sabotage
    worker.sleep(lambda: False, None, 9)
    assert rests == [minscoop.MAX_FLUSH] and not worker.named(b"RESULT")
    piece.job.flushed = worker.looked = -math.inf
    if busy:
        worker.submit(lambda: (sent.extend(worker.named(b"RESULT")), worker.stopped.set()), (), {})
        pytest.raises(ValueError, worker.work)
    else:
        worker.sleep(lambda: True, None, 9)
    assert [frames[1:4] for frames in (sent if busy else worker.named(b"RESULT"))] == [(b"0", b"1", b"0")]


def test_the_deputy_is_not_disturbed_when_the_last_entry_goes_as_it_looks():
    """Another thread may take that at any moment, unless the lock is held."""
    class Queue(collections.deque):
        def __bool__(self):
            there = len(self) > 0
            if not node.lock._is_owned():
                self.clear()
            return there
    node = HandNode(b"0.1")
    node.queue = Queue([entry := object()])
    node.stand_in()
    assert node.seen == id(entry)


@pytest.mark.parametrize("bad", [0, 63, 127])
def test_what_many_items_refer_to_is_pickled_a_few_times_when_one_of_them_cannot_be_sent(bad):
    """The one to blame is looked for by halving: if all went one by one, each would take the table along."""
    node, table = HandNode(), Reckoned()
    rows = [[i, table] for i in range(128)]
    rows[bad] = LOCK
    node.on_HUNGRY(b"1000")
    job = minscoop.Mapping(node, minscoop.Recipe(identity), [rows])
    node.give()
    sent = [i for _, _, _, lo, hi, *_ in node.named(b"TASK") for i in range(int(lo), int(hi))]
    assert sorted([*sent, bad]) == [*range(128)] and table.asked < 40
    (_, _, failures), = job.chunks.values()
    assert "lock" in str(failures[0])


@pytest.mark.parametrize("count", [10, 1000])
def test_few_looks_are_taken_when_a_worker_has_many_calls_that_cannot_be_sent(monkeypatch, count):
    """They run where they were made, newest first. To find work for others, it must not go through all of them each
    time: to make 10 000 in a task took 16 s, and of the lock others need, too."""
    worker, looks, stale = HandWorker(), [], minscoop.Span.stale.fget
    worker.guests.clear()
    worker.queue.clear()
    worker.on_HUNGRY(b"1")
    monkeypatch.setattr(minscoop.Span, "stale", property(lambda span: looks.append(span) or stale(span)))
    futures = [worker.submit(isinstance, (LOCK, int), {}) for _ in range(count)]
    worker.give(last=True)
    assert worker.wishes(done=True) == [(b"HUNGRY", b"1")]  # it is not IDLE
    for unit in iter(lambda: worker.take(None, None), None):
        worker.run(unit)
    assert [future.result(0) for future in futures] == [False] * count and not worker.named(b"TASK")
    assert len(looks) < 20 * count and worker.wishes(done=True) == [(b"IDLE", b"1")]


def look_around():
    """Amid unpickling an argument, let the deputy hear HUNGRY; return what others could run, and how many DRYs went."""
    worker = HandWorker.current
    worker.inbox.append([b"HUNGRY", b"1"])
    worker.stand_in()
    return worker.take(None, None), len(worker.named(b"DRY"))


def test_nobody_has_the_other_items_when_unpickling_waits():
    """No thread can run them before their arguments are there; but they will be, so the worker must not say DRY."""
    worker = HandWorker(At(unpickling=look_around), *range(1, 9))
    worker.run(worker.take(None, None))
    (_, lo, hi, _), = worker.named(b"SPLIT")
    for unit in iter(lambda: worker.take(None, None), None):
        worker.run(unit)
    sent = [minscoop.read_results(frames[4:], int(frames[2])) for frames in worker.named(b"RESULT")]
    assert [value for values, failures in sent for value in values] == [(None, 0), *range(1, int(lo))] and hi == b"9"


def look_busy(message, seen):
    """Let the deputy stand in while a slice's first item runs; note the slice's end, SPLITs and unhandled messages."""
    worker = HandWorker.current
    worker.inbox.extend([message] if message else ())
    worker.stand_in()
    seen.append((worker.holder.stack[-1].hi, len(worker.named(b"SPLIT")), len(worker.inbox)))


@pytest.mark.parametrize("message, rest", [((), 4), ((b"HUNGRY", b"1"), 1), ((b"HELD", b"1", b"0.1:0/0"), 1),
                                           ((b"TASK", b"0.root:1/0", b"", b"0", b"0", b"9", b"0", b"", b""), 1)],
                         ids=["nothing", "hungry", "for-who-runs", "another-task"])
def test_a_slice_ends_when_there_is_something_better_to_do(message, rest):
    """Others want the items behind the running one; or its thread must handle a message that the deputy may not; or it
    is the turn of another task."""
    seen = []
    worker = HandWorker(*range(4))
    worker.begin_guest(worker.take(None, None))
    span = worker.queue[-1]
    span.lo, span.job.recipe = span.hi, minscoop.Recipe(lambda item: item or look_busy(message, seen))
    worker.run(minscoop.Slice(span, 0, 4))
    assert seen[0] == (rest, message[:1] == (b"HUNGRY",), message[:1] == (b"HELD",))


@pytest.mark.parametrize("pace, grain, asks", [
    (1e-5, 300, True), (1e-5, 4, False), (1e-3, 300, False), (1e-7, 300, False),
], ids=["little-is-left", "one-short-item-says-so", "much-is-left", "it-is-done-at-once"])
def test_more_is_asked_for_before_all_is_done(pace, grain, asks):
    """Early enough for an answer to come in time; but only if the pace was learnt from more than one item."""
    worker, recipe = HandWorker(*range(200)), minscoop.Recipe(identity)
    piece = worker.take(None, None)
    piece.job.recipe, recipe.pace, recipe.grain = recipe, pace, grain
    piece.span.columns = piece.job.columns = [list(range(200))]
    worker.run_slice(piece)
    assert [frames[0] for frames in worker.sent].count(b"HUNGRY") == asks


def test_threads_of_a_worker_switch_soon_when_a_task_computes(pool):
    """Its deputy needs the interpreter's lock several times per answer; Python's own 5 ms each time are too long."""
    assert pool.submit(sys.getswitchinterval).result(WAIT) == pytest.approx(minscoop.SWITCH)


def run_briefly(item):
    """A long item: the deputy cuts the slice behind it."""
    worker = HandWorker.current
    worker.ran.append(item)
    worker.shorten()
    worker.most = max(worker.most, len(worker.queue))


def test_slices_are_run_in_turns_when_several_tasks_came_from_elsewhere():
    """None waits until another is done; and the rest of a slice that was cut keeps its place."""
    worker = HandWorker(*range(4))
    worker.ran, worker.most = [], 0
    for number in 1, 2:
        items = [number * 10 + i for i in range(4)]
        worker.on_TASK(b"0.root:%d/0" % number, b"", b"0", b"0", b"4", b"0",
                       minscoop.Recipe(run_briefly).encode(), *minscoop.dumps([items]))
    for piece in iter(lambda: worker.take(None, None), None):
        worker.run(piece)
        worker.ran.extend(piece.values if piece.job.recipe.fn is identity else ())
        piece.job.recipe.grain = 3
    assert worker.ran == [0, 10, 20, 1, 2, 11, 21, 3, 12, 22, 13, 23] and worker.most == 3


def test_a_worker_ends_when_any_thread_with_the_baton_fails(monkeypatch, capsys):
    """Without that thread the baton would be lost; a worker's death is noticed, and what it held runs again."""
    worker, ends = HandWorker(0), []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(threading, "excepthook", lambda _: ends.append("only the thread"))
    worker.work = sabotage
    worker.find_strand()
    worker.pass_baton()
    assert eventually(lambda: ends) == [1] and "ValueError: sabotage" in capsys.readouterr().err


def test_a_worker_goes_on_when_it_can_have_no_further_thread(monkeypatch):
    """The task that wanted to wait gets the error, and its thread keeps the baton."""
    worker = HandWorker(0)
    me = worker.holder
    me.stack.append(minscoop.Future(worker, (identity, (1,), {}), None))
    monkeypatch.setattr(threading.Thread, "start", grumble)
    pytest.raises(Wordless, worker.wait_for, lambda: False, "what", 1)
    pytest.raises(Wordless, worker.yield_baton)
    assert worker.holder is me and not (worker.waiting or worker.parked or worker.spare_strands or worker.resumable)


def test_only_who_has_the_baton_passes_it_when_a_callback_polls_amid_a_slice(monkeypatch):
    """A task that is about to wait hands over results; a callback of these polls, and so yields the baton."""
    worker, owned, ends = HandWorker(0), [], []
    worker.holder.ident, pass_baton = threading.get_ident(), worker.pass_baton
    worker.leave = lambda: ends.append(threading.get_ident()) or sys.exit()
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(worker, "pass_baton", lambda: (
        owned.append(worker.holder.ident == threading.get_ident()), pass_baton()))
    calls = list, lambda: worker.wait_for(lambda: False, "what", 0.01), list
    futures = [minscoop.Future(worker, (fn, (), {}), None) for fn in calls]
    futures[0].add_done_callback(lambda _: worker.yield_baton())
    job = minscoop.Bundle(worker, list(futures))
    worker.run(minscoop.Slice(minscoop.Span(job, job.columns, 0, 0, 3), 0, 3))
    assert futures[0].done() and futures[1].done() and len(owned) > 1 and all(owned) and worker.waiting == 0
    worker.stopped.set()
    worker.pass_baton()
    assert eventually(lambda: len(ends) == 2)


def test_a_census_goes_on_when_a_file_comes_meanwhile():
    """Whoever waited for the file removes its request from `unanswered`, while the answer to WHO repeats these."""
    worker = HandWorker(0)
    for path in "ab":
        worker.insist(path, b"FETCH", path.encode())
    worker.send_all = lambda *messages: [worker.unanswered.clear() for name, *_ in messages if name == b"FETCH"]
    worker.on_WHO(b"7")
    assert worker.round == b"7" and not worker.unanswered


# ---------------------------------------------------------------------------------------------------
# 9  Root, 10  Worker: real pools


SIZES = [0, 1, 2, 3, 7, 100, 1001]


@pytest.mark.parametrize("size", SIZES)
def test_results_come_in_order_when_a_map_is_read(any_pool, size):
    """map gives the results of the built-in one: for sequences, generators and several iterables, however long."""
    for items in (range(size), list(range(size)), iter(range(size)), (i for i in range(size)), set(range(size)),
                  collections.deque(range(size)), dict.fromkeys(range(size))):
        expected = [(i, i + 1) for i in range(size)]
        assert list(any_pool.map(lambda i: (i, i + 1), items, timeout=WAIT)) == expected
    assert list(any_pool.map(pow, range(size), itertools.repeat(2), timeout=WAIT)) == [i * i for i in range(size)]
    assert list(any_pool.map(left, range(size), "abc", timeout=WAIT)) == list(range(min(3, size)))
    assert sorted(any_pool.map_as_completed(abs, range(-size, 0), timeout=WAIT)) == list(range(1, size + 1))


@pytest.mark.parametrize("size", SIZES)
def test_a_reduction_is_right_when_the_operation_does_not_commute(any_pool, size):
    """map_reduce equals the serial reduction for any associative function; of nothing it is a TypeError."""
    text = "".join(map(str, range(size)))
    for make in (list, iter):
        if size:
            assert any_pool.map_reduce(str, operator.add, make(range(size))) == text
            assert any_pool.map_reduce(lambda *row: row, operator.add, make(range(size)), "ab") == \
                tuple(itertools.chain.from_iterable(zip(range(size), "ab")))
        else:
            pytest.raises(TypeError, any_pool.map_reduce, str, operator.add, make(range(size)))


@pytest.mark.parametrize("wrong", [0, 1, 400, 999])
def test_a_reduction_raises_what_a_call_raises_when_one_does(any_pool, wrong):
    """Wherever the item stands in its slice, and whatever the slices are."""
    with pytest.raises(ZeroDivisionError):
        any_pool.map_reduce(lambda i: 1 // (i - wrong), operator.add, range(1000))
    with pytest.raises(ZeroDivisionError):
        any_pool.map_reduce(lambda i: 1 // (i - wrong), operator.add, iter(range(1000)))


@pytest.mark.parametrize("size", SIZES)
def test_a_scan_is_right_when_it_is_read(any_pool, size):
    """map_scan gives what itertools.accumulate does."""
    assert list(any_pool.map_scan(str, operator.add, range(size))) == \
        list(itertools.accumulate(map(str, range(size)), operator.add))


def test_the_pool_works_in_parallel_when_there_is_work_for_all(pool, tmp_path):
    """Two calls that need each other meet: two submits, two items of a map, two children of a task."""
    def family(directory):
        return [future.result(WAIT) for future in
                [minscoop.submit(meet, directory, 5, 6), minscoop.submit(meet, directory, 6, 5)]]
    assert [future.result(WAIT) for future in
            [pool.submit(meet, tmp_path, 1, 2), pool.submit(meet, tmp_path, 2, 1)]] == [1, 2]
    assert list(pool.map(meet, [tmp_path] * 2, [3, 4], [4, 3], timeout=WAIT)) == [3, 4]
    assert pool.submit(family, tmp_path).result(WAIT) == [5, 6]


def test_input_is_pulled_as_needed_when_it_never_ends(any_pool):
    """An endless map ends with its reader, and does not run far ahead."""
    pulled = itertools.count()
    items = (next(pulled) for _ in itertools.count())
    results = any_pool.map(abs, items)
    assert list(itertools.islice(results, 1000)) == list(range(1000))
    results.close()
    assert next(pulled) < 200_000
    assert list(itertools.islice(any_pool.map(pow, itertools.count(), itertools.repeat(2)), 5)) == [0, 1, 4, 9, 16]


def test_no_more_is_pulled_than_allowed_when_there_is_a_buffersize(any_pool):
    """buffersize, 1 or more, bounds the number of inputs that are pulled ahead of the reader."""
    for size in (1, 3):
        pulled = []
        results = any_pool.map(identity, (pulled.append(i) or i for i in range(50)), buffersize=size)
        for i in range(20):
            assert next(results) == i
            assert len(pulled) <= i + 1 + size
        results.close()


@pytest.mark.parametrize("busy", [False, True])
def test_no_more_is_pulled_than_allowed_when_a_task_waits_for_something_else(guard, tmp_path, busy):
    """A task reads its map only after its wait: meanwhile no thread of its worker may pull beyond the buffersize."""
    def reads_later(directory):
        pulled = []
        results = minscoop.map(identity, (pulled.append(i) or i for i in itertools.count()), buffersize=3)
        call = minscoop.submit(await_file, f"{directory}/go", None, f"{directory}/begun")
        await_file(f"{directory}/begun", None, f"{directory}/waits")  # by the other worker
        call.result(WAIT)
        return len(pulled), [next(results) for _ in range(20)]
    with minscoop.Executor(2) as executor:
        future = executor.submit(reads_later, tmp_path)
        await_file(tmp_path / "waits")
        if busy:
            assert list(executor.map(identity, range(20), timeout=WAIT)) == list(range(20))
        time.sleep(0.2)
        touch(tmp_path / "go")
        assert future.result(WAIT) == (3, list(range(20)))


@pytest.mark.parametrize("make", [
    lambda pool: pool.map(5, [1]), lambda pool: pool.map(abs, 5),
    lambda pool: pool.map(abs, [1], chunksize="a"), lambda pool: pool.map(abs, [1], buffersize=1.5),
    lambda pool: pool.submit(5), lambda pool: pool.submit(), lambda pool: pool.map_reduce(abs, operator.add)])
def test_bad_arguments_are_refused_when_the_call_is_made(any_pool, make):
    """TypeError at once, not at the result."""
    with pytest.raises(TypeError):
        make(any_pool)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_is_run_than_allowed_when_nobody_reads_a_map_with_a_buffersize(guard, workers):
    """Not even at the end, as with the standard library's; without a buffersize, all is done."""
    some, all_of_it = iter(range(40)), iter(range(40))
    with minscoop.Executor(workers) as executor:
        kept = executor.map(identity, some, buffersize=3)
        executor.map(identity, some, buffersize=3)
        executor.map(identity, all_of_it)
    assert (list(some), list(all_of_it), next(kept)) == ([*range(6, 40)], [], 0)


def test_inputs_are_pulled_as_for_a_reader_when_nobody_reads_a_map(monkeypatch):
    """At the end of a run as well: no further ahead of the results, and by larger windows where these come fast."""
    monkeypatch.setattr(minscoop, "ATTEND", WAIT)  # a slow machine is to pull no fewer items
    node = HandNode()
    job = minscoop.Mapping(node, minscoop.Recipe(abs), [itertools.count()])
    first = job.window
    for i in range(1, 6):
        assert job.pulled - job.made == job.window and not node.feed(beyond=True)
        job.deliver(job.made, job.window, [0] * job.window, {})
        job.filled = math.inf  # a moment ago, on a slow machine, too
        assert node.feed(beyond=True) and job.window == first << i and job.read == 0


def test_no_other_map_is_fed_when_inputs_wait(monkeypatch):
    """It might wait for results of the very map whose inputs wait, below it on the stack: map(f, map(g, futures))."""
    monkeypatch.setattr(minscoop, "ATTEND", -1)  # one item for each pull
    node, fed = HandNode(), []

    def inputs():
        for i in range(3):
            yield i
            fed.append(node.feed())  # as a thread does that waits
    first = minscoop.Mapping(node, minscoop.Recipe(str), [inputs()])
    second = minscoop.Mapping(node, minscoop.Recipe(str), [itertools.count()])
    assert first.pull() and fed == [False] and second.pulled == 1
    assert node.feed() and first.pulled == 3 and second.pulled == 2


def wait_for_another(directory):
    """A task that waits, with nothing left to run here, for one that another worker runs."""
    future = minscoop.submit(await_and_sleep, f"{directory}/go", 0.5, f"{directory}/begun")
    touch(f"{directory}/free")
    await_file(f"{directory}/begun")
    return future.result(WAIT)


def await_and_sleep(path, seconds, begun):
    """A task that says that it has begun, and takes a while once a file is there."""
    touch(begun)
    await_file(path)
    time.sleep(seconds)
    return seconds


def map_results(directory):
    """A task whose map has results of other tasks as inputs, and which waits for one of these before it reads."""
    others = [minscoop.submit(await_and_sleep, f"{directory}/free", 0, f"{directory}/{i}") for i in range(2)]
    for i in range(2):  # all other workers are busy
        await_file(f"{directory}/{i}")
    future = minscoop.submit(wait_for_another, directory)

    def inputs():
        time.sleep(10 * minscoop.ATTEND)  # no more than one item at first
        yield 0
        touch(f"{directory}/go")
        yield future.result(WAIT)
    results = minscoop.map(identity, inputs())
    return [future.result(WAIT), *results, *(other.result(WAIT) for other in others)]


def test_a_waiting_task_does_not_pull_inputs_when_another_made_the_map(guard, tmp_path):
    """They may be the result of this task, which would wait for itself."""
    with minscoop.Executor(3) as executor:
        assert executor.submit(map_results, str(tmp_path)).result(WAIT) == [0.5, 0, 0.5, 0, 0]


def test_inputs_are_let_go_when_a_map_with_a_buffersize_is_dropped_unread(guard):
    """Nobody makes room for more of them: else a long run would collect such maps."""
    def inputs():
        try:
            yield from range(40)
        finally:
            ended.append(True)
    ended = []
    with minscoop.Executor(2) as executor:
        executor.map(identity, inputs(), buffersize=3)
        assert ended == [True]
        assert eventually(lambda: executor.submit(identity, 1).result() and not executor._node.sources)


def test_inputs_do_not_end_in_a_child_that_was_forked(guard, tmp_path):
    """A generator that is closed there, too, might remove files that the parent needs."""
    def inputs():
        try:
            yield from itertools.repeat(0.01, 100)
        finally:
            touch(tmp_path / str(os.getpid()))
    with minscoop.Executor(2) as executor:
        executor.map(time.sleep, inputs())
        pid = os.fork()
        if pid == 0:
            gc.collect()
            os._exit(0)
        os.waitpid(pid, 0)
    assert os.listdir(tmp_path) == [str(os.getpid())]


@pytest.mark.parametrize("arguments", [{"chunksize": 0}, {"buffersize": 0}, {"buffersize": -1}])
def test_numbers_are_refused_when_they_cannot_be_meant(any_pool, arguments):
    """ValueError, as the standard library has it."""
    with pytest.raises(ValueError):
        any_pool.map(abs, [1], **arguments)


def test_a_chunksize_is_accepted_when_old_programs_give_one(any_pool):
    """It is only a hint."""
    assert list(any_pool.map(abs, range(-10, 0), chunksize=3)) == list(range(10, 0, -1))


def test_keywords_go_to_the_callable_when_map_does_not_know_them(any_pool):
    """As SCOOP's map has it."""
    def fn(value, *, factor, offset=0):
        return value * factor + offset
    assert list(any_pool.map(fn, [1, 2], factor=3)) == [3, 6]
    assert sorted(any_pool.map_as_completed(fn, [1, 2], factor=3, offset=1)) == [4, 7]
    assert any_pool.map_reduce(fn, operator.add, [1, 2], factor=3) == 9
    assert list(any_pool.map_scan(fn, operator.add, [1, 2], factor=3)) == [3, 9]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_work_is_done_when_nobody_reads_a_map(guard, tmp_path, workers):
    """Leaving the Executor waits for work whose results nobody reads: maps of sequences and generators, and submits."""
    with minscoop.Executor(workers) as executor:
        executor.map(append, [tmp_path / "list"] * 100, range(100))
        executor.map(append, itertools.repeat(tmp_path / "generator"), (i for i in range(100)))
        kept = executor.map(append, (tmp_path / "kept" for _ in range(50)))
        for _ in range(20):
            executor.submit(append, tmp_path / "submit")
    counts = [len(lines_of(tmp_path / name)) for name in ("list", "generator", "kept", "submit")]
    assert counts == [100, 100, 50, 20] and kept is not None


def test_unread_work_inside_a_task_is_done_when_the_task_has_ended(guard, tmp_path):
    """A map or a submit whose task did not wait for it is done before the pool ends."""
    def leave_behind(path):
        minscoop.map(append, [path] * 50)
        minscoop.map(append, (path for _ in range(50)))
        for _ in range(10):
            minscoop.submit(append, path)
    with minscoop.Executor(2) as executor:
        executor.submit(leave_behind, tmp_path / "ran").result(WAIT)
    assert len(lines_of(tmp_path / "ran")) == 110


@pytest.mark.parametrize("how", ["close", "drop", "exception"])
def test_the_rest_is_cancelled_when_a_begun_map_is_left(guard, tmp_path, how):
    """Closing, dropping or breaking off an iterator cancels what has not started; the pool goes on."""
    def work(i):
        append(tmp_path / "ran")
        if i:
            await_file(tmp_path / "go")
        if how == "exception":
            raise ValueError
        return i
    with minscoop.Executor(2) as executor:
        results = executor.map(work, range(1000))
        if how == "exception":
            pytest.raises(ValueError, next, results)
        else:
            assert next(results) == 0
            results.close() if how == "close" else None
        del results
        gc.collect()
        touch(tmp_path / "go")
        assert executor.submit(identity, 1).result(WAIT) == 1
    assert len(lines_of(tmp_path / "ran")) < 900


@pytest.mark.parametrize("kind", ["map", "map_as_completed", "submit", "as_completed"])
@pytest.mark.parametrize("workers", [1, 2])
def test_early_results_arrive_when_later_calls_take_long(guard, tmp_path, workers, kind):
    """What is done is delivered, however long others take; a second worker also runs the calls behind a long one."""
    def work(path, i):
        return await_file(path, i) if i == 2 else i
    with minscoop.Executor(workers) as executor:
        try:
            if "map" in kind:
                results = getattr(executor, kind)(work, [tmp_path / "go"] * 4, range(4), timeout=WAIT)
            else:
                futures = [executor.submit(work, tmp_path / "go", i) for i in range(4)]
                results = (future.result(WAIT) for future in
                           (futures if kind == "submit" else minscoop.as_completed(futures, WAIT)))
            early = {next(results) for _ in range(3 if workers == 2 and "as_completed" in kind else 2)}
            assert 2 not in early
        finally:
            touch(tmp_path / "go")
        assert early | {*results} == {0, 1, 2, 3}


def test_a_short_call_overtakes_when_a_long_one_holds_a_worker(pool, tmp_path):
    """Work queued behind a long call runs elsewhere: the other worker does all of it."""
    long = pool.submit(await_file, tmp_path / "go")
    try:
        assert [pool.submit(identity, i).result(WAIT) for i in range(100)] == list(range(100))
        assert list(pool.map(identity, range(1000), timeout=WAIT)) == list(range(1000))
    finally:
        touch(tmp_path / "go")
    long.result(WAIT)


def burn(path):
    """Compute, without ever calling minscoop, until the file is there."""
    deadline = time.monotonic() + WAIT
    while not os.path.exists(path):
        sum(range(1000))
        if time.monotonic() > deadline:
            raise TimeoutError
    return True


@pytest.mark.parametrize("kind", ["submit", "map", "map of a generator"])
def test_children_run_elsewhere_when_their_parent_computes(pool, tmp_path, kind):
    """A worker deep in a long call still gives away what it has queued (rule 6)."""
    def parent(path):
        if kind == "submit":
            minscoop.submit(touch, path)
            minscoop.submit(identity, 1)
        else:
            minscoop.map(touch, iter([path]) if "generator" in kind else [path])
        return burn(path)
    assert pool.submit(parent, tmp_path / "go").result(WAIT)


WAYS_TO_WAIT = {
    "result": lambda fs: [f.result() for f in fs], "reversed": lambda fs: [f.result() for f in reversed(fs)],
    "wait": lambda fs: minscoop.wait(fs), "std wait": lambda fs: concurrent.futures.wait(fs),
    "as_completed": lambda fs: list(minscoop.as_completed(fs)),
    "std as_completed": lambda fs: list(concurrent.futures.as_completed(fs)),
    "exception": lambda fs: [f.exception() for f in fs]}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_waits_in_any_way_when_it_has_children(guard, workers):
    """Also with one worker, which has to run the children itself meanwhile."""
    def family(depth, way):
        futures = [minscoop.submit(family, depth - 1, way) for _ in range(3)] if depth else []
        WAYS_TO_WAIT[way](futures)
        return 1 + sum(future.result() for future in futures)
    with minscoop.Executor(workers) as executor:
        assert {way: executor.submit(family, 3, way).result(WAIT) for way in WAYS_TO_WAIT} == \
            dict.fromkeys(WAYS_TO_WAIT, 40)


def test_a_parked_task_goes_on_when_what_it_waits_for_is_there(guard):
    """While a task waits, its worker runs unrelated tasks in another thread, which do not keep it from going on."""
    def waits():
        later = minscoop.submit(identity, 1)
        time.sleep(0.1)  # so that the other worker takes it
        return later.result(WAIT)
    with minscoop.Executor(2) as executor:
        futures = [executor.submit(waits) for _ in range(20)]
        assert [future.result(WAIT) for future in futures] == [1] * 20


def test_timeouts_are_real_when_a_task_waits(pool, tmp_path):
    """The timeouts of result and wait hold inside a task, too."""
    def impatient(path):
        future = minscoop.submit(await_file, path, None, f"{path}-begun")
        await_file(f"{path}-begun")  # by the other worker
        try:
            future.result(0.05)
        except TimeoutError:
            return len(minscoop.wait([future], 0.05).not_done)
    try:
        assert pool.submit(impatient, tmp_path / "go").result(WAIT) == 1
    finally:
        touch(tmp_path / "go")


def test_tasks_may_have_threads_when_these_use_the_pool(pool):
    """A thread that a task starts may submit and wait."""
    def threaded():
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda i: minscoop.submit(identity, i).result(WAIT), range(8)))
    assert pool.submit(threaded).result(WAIT) == list(range(8))


def test_programs_run_when_a_task_starts_them(pool):
    """Subprocesses of a task work as anywhere, with their signals and exit codes."""
    def program(code):
        return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=WAIT).returncode
    assert list(pool.map(program, ["import os, sys; sys.exit(7)", "import os; os.kill(os.getpid(), 2)"])) in \
        ([7, -2], [7, 1])


def forks(path, end):
    """Fork a child that returns from the task, or raises an exception there; return its exit code."""
    pid = os.fork()
    if pid == 0:
        append(path)
        return end()
    return os.WEXITSTATUS(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_ends_when_it_comes_back_from_the_task_that_forked_it(guard, tmp_path, capfd):
    """It exits as a program would: it must not go on with the next items, nor with a parent task that waits for it."""
    ends = [lambda: 5, lambda: divide(1), lambda: sys.exit(3), lambda: sys.exit("why")]
    with minscoop.Executor(1) as executor:
        assert list(executor.map(forks, [tmp_path / "map"] * 4, ends, timeout=WAIT)) == [0, 1, 3, 1]
        futures = [executor.submit(forks, tmp_path / "submit", end) for end in ends]
        assert [future.result(WAIT) for future in futures] == [0, 1, 3, 1]
        assert executor.submit(lambda: minscoop.submit(forks, tmp_path / "nested", int).result()).result(WAIT) == 0
        assert executor.map_reduce(forks, operator.add, [tmp_path / "reduce"] * 4, ends) == 5
    counts = [len(lines_of(tmp_path / name)) for name in ("map", "submit", "nested", "reduce")]
    assert counts == [4, 4, 1, 4] and capfd.readouterr().err.count("ZeroDivisionError: division by zero") == 3


def poll(*_):
    """Ask again and again whether a call is done."""
    future = minscoop.submit(time.sleep, 0.01)
    while not future.done():
        time.sleep(1e-3)


def leave_inputs_that_poll():
    minscoop.map(identity, (poll() for _ in range(50)))


def leave_callbacks_that_poll():
    for _ in range(3):
        minscoop.submit(identity, threading.Lock()).add_done_callback(poll)
    time.sleep(0.3)  # the other worker wants these calls, but cannot have them


@pytest.mark.parametrize("task, initializer", [(leave_inputs_that_poll, None), (leave_callbacks_that_poll, None),
                                               (poll, poll)], ids=["inputs", "callbacks", "initializer"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_thread_gets_the_baton_back_when_it_was_no_task_that_polled(guard, workers, task, initializer):
    """Else it goes on to run tasks beside the baton's new holder, and the worker, where a task seems to wait for ever,
    is never done."""
    with minscoop.Executor(workers, initializer=initializer) as executor:
        executor.submit(task).result(WAIT)
        assert list(executor.map(identity, range(100), timeout=WAIT)) == [*range(100)]


def test_user_code_is_not_interrupted_when_tasks_share_a_process(guard):
    """Only one thread of a worker at a time runs user code; another takes over only where a task waits."""
    def careful(i):
        before = CAREFUL[0] = i
        for _ in range(20000):
            pass
        if CAREFUL[0] != before:
            return False
        return i == 0 or all(minscoop.map(careful, [i - 1] * 3))
    with minscoop.Executor(2) as executor:
        assert all(executor.map(careful, [4] * 4, timeout=WAIT))


CAREFUL = [None]


def test_constants_are_everywhere_when_they_were_set_once(guard, tmp_path):
    """In the root, in tasks, and on workers that join later; functions and lambdas included."""
    with minscoop.Executor(2) as executor:
        executor.set_const(number=3, fn=lambda x: x + FOUR)
        assert executor.get_const("number") == 3 and executor.get_const("fn")(1) == 5
        use = lambda i: minscoop.get_const("fn")(minscoop.get_const("number", timeout=WAIT)) + i
        assert list(executor.map(use, range(20), timeout=WAIT)) == [7 + i for i in range(20)]
        executor.submit(kill_once, tmp_path / "killed").result(WAIT)
        executor.submit(kill_once, tmp_path / "killed too").result(WAIT)
        assert list(executor.map(use, range(20), timeout=WAIT)) == [7 + i for i in range(20)]
        executor.submit(minscoop.set_const, late="by a task").result(WAIT)
        assert executor.get_const("late", timeout=WAIT) == "by a task"


FOUR = 4


def test_a_constant_is_refused_when_it_exists(any_pool):
    """Setting a name again raises TypeError, wherever that is done; a name that nobody has set reads as None."""
    name = f"once{random.random()}"
    any_pool.set_const(**{name: 1})
    with pytest.raises(TypeError, match="once"):
        any_pool.set_const(**{name: 2})
    with pytest.raises(TypeError, match="once"):
        any_pool.submit(minscoop.set_const if any_pool._node.size else any_pool.set_const, **{name: 3}).result(WAIT)
    assert any_pool.get_const(name) == 1
    assert any_pool.get_const("nobody", timeout=0.01) is None


def test_a_constant_that_cannot_be_sent_is_refused_when_it_is_set(pool):
    """CannotSend, with the culprit."""
    with pytest.raises(CannotSend, match="constant 'bad'.*lock"):
        pool.set_const(bad=[LOCK])


# -- What goes wrong: who dies, and what then happens


def test_a_lost_task_runs_again_when_its_worker_is_killed(guard, tmp_path):
    """Submits, items of a map and of a reduction, and children, however the worker dies."""
    def nested(path):
        return minscoop.submit(kill_once, path).result(WAIT)
    with minscoop.Executor(2) as executor:
        assert executor.submit(kill_once, tmp_path / "a").result(WAIT) == "survived"
        assert executor.submit(kill_once, tmp_path / "b", die).result(WAIT) == "survived"
        assert set(executor.map(kill_once, [tmp_path / "c"] * 50, timeout=WAIT)) == {"survived"}
        assert executor.map_reduce(kill_once, left, [tmp_path / "d"] * 50) == "survived"
        assert executor.submit(nested, tmp_path / "e").result(WAIT) == "survived"
        assert list(executor.map(identity, range(100), timeout=WAIT)) == list(range(100))


def test_a_task_fails_when_it_has_killed_as_many_workers_as_allowed(guard, tmp_path):
    """After `retries` deaths its future says what ran, where, and how it died; it ran no more often."""
    def deadly(path):
        append(path)
        kill()
    for retries in (1, 3):
        with minscoop.Executor(1, retries=retries) as executor:
            with pytest.raises(WorkerLost) as caught:
                executor.submit(deadly, tmp_path / str(retries)).result(WAIT)
            assert executor.submit(identity, 1).result(WAIT) == 1
        text = str(caught.value)
        assert "deadly" in text and text.count("SIGKILL") >= retries and text.count("pid ") == retries
        assert os.uname().nodename in text and len(lines_of(tmp_path / str(retries))) == retries


def test_the_neighbours_have_their_results_when_a_task_kills_its_workers(guard):
    """Only the guilty call fails, among those submitted and mapped at the same time."""
    def maybe(i):
        return die() if i == 13 else i
    with minscoop.Executor(2) as executor:
        futures = [executor.submit(maybe, i) for i in range(30)]
        got = {i: future.exception(WAIT) or future.result() for i, future in enumerate(futures)}
        assert isinstance(got.pop(13), WorkerLost) and got == {i: i for i in range(30) if i != 13}
        results = executor.map(maybe, range(30), timeout=WAIT)
        assert [next(results) for _ in range(13)] == list(range(13))
        with pytest.raises(WorkerLost, match="item 13 of the map"):
            next(results)


@linux_only
def test_results_are_right_when_workers_are_killed_at_random(guard):
    """Whatever a worker was doing: the same results, each once."""
    def tree(depth):
        time.sleep(0.001)
        return 1 if depth == 0 else 1 + sum(minscoop.map(tree, [depth - 1] * 2))

    def slow(i):
        time.sleep(0.002)
        return i
    chance, stop = random.Random(1), threading.Event()

    def murder(executor):
        for _ in range(50):  # not for ever: on a busy machine none would live long enough
            if stop.wait(0.15):
                return
            workers = workers_of(executor)
            kill_all(chance.sample(workers, min(1, len(workers))))
    with minscoop.Executor(3, retries=1000) as executor:
        thread = threading.Thread(target=murder, args=(executor,))
        thread.start()
        try:
            assert list(executor.map(slow, range(1000), timeout=WAIT)) == list(range(1000))
            assert executor.map_reduce(slow, operator.add, range(300)) == 44850
            futures = [executor.submit(slow, i) for i in range(300)]
            assert [future.result(WAIT) for future in futures] == list(range(300))
            assert executor.submit(tree, 4).result(WAIT) == 31
        finally:
            stop.set()
            thread.join()


@linux_only
@pytest.mark.parametrize("victim", ["keeper", "broker"])
def test_nothing_waits_for_ever_when_the_machinery_is_killed(guard, tmp_path, victim):
    """Without broker or keeper a call has its result all the same, or a PoolError that says what happened."""
    executor = minscoop.Executor(2)
    waiting = executor.submit(await_file, tmp_path / "go", "done", tmp_path / "started")
    await_file(tmp_path / "started")
    keeper = executor._node.keeper.pid
    kill_all([keeper] if victim == "keeper" else children_of(keeper)[:1])
    touch(tmp_path / "go")
    error = waiting.exception(WAIT)
    assert error is None or isinstance(error, PoolError) and str(keeper) in str(error)
    with contextlib.suppress(PoolError):
        executor.submit(identity, 1).result(WAIT)
    abort(executor)


def test_the_pool_stays_whole_when_an_idle_worker_dies(guard, tmp_path):
    """A fresh worker replaces one that nobody needed."""
    with minscoop.Executor(2) as executor:
        executor.submit(identity, 1).result(WAIT)
        if LINUX:
            eventually(lambda: len(workers_of(executor)) == 2)
            before = workers_of(executor)
            kill_all(before)
            assert eventually(lambda: len(set(workers_of(executor)) - set(before)) == 2)
        pair = [executor.submit(meet, tmp_path, 1, 2), executor.submit(meet, tmp_path, 2, 1)]
        assert [future.result(WAIT) for future in pair] == [1, 2]


@linux_only
@pytest.mark.parametrize("noise", [[b""], [b"", b"", b""], [b"HELLO"], [b"TASK", b"x"], [b"HELLO", b"more"],
                                   [pickle.dumps(SystemExit)], [b"RESULT", b"0.root:0/0", b"0", b"1", b"1", b"x"],
                                   [b"DIED", b"0.1", b"", b"0", b"0", b"1", b"0", b"x"], [b"STOP"], [b"BYE"],
                                   [b"x" * 1_000_000],
                                   [b"HUNGRY", b"99"]], ids=lambda noise: repr(noise)[:30])
def test_a_stranger_is_ignored_when_it_talks_to_the_broker(pool, noise):
    """Bytes from a process that is not of the pool are dropped; the pool goes on."""
    zmq = pytest.importorskip("zmq")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.connect(pool._node.address)
        assert stranger.poll(1000 * WAIT)  # the broker says that they are connected
        stranger.send_multipart(noise)  # all of it, before the block ends
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(pool._node.address[len("ipc://"):])
        raw.send(b"GET / HTTP/1.0\r\n\r\n" + bytes(1000))
        assert list(pool.map(identity, range(50), timeout=WAIT)) == list(range(50))


# -- Saboteurs: what they do, at which stage, crossed with how they are called


class At:
    """Does something when it is pickled, or when it is unpickled."""

    def __init__(self, pickling=None, unpickling=None):
        self.pickling, self.unpickling = pickling, unpickling

    def __reduce__(self):
        if self.pickling:
            self.pickling()
        return call, (self.unpickling,)


def call(fn):
    return fn()


def sabotage():
    raise ValueError("sabotage")


def raise_(error, *args):
    raise error(*args)


def interrupt():
    raise KeyboardInterrupt("sabotage")


def stall(_=None):
    time.sleep(0.1)


def recurse(x=None):
    return recurse(x)


def make_lock(_):
    return threading.Lock()


def make_nest(_=None):
    """A list in a list in a list..., too deep for pickle."""
    nest = []
    for _ in range(100_000):
        nest = [nest]
    return nest


class Wordless(Exception):
    def __str__(self):
        raise ValueError("no words")

    __repr__ = __str__


def grumble(*_):
    raise Wordless


class Lockmaker:
    __repr__ = Wordless.__str__

    def __call__(self, _):
        return threading.Lock()


def make_at(pickling=None, unpickling=None):
    return lambda _: At(pickling, unpickling)


ANY = (Exception, SystemExit, KeyboardInterrupt)
SABOTEURS = {  # what goes wrong -> (callable, how its argument is made, the error, its text)
    "callable cannot be pickled": (lambda x, lock=LOCK: x, int, CannotSend, "lock"),
    "callable object cannot be pickled": (functools.partial(left, LOCK), int, CannotSend, "lock"),
    "callable raises at unpickling": (functools.partial(left, At(unpickling=sabotage)), int, CannotSend, "sabotage"),
    "argument cannot be pickled": (identity, lambda: threading.Lock(), CannotSend, "argument 1.*lock"),
    "argument raises at pickling": (identity, lambda: At(pickling=sabotage), CannotSend, "sabotage"),
    "argument raises without words at pickling": (identity, lambda: At(pickling=grumble), CannotSend, "Wordless"),
    "argument raises without words at unpickling": (identity, lambda: At(unpickling=grumble), CannotSend, "Wordless"),
    "argument exits at pickling": (identity, lambda: At(pickling=sys.exit), ANY, ""),
    "argument is nested too deep": (identity, make_nest, ANY, "recursion|depth|overflow"),
    "argument raises at unpickling": (identity, lambda: At(unpickling=sabotage), CannotSend, "sabotage"),
    "argument exits at unpickling": (identity, lambda: At(unpickling=sys.exit), ANY, ""),
    "argument interrupts at unpickling": (identity, lambda: At(unpickling=interrupt), ANY, ""),
    "argument recurses at unpickling": (identity, lambda: At(unpickling=recurse), CannotSend, "recursion"),
    "argument ends the process at unpickling": (identity, lambda: At(unpickling=die), WorkerLost, "exit code 9"),
    "argument kills the process at unpickling": (identity, lambda: At(unpickling=kill), WorkerLost, "SIGKILL"),
    "call raises": (divide, lambda: 1, ZeroDivisionError, "division"),
    "call exits": (lambda x: sys.exit(x), lambda: 7, SystemExit, "7"),
    "call interrupts": (lambda x: interrupt(), int, KeyboardInterrupt, "sabotage"),
    "call stops an iteration": (lambda x: raise_(StopIteration, "early"), int, (StopIteration, RuntimeError), ""),
    "call exits a generator": (lambda x: raise_(GeneratorExit, "early"), int, GeneratorExit, "early"),
    "call recurses without end": (recurse, int, RecursionError, "recursion"),
    "call ends its process": (lambda x: die(x), lambda: 9, WorkerLost, "exit code 9"),
    "call ends its process well": (lambda x: die(x), lambda: 0, WorkerLost, "exit code 0"),
    "call kills its process": (lambda x: kill(), int, WorkerLost, "SIGKILL"),
    "exception cannot be pickled": (lambda x: raise_(Locked, "sabotage"), int, TaskError, "Locked.*sabotage"),
    "exception cannot be unpickled": (lambda x: raise_(Refusing, 1, 2), int, TaskError, "Refusing.*1 and 2"),
    "exception has other arguments": (lambda x: raise_(Picky, 1, 2), int, Picky, "1 and 2.*on worker 0.*Picky"),
    "exception carries something bad": (lambda x: raise_(ValueError, "bad", At(pickling=sabotage)), int, TaskError,
                                        "bad"),
    "result cannot be pickled": (make_lock, int, CannotSend, "result.*lock"),
    "result raises at pickling": (make_at(pickling=sabotage), int, CannotSend, "sabotage"),
    "result of what has no words cannot be pickled": (Lockmaker(), int, CannotSend, "result.*lock"),
    "result raises without words at pickling": (make_at(pickling=grumble), int, CannotSend, "Wordless"),
    "result raises without words at unpickling": (make_at(unpickling=grumble), int, CannotSend, "Wordless"),
    "result exits at pickling": (make_at(pickling=sys.exit), int, ANY, ""),
    "result is nested too deep": (make_nest, int, ANY, "recursion|depth|overflow"),
    "result raises at unpickling": (make_at(unpickling=sabotage), int, CannotSend, "sabotage"),
    "result exits at unpickling": (make_at(unpickling=sys.exit), int, ANY, ""),
    "result ends the process at pickling": (make_at(pickling=die), int, WorkerLost, "exit code 9"),
    "result is a generator": (lambda x: (i for i in range(x)), int, CannotSend, "result.*generator"),
    "result is a future": (lambda x: minscoop.submit(identity, x), int, CannotSend, "result"),
    "exception ends the process at pickling": (lambda x: raise_(ValueError, At(pickling=die)), int, WorkerLost, ""),
    "exception ends the process at unpickling": (lambda x: raise_(ValueError, At(unpickling=die)), int, WorkerLost, ""),
    "exception exits at unpickling": (lambda x: raise_(ValueError, At(unpickling=sys.exit)), int, TaskError, "Value"),
    "exception stalls at both": (lambda x: raise_(ValueError, At(stall, stall)), int, ValueError, ""),
    "callable stalls at both": (functools.partial(left, At(stall, stall)), int, (), ""),
    "argument stalls at both": (identity, lambda: At(stall, stall), (), ""),
    "call stalls": (stall, int, (), ""),
    "result stalls at both": (make_at(stall, stall), int, (), ""),
}


def run_child(name, wait=0, many=False):
    """Run a child where it was made, which needs no pickling; or elsewhere, if `wait` gives others time to take it."""
    fn, make, _, _ = SABOTEURS[name]
    if many:
        result = list(minscoop.map(fn, [make()] * 3))
    else:
        future = minscoop.submit(fn, make())
        assert eventually(future.done, wait) or not wait
        result = future.result(WAIT)
    return result if name.startswith("result") else "harmless"


WAYS = {
    "submit": lambda pool, name, fn, make: pool.submit(fn, make()).result(WAIT),
    "map": lambda pool, name, fn, make: list(pool.map(fn, [make()] * 3, timeout=WAIT)),
    "map_reduce": lambda pool, name, fn, make: pool.map_reduce(fn, left, [make()] * 3),
    "nested": lambda pool, name, fn, make: pool.submit(run_child, name).result(WAIT),
    "nested, elsewhere": lambda pool, name, fn, make: pool.submit(run_child, name, wait=WAIT).result(WAIT),
    "nested map": lambda pool, name, fn, make: pool.submit(run_child, name, many=True).result(WAIT),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SABOTEURS)
def test_the_right_error_is_at_the_right_future_when_something_is_sabotaged(pool, name, way):
    """The future has the expected error; what is called before, beside and after it goes well.

    A child may run where it was made: a fault in its pickling, or in that of its result, then does no harm
    there, but the result still fails when the parent hands it on."""
    fn, make, error, text = SABOTEURS[name]
    beside = [pool.submit(identity, i) for i in range(4)]
    try:
        result = WAYS[way](pool, name, fn, make)
    except error as caught:
        assert re.search(text, f"{caught}\n{minscoop.text_of(caught.__cause__)}", re.S)
        assert not isinstance(caught, TimeoutError)
    else:
        assert error == () or result == "harmless" and name.startswith(("callable", "argument"))
    assert [future.result(WAIT) for future in beside] == [0, 1, 2, 3]
    assert list(pool.map(identity, range(10), timeout=WAIT)) == list(range(10))


VANDALS = {  # what a task does to its process -> code of it
    "closes stdout": "sys.stdout.close()",
    "closes stdin, stdout and stderr": "[os.close(i) for i in range(3)]",
    "deletes stdout": "sys.stdout = sys.stderr = None",
    "blocks signals": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))",
    "ignores signals": "[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]",
    "leaves a thread": "threading.Thread(target=time.sleep, args=(1000,)).start()",
    "leaves an exit handler": "import atexit; atexit.register(time.sleep, 1000)",
    "changes directory": "os.chdir('/')",
    "forgets modules": "sys.modules.pop('minscoop', None); sys.modules.pop('zmq', None)",
    "switches off collection": "gc.disable()",
    "leaves the process group": "os.setsid()",
    "sets an alarm": "signal.alarm(1); time.sleep(1.2)",
    "changes the environment": "os.environ.clear()",
    "closes every file": "os.closerange(3, 1000)",
    "lowers the recursion limit": "sys.setrecursionlimit(60)",
    "leaves a child": "subprocess.Popen(['sleep', '0.5'])",
}

VANDALISM = """
import gc, os, signal, subprocess, sys, threading, time
from minscoop import futures

def vandalise(code):
    exec(code)
    return "done"

def fine(x):
    return x

if __name__ == "__main__":
    future = futures.submit(vandalise, sys.argv[1])
    print(type(future.exception()).__name__)
    print(sum(futures.map(fine, range(100))))
"""


@in_groups(VANDALS, 4)
def test_the_program_ends_well_when_a_task_spoils_its_process(script, names):
    """Whatever a task does to the process that it runs in: a result or an error, and a clean end."""
    path = script(VANDALISM)
    for done in launch_together([("-n", 2, "-q", path, VANDALS[name]) for name in names]):
        outcome, total = done.stdout.split()
        assert (total, done.returncode) == ("4950", 0), done
        assert outcome in ("NoneType", "WorkerLost", "TaskError", "RecursionError"), done


@pytest.mark.skipif(numpy is None, reason="needs NumPy")
def test_small_arrays_keep_their_byte_order(pool):
    """As large ones do: files of many instruments have the other order, and `tobytes` and `view` show it."""
    for kind in ">i4", "<i4", ">f8", "<f8":
        array = numpy.arange(3, dtype=kind)
        assert pool.submit(identity, array).result(WAIT).dtype == array.dtype
        assert [result.dtype for result in pool.map(identity, [array, array])] == [array.dtype] * 2


def test_what_a_call_had_is_let_go_of_when_it_raises(script):
    """Without the garbage collector, which may not come for a long time: it does not know how large objects are."""
    assert output_of("-n", 1, script("""
        import gc, time, weakref
        from minscoop import futures
        class Thing:
            def __init__(self): alive.add(self)
        class Unreadable:
            def __reduce__(self): return fail, (0,)
        alive = weakref.WeakSet()
        def fail(x):
            thing = Thing()
            raise ValueError(x)
        def count(): return len(alive)
        def ok(x): return x
        def kept():
            for _ in range(500):  # others of the map may just be running
                number = futures.submit(count).result()
                if not number: break
                time.sleep(0.01)
            return number
        if __name__ == "__main__":
            futures.submit(gc.disable).result()
            for call in (lambda: futures.submit(fail, 1).result(), lambda: list(futures.map(fail, range(3))),
                         lambda: futures.submit(ok, Unreadable()).result(),
                         lambda: futures.map_reduce(fail, max, range(9))):
                try: call()
                except Exception as error: print(type(error).__name__, kept())
    """)) == "ValueError 0\nValueError 0\nCannotSend 0\nValueError 0\n"


# ---------------------------------------------------------------------------------------------------
# 11  Keeper: what is left, what is open


@linux_only
def test_no_port_is_open_when_a_pool_runs(pool):
    """All sockets of all processes are local, and have a name in the pool's own directory or none."""
    pool.submit(identity, 1).result(WAIT)
    inodes = set()
    for pid in [os.getpid(), *processes_of(SHARED)]:
        for link in glob.glob(f"/proc/{pid}/fd/*"):  # none, if the process has just ended
            with contextlib.suppress(OSError):
                inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
    assert len(inodes) >= 4
    for table in ("tcp", "tcp6", "udp", "udp6"):
        with contextlib.suppress(FileNotFoundError):
            rows = [line.split() for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
            assert not inodes & {row[9] for row in rows}
    rows = [line.split() for line in pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]]
    names = {row[7] for row in rows if row[6] in inodes and len(row) > 7}
    assert names == {pool._node.address[len("ipc://"):]}


@pytest.mark.parametrize("limit, workers, code", [("-n 20", 2, 1), ("-S -n 48", 16, 0)], ids=["hard", "soft"])
def test_a_clear_message_is_given_when_there_are_few_descriptors(script, limit, workers, code):
    """Otherwise libzmq aborts. The soft limit is raised to the hard one for the broker, which needs one per worker."""
    done = finish(subprocess.Popen(
        ["sh", "-c", f"ulimit {limit}; exec \"$@\"", "sh", sys.executable, MINSCOOP, "-n", str(workers), script("""
            from minscoop import futures
            if __name__ == "__main__":
                print(sum(futures.map(abs, range(100))))
        """)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert (done.returncode, done.stdout) == (code, "" if code else "4950\n")
    assert re.fullmatch(r"minscoop: .* descriptors .*ulimit -n\n" if code else "", done.stderr), done.stderr


def test_the_remedy_is_named_when_no_more_processes_can_be_started(script, tmp_path):
    """As under `ulimit -u`, or a container's limit. The keeper forks the broker, and then the workers."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent("""
        import errno, os
        def limited(fork=os.fork, left=iter(range(2))):
            for _ in left:
                return fork()
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        os.fork = limited
    """))
    done = launch("-n", 2, script("raise SystemExit(__import__('minscoop').submit(abs, 1).result())"),
                  env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.match(r"minscoop: .*Resource temporarily unavailable: .*ulimit -u", done.stderr), done.stderr


@pytest.mark.parametrize("early", [False, True])
def test_the_pool_goes_on_when_the_program_has_taken_all_descriptors(script, early):
    """The root needs no more of them; if its socket has not connected by then, it gets the spare one."""
    assert output_of("-n", 1, script(f"""
        import os, resource
        from minscoop import futures
        if __name__ == "__main__":
            {early} or futures.submit(abs, 1).result()
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
            try:
                while True: os.dup(0)
            except OSError:
                print(futures.submit(len, bytes(1 << 20)).result(), len(futures.submit(bytes, 1 << 20).result()))
    """)) == "1048576 1048576\n"


def test_nobody_else_can_read_the_sockets_when_a_pool_runs(pool):
    """The directory has mode 0700 and belongs to the user."""
    directory = os.path.dirname(pool._node.address[len("ipc://"):])
    status = os.stat(directory)
    assert status.st_mode & 0o777 == 0o700 and status.st_uid == os.getuid()


def test_a_pool_starts_when_the_temporary_directory_has_a_long_path(tmp_path, monkeypatch):
    """A socket's path may have 108 bytes; another directory is taken where that is not enough."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with minscoop.Executor(1) as executor:
        directory = os.path.dirname(executor._node.address[len("ipc://"):])
        assert executor.submit(identity, 1).result(WAIT) == 1
    assert not os.path.exists(directory)


def test_sockets_are_elsewhere_when_others_may_replace_what_is_in_the_temporary_directory(monkeypatch):
    """Without the sticky bit, others can rename our directory, and have new workers connect to sockets of theirs."""
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as parent:
        monkeypatch.setattr(tempfile, "tempdir", parent)
        for mode in 0o777, 0o1777:
            os.chmod(parent, mode)
            directory = minscoop.make_socket_directory()
            os.rmdir(directory)
            assert (os.path.dirname(directory) == parent) == (mode == 0o1777)


@pytest.mark.parametrize("variables", [
    {"TMPDIR": "/tmp/" + "x" * 200}, {"TMPDIR": "/nowhere"}, {"HOME": "/nowhere"}, {"HOME": "/proc"},
    *[{"TMPDIR": "/tmp/caf\udce9"}] * LINUX], ids=str)  # macOS makes no such name
def test_a_pool_starts_when_a_directory_is_not_as_it_should_be(script, variables):
    """Too long, not in UTF-8, missing, or read-only: there is another, or none is needed."""
    with contextlib.ExitStack() as stack:
        if variables.get("TMPDIR", "").startswith("/tmp/"):
            os.mkdir(variables["TMPDIR"])
            stack.callback(os.rmdir, variables["TMPDIR"])
        assert output_of("-n", 1, "-c", "import minscoop; print(minscoop.submit(abs, -1).result())",
                         env={**os.environ, **variables}) == "1\n"


@linux_only
@pytest.mark.parametrize("options", ["size=64k", "nr_inodes=2", "ro"])
def test_a_pool_starts_when_the_temporary_directory_is_full(guard, options):
    """Another one is taken if it has no space or no inodes left, or is read-only."""
    if os.getuid() or not shutil.which("unshare"):
        skip_or_fail("mounting needs root and unshare")
    done = finish(subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o {options} none $TMPDIR || exit 9; "
         "head -c 100000 /dev/zero >$TMPDIR/fill; exec \"$@\" 2>&1", "sh", sys.executable, MINSCOOP, "-n", "1", "-c",
         "import minscoop; print(minscoop.submit(abs, -1).result())"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True))
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_descriptors_are_given_back_when_executors_end(guard):
    """A program may open pools as often as it likes."""
    def use():
        with minscoop.Executor(1) as executor:
            executor.submit(identity, 1).result(WAIT)

    def count():
        gc.collect()
        return len(os.listdir("/dev/fd"))
    use()
    before = count()
    for _ in range(3):
        use()
    assert count() <= before


WORK = """
import re, sys, time
from minscoop import futures

def sleep(path): touch(path); time.sleep(1000)
def compute(path):
    touch(path)
    while True: pass
def hold(path):  # a call into C that keeps the interpreter's lock
    touch(path); re.match("(a*)*b", "a" * 40)
def touch(path): open(path, "w").close()
def nested(path):
    return [f.result() for f in [futures.submit(sleep, path), futures.submit(time.sleep, 1000)]]
def unread(path):
    futures.map(sleep, [path] * 100)

if __name__ == "__main__":
    kind, path = sys.argv[1:3]
    if len(sys.argv) > 3:
        touch(path); exec(sys.argv[3])
    else:
        futures.submit(globals()[kind], path).result()
"""


@linux_only
@pytest.mark.parametrize("victim, kind", [
    *(("root", kind) for kind in ("sleep", "compute", "hold", "nested", "unread")),
    *itertools.product(["keeper", "broker"], ["sleep", "hold"])])
def test_nothing_is_left_when_a_process_is_killed(guard, script, tmp_path, kind, victim):
    """kill -9 of the root, whatever the workers do: no process, file or socket after two seconds.

    Without its keeper or broker the program either goes on or ends with a message."""
    process = start(MINSCOOP, "-n", 2, script(WORK), kind, tmp_path / "working")
    await_file(tmp_path / "working")
    keeper, = children_of(process.pid)
    pid = {"root": process.pid, "keeper": keeper, "broker": children_of(keeper)[0]}[victim]
    os.kill(pid, signal.SIGKILL)
    if victim != "root" and not eventually(lambda: process.poll() is not None, 5):
        os.kill(process.pid, signal.SIGKILL)  # it goes on, with another broker
    left = eventually_none(lambda: [p for p in processes_of(os.environ["MINSCOOP_TEST"]) if p != process.pid or
                                    process.poll() is None], two_seconds())
    commands = [command_of(pid) for pid in left]
    kill_all(left)
    done = finish(process)
    assert not left, commands
    assert not os.listdir(guard)
    if victim == "root":
        assert done.returncode == -signal.SIGKILL
    elif done.returncode != -signal.SIGKILL:
        assert done.returncode == 1 and done.stderr.count("Traceback") <= 1 and str(keeper) in done.stderr


WAITS = {
    "map": "list(futures.map(time.sleep, [1000] * 9))",
    "result": "futures.submit(time.sleep, 1000).result()",
    "wait": "futures.wait([futures.submit(time.sleep, 1000)])",
    "std wait": "import concurrent.futures; concurrent.futures.wait([futures.submit(time.sleep, 1000)])",
    "reduction": "futures.map_reduce(time.sleep, max, [1000] * 9)",
    "sleep": "f = futures.submit(hold, path); time.sleep(1000)",
    "loop": "f = futures.submit(compute, path)\nwhile True: pass",
    "the end": "futures.submit(time.sleep, 1000)",
    "the end of a map": "futures.map(time.sleep, [1000] * 9)",
}


@in_groups(WAITS, 3)
def test_nothing_is_left_when_ctrl_c_ends_a_program(guard, script, tmp_path, names):
    """KeyboardInterrupt wherever the script is, one traceback, the exit code of SIGINT, nothing left."""
    path = script(WORK)
    processes = {name: start(MINSCOOP, "-n", 2, path, "", tmp_path / name, WAITS[name]) for name in names}
    for name in names:
        await_file(tmp_path / name)
    time.sleep(0.3)
    for process in processes.values():
        os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal does
    for name, process in processes.items():
        done = finish(process)
        assert done.returncode == -signal.SIGINT and done.stderr.count("Traceback") <= 1, done
        if "end" not in name:
            assert done.stderr.rstrip().endswith("KeyboardInterrupt") and "program.py" in done.stderr, done
    assert not eventually_none(lambda: processes_of(os.environ["MINSCOOP_TEST"]), two_seconds())
    assert not os.listdir(guard)


def test_the_program_goes_on_when_it_catches_ctrl_c(script, tmp_path):
    """The script may handle KeyboardInterrupt, and use the pool afterwards."""
    process = start(MINSCOOP, "-n", 2, script(WORK), "", tmp_path / "working", """
try:
    for _ in futures.map(time.sleep, [0.5] * 100): touch(path + "-on")
except KeyboardInterrupt:
    print(sum(futures.map(abs, range(-10, 0))))
""")
    await_file(tmp_path / "working-on")
    os.killpg(process.pid, signal.SIGINT)
    done = finish(process)
    assert (done.returncode, done.stdout, done.stderr) == (0, "55\n", "")


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)])
def test_nothing_is_left_when_another_signal_ends_a_program(guard, script, tmp_path, signum, code):
    """SIGTERM as batch systems send it, SIGHUP as a closing terminal does."""
    process = start(MINSCOOP, "-n", 2, script(WORK), "sleep", tmp_path / "working")
    await_file(tmp_path / "working")
    os.kill(process.pid, signum)
    done = finish(process)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert not eventually_none(lambda: processes_of(os.environ["MINSCOOP_TEST"]), two_seconds())
    assert eventually(lambda: not os.listdir(guard), two_seconds())


# A task writes begun-PID to a directory, waits until go is there, and returns its pid. A second argument names a signal
# that the program handles.
MEET = """
    import os, signal, sys, time
    from minscoop import futures
    def meet(directory):
        open(f"{directory}/begun-{os.getpid()}", "w").close()
        while not os.path.exists(f"{directory}/go"): time.sleep(0.01)
        return os.getpid()
    if __name__ == "__main__":
        if sys.argv[2:]:
            signal.signal(int(sys.argv[2]), lambda *_: print("handled"))
        print(futures.submit(meet, sys.argv[1]).result())
"""


@pytest.mark.parametrize("signum", [signal.SIGQUIT, signal.SIGUSR2])
def test_the_pool_goes_on_when_the_program_handles_a_signal_to_all(guard, script, tmp_path, signum):
    """Ctrl-\\ at a terminal, or the notice of a batch system, reaches every process; one that does not handle it ends,
    and nothing is left."""
    path = script(MEET)
    for handled in (True, False):
        directory = tmp_path / str(handled)
        directory.mkdir()
        process = start(MINSCOOP, "-n", 1, path, directory, *[int(signum)] * handled)
        assert eventually(lambda: list(directory.glob("begun-*")))
        os.killpg(process.pid, signum)
        if handled:
            touch(directory / "go")
        done = finish(process)
        worker, = directory.glob("begun-*")
        assert (done.returncode, done.stdout, done.stderr) == (
            (0, f"handled\n{worker.name[len('begun-'):]}\n", "") if handled else (-signum, "", ""))
    assert not eventually_none(lambda: processes_of(os.environ["MINSCOOP_TEST"]), two_seconds())
    assert eventually(lambda: not os.listdir(guard), two_seconds())


def test_another_host_goes_on_when_a_signal_comes_to_all_processes_there(ssh, script, tmp_path):
    """As Slurm sends it to all steps of a job: --signal=USR2@60, say."""
    def parent(pid):
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    process = start(MINSCOOP, "--hosts", "good:1", script(MEET), tmp_path)
    assert eventually(lambda: list(tmp_path.glob("begun-*")))
    worker = int(next(tmp_path.glob("begun-*")).name[len("begun-"):])
    keeper = parent(worker)
    agent = parent(keeper)
    for pid in agent, keeper, worker:
        for signum in (signal.SIGUSR2, signal.SIGQUIT, *[signal.SIGUSR1] * (pid == agent)):
            os.kill(pid, signum)
    touch(tmp_path / "go")
    done = finish(process)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{worker}\n", "")


@pytest.mark.parametrize("first, then", [("SIGTERM", "SIGHUP"), ("SIGHUP", "SIGTERM"), ("SIGTERM", "SIGTERM")])
def test_a_program_cleans_up_when_another_signal_follows_the_first(script, tmp_path, first, then):
    """As systemd and closing terminals send them; the report is written, and the exit code is that of the first."""
    done = launch("-n", 1, "--report", tmp_path / "run.html", script(f"""
        import os, signal, time
        if __name__ == "__main__":
            try:
                os.kill(os.getpid(), signal.{first})
                time.sleep(40)
            finally:
                os.kill(os.getpid(), signal.{then})
                print("cleaned up")
    """))
    assert (done.returncode, done.stdout, done.stderr) == (128 + getattr(signal, first), "cleaned up\n", "")
    assert (tmp_path / "run.html").read_text()


def test_a_program_ends_when_a_signal_comes_while_a_callback_works(script):
    """What a callback raises is logged, but SIGTERM is meant for the program: it would not be raised again."""
    done = launch("-n", 1, script("""
        import os, signal, time
        from minscoop import futures
        if __name__ == "__main__":
            future = futures.submit(time.sleep, 0.5)
            future.add_done_callback(lambda _: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(1)))
            future.result()
            time.sleep(40)
    """))
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "", "")


def test_a_program_ends_by_a_later_signal_when_it_has_swallowed_the_first(script):
    """As a bare `except:` does, which is meant for an error of what it guards: no signal must be without effect."""
    done = launch("-n", 1, script("""
        import minscoop, os, signal, time
        def come():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        if __name__ == "__main__":
            minscoop.GRACE = 0  # as if the second came later
            try: come()
            except: print("swallowed")
            come()
    """))
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "swallowed\n", "")


def test_nothing_is_lost_when_the_terminal_goes_under_nohup(script, tmp_path):
    """SIGHUP comes to the whole process group: keeper, broker and workers must ignore it, as the program does."""
    path = script(MEET)
    process = start("-c", "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
                    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])", MINSCOOP, "-n", 1, path, tmp_path)
    assert eventually(lambda: list(tmp_path.glob("begun-*")))
    os.killpg(process.pid, signal.SIGHUP)
    touch(tmp_path / "go")
    done = finish(process)
    assert (done.returncode, done.stderr) == (0, "")
    assert [f"begun-{done.stdout.strip()}"] == [path.name for path in tmp_path.glob("begun-*")]


def test_a_death_is_noticed_when_the_program_blocks_signals(script, tmp_path):
    """A program that waits for signals in a thread blocks them; keeper and workers must not inherit that."""
    assert python("-c", textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(HERE)!r})
        import minscoop
        def die_once(path):
            if not os.path.exists(path):
                open(path, "w").close()
                os._exit(3)
            return "again"
        if __name__ == "__main__":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            with minscoop.Executor(1) as executor:
                print(executor.submit(die_once, sys.argv[1]).result(20))
    """), tmp_path / "died").stdout == "again\n"


@pytest.mark.parametrize("encoding, seen", [("latin-1", "\xe9 \\u20ac"), ("ascii", "\\xe9 \\u20ac")])
def test_what_tasks_print_is_seen_when_the_terminal_has_not_all_characters(script, encoding, seen):
    """Output reaches the root as UTF-8; characters that the terminal lacks are escaped there, as on Python's stderr."""
    path = script("""
        from minscoop import futures
        def say(_): print("\xe9 \u20ac")
        if __name__ == "__main__": futures.submit(say, 1).result()
    """)
    path.write_text(path.read_text(), "utf-8")
    process = start(MINSCOOP, "-n", 1, "--tag-output", path, text=False,
                    env={**os.environ, "PYTHONIOENCODING": encoding})
    out, err = process.communicate(b"", WAIT)
    assert out.decode("latin-1").partition(": ")[2] == f"{seen}\n" and err == b""


@linux_only
def test_the_reason_is_told_when_a_script_cannot_be_imported_whose_path_is_no_text(script, tmp_path):
    """The path contains bytes that are not UTF-8, as file names from other systems may."""
    directory = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(directory)
    path = os.fsdecode(directory + b"/program.py")
    shutil.copy(script("""
        from minscoop import futures
        def use(x): return x
        if __name__ == "__main__": futures.submit(use, 1).result()
        else: raise ValueError("not here")
    """), path)
    done = launch("-n", 1, path)
    assert done.returncode == 1 and done.stderr.count("ValueError: not here") == 1 and "cannot import" in done.stderr


def test_no_limit_is_met_when_many_workers_print_into_pipes(script):
    """The keeper needs two descriptors per worker and raises its soft limit for them; workers keep the given one."""
    done = finish(subprocess.Popen(
        ["sh", "-c", "ulimit -S -n 48; exec \"$@\"", "sh", sys.executable, MINSCOOP, "-n", "16", "--tag-output",
         script("""
            import resource
            from minscoop import futures
            def limit(_): return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            if __name__ == "__main__":
                print(set(futures.map(limit, range(100))))
        """)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert (done.returncode, done.stdout, done.stderr) == (0, "{48}\n", "")


def ends_of_stdout():
    """The descriptors of this process for either end of the pipe into which it prints."""
    def is_end(descriptor):
        with contextlib.suppress(OSError):  # the one by which listdir read the list is closed by now
            return os.path.sameopenfile(descriptor, 1)
    return list(filter(is_end, map(int, os.listdir("/dev/fd"))))


def test_only_the_frames_of_tasks_are_shown_when_stacks_are_asked_for(monkeypatch):
    """Neither ours, outside and between them, nor the deputy's. Where minscoop.py is may not be ASCII: faulthandler
    escapes that. If there are no tasks, all is shown, since then we may be at fault."""
    monkeypatch.setattr(minscoop, "__file__", "/home/j\xf6rg \u20ac/minscoop.py")

    def stack(thread, *frames):
        return "\n".join([f"{thread} (most recent call first):", *(f'  File "{path}", line 1 in f' for path in frames)])
    ours = r"/home/j\xf6rg \u20ac/minscoop.py"
    task = stack("Thread 1", "/u/child.py", "/lib/threading.py", "/u/task.py")
    deputy = stack("Thread 2", ours, "/lib/threading.py")
    whole = stack("Thread 1", "/u/child.py", "/lib/threading.py", ours, ours, "/u/task.py", ours, "<string>")
    assert minscoop.of_tasks(f"{deputy}\n\n{whole}") == task
    assert minscoop.of_tasks(deputy) == deputy and "no stacks" in minscoop.of_tasks("")


@linux_only
def test_a_worker_has_no_end_to_read_when_it_prints_into_pipes(guard):
    """When the pool is gone, a child that a task left behind gets SIGPIPE if it prints; it does not block for ever."""
    with minscoop.Executor(2, tag_output=True) as executor:
        assert [executor.submit(ends_of_stdout).result(WAIT) for _ in range(4)] == [[1]] * 4


def test_a_keeper_ends_silently_when_the_root_is_gone_before_it_has_said_all():
    """A configuration with many hosts does not fit into a pipe: the root may be killed while it waits for room."""
    done = python("-c", "import minscoop; minscoop.Keeper.main()", stdin='{"host": ')
    assert (done.returncode, done.stderr) == (0, "")


@linux_only
def test_a_pool_starts_when_there_is_no_proc(guard):
    """Nor the list of descriptors in /dev/fd, which leads there."""
    if os.getuid() or not shutil.which("unshare"):
        skip_or_fail("mounting needs root and unshare")
    done = finish(subprocess.Popen(
        ["unshare", "-m", "sh", "-c", "umount -l /proc || exit 9; exec \"$@\" 2>&1", "sh", sys.executable, MINSCOOP,
         "-n", "1", "-c", "import minscoop; print(minscoop.submit(abs, -1).result())"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True))
    assert (done.returncode, done.stdout) == (0, "1\n")


# ---------------------------------------------------------------------------------------------------
# 12  Other hosts


# -- A fake ssh: each way in which a host can fail, with OpenSSH's words; no network needed

KEX, CALL = "kex_exchange_identification: ", "ssh: connect to host {host} port 22: "
SSH_FAILURES = {  # how a host's name begins: what ssh says (exit code 255), what the user has to be told, and advised
    "unknown": ("ssh: Could not resolve hostname {host}: Name or service not known", "unknown name", "spelling"),
    "nodns": ("ssh: Could not resolve hostname {host}: Temporary failure in name resolution", "names", "network"),
    "refused": (CALL + "Connection refused", "refused", "sshd"),
    "timeout": (CALL + "Connection timed out", "no answer", "VPN"),
    "noroute": (CALL + "No route to host", "no route", "switched on"),
    "newkey": ("Host key verification failed.", "host key is unknown", "'ssh me@newkey'"),
    "otherkey": ("@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@@\n"
                 "Host key for {host} has changed and you have requested strict checking.\n"
                 "Host key verification failed.", "host key has changed", "ssh-keygen -R otherkey"),
    "nokey": ("{user}@{host}: Permission denied (publickey,password).", "no key was accepted", "ssh-copy-id me@nokey"),
    "startups": (KEX + "Connection closed by remote host\nConnection closed by 192.0.2.1 port 22",
                 "hung up", "MaxStartups"),
    "resets": (KEX + "read: Connection reset by peer\nConnection reset by 192.0.2.1 port 22", "hung up", "MaxStartups"),
    "gate": ("channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed\n" + KEX +
             "Connection closed by remote host\nConnection closed by UNKNOWN port 65535", "jump host", "'ssh me@gate'"),
    "gpus": ("srun: error: Unable to create step for job 61: Invalid generic resource (gres) specification",  # no ssh
             "none of the job's GPUs", "--gpus-per-node"),
    "badconfig": ("/home/me/.ssh/config: line 2: Bad configuration option: foo\n/home/me/.ssh/config: terminating, "
                  "1 bad configuration options", "configuration.*mend", "option: foo"),
}
SSH_FATES = "good", "noisy", "tcsh", "fish", "bash", "nologin", "dies", "mute", "stalls"  # what else becomes of hosts

FAKE_SSH = '''
import getopt, json, os, shutil, signal, subprocess, sys, tempfile, threading, time
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: os._exit(255))  # as ssh does: without a word
letters = "1246ab:c:e:fgi:kl:m:no:p:qstvxAB:CD:E:F:GI:J:KL:MNO:PQ:R:S:TVw:W:XYy"
options, (target, *rest) = getopt.getopt(sys.argv[1:], letters)
more, command = getopt.getopt(rest, letters)  # after the host, too
user, _, host = target.rpartition("@")
here = os.path.dirname(os.path.abspath(sys.argv[0]))
with open(here + "/log", "a") as log:
    print(json.dumps(sys.argv[1:]), file=log, flush=True)
with open(here + "/fates") as file:
    words = json.load(file)
fate = max((fate for fate in words if host.startswith(fate)), key=len, default="unknown")
if words[fate]:
    os.write(2, (words[fate].format(host=host, user=user or "me") + "\\n").replace("\\n", "\\r\\n").encode())
    sys.exit(255)
if fate == "nologin":
    print("This account is currently not available.")
    sys.exit(1)
while fate == "mute":
    time.sleep(60)
if fate == "noisy":
    os.write(2, b"*** Authorized use only ***\\nAll is logged.\\n")
    os.write(1, b"\\033[1mWelcome\\033[0m to the caf\\xe9 cluster\\n\\nminscoop-0 {}\\nLoading modules ... ")
    threading.Timer(0.5, os.write, (2, b"lfs: quota exceeded\\n")).start()
shell = shutil.which(fate) or "/bin/sh"
variables = {"HOME": here, "PATH": "/usr/local/bin:/usr/bin:/bin", "SHELL": shell, "FATE": host,
             "SSH_CONNECTION": "127.0.0.1 40000 127.0.0.1 22"}
variables.update((name, os.environ[name]) for name in ("MINSCOOP_TEST", "TMPDIR"))
there = subprocess.Popen([os.path.basename(shell), "-c", " ".join(command)], executable=shell, cwd=here, env=variables,
                         stdin=-1, stdout=-1, stderr=-1, start_new_session=True)
def carry(source, target):
    try:
        while True:
            data = os.read(source, 1 << 16)
            if not data:
                break
            while data:
                data = data[os.write(target, data):]
                if fate == "stalls" and target == 1:
                    os.kill(os.getpid(), signal.SIGSTOP)
    except OSError:  # nobody reads any more
        pass
    os.close(source if source else target)  # the other side gets an end of file, or SIGPIPE
carriers = [threading.Thread(target=carry, args=ends, daemon=True) for ends in (
    (there.stdout.fileno(), 1), (there.stderr.fileno(), 2), (0, there.stdin.fileno()))]
for thread in carriers:
    thread.start()
if fate == "dies":
    while not os.path.exists(here + "/kill"):
        time.sleep(0.01)
    os.write(2, ("Connection to %s closed by remote host.\\r\\n" % host).encode())
    os._exit(255)  # what it ran has no more input, and nobody who reads
code = there.wait()
for thread in carriers[:2]:
    thread.join()
os._exit(code if code >= 0 else 255)
'''


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """The fake ssh is the one on the PATH. Returns its directory, where `log` has the arguments of each call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f"#!{sys.executable} -IS{FAKE_SSH}")
    (folder / "ssh").chmod(0o755)
    (folder / "fates").write_text(json.dumps({**{name: told[0] for name, told in SSH_FAILURES.items()},
                                              **dict.fromkeys(SSH_FATES)}))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


NODE = os.uname().nodename
SQUARES = """
import os, sys, time
from minscoop import futures
def square(x):
    time.sleep(0.002)
    return x * x, os.environ.get("FATE") or os.uname().nodename
if __name__ == "__main__":  # until all these hosts have taken part, and a file is there
    wanted, seen, end = set(filter(None, sys.argv[1].split(","))), set(), time.time() + 50
    path = sys.argv[2] if sys.argv[2:] else "/"
    while not (wanted <= seen and os.path.exists(path)) and time.time() < end:
        results = list(futures.map(square, range(100)))
        assert [value for value, _ in results] == [x * x for x in range(100)]
        seen |= {where for _, where in results}
    print(*sorted(seen))
"""


def names_of(*hosts):
    """What SQUARES prints when these hosts have taken part."""
    return " ".join(sorted(hosts)) + "\n"


def lines_in(path):
    return path.read_text().count("\n")


def finish_after(process, go, condition=lambda: True):
    """Once a condition holds, create the file that a program waits for; then wait for the program's end."""
    eventually(condition)
    touch(go)
    return finish(process)


def test_each_failure_is_told_in_one_line_when_hosts_cannot_be_had(ssh, script, tmp_path):
    """A warning with host, cause and remedy for each; the run goes on with the others and gives the right result."""
    table = {**SSH_FAILURES, "nologin": (None, "not .*log in", "administrators")}
    with open(tmp_path / "stderr", "w") as stderr:
        process = start(MINSCOOP, "--hosts", f"{','.join(f'me@{name}' for name in table)},good,localhost:1",
                        script(SQUARES), f"good,{NODE}", tmp_path / "go", stderr=stderr)
        done = finish_after(process, tmp_path / "go", lambda: lines_in(tmp_path / "stderr") >= len(table))
    assert (done.returncode, done.stdout) == (0, names_of("good", NODE))
    lines, causes = (tmp_path / "stderr").read_text().splitlines(), set()
    for name, (_, cause, remedy) in table.items():
        line, = [line for line in lines if f"host me@{name}: " in line]
        assert re.search(cause, line) and re.search(remedy, line), line
        causes.add(line.partition(": ")[2].replace(name, ""))
    assert len(lines) == len(table) and len(causes) >= len(table) - 1, lines  # two of them mean MaxStartups


def test_what_a_remote_command_says_is_a_warning_when_its_host_is_in_the_pool(ssh, script, tmp_path):
    """It comes through the root, which makes room for it where there is a progress line."""
    prolog = tmp_path / "prolog"
    prolog.write_text(f"while [ ! -e {tmp_path}/go ]; do sleep 0.5; echo disk quota exceeded >&2; done &\n")
    with open(tmp_path / "stderr", "w") as stderr:
        process = start(MINSCOOP, "--hosts", "good:1", "--prolog", prolog, script(SQUARES), "good", tmp_path / "go",
                        stderr=stderr)
        done = finish_after(process, tmp_path / "go", lambda: lines_in(tmp_path / "stderr"))
    assert (done.returncode, done.stdout) == (0, names_of("good"))
    assert {*(tmp_path / "stderr").read_text().splitlines()} == {"minscoop: host good: disk quota exceeded"}


class HandGateway(minscoop.Gateway):
    """A Gateway that starts no process. Its keeper remembers each notice."""

    def __init__(self, said=b"", up=None):
        keeper = types.SimpleNamespace(sent=[])
        keeper.notify = lambda *frames: keeper.sent.append(frames)
        super().__init__(keeper, dict(name="h", host="1", transport="auto"))
        self.process = types.SimpleNamespace(stderr=io.BytesIO(said), wait=lambda timeout: 255, poll=lambda: 255)
        self.ears, self.up, self.ended = types.SimpleNamespace(join=lambda timeout: None), up, []

    def end(self, code=0):
        self.ended.append(code)


@pytest.mark.parametrize("said, told", [
    ("Cannot execute command-line and remote command.", "RemoteCommand is set for it"),
    ("Bad configuration option: command-line", "ssh's options or configuration are wrong"),
    ("me@h: Permission denied (publickey,password).", "no key was accepted"),
    ("Unauthorized access is not permitted\nme@h: Permission denied (publickey).", "no key was accepted"),
    ("Unauthorized access is not permitted", "it ended"), ("mkdir: /scratch/me: Permission denied", "it ended"),
    ("permission denied while trying to connect to the Docker daemon socket", "it ended"),
    ("Your account has expired; please contact your administrator.", "your account may not log in"),
    ("This account is currently not available.", "your account may not log in"),
    ("System is going down. Unprivileged users are not permitted to log in anymore.", "your account may not log in")])
def test_advice_is_for_what_ssh_itself_says_when_a_host_cannot_be_had(said, told):
    """Similar words of a banner, a login file, a prolog or docker must be quoted as they are, without any advice."""
    gateway = HandGateway(said.encode())
    gateway.listen()
    text = str(gateway.diagnosis("it ended"))
    assert text == f"it ended (exit code 255): {said}" if told == "it ended" else text.startswith(told), text


@pytest.mark.parametrize("transport, told", [("auto", 1), ("tcp", 0)])
def test_last_words_are_kept_for_the_reason_when_a_host_may_still_try_to_connect(transport, told):
    """With --transport tcp it tries for SILENCE. What it then says is told once, in the line that says so."""
    gateway = HandGateway(b"cannot reach the root\n", up=time.monotonic() - minscoop.GRACE - 1)
    gateway.config["transport"] = transport
    with mock.patch.object(minscoop.logger, "warning") as warning:
        gateway.listen()
    assert warning.called == bool(told) and "cannot reach" in str(gateway.diagnosis("it ended"))


def test_no_line_is_kept_back_when_a_remote_command_says_many_at_once(monkeypatch):
    """A line for which the broker has no room must be sent as soon as it has, without waiting for the next line."""
    gateway = HandGateway(b"".join(b"line %d\n" % i for i in range(1000)), up=-math.inf)
    keeper = minscoop.Keeper({}, None)
    monkeypatch.setattr(minscoop.logger, "warning", lambda text, *args: keeper.notify((text % args).encode()))
    monkeypatch.setattr(minscoop, "TICK", 0)
    keeper.patient = True
    keeper.notices_read.settimeout(BOUND)
    thread = minscoop.in_background(gateway.listen)
    for number in range(1000):
        assert json.loads(keeper.notices_read.recv(100)) == [f"host h: line {number}"]
    thread.join()
    for end in (keeper.lifeline_read, keeper.lifeline, keeper.signalled, keeper.signal_write):
        os.close(end)
    keeper.notices.close()
    keeper.notices_read.close()


@pytest.mark.parametrize("where", ["threading.Thread", "Gateway.start"])
def test_the_root_is_told_when_a_gateway_fails_of_something_unforeseen(where):
    """Any exception, such as one from a thread that cannot be started, is told as the reason why the host is gone."""
    gateway, error = HandGateway(), RuntimeError("can't start new thread")
    keeper = gateway.keeper
    (keeper.lifeline_read, lifeline), keeper.tokens = os.pipe(), os.pipe()
    os.write(keeper.tokens[1], b".")
    with mock.patch(f"minscoop.{where}", side_effect=error):
        gateway.run()
    (kind, facts), = keeper.sent
    assert kind == b"HOST" and gateway.ended == [0]
    assert json.loads(facts) == {"host": "h", "number": "1", "state": "gone", "reason": repr(error)}
    os.close(lifeline)
    assert where != "Gateway.start" or eventually(lambda: len(gateway.ended) == 2)  # it ends with its keeper
    for end in (keeper.lifeline_read, *keeper.tokens):
        os.close(end)


@linux_only
@pytest.mark.parametrize("option", ["--check", "--all-hosts"])
def test_the_host_is_named_when_its_gateway_is_killed(ssh, option):
    """The gateway cannot say so any more. A check would wait for ever, else, and a program for all hosts go on."""
    program = "import minscoop, time; minscoop.submit(time.sleep, 1000).result()"
    process = start(MINSCOOP, option, "--hosts", "mute,localhost:1", *["-c", program] * (option != "--check"))
    assert eventually(lambda: lines_of(ssh / "log"))
    keeper, = children_of(process.pid)
    (gateway, remote), = [(pid, *children_of(pid)) for pid in children_of(keeper) if children_of(pid)]
    kill_all([gateway])
    done = finish(process, "")
    kill_all([remote])  # this ssh does not notice the end of its stdin
    assert done.returncode == 1, done
    assert f"its gateway (pid {gateway}) ended: killed by signal 9 (SIGKILL)" in done.stdout + done.stderr, done


def test_a_tunnel_says_that_a_connection_has_ended_when_there_is_no_broker_here(guard):
    """One that takes over is not there yet: the broker at the other end then connects again, as if by TCP."""
    gateway = HandGateway()
    gateway.config["address"] = f"ipc://{guard}/broker"
    blocks = b"".join(struct.pack(">II", serial, size) + bytes(size) for serial, size in [(1, 9), (1, 0), (2, 9)])
    read, write = os.pipe()
    with open(read, "rb") as back, open(write, "wb") as sink:
        minscoop.Tunnel(io.BytesIO(blocks), sink, gateway.open_connection).pour()
        assert sorted(back.read(16)) == sorted(struct.pack(">IIII", 1, 0, 2, 0))


def test_a_tunnel_listens_before_its_thread_begins(guard, monkeypatch):
    """Else, where a keeper ends at once, the thread finds no directory, and what it says of that is the last line of
    the connection, and hides why the keeper ended."""
    monkeypatch.setattr(minscoop, "in_background", lambda target, *args: threads.append((target, args)))
    threads, path = [], f"{guard}/up"
    minscoop.Tunnel(io.BytesIO(), io.BytesIO()).listen(path)
    (_, (server,)), = threads
    with server, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_an_agent_listens_before_its_keeper_can_remove_the_directory():
    """As a keeper does that ends at once, because of a wrong --path, say: what it said is to be the last line."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent("""
        import io, json, minscoop, shutil, types
        minscoop.ForkedKeeper = lambda: types.SimpleNamespace(stdin=io.BytesIO(), wait=str, returncode=1)
        minscoop.tell = lambda keeper, data: shutil.rmtree(json.loads(data)["directory"])
        minscoop.run_agent({"tunnel": True})
    """)], cwd=HERE, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT)
    assert (done.returncode, done.stderr) == (1, b"")


def test_pyzmq_is_packed_when_its_files_are_of_1970(tmp_path, monkeypatch):
    """As some package managers leave them; a zip file knows no time before 1980."""
    path = tmp_path / "zmq" / "__init__.py"
    path.parent.mkdir()
    path.touch()
    os.utime(path, (0, 0))
    monkeypatch.setattr(minscoop, "zmq", types.SimpleNamespace(__file__=str(path)), raising=False)
    minscoop.unpack_pyzmq(minscoop.pack_pyzmq(), tmp_path / "there")
    assert sys.path.pop() == f"{tmp_path}/there/library" and os.listdir(f"{tmp_path}/there/library/zmq")


@pytest.mark.parametrize("args, text", [
    (["--hosts", "refused,good:1", "--all-hosts"], "refused"), (["--hosts", "refused,nokey"], "no host is left"),
    (["--hosts", "refused:1,localhost:0"], "no host is left"),
    (["--hosts", "a:0,localhost:0"], "every host in the list has 0"),
    (["--hosts", "good", "--python", "/no/python"], "/no/python"),
    (["--hosts", "good", "--prolog", "/no/prolog"], "/no/prolog"),
    (["--hosts", "good", "--path", "/no/path"], "/no/path"),
    (["--hosts", "good", "-e", "/no/ssh"], "/no/ssh"), (["--hosts", "good", "-e", "false"], "before Python ran"),
    (["--hosts", "good", "-e", "echo hello"], "before Python ran: hello good sh"),
    (["--hosts", "good", "-e", "sh -c 'echo Welcome; echo; echo closed until noon; echo; exit 3'"],
     "before Python ran (exit code 3): closed until noon"),
    (["--hosts", "good", "-e", "sh -c 'echo Welcome; echo closed until noon >&2; exit 3'"],
     "before Python ran (exit code 3): closed until noon"),
    (["--hosts", "good", "--transport", "tcp", "--external-hostname", "no.such.address"], "no.such.address")],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value))
def test_the_run_fails_with_one_message_when_no_host_is_left_or_one_must_not_fail(ssh, script, args, text):
    """Exit code 1, and one line that says why, after the warnings that say what was wrong with each host."""
    done = launch(*args, script(SQUARES), "good")
    assert done.returncode == 1 and text in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") <= 3, done.stderr


@pytest.mark.parametrize("option", ["--listen", "--hosts"])
def test_the_run_fails_with_one_message_when_pyzmq_cannot_encrypt(ssh, tmp_path, option):
    """Some builds of libzmq lack CURVE. Only TCP needs it: with --transport stdio the pool works without."""
    copy = patched(tmp_path, "import zmq; zmq.has = lambda feature: False")
    done = python(copy, option, "good", "-c", "print('begun')", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "") and re.fullmatch("minscoop: .*CURVE.*stdio\n", done.stderr), done
    assert python(copy, "--transport", "stdio", "--hosts", "good:1", "-c",
                  "import minscoop; print(*minscoop.map(abs, [-7]))").stdout == "7\n"


@pytest.mark.parametrize("host", ["noisy", "tcsh", "fish", "bash"])
def test_login_files_and_shells_do_no_harm_when_a_host_has_them(ssh, script, host):
    """Whatever is printed at login is skipped; the login shell may be any."""
    if host != "noisy" and not shutil.which(host):
        skip_or_fail(f"no {host} on this machine")
    assert output_of("--hosts", f"{host}:2", script(SQUARES), host) == f"{host}\n"


@linux_only
@pytest.mark.parametrize("option, told", [("-v", True), ("-q", False)])
def test_a_host_that_was_not_there_yet_is_named_when_all_is_done(ssh, option, told):
    """With -v only: a short program may end before a host that does not answer is given up."""
    done = launch(option, "--hosts", "mute,localhost:1", "-c", "import minscoop; print(*minscoop.map(abs, [-7]))")
    assert (done.returncode, done.stdout) == (0, "7\n")
    assert ("host mute was not ready before all was done" in done.stderr) == told, done.stderr


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_host_is_given_up_when_it_says_nothing(ssh, script, tmp_path, wrapped):
    """A host whose login hangs, or whose connection stalls after it, must be given up after LOGIN_PATIENCE, and the run
    goes on without it; also if the remote command is a wrapper that runs ssh as its child."""
    wrapper = script('#!/bin/sh\nssh "$@"\nexit $?\n', "wrapper")
    wrapper.chmod(0o755)
    with open(tmp_path / "stderr", "w") as stderr:
        process = start(patched(tmp_path, "LOGIN_PATIENCE = 4.0"), "--hosts", "mute,stalls,localhost:1",
                        *(["-e", wrapper] if wrapped else []), script(SQUARES), NODE, tmp_path / "go", stderr=stderr)
        done = finish_after(process, tmp_path / "go", lambda: lines_in(tmp_path / "stderr") >= 2)
    lines = sorted((tmp_path / "stderr").read_text().splitlines())
    assert (done.returncode, done.stdout, len(lines)) == (0, names_of(NODE), 2) and "Traceback" not in lines[0]
    assert re.match("minscoop: host mute: .*within 4 s", lines[0])
    assert re.match(r"minscoop: host stalls: .*\(4 s are allowed\)", lines[1])


@linux_only
@pytest.mark.parametrize("transport", ["tcp", "stdio"])
def test_a_host_comes_back_when_the_root_was_stopped_for_long(ssh, script, tmp_path, transport):
    """As by Ctrl-Z: a host that hears nothing ends by itself, and is logged in to again when the root goes on."""
    process = start(patched(tmp_path, "HEARTBEAT, SILENCE = 0.2, 2.0"), "--hosts", "good:1,localhost:1",
                    "--transport", transport, script("""
        import os, sys, time
        from minscoop import futures
        def where(x): return os.environ.get("FATE")
        if __name__ == "__main__":
            for path in sys.argv[1:]:
                while "good" not in set(futures.map(where, range(100))): time.sleep(0.01)
                open(path, "w").close()
                while os.path.exists(path): time.sleep(0.01)
            print("good again")
    """), tmp_path / "there", tmp_path / "back")
    await_file(tmp_path / "there")
    os.killpg(process.pid, signal.SIGSTOP)
    assert on_fake_host("good") and not eventually_none(lambda: on_fake_host("good"), WAIT)
    os.killpg(process.pid, signal.SIGCONT)
    os.unlink(tmp_path / "there")
    await_file(tmp_path / "back")
    os.unlink(tmp_path / "back")
    done = finish(process)
    assert (done.returncode, done.stdout) == (0, "good again\n")
    for told in "lost: ", "will log in again in 2 s\n", "logging in again\n":
        assert f"host good: {told}" in done.stderr
    assert lines_in(ssh / "log") >= 2


def test_the_users_options_come_first_when_ssh_is_called(ssh, script):
    """Of an option given twice, ssh takes the first: so ours follow the user's; then come the host and the command."""
    command = f"{ssh}/ssh -p 2222 -oBatchMode=no {{host}} env EXTRA=1"
    assert output_of("--hosts", "me@good", "-e", command, script(SQUARES), "good") == "good\n"
    words, = [json.loads(line) for line in (ssh / "log").read_text().splitlines()]
    assert words == ["-p", "2222", "-oBatchMode=no", *minscoop.SSH_OPTIONS, "me@good", "env", "EXTRA=1", "sh"]
    assert not [word for word in words if "HostKey" in word]  # whether host keys are checked is for the user to decide


def test_any_command_reaches_a_host_when_it_runs_sh_there(ssh, script):
    """{host} need not be the last word, nor ssh the command."""
    wrapper = script("#!/bin/sh\nexec env FATE=\"$2-$1\" sh -c \"$3\"\n", "reach")
    wrapper.chmod(0o755)
    assert output_of("--hosts", "x:1", "-e", f"{wrapper} a {{host}}", script(SQUARES), "x-a") == "x-a\n"


def patched(tmp_path, text):
    """A copy of minscoop.py with some lines added."""
    body, last = MINSCOOP.read_text().rsplit("if _AS_SCRIPT:", 1)
    path = tmp_path / "copy" / "minscoop.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{body}{textwrap.dedent(text)}\n\nif _AS_SCRIPT:{last}")
    return path


@linux_only
@pytest.mark.parametrize("transport", ["tcp", "stdio"])
def test_no_secret_can_be_read_when_hosts_take_part(ssh, script, tmp_path, transport):
    """No key, no payload and no address of the pool is in any argument or environment, on either side."""
    copy = patched(tmp_path, f"""
        original = Keeper.make_keys
        def make_keys(self):
            original(self)
            secrets = [*self.config["keys"], self.config["server_secret"]]
            with open("{tmp_path}/keys", "w") as file: json.dump(secrets, file)
        Keeper.make_keys = make_keys""")
    process = start(copy, "--hosts", "good:2,localhost:1", "--transport", transport, script("""
        import os, sys, time
        from minscoop import futures
        def payload(secret): return os.environ.get("FATE")
        if __name__ == "__main__":
            while "good" not in set(futures.map(payload, ["payload-secret"] * 100)): pass
            open(sys.argv[1], "w").close()
            sys.stdin.read()
    """), tmp_path / "up")
    await_file(tmp_path / "up")
    pids, words = processes_of(os.environ["MINSCOOP_TEST"]), {b"payload-secret"}
    assert len(pids) >= 9
    if transport == "tcp":
        words.update(key.encode() for key in json.loads((tmp_path / "keys").read_text()))
        assert len(words) == 5
    for pid, name in itertools.product(pids, ["cmdline", "environ"]):
        with contextlib.suppress(OSError):
            content = pathlib.Path(f"/proc/{pid}/{name}").read_bytes()
            assert not [word for word in (*words, b"tcp://", b"ipc://") if word in content]
    assert finish(process).returncode == 0


def test_a_host_works_as_told_when_there_are_options(ssh, script, tmp_path):
    """--prolog is sourced first (a name without a slash is a file, not sought in PATH), --pythonpath is searched first,
    --path is the working directory, --python the interpreter."""
    (ssh / "prolog.sh").write_text("export FROM_PROLOG=1; echo noise; cat >/dev/null")  # in the login's home directory
    script("where = 'there'", "there/extra.py")
    script("where = 'here'", "extra.py")
    (tmp_path / "work").mkdir()
    wrapper = script(f"#!/bin/sh\nexport WRAPPED=1\nexec {sys.executable} \"$@\"\n", "python")
    wrapper.chmod(0o755)
    assert output_of("--hosts", "good:1", "--prolog", "prolog.sh", "--pythonpath", tmp_path / "there",
                     "--path", tmp_path / "work", "--python", wrapper, script("""
        import os, extra
        from minscoop import futures
        def facts(x): return os.getcwd(), extra.where, os.environ["FROM_PROLOG"], os.environ["WRAPPED"]
        if __name__ == "__main__": print(extra.where, *futures.submit(facts, 1).result())
    """)) == f"here {tmp_path / 'work'} there 1 1\n"


def test_a_host_works_when_no_pythonpath_is_given(ssh):
    """As with other options, None must mean that it is not given."""
    with minscoop.Executor(hosts="good:1", pythonpath=None) as executor:
        assert executor.submit(os.getenv, "FATE").result(WAIT) == "good"


FAKE_PYTHON = """#!/bin/sh
echo; echo "$3" '{"python": [%s], "executable": "/usr/bin/python3", "platform": "%s", "machine": "%s", "pyzmq": %s}'
cat >/dev/null
"""


@pytest.mark.parametrize("version, platform, pyzmq, text", [
    ((2, 7, 18), "linux", "null", "Python 2.7.18.*3.8 is the oldest.*--python"),
    ((3, 7, 4), "linux", "null", "Python 3.7.4.*3.8 is the oldest.*--python"),
    ((3, sys.version_info[1] + 1, 0), "linux", '"27.0"', r"Python 3\.\d+\.0 \(/usr/bin/python3\).*--mixed"),
    (sys.version_info[:3], "plan9", "null", "pyzmq is missing.*plan9.*pip install pyzmq")])
def test_a_host_is_refused_in_one_line_when_its_python_does_not_fit(
        ssh, script, tmp_path, version, platform, pyzmq, text):
    """The line says which Python the host has, and what to do; the run goes on without the host."""
    text_there = FAKE_PYTHON % (", ".join(map(str, version)), platform, os.uname().machine, pyzmq)
    python_there = script(text_there, "python_there")
    python_there.chmod(0o755)
    with open(tmp_path / "stderr", "w") as stderr:
        process = start(MINSCOOP, "--hosts", "good,localhost:1", "--python", python_there, script(SQUARES), NODE,
                        tmp_path / "go", stderr=stderr)
        done = finish_after(process, tmp_path / "go", lambda: lines_in(tmp_path / "stderr"))
    assert (done.returncode, done.stdout) == (0, f"{NODE}\n")
    assert re.fullmatch(f"minscoop: host good: .*{text}.*\n", (tmp_path / "stderr").read_text())


@pytest.mark.parametrize("args, tag", [
    (["--hosts", "good:2"], ""), (["--hosts", "good:2", "--tag-output"], r"good 1\.\d+: "),
    (["-n", "2", "--tag-output"], rf"{NODE} 0\.\d+: ")], ids=["", "tagged", "tagged here"])
def test_what_tasks_print_appears_here_when_they_run_elsewhere(ssh, script, args, tag):
    """Whole lines, stdout on stdout, stderr on stderr, all before the program ends; --tag-output names the worker."""
    done = launch(*args, script("""
        import os, subprocess, sys
        from minscoop import futures
        def say(i):
            print(f"out {i}", "x" * 500)
            print(f"err {i}", file=sys.stderr)
            if i % 50 == 0: subprocess.run(["echo", f"echo {i}"])
        if __name__ == "__main__":
            futures.map(say, range(1000))
    """))
    lines = [re.fullmatch(f"{tag}(.*)", line) for text in (done.stdout, done.stderr) for line in text.splitlines()]
    assert done.returncode == 0 and all(lines)
    assert sorted(line[1] for line in lines) == sorted([
        *(f"out {i} {'x' * 500}" for i in range(1000)), *(f"echo {i}" for i in range(0, 1000, 50)),
        *(f"err {i}" for i in range(1000))]) and done.stderr.count("\n") == 1000


def test_no_output_is_lost_when_the_last_line_has_no_end(ssh, script):
    """Even if megabytes of it have yet to reach the root when the last task ends."""
    assert len(output_of("--hosts", "good:2", script("""
        import sys
        from minscoop import futures
        def say(x):
            for i in range(50): sys.stdout.write("x" * 100_000)
        if __name__ == "__main__":
            futures.map(say, range(2))
    """))) == 10_000_000


@linux_only
def test_the_broker_goes_on_when_a_result_and_the_end_of_its_worker_come_together(guard, tmp_path, capfd):
    """The RESULT makes the broker read its worker's pipes, and close them at their end: it must not read them again."""
    with minscoop.Executor(1, tag_output=True) as executor:
        worker = executor.submit(os.getpid).result(WAIT)
        broker, = set(children_of(executor._node.keeper.pid)) - {worker}
        future = executor.submit(await_file, str(tmp_path / "go"), worker, str(tmp_path / "begun"))
        await_file(tmp_path / "begun")
        os.kill(broker, signal.SIGSTOP)
        touch(tmp_path / "go")
        time.sleep(0.3)  # until the worker has sent the result
        os.kill(worker, signal.SIGKILL)
        assert eventually(lambda: stat_of(worker) is None)
        os.kill(broker, signal.SIGCONT)
        assert future.result(WAIT) == worker
    assert "Traceback" not in capfd.readouterr().err


def await_and_fail(path):
    await_file(path, None, f"{path}-begun")
    raise ValueError("not here")


@linux_only
def test_the_pool_breaks_when_a_worker_fails_to_start_while_the_broker_is_slow(guard, tmp_path):
    """The worker must outlive its FAILED message, which a broker drops if it reads the notice of the death first."""
    executor = minscoop.Executor(1, initializer=await_and_fail, initargs=(str(tmp_path / "go"),))
    future, keeper = executor.submit(os.getpid), executor._node.keeper.pid
    await_file(tmp_path / "go-begun")
    broker = children_of(keeper)[0]
    os.kill(broker, signal.SIGSTOP)
    touch(tmp_path / "go")
    time.sleep(0.5)  # in which the worker might end
    os.kill(broker, signal.SIGCONT)
    with pytest.raises(minscoop.PoolError, match="not here"):
        future.result(WAIT)
    executor.shutdown()


@linux_only
@pytest.mark.parametrize("kind", ["lines", "one line"])
def test_memory_is_bounded_when_a_task_prints_much(ssh, script, kind):
    """No process, here or there, takes 100 MB: a worker that prints faster than the root can show has to wait."""
    done = launch("--hosts", "good:1", script("""
        import os, pathlib, re, sys
        from minscoop import futures
        def say(megabytes, end):
            for i in range(megabytes * 100): os.write(1, b"x" * 9999 + end)
        if __name__ == "__main__":
            futures.submit(say, int(sys.argv[1]), b"\\n" if sys.argv[2] == "lines" else b"x").result()
            mine, peaks = f"MINSCOOP_TEST={os.environ['MINSCOOP_TEST']}".encode(), []
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                try:
                    if mine in (process / "environ").read_bytes().split(b"\\0"):
                        peaks += map(int, re.findall(r"VmHWM:\\s+(\\d+)", (process / "status").read_text()))
                except OSError: pass
            print(len(peaks) > 5, max(peaks) >> 10, file=sys.stderr)
    """), MEGABYTES, kind, timeout=BOUND)
    many, peak = done.stderr.split()
    assert done.returncode == 0 and len(done.stdout) == MEGABYTES * 1_000_000
    assert many == "True" and int(peak) < 100


@pytest.mark.parametrize("transport", ["tcp", "stdio"])
def test_large_things_arrive_whole_when_they_go_to_another_host(ssh, script, transport):
    """Many at a time, in both directions at once, by either transport."""
    assert output_of("--hosts", "good:2", "--transport", transport, script("""
        import os, zlib
        from minscoop import futures
        def echo(data): return data
        if __name__ == "__main__":
            blobs = [os.urandom(n) for n in (0, 1, 65535, 65536, 5_000_000, 10_000_000) * 2]
            assert list(futures.map(echo, blobs)) == blobs
            assert futures.submit(echo, bytearray(blobs[-1])).result() == blobs[-1]
            print(sum(futures.map(zlib.crc32, blobs)) == sum(map(zlib.crc32, blobs)))
    """)) == "True\n"


def test_a_task_does_as_it_does_here_when_it_runs_on_another_host(ssh, script):
    """Its output comes before its result, its exceptions have tracebacks, its death is told with the host's name."""
    done = launch("-q", "--hosts", "good:1,localhost:1", "-n", "1", "--retries", "1", script("""
        import os, sys
        import scoop
        from scoop import futures, shared
        def say(i): print("said", i, shared.getConst("name", timeout=5))
        def fail(x): return 1 / x  # here
        def die(): os.kill(os.getpid(), 9)
        if __name__ == "__main__":
            shared.setConst(name="value")
            for i in range(2): print("got", futures.submit(say, i).result())
            print(futures.submit(lambda: scoop.SIZE).result(), sys.stdin.read())
            for call in (lambda: futures.submit(fail, 0).result(), lambda: futures.submit(die).result()):
                try: call()
                except Exception as error: print(type(error).__name__, "# here" in str(error.__cause__), error)
    """), stdin="input")
    assert done.returncode == 0 and re.fullmatch(
        "said 0 value\ngot None\nsaid 1 value\ngot None\n1 input\nZeroDivisionError True .*\nWorkerLost False .*"
        r"\(host good, pid \d+\) killed by signal 9.*" + "\n", done.stdout), done


def test_the_host_is_named_when_a_module_is_missing_there(ssh, script, tmp_path):
    """What is installed here need not be there: ImportError says which module on which host."""
    script("def work(x): return x", "site-packages/installed_here.py")
    done = launch("--hosts", "good:1", "--pythonpath", "", script("""
        import installed_here
        from minscoop import futures
        if __name__ == "__main__": print(list(futures.map(installed_here.work, range(3))))
    """), env=dict(os.environ, PYTHONPATH=str(tmp_path / "site-packages")))
    assert done.returncode == 1 and "installed_here" in done.stderr and "good" in done.stderr and done.stdout == ""
    assert re.search("ImportError|ModuleNotFoundError", done.stderr)


def test_installed_packages_are_no_business_of_the_roots_when_they_are_below_the_program(tmp_path, monkeypatch):
    """The root serves no modules from there, nor from Python's own directories; but my-packages is the program's."""
    theirs = [tmp_path / name for name in ("venv/lib/python3/site-packages", "site-packages/tool", "dist-packages")]
    ours = [str(tmp_path), str(tmp_path / "my-packages")]
    for path in (*theirs, *ours):
        os.makedirs(path, exist_ok=True)
    standard = os.path.dirname(os.__file__)
    monkeypatch.setattr(sys, "path", [*ours, *map(str, theirs), standard, f"{standard}/lib-dynload"])
    assert minscoop.own_path() == ours

    def taken(entry):
        with contextlib.suppress(ImportError):
            return minscoop.RootFinder(("/",), entry)
    assert list(filter(taken, sys.path)) == ours


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """An interpreter of another minor version that has pyzmq, and that version."""
    places = [*map(shutil.which, (f"python3.{minor}" for minor in range(8, 20))),
              *sorted(map(str, pathlib.Path.home().glob(".pyenv/versions/3.*/bin/python3")))]
    directory = tmp_path_factory.mktemp("other")
    for place in filter(None, places):
        found = subprocess.run([place, "-c", "import sys, pip; print(*sys.version_info[:2])"], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True).stdout.split()
        if found and (3, 8) <= tuple(map(int, found)) != sys.version_info[:2]:
            done = subprocess.run([place, "-m", "pip", "install", "-q", "--target", directory / "lib", "pyzmq"],
                                  timeout=50, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if done.returncode:
                skip_or_fail(f"cannot install pyzmq for {place}")
            (directory / "python").write_text(f'#!/bin/sh\nPYTHONPATH={directory}/lib exec {place} "$@"\n')
            (directory / "python").chmod(0o755)
            return directory / "python", found[1]
    pytest.skip("no other version of Python on this machine")


def test_functions_travel_by_name_when_versions_are_mixed(ssh, script, other_python):
    """--mixed: hosts of another Python take part; what would travel by value fails with a message that says so."""
    python_there, minor = other_python
    assert output_of("--hosts", "good:1", "--python", python_there, "--mixed", script("""
        import sys
        from minscoop import futures
        def version(x): return sys.version_info[1], x
        if __name__ == "__main__":
            found = list(futures.map(version, range(100)))
            assert {minor for minor, _ in found} == {int(sys.argv[1])} and [x for _, x in found] == list(range(100))
            try: futures.submit(lambda: 1).result()
            except Exception as error: print(type(error).__name__, "--mixed" in str(error))
    """), minor) == "CannotSend True\n"


def lambda_of(x):
    """A function that has no name."""
    return lambda: x


def test_lambdas_travel_again_when_a_mixed_pool_has_ended():
    """Sending by value is ruled out only while the mixed pool lives. Another that comes and goes changes nothing."""
    def fails(executor):
        return isinstance(executor.submit(lambda: 1).exception(), minscoop.CannotSend)
    with minscoop.Executor(1) as executor:
        with minscoop.Executor(1, mixed=True) as mixed:
            assert fails(mixed)
            with pytest.raises(minscoop.CannotSend):  # nor may a worker send one
                mixed.submit(lambda_of, 1).result(WAIT)
            with minscoop.Executor(0):
                pass
            assert fails(mixed)
        assert not fails(executor)


def on_fake_host(name):
    """The processes that the fake ssh has started for a host, and their descendants."""
    return [pid for pid in processes_of(os.environ["MINSCOOP_TEST"])
            if f"FATE={name}".encode() in read_proc(pid, "environ").split(b"\0")]


@pytest.mark.parametrize("since", [1000, -1000], ids=["young", "old"])
def test_last_words_of_a_connection_are_told_when_it_ends(since):
    """They are the reason, also where the host has been up for a while and each line of ssh is shown as it comes."""
    gateway = minscoop.Gateway(None, {"name": "alpha", "host": "1", "transport": "auto"})
    gateway.up = time.monotonic() + since
    gateway.ears = types.SimpleNamespace(join=lambda timeout: None)
    gateway.process = types.SimpleNamespace(stderr=io.BytesIO(b"Closed by remote host.\r\n"), poll=lambda: 255,
                                             wait=lambda timeout: None)
    gateway.listen()
    assert str(gateway.diagnosis("it has ended")) == "it has ended (exit code 255): Closed by remote host"


@linux_only
@pytest.mark.parametrize("options, code", [([], 0), (["--all-hosts"], 1)], ids=["", "all hosts"])
def test_the_run_goes_on_when_a_host_is_lost_midway(ssh, script, tmp_path, options, code):
    """One line says so; what ran there runs elsewhere, and the result is right; --all-hosts makes it an error. The
    report names the host."""
    page = tmp_path / "run.html"
    process = start(MINSCOOP, *options, "--report", page, "--hosts", "dies:2,localhost:1", script("""
        import os, sys, time
        from minscoop import futures
        def where(x, path):
            if os.environ.get("FATE"):
                open(path, "w").close()
                time.sleep(1000)
            while not os.path.exists(path): time.sleep(0.01)
            return x
        if __name__ == "__main__":
            print(list(futures.map(where, range(20), [sys.argv[1]] * 20)) == list(range(20)))
    """), tmp_path / "there")
    await_file(tmp_path / "there")
    touch(ssh / "kill")
    done = finish(process)
    assert done.returncode == code and done.stdout == ("" if code else "True\n")
    assert re.fullmatch("minscoop: host dies: lost: .*closed by remote host.*\n", done.stderr), done.stderr
    assert code or [why for _, _, why, _ in data_of(page)["losses"]] == ["host dies is gone"]


@linux_only
@pytest.mark.parametrize("victim", ["worker", "broker"])
def test_running_tasks_go_on_elsewhere_when_sigterm_comes_to_a_host(ssh, script, tmp_path, victim):
    """As a batch system sends it before it takes a host away. This must not use up a task's retries."""
    process = start(MINSCOOP, "--hosts", "good:1,localhost:1", "--retries", 1, script("""
        import os, sys, time
        from minscoop import futures
        def work(x, path):
            if os.environ.get("FATE") and not os.path.exists(path):
                open(path, "w").close()
                time.sleep(1000)
            while not os.path.exists(path): time.sleep(0.01)
            return x
        if __name__ == "__main__":
            print(sum(futures.map(work, range(20), [sys.argv[1]] * 20)))
    """), tmp_path / "there")
    await_file(tmp_path / "there")
    keeper, = [pid for pid in on_fake_host("good") if len(children_of(pid)) == 2]
    os.kill(children_of(keeper)[victim == "worker"], signal.SIGTERM)
    done = finish(process)
    assert (done.returncode, done.stdout) == (0, "190\n") and "Traceback" not in done.stderr
    assert victim == "worker" or re.fullmatch("minscoop: host good: lost: .*\n", done.stderr), done.stderr


@linux_only
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hosts, wrapped", [("good:2,localhost:1", False), ("mute,mute.2,good:1", False),
                                            ("mute,good:1", True)], ids=["up", "logging in", "wrapped"])
def test_nothing_is_left_on_any_host_when_the_root_is_ended(guard, ssh, script, tmp_path, hosts, wrapped, signum):
    """However the root ends, also amid logins, and if ssh is the child of the remote command: all is gone in 2 s."""
    wrapper = script('#!/bin/sh\nssh "$@"\nexit $?\n', "wrapper")
    wrapper.chmod(0o755)
    process = start(MINSCOOP, "--hosts", hosts, *(["-e", wrapper] if wrapped else []), script(SQUARES), "good",
                    tmp_path / "never")
    assert eventually(lambda: len(on_fake_host("good")) >= 4 and len(lines_of(ssh / "log")) >= hosts.count("m"))
    os.killpg(process.pid, signum) if signum == signal.SIGINT else os.kill(process.pid, signum)
    left = eventually_none(lambda: [pid for pid in processes_of(os.environ["MINSCOOP_TEST"]) if pid != process.pid],
                           two_seconds())
    commands = [command_of(pid) for pid in left]
    kill_all(left)
    done = finish(process)
    assert not left, commands
    assert done.returncode in (-signum, 128 + signum) and done.stderr.count("Traceback") == (signum == signal.SIGINT)
    assert eventually(lambda: not os.listdir(guard), two_seconds())


@linux_only
def test_nothing_is_left_on_any_host_when_the_keeper_here_is_killed(guard, ssh, script, tmp_path):
    """The program ends with a message, and all hosts with it."""
    process = start(MINSCOOP, "--hosts", "good:2,localhost:1", script(SQUARES), "good", tmp_path / "never")
    assert eventually(lambda: len(on_fake_host("good")) >= 4)
    keeper, = children_of(process.pid)
    kill_all([keeper])
    done = finish(process)
    left = eventually_none(lambda: processes_of(os.environ["MINSCOOP_TEST"]), two_seconds())
    assert not left, [command_of(pid) for pid in left]
    assert done.returncode == 1 and str(keeper) in done.stderr and "Traceback" not in done.stderr


@linux_only
def test_a_host_is_lost_in_words_when_something_else_writes_to_its_pipe(guard, script, tmp_path):
    """One warning tells of the unexpected bytes; the run goes on without the host, on which no process is left."""
    command = tmp_path / "command"
    command.write_text(f"""#!/bin/sh
        export FATE=h
        {{ while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo "Warning: the disk is full"; }} &
        exec sh
    """)
    command.chmod(0o755)
    process = start(MINSCOOP, "-e", command, "--tunnel", "--hosts", "h:1,localhost:1", script(SQUARES), "h",
                    tmp_path / "end")
    assert eventually(lambda: len(on_fake_host("h")) >= 4)
    time.sleep(0.5)
    touch(tmp_path / "go")
    done = finish_after(process, tmp_path / "end", lambda: not on_fake_host("h"))
    assert done.returncode == 0 and re.fullmatch("minscoop: host h: .*unexpected bytes .*\n", done.stderr), done


def test_hosts_join_when_they_have_the_file(guard, script, tmp_path):
    """--join FILE may start before or after --listen FILE. The file is private, and removed at the end of the run."""
    path = tmp_path / "pool.json"
    early = start(MINSCOOP, "--join", path, "-n", 2, env=dict(os.environ, FATE="early"))
    process = start(MINSCOOP, "--listen", path, "-n", 1, script(SQUARES), f"early,late,{NODE}")
    assert eventually(path.exists) and path.stat().st_mode & 0o777 == 0o600
    late = start(MINSCOOP, "--join", path, "-n", 1, env=dict(os.environ, FATE="late"))
    done = finish(process)
    assert (done.returncode, done.stdout, done.stderr) == (0, names_of("early", "late", NODE), "")
    for joined in (early, late):
        ended = finish(joined)
        assert (ended.returncode, ended.stdout) == (0, "")
        assert re.fullmatch("(minscoop: waiting for .*\n)?", ended.stderr), ended.stderr  # said after two seconds
    assert not path.exists()


def test_the_pool_grows_again_when_it_shrank_to_nothing(guard, script, tmp_path):
    """With --listen a future goes on waiting, since other hosts may join; without, it fails: see the next test."""
    path, copy = tmp_path / "pool.json", patched(tmp_path, "HEARTBEAT, SILENCE = 1.5, 6.0")
    process = start(copy, "-v", "--listen", path, "--hosts", "localhost:0", script("""
        import os, sys, time
        from minscoop import futures
        def work(path):
            open(path + os.environ["FATE"], "w").close()
            while os.environ["FATE"] == "first": time.sleep(0.01)
            return os.environ["FATE"]
        if __name__ == "__main__":
            print(futures.submit(work, sys.argv[1]).result())
    """), tmp_path / "at-")
    for name in ("first", "second"):
        joined = start(copy, "--join", path, "-n", 1, env=dict(os.environ, FATE=name))
        await_file(tmp_path / f"at-{name}")
        if name == "first":
            kill_all([joined.pid])
            finish(joined)
    done = finish(process)
    assert (done.returncode, done.stdout) == (0, "second\n") and "Traceback" not in done.stderr, done.stderr
    assert "HOST" in done.stderr and "Limited by" in done.stderr  # -v: what those that joined have recorded
    assert finish(joined).returncode == 0


@linux_only
def test_no_host_is_left_in_words_when_the_last_one_goes(ssh, script, tmp_path):
    """The future that waits fails with an error that says so."""
    process = start(MINSCOOP, "--hosts", "dies:1", script("""
        import sys, time
        from minscoop import futures
        def work(path):
            open(path, "w").close()
            time.sleep(1000)
        if __name__ == "__main__":
            print(repr(futures.submit(work, sys.argv[1]).exception()))
    """), tmp_path / "there")
    await_file(tmp_path / "there")
    touch(ssh / "kill")
    assert finish(process).stdout == "PoolError('no host is left')\n"


@linux_only
@pytest.mark.parametrize("signum, kill", [
    (signal.SIGKILL, os.kill), (signal.SIGINT, os.kill), (signal.SIGTERM, os.killpg), (signal.SIGHUP, os.killpg),
    (signal.SIGKILL, None)])
def test_joined_workers_end_by_themselves_when_the_root_is_killed(guard, script, tmp_path, signum, kill):
    """kill -9 of the root, or Ctrl-C, or a batch system or a closing terminal that signals all of its processes: those
    that joined are gone within two seconds. If nobody can tell them, since the whole machine is gone (kill: None), they
    end after SILENCE."""
    path, copy = tmp_path / "pool.json", MINSCOOP if kill else patched(tmp_path, """
        SILENCE, HEARTBEAT = 4.0, 1.0
        Keeper.take_leave = lambda keeper: None
    """)
    process = start(copy, "--listen", path, "-n", 1, script(SQUARES), "joined", tmp_path / "never")
    joined = start(copy, "--join", path, "-n", 2, env=dict(os.environ, FATE="joined"))
    assert eventually(lambda: len(on_fake_host("joined")) >= 5)
    time.sleep(0.3)
    (kill or os.kill)(process.pid, signum)
    left = eventually_none(lambda: on_fake_host("joined"), 5 * (kill is None) + two_seconds())
    kill_all(left)
    assert not left and "Traceback" not in finish(joined).stderr
    assert finish(process).returncode in (-signum, 128 + signum)


@linux_only
@pytest.mark.parametrize("kill, signum", [
    (os.kill, signal.SIGINT), (os.kill, signal.SIGTERM), (os.kill, signal.SIGKILL), (os.killpg, signal.SIGTERM),
    (os.killpg, signal.SIGHUP)])
def test_the_run_goes_on_at_once_when_a_host_that_joined_is_ended(guard, script, tmp_path, kill, signum):
    """It says that it leaves: SILENCE, after which it would be missed, is longer here than the test may last. SIGINT
    comes twice when Ctrl-C ends `timeout 60 python minscoop.py --join`, and must not show our frames. A batch system
    signals all processes, as a terminal does that closes."""
    path, errors, copy = tmp_path / "pool.json", tmp_path / "errors", patched(tmp_path, "SILENCE = 1000.0")
    with open(errors, "w") as stderr:
        process = start(copy, "-v", "--listen", path, "-n", 1, script(SQUARES), "", tmp_path / "go", stderr=stderr)
    joined = start(copy, "--join", path, "-n", 2, env=dict(os.environ, FATE="joined"))
    assert eventually(lambda: "2 workers, data by tcp" in errors.read_text())
    for _ in range(2):
        kill(joined.pid, signum)
    done = finish_after(process, tmp_path / "go", lambda: f"host {NODE}: lost: it has left; " in errors.read_text())
    assert done.returncode == 0 and errors.read_text().count(" lost: ") == 1, errors.read_text()
    assert "Traceback" not in finish(joined).stderr
    assert not eventually_none(lambda: on_fake_host("joined"), two_seconds())


@linux_only
def test_a_joining_host_ends_when_the_root_has_gone_just_before_it_connects(guard, script, tmp_path):
    """The root answers the trial connection, but is gone before the real one: the host says so after SILENCE."""
    path, copy = tmp_path / "pool.json", patched(tmp_path, f"""
        SILENCE, original = 3.0, Switchboard.first_answer
        def first_answer(self, *args):
            answer = original(self, *args)
            open({str(tmp_path / "answered")!r}, "w").close()
            while not os.path.exists({str(tmp_path / "gone")!r}): time.sleep(0.01)
            return answer
        Switchboard.first_answer = first_answer
    """)
    process = start(copy, "--listen", path, "-n", 1, script(SQUARES), "joined", tmp_path / "never")
    joined = start(copy, "--join", path, "-n", 2, env=dict(os.environ, FATE="joined"))
    await_file(tmp_path / "answered")
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process).returncode == -signal.SIGKILL
    assert not eventually_none(lambda: {*processes_of(os.environ["MINSCOOP_TEST"])} - {*on_fake_host("joined")}, WAIT)
    touch(tmp_path / "gone")
    stderr = finish(joined).stderr
    assert "the root's broker has stopped answering" in stderr and "Traceback" not in stderr


@contextlib.contextmanager
def far_away(port, seconds):
    """A port at which what listens at `port` is heard, and hears, that much later."""
    async def carry(reader, writer):
        while True:
            data = await reader.read(1 << 16)
            loop.call_later(seconds, writer.write if data else lambda _: writer.close(), data)
            if not data:
                break

    async def accept(*near):
        far = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(near[0], far[1]), carry(far[0], near[1]), return_exceptions=True)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(accept, "127.0.0.1"))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(2 * seconds))  # for what was to be carried yet
        loop.close()


@linux_only
def test_a_host_joins_when_the_root_is_far_away(guard, script, tmp_path):
    """A connection by TCP with CURVE needs several round trips, and there is no other way to the root."""
    path = tmp_path / "pool.json"
    process = start(MINSCOOP, "--listen", path, "-n", 1, script(SQUARES), "joined")
    await_file(path)
    pool = json.loads(path.read_text())
    with far_away(pool["port"], 0.3) as port:
        del pool["program"]
        pool.update(port=port, addresses=["127.0.0.1"])
        (tmp_path / "far.json").write_text(json.dumps(dict(pool, program=minscoop.checksum(pool))))
        joined = start(MINSCOOP, "--join", tmp_path / "far.json", "-n", 1, env=dict(os.environ, FATE="joined"))
        eventually(lambda: process.poll() is not None or joined.poll() is not None)
        assert not joined.poll(), finish(joined)
        assert finish(process).stdout == names_of("joined", NODE) and finish(joined).returncode == 0


def test_a_tunnel_is_used_when_it_is_wanted_and_others_may_join(guard, ssh, script, tmp_path):
    """--listen opens a port, for those that join; it is not for the hosts whose data is to go by the remote command."""
    path, errors = tmp_path / "pool.json", tmp_path / "errors"
    with open(errors, "w") as stderr:
        process = start(MINSCOOP, "-v", "--tunnel", "--listen", path, "--hosts", "good:1", script(SQUARES),
                        "good,joined", stderr=stderr)
    await_file(path)
    joined = start(MINSCOOP, "--join", path, "-n", 1, env=dict(os.environ, FATE="joined"))
    assert finish(process).stdout == "good joined\n" and finish(joined).returncode == 0
    told = errors.read_text()
    assert "host good: " in told and told.count("data by stdio") == told.count("data by tcp") == 1, told


@linux_only
def test_a_host_joins_when_its_stdin_is_closed(guard, script, tmp_path):
    """As batch systems and daemons may leave it."""
    path = tmp_path / "pool.json"
    process = start(MINSCOOP, "--listen", path, "-n", 1, script(SQUARES), "joined")
    joined = start(MINSCOOP, "--join", path, "-n", 1, env=dict(os.environ, FATE="joined"), stdin=None,
                   preexec_fn=lambda: os.close(0))
    assert "joined" in finish(process).stdout.split()
    assert finish(joined).returncode == 0


def test_nothing_is_left_when_the_file_to_join_cannot_be_written(tmp_path):
    """When the disk is full, or something else has the name: the temporary file must go, since it may hold keys."""
    (tmp_path / "pool.json").mkdir()
    for size in 3, 100:
        with pytest.raises(OSError), files_limited_to(size):
            minscoop.write_private(str(tmp_path / "pool.json"), "secret")
    assert os.listdir(tmp_path) == ["pool.json"]


@pytest.mark.parametrize("content, text", [
    ("", "is not a connection file"), ("nonsense", "is not a connection file"), ("[1]", "is not a connection file"),
    ("{}", "is not a connection file"), ({}, "cannot reach"), ({"program": 1}, "another version of minscoop"),
    ({"host": 1}, "damaged"),
    ({"main_python": [3, 1]}, "Python 3.1.*--mixed")])
def test_a_clear_message_is_given_when_a_file_to_join_is_no_good(guard, tmp_path, content, text):
    """One line, exit code 1 or 2: no connection file, a damaged one, one of a past run, another minscoop or Python."""
    path = tmp_path / "pool.json"
    if isinstance(content, dict):
        with minscoop.Executor(1, listen=str(path)):
            assert eventually(path.exists)
            content = json.dumps({**json.loads(path.read_text()), **content})
        assert not path.exists()
    path.write_text(content)
    done = launch("--join", path)
    assert done.returncode in (1, 2) and re.search(text, done.stderr) and done.stderr.count("\n") == 1, done.stderr


def test_the_path_alone_names_a_file_that_is_too_long_when_it_cannot_be_used():
    """No file descriptor, which is how --join has it open; and the path is there only once."""
    with pytest.raises(minscoop.PoolError, match="^/dev/zero is not a connection file .*'it has [0-9]+ characters or"):
        minscoop.join("/dev/zero", None)
    with pytest.raises(ValueError, match="^cannot read the hosts file '/dev/zero': it has [0-9]+ characters or more$"):
        minscoop.parse_hosts("/dev/zero")


def test_a_file_to_join_is_refused_when_another_user_has_put_it_there(monkeypatch, tmp_path):
    """In /tmp anybody may, while --join waits; its pool's tasks would run as the one who joins."""
    joined, owner = [], os.getuid()
    path, config = tmp_path / "pool.json", {"main_python": sys.version_info[:2], "mixed": False}
    path.write_text(json.dumps(dict(config, program=minscoop.checksum(config))))
    monkeypatch.setattr(minscoop, "run_agent", joined.append)
    minscoop.join(str(path), 1)
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(minscoop.PoolError, match="another user's"):
        minscoop.join(str(path), 1)
    path.chmod(0o600)  # only the superuser can read another's then, for instance in a container
    minscoop.join(str(path), 1)
    assert len(joined) == 2


def test_brackets_go_when_an_external_address_has_them():
    """IPv6 addresses have them in URLs."""
    assert minscoop.own_addresses({"external_hostname": "[::1]"}) == ["::1"]


@pytest.mark.parametrize("name", ["\xe4..b", "me@" + "\xe4" * 64], ids=["empty label", "long label"])
def test_a_host_is_left_out_when_its_name_cannot_be_looked_up(name):
    """Python's IDNA codec rejects some non-ASCII names. The other hosts must be told our addresses all the same."""
    config = {"external_hostname": None, "hosts": [("1", name, 1)]}
    assert minscoop.own_addresses(config) == minscoop.own_addresses(dict(config, hosts=[]))


def where(x=0):
    time.sleep(0.002)
    return os.environ.get("FATE")


def test_a_program_has_hosts_when_it_makes_an_executor(guard, ssh, script, tmp_path):
    """Executor(hosts=..., rsh=..., listen=...) makes a pool that can do all that the command line's can."""
    path = tmp_path / "pool.json"
    command = f"{ssh}/ssh -v"
    with minscoop.Executor(hosts=["good:1", ("localhost", 1)], rsh=command, listen=str(path)) as executor:
        assert eventually(path.exists)
        joined = start(MINSCOOP, "--join", path, "-n", 1, env=dict(os.environ, FATE="joined"))
        seen = set()
        assert eventually(lambda: seen.update(executor.map(where, range(50))) or len(seen) == 3)
        assert seen == {None, "good", "joined"}
        assert executor.map_reduce(identity, operator.add, range(1000)) == 499500
        assert executor.submit(lambda x: x + 1, 1).result(WAIT) == 2
    assert finish(joined).returncode == 0 and json.loads((ssh / "log").read_text())[0] == "-v"
    with pytest.raises(PoolError, match="refused"):
        with minscoop.Executor(hosts="refused,good", all_hosts=True) as executor:
            executor.submit(time.sleep, 1000).result(WAIT)
    for wrong in (dict(hosts="a:x"), dict(transport="pigeon"), dict(sshd=1)):
        pytest.raises((ValueError, TypeError), minscoop.Executor, **wrong)


def test_hosts_are_checked_when_asked(ssh):
    """--check: a line per host with what it has, or why it cannot be used; exit code 0 only if all are fit."""
    for hosts, code in (("good", 0), ("good,refused,nokey", 1)):
        done = launch("--check", "--hosts", hosts)
        assert done.returncode == code and done.stderr == "", done
        head, *rows = done.stdout.splitlines()
        assert [row.split()[0] for row in rows] == ["(here)", *hosts.split(",")]
        assert head.split()[:3] == ["HOST", "LOGIN", "PYTHON"] and re.search(r"ms +\d+ MB/s$", rows[1])
        assert all(".".join(map(str, sys.version_info[:3])) in row and "GiB" in row for row in rows[:2])
        assert code == 0 or "sshd" in rows[2] and "ssh-copy-id" in rows[3]


# -- Real hosts on one machine: each has its own network, and a real sshd; needs root on Linux

HOST_MARK = "mt"  # all names begin with it and our pid, by which a run finds and removes what a killed one has left
SYSTEM = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
SSH_CONFIG = """User root\nIdentityFile "{0}/id"\nIdentitiesOnly yes\nIdentityAgent none\nBatchMode yes
StrictHostKeyChecking yes\nUserKnownHostsFile "{0}/known_hosts"\nGlobalKnownHostsFile /dev/null\n"""
SSHD_CONFIG = """HostKey /run/host/host_key\nAuthorizedKeysFile /run/host/authorized_keys\nPidFile /run/host/sshd.pid
StrictModes no\nUsePAM no\nUseDNS no\nPasswordAuthentication no\nKbdInteractiveAuthentication no
PermitRootLogin prohibit-password\nSetEnv TMPDIR=/run/host/tmp\n"""
BOOT_HOST = """
hostname {name}; ip link set lo up; ip link set eth0 up; ip address replace {address}/24 dev eth0
cd {directory}                                      # '.' stays reachable when /run covers its path
umount --recursive --lazy /run/netns                # else these copies keep the networks of others alive
for own in /run /var/log; do mount -t tmpfs tmpfs $own; done
touch /var/log/lastlog; mkdir /run/sshd /run/host; mount --no-canonicalize --bind . /run/host
mount --bind /run/host/shm /dev/shm
for file in passwd shadow hosts; do mount --bind /run/host/$file /etc/$file; done
{view}
cd /; exec /usr/sbin/sshd -D -e -f /run/host/sshd_config
"""
WALLS = {"silent": ("", ""), "closed": ("tcp dport 22 accept;", "tcp sport 22 accept;")}  # what comes in, what goes out


def system(*argv, check=True, **options):
    """Run a system tool, out of reach of the terminal's Ctrl-C; its error text becomes the exception's."""
    done = subprocess.run([*map(str, argv)], env=SYSTEM, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=50, start_new_session=True, **options)
    if check and done.returncode:
        raise RuntimeError(f"{shlex.join(done.args)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def remove_hosts(prefix):
    """Remove all namespaces, with their processes, and all links whose names begin with prefix; none is fine."""
    def named(directory):
        return [name for name in os.listdir(directory) if name.startswith(prefix)] if os.path.isdir(directory) else []
    for link in named("/sys/class/net"):
        system("ip", "link", "set", link, "up", check=False)  # so that ssh clients see their session end
    for namespace in named("/run/netns"):
        eventually_none(lambda: kill_all(pids_in(namespace)) or pids_in(namespace))
    for link in named("/sys/class/net"):  # first: a deleted namespace takes its links along, but later
        system("ip", "link", "delete", link, check=False)
    for namespace in named("/run/netns"):
        system("ip", "netns", "delete", namespace, check=False)
    if named("/run/netns") or named("/sys/class/net"):
        raise RuntimeError(f"could not remove {named('/run/netns')} {named('/sys/class/net')}")


def pids_in(namespace):
    return [int(pid) for pid in system("ip", "netns", "pids", namespace, check=False).split()]


class Host:
    """Made by ``Cluster.add``. It sees this machine's files, but has a home and /run of its own, and some are hidden
    from it; its `directory` is /run/host there, with home and tmp. Process ids are shared."""

    def __init__(self, name, address, link, namespace, directory):
        self.name, self.address, self.link, self.namespace, self.directory = name, address, link, namespace, directory

    def boot(self, view):
        """Start it. When this returns, sshd listens."""
        script = BOOT_HOST.format(name=self.name, address=self.address, directory=shlex.quote(str(self.directory)),
                                  view=view)
        with open(self.directory / "sshd.log", "ab") as log:  # each program becomes the next: sshd has this pid
            self.sshd = subprocess.Popen(["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts",
                                          "--propagation", "private", "sh", "-ec", script], env=SYSTEM,
                                         stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        eventually(lambda: (self.directory / "sshd.pid").exists() or self.sshd.poll() is not None, 10)
        if not (self.directory / "sshd.pid").exists():
            raise RuntimeError(f"{self.name} does not start: {(self.directory / 'sshd.log').read_text()}")

    def command(self, *argv):
        """The words that run argv there without ssh, also if it is cut off."""
        return ["nsenter", f"--target={self.sshd.pid}", "--mount", "--uts", "--net", "--", *map(str, argv)]

    def left(self):
        """The processes there, sshd itself apart, and what is in its temporary directory."""
        return [f"{pid} {command_of(pid)}" for pid in pids_in(self.namespace) if pid != self.sshd.pid] + \
            os.listdir(self.directory / "tmp") + os.listdir(self.directory / "shm")

    def kill(self):
        """As a machine that crashes, and is back in the network: all processes end, new connections are refused."""
        eventually_none(lambda: kill_all(pids_in(self.namespace)) or pids_in(self.namespace))
        self.sshd.wait(10)
        for path in (self.directory / "shm").iterdir():
            shutil.rmtree(path)

    def cut(self):
        """Pull the network cable: sessions hang, new connections time out."""
        system("ip", "link", "set", self.link, "down")

    def heal(self):
        """Plug it in again."""
        system("ip", "link", "set", self.link, "up")

    def wall(self, kind):
        """'closed': only TCP to port 22 comes in, nothing goes out; 'silent': all is dropped."""
        rules = [f"table netdev wall {{ chain {way} {{ type filter hook {way} device eth0 priority 0; policy drop; "
                 f"ether type arp accept; {accept} }}; }}\n" for way, accept in zip(("ingress", "egress"), WALLS[kind])]
        system("ip", "netns", "exec", self.namespace, "nft", "-f", "-", input="".join(rules))


class Cluster:
    """Hosts on one bridge, on which this machine is `address`. In `env`, plain `ssh NAME` reaches them."""

    numbers = itertools.count()

    def __init__(self, directory):
        names = sum((os.listdir(place) for place in ("/run/netns", "/sys/class/net") if os.path.isdir(place)), [])
        for owner in {match[1] for match in (re.match(HOST_MARK + r"(\d+)\.", name) for name in names) if match}:
            if not os.path.exists(f"/proc/{owner}"):
                remove_hosts(f"{HOST_MARK}{owner}.")
        self.prefix, self.hosts = f"{HOST_MARK}{os.getpid()}.{next(self.numbers)}.", {}
        self.directory, self.bridge = pathlib.Path(directory).resolve() / "cluster", self.prefix + "br"
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self.start()
            on_failure.pop_all()

    def start(self):
        """A bridge with a network of its own, a key, and an ssh that uses it."""
        (self.directory / "bin").mkdir(parents=True)
        (self.directory / "ssh_config").write_text(SSH_CONFIG.format(self.directory))
        ssh = self.directory / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {shlex.quote(str(self.directory / "ssh_config"))} "$@"\n')
        ssh.chmod(0o755)
        system("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / "id")
        # With a fixed MAC: else the bridge changes it with each new port, and the hosts' ARP entries go stale.
        system("ip", "link", "add", self.bridge, "address", "02:00:00:00:00:01", "type", "bridge")
        system("ip", "link", "set", self.bridge, "up")
        for number in range(os.getpid(), os.getpid() + 512):  # 198.18.0.0/15 is reserved for test networks
            self.net = f"198.{18 + number // 256 % 2}.{number % 256}."
            with contextlib.suppress(RuntimeError):  # that route exists: somebody else has it
                system("ip", "route", "add", self.net + "0/24", "dev", self.bridge)
                break
        self.address = self.net + "1"
        system("ip", "address", "add", f"{self.address}/24", "dev", self.bridge, "noprefixroute")

    def add(self, name, hide=(), bind=(), wall=None):
        """Make and boot a host. hide: directories that are empty there. bind: pairs of a file and what stands in its
        place, where symlinks are followed. wall: see ``Host.wall``."""
        number, quote = len(self.hosts) + 2, shlex.quote
        view = [f"mount --bind {quote(str(source))} {quote(str(path))}" for path, source in bind]
        view += [f"mount -t tmpfs -o mode=755 tmpfs {quote(str(path))}" for path in hide]  # last: may hide sources
        host = Host(name, f"{self.net}{number}", f"{self.prefix}{number}", self.prefix + name, self.directory / name)
        for folder in "home", "tmp", "shm":
            (host.directory / folder).mkdir(parents=True)
        users = pathlib.Path("/etc/passwd").read_text()
        login = re.sub("^root:.*:", "root:x:0:0:root:/run/host/home:", users, flags=re.M)
        for file, text in {"passwd": login, "shadow": "root:*:19000::::::\n", "sshd_config": SSHD_CONFIG,
                           "hosts": f"127.0.0.1 localhost\n{host.address} {name}\n",
                           "authorized_keys": (self.directory / "id.pub").read_text()}.items():
            (host.directory / file).write_text(text)
        system("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host.directory / "host_key")
        with open(self.directory / "ssh_config", "a") as config, open(self.directory / "known_hosts", "a") as known:
            config.write(f"Host {name}\nHostName {host.address}\n")
            known.write(f"{host.address} {(host.directory / 'host_key.pub').read_text()}")
        mac = f"02:00:00:00:01:{number:02x}"
        system("ip", "netns", "add", host.namespace)
        system("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "address", mac,
               "netns", host.namespace)
        system("ip", "link", "set", host.link, "master", self.bridge, "up")
        # A permanent ARP entry: else a cut means 'No route to host' after a while, as it does only within a LAN.
        system("ip", "neighbour", "add", host.address, "lladdr", mac, "dev", self.bridge, "nud", "permanent")
        self.hosts[name] = host
        host.boot("\n".join(view))
        socket.create_connection((host.address, 22), timeout=10).close()
        if wall:
            host.wall(wall)
        return host

    @property
    def env(self):
        return {**os.environ, "PATH": f"{self.directory}/bin:{os.environ['PATH']}"}

    def close(self):
        """Remove everything, whatever state it is in."""
        try:
            remove_hosts(self.prefix)
            for host in self.hosts.values():
                host.sshd.wait(10)
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


PROGRAM = {  # a program with modules of its own
    "program.py": """
        import os, sys, time
        import own
        from minscoop import futures
        def work(x):
            from package.inner import late
            time.sleep(0.002)
            return late.square(own.same(x)), os.uname().nodename, os.path.exists(__file__)
        if __name__ == "__main__":
            seen = set()
            while {host for host, _ in seen} < set(sys.argv[1].split(",")):
                results = list(futures.map(work, range(100)))
                assert [value for value, _, _ in results] == [x * x for x in range(100)]
                seen.update((host, there) for _, host, there in results)
            print(*sorted(host + "+" * there for host, there in seen))
            try: futures.submit(own.fail, 0).result()
            except ZeroDivisionError as error: assert "return 1 / x  # own" in str(error.__cause__)
    """,
    "own.py": "from package import same\ndef fail(x): return 1 / x  # own\n",
    "package/__init__.py": "from .inner import same\n",
    "package/inner/__init__.py": "def same(x): return x\n",
    "package/inner/late.py": "import space.module\nsquare = space.module.square\n",
    "space/module.py": "def square(x): return x * x\n",  # a namespace package
    "squares.py": SQUARES,
}


@pytest.fixture(scope="module")
def cluster():
    """Hosts that do not see the program's directory: alpha, beta and gamma are open, the others only to ssh."""
    if not LINUX or os.geteuid() != 0:
        skip_or_fail("needs root on Linux")
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(Cluster(stack.enter_context(short_directory())))
            program = cluster.program = pathlib.Path(stack.enter_context(short_directory()))
            for path, text in PROGRAM.items():
                (program / path).parent.mkdir(parents=True, exist_ok=True)
                (program / path).write_text(textwrap.dedent(text))
            shutil.copy(MINSCOOP, program)
            for name in "alpha", "beta", "gamma":
                cluster.add(name, hide=[program])
            for name in "closed", "closed2":
                cluster.add(name, hide=[program], wall="closed")
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            skip_or_fail(f"cannot make hosts here: {error}")
        yield cluster


def begin(cluster, *args, **kwargs):
    """Start minscoop in the program's directory, where `ssh` reaches the hosts."""
    return start("minscoop.py", *args, cwd=cluster.program, env=cluster.env, **kwargs)


def run(cluster, *args):
    """The same, to its end."""
    return finish(begin(cluster, *args), "")


def nothing_left(*hosts):
    """Assert that within two seconds neither processes nor files of a run are left on these hosts."""
    left = eventually_none(lambda: [entry for host in hosts for entry in host.left()], two_seconds())
    assert not left, left


@pytest.mark.parametrize("how", [["program.py"], ["-m", "program"]], ids=" ".join)
def test_every_host_takes_part_when_the_program_is_on_this_machine_only(cluster, how):
    """The hosts, listed in a file, see neither the program nor its modules; the root sends them. Data goes by TCP."""
    (cluster.program / "hosts.txt").write_text("# ours\nalpha 2\nbeta slots=2\n\ngamma\nlocalhost 1\n")
    done = run(cluster, "-v", "--hosts", "hosts.txt", *how, f"alpha,beta,gamma,{NODE}")
    assert (done.returncode, done.stdout) == (0, names_of("alpha", "beta", "gamma", NODE + "+")), done
    assert done.stderr.count(f"data by tcp (tcp://{cluster.address}:") == 3
    nothing_left(*cluster.hosts.values())


@pytest.mark.parametrize("remote", ["ssh", "another"])
def test_every_host_takes_part_when_only_the_remote_command_gets_through(cluster, script, remote):
    """Each host's firewall lets nothing but ssh through, and no option says so; or the remote command is not ssh."""
    reach = script("#!/bin/sh\ncase $1 in\n" + "".join(
        f"{host.name}) set -- {shlex.join(host.command('env', '-i', 'TMPDIR=/run/host/tmp'))} \"$2\";;\n"
        for host in cluster.hosts.values()) + "esac\nexec \"$@\"\n", "reach")
    reach.chmod(0o755)
    done = run(cluster, "-v", *(["-e", f"{reach} {{host}}"] if remote == "another" else []), "--hosts",
               "closed:2 closed2:1", "program.py", "closed,closed2")
    assert (done.returncode, done.stdout) == (0, "closed closed2\n"), done
    assert done.stderr.count("data by stdio") == 2
    assert done.stderr.partition(" tasks in ")[0].count("\n") == 3
    nothing_left(cluster.hosts["closed"], cluster.hosts["closed2"])


def test_hosts_take_part_or_are_told_apart_when_they_are_unlike(cluster, tmp_path):
    """One lacks pyzmq, which is sent; one has another Python, one has none, one does not answer. Each gets one line."""
    zmq = pytest.importorskip("zmq")
    venv, python3 = sys.prefix != sys.base_prefix, shutil.which("python3", path=SYSTEM["PATH"]) or sys.executable
    base = os.path.join(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
    stand_ins = {"base": f'#!/bin/sh\nexec {base} "$@"\n', "none": "",
                 "other": FAKE_PYTHON % ("3, 7, 4", "linux", os.uname().machine, "null")}
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755 if text else 0o644)
    cluster.add("bare", hide=[cluster.program, sys.prefix if venv else pathlib.Path(zmq.__file__).parent.parent],
                bind=[(python3, tmp_path / "base")] * (venv and not os.path.samefile(python3, base)))
    cluster.add("other", hide=[cluster.program], bind=[(sys.executable, tmp_path / "other")])
    cluster.add("none", hide=[cluster.program], bind=[(path, tmp_path / "none") for path in {sys.executable, python3}])
    cluster.add("silent", hide=[cluster.program], wall="silent")
    with open(tmp_path / "stderr", "w") as stderr:
        process = begin(cluster, "-v", "--hosts", "bare:1,other:1,none:1,silent:1,localhost:1", "-e",
                        "ssh -oConnectTimeout=1", "squares.py", f"bare,{NODE}", tmp_path / "go", stderr=stderr)
        done = finish_after(process, tmp_path / "go", lambda: lines_in(tmp_path / "stderr") >= 5)
    text = (tmp_path / "stderr").read_text()
    assert (done.returncode, done.stdout) == (0, names_of("bare", NODE)), text
    for told in ("host other: has Python 3.7.4", "host none: no Python", "host silent: no answer", "host bare: Python"):
        assert text.count(told) == 1, text
    nothing_left(*cluster.hosts.values())


@linux_only
def test_strangers_get_nothing_when_they_know_the_port(cluster, script, tmp_path):
    """With no key, wrong keys or garbage they get no answer and do no harm. No argument or environment has a key."""
    zmq = pytest.importorskip("zmq")
    copy = patched(tmp_path, f"""
        original = Keeper.make_keys
        def make_keys(self):
            original(self)
            with open("{tmp_path}/keys", "w") as file:
                json.dump([self.config["port"], *self.config["keys"], self.config["server_secret"]], file)
        Keeper.make_keys = make_keys""")
    process = start(copy, "--hosts", "alpha:2,closed:1,localhost:1", "--listen", tmp_path / "pool.json", "squares.py",
                    f"alpha,closed,{NODE}", tmp_path / "go", cwd=cluster.program, env=cluster.env)
    assert eventually(lambda: all(len(cluster.hosts[name].left()) >= 6 for name in ("alpha", "closed")))
    port, server, *keys = json.loads((tmp_path / "keys").read_text())
    secrets = {key.encode() for key in (server, *keys)}
    pids = processes_of(os.environ["MINSCOOP_TEST"]) + [
        pid for name in ("alpha", "closed") for pid in pids_in(cluster.hosts[name].namespace)]
    assert len(secrets) == 4 and len(pids) >= 16
    for pid, name in itertools.product(pids, ["cmdline", "environ"]):
        with contextlib.suppress(OSError):
            content = pathlib.Path(f"/proc/{pid}/{name}").read_bytes()
            assert not [key for key in secrets if key in content]
    with zmq.Context() as context, socket.create_connection((cluster.address, port), timeout=WAIT) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\n\r\n" + os.urandom(10_000))
        strangers, own, other = [], zmq.curve_keypair(), zmq.curve_keypair()
        for server_key, pair in ((None, None), (other[0], own), (server.encode(), own)):
            stranger = context.socket(zmq.DEALER)
            stranger.linger = 0
            stranger.identity = b"1"  # a host that is there
            if pair:
                stranger.curve_serverkey, (stranger.curve_publickey, stranger.curve_secretkey) = server_key, pair
            stranger.connect(f"tcp://{cluster.address}:{port}")
            with contextlib.suppress(zmq.Again):  # it has been turned away already
                for message in ([b"HELLO"], [b"PROBE"], [b"FETCH", b"/etc/passwd"], [b"STOP"]):
                    stranger.send_multipart(message, zmq.NOBLOCK)
            strangers.append(stranger)
        time.sleep(0.5)
        assert not [stranger for stranger in strangers if stranger.poll(0)]
        done = finish_after(process, tmp_path / "go")
        assert (done.returncode, done.stdout) == (0, names_of("alpha", "closed", NODE)), done
        for stranger in strangers:
            stranger.close()
    nothing_left(*cluster.hosts.values())


@linux_only
@pytest.mark.parametrize("end", ["raises", signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_on_real_hosts_when_a_program_ends(cluster, tmp_path, end):
    """By an exception, by kill -9, by Ctrl-C: no process and no file on any side after two seconds."""
    (cluster.program / "ends.py").write_text(textwrap.dedent("""
        import sys, time
        from minscoop import futures
        if __name__ == "__main__":
            running = futures.map(time.sleep, [float(sys.argv[1])] * 9)
            sys.stdin.readline()
            raise ValueError("end")
    """))
    process = begin(cluster, "--hosts", "alpha:2,closed:2,localhost:1", "ends.py", 0.1 if end == "raises" else 1000)
    assert eventually(lambda: all(len(cluster.hosts[name].left()) >= 6 for name in ("alpha", "closed")))
    if end == "raises":
        process.stdin.write("\n")
        process.stdin.flush()
    elif end == signal.SIGINT:
        os.killpg(process.pid, end)
    else:
        os.kill(process.pid, end)
    nothing_left(*cluster.hosts.values())
    done = finish(process)
    assert done.returncode in ((1,) if end == "raises" else (-end, 128 + end))
    assert done.stderr.count("Traceback") == (end in ("raises", signal.SIGINT)), done.stderr


@linux_only
@pytest.mark.parametrize("how", ["ssh is killed", "the host crashes", "its cable is cut"])
def test_the_result_is_right_when_a_real_host_is_lost(cluster, tmp_path, how):
    """What ran there runs elsewhere; one line says which host it was. A host that is cut off ends by itself."""
    name = how.split()[-1]
    host = cluster.add(name, hide=[cluster.program])
    with open(tmp_path / "stderr", "w") as stderr:
        process = start(patched(tmp_path, "HEARTBEAT, SILENCE = 1.5, 9.0"), "--hosts", f"{name}:2,beta:1,localhost:1",
                        "squares.py", f"{name},beta,{NODE}", tmp_path / "go", cwd=cluster.program, env=cluster.env,
                        stderr=stderr)
    assert eventually(lambda: len(host.left()) >= 6)
    time.sleep(1)
    if how == "ssh is killed":
        ours = processes_of(os.environ["MINSCOOP_TEST"])
        kill_all([pid for pid in ours if read_proc(pid, "cmdline").endswith(f"\0{name}\0sh\0".encode())])
    elif how == "the host crashes":
        host.kill()
    else:
        host.cut()
    done = finish_after(process, tmp_path / "go", lambda: ": lost: " in (tmp_path / "stderr").read_text())
    assert done.returncode == 0 and NODE in done.stdout.split() and "beta" in done.stdout.split(), done
    said = re.sub(f"minscoop: host {name}: Connection to .* closed.*\n", "", (tmp_path / "stderr").read_text())
    assert re.fullmatch(f"minscoop: host {name}: lost: .*\n", said), said  # apart from what ssh itself says
    nothing_left(cluster.hosts["beta"])
    if host.sshd.poll() is None:
        assert not eventually_none(lambda: [entry for entry in host.left() if "sshd" not in entry], 20)


@linux_only
def test_a_host_is_kept_when_its_link_needs_long_for_a_large_message(cluster, tmp_path):
    """Argument and result each need longer than SILENCE, yet the task must run once, without any warning; by TCP and by
    stdio, at the same time."""
    (cluster.program / "heavy.py").write_text(textwrap.dedent("""
        import sys
        from minscoop import futures
        def same(data, path):
            with open(path, "a") as file: file.write("run ")
            return data
        if __name__ == "__main__":
            data = bytes(9_000_000)
            assert futures.submit(same, data, sys.argv[1]).result() == data
    """))
    transports = {"beta": "tcp", "gamma": "stdio"}
    hosts = [cluster.hosts[name] for name in transports]
    ends = [words for host in hosts for words in (["tc", "qdisc", "{}", "dev", host.link],
                                                  host.command("tc", "qdisc", "{}", "dev", "eth0"))]
    slow = ["root", "tbf", "rate", "8mbit", "burst", "32k", "latency", "200ms"]  # a megabyte in a second
    path = patched(tmp_path, "HEARTBEAT, SILENCE = 1.0, 6.0")
    with contextlib.ExitStack() as stack:
        try:
            for end in ends:
                system(*(word.format("add") for word in end), *slow)
                stack.callback(system, *(word.format("delete") for word in end), "root")
        except (RuntimeError, OSError) as error:
            skip_or_fail(f"cannot make a link slow: {error}")
        runs = [start(path, "--hosts", f"{name}:1", "--transport", transport, "heavy.py", tmp_path / name,
                      cwd=cluster.program, env=cluster.env) for name, transport in transports.items()]
        for name, done in zip(transports, [finish(run) for run in runs]):
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
            assert (tmp_path / name).read_text() == "run "
    nothing_left(*hosts)


# -- A real Slurm of two nodes on this machine; needs root, Debian's slurm-wlm and munge

SLURM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # where the daemons are
SLURM_CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
MpiDefault=none
KillWait=2
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


class Slurm:
    """Slurm's daemons, for nodes n1 and n2; all files are in `home`, which is removed at the end, as are all jobs."""

    def __init__(self, directory):
        self.home, self.daemons = pathlib.Path(directory) / "slurm", []
        with contextlib.ExitStack() as stack:  # free ports, below those that outgoing connections take
            ports = []
            while len(ports) < 3:
                probe = stack.enter_context(socket.socket())
                with contextlib.suppress(OSError):
                    probe.bind(("", random.randrange(20000, 32000)))
                    ports.append(probe.getsockname()[1])
        for name in "state", "n1", "n2":
            (self.home / name).mkdir(parents=True)
        (self.home / "slurm.conf").write_text(SLURM_CONF.format(home=self.home, host=NODE.split(".")[0], ports=ports))
        (self.home / "munge.key").write_bytes(os.urandom(128))
        (self.home / "munge.key").chmod(0o600)

    @property
    def env(self):
        return {**{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
                "PATH": SLURM_PATH, "SLURM_CONF": str(self.home / "slurm.conf")}

    def __enter__(self):
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self.start("munged", "--foreground", "--force", "--socket", self.home / "munge.socket",
                       "--key-file", self.home / "munge.key",
                       *(f"--{name}-file={self.home}/munged.{name}" for name in ("log", "pid", "seed")))
            eventually((self.home / "munge.socket").exists)
            self.start("slurmctld", "-D", "-c")
            self.start("slurmd", "-D", "-N", "n1")
            self.start("slurmd", "-D", "-N", "n2")
            if not eventually(lambda: self.call("sinfo", "-hN", "-o", "%T").split() == ["idle", "idle"]):
                raise RuntimeError("\n".join(path.read_text()[-1000:] for path in self.home.glob("*.out")))
            on_failure.pop_all()
        return self

    def start(self, *command):
        with open(self.home / f"{command[0]}.out", "ab") as out:
            self.daemons.append(subprocess.Popen([*map(str, command)], env=self.env, cwd="/", stdin=subprocess.DEVNULL,
                                                 stdout=out, stderr=out, start_new_session=True))

    def call(self, *command):
        """The standard output of a Slurm command."""
        return subprocess.run([*map(str, command)], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, timeout=20).stdout

    def submit(self, directory, *lines):
        """Queue a batch script for two tasks on each of two nodes; returns the job's number."""
        (directory / "job.sh").write_text("\n".join(["#!/bin/sh", f"cd {directory}", *lines]) + "\n")
        return self.call("sbatch", "--parsable", "-N2", "--ntasks-per-node=2", "--mem=100", "-o", directory / "out",
                         directory / "job.sh").strip()

    def finish(self, job):
        """Wait for a job; returns its state. (``sbatch --wait`` looks only every ten seconds.)"""
        states = []
        eventually(lambda: states.append(self.call("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip())
                   or states[-1] not in ("PENDING", "RUNNING", "COMPLETING"), 50)
        return states[-1]

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End all jobs, then the daemons, munged last; and what is left of either."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.call("scancel", "--user=root")
            eventually(lambda: not self.call("squeue", "-h"), 8)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
        eventually_none(lambda: kill_all(self.processes()) or self.processes())
        for daemon in self.daemons:
            daemon.wait(5)
        shutil.rmtree(self.home, ignore_errors=True)

    def processes(self):
        """Those with this configuration in their environment (daemons, jobs), or a file of it open (slurmstepd)."""
        mark, pids = f"\0SLURM_CONF={self.home}/slurm.conf\0".encode(), []
        for pid in all_pids():
            with contextlib.suppress(OSError):  # gone
                proc = pathlib.Path(f"/proc/{pid}")
                if pid != os.getpid() and (mark in b"\0" + (proc / "environ").read_bytes() or any(
                        os.readlink(fd).startswith(f"{self.home}/") for fd in (proc / "fd").iterdir())):
                    pids.append(pid)
        return pids


@pytest.fixture(scope="module")
def slurm():
    missing = [name for name in ("munged", "slurmctld", "slurmd", "srun") if not shutil.which(name, path=SLURM_PATH)]
    if not LINUX or os.geteuid() or missing:
        skip_or_fail(f"not installed: {', '.join(missing)}" if missing else "needs root on Linux")
    with short_directory() as directory, Slurm(directory) as slurm:
        yield slurm


SLURM_SQUARES = SQUARES.replace('"FATE"', '"SLURMD_NODENAME"')


@pytest.mark.parametrize("options, way", [("", "tcp"), ("--transport stdio", "stdio")])
def test_all_nodes_take_part_when_a_slurm_job_runs_a_program(slurm, script, tmp_path, options, way):
    """`python minscoop.py script.py` in the batch script, and nothing more; -v says what was found."""
    command = f"{sys.executable} {MINSCOOP} -v {options} {script(SLURM_SQUARES)} n1,n2"
    state = slurm.finish(slurm.submit(tmp_path, command))
    out = (tmp_path / "out").read_text()
    assert state == "COMPLETED" and "n1 n2" in out.splitlines(), (
        state, out, slurm.call("squeue", "-s"), list(map(command_of, processes_of(os.environ["MINSCOOP_TEST"]))))
    assert "Slurm job, by SLURM_JOB_NODELIST: n1:2, n2:2" in out and f"2 workers, data by {way}" in out


def test_nothing_is_left_when_the_root_is_killed_in_a_slurm_job(slurm, script, tmp_path):
    """kill -9: two seconds later there is nothing of it on any node, while the job goes on."""
    def ours():
        return [pid for pid in processes_of(os.environ["MINSCOOP_TEST"])
                if re.search("python|srun", command_of(pid) or "")]
    job = slurm.submit(tmp_path, f"{sys.executable} {MINSCOOP} {script(SLURM_SQUARES)} n1,n2 never & echo $! >root",
                       "until [ -e end ]; do sleep 0.1; done")
    assert eventually(lambda: len(ours()) >= 11)
    os.kill(int((tmp_path / "root").read_text()), signal.SIGKILL)
    left = [command_of(pid) for pid in eventually_none(ours, two_seconds())]
    touch(tmp_path / "end")
    assert slurm.finish(job) == "COMPLETED" and not left, left


# ---------------------------------------------------------------------------------------------------
# 13  Lists of hosts


LISTS = [  # what the user writes, what it means
    ("a", [("a", None)]), ("a:4", [("a", 4)]), ("a, b ,,c\n", [("a", None), ("b", None), ("c", None)]),
    ("a,b:4,user@c,node[01-03]:8,localhost", [("a", None), ("b", 4), ("user@c", None), ("node01", 8), ("node02", 8),
                                              ("node03", 8), ("localhost", None)]),
    ("a a b", [("a", 2), ("b", None)]), ("a a:3 b", [("a", 4), ("b", None)]), ("a:2,a:3", [("a", 5)]),
    ("n[1,5-7]", [("n1", None), ("n5", None), ("n6", None), ("n7", None)]), ("n[9-10]", [("n9", None), ("n10", None)]),
    ("nodes[006,011]:2", [("nodes006", 2), ("nodes011", 2)]), ("me@n[1-2]", [("me@n1", None), ("me@n2", None)]),
    ("a[1-2]b[03-04]", [(name, None) for name in ("a1b03", "a1b04", "a2b03", "a2b04")]),
    ("[::1]", [("::1", None)]), ("[::1]:4,b", [("::1", 4), ("b", None)]),
    ("[fe80::1%br-lan.7]:2", [("fe80::1%br-lan.7", 2)]),
    ("me@[::1]:3", [("me@::1", 3)]), ("10.0.0.[1-2]:2", [("10.0.0.1", 2), ("10.0.0.2", 2)]),
    ("a 4, b 2 c\nd 1", [("a", 4), ("b", 2), ("c", None), ("d", 1)]), ("a 4b", [("a", None), ("4b", None)]),
    (["a", "b 3", "c slots=2", ("d", 4), ("e", None)], [("a", None), ("b", 3), ("c", 2), ("d", 4), ("e", None)]),
    (["a workers=2"], [("a", 2)]),  # as older versions of SCOOP wrote it
    (["a,b:2", "n[1,3],c 4"], [("a", None), ("b", 2), ("n1", None), ("n3", None), ("c", 4)]),
    ({"a": 4, "me@b": None}, [("a", 4), ("me@b", None)]), (["pod/x", "8a/y:2"], [("pod/x", None), ("8a/y", 2)])]


@pytest.mark.parametrize("source, pairs", LISTS, ids=str)
def test_hosts_are_understood_when_written_in_any_usual_way(source, pairs):
    """Names with and without users and numbers of workers, Slurm's bracket forms; workers of equal names add up."""
    assert minscoop.parse_hosts(source) == pairs


BAD_LISTS = [  # what the user writes, what the error says of it
    ("", "no hosts"), (" , ", "no hosts"), ([], "no hosts"), ("a:", "a:"), ("a:x", "a:x"), (":4", ":4"),
    ("a:-1", "a:-1"), ("a:1.5", "a:1.5"), ("a:4:5", "a:4:5"), ("a=b", "a=b"), ("a@b@c", "a@b@c"), ("-oX=x", "-oX=x"),
    ("a,-b", "-b"), ("me@-b", "me@-b"), ("-m@b", "-m@b"), ("::1", "::1"), ("n[1-3", "n[1-3"), ("n1-3]", "n1-3]"),
    ("n[]", "n[]"), ("n[3-1]", "3-1"), ("n[1-]", "1-"), ("n[a-b]", "a-b"), ("n[1,,2]", "n[1,,2]"), ("n[²]", "n[²]"),
    ("n[0-9999999999999]", "100000"), ("n[0-9999][0-9999][0-9999]", "100000"), ("n[0-999],m[0-999][0-999]", "100000"),
    ("n[0-99999],m", "more than 100000 hosts"),
    ([("-oProxyCommand=x", 3)], "-oProxyCommand=x"), ([("b", -3)], "-3"), ([("b", "x")], "'x'"), (("b", 3), "3"),
    (3, "3 is no list"),
    ([("b",)], "('b',)"), (["a b"], "a b"), ("a:22222", "a:22222"), ("a:" + "9" * 5000, "a:9"), ("n{1..3}", "n{1..3}"),
    ("none.txt", "'none.txt': No such file"), ("./none", "'./none': No such file"), ("ssh://a", "ssh://a"),
    (["8/a"], "'8/a' is not a host"), (["a", "8/me@b"], "'8/me@b' is not"), (["me@8/a:2"], "'me@8/a:2' is not")]


@pytest.mark.parametrize("source, text", BAD_LISTS, ids=str)
def test_the_culprit_is_named_when_a_list_of_hosts_makes_no_sense(source, text):
    """A ValueError quotes it, at once however many hosts it means. No name begins with '-': ssh would see an option."""
    with pytest.raises(ValueError) as caught:
        minscoop.parse_hosts(source)
    assert text in str(caught.value) and len(str(caught.value)) < 300


def test_a_number_of_workers_is_understood_when_it_comes_from_numpy():
    """As in {name: n for name, n in ...} over its arrays; it ends up in JSON."""
    numpy = pytest.importorskip("numpy")
    assert json.dumps(minscoop.parse_hosts({"a": numpy.int64(2), "b": numpy.uint8(0)})) == '[["a", 2], ["b", 0]]'
    pytest.raises(ValueError, minscoop.parse_hosts, [("a", numpy.float64(2))])


def test_a_file_of_hosts_is_understood_when_its_lines_have_any_usual_form(tmp_path):
    """Comments, blank lines, `name`, `name 4`, OpenMPI's `slots=4`, `name:4`, bracket forms, lists as Slurm writes
    them; with a byte order mark, and comments in any encoding; a file needs no extension, and may be a Path."""
    text = "\ufeffa # caf\xe9\n\nb 4   # four\n  c slots=2 max_slots=4\nd:3\nme@n[01-02] 2\r\na\n[::1] 2\n" \
           "x[1,3],y:2 , z\n"
    for path in str(tmp_path / "hosts.txt"), str(tmp_path / "machines"), tmp_path / "machines":
        pathlib.Path(path).write_bytes(text.encode().replace(b"\xc3\xa9", b"\xe9"))
        assert minscoop.parse_hosts(path) == [("a", 2), ("b", 4), ("c", 2), ("d", 3), ("me@n01", 2), ("me@n02", 2),
                                              ("::1", 2), ("x1", None), ("x3", None), ("y", 2), ("z", None)]


@pytest.mark.parametrize("line", [
    "a b", "a 4 5", "a slots=x", "a slots = 4", "-a 4", "n[1-", "a:b", "n[0-999999]", "node1 4 extra", "node1:four",
    "ssh me@a", "me@a:22222", "a 4.5", "a -4", "a: 4", "a=4", "fe80::1 4", "n* 4", "[gpus]", "a ansible_host=b",
    "10.0.0.1 a a.lab", "a;4", "import os", "8/a"])
def test_file_and_line_are_named_when_a_line_makes_no_sense(tmp_path, line):
    """As compilers do; with what to write instead."""
    (tmp_path / "hosts").write_text(f"# comment\nfine\n{line}\nfine too\n")
    with pytest.raises(ValueError, match=r"hosts, line 3: .*" + re.escape(line.split()[0].strip("[]"))) as caught:
        minscoop.parse_hosts(str(tmp_path / "hosts"))
    assert re.search(r"such as 01-16|name:4 .*node\[01-16\]:8; a port .*ssh -p|more than 100000", str(caught.value))


@pytest.mark.parametrize("content, text", [
    (b"", "no hosts in .*name:4"), (b"# none\n", "no hosts in .*name:4"), (b"\xff\xfea\x00", "hosts.txt, line 1"),
    (bytes(range(256)), "hosts.txt, line 1"), (b"caf\xe9", "hosts.txt, line 1"), (None, "hosts.txt': Is a directory$")],
    ids=repr)
def test_the_file_is_named_when_it_is_none(tmp_path, content, text):
    """No file of hosts, that is: an empty or binary one, one in another encoding, or a directory."""
    path = tmp_path / "hosts.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match="hosts.txt") as caught:
        minscoop.parse_hosts(str(path))
    assert re.search(text, str(caught.value))


def test_a_name_is_a_hosts_when_a_directory_has_it_too(tmp_path, monkeypatch):
    """A directory of results, say: only a file can be a list of hosts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "node1").mkdir()
    assert minscoop.parse_hosts("node1") == [("node1", None)]


@pytest.mark.parametrize("hosts, total, dealt", [
    ("a:4,b:4", 8, "a:4,b:4"), ("a:4,b:4", 5, "a:4,b:1"), ("a:4,b:4", 4, "a:4"), ("a:4,b:4", 1, "a:1"),
    ("a:4,b:4", 11, "a:6,b:5"), ("a,b", 5, "a:3,b:2"), ("a,b:3", 2, "a:1,b:1"), ("a,b,c", 2, "a:1,b:1"),
    ("a:1,b:1,c:5", 9, "a:2,b:2,c:5"), ("a:0,b:2,c:1", 5, "b:3,c:2")])
def test_workers_are_dealt_as_scoop_does_when_their_total_is_given(hosts, total, dealt):
    """-n fills the hosts in their order, and deals the rest round robin."""
    assert minscoop.deal(minscoop.parse_hosts(hosts), total) == minscoop.parse_hosts(dealt)
    assert minscoop.deal([("a", 10 ** 20), ("b", 1)], total) == [("a", total)]


def test_this_machine_is_known_when_it_is_in_the_list(monkeypatch):
    """By its usual names, in full and in short; with a user in front (me@localhost) it is reached as any other host."""
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(nodename="here.lab.org"))
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    names = ["localhost", "127.0.0.1", "::1", "here.lab.org", "here", "n1"]
    assert all(map(minscoop.is_local, names))
    monkeypatch.delenv("PE_HOSTFILE", raising=False)
    monkeypatch.setenv("HOSTNAME", "there.lab.org")  # it may come from where the job was submitted
    others = ["there", "here.lab", "her", "me@localhost", "me@here", "n2", "lab.org", ""]
    assert not any(map(minscoop.is_local, [*others, "there.lab.org"]))
    monkeypatch.setenv("PE_HOSTFILE", "hosts")  # of SGE, which sets both
    assert minscoop.is_local("there.lab.org") and not any(map(minscoop.is_local, others))


def make_programs(path):
    """A file and a directory that are programs, and a directory that is none."""
    for name in "app", "results":
        (path / name).mkdir()
    touch(path / "app" / "__main__.py")
    touch(path / "program")


@pytest.mark.parametrize("words, joined", [
    ("--host a a b p.py --host c", "--host a,a,b p.py --host c"), ("--hosts=a,b p.py x", "--hosts=a,b p.py x"),
    ("--host a b -n 2 p.py", "--host a,b -n 2 p.py"), ("--host a --host b c p.py", "--host a --host b,c p.py"),
    ("--host a b -m m --host c d", "--host a,b -m m --host c d"), ("--host a b -c c d", "--host a,b -c c d"),
    ("--host a b -- p", "--host a,b -- p"), ("--hostfile h.txt p.py", "--hostfile h.txt p.py"), ("--host", "--host"),
    ("-e ssh --host a b --check", "-e ssh --host a,b --check"), ("-- p --host a b", "-- p --host a b"), ("-n", "-n"),
    ("--host a program", "--host a program"), ("p.py --host a b", "p.py --host a b"), ("-mm -q x", "-m m -q x"),
    ("-n 2 -ccode --host a b", "-n 2 -c code --host a b"), ("-qimm --host a b", "-qi -m m --host a b"),
    ("- --host a b", "- --host a b"), ("-vn 2 p.py -n 3", "-vn 2 p.py -n 3"),
    ("--host a results program x", "--host a,results program x"), ("--host a app x", "--host a app x")])
def test_several_names_are_one_list_when_they_follow_host(tmp_path, monkeypatch, words, joined):
    """`--host a a b script.py`, as in SCOOP: up to an option or the program, which is a file, ends with .py, or is a
    directory with a __main__.py. A directory of results may have a host's name."""
    monkeypatch.chdir(tmp_path)
    make_programs(tmp_path)
    options, kind, program = minscoop.split_words(minscoop.make_parser(), words.split())
    assert [*options, *filter(None, [kind]), *program] == joined.split()


@pytest.mark.parametrize("words, taken", [
    ("new p.py", ["new"]), ("results p.py", ["results"]), ("program x", []), ("app x", []), ("p.py x", []), ("", [])])
def test_a_profile_has_a_directory_when_what_follows_cannot_be_the_program(tmp_path, monkeypatch, words, taken):
    """Else a program that is a directory would not run, and would get the files of the profile."""
    monkeypatch.chdir(tmp_path)
    make_programs(tmp_path)
    options, _, _ = minscoop.split_words(minscoop.make_parser(), ["--profile", *words.split()])
    assert options == ["--profile", *taken]


JOBS = [  # the variables of a batch job, the files that they name, the hosts that it has
    ("SLURM_JOB_NODELIST=n[1-4] SLURM_TASKS_PER_NODE=2(x3),1", "n1:2,n2:2,n3:2,n4:1"),
    ("SLURM_JOB_NODELIST=n[1-4] SLURM_TASKS_PER_NODE=2(x3),1 SLURM_JOB_CPUS_PER_NODE=8(x4)", "n1:2,n2:2,n3:2,n4:1"),
    ("SLURM_JOB_NODELIST=n[1-2] SLURM_TASKS_PER_NODE=1(x2) SLURM_JOB_CPUS_PER_NODE=8,4", "n1:8,n2:4"),
    ("SLURM_JOB_NODELIST=n[1-2] SLURM_JOB_CPUS_PER_NODE=8(x2)", "n1:8,n2:8"), ("SLURM_JOB_NODELIST=n1", "n1:1"),
    ("SLURM_JOB_NODELIST=n1,n1 SLURM_TASKS_PER_NODE=2", "n1:2"),
    ("SLURM_JOB_NODELIST=a[1-2]b[03-04] SLURM_TASKS_PER_NODE=3(x4)", "a1b03:3,a1b04:3,a2b03:3,a2b04:3"),
    ("SLURM_JOB_NODELIST=nodes[006,011],x,n[1,5-6] SLURM_TASKS_PER_NODE=2(x6)",
     "nodes006:2,nodes011:2,x:2,n1:2,n5:2,n6:2"),
    ("PBS_NODEFILE=FILE", "a:2,b:1", "a\na\nb\n"), ("PBS_NODEFILE=FILE NCPUS=8", "a:8,b:8", "a\nb\n"),
    ("PBS_NODEFILE=FILE NCPUS=8", "a:2,b:1", "a\na\nb\n"), ("PBS_NODEFILE=FILE PBS_NUM_PPN=2", "a:2", "a\na\n"),
    ("PE_HOSTFILE=FILE NSLOTS=6", "a.lab.org:4,b:2", "a.lab.org 4 all.q@a <NULL>\nb 2 all.q@b UNDEFINED\n"),
    ("PE_HOSTFILE=FILE", "a:4", "a 1 long.q\na 3 short.q\n"), ("NSLOTS=4", "localhost:4"),
    ("LSB_MCPU_HOSTS=a_4_b_2 LSB_HOSTS=a_a_a_a_b_b", "a:4,b:2"), ("OAR_NODEFILE=FILE", "a:2,b:1", "a\nb\na\n")]


def job_environment(tmp_path, variables, text=None):
    """The environment in which a batch job runs; _ is a blank in a value, FILE a file with this text."""
    if text is not None:
        (tmp_path / "nodes").write_bytes(text if isinstance(text, bytes) else text.encode())
    pairs = (pair.split("=", 1) for pair in variables.split(" "))
    return {"SLURM_JOB_ID": "1", **{
        name: value.replace("FILE", str(tmp_path / "nodes")) if text is not None else value.replace("_", " ")
        for name, value in pairs}}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job[0])
def test_the_hosts_of_a_batch_job_are_known_when_it_runs(tmp_path, job):
    """Slurm, PBS, Torque, SGE, LSF and OAR tell them by variables and files; in Slurm, srun is the remote command."""
    variables, hosts, *text = job
    found = minscoop.allocation(job_environment(tmp_path, variables, *text))
    assert found["hosts"] == minscoop.parse_hosts(hosts)
    assert ("srun" in found["rsh"].split()) == ("SLURM" in variables) and set(found) == {"hosts", "rsh"}


@pytest.mark.parametrize("node, other", [("node1", "node1.lab.org"), ("node1.lab.org", "node1"),
                                         ("node1.lab.org", "node1.ib.lab.org")])
def test_this_machine_is_known_when_a_batch_job_writes_its_name_in_another_length(tmp_path, monkeypatch, node, other):
    """It is then not reached by ssh, which may not be allowed, and would not have the job's environment."""
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(nodename=node))
    found = minscoop.allocation(job_environment(tmp_path, "PBS_NODEFILE=FILE", f"{other}\n{other}\nnode10.lab.org\n"))
    assert found["hosts"] == [(node, 2), ("node10.lab.org", 1)] and minscoop.is_local(node)


@pytest.mark.parametrize("variable, text", [("PBS_NODEFILE", "# two\na\na  # fast\n\nb#\n"),
                                            ("PE_HOSTFILE", "# two\na 2 q # fast\n\nb 1 # 3\n")])
def test_a_comment_is_no_host_when_a_batch_jobs_file_has_some(tmp_path, variable, text):
    """A prologue may add them, and who tries a file written by hand; they begin as in other files of hosts."""
    assert minscoop.allocation(job_environment(tmp_path, variable + "=FILE", text))["hosts"] == [("a", 2), ("b", 1)]


def test_there_are_no_hosts_when_there_is_no_job():
    """Outside of a batch job, or with empty variables, the answer is nothing."""
    assert minscoop.allocation({}) == minscoop.allocation({"SLURM_JOB_NODELIST": "", "PBS_NODEFILE": ""}) == {}


def test_no_secret_of_the_environment_is_shown_when_help_is_asked_for():
    """A default value is part of the signature."""
    done = python("-c", "import minscoop; help(minscoop)", env=dict(os.environ, TOKEN="hush-hush"))
    assert "allocation(env=None)" in done.stdout and "hush-hush" not in done.stdout


BAD_JOBS = [
    ("SLURM_JOB_NODELIST=n[1-4] SLURM_TASKS_PER_NODE=2(x3)",), ("SLURM_JOB_NODELIST=n1 SLURM_TASKS_PER_NODE=x",),
    ("SLURM_JOB_NODELIST=n[1-2 SLURM_TASKS_PER_NODE=2(x2)",), ("SLURM_JOB_NODELIST=n[1-99999999999]",),
    ("SLURM_JOB_NODELIST=n1 SLURM_TASKS_PER_NODE=1(x99999999999)",), ("SLURM_JOB_NODELIST=,",),
    ("SLURM_JOB_NODELIST=n[1-2] SLURM_JOB_CPUS_PER_NODE=8",), ("SLURM_JOB_NODELIST=n[0-9999][0-9999][0-9999]",),
    ("SLURM_JOB_NODELIST=-n1",), ("SLURM_JOB_NODELIST=n1 SLURM_STEP_NUM_TASKS=4",), ("NSLOTS=many",),
    ("PBS_NODEFILE=/no/such/file",), ("PBS_NODEFILE=/",), ("PBS_NODEFILE=FILE", ""), ("PBS_NODEFILE=FILE", b"\xff\xfe"),
    ("PBS_NODEFILE=FILE", "-oProxyCommand=x\n"), ("PE_HOSTFILE=FILE", "a\n"), ("PE_HOSTFILE=FILE", "a x y\n"),
    ("PE_HOSTFILE=FILE", ""), ("LSB_MCPU_HOSTS=a_b",), ("LSB_MCPU_HOSTS=a_4_b",), ("LSB_MCPU_HOSTS=_",),
    ("OAR_NODEFILE=FILE", "\n"), ("OAR_NODEFILE=/no/such/file",)]


@pytest.mark.parametrize("job", BAD_JOBS, ids=lambda job: " ".join(map(str, job)))
def test_the_variable_is_named_when_a_batch_job_makes_no_sense(tmp_path, job):
    """One ValueError in words, with the variable and what to do instead."""
    with pytest.raises(ValueError) as caught:
        minscoop.allocation(job_environment(tmp_path, *job))
    text = str(caught.value)
    assert job[0].partition("=")[0] in text and "--hosts" in text and "\n" not in text and len(text) < 400
    assert not re.search(r"list index|invalid literal|arg is an empty|unpack", text)


def test_counts_of_slurm_are_bounded_when_there_are_many():
    """As many as hosts may be named, and no more: each list of counts would take its memory."""
    assert len(minscoop.slurm_counts(f"1(x{minscoop.MAX_HOSTS})")) == minscoop.MAX_HOSTS
    with pytest.raises(ValueError, match="is not a count such as"):
        minscoop.slurm_counts(f"1(x{minscoop.MAX_HOSTS}),1")


@pytest.mark.parametrize("counts", ["SLURM_TASKS_PER_NODE=2(x3)", "SLURM_JOB_CPUS_PER_NODE=8"])
def test_the_advice_is_to_start_without_srun_when_the_counts_of_a_slurm_job_do_not_fit(tmp_path, counts):
    """They are then those of a step, which has fewer nodes than the job."""
    with pytest.raises(ValueError, match="if srun started this program, start it without srun"):
        minscoop.allocation(job_environment(tmp_path, f"SLURM_JOB_NODELIST=n[1-4] {counts}"))


def test_an_interactive_shell_has_the_hosts_of_its_job_when_srun_started_it_for_several_tasks(tmp_path):
    """`srun -n4 --pty bash`: the shells of the other tasks read nothing, and have ended. A program that srun itself
    started so goes on in the first task only."""
    step = "SLURM_JOB_NODELIST=n[1-2] SLURM_TASKS_PER_NODE=3,1 SLURM_STEP_NUM_TASKS=4 SLURM_PTY_PORT=4000"
    found = minscoop.allocation(job_environment(tmp_path, f"{step} SLURM_PROCID=0"))
    assert found["hosts"] == [("n1", 3), ("n2", 1)]
    with pytest.raises(ValueError, match="srun started this program 4 times"):
        minscoop.allocation(job_environment(tmp_path, f"{step} SLURM_PROCID=1"))


@pytest.mark.parametrize("number", ["SLURM_JOB_ID=", "SLURM_JOB_ID= SLURM_JOBID=1"])
def test_nodes_are_refused_when_a_slurm_job_has_lost_its_number(tmp_path, number):
    """Some unset it so that srun asks for a job. Then it does so here as well: the node would not be ready in time, and
    the request would stay in the queue. A single node needs no srun."""
    with contextlib.nullcontext() if "JOBID=1" in number else pytest.raises(ValueError, match="SLURM_JOB_ID is not"):
        minscoop.allocation(job_environment(tmp_path, f"SLURM_JOB_NODELIST=n[1-2] {number}"))
    assert minscoop.allocation(job_environment(tmp_path, f"SLURM_JOB_NODELIST=n1 {number}"))["hosts"] == [("n1", 1)]


def test_the_variable_to_unset_is_named_when_a_step_of_several_tasks_has_submitted_the_job(tmp_path):
    """Its batch script inherits that, and looks as if srun had started it; without a value, it counts as unset."""
    job = "SLURM_JOB_NODELIST=n1 SLURM_TASKS_PER_NODE=2 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS="
    with pytest.raises(ValueError, match="or unset SLURM_STEP_NUM_TASKS"):
        minscoop.allocation(job_environment(tmp_path, job + "4"))
    assert minscoop.allocation(job_environment(tmp_path, job))["hosts"] == [("n1", 2)]


@pytest.mark.parametrize("suffix", ["", "_HET_GROUP_0"])  # as sbatch and salloc set them
def test_the_first_component_takes_part_when_a_slurm_job_is_heterogeneous(tmp_path, caplog, suffix):
    """srun reaches one component at a time; a warning says how the others can join."""
    found = minscoop.allocation(job_environment(
        tmp_path, f"SLURM_HET_SIZE=2 SLURM_NTASKS=5 SLURM_JOB_NODELIST{suffix}=n1 SLURM_TASKS_PER_NODE{suffix}=2 "
                  "SLURM_JOB_NODELIST_HET_GROUP_1=n2 SLURM_TASKS_PER_NODE_HET_GROUP_1=3"))
    assert found["hosts"] == [("n1", 2)] and "srun" in found["rsh"].split()
    assert "only the nodes of the first take part" in caplog.text


COMMANDS = [  # the remote command as the user says it, what is run for host h; + stands for our options for ssh
    ("ssh", "ssh + h sh"), ("/usr/bin/ssh -p 22", "/usr/bin/ssh -p 22 + h sh"), ("rsh", "rsh h sh"),
    ("ssh -oBatchMode=no", "ssh -oBatchMode=no + h sh"), ("ssh -l me {host} nice", "ssh -l me + h nice sh"),
    ("ssh -J {host}-gate {host}", "ssh -J h-gate + h sh"), ("docker exec -i {host}", "docker exec -i h sh"),
    ("kubectl exec -i {host} --", "kubectl exec -i h -- sh"), ("srun -w {host} -N1", "srun -w h -N1 sh"),
    ("sh -c 'cat | ssh {host} $0'", "sh -c 'cat | ssh h $0' sh")]


@pytest.mark.parametrize("rsh, command", COMMANDS, ids=lambda text: text.replace(" ", "_"))
def test_the_remote_command_is_as_wanted_when_it_is_given(rsh, command):
    """{host} stands for the host, which else comes last; ssh gets our options after the user's, which thus prevail."""
    options = shlex.join(minscoop.SSH_OPTIONS)
    assert minscoop.remote_command(rsh, "h") == shlex.split(command.replace("+", options))


@pytest.mark.parametrize("rsh", ["", " ", "ssh 'a", "'"])
def test_the_remote_command_is_refused_when_it_is_none(rsh):
    """ValueError before anything is started."""
    with pytest.raises(ValueError, match="rsh|remote command"):
        minscoop.Executor(hosts="a:1", rsh=rsh)


# ---------------------------------------------------------------------------------------------------
# 14  Executor


@pytest.mark.parametrize("workers", [-1, 1.5, "2", True])
def test_a_number_of_workers_is_refused_when_it_makes_no_sense(workers):
    """ValueError, and nothing is started."""
    with pytest.raises(ValueError, match="max_workers"):
        minscoop.Executor(workers)
    with pytest.raises(ValueError, match="retries"):
        minscoop.Executor(1, retries=workers)


@pytest.mark.parametrize("name, text", [("ssh", "ssh (did you mean rsh?)"), ("timeout", "timeout; "),
                                        ("worker", "worker (did you mean max_workers?)"), ("check", "check; ")])
def test_an_option_is_refused_when_there_is_none_of_this_name(name, text):
    """The error suggests the name that may have been meant, and lists all options but those of the command line."""
    with pytest.raises(TypeError, match=re.escape(f"no option {text}")) as caught:
        minscoop.Executor(1, **{name: True})
    assert {"hosts", "rsh", "mixed"} < set(re.findall(r"\w+", str(caught.value).partition("it has")[2]))
    assert not {"check", "piped", "options"} & set(re.findall(r"\w+", str(caught.value).partition("it has")[2]))


def test_several_executors_live_when_a_program_has_several(guard):
    """Each executor runs its own tasks; the module's functions use the one made last that is not shut down."""
    with minscoop.Executor(1) as first, minscoop.Executor(1) as second:
        pids = [executor.submit(os.getpid).result(WAIT) for executor in (first, second)]
        assert pids[0] != pids[1] and minscoop.submit(os.getpid).result(WAIT) == pids[1]
        second.shutdown()
        assert minscoop.submit(os.getpid).result(WAIT) == pids[0]


PREPARED = []


def prepare(value):
    PREPARED.append(value)


def test_workers_are_prepared_when_there_is_an_initializer(guard):
    """Every worker, also a replacement, runs it before its first task; with 0 workers, this process runs it."""
    with minscoop.Executor(2, initializer=prepare, initargs=(7,)) as executor:
        assert executor.submit(len_of_prepared).result() == 1
        os.kill(executor.submit(os.getpid).result(), signal.SIGKILL)
        assert set(executor.map(len_of_prepared, range(20))) == {1}
    with minscoop.Executor(0, initializer=prepare, initargs=(7,)) as executor:
        assert executor.submit(len_of_prepared).result() == 1
    PREPARED.clear()


def len_of_prepared(_=None):
    return len(PREPARED)


def test_the_pool_is_broken_when_the_initializer_fails(guard):
    """As with ProcessPoolExecutor. An initializer that is not callable, or cannot be sent, is refused at once."""
    with minscoop.Executor(2, initializer=int, initargs=("x",)) as executor:
        with pytest.raises(minscoop.PoolError, match="(?s)initializer failed.*ValueError: invalid literal"):
            executor.submit(abs, 1).result()
    with pytest.raises(TypeError, match="initializer must be a callable, not 3"):
        minscoop.Executor(2, initializer=3)
    with pytest.raises(minscoop.CannotSend, match=r"initargs\[1\].*lock"):
        minscoop.Executor(2, initializer=print, initargs=(1, threading.Lock()))


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_can_be_submitted_when_an_executor_is_down(guard, workers):
    """RuntimeError, as PEP 3148 has it; shutting down twice is allowed."""
    executor = minscoop.Executor(workers)
    future = executor.submit(identity, 1)
    executor.shutdown()
    executor.shutdown(cancel_futures=True)
    assert future.result(0) == 1
    for use in (lambda: executor.submit(identity, 1), lambda: executor.map(identity, [1]),
                lambda: executor.map_reduce(identity, left, [1])):
        pytest.raises(RuntimeError, use)


def test_the_end_is_left_to_a_thread_when_shutdown_does_not_wait(guard, tmp_path):
    """What was submitted is finished all the same."""
    executor = minscoop.Executor(1)
    future = executor.submit(await_file, tmp_path / "go", 5)
    executor.shutdown(wait=False)
    assert not future.done()
    touch(tmp_path / "go")
    assert future.result(WAIT) == 5


def test_the_pool_ends_when_there_is_no_thread_to_which_shutdown_could_leave_it(guard, monkeypatch):
    """So it is at the interpreter's end in Python 3.12, where the next shutdown, ours, must not wait for it."""
    executor = minscoop.Executor(1)
    future = executor.submit(identity, 1)

    def refuse(thread):
        raise RuntimeError("can't start new thread")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        executor.shutdown(wait=False)
    ender = threading.Thread(target=executor.shutdown, daemon=True)
    ender.start()
    ender.join(WAIT)
    assert not ender.is_alive() and future.result(0) == 1


def test_the_pool_is_ended_later_when_ctrl_c_comes_just_as_shutdown_begins(guard):
    """The next shutdown, that at the interpreter's end for one, must not wait for the first."""
    executor = minscoop.Executor(0)
    lock = executor._ending

    def get_it(blocking):
        lock.acquire(blocking=blocking)
        raise KeyboardInterrupt
    executor._ending = mock.Mock(wraps=lock, acquire=get_it)
    pytest.raises(KeyboardInterrupt, executor.shutdown)
    executor._ending, executor._ended.wait = lock, lambda: pytest.fail("it waits for ever")
    executor.shutdown()
    assert executor._ended.is_set()


def test_a_pool_is_ended_once_when_two_threads_do_it_at_the_same_time(guard):
    """The second thread calls shutdown while the first is just about to end the pool."""
    executor, calls = minscoop.Executor(0), []

    def finish(finish=executor._finish):
        calls.append(1)
        if len(calls) == 1:
            ended = threading.Thread(target=executor.shutdown, args=[False])
            ended.start()
            ended.join()
            for thread in threading.enumerate():
                if thread.name == "minscoop shutdown":
                    thread.join()
        finish()
    executor._finish = finish
    executor.shutdown()
    assert calls == [1]


def test_threads_share_what_runs_their_calls_when_they_make_the_first_ones_without_a_pool(monkeypatch):
    """With an Inline each, they would not see each other's constants, and unread maps of one would never run."""
    nodes, Inline = [], minscoop.Inline

    def make():
        if not nodes:
            nodes.append(None)
            other = threading.Thread(target=lambda: nodes.append(minscoop.here._pool()))
            other.start()
            other.join()
        return Inline()
    monkeypatch.setattr(minscoop, "Inline", make)
    monkeypatch.setattr(minscoop, "executors", [])
    monkeypatch.delitem(vars(minscoop.here), "inline", raising=False)
    with pytest.warns(RuntimeWarning, match="there is no pool"):
        assert minscoop.here._pool() is nodes[1]
    del minscoop.here.inline


def test_the_workers_are_ended_when_ctrl_c_comes_just_as_the_block_is_left(guard):
    """Before the end has begun: else the interpreter's end would wait for all that was submitted, here for ever."""
    early = mock.patch.object(minscoop.Executor, "shutdown", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), early:
        with minscoop.Executor(1) as executor:
            executor.map(time.sleep, itertools.repeat(0.01))
    assert executor not in minscoop.executors and executor._node.keeper.poll() is not None


def test_the_keeper_ends_before_its_directory_goes_when_ctrl_c_comes_as_it_starts(script):
    """Else it would print a traceback of its own, or live on as long as the program keeps the KeyboardInterrupt."""
    done = python(script("""
        import minscoop, signal, subprocess, sys

        class Popen(subprocess.Popen):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                started.append(self)
                signal.raise_signal(signal.SIGINT)
        started, minscoop.subprocess.Popen = [], Popen
        if __name__ == "__main__":
            try:
                minscoop.Executor(1)
            except KeyboardInterrupt:
                print(started[0].poll() is not None)
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("wait", [False, True])
def test_a_second_shutdown_waits_when_another_thread_does_the_first(guard, tmp_path, wait):
    """So does the end of the block. A callback of a future that the first waits for must not: it would deadlock."""
    own = threading.get_ident()

    def ending():  # whether this thread is in `shutdown`
        return minscoop.Executor.shutdown.__code__ in [
            frame.f_code for frame, _ in traceback.walk_stack(sys._current_frames()[own])]
    with minscoop.Executor(1) as executor:
        future = executor.submit(await_file, tmp_path / "go", 5, tmp_path / "started")
        future.add_done_callback(lambda _: executor.shutdown())
        await_file(tmp_path / "started")
        threading.Thread(target=executor.shutdown, args=[wait]).start()
        assert eventually(lambda: executor._ender)
        threading.Thread(target=lambda: eventually(ending) and touch(tmp_path / "go")).start()
        executor.shutdown()
        assert future.result(0) == 5


def test_a_forked_child_ends_by_itself_when_its_parent_has_a_pool(script):
    """The child may leave the block by any exception; meanwhile its maps run serially. The parent's pool goes on."""
    done = python(script("""
        import os, sys, time
        import minscoop
        def next_of(x): return x + 1
        def error_of(wait, *args):
            try: wait(*args)
            except Exception as error: return error
        if __name__ == "__main__":
            with minscoop.Executor(2) as executor:
                assert executor.submit(next_of, 1).result() == 2
                later, unread = executor.submit(time.sleep, 1), minscoop.map(next_of, range(9))
                for end in SystemExit(3), ValueError(), KeyboardInterrupt():
                    pid = os.fork()
                    if pid == 0:
                        assert isinstance(error_of(later.result), minscoop.PoolError)
                        assert isinstance(error_of(minscoop.wait, [later], 5), minscoop.PoolError)
                        del unread
                        assert list(minscoop.map(next_of, [1, 2])) == [2, 3]
                        try: executor.submit(next_of, 1)
                        except RuntimeError: raise end
                    print(os.waitpid(pid, 0)[1], executor.submit(next_of, 2).result(), flush=True)
    """), env=dict(os.environ, PYTHONPATH=str(HERE), PYTHONWARNINGS="ignore"))
    assert (done.returncode, done.stdout) == (0, f"{3 << 8} 3\n{1 << 8} 3\n{signal.SIGINT:d} 3\n"), done


@pytest.mark.parametrize("mate", ["done", "later"])
def test_a_forked_child_waits_for_its_own_calls_when_some_of_its_parents_are_among_them(script, mate):
    """Those that are done are no obstacle; for one that is not, it would wait for ever."""
    done = python(script("""
        import os, sys, time
        import minscoop
        if __name__ == "__main__":
            parents = minscoop.Executor(2)
            done, later = parents.submit(abs, -1), parents.submit(time.sleep, 2)
            minscoop.wait([done])
            pid = os.fork()
            if pid == 0:
                executor, mate, ends = minscoop.Executor(1), globals()[sys.argv[1]], set()
                calls = []
                for _ in range(16):  # in both orders of the set
                    calls.append(executor.submit(time.sleep, 0.05))
                    try: ends.add(len(minscoop.wait([mate, calls[-1]], 20).done))
                    except minscoop.PoolError: ends.add("PoolError")
                print(ends)
            else: os.waitpid(pid, 0)
    """), mate, env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout) == (0, "{2}\n" if mate == "done" else "{'PoolError'}\n"), done


def test_the_pools_directories_stay_when_ctrl_c_ends_a_child_that_was_forked(script):
    """Under the launcher, too, which ends the pool on Ctrl-C: not from the child."""
    done = launch("-n", 1, script("""
        import os
        import minscoop
        from minscoop import futures
        if __name__ == "__main__":
            node = minscoop.executors[-1]._node
            pid = os.fork()
            if pid == 0:
                raise KeyboardInterrupt
            os.waitpid(pid, 0)
            size = futures.submit(len, bytes(1 << 20)).result()
            print(os.path.isdir(node.directory), os.path.isdir(node.memory), size)
    """))
    assert (done.returncode, done.stdout) == (0, "True True 1048576\n") and "minscoop:" not in done.stderr, done


@linux_only
def test_a_pool_ends_with_its_program_when_a_child_that_was_forked_lives_on(guard):
    """The child may be a daemon, for instance: no descriptor that the child inherits may keep the pool alive."""
    done = python("-c", textwrap.dedent(f"""
        import os, sys, time
        sys.path.insert(0, {str(HERE)!r})
        import minscoop
        executor = minscoop.Executor(1)
        executor.submit(abs, 1).result()
        pid = os.fork()
        if pid == 0:
            os.closerange(0, 3)
            time.sleep({10 * BOUND})
        print(pid, flush=True)
        os._exit(0)
    """))
    child = int(done.stdout)
    left = eventually_none(lambda: [p for p in processes_of(os.environ["MINSCOOP_TEST"]) if p != child], WAIT)
    kill_all([child])
    assert not left and eventually(lambda: not os.listdir(guard))


@pytest.mark.parametrize("again", [False, True])
def test_what_has_not_started_is_cancelled_when_shutdown_says_so(guard, tmp_path, again):
    """cancel_futures drops the queue; running tasks finish. It does so even if a shutdown without it already waits."""
    executor = minscoop.Executor(1)
    running = executor.submit(await_file, tmp_path / "go", 5, tmp_path / "started")
    await_file(tmp_path / "started")
    queued = [executor.submit(append, tmp_path / "ran", i) for i in range(100)]
    if again:
        executor.shutdown(wait=False)
    thread = threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": True})
    thread.start()
    assert eventually(queued[-1].cancelled)
    touch(tmp_path / "go")
    thread.join(WAIT)
    assert running.result(0) == 5 and all(future.done() for future in queued)
    assert len(lines_of(tmp_path / "ran")) == sum(not future.cancelled() for future in queued) < 50


@pytest.mark.parametrize("how", ["here", "while shutdown waits", "in a callback"])
@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_tasks_end_at_once_when_their_workers_are_terminated(guard, tmp_path, end, how):
    """A call that runs, calls that wait and a map fail with PoolError; `guard` sees that no process is left."""
    executor = minscoop.Executor(2)
    end = getattr(executor, end)
    running = [executor.submit(await_file, tmp_path / "never", 5, tmp_path / str(i)) for i in range(2)]
    await_file(tmp_path / "0")
    await_file(tmp_path / "1")
    queued, results = executor.submit(identity, 1), executor.map(identity, range(9))
    if how == "in a callback":
        first = executor.submit(abs, -1)
        touch(tmp_path / "never")
        first.add_done_callback(lambda _: end())
        assert first.result(WAIT) == 1 and eventually(executor._ended.is_set)
        executor.shutdown()
        return
    if how == "while shutdown waits":
        waiting = threading.Thread(target=executor.shutdown)
        waiting.start()
        assert eventually(lambda: executor._ender)
    end()
    end()
    if how == "while shutdown waits":
        waiting.join(WAIT)
        assert not waiting.is_alive()
    for future in (*running, queued):
        assert isinstance(future.exception(0), PoolError) and isinstance(future.exception(0), RuntimeError)
    pytest.raises(PoolError, list, results)
    pytest.raises(RuntimeError, executor.submit, identity, 1)
    with executor:
        pass


def test_nothing_is_said_when_a_callback_of_a_call_that_is_terminated_terminates_again(guard, caplog):
    """The pool did not break."""
    executor = minscoop.Executor(1)
    executor.submit(time.sleep, WAIT).add_done_callback(lambda _: executor.terminate_workers())
    executor.terminate_workers()
    assert not caplog.records


def test_an_inline_pool_takes_no_more_when_its_workers_are_terminated():
    """There are none; what was submitted is done already."""
    with minscoop.Executor(0) as executor:
        future = executor.submit(identity, 1)
        executor.terminate_workers()
        assert future.result() == 1
        pytest.raises(RuntimeError, executor.submit, identity, 1)


@pytest.mark.parametrize("wait", [False, True])
def test_the_pool_ends_when_a_callback_of_what_shutdown_cancels_calls_it_again(guard, tmp_path, wait):
    """In the callback, shutdown must not wait for the thread that runs the callback: that would be a deadlock."""
    executor = minscoop.Executor(1)
    executor.submit(await_file, tmp_path / "go", 5, tmp_path / "started")
    await_file(tmp_path / "started")
    queued = [executor.submit(identity, i) for i in range(9)]
    queued[-1].add_done_callback(lambda _: [touch(tmp_path / "go"), executor.shutdown()])
    executor.shutdown(wait, cancel_futures=True)
    assert queued[-1].cancelled()
    executor.shutdown()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit(3)])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_queue_is_dropped_when_the_block_ends_with_an_exception(guard, tmp_path, workers, error):
    """The exception is raised from the block unchanged, and no further task begins."""
    def work(path):
        append(path)
        time.sleep(0.05)
    with pytest.raises(type(error) if isinstance(error, SystemExit) else error):
        with minscoop.Executor(workers) as executor:
            executor.map(work, [tmp_path / "ran"] * 1000)
            raise error
    assert len(lines_of(tmp_path / "ran")) < 500


def test_futures_are_settled_when_the_pool_is_aborted(guard, tmp_path):
    """Ctrl-C in the block ends the workers; each future is cancelled or fails with PoolError, so that no wait hangs."""
    with pytest.raises(KeyboardInterrupt):
        with minscoop.Executor(1) as executor:
            futures = [executor.submit(await_file, tmp_path / "never") for _ in range(5)]
            executor.submit(append, tmp_path / "ran")
            raise KeyboardInterrupt
    assert all(isinstance(future.exception(WAIT), PoolError) for future in futures if not future.cancelled())


def test_a_program_ends_well_when_it_forgets_its_executor(script):
    """At the interpreter's end the pool finishes what was submitted, and is gone."""
    done = python(script("""
        import minscoop
        def say(text):
            print(text, flush=True)
        if __name__ == "__main__":
            executor = minscoop.Executor(2)
            executor.submit(say, "done")
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_program_without_a_guard_is_told_what_to_do_when_it_makes_an_executor(script):
    """Workers that import the script must not start pools of their own, again and again."""
    done = python(script("""
        import minscoop
        def work(x): return x
        with minscoop.Executor(2) as executor:
            print(list(executor.map(work, range(5))))
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout) == (1, "") and '__name__ == "__main__"' in done.stderr


@pytest.mark.parametrize("how", ["in a pool", "serially"])
def test_docstrings_are_right_when_their_examples_are_tried(how):
    """Examples of Executor and the main functions: in a pool, or without one, by `python -m doctest`."""
    before = [MINSCOOP, "-n", 2] if how == "in a pool" else ["-W", "ignore"]
    done = python(*before, "-m", "doctest", "-v", MINSCOOP)
    assert done.returncode == 0 and done.stderr == "" and "Test passed." in done.stdout, done
    tried = set(re.findall(r" tests? in minscoop(?:\.|$)(.*)", done.stdout, re.M))
    assert tried >= {"", "Executor", "submit", "map", "map_as_completed", "map_reduce", "map_scan", "set_const",
                     "get_const", "wait", "as_completed"}


DEEP = """
import sys, threading, time
from minscoop import futures

def same(x): return x
def tree(n):
    if n == 0: return 1
    return sum(f.result() for f in [futures.submit(tree, n - 1), futures.submit(tree, n - 1)])
def maps(n):
    return 1 if n == 0 else sum(futures.map(maps, [n - 1] * 2))
def chain(n):
    if n == 0: return 0, threading.active_count()
    length, threads = futures.submit(chain, n - 1).result()
    return length + 1, max(threads, threading.active_count())
def fan(n): return sum(f.result() for f in [futures.submit(same, i) for i in range(n)])
def fan_in(n): return sum(f.result() for f in futures.as_completed([futures.submit(same, i) for i in range(n)]))

if __name__ == "__main__":
    what = sys.argv[1]
    if what == "chain":
        length, threads = chain(3000)
        print(length, threads <= 400 or threads)
    else:
        n = int(sys.argv[2])
        print(globals()[what](n), futures.submit(globals()[what], n).result())
"""


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("what, answer", [
    ("tree 12", "4096 4096"), ("maps 12", "4096 4096"), ("chain", "3000 True"), ("fan 100000", "4999950000 4999950000"),
    ("fan_in 20000", "199990000 199990000")])
def test_deep_and_wide_programs_end_when_there_are_few_workers(script, workers, what, answer):
    """A recursion of 8190 futures, a chain of 3000, a fan of 100000: right with any number of workers,
    without a deadlock and with a few hundred threads at most."""
    assert output_of("-n", workers, script(DEEP), *what.split(), timeout=50).strip() == answer


@linux_only
@pytest.mark.parametrize("workers, most", [(0, 200), (1, 1000), (2, 200)])
def test_it_is_a_recursion_error_when_tasks_create_tasks_without_end(script, workers, most):
    """The call that waits for the outermost task raises it, and no task goes on."""
    assert output_of("-n", workers, script(f"""
        import minscoop
        from minscoop import futures
        minscoop.MAX_WAITING = {most}  # in workers, too, which import this
        def deeper(x):
            return futures.submit(deeper, x + 1).result()
        if __name__ == "__main__":
            try: futures.submit(deeper, 1).result()
            except RecursionError as error: print(error)
    """)) == f"{most} threads wait for tasks: does one create another like it, without end?\n"


def test_no_message_is_lost_when_the_program_waits_near_the_recursion_limit(script):
    """The waits there raise RecursionError, those further up return their results."""
    assert output_of("-n", 2, script("""
        from minscoop import futures
        def deep(n):
            try: deep(n + 1)
            except RecursionError: pass
            return futures.submit(abs, -n).result()
        if __name__ == "__main__":
            print(deep(0), deep(0), sum(futures.map(abs, range(1000))))
    """)) == "0 0 499500\n"


def test_a_queued_future_is_small_when_there_are_many(script, tmp_path):
    """Less than 2 KB each, in the root and in a task, while the workers are busy."""
    assert output_of("-n", 2, script("""
        import os, sys
        from minscoop import futures
        def memory():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        def busy(path):
            while not os.path.exists(path): sum(range(10000))
        def same(x): return x
        def measure(count):
            before = memory()
            futures_ = [futures.submit(same, i) for i in range(count)]
            each = (memory() - before) / count
            [future.cancel() for future in futures_]
            return each
        if __name__ == "__main__":
            blockers = [futures.submit(busy, sys.argv[1]) for _ in range(2)]
            while not all(blocker.running() for blocker in blockers): pass
            print(measure(30_000) < 2048)
            open(sys.argv[1], "w").close()
            print(futures.submit(measure, 30_000).result() < 2048)
    """), tmp_path / "go", timeout=50) == "True\nTrue\n"


def test_a_pool_starts_when_there_is_a_path_where_python_wants_text(monkeypatch):
    """Python passes over such an entry of sys.path; in sys.argv, a program may have put one."""
    for name in "path", "argv":
        monkeypatch.setattr(sys, name, [*getattr(sys, name), pathlib.Path("/nowhere")])
    with minscoop.Executor(1) as executor:
        assert executor.submit(eval, "__import__('sys').argv[-1]").result() == "/nowhere"


# -- CPython's own tests of concurrent.futures: those for an executor of processes, with ours in its place
#
# They come with Python or, where they were left out, in Debian's libpython3.X-testsuite. None is edited. Each class
# that CPython makes of (tests, ProcessPoolSpawnMixin, BaseTestCase) is made again with a mixin for our Executor in
# the middle, and of what the tests import, three names mean something else:
#   BrokenProcessPool  its base class, BrokenExecutor, which is that of our errors, too
#   Future             ours, which belongs to no pool
#   assert_python_ok   runs programs that import Executor from minscoop


class CPythonsExecutor(minscoop.Executor):
    """Our Executor; it ignores mp_context, since there is no choice of how to start its processes."""

    def __init__(self, max_workers=None, mp_context=None, **kwargs):
        super().__init__(max_workers, **kwargs)


class CPythonsFuture(minscoop.Future):
    """Ours, but made without submitting anything."""

    def __init__(self, node=minscoop.Inline()):
        super().__init__(node, (int, (), {}), None)


CPythonsExecutor.__name__, CPythonsFuture.__name__ = "Executor", "Future"  # for the programs, and for repr()

CPYTHONS_EXCEPTIONS = {  # why they are left out -> tests
    "an initializer there gets a queue of multiprocessing's, which only its own children inherit":
        "InitializerMixin.test_initializer FailingInitializerMixin.test_initializer",
    "they look into a ProcessPoolExecutor, or have its own functions fail":
        "ProcessPoolExecutorTest.test_max_tasks_per_child "
        "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context "
        "ProcessPoolExecutorTest.test_gc_during_max_tasks_worker_exit_gh152967 "
        "ProcessPoolExecutorTest.test_failed_worker_replacement_breaks_pool "
        "ProcessPoolExecutorTest.test_force_shutdown_during_max_tasks_worker_exit",
    "better: what cannot be unpickled is the CannotSend of one future, and no worker dies of it":
        "ExecutorDeadlockTest.test_error_at_task_unpickle ExecutorDeadlockTest.test_exit_at_task_unpickle "
        "ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler "
        "ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler",
    "better: a worker that is killed is replaced, and its task runs again":
        "ProcessPoolExecutorTest.test_killed_child",
    "differs: a result that exits when it is pickled is a CannotSend, whose cause is the SystemExit":
        "ExecutorDeadlockTest.test_exit_during_result_pickle_on_worker",
    "differs: max_workers=0 runs everything inline":
        "ProcessPoolExecutorTest.test_max_workers_negative",
    "differs: all that has not started is cancelled; it wants one call done of 50, of a pool that is just being born":
        "ProcessPoolShutdownTest.test_cancel_futures",
    "differs: a cancelled future is CANCELLED_AND_NOTIFIED at once; it looks at _state":
        "FutureTests.test_cancel",
    "looks inside, or replaces insides: _processes, _force_shutdown":
        "ProcessPoolExecutorTest.test_terminate_workers ProcessPoolExecutorTest.test_kill_workers "
        "ProcessPoolExecutorTest.test_force_shutdown_workers "
        "ProcessPoolExecutorTest.test_broken_process_pool_traceback "
        "ProcessPoolExecutorTest.test_force_shutdown_workers_invalid_op "
        "ProcessPoolExecutorTest.test_force_shutdown_workers_stops_pool",
    "looks inside: _processes, _max_workers, _executor_manager_thread, _call_queue, _RemoteTraceback":
        "ProcessPoolExecutorTest.test_idle_process_reuse_one ProcessPoolExecutorTest.test_idle_process_reuse_multiple "
        "ProcessPoolExecutorTest.test_saturation ProcessPoolExecutorTest.test_traceback "
        "ProcessPoolExecutorTest.test_traceback_when_child_process_terminates_abruptly "
        "ProcessPoolShutdownTest.test_processes_terminate ProcessPoolShutdownTest.test_context_manager_shutdown "
        "ProcessPoolShutdownTest.test_del_shutdown ProcessPoolShutdownTest.test_shutdown_no_wait "
        "ExecutorDeadlockTest.test_shutdown_deadlock_pickle",
    "replaces insides: threads of concurrent.futures.process, or how threading starts one":
        "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full "
        "ProcessPoolExecutorTest.test_python_finalization_error",
    "differs: a ValueError, but with another text": "ProcessPoolExecutorTest.test_map_buffersize_value_validation",
    "for Windows": "ProcessPoolExecutorTest.test_max_workers_too_large",
}
if sys.version_info < (3, 9):
    CPYTHONS_EXCEPTIONS.update({
        "differs: fn is positional only, as from Python 3.9 on": "ProcessPoolExecutorTest.test_submit_keyword",
        "better and differs: all those of ExecutorDeadlockTest in one": "ExecutorDeadlockTest.test_crash"})


def path_to_cpythons_tests():
    """sys.path with the directory of CPython's tests for this version at its end. Raises ImportError."""
    for place in os.path.dirname(os.__file__), "/usr/lib/python%d.%d" % sys.version_info[:2]:
        if list(pathlib.Path(place, "test").glob("test_concurrent_futures*")):
            return [*sys.path, f"{place}/test"]
    raise ImportError("neither this Python nor Debian's libpython%d.%d-testsuite has them" % sys.version_info[:2])


def import_cpythons_tests():
    """The modules of CPython's tests, adapted."""
    import concurrent.futures.process
    from test.support import script_helper
    run = script_helper.assert_python_ok

    def run_adapted(option, program):
        for old, new in (("concurrent.futures", "minscoop"), ("test.test_", "test_"), (", mp_context=context", ""),
                         (", mp_context=get_context(context)", ""),
                         ("if 'spawn': multiprocessing.set_start_method('spawn')", "pass")):
            program = re.sub(r",\s+mp_context", ", mp_context", program).replace(old, new)
        return run(option, program, PYTHONPATH=os.pathsep.join(sys.path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", path_to_cpythons_tests())
        patch.setattr(script_helper, "assert_python_ok", run_adapted)
        patch.setattr(concurrent.futures.process, "BrokenProcessPool", concurrent.futures.BrokenExecutor)
        patch.setattr(concurrent.futures._base, "Future", CPythonsFuture)
        package = importlib.import_module("test_concurrent_futures")
        return [package] + [importlib.import_module(f"{package.__name__}.{module.name}")
                            for module in pkgutil.iter_modules(getattr(package, "__path__", []))]


def find_cpythons_tests():
    """{name: TestCase} of those of CPython's tests that apply to our Executor; {"none": reason} if there are none."""
    try:
        modules = import_cpythons_tests()
    except (ImportError, unittest.SkipTest) as error:
        return {"none": str(error)}
    cases, exceptions = {}, " ".join(CPYTHONS_EXCEPTIONS.values()).split()
    for kind in {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}:
        if [base.__name__ for base in kind.__bases__[1:]] == ["ProcessPoolSpawnMixin", "BaseTestCase"]:
            tests, spawn, base = kind.__bases__
            ours = type("MinscoopMixin", (spawn.__base__,), {"executor_type": CPythonsExecutor, "ctx": "spawn",
                                                              "create_event": getattr(spawn, "create_event", None)})
            kind = type(tests.__name__, (tests, ours, base), {"__module__": kind.__module__})
        elif kind.__name__ != "FutureTests":
            continue
        for name in unittest.defaultTestLoader.getTestCaseNames(kind):
            if f"{kind.__name__}.{name}" not in exceptions:
                cases[f"{kind.__name__}.{name}"] = kind(name)
    return cases


def pytest_generate_tests(metafunc):
    """Make a test of each of CPython's; not by a mark, for which each worker would import them with this module."""
    if "cpythons_test" in metafunc.fixturenames:
        cases = find_cpythons_tests()
        metafunc.parametrize("cpythons_test", [cases[name] for name in sorted(cases)], ids=sorted(cases))


@pytest.mark.skipif(sys.version_info >= (3, 16), reason="the list of exceptions is for those of Python 3.8 to 3.15")
def test_cpythons_test_passes_when_the_executor_is_ours(monkeypatch, cpythons_test):
    """One of CPython's, with the set-up and tear-down of its class and module; `guard` sees what it leaves behind."""
    if isinstance(cpythons_test, str):
        skip_or_fail(f"no tests of CPython: {cpythons_test}")
    monkeypatch.setattr(sys, "path", path_to_cpythons_tests())  # for the workers
    monkeypatch.setattr(sys.modules["test.support"], "reap_children", lambda: None)  # `guard` looks for zombies
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's; some tests look at stderr
    cpythons_test.addCleanup(gc.collect)  # so that not even a failed test leaves anything when its module cleans up
    result = unittest.TestResult()
    gc.freeze()  # each test collects a few times, and need not traverse all of pytest's objects
    try:
        unittest.TestSuite([cpythons_test]).run(result)
    finally:
        gc.unfreeze()
    for _, reason in result.skipped:
        pytest.skip(reason)
    problems = [text for _, text in result.failures + result.errors]
    assert result.testsRun == 1 and not problems, "\n".join(problems)


@pytest.mark.parametrize("call", [
    lambda ex, numpy: list(ex.map(abs, *zip(*[]))) == [],
    lambda ex, numpy: list(ex.map(pow, [1, 2], range(10**20))) == [1, 2],
    lambda ex, numpy: list(ex.map(abs, [-1], chunksize=numpy.int64(8))) == [1],
    lambda ex, numpy: list(ex.map(float, numpy.nditer(numpy.arange(3)))) == [0.0, 1.0, 2.0]])
def test_arguments_do_as_with_the_standard_librarys_when_they_are_unusual(pool, call):
    """No iterables at all, a range that is too long for len(), and NumPy's integers and iterators."""
    numpy = pytest.importorskip("numpy")
    with minscoop.Executor(numpy.int64(0)) as inline:
        assert call(inline, numpy) and call(pool, numpy)


def test_a_pool_starts_when_its_numbers_are_numpys():
    """NumPy's integers must also fit into the keeper's configuration, which is JSON."""
    numpy = pytest.importorskip("numpy")
    with minscoop.Executor(numpy.int64(1), retries=numpy.int32(2), nice=numpy.uint8(1)) as executor:
        assert executor.submit(os.nice, 0).result(WAIT) == os.nice(0) + 1


def test_a_map_has_the_numbers_that_an_array_had_when_it_was_called():
    """The program may change the array after the call, just as it may change a list."""
    numpy = pytest.importorskip("numpy")
    with minscoop.Executor(0) as executor:
        numbers = numpy.arange(4)
        iterator = executor.map(int, numbers)
        numbers += 10
        assert list(iterator) == [0, 1, 2, 3]


def test_a_wait_goes_on_when_another_pool_has_ended(pool):
    """The standard library's wait installs its event in all futures, also in one whose pool has ended."""
    with minscoop.Executor(1) as other:
        old = other.submit(abs, -1)
    event = minscoop.Event(other._node)
    threading.Timer(0.1, event.set).start()
    assert event.wait(WAIT)
    new = pool.submit(time.sleep, 0.1)
    assert minscoop.wait([old, new], WAIT).not_done == set()


def test_results_that_are_there_are_read_when_the_pool_has_ended():
    """A map that has not taken all its inputs first yields the results that have arrived, and only then the error."""
    node = HandNode()
    job = minscoop.Mapping(node, minscoop.Recipe(abs), [iter(range(100))], buffersize=8)
    results = job.results(math.inf)
    job.deliver(0, 2, [0, 1], {})
    assert next(results) == 0
    job.deliver(2, 2, [2, 3], {})
    node.break_off(PoolError("the pool was shut down"))
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(PoolError):
        next(results)


@pytest.mark.parametrize("count", range(4, 9))
def test_the_block_ends_when_a_map_is_left_half_read_and_workers_want_its_inputs(count):
    """The end takes no more inputs, and does not fail because some could be taken."""
    with minscoop.Executor(2) as executor:
        iterator = executor.map(identity, iter(range(1000)))
        assert [*itertools.islice(iterator, count)] == [*range(count)]
    with pytest.raises(PoolError, match="the pool was shut down"):
        for expected, result in enumerate(iterator, count):
            assert result == expected


def test_the_pool_ends_when_a_daemon_thread_reads_a_map_without_end():
    """As the program does, which does not wait for that thread either. It gets what was taken, then an error."""
    results, errors = [], []

    def read():
        try:
            for result in executor.map(time.sleep, itertools.repeat(0.02)):
                results.append(result)
        except PoolError as error:
            errors.append(error)
    with minscoop.Executor(2) as executor:
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        eventually(lambda: len(results) > 2)
    reader.join()
    assert len(errors) == 1


def test_it_is_logged_when_the_end_waits_for_inputs_of_a_map_that_nobody_reads(caplog, monkeypatch):
    """They may be endless."""
    monkeypatch.setattr(minscoop, "PLAIN_PAUSE", 0)
    with minscoop.Executor(1) as executor:
        executor.map(identity, iter(range(1000)))
    assert caplog.text.count("waiting for a map whose inputs go on") == 1


def test_it_is_logged_when_the_end_waits_for_what_a_task_has_left_behind(caplog, monkeypatch, tmp_path):
    """A map that a task made, and did not read, may have endless inputs as well."""
    def leave_behind(path):
        def inputs():
            for _ in range(2000):
                if os.path.exists(path):
                    return
                yield 0.01
        minscoop.map(time.sleep, inputs())
    monkeypatch.setattr(minscoop, "PLAIN_PAUSE", 0)
    monkeypatch.setattr(minscoop.logger, "warning", lambda *args: (logging.warning(*args), touch(tmp_path / "end")))
    with minscoop.Executor(1) as executor:
        executor.submit(leave_behind, tmp_path / "end").result(WAIT)
    assert caplog.text.count("waiting for work that tasks have left behind") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_it_is_logged_when_the_inputs_of_a_map_that_nobody_reads_raise(caplog, workers):
    """Else nobody would know that a part of the work is not done."""
    def inputs():
        yield 1
        raise ValueError("bad input")
    with minscoop.Executor(workers) as executor:
        executor.map(abs, inputs())
    assert "inputs of a map that nobody reads" in caplog.text and "bad input" in caplog.text


# ---------------------------------------------------------------------------------------------------
# 15  Module functions


def test_everything_works_serially_when_there_is_no_pool(script):
    """Without launcher and Executor, map warns once, and all functions work in this process."""
    done = python(script("""
        import operator, os
        import minscoop
        from minscoop import futures, shared
        here = lambda x: os.getpid() == me
        me = os.getpid()
        assert list(futures.map(here, [1, 2])) == [True, True]
        assert list(minscoop.map(pow, [2, 3], [5, 2])) == [32, 9]
        assert futures.submit(here, 1).result() is True
        assert sorted(futures.map_as_completed(abs, [-1, -2])) == [1, 2]
        assert futures.mapReduce(str, operator.add, [1, 2]) == "12"
        assert futures.mapScan(str, operator.add, [1, 2]) == ["1", "12"]
        shared.setConst(a=1)
        assert shared.getConst("a") == 1 and shared.getConst("b") is None
        done, pending = futures.wait([futures.submit(here, 1)], timeout=-1)
        assert len(done) == 1 and not pending
        assert list(futures.as_completed(done)) == list(done)
        def nested(n): return 1 if n == 0 else sum(futures.map(nested, [n - 1] * 2))
        assert nested(8) == 256
        assert (minscoop.IS_RUNNING, minscoop.SIZE) == (False, 0)
        futures.shutdown()
        print("done")
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr.count("RuntimeWarning") == 1 and "minscoop.py script.py" in done.stderr


@pytest.mark.parametrize("call", ["submit(print, 1)", "map(print, [1])", "map_as_completed(print, [1])",
                                  "map_scan(print, max, [1])"])
def test_all_runs_and_warns_when_there_is_no_pool(script, call):
    """The calls run even if nobody reads their results; the warning names the line of the program."""
    done = python(script(f"""
        import minscoop
        minscoop.{call}
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr.count("RuntimeWarning") == 1 and "program.py:3" in done.stderr


def test_an_exception_is_the_calls_when_there_is_no_pool(script):
    """As in a pool, result() raises what the call has raised; submit() does not."""
    done = python("-W", "ignore", script("""
        import minscoop
        def wrong(x): raise KeyError(x)
        future = minscoop.submit(wrong, 1)
        assert isinstance(future.exception(), KeyError)
        try: list(minscoop.map(wrong, [2]))
        except KeyError as error: print(error)
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_a_task_cannot_end_the_pool_when_it_runs_there(any_pool):
    """shutdown() belongs to the root, and to no task, not even where tasks run in the root."""
    with pytest.raises(RuntimeError, match="a task cannot shut the pool down"):
        any_pool.submit(minscoop.shutdown).result(WAIT)
    assert any_pool.submit(identity, 1).result(WAIT) == 1


def test_the_modules_functions_can_be_sent_when_programs_pass_them_on(pool):
    """`toolbox.register("map", futures.map)`: the function that maps may itself be an argument."""
    def use(map_, items):
        return list(map_(abs, items))
    assert pool.submit(use, minscoop.map, [-1, 2]).result(WAIT) == [1, 2]
    assert pool.submit(functools.partial(minscoop.map_reduce, abs, operator.add), [-1, 2]).result(WAIT) == 3


# ---------------------------------------------------------------------------------------------------
# 16  SCOOP's names

IMPORTS = ["from {0} import futures; m = futures.map", "import {0}; m = {0}.futures.map",
           "import {0}.futures; m = {0}.futures.map", "from {0}.futures import map as m",
           "import {0}.futures as f; m = f.map", "from {0}.futures import map, submit; m = map",
           "import {0}.shared; m = {0}.shared.futures.map", "from {0} import futures as f, shared; m = f.map",
           "import importlib; m = importlib.import_module('{0}.futures').map"]


@pytest.mark.parametrize("how", [["-m", "minscoop", "-n", "1", "glob.py"], ["minscoop.py", "glob.py"], ["glob.py"]])
def test_the_file_to_be_renamed_is_named_when_a_program_hides_a_module_of_pythons(script, tmp_path, how):
    """However the program is run, its glob.py is imported in place of the standard module that minscoop needs."""
    path = script("import minscoop\nif __name__ == '__main__':\n    print(list(minscoop.map(abs, [-1])))\n", "glob.py")
    shutil.copy(MINSCOOP, tmp_path)
    done = python(*how, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.endswith(
        f"{path} has the name of a standard module and is imported in its place: rename it\n")


def test_nothing_is_imported_from_the_working_directory_when_a_pool_starts(script, tmp_path):
    """It may be /tmp, where others put modules; the program is elsewhere, so that Python does not look there either."""
    for name in "types", "marshal", "pickle", "struct", "zmq":
        script("import os\nos._exit(3)\n", name + ".py")
    plain = "import minscoop\nif __name__ == '__main__':\n    print(minscoop.Executor(1).submit(abs, -1).result())\n"
    done = python(script(plain, "elsewhere/plain.py"), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize("name", ["scoop", "minscoop"])
def test_every_form_of_import_is_this_module_when_a_program_runs_under_it(script, name):
    """In the root and on workers, where the same lines run; it is one module, whatever its name."""
    lines = [line.format(name) for line in IMPORTS]
    output = output_of("-n", 1, script(f"""
        import minscoop
        def check(line):
            names = {{}}
            exec(line, names)
            return names["m"] == minscoop.map and names["m"].__module__ == "minscoop"
        if __name__ == "__main__":
            import {name}
            lines = {lines!r}
            print([line for line in lines if not check(line)], {name} is minscoop)
            print([line for line, good in zip(lines, minscoop.map(check, lines)) if not good])
    """))
    assert output == "[] True\n[]\n"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_scoops_variables_are_right_when_they_are_asked_for(script, workers):
    """IS_RUNNING, IS_ORIGIN, SIZE, DEBUG, BROKER, worker and logger, in the root and in tasks."""
    output = output_of("-n", workers, script("""
        import logging, scoop
        from scoop import futures
        def facts():
            return [scoop.IS_RUNNING, scoop.IS_ORIGIN, scoop.SIZE, scoop.DEBUG, type(scoop.worker).__name__,
                    isinstance(scoop.logger, logging.Logger)]
        if __name__ == "__main__":
            print(facts())
            print(futures.submit(facts).result())
            print(scoop.worker != futures.submit(lambda: scoop.worker).result(), bool(scoop.BROKER))
    """)).splitlines()
    assert output[0] == f"[True, True, {workers}, False, 'str', True]"
    assert output[1] == f"[True, {not workers}, {workers}, False, 'str', True]"
    assert workers == 0 or output[2] == "True True"


def test_scoops_spellings_work_when_old_programs_use_them(script):
    """mapReduce, mapScan, setConst, getConst, wait(timeout=-1), shutdown."""
    assert output_of("-n", 2, script("""
        import operator, scoop
        from scoop import futures, shared
        from scoop.futures import FIRST_COMPLETED, TimeoutError, CancelledError
        def double(x, by=2): return x * by
        def const(name): return shared.getConst(name, timeout=5)
        if __name__ == "__main__":
            print(futures.mapReduce(double, operator.add, range(10)), futures.mapScan(double, operator.add, range(4)))
            shared.setConst(a=1, b=[2])
            print(list(futures.map(const, "ab")), shared.getConst("c"))
            try: shared.setConst(a=2)
            except TypeError: print("TypeError")
            done, pending = futures.wait([futures.submit(double, 1)], timeout=-1, return_when=futures.ALL_COMPLETED)
            print([f.result() for f in done], list(futures.map(double, [1, 2], by=5)))
            futures.shutdown()
    """)) == "90 [0, 2, 6, 12]\n[1, [2]] None\nTypeError\n[2] [5, 10]\n"


SCOOP_EXAMPLES = {  # name -> what the whole output matches
    "map_doc": "".join(f"Hello World from Future #{i}\n" for i in range(16)),
    "callback": r"(Done: \d\n){5}", "conditional_execution": r"Hello( Parallel)? World\n", "except_example": r"",
    "full_tree": r"76153\n", "lambda": r"\[0, 2, .*, 18\]\n\[1.0, 0.54.*\]\n\[1, 2, .*, 10\]\n",
    "map_as_completed": r"Execution of map\(\):\n(Hello from #\d!\n){10}.*:\n(Hello from #\d!\n){10}",
    "map_reduce": r"(Executed \w+ in: .*s with result: 332833500\n){2}",
    "map_scan": r"(Executed \w+ in: .*s with result: \[0, 1, 5, 14, 30, 55, 91, 140, 204, 285\]\n){2}",
    "object": r"\[(<__main__.myClass object at 0x\w+>(, )?){20}\]\n\[(6(, )?){20}\]\n",
    "pi_calc": r"pi = 3.1[34]\d+\ntotal time: .*\n", "recurse": r"2\^12 = 4096\n",
    "shared_example": r"(Hello World from .*|Second element|\n)+\n\[1, 2, 3, 4, 5, 6, 7, 8, 9, 10\]\n",
    "shared_example_doc": r"English.*\n(Player \d played words: .*\n){4}Player 0: 102\nPlayer 1: 122\n"
                          r"Player 2: 74\nPlayer 3: 145\n",
    "sorting": r"Parallel time: .*s\nSerial time: .*s\n", "sum_multiples": r"Serial time: .* s\nParallel time: .* s\n",
    "tree_traversal": r"Beginning.*\nTree generation done.\nParallel result: 40\nSerial result:   40\n"
                      r"Parallel.*\nSerial.*\n",
}


@pytest.fixture(scope="module")
def scoop_examples(tmp_path_factory):
    """The examples in the source distribution of SCOOP, or None."""
    directory = tmp_path_factory.mktemp("scoop")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "scoop", "scoop==0.7.2.0"]
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        subprocess.run(command, cwd=directory, timeout=50, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for archive in directory.glob("scoop-*.tar.gz"):
        with tarfile.open(archive) as tar:
            tar.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        return next(directory.glob("scoop-*/examples"))
    return None


@in_groups(sorted(SCOOP_EXAMPLES, key=lambda name: name not in ("callback", "map_reduce")), 4)  # which sleep long
def test_scoops_examples_give_the_right_result_when_they_run_unmodified(scoop_examples, names):
    """Those that need nothing but the standard library; the one that fails on purpose exits with 1."""
    if scoop_examples is None:
        skip_or_fail("cannot download scoop 0.7.2.0")
    commands = [("-n", 2, f"{name}.py") for name in names]
    for name, done in zip(names, launch_together(commands, cwd=scoop_examples, timeout=50)):
        assert re.fullmatch(SCOOP_EXAMPLES[name], done.stdout), done
        if name == "except_example":
            assert done.returncode == 1 and done.stderr.rstrip().endswith("Exception: This exception is normal")
        else:
            assert (done.returncode, done.stderr) == (0, ""), done


# ---------------------------------------------------------------------------------------------------
# 17  During a run


class Terminal:
    """A pseudoterminal with a program of ours in it, and what is to be seen there."""

    def __init__(self, *args, program=(MINSCOOP,), **env):
        self.master, slave = os.openpty()
        self.process = start(*program, *args, stdin=slave, stdout=slave, stderr=slave,
                             env={**os.environ, "PYTHONUNBUFFERED": "", "NO_COLOR": "1", **env})
        os.close(slave)
        self.seen = b""

    def await_text(self, text):
        """Read until a text has come."""
        end = time.monotonic() + WAIT
        while text.encode() not in self.seen and time.monotonic() < end:
            if minscoop.readable(1, self.master):
                self.seen += os.read(self.master, 10000)
        assert text.encode() in self.seen

    def type(self, text):
        os.write(self.master, text.encode())

    def screen(self):
        """The lines that are left on the screen; what has been wiped is not."""
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|.|\n", self.seen.decode().replace("\r\n", "\n")):
            if part == "\n":
                row, column = row + 1, 0
                rows += [""] * (row == len(rows))
            elif part == "\r":
                column = 0
            elif part == "\x1b[K":
                rows[row] = rows[row][:column]
            elif part == "\x1b[A":
                row -= 1
            elif part[0] != "\x1b":
                rows[row] = rows[row].ljust(column)[:column] + part + rows[row][column + 1:]
                column += 1
        return rows

    def end(self):
        """Wait for the end of the program; returns its exit code."""
        while minscoop.readable(WAIT, self.master):
            try:
                self.seen += os.read(self.master, 10000)
            except OSError:  # nobody has the other end any more
                break
        os.close(self.master)
        return self.process.wait(WAIT)


SLOW = """
    import os, sys, time
    from minscoop import futures
    def slow(x):
        print("worker", x)
        if x > 2:
            while not os.path.exists(sys.argv[1]): time.sleep(0.01)
        return x
    if __name__ == "__main__":
        for x in futures.map(slow, range(6), progress="squares"):
            print("root", x)
        %s
"""


@pytest.mark.parametrize("end, code, last", [("", 0, "root 5"), ("1 / 0", 1, "ZeroDivisionError: division by zero")])
def test_a_line_says_how_far_it_is_when_there_is_a_terminal(guard, script, tmp_path, end, code, last):
    """The progress line makes room for what the program and its workers print, and it is gone at the end."""
    terminal = Terminal("-n", 2, script(SLOW % end), tmp_path / "go")
    terminal.await_text("minscoop: squares 3 of 6 (50 %)")
    terminal.await_text("2 of 2 workers")
    touch(tmp_path / "go")
    assert terminal.end() == code
    rows = terminal.screen()
    assert not [row for row in rows if "minscoop: " in row] and [*filter(None, rows)][-1] == last
    assert sorted(row for row in rows if row.startswith(("root", "worker"))) == \
        [f"{who} {i}" for who in ("root", "worker") for i in range(6)]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_line_makes_room_when_a_handler_of_logging_was_there_before_the_pool(guard, script, tmp_path, unbuffered):
    """A handler keeps the sys.stderr that it was made with, as does whoever has wrapped it, or imported it by name."""
    terminal = Terminal(script("""
        import logging, os, sys, time
        logging.basicConfig(format="LOGGED %(message)s")
        import minscoop
        def wait(path):
            while not os.path.exists(path): time.sleep(0.01)
        if __name__ == "__main__":
            with minscoop.Executor(1) as executor:
                results = executor.map(wait, sys.argv[1:2], progress="squares")
                wait(sys.argv[2])
                logging.warning("here")
                print("done", *results)
    """), tmp_path / "end", tmp_path / "log", program=(), PYTHONPATH=str(HERE), PYTHONUNBUFFERED=unbuffered)
    terminal.await_text("minscoop: squares 0 of 1")
    touch(tmp_path / "log")
    terminal.await_text("LOGGED here")
    touch(tmp_path / "end")
    assert terminal.end() == 0
    assert [*filter(None, terminal.screen())] == ["LOGGED here", "done None"]


@pytest.mark.parametrize("args", [["--no-progress"], ["-q"]])
def test_there_is_no_line_when_none_is_wanted(guard, script, tmp_path, args):
    """--no-progress and -q turn the progress line off even if a map asks for it."""
    terminal = Terminal("-n", 1, *args, "-c", textwrap.dedent("""
        import time, minscoop
        for x in minscoop.map(time.sleep, [1.5], progress="squares"):
            print("done")
    """))
    assert terminal.end() == 0 and terminal.seen == b"done\r\n"


def test_the_line_is_away_when_the_program_asks_for_input(guard, tmp_path):
    """The progress line is never drawn into an incomplete line such as a prompt, even if a task prints meanwhile."""
    terminal = Terminal("-n", 1, "-c", textwrap.dedent("""
        import minscoop, sys
        def wait(path):
            import os, time
            print("worker")
            while not os.path.exists(path): time.sleep(0.01)
        future = minscoop.submit(wait, sys.argv[1])
        print("name", input("name? "))
    """), tmp_path / "go", TERM="xterm")
    terminal.await_text("name? ")
    terminal.await_text("worker")
    time.sleep(1.5)  # the line would have come
    terminal.type("Bob\n")
    terminal.await_text("minscoop: 0 of 1")
    touch(tmp_path / "go")
    assert terminal.end() == 0 and sorted(re.findall(r"name\? |worker|Bob|name Bob", "".join(
        terminal.screen()))) == ["Bob", "name Bob", "name? ", "worker"]


@pytest.mark.parametrize("args, label", [(["--progress"], "None"), ([], "'squares'")])
def test_lines_come_now_and_then_when_progress_is_wanted_without_a_terminal(guard, tmp_path, args, label):
    """Plain lines, for log files: about everything with --progress; without it, about maps that ask for them."""
    process = start(MINSCOOP, "-n", 1, *args, "-c", textwrap.dedent(f"""
        import minscoop, sys
        def wait(path):
            import os, time
            while not os.path.exists(path): time.sleep(0.01)
        list(minscoop.map(wait, sys.argv[1:], progress={label}))
    """), tmp_path / "go")
    assert re.fullmatch(r"minscoop: (squares )?0 of 1 \(0 %\), 0/s, ([01] of 1 worker|no workers as yet)\n",
                        process.stderr.readline())
    touch(tmp_path / "go")
    done = finish(process)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_counted_is_right_when_maps_overlap_and_end_in_any_way():
    """Overlapping maps are summed up by label; one that is cancelled, or ends after others, leaves nothing behind."""
    progress, node = minscoop.Progress(True), HandNode()
    progress.watch = lambda node: None
    with mock.patch.object(minscoop, "progress", progress):
        whole = minscoop.Mapping(node, minscoop.Recipe(identity), [range(10)])
        other = minscoop.Mapping(node, minscoop.Recipe(identity), [range(5)], label="other")
        endless = minscoop.Mapping(node, minscoop.Recipe(identity), [itertools.count()])
        whole.deliver(0, 4, [0] * 4, {})
        other.deliver(0, 5, [0] * 5, {})
        pulled = endless.pulled
        assert progress.look({}) == {"": [10 + pulled, 4, 1], "other": [5, 5, 0]}
        endless.cancel()
        endless.deliver(0, 1, [0], {})
        assert progress.look({}) == {"": [10, 4, 0], "other": [5, 5, 0]}
        whole.deliver(4, 6, [0] * 6, {})
        assert progress.look({}) == {}
        minscoop.Mapping(node, minscoop.Recipe(identity), [range(3)])
        assert progress.look({}) == {"": [3, 0, 0]}


def test_the_rate_counts_from_the_first_call_when_a_map_comes_later():
    """Calls that were done before the map began are counted; so is their time."""
    progress, node = minscoop.Progress(True), HandNode()
    progress.watch, progress.since, progress.calls = lambda node: None, 123.0, (1, 0, 0)
    with mock.patch.object(minscoop, "progress", progress):
        minscoop.Mapping(node, minscoop.Recipe(identity), [range(10)])
        assert progress.since == 123.0
        progress.calls = 0, 0, 0
        progress.tallies.clear()
        minscoop.Mapping(node, minscoop.Recipe(identity), [range(10)])
        assert progress.since > 123.0


def test_a_map_that_is_done_stays_counted_when_another_follows_beside_a_call():
    """Its time still counts, and so must its items: otherwise the rate would be too low, and the time left too long."""
    progress, node = minscoop.Progress(True), HandNode()
    progress.watch, progress.since, progress.calls = lambda node: None, 123.0, (1, 0, 0)
    with mock.patch.object(minscoop, "progress", progress):
        minscoop.Mapping(node, minscoop.Recipe(identity), [range(10)]).deliver(0, 10, [0] * 10, {})
        minscoop.Mapping(node, minscoop.Recipe(identity), [range(10)])
    assert progress.look({}) == {"": [20, 10, 0]}


def test_a_map_has_its_line_when_its_input_is_slow_to_copy(monkeypatch):
    """The drawing thread ends when it finds nothing to show, so it must not start before the input has been copied."""
    class Slow(list):
        def __iter__(self):
            time.sleep(0.2)
            return super().__iter__()
    lines, node, progress = [], HandNode(), minscoop.Progress()
    progress.draw = lines.append
    for name, value in dict(progress=progress, LOOK=0.01, PROGRESS_DELAY=0, install_screens=lambda: None).items():
        monkeypatch.setattr(minscoop, name, value)
    minscoop.Mapping(node, minscoop.Recipe(identity), [Slow([1])], label="squares")
    assert eventually(lambda: lines, 5) and lines[0].startswith("minscoop: squares 0 of 1")
    thread, progress.wanted = progress.thread, False
    thread.join(WAIT)


def test_the_line_goes_on_when_a_pool_is_made_while_the_pools_are_listed(monkeypatch):
    """The drawing thread lists the pools under the lock: otherwise a new pool could end that thread with an error."""
    class Nodes(weakref.WeakKeyDictionary):
        def __iter__(self):
            listed.append(progress.lock._is_owned())
            return super().__iter__()
    listed, progress = [], minscoop.Progress(True)
    progress.nodes = Nodes()
    for name, value in dict(LOOK=0.01, install_screens=lambda: None).items():
        monkeypatch.setattr(minscoop, name, value)
    progress.watch(HandNode())
    assert eventually(lambda: len(listed) > 1)
    thread, progress.wanted = progress.thread, False
    thread.join(WAIT)
    assert all(listed)


def test_the_program_goes_on_when_its_terminal_is_gone(monkeypatch):
    """The terminal may be closed, or the program may redirect descriptor 2 for a moment, to silence a C library."""
    def no_terminal(*_):
        raise OSError(25, "Inappropriate ioctl for device")
    progress = minscoop.Progress(True)
    progress.drawn = 10
    monkeypatch.setattr(os, "get_terminal_size", no_terminal)
    progress.make_room(hidden=False)
    assert progress.drawn == 0


def test_nothing_is_wiped_when_the_terminal_is_somebody_elses(monkeypatch):
    """After Ctrl-Z and bg, what the program prints would erase what is being typed at the shell's prompt."""
    written, progress = [], minscoop.Progress(True)
    monkeypatch.setattr(os, "write", lambda _, data: written.append(data))
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    monkeypatch.setattr(minscoop, "in_foreground", lambda: False)
    progress.drawn = 10
    progress.make_room(hidden=False)
    assert (progress.drawn, written) == (0, [])


def test_calls_are_counted_by_themselves_when_a_map_was_done_before(monkeypatch):
    """Otherwise eight long calls after a million short ones would be shown as nearly done."""
    lines, left, node, progress = [], [0], HandNode(), minscoop.Progress(True)
    progress.draw = lines.append
    for name, value in dict(progress=progress, LOOK=0.01, PROGRESS_DELAY=0, install_screens=lambda: None,
                            calls_left=lambda node: left[0]).items():
        monkeypatch.setattr(minscoop, name, value)
    minscoop.Mapping(node, minscoop.Recipe(identity), [range(1000)]).deliver(0, 1000, [0] * 1000, {})
    left[0] = 8
    assert eventually(lambda: [line for line in lines if line.startswith("minscoop: 0 of 8 (0 %), 0/s")], 5)
    thread, progress.wanted = progress.thread, False
    thread.join(WAIT)


def test_calls_are_not_counted_when_only_maps_with_progress_are_shown(monkeypatch):
    """As without the launcher: the line would count calls that are done, but none that are to be done."""
    lines, node, progress = [], HandNode(), minscoop.Progress()
    progress.draw = lines.append
    for name, value in dict(progress=progress, LOOK=0.01, PROGRESS_DELAY=0, install_screens=lambda: None).items():
        monkeypatch.setattr(minscoop, name, value)
    minscoop.Mapping(node, minscoop.Recipe(identity), [range(2)], label="squares")
    node.calls += 3
    assert eventually(lambda: len(lines) > 3, 5)
    assert {line.partition(",")[0] for line in lines} == {"minscoop: squares 0 of 2 (0 %)"}
    thread, progress.wanted = progress.thread, False
    thread.join(WAIT)


def test_maps_are_no_calls_when_many_wait_for_workers():
    """The line would count them twice, as maps and as calls, until they are sent."""
    queue = [types.SimpleNamespace(lo=0, hi=2, stale=False)] * 5000
    node = types.SimpleNamespace(lock=threading.RLock(), queue=queue[:3000], pinned=queue[3000:], calls_away=[],
                                 broken=None)
    assert (minscoop.calls_left(node), minscoop.items_queued(node)) == (0, 10_000)


@pytest.mark.parametrize("words, hidden", [
    (["line\n"], False), (["li", "ne\n"], False), (["line\n", "li"], True), (["bar\n\33[?25h"], False),
    (["bar\n\33[?25h\r\33[1A\33[2K"], False), (["line\n\33[1mli"], True),
    (["line\r\n", "\33[1m\r"], False), (["li", "\33[1m"], True)])
def test_the_line_comes_back_when_a_whole_line_was_printed_without_an_end(monkeypatch, words, hidden):
    """With python -u, print(line, end="") also writes an empty text, which must not count as an incomplete line; nor
    must the sequences with which the bars and prompts of other libraries end."""
    monkeypatch.setattr(minscoop, "progress", minscoop.Progress(True))
    with open(os.devnull, "w") as null:
        screen = io.TextIOWrapper(minscoop.Screen(null.fileno(), "w", closefd=False), write_through=True)
        for word in words:
            print(word, end="", file=screen)
    assert minscoop.progress.hidden == hidden


def test_the_line_goes_at_once_when_the_last_map_is_done():
    """A moment later, the prompt of Python or of the shell may be there, which is written without our knowledge."""
    progress, node, wiped = minscoop.Progress(True), HandNode(), []
    progress.watch, progress.wipe = lambda node: None, lambda: wiped.append(True)
    with mock.patch.object(minscoop, "progress", progress):
        job = minscoop.Mapping(node, minscoop.Recipe(identity), [range(10)])
        progress.drawn = 10
        job.deliver(0, 4, [0] * 4, {})
        assert not wiped
        job.deliver(4, 6, [0] * 6, {})
        assert wiped


def test_a_map_is_not_counted_when_it_says_so():
    """A map with progress=False is left out of the progress line of the launcher, which counts all others."""
    progress, node = minscoop.Progress(True), HandNode()
    progress.watch = lambda node: None
    with mock.patch.object(minscoop, "progress", progress):
        minscoop.Mapping(node, minscoop.Recipe(identity), [range(10)], label=False)
        minscoop.Mapping(node, minscoop.Recipe(identity), [range(3)])
        assert progress.look({}) == {"": [3, 0, 0]}


def drawn_in(monkeypatch, columns, text):
    """What is written to draw a text as the line, and how many columns it then takes."""
    drawn, progress = [], minscoop.Progress(True)
    with monkeypatch.context() as patch:
        for name in "on_terminal", "in_foreground":
            patch.setattr(minscoop, name, lambda: True)
        patch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
        patch.setattr(os, "write", lambda _, data: drawn.append(data))
        progress.draw(text)
    return drawn, progress.drawn


def test_the_line_is_drawn_when_stderr_has_no_encoding(monkeypatch):
    """The program may have replaced sys.stderr by an object of its own with little more than write()."""
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace())
    assert drawn_in(monkeypatch, 80, "50 %") == ([b"\33[?7l50 %\33[?7h"], 4)


@pytest.mark.parametrize("text, columns, shown", [("squares", 8, "squares"), ("squares", 4, "squ"), ("squares", 1, ""),
                                                  ("squares", 0, "squares"), ("漢字", 5, "漢字"), ("漢字", 4, "漢字")])
def test_the_line_does_not_wrap_when_it_is_too_long(monkeypatch, text, columns, shown):
    """Else each update would leave a row on the screen. Wide characters are the terminal's business, which clips them;
    a terminal that does not tell its size is taken to have 80 columns."""
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(encoding="utf-8"))
    assert drawn_in(monkeypatch, columns, text) == ([f"\33[?7l{shown}\33[?7h".encode()], len(shown))


@pytest.mark.parametrize("stderr", [None, io.StringIO()])
def test_progress_goes_nowhere_when_stderr_is_closed(monkeypatch, capsys, stderr):
    """It does not go to stdout, and the drawing thread goes on: the program may open another stderr."""
    if stderr:
        stderr.close()
    drawn, node, progress = [], HandNode(), minscoop.Progress(True)
    for name, value in dict(LOOK=0.01, PROGRESS_DELAY=0, PLAIN_PAUSE=0, install_screens=lambda: None,
                            on_terminal=lambda: False, calls_left=lambda node: 1,
                            progress_text=lambda *_: drawn.append(1) or "50 %").items():
        monkeypatch.setattr(minscoop, name, value)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        progress.said = -math.inf
        progress.watch(node)
        assert eventually(lambda: len(drawn) > 2, 5)
        thread, progress.wanted = progress.thread, False
        thread.join(WAIT)
    assert capsys.readouterr().out == ""


def test_the_line_stays_away_when_a_password_is_asked_for(monkeypatch):
    """getpass turns off ECHO, and an editor ICANON: the line must be drawn over the screen of neither."""
    master, slave = os.openpty()
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
    get = minscoop.termios.tcgetattr
    monkeypatch.setattr(minscoop.termios, "tcgetattr", lambda _: get(slave))
    usual = get(slave)
    for flag in minscoop.termios.ECHO, minscoop.termios.ICANON:
        assert minscoop.in_foreground()
        minscoop.termios.tcsetattr(slave, minscoop.termios.TCSANOW, [*usual[:3], usual[3] & ~flag, *usual[4:]])
        assert not minscoop.in_foreground()
        minscoop.termios.tcsetattr(slave, minscoop.termios.TCSANOW, usual)
    os.close(slave)
    os.close(master)


def test_a_prompt_completes_public_names_only_when_it_asks_for_ours():
    public = {"map", "submit", "Executor", "IS_RUNNING", "allocation"}
    assert public < set(dir(minscoop)) and "PATROL" not in dir(minscoop)
    assert all(hasattr(minscoop, name) for name in dir(minscoop))


def test_an_argument_named_progress_stays_here_when_a_map_has_one(any_pool):
    """map takes `progress` itself, in tasks, too, and does not pass it on to the function."""
    def nested(x): return [list(any_map(identity, [x], progress="label"))
                           for any_map in (minscoop.map, minscoop.map_as_completed)]
    assert list(any_pool.map(nested, [1], progress=None)) == [[[1], [1]]]


STUCK = """
    import re, sys, time
    import minscoop
    def deep_in_c(path):
        open(path, "w").close()
        re.match("(a+)+$", "a" * 40 + "b")  # takes for ever, and never releases the interpreter's lock
    def parent(path): minscoop.submit(deep_in_c, path).result()
    if __name__ == "__main__":
        minscoop.submit(parent, sys.argv[1])
        time.sleep(100)
"""


def print_stacks_of(process, text):
    """What a program says on SIGUSR1, up to a line with this text."""
    process.send_signal(signal.SIGUSR1)
    return "".join(itertools.takewhile(lambda line: text not in line, iter(process.stderr.readline, "")))


@pytest.mark.parametrize("where", [["-n", "2"], ["-n", "2", "--tag-output"], [
    "--hosts", "localhost:1,other:1", "-e", "./elsewhere"]], ids=["here", "tagged", "two hosts"])
def test_everybody_says_where_they_are_when_the_root_gets_sigusr1(guard, script, tmp_path, where):
    """So does a worker deep in C code, each time it is asked: its task, for how long it has run, and its stack."""
    script('#!/bin/sh\nshift\nexec sh -c "$*"\n', "elsewhere").chmod(0o755)
    process = start(patched(tmp_path, "ANSWER = 2.0"), *where, script(STUCK), tmp_path / "begun", cwd=tmp_path)
    await_file(tmp_path / "begun")
    assert eventually(lambda: "/re" in print_stacks_of(process, "in parent"))  # the file is there a moment before
    said = print_stacks_of(process, "in parent")
    assert "in <module>" in said and f"root, pid {process.pid}" in said
    assert re.search(r"worker \d.\d \(host [^,]+, pid \d+\) is running item 0 of task 0.root:0/0, for \d+"
                     r".\d s\n(?s:.*)/re\b.*\n.*  File .* in deep_in_c\n", said), said
    process.terminate()
    assert finish(process).returncode == 128 + signal.SIGTERM


def test_a_worker_is_said_to_run_nothing_when_it_is_idle():
    """Its marker page still has the latest task, which the keeper needs if the worker dies now."""
    page = bytearray(4096)
    worker = types.SimpleNamespace(marker=page, holder=types.SimpleNamespace(), waiting=0, begun=3)
    minscoop.Worker.note(worker, (b"0.root:0/0", 8, 9))
    assert minscoop.doing(page).startswith("item 8 of task 0.root:0/0, for ")
    minscoop.Worker.note(worker, (b"0.root:0/0", 8, 11))
    assert minscoop.doing(page).startswith("items 8 to 10 of task ")
    page[0] = minscoop.RESTING
    assert minscoop.doing(page) is None and minscoop.running(page)[2] == b"0.root:0/0"


def test_sigusr1_is_the_programs_own_when_it_has_a_handler():
    done = launch("-n", 1, "-c", textwrap.dedent("""
        import os, signal
        signal.signal(signal.SIGUSR1, lambda *_: print("mine"))
        os.kill(os.getpid(), signal.SIGUSR1)
    """))
    assert (done.stdout, done.stderr, done.returncode) == ("mine\n", "", 0)


PROFILED = """
    from minscoop import futures
    import os, sys, time
    def pid(i): time.sleep(0.01); return os.getpid()
    def spin_for_a_while(i): return sum(range(20000))
    def both(i): return spin_for_a_while(i), futures.submit(spin_for_a_while, i).result()
    if __name__ == "__main__":
        while len(set(futures.map(pid, range(20)))) < 2: pass  # until both workers are there
        list(futures.map(both, range(1000)))
        print(sys.argv[1:])
"""


@pytest.mark.parametrize("where, options, workers", [
    (["-n", "2"], ["--profile"], 0), (["-n", "2"], ["--profile", "profiles"], 2),
    (["-n", "2"], ["--profile=profiles"], 2),
    (["--hosts", "localhost:1,other:1", "-e", "./elsewhere"], ["--profile", "profiles"], 2)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_table_says_where_time_went_when_it_was_asked_for(script, tmp_path, where, options, workers):
    """One table of the program's functions for all workers of all hosts; given a directory, also a file per worker."""
    script('#!/bin/sh\nshift\nexec sh -c "$*"\n', "elsewhere").chmod(0o755)
    done = launch(*where, *options, script(PROFILED).name, "argument", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "['argument']\n") and "Ordered by: cumulative time" in done.stderr
    assert re.search(r" 1000(/\d+)?  .*program.py:6\(both\)\n", done.stderr), done.stderr
    assert re.search(r" 2000(/\d+)?  .*program.py:5\(spin_for_a_while\)\n", done.stderr)
    assert "run_slice" not in done.stderr
    files = list(tmp_path.glob("profiles/*"))
    calls = [figures[1] for path in files for key, figures in pstats.Stats(str(path)).stats.items() if key[2] == "both"]
    assert len(files) == workers and sum(calls) == 1000 * bool(workers)


def test_a_line_says_why_there_is_no_table_when_a_profiled_run_is_interrupted(script):
    done = launch("-n", 1, "--profile", script("""
        from minscoop import futures
        if __name__ == "__main__":
            list(futures.map(abs, range(100)))
            raise KeyboardInterrupt
    """))
    assert done.returncode and done.stderr.count("minscoop: no profile: ") == 1 and "Ordered by" not in done.stderr


def test_the_table_is_shown_when_the_files_of_a_profile_cannot_be_written(script, tmp_path):
    """A line for each worker says why."""
    done = launch("-n", 1, "--profile", tmp_path / "profiles", script("""
        from minscoop import futures
        import os, sys
        if __name__ == "__main__":
            list(futures.map(abs, range(100)))
            os.rmdir(sys.argv[1])
    """), tmp_path / "profiles")
    path = tmp_path / "profiles" / "worker-0.1.prof"
    assert done.returncode == 0 and done.stderr.count("Ordered by: cumulative time") == 1, done.stderr
    assert f"minscoop: the profile could not be written to {path}: No such file or directory\n" in done.stderr


@pytest.mark.parametrize("name", [str(MINSCOOP), "minscoop.py"])
def test_a_recursive_builtin_keeps_its_calls_when_we_call_it_too(monkeypatch, name):
    """Our calls do not count. A profile has (primitive, all) calls of a function, but (all, primitive) by caller.
    Python 3.8 names a script as it was named on the command line."""
    monkeypatch.setattr(minscoop, "__file__", name)
    theirs, ours, builtin = ("user.py", 1, "f"), (name, 1, "g"), ("~", 0, "<built-in method next>")
    stats = {ours: (1, 1, 0.5, 2.0, {}), builtin: (6, 10, 3.0, 4.0, {theirs: (5, 3, 2.0, 2.5), ours: (5, 3, 1.0, 1.5)})}
    assert minscoop.tasks_part(stats) == {builtin: (3, 5, 2.0, 2.5, {theirs: (5, 3, 2.0, 2.5)})}


def test_an_executor_profiles_when_it_is_told_to(capsys):
    """A call has its time, although a profile sees all threads of a process, the deputy's too, from Python 3.12 on."""
    with minscoop.Executor(1, profile=True) as executor:
        assert executor.submit(slow_sum, 0.5).result() == 3
    [(calls, _, _, seconds, _)] = [
        figures for key, figures in executor._node.profile.stats.items() if key[2] == "slow_sum"]
    assert calls == 1 and seconds >= 0.5 and "Ordered by: cumulative time" in capsys.readouterr().err


def slow_sum(seconds):
    """In pieces, so that other threads get their turn."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)
    return sum(range(3))


LOGGING = """
    import logging, sys
    import minscoop
    def log(x):
        minscoop.logger.info("not to be seen")
        logging.getLogger("minscoop.below").warning("%d, %s", x, object, extra={"more": {1: object}})
        try: 1 / 0
        except ZeroDivisionError: minscoop.logger.exception("wrong")
    class Keep(logging.Handler):
        def emit(self, record):
            if record.worker != "keeper":
                print(record.name, record.worker, record.host, record.getMessage(),
                      "ZeroDivisionError" in logging.Formatter().format(record))
    if __name__ == "__main__":
        if len(sys.argv) > 1:
            logging.getLogger().addHandler(Keep())
            logging.getLogger("other").warning("%s", 1, extra={"host": 2, "worker": "keeper"})
        logging.getLogger("minscoop.below").warning("here")
        if len(sys.argv) > 1:
            with minscoop.Executor(1) as executor: executor.submit(log, 5).result()
        else:
            minscoop.submit(log, 5).result()
"""


def test_the_programs_handlers_get_what_a_task_logs_when_it_uses_our_logger(guard, script):
    """With worker and host; arguments and exceptions come as text; the level is the root's."""
    done = python(script(LOGGING), "executor", env={**os.environ, "PYTHONPATH": str(HERE)})
    host = os.uname().nodename
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"minscoop.below root {host} here False\nminscoop.below 0.1 {host} 5, <class 'object'> " \
                          f"False\nminscoop 0.1 {host} wrong True\n"


@pytest.mark.parametrize("setting, before", [
    ("", "minscoop: "), ("logging.basicConfig()", "WARNING:minscoop:"),
    ("minscoop.logger.addHandler(logging.StreamHandler())", ""), ("minscoop.logger.setLevel(40)", None)])
def test_a_warning_says_whose_it_is_when_the_program_has_set_up_nothing(script, setting, before):
    """Once, and with our name before it; where the program has set up logging, that decides how it is printed."""
    done = python(script(f"""
        import logging
        import minscoop
        {setting}
        if __name__ == "__main__":
            minscoop.logger.warning("careful")
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stderr) == (0, "" if before is None else f"{before}careful\n")


@pytest.mark.parametrize("options, tag", [([], ""), (["-v"], f"{os.uname().nodename} 0.1: ")])
def test_what_a_task_logs_is_on_stderr_when_the_launcher_ran_it(script, options, tag):
    """With host and worker before it when -v is given."""
    said = launch("-n", 1, *options, script(LOGGING)).stderr
    assert f"minscoop: {tag}5, <class 'object'>\n" in said and f"minscoop: {tag}wrong\nTraceback" in said
    assert "minscoop: here\n" in said
    assert ("not to be seen" in said) == bool(options)


@pytest.mark.parametrize("level, tag", [("NOTSET", ""), ("INFO", f"{os.uname().nodename} 0.1: ")])
def test_what_a_task_logs_is_tagged_when_the_program_logs_what_v_would(script, level, tag):
    """INFO, which -v sets, shows host and worker; NOTSET, where a program without the launcher begins, does not."""
    done = python(script(f"""
        import minscoop
        def log(): minscoop.logger.warning("careful")
        if __name__ == "__main__":
            minscoop.logger.setLevel("{level}")
            with minscoop.Executor(1) as executor: executor.submit(log).result()
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert done.returncode == 0 and f"minscoop: {tag}careful\n" in done.stderr, done


def test_calls_that_are_done_stay_counted_while_a_map_goes_on():
    """The count must not go back while anything is under way; what comes when all is done is counted from 0."""
    shown, node = minscoop.Progress(), minscoop.Inline()
    shown.nodes[node], shown.tallies["fast"], node.calls = 0, [60, 1, 0], 17
    assert shown.look({node: 3}) == {"fast": [60, 1, 0], "": [20, 17, 0]}
    node.calls = 20
    assert shown.look({node: 0}) == {"fast": [60, 1, 0], "": [20, 20, 0]}
    shown.tallies["fast"][1] = 60
    assert shown.look({node: 0}) == {} and shown.nodes[node] == 20


def test_workers_that_are_to_come_are_not_said_to_be_at_work_when_their_host_is_not_there():
    """This holds for the workers requested of that host, and for the one assumed if their number is unknown."""
    root = minscoop.Root.__new__(minscoop.Root)
    root.broken, root.size, root.idle_workers, root.retried = None, 3, 0, 0
    root.hosts = {"0": {"state": "ready", "workers": 0}, "1": {"host": "a"}}
    assert minscoop.progress_text({"": (10, 0, 0)}, 5, [root]) == "minscoop: 0 of 10 (0 %), 0/s, no workers as yet"
    root.hosts["1"].update(state="ready", workers=2)
    assert minscoop.progress_text({"": (10, 0, 0)}, 5, [root]).endswith("2 of 2 workers")


def test_one_is_no_plural_when_a_host_has_a_single_worker(caplog):
    """Neither in the log at -v nor in the progress line."""
    root = minscoop.Root.__new__(minscoop.Root)
    root.broken, root.size, root.idle_workers, root.retried, root.hosts, root.wake = None, 1, 0, 0, {}, lambda _: None
    facts = {"number": "1", "state": "ready", "host": "a", "python": "3", "workers": 1, "transport": "tcp"}
    with caplog.at_level(logging.INFO, "minscoop"):
        root.on_HOST(json.dumps({**facts, "address": ""}).encode())
    assert "host a: Python 3, 1 worker, data by tcp" in caplog.text
    assert minscoop.progress_text({"": (10, 0, 0)}, 5, [root]).endswith("1 of 1 worker")


def test_what_is_typed_runs_on_workers_when_there_is_a_prompt(guard, tmp_path):
    """Functions and classes that are defined, or redefined, there. Errors and Ctrl-C end a line, Ctrl-D the prompt."""
    terminal = Terminal("-n", 2, TERM="dumb", HOME=str(tmp_path))  # where the history of lines is kept
    for line, answer in [
            ("def f(x): return x * 2\n", ">>> "), ("list(map(f, range(5)))", "[0, 2, 4, 6, 8]"),
            ("class A:\n    def __init__(self, x): self.x = f(x)\n", ">>> "), ("submit(A, 21).result().x", "42"),
            ("type(submit(A, 1).result()) is A", "True"), ("def f(x): return x - 1\n", ">>> "),
            ("submit(A, 101).result().x", "100"), ("1 / 0", "ZeroDivisionError"),
            ("import time; print('sle' + 'eps'); list(map(time.sleep, [0.2] * 1000))", "sleeps"),
            ("\3", "KeyboardInterrupt"), ("sum(map(f, range(1000)))", "498500"),
            ("executor.submit(f, 8).result() + futures.submit(f, 70).result()", "76")]:
        terminal.seen = b""
        if line == "\3":
            time.sleep(0.5)
            terminal.process.send_signal(signal.SIGINT)
        else:
            terminal.type(line + "\n")
        terminal.await_text("\n" + answer if answer[0].isdigit() else answer)
        terminal.await_text(">>> " if answer != "sleeps" else answer)
    terminal.type("\4")
    assert terminal.end() == 0


def test_the_prompt_ends_when_sigterm_comes_while_a_line_runs(guard, tmp_path):
    """With the exit code that a script would have; the line that runs gets no traceback."""
    terminal = Terminal("-n", 1, TERM="dumb", HOME=str(tmp_path))
    terminal.await_text(">>> ")
    terminal.type("import time; print('sle' + 'eps'); time.sleep(1000)\n")
    terminal.await_text("sleeps")
    time.sleep(0.5)  # a signal just before the call does not interrupt it
    terminal.process.send_signal(signal.SIGTERM)
    terminal.type("\4")  # which would end a prompt that goes on
    assert terminal.end() == 128 + signal.SIGTERM and b"Traceback" not in terminal.seen


@pytest.mark.parametrize("workers, quiet", [(0, []), (1, []), (1, ["-q"])])
@pytest.mark.parametrize("end", ["\4", "exit()\n"])
def test_it_is_said_what_is_waited_for_when_the_prompt_ends(guard, tmp_path, workers, quiet, end):
    """Calls and items of maps that are not done, in one line. (Inline, calls are done at once.)"""
    if workers == 0:
        touch(tmp_path / "go")
    program = f"import os, time\ndef wait(x):\n    while not os.path.exists({str(tmp_path)!r} + '/go'): time.sleep(.01)"
    terminal = Terminal("-n", workers, *quiet, "-i", "-c", program, TERM="dumb", HOME=str(tmp_path))
    terminal.await_text(">>> ")
    terminal.type("future, results = submit(wait, 0), futures.map(wait, range(5)); print('map' + 'ped')\n")
    terminal.await_text("mapped\r\n>>> ")  # what is typed before that is read in another mode of the terminal
    terminal.type(end)
    if not quiet:
        terminal.await_text(f"minscoop: waiting for {5 + workers} calls; press Ctrl-C to end at once")
    touch(tmp_path / "go")
    assert terminal.end() == 0 and terminal.seen.count(b"waiting for") == (not quiet)


def test_it_is_said_that_it_is_waited_for_when_inputs_are_still_to_come(tmp_path):
    """A map that nobody reads is not done when all inputs pulled so far are: others may follow."""
    terminal = Terminal("-n", 1, "-i", "-c", "import itertools, time", TERM="dumb", HOME=str(tmp_path))
    terminal.await_text(">>> ")
    terminal.type("results = futures.map(time.sleep, itertools.repeat(0.01)); time.sleep(1); print('map' + 'ped')\n")
    terminal.await_text("mapped\r\n>>> ")
    terminal.type("\4")
    terminal.await_text(" or more; press Ctrl-C to end at once")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == -signal.SIGINT


def test_the_functions_of_the_script_see_what_the_prompt_binds_when_they_run_again(script):
    """Also where they reach it by way of others, or as methods; what the prompt has not touched goes by name, as the
    lock, which cannot be sent, and the class, which stays the same."""
    done = launch("-n", 1, "-i", script("""
        import threading
        from minscoop import futures
        RATE, LOCK = 5, threading.Lock()
        def rated(x): return x * RATE
        def locked(x):
            with LOCK: return rated(x)
        class A:
            def rate(self): return RATE
        class B(A): pass
        ITEM = B()
        def alike(x): return isinstance(x, B) and type(x) is type(ITEM)
        if __name__ == "__main__":
            print(*futures.map(locked, [1, 2]))
    """), stdin="RATE = 7\nprint(*futures.map(locked, [1, 2]))\n"
                "print(*[submit(call).result() for call in (ITEM.rate, lambda: B().rate(), lambda: alike(B()))])\n"
                "def rated(x): return -x\n\nprint(*futures.map(locked, [1, 2]), submit(alike, ITEM).result())\n")
    assert [re.sub("^[>. ]*", "", line) for line in done.stdout.splitlines() if line.strip(">. ")] == \
        ["5 10", "7 14", "7 7 True", "-1 -2 True"], done


@pytest.mark.parametrize("end", ["", "1 / 0", "sys.exit(5)"])
def test_a_prompt_follows_when_the_program_ran_with_i(script, end):
    """Also after an exception; what the program has defined can be used and redefined there, and its pool goes on."""
    done = launch("-n", 1, "-i", script(f"""
        import sys
        from minscoop import futures
        def f(x): return x * 2
        def g(x): return f(x) + 1
        if __name__ == "__main__":
            text = "kept"
            {end}
    """), stdin="print(text, futures.submit(g, 5).result())\ndef f(x): return 0\n\n"
                "def h(x): return f(x), g(x)\n\nprint(futures.submit(h, 5).result())\n")
    assert done.returncode == 0 and "kept 11" in done.stdout and "(0, 1)" in done.stdout, done
    assert ("ZeroDivisionError" in done.stderr) == (end == "1 / 0")


def test_a_debugger_looks_at_the_error_when_a_prompt_follows_one():
    """pdb.pm() shows the program's error, and then that of a line typed at the prompt."""
    done = launch("-n", 0, "-i", "-c", "def f(x): return 1 / x\nf(0)",
                  stdin="import pdb; pdb.pm()\np x + 70\nq\n{}[4]\npdb.pm()\np {**locals()} and 80\nq\n")
    assert "70" in done.stdout and "80" in done.stdout and "AttributeError" not in done.stderr, done


def test_no_failure_is_told_when_ctrl_c_interrupts_a_call_that_runs_in_the_program_itself():
    """The program has got it from submit, and no future that it could ask."""
    done = launch("-n", 0, "-c", """if True:
        import _thread, minscoop
        try: minscoop.submit(minscoop.submit, _thread.interrupt_main)
        except KeyboardInterrupt: print("interrupted")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", ""), done


@pytest.mark.parametrize("workers", [0, 1])
def test_a_prompt_follows_when_the_program_has_shut_the_pool_down(workers):
    """The pool is gone, but the program's globals are there."""
    done = launch("-n", workers, "-i", "-c", "import minscoop; minscoop.shutdown(); text = 'kept'", stdin="text * 2\n")
    assert done.returncode == 0 and "'keptkept'" in done.stdout and "Error" not in done.stderr, done


@pytest.mark.parametrize("closed, program", [("<&-", ""), ("", "import sys; sys.stdin.close()")])
def test_the_run_ends_when_there_is_no_stdin_for_a_prompt(closed, program):
    """As with python -i."""
    done = finish(subprocess.Popen(
        ["sh", "-c", f"exec \"$@\" {closed}", "sh", sys.executable, MINSCOOP, "-n", "0", "-i", "-c",
         f"print(5); {program}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", ""), done


@pytest.mark.parametrize("args", [[], ["-", "x"]])
def test_the_program_is_read_from_stdin_when_there_is_no_other(args):
    """As python does."""
    program = "import sys, minscoop\ndef f(x): return x + 1\nprint(sys.argv, list(minscoop.map(f, [1])), __name__)\n"
    bare, ours = python(*args, stdin="import sys; print(sys.argv)"), launch("-n", 1, *args, stdin=program)
    assert (ours.returncode, ours.stderr) == (0, "") and ours.stdout == bare.stdout.strip() + " [2] __main__\n"


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0"])
def test_functions_reach_the_workers_when_the_program_is_a_file_that_they_know_by_another_name(script, path):
    """`python minscoop.py /dev/stdin < script.py`: in a worker, that is its own stdin."""
    program = script("import minscoop\ndef f(x): return x + 1\nprint(__file__, list(minscoop.map(f, [1])))\n")
    with open(program) as file:
        done = subprocess.run([sys.executable, MINSCOOP, "-n", "1", path], stdin=file, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=WAIT)
    assert (done.returncode, done.stdout) == (0, f"{path} [2]\n"), done


@pytest.mark.skipif(sys.version_info < (3, 15), reason="before Python 3.15 there were no lazy imports")
def test_a_function_takes_along_submodules_that_are_to_be_imported_lazily():
    """Only the name of the package leads to them, until somebody asks it for them."""
    program = "lazy import xml.dom.minidom\nimport minscoop\n" \
              "print(minscoop.submit(lambda: xml.dom.minidom.__name__).result())"
    assert output_of("-n", 1, "-c", program) == "xml.dom.minidom\n"


@pytest.mark.skipif(sys.version_info < (3, 15), reason="before Python 3.15 there were no sentinels")
def test_sentinels_that_a_prompt_has_made_keep_their_identity():
    """Pickle only knows where they are to be found, which is not so in a worker; a name may have been used before."""
    program = "import minscoop\nold = sentinel('missing')\nmissing = sentinel('missing', repr='<missing>')\n" \
              "class Box: empty = sentinel('empty')\ndef f(x=missing): return x is missing, x, Box.empty\n" \
              "for args in [], [old], [Box.empty]:\n" \
              "    same, x, empty = minscoop.submit(f, *args).result()\n" \
              "    print(same, x, x is [missing, *args][-1], empty is Box.empty)"
    assert output_of("-n", 1, "-c", program) == \
        "True <missing> True True\nFalse missing True True\nFalse empty True True\n"


@pytest.mark.parametrize("how", [[MINSCOOP, "-n", 1], []])
def test_warnings_of_a_scripts_syntax_are_shown_once(script, how):
    """The root and the keeper compile it, too."""
    path = script("""
        import minscoop
        def same(x): return x is 1
        if __name__ == "__main__":
            with minscoop.Executor(1) as pool:
                print(pool.submit(same, 1).result())
        """)
    done = python(*how, path, env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert done.stdout == "True\n" and done.stderr.count("SyntaxWarning") == 1, done


NOTEBOOK = """
import sys, types
import minscoop
shell = sys.modules["__main__"] = types.ModuleType("__main__")
def run(cell): exec(compile(cell, "<ipython-input>", "exec"), shell.__dict__)
run("import minscoop, dataclasses; executor = minscoop.Executor(1)")
run("class Point:\\n    def __init__(self, x): self.x = x\\n    def twice(self): return Point(factor * self.x)")
run("factor = 2")
run("def work(x): return Point(x).twice()")
run("print(executor.submit(work, 4).result().x, type(executor.submit(work, 4).result()) is Point)")
run("factor = 3")
run("print([point.x for point in executor.map(work, range(3))])")
run("class Point(Point):\\n    def twice(self): return super().twice()")
run("print(executor.submit(work, 4).result().x)")
run("Point.twice = lambda self: Point(5)")
run("print(executor.submit(work, 4).result().x)")
run("executor.shutdown()")
"""


def test_cells_of_a_notebook_work_when_they_use_an_executor(script):
    """A notebook's main module has no file, and grows: what a call needs of it goes by value, as it is then."""
    done = python(script(NOTEBOOK), env={**os.environ, "PYTHONPATH": str(HERE)})
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "8 True\n[0, 3, 6]\n12\n5\n")


@pytest.mark.parametrize("program", [["program.py"], ["-m", "program"]])
def test_what_is_typed_at_the_prompt_of_python_i_runs_when_the_script_has_made_the_pool(script, tmp_path, program):
    """Functions that are defined again there, and classes, as in a notebook: workers have the script's only."""
    script("""
        import minscoop
        RATE = 5
        def rated(x): return x * RATE
        if __name__ == "__main__":
            executor = minscoop.Executor(1)
            print(*executor.map(rated, [1, 2]))
    """)
    done = python("-i", *program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE)}, stdin="""
RATE = 7
print(*executor.map(rated, [1, 2]))
def rated(x): return -x

print(*executor.map(rated, [1, 2]))
class A: pass

print(type(executor.submit(A).result()) is A)
""")
    assert (done.returncode, done.stdout) == (0, "5 10\n7 14\n-1 -2\nTrue\n"), done


def test_the_main_module_is_no_file_when_it_is_the_prompt_of_python_3_13(monkeypatch):
    """Python runs the module _pyrepl for it, in whose file workers would not find what is typed."""
    module = types.ModuleType("__main__")
    module.__file__, module.__spec__ = __file__, importlib.machinery.ModuleSpec("_pyrepl.__main__", None)
    monkeypatch.setitem(sys.modules, "__main__", module)
    main = minscoop.Main.of_this_process()
    assert (main.path, main.name) == (None, None) and main.by_value("typed")


def test_a_map_uses_what_is_there_now_when_its_function_was_sent_like_that_before():
    """The pickle of the third map's function is that of the first, whose globals the second has replaced in the worker:
    by other values, another function, a class with another attribute."""
    assert output_of("-n", 1, stdin="""
from minscoop import futures
class Scale: of = 0
def number(x): return factor
def one(x): return 1
def two(x): return 2
def indirect(x): return called(x)
def attribute(x): return Scale.of
for factor, called in (1, one), (2, two), (1, one):
    Scale.of = factor
    print(*(list(futures.map(fn, [0])) for fn in (number, indirect, attribute)))
""") == "[1] [1] [1]\n[2] [2] [2]\n[1] [1] [1]\n"


def test_maps_do_not_share_a_global_when_its_value_has_changed_between_them():
    """Each map's tasks come in turn, and are told apart by the value."""
    assert output_of("-n", 1, stdin="""
import itertools
from minscoop import futures
class Scale: of = 0
def number(x): return factor, Scale.of
results = []
for factor in 1, 2, 3:
    Scale.of = factor
    results.append(futures.map(number, itertools.repeat(0, 40), buffersize=1))
    print(next(results[-1]))
print(*map(set, zip(*zip(*results))))
""") == "(1, 1)\n(2, 2)\n(3, 3)\n{(1, 1)} {(2, 2)} {(3, 3)}\n"


def test_a_map_keeps_what_its_tasks_have_set_when_other_things_come_by_value():
    """Its function is not unpickled anew with each part of the inputs, which would be slow if it brings much along, and
    would set globals and attributes back, such as those that are made when a task first needs them."""
    assert output_of("-n", 1, stdin="""
from minscoop import futures
made, other = 0.0, [1]
class Item:
    pass
class Shared:
    made = None
def load(x):
    global made
    fresh = (made == zero()) + (Shared.made is None)
    made = Shared.made = 1
    return fresh, type(other)
def zero(): return 0.0 * made
def read(x): return other
items = [Item() for _ in range(20)]
for _ in range(2):
    parts = futures.map(load, iter(items), buffersize=1)
    print(sum(fresh for (fresh, _), _ in zip(parts, futures.map(read, iter(items), buffersize=1))))
""") == "2\n0\n"


OTHER = """
import minscoop
def f(x): return 3 * x
if __name__ == "__main__":
    with minscoop.Executor(1) as executor: print(list(executor.map(f, [1])))
"""
RUNS_OTHER = """
import runpy
import minscoop
class Thing: pass
def make(_): return Thing()
if __name__ == "__main__":
    with minscoop.Executor(1) as executor:
        runpy.run_path("other.py", run_name="__main__")
        print(type(executor.submit(make, 1).result()) is Thing)
"""
THEN_OTHER = 'import runpy; runpy.run_path("other.py", run_name="__main__"); run("factor = 3")'


@pytest.mark.parametrize("text, says", [
    (RUNS_OTHER, "[3]\nTrue\n"),
    (NOTEBOOK.replace('run("factor = 3")', THEN_OTHER), "8 True\n[3]\n[0, 3, 6]\n12\n5\n")],
    ids=["script", "notebook"])
def test_a_pool_goes_on_when_another_script_ran_as_main_and_had_one_too(script, tmp_path, text, says):
    """As by %run of IPython."""
    script(OTHER, "other.py")
    done = python(script(text), env={**os.environ, "PYTHONPATH": str(HERE)}, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", says)


@pytest.mark.skipif(sys.version_info < (3, 9), reason="until 3.8 they do not tell their parameters")
def test_a_function_with_a_cache_goes_by_value_and_keeps_it_when_it_comes_again():
    """Functions with functools.lru_cache: defined at a prompt, as a method, and made at run time."""
    done = launch("-n", 1, stdin="""import functools
from minscoop import futures
@functools.lru_cache(None)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
class Half:
    @functools.lru_cache(maxsize=3)
    def of(self, x): return x / 2
def times(k): return functools.lru_cache(lambda x: k * x)
def misses(n): return fib(n), fib.cache_info().misses
print(list(futures.map(fib, [30])), futures.submit(misses, 30).result(), futures.submit(misses, 31).result())
print(futures.submit(Half().of, 3).result(), futures.submit(times(3), 5).result(), futures.submit(times, 2).result()(8))
print(futures.submit(lambda: fib).result() is fib)
""")
    assert (done.returncode, done.stdout) == (0, "[832040] (832040, 31) (1346269, 32)\n1.5 15 16\nTrue\n"), done


def test_it_is_said_what_to_use_when_a_task_brings_the_executor(pool):
    """In the closure of a function, for instance."""
    with pytest.raises(CannotSend, match="closure: an Executor .*use minscoop.map"):
        pool.submit(lambda: list(pool.map(identity, [1]))).result()


# ---------------------------------------------------------------------------------------------------
# 18  Report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def event_of(start, seconds, fn="f", worker="0.1", count=1):
    """An event as a worker records it."""
    return types.SimpleNamespace(worker=worker, fn=fn, start=start, end=start + seconds, own=seconds, calls=count,
                                 failed=0, task=f"{worker}#1", parent=None, arguments="1, 2", again=False)


def sums(events):
    """What may not change when events are merged: calls and seconds of each worker."""
    total = collections.Counter()
    for event in events:
        total[event.worker, "calls"] += event.calls
        total[event.worker, "own"] += event.own
    return {key: round(value, 6) for key, value in total.items()}


@pytest.fixture
def collector(guard, tmp_path):
    """The root of a run without a pool, which collects records; it publishes a page and a trace."""
    wishes = dict(report=str(tmp_path / "run.html"), trace=str(tmp_path / "run.json"), summary=False, record=2)
    return minscoop.RecordingInline(wishes)


class RecordingWorker(minscoop.RecordingWorker):
    """One without a process or socket: what it would send is in `sent`."""

    def __init__(self, name=b"0.1", level=2):
        self.sent = []
        super().__init__(name, dict(record=level, total=1, retries=3, name="", profile=None, address=None),
                         bytearray(4096))

    def send(self, *frames):
        self.sent.append(frames)


def record_of(worker, **facts):
    """The body of a RECORD of this worker, in which these facts are what is given here."""
    return pickle.dumps(types.SimpleNamespace(**{**vars(worker.news()), **facts}), 5)


def data_of(page):
    """What a page has to draw."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def entries_of(trace):
    """The entries of a trace, or of what a page draws, by their phase."""
    entries = collections.defaultdict(list)
    for entry in (data_of(trace) if trace.suffix == ".html" else json.loads(trace.read_text()))["traceEvents"]:
        entries[entry["ph"]].append(entry)
    return entries


@pytest.mark.parametrize("workers", [0, 2])
def test_calls_that_raise_are_marked_when_a_trace_is_written(script, tmp_path, workers):
    """Those of maps, of submits, and of tasks inside of tasks."""
    done = launch("-n", workers, "--trace", tmp_path / "run.json", script("""
        from minscoop import futures
        def inverse(x): return 1 / x
        def failures(values): return sum(futures.submit(inverse, x).exception() is not None for x in values)
        if __name__ == "__main__":
            print(failures([1, 0, 2]), futures.submit(failures, [0, 1, 0]).result())
            try: list(futures.map(inverse, [3, 2, 1, 0]))
            except ZeroDivisionError: print("raised")
    """))
    assert (done.returncode, done.stdout) == (0, "1 2\nraised\n"), done
    assert sum(entry["args"].get("failed", 0) for entry in entries_of(tmp_path / "run.json")["X"]) == 4


@pytest.mark.parametrize("functions, workers", [(1, 1), (3, 2), (900, 7)])
def test_totals_stay_exact_when_events_are_thinned(functions, workers):
    """Merging changes neither calls nor times, mixes no workers, and ends at the cap."""
    draw = random.Random(functions)
    events = [event_of(draw.random() * 100, draw.expovariate(10), f"f{draw.randrange(functions)}",
                       f"0.{draw.randrange(workers)}", draw.randrange(1, 9))
              for _ in range(5000)]
    before, first, last = sums(events), min(e.start for e in events), max(e.end for e in events)
    minscoop.thin(events, 100)
    assert 50 <= len(events) <= 100 and sums(events) == before
    assert (first, last) == (min(e.start for e in events), max(e.end for e in events))


def test_a_long_task_keeps_its_bar_when_short_ones_are_merged():
    """The shortest neighbours go first, and only as many as is needed."""
    events = [event_of(i, 0.5) for i in range(1000)]
    events[700:] = [event_of(800, 9), *(event_of(i + 1000, 0.5) for i in range(299))]
    minscoop.thin(events, 300)
    assert [e.arguments for e in events if e.start == 800] == ["1, 2"] and 200 < len(events) <= 300


@pytest.mark.parametrize("other, fn, parent", [({}, "f", "t"), ({"fn": "g"}, "(several)", "t"),
                                               ({"parent": "u"}, "f", None), ({"parent": None}, "f", None)])
def test_facts_are_those_of_both_when_events_are_merged(other, fn, parent):
    """A name and a parent only if both have it, and no arguments, which are one call's. What failed adds up; for the
    mark of what ran again, one is enough."""
    event, later = event_of(0, 3), event_of(1, 1)
    vars(event).update(parent="t", failed=2)
    vars(later).update({"parent": "t", "failed": 1, "again": True, **other})
    minscoop.merge(event, later)
    assert (event.fn, event.parent, event.arguments, event.end) == (fn, parent, None, 3)
    assert (event.failed, event.again) == (3, True)


def test_bars_do_not_cross_when_events_overlap():
    """Within a lane, no event begins before the previous one has ended."""
    draw, until = random.Random(1), collections.Counter()
    for event, lane in minscoop.lanes([event_of(draw.random() * 100, draw.random() * 20) for _ in range(300)]):
        assert until[lane] <= event.start
        until[lane] = event.end


def test_lanes_are_found_at_once_when_a_chain_of_tasks_is_as_long_as_can_be():
    """Each needs a lane of its own. Looking at all lanes for each event took two minutes for 20 000."""
    events, before = [event_of(i, 99999 - 2 * i) for i in range(minscoop.MAX_EVENTS)], time.process_time()
    assert [lane for _, lane in minscoop.lanes(events)] == [*range(minscoop.MAX_EVENTS)]
    assert time.process_time() - before < 10


class Rude:
    """Its own methods are not to be called when it is shown."""

    def __repr__(self):
        raise SystemExit

    __str__ = __len__ = __hash__ = __iter__ = __repr__


class RudeList(list):
    __repr__ = __len__ = __iter__ = Rude.__repr__


@pytest.mark.parametrize("value, text", [
    (None, "None"), (12, "12"), (-1.5, "-1.5"), ("a'b", '"a\'b"'), ("x" * 10 ** 7, repr("x" * 30) + "…"),
    (b"ab", "b'ab'"), (10 ** 10 ** 5, "<int>"), ([1, 2, 3, 4], "[1, 2, 3, …]"), (range(10 ** 9), "<range>"),
    (Rude(), "<Rude>"), (RudeList(), "<RudeList>"), ({"a": [1, [2, [3]]]}, "{'a': [1, <list>]}"),
    ({1}, "{1}"), ((), "()"), (Rude, "<type>"), ({"a": 1, "b": 2, "c": 3, "d": 4}, "{'a': 1, 'b': 2, 'c': 3, …}"),
    (identity, "identity")], ids=map(str, range(17)))
def test_an_argument_is_shown_in_short_when_it_is_large_or_rude(value, text):
    """Whatever it is: bounded, and none of its own code runs."""
    assert minscoop.short(value) == text


def test_a_bar_shows_that_arguments_were_left_out_when_a_call_has_many(tmp_path):
    """Those beyond the fifth, and what is too long for a tooltip."""
    trace = tmp_path / "run.json"
    with minscoop.Executor(0, trace=trace) as executor:
        executor.submit(dict, **dict.fromkeys("abcdefgh", 1)).result()
        executor.submit(dict, **dict.fromkeys("abcdefgh", "x" * 25)).result()
    short, long = (entry["args"]["arguments"] for entry in entries_of(trace)["X"])
    assert short == "a=1, b=1, c=1, d=1, e=1, …" and len(long) == 120 and long.endswith("x…")


class RudeCallable:
    """Looking up any attribute of it raises SystemExit."""

    def __call__(self, *args):
        return args

    def __getattribute__(self, name):
        raise SystemExit


@pytest.mark.parametrize("fn, name", [
    (identity, "identity"), (abs, "abs"), (Rude, "Rude"), (functools.partial(functools.partial(left, 1), 2), "left"),
    (Rude().__repr__, "Rude.__repr__"), (functools.lru_cache()(identity), "identity"), (RudeCallable(), "RudeCallable"),
    ([].append, "list.append")], ids=map(str, range(8)))
def test_a_callable_has_the_same_name_everywhere_when_it_is_counted(fn, name):
    """The name is that of its function or its class, found without running any code of its own."""
    assert minscoop.describe(fn) == name


@pytest.mark.skipif(numpy is None, reason="no numpy")
def test_an_array_is_shown_by_its_shape_when_it_is_an_argument():
    """And a scalar by its value, a function by its name."""
    assert minscoop.short(numpy.zeros((1000, 3))) == "ndarray(1000, 3)" and "sin" in minscoop.short(numpy.sin)
    assert "2.5" in minscoop.short(numpy.float64(2.5))


def test_totals_are_those_of_the_last_record_when_others_are_lost(collector, monkeypatch):
    """Each record has the totals so far, so a lost record costs only its events."""
    worker = RecordingWorker()
    monkeypatch.setattr(minscoop, "RECORDS", math.inf)  # none but those below
    worker.started = True
    for i in range(30):
        worker.run(minscoop.Future(worker, (identity, (i,), {}), None))
        worker.queue.clear()
        worker.parked.clear()
        if i % 10 == 9:
            worker.tell(at_once=True)
    records = [frames for frames in worker.sent if frames[0] == b"RECORD"]
    assert len(records) == 3
    collector.on_RECORD(*records[0][1:])
    collector.on_RECORD(*records[2][1:])
    assert sum(collector.records["0.1"].calls.values()) == 30 and len(collector.events) == 20


def test_what_waits_is_known_when_workers_have_just_begun(collector, monkeypatch):
    """Their first RECORDs are from before they had anything, and the next but one is due only after a while. All come
    in the same moment."""
    worker = RecordingWorker()
    worker.tell()
    worker.queue += [minscoop.Future(worker, (identity, (i,), {}), None) for i in range(3)]
    for _ in range(2):
        worker.execute(minscoop.Future(worker, (identity, (1,), {}), None))
    assert [minscoop.unpickle(body).queued for _, _, body in worker.sent] == [0, 3]
    set_clock(monkeypatch, lambda: collector.born + 9)
    for number, queued in enumerate((0, 0, 3, 4)):
        collector.on_RECORD(b"0.%d" % (number % 2), record_of(worker, queued=queued))
    assert [queued for _, queued in collector.queues] == [0, 0, 0, 3, 7]


def test_everything_is_recorded_when_several_threads_of_a_worker_run_tasks():
    """Threads that tasks have started run tasks, too, while they wait; events are merged and sent meanwhile."""
    worker, before = RecordingWorker(), sys.getswitchinterval()
    worker.cap = 50  # then neighbours are merged

    def work():
        for i in range(500):
            worker.execute(minscoop.Future(worker, (identity, (i,), {}), None))
        worker.tell(at_once=True)
    threads = [threading.Thread(target=work) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    finally:
        sys.setswitchinterval(before)
    said = [minscoop.unpickle(body) for _, _, body in worker.sent]
    assert said[-1].runs == sum(said[-1].calls.values()) == 2000
    assert sum(event.calls for news in said for event in news.events) == 2000


def test_a_task_has_only_its_own_time_when_it_polls_and_then_runs_another(monkeypatch):
    """Once it has polled, its thread's CPU time counts, of which each call of `use` takes some seconds here."""
    worker, used = RecordingWorker(), [0.0]
    worker.totals.now = math.inf  # no RECORD is due
    monkeypatch.setattr(minscoop, "time", types.SimpleNamespace(**{**vars(time), "thread_time": lambda: used[0]}))
    monkeypatch.setattr(minscoop.Worker, "yield_baton", lambda self: None)

    def use(seconds): used[0] += seconds
    def run(*steps): worker.execute(minscoop.Future(worker, (lambda: [step() for step in steps], (), {}), None))
    ten, poll = functools.partial(use, 10), worker.yield_baton
    run(poll, functools.partial(use, 30), functools.partial(run, ten), functools.partial(run, ten, poll, ten))
    assert [round(event.own, -1) for event in worker.events] == [0, 10, 30]


def test_a_record_is_dropped_when_it_is_nonsense(collector):
    """It is counted, and does no harm to the report."""
    some = types.SimpleNamespace(now=1, events=3)
    for body in (b"", b"x", *(pickle.dumps(thing, 5) for thing in (1, {}, some))):
        collector.handle([b"RECORD", b"0.1", body])
    assert collector.dropped == 5
    collector.abort()
    assert data_of(pathlib.Path(collector.options["report"]))["tasks"] == 0


def test_records_are_few_and_small_when_tasks_are_many(monkeypatch):
    """Above the cap, neighbours are merged; a RECORD is sent every RECORDS seconds, not for each task."""
    worker = RecordingWorker()
    for i in range(30000):
        worker.execute(minscoop.Future(worker, (identity, (i,), {}), None))
    assert len(worker.events) <= 2 * worker.cap and len(worker.sent) < 100
    said = [minscoop.unpickle(body) for name, _, body in worker.sent] + [worker.news()]
    assert all(len(news.events) <= 2 * worker.cap for news in said)
    assert sum(event.calls for news in said for event in news.events) == 30000


def test_the_slowest_calls_are_kept_when_there_are_too_many_events(collector, monkeypatch):
    """With their arguments and times, although most events are merged with their neighbours."""
    monkeypatch.setattr(minscoop, "MAX_EVENTS", 100)
    collector.cap = 100
    for i in range(0, 1000, 100):
        collector.on_RECORD(b"0.1", record_of(RecordingWorker(), events=[
            event_of(j, 1 + j / 1000 + 2 * (j % 100 == 50)) for j in range(i, i + 100)]))
    run = minscoop.digest(collector)
    assert len(run.events) <= 100 and len(run.slowest) == 20
    assert [(round(event["own"], 6), event["calls"], event["arguments"]) for event in run.slowest[:10]] == [
        (round(3 + j / 1000, 6), 1, "1, 2") for j in range(950, 0, -100)]


def test_a_lost_worker_is_one_of_its_host_when_none_of_its_records_has_come(collector):
    """Its name says which host that is."""
    for name, host in (b"0.1", "here"), (b"1.1", "there"):
        collector.on_RECORD(name, record_of(RecordingWorker(name), host=host))
    collector.losses += [("0.root", time.monotonic(), "1.7 (host there, pid 3) was killed by signal 9", 2)]
    run = minscoop.digest(collector)
    assert run.workers["1.7"] == "there" and [row[0] for row in run.table[1:]] == ["here", "there"]


def test_all_workers_of_a_host_are_gone_when_it_is_lost(collector):
    """They have waited no more since then; and there is no other worker of a host without a name."""
    for name, host in (b"0.1", "here"), (b"1.1", "there"), (b"1.2", "there"):
        collector.on_RECORD(name, record_of(RecordingWorker(name), host=host))
    collector.losses += [("0.root", time.monotonic(), "host there is gone", 2)]
    run = minscoop.digest(collector)
    assert [(name, news.gone < math.inf, news.again) for name, news in run.records.items()] == [
        ("0.1", False, 0), ("1.1", True, 2), ("1.2", True, 0)]
    assert [row[0] for row in run.table[1:]] == ["here", "there"] and run.losses[0][0] == "1.1"


def test_other_hosts_times_are_moved_when_their_clocks_differ(collector, monkeypatch):
    """By the delay that the quickest record seemed to have, but never to before the run began."""
    now = time.monotonic()
    collector.born = now - 3
    set_clock(monkeypatch, lambda: now)
    for late in (1, 5, 0, 2):
        collector.on_RECORD(b"7.1", record_of(
            RecordingWorker(b"7.1"), now=now + 1000 - late, first=now + 1000 - late, last=now + 1000,
            calls={("f", -3): 1}, seconds={"f": 0.1}, events=[event_of(now + 1000 - late, 0.1, worker="7.1")]))
    run = minscoop.digest(collector)
    assert sorted(round(event.start, 6) for event in run.events) == [0, 1, 2, 3]


def test_nothing_ends_the_data_when_an_argument_looks_like_html(collector):
    """What the user calls things stays text, in the page and in the trace."""
    evil = "</script><script>alert(1)</script><!-- \u2028 @DATA@ \udcff"
    event = event_of(collector.born, 0.1, fn=evil)
    event.arguments = evil
    collector.on_RECORD(b"0.1", record_of(RecordingWorker(), first=collector.born, last=collector.born,
                                          calls={(evil, -3): 1}, seconds={evil: 0.1}, events=[event]))
    collector.losses.append(["0.root", time.monotonic(), f"0.1 (host {evil})", 1])
    collector.abort()
    page = pathlib.Path(collector.options["report"])
    assert page.read_text().lower().count("</script") == minscoop.PAGE.count("</script")
    assert [*data_of(page)["functions"]] == [evil]
    for path in page, pathlib.Path(collector.options["trace"]):
        [entry] = entries_of(path)["X"]
        assert entry["name"] == evil == entry["args"]["arguments"]


NESTED = """
    import os, sys, time
    from minscoop import futures
    def leaf(path, i):
        end = time.monotonic() + 0.01
        while time.monotonic() < end: pass
        if i == 7 and not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), 9)
        return i
    def branch(path, n):
        return sum(f.result() for f in [futures.submit(leaf, path, 4 * n + i) for i in range(4)])
    if __name__ == "__main__":
        print(sum(f.result() for f in [futures.submit(branch, sys.argv[1], n) for n in range(20)]))
        print(sum(futures.map(abs, range(-100000, 0))))
"""


def test_everything_is_in_the_report_when_tasks_are_nested_and_a_worker_dies(script, tmp_path):
    """Page, trace and summary tell the same: who ran what, for whom, and what was lost and ran again."""
    page, trace = tmp_path / "run.html", tmp_path / "run.json"
    done = launch("-v", "-n", 3, "--report", page, "--trace", trace, script(NESTED), tmp_path / "flag")
    assert (done.returncode, done.stdout) == (0, "3160\n5000050000\n")
    head, row, verdict = done.stderr.splitlines()[-3:]
    assert head.split() == ["HOST", "WORKERS", "TASKS", "BUSY", "RECEIVED", "SENT", "RETRIES"]
    assert row.split()[:2] == [os.uname().nodename, "4"] and verdict.startswith("minscoop: Limited by ")
    data, entries = data_of(page), entries_of(trace)
    calls = {name: count for name, (count, *_) in data["functions"].items()}
    assert calls["abs"] == 100000 and 40 <= calls["leaf"] <= 84 and sum(calls.values()) == data["tasks"]
    [[worker, _, why, again]] = data["losses"]
    assert why.startswith(worker) and "SIGKILL" in why and again >= 1
    assert data["together"] == 3  # a worker and its successor count once: else three would never seem to be busy
    assert entries == entries_of(page)
    assert {"worker lost", "retry"} == {entry["name"] for entry in entries["i"]}
    assert {"process_name", "thread_name"} <= {entry["name"] for entry in entries["M"]}
    tasks = {entry["args"]["task"]: entry for entry in entries["X"]}
    assert sum(entry["args"]["calls"] for entry in entries["X"]) == data["tasks"]
    shown = {str(entry["args"].get("arguments")).split(", ")[-1] for entry in entries["X"]}
    assert shown & {str(i) for i in range(10, 14)}
    parents = {tasks[entry["args"]["parent"]]["name"] for entry in entries["X"] if entry["args"].get("parent") in tasks}
    assert parents == {"branch"}


def test_the_entries_of_a_thread_are_nested_when_a_trace_is_written(script, tmp_path):
    """Complete events of one pid and tid do not cross, as viewers need it; times are not negative."""
    launch("-n", 2, "--trace", tmp_path / "run.json", script(NESTED), tmp_path / "flag")
    threads = collections.defaultdict(list)
    for entry in entries_of(tmp_path / "run.json")["X"]:
        assert entry["ts"] >= 0 and entry["dur"] >= 0
        threads[entry["pid"], entry["tid"]].append((entry["ts"], -entry["dur"]))
    for spans in threads.values():
        stack = []
        for begin, minus in sorted(spans):
            stack = [end for end in stack if end > begin + 0.01] + [begin - minus]
            assert all(a >= b - 0.01 for a, b in zip(stack, stack[1:]))


def test_no_lane_is_anothers_when_a_chain_of_tasks_is_long():
    """Each task of the chain waits for the next one, and so needs a lane of its own; no two workers share a lane."""
    events = [*(event_of(i, 9999 - 2 * i) for i in range(1500)), event_of(0, 9, worker="0.2")]
    run = types.SimpleNamespace(hosts={"h": {}}, workers={"0.1": "h", "0.2": "h"}, events=events, losses=[])
    names = [(entry["tid"], entry["args"]["name"]) for entry in minscoop.trace_entries(run)
             if entry["name"] == "thread_name"]
    assert len(names) == len({tid for tid, _ in names}) == 1501
    assert {(tid // 100_000, name.split()[1].strip(",")) for tid, name in names} == {(1, "0.1"), (2, "0.2")}
    assert "tid / 1e5" in minscoop.PAGE and "tid % 1e5" in minscoop.PAGE  # the page takes them apart again


@pytest.mark.parametrize("workers", [0, 2])
def test_calls_are_counted_to_the_last_when_a_summary_is_asked_for(workers, capfd):
    """The summary counts submitted calls, and the items of maps and reductions, with worker processes and without."""
    with minscoop.Executor(workers, summary=True) as executor:
        list(executor.map(abs, range(1000)))
        assert [executor.submit(abs, i).result(WAIT) for i in range(50)] == list(range(50))
        executor.map_reduce(abs, max, range(500))
    assert "1550 tasks in " in capfd.readouterr().err


def test_the_report_is_written_when_everything_ran_inline(script, tmp_path):
    """-n 0: one row, with the nested tasks below their parents."""
    launch("-n", 0, "--report", tmp_path / "run.html", script(NESTED.replace("i == 7", "False")), tmp_path)
    data = data_of(tmp_path / "run.html")
    assert data["tasks"] == 100100 and data["workers"] == {"0.root": os.uname().nodename}
    assert "own process" in data["verdict"] and len({e["tid"] for e in entries_of(tmp_path / "run.html")["X"]}) > 1


def test_the_rest_is_shown_when_the_reports_directory_is_gone(script, tmp_path):
    """One line says so; the trace and the summary are there."""
    (tmp_path / "away").mkdir()
    done = launch("-n", 1, "-v", "--report", tmp_path / "away" / "run.html", "--trace", tmp_path / "run.json", "-c", (
        f"import minscoop, shutil; list(minscoop.map(abs, range(5))); shutil.rmtree('{tmp_path}/away')"))
    assert done.returncode == 0 and json.loads((tmp_path / "run.json").read_text())["tasks"] == 5
    assert f"minscoop: the report could not be written to {tmp_path}/away/run.html: No such file" in done.stderr
    assert "minscoop: 5 tasks in " in done.stderr


def test_the_report_is_written_when_the_program_ends_badly(script, tmp_path):
    """What was known until then; the exit code stays what it was."""
    ends = ["raise KeyError", "sys.exit(3)", "os.kill(os.getpid(), signal.SIGINT); time.sleep(40)",
            "os.kill(os.getpid(), signal.SIGTERM); time.sleep(40)", "broken()"]
    path = script("""
        import os, signal, subprocess, sys, time
        import minscoop
        from minscoop import futures
        def nap(i): time.sleep(0.05)
        def broken():
            os.kill(int(subprocess.check_output(["ps", "-o", "ppid=", str(futures.submit(os.getpid).result())])), 9)
            futures.submit(nap, 1).result()
        if __name__ == "__main__":
            list(futures.map(nap, range(30)))
            records = minscoop.executors[-1]._node.records  # the totals of each worker that have arrived
            while sum(sum(news.calls.values()) for news in list(records.values())) < 30: time.sleep(0.01)
            exec(sys.argv[1])
    """)
    commands = [("-n", 2, "--report", tmp_path / f"run{i}.html", path, end) for i, end in enumerate(ends)]
    for i, done in enumerate(launch_together(commands)):
        assert done.returncode != 0, done
        data = data_of(tmp_path / f"run{i}.html")
        assert data["tasks"] >= 30, done
        assert ("interrupted" in data["verdict"]) == (done.returncode in (-signal.SIGINT, 128 + signal.SIGTERM)), done


def test_nothing_is_published_when_the_pool_cannot_start(monkeypatch, tmp_path, capfd):
    """Here the start fails near the end of `open`. A report would wrongly say that the run was interrupted."""
    monkeypatch.setattr(minscoop, "keep_spare", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        minscoop.Executor(1, summary=True, report=tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text() == capfd.readouterr().err == ""


def test_a_worker_is_in_the_report_when_its_first_task_never_ends(script, tmp_path):
    """After Ctrl-C, the user wants to see that the worker was there, although it has finished nothing."""
    done = launch("-n", 1, "--report", tmp_path / "run.html", script("""
        import os, signal, time
        from minscoop import futures
        def nap(path):
            open(path, "w").close()
            time.sleep(1000)
        if __name__ == "__main__":
            futures.submit(nap, __file__ + ".flag")
            while not os.path.exists(__file__ + ".flag"): time.sleep(0.05)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT); time.sleep(40)
    """))
    data = data_of(tmp_path / "run.html")
    assert done.returncode and [*data["workers"]] == ["0.1"] and data["tasks"] == data["runs"] == 0, done


@pytest.mark.parametrize("name", ["missing/run.html", "", "file/run.html"])
@pytest.mark.parametrize("option", ["--report", "--trace"])
def test_a_path_is_refused_at_the_start_when_it_cannot_be_written(script, tmp_path, option, name):
    """Before anything is run: one line that names it."""
    touch(tmp_path / "file")
    done = launch("-n", 1, option, f"{tmp_path}/{name}", script("print('ran')"))
    assert done.returncode and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert f"cannot write {tmp_path}" in done.stderr


def test_nothing_is_recorded_when_nobody_asks(pool):
    """The classes that record are not even in use."""
    assert type(pool._node) is minscoop.Root
    assert pool.submit(eval, "type(__import__('minscoop').this_worker).__name__").result(WAIT) == "Worker"


def run_of(first, last, busy, workers=4, calls=1000, moved=0, seconds=None, cpu=0.1, ends=(), came=(), failure=None,
           gone=(), left=(), asked=math.inf, again=(), arrived=0, runs=None):
    """What is known of a run in which each worker was busy for so long."""
    came, gone, again = [*came, *[0] * workers], [*gone, *[math.inf] * workers], [*again, *[0] * workers]
    left = [*left, *[math.inf] * workers]
    records = {f"0.{i}": types.SimpleNamespace(
                   first=first, last=end, now=last, came=came[i], gone=gone[i], left=left[i],
                   again=again[i])
               for i, end in enumerate([*ends, *[last] * workers][:workers])}
    return types.SimpleNamespace(
        records=records, code=busy * workers, seconds=seconds or last + 0.1, tasks=calls, runs=runs or calls,
        moved=moved, cpu=cpu, inline=False, failure=failure, interrupted=False, asked=asked, arrived=arrived,
        losses=[["0.1", moment, "why", 1] for moment in gone if moment < math.inf])


@pytest.mark.parametrize("text, run", [
    ("nothing", run_of(0, 10, 9.5)),
    ("nothing", run_of(0, 10, 4.9, workers=8, ends=[5] * 4, came=[0] * 4 + [5] * 4, left=[5] * 4)),
    ("too-short tasks", run_of(0, 10, 1, calls=10 ** 6)),
    ("the network", run_of(0, 10, 2, calls=10 ** 4, moved=10 ** 9)),
    ("the network", run_of(0, 10, 2, calls=100, moved=10 ** 9)),
    ("the network", run_of(6, 8, 2, calls=100, moved=10 ** 9, asked=1)),
    ("the network", run_of(0, 2, 1.9, calls=100, moved=10 ** 7, seconds=10, arrived=9)),
    ("the root: the script gave .* for 7.0 of 10.0 s", run_of(0, 3, 2.9, calls=100, seconds=10, arrived=3)),
    ("the root.* Submit more .* send less than 1 MB ", run_of(0, 10, 2, calls=100, moved=10 ** 8)),
    ("imbalance", run_of(0, 10, 4, ends=[10, 4, 4, 4])),
    ("nothing", run_of(0, 10, 4.9, ends=[5, 5], came=[0, 0, 5, 5], gone=[5, 5])),
    ("lost workers: 2 died, and 32% ", run_of(0, 10, 5, ends=[1, 5], gone=[9, 9], again=[1, 3])),
    ("lost workers", run_of(0, 10, 1, calls=3, ends=[1, 1, 1], gone=[9, 9, 9], again=[1, 1, 1])),  # of 3 calls known
    ("imbalance", run_of(0, 10, 5, ends=[1, 1], gone=[9, 9])),  # these were idle when they died
    ("the root.* busy 90%.* Make tasks larger", run_of(0, 10, 4, cpu=0.9)),
    ("too-short tasks: 2 µs .* 60%", run_of(0, 2, 1.2, calls=2_400_000, runs=800)),  # a map, in slices of 6 ms
    ("the root.* waited for more. Submit more", run_of(0, 10, 4)),
    ("the root", run_of(90, 99, 9, seconds=100)),
    ("the root", run_of(0, 6, 6, seconds=10)),
    ("the start", run_of(6, 9, 2.9, seconds=10, came=[6, 6, 6, 7])),
    ("the start.* 3.0 s after", run_of(4, 5, 0.4, asked=1)),
    ("the start.* 3.0 s after", run_of(4, 5, 0.4, asked=1, calls=10 ** 6)),
    ("nothing", run_of(2, 4, 1.9, seconds=4.1, came=[1.9] * 4)),
    ("nothing", run_of(0, 10, 4.9, came=[5] * 4))])
def test_the_summary_says_what_the_limit_was_when_it_can_be_told(text, run):
    """One sentence, with what to change."""
    assert re.match(f"Limited by {text}", minscoop.verdict(run))


def test_the_summary_says_that_workers_died_when_no_task_is_known_to_have_ended():
    """What they ran after their last records is not known; "No task was run" would be wrong."""
    assert "killed the workers" in minscoop.verdict(run_of(0, 9, 0, calls=0, gone=[5], again=[1]))
    assert minscoop.verdict(run_of(0, 9, 0, calls=0)) == "No task was run."


def test_the_summary_says_what_it_does_not_count_when_the_run_was_interrupted(capfd):
    """RECORDs come only now and then: results that the script has seen may be missing, too."""
    run = run_of(0, 9, 8)
    run.interrupted = True
    assert "or had only just ended, is not counted" in minscoop.verdict(run)
    with minscoop.Executor(0, summary=True) as executor:
        executor.submit(abs, 1).result(WAIT)
    assert "minscoop: 1 task in " in capfd.readouterr().err


def browse(page, tmp_path, script="", end="--dump-dom"):
    """What a page looks like to a browser, as HTML, once a script has run in it; or as another `end` has it."""
    if BROWSER is None:
        skip_or_fail("no browser: install chromium")
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                           "--disable-background-networking", "--disable-component-update", "--disable-sync",
                           f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1400,900", end,
                           f"file://{copy}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=WAIT)
    return done.stdout.decode()


def test_a_browser_draws_the_page_when_it_is_opened(script, tmp_path):
    """Numbers, a picture that is not empty, and what one sees with the pointer over a task."""
    (tmp_path / "flag<").mkdir()
    launch("-n", 2, "--report", tmp_path / "run.html", script(NESTED), tmp_path / "flag<" / "script>")
    seen = browse(tmp_path / "run.html", tmp_path, """
        const bar = tasks.find(({ name }) => name === "leaf"), inks = new Set(), out = document.body.dataset
        for (let i = 0, d = pen.getImageData(0, 0, canvas.width, canvas.height).data; i < d.length; i += 4)
          inks.add(d[i] + " " + d[i + 1] + " " + d[i + 2])
        out.drawn = tasks.length
        tell(X((bar.from + bar.to) / 2), Y(bar.row + .5))
        out.tip = $("tip").textContent
        out.scrolls = canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -500, cancelable: true }))
        out.zoomed = (t1 - t0) / end
        show(end / 4, end / 2, 0, rows)
        const held = timeAt(400)
        canvas.onpointermove({ offsetX: 400, offsetY: 9, movementX: 50, movementY: 0, buttons: 1 })
        out.dragged = Math.round(X(held))
        out.inks = inks.size
        canvas.ondblclick()
        out.all = String(t0 === 0 && t1 === end && y1 === rows)
        const press = (key, more) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, ...more }))
        press("+"), press("ArrowRight"), press("0", { ctrlKey: true }), press("x")
        out.pressed = [t0, t1].map(t => (t / end).toFixed(2))
        press("-"), press("0")
        out.all += t0 === 0 && t1 === end && y1 === rows
        D.waiting = [[0, 0], [D.seconds / 4, most], [D.seconds, 0]]
        show(end / 2, end, 0, rows), paint()
        const columns = [-9, 0].map(x => pen.getImageData(GUTTER + x, AXIS + STRIP, 1, STRIP).data)
        out.line = columns.map(dots => dots.filter((red, i) => i % 4 === 0 && red > 200 && dots[i + 2] < 90).length)
        show(end - 100, end, 0, rows)
        out.ticks = new Set([0, 20, 40, 60].map(t => moment(t0 + t))).size""")
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', seen))
    assert int(found["drawn"]) > 40 and int(found["inks"]) > 20 and found["all"] == "truetrue"
    assert found["scrolls"] == "false" and found["dragged"] == "450"  # no page moves; what is held does
    assert found["pressed"] == "0.22,0.97"  # three quarters of it, moved by an eighth of that
    assert found["ticks"] == "4"  # all four are different, although the picture spans only 0.1 ms
    gutter, edge = map(int, found["line"].split(","))  # rows in which the line of what waits shows, left of the picture
    assert gutter == 0 < edge < 9  # and at its edge, where it is no column although more has waited before
    assert "leaf" in found["tip"] and "in its own code" in found["tip"] and 0 < float(found["zoomed"]) < 0.6
    assert all(f"<h2>{title}</h2>" in seen for title in ("Timeline", "Functions", "Slowest calls", "Lost workers"))
    assert "&lt;/script&gt;" in seen
    assert "arguments (of the first)" in seen and "(those of a slice: their mean)" in seen  # nothing else is known
    assert "<bdi>leaf</bdi>" in seen  # names may run from right to left, but not in the order of the legend


def page_of(collector, calls=None, **facts):
    """The page of a run in which one worker made these calls, {(function, log2 of seconds): their number}."""
    calls = calls or {("f", -3): 1}
    collector.on_RECORD(b"0.1", record_of(
        RecordingWorker(), calls=calls, seconds={name: 0.1 for name, _ in calls}, first=collector.born,
        last=collector.born + 1, events=[event_of(collector.born, 1, name) for name, _ in calls], **facts))
    collector.abort()
    return pathlib.Path(collector.options["report"])


def test_one_is_no_plural_when_a_page_counts_calls_and_workers(tmp_path):
    """Nor are more a singular."""
    with minscoop.Executor(0, report=tmp_path / "run.html") as executor:
        executor.submit(abs, 1).result()
    seen = browse(tmp_path / "run.html", tmp_path, 'document.body.dataset.more = counted(2000, "call")')
    assert "· 1 call · 1 worker ·" in seen and 'data-more="2,000 calls"' in seen


def test_times_are_hours_and_minutes_when_a_run_is_long(collector, tmp_path):
    """h:mm:ss in the texts and, at round times, on the axis; no label there is cut off."""
    collector.born -= 30000
    seen = browse(page_of(collector), tmp_path, """
        const labels = [], out = document.body.dataset, draw = pen.fillText.bind(pen)
        pen.fillText = (text, x, y, ...rest) => {
          if (y === AXIS / 2) labels.push([text, x + pen.measureText(text).width < width])
          draw(text, x, y, ...rest)
        }
        paint(), out.whole = labels.join(" ")
        labels.length = 0, t0 = 1e10, t1 = 1e10 + 1e5, paint(), out.near = labels.join(" ")
        labels.length = 0, t0 = 0, t1 = end
        for (let i = 0; i < 60; i++) canvas.parentElement.style.width = `${900 + i}px`, paint()
        out.cut = labels.filter(([, fits]) => !fits).length
        out.times = [999, 1000, 3599.7, 36000].map(time).join(" ")""")
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', seen))
    assert found["whole"].startswith("0:00:00,true 1:00:00,true 2:00:00,true "), found
    assert found["near"].startswith("2:46:40.0000,true 2:46:40.0100,true "), found
    assert found["times"] == "999&nbsp;s 0:16:40 1:00:00 10:00:00" and found["cut"] == "0", found
    assert "after 8:20:0" in seen and " ks" not in seen.replace("&nbsp;", " ").partition("<script")[0]


def test_all_columns_are_seen_when_a_functions_name_is_long(collector, tmp_path):
    """The name is broken into several lines, but no number is torn from its unit."""
    seen = browse(page_of(collector, {("name_" * 16, -3): 1}, sent=46800), tmp_path, """
        document.body.style.width = "600px"
        document.body.dataset.wide = $("functions").offsetWidth
        const wide = $("hosts").offsetHeight
        document.body.style.width = "300px"
        document.body.dataset.same = $("hosts").offsetHeight === wide""")
    assert int(re.search(r'data-wide="(\d+)"', seen)[1]) <= 600 and "<td>100&nbsp;ms</td>" in seen
    assert 'data-same="true"' in seen


def test_a_single_slow_call_is_seen_when_very_many_were_quick(collector, tmp_path):
    """Its bar in the histogram is higher than that of no call."""
    seen = browse(page_of(collector, {("f", -9): 10 ** 6, ("f", 3): 1}), tmp_path, """
        document.body.dataset.tall = [...document.querySelectorAll(".bars b")].map(bar => bar.offsetHeight)""")
    many, *none, one = map(int, re.search(r'data-tall="([\d,]+)"', seen)[1].split(","))
    assert {*none} == {1} and 1 < one < many


def test_the_picture_fits_the_paper_when_the_page_is_printed(collector, tmp_path):
    """It is drawn anew: not squeezed from the width of the window, nor with the colours of a dark one."""
    browse(page_of(collector), tmp_path, end=f"--print-to-pdf={tmp_path / 'run.pdf'}")
    printed = (tmp_path / "run.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and all(int(width) < 1000 for width in re.findall(rb"/Width (\d+)", printed))


def test_a_browser_opens_the_page_when_a_million_tasks_ran_on_a_thousand_workers(collector, tmp_path):
    """It is small, and says what was merged; every call is in its totals."""
    for number in range(1000):
        worker = RecordingWorker(b"%d.%d" % (number // 50, number % 50 + 1))
        events = [event_of(collector.born + i / 100, 0.009, f"f{i % 3}", worker.name.decode(), 10)
                  for i in range(100)]
        collector.on_RECORD(worker.name, record_of(
            worker, first=collector.born, last=collector.born + 1, events=events, runs=100,
            calls={("f", -6): 1000}, seconds={"f": 9.0}))
    collector.abort()
    page = pathlib.Path(collector.options["report"])
    data = data_of(page)
    assert page.stat().st_size < 10e6 and data["tasks"] == 10 ** 6
    calls = [entry["args"]["calls"] for entry in entries_of(page)["X"]]
    assert sum(calls) == 10 ** 6 and len(calls) <= minscoop.MAX_EVENTS
    seen = browse(page, tmp_path, "document.body.dataset.took = performance.now()")
    assert "bars stand for 100,000" in " ".join(seen.split()) and 'data-took="' in seen


# ---------------------------------------------------------------------------------------------------
# 19  Command line

FACTS = '''
"""Text."""
import json, os, sys
if __name__ == "__main__": print(json.dumps({
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "stdin": sys.stdin.read(), "name": __name__,
    "file": globals().get("__file__"), "package": __package__, "spec": __spec__ and __spec__.name, "doc": __doc__,
    "main": sys.modules["__main__"].__dict__ is globals(), "tty": sys.stdin.isatty(), "flags": list(sys.flags),
    "builtins": __builtins__ is __import__("builtins"), "package's": getattr(sys.modules.get("sub"), "argv", None)}))
'''


@pytest.mark.parametrize("args", [
    ["facts.py"], ["facts.py", "-n", "9", "--help", "x y"], ["sub/facts.py", "a"], ["./facts.py"],
    ["-m", "facts", "-x"], ["-m", "sub.facts", "a", "-m", "b"], ["-m", "sub", "--", "c"], ["-c", FACTS, "-c", "a"],
    ["-mfacts", "-q", "a"], ["link.py"], ["app", "a"], ["app.pyz", "a"]],
    ids=lambda args: " ".join(args)[:25])
def test_the_program_sees_what_it_would_see_when_python_ran_it(script, tmp_path, args):
    """sys.argv, sys.path (but for where minscoop is, at its end), directory, stdin, and its own module: as without
    minscoop. With -m, its package, too."""
    for name in ("facts.py", "sub/facts.py", "sub/__main__.py", "app/__main__.py"):
        script(FACTS, name)
    script("import sys; argv = sys.argv[:]", "sub/__init__.py")
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz", "/usr/bin/env python3")
    os.symlink("sub/facts.py", tmp_path / "link.py")  # modules are looked for beside the file itself
    processes = [start(*before, *args, cwd=tmp_path) for before in ((), (MINSCOOP, "-n", 0), (MINSCOOP, "-n", 1))]
    bare, *ours = [finish(process, "input") for process in processes]
    for done in ours:
        assert (done.returncode, done.stderr, bare.returncode) == (0, "", 0)
        facts = json.loads(done.stdout)
        assert (facts["path"].pop(), facts) == (str(HERE), json.loads(bare.stdout))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no -P")
@pytest.mark.parametrize("args", [["facts.py"], ["-m", "facts"], ["-c", FACTS], ["-"], ["app"]], ids=" ".join)
def test_no_directory_hides_another_when_python_is_to_put_none_before_it(script, tmp_path, args):
    """With -P or PYTHONSAFEPATH, neither Python nor minscoop may put a directory before those of PYTHONPATH."""
    script(FACTS, "app/__main__.py")
    script(FACTS, "lib/facts.py")
    script(FACTS, "facts.py")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "lib"), "PYTHONSAFEPATH": "1"}
    stdin = FACTS if args == ["-"] else ""
    bare, *ours = [finish(start(*before, *args, cwd=tmp_path, env=env), stdin)
                   for before in ((), (MINSCOOP, "-n", 0), (MINSCOOP, "-n", 1))]
    for done in ours:
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["path"] == [*json.loads(bare.stdout)["path"], str(HERE)]  # the last hides none


def test_tasks_find_their_functions_when_the_program_is_a_directory_or_a_zip_file(script, tmp_path):
    """Those of __main__.py, and those of modules beside it."""
    script("def half(x): return x / 2", "app/halves.py")
    script("""
        from minscoop import futures
        from halves import half
        def third(x): return half(x) / 3
        if __name__ == "__main__":
            print(*futures.map(half, [6, 12]), *futures.map(third, [6, 12]))
    """, "app/__main__.py")
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    for done in launch_together([("-n", 2, tmp_path / name) for name in ("app", "app.pyz")]):
        assert (done.returncode, done.stdout, done.stderr) == (0, "3.0 6.0 1.0 2.0\n", "")


@pytest.mark.parametrize("args", [["-n2", "-cprint(2)"], ["-n", "2", "-c", "print(2)"], ["-q", "-c", "print(2)"],
                                  ["-n", "2", "--", "two.py"], ["-mtwo"], ["--retries", "2", "two.py"],
                                  ["--retries=2", "--nice=1", "two.py"]])
def test_options_are_taken_when_written_in_any_usual_way(script, tmp_path, args):
    """Joined, apart, with = and after --."""
    script("if __name__ == '__main__': print(2)", "two.py")
    done = launch(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_the_programs_terminal_is_its_own_when_there_is_one(script):
    """The script's stdin, stdout and stderr must be the terminal itself: isatty() is true, and input() reads it."""
    master, slave = os.openpty()
    path = script("import os, sys; print([os.isatty(i) for i in range(3)], input())")
    process = start(MINSCOOP, "-n", 1, path, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, b"typed\n")
    assert eventually(lambda: process.poll() is not None) and process.returncode == 0
    assert b"[True, True, True] typed" in os.read(master, 1000)
    os.close(master)


@pytest.mark.parametrize("end, code, stderr", [
    ("pass", 0, ""), ("sys.exit()", 0, ""), ("sys.exit(0)", 0, ""), ("sys.exit(7)", 7, ""),
    ("sys.exit('text')", 1, "text\n"), ("sys.exit([1])", 1, "[1]\n"), ("raise SystemExit", 0, ""),
    ("os._exit(5)", 5, ""), ("raise KeyError('k')", 1, None),
    ("1/0", 1, None), ("raise BaseException", 1, None), ("os.kill(os.getpid(), 9)", -9, ""), ("os.abort()", -6, None),
    ("import atexit; atexit.register(print, 'at exit')", 0, ""), ("list(futures.map(wrong, [1]))", 1, None),
    ("import atexit, tempfile; atexit.register(print, 'at exit'); d = tempfile.TemporaryDirectory(); "
     "raise KeyboardInterrupt", -2, None)])
def test_the_exit_code_is_the_programs_when_it_ends(guard, script, end, code, stderr):
    """After sys.exit, an exception or a signal, exit code and stderr must be as from python itself, with one traceback;
    what the program has registered with atexit must run."""
    text = "import os, sys\nfrom minscoop import futures\ndef wrong(x): raise ValueError(x)\n" \
           f"if __name__ == '__main__':\n    futures.submit(abs, 1).result()\n    print('before')\n    {end}\n"
    path = script(text)
    without = start("-W", "ignore", path, env=dict(os.environ, PYTHONPATH=str(HERE)))
    ours, bare = launch_together([("-n", workers, path) for workers in (0, 2)]), finish(without)
    for done in ours:
        assert done.returncode == code and ("before" in done.stdout or code == 5 or code < 0), done
        if stderr is not None:
            assert done.stderr == stderr
        elif code in (1, -2):
            assert done.stderr.splitlines()[-1] == bare.stderr.splitlines()[-1]
            assert done.stderr.count("program.py\", line 7") == 1
            if "map" not in end:
                assert done.stderr == bare.stderr and "minscoop.py" not in done.stderr
        assert ("at exit" in done.stdout) == ("atexit" in end)
    assert not list(pathlib.Path(guard).glob("tmp*"))


@pytest.mark.parametrize("args, why", [
    (["none.py"], "No such file or directory"), (["sub"], "is a directory without __main__.py; for a package use -m"),
    (["-m", "sub.reads"], "No such file or directory: settings.txt"), (["-m", "sub.mute"], "in its own words"),
    (["-m", "math"], "math is written in C: it has no code that can be run")],
    ids=["no file", "a directory", "it reads a file", "it has words only", "a module in C"])
def test_it_is_said_why_when_a_program_cannot_be_run(script, tmp_path, args, why):
    """The message names the missing file, if that is not the program itself; an OSError may lack an errno."""
    script("", "sub/__init__.py")
    script("open('settings.txt')", "sub/reads/__init__.py")
    script("raise OSError('in its own words')", "sub/mute/__init__.py")
    for name in "reads", "mute":
        script("", f"sub/{name}/__main__.py")
    done = launch("-n", 1, *args, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"minscoop.py: cannot run {args[-1]}: {why}\n")


@pytest.mark.parametrize("args", [["-n", 0], ["-n", 1], ["--check"]], ids=str)
def test_the_working_directory_is_blamed_when_it_was_removed(script, tmp_path, args):
    """Not the program, which is there."""
    (tmp_path / "gone").mkdir()
    done = subprocess.run(["sh", "-c", 'rmdir "$PWD" && exec "$@"', "-", sys.executable, MINSCOOP, *map(str, args),
                           script("print(1)")], cwd=tmp_path / "gone", timeout=WAIT, universal_newlines=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 2 and done.stderr.startswith("minscoop.py: cannot use the working directory (No "), done


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_the_program_ends_when_a_signal_comes_while_a_task_runs_inline(script, tmp_path, number, code):
    """The signal is meant for the program, not for the task that it happens to interrupt: no further task may run."""
    process = start(MINSCOOP, "-n", 0, script("""
        import sys, time
        from minscoop import futures
        def slow(i):
            open(sys.argv[1], "a").write(f"{i}\\n")
            time.sleep(2)
        if __name__ == "__main__":
            print("end", [future.exception() for future in [futures.submit(slow, i) for i in range(3)]])
    """), tmp_path / "ran")
    assert eventually(lambda: lines_of(tmp_path / "ran"))  # not just the file: what is in it comes when it is closed
    os.kill(process.pid, number)
    done = finish(process)
    assert (done.returncode, done.stdout, lines_of(tmp_path / "ran")) == (code, "", ["0"])


@pytest.mark.parametrize("launcher", [[MINSCOOP, "-n", "2"], []], ids=["launcher", "executor"])
def test_workers_run_the_program_as_it_was_when_its_file_is_edited_meanwhile(script, launcher):
    """The keeper has compiled it once for all of them, and keeps its source, which says what goes by value: nobody may
    read the file again, such as to pickle an instance, when it is half of an edit, or another program."""
    done = python(*launcher, script("""
        import time
        import minscoop
        class Result:
            pass
        def make(x):
            return Result()
        def double(x):
            time.sleep(0.1)
            return 2 * x
        if __name__ == "__main__":
            with minscoop.Executor(2) as executor:
                executor.submit(abs, -1).result()
                for text in "def double(: # half of an edit", "if __name__ == '__main__':\\n    class Result: pass":
                    open(__file__, "w").write(text)
                    print(list(executor.map(double, range(4))), type(executor.submit(make, 1).result()) is Result)
    """), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 2, 4, 6] True\n" * 2, "")


SET_PATH = "sys.path.insert(0, os.path.join(os.path.dirname(__file__), 'lib'))"


@pytest.mark.skipif(not hasattr(sys, "stdlib_module_names"), reason="since Python 3.10")
@pytest.mark.parametrize("first, early, right", [
    ("", True, True), (SET_PATH, False, False), (f"def set_path(): {SET_PATH}\n        set_path()", False, False),
    (f"class Settings: {SET_PATH}", False, False), ("os.environ['SETTING'] = 'set'", False, True)])
def test_modules_of_pythons_are_imported_before_the_fork_when_a_script_imports_them(script, tmp_path, first, early,
                                                                                    right):
    """The keeper imports them once for all workers; but not those that a module of the program replaces, nor any that
    the script imports after a statement that may affect the import, such as a change of sys.path or os.environ."""
    for directory, name in ((tmp_path, "calendar"), (tmp_path / "lib", "fractions")):
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.py").write_text("ours = True\n")
    path = script(f"""
        import os, sys
        import minscoop
        {first}
        import calendar, colorsys, fractions
        def at_work():
            return hasattr(calendar, "ours"), hasattr(fractions, "Fraction"), hasattr(colorsys, "rgb_to_hsv")
        if __name__ == "__main__":
            look = "{{name: name in __import__('sys').modules for name in ('calendar', 'colorsys', 'fractions')}}"
            print(minscoop.submit(eval, look).result())
            print(*minscoop.submit(at_work).result(), *at_work())
    """)
    loaded = dict(calendar=False, colorsys=early, fractions=early)
    assert output_of("-n", 1, path).splitlines() == [str(loaded), " ".join(map(str, (True, right, True) * 2))]


@pytest.mark.parametrize("call", ["submit(library.double, numbers).result()", "map(library.double, [numbers])"])
def test_modules_are_found_when_only_the_script_says_where_they_are(script, tmp_path, call):
    """A worker that cannot find a task's module must import the script, whose top level extends sys.path, and then
    unpickle the task again, even if its arguments lie in shared memory, which can be read only once."""
    script("def double(numbers): return [2 * sum(numbers)]", "lib/library.py")
    assert output_of("-n", 1, script(f"""
        import array, os, sys
        from minscoop import futures
        {SET_PATH}
        import library
        if __name__ == "__main__":
            numbers = bytearray(3_000_000)
            numbers[7] = 21
            print(*futures.{call})
    """)).replace("[", "").replace("]", "") == "42\n"


@pytest.mark.parametrize("where", [["-n", 1], ["--hosts", "good1:1"]], ids=["here", "elsewhere"])
def test_modules_are_found_when_a_prompt_has_just_said_where_they_are(ssh, script, tmp_path, where):
    """Workers have been there for long, and no script tells them. A module that nobody has is missing, as ever."""
    for name in "one", "two":
        script("def double(x): return 2 * x", f"{name}/{name}.py")
    done = launch(*where, stdin=f"""
import sys, types
from minscoop import futures
print(futures.submit(abs, -1).result())
for name in "one", "two":
    sys.path.append(f"{tmp_path}/{{name}}")
    print(list(futures.map(__import__(name).double, range(3))))
sys.modules["ghost"] = ghost = types.ModuleType("ghost")
exec("def haunt(x): pass", vars(ghost))
print(repr(futures.submit(ghost.haunt, 1).exception()))
""")
    assert done.stdout.splitlines()[:3] == ["1", *["[0, 2, 4]"] * 2] and "No module named 'ghost'" in done.stdout, done


@pytest.mark.parametrize("top, options", [("prepare()", ""), ("", ", initializer=prepare")])
def test_tasks_have_the_context_of_the_script_when_others_wait_below_or_beside(script, top, options):
    """What the top level or the initializer sets in its context (decimal's precision, say) holds for all tasks. What a
    task sets holds for itself only, not for tasks that run while it waits: on its stack or, deeper, in threads."""
    assert python(script(f"""
        import decimal
        import minscoop
        def prepare(): decimal.getcontext().prec = 50
        {top}
        def digits(depth):
            here = len(str(decimal.Decimal(1) / 3)) - 2
            with decimal.localcontext() as local:
                local.prec = 9
                return min(here, minscoop.submit(digits, depth - 1).result()) if depth else here
        if __name__ == "__main__":
            with minscoop.Executor(1{options}) as executor:
                print(executor.submit(digits, {3 * minscoop.MAX_INLINE}).result())
    """), env=dict(os.environ, PYTHONPATH=str(HERE))).stdout == "50\n"


def test_the_body_runs_once_when_workers_import_the_script(script, tmp_path):
    """What stands under the guard runs in the root only; workers import the script under another name, once."""
    output_of("-n", 3, script("""
        import os, sys
        from minscoop import futures
        def note(name, text):
            with open(os.path.join(sys.argv[1], name), "a") as file: file.write(text + "\\n")
        note("imports", __name__)
        def work(i): note("work", __name__)
        if __name__ == "__main__":
            note("body", __name__)
            list(futures.map(work, range(300)))
    """), tmp_path)
    assert lines_of(tmp_path / "body") == ["__main__"]
    imports = collections.Counter(lines_of(tmp_path / "imports"))
    assert imports.pop("__main__") == 1 and set(imports) == {"__mp_main__"} and imports["__mp_main__"] <= 3
    assert set(lines_of(tmp_path / "work")) == {"__mp_main__"}


def test_everything_runs_in_the_root_when_there_are_no_workers(script):
    """-n 0, for pdb and teaching: one process, one import of the script, whatever is called."""
    assert output_of("-n", 0, script("""
        import os
        from minscoop import futures
        print("import", __name__)
        def here(x): return os.getpid()
        def tree(n): return 1 if n == 0 else sum(futures.map(tree, [n - 1] * 2))
        if __name__ == "__main__":
            assert {*futures.map(here, range(10)), futures.submit(here, 1).result()} == {os.getpid()}
            print(tree(10), list(futures.map(lambda x: x + 1, [1])))
    """)) == "import __main__\n1024 [2]\n"


def test_output_appears_at_once_when_a_worker_prints(script, tmp_path):
    """Although stdout is a pipe, and the task that printed goes on."""
    process = start(MINSCOOP, "-n", 1, script("""
        import os, sys, time
        from minscoop import futures
        def work(path):
            print("working")
            while not os.path.exists(path): time.sleep(0.01)
        if __name__ == "__main__":
            futures.submit(work, sys.argv[1]).result()
    """), tmp_path / "go")
    try:
        assert process.stdout.readline() == "working\n"
    finally:
        touch(tmp_path / "go")
    assert finish(process).returncode == 0


def test_no_output_is_lost_when_the_program_ends(script):
    """Whole lines of all workers, and of the root, have come out at the end."""
    output = output_of("-n", 2, script("""
        from minscoop import futures
        def say(i): print(f"line {i}")
        if __name__ == "__main__":
            print("root")
            futures.map(say, range(2000))
    """)).splitlines()
    assert sorted(output) == sorted(["root", *(f"line {i}" for i in range(2000))])


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_the_work_is_done_when_the_programs_files_are_closed_or_full(guard, script, tmp_path, redirection):
    """print() in a task must do what it does without a pool: at worst it raises OSError, and all else must go on."""
    if "/dev/full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    path = script("""
        import os, sys
        from minscoop import futures
        def say(i):
            print("line", i)
            return i
        if __name__ == "__main__":
            said = [type(futures.submit(say, i).exception(20)).__name__ for i in range(3)]
            with open(sys.argv[1], "w") as file: print(*said, sum(futures.map(abs, range(100), timeout=20)), file=file)
    """)
    done = finish(subprocess.Popen(
        ["sh", "-c", f"exec \"$@\" {redirection}", "sh", sys.executable, MINSCOOP, "-n", "2", path, tmp_path / "out"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = "OSError" if redirection == ">/dev/full" else "NoneType"
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "out").read_text().split() == [said] * 3 + ["4950"]


def test_the_summary_is_not_on_stdout_when_stderr_is_closed():
    """stdout is for the program's results: with stderr closed, minscoop's own texts must be dropped."""
    done = finish(subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, MINSCOOP, "-v", "-n", "1", "--profile", "-c",
         "import minscoop; print(minscoop.submit(abs, -1).result())"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize("late", ["atexit.register(end)", "threading.Thread(target=end).start()"])
def test_a_signal_ends_the_program_when_its_pool_has_ended(script, late):
    """Exit handlers, and threads that the program has left, are no reason to go on, nor to exit with 0 after all."""
    done = launch("-n", 0, script(f"""
        import atexit, os, signal, threading, time
        def end():
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        if __name__ == "__main__":
            {late}
    """))
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, ""), done


def test_no_handler_of_ours_is_left_when_the_program_forks(script):
    """If the signal came just before a blocking call, a handler in Python would not run until that call returns."""
    assert output_of("-n", 1, script("""
        import os, signal, sys
        if __name__ == "__main__":
            pid = os.fork()
            if pid == 0:
                os._exit(signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)
            print(os.WEXITSTATUS(os.waitpid(pid, 0)[1]))
    """), env={**os.environ, "PYTHONWARNINGS": "ignore"}) == "1\n"  # newer Pythons warn of a fork with threads


@pytest.mark.parametrize("number, code", [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_nothing_is_said_when_a_signal_comes_during_the_start(script, tmp_path, number, code):
    """Until the program runs, a signal (here during an import) must end minscoop silently, with its exit code."""
    script(f"""
        import os, signal, time
        if os.getppid() == int(os.environ["STARTER"]):
            os.kill(os.getpid(), {int(number)})
        time.sleep(1)
        raise ImportError("gone")
    """, "zmq.py")
    done = launch("-n", 1, "-c", "print(1)", env=dict(os.environ, PYTHONPATH=str(tmp_path), STARTER=str(os.getpid())))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@linux_only
def test_no_notice_is_lost_when_the_broker_is_slow():
    """The keeper must queue its notices: if it waited for the broker, it would miss deaths, and the end of the pool."""
    before = set(os.listdir("/dev/fd"))
    keeper = minscoop.Keeper({}, None)
    pipe = os.pipe()
    for number in range(2000):
        keeper.notify(b"%d" % number, descriptors=pipe[:1] if number == 1999 else ())
    assert keeper.backlog
    os.close(pipe[0])
    for number in range(2000):
        data, ancillary, _, _ = keeper.notices_read.recvmsg(minscoop.NOTICE, 100)
        assert json.loads(data) == [str(number)]
        keeper.send_notices()
    received, = (array.array("i", ends)[0] for _, _, ends in ancillary)
    os.write(pipe[1], b"x")
    assert os.read(received, 1) == b"x" and not keeper.backlog
    for end in (pipe[1], received, keeper.lifeline_read, keeper.lifeline, keeper.signalled, keeper.signal_write):
        os.close(end)
    keeper.notices.close()
    keeper.notices_read.close()
    assert set(os.listdir("/dev/fd")) == before


def test_files_of_workers_are_removed_when_they_have_died(guard):
    """Not at the end of the pool: in a long run many may die."""
    with minscoop.Executor(1) as executor:
        for _ in range(3):
            os.kill(executor.submit(os.getpid).result(), signal.SIGKILL)
        assert executor.submit(identity, 1).result() == 1
        assert [name for name in os.listdir(executor._node.directory) if "stacks" in name] == ["0.4.stacks"]


@linux_only
@pytest.mark.parametrize("call, succeeds", [("dup", 0), ("pipe", 1)])
def test_no_worker_is_forked_when_there_are_no_descriptors_for_its_broker(monkeypatch, call, succeeds):
    """A worker forked all the same would print into pipes that nobody reads, and count as one that cannot start. What
    was opened by then is closed."""
    before = set(os.listdir("/dev/fd"))
    keeper = minscoop.Keeper({"host": "0", "piped": True}, None)
    monkeypatch.setattr(keeper, "fork", lambda *_: pytest.fail("forked"))
    results = [*(getattr(os, call)() for _ in range(succeeds)), OSError("Too many open files")]
    monkeypatch.setattr(os, call, mock.Mock(side_effect=results))
    with pytest.raises(OSError, match="Too many"):
        keeper.start_worker()
    for end in (keeper.lifeline_read, keeper.lifeline, keeper.signalled, keeper.signal_write):
        os.close(end)
    keeper.notices.close()
    keeper.notices_read.close()
    assert not keeper.workers and set(os.listdir("/dev/fd")) == before


def test_there_is_one_root_when_it_dies_as_its_keeper_begins(monkeypatch):
    """A forked keeper that finds no configuration must exit: if it returned, it would run the program a second time."""
    monkeypatch.setattr(minscoop.Keeper, "main", lambda: None)
    keeper = minscoop.ForkedKeeper()
    assert keeper.wait(BOUND) == 1
    keeper.stdin.close()


def test_it_is_said_why_when_a_keeper_cannot_begin(monkeypatch, capfd):
    """As where /dev/null is missing: the root sees no more than the exit code."""
    monkeypatch.setattr(minscoop.Keeper, "main", lambda: open("/nowhere/null"))
    monkeypatch.setattr(sys, "stderr", open(2, "w", closefd=False))  # pytest's has a descriptor that the child closes
    keeper = minscoop.ForkedKeeper()
    assert keeper.wait(BOUND) == 1
    keeper.stdin.close()
    assert "'/nowhere/null'" in capfd.readouterr().err


def test_the_keeper_of_a_pool_is_no_fork_of_a_worker_when_a_task_makes_the_pool(script):
    """A worker has threads, and what the program has imported: a keeper must begin with neither."""
    done = launch("-n", 1, script("""
        import minscoop
        def kinds(x):
            with minscoop.Executor(1) as executor:
                return type(executor._node.keeper).__name__, executor.submit(abs, x).result()
        if __name__ == "__main__": print(*minscoop.submit(kinds, -1).result())
    """))
    assert (done.returncode, done.stdout) == (0, "Popen 1\n"), done


def test_a_program_is_not_replaced_when_it_is_named_by_mistake(script):
    """`--report script.py`, where the name of the page was forgotten."""
    path = script("print(1)")
    done = python(MINSCOOP, "-n", 1, "--report", path)
    assert done.returncode and "a Python program, which will not be overwritten" in done.stderr
    with open(path) as file:
        assert "print(1)" in file.read()


@pytest.mark.parametrize("tool", ["cProfile", "profile"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_program_runs_when_a_profiler_runs_minscoop(script, tool, workers):
    """A profiler runs minscoop.py in a namespace that belongs to no module. It profiles that process only."""
    program = script("""
        import sys
        import scoop
        from minscoop import futures
        def double(x): return 2 * x
        def profiled(): return scoop.worker != "0.root" and sys.getprofile() is not None
        if __name__ == "__main__":
            print(list(futures.map(double, range(3))), scoop.IS_RUNNING, futures.submit(profiled).result())
    """)
    done = python("-m", tool, MINSCOOP, "-n", workers, program)
    assert done.returncode == 0 and done.stdout.startswith("[0, 2, 4] True False\n") and done.stderr == ""


def test_other_processes_of_a_program_end_as_usual_when_they_are_terminated(script):
    """A process that the program forks must not keep our SIGTERM handler: multiprocessing.Pool sends it SIGTERM."""
    done = launch("-n", 1, script("""
        import multiprocessing
        if __name__ == "__main__":
            for _ in range(5):
                with multiprocessing.get_context("fork").Pool(2) as pool:
                    print(pool.map(abs, [-1]))
    """))
    assert (done.stdout, done.stderr) == ("[1]\n" * 5, "")


def test_a_child_of_the_program_ends_when_it_is_terminated_before_it_has_begun(script):
    """A SIGTERM right after fork() must not be lost to the parent's handler, which the child is just about to reset."""
    assert output_of("-n", 1, script("""
        import os, signal, time, warnings
        if __name__ == "__main__":
            warnings.simplefilter("ignore")  # from Python 3.12 on, of the deputy
            for _ in range(20):
                pid = os.fork()
                if not pid:
                    time.sleep(20)
                    os._exit(9)
                os.kill(pid, signal.SIGTERM)
                assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM
            print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    """)) == "False\n"


def test_a_breakpoint_in_a_worker_says_what_to_do_when_it_is_met(script):
    """A worker has no terminal."""
    assert "-n 0" in output_of("-n", 1, script("""
        from minscoop import futures
        def stop(): breakpoint()
        if __name__ == "__main__":
            print(futures.submit(stop).exception())
    """))


@pytest.mark.parametrize("wrong", [
    dict(nice="low"), dict(rsh=""), dict(rsh=["ssh"]), dict(path=1), dict(listen="/no/x"),
    dict(python=b"python3"), dict(max_tasks_per_child=0), dict(max_tasks_per_child=True),
    dict(max_tasks_per_child=1.0)], ids=str)
def test_an_argument_is_refused_by_its_name_when_it_cannot_be_one(wrong):
    """The Executor must refuse it before it starts any process; a path may be given as a pathlib.Path."""
    [name] = wrong
    with pytest.raises((TypeError, ValueError), match="the remote command|cannot write /no/x|" + name):
        minscoop.Executor(1, **wrong)
    with minscoop.Executor(1, path=pathlib.Path("/")) as executor:
        assert executor.submit(abs, -1).result(WAIT) == 1


@pytest.mark.parametrize("option", ["--listen", "--report", "--trace"])
def test_nothing_is_replaced_when_it_is_no_file(tmp_path, option):
    """Else `--report /dev/null`, run by the superuser, would replace that device by a regular file."""
    os.mkfifo(tmp_path / "fifo")
    done = python(MINSCOOP, "-n", 1, option, tmp_path / "fifo", "-c", "pass")
    assert done.returncode and "not a regular file" in done.stderr and str(tmp_path / "fifo") in done.stderr
    assert (tmp_path / "fifo").is_fifo()


REFUSED = [  # arguments, what stderr says
    (["no_such.py"], "no_such.py"), (["-m", "no_such_module"], "no_such_module"), (["-m", "json.no_such"], "no_such"),
    (["."], "directory"), (["--no-such-option", "good.py"], "--no-such-option\n"), (["-x", "good.py"], "-x\n"),
    (["--host-s", "a", "good.py"], "--host-s (did you mean --hosts?)"),
    (["-n", "1", "--reprot=x", "good.py"], "--reprot=x (did you mean --report?)"),
    (["-n", "-3", "good.py"], "-3"), (["-n-3", "good.py"], "-3"), (["-n", "many", "good.py"], "many"),
    (["-n", "1.5", "good.py"], "1.5"), (["-n"], "-n"), (["-c"], "-c"),
    (["-m"], "-m"), (["syntax.py"], 'syntax.py", line 2\n    bad = = 2\n          ^'),
    (["--nice", "x", "good.py"], "x"), (["--retries", "-1", "good.py"], "-1"),
    (["-c", "1 +"], "syntax"), (["binary.py"], "binary.py"),
    (["unreadable.py"], "unreadable.py"), (["--hosts", "a:x", "good.py"], "a:x"), (["--hosts"], "--hosts"),
    (["--hosts", "none.txt", "good.py"], "none.txt"), (["--hosts", "a", "-e", "ssh 'x", "good.py"], "remote command"),
    (["--transport", "pigeon", "good.py"], "pigeon"), (["--join", "/", "good.py"], "/"),
    (["-m", "broken_package"], "broken"),
    (["-n", "0", "--profile", "good.py"], "does not go with --profile (see python -m cProfile)"),
    (["-n", "0", "--hosts", "a", "good.py"], "does not go with --hosts"),
    (["-n", "0", "--max-tasks-per-child", "1", "good.py"], "does not go with --max-tasks-per-child"),
    (["--max-tasks-per-child", "0", "good.py"], "must be 1 or more, not 0"),
    (["--report", "x.html", "--trace", "./x.html", "good.py"], "report and trace")]


@pytest.mark.parametrize("beside", [False, True], ids=["--report", "--listen"])
def test_a_file_is_not_written_when_its_name_is_another_users_link(monkeypatch, tmp_path, beside):
    """Whoever put it into /tmp could have any file of the user's replaced. A link of the user's own is followed."""
    path, owner = tmp_path / "link", os.getuid()
    path.symlink_to("precious")
    assert minscoop.writable(str(path), beside) == os.path.realpath(tmp_path / "precious")
    if owner == 0:
        os.chown(path, 65534, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ValueError, match="another user's link"):
        minscoop.writable(str(path), beside)


@pytest.mark.parametrize("args, text", REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_clear_message_is_given_when_the_command_line_makes_no_sense(script, tmp_path, args, text):
    """One message with what was wrong, exit code 2 (or 1), no traceback of ours, nothing done."""
    script("open('ran', 'w')", "good.py")
    script("good = 1\nbad = = 2\n", "syntax.py")
    script("raise ImportError('broken')", "broken_package/__init__.py")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    os.symlink("no/where", tmp_path / "unreadable.py")
    done = launch(*args, cwd=tmp_path)
    assert done.returncode in (1, 2) and text.lower() in done.stderr.lower(), done.stderr
    assert "Traceback" not in done.stderr and "minscoop.py\", line" not in done.stderr
    assert done.stdout == "" and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("args, said", [
    (["-e", "ssh"], "--rsh"), (["--hosts", "localhost:1", "--prolog", "x", "--path", "/"], "--prolog, --path"),
    (["--tunnel", "-n", "0"], "--transport"), (["--python", "x", "-q"], None), (["--tag-output", "--mixed"], None),
    (["--listen", "pool", "--external-hostname", "x", "--transport", "tcp"], None)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_options_about_other_hosts_are_said_to_be_useless_when_there_are_none(tmp_path, args, said):
    """One line of warning, and the program runs all the same: a script may always pass these options."""
    done = launch(*args, "-c", "print(1)", cwd=tmp_path)
    text = f"minscoop: without effect, since only this machine takes part: {said}; name other hosts with --hosts\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", text if said else "")


def test_options_of_processes_are_said_to_be_useless_when_there_are_none(caplog):
    """With no workers everything runs inline, for debugging: the program's other arguments may stay as they are."""
    with minscoop.Executor(0, profile=True, hosts="localhost") as executor:
        assert executor.submit(abs, -1).result() == 1
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["profile, hosts"]


CANNOT_IMPORT = {
    "raises": ("if __name__ != '__main__':\n    raise RuntimeError('not here')\n", "not here"),
    "exits": ("import sys\nif __name__ != '__main__':\n    sys.exit('not here')\n", "not here"),
    "ends": ("import os\nif __name__ != '__main__':\n    os._exit(3)\n", "exit code 3"),
    "is killed": ("import os\nif __name__ != '__main__':\n    os.kill(os.getpid(), 9)\n", "SIGKILL"),
}


@pytest.mark.parametrize("how", CANNOT_IMPORT)
def test_a_clear_message_is_given_when_workers_cannot_import_the_script(script, how):
    """One message that says why, a non-zero exit, and no endless respawning."""
    head, text = CANNOT_IMPORT[how]
    done = launch("-n", 2, "-q", script(head + """
from minscoop import futures
def work(x): return x
if __name__ == "__main__":
    print(list(futures.map(work, range(10))))
"""))
    assert done.returncode == 1 and text in done.stderr and done.stdout == ""
    assert done.stderr.count("minscoop: ") == 1 or "WorkerLost: " in done.stderr and how in ("ends", "is killed")
    assert done.stderr.count(text) <= 4


@pytest.mark.parametrize("end, code", [
    ("", 1), ("sys.exit(0)", 1), ("futures.map(work, [1])", 1), ("sys.exit(3)", 3), ("print(future.exception())", 0),
    ("try: future.result()\n    except minscoop.PoolError: sys.exit(5)", 5)])
def test_the_run_fails_when_its_pool_broke_and_the_program_does_not_know(script, end, code):
    """A program that has not seen the error exits with 1, and a message, unless it fails anyway; else it decides."""
    done = launch("-n", 1, script(
        f"import sys, minscoop\nfrom minscoop import futures\n{CANNOT_IMPORT['raises'][0]}def work(x): return x\n"
        f"if __name__ == '__main__':\n    future = futures.submit(work, 1)\n    {end}\n"))
    assert done.returncode == code and done.stderr.count("minscoop: worker") == (code == 1)
    assert ("not here" in done.stderr) == (code == 1)


def test_there_is_a_message_when_the_programs_own_pool_broke_and_it_does_not_know():
    """The initializer's failure is logged, as by ThreadPoolExecutor; the exit code remains the program's own."""
    code = "import minscoop\nwith minscoop.Executor(1, initializer=int, initargs='x') as own: f = own.submit(abs, 1)"
    unaware, aware = launch_together([("-n", 0, "-c", code), ("-n", 0, "-c", f"{code}; print(f.exception())")])
    assert unaware.returncode == 0 and unaware.stderr.count("initializer failed") == 1
    assert (aware.returncode, aware.stderr, aware.stdout.count("initializer failed")) == (0, "", 1)


def test_a_clear_message_is_given_when_the_script_has_no_guard(script):
    """A script that computes at its top level is told about `if __name__ == "__main__"`."""
    path = script("""
        from minscoop import futures
        def work(x): return x
        print(list(futures.map(work, range(5))))
    """)
    done = launch("-n", 2, path)
    assert done.returncode == 1 and 'if __name__ == "__main__"' in done.stderr and done.stderr.count("minscoop: ") == 1
    assert output_of("-n", 0, path) == "[0, 1, 2, 3, 4]\n"


@pytest.mark.parametrize("zmq, text", [
    ("raise ImportError('no zmq here')", "-m pip install pyzmq"), ("", "fake/zmq.py"),
    ("__version__ = '21.0'\ndef pyzmq_version_info(): return 21, 0", "--upgrade pyzmq")])
def test_the_remedy_is_named_when_pyzmq_is_missing(script, tmp_path, zmq, text):
    """One message with the command to run, from the launcher and from an Executor; no traceback of ours. If a file of
    the program's own has the name, the message has its path."""
    script(zmq, "fake/zmq.py")
    environ = dict(os.environ, PYTHONPATH=f"{tmp_path / 'fake'}{os.pathsep}{HERE}")
    done = launch("-n", 2, "-c", "print(1)", env=environ)
    assert done.returncode == 1 and done.stderr.count(text) == 1 and "Traceback" not in done.stderr
    done = python("-c", "import minscoop; minscoop.Executor(2)", env=environ)
    assert done.returncode == 1 and text in done.stderr.splitlines()[-1] and done.stderr.count("Traceback") == 1


def test_help_helps_when_a_newcomer_asks():
    """Groups, defaults and examples."""
    text = output_of("--help")
    assert text.count("\n\n") >= 4 and max(map(len, text.splitlines())) <= 120
    text = " ".join(text.split())
    for part in ("usage:", "-n N", "(default: usable cores", "-m module", "-c code", "--retries", "default: 3",
                 "--nice", "--hosts", "--rsh", "--profile", "--version", "-q", "examples:", "futures.map",
                 'if __name__ == "__main__"'):
        assert part in text


def test_examples_of_the_help_run_when_they_are_pasted():
    """The line with -c in the help does what it says."""
    line = next(line for line in output_of("--help").splitlines() if " -c '" in line)
    words = shlex.split(line)
    assert words[:2] == ["python", "minscoop.py"] and output_of(*words[2:]) == "[1, 2]\n"


def test_the_version_is_said_when_asked():
    """--version, and nothing else."""
    assert output_of("--version") == f"minscoop {minscoop.__version__}\n"


@pytest.mark.parametrize("option, level", [("-q", 40), (None, 30), ("-v", 20), ("-vv", 10)])
def test_the_logger_says_as_much_as_wanted_when_there_is_an_option(script, option, level):
    """-q, nothing, -v, -vv: in the root and on workers."""
    done = launch("-n", 1, *([option] if option else []), script("""
        import scoop
        from scoop import futures
        def level(): return scoop.logger.getEffectiveLevel(), scoop.DEBUG
        if __name__ == "__main__":
            print(level(), futures.submit(level).result())
    """))
    assert (done.returncode, done.stdout) == (0, "{0} {0}\n".format((level, level == 10)))
    assert level < 30 or done.stderr == ""


def test_a_death_is_mentioned_when_it_is_not_told_to_be_quiet(script, tmp_path):
    """A warning names the worker and how it ended; -q keeps it back."""
    path = script("""
        import os, sys
        from minscoop import futures
        def die_once(path):
            if not os.path.exists(path):
                open(path, "w").close()
                os._exit(9)
        if __name__ == "__main__":
            futures.submit(die_once, sys.argv[1]).result()
    """)
    loud, quiet = launch("-n", 1, path, tmp_path / "one"), launch("-n", 1, "-q", path, tmp_path / "two")
    assert "exit code 9" in loud.stderr and loud.stderr.count("\n") == 1
    assert (loud.returncode, quiet.returncode, quiet.stderr) == (0, 0, "")


def test_nothing_is_said_when_python_is_to_warn_of_default_encodings(script, tmp_path):
    """Who checks a program so, since Python 3.10, with warnings as errors, is not to meet minscoop's own."""
    done = python("-X", "warn_default_encoding", "-W", "error", MINSCOOP, "-n", 1, "--listen", tmp_path / "pool",
                  "--report", tmp_path / "run.html", "--trace", tmp_path / "run.json", script("""
        from minscoop import futures
        if __name__ == "__main__":
            print(sum(futures.map(abs, range(-10, 0))))
    """))
    assert (done.returncode, done.stdout, done.stderr) == (0, "55\n", "")


def test_workers_are_nice_when_told_to_be(script):
    """--nice counts for the workers, not for the root."""
    path = script("""
        import os
        from minscoop import futures
        def niceness(): return os.nice(0)
        if __name__ == "__main__":
            print(niceness(), futures.submit(niceness).result())
    """)
    before = os.nice(0)
    assert output_of("-n", 1, "--nice", "5", path) == f"{before} {min(19, before + 5)}\n"


@pytest.mark.parametrize("workers, own, threads", [(1, None, max(1, minscoop.usable_cores())), (1, "7", 7),
                                                   (minscoop.usable_cores() + 1, None, 1)])
def test_libraries_in_workers_start_their_share_of_threads_when_the_user_sets_none(script, workers, own, threads):
    """OMP_NUM_THREADS and the like are the worker's share of the cores, in workers only."""
    env = {key: value for key, value in os.environ.items() if key not in minscoop.THREADS}
    done = launch("-n", workers, script("""
        import os
        from minscoop import futures
        def threads(): return [os.environ[name] for name in futures.THREADS if name in os.environ]
        if __name__ == "__main__":
            print(*threads(), *futures.submit(threads).result())
    """), env=env if own is None else dict(env, **dict.fromkeys(minscoop.THREADS, own)))
    assert (done.stdout.split(), done.stderr) == ([own] * 3 * (own is not None) + [str(threads)] * 3, "")


FORGETFUL = """
    import asyncio
    import concurrent.futures
    import sys
    from minscoop import futures
    def fail(x): raise ValueError(f"no {x}\\nat all")
    async def wrapped(future):
        try: await asyncio.wrap_future(future)
        except ValueError: pass
    if __name__ == "__main__":
        how, calls = sys.argv[1], [futures.submit(fail, 1), futures.submit(abs, -1), futures.submit(fail, 2)]
        if how == "map":
            unread, _ = futures.map(fail, "abcd"), futures.map(abs, [-1])
        if how == "read":
            try: next(futures.map(fail, "abcd"))
            except ValueError: pass
        for call in calls if how not in ("submit", "map", "die") else ():
            if how == "callback": call.add_done_callback(lambda call: call.exception())
            elif how == "asyncio": asyncio.run(wrapped(call))
            else: call.exception()
        if how == "die": concurrent.futures.wait(calls), sys.exit(3)
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how, calls", [("submit", 2), ("map", 6), ("read", 0), ("exception", 0), ("callback", 0),
                                        ("asyncio", 0), ("die", 0)])
def test_calls_that_fail_are_told_of_at_the_end_when_nobody_asked(script, workers, how, calls):
    """A program that forgets to ask for results looks as if all went well. One that has asked, or that ends by an error
    of its own, is told nothing more."""
    done = launch("-n", workers, script(FORGETFUL), how)
    assert (done.returncode, done.stdout) == (3 if how == "die" else 0, "")
    assert re.fullmatch(
        f"minscoop: {calls} calls failed, and the program never asked for results; the first: fail raised ValueError: "
        r"no [12a-d]\. Call result\(\) of each future, and read what map returns\n" if calls else "", done.stderr)


def test_failures_are_not_all_remembered_when_there_are_many(script):
    """They keep their futures. With -q only errors are told of, and this need not be one."""
    path = script("""
        from minscoop import futures
        def fail(x): raise ValueError(x)
        if __name__ == "__main__":
            for i in range(500): futures.submit(fail, i)
    """)
    assert f" {minscoop.UNHEARD} calls or more failed" in launch("-n", 1, path).stderr
    assert launch("-q", "-n", 1, path).stderr == ""


@pytest.mark.parametrize("most, processes", [(1, 30), (4, 8)])
def test_workers_are_replaced_when_they_have_run_enough(script, most, processes):
    """--max-tasks-per-child: no process runs more calls, whether they are of a map or submitted, even with retries=0
    each runs once; nothing is said about it. One whose task waits for others goes on until that is done."""
    done = launch("-n", 2, "--max-tasks-per-child", most, "--retries", 0, script("""
        import collections, os, sys
        from minscoop import futures
        def where(x):
            print(x, flush=True)
            return x, os.getpid()
        def whole(n): return sum(x for x, _ in futures.map(where, range(1000, 1000 + n)))
        def check(found):
            values, pids = zip(*found)
            assert values == tuple(range(30)), values
            counts = collections.Counter(pids)
            assert len(counts) >= int(sys.argv[2]) and max(counts.values()) <= int(sys.argv[1]), counts
        if __name__ == "__main__":
            check(futures.map(where, range(30)))
            check(future.result() for future in [futures.submit(where, x) for x in range(30)])
            assert futures.submit(whole, 20).result() == sum(range(1000, 1020))
            assert futures.mapReduce(lambda x: x, lambda a, b: a + b, range(500)) == sum(range(500))
    """), most, processes)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(map(int, done.stdout.split())) == sorted([*range(30)] * 2 + [*range(1000, 1020)])


def test_workers_that_were_replaced_are_not_lost_when_the_run_is_summed_up(script):
    """What they leave behind is given to others, but nothing of that runs again."""
    done = launch("-v", "-n", 2, "--max-tasks-per-child", 4, script("""
        from minscoop import futures
        import time
        if __name__ == "__main__": list(futures.map(time.sleep, [0.01] * 50))
    """))
    row = re.search(r"\n\S+ +([0-9]+) +50 .* 0\n", done.stderr)
    assert row and int(row[1]) > 2 and " 50 tasks in " in done.stderr, done.stderr
    assert "without what lost" not in done.stderr and "lost workers" not in done.stderr, done.stderr


def test_breakpoints_work_when_there_are_no_workers(script):
    """-n 0: pdb steps through a task, with the terminal of the program."""
    done = launch("-n", 0, script("""
        from minscoop import futures
        def work(x):
            breakpoint()
            return x
        if __name__ == "__main__":
            print("result", futures.submit(work, 5).result())
    """), stdin="p x * 11\nc\n")
    assert done.returncode == 0 and "55" in done.stdout and "result 5" in done.stdout


# ---------------------------------------------------------------------------------------------------
# Bad input
#
# Each fuzzer feeds one part of the module with what may arrive there: random bytes, and mutated real messages. The seed
# decides everything. Some seeds are tests; `python test_minscoop.py fuzz FROM TO` tries those from FROM to TO - 1.


class Recorder(World):
    """A World that records all messages."""

    def __init__(self, seed):
        self.heard = []
        super().__init__(seed)

    def post(self, sender, receiver, frames):
        super().post(sender, receiver, frames)
        self.heard.append(self.ways[sender, receiver][-1])


@contextlib.contextmanager
def busy_world(seed, steps, kind=World):
    """A virtual pool with much to do, after so many steps."""
    with pytest.MonkeyPatch.context() as patch:
        world = World.current = kind(seed)
        patch.setattr(minscoop, "time", world)
        world.results = [world.root.map(spawn, [range(200)], {}, op=op) for op in (None, operator.add)]
        world.calls = [world.root.submit(spawn, (i,), {}) for i in range(20)]
        for _ in range(steps):
            world.step()
        yield world


@functools.lru_cache(None)
def real_messages():
    """All messages of a virtual pool in which workers and brokers die, and some of the rarer kinds."""
    with busy_world(1, 500, Recorder) as world:
        for name, host in (b"1.1", None), (b"0.1", None), (None, b"0"), (b"2.2", None), (None, b"1"):
            world.bury(name) if name else world.replace(host)
            for _ in range(500):
                world.step()
    rest = ["STOP", "FAILED why", "CONST c 0.1:7 x", "SHOWN 1 7", "OUTPUT 1.1 out text", "FETCH /m.py", "SIZE 5",
            "FILE /m.py text", "DIED 1.1 0.root:0/0 0 3 1 0 gone", "LOST 0.root:0/0 0 3 1 gone", "SINGLY 0.root:0/0",
            "BYE", "PROBE", "SPLIT 0.root:0/0 3 4 0.root:0/3"]
    return world.heard + 9 * [fields_of("x " + line)[1:] for line in rest] + 9 * [[b"HOST", host_facts("3")], [b""]]


def junk(chance):
    """A field that is malformed, or is valid but out of place."""
    import zmq
    return chance.choice([
        b"", b"0", b"1", b"-1", b"1_0", b" 7", b"9" * 19, b"9" * 5000, b"1e9", minscoop.ALL, b"\xff\xfe", b"\0", b"\n",
        b"up", b"0.root", b"0.1", b"2.1", b"1", b"1?", b"0.root:0/0", b"0.root:0/0/0:1",
        b"0.root:%d/0" % chance.randrange(9), b":/", b"x" * 300, b"x" * 5000, b"{}", b"[" * 100_000,
        b'{"workers": 1e999, "number": "3", "host": "x"}', pickle.dumps(0), b'{"number": []}',
        pickle.dumps((None, [(b"", 9)], {0: 1})), pickle.dumps(([1], None, {7: (b"", "")})),
        chance.getrandbits(64).to_bytes(8, "big"), zmq.Frame(b"0" * 70_000)])


def mutated(chance, frames):
    """A message with some random damage, or none. The inside of a pickle is left alone, since a pickle is code."""
    frames = list(frames)
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 9])):
        at, how = chance.randrange(len(frames) + 1), chance.randrange(8)
        other = chance.choice(real_messages())
        if how == 0:
            del frames[at:at + 1]
        elif how == 1:
            frames.insert(at, junk(chance))
        elif how == 2:
            frames[at:at + 1] = [junk(chance)]
        elif how == 3:
            frames[at:at + 1] = [chance.choice(other)]
        elif how == 4:
            frames[:1] = other[:1]
        elif how == 5:
            frames[at:] = other[at:]
        elif how == 6:
            frames[at:at + 1] = [bytes(frame)[:chance.randrange(9)] for frame in frames[at:at + 1]]
        elif at < len(frames) and isinstance(frames[at], bytes) and frames[at][:1] not in (b"\x80", b""):
            data = bytearray(frames[at])
            data[chance.randrange(len(data))] = chance.randrange(256)
            frames[at] = bytes(data)
    return frames or [b""]


def some_message(chance):
    """Mostly a real message that was mutated."""
    if chance.random() < 0.1:
        return [junk(chance) for _ in range(chance.randrange(1, 5))]
    return mutated(chance, chance.choice(real_messages()))


STRANGERS = [b"up", b"7", b"7.1", b"0", b"1?", b"\0\x80\0A\xa7", b"0.x", b"0.root.1", b"x" * 255]


def fuzz_brokers(chance, count=1500):
    """Whatever a broker is told, and by whom: it must go on, keep consistent books, and answer only those it knows."""
    with busy_world(chance.random(), chance.randrange(500)) as world:
        for _ in range(count):
            host = chance.choice(list(world.brokers))
            broker, now = world.brokers[host], world.now
            sender = chance.choice([b"", minscoop.UP, *world.nodes, *world.brokers, *broker.links, *STRANGERS])
            known = {sender, minscoop.UP, minscoop.KEEPER, *broker.links, *broker.present, *broker.silent}
            out = broker.tick(now) if chance.random() < 0.01 else broker.handle(sender, some_message(chance), now)
            assert {name for name, _ in out} <= known | set(broker.links)
            assert all(isinstance(frames, list) and frames for _, frames in out)
            assert (minscoop.UP in broker.links) == broker.below
            world.now += chance.random() * 0.01
        for broker in world.brokers.values():
            assert broker.placed == {task: name for name, link in broker.links.items() for task in link.held}
            assert set(broker.hungry) == {name for name, link in broker.links.items() if link.demand > 0}
    return count


def fuzz_worlds(chance):
    """Strangers, and a host that holds no task, say whatever they like: the program must get the right answers."""
    with busy_world(chance.random(), 0) as world:
        facts = host_facts("9", workers=0, python="3", transport="none", address=None)
        world.post(b"9", b"0", [b"HELLO", facts])
        left, harmful = 600, {b"HUNGRY", b"FAILED", b"BYE", b""}  # these take tasks, end, or ask everybody

        def strike():
            nonlocal left
            sender, frames = chance.choice([b"9", b"9", b"7", b"\0\x80\0A\xa7"]), some_message(chance)
            if left > 0 and frames[0] not in harmful | {b"WHO", b"DIED", b"CONST"}:
                left -= 1
                world.arrive(sender, b"0" if sender == b"9" else chance.choice(list(world.brokers)), frames)
        world.until(lambda: not left and world.quiet(), strike)
        total = sum(i * i for i in range(200))
        assert list(world.results[0]) == [i * i for i in range(200)] and sum(world.results[1]) == total
        assert [call.result(0) for call in world.calls] == [i * i for i in range(20)]
        world.arrive(b"9", b"0", [b"BYE"])
        world.root.send(b"STOP")
        world.until(lambda: world.brokers[b"0"].finished)
    return 600


def fuzz_nodes(chance, count=400):
    """Whatever the root or a worker hears from its broker: neither that nor its next step may raise an error."""
    with busy_world(chance.random(), chance.randrange(300)) as world:
        for _ in range(count):
            node = chance.choice(list(world.nodes.values()))
            message = some_message(chance)
            if message[0] not in (b"STOP", b"FAILED"):
                node.inbox.append(message)
                node.serve()
                if node is not world.root:
                    node.step()
    return count


def fuzz_decoders(chance, count=2000):
    """Whatever is wrong with the frames of a RESULT, they must decode: without an op, to a value or error per item."""
    bodies = [frames[5:] for frames in real_messages() if frames[0] == b"RESULT"]
    for _ in range(count):
        number, op = chance.randrange(1, 9), chance.choice([None, max])
        frames = mutated(chance, chance.choice(bodies))
        values, failures = minscoop.read_results(frames, number, op)
        assert op or len(values) == number and all(offset < number for offset in failures)
    return count


class Ends:
    """Stands in for a connection: accepts all data, and has none to read; it ends when shut down."""

    def __init__(self):
        self.gone = threading.Event()

    def sendall(self, data):
        if self.gone.is_set():
            raise BrokenPipeError

    def shutdown(self, how):
        self.gone.set()

    def recv(self, size):
        self.gone.wait(WAIT)
        return b""


def fuzz_tunnels(chance, count=100):
    """Whatever comes through the pipe, a Tunnel must carry it or raise HostError, with one open connection at most."""
    for _ in range(count):
        blocks = [struct.pack(">II", serial, size) + bytes(size) for serial, size in
                  ((1 + i // 3, chance.choice([0, 1, 9, 1 << 16])) for i in range(chance.randrange(9)))]
        data = bytearray(b"".join(blocks) + bytes(chance.randrange(10)))
        for _ in range(chance.randrange(3) if data else 0):
            data[chance.randrange(min(len(data), 64))] = chance.randrange(256)
        ends = []
        tunnel = minscoop.Tunnel(io.BytesIO(data), io.BytesIO(), lambda: ends.append(Ends()) or ends[-1])
        with contextlib.suppress(minscoop.HostError):
            tunnel.pour()
        assert sum(not end.gone.is_set() for end in ends) <= 1
        for end in ends:
            end.gone.set()
    return count


def mutated_text(chance, text):
    """A text with some random damage."""
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice([
            "", text[at:at + 9] * chance.randrange(9), "-1", "0", "null", "[]", "{}", "9" * 50, "[1-99]", "[1-9999999]",
            "n[01-16]:8", ",", " ", "\n", "::", "@", "(x99999)", "\xe9", "\0", "[" * 50, "1e999", '"'])[:5000]\
            + text[at + chance.randrange(3):]
    return text


def fuzz_hosts(chance, count=300):
    """Damaged lists of hosts, and what batch systems provide, must be parsed, or refused with a ValueError."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        for _ in range(count):
            with contextlib.suppress(ValueError):
                text = mutated_text(chance, chance.choice([source for source, _ in LISTS if isinstance(source, str)]))
                assert all(workers is None or workers >= 0 for _, workers in minscoop.parse_hosts(text))
            variables, _, *text = chance.choice(JOBS)
            env = job_environment(pathlib.Path(directory), variables, *(mutated_text(chance, part) for part in text))
            name = chance.choice(list(env))
            env[name] = mutated_text(chance, env[name])
            with contextlib.suppress(ValueError):
                assert minscoop.allocation(env).get("hosts", True)
    return 2 * count


def fuzz_files(chance, count=100):
    """A damaged connection file must be refused with a PoolError, unless its content is still the same."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        def run_agent(found):
            assert {**found, "host": "join"}.items() >= json.loads(json.dumps(config)).items()
        patch.setattr(minscoop, "run_agent", run_agent)
        path = pathlib.Path(directory, "pool")
        config = {"main_python": sys.version_info[:2], "mixed": False, "host": "join", "keys": ["a", "b"], "port": 1}
        text = json.dumps(dict(config, program=minscoop.checksum(config)))
        for _ in range(count):
            damaged = mutated_text(chance, text)
            path.write_bytes(damaged.encode())
            with contextlib.suppress(minscoop.PoolError):
                minscoop.join(str(path), 1)
    return count


def fuzz_notices(chance, count=300):
    """Neither a damaged notice from the keeper nor a marker page of random bytes may raise an error."""
    board = object.__new__(minscoop.Switchboard)
    board.broker, board.notices, keeper = minscoop.Broker(size=2), *socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    board.said = []
    with board.notices, keeper:
        for _ in range(count):
            frames = [bytes(frame).decode("latin-1") for frame in some_message(chance)]
            keeper.send(mutated_text(chance, json.dumps(frames)).encode()[:90_000])
            board.take_notice(None)
            state, _, task_id, lo, hi = minscoop.running(chance.getrandbits(32 * 8).to_bytes(32, "big") + bytes(4064))
            assert len(task_id) <= 4000 and int(lo) >= 0
    return 2 * count


FUZZERS = {"brokers": (fuzz_brokers, 30), "worlds": (fuzz_worlds, 15), "nodes": (fuzz_nodes, 40),  # seeds as tests
           "decoders": (fuzz_decoders, 10), "notices": (fuzz_notices, 15), "tunnels": (fuzz_tunnels, 10),
           "hosts": (fuzz_hosts, 10), "files": (fuzz_files, 10)}


def fuzz(name, seed):
    """One seed of one fuzzer; returns the number of messages."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return FUZZERS[name][0](random.Random(f"{name} {seed}"))


@pytest.mark.parametrize("name", FUZZERS)
def test_nothing_gives_way_when_anything_arrives(name):
    """Some seeds of each fuzzer, more than 100 000 messages in all: no check may fail, nor memory grow by 300 MB."""
    zmq = pytest.importorskip("zmq")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert zmq and sum(fuzz(name, seed) for seed in range(FUZZERS[name][1])) >= 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000 * (1 if LINUX else 1024)  # KiB


def fuzz_from_to(first, last):
    """The command `fuzz FROM TO`: these seeds of all fuzzers; says which fail."""
    failed = 0
    for seed, name in itertools.product(range(int(first), int(last)), FUZZERS):
        try:
            fuzz(name, seed)
        except BaseException as error:
            failed += 1
            print(f"{name} {seed}: {type(error).__name__}: {error}", flush=True)
            if isinstance(error, KeyboardInterrupt):
                break
    sys.exit(f"{failed} seeds failed" if failed else 0)


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\0"  # of ZMTP 3.0; the name of a mechanism follows


def attack_by_bytes(chance, family, address):
    """Connect, and send bytes that resemble ZMTP, ØMQ's protocol, or do not."""
    with contextlib.suppress(OSError), socket.socket(family) as raw:
        raw.settimeout(1)
        raw.connect(address)
        mechanism = chance.choice([b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", b"\xff"]).ljust(20, b"\0")
        command = chance.choice([b"READY", b"HELLO", b"INITIATE", b"ERROR", b"x", b""])
        body = bytes([len(command)]) + command + bytes(chance.getrandbits(8) for _ in range(chance.randrange(250)))
        size = chance.choice([len(body), chance.getrandbits(64), 0, 1 << 62])
        frame = bytes([chance.choice([4, 6, 0, 2, 255])]) + struct.pack(">Q", size)[chance.choice([0, 7]):] + body
        data = chance.choice([GREETING + mechanism + chance.choice([b"\0", b"\1"]) + bytes(31) + frame,
                              b"GET / HTTP/1.0\r\n\r\n",
                              bytes(chance.getrandbits(8) for _ in range(99)), frame, b""])
        raw.sendall(data[:chance.choice([len(data), chance.randrange(len(data) + 1)])])


HARMFUL = {b"", b"WHO", b"FAILED", b"HUNGRY"}   # not sent: a host may start a census, end the run, take tasks
HOLDERS = {b"TASK", b"SPLIT", b"SINGLY", b"RESULT", b"LOST"}  # nor these, by a host that holds tasks


def attack_by_messages(chance, context, address, name, keys, count, first=(), refrain=HARMFUL):
    """Connect as a peer of this name; send `first`, then many messages, sensible or not; read whatever arrives."""
    import zmq
    dealer = minscoop.connect(context, address, name, keys)
    for message in first:
        dealer.send_multipart(message)
    said = 0
    while said < count:
        frames = some_message(chance)
        if frames[0] not in refrain:
            with contextlib.suppress(zmq.Again):  # the handshake has failed: there is no connection
                dealer.send_multipart(frames, zmq.NOBLOCK, copy=False)
            said += 1
        while dealer.poll(0):
            dealer.recv_multipart()
    if first:
        dealer.send(b"BYE")
    dealer.close(linger=2000)
    return said


def slow_square(x):
    time.sleep(0.001)
    return x * x


def resident(pid):
    """Bytes of memory that a process has in use."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@linux_only
def test_the_answer_is_right_when_a_run_is_attacked(guard, tmp_path):
    """Strangers, and hosts that have the keys, send bytes and messages by ipc and TCP; the keeper's stdin gets noise.

    One host holds no task, but sends messages about those of others; another takes tasks, and leaves. The broker must
    survive, and not grow. Not tried: abuse of tasks that a host holds, or of a living node's name, since whoever has
    the keys may send pickles, that is, code."""
    zmq = pytest.importorskip("zmq")
    chance, path, sent = random.Random(1), tmp_path / "pool.json", 0
    with minscoop.Executor(2, listen=str(path)) as executor:
        assert list(executor.map(slow_square, range(9))) == [x * x for x in range(9)] and eventually(path.exists)
        results, keeper = executor.map(slow_square, range(10_000)), executor._node.keeper
        before, config = children_of(keeper.pid), json.loads(path.read_text())
        memory, wrong = resident(before[0]), [key.decode() for key in zmq.curve_keypair()]
        keys, ipc, port = config["keys"], config["address"], config["port"]
        hosts = [[b"HELLO", host_facts(name, workers=0, python="3", transport="none", address=None)]
                 for name in ("8", "9")]
        with zmq.Context() as context:
            for _ in range(150):
                attack_by_bytes(chance, socket.AF_INET, ("127.0.0.1", port))
                attack_by_bytes(chance, socket.AF_UNIX, ipc[len("ipc://"):])
            for name in STRANGERS:
                sent += attack_by_messages(chance, context, ipc, name, None, 500)
                sent += attack_by_messages(chance, context, f"tcp://127.0.0.1:{port}", name, keys, 500)
                for bad in None, [keys[0], *wrong], [wrong[0], *keys[1:]], [wrong[0], *wrong]:
                    attack_by_messages(chance, context, f"tcp://127.0.0.1:{port}", name, bad, 10)
            sent += attack_by_messages(chance, context, ipc, b"8", None, 5000, hosts[:1])
            sent += attack_by_messages(chance, context, f"tcp://127.0.0.1:{port}", b"9", keys, 5000, hosts[1:],
                                       HARMFUL - {b"HUNGRY"} | HOLDERS)
        keeper.stdin.write(os.urandom(20_000))
        keeper.stdin.flush()
        assert list(results) == [x * x for x in range(10_000)]
        assert executor.submit(slow_square, 5).result(WAIT) == 25
        assert children_of(keeper.pid) == before and resident(before[0]) < memory + (50 << 20) and sent > 15_000


# ---------------------------------------------------------------------------------------------------
# The examples, and the file itself


def run_line(path):
    """The command in the docstring of an example, or None."""
    lines = [line.strip().lstrip("$ ") for line in (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()]
    return next((line for line in lines if re.match(r"(\w+=\S* )*python3? ", line)), None)


EXAMPLES = {  # what each prints; benchmark.py has tests of its own, see below
    "aio": r"(the loop goes on\n)+400 \[0, 1, 4, 9, 16, 25\]\n",
    "arrays": r"\(600, 600\) float64 True\n",
    "constants": r"\[1.2, 3.1, 12.5\]\nTypeError: .*\nnot set: None\n",
    "errors": r"(?s)raised here, too: division by zero\n.*in divide\n.*as a value: ZeroDivisionError\(.*\)\nalive\n"
              r"exit code 3\nthe call of _exit killed 3 workers .*\n",
    "gridsearch": r"\{'C': 10, 'gamma': 0.1\} 0.9\d\d\n",
    "hello": r"(Hello World from Future #\d+\n){16}",
    "islands": r"(round \d: the best have \d+ \d+ \d+ \d+ ones\n){5}",
    "mandelbrot": r"wrote mandelbrot.png\n",
    "minimize": r"lowest at \(1.000, 1.000\), after \d+ evaluations\n",
    "onemax": r"best: 1{30} with 30 ones\n",
    "pi": r"pi is about 3.14\d*\n",
    "plain": r"sum of squares: 328350\n(from \d+: \d+ steps\n){4}",
    "progress": r"([\r\n]*(map|map_as_completed|as_completed): .*)+\n1.80 s of work\n",
    "sampling": r"slope (1.9|2.0)\d \+- 0.0\d, intercept [01].\d \+- 0.\d\n",
    "scale": r"(?s) +hosts .*",
    "submit": r"3 \*\* 10 = 59049\n(2 \*\* \d+ = \d+\n){3}\[1, 2, 4, 8, 16, 32, 64, 128\] 0\n",
    "switch": r"by thousands: 168 135 127 120 119 114 117 107 110 112\nin all: 1229\n",
    "tree": r"8 queens: 92 solutions\n",
    "where": r"(host \S+, worker \S+: \d+ tasks\n)+",
    "wordcount": r"\d+ words in \d+ files\nserial .* s, pool .* s\n( *\d+ [a-z]+\n){10}",
}


def need_packages(path):
    """Skip if something is missing that an example imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            name = name.partition(".")[0]
            if not (path.parent / f"{name}.py").exists() and importlib.util.find_spec(name) is None:
                skip_or_fail(f"{name} is not installed")


def in_a_fresh_copy(tmp_path, command, **kwargs):
    """Start a command line in a directory with the files that a user has; `python` in it means this Python."""
    if not (tmp_path / "examples").exists():
        shutil.copytree(HERE / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        for name in "minscoop.py", "test_minscoop.py":
            shutil.copy(HERE / name, tmp_path)
    command = re.sub(r"(?<![\w./])python3?(?= )", shlex.quote(sys.executable), command)
    return subprocess.Popen(["bash", "-c", command], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True, **kwargs)


@in_groups(sorted(path.stem for path in (HERE / "examples").glob("*.py") if path.stem != "benchmark"), 3)
def test_an_example_runs_when_its_line_is_pasted(tmp_path, names):
    """The command in each example's docstring must work in a fresh copy, and print what is expected."""
    paths = [HERE / "examples" / f"{name}.py" for name in names]
    for path in paths:
        need_packages(path)
    processes = [in_a_fresh_copy(tmp_path, run_line(path)) for path in paths]
    for name, done in zip(names, map(finish, processes)):
        assert (done.returncode, done.stderr) == (0, "") and re.fullmatch(EXAMPLES[name], done.stdout), done


@pytest.mark.parametrize("name, module", [("processes", "concurrent.futures"), ("dask", "distributed"),
                                          ("mpi", "mpi4py.futures")])
def test_a_program_runs_unchanged_when_it_is_given_another_executor(tmp_path, name, module):
    """examples/switch.py on the standard library's, and on others where they are installed."""
    with contextlib.suppress(ImportError, RuntimeError):  # no such package, no MPI
        importlib.import_module(module)
    if module not in sys.modules:
        pytest.skip(f"{module} is not installed")
    done = finish(in_a_fresh_copy(tmp_path, f"PYTHONPATH=. python examples/switch.py {name}"))
    assert done.returncode == 0 and re.fullmatch(EXAMPLES["switch"], done.stdout), done


def test_joblib_nests_and_gives_up_when_minscoop_runs_it(script):
    """The backend of examples/gridsearch.py: calls nested deeply, even on one worker; generators, errors, timeouts."""
    need_packages(HERE / "examples" / "gridsearch.py")
    path = script(f"""
        import sys
        sys.path.append({str(HERE / "examples")!r})
        import gridsearch, minscoop, time
        from joblib import Parallel, delayed, parallel_config
        def same(x): return x
        def nested(n): return Parallel()(delayed(same)(x) for x in range(n)), minscoop.IS_ORIGIN
        def deep(n): return 1 if n == 0 else sum(Parallel(2)(delayed(deep)(n - 1) for _ in range(2)))
        def third(x): return 1 / (x - 3)
        if __name__ == "__main__":
            with parallel_config("minscoop"):
                assert Parallel()(delayed(same)(x) for x in range(300)) == list(range(300))
                assert Parallel(2)(delayed(nested)(n) for n in range(3)) == [([*range(n)], False) for n in range(3)]
                assert Parallel(2)(delayed(deep)(n) for n in range(5)) == [2 ** n for n in range(5)]
                assert list(Parallel(2, return_as="generator")(delayed(same)(x) for x in range(9))) == [*range(9)]
                for calls in (delayed(third)(x) for x in range(9)), (delayed(int)(text) for text in "1x3"):
                    try: Parallel(2, pre_dispatch="all")(calls)
                    except (ZeroDivisionError, ValueError) as error: print(type(error).__name__)
                try: Parallel(2, timeout=0.1)(delayed(time.sleep)(x) for x in [1])
                except Exception as error: print(type(error).__name__)
                assert Parallel(-1)(delayed(same)(x) for x in range(5)) == list(range(5))
    """)
    for done in launch_together([("-n", workers, path) for workers in (1, 2)]):
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "ZeroDivisionError\nValueError\nTimeoutError\n")


# For each command in README.md: what is run in its place (...: itself), so that it ends soon and uses the tests' hosts,
# and what that prints. The command that runs these tests is not among them: .ci/run runs it.

ALL = "all took part\n"
README_RUNS = {
    "python minscoop.py --hosts node1,node2,localhost script.py":
        ("python minscoop.py --hosts good1,good2,localhost script.py good1 good2 {node}", ALL),
    "python minscoop.py --check --hosts hosts.txt": (..., r"HOST .*\n\(here\) .*\ngood1 .*MB/s\n"),
    "python minscoop.py --hosts hosts.txt script.py": ("{command} good1 {node}", ALL),
    "python minscoop.py script.py": ("{command} {node}", ALL),
    "python minscoop.py -n 4 script.py": ("{command} {node}", ALL),
    "python -m minscoop script.py": ("{command} {node}", ALL),
    "python minscoop.py -n 4": ("echo 'print(sum(map(abs, [-1, 2])))' | {command}", "3\n"),
    "python minscoop.py --listen pool.json script.py":
        ("{command} {node} a & FATE=a python minscoop.py --join pool.json; wait $!", ALL),
    "python minscoop.py --join pool.json":
        ("python minscoop.py --listen pool.json script.py a b & FATE=a {command} & FATE=b {command}; wait", ALL),
    'python -c "import minscoop; help(minscoop.map)"': (..., "(?s).*order of the rows.*"),
    "python test_minscoop.py simulate 0 10000": ("python test_minscoop.py simulate 0 3", "3 seeds, 0 failed\n"),
    "python test_minscoop.py simulate 1234": (..., ""),
    "python test_minscoop.py break 500": ("{command} 3 1000", r".*: seed \d+\n"),
    "python test_minscoop.py chaos 0 30": ("python test_minscoop.py chaos 0 0", "(?s).* skipped.*"),
    "python test_minscoop.py fuzz 0 30": ("python test_minscoop.py fuzz 0 1", ""),
    "python test_minscoop.py soak 10000000": ("python test_minscoop.py soak 1000", r"tasks\t.*\n\d+\t.*\n"),
}


def readme():
    return (HERE / "README.md").read_text()


def readme_commands():
    """The commands in README.md's code, be it on lines of its own or within sentences, that begin with python."""
    lines = re.findall("^    (.*)", readme(), re.M) + re.findall("`([^`\n]+)`", readme())
    return {part.strip() for line in lines for part in re.split(" {3,}", line) if re.match("python3? .*minscoop", part)}


def test_every_command_is_tried_when_it_stands_in_the_readme():
    """README_RUNS must have all but the usage, the command for these tests, and the first, which has its own test."""
    others = {command for command in readme_commands() if "venv" in command}
    usage = minscoop.make_parser().usage
    assert readme_commands() - others == {*README_RUNS, usage} and len(others) == 2


@pytest.mark.parametrize("command", README_RUNS)
def test_a_command_of_the_readme_does_what_it_says_when_it_is_pasted(guard, ssh, script, tmp_path, command):
    """In a fresh copy, with a script and a list of hosts beside it."""
    script(SQUARES.replace("sys.argv[1]", "','.join(sys.argv[1:])").replace("sys.argv[2:]", "()").replace(
        "print(*sorted(seen))", "print(wanted - seen or 'all took part')"), "script.py")
    (tmp_path / "hosts.txt").write_text("good1 1\nlocalhost 1\n")
    if "test_minscoop.py" in command and not LINUX:
        pytest.skip("looks into /proc")
    run, printed = README_RUNS[command]
    run = command if run is ... else run.format(command=command, node=NODE)
    done = finish(in_a_fresh_copy(tmp_path, run))
    assert (done.returncode, done.stderr) == (0, "") and re.fullmatch(printed, done.stdout), done


def test_the_readmes_first_lines_set_it_up_when_they_are_pasted(guard, tmp_path):
    """A virtual environment with nothing but pyzmq, then the program shown, which prints what is shown."""
    command, = (command for command in readme_commands() if command.endswith("hello.py"))
    install, hello = command.rsplit(" && ", 1)
    if finish(in_a_fresh_copy(tmp_path, install)).returncode:
        skip_or_fail("cannot install pyzmq")
    done = finish(in_a_fresh_copy(tmp_path, hello))
    first, *_, last = re.findall("^    (Hello .*)", readme(), re.M)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[0], lines[15], len(lines)) == (0, "", first, last, 16)
    assert re.findall("```python\n(.*?)```", readme(), re.S)[0] in (tmp_path / "examples" / "hello.py").read_text()


def test_a_program_of_the_readme_runs_when_it_is_pasted(script):
    """The one with an Executor, in plain Python."""
    _, program = re.findall("```python\n(.*?)```", readme(), re.S)
    done = python(script(program), env=dict(os.environ, PYTHONPATH=str(HERE)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "328350\n", "")


def test_options_and_remote_commands_exist_when_the_readme_names_them():
    """README.md's table must have every option of the command line, and no others; each `-e '...'` must parse."""
    table = readme().split("## The command line")[1].split("## ")[0]
    named = set(re.findall(r"`(--?[a-z-]+)", " ".join(re.findall(r"^\| (.*?) \|", table, re.M)))) - {"-vv"}
    actions = [set(action.option_strings) for action in minscoop.make_parser()._actions if action.option_strings]
    assert named <= set().union(*actions) and all({*named, "--tunnel"} & options for options in actions)
    for remote in re.findall("`-e '(.*?)'`", readme()):
        assert minscoop.remote_command(remote, "h")[-1] == "sh"


def benchmark(tmp_path, systems, only, *args, env=None):
    """The figures of a benchmark of small sizes, by workload and system."""
    done = python(HERE / "examples" / "benchmark.py", "--quick", "--systems", systems, "--only", only, "--json",
                  tmp_path / "json", "--html", tmp_path / "html", *args, env=env)
    figures = json.loads((tmp_path / "json").read_text())["figures"]
    assert (done.returncode, done.stderr, list(figures)) == (0, "", only.split(",")), done
    assert all(type(known) is list for systems in figures.values() for known in systems.values()), figures
    assert (tmp_path / "html").read_text().count("<rect") and done.stdout.count("\n") >= 2 * len(figures) + 5
    return figures


@pytest.mark.parametrize("options, text", [
    (["--rounds", "0"], "--rounds and --workers are at least 1"), (["--only", "all"], "no such system or work: all"),
    (["--html", "none/page.html"], "cannot write none/page.html"), (["--json", "."], "cannot write .")])
def test_the_benchmark_does_not_begin_when_it_could_not_end_well(tmp_path, options, text):
    """A figure that nobody gets to see, after a quarter of an hour, is worth nothing."""
    done = python(HERE / "examples" / "benchmark.py", *options, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.endswith(f"error: {text}\n")


def test_the_benchmark_has_a_figure_for_all_when_they_can_do_it(tmp_path):
    """Every kind of workload, on systems that are always installed; the figures are not judged."""
    figures = benchmark(tmp_path, "Pool,ProcessPoolExecutor",
                        "noop,records,tail,submit,recursion,nested,small,payload,constant,hello,module,first,ready,"
                        "sleepers")
    everybody = {"minscoop", "Pool", "ProcessPoolExecutor"}
    for name, limits in dict(noop="loop pyzmq", records="loop", tail="processes", submit="pyzmq", small="loop",
                             first="", ready="", payload="loop pyzmq", sleepers="processes").items():
        assert set(figures.pop(name)) == everybody | set(limits.split()), name
    assert {name: list(systems) for name, systems in figures.items()} == dict.fromkeys(
        ("recursion", "nested", "constant", "hello", "module"), ["minscoop"])


@pytest.mark.skipif(numpy is None, reason="no numpy")
def test_the_benchmark_has_more_rows_when_numpy_is_there(tmp_path):
    """Small arrays, and linear algebra; none of them in the table if NumPy is not installed."""
    figures = benchmark(tmp_path, "Pool", "vectors,algebra")
    assert {name: set(systems) for name, systems in figures.items()} == dict.fromkeys(
        ("vectors", "algebra"), {"minscoop", "Pool", "loop"})


def test_the_benchmark_measures_hosts_when_they_are_given(cluster, tmp_path):
    """By TCP, and through the remote command."""
    figures = benchmark(tmp_path, "Pool", "medium,payload", "--hosts", "alpha:1,beta:1", env=cluster.env)
    assert all(figures[name].keys() >= {"minscoop", "Pool", "tcp", "stdio"} for name in figures)


def test_ten_hosts_are_busy_when_their_pool_is_simulated(monkeypatch):
    """examples/scale.py, in virtual time: 640 workers, ten tasks of 1 s for each; and the memory that brokers need."""
    monkeypatch.syspath_prepend(str(HERE / "examples"))
    scale = importlib.import_module("scale")
    row = scale.simulate(10, "map", 1.0)
    assert row["efficiency"] >= 0.95 and row["messages"] < 8 and row["top"] < 1
    task, bookkeeping = scale.memory()
    assert task < 300 and bookkeeping < 200e6


def test_a_map_is_shared_as_evenly_when_others_went_before_it(monkeypatch):
    """examples/scale.py's hosts: what they asked for as the map before ran dry had one host get the shares of several,
    which the others then took from it in thousands of messages. Those of this machine's workers are smaller."""
    monkeypatch.syspath_prepend(str(HERE / "examples"))
    scale = importlib.import_module("scale")
    try:
        pool = scale.Pool(20, 16)
        rows = [pool.map([1.0] * 320 * 5) for _ in range(4)]
        assert all(row["efficiency"] > 0.95 and row["messages"] < 1.1 * rows[0]["messages"] for row in rows), rows
    finally:
        minscoop.time, minscoop.Slice = time, scale.RealSlice


@pytest.mark.parametrize("hosts, widths", [
    ({"1": 8, "2": 16}, [1, 1, 8, 16]), ({"1": 8, "2": None}, []), ({}, [1, 1])])
def test_each_host_gets_a_part_of_its_size_when_all_are_idle(monkeypatch, hosts, widths):
    """The largest first (widths are taken from the end); this host's workers get theirs one by one. As long as some
    hosts have yet to come, it is not known."""
    root = minscoop.Root.__new__(minscoop.Root)
    facts = {number: {"workers": n, "state": "ready"} if n else {"host": "late"} for number, n in hosts.items()}
    root.hosts, root.size = {"0": {"workers": 2, "state": "ready"}, **facts}, 2 + sum(filter(None, hosts.values()))
    assert root.takers(100) == widths


@pytest.mark.parametrize("args", ["--hosts 0", "--seconds -1", "--seconds nan", "--per-worker 0", "--kinds trees"])
def test_the_simulation_of_hosts_refuses_arguments_when_they_make_no_sense(monkeypatch, args):
    """examples/scale.py: a kind that it does not know was taken for a tree; tasks of -1 s never came to an end."""
    monkeypatch.syspath_prepend(str(HERE / "examples"))
    monkeypatch.setattr(sys, "argv", ["scale.py", *args.split()])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("scale").main()


def test_scoops_hello_world_works_when_either_name_is_imported(script):
    """As it stands in the documentation, with `scoop` as with `minscoop`."""
    for name in ("minscoop", "scoop"):
        assert output_of(script(f"""
            from {name} import futures

            def hello(value):
                return f"Hello World from Future #{{value}}"

            if __name__ == "__main__":
                for line in futures.map(hello, range(16)):
                    print(line)
        """)) == "".join(f"Hello World from Future #{i}\n" for i in range(16))


def test_a_vendored_copy_works_when_it_lies_in_a_package(script, tmp_path):
    """`from package import minscoop`: one file, copied beside other modules."""
    shutil.copy(MINSCOOP, script("", "package/__init__.py").parent)
    script("""
        def work(x):
            from package import minscoop
            return sum(minscoop.map(abs, [x] * 3))
    """, "package/tasks.py")
    done = python(script("""
        from package import minscoop
        from package.tasks import work
        def own(x): return minscoop.submit(work, x).result()
        if __name__ == "__main__":
            with minscoop.Executor(2) as executor:
                print(list(executor.map(work, range(3))), list(executor.map(own, range(3))))
                try: executor.submit(int, "x").result()
                except ValueError as error: print(type(error.__cause__).__name__)
    """))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 3, 6] [0, 3, 6]\nRemoteTraceback\n", "")


def test_names_match_when_a_module_is_looked_up():
    """`import minscoop` is one module, however often it is imported."""
    assert importlib.import_module("minscoop") is minscoop and isinstance(minscoop, types.ModuleType)


# ---------------------------------------------------------------------------------------------------
# Simulation: threads and time
#
# Root, Worker, Broker and Keeper run as they are. What they stand on is replaced: threads, locks, time, pipes,
# sockets, processes. A virtual thread is a real one that runs only while it has the turn. Each operation on a lock,
# an event, the clock or a socket is a scheduling point: time passes there, another thread may get the turn, and a
# process may die. When no thread can run, the clock jumps to the next timer. If there is none, that is a deadlock.


class Killed(BaseException):
    """Raised at every scheduling point of a process that has ended, until its threads are gone."""


class Violation(BaseException):
    """The simulated pool did what it must not do."""


SIM = None  # the simulation that runs


class Scheduler:
    """Gives the turn to one virtual thread at a time, and keeps the clock."""

    def __init__(self, rng):
        self.rng, self.random, self.now, self.points, self.failure = rng, rng.random, 0.0, 0, None
        self.timers, self.order, self.numbers = [], itertools.count(), itertools.count(1)
        self.ready, self.threads, self.current, self.acting = [], [], None, False
        self.over = _thread.allocate_lock()  # released when no thread is left
        self.over.acquire()

    def at(self, delay, action, *args):
        """Have action(*args) called after a delay, in no virtual thread."""
        heapq.heappush(self.timers, (self.now + delay, next(self.order), action, args))

    def step(self):
        """A scheduling point of the running thread."""
        me = self.current
        if me.process.ended is not None:
            raise Killed
        self.points += 1
        self.now += 1e-6
        if self.strikes and self.points >= self.strikes[-1]:
            self.strikes.pop()
            self.act(self.strike)
            if me.process.ended is not None:
                raise Killed
        if self.random() < self.switching or self.timers and self.timers[0][0] <= self.now:
            self.ready.append(me)
            self.switch(me)

    def wait(self, *queues, timeout=None):
        """Block the running thread until one of the queues is woken, or for `timeout`; returns whether one was."""
        me = self.current
        if me.process.ended is not None:
            raise Killed
        me.queues, me.woken = queues, False
        for queue in queues:
            queue.append(me)
        if timeout is not None:  # clocks are never exact
            self.at(max(0.0, timeout) * (1 + 0.05 * self.random()) + 1e-4 * self.random(), self.resume, me, me.turns)
        self.switch(me)
        return me.woken

    def wake(self, queue):
        """Make all threads ready that wait in a queue."""
        for thread in tuple(queue):
            thread.woken = True
            self.resume(thread, thread.turns)

    def resume(self, thread, turns):
        """Make a waiting thread ready, unless it has been resumed meanwhile: then it has had more turns."""
        if thread.queues is not None and thread.turns == turns:
            for queue in thread.queues:
                queue.remove(thread)
            thread.queues = None
            thread.turns += 1
            self.ready.append(thread)

    def switch(self, me):
        """Give the turn to a thread that is ready, and wait until it is back."""
        other = self.choose()
        if other is not me:
            self.pass_turn(other)
            me.gate.acquire()
        if me.process.ended is not None:
            raise Killed

    def choose(self):
        """Act on the timers that are due; returns the thread that goes on, or None when all have ended."""
        ready, timers = self.ready, self.timers
        while self.threads:
            while timers and (timers[0][0] <= self.now or not ready):
                when, _, action, args = heapq.heappop(timers)
                self.now = max(self.now, when)
                if self.now > self.deadline or self.points > 1e6:
                    self.fail(f"hangs at {self.now:.3f} s:\n" + "\n".join(self.report()))
                self.act(action, *args)
            if not ready:
                self.fail(f"deadlock at {self.now:.3f} s:\n" + "\n".join(self.report()))
                continue
            i = int(self.random() * len(ready))
            ready[i], ready[-1] = ready[-1], ready[i]
            thread = ready.pop()
            if thread.process.frozen <= self.now or self.failure:
                return thread
            self.at(thread.process.frozen - self.now, ready.append, thread)

    def pass_turn(self, thread):
        """Let a thread go on (its real thread is started the first time); None: all have ended."""
        self.current = thread
        if thread is None:
            self.over.release()
        elif thread.real is None:
            thread.real = 0
            _thread.start_new_thread(thread.live, ())
        else:
            thread.gate.release()

    def act(self, action, *args):
        """Do what belongs to no virtual thread: links, brokers, keepers, deaths."""
        self.acting = True
        try:
            action(*args)
        except BaseException as error:
            self.fail("", error)
        self.acting = False

    def fail(self, why, error=None):
        """Something is wrong. Record the first such failure, and end all processes."""
        if self.failure is None:
            text = "".join(traceback.format_exception(None, error, error.__traceback__)) if error else ""
            self.failure = f"{why}{error!r}\n{text}" if error else why
            for process in self.processes:
                process.end()

    def report(self):
        """Lines that say where each thread stands, and the state of each node and broker."""
        frames = sys._current_frames()
        for thread in self.threads:
            stack = traceback.extract_stack(frames[thread.real]) if thread.real in frames else ()
            where = " ".join(f"{frame.name}:{frame.lineno}" for frame in stack if frame.filename == minscoop.__file__)
            yield f"  {thread.process.name.decode()} thread {thread.ident}: {where}"
        for process in self.nodes.values():
            if process.node and process.ended is None:
                node = process.node
                yield (f"  {process.name.decode()}: away {list(node.away)}, guests {list(node.guests)}, queue "
                       f"{len(node.queue)}, wanted {node.wanted}, rich {node.rich}, sources {node.sources}")
        for host in [host for host in self.hosts.values() if host.returncode is None]:
            broker = host.broker.broker
            yield f"  broker {host.number.decode()}: placed {broker.placed}, stopping {broker.stopping}, " + ", ".join(
                f"{link.name.decode()} demand {link.demand} asked {link.asked} more {link.more} idle {link.idle}"
                for link in broker.links.values())


class Thread:
    """``threading.Thread``, in the virtual process that makes it."""

    def __init__(self, target, args=(), name=None, daemon=None, process=None):
        self.target, self.args, self.process = target, args, process or SIM.current.process
        self.daemon = bool(daemon)
        self.ident, self.gate, self.real, self.joiners = next(SIM.numbers), _thread.allocate_lock(), None, []
        self.queues, self.woken, self.turns, self.tasks = None, False, 0, []
        self.gate.acquire()

    def start(self):
        if self.process.ended is None:
            SIM.threads.append(self)
            SIM.ready.append(self)

    def join(self):
        while self in SIM.threads:
            SIM.wait(self.joiners)

    def live(self):
        """The life of the real thread, from its first turn on."""
        self.real, sim = _thread.get_ident(), SIM
        sys.settrace(trace_lines if sim.lines else None)
        try:
            if self.process.ended is None:
                self.target(*self.args)
        except Killed:
            pass
        except BaseException as error:
            sim.fail(f"in a thread of {self.process.name.decode()}: ", error)
        sys.settrace(None)
        sim.threads.remove(self)
        sim.wake(self.joiners)
        self.target = self.args = None
        sim.pass_turn(sim.choose())


def trace_lines(frame, event, _):
    """A trace function (sys.settrace) that makes each line of the module a scheduling point, too."""
    if frame.f_code.co_filename != minscoop.__file__:
        return None
    if event == "line" and SIM.random() < SIM.lines and not SIM.acting:
        SIM.step()
    return trace_lines


class Lock:
    """``threading.Lock``."""

    reentrant = False

    def __init__(self):
        self.owner, self.count, self.queue = None, 0, []

    def acquire(self, blocking=True, timeout=-1):
        SIM.step()
        me, deadline = SIM.current, SIM.now + timeout
        while self.count and not (self.reentrant and self.owner is me):
            if not blocking or 0 <= timeout and deadline <= SIM.now:
                return False
            SIM.wait(self.queue, timeout=None if timeout < 0 else deadline - SIM.now)
        self.owner = me
        self.count += 1
        return True

    def release(self):
        self.count -= 1
        if not self.count:
            self.owner = None
            if self.queue:
                SIM.wake(self.queue)
            SIM.step()

    def locked(self):
        return self.count > 0

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_):
        self.release()


class RLock(Lock):
    """``threading.RLock``; also a Condition on which no thread ever waits: nodes wait for futures in their own way."""

    reentrant = True

    def release(self):
        if not self._is_owned():
            raise RuntimeError("cannot release un-acquired lock")
        super().release()

    def _is_owned(self):
        return self.owner is SIM.current

    def _release_save(self):
        count, self.count = self.count, 1
        self.release()
        return count

    def _acquire_restore(self, count):
        self.acquire()
        self.count = count

    def notify_all(self):
        """Nobody waits."""


class Event:
    """``threading.Event``; also stands for a descriptor to read from: that of a pipe or of a socket."""

    def __init__(self):
        self.flag, self.queue = False, []

    def is_set(self):
        return self.flag

    def fill(self):
        self.flag = True
        SIM.wake(self.queue)

    def set(self):
        self.fill()
        SIM.step()

    def clear(self):
        self.flag = False

    def wait(self, timeout=None):
        return bool(readable(timeout, self))


def readable(timeout, *events):
    """``minscoop.readable``. Like poll(2), it sleeps on if another thread has been quicker to read."""
    SIM.step()
    deadline = None if timeout is None else SIM.now + timeout
    while not any(event.flag for event in events) and (deadline is None or SIM.now < deadline):
        SIM.wait(*(event.queue for event in events), timeout=deadline and deadline - SIM.now)
    return [event for event in events if event.flag]


def sleep(seconds):
    """``time.sleep``: a task that computes for so long."""
    SIM.step()
    SIM.wait(timeout=seconds * SIM.current.process.slowness)


# ---------------------------------------------------------------------------------------------------
# Simulation: processes, sockets, hosts


class OwnLock:
    """Stands in for a lock of the module. Each process has its own, which dies with it: nobody waits for it then."""

    def __enter__(self):
        SIM.current.process.lock.acquire()

    def __exit__(self, *_):
        SIM.current.process.lock.release()


class Process:
    """A virtual process. Its end reaches each of its threads at the next scheduling point."""

    def __init__(self, name, host=None):
        self.name, self.host, self.pid, self.ended, self.frozen = name, host, next(SIM.numbers), None, 0.0
        self.node = self.socket = self.marker = self.connection = None
        self.known = None  # when a broker learned of its death
        self.lock = RLock()
        self.slowness, self.garbage, self.recipes, self.tasks, self.sent = SIM.rng.choice((1, 1, 3)), False, {}, {}, []
        SIM.processes.append(self)

    def start(self, target):
        self.main = Thread(target, process=self)
        self.main.start()

    def arrive(self, sender, frames):
        """A message from the broker arrives."""
        if frames[0] == b"TASK":
            self.tasks[frames[1]] = frames
        self.socket.arrive(frames)

    def end(self, lost=True):
        """End this process. lost: some of the last messages that it sent may never arrive."""
        if self.ended is None:
            self.ended = SIM.now
            for receiver in dict.fromkeys(message[1] for message in self.sent if lost):
                self.lose_last_words(receiver)
            for thread in SIM.threads:
                if thread.process is self:
                    SIM.resume(thread, thread.turns)

    def lose_last_words(self, receiver):
        """Some of the last messages under way to a receiver do not arrive: from none to all."""
        under_way = [message for message in self.sent if message[0] and message[1] is receiver]
        for message in under_way[SIM.rng.randint(0, len(under_way)):]:
            message[0] = None

    def exit(self, code):
        """End, and have the keeper notice. To blame for a death are the tasks that the marker page names: note them."""
        if self.ended is None:
            SIM.log("EXIT", self.name, code)
            if code == 0 and self.marker[0] in (minscoop.LEAVING, minscoop.RENEWED):
                SIM.check_node(self.node, self.marker[0] == minscoop.RENEWED)
                self.end(lost=False)
            else:
                SIM.bodies[self.pid] = blamed(self)
                self.end()
            SIM.at(SIM.delay() + SIM.rng.choice((0, 0.02, 0.2)), self.host.reap, self.pid, code)


def blamed(process):
    """The keys of the tasks that a marker page names."""
    _, _, task_id, lo, hi = minscoop.running(process.marker)
    lo, hi = int(lo), int(hi)
    frames = process.tasks.get(task_id)
    if frames is None:
        return []
    with contextlib.suppress(ZeroDivisionError):  # Indigestible
        column, first = minscoop.loads(frames[8:])[0], int(frames[4])
        return [item[1][0] if not frames[7] else item for item in column[lo - first:hi - first]]
    return [None]


class Dealer:
    """A node's socket. Like ØMQ's, its descriptor signals messages only once, until the socket has been checked."""

    def __init__(self, context, address, name):
        self.process, self.inbox, self.fd, self.asleep = SIM.current.process, collections.deque(), Event(), True
        self.process.socket = self
        self.process.connection = Connection(self.process, name, minscoop.host_of(name), name)

    def arrive(self, frames):
        self.inbox.append(frames)
        if self.asleep:
            self.asleep = False
            self.fd.fill()

    def is_readable(self):
        SIM.step()
        self.fd.flag, self.asleep = False, not self.inbox
        return len(self.inbox) > 0

    def send(self, messages):
        SIM.step()
        if self.process.garbage:  # a bad moment for the garbage collector
            self.process.garbage = False
            gc.collect()
        if SIM.random() < 0.5:
            self.fd.flag = False
        self.process.connection.send(*map(list, messages))

    def close(self, linger):
        """All that was sent is out."""


def receive(socket):
    """``minscoop.receive``."""
    SIM.step()
    return socket.inbox.popleft()


def transmit(socket, messages):
    """``minscoop.transmit``, of messages that arrive together or not at all."""
    socket.send(messages)


def read_pipe(end, _):
    SIM.step()
    if end == -1 or not end.flag:
        raise BlockingIOError
    end.flag = False


def write_pipe(end, _):
    SIM.step()
    if end == -1:
        raise OSError
    end.fill()


def leave(code):
    """``os._exit``."""
    SIM.current.process.exit(code)
    raise Killed


class Connection:
    """From a DEALER to a broker's ROUTER. When the broker ends, what is sent is lost until that is noticed; from then
    on it is kept, and sent to the broker that takes over. An empty message to the client tells of each connection."""

    def __init__(self, client, name, number, label):
        self.client, self.name, self.number, self.label = client, name, number, label
        self.server, self.kept = None, []
        self.connect()

    def connect(self):
        server = SIM.hosts[self.number].broker
        if self.client.ended is None and server.ended is None:
            self.server = server
            server.clients[self.name] = self
            SIM.post(server, self.client, self.label, [b""])
            kept, self.kept = self.kept, []
            for messages in kept:
                self.send(*messages)
        elif self.client.ended is None:
            SIM.at(0.005, self.connect)

    def lose(self):
        """Connect anew, once the last message that came this way has been read."""
        last, self.server = SIM.links.get((self.server, self.client), 0.0), None
        SIM.at(SIM.delay() + max(0.0, last - SIM.now), self.connect)

    def tear(self):
        """Break as a TCP connection does, and lose some of what is under way in both directions."""
        SIM.coup = SIM.now
        SIM.log("TORN", self.name)
        self.client.lose_last_words(self.server)
        self.server.lose_last_words(self.client)
        self.lose()

    def send(self, *messages):
        if self.server is None:
            self.kept.append(messages)
        else:
            SIM.post(self.client, self.server, self.name, *messages)


class BrokerProcess(Process):
    """A broker, with what Switchboard does for it."""

    def __init__(self, host, size, heirs=None):
        super().__init__(host.number + b".broker", host)
        self.broker = minscoop.Broker(host.number, size, heirs)
        self.clients, self.connections, self.early = {}, 0, []
        if self.broker.below:
            self.broker.facts = host.facts("ready")
            self.connection = Connection(self, host.number, b"0", minscoop.UP)
        else:
            SIM.at(0, self.tick)

    def begin(self):
        """Say HELLO to the broker above, once an empty message says that we are connected; nothing is read before."""
        self.send([(minscoop.UP, [b"HELLO", self.host.facts("ready")])])
        if self.broker.counted:
            self.send([(minscoop.UP, [b""])])
        self.tick()
        for sender, frames in self.early:
            self.arrive(sender, frames)

    def arrive(self, sender, frames):
        if sender == minscoop.UP and frames == [b""]:
            self.connections += 1
            if self.connections == 1:
                self.begin()
            elif self.ended is None:
                self.send(self.broker.handle(sender, frames, SIM.now))
        elif self.broker.below and not self.connections:
            self.early.append((sender, frames))
        elif self.ended is None:
            self.send(self.broker.handle(sender, frames, SIM.now))

    def tick(self):
        if self.ended is None:
            self.send(self.broker.tick(SIM.now))
            SIM.at(minscoop.HEARTBEAT, self.tick)

    def send(self, messages):
        """Send what the broker says; see whether it has come to its end."""
        broker, parcels = self.broker, {}
        for name, frames in messages:
            parcels.setdefault(name, []).append(frames)
        for name, parcel in parcels.items():
            if name == minscoop.UP:
                self.connection.send(*parcel)
            elif name in self.clients and self.clients[name].server is self:
                SIM.post(self, self.clients[name].client, self.clients[name].label, *parcel)
        if broker.stopping == "said" and not broker.below:
            SIM.check_broker(broker)
        if broker.finished and self.ended is None:
            if broker.below:
                self.connection.send([b"BYE"])
            else:
                SIM.post(self, SIM.nodes[minscoop.ROOT], b"0", [b"BYE"])
            self.end(lost=False)
            SIM.at(SIM.delay(), self.host.end)

    def exit(self, code):
        """Die, and have the keeper and those who are connected notice after a while."""
        if self.ended is None:
            SIM.log("BROKER DIES", self.name)
            SIM.coup = SIM.now
            self.end()
            for connection in self.clients.values():
                if connection.server is self:
                    SIM.at(SIM.rng.choice((0, SIM.delay())), connection.lose)
            SIM.at(SIM.delay() + SIM.rng.choice((0, 0.02, 0.2)), self.host.reap, self.pid, code)


class Page(bytearray):
    """A worker's marker page."""

    def close(self):
        pass


class VirtualHost(minscoop.Keeper):
    """A machine, as the keeper of its virtual processes. To the root, its own is also the keeper's Popen and stdin."""

    def __init__(self, number, size):
        self.config = dict(SIM.config, host=number.decode(), name=f"host{number.decode()}", size=size,
                           directory="/nowhere", below=number != b"0")
        self.number, self.workers, self.numbers, self.startup_deaths = number, {}, itertools.count(1), 0
        self.gateways = {} if self.config["below"] else {
            name: types.SimpleNamespace(number=name.encode()) for name, _, _ in SIM.config["hosts"]}
        self.returncode, self.queue, self.stdin, self.pid = None, [], self, 0
        self.failure = None
        self.broker_deaths, self.exit_code, self.notices = [], None, collections.deque()
        SIM.hosts[number] = self
        self.broker = self.fork(minscoop.run_broker, self, None)
        for _ in range(size):
            self.start_worker()

    def facts(self, state):
        """What the message HOST says."""
        return json.dumps(dict(host=self.config["name"], number=self.config["host"], workers=self.config["size"],
                               state=state, python="3", transport="tcp", address=None, reason="gone")).encode()

    def fork(self, target, keeper, heirs):
        return BrokerProcess(self, self.config["size"], heirs)

    def start_worker(self):
        name = b"%s.%d" % (self.number, next(self.numbers))
        process = SIM.nodes[name] = Process(name, self)
        process.marker = Page(4096)
        self.workers[process.pid] = name, process.marker

        def live():
            if SIM.doomed:
                leave(1)
            process.node = minscoop.Worker(name, self.config, process.marker)
            process.node.start()
        SIM.at(SIM.rng.choice((0.001, 0.01, 0.1)), process.start, live)

    def notify(self, *frames, descriptors=()):
        """Notices wait in the keeper's socket while there is no broker."""
        def arrive():
            if self.broker.ended is None:
                frames = self.notices.popleft()
                SIM.log(b"keeper", self.number, *frames)
                for process in SIM.processes if frames[0] == b"DIED" else ():
                    if frames[1] in (process.name, minscoop.host_of(process.name)) and process.known is None:
                        process.known = SIM.now
                self.broker.arrive(b"", frames)
            elif self.returncode is None:
                SIM.at(0.005, arrive)
        self.notices.append(list(frames))
        SIM.at(SIM.delay(), arrive)

    def reap(self, pid, code):
        """Keeper.reap, for one worker."""
        if self.returncode is None and pid == self.broker.pid:
            self.replace_broker(code)
        elif self.returncode is None:
            try:
                self.bury(pid, code, *self.workers.pop(pid))
            except minscoop.PoolError:
                self.end()

    def end(self):
        """The keeper is gone, and with it all that it started. The gateway of a host notices."""
        if self.returncode is not None:
            return
        self.returncode = 0
        SIM.log("HOST ENDS", self.number)
        for process in [self.broker, *(SIM.nodes[name] for name, _ in self.workers.values())]:
            process.end()
        SIM.wake(self.queue)
        for host in [] if self.config["below"] else list(SIM.hosts.values()):
            SIM.at(SIM.delay(), host.end)
        if self.config["below"]:
            SIM.at(SIM.delay() + SIM.rng.choice((0.01, 1)), SIM.hosts[b"0"].miss, self)

    def miss(self, host):
        """Gateway.run and Keeper.reap, when a host is gone."""
        self.gateways.pop(host.number.decode())
        self.notify(b"HOST", host.facts("gone"))
        self.notify(b"DIED", host.number, b"", b"0", minscoop.ALL, b"0", b"0", b"")
        self.give_up_if_alone("no host is left")

    def poll(self):
        return self.returncode

    def close(self):
        SIM.at(SIM.delay(), self.end)

    def wait(self, timeout=None):
        while self.returncode is None:
            if not SIM.wait(self.queue, timeout=timeout):
                raise minscoop.subprocess.TimeoutExpired("keeper", timeout)


class Root(minscoop.Root):
    """The root, with a virtual keeper."""

    def start_keeper(self, options):
        for number, _, size in options["hosts"]:
            SIM.at(SIM.rng.choice((0.001, 0.01, 0.3)), self.launch, number.encode(), size)
        self.keeper = VirtualHost(b"0", options["size"])

    @staticmethod
    def launch(number, size):
        """Add a host, unless the pool has ended meanwhile: a gateway ends with its keeper."""
        if SIM.hosts[b"0"].returncode is None:
            VirtualHost(number, size)


# ---------------------------------------------------------------------------------------------------
# Simulation: what the seed decides, and what is checked


class Simulation(Scheduler):
    """One run."""

    def __init__(self, seed, trace=60, **options):
        super().__init__(random.Random(seed))
        pick = self.rng.choice
        sizes = [pick((1, 2, 2, 3, 4)) for _ in range(pick((1, 1, 2, 3)))]
        if len(sizes) > 1 and pick((False, False, True)):
            sizes[0] = 0  # no worker beside the root
        self.options = dict(
            sizes=sizes, retries=pick((0, 1, 2, 3, 3)),
            switching=pick((0.01, 0.05, 0.2, 0.5)),         # chance that another thread goes on at a scheduling point
            lines=pick((0.0,) * 9 + (0.02,)),               # the same for lines of the module, which takes longer
            latency=pick((5e-5, 3e-4, 3e-3, 2e-2)),         # s that a message takes, about
            coups=pick((0, 0, 1, 3)),                       # brokers that are killed
            strikes=pick((0, 0, 1, 2, 5)),                  # processes that are killed or frozen
            fall=len(sizes) > 1 and pick((False, True)),    # a host among them, or the way to it
            perilous=pick((False, False, True)),            # there are tasks that kill
            doomed=pick((False,) * 50 + (True,)),           # no worker ever starts
            limits=dict(MAX_INLINE=pick((2, 32)), MAX_PARKED=pick((2, 200)), SPARE_THREADS=pick((0, 1, 4)),
                        FLUSH=pick((0.0, 0.01)), READ_AHEAD=pick((1, 4)), MAX_BODY=pick((300, 4 << 20)),
                        SPIN=1e-3 * (seed % 10 == 9)),      # it takes longer, too
            heavy=5 * (seed % 10 == 7),                     # messages for which a link needs long
            max_tasks_per_child=(1, 3, 10)[seed // 10 % 3] if seed % 10 == 8 else None,
            deadline=60.0)                                  # s of virtual time
        self.options.update(options)
        vars(self).update(self.options)
        count = self.strikes + self.fall + self.coups
        self.strikes = sorted((int(50 * 600 ** self.random()) for _ in range(count)), reverse=True)  # scheduling points
        self.harmless = not (count or self.perilous or self.doomed)  # then each task runs exactly once
        self.seed, self.trace, self.digest = seed, collections.deque(maxlen=trace), 0
        self.processes, self.hosts, self.nodes, self.links, self.barred = [], {}, {}, {}, {}
        self.batches, self.batch_of, self.runs, self.wanted = [], {}, collections.Counter(), []
        self.bodies, self.unwanted, self.joining, self.idle_since = {}, set(), 0, None
        self.coup = 0.0                 # when a broker died last, or a connection broke
        self.weights, self.busy = random.Random(f"heavy {seed}"), 0.0  # busy: until when some link has a heavy message
        self.config = {"total": sum(self.sizes), "retries": self.retries,
                       "max_tasks_per_child": self.max_tasks_per_child, "address": "", "profile": None,
                       "initializer": None, "listen": None, "listens": False, "check": False, "all_hosts": False,
                       "host": "0", "size": self.sizes[0],
                       "hosts": [(str(i), f"host{i}", size) for i, size in enumerate(self.sizes) if i]}

    def log(self, *event):
        """Note an event for the trace, and for the number by which runs are compared."""
        self.trace.append((self.now, event))
        self.digest = zlib.crc32(repr((self.now, event)).encode(), self.digest)

    def delay(self):
        return self.latency * (0.2 + self.rng.expovariate(1))

    def broker_of(self, name):
        return self.hosts[minscoop.host_of(name)].broker

    def post(self, source, target, sender, *messages):
        """Send messages that arrive together. Between two ends, order is kept; a process that has ended gets none.
        Between brokers, some arrive piece by piece."""
        if target is None:
            return
        when, pieces = max(self.now + self.delay(), self.links.get((source, target), 0.0)), 0
        if isinstance(source, BrokerProcess) and isinstance(target, BrokerProcess):
            when = max(when, self.barred.get(source.host.number, 0.0), self.barred.get(target.host.number, 0.0))
            if self.heavy and messages[0][0] != b"HELLO" and self.weights.random() < 0.1:
                self.heavy -= 1
                pieces = self.weights.choice((1, 4, 16))  # the last takes longer than SILENCE
        for content in [[[b"PROBE"]]] * pieces + [messages]:
            message = [True, target, sender, content]
            if isinstance(source, Process):
                source.sent = [earlier for earlier in source.sent if earlier[0]] + [message]
            heapq.heappush(self.timers, (when, next(self.order), self.deliver, (message,)))
            self.links[source, target] = when
            when += minscoop.HEARTBEAT
        if pieces:
            self.busy = max(self.busy, when)

    def deliver(self, message):
        """Messages arrive."""
        there, target, sender, messages = message
        message[0] = False
        for frames in messages if there and target.ended is None else ():
            if frames[0] == b"TASK":
                self.idle_since = None
            self.log(sender, target.name, *(bytes(frame[:60]) for frame in frames[:4 if frames[0] == b"RESULT" else 6]))
            target.arrive(sender, frames)

    def strike(self):
        """Kill a broker or worker, freeze a worker, end a host, or break its link, for a moment or for longer."""
        others = [host for host in self.hosts.values() if host.config["below"] and host.returncode is None]
        workers = [process for process in self.nodes.values()
                   if process.marker and process.ended is None and process.node]
        if self.coups and self.random() < 0.7:
            self.coups -= 1
            self.rng.choice(list(self.hosts.values())).broker.exit(-9)
        elif self.fall and others and self.random() < 0.7:
            host, fate = self.rng.choice(others), self.random()
            if fate < 0.4:
                host.end()
            elif fate < 0.7 and host.broker.connection.server:
                host.broker.connection.tear()
            else:  # the network is gone for some time, perhaps for so long that the host is given up
                self.barred[host.number] = max(self.now + self.rng.choice((0.1, 1, 5)), self.barred.get(host.number, 0))
                self.log("BARRED", host.number)
        elif workers:
            here = self.current.process
            victim = here if here in workers and self.random() < 0.5 else self.rng.choice(workers)
            if self.random() < 0.8:
                victim.exit(-9)
            else:
                victim.frozen = self.now + self.rng.choice((0.01, 0.1, 1))

    # -- tasks: who made them, who wants them

    def new_batch(self):
        """Register tasks that are made together; returns their number."""
        me, maker = self.current, None
        if me and me.tasks:
            maker = me.tasks[-1] if me.process.node.holder.ident == me.ident else LOOSE
        self.batches.append([me and me.process, None, maker])
        return len(self.batches) - 1

    def begin(self, key, batch):
        """A task begins in the running thread."""
        self.step()
        process, (owner, ended, _) = self.current.process, self.batches[batch]
        self.log("BEGIN", process.name, key)
        self.runs[key] += 1
        self.batch_of[key] = batch
        self.current.tasks.append(key)
        if self.runs[key] > 1 and self.retries == 0:
            self.fail(f"task {key} runs again, with retries=0")
        if self.runs[key] > 1 and self.harmless:
            self.fail(f"task {key} runs again, and nobody died")
        if (key, batch) in self.unwanted:
            self.fail(f"task {key} was cancelled, and begins")
        ended = owner.known if ended is None else ended
        if ended is not None and self.now > max(ended, process.frozen) + 0.3 + 40 * self.latency + self.unsettled():
            self.fail(f"task {key} begins at {self.now:.3f} s, and nobody wants it since {ended:.3f} s")
        return process

    def die(self, key, code):
        """A task ends its process. The marker page must name the task at the bottom of the stack, or its ancestor."""
        process, ancestor = self.current.process, self.current.tasks[0]
        process.exit(code)
        to_blame = self.bodies[process.pid]
        while ancestor not in (None, LOOSE) and ancestor not in to_blame:
            ancestor = self.batches[self.batch_of[ancestor]][2]
        if to_blame and ancestor is None and process.node.holder.ident == self.current.ident:
            self.fail(f"task {key} killed {process.name.decode()}, and {to_blame} is blamed")
        raise Killed

    # -- checks

    def unsettled(self):
        """Until when links are slow, or brokers take over."""
        return max([self.busy, *self.barred.values(), self.coup and self.coup + 2])

    def check_loss(self, text, keys):
        """One of these tasks was given up: `retries` workers must have died, each while it was running that task."""
        if self.retries == 0:  # then also what may have begun is lost
            return
        pids = [int(pid) for pid in re.findall(r"pid (\d+)", text)]
        if not len(set(pids)) == len(pids) == self.retries or not any(
                {key, None}.intersection(*map(self.bodies.get, pids)) or key is None for key in keys):
            self.fail(f"{keys} are given up, and not to blame: {text}")

    def check_node(self, node, renewed=False):
        """Nothing is left when a node ends. renewed: but tasks of others, which it has not begun."""
        if any(not job.begun for job in node.sources):  # else its iterator may still wait for the garbage collector
            self.fail(f"{node.name.decode()} ends, and has not taken all that was to be computed")
        left = [name for name in ("guests", "away", "parked", "in_hand", "resumable", "waiting")[renewed:]
                if getattr(node, name, None)]
        left += ["queue"] * any(not (unit.stale or renewed and isinstance(unit.job, minscoop.Guest))
                                for unit in [*node.queue, *node.pinned])
        if left:
            self.fail(f"{node.name.decode()} ends, and has {[(name, getattr(node, name)) for name in left]}")

    def check_broker(self, broker):
        """Nothing is under way when the top broker says STOP."""
        if broker.placed or any(link.held for link in broker.links.values()):
            self.fail(f"the broker says STOP, and has {broker.placed}")

    def check_hunger(self):
        """No node may have work lying in its queue for long while another node is hungry."""
        nodes = [process.node for process in self.nodes.values() if process.node and process.ended is None]
        hungry = [node for node in nodes if node.executes and node.asked and node.attended and not node.queue]
        laden = [node for node in nodes if any(not unit.stale for unit in node.queue)]
        if not hungry or not laden or any(process.frozen > self.now for process in self.processes):
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = self.now
        elif self.now > self.unsettled() + 1 and self.now > self.idle_since + 0.7 + 20 * self.latency:
            self.fail(f"{hungry[0].name} is hungry since {self.idle_since:.3f} s, and {laden[0].name} has work:\n"
                      + "\n".join(self.report()))
        if self.threads:
            self.at(0.05, self.check_hunger)

    def check_values(self, values, answers):
        """The program has ended: it computed what it should, and ran all that it should."""
        for value, answer in zip(values, answers):
            if value != answer and (value is not None or self.harmless):
                self.fail(f"the answer is {value}, and should be {answer}")
        for key in self.wanted if self.harmless else ():
            if self.runs[key] != 1:
                self.fail(f"task {key} ran {self.runs[key]} times")


# ---------------------------------------------------------------------------------------------------
# Simulation: programs drawn at random, whose answer is known
#
# A task's key decides all that it does: how long it computes, its fate, its children and how it gets at their
# results. Without children, its value, or what stands for its exception, is that of its key.

PLAIN, RAISES, DEADLY, FRAGILE, UNSENDABLE = range(5)  # fates: a key modulo 8
ONE, MODULUS, LOOSE = (1, 0), 1_000_003, -1


class Oops(Exception):
    """What tasks raise."""


class Indigestible:
    """An argument that cannot be unpickled."""

    def __reduce__(self):
        return operator.truediv, (1, 0)


class Serial:
    """The pool that computes the right answers: it runs each call immediately, in the caller."""

    def __init__(self):
        self.consts = {}

    def submit(self, fn, args, kwargs):
        future = concurrent.futures.Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def map(self, fn, iterables, kwargs, ordered=True, op=None, buffersize=None):
        results = map(fn, *iterables)
        return iter([functools.reduce(op, results)]) if op else results

    def set_const(self, constants):
        self.consts.update(constants)

    def get_const(self, name, timeout):
        return self.consts[name]


def here():
    """The node of the process in which this runs."""
    return SIM.current.process.node if SIM.current else SIM.serial


def fold(*values):
    """Affine functions composed: associative, not commutative. None stands for what was rightly lost."""
    a, b = ONE
    for value in values:
        if value is None:
            return None
        a, b = a * value[0] % MODULUS, (b * value[0] + value[1]) % MODULUS
    return a, b


def value_of(key):
    return key % 1009 + 2, key % 997


def fate_of(key, depth):
    return PLAIN if depth or key is None or key % 8 == FRAGILE and SIM.retries == 1 else key % 8


def task(key, depth, batch, *_):
    """What every task runs."""
    if SIM.current is None:
        return body(key, depth)
    SIM.begin(key, batch)
    try:
        return body(key, depth)
    finally:
        SIM.current.tasks.pop()


def body(key, depth):
    """Compute for some time; meet the fate, or have children."""
    r, fate = random.Random(key), fate_of(key, depth)
    seconds, code = r.choice((0, 0, 0, 0, 2e-4, 1e-3, 2e-3, 2e-2, 0.2 * r.random())), r.choice((-9, -11, 1, 0))
    if SIM.current and seconds:
        sleep(seconds)
    if fate == RAISES:
        raise Oops(key)
    if fate == UNSENDABLE:
        return _thread.allocate_lock()
    if SIM.current and (fate == DEADLY or fate == FRAGILE and SIM.runs[key] == 1):
        SIM.die(key, code)
    if fate == DEADLY:
        raise minscoop.WorkerLost
    return fold(value_of(key), work(r, depth - 1)) if depth else value_of(key)


def work(r, depth):
    """Have children in one of many ways; returns what they come to."""
    way, count = r.choice(PROGRAMS), r.choice((1, 2, 2, 3, 4)) * (8 if not depth and r.random() < 0.15 else 1)
    fates = (PLAIN,) * 30 + (RAISES, UNSENDABLE) + (DEADLY, FRAGILE) * SIM.perilous
    keys = [r.randrange(1 << 40) * 8 + r.choice(fates) for _ in range(count)]
    return fold(*way(here(), r, keys, depth, SIM.new_batch()))


def judge(error, keys, depth):
    """The value that stands for an exception, if it is right that there is one."""
    fates = {fate_of(key, depth) for key in keys}
    if isinstance(error, Oops) and error.args[0] in keys:
        return value_of(error.args[0])
    if isinstance(error, minscoop.CannotSend) and UNSENDABLE in fates:
        return value_of(keys[0])
    if isinstance(error, minscoop.WorkerLost):
        if SIM.current:
            SIM.check_loss(str(error), keys)
        return value_of(keys[0]) if fates == {DEADLY} else None
    if isinstance(error, minscoop.PoolError) and not any(host.returncode is None and (
            host.workers and not SIM.doomed) for host in SIM.hosts.values()):
        return None
    raise error


def get(future, key, depth, timeout=None):
    """The value of a call."""
    try:
        value = future.result(timeout)
    except (Oops, minscoop.MinscoopError) as error:
        value = judge(error, [key], depth)
    return value_of(key) if fate_of(key, depth) == UNSENDABLE else value


def read(results, keys, depth, ordered):
    """The values of a map, up to the first exception."""
    values = []
    try:
        values.extend(results)
    except (Oops, minscoop.MinscoopError) as error:
        values.append(judge(error, keys[len(values):][:1] if ordered else keys, depth))
    return values


def submit_all(node, keys, depth, batch, *more):
    """Submit calls that must be run, whatever becomes of their futures."""
    if SIM.current:
        SIM.wanted += keys
    return [node.submit(task, (key, depth, batch, *more), {}) for key in keys]


def by_result(node, r, keys, depth, batch):
    """Ask for the results, in some order."""
    pairs = list(zip(submit_all(node, keys, depth, batch), keys))
    values = {key: get(future, key, depth) for future, key in r.sample(pairs, len(pairs))}
    return [values[key] for key in keys]


def by_as_completed(node, r, keys, depth, batch):
    futures = dict(zip(submit_all(node, keys, depth, batch), keys))
    values = {futures[future]: get(future, futures[future], depth)
              for future in concurrent.futures.as_completed(futures)}
    return [values[key] for key in keys]


def by_wait(node, r, keys, depth, batch):
    futures = dict(zip(submit_all(node, keys, depth, batch), keys))
    pending, values, timeout = set(futures), {}, r.choice((None, 0.01))
    while pending:
        done, pending = concurrent.futures.wait(pending, timeout, r.choice(("FIRST_COMPLETED", "ALL_COMPLETED")))
        values.update((futures[future], get(future, futures[future], depth)) for future in done)
    return [values[key] for key in keys]


def by_timeout(node, r, keys, depth, batch):
    """Ask impatiently."""
    values = {}
    for future, key in zip(submit_all(node, keys, depth, batch), keys):
        while key not in values:
            try:
                values[key] = get(future, key, depth, r.choice((0.0, 1e-3, 0.02, 1.0)))
            except concurrent.futures.TimeoutError:
                sleep(1e-3)
    return [values[key] for key in keys]


def by_callback(node, r, keys, depth, batch):
    """Submit the others when the first is done."""
    (first, *rest), futures = keys, []

    def go_on(_):
        with contextlib.suppress(minscoop.PoolError):
            SIM.batches[batch][2] = LOOSE
            futures.extend(submit_all(node, rest, depth, batch))
    future, = submit_all(node, [first], depth, batch)
    future.add_done_callback(go_on)
    values = [get(future, first, depth)]
    while len(futures) < len(rest) and not getattr(node, "broken", None):
        sleep(1e-3)
    return values + [get(future, key, depth) for future, key in zip(futures, rest)]


def by_thread(node, r, keys, depth, batch):
    """Collect the results in a thread, and join it; mostly when they are done, lest the pool run out of threads."""
    futures, values = submit_all(node, keys, depth, batch), []

    def collect():
        values.extend(get(future, key, depth) for future, key in zip(futures, keys))
    if SIM.current is None:
        collect()
    else:
        thread, alone = Thread(collect), SIM.harmless and not SIM.joining
        thread.start()
        SIM.joining += 1
        if not alone:
            concurrent.futures.wait(futures)
        thread.join()
        SIM.joining -= 1
    return values


def by_cancel(node, r, keys, depth, batch):
    """Submit more than is wanted."""
    others = [key * 8 for key in keys]
    futures = [node.submit(task, (key, depth, batch), {}) for key in others]
    values = by_result(node, r, keys, depth, batch)
    SIM.unwanted.update((key, batch) for key, future in zip(others, futures) if future.cancel())
    return values


def by_neglect(node, r, keys, depth, batch):
    """Wait for one call; the others must run all the same, and so must a map that nobody reads."""
    submit_all(node, [key * 8 for key in keys], depth, batch)
    if SIM.current:
        SIM.wanted += [key * 64 for key in keys]
    node.map(task, ([key * 64 for key in keys], itertools.repeat(0), itertools.repeat(batch)), {})
    return by_result(node, r, keys[-1:], depth, batch)


def by_bad_argument(node, r, keys, depth, batch):
    """One argument cannot be pickled, or unpickled: whether that matters depends on where the call runs."""
    bad = submit_all(node, [keys[0] * 64], 0, batch, r.choice((Indigestible(), _thread.allocate_lock())))
    values = by_result(node, r, keys, depth, batch)
    with contextlib.suppress(minscoop.CannotSend):
        get(bad[0], None, 0)
    if SIM.current:
        SIM.wanted.remove(keys[0] * 64)
    return values


def look_up(name):
    return here().get_const(name, None)


def by_const(node, r, keys, depth, batch):
    """Set a constant, unless an earlier run of this task has, and have it read elsewhere."""
    with contextlib.suppress(TypeError):
        node.set_const({str(keys[0]): value_of(keys[0])})
    future = node.submit(look_up, (str(keys[0]),), {})
    return by_result(node, r, keys[1:], depth, batch) + [get(future, None, 0)]


def by_map(node, r, keys, depth, batch, **options):
    """A map, which ends with the first exception."""
    keys = [key - key % 8 if options or key % 8 == UNSENDABLE else key for key in keys]
    columns = (keys, [depth] * len(keys), [batch] * len(keys))
    if r.random() < 0.3:
        columns = [iter(column) for column in columns]
    results = node.map(task, columns, {}, buffersize=r.choice((None, None, 1, 3)), **options)
    values = read(results, keys, depth, not options)
    if not options and len(values) < len(keys):
        SIM.batches[batch][1] = SIM.now
    elif SIM.current and not {RAISES, DEADLY}.intersection(fate_of(key, depth) for key in keys):
        SIM.wanted += keys
    return values


def by_unordered_map(node, r, keys, depth, batch):
    values = by_map(node, r, keys, depth, batch, ordered=False)
    return [None if None in values else tuple(map(sum, zip(*values)))]


def by_reduction(node, r, keys, depth, batch):
    return by_map(node, r, keys, depth, batch, op=fold)


def by_endless_map(node, r, keys, depth, batch):
    """Take some results of a map without end; drop it, or leave that to the garbage collector."""
    source = (key * 16 + 8 * i for i in itertools.count(1) for key in keys)
    results = node.map(task, (source, itertools.repeat(0), itertools.repeat(batch)), {})
    values = read(itertools.islice(results, r.choice((1, 5, 20))), [None], 0, False)
    if SIM.current and r.random() < 0.5:
        cycle = [results]
        cycle.append(cycle)
        SIM.current.process.garbage = True
    else:
        SIM.batches[batch][1] = SIM.now
    return values


def by_two_maps(node, r, keys, depth, batch):
    """Read a map, and drop another amid it, whose parts lie in the same queues."""
    other = SIM.new_batch()
    source = (key * 16 + 8 * i for i in itertools.count(1) for key in keys)
    dropped = node.map(task, (source, itertools.repeat(0), itertools.repeat(other)), {})
    read(itertools.islice(dropped, r.choice((1, 1, 5))), [None], 0, False)

    def sources():  # when the second key is pulled, nobody wants the other map any more
        nonlocal dropped
        yield keys[0]
        dropped = None
        SIM.batches[other][1] = SIM.now
        yield from keys[1:]
    keys = [key - key % 8 for key in keys]
    columns = sources(), itertools.repeat(depth), itertools.repeat(batch)
    return read(node.map(task, columns, {}, buffersize=2), keys, depth, True)


PROGRAMS = (by_result, by_as_completed, by_wait, by_timeout, by_callback, by_thread, by_cancel, by_neglect,
            by_bad_argument, by_const, by_map, by_map, by_unordered_map, by_reduction, by_endless_map, by_two_maps)


def program(sim, keys, answers):
    """What the root runs: calls of work(), in turn or in threads at the same time; then it ends the pool."""
    process, values = sim.nodes[minscoop.ROOT], [None] * len(keys)
    root = process.node = Root(sim.config)

    def run(i):
        try:
            values[i] = work(random.Random(keys[i]), 1 + keys[i] % 3)
        except minscoop.PoolError as error:
            judge(error, [], 0)
    threads = [Thread(run, (i,)) for i in range(1, len(keys))] if sim.random() < 0.5 else []
    for thread in threads:
        thread.start()
    for i in range(1 if threads else len(keys)):
        run(i)
    for thread in threads:
        thread.join()
    last = []
    if sim.random() < 0.2:  # leave while something is under way
        with contextlib.suppress(minscoop.PoolError):
            last = submit_all(root, [key * 8 for key in keys], 1, sim.new_batch())
            sim.harmless = False
            root.drop(shipped=True) if sim.random() < 0.5 else root.abort()
    root.finish()
    sim.check_node(root)
    sim.check_values(values, answers)
    if not all(future.done() for future in last):
        sim.fail("a future is not done at the end")
    process.ended = sim.now


# ---------------------------------------------------------------------------------------------------
# Simulation: how it is run


def number_of(thing):
    """A hash that is the same in each run."""
    return thing.__dict__.setdefault("_number", next(SIM.numbers))


def settle_once(future, *args, later=False, settle=minscoop.Future._settle):
    if future.done():
        SIM.fail(f"{future!r} is settled twice")
    settle(future, *args, later=later)


def decoded(frame, make=minscoop.Recipe.decoded.__wrapped__):
    """Recipe.decoded, with a cache for each process."""
    recipes = SIM.current.process.recipes
    return recipes.get(frame) or recipes.setdefault(frame, make(frame))


def complain(text, *args):
    """logger.exception"""
    error = sys.exc_info()[1]
    if not isinstance(error, Killed):
        SIM.fail(text % args, error)


def show_end(kind, error, tb):
    """traceback.print_exception, with which a worker ends that is broken."""
    if not isinstance(error, Killed):
        SIM.fail("a worker ended by an unexpected exception", error)


@contextlib.contextmanager
def virtual_world():
    """The module, and the standard library's futures, on virtual ground."""
    kept, nothing = [], lambda *_, **__: None
    threading = types.SimpleNamespace(
        Thread=Thread, Lock=Lock, RLock=RLock, Condition=RLock, Event=Event, get_ident=lambda: SIM.current.ident,
        TIMEOUT_MAX=1e9,
        current_thread=lambda: SIM.current, main_thread=lambda: SIM.current.process.main)
    clock = types.SimpleNamespace(monotonic=lambda: SIM.now, perf_counter=lambda: SIM.now, sleep=sleep)
    logger = types.SimpleNamespace(debug=nothing, info=nothing, warning=nothing, exception=complain)
    changes = [
        (minscoop, dict(
            threading=threading, time=clock, logger=logger, connect=Dealer, receive=receive, readable=readable,
            transmit=transmit, bundled=list, unbundled=lambda frames: [frames],
            readable_now=Dealer.is_readable,
            zmq=types.SimpleNamespace(Frame=nothing, Context=lambda: types.SimpleNamespace(term=nothing)),
            os=types.SimpleNamespace(pipe=lambda: (Event(),) * 2, read=read_pipe, write=write_pipe, close=nothing,
                                     _exit=leave, set_blocking=nothing, path=os.path, unlink=nothing,
                                     sched_yield=lambda: sleep(2e-4),
                                     getpid=lambda: SIM.current.process.pid),
            birth=OwnLock(), import_zmq=nothing, keep_spare=nothing,
            traceback=types.SimpleNamespace(**{**vars(traceback), "print_exception": show_end}),
            make_socket_directory=lambda: "/nowhere", make_memory_directory=lambda: None,
            id=lambda thing: kept.append(thing) or id(thing),  # so that no id is given twice
            PATROL=1000.0,  # what is found by patrols only, is found too late
            HEARTBEAT=0.3, SILENCE=1.2, CENSUS_PATIENCE=0.5, PATIENCE=0.1, **SIM.limits)),
        (minscoop.Future, dict(__hash__=number_of, _settle=settle_once)), (minscoop.Job, dict(__hash__=number_of)),
        (minscoop.Root, {name: getattr(minscoop.Node, name) for name in ("serve", "give", "send_all")}),  # no Ctrl-C
        (minscoop.Recipe, dict(decoded=staticmethod(decoded))), (minscoop.CALLS, dict(pace=None, grain=1)),
        (_base, dict(threading=threading, time=clock, LOGGER=logger, id=hash)),
        (sys, dict(unraisablehook=nothing))]
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()
    with contextlib.ExitStack() as stack:
        for target, names in changes:
            stack.enter_context(mock.patch.multiple(target, create=True, **names))
        try:
            yield
        finally:
            SIM.current = SIM.main
            gc.collect()
    gc.unfreeze()
    if collecting:
        gc.enable()


def simulate(seed, **options):
    """Run a seed; returns the Simulation. Raises Violation, with the end of the trace, if it did what it must not.

    options: those of Simulation, which the seed decides otherwise."""
    global SIM
    SIM = sim = Simulation(seed, **options)
    sim.serial, keys = Serial(), [sim.rng.randrange(1 << 40) for _ in range(sim.rng.choice((1, 2, 2, 3)))]
    answers = [work(random.Random(key), 1 + key % 3) for key in keys]
    with virtual_world():
        process = sim.nodes[minscoop.ROOT] = Process(minscoop.ROOT)
        process.start(functools.partial(program, sim, keys, answers))
        sim.main = process.main
        sim.at(0, sim.check_hunger)
        sim.pass_turn(sim.choose())
        sim.over.acquire()
    SIM = None
    if sim.failure:
        text = "\n".join(f"{now:.6f} " + " ".join(field.decode("latin-1") if isinstance(field, bytes) else str(field)
                                                  for field in event) for now, event in sim.trace)
        raise Violation(f"seed {seed}: {sim.failure}\n{sim.options}\n" + "".join(
            c if c.isprintable() or c == "\n" else "." for c in text))
    return sim


# Faults, to be put into the module: the function, what stands there, what to put in its place.
MUTATIONS = {
    "what was lost is not run again": [("Node.take_back", "job.requeue(span)", "pass")],
    "a death is forgotten": [("Broker.bury", "in tasks.items()", "in ()")],
    "bystanders are blamed": [("Broker.bury", '(b"0", b"0", b"%d" % (', '(b"0", b"99", b"%d" % (BLAME | ')],
    "one death more than retries": [("Node.take_back", ">= self.retries", "> self.retries")],
    "answers are sent and counted twice": [("Guest.send", "self.node.send_all(", "for _ in 0, 1: self.node.send_all("),
                                           ("Ranges.close", "return False", "self.cut(lo, hi)\n    return True")],
    "a SPLIT is not recorded": [("Node.on_SPLIT", "self.away[new] = ", "")],
    "IDLE is never said": [("Worker.wishes", 'said.append((b"IDLE", b"%d" % self.received))', "pass")],
    "wake-ups are lost": [("Node.wake", "self.parked.pop(what, ())", "()")],
    "who sleeps on the socket is not roused": [("Node.rouse", "if deputy or self.attended:", "if deputy:")],
    "the deputy is not woken when the socket closes": [("Node.close", "self.rouse(self.watching)", "pass")],
    "a sleeper does not look once more": [("Node.listen", "if not ready():", "if True:")],
    "who parks does not look once more": [("Worker.park", "if ready() and", "if False and")],
    "a begun task is given away under its own id": [("Guest.untouched", "return ", "return True or ")],
    "hunger is forgotten by who is dry": [
        ("Node.give", "if span is None:", "if span is None and not setattr(self, 'wanted', 0):")],
    "demand is counted down twice": [("Node.give", "self.wanted -= asked", "self.wanted -= 2 * asked")],
    "what nobody asked for counts as an answer": [("Node.give", "self.wanted -= asked", "self.wanted -= 1")],
    "STOP comes too early": [("Broker.stop_if_quiet", "(self.below or self.quiet())", "True")],
    "who holds a task is never forgotten": [("Broker.on_RESULT", "self.lift(task_id)", "pass")],
    "who holds a task is not remembered": [("Broker.place", "self.placed[task_id] = link.name", "return")],
    "a late HELLO revives the dead": [("Broker.introduced", "if sender in self.dead:", "if False:")],
    "the items behind a long one are dropped": [("Slice.shorten", "self.job.requeue(", "bool(")],
    "the mark of a task is not renewed": [("Worker.park", "self.note(me.mark)", "pass")],
    "nothing is sent again after a census": [("Node.on_TOLD", "lost=shipment.doubt", "lost=()")],
    "nothing is doubted in a census": [("Node.on_WHO", "shipment.doubt = Ranges(shipment.open)", "pass")],
    "who takes over waits for nobody": [("Broker.hear_out", "or self.silent", "")],
    "STOP comes amid a census": [("Broker.quiet", "self.round is None and not self.silent and", "")],
    "what may have begun runs again, with retries=0": [("Node.take_back", "items if self.retries else begun", "items")],
    "what is stale is run when its turn comes": [("Worker.take", "trim(queue)  # what now", "pass  # what now")],
    "who leaves is not waited for": [("Broker.on_DIED", "int(flags) & PARTED or", "False or")],
    "who leaves takes results along": [("Worker.hand_back", "guest.send_outcomes(aside=False)", "pass")],
    "who leaves forgets its own": [("Worker.may_leave", "self.away or", "")],
    "a piece of a message is no sign of life": [("Broker.handle", "if link:", "if link and name != b'PROBE':")],
}
RARE = {  # seeds, tried first, that show faults which few seeds show; if one no longer does, look for others
    "what is stale is run when its turn comes": [720, 724, 2687, 4328], "a late HELLO revives the dead": [327],
    "who parks does not look once more": [247], "the mark of a task is not renewed": [86],
    "a piece of a message is no sign of life": [157, 1477], "what nobody asked for counts as an answer": [62, 78],
    "who leaves takes results along": [88], "hunger is forgotten by who is dry": [50],
    "STOP comes amid a census": [2511]}


@contextlib.contextmanager
def broken(changes):
    """The module with these replacements in some of its functions."""
    with contextlib.ExitStack() as stack:
        for path, old, new in changes:
            owner, name = getattr(minscoop, path.partition(".")[0]), path.partition(".")[2]
            source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
            assert source.count(old) == 1, f"{path} has changed: {old!r} is there {source.count(old)} times"
            names = {}
            exec(compile(source.replace(old, new), minscoop.__file__, "exec"), minscoop.__dict__, names)
            stack.enter_context(mock.patch.object(owner, name, names[name]))
        yield


def violation_of(seed, trace=30):
    """The text of the Violation that a seed leads to, or None."""
    try:
        simulate(seed, trace=trace)
    except Violation as violation:
        return str(violation)


def noticing(fault, seeds):
    """(fault, the first of the seeds that shows it, or None)."""
    with broken(MUTATIONS[fault]):
        return fault, next((seed for seed in (*RARE.get(fault, ()), *range(seeds)) if violation_of(seed)), None)


def stay_on_a_core():
    """Pin each process of a Pool to one core: the threads of a simulation take turns, which costs more across cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, [cores[multiprocessing.current_process()._identity[0] % len(cores)]])


def simulate_from_to(first, last=None):
    """The command ``simulate``: the seeds from first to last - 1, on all cores; a single seed with its full trace."""
    if last is None:
        sys.exit(violation_of(int(first), trace=None))
    with multiprocessing.Pool(initializer=stay_on_a_core) as pool:
        bad = list(filter(None, pool.imap_unordered(violation_of, range(int(first), int(last)))))
    print(*bad[:3], f"{int(last) - int(first)} seeds, {len(bad)} failed", sep="\n")
    sys.exit(len(bad) > 0)


def break_and_simulate(seeds, first=0, step=1):
    """The command ``break``: whether the simulation notices each fault, or each step-th, within so many seeds."""
    with multiprocessing.Pool(initializer=stay_on_a_core) as pool:
        faults = list(MUTATIONS)[int(first)::int(step)]
        found = list(pool.imap_unordered(functools.partial(noticing, seeds=int(seeds)), faults))
    for fault, seed in found:
        print(f"{fault}: {'not noticed' if seed is None else f'seed {seed}'}")
    sys.exit(any(seed is None for _, seed in found))


@linux_only
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_every_seed_ends_well_when_anybody_may_die_at_any_time(first):
    """Pools of one to three hosts, of which brokers, workers, hosts and links are lost."""
    done = python(__file__, "simulate", first, first + 250)
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr


@linux_only
@pytest.mark.parametrize("first", range(4))
def test_the_simulation_notices_when_the_module_is_broken_on_purpose(first):
    """Each of these faults is seen within some hundred seeds."""
    done = python(__file__, "break", 600, first, 4)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": seed ") == len(list(MUTATIONS)[first::4])


# ---------------------------------------------------------------------------------------------------
# Chaos
#
# Real processes die or stand still at random, and real networks fail, while a program goes round by round through
# nested calls of all kinds; each round has to be right. The seed decides what happens, not when. Some seeds are
# tests; `python test_minscoop.py chaos FROM TO` tries those from FROM to TO - 1.

CHAOS_SEEDS = range(*map(int, os.environ.get("CHAOS_SEEDS", "25 26").split()))
STALL = 15      # s that may pass without an answer after a loss on this machine
NUMBERS = """
import operator, os, sys, time
from minscoop import futures
def count(depth, first):  # the next 4 ** depth numbers
    if depth == 0:
        time.sleep(0.002)
        return [first]
    calls = [depth - 1] * 4, range(first, first + 4 ** depth, 4 ** (depth - 1))
    if depth == 1:
        return futures.map_reduce(count, operator.add, *calls)
    if depth == 2:
        return sum([future.result() for future in [futures.submit(count, *call) for call in zip(*calls)]], [])
    return sum(futures.map(count, *calls), [])
if __name__ == "__main__":  # round by round, until a file is there
    while not os.path.exists(sys.argv[1]):
        assert count(4, 0) == list(range(256))
        assert futures.map_reduce(count, operator.add, [3] * 4, range(0, 256, 64)) == list(range(256))
        print("right", flush=True)
"""
SAID = re.compile(r"(\w+: )?minscoop: the broker .* ended: .*; a new broker takes over|"
                  r"(\w+: )?minscoop: worker .* killed by signal 9 .*|"
                  r"minscoop: host \w+: (lost: .*|will log in again in 12 s|logging in again)|"
                  r"(minscoop: host )?\w+: Timeout, server [\d.]+ not responding\.")


def holds_listener(pid, name):
    """Whether a process listens at a local socket of that name, in whatever network it is."""
    try:
        rows = [line.split() for line in pathlib.Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
        listening = {f"socket:[{row[6]}]" for row in rows if row[3] == "00010000" and row[-1].endswith("/" + name)}
        return not listening.isdisjoint(os.readlink(link) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False  # it is gone


def is_ssh(pid):
    return (command_of(pid) or "").startswith("/usr/bin/ssh ")


class Chaos:
    """A program that counts, and what befalls its processes. When the block ends, all cuts and stops are undone."""

    def __init__(self, start, seed, folder, hosts=()):
        self.chance, self.hosts = random.Random(f"chaos {seed}"), {host.name: host for host in hosts}
        self.out, self.err, self.go = folder / "out", folder / "err", folder / "go"
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.process = start(stdout=out, stderr=err)
        self.ways = [self.kill] * 3 + [self.stop]
        self.later = []                  # (time, what is then undone)
        self.dealt = []                  # what has happened
        self.lost = set()                # names of hosts that do not come back
        self.slowest, self.rounds, self.since = 0.0, 0, time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for _, undo in self.later:
            undo()
        for host in self.hosts.values():
            host.heal()
            kill_all(pid for pid in pids_in(host.namespace) if pid != host.sshd.pid)
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    # -- who is who

    def pids(self, host):
        return pids_in(self.hosts[host].namespace) if host else processes_of(os.environ["MINSCOOP_TEST"])

    def broker(self, host=None):
        """Pid of the broker of a host (None: of this machine); 0 if there is none just now."""
        return next((pid for pid in self.pids(host) if holds_listener(pid, "broker")), 0)

    def workers(self, host=None):
        """Pids of the workers of a host: of the broker's siblings, those that run no ssh."""
        broker = self.broker(host)
        siblings = children_of(stat_of(broker)[1]) if broker and stat_of(broker) else ()
        return [pid for pid in siblings if pid != broker and not any(map(is_ssh, children_of(pid)))]

    # -- what happens

    def kill(self, pid):
        kill_all([pid])

    def stop(self, pid):
        """Stop a process for a moment."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.undo_later(lambda: os.kill(pid, signal.SIGCONT), self.chance.uniform(0.2, 2))

    def undo_later(self, undo, seconds):
        def safely():
            with contextlib.suppress(ProcessLookupError):
                undo()
        self.later.append((time.monotonic() + seconds, safely))

    def there(self):
        """A host that is still there, or None for this one."""
        return self.chance.choice([None, *(name for name in self.hosts if name not in self.lost)])

    def strike_worker(self):
        victims = self.workers(self.there())
        return victims and self.strike(self.chance.choice(victims))

    def strike_broker(self, host=None):
        victim = self.broker(host)
        return victim and self.strike(victim)

    def strike_remote_broker(self):
        host = self.there()
        return host and self.strike_broker(host)

    def strike(self, pid):
        """Kill a process, or stop it."""
        how = self.chance.choice(self.ways)
        how(pid)
        return how.__name__

    def strike_ssh(self):
        """Kill or stop the ssh to a host; if it is killed, that host is lost."""
        host = self.there()
        victim = next((pid for pid in self.pids(None) if is_ssh(pid) and f" {host} " in command_of(pid, 500)), None)
        how = victim and self.strike(victim)
        if how == "kill":
            self.lost.add(host)
        return how

    def cut(self):
        """Pull a host's cable: for some seconds, or for good."""
        host = self.there()
        if host is None:
            return None
        self.hosts[host].cut()
        if self.chance.random() < 0.3:
            self.lost.add(host)
            return "for good"
        self.undo_later(self.hosts[host].heal, self.chance.uniform(0.5, 8))
        return "for a while"

    # -- the course of a test

    def watch(self, condition, stall):
        """Wait until a condition holds; fail if the program ends, or has no new answer for `stall` seconds."""
        while not condition():
            now = time.monotonic()
            for entry in [entry for entry in self.later if entry[0] < now]:
                self.later.remove(entry)
                entry[1]()
            rounds = lines_in(self.out)
            self.slowest = max(self.slowest, now - self.since)
            if rounds > self.rounds:
                self.rounds, self.since = rounds, now
            if self.process.poll() is not None or now - self.since > stall:
                code = self.process.poll()
                abort_all(processes_of(os.environ["MINSCOOP_TEST"]) if code is None else ())
                pytest.fail(f"{'no answer' if code is None else code} after {self.dealt}\n"
                            f"{self.err.read_text()[-9999:]}")
            time.sleep(0.02)

    def deal(self, number, pause, stall, *strikes):
        """Deal so many blows, one in about `pause` seconds; then the program must end, having always been right."""
        self.watch(lambda: self.rounds >= 1, WAIT)
        while len(self.dealt) < number:
            then = time.monotonic() + pause * self.chance.uniform(0.5, 1.5)
            self.watch(lambda: time.monotonic() > then, stall)
            strike = self.chance.choice(strikes)
            how = strike()
            if how:
                self.dealt.append(f"{strike.__name__} {how}")
        rounds = self.rounds
        self.watch(lambda: not self.later and self.rounds > rounds + 1, stall)
        touch(self.go)
        finish(self.process, timeout=stall)
        told = [line for line in self.err.read_text().splitlines() if not SAID.fullmatch(line)]
        print(f"\n{dict(collections.Counter(self.dealt))}, {self.rounds} rounds, the slowest {self.slowest:.1f} s")
        assert self.process.returncode == 0 and not told, (self.dealt, told)


@linux_only
@pytest.mark.parametrize("seed", CHAOS_SEEDS)
def test_every_answer_is_right_when_workers_die_at_random(guard, script, tmp_path, seed):
    """Twenty times one of them is killed or stopped; the program must never be without an answer for STALL seconds."""
    command = MINSCOOP, "-n", 3, "--retries", 1000, script(NUMBERS), tmp_path / "go"
    with Chaos(functools.partial(start, *command), f"workers {seed}", tmp_path) as chaos:
        chaos.deal(20, 0.35, STALL, chaos.strike_worker)


@linux_only
@pytest.mark.parametrize("seed", CHAOS_SEEDS)
def test_every_answer_is_right_when_ten_brokers_die(guard, script, tmp_path, seed):
    """The broker is killed, then the one that has taken over, and so on."""
    command = MINSCOOP, "-n", 3, "--retries", 1000, script(NUMBERS), tmp_path / "go"
    with Chaos(functools.partial(start, *command), f"brokers {seed}", tmp_path) as chaos:
        chaos.ways = [chaos.kill]
        chaos.deal(10, 0.7, STALL, chaos.strike_broker)


@linux_only
@pytest.mark.parametrize("seed", CHAOS_SEEDS)
@pytest.mark.parametrize("transport", ["tcp", "stdio"])
def test_every_answer_is_right_when_anything_dies_on_real_hosts(cluster, tmp_path, transport, seed):
    """Workers, brokers, ssh and networks fail; then nothing may be left on any host, not even on those cut off."""
    (cluster.program / "numbers.py").write_text(NUMBERS)
    command = ("--retries", "1000", "--transport", transport, "--hosts", "alpha:1,beta:1,gamma:1,localhost:1",
               "numbers.py", tmp_path / "go")
    hosts = [cluster.hosts[name] for name in ("alpha", "beta", "gamma")]
    with Chaos(functools.partial(begin, cluster, *command), f"{transport} {seed}", tmp_path, hosts) as chaos:
        assert eventually(lambda: all(map(chaos.workers, chaos.hosts)))
        chaos.deal(8, 1, 2 * STALL, chaos.strike_worker, chaos.strike_broker, chaos.strike_remote_broker,
                   chaos.strike_ssh, chaos.cut)
        for among, seconds in ([host for host in hosts if host.name not in chaos.lost], two_seconds()), (hosts, 20):
            assert not eventually_none(  # where a network was cut for a while, sshd learns of the end by TCP's timers
                lambda: [entry for host in among for entry in host.left() if "sshd" not in entry], seconds)


def test_one_of_a_thousand_fails_when_it_kills_its_process(guard):
    """1000 results and one error, which names signal, task, host and process."""
    def maybe(i):
        return kill() if i == 500 else i
    with minscoop.Executor(2) as executor:
        results = [executor.submit(maybe, i) for i in range(1001)]
        got = [future.exception(WAIT) or future.result() for future in results]
    error = got.pop(500)
    assert got == [i for i in range(1001) if i != 500]
    assert isinstance(error, WorkerLost) and isinstance(error, concurrent.futures.BrokenExecutor)
    assert re.search(fr"maybe.*\(host {NODE}, pid \d+\) killed by signal 9", str(error)), error


def chaos_from_to(first, last):
    """The command `chaos FROM TO`: the tests above with these seeds."""
    os.environ["CHAOS_SEEDS"] = f"{first} {last}"
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-qs", __file__, "-k",
                              "test_every_answer_is_right_when"]))


# ---------------------------------------------------------------------------------------------------
# Soak


def family(depth):
    """A binary tree of tasks; on every ninth level, each also submits one that fails."""
    children = [minscoop.submit(family, depth - 1) for _ in range(2) if depth]
    failed = minscoop.submit(divide, depth).exception() if depth % 9 == 1 else None
    assert failed is None or isinstance(failed, ZeroDivisionError)
    return 1 + sum(child.result() for child in children)


def one_of_each(executor, chance):
    """Some of all that a pool does; returns the number of tasks."""
    n = chance.randrange(10_000, 50_000)
    assert sum(executor.map(abs, range(-n, 0))) == n * (n + 1) // 2
    assert executor.map_reduce(abs, operator.add, iter(range(n))) == n * (n - 1) // 2
    futures = [executor.submit(identity, i) for i in range(n // 10)]
    assert sum(future.result() for future in concurrent.futures.as_completed(futures)) == sum(range(n // 10))
    dropped = [executor.submit(identity, i) for i in range(n // 100)]
    cancelled = sum(future.cancel() for future in reversed(dropped))
    list(itertools.islice(executor.map(identity, itertools.count()), n // 100))
    assert len(executor.submit(bytes, n).result()) == n
    assert executor.submit(family, 9).result() == 1023
    return 2 * n + n // 10 + n // 100 - cancelled + n // 100 + 1023 + 256


def soak(tasks=10_000_000, seconds=3600):
    """The command ``soak``: memory of root, broker and workers, until so many tasks have run, or the time is over."""
    chance, done, start, shown = random.Random(0), 0, time.monotonic(), 0
    with minscoop.Executor(2) as executor:
        keeper, = children_of(os.getpid())
        names = ["root", "broker", *["worker"] * 2]
        print("tasks", "seconds", *names, "(MB resident)", sep="\t")
        while done < int(tasks) and time.monotonic() - start < int(seconds):
            done += one_of_each(executor, chance)
            if done >= shown or done >= int(tasks):
                shown += int(tasks) / 20
                sizes = [int(re.search(r"VmRSS:\s*(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) // 1024
                         for pid in (os.getpid(), *children_of(keeper))]
                print(done, round(time.monotonic() - start), *sizes, sep="\t", flush=True)


ACTIONS = {"simulate": simulate_from_to, "break": break_and_simulate, "fuzz": fuzz_from_to, "soak": soak,
           "chaos": chaos_from_to}

if __name__ == "__main__" and sys.argv[1:]:  # not as __main__, which travels by value
    importlib.import_module("test_minscoop").ACTIONS[sys.argv[1]](*sys.argv[2:])
