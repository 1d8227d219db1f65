"""PYTHONPATH=. python examples/scale.py

More: --hosts 10 100 1000 --kinds map heavy tree --seconds 0.01 0.1 1 10 --svg scale.svg; --memory; --costs; --help.

How far one pool goes: the real Broker, Root and Worker of minscoop on hundreds of virtual hosts, in virtual time.

The code that decides is real; the clock, the network and the tasks are virtual: a task of ten seconds takes no time.
Each process handles one message after another, at the costs below, so one that has too much to do falls behind. A
running task occupies its worker; messages that arrive meanwhile are answered by its deputy after ATTEND. Tasks of a
tree create others and do not wait for them: that would need a thread for each. When the clock starts, all processes
are connected, and all workers hungry. The ideal is all work shared evenly, or the longest task if that is longer; for
a tree, the best possible schedule.
"""
import argparse
import gc
import heapq
import importlib
import json
import itertools
import math
import pathlib
import pickle
import random
import shutil
import tempfile
import threading
import time
import tracemalloc

import minscoop

# Seconds, measured on one core of 2.5 GHz; the handlers' own times in the report are those of this run. ROOT and SHIP
# are twice what `--costs` measures: that floods the root with one kind of message, but caches will not hold everything
# at once. RESULT was measured within a simulation of 1000 hosts, where they do not.
BROKER = 25e-6   # of a broker for a message: 20 us to receive and send six frames, 5 us in handle()
ROOT = 15e-6     # of the root for a message
SHIP = 30e-6     # of the root for a TASK that it pickles
RESULT = 6e-6    # of the root for a RESULT or a SPLIT, beside the message
WORKER = 50e-6   # of a worker to wake up, or around a task
IPC = 100e-6     # from one process of a host to another
LINKS = 1e-4, 50e-3  # from a host to the top, one way: chosen for each host, evenly on a logarithmic scale
SIZE = 64        # workers of a host


RealSlice = minscoop.Slice


class Pause(BaseException):
    """Raised where a task would run: its worker runs it when its time is over."""


class Slice(minscoop.Slice):
    """A slice of a map that takes virtual time."""

    begun = False

    def run(self):
        """Pause the first time; run the second time, when the slice has ended."""
        if not self.begun:
            self.begun = True
            raise Pause
        super().run()


def work(seconds):
    """A task of a map."""
    Pool.current.now += seconds


def grow(seconds, levels, children):
    """A task of a tree: it takes a while, creates others, and does not wait for them."""
    pool = Pool.current
    pool.now += seconds
    for _ in range(children if levels > 1 else 0):
        pool.active.submit(grow, (seconds, levels - 1, children), {})


def duration(item):
    """How long an item will take: the argument of ``work``, or a submitted call."""
    return item if isinstance(item, float) else item[1][0]


class Root(minscoop.Root):
    """The root without keeper and socket."""

    def __init__(self, pool):
        self.pool, self.free, self.cost, self.out, self.size = pool, 0.0, 0.0, [], 0
        self.hosts, self.closing, self.ended, self.job, self.news = {}, False, False, None, 0
        self.options = {"all_hosts": False, "check": True}
        minscoop.Node.__init__(self, minscoop.ROOT, 1, 3)
        self.send(b"HELLO")
        self.flush()

    def send_all(self, *messages):
        """Keep messages until the one at hand is handled: see ``flush``."""
        self.out += messages

    def arrive(self, sender, frames):
        """Handle a message, after those that came before."""
        self.pool.now = max(self.pool.now, self.free)
        start = time.process_time()
        self.inbox.append(frames)
        self.serve()
        while self.job and self.job.exhausted and self.job.read < self.job.pulled and self.job.available():
            self.job.next_chunk(None)
        self.cost += time.process_time() - start
        self.free = self.pool.now + ROOT + RESULT * self.news + SHIP * sum(f[0] == b"TASK" for f in self.out)
        self.flush()

    def flush(self):
        """Send the messages that were kept."""
        self.news, out, self.out = 0, self.out, []
        for frames in out:
            self.pool.post(self.name, b"0", frames, self.free)

    def on_RESULT(self, *fields):
        """Counted, since each takes time."""
        self.news += 1
        super().on_RESULT(*fields)

    def on_SPLIT(self, *fields):
        """Counted, since each takes time."""
        self.news += 1
        super().on_SPLIT(*fields)


