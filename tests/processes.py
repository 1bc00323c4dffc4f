"""Processes that work together and wait for one another."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess


def exit_statuses(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Starts processes and returns how each ended, however long a busy machine takes.

    One that fails ends the others, which wait for it in vain; None is the status of these.
    """
    for process in processes:
        process.start()
    while (running := [process for process in processes if process.exitcode is None]) and not any(one.exitcode for one in processes):
        wait([process.sentinel for process in running])
    statuses = [process.exitcode for process in processes]
    for process in running:
        process.kill()
        process.join()
    return statuses
