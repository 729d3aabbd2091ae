"""The digest that makes a closed day tamper-evident.

SHA-256 over the day's charges of one account, one text line for each, in charge order: by
journal_partition, journal_offset, charge_number. A line is what ClickHouse prints in format TSV
for the columns of DIGEST_COLUMNS, so anyone who may read the table can check a digest:

    SELECT <DIGEST_COLUMNS> FROM billing.charges
    WHERE posting_day = '2026-03-01' AND account_id = 'a1'
    ORDER BY journal_partition, journal_offset, charge_number FORMAT TSV

piped into `sha256sum`. A day without charges has the digest of nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.reporting.clickhouse import Store, in_pieces

DIGEST_COLUMNS: Final = (
    "charge_id",
    "billing_day",
    "posting_day",
    "account_id",
    "campaign_id",
    "ad_group_id",
    "promoted_pin_id",
    "currency",
    "basis",
    "quantity",
    "amount_nanos",
    "is_adjustment",
    "adjusts_day",
    "event_id",
    "posted_at_ms",
)

PAGE: Final = 250_000
"""Charges read at a time: bounds the memory, whatever the size of an account."""

_LINES: Final = f"""
SELECT account_id, journal_partition, journal_offset, charge_number,
       formatRow('TSV', {", ".join(DIGEST_COLUMNS)}) AS line
FROM billing.charges
WHERE posting_day = {{day:Date}} AND account_id IN {{accounts:Array(String)}}
  AND (account_id, journal_partition, journal_offset, charge_number)
      > ({{account:String}}, {{partition:Int32}}, {{offset:Int64}}, {{number:Int64}})
ORDER BY account_id, journal_partition, journal_offset, charge_number
LIMIT {{page:UInt64}}
"""


def day_digests(
    store: Store, day: date, charges: Mapping[str, int], page: int = PAGE
) -> dict[str, str]:
    """The digests of a day for these accounts, as hex, computed from billing.charges.

    `charges`: account -> how many charges it has in the day, to read about a page at a time.
    """
    digests = {}
    for accounts in _pages(charges, page):
        found = _digests(store, day, accounts, page)
        for account in accounts:
            digests[account] = found.get(account, hashlib.sha256()).hexdigest()
    return digests


def _pages(charges: Mapping[str, int], page: int) -> list[list[str]]:
    """Accounts in order, in groups of about a page of charges and at most 500 accounts."""
    groups: list[list[str]] = []
    for piece in in_pieces(sorted(charges), 500):
        held = page + 1
        for account in piece:
            if held + charges[account] > page:
                groups.append([])
                held = 0
            groups[-1].append(account)
            held += charges[account]
    return groups


def _digests(store: Store, day: date, accounts: list[str], page: int) -> dict[str, Any]:
    digests: dict[str, Any] = {}
    after: tuple[str, int, int, int] = ("", -1, -1, -1)
    while True:
        names = ("account", "partition", "offset", "number")
        bound = dict(zip(names, after, strict=True))
        parameters = {"day": day, "accounts": accounts, "page": page, **bound}
        lines = store.arrow(_LINES, parameters)
        _update(digests, lines)
        if lines.num_rows < page:
            return digests
        last = lines.slice(lines.num_rows - 1).to_pylist()[0]
        after = (
            last["account_id"],
            last["journal_partition"],
            last["journal_offset"],
            last["charge_number"],
        )


def _update(digests: dict[str, Any], lines: pa.Table) -> None:
    """Feed each account's lines, which lie next to each other, to its digest at once."""
    if lines.num_rows == 0:
        return
    accounts = lines.column("account_id").combine_chunks().cast(pa.large_string())
    text = lines.column("line").combine_chunks().cast(pa.large_string())
    codes = accounts.dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
    ends = np.append(starts[1:], len(codes))
    _, offsets_buffer, data = text.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[text.offset :]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        digest = digests.setdefault(accounts[start].as_py(), hashlib.sha256())
        if data is not None:
            digest.update(memoryview(data)[offsets[start] : offsets[end]])
