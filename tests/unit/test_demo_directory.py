"""The demo empties its data directory, and never deletes what is not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.common import CommandError
from pipeline.cli.simulation import empty_data

LEFT_BY_UP = (
    "kafka/data/ads.clicks-0/00000000000000000000.log",
    "clickhouse/store/data.bin",
    "snapshots/shard-0.snapshot",
    "faust/v1/tables/x",
    "lock",
    "endpoints.json",
    "worker.log",
    "worker.log.1",
    "worker.pid",
    "worker.pid.new",
    "reporter.log",
    "reporter.log.1",
    "reporter.pid",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in LEFT_BY_UP:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path / "data"


def test_what_an_earlier_demo_left_is_removed(data: Path) -> None:
    empty_data(data)
    assert [path.name for path in data.iterdir()] == ["lock"]


def test_a_directory_that_is_not_there_yet_is_fine(tmp_path: Path) -> None:
    empty_data(tmp_path / "new")


@pytest.mark.parametrize(
    "name", ["thesis.docx", "notes/chapter-1", "mine.log", "kafka.pid", ".hidden"]
)
def test_a_directory_with_anything_else_is_left_as_it_is(data: Path, name: str) -> None:
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).write_text("x")
    with pytest.raises(CommandError, match=rf"holds more than .*{name.partition('/')[0]}.*--data"):
        empty_data(data)
    assert all((data / one).exists() for one in (*LEFT_BY_UP, name))


def test_files_alone_are_not_taken_for_a_demos_data(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("x")
    (tmp_path / "kafka").write_text("notes about Kafka")
    with pytest.raises(CommandError, match=r"\(kafka, thesis.docx\)"):
        empty_data(tmp_path)


def test_what_a_link_leads_to_is_not_emptied(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("x")
    (data / "endpoints.json").unlink()
    (data / "endpoints.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CommandError, match=r"endpoints\.json"):
        empty_data(data)
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_a_file_is_not_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    with pytest.raises(CommandError, match="is not a directory"):
        empty_data(tmp_path / "data")