class Worker(minscoop.Worker):
    """A worker without process, threads and socket."""

    def __init__(self, pool, name):
        super().__init__(name, dict(total=1, retries=3, name="", profile=None, address=None), bytearray(256))
        self.pool, self.holder.ident = pool, threading.get_ident()
        self.host, self.unit, self.looking = minscoop.host_of(name), None, False
        self.send(b"HELLO")
        self.step()

    def send_all(self, *messages):
        """Send to this host's broker."""
        for frames in messages:
            self.pool.post(self.name, self.host, frames, self.pool.now)

    def arrive(self, sender, frames):
        """A message arrives: it wakes an idle worker, or the deputy, which watches the socket while a task runs."""
        self.inbox.append(frames)
        self.look_soon()

    def look_soon(self):
        """Schedule a look at the socket, at which wanted work is given away."""
        if not self.looking:
            self.looking = True
            self.pool.at(self.pool.now + WORKER + (minscoop.ATTEND if self.unit else 0), self.look)

    def look(self):
        """Look at the socket: an idle worker itself, else the deputy, as in ``stand_in``."""
        self.looking = False
        if self.unit is None:
            self.step()
        else:
            self.serve(as_deputy=True)
            if self.wanted:
                self.give(last=True)

    def step(self):
        """The loop of ``Worker.work``, until a task begins."""
        self.serve()
        while self.unit is None:
            unit = self.take(None, None)
            if unit is None:
                self.rest()
                return
            self.run(unit)

    def doze(self, ready, timeout):
        """Do nothing: the next message calls ``step``."""

    def run(self, unit):
        """Begin a task; ``end`` is called when its time is over."""
        if isinstance(unit, Slice):
            try:
                super().run(unit)
            except Pause:
                seconds = sum(map(duration, unit.span.items(unit.lo, unit.hi)[0]))
            else:
                return
        else:
            seconds = duration(unit._call)
        self.unit, self.began = unit, self.pool.now + WORKER
        self.pool.at(self.began + seconds, self.end)
        if self.wanted and self.queue:
            self.look_soon()

    def end(self):
        """The time of a task is over: run its code now, with the clock set back to its beginning."""
        unit, self.unit, pool = self.unit, None, self.pool
        pool.now, pool.active = self.began, self
        if isinstance(unit, Slice):
            unit.run()
            unit.deliver()
            pool.done += unit.hi - unit.lo
        else:
            super().run(unit)
            pool.done += 1
        pool.finished = max(pool.finished, pool.now)
        self.step()


class Host:
    """A host's broker, which handles one message after another."""

    def __init__(self, pool, name, size):
        self.pool, self.name, self.free, self.cost, self.messages = pool, name, 0.0, 0.0, 0
        self.alarm, self.patient = None, False
        self.broker = minscoop.Broker(name, size)

    def arrive(self, sender, frames):
        """Handle a message, after those that came before."""
        self.act(self.broker.handle, minscoop.UP if sender == b"0" else sender, frames)

    def act(self, method, *args):
        """Call a method of the broker, and send the messages that it returns."""
        start, began = max(self.pool.now, self.free), time.process_time()
        out = method(*args, start)
        self.cost += time.process_time() - began
        self.messages += 1
        self.free = start + BROKER
        for receiver, frames in out:
            self.pool.post(self.name, b"0" if receiver == minscoop.UP else receiver, frames, self.free)
        if self.broker.parcels and self.alarm != self.broker.due:
            self.alarm = self.broker.due
            self.pool.at(self.alarm, self.flush)
        if self.broker.waiting and not self.patient:
            self.patient = True
            self.pool.at(self.free + minscoop.PATIENCE, self.lose_patience)

    def flush(self):
        """Send what the broker has collected, if it is due."""
        if self.broker.parcels and self.pool.now >= self.broker.due:
            self.act(self.broker.flush)

    def lose_patience(self):
        """A node that the broker believes to have more work has not answered in time."""
        self.patient = False
        if self.broker.waiting:
            self.act(self.broker.tick)

    def tick(self):
        """Call the broker's ``tick`` once per HEARTBEAT."""
        self.act(self.broker.tick)
        self.pool.at(self.pool.now + minscoop.HEARTBEAT, self.tick)


