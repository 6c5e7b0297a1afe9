"""Libraries timed against each other: each in a process of its own, all on the same cores, in turn.

A library is a function that imports it, in its own process, and returns what it has to offer for a cell of a table: for
each contender a function that prepares a `Trial`. Before anything is imported there, the process is confined to as many
cores as it may use threads, and every thread pool is told so. The parent asks one contender after the other, round
after round, so that all see the same machine; medians over rounds are what counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

RESULTS = Path(__file__).parent.parent / "docs" / "speed.json"
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NPROC")
PAUSE = 0.02
"""Seconds for the threads of the contender before to go to sleep."""


@dataclass(frozen=True)
class Trial:
    """What is timed, and what it is judged by: `evidence` is called once, before."""

    call: Callable[[], Any]
    evidence: Callable[[], Any]
    times: int = 1
    """What a call does as often as this, and is timed once."""


Offers = Mapping[str, Callable[[], Trial]]
Library = Callable[[], Callable[[Any], Offers]]


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 11
    seconds: float = 0.02
    """A contender repeats its call for so long in each round."""
    limit: float = 30.0
    """Seconds after which a contender that does not answer is given up."""
    patience: Mapping[str, float] = field(default_factory=dict)
    """Other limits, for libraries that compile at first."""

    def rounds_for(self, seconds: float) -> int:
        """Fewer for a call that takes longer than a second."""
        return self.rounds if seconds < 1 else min(self.rounds, 3 if seconds < 10 else 1)


@contextmanager
def confined(threads: int) -> Iterator[None]:
    """Processes started inside have `threads` cores, and thread pools of that size."""
    cores, before = os.sched_getaffinity(0), dict(os.environ)
    os.environ.update(dict.fromkeys(POOLS, str(threads)))
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
    os.sched_setaffinity(0, sorted(cores)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        os.environ.clear()
        os.environ.update(before)


class Desk:
    """The side of the library: it has the trials of one cell."""

    def __init__(self, load: Library) -> None:
        self.library = load()
        self.offered: Offers = {}
        self.trials: dict[str, Trial] = {}
        gc.freeze()

    def offers(self, cell: Any) -> list[str]:
        """Names of the contenders."""
        self.trials = {}
        gc.collect()
        self.offered = self.library(cell)
        return list(self.offered)

    def prepare(self, name: str) -> Any:
        """The evidence."""
        self.trials[name] = self.offered[name]()
        return self.trials[name].evidence()

    def time(self, name: str, seconds: float) -> tuple[float, float]:
        """Wall and CPU seconds of one call, of as many as fit into `seconds`."""
        trial, count = self.trials[name], 0
        gc.disable()
        wall, cpu = time.perf_counter(), time.process_time()
        while not count or time.perf_counter() - wall < seconds:
            trial.call()
            count += trial.times
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        gc.enable()
        return wall / count, cpu / count


def _serve(pipe: Any, load: Library) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # compilers are talkative
        os.dup2(silence, stream)
    desk = None
    for method, *arguments in iter(pipe.recv, None):
        try:
            desk = desk or Desk(load)
            pipe.send((True, getattr(desk, method)(*arguments)))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:120]}"))


class Fault(Exception):
    """Why a contender has no time."""


class Restarted(Fault):
    """The process is a new one, which knows nothing of the cell."""


class Worker:
    """The side of the parent: a process that is started again when it had to be given up."""

    def __init__(self, load: Library, threads: int) -> None:
        self.load, self.threads = load, threads
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, self.load), daemon=False)
        with confined(self.threads):
            self.process.start()

    def ask(self, *message: Any, limit: float = 120.0) -> Any:
        """The answer of the desk's method; a `Fault` where there is none."""
        self.pipe.send(message)
        if not self.pipe.poll(limit):
            self.stop()
            self._start()
            raise Restarted(f"more than {limit:.0f} s")
        try:
            good, answer = self.pipe.recv()
        except EOFError:
            self._start()
            raise Restarted("the process ended") from None
        if not good:
            raise Fault(answer)
        return answer

    def stop(self) -> None:
        """Asked to end; ended, where it is busy."""
        self.pipe.send(None)
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def compare(
    cells: Sequence[Any],
    libraries: Mapping[str, Library],
    threads: int,
    judge: Callable[[Any, Any], dict[str, Any]],
    effort: Effort,
) -> Iterator[tuple[Any, dict[str, dict[str, Any]]]]:
    """For each cell the contenders' medians, `{name: {"wall", "cpu", ...}}` with what `judge` finds in the evidence,
    or `{name: {"fault"}}`."""
    workers = {name: Worker(load, threads) for name, load in libraries.items()}
    try:
        for cell in tqdm(cells, desc=f"{threads} thread{'s'[: threads - 1]}", unit="cell", smoothing=0):
            yield cell, _cell(cell, workers, threads, judge, effort)
    finally:
        for worker in workers.values():
            worker.stop()


