"""The file of `replay --policy`: what is wrong in it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.common import CommandError
from pipeline.cli.replay import read_policy


def test_a_policy_names_fields_of_the_entities(tmp_path: Path) -> None:
    policy = {"catalog": {"ad_group:7": {"budget_micros": 5}, "campaign:a:b": {"status": "paused"}}}
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy))
    assert read_policy(path).catalog == policy["catalog"]


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"pacing": "fast"}, "pacing 'fast' is none of plain, inflight"),
        (
            {"catalog": {"ad_group:7": {"budget_micro": 5}}},
            "ad_group:7 has no field 'budget_micro'",
        ),
        ({"catalog": {"campaign:7": {"bid_micros": 5}}}, "campaign:7 has no field 'bid_micros'"),
        ({"catalog": {"adgroup:7": {"bid_micros": 5}}}, "catalog 'adgroup:7': the key is none of"),
    ],
)
def test_what_is_wrong_in_a_policy_is_named(
    policy: dict[str, Any], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy))
    with pytest.raises(CommandError) as raised:
        read_policy(path)
    assert text in str(raised.value)