class Pool:
    """Root, brokers and workers, and the network between them. Stands in for the module `time`."""

    def __init__(self, hosts, size=SIZE, seed=0):
        chance, Pool.current = random.Random(seed), self
        minscoop.time, minscoop.Slice = self, Slice
        self.now = self.finished = 0.0
        self.events, self.serial, self.done, self.messages, self.hosts = [], 0, 0, 0, hosts
        self.places, self.links = {b"0": Host(self, b"0", 0)}, {b"0": IPC}
        self.workers = hosts * size
        for host in (b"%d" % number for number in range(1, hosts + 1)):
            self.links[host] = LINKS[0] * (LINKS[1] / LINKS[0]) ** chance.random()
            self.places[host] = Host(self, host, size)
            facts = json.dumps(dict(host=f"h{host.decode()}", number=host.decode(), workers=size, state="ready",
                                    python="3", transport="none", address=None)).encode()
            self.places[host].broker.facts = facts
            self.post(host, b"0", [b"HELLO", facts], 0.0)
            for number in range(1, size + 1):
                name = b"%s.%d" % (host, number)
                self.places[name] = Worker(self, name)
        self.root = self.places[minscoop.ROOT] = Root(self)
        self.go(lambda: False)
        for place in self.places.values():
            if isinstance(place, Host):
                self.at(self.now + minscoop.HEARTBEAT * chance.random(), place.tick)

    def start(self):
        """Start the clock: what was before does not count."""
        self.began = self.now = self.root.free = max(self.now, self.root.free)
        self.done, self.messages, self.root.cost = 0, 0, 0.0
        for place in self.places.values():
            if isinstance(place, Host):
                place.cost = place.messages = 0

    def monotonic(self):
        """The virtual time, in seconds."""
        return self.now

    perf_counter = monotonic

    def at(self, when, action, *args):
        """Schedule an action."""
        self.serial += 1
        heapq.heappush(self.events, (when, self.serial, action, args))

    def post(self, sender, receiver, frames, when):
        """Send a message: within a host by ipc, else over the link of the host that is not the top."""
        one, other = sender.partition(b".")[0], receiver.partition(b".")[0]
        self.messages += 1
        self.at(when + (IPC if one == other else self.links[other if one == b"0" else one]), self.arrive, receiver,
                sender, [bytes(frame) for frame in frames])

    def arrive(self, receiver, sender, frames):
        """Deliver a message."""
        self.places[receiver].arrive(sender, frames)

    def go(self, ready):
        """Let time pass until ready() is true, or nothing is left to happen."""
        while self.events and not ready():
            self.now, _, action, args = heapq.heappop(self.events)
            action(*args)

    def map(self, seconds):
        """A map over tasks of these durations, until the root has read all results. There may be several in a row."""
        self.start()
        job = self.root.job = minscoop.Mapping(self.root, minscoop.Recipe(work), [seconds])
        self.root.flush()
        self.go(lambda: job.read == len(seconds))
        return self.report(len(seconds), sum(seconds), max(seconds), self.root.free)

    def tree(self, seconds, levels, children):
        """A tree of tasks, until the last has ended."""
        self.start()
        self.root.submit(grow, (seconds, levels, children), {})
        self.root.flush()
        tasks = (children ** levels - 1) // (children - 1)
        self.go(lambda: self.done == tasks)
        return self.report(tasks, tasks * seconds, seconds * self.rounds(levels, children), self.finished)

    def rounds(self, levels, children):
        """The length of a tree's best schedule, in tasks one after another: those nearest to its root run first."""
        ready, rounds = [1] + [0] * levels, 0
        while any(ready[:levels]):
            rounds, free = rounds + 1, self.workers
            for level, count in list(enumerate(ready[:levels])):
                run = min(count, free)
                free -= run
                ready[level] -= run
                ready[level + 1] += run * children
        return rounds

    def report(self, tasks, total, longest, end):
        """The figures of a run. longest: a lower bound of its seconds."""
        span, top = max(end, self.finished) - self.began, self.places[b"0"]
        assert self.done == tasks, f"{self.done} of {tasks} tasks have run"
        return dict(hosts=self.hosts, tasks=tasks, seconds=span, efficiency=max(total / self.workers, longest) / span,
                    messages=self.messages / tasks, top=top.messages / tasks, broker=top.cost / span,
                    modelled=top.messages * BROKER / span, root=self.root.cost / span)


