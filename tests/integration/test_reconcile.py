"""What reconciling holds to be right, and what it finds, over books made by engine and reporter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.small_books import SmallBooks, at


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallBooks]:
    """Late impressions of a closed day and the open day's own, none of them in a block yet."""
    one = SmallBooks(tmp_path_factory.mktemp("reconcile"))
    one.open("seen", "awareness")
    one.judge(at(2), one.event("seen", "impression", at(2)))
    one.judge(at(3, 3))
    late = [one.event("seen", "impression", at(2), recorded_ms=at(3)) for _ in range(600)]
    own = [one.event("seen", "impression", at(3)) for _ in range(600)]
    one.judge(at(3), *late, *own)
    one.report()
    yield one
    one.store.close()


def test_an_open_day_may_hold_an_open_block_for_each_day_that_it_adjusts(
    books: SmallBooks,
) -> None:
    assert books.failed() == {}
