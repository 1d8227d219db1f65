"""python examples/benchmark.py --html benchmark.html

The same work on minscoop and on every peer that can be imported, with the limits of the machine beside them: a table
of medians, of ratios to minscoop, and of the goals that it has to reach. Each measurement has a fresh process, and the
systems take turns: absolute times mean little on a shared machine, ratios within one run mean more.

For less: --systems minscoop,Pool,SCOOP --only noop,submit --rounds 3.
"""
import argparse
import collections
import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import pathlib
import pickle
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import types

HERE = pathlib.Path(__file__).resolve().parent
SMAPS = pathlib.Path("/proc/self/smaps_rollup")
START = float(os.environ.get("BENCHMARK_START", 0))  # of a measurement, by the clock of all processes
LIMIT = 60    # s for one measurement. Smaller: slow starters show 'failed'; larger: a hang costs that much
GRACE = 3     # s that processes left by a measurement have to end by themselves. Smaller: files may stay behind
ENOUGH = 0.5  # s of work after which a slow system does not get ten times as much
shrink = 1    # sizes are divided by it: --quick


def some(count):
    """A size, smaller with --quick."""
    return max(2, count // shrink)


# -- Tasks
#
# The length of a task is CPU time of its own thread. By wall time, a task would get on while another process has its
# core, and a system that starts too many processes would look good. A counted loop takes longer while the other core is
# busy (caches, clock rate, hyperthreads), so the times from which the best schedule is computed would be wrong. With
# CPU time the work is the same for all systems, and what a system adds shows: waiting for a core, for the interpreter's
# lock, for messages. So does the load of others; therefore two bare processes do the same work in the same run.


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def nothing(value):
    return value


def norm(seed):
    """The norm of a random matrix, by a library that may start threads of its own."""
    numpy = importlib.import_module("numpy")
    return float(numpy.linalg.norm(numpy.random.default_rng(seed).random((100, 100)), 2))


def who(_):
    time.sleep(0.01)  # so that others get some of these, too
    return os.uname().nodename, os.getpid()


def look(constant, seconds):
    """When a constant had arrived, and this process's share of memory (PSS) once all workers have it."""
    value = constant() if callable(constant) else constant
    sum(memoryview(value).cast("B")[::4096])  # a byte of each page: a page that is only mapped takes no memory yet
    now = time.monotonic()  # a clock that all processes of a machine share
    time.sleep(seconds)  # keeps the worker busy, so that each gets one of these
    size = SMAPS.exists() and 1024 * int(SMAPS.read_text().partition("\nPss:")[2].split()[0])
    time.sleep(seconds)  # the others measure, too, before this one frees it
    return now, size


def begin(seconds):
    """When a worker began; it stays busy, so that each gets one of these."""
    now = time.monotonic()  # a clock that all processes of a machine share
    time.sleep(seconds)
    return now


def tree(count, submit):
    """Submit so many tasks, as a binary tree: two here, with half of the others below each."""
    for future in [submit(tree, below, submit) for below in ((count - 1) // 2, (count - 2) // 2) if below >= 0]:
        future.result()


def nest(count, submit):
    """Tasks one after another, each awaited at once."""
    for number in range(count):
        submit(nothing, number).result()


# -- Systems


class System:
    """Any executor as in concurrent.futures; subclasses redefine what is different. All end with the interpreter.

    name: the callable that makes it. can: the kinds of work it can do. command: the launcher of a script."""

    def __init__(self, name, can, command="{python}"):
        self.module, _, self.name = name.rpartition(".")
        self.can, self.command = can.split(), command

    def launcher(self, workers, hosts=None):
        return [word.format(python=sys.executable, above=HERE.parent, n=workers, m=workers + 1, hosts=hosts)
                for word in self.command.split()]

    def start(self):
        self.pool = getattr(importlib.import_module(self.module), self.name)(self.workers)

    def settle(self):
        """Wait until every worker has taken part, but not for ever."""
        seen, end = set(), time.monotonic() + LIMIT / 4
        while len(seen) < self.workers and time.monotonic() < end:
            seen.update(self.map(who, range(self.workers * 4)))

    def submit(self, fn, *args):
        return self.pool.submit(fn, *args)

    def map(self, fn, items):
        """Few items go in chunks of 1, the default; many, which would take minutes, in chunks like those of Pool."""
        return list(self.pool.map(fn, items, chunksize=len(items) // (self.workers * 4) if len(items) >= 1000 else 1))

    def reduce(self, fn, op, items):
        return functools.reduce(op, self.map(fn, items))

    def echo(self, values):
        return self.map(nothing, values)


class Pool(System):
    def submit(self, fn, *args):
        return types.SimpleNamespace(result=self.pool.apply_async(fn, args).get)

    def map(self, fn, items):
        return self.pool.map(fn, items)


class Scoop(System):
    """SCOOP, and minscoop, which has its names: a launcher starts the pool. Both ignore chunksize."""

    def start(self):
        self.pool = importlib.import_module(f"{self.module}.futures")
        self.inside, self.reduce = functools.partial(self.within, self.module), self.pool.mapReduce

    @staticmethod
    def within(module, fn, *args):
        return sys.modules[f"{module}.futures"].submit(fn, *args)  # SCOOP's own cannot be pickled

    def settle(self):
        """With hosts, SIZE says how many workers there are; a host that is still being reached counts as one."""
        super().settle()
        while self.workers != sys.modules[self.module].SIZE:
            self.workers = sys.modules[self.module].SIZE
            super().settle()

    def share(self, value):
        """Share a constant; return what tasks are given to get it."""
        shared, name = importlib.import_module(f"{self.module}.shared"), f"value{time.monotonic_ns()}"  # set once
        shared.setConst(**{name: value})
        return functools.partial(shared.getConst, name, timeout=LIMIT)


class Dask(System):
    def start(self):
        import distributed
        client = distributed.Client(n_workers=self.workers, threads_per_worker=1, dashboard_address=None)
        self.share = functools.partial(client.scatter, broadcast=True)
        self.pool = client.get_executor(pure=False)  # otherwise equal calls run only once

    @staticmethod
    def inside(fn, *args):
        import distributed
        with contextlib.suppress(KeyError):  # the second time
            distributed.secede()  # otherwise the only thread of the worker would wait for itself
        return distributed.get_client().submit(fn, *args, pure=False)


class Ray(System):
    def start(self):
        import ray
        ray.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False, _temp_dir=os.environ["TMPDIR"])
        self.pool, self.share = ray, ray.put

    @staticmethod
    @functools.lru_cache(maxsize=None)
    def remote(fn):
        import ray
        return ray.remote(fn).remote

    @staticmethod
    def inside(fn, *args):
        import ray
        return types.SimpleNamespace(result=functools.partial(ray.get, Ray.remote(fn)(*args)))

    submit = inside

    def map(self, fn, items):
        return self.pool.get([self.remote(fn)(item) for item in items])


class Ipyparallel(System):
    def start(self):
        import ipyparallel
        self.pool = ipyparallel.Cluster(n=self.workers, log_level=40).start_and_connect_sync().load_balanced_view()
        self.submit = self.pool.apply_async


# -- Limits of the machine: the same work without a library


class Loop(System):
    """A loop in this process. Its echo copies each payload twice, which measures the bandwidth of memory."""

    def start(self):
        self.workers = 1

    def map(self, fn, items):
        return [fn(item) for item in items]

    def echo(self, values):
        return [bytes(memoryview(bytes(memoryview(value)))) for value in values]


class Processes(Pool):
    """Bare processes: each gets at once everything that the greedy schedule gives it."""

    def map(self, fn, times):
        shares = [(None, fn, share) for share in schedule(times, self.workers)]
        return sum(self.pool.starmap(Loop.map, shares, chunksize=1), [])


class Pyzmq(System):
    """The messages alone, over as many hops as in minscoop: to a relay and on to workers that send them back."""

    def start(self):
        multiprocessing.Process(target=self.relay, daemon=True).start()
        self.socket, self.names = self.open("DEALER", b"root"), [b"%d" % number for number in range(self.workers)]
        self.socket.send(b"root")
        self.socket.recv()  # the relay knows the root now, and drops nothing for it
        for name in self.names:
            multiprocessing.Process(target=self.mirror, args=[name], daemon=True).start()
            self.socket.recv()

    @staticmethod
    def open(kind, name=None):
        import zmq
        socket = zmq.Context.instance().socket(getattr(zmq, kind))
        if name:
            socket.identity = name
        (socket.connect if name else socket.bind)(f"ipc://{os.environ['TMPDIR']}/relay")
        return socket

    @classmethod
    def relay(cls):
        socket = cls.open("ROUTER")
        while True:
            sender, receiver, *frames = socket.recv_multipart(copy=False)
            socket.send_multipart([receiver, sender, *frames], copy=False)

    @classmethod
    def mirror(cls, name):
        socket = cls.open("DEALER", name)
        socket.send(b"root")
        while True:
            socket.send_multipart(socket.recv_multipart(copy=False), copy=False)

    def submit(self, fn, *args):
        self.socket.send_multipart([self.names[0], b""])
        return types.SimpleNamespace(result=self.socket.recv_multipart)

    def echo(self, values):
        for number, value in enumerate(values):
            self.socket.send_multipart([self.names[number % self.workers], b"%9d" % number, value], copy=False)
        answers = [self.socket.recv_multipart(copy=False) for _ in values]
        return [value.buffer for _, _, value in sorted(answers, key=lambda answer: answer[1].bytes)]

    def map(self, fn, items):
        """Send the items there and back in slices, since a message per item would be slower. fn is not called."""
        slices = [pickle.dumps(list(items[i:i + 10_000]), 5) for i in range(0, len(items), 10_000)]
        return [value for answer in self.echo(slices) for value in pickle.loads(answer)]


HOSTS = "{python} {above}/minscoop.py --hosts {hosts} --all-hosts --transport"
ALL = "pool crowd nested constants hello"
SYSTEMS = {
    "minscoop": Scoop("minscoop.", ALL, "{python} {above}/minscoop.py -n {n}"),
    "Pool": Pool("multiprocessing.Pool", "pool crowd"),
    "ProcessPoolExecutor": System("concurrent.futures.ProcessPoolExecutor", "pool crowd"),
    "SCOOP": Scoop("scoop.", ALL, "{python} -m scoop -q -n {n}"),
    "loky": System("loky.ProcessPoolExecutor", "pool"),
    "mpi4py": System("mpi4py.futures.MPIPoolExecutor", "pool", "mpiexec -n {m} {python} -m mpi4py.futures"),
    "dask": Dask("distributed.Client", "pool nested constants"),
    "Ray": Ray("ray.put", "pool nested constants"),
    "ipyparallel": Ipyparallel("ipyparallel.Cluster", "pool"),
    "tcp": Scoop("minscoop.", "hosts", f"{HOSTS} tcp"),
    "stdio": Scoop("minscoop.", "hosts", f"{HOSTS} stdio"),
    "loop": Loop("", "loop"),
    "processes": Processes("multiprocessing.Pool", "processes"),
    "pyzmq": Pyzmq("", "pyzmq"),
}
OURS = ["minscoop", "tcp", "stdio", "loop", "processes", "pyzmq"]  # not asked for, but always measured


# -- Work


def timed(call, *args):
    start = time.monotonic()
    call(*args)
    return time.monotonic() - start


def rate(call, full):
    """Calls per second of call(n), where n is `full`, or less if the system is slow."""
    for n in sorted({full, *(max(10, full // divisor) for divisor in (1000, 100, 10))}):
        seconds = timed(call, n)
        if seconds > ENOUGH:
            break
    return n / seconds


def schedule(times, workers):
    """The times that each worker gets by the greedy schedule: each goes to the worker that is free first."""
    ends, shares = [0] * workers, [[] for _ in range(workers)]
    for seconds in times:
        number = ends.index(min(ends))
        ends[number] += seconds
        shares[number].append(seconds)
    return shares


def efficiency(pool, fn, times):
    """The computed length of the greedy schedule, as a share of the time that the map took."""
    return max(map(sum, schedule(times, pool.workers))) / timed(pool.map, fn, times)


def array(size, value):
    return importlib.import_module("numpy").full(some(size // 8), float(value))


def there_and_back(pool, values):
    """Values per second that a map takes and returns."""
    return rate(lambda n: pool.map(nothing, values[:n]), len(values))


def echo(pool, values):
    """MB of payload per second."""
    return sum(memoryview(value).nbytes for value in values) / 1e6 / timed(pool.echo, values)


def have(pool, constant, seconds=0.5):
    """When the last worker had a constant, and the memory of all workers then."""
    futures = [pool.submit(look, constant, seconds / shrink) for _ in range(pool.workers)]
    times, sizes = zip(*(future.result() for future in futures))
    return max(times), sum(sizes)


def begun(pool):
    """When the last worker began to work."""
    futures = [pool.submit(begin, 1 / shrink) for _ in range(pool.workers)]
    return max(future.result() for future in futures)


def share(pool, value):
    """Seconds until all workers have a constant; copies of it in their memory, rounded: other memory grows a little."""
    (_, before), start = have(pool, value[:1]), time.monotonic()  # with all that its type needs
    last, after = have(pool, pool.share(value))
    return last - start, round((after - before) / memoryview(value).nbytes, 1)


def hello(pool, as_module=False):
    """Seconds for a command line that runs hello.py; as_module: by -m, so that Python caches the bytecode."""
    script = pathlib.Path(os.environ["TMPDIR"], "hello.py")
    script.write_text((HERE / "hello.py").read_text().replace("from minscoop", f"from {pool.module}"))
    python, *words = pool.launcher(pool.workers)
    if as_module and words[0] != "-m":
        words[:1] = ["-m", pathlib.Path(words[0]).stem]
    return timed(subprocess.check_output, [python, *words, str(script)])


# needs: kinds of work, of which a system has to be able to do one. goals: what minscoop has to reach, as factors of
# other systems' figures, or, for None, in the unit itself
Work = collections.namedtuple("Work", "title unit needs goals measure workers", defaults=[None])
FROM_START = "hello", "module", "first", "ready"  # measured from the start of a process
RISING = "calls/s", "tasks/s", "MB/s", "efficiency"
NUMPY = importlib.util.find_spec("numpy")
WORK = {
    "noop": Work("no-op map of a million integers", "calls/s", "pool hosts loop pyzmq", {"Pool": 1, "SCOOP": 1000},
                 lambda pool: rate(lambda n: pool.map(nothing, range(n)), some(1_000_000))),
    "records": Work("a map of 100 000 small dicts there and back", "calls/s", "pool loop", {},
                    lambda pool: there_and_back(pool, [dict(n=i, x=i / 7) for i in range(some(100_000))])),
    "vectors": Work("a map of 100 000 small NumPy arrays there and back", "calls/s", NUMPY and "pool loop" or "", {},
                    lambda pool: there_and_back(pool, [array(24, i) for i in range(some(100_000))])),
    "short": Work("2000 tasks of 1 ms", "efficiency", "pool processes", {"processes": 0.97},
                  lambda pool: efficiency(pool, spin, [0.001] * some(2000))),
    "medium": Work("200 tasks of 10 ms", "efficiency", "pool hosts processes", {"processes": 0.99},
                   lambda pool: efficiency(pool, spin, [0.01] * some(200))),
    "unequal": Work("400 unequal tasks, 0 to 10 ms", "efficiency", "pool processes", {},
                    lambda pool: efficiency(pool, spin, [i * 0.618 % 1 / 100 for i in range(some(400))])),
    "tail": Work("400 heavy-tailed tasks, longest last", "efficiency", "pool processes", {"processes": 0.95},
                 lambda pool: efficiency(pool, spin, [min(0.2, 0.002 * (1 - i / some(400)) ** -0.9)
                                                      for i in range(some(400))])),
    "submit": Work("submit().result(), one after another", "µs", "pool hosts pyzmq", {"pyzmq": 1.3},
                   lambda pool: 1e6 / rate(lambda n: nest(n, pool.submit), some(2000))),
    "recursion": Work("recursion, 8190 nested futures", "tasks/s", "nested", {"SCOOP": 10},
                      lambda pool: rate(lambda n: pool.submit(tree, n, pool.inside).result(), some(8190))),
    "nested": Work("submits in a task, awaited at once", "µs", "nested", {None: 10},
                   lambda pool: 1e6 / rate(lambda n: pool.submit(nest, n, pool.inside).result(), some(50_000))),
    "algebra": Work("2000 norms of matrices by NumPy", "calls/s", NUMPY and "pool loop" or "", {},
                    lambda pool: rate(lambda n: pool.map(norm, range(n)), some(2000))),
    "small": Work("map_reduce of 100 000 integers", "calls/s", "pool loop", {},
                  lambda pool: rate(lambda n: pool.reduce(nothing, max, range(n)), some(100_000))),
    "large": Work("map_reduce of 200 lists of 20 000", "calls/s", "pool loop", {},
                  lambda pool: rate(lambda n: pool.reduce(sorted, max, [range(20_000)] * n), some(200))),
    "payload": Work("20 x 10 MB of bytes there and back", "MB/s", "pool hosts loop pyzmq", {"Pool": 2},
                    lambda pool: echo(pool, [os.urandom(some(10_000_000)) for _ in range(20)])),
    "arrays": Work("20 x 10 MB of NumPy arrays there and back", "MB/s", NUMPY and "pool loop pyzmq" or "", {"Pool": 2},
                   lambda pool: echo(pool, [array(10_000_000, i) for i in range(20)])),
    "constant": Work("100 MB of bytes as a constant, until all have it", "s", "constants", {},
                     lambda pool: share(pool, os.urandom(some(100_000_000)))[0]),
    "copies": Work("a 100 MB array as a constant, in 4 workers", "copies", NUMPY and "constants" or "", {None: 1},
                   lambda pool: share(pool, array(100_000_000, 1))[1], 4),
    "hello": Work("hello, start to exit", "s", "hello", {"SCOOP": 0.7}, hello),
    "module": Work("hello, start to exit, with python -m", "s", "hello", {"SCOOP": 0.7},
                   lambda pool: hello(pool, as_module=True)),
    "first": Work("start to first call", "s", "pool", {}, lambda pool: pool.submit(look, b"-", 0).result()[0] - START),
    "ready": Work("64 workers, start to all at work", "s", "crowd", {None: 1},
                  lambda pool: begun(pool) - START, 64),
    "sleepers": Work("64 workers, 640 x 100 ms asleep", "efficiency", "crowd processes", {},
                     lambda pool: efficiency(pool, time.sleep, [0.1] * pool.workers * some(10)), 64),
    "crowd": Work("256 workers, 10 240 x 100 ms asleep", "efficiency", "crowd processes", {None: 0.95},
                  lambda pool: efficiency(pool, time.sleep, [0.1] * pool.workers * some(40)), 256),
}


# -- Measuring: in fresh processes, of which nothing is left


def run(system, names, options):
    """Measure in this process, and leave the figures in a file."""
    pool = SYSTEMS[system]
    pool.workers = options.workers
    if WORK[names[0]].needs != "hello":
        pool.start()
    if names[0] not in FROM_START:
        pool.settle()
    figures = {name: WORK[name].measure(pool) for name in names}
    pathlib.Path(os.environ["TMPDIR"], "figures").write_text(json.dumps(figures))


def marked(directory):
    """Ids of the living processes of a measurement, in any session: they inherit its environment."""
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={directory}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def clear(directory):
    """Let processes left by a measurement end by themselves, removing their files; then terminate, then kill them."""
    for number in 0, signal.SIGTERM, signal.SIGKILL:
        for pid in marked(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + GRACE
        while any(marked(directory)) and time.monotonic() < end:
            time.sleep(0.01)


def measure(system, names, options):
    """Figures by name, from a fresh process; if it failed, a text in place of each."""
    directory = tempfile.mkdtemp(prefix="bench")  # short: paths of sockets are limited
    log, workers = pathlib.Path(directory, "log"), not options.quick and WORK[names[0]].workers or options.workers
    launcher = [sys.executable] if WORK[names[0]].needs == "hello" else SYSTEMS[system].launcher(workers, options.hosts)
    path = filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")])
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(path), TMPDIR=directory, IPYTHONDIR=directory,
                   BENCHMARK_START=str(time.monotonic()),
                   PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe")  # Open MPI: more processes than cores
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as most users have it: modules are compiled once
    try:
        with log.open("wb") as output:
            subprocess.run([*launcher, str(HERE / "benchmark.py"), *sys.argv[1:], "--run", system, "--only",
                            ",".join(names), "--workers", str(workers)], cwd=directory, env=environ, timeout=LIMIT,
                           stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        return json.loads(pathlib.Path(directory, "figures").read_text())
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return dict.fromkeys(names, f"{error}\n{log.read_text(errors='replace')[-2000:]}")
    finally:
        clear(directory)
        shutil.rmtree(directory, ignore_errors=True)


def measure_all(figures, systems, options):
    """Fill in {work: {system: [figure of each round]}}; where it failed, a text in place of the list."""
    warm = [name for name in figures if name not in FROM_START]
    groups = [warm] if options.quick and warm else [[name] for name in warm]  # each shares a process
    groups += [[name] for name in figures if name in FROM_START]
    for turn in range(options.rounds):
        for group in groups:
            for system in systems[turn % len(systems):] + systems[:turn % len(systems)]:
                names = [name for name in group if not isinstance(figures[name].get(system), str)
                         and set(SYSTEMS[system].can) & set(WORK[name].needs.split())]
                for name, figure in (measure(system, names, options) if names else {}).items():
                    before = figures[name].get(system, [])
                    figures[name][system] = figure if isinstance(figure, str) else before + [figure]


# -- Reporting


def brief(number):
    """Three significant digits, or all before the point."""
    return "-" if number is None else f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def ratio(known, system):
    """minscoop's figure divided by that of another system, or by 1; None where one is missing."""
    ours, theirs = known.get("minscoop"), known.get(system) if system else 1
    return ours / theirs if ours and theirs else None


def goals(work, known):
    """Each goal as a text: what has to be reached, and what is."""
    bound = "at least" if work.unit in RISING else "at most"
    for system, factor in work.goals.items():
        reached = ratio(known, system)
        met = reached and (reached >= factor if bound == "at least" else reached <= factor)
        yield f"{bound} {factor:g} {f'× {system}' if system else work.unit}: {brief(reached)}{', met' if met else ''}"


def table(medians, systems):
    """Text with two lines for each work: figures and goals, then how many times as good minscoop is."""
    rows = [["", "", *systems, "goals"]]
    for work, known in ((WORK[name], known) for name, known in medians.items()):
        better = [ratio(known, system) for system in systems]
        rows.append([work.title, work.unit, *map(brief, map(known.get, systems)), "; ".join(goals(work, known))])
        rows.append(["", "times", *(brief(x if work.unit in RISING or not x else 1 / x) for x in better), ""])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def picture(medians):
    """SVG: for each work, a bar per system; longer is better."""
    lines, y = [], 0
    for name, known in medians.items():
        unit, y = WORK[name].unit, y + 30
        lines.append(f'<text y="{y}" font-weight="bold">{WORK[name].title}, {unit}</text>')
        for system, figure in known.items():
            y += 16
            share = figure / max(known.values()) if unit in RISING else min(known.values()) / max(figure, 1e-9)
            color = "crimson" if system == "minscoop" else "steelblue"
            lines.append(f'<text x="150" y="{y}" text-anchor="end">{system}</text>'
                         f'<rect x="156" y="{y - 11}" width="{500 * share:.0f}" height="13" fill="{color}"/>'
                         f'<text x="{160 + 500 * share:.0f}" y="{y}">{brief(figure)}</text>')
    return f'<svg viewBox="0 0 740 {y + 9}" font-size="12" fill="currentColor">' + "\n".join(lines) + "</svg>"


def report(figures, systems, options, facts):
    """Print the table and write the files."""
    medians = {name: {system: statistics.median(each) for system, each in known.items() if isinstance(each, list)}
               for name, known in figures.items()}
    failed = [f"{name} on {system}" for name, known in figures.items() for system in {*known} - {*medians[name]}]
    text = f"{table(medians, systems)}\n\nMedians, and below how many times as good minscoop is.\n{facts}"
    text += f"\nfailed: {', '.join(failed)}" if failed else ""
    print(text)
    if options.html:
        style = "<style>body{font:14px sans-serif;color-scheme:light dark}svg{max-width:60em}</style>"
        pathlib.Path(options.html).write_text(f'<!DOCTYPE html><meta charset="utf-8"><title>minscoop, others</title>'
                                              f"{style}{picture(medians)}<pre>{text}</pre>", encoding="utf-8")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"facts": facts, "figures": figures}, indent=1))


def parse():
    """Read the options of the command line."""
    peers = ",".join(name for name in SYSTEMS if name not in OURS)
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--systems", default=peers, metavar="NAME,...", help="if installed (default: %(default)s)")
    parser.add_argument("--only", default=",".join(WORK), metavar="NAME,...", help="work (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that work (default: 2)")
    parser.add_argument("--hosts", metavar="HOSTS", help="minscoop on these too, by tcp and by stdio: see its --hosts")
    parser.add_argument("--html", metavar="FILE", help="write a page with a picture")
    parser.add_argument("--json", metavar="FILE", help="write all figures, and the reasons of what has failed")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: to see that everything works")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # for the fresh processes
    options = parser.parse_args()
    options.systems, options.only = options.systems.split(","), options.only.split(",")
    unknown = {*options.systems, *options.only}.difference(SYSTEMS, WORK)
    if unknown:
        parser.error(f"no such system or work: {', '.join(unknown)}")
    if min(options.rounds, options.workers) < 1:
        parser.error("--rounds and --workers are at least 1")
    for path in filter(None, (options.html, options.json)):  # now, not after a quarter of an hour
        if not os.access(os.path.dirname(path) or ".", os.W_OK) or os.path.isdir(path):
            parser.error(f"cannot write {path}")
    return options


def main():
    global shrink
    options = parse()
    if options.quick:
        shrink, options.rounds = 50, 1
    if options.run:
        return run(options.run, options.only, options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that it cleans up, as after Ctrl-C
    os.environ["PATH"] += os.pathsep + os.path.dirname(sys.executable)  # where mpiexec may be
    for name in "OMPI_MCA_rmaps_base_oversubscribe", "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM":
        os.environ.setdefault(name, "1")  # Open MPI: one process more than cores, and root, as in containers
    systems = [name for name, known in SYSTEMS.items() if known.can != ["hosts"] or options.hosts if name in OURS or
               name in options.systems and importlib.util.find_spec(known.module.partition(".")[0])]
    figures = {name: {} for name in options.only}
    facts = (f"{'small sizes, no meaning; ' * options.quick}rounds: {options.rounds}, workers: {options.workers}\n"
             f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}, {sys.platform}")
    try:
        measure_all(figures, systems, options)
    finally:  # if interrupted, report what has been measured
        report(figures, systems, options, facts)


if __name__ == "__main__":
    import benchmark  # this file again, under a name by which every worker can import it
    benchmark.main()