def pareto(count, mean, seed=0):
    """Durations with a heavy tail: most are short, a few take hundreds of times as long."""
    chance = random.Random(seed)
    return [min(300 * mean, mean / 3 * chance.paretovariate(1.5)) for _ in range(count)]


def simulate(hosts, kind, seconds, per_worker=10):
    """Simulate one line of the table; return its figures."""
    gc.disable()  # millions of objects, and no garbage in cycles
    try:
        pool = Pool(hosts)
        count = pool.workers * per_worker
        if kind == "tree":
            return pool.tree(seconds, max(2, round(math.log(3 * count, 4))), 4)
        return pool.map([seconds] * count if kind == "map" else pareto(count, seconds))
    finally:
        minscoop.time, minscoop.Slice = time, RealSlice
        gc.enable()


def memory(hosts=1563, tasks=40):
    """(bytes per task in flight, bytes of all bookkeeping) of the brokers of a pool of 64 workers per host."""
    for name in minscoop.FIELDS:
        minscoop.shape_of(name.encode())  # made at the first call, which is not to be measured
    tracemalloc.start()
    top, below = minscoop.Broker(), minscoop.Broker(b"1", SIZE)
    top.on_SIZE = lambda *_: None
    for number in range(1, hosts + 1):
        facts = dict(host="h", number=f"{number}", workers=SIZE)
        top.handle(b"%d" % number, [b"HELLO", json.dumps(facts).encode()], 0.0)
    several = tracemalloc.get_traced_memory()[0]
    for number in range(1, SIZE + 1):
        below.handle(b"1.%d" % number, [b"HELLO"], 0.0)
    empty = tracemalloc.get_traced_memory()[0]
    for serial in range(SIZE * tasks):
        task = [b"TASK", b"0.root:%d/%d" % (serial, 7 * serial), b"", b"1", b"0", b"1", b"0", b"", bytes(100)]
        below.handle(minscoop.UP, task, 0.0)
        top.handle(b"1", [b"HUNGRY", b"1"], 0.0)
        top.handle(minscoop.ROOT, task, 0.0)
    top.out, below.out = [], []
    held = tracemalloc.get_traced_memory()[0] - empty
    tracemalloc.stop()
    return held / len(below.placed), several + hosts * (empty - several)


class Flooded(minscoop.Node):
    """A root with a socket, to which one kind of message is sent again and again."""

    def __init__(self, count, *frames):
        minscoop.import_zmq()
        super().__init__(minscoop.ROOT, 64, 3)
        self.deputise = lambda: None
        directory = tempfile.mkdtemp()
        router = minscoop.zmq.Context.instance().socket(minscoop.zmq.ROUTER)
        router.sndhwm = 0
        router.bind(f"ipc://{directory}/flood")
        self.open(f"ipc://{directory}/flood", b"root")
        name = router.recv_multipart()[0]
        for _ in range(count):
            minscoop.transmit(router, [name, *minscoop.bundled([frames])])
        time.sleep(1)  # until all messages have arrived
        self.flood = router, directory, count

    def take_all(self):
        """Handle all messages; return the seconds per message."""
        start = time.thread_time()
        self.serve()
        (router, directory, count), seconds = self.flood, time.thread_time() - start
        assert not self.dropped and not self.wanted
        self.close()
        router.close(linger=0)
        shutil.rmtree(directory)
        return seconds / count


