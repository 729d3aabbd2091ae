"""Traffic and prices for the pacing bench: synthetic by default, or read from recorded data.

Recorded data is read where it lies and never copied: shares of traffic by region, weekday and
hour; hourly prices of ad exchanges; bidding and paying prices of single impressions.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.simulate.world import HOURLY_TRAFFIC

Floats = npt.NDArray[np.float64]

_WEEKDAY_VOLUME: Final = (1.0, 0.98, 1.0, 1.02, 1.05, 1.12, 1.1)
"""Relative volume Monday to Sunday."""
_RATIO_QUANTILES: Final = 512
_PRICE_BOUNDS: Final = (0.4, 2.5)
"""Hourly prices relative to their median are cut off here: the recorded series have spikes of
a hundredfold, which an auction with a bid cap would not pay."""
_BIDDING_PRICE_COLUMN: Final = 22
_PAYING_PRICE_COLUMN: Final = 23


class CurveError(Exception):
    """Recorded data that cannot be read; the text says which file and what is wrong."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What the bench's world draws from. Relative figures have mean 1."""

    traffic: Floats
    """Shape (curves, 7, 24): relative volume by weekday (0 Monday) and hour, local time."""
    price: Floats
    """Shape (series, hours): relative price of each hour, to be repeated from its beginning."""
    price_to_bid: Floats
    """Shape (n,): clearing price over bid of single impressions, in (0, 1]."""


def synthetic_curves() -> Curves:
    """Plausible, made up: a quiet night, a busy evening, prices that follow the evening."""
    hours = np.array(HOURLY_TRAFFIC, dtype=np.float64)
    week = np.outer(np.array(_WEEKDAY_VOLUME), hours)
    morning = np.outer(np.array(_WEEKDAY_VOLUME), np.roll(hours, -4))
    traffic = np.stack([week, morning])
    phase = np.arange(168) / 24 * 2 * np.pi
    price = 1 + 0.15 * np.sin(phase - 2.2) + 0.05 * np.sin(3 * phase)
    draws = np.random.default_rng(7).lognormal(-0.4, 0.25, 20_000)
    ratio = np.quantile(np.minimum(1.0, draws), _quantiles())
    return Curves(_mean_one(traffic, (1, 2)), _mean_one(price[None, :], (1,)), ratio)


def recorded_curves(data_dir: Path) -> Curves:
    """Curves of the recorded data sets under `data_dir`. Raises `CurveError`."""
    try:
        return Curves(
            _traffic(data_dir / "bat_avito" / "traffic_share.csv"),
            _prices(sorted((data_dir / "nab_adexchange").glob("*_cp[cm]_results.csv"))),
            _ratios(data_dir / "ipinyou_2259" / "train.log.tsv"),
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CurveError(f"recorded data under {data_dir} cannot be read: {error}") from error


def _quantiles() -> Floats:
    return (np.arange(_RATIO_QUANTILES) + 0.5) / _RATIO_QUANTILES


def _mean_one(values: Floats, axes: tuple[int, ...]) -> Floats:
    return np.asarray(values / values.mean(axis=axes, keepdims=True))


def _traffic(path: Path) -> Floats:
    by_region: dict[str, Floats] = defaultdict(lambda: np.zeros((7, 24)))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            weekday, hour = int(row["dow"]), int(row["hour"])
            by_region[row["region_id"]][weekday - 1, hour] = float(row["traffic_share"])
    whole = [shares for shares in by_region.values() if np.all(shares > 0)]
    if not whole:
        raise ValueError(f"{path}: no region has a share for each hour of the week")
    return _mean_one(np.stack(whole), (1, 2))


def _prices(paths: list[Path]) -> Floats:
    if not paths:
        raise ValueError("no hourly price series")
    series = []
    for path in paths:
        with path.open(newline="") as file:
            values = np.array([float(row["value"]) for row in csv.DictReader(file)])
        series.append(np.clip(values / np.median(values), *_PRICE_BOUNDS))
    hours = min(len(values) for values in series)
    return _mean_one(np.stack([values[:hours] for values in series]), (1,))


def _ratios(path: Path) -> Floats:
    bids, paid = [], []
    with path.open() as file:
        for line in file:
            columns = line.split("\t")
            bids.append(float(columns[_BIDDING_PRICE_COLUMN]))
            paid.append(float(columns[_PAYING_PRICE_COLUMN]))
    ratio = np.array(paid) / np.array(bids)
    return np.asarray(np.quantile(np.clip(ratio, 0.01, 1.0), _quantiles()))
