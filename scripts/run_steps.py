#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs all that is tried before a change lands, or before a release: the steps below, two at a time.

    python3 scripts/run_steps.py short     what .ci/run does: stops at the first failure
    python3 scripts/run_steps.py long      what scripts/test --all does: goes on, and writes benchmarks/results/long_tests.md

A step's output lies in build/steps/NAME.log and is printed when the step ends; a table of all steps comes last. Steps share environments (scripts/setup) and
nothing else that they write.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "steps"
RECORD = ROOT / "benchmarks" / "results" / "long_tests.md"


@dataclass(frozen=True)
class Step:
    """A command in each form; None where the form leaves it out."""

    name: str
    short: str | None
    long: str | None


# Alone, before the long form's others: what installs the clone as it lies puts the compiled core into it, which must not change while tests run.
LONG_SETUP = ("setup", "WEIGHTPACK_REQUIRE_NATIVE=1 scripts/setup check oldest")
# In the order in which they begin. `check` makes the environment that others wait for (scripts/setup). `tests` runs on all cores, and so fills what the other
# lane leaves free: it begins early, short steps come last.
STEPS = [
    Step("check", "scripts/check", "scripts/check"),
    Step("neon", "scripts/neon", "scripts/neon --all"),
    Step("tests", "scripts/test", "scripts/test tests -n auto --all"),
    Step("sanitize", "scripts/sanitize", "scripts/sanitize --all"),
    Step("ecosystem", "scripts/test-ecosystem", "scripts/test-ecosystem --all"),
    Step("programs", None, "scripts/test-programs"),
    Step("store", None, "scripts/test-store"),
    Step("vllm", None, "scripts/test-vllm"),
    Step("install", "scripts/test-install", "scripts/test-install --all"),
    Step("cross", "scripts/cross", "scripts/cross --all"),
    Step("oldest", None, "scripts/test-oldest"),
    Step("wheels", None, "scripts/wheels"),
    Step("aarch64", None, "scripts/test-aarch64 tests/kernels tests/format tests/hostile/test_rules.py"),
    Step("docs", None, "scripts/docs --browse"),
    Step("demo", "scripts/demo", "scripts/demo"),
    Step("demo-transformers", "scripts/demo-transformers", "scripts/demo-transformers"),
    Step("demo-resident", None, "scripts/demo-resident"),
    Step("demo-store", None, "scripts/demo-store"),
    Step("demo-vllm", None, "scripts/demo-vllm"),
    Step("demo-ner", None, "scripts/demo-ner --quick"),
    Step("demo-generate", None, "scripts/demo-generate --quick"),
    Step("fuzz", None, "scripts/fuzz {fuzz_seconds}"),
]


@dataclass(frozen=True)
class Outcome:
    """How a step ended; seconds of the wall, and of all its processes on the cores."""

    step: str
    command: str
    status: int
    seconds: float
    cpu_seconds: float
    last_line: str

    @property
    def result(self) -> str:
        return "passed" if self.status == 0 else f"failed: status {self.status}"


class Run:
    """Steps of one form, some at a time."""

    def __init__(self, commands: list[tuple[str, str]], lanes: int, stop_at_failure: bool) -> None:
        self.n_steps = len(commands)
        self._waiting = list(commands)
        self._lanes = lanes
        self._stop_at_failure = stop_at_failure
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.outcomes: list[Outcome] = []

    def __call__(self) -> list[Outcome]:
        """Run them; return the outcomes in the order of their ends."""
        LOGS.mkdir(parents=True, exist_ok=True)
        lanes = [threading.Thread(target=self._lane, daemon=True) for _ in range(self._lanes)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        return self.outcomes

    def stop(self) -> None:
        """Begin no step any more, and end those that run, with all their processes."""
        with self._lock:
            self._waiting.clear()
            for process in self._running.values():
                os.killpg(process.pid, signal.SIGKILL)
            self._running.clear()

    def _lane(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                name, command = self._waiting.pop(0)
                log = LOGS / f"{name}.log"
                begin = time.monotonic()
                with log.open("wb") as output:
                    process = subprocess.Popen(command, shell=True, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
                self._running[name] = process
                say(f"---- {name} begins: {command}")
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            with self._lock:
                if name not in self._running:
                    return  # ended by stop()
                del self._running[name]
                text = log.read_text(errors="replace")
                lines = text.splitlines()
                seconds = time.monotonic() - begin
                outcome = Outcome(name, command, process.returncode, seconds, usage.ru_utime + usage.ru_stime, lines[-1].strip() if lines else "")
                self.outcomes.append(outcome)
                say(f"==== {name}: {outcome.result}, {seconds:.0f} s, its output:\n{text}==== {name}: {outcome.result}")
            if process.returncode and self._stop_at_failure:
                self.stop()


def say(text: str) -> None:
    print(text, flush=True)


def table(outcomes: list[Outcome]) -> str:
    """Return the steps in Markdown."""
    lines = ["| step | command | seconds | CPU seconds | result | last line |", "|---|---|---|---|---|---|"]
    lines += [f"| {o.step} | `{o.command}` | {o.seconds:.0f} | {o.cpu_seconds:.0f} | {o.result} | {o.last_line[:120].replace('|', '/')} |" for o in outcomes]
    return "\n".join(lines)


def machine() -> str:
    info = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in (info.read_text().splitlines() if info.exists() else []) if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def record(outcomes: list[Outcome], begun: datetime.datetime, at: str, seconds: float) -> str:
    """Return long_tests.md."""
    failed = sum(o.status != 0 for o in outcomes)
    return "\n".join(
        [
            "# The last run of the long tests",
            "",
            f"Written by `scripts/test --all`, begun {begun:%Y-%m-%d %H:%M} UTC at commit {at}. {machine()}. CONTRIBUTING says what each step is.",
            "",
            f"{len(outcomes)} steps in {seconds / 60:.0f} minutes, two at a time: {'all passed' if not failed else f'{failed} failed'}.",
            "",
            table(outcomes),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["short", "long"])
    parser.add_argument("--lanes", type=int, default=2, help="steps at a time (2)")
    parser.add_argument("--fuzz-seconds", type=int, default=60, help="for each fuzz target, in the long form (60)")
    parser.add_argument("--only", nargs="+", metavar="STEP", choices=[step.name for step in STEPS], help="these steps; nothing is recorded")
    arguments = parser.parse_args()

    commands = [(step.name, getattr(step, arguments.form)) for step in STEPS if arguments.only is None or step.name in arguments.only]
    commands = [(name, command.format(fuzz_seconds=arguments.fuzz_seconds)) for name, command in commands if command]
    runs = [Run(commands, arguments.lanes, stop_at_failure=arguments.form == "short")]
    if arguments.form == "long":
        runs.insert(0, Run([LONG_SETUP], 1, stop_at_failure=True))
    recorded = arguments.form == "long" and arguments.only is None
    begun, at, start = datetime.datetime.now(datetime.UTC), commit() if recorded else "", time.monotonic()

    outcomes: list[Outcome] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for run in runs:
        try:
            outcomes += run()
        except KeyboardInterrupt:
            run.stop()
            return 130
    seconds, n_steps = time.monotonic() - start, sum(run.n_steps for run in runs)
    say(f"\n{table(outcomes)}\n\n{len(outcomes)} of {n_steps} steps in {seconds:.0f} s")
    if recorded:
        RECORD.write_text(record(outcomes, begun, at, seconds))
        say(f"recorded in {RECORD.relative_to(ROOT)}")
    return 0 if len(outcomes) == n_steps and not any(o.status for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
