"""Money: integer nanos of a currency; and the minimum bids.

1 unit = 1,000,000 micros = 1,000,000,000 nanos. No float ever holds money.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Final

MICROS_PER_UNIT: Final = 1_000_000
NANOS_PER_UNIT: Final = 1_000_000_000
MAX_AMOUNT_MICROS: Final = 10**15

COUNTRY_CURRENCY: Final = {
    "US": "USD",
    "CA": "CAD",
    "GB": "GBP",
    "IE": "EUR",
    "AU": "AUD",
    "NZ": "NZD",
}
CURRENCIES: Final = tuple(COUNTRY_CURRENCY.values())

_PEG_USD_MICROS = 2_000_000
_MINIMUM_MICROS: Final[dict[str, tuple[int, int, int | None, int]]] = {
    # currency: CPC, CPE, CPM (None: pegged to USD 2.00), autoplay-video CPM
    "USD": (100_000, 100_000, 2_000_000, 6_000_000),
    "GBP": (80_000, 80_000, None, 4_630_000),
    "CAD": (150_000, 150_000, None, 8_150_000),
    "EUR": (110_000, 110_000, None, 5_380_000),
    "AUD": (150_000, 150_000, None, 8_070_000),
    "NZD": (160_000, 160_000, None, 8_670_000),
}
_MINIMUM_COLUMN: Final = {
    "traffic": 0,
    "app_install": 0,
    "engagement": 1,
    "awareness": 2,
    "video_awareness": 3,
}


def minimum_bid_micros(currency: str, objective: str, usd_per_unit: Decimal | None) -> int:
    """The lowest bid in micros of the currency (docs/contract.md, minimum bids).

    A pegged minimum is USD 2.00 at the rate `usd_per_unit`, rounded up; without a rate, 2.00
    units of the currency.
    """
    minimum = _MINIMUM_MICROS[currency][_MINIMUM_COLUMN[objective]]
    if minimum is not None:
        return minimum
    if usd_per_unit is None:
        return _PEG_USD_MICROS
    with localcontext(prec=60):
        exact = Decimal(_PEG_USD_MICROS) / usd_per_unit
        return int(exact.to_integral_value(rounding="ROUND_CEILING"))


def units(nanos: int) -> Decimal:
    """Nanos as an exact decimal number of units."""
    return Decimal(nanos).scaleb(-9)
