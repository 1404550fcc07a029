"""Read changed files by the hundred thousand: none may crash, hang, take much memory or leave a sample unaccounted for.

    python tests/fuzz/fuzz.py --files 100000            # or --seconds 600; failures go to runs/fuzz/
    python tests/fuzz/fuzz.py --replay 4711             # one step again, in this process

A step is a number; with the seed it determines its files. Most steps read one file by the reader that it is for; every
DETECT_EVERY-th step detects FILES_PER_ARCHIVE changed miniSEED files as one archive, without Ray. Workers are
processes, so that a crash of compiled code costs a step: the driver sees it, names it, and goes on. Seconds are those
of the processor, so that other work on the machine is not taken for a hang.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

SEED = 20261129
DETECT_EVERY = 100
FILES_PER_ARCHIVE = 20
MAX_SECONDS_PER_FILE = 10.0
MAX_MEMORY_BYTES = 4 * 2**30
"""Address space of a worker beyond what its imports take."""
MAX_SILENT_SECONDS = 600.0
"""A worker that has not answered for so long waits for something that never comes."""
MAX_START_SECONDS = 3600.0
"""The first worker compiles, which takes minutes on a busy machine."""
STEPS_PER_WORKER = 20_000
"""Then a worker is replaced."""


@dataclass
class Tally:
    """What came of the steps so far.

    Attributes:
        files: changed files by kind.
        failures: (step, what happened).
        slowest_s: the longest that a file, or an archive's file on average, took.
        seconds: since the beginning.
    """

    files: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    seconds: float = 0.0

    @property
    def num_files(self) -> int:
        return self.files.total()

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.files.items()))
        return (
            f"{self.num_files} files in {self.seconds:.0f} s, the slowest {self.slowest_s:.2f} s: {kinds}; "
            f"{len(self.failures)} failures"
        )


def run_step(step: int, seed: int, folder: Path) -> tuple[str, list[bytes], str]:
    """Run a step in this process; return the kind of its files, the files, and what went wrong, "" for nothing."""
    import targets

    rng = np.random.default_rng([seed, step])
    if step % DETECT_EVERY == DETECT_EVERY - 1:
        kind, contents, action = targets.archive_of_files(rng, folder, FILES_PER_ARCHIVE)
    else:
        kind, content, action = targets.one_file(rng, folder)
        contents = [content]
    try:
        targets.quietly(action)
    except MemoryError:
        return kind, contents, f"more than {MAX_MEMORY_BYTES >> 30} GiB of memory"
    except Exception:
        return kind, contents, traceback.format_exc()
    return kind, contents, ""


def _work(pipe: Any, seed: int) -> None:
    """Run the steps that the driver sends."""
    import targets

    # What the C library and evalresp print is not what is looked at.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with tempfile.TemporaryDirectory(prefix="firnline-fuzz-") as name:
        targets.warm_up(Path(name))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(None)
    while (step := pipe.recv()) is not None:
        folder = Path(tempfile.mkdtemp(prefix="firnline-fuzz-"))
        began = time.process_time()
        kind, contents, problem = run_step(step, seed, folder)
        shutil.rmtree(folder, ignore_errors=True)
        pipe.send((kind, len(contents), time.process_time() - began, problem))


class _Worker:
    """A process that runs steps, and the step that it runs."""

    def __init__(self, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, seed), daemon=True)
        self.process.start()
        theirs.close()
        self.step: int | None = None
        self.since = time.monotonic()
        self.computed_before = 0.0
        self.num_steps = 0
        self.is_ready = False

    def send(self, step: int | None) -> None:
        self.step, self.since, self.num_steps = step, time.monotonic(), self.num_steps + 1
        self.computed_before = self.computed()
        self.pipe.send(step)

    def computed(self) -> float:
        """Return the seconds of a processor that the process has used."""
        try:
            words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def hangs(self) -> str:
        """Return what is wrong where the step takes too long, else ""."""
        silent = MAX_SILENT_SECONDS if self.is_ready else MAX_START_SECONDS
        if time.monotonic() - self.since > silent:
            return f"no answer after {silent:g} s"
        if not self.is_ready or self.step is None:
            return ""
        is_archive = self.step % DETECT_EVERY == DETECT_EVERY - 1
        allowed = MAX_SECONDS_PER_FILE * (FILES_PER_ARCHIVE if is_archive else 1)
        used = self.computed() - self.computed_before
        return f"no answer after {used:.0f} s of a processor" if used > allowed else ""

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def fuzz(*, seed: int, num_files: int, seconds: float, num_workers: int, first_step: int = 0) -> Tally:
    """Run steps until so many files were read or so much time has passed."""
    tally = Tally()
    began = time.monotonic()
    step = first_step
    workers = [_Worker(seed) for _ in range(num_workers)]
    told = began
    try:
        while workers:
            ready = wait([worker.pipe for worker in workers], timeout=0.5)
            for worker in list(workers):
                replaced = False
                if worker.pipe in ready:
                    try:
                        result = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join(5)
                        tally.failures.append(
                            (-1 if worker.step is None else worker.step, f"the process died: {worker.process.exitcode}")
                        )
                        replaced = True
                    else:
                        if result is not None:
                            kind, count, took, problem = result
                            tally.files[kind] += count
                            tally.slowest_s = max(tally.slowest_s, took / count)
                            if problem:
                                tally.failures.append((worker.step, problem))
                            elif took / count > MAX_SECONDS_PER_FILE:
                                tally.failures.append((worker.step, f"{took / count:.1f} s a file"))
                        worker.is_ready = True
                        worker.step = None
                        replaced = worker.num_steps >= STEPS_PER_WORKER
                elif problem := worker.hangs():
                    tally.failures.append((-1 if worker.step is None else worker.step, problem))
                    replaced = True
                tally.seconds = time.monotonic() - began
                done = tally.num_files >= num_files or tally.seconds > seconds
                if replaced or (done and worker.step is None):
                    worker.end()
                    workers.remove(worker)
                    if not done:
                        workers.append(_Worker(seed))
                elif worker.is_ready and worker.step is None:
                    worker.send(step)
                    step += 1
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(tally, flush=True)
    finally:
        for worker in workers:
            worker.end()
    return tally


def keep(tally: Tally, seed: int, folder: Path) -> None:
    """Write the files of the failures, and what happened, into a folder."""
    for step, problem in tally.failures[:100]:
        there = folder / f"{step}"
        there.mkdir(parents=True, exist_ok=True)
        (there / "problem.txt").write_text(problem)
        if step >= 0:
            _, contents = _files(step, seed)
            for index, content in enumerate(contents):
                (there / f"{index:02d}").write_bytes(content)


def _files(step: int, seed: int) -> tuple[str, list[bytes]]:
    """Return the kind and content of a step's files, without reading them."""
    import targets

    rng = np.random.default_rng([seed, step])
    if step % DETECT_EVERY == DETECT_EVERY - 1:
        return targets.archive_of_files(rng, Path(), FILES_PER_ARCHIVE)[:2]
    kind, content, _ = targets.one_file(rng, Path())
    return kind, [content]


def main() -> int:
    """Run the command line; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_seconds = float(os.environ.get("FIRNLINE_FUZZ_SECONDS", "inf"))
    parser.add_argument("--files", type=int, default=100_000, help="changed files to read (100000)")
    parser.add_argument("--seconds", type=float, default=default_seconds, help="stop earlier after so many seconds")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, help="run one step in this process")
    parser.add_argument("--failures", type=Path, default=Path("runs/fuzz"), help="where failures are kept")
    given = parser.parse_args()
    if given.replay is not None:
        with tempfile.TemporaryDirectory() as folder:
            kind, _, problem = run_step(given.replay, given.seed, Path(folder))
        print(f"step {given.replay} ({kind}): {problem or 'nothing wrong'}")
        return bool(problem)
    tally = fuzz(
        seed=given.seed,
        num_files=given.files,
        seconds=given.seconds,
        num_workers=given.workers,
        first_step=given.first_step,
    )
    keep(tally, given.seed, given.failures)
    for step, problem in tally.failures[:20]:
        print(f"step {step}: {problem.strip().splitlines()[-1]}")
    print(tally)
    return bool(tally.failures)


if __name__ == "__main__":
    sys.exit(main())