def costs(count=20000):
    """Seconds of the root for an empty MANY, for a TASK that it gives, for a RESULT within a MANY."""
    message = Flooded(count, b"MANY", minscoop.ROOT, bytes(64), bytes(64), pickle.dumps([], 5)).take_all()
    giver = Flooded(count, b"HUNGRY", b"1", b"1")
    minscoop.Mapping(giver, minscoop.Recipe(work), [[float(i) for i in range(16 * count)]])
    giver.portion = lambda *_: 16
    task = giver.take_all() - message / 2
    owner, body, results = Flooded(1, b"SIZE", b"64"), minscoop.encode_results([1.0], {}, None), []
    span = minscoop.Mapping(owner, minscoop.Recipe(work), [range(2 * count)]).spans[0]
    for i in range(0, 2 * count, 2):
        task_id = owner.register(span, i, i + 2, ())
        results.append((b"RESULT", task_id, b"%d" % i, b"1", b"0", *body))
    owner.inbox.append([b"MANY", minscoop.ROOT, b"", b"", pickle.dumps(results, 5)])
    return message, task, owner.take_all() / count


COLUMNS = ["hosts", "kind", "task, s", "tasks", "took, s", "efficiency", "messages/task", "at the top", "top broker",
           "with sockets", "root"]


def line_of(row):
    """The cells of one line of the table, as texts."""
    return [f"{row['hosts']}", row["kind"], f"{row['length']:g}", f"{row['tasks']}", f"{row['seconds']:.2f}",
            f"{row['efficiency']:.3f}", f"{row['messages']:.2f}", f"{row['top']:.3f}", f"{row['broker']:.3f}",
            f"{row['modelled']:.3f}", f"{row['root']:.3f}"]


KINDS = {"map": "#0072b2", "heavy": "#d55e00", "tree": "#009e73"}
DASHES = ["1,3", "4,3", "9,3", ""]  # from the shortest tasks to the longest
LEFT, WIDTH, HEIGHT = 50, 330, 200


def curve(rows, key, title, top):
    """One column against the number of hosts, as SVG: a line for each kind and length of task."""
    reach, lines = max(1, math.log10(max(row["hosts"] for row in rows))), {}
    for row in sorted(rows, key=lambda row: row["hosts"]):
        place = f"{LEFT + WIDTH * math.log10(row['hosts']) / reach:.0f},{HEIGHT - 170 * min(1, row[key] / top):.0f}"
        lines.setdefault((row["kind"], row["length"]), []).append(place)
    lengths = sorted({length for _, length in lines})
    parts = [f'<text x="{LEFT}" y="16">{title}</text><path d="M{LEFT},30V{HEIGHT}H{LEFT + WIDTH}" fill="none" '
             f'stroke="currentColor"/><text x="8" y="36">{top:.2g}</text><text x="8" y="{HEIGHT}">0</text>']
    parts += [f'<text x="{LEFT + WIDTH * i / reach - 8:.0f}" y="{HEIGHT + 16}">{10 ** i}</text>'
              for i in range(int(reach) + 1)]
    for (kind, length), places in lines.items():
        dash = DASHES[lengths.index(length) - len(lengths)]
        parts.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="{KINDS[kind]}" stroke-width="2" '
                     f'stroke-dasharray="{dash}"><title>{kind}, tasks of {length:g} s</title></polyline>')
    return "".join(parts)


def legend(rows):
    """The legend: colours are kinds of work, dashes are lengths of tasks."""
    lengths = sorted({row["length"] for row in rows})
    entries = [(kind, KINDS[kind], "") for kind in sorted({row["kind"] for row in rows})]
    entries += [(f"{length:g} s", "currentColor", DASHES[i - len(lengths)]) for i, length in enumerate(lengths)]
    return "".join(f'<path d="M0,{20 * i}h36" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
                   f'<text x="44" y="{20 * i + 4}">{text}</text>' for i, (text, colour, dash) in enumerate(entries))


