"""What a turn showed of the ad groups, beside numpy's own counts and sums."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pacing.observed import Events, by_group

NOW_MS = 1_772_323_200_000


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from([3, 50_000]))
def test_sums_of_each_ad_group_are_to_the_bit_those_of_numpy(seed: int, size: int, to: int) -> None:
    rng = np.random.default_rng(seed)
    flags = [rng.random(size) < share for share in (0.8, 0.5, 0.3, 0.2)]
    events = Events(
        now_ms=NOW_MS,
        group=rng.integers(0, to, size),
        is_impression=flags[0],
        is_billable=flags[1],
        value_nanos=rng.integers(0, 2**60, size),
        event_time_ms=NOW_MS + rng.integers(-(10**9), 10**6, size),
        price_nanos=rng.integers(0, 2**60, size),
        is_install=flags[2],
        is_click=flags[3],
    )
    group, inverse = np.unique(events.group, return_inverse=True)
    ages_ms = np.maximum(0, NOW_MS - events.event_time_ms)

    def total(chosen: np.ndarray, values: np.ndarray | None = None) -> list[float]:
        weights = None if values is None else values[chosen]
        found: list[float] = np.bincount(inverse[chosen], weights, len(group)).tolist()
        return found

    seen = by_group(events)
    billed = events.is_click & events.is_billable
    assert seen.group.tolist() == group.tolist()
    assert seen.impressions.tolist() == total(events.is_impression)
    assert seen.billable.tolist() == total(events.is_billable)
    assert seen.value_nanos.tolist() == total(events.is_billable, events.value_nanos)
    assert seen.offered_nanos.tolist() == total(events.is_impression, events.price_nanos)
    assert seen.clicks.tolist() == total(billed)
    assert seen.installs.tolist() == total(events.is_install)
    counts = np.maximum(1, seen.impressions)
    assert seen.mean_age_ms.tolist() == (total(events.is_impression, ages_ms) / counts).tolist()
    clicks = np.maximum(1, seen.clicks)
    assert seen.mean_click_age_ms.tolist() == (total(billed, ages_ms) / clicks).tolist()
    for at in range(len(group)):
        times_ms = events.event_time_ms[(inverse == at) & events.is_impression]
        assert seen.last_impression_ms[at] == times_ms.max(initial=0)
