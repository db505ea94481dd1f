"""Stops one thread of a process, by its name, and keeps it stopped until the process ends: `stop_thread.py PID NAME`.

Prints `stopped` when it is. Almost always it waits for frames then, and the other threads go on.
"""

import ctypes
import os
import sys
from pathlib import Path

SEIZE, INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000
"""From ptrace(2) and waitpid(2)."""


def find_thread(pid: int, name: str) -> int:
    tasks = Path(f"/proc/{pid}/task")
    return next(int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().strip() == name)


def trace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, thread, None, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    thread = find_thread(int(sys.argv[1]), sys.argv[2])
    trace(SEIZE, thread)
    trace(INTERRUPT, thread)
    _, status = os.waitpid(thread, WALL)
    print("stopped", flush=True)  # noqa: T201  what the caller waits for
    while os.WIFSTOPPED(status):
        _, status = os.waitpid(thread, WALL)


main()