def _cell(cell: Any, workers: Mapping[str, Worker], threads: int, judge: Any, effort: Effort) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    owners: dict[str, Worker] = {}
    for library, worker in workers.items():
        mine = _prepared(cell, library, worker, judge, effort)
        owners |= {name: worker for name, entry in mine.items() if "fault" not in entry}
        found |= mine
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in owners}
    for turn in range(effort.rounds):
        for name in _rotated(list(owners), turn):
            if samples[name] and turn >= effort.rounds_for(samples[name][0][0]):
                continue
            time.sleep(PAUSE * (threads > 1))
            try:
                samples[name].append(owners[name].ask("time", name, effort.seconds, limit=4 * effort.limit))
            except Fault as fault:
                found[name] = {"fault": str(fault)}
                del owners[name]
    for name in owners:
        wall, cpu = (_digits(statistics.median(s)) for s in zip(*samples[name], strict=True))
        found[name] |= {"wall": wall, "cpu": cpu}
    return found


def _prepared(cell: Any, library: str, worker: Worker, judge: Any, effort: Effort) -> dict[str, Any]:
    """What is known of a library's contenders before they are timed; anew without the one that broke the process."""
    broken: dict[str, Any] = {}
    while True:
        found: dict[str, Any] = {}
        try:
            names = [name for name in worker.ask("offers", cell) if name not in broken]
        except Fault as fault:
            return {library: {"fault": str(fault)}}
        for name in names:
            try:
                limit = effort.patience.get(library, effort.limit)
                found[name] = judge(cell, worker.ask("prepare", name, limit=limit))
            except Restarted as fault:
                broken[name] = {"fault": str(fault)}
                break
            except Fault as fault:
                found[name] = {"fault": str(fault)}
        else:
            return found | broken


def _rotated(names: list[str], turn: int) -> list[str]:
    k = turn % max(len(names), 1)
    return names[k:] + names[:k]


def _digits(x: float, n: int = 3) -> float:
    return float(f"{x:.{n}g}")


# What the scripts have in common. -------------------------------------------------------------------------------------


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="three short rounds, one thread: minutes, for a first look"
    )
    parser.add_argument("--threads", type=int, nargs="*", help="numbers of threads (default: 1 and 2)")
    parser.add_argument("--only", default="", help="cells whose name contains this; the others keep their results")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the results (JSON); the page is written beside it"
    )
    options = parser.parse_args()
    options.threads = options.threads or ([1] if options.quick else [1, 2])
    return options


def measure(
    part: str,
    options: argparse.Namespace,
    effort: Effort,
    cells: Sequence[Any],
    libraries: Mapping[str, Library],
    judge: Callable[[Any, Any], dict[str, Any]],
    distributions: Sequence[str],
) -> None:
    """`compare` for each number of threads; results are kept cell by cell."""
    data = load(options.output)
    data |= {"machine": machine(), "versions": data.get("versions", {}) | versions("steepest", *distributions)}
    data.setdefault("rounds", {})[part] = effort.rounds
    for threads in options.threads:
        section = data.setdefault(part, {}).setdefault(str(threads), {})
        for cell, found in compare(cells, libraries, threads, judge, effort):
            section[str(cell)] = found
            save(options.output, data)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def save(path: Path, data: dict[str, Any]) -> None:
    """One line for each cell, so that a change shows in a diff."""
    text = json.dumps(data, indent=1)
    path.write_text(_flat(text) + "\n")


def _flat(text: str) -> str:
    """JSON with its innermost objects on one line each."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if inside:
            lines[-1] += line.strip()
            inside = not line.strip().startswith("}")
        else:
            lines.append(line)
            inside = line.rstrip().endswith("{") and line.startswith("    ")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    names = [s.partition(":")[2].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def versions(*names: str) -> dict[str, str]:
    """Installed distributions among these; "-" for one that is missing."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