def picture(rows):
    """The curves and their legend, as SVG."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH + 240}" height="{HEIGHT + 30}" '
            'font-family="sans-serif" font-size="12" style="background:#fff;color:#222" fill="#222">'
            f'{curve(rows, "efficiency", "efficiency, against hosts of 64 workers", 1)}'
            f'<g transform="translate({WIDTH + 70})">'
            f'{curve(rows, "modelled", "load of the top broker, in cores, sockets included", 1)}</g>'
            f'<g transform="translate({2 * WIDTH + 150},40)">{legend(rows)}</g></svg>')


def page(rows):
    """The page: two curves and the table."""
    cells = "".join("<tr>" + "".join(f"<td>{text}</td>" for text in line_of(row)) + "</tr>" for row in rows)
    return (f"<!doctype html><meta charset=utf-8><title>minscoop at scale</title><h1>minscoop at scale</h1>"
            f"<p>Hosts of {SIZE} workers, in virtual time; the loads are shares of a core.</p>"
            f"{picture(rows)}<table><tr><th>{'<th>'.join(COLUMNS)}</tr>{cells}</table>")


def sweep(options):
    """Simulate the rows of the table and yield each: the large pools last, since they take longest."""
    for hosts, kind, length in itertools.product(options.hosts, options.kinds, options.seconds):
        yield dict(simulate(hosts, kind, length, options.per_worker), kind=kind, length=length)


def read(files):
    """The rows that `--json` has written."""
    return [row for file in files for row in json.loads(pathlib.Path(file).read_text())]


def main():
    """Read the command line; simulate, print and draw."""
    parser = argparse.ArgumentParser(description="How far one pool goes, in virtual time.")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 10], help="numbers of hosts (default: 1 10)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0], help="lengths of tasks (default: 1)")
    parser.add_argument("--kinds", nargs="+", choices=["map", "heavy", "tree"], default=["map"], help="(default: map)")
    parser.add_argument("--per-worker", type=int, default=10, metavar="N", help="tasks for each (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--draw", metavar="FILE", nargs="+", help="take figures from such files, and simulate nothing")
    parser.add_argument("--html", metavar="FILE", help="draw the curves into a page of its own")
    parser.add_argument("--svg", metavar="FILE", help="draw the curves as a picture")
    parser.add_argument("--memory", action="store_true", help="measure what brokers remember, too")
    parser.add_argument("--costs", action="store_true", help="measure what messages cost the root, too")
    options = parser.parse_args()
    if not all(0 < number < math.inf for number in (*options.hosts, *options.seconds, options.per_worker)):
        parser.error("--hosts, --seconds and --per-worker have to be greater than 0")
    rows, form = [], "{:>6} {:>6} {:>8} {:>8} {:>9} {:>11} {:>14} {:>11} {:>11} {:>13} {:>6}"
    print(form.format(*COLUMNS))
    for row in read(options.draw) if options.draw else sweep(options):
        rows.append(row)
        print(form.format(*line_of(row)), flush=True)
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps(rows, indent=1))
    if options.memory:
        task, bookkeeping = memory()
        print(f"{task:.0f} bytes for a task in flight; {bookkeeping / 1e6:.0f} MB for {1563 * SIZE} workers")
    if options.costs:
        message, task, result = costs()
        print(f"a message takes the root {message * 1e6:.1f} us, a TASK that it gives {task * 1e6:.1f} us, a RESULT "
              f"amid others {result * 1e6:.1f} us")
    if options.html:
        pathlib.Path(options.html).write_text(page(rows), encoding="utf-8")
    if options.svg:
        pathlib.Path(options.svg).write_text(picture(rows), encoding="utf-8")


if __name__ == "__main__":  # its functions travel by name
    importlib.import_module("scale").main()
