"""A statement's lines sum to its total, and what is under a cent is carried, to the nano."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.common import CommandError
from pipeline.cli.finance import StatementFormat, write_statement
from pipeline.reporting.statements import NANOS_PER_CENT, in_cents, lines_of, to_table

MARCH = date(2026, 3, 1)
charges = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.integers(-(10**12), 10**12), max_size=8
)
carried = st.integers(0, NANOS_PER_CENT - 1)


@given(charges, carried)
def test_nothing_is_lost_and_nothing_is_made(nanos: dict[str, int], before: int) -> None:
    cents, after = in_cents(nanos, before)
    assert sum(cents.values()) * NANOS_PER_CENT + after == sum(nanos.values()) + before
    assert 0 <= after < NANOS_PER_CENT
    assert cents.keys() == nanos.keys()


@given(charges, carried)
def test_no_line_is_a_cent_from_its_own_charges(nanos: dict[str, int], before: int) -> None:
    cents, _ = in_cents(nanos, before)
    for campaign, amount in nanos.items():
        off = cents[campaign] * NANOS_PER_CENT - amount
        assert -NANOS_PER_CENT < off <= NANOS_PER_CENT


def test_the_missing_cents_go_to_the_largest_remainders() -> None:
    third = NANOS_PER_CENT // 3
    assert in_cents({"a": third, "b": third + 2, "c": third + 1}, 0) == (
        {"a": 0, "b": 1, "c": 0},
        0 if 3 * third + 3 == NANOS_PER_CENT else 3 * third + 3 - NANOS_PER_CENT,
    )


def test_of_equal_remainders_the_lesser_campaign_id_gets_the_cent() -> None:
    half = NANOS_PER_CENT // 2
    assert in_cents({"b": half, "a": half}, 0) == ({"a": 1, "b": 0}, 0)


def test_a_month_of_credits_alone_is_negative() -> None:
    assert in_cents({"a": -NANOS_PER_CENT - 1}, 0) == ({"a": -2}, NANOS_PER_CENT - 1)


def test_the_carried_remainder_stands_on_the_accounts_own_line() -> None:
    lines = lines_of(MARCH, "acc", "USD", {"c2": 25_000_000, "c1": 19_999_999}, 3)
    assert [(line.campaign_id, line.amount, line.carried_nanos) for line in lines] == [
        ("", Decimal("0.00"), 5_000_002),
        ("c1", Decimal("0.02"), 0),
        ("c2", Decimal("0.02"), 0),
    ]
    assert to_table(lines).column("amount").to_pylist() == [line.amount for line in lines]


def test_a_month_without_charges_has_one_line_and_carries_on() -> None:
    [line] = lines_of(MARCH, "acc", "USD", {}, 7)
    assert (line.campaign_id, line.amount, line.carried_nanos) == ("", Decimal("0.00"), 7)


# -- written ----------------------------------------------------------------------------------

LINES = lines_of(MARCH, "acc", "USD", {"c1": 19_999_999}, 0)


@pytest.mark.parametrize("form", [StatementFormat.CSV, StatementFormat.JSON])
def test_a_file_holds_what_the_terminal_shows(
    form: StatementFormat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_statement(LINES, form, tmp_path / "statement")
    write_statement(LINES, form, None)
    assert capsys.readouterr().out == (tmp_path / "statement").read_bytes().decode()


def test_a_table_is_not_written_to_a_file(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--format csv"):
        write_statement(LINES, StatementFormat.TABLE, tmp_path / "statement")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", [StatementFormat.CSV, StatementFormat.PARQUET])
def test_a_file_that_cannot_be_written_is_said_to_be_so(
    form: StatementFormat, tmp_path: Path
) -> None:
    with pytest.raises(CommandError, match=r"--out .*nowhere.* cannot be written: .*No such file"):
        write_statement(LINES, form, tmp_path / "nowhere" / "statement")
