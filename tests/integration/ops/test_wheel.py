"""`pip install .` gives a working product: everything that is read at run time is in the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
READ_AT_RUN_TIME = (".sql", ".html", ".css", ".js", ".sha256", ".typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(
        ROOT / "pipeline", source / "pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    # No network: the build backend is the one that is installed.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(source / "out"), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [built] = (source / "out").glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_every_file_that_is_read(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    needed = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pipeline").rglob("*")
        if path.suffix in (".py", *READ_AT_RUN_TIME) or path.name == "py.typed"
    }
    assert needed <= held, needed - held
    assert {Path(name).suffix for name in needed} >= {".sql", ".html", ".css", ".js", ".sha256"}
    assert not [name for name in held if name.startswith(("tests/", "deploy/"))]


def test_what_is_installed_from_it_runs(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        [entry_points] = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "pipeline = pipeline.cli.main" in archive.read(entry_points).decode()
    program = (
        "import pipeline, pathlib\n"
        "from pipeline.reporting import schema\n"
        "from pipeline.dashboard.server import Dashboard, DashboardSettings\n"
        "Dashboard(lambda: None, DashboardSettings()).application()\n"
        "print(pathlib.Path(pipeline.__file__).parent.parent, len(schema.migrations()))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, migrations = done.stdout.split()
    assert where == str(tmp_path)
    assert int(migrations) >= 3
