"""Prices by hour and traffic by day, against the same rules in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, log, sqrt

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pacing.prices import HourlyPrices
from pipeline.pacing.traffic import TrafficModel

Floats = npt.NDArray[np.float64]

FIRST_HOUR = 490_000
AD_GROUPS = 4
FAR = log(3.0)


@dataclass
class Priced:
    hour: int
    offers: float = 0.0
    nanos: float = 0.0
    days: dict[int, tuple[float, float]] = field(default_factory=dict)
    usual: dict[int, float] = field(default_factory=dict)
    differed: float | None = None
    foretold: float | None = None


@dataclass
class PlainPrices:
    """What `HourlyPrices` says that it does, an ad group at a time."""

    of: dict[int, Priced] = field(default_factory=dict)
    squares: float = 0.2**2 * 50
    number: float = 50

    def observe(self, row: int, hour: int, offers: float, nanos: float) -> None:
        one = self.of.setdefault(row, Priced(hour))
        if one.hour != hour:
            self.end(one, hour)
        one.offers += offers
        one.nanos += nanos

    def end(self, one: Priced, hour: int) -> None:
        of_day, foretold, differed = one.hour % 24, None, None
        if one.offers >= 100 and one.nanos > 0:
            price = log(one.nanos / one.offers)
            if one.foretold is not None and one.foretold > 0:
                self.squares += (price - one.foretold) ** 2
                self.number += 1
            if hour == one.hour + 1:
                if of_day < 23:
                    foretold = price + log(self.coming_of(one, of_day, exp(price))[of_day + 1])
                if one.usual:
                    differed = price - expected(one.usual, of_day)
        offers, nanos = one.days.get(of_day, (0.0, 0.0))
        one.days[of_day] = 0.5 * offers + one.offers, 0.5 * nanos + one.nanos
        if hour // 24 != one.hour // 24:
            one.usual = usual_of(one.days)
        one.hour, one.offers, one.nanos = hour, 0.0, 0.0
        one.foretold, one.differed = foretold, differed

    def coming_of(self, one: Priced, hour: int, now_nanos: float) -> list[float]:
        found = [1.0] * 24
        if now_nanos <= 0 or not any(known >= hour for known in one.usual):
            return found
        here = log(now_nanos) - expected(one.usual, hour)
        last = here if one.differed is None or one.hour % 24 != hour else one.differed
        before, differs = believed(last), believed(here)
        for later in range(hour + 1, 24):
            before, differs = differs, 0.5 * differs + 0.2 * before
            found[later] = exp(believed(expected(one.usual, later) + differs - log(now_nanos)))
        return found


def believed(difference: float) -> float:
    return min(max(difference, -FAR), FAR)


def usual_of(days: dict[int, tuple[float, float]]) -> dict[int, float]:
    prices = {at: log(nanos / offers) for at, (offers, nanos) in days.items() if offers and nanos}
    found = {}
    for hour in range(24):
        beside = {hour: 1.0, (hour - 1) % 24: 0.5, (hour + 1) % 24: 0.5}
        known = {at: weight for at, weight in beside.items() if at in prices}
        if known:
            total = sum(weight * prices[at] for at, weight in known.items())
            found[hour] = total / sum(known.values())
    return found


def expected(usual: dict[int, float], hour: int) -> float:
    mean = log(sum(map(exp, usual.values())) / len(usual))
    return mean + 0.9 * (usual[hour] - mean) if hour in usual else mean


@st.composite
def turns(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """Hours, that mostly follow on each other, and the ad groups that are seen in them."""
    hour, found = FIRST_HOUR, []
    for _ in range(draw(st.integers(1, 60))):
        hour += draw(st.sampled_from((0, 1, 1, 1, 1, 1, 2, 9, 24, 30)))
        rows = draw(st.sets(st.integers(0, AD_GROUPS - 1), min_size=1))
        found.append((hour, sorted(rows)))
    return found


@given(turns(), st.integers(0, 2**32))
@settings(deadline=None)
def test_prices_are_those_of_the_plain_rules(
    given_turns: list[tuple[int, list[int]]], seed: int
) -> None:
    model, plain, chance = HourlyPrices(), PlainPrices(), np.random.default_rng(seed)
    for hour, rows in given_turns:
        offers = chance.integers(0, 300, len(rows)).astype(np.float64)
        nanos = offers * np.exp(chance.normal(8.0, 1.0, len(rows)))
        model.observe(np.array(rows), np.full(len(rows), hour), offers, nanos)
        for row, *came in zip(rows, offers.tolist(), nanos.tolist(), strict=True):
            plain.observe(row, hour, *came)
    seen = np.array(sorted(plain.of))
    hours = chance.integers(0, 24, len(seen))
    now_nanos = np.exp(chance.normal(8.0, 1.0, len(seen))) * (chance.random(len(seen)) > 0.1)
    asked = list(zip(seen.tolist(), hours.tolist(), now_nanos.tolist(), strict=True))
    coming = [plain.coming_of(plain.of[row], hour, now) for row, hour, now in asked]
    np.testing.assert_allclose(model.coming(seen, hours, now_nanos), np.array(coming), rtol=1e-9)
    later = []
    for row, _, now in asked:
        usual = usual_of(plain.of[row].days)
        of_hours = [
            exp(believed(expected(usual, hour) - log(now))) if usual and now > 0 else 1.0
            for hour in range(24)
        ]
        later.append(of_hours)
    np.testing.assert_allclose(model.usual(seen, now_nanos), np.array(later), rtol=1e-9)
    assert model.error == pytest.approx(sqrt(plain.squares / plain.number))


def test_the_error_of_prices_is_that_of_all_ad_groups_of_a_turn() -> None:
    """More than are counted before they lose half of their weight."""
    model, chance, size = HourlyPrices(), np.random.default_rng(1), 12_000
    rows = np.arange(size)
    noise = np.where(rows < size // 2, 0.1, 0.6)
    for hour in range(FIRST_HOUR, FIRST_HOUR + 6):  # of one day: the next price is this one's
        offers = np.full(size, 200.0)
        model.observe(rows, np.full(size, hour), offers, offers * np.exp(chance.normal(8, noise)))
    assert model.error == pytest.approx(sqrt(0.1**2 + 0.6**2), rel=0.02)


@given(turns(), st.integers(0, 2**32))
@settings(deadline=None)
def test_days_of_traffic_are_those_of_the_plain_rules(
    given_turns: list[tuple[int, list[int]]], seed: int
) -> None:
    model, chance = TrafficModel(), np.random.default_rng(seed)
    days: dict[int, int] = {}
    now, past = (
        {row: np.zeros((2, 24)) for row in range(AD_GROUPS)} for _ in range(2)
    )  # counts and exposures
    for turn, (hour, rows) in enumerate(given_turns):
        if turn % 5 == 4:
            model.fit()
        came = chance.integers(0, 90, (2, len(rows))).astype(np.float64)
        for row, of_row in zip(rows, came.T, strict=True):
            if days.setdefault(row, hour // 24) != hour // 24:
                days[row] = hour // 24
                end_day(past[row], now[row], float(model.groups.level[row]) * model.hour_factors)
            now[row][:, hour % 24] += of_row
        day = np.full(len(rows), hour // 24 % 7)
        model.observe(np.array(rows), np.full(len(rows), hour), day, *came)
    for row in days:
        kept = model.groups.rows[row]
        np.testing.assert_allclose(
            np.array([kept["now_counts"], kept["now_exposure_s"]]), now[row], rtol=1e-9
        )
        np.testing.assert_allclose(
            np.array([kept["counts"], kept["exposure_s"]]), past[row], rtol=1e-9
        )


def end_day(past: Floats, now: Floats, common: Floats) -> None:
    """The rules of a day's end, over the arrays of an ad group."""

    def with_beside(hours: Floats) -> Floats:
        return np.asarray(hours + 0.25 * (np.roll(hours, 1) + np.roll(hours, -1)))

    own = (with_beside(past[0]) + 30) / (with_beside(common * past[1]) + 30)
    foreseen, came = float((common * own * now[1]).sum()), float(now[0].sum())
    enough = past[0].sum() > 0 and foreseen > 0 and came >= 30
    past *= 0.5
    past += now * np.array([[1.0], [came / foreseen if enough else 1.0]])
    now[:] = 0.0
