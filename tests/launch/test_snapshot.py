"""The code of a run: a copy under its hash."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mathmill.launch.snapshot import code_sha, package_files, sha_of, snapshot
from mathmill.paths import PACKAGE
from mathmill.run import Run


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout" / "mathmill"
    for name, text in {
        "__init__.py": "",
        "a/b.py": "x = 1\n",
        "__pycache__/a.pyc": "?",
        ".hidden": "?",
        "shipped/p.yaml": "?",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_snapshot_holds_the_package_and_no_caches(tmp_path: Path, package: Path):
    copy = snapshot(Run(tmp_path / "run"), package)

    assert package_files(package) == [Path("__init__.py"), Path("a/b.py")]
    assert package_files(copy / "mathmill") == package_files(package) and sha_of(copy / "mathmill") == copy.name
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_the_hash_changes_with_names_and_bytes_only(package: Path, tmp_path: Path):
    before = sha_of(package)
    (package / "__pycache__" / "b.pyc").write_text("other")
    assert sha_of(package) == before
    shutil.copytree(package, tmp_path / "elsewhere")
    assert sha_of(tmp_path / "elsewhere") == before
    (package / "a" / "b.py").write_text("x = 2\n")
    changed = sha_of(package)
    (package / "a" / "b.py").rename(package / "a" / "c.py")
    assert len({before, changed, sha_of(package)}) == 3


def test_editing_the_checkout_changes_no_snapshot(tmp_path: Path, package: Path):
    run = Run(tmp_path / "run")
    first = snapshot(run, package)
    (package / "a" / "b.py").write_text("x = 2\n")
    second = snapshot(run, package)

    assert (first / "mathmill/a/b.py").read_text() == "x = 1\n" and (
        second / "mathmill/a/b.py"
    ).read_text() == "x = 2\n"


def test_launches_at_the_same_time_make_one_snapshot(tmp_path: Path, package: Path):
    with ThreadPoolExecutor(8) as threads:
        copies = list(threads.map(lambda _: snapshot(Run(tmp_path / "run"), package), range(8)))

    assert len(set(copies)) == 1 and [path.name for path in (tmp_path / "run" / "code").iterdir()] == [copies[0].name]


def test_the_running_package_is_what_its_snapshot_imports(tmp_path: Path):
    copy = snapshot(Run(tmp_path / "run"))
    where = subprocess.run(
        [sys.executable, "-c", "import mathmill.run; print(mathmill.run.__file__)"],
        cwd=copy,
        env={"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    ).stdout.strip()

    assert copy.name == code_sha() == sha_of(PACKAGE) and where == str(copy / "mathmill" / "run.py")
