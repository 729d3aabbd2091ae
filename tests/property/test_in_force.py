"""One pass finds what the columns say, in blocks and beyond them."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.billing.ids import hash_text
from pipeline.billing.in_force import in_force
from pipeline.billing.terms import Columns, Terms
from pipeline.contract.catalog import Accepted, Catalog
from pipeline.contract.log import LogRecord
from pipeline.contract.partitioning import partition_of
from pipeline.contract.vocabulary import CATALOG
from tests.property.test_catalog_repeats import PIN
from tests.unit.test_catalog_compaction import ACCOUNT, CAMPAIGN, GROUP

PINS, GROUPS, CAMPAIGNS, ACCOUNTS = 50, 20, 8, 4
LATEST_MS = 100


def _fill(columns: Columns, size: int, rng: np.random.Generator, **parents: int) -> None:
    """With anything, by attribute: as the terms are written."""
    columns.reserve(size)
    names = [*(columns.rows.dtype.names or ()), *parents]
    for name in dict.fromkeys(names):
        column = getattr(columns, name)
        most = parents.get(name, 2 if column.dtype == np.bool_ else LATEST_MS)
        column[:size] = rng.integers(0, most, size)


def some_terms(rng: np.random.Generator) -> Terms:
    terms = Terms(Catalog(), 4)
    _fill(terms.pin, PINS, rng, group=GROUPS)
    _fill(terms.group, GROUPS, rng, campaign=CAMPAIGNS)
    _fill(terms.campaign, CAMPAIGNS, rng, account=ACCOUNTS, shard=4)
    _fill(terms.account, ACCOUNTS, rng, zone=3)
    return terms


@given(st.integers(0, 2**32), st.integers(0, 300))
def test_each_event_finds_what_its_ads_columns_hold(seed: int, events: int) -> None:
    rng = np.random.default_rng(seed)
    terms = some_terms(rng)
    # A pin of an ad is of one campaign for good.
    terms.pin.of_campaign[:PINS] = terms.group.campaign[terms.pin.group[:PINS]]
    terms.pin.of_shard[:PINS] = terms.campaign.shard[terms.pin.of_campaign[:PINS]]
    pin = rng.integers(-1, PINS, events)
    time_ms = rng.integers(0, LATEST_MS, events)
    found = in_force(pin, time_ms, terms)

    unknown, ad, at = pin < 0, pin[pin >= 0], time_ms[pin >= 0]
    pins, groups, campaigns, accounts = terms.pin, terms.group, terms.campaign, terms.account
    group = pins.group[ad]
    campaign = groups.campaign[group]
    account = campaigns.account[campaign]
    since_ms = np.maximum(pins.since_ms[ad], groups.since_ms[group])
    served = (groups.start_ms[group] <= at) & (at < groups.end_ms[group])
    of_levels = pins.alive[ad] & groups.alive[group] & campaigns.alive[campaign]
    expected = {
        "group": group,
        "campaign": campaign,
        "shard": campaigns.shard[campaign],
        "zone": accounts.zone[account],
        "alive": of_levels & accounts.alive[account],
        "serves": pins.serves[ad] & groups.active[group] & campaigns.active[campaign] & served,
        "basis": campaigns.basis[campaign],
        "bid_micros": groups.bid_micros[group],
        "target_cpi": groups.target_cpi[group],
        "one_by_one": groups.has_keywords[group]
        | (at < np.maximum(since_ms, campaigns.since_ms[campaign])),
    }
    for name, column in expected.items():
        assert (getattr(found, name)[~unknown] == column).all(), name
    for name in ("group", "campaign", "shard", "zone"):
        assert (getattr(found, name)[unknown] == -1).all(), name
    for name in ("alive", "serves", "basis", "bid_micros", "target_cpi", "one_by_one"):
        assert not getattr(found, name)[unknown].any(), name


def catalog_with(campaign_of_g: str) -> Catalog:
    """Campaigns c and d2, and the ad group g with its pin p in one of them."""
    catalog = Catalog()
    records = {
        "account:a": ACCOUNT,
        "campaign:c": CAMPAIGN,
        "campaign:d2": CAMPAIGN | {"campaign_id": "d2"},
        "ad_group:g": GROUP | {"campaign_id": campaign_of_g},
        "promoted_pin:p": PIN,
    }
    for offset, (key, fields) in enumerate(records.items()):
        value = json.dumps(fields).encode()
        record = LogRecord(CATALOG, 0, offset, 1_000, key.encode(), value)
        assert isinstance(catalog.apply(record), Accepted)
    return catalog


def test_events_of_a_campaign_that_an_ad_group_turned_out_not_to_be_of_are_not_misrouted() -> None:
    """Their home is the shard of the campaign that they name."""
    partitions = 64
    terms = Terms(catalog_with("c"), partitions)
    for parent in ("c", "d2", "c"):
        terms.catalog = catalog_with(parent)
        for kind, name in (("account", "a"), ("campaign", "c"), ("campaign", "d2")):
            terms.update(kind, name, 2_000)
        terms.update("ad_group", "g", 2_000)
        terms.update("promoted_pin", "p", 2_000)
        for campaign in ("c", "d2"):
            pin = terms.find_ads(np.array([hash_text(campaign, "g", "p")], dtype=np.uint64))
            found = in_force(pin, np.array([10**12]), terms)
            assert found.alive[0] == (campaign == parent)
            if pin[0] >= 0:
                assert found.shard[0] == partition_of(campaign, partitions)
                assert found.campaign[0] == terms.campaign_row(campaign)
