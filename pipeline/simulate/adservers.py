"""The bench's fleet of ad servers, in columns: what each believes of each ad, and when it learns.

Servers react late, lose signals, and restart: a restart reads the compacted topic, which repairs
whatever was lost.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.contract.signals import Signal
from pipeline.contract.vocabulary import MS_PER_DAY
from pipeline.simulate.market import Demand, Market

_SPREAD: Final = 0.5
"""Reaction times lie within this share around the mean."""


@dataclass(slots=True)
class Fleet:
    """What every server believes. `obeys`: a fleet that does not ignores all signals."""

    market: Market
    servers: int
    reaction_ms: int
    loss_rate: float
    restarts_a_day: float
    obeys: bool = True
    lost: int = 0
    groups: npt.NDArray[np.float64] = field(init=False)
    """Shape (servers, groups): serve probability by the ad group's own signals."""
    campaigns: npt.NDArray[np.float64] = field(init=False)
    _rows: dict[str, tuple[bool, int]] = field(init=False)
    _versions: dict[tuple[int, str], int] = field(default_factory=dict)
    _topic: dict[str, Signal] = field(default_factory=dict)
    _pending: list[tuple[int, int, int, Signal]] = field(default_factory=list)
    _serial: int = 0
    _rng: np.random.Generator = field(init=False)
    _next_restart_ms: list[int] = field(init=False)

    def __post_init__(self) -> None:
        market = self.market
        self.groups = np.ones((self.servers, len(market.group_ids)))
        self.campaigns = np.ones((self.servers, len(market.campaign_ids)))
        self._rows = {f"ad_group:{name}": (True, row) for row, name in enumerate(market.group_ids)}
        self._rows |= {
            f"campaign:{name}": (False, row) for row, name in enumerate(market.campaign_ids)
        }
        self._rng = np.random.default_rng([market.seed, 2])
        self._next_restart_ms = [self._restart_after(market.start_ms) for _ in range(self.servers)]

    def hear(self, signal: Signal, now_ms: int) -> None:
        """A signal was published: each server takes it in after its own reaction time."""
        self._topic[signal.entity] = signal
        if not self.obeys:
            return
        spread = 1 + _SPREAD * (2 * self._rng.random(self.servers) - 1)
        lost = self._rng.random(self.servers) < self.loss_rate
        self.lost += int(lost.sum())
        for server in np.flatnonzero(~lost).tolist():
            self._serial += 1
            at_ms = now_ms + int(self.reaction_ms * spread[server])
            heapq.heappush(self._pending, (at_ms, self._serial, server, signal))

    def next_change_ms(self, within_ms: int) -> int:
        """When the next server changes its mind, if before `within_ms`, else that."""
        return min(within_ms, self._pending[0][0]) if self._pending else within_ms

    def advance(self, now_ms: int) -> None:
        """Take in all that has reached the servers by now, restarts included."""
        while self._pending and self._pending[0][0] <= now_ms:
            _, _, server, signal = heapq.heappop(self._pending)
            self._take(server, signal)
        for server, at_ms in enumerate(self._next_restart_ms):
            if at_ms <= now_ms:
                self._next_restart_ms[server] = self._restart_after(now_ms)
                if self.obeys:
                    for signal in self._topic.values():
                        self._take(server, signal)

    def served(self, demand: Demand, rows: slice) -> npt.NDArray[np.int64]:
        """Positions in `demand` of the impressions served among these rows."""
        server = (demand.server_draw[rows] * self.servers).astype(np.int64)
        group = demand.group[rows]
        campaign = self.market.campaign[group]
        probability = self.groups[server, group] * self.campaigns[server, campaign]
        chosen = np.flatnonzero(demand.serve_draw[rows] < probability)
        return np.asarray(rows.start + chosen, dtype=np.int64)

    def serving(self) -> npt.NDArray[np.float64]:
        """The mean serve probability of each ad group."""
        both = self.groups * self.campaigns[:, self.market.campaign]
        return np.asarray(both.mean(axis=0))

    def _take(self, server: int, signal: Signal) -> None:
        if signal.version <= self._versions.get((server, signal.entity), 0):
            return
        self._versions[server, signal.entity] = signal.version
        is_group, row = self._rows[signal.entity]
        (self.groups if is_group else self.campaigns)[server, row] = signal.serve_probability

    def _restart_after(self, now_ms: int) -> int:
        mean_ms = MS_PER_DAY / max(self.restarts_a_day, 1e-9)
        return now_ms + int(self._rng.exponential(mean_ms))
