"""python examples/benchmark.py [--systems minscoop,Pool,SCOOP] [--only noop,submit] [--rounds 3] [--html FILE]

The same work on minscoop and on every peer that can be imported, with the limits of the machine beside them: a table
of medians, then one of ratios to minscoop and of what it has to reach. Each measurement is a fresh process, and the
systems take turns: absolute times mean little on a shared machine, ratios within one run mean more.
"""
import argparse
import collections
import contextlib
import functools
import heapq
import html
import importlib.util
import itertools
import json
import math
import multiprocessing
import operator
import os
import pathlib
import pickle
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
MARK, START = "MINSCOOP_BENCHMARK", "MINSCOOP_BENCHMARK_START"  # in the environment of a measurement
LIMIT = 60   # s for one measurement. Smaller: slow starters show 'failed'; larger: what hangs costs that much
GRACE = 3    # s for what a measurement leaves, to end by itself before it is killed. Smaller: files may stay behind
ENOUGH = 0.5  # s of work, after which a slow system is not asked for ten times as much
shrink = 1   # sizes are divided by it: --quick


def some(count):
    """A size, smaller with --quick."""
    return max(2, count // shrink)


def timed(call, *args):
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


# -- Tasks
#
# The length of a task is CPU time of its own thread. By wall time a task would get on while somebody else has its core,
# and a system that starts too many processes would look good. A counted loop takes longer while the other core is busy
# (caches, clock rate, hyperthreads), so that the times from which the best schedule is computed would not be true.
# With CPU time the work is the same for all, and what a system adds is seen: waiting for a core, for the interpreter's
# lock, for messages. Other people's load adds to it too; therefore two bare processes do the same work in the same run.


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def nothing(value):
    return value


def who(_):
    time.sleep(0.01)
    return os.uname().nodename, os.getpid()


def begin(seconds):
    """When this began, by the clock that all processes of a machine share; then keep the worker busy for a while."""
    now = time.monotonic()
    time.sleep(seconds)
    return now


def look(constant, seconds):
    """The size of a constant and when it was there; then keep the worker busy, so that each gets one of these."""
    value = constant() if callable(constant) else constant
    return len(value), begin(seconds)


def histogram(seed):
    return [seed % 7] * 20_000


def add_lists(a, b):
    return list(map(operator.add, a, b))


def tree(depth, inside):
    """Two tasks below each. inside: gives the library's `submit` to a task."""
    if depth == 0:
        return 1
    submit = inside()
    return 1 + sum(future.result() for future in [submit(tree, depth - 1, inside) for _ in range(2)])


def nest(count, inside):
    """Tasks created inside a task, each awaited at once."""
    submit = inside()
    for i in range(count):
        submit(nothing, i).result()


# -- Systems


class Later:
    """A future of those libraries that call `result` otherwise."""

    def __init__(self, get, *args):
        self.result = functools.partial(get, *args)


class Library:
    """A system, through an executor as in concurrent.futures; the others redefine what they have instead."""

    module, can = "concurrent.futures", {"pool"}  # what has to be importable; what kinds of workloads it can do

    def __init__(self, workers, hosts=None):
        self.workers, self.hosts = workers, hosts
        self.pool = self.make(workers)

    @staticmethod
    def command(workers):
        """What stands before the script on the command line."""
        return [sys.executable]

    def submit(self, fn, *args):
        return self.pool.submit(fn, *args)

    def chunks(self, items):
        """Few items in chunks of 1, the default; many would take minutes then, and get such chunks as Pool makes."""
        return {"chunksize": len(items) // (self.workers * 4)} if len(items) >= 1000 else {}

    def map(self, fn, items):
        return list(self.pool.map(fn, items, **self.chunks(items)))

    def reduce(self, fn, op, items):
        return functools.reduce(op, self.map(fn, items))

    def echo(self, values):
        return self.map(nothing, values)

    def settle(self):
        """Wait until every worker has taken part, but not for ever."""
        seen, end = set(), time.monotonic() + LIMIT / 4
        while len(seen) < self.workers and time.monotonic() < end:
            seen.update(self.map(who, range(self.workers * 4)))

    def end(self):
        self.pool.shutdown()


class ProcessPoolExecutor(Library):
    can = {"pool", "crowd"}

    def make(self, workers):
        from concurrent.futures import ProcessPoolExecutor
        return ProcessPoolExecutor(workers)


class Pool(Library):
    can = {"pool", "crowd"}

    def make(self, workers):
        return multiprocessing.Pool(workers)

    def submit(self, fn, *args):
        return Later(self.pool.apply_async(fn, args).get)

    def map(self, fn, items):
        return self.pool.map(fn, items)

    def end(self):
        self.pool.terminate()
        self.pool.join()


class Minscoop(Library):
    module, can = "zmq", {"pool", "crowd", "nested", "constants", "hello"}
    launcher = str(HERE.parent / "minscoop.py"), "-n"

    def make(self, workers):
        import minscoop
        return minscoop.Executor(workers)

    @staticmethod
    def inside():
        import minscoop
        return minscoop.submit

    def reduce(self, fn, op, items):
        return self.pool.map_reduce(fn, op, items)

    def share(self, value):
        """Set a constant; what tasks are given to find it."""
        import minscoop
        self.pool.set_const(value=value)
        return functools.partial(minscoop.get_const, "value", LIMIT)


class Tcp(Minscoop):
    """minscoop on the machines of --hosts, which say how many workers there are."""

    can, transport = {"hosts"}, "tcp"

    def make(self, workers):
        import minscoop
        return minscoop.Executor(hosts=self.hosts, all_hosts=True, transport=self.transport)

    def settle(self):
        """A host that is still being reached counts as one worker."""
        import minscoop
        super().settle()
        while self.workers != minscoop.SIZE:
            self.workers = minscoop.SIZE
            super().settle()


class Stdio(Tcp):
    transport = "stdio"


class Scoop(Library):
    """Below its launcher, which starts and ends the pool. The root is one of the workers."""

    module, can = "scoop", Minscoop.can
    launcher = "-m", "scoop", "-q", "-n"

    @classmethod
    def command(cls, workers):
        return [sys.executable, *cls.launcher, str(workers)]

    def make(self, workers):
        from scoop import futures
        return futures

    @staticmethod
    def inside():
        from scoop import futures
        return futures.submit

    def map(self, fn, items):
        return list(self.pool.map(fn, items))

    def reduce(self, fn, op, items):
        return self.pool.mapReduce(fn, op, items)

    def share(self, value):
        from scoop import shared
        shared.setConst(value=value)
        return functools.partial(shared.getConst, "value", timeout=LIMIT)

    def end(self):
        """The launcher does it."""


class Loky(Library):
    module = "loky"

    def make(self, workers):
        import loky
        return loky.ProcessPoolExecutor(workers)


class Mpi(Library):
    module = "mpi4py"

    @staticmethod
    def command(workers):
        return ["mpiexec", "-n", str(workers + 1), sys.executable, "-m", "mpi4py.futures"]

    def make(self, workers):
        import mpi4py.futures
        return mpi4py.futures.MPIPoolExecutor(workers)


class Dask(Library):
    module, can = "distributed", {"pool", "nested", "constants"}

    def make(self, workers):
        import distributed
        self.client = distributed.Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        return self.client.get_executor(pure=False)  # else equal calls run once

    @staticmethod
    def inside():
        import distributed
        distributed.secede()  # else the only thread of the worker would wait for itself
        return functools.partial(distributed.get_client().submit, pure=False)

    def share(self, value):
        future = self.client.scatter(value, broadcast=True)
        self.submit = functools.partial(self.client.submit, pure=False)  # which puts the value in the future's place
        return future

    def end(self):
        self.client.shutdown()


class Ray(Library):
    module, can = "ray", {"pool", "nested", "constants"}

    def make(self, workers):
        import ray
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, _temp_dir=os.environ["TMPDIR"])
        return ray

    @staticmethod
    @functools.lru_cache(maxsize=None)
    def remote(fn):
        import ray
        return ray.remote(fn)

    @staticmethod
    def inside():
        import ray
        return lambda fn, *args: Later(ray.get, Ray.remote(fn).remote(*args))

    def submit(self, fn, *args):
        return self.inside()(fn, *args)

    def map(self, fn, items):
        return self.pool.get([self.remote(fn).remote(item) for item in items])

    def share(self, value):
        return self.pool.put(value)


class Ipyparallel(Library):
    module = "ipyparallel"

    def make(self, workers):
        import ipyparallel
        self.cluster = ipyparallel.Cluster(n=workers, log_level=40)
        return self.cluster.start_and_connect_sync().executor()

    def map(self, fn, items):
        return self.pool.view.map_sync(fn, items, **self.chunks(items))

    def end(self):
        self.cluster.stop_cluster_sync()


# -- Limits: the same without a library


class Limit(Library):
    def settle(self):
        self.map(nothing, [0] * self.workers)

    def end(self):
        """Its processes are daemons."""

    @staticmethod
    def start(fn, *args):
        multiprocessing.Process(target=fn, args=args, daemon=True).start()


class Loop(Limit):
    """A loop in this process. What goes there and back is copied twice: the bandwidth of the memory."""

    can = {"loop"}

    def make(self, workers):
        """Nothing to start."""

    def map(self, fn, items):
        return [fn(item) for item in items]

    def echo(self, values):
        return [bytes(memoryview(bytes(memoryview(value)))) for value in values]


class Processes(Limit):
    """Bare processes. Each is told at once all that the best greedy schedule gives it, and returns no results."""

    can = {"processes"}

    def make(self, workers):
        pipes = [multiprocessing.Pipe() for _ in range(workers)]
        for _, theirs in pipes:
            self.start(self.work, theirs)
        return [ours for ours, _ in pipes]

    @staticmethod
    def work(pipe):
        while True:
            fn, items = pipe.recv()
            pipe.send(sum(fn(item) is None for item in items))

    def map(self, fn, times):
        for pipe, share in zip(self.pool, schedule(times, self.workers)):
            pipe.send((fn, share))
        return [pipe.recv() for pipe in self.pool]


class Pyzmq(Limit):
    """Workers behind a ROUTER that passes messages on, over ipc. A map is sent in slices of 10 000 calls."""

    module, can = "zmq", {"pyzmq"}

    def make(self, workers):
        address = f"ipc://{os.environ['TMPDIR']}/router"
        self.names = [b"%d" % number for number in range(workers)]
        self.start(self.relay, address)
        for name in self.names:
            self.start(self.work, address, name)
        socket = self.socket("DEALER", address, b"root")
        for name in self.names:
            while not socket.poll(50):
                socket.send_multipart([name, b"", b""])  # dropped as long as that worker is not there
            while socket.poll(200):
                socket.recv_multipart()
        return socket

    @staticmethod
    def socket(kind, address, name=b""):
        import zmq
        socket = zmq.Context.instance().socket(getattr(zmq, kind))
        socket.linger = socket.sndhwm = socket.rcvhwm = 0
        if name:
            socket.identity = name
        (socket.connect if name else socket.bind)(address)
        return socket

    @classmethod
    def relay(cls, address):
        socket = cls.socket("ROUTER", address)
        while True:
            sender, receiver, *frames = socket.recv_multipart(copy=False)
            socket.send_multipart([receiver, sender, *frames], copy=False)

    @classmethod
    def work(cls, address, name):
        """Answer calls with their results, and what is no call with itself."""
        socket = cls.socket("DEALER", address, name)
        while True:
            sender, number, call, *frames = socket.recv_multipart(copy=False)
            if len(call):
                fn, items = pickle.loads(call)
                frames = [pickle.dumps([fn(item) for item in items], 5)]
            socket.send_multipart([sender, number, *frames], copy=False)

    def exchange(self, messages):
        """The answers to messages. Each worker is sent two at first, then one for each answer."""
        queue, answers = iter(enumerate(messages)), {}

        def send(worker):
            for number, frames in itertools.islice(queue, 1):
                self.pool.send_multipart([worker, b"%d" % number, *frames], copy=False)

        for worker in self.names * 2:
            send(worker)
        while len(answers) < len(messages):
            worker, number, answer = self.pool.recv_multipart(copy=False)
            answers[int(number.bytes)] = answer
            send(worker)
        return [answers[number] for number in range(len(messages))]

    def submit(self, fn, *args):
        """No call, the hops alone."""
        self.pool.send_multipart([self.names[0], b"", b""])
        return Later(self.pool.recv_multipart)

    def map(self, fn, items):
        slices = [items[i:i + 10_000] for i in range(0, len(items), 10_000)]
        answers = self.exchange([[pickle.dumps((fn, items), 5)] for items in slices])
        return [value for answer in answers for value in pickle.loads(answer)]

    def echo(self, values):
        return [answer.buffer for answer in self.exchange([[b"", value] for value in values])]


SYSTEMS = {"minscoop": Minscoop, "Pool": Pool, "ProcessPoolExecutor": ProcessPoolExecutor, "SCOOP": Scoop,
           "loky": Loky, "mpi4py": Mpi, "dask": Dask, "Ray": Ray, "ipyparallel": Ipyparallel, "tcp": Tcp,
           "stdio": Stdio, "loop": Loop, "processes": Processes, "pyzmq": Pyzmq}


# -- Workloads: each returns its figure for a pool

Workload = collections.namedtuple("Workload", "measure title unit needs goals workers")
WORKLOADS = {}


def workload(title, unit, needs, *goals, workers=None, when=True):
    """Enter a function into the table. needs: kinds of systems that can do it. goals: pairs of a system and how many
    times as good minscoop has to be; with None, of its own figure. when: whether it can be done here at all."""
    def enter(measure):
        WORKLOADS[measure.__name__] = Workload(measure, title, unit, set(needs.split() if when else ()), goals, workers)
        return measure
    return enter


def rate(call, full):
    """Calls per second of call(n), where n is `full`, or less if the system is slow."""
    for n in sorted({full, *(max(10, full // divisor) for divisor in (1000, 100, 10))}):
        seconds = timed(call, n)
        if seconds > ENOUGH:
            break
    return n / seconds


def schedule(times, workers):
    """The times that each worker gets by the greedy schedule: one after the other, to who is free first."""
    free, shares = [(0, number) for number in range(workers)], [[] for _ in range(workers)]
    for seconds in times:
        end, number = heapq.heappop(free)
        shares[number].append(seconds)
        heapq.heappush(free, (end + seconds, number))
    return shares


def efficiency(pool, fn, times):
    """What the greedy schedule takes by computation, as a share of what it took."""
    return max(map(sum, schedule(times, pool.workers))) / timed(pool.map, fn, times)


@workload("no-op map of a million integers", "calls/s", "pool hosts loop pyzmq", ("Pool", 1), ("SCOOP", 1000))
def noop(pool):
    return rate(lambda n: pool.map(nothing, range(n)), some(1_000_000))


@workload("2000 tasks of 1 ms", "efficiency", "pool processes", ("processes", 0.97))
def short(pool):
    return efficiency(pool, spin, [0.001] * some(2000))


@workload("200 tasks of 10 ms", "efficiency", "pool hosts processes", ("processes", 0.99))
def medium(pool):
    return efficiency(pool, spin, [0.01] * some(200))


@workload("400 unequal tasks, 0 to 10 ms", "efficiency", "pool processes")
def unequal(pool):
    chance = random.Random(1)
    return efficiency(pool, spin, [chance.uniform(0, 0.01) for _ in range(some(400))])


@workload("400 heavy-tailed tasks, longest last", "efficiency", "pool processes", ("processes", 0.95))
def tail(pool):
    chance = random.Random(1)
    return efficiency(pool, spin, sorted(min(0.2, 0.002 * chance.paretovariate(1.1)) for _ in range(some(400))))


@workload("submit().result(), one after another", "µs", "pool hosts pyzmq", ("pyzmq", 1 / 1.3))
def submit(pool):
    def one_by_one(n):
        for i in range(n):
            pool.submit(nothing, i).result()
    return 1e6 / rate(one_by_one, some(2000))


@workload("recursion, 8190 nested futures", "tasks/s", "nested", ("SCOOP", 10))
def recursion(pool):
    for depth in (4, 8, 12) if shrink == 1 else [4]:
        seconds = timed(pool.submit(tree, depth, pool.inside).result)
        if seconds > ENOUGH:
            break
    return (2 ** (depth + 1) - 2) / seconds


@workload("submits in a task, awaited at once", "µs", "nested", (None, 10))
def nested(pool):
    return 1e6 / rate(lambda n: pool.submit(nest, n, pool.inside).result(), some(50_000))


@workload("map_reduce of 100 000 integers", "calls/s", "pool loop")
def small(pool):
    return rate(lambda n: pool.reduce(nothing, operator.add, range(n)), some(100_000))


@workload("map_reduce of 200 lists of 20 000", "calls/s", "pool loop")
def large(pool):
    return rate(lambda n: pool.reduce(histogram, add_lists, range(n)), some(200))


@workload("20 x 10 MB of bytes there and back", "MB/s", "pool hosts loop pyzmq", ("Pool", 2))
def payload(pool):
    values = [os.urandom(some(10_000_000)) for _ in range(20)]
    return sum(map(len, values)) / 1e6 / timed(pool.echo, values)


@workload("20 x 10 MB of NumPy arrays there and back", "MB/s", "pool loop pyzmq", ("Pool", 2),
          when=importlib.util.find_spec("numpy"))
def arrays(pool):
    import numpy
    values = [numpy.full(some(1_250_000), float(i)) for i in range(20)]
    return sum(value.nbytes for value in values) / 1e6 / timed(pool.echo, values)


@workload("a constant of 100 MB, until all have it", "s", "constants")
def constant(pool):
    return share(pool, os.urandom(some(100_000_000)))


@workload("its copies in memory, beside the program's", "copies", "constants", (None, 1.1),
          when=os.path.exists("/proc/self/smaps_rollup"))
def copies(pool):
    value = os.urandom(some(100_000_000))
    before = memory()
    share(pool, value)
    return (memory() - before) / len(value)


def share(pool, value):
    """Seconds until each worker has a constant."""
    start = time.monotonic()
    constant = pool.share(value)
    seen = [future.result() for future in [pool.submit(look, constant, some(500) / 1e3) for _ in range(pool.workers)]]
    assert all(size == len(value) for size, _ in seen)
    return max(when for _, when in seen) - start


def memory():
    """Bytes of all processes of this measurement; what several share counts once."""
    sizes = [pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in marked(os.environ[MARK])]
    return sum(int(size.partition("\nPss:")[2].split()[0]) for size in sizes) * 1024


@workload("hello, start to exit", "s", "hello", ("SCOOP", 1 / 0.7))
def hello(system, workers):
    """Not a pool but a command line, of the same program: minscoop has SCOOP's names."""
    script = pathlib.Path(os.environ["TMPDIR"], "hello.py")
    script.write_text((HERE / "hello.py").read_text().replace("from minscoop", "from scoop"))
    command = [sys.executable, *system.launcher, str(workers), str(script)]
    return timed(functools.partial(subprocess.run, stdout=subprocess.DEVNULL, check=True), command)


@workload("start to first result", "s", "pool")
def first(pool):
    pool.submit(nothing, 0).result()
    return time.monotonic() - float(os.environ[START])


@workload("64 workers, start to all at work", "s", "crowd", (None, 1), workers=64)
def ready(pool):
    begun = [pool.submit(begin, some(2000) / 1e3) for _ in range(pool.workers)]
    return max(future.result() for future in begun) - float(os.environ[START])


@workload("64 workers, 640 x 100 ms asleep", "efficiency", "crowd processes", workers=64)
def sleepers(pool):
    return efficiency(pool, time.sleep, [0.1] * pool.workers * some(10))


@workload("256 workers, 2560 x 100 ms asleep", "efficiency", "crowd processes", (None, 0.95), workers=256)
def crowd(pool):
    return sleepers(pool)


# -- Measuring: in a process of its own, of which nothing stays


def run(system, name, options):
    """Measure in this process, and leave the figure in a file."""
    known, work = SYSTEMS[system], WORKLOADS[name]
    if name == "hello":
        figure = work.measure(known, options.workers)
    else:
        pool = known(options.workers, options.hosts)
        if name not in ("first", "ready"):
            pool.settle()
        figure = work.measure(pool)
        pool.end()
    pathlib.Path(os.environ["TMPDIR"], "figure").write_text(json.dumps(figure))


def marked(mark):
    """Ids of living processes of a measurement: all that it starts inherit the mark, into other sessions too."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def send(number, process, mark):
    """A signal to all processes of a measurement."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # enough where there is no /proc
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def gone(mark):
    """Whether all of a measurement ends by itself within a while."""
    end = time.monotonic() + GRACE
    while marked(mark):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def clear(process, mark):
    """End what is left: those that remove semaphores and files for others outlive SIGTERM, to do so."""
    send(signal.SIGTERM, process, mark)
    gone(mark)
    send(signal.SIGKILL, process, mark)
    process.wait()


def environment(directory, mark):
    """That of a measurement: with its mark, a directory for all its files, and this module for all its workers."""
    modules = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "TMPDIR": directory, "IPYTHONDIR": directory, "PYTHONPATH": modules, MARK: mark,
            START: str(time.monotonic()),
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}  # Open MPI: more processes than cores


def measure(system, name, options):
    """The figure of one measurement in a fresh process; a text that says why there is none."""
    directory = tempfile.mkdtemp(prefix="bench")  # short: paths of sockets are limited
    mark, log = os.path.basename(directory), pathlib.Path(directory, "log")
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(command(system, name, options), cwd=directory, env=environment(directory, mark),
                                       stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        try:
            process.wait(LIMIT)
            gone(mark)
            return json.loads(pathlib.Path(directory, "figure").read_text())
        finally:
            clear(process, mark)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT} s"
    except (OSError, ValueError):
        return f"exit code {process.returncode}: " + log.read_text(errors="replace")[-2000:]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def command(system, name, options):
    """The command line of a measurement."""
    workers = WORKLOADS[name].workers
    workers = some(workers) if workers else options.workers
    return [*([sys.executable] if name == "hello" else SYSTEMS[system].command(workers)), str(HERE / "benchmark.py"),
            "--run", system, name, "--workers", str(workers), *["--quick"] * (shrink > 1),
            *(["--hosts", options.hosts] if options.hosts else [])]


def measure_all(figures, systems, options):
    """Fill in {workload: {system: [figure of each round]}}; in place of the list a text where it failed."""
    rounds = options.rounds if shrink == 1 else 1
    turns = itertools.product(range(rounds), figures, range(len(systems)))
    for turn, name, number in turns:
        system = systems[(turn + number) % len(systems)]
        if SYSTEMS[system].can & WORKLOADS[name].needs and not isinstance(figures[name].get(system), str):
            if sys.stderr.isatty():
                print(f"\r\033[Kround {turn + 1} of {rounds}: {name}, {system}", end="\r", file=sys.stderr)
            figure = measure(system, name, options)
            figures[name][system] = figure if isinstance(figure, str) else [*figures[name].get(system, []), figure]


# -- Reporting


def median(figures, name, system):
    """None where there is none."""
    known = figures[name].get(system)
    return statistics.median(known) if isinstance(known, list) and known else None


def times_as_good(figures, name, system):
    """How many times as good as another system minscoop is at something; None if that is not known."""
    ours, theirs = median(figures, name, "minscoop"), median(figures, name, system)
    if not ours or not theirs:
        return None
    return ours / theirs if rises(name) else theirs / ours


def rises(name):
    """Whether more is better."""
    return WORKLOADS[name].unit in ("calls/s", "tasks/s", "MB/s", "efficiency")


def brief(number):
    """Three digits."""
    if number is None:
        return "-"
    number = float(f"{number:.3g}")
    for size, letter in ((1e6, "M"), (1e3, "k"), (1, "")):
        if abs(number) >= size:
            break
    return f"{number / size:.3g}{letter}"


def goals(figures, name):
    """What has to be reached, and whether it is: two texts."""
    wanted, reached = [], []
    for system, bound in WORKLOADS[name].goals:
        figure = times_as_good(figures, name, system) if system else median(figures, name, "minscoop")
        met = figure is not None and (figure >= bound if system or rises(name) else figure <= bound)
        wanted.append(f"{brief(bound)} × {system}" if system else f"{brief(bound)} {WORKLOADS[name].unit}")
        reached.append("met" if met else brief(figure))
    return ", ".join(wanted), ", ".join(reached)


def tables(figures, systems):
    """Rows of the two tables."""
    medians = [["median", "", *systems]]
    ratios = [["minscoop is so many times as good as", *systems[1:], "at least", "reached"]]
    for name in figures:
        cells = ["failed" if isinstance(figures[name].get(system), str) else brief(median(figures, name, system))
                 for system in systems]
        medians.append([WORKLOADS[name].title, WORKLOADS[name].unit, *cells])
        others = [brief(times_as_good(figures, name, system)) for system in systems[1:]]
        ratios.append([WORKLOADS[name].title, *others, *goals(figures, name)])
    return medians, ratios


def as_text(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]).rstrip()


def picture(figures, systems):
    """SVG: a line for each workload, a dot for each system, the further right the better minscoop beside it."""
    ratios = {(name, system): times_as_good(figures, name, system) for name in figures for system in systems[1:]}
    exponents = [math.log10(ratio) for ratio in ratios.values() if ratio]
    low, high = math.floor(min(exponents, default=0)), max(1, math.ceil(max(exponents, default=0)))

    def place(ratio):
        return 310 + 560 * (math.log10(ratio) - low) / (high - low)

    color = {system: f"hsl({360 * i // len(systems)},70%,45%)" for i, system in enumerate(systems)}
    bottom = 50 + 24 * len(figures)
    yield f'<svg viewBox="0 0 900 {bottom + 20}" font-family="sans-serif" font-size="12" fill="currentColor">'
    for i, system in enumerate(systems[1:]):
        yield f'<text x="{310 + i % 7 * 85}" y="{14 + i // 7 * 14}" fill="{color[system]}">● {system[:11]}</text>'
    for exponent in range(low, high + 1):
        x = place(10 ** exponent)
        yield f'<path d="M{x} 40V{bottom}" stroke="gray" stroke-width="{1 if exponent else 3}" opacity=".5"/>'
        yield f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{10 ** exponent:g} ×</text>'
    for y, name in enumerate(figures):
        y = 56 + 24 * y
        yield f'<text x="300" y="{y + 4}" text-anchor="end">{html.escape(WORKLOADS[name].title)}</text>'
        for system, bound in WORKLOADS[name].goals:
            if system in color and low <= math.log10(bound) <= high:
                yield f'<path d="M{place(bound)} {y - 9}v18" stroke="{color[system]}" stroke-width="3"/>'
        for system in systems[1:]:
            if ratios[name, system]:
                yield (f'<circle cx="{place(ratios[name, system])}" cy="{y}" r="5" opacity=".8" fill="{color[system]}">'
                       f'<title>{system}: {brief(ratios[name, system])}</title></circle>')
    yield "</svg>"


def page(facts, figures, systems):
    """All of it, in one file that needs no other."""
    style = "body{font:14px sans-serif;margin:2em;color-scheme:light dark} svg{max-width:70em}"
    return "\n".join([
        f'<!DOCTYPE html><meta charset="utf-8"><title>minscoop beside others</title><style>{style}</style>',
        f"<h1>minscoop beside others</h1><p>{html.escape(facts)}</p>", *picture(figures, systems),
        "<p>A dot: minscoop is so many times as good as that system. A tick: what is to be reached.</p>",
        *("<pre>" + html.escape("\n".join(as_text(rows))) + "</pre>" for rows in tables(figures, systems))])


def describe(options):
    """What was measured, where."""
    rounds = f"rounds: {options.rounds}" if shrink == 1 else f"sizes divided by {shrink}: figures without meaning"
    return (f"{rounds}, {options.workers} workers, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {platform.platform()}")


def report(figures, systems, options, facts):
    """Print the tables and write the files."""
    for rows in tables(figures, systems):
        print(*as_text(rows), sep="\n", end="\n\n")
    print(facts)
    if options.html:
        pathlib.Path(options.html).write_text(page(facts, figures, systems), encoding="utf-8")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"facts": facts, "figures": figures}, indent=1))


