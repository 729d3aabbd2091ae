"""Which TCP ports the embedded Kafka listens on. Loopback only."""

from __future__ import annotations

import errno
import random
import socket

from pipeline.embedded.errors import EmbeddedError

HOST = "127.0.0.1"

# Below the range that operating systems give to outgoing connections (Linux: from 32768), so that
# a port chosen now is not somebody's outgoing connection a second or a restart later.
_CHOICE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether one can listen on the port now. Raises `EmbeddedError` if one never may."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the JVM does: connections of an earlier run in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise EmbeddedError(
                f"Cannot listen on {HOST}:{port} ({error.strerror}). Choose another port."
            ) from error
    return True


def answers(port: int) -> bool:
    """Whether somebody accepts a connection on the port."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            # On loopback a socket may be given the very port it asks for, and reach itself.
            return bool(connection.getsockname() != connection.getpeername())
    except OSError:
        return False


def free_port(preferred: int | None = None) -> int:
    """The preferred port if it is free, else one chosen at random."""
    if preferred is not None and is_free(preferred):
        return preferred
    # Not reproducible on purpose: two starts at the same moment should not choose the same.
    for port in random.SystemRandom().sample(_CHOICE, 200):
        if is_free(port):
            return port
    raise EmbeddedError(f"No free port between {_CHOICE.start} and {_CHOICE.stop} on {HOST}.")


def demand(port: int, option: str) -> int:
    """The port, which must be free. Raises `EmbeddedError` naming the command line option."""
    if not is_free(port):
        raise EmbeddedError(
            f"Port {port} on {HOST} is taken by another program. "
            f"End that program, or choose another port with {option}."
        )
    return port
