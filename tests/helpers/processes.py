"""Processes that train together, as torchrun starts them, without the process that watches over them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping


def together(count: int, *command: object, environment: Mapping[str, str] | None = None, timeout: float = 600) -> str:
    """The output of ``count`` times ``python COMMAND``, each told its rank.

    Args:
        count: processes.
        command: what follows ``python``.
        environment: of every process, instead of this one's.
        timeout: seconds.

    Raises:
        subprocess.CalledProcessError: one failed or there was no more time; it has the output, and all are gone.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, *map(str, command)]
    shared = {**(os.environ if environment is None else environment), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as log:
        running = [
            subprocess.Popen(
                words, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=log, stderr=subprocess.STDOUT
            )
            for rank in range(count)
        ]
        end = time.monotonic() + timeout
        while any(process.poll() is None for process in running):
            if time.monotonic() > end or any(process.poll() for process in running):
                for process in running:
                    process.kill()
            time.sleep(0.05)
        log.seek(0)
        output = log.read()
    for process in running:
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, words, output)
    return output
