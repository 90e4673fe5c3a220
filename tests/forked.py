"""Programs in forks of a process that has imported PyTorch already: a second to start, in place of ten."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PARENT = """
import json, os, sys
import hydra, matplotlib.backends.backend_agg, torch, torchmetrics.functional.image
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
for name, number in (("out", 1), ("err", 2)):
    os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
sys.argv = ["train.py", *request["arguments"]]
exec(request["code"])
"""
TRAIN = "import train; train.main()"


class Child:
    """A program that runs. Its output is in the files `out` and `err`."""

    pid: int

    def __init__(self, parent: subprocess.Popen[str], folder: Path) -> None:
        folder.mkdir(parents=True)
        self.parent, self.out, self.err = parent, folder / "out", folder / "err"
        self.out.touch()
        self.returncode: int | None = None

    def poll(self, seconds: float = 0) -> int | None:
        """The exit code, or None if it still runs after so many seconds; -9 if SIGKILL ended it."""
        assert self.parent.stdout is not None
        if self.returncode is None and select.select([self.parent.stdout], [], [], seconds)[0]:
            self.returncode = int(self.parent.stdout.readline())
        return self.returncode

    def wait(self, seconds: float = 300) -> int:
        code = self.poll(seconds)
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.poll(10)
            raise TimeoutError(f"still running after {seconds} s: {self.err.read_text()[-2000:]}")
        return code


class Forks:
    """Starts one program at a time."""

    def __init__(self, folder: Path, project: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.folder, self.started = folder, 0
        self.child: Child | None = None
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # their laws are of processes, and bit for bit
        parent = [sys.executable, "-c", PARENT]
        self.parent = subprocess.Popen(parent, cwd=project, env=environment, **pipes)  # type: ignore[call-overload]
        self.parent.stdout.readline()

    def start(self, *arguments: str, code: str = TRAIN) -> Child:
        """Runs `code` with the given command line."""
        if self.child is not None and self.child.poll() is None:  # of a test that failed
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait(10)
        self.started += 1
        child = self.child = Child(self.parent, self.folder / str(self.started))
        request = {"out": str(child.out), "err": str(child.err), "arguments": arguments, "code": code}
        self.parent.stdin.write(json.dumps(request) + "\n")
        child.pid = int(self.parent.stdout.readline())
        return child

    def close(self) -> None:
        self.parent.stdin.close()
        self.parent.wait(timeout=10)


RANKS = """
import os, signal, sys
left = {{}}
for rank in range({ranks}):
    child = os.fork()
    if not child:
        break
    left[child] = rank
else:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    codes = [None] * {ranks}
    while left:
        child, status = os.wait()
        codes[left.pop(child)] = os.waitstatus_to_exitcode(status)
        for other in left if any(code is not None and code and code < 128 for code in codes) else ():
            os.kill(other, signal.SIGTERM)
    print("\\nCODES", *codes, flush=True)
    os._exit(0)
if {ranks} > 1:
    os.environ |= {{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "{ranks}", "MASTER_ADDR": "localhost"}}
    os.environ["MASTER_PORT"] = "{port}"
{code}
"""


def as_ranks(ranks: int, port: int, code: str = TRAIN) -> str:
    """Code of a small torchrun: `code` in so many ranks, with `rank` their number; when one fails, the others get
    SIGTERM.

    Signals to the group reach the ranks and what they start. Prints a line of the exit codes at the end.
    """
    return RANKS.format(ranks=ranks, port=port, code=code)


def codes_of(child: Child) -> list[int]:
    """The exit codes of the ranks that `as_ranks` started, once all have ended."""
    (line,) = (line for line in child.out.read_text().splitlines() if line.startswith("CODES "))
    return [int(code) for code in line.split()[1:]]