def present(system, hosts):
    """Whether a system can be had here."""
    known = SYSTEMS[system]
    return importlib.util.find_spec(known.module) and shutil.which(known.command(1)[0]) and \
        (hosts or known.can != {"hosts"})


def parse():
    """The options of the command line."""
    peers = [name for name, known in SYSTEMS.items() if not issubclass(known, (Minscoop, Limit))]
    parser = argparse.ArgumentParser(description="The same work on minscoop, on other systems that are installed, and "
                                                 "without any.")
    parser.add_argument("--systems", default=",".join(peers), metavar="NAME,...",
                        help="the others, of which those are taken that are there (default: %(default)s)")
    parser.add_argument("--only", default=",".join(WORKLOADS), metavar="NAME,...", help="work (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that work (default: 2)")
    parser.add_argument("--hosts", metavar="HOSTS", help="minscoop on these too, by tcp and by stdio: see its --hosts")
    parser.add_argument("--html", metavar="FILE", help="write a page with a picture")
    parser.add_argument("--json", metavar="FILE", help="write all figures, and the reasons of what has failed")
    parser.add_argument("--quick", dest="shrink", action="store_const", const=50, default=1,
                        help="small sizes and one round, to see that everything works")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # what the fresh processes do
    options = parser.parse_args()
    options.systems, options.only = options.systems.split(","), options.only.split(",")
    unknown = {*options.systems, *options.only}.difference(SYSTEMS, WORKLOADS)
    if unknown:
        parser.error(f"no such system or work: {', '.join(unknown)}")
    return options


def leave(number, frame):
    """End, and clean up on the way out, once."""
    for each in signal.SIGINT, signal.SIGTERM:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main():
    global shrink
    options = parse()
    shrink = options.shrink
    if options.run:
        run(*options.run, options)
        return
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, leave)
    systems = [name for name, known in SYSTEMS.items() if present(name, options.hosts)
               and (name in options.systems or issubclass(known, (Minscoop, Limit)))]
    figures, facts = {name: {} for name in options.only}, describe(options)  # with the load that is not ours
    try:
        measure_all(figures, systems, options)
    finally:  # what there is, if it was interrupted
        report(figures, systems, options, facts)


if __name__ == "__main__":
    import benchmark  # this file again, under a name by which every worker can import it
    benchmark.main()
