"""What pacing has learned, as bytes in a shard's snapshot: a takeover need not relearn it.

Never needed and never trusted: what cannot be read is left out, and serving goes by the plain
limits until enough has been seen again. What was going on is not kept (pauses whose stopping is
being measured, plans of a day), nor times, but where they are in hours: only rates, prices, curves
and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.pacing.columns import Columns

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MEMORY_VERSION: Final = 2
MOST_GROUPS: Final = 20_000
"""Ad groups of a shard that are kept, those with most events: some 900 bytes each."""


class _Memory(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    groups: list[str]
    campaigns: list[str]
    columns: dict[str, dict[str, bytes]]
    common: dict[str, bytes]


_decoder = msgspec.msgpack.Decoder(_Memory)
_OF_CAMPAIGNS: Final = "campaigns"


def remember(
    columns: Mapping[str, Columns],
    common: Mapping[str, Floats],
    groups: tuple[Rows, Sequence[str]],
    campaigns: tuple[Rows, Sequence[str]],
) -> bytes:
    """The rows of a shard, with their names, and the common figures. Columns whose name begins
    with `campaigns` are by row of the campaign."""
    return msgspec.msgpack.encode(
        _Memory(
            version=MEMORY_VERSION,
            groups=list(groups[1]),
            campaigns=list(campaigns[1]),
            columns={
                name: kept.dump((campaigns if name.startswith(_OF_CAMPAIGNS) else groups)[0])
                for name, kept in columns.items()
            },
            common={name: figures.astype("<f8").tobytes() for name, figures in common.items()},
        )
    )


def recall(
    learned: bytes,
    columns: Mapping[str, Columns],
    common: Mapping[str, Floats],
    group_row: Callable[[str], int],
    campaign_row: Callable[[str], int],
) -> bool:
    """Take over what `remember` gave; whether it could be read. `common` is filled in place;
    empty, it is left, and so is what an earlier version did not keep."""
    try:
        memory = _decoder.decode(learned)
        if memory.version != MEMORY_VERSION:
            return False
        groups = np.array([group_row(name) for name in memory.groups], dtype=np.int64)
        campaigns = np.array([campaign_row(name) for name in memory.campaigns], dtype=np.int64)
        kept = {
            name: np.frombuffer(memory.common[name], dtype="<f8").reshape(figures.shape)
            for name, figures in common.items()
            if name in memory.common
        }
        for name, dumped in memory.columns.items():
            if name in columns:
                rows = campaigns if name.startswith(_OF_CAMPAIGNS) else groups
                columns[name].load(rows, dumped)
        for name, figures in kept.items():
            common[name][...] = figures
    except (msgspec.MsgspecError, ValueError, KeyError):
        return False
    return True
