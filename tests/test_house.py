"""The house rules that a machine can hold: who imports whom, what foreign containers can import, names, scripts, pins."""

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "mathmill"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((REPO / "pipeline").glob("*.py"))
NOT_DOMAIN = {"launch", "stages"}
SHARED = {"errors", "files", "options", "parent", "paths", "records", "run"}
REFUSED_WORDS = {"manager", "handler", "engine", "backend", "wrapper", "utils", "helper", "base", "core", "misc"}
STANDARD_LIBRARY_ONLY = [
    "mathmill.sandbox",
    "mathmill.sandbox.__main__",
    "mathmill.serving.start",
    "mathmill.serving.kinds",
    "mathmill.training.options",
    "mathmill.training.shape",
    "mathmill.training.layout",
]
IN_TRAINERS_IMAGE = {"torch", "megatron", "safetensors", "tokenizers"}
LOOKED_FOR_THERE = {"matplotlib", "tensorboard", "transformer_engine", "wandb", "nemo"}
"""What the trainer uses where an image has it, and does without elsewhere."""
HELP_CPU_S = 0.8
"""The promise is half a second; on a busy machine the same work is charged more."""

IMPORTS_WITHOUT_OTHERS = """
import importlib, sys
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names | {"mathmill"}:
            raise ImportError(f"{name} is not of the standard library")
sys.meta_path.insert(0, Refusal())
importlib.import_module(sys.argv[1])
"""


def imported_by(module: Path) -> Iterator[str]:
    """Full names of what the module imports, wherever in the file."""
    here = module.relative_to(REPO).with_suffix("").parts
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = ".".join((*here[: -node.level], *filter(None, [node.module]))) if node.level else node.module
            yield from (f"{source}.{alias.name}" for alias in node.names)


def room_of(module: Path) -> str:
    """`launch` for mathmill/launch/render.py, `files` for mathmill/files.py."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=True,
    )
    return [path for name in listing.stdout.decode().split("\0") if name and (path := REPO / name).is_file()]


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    return setup


def test_the_domain_never_imports_launch_stages_or_submitit():
    wrong = [
        f"{module.relative_to(REPO)} imports {name}"
        for module in MODULES
        if room_of(module) not in NOT_DOMAIN
        for name in imported_by(module)
        if re.match(r"(mathmill\.(launch|stages)|submitit)\b", name)
    ]

    assert wrong == []


def test_only_one_file_imports_submitit():
    importers = [
        module for module in MODULES if any(name.partition(".")[0] == "submitit" for name in imported_by(module))
    ]

    assert importers == [PACKAGE / "launch" / "submit.py"]


def test_launch_knows_no_maths():
    allowed = SHARED | {"launch", "__version__"}
    wrong = [
        f"{module.relative_to(REPO)} imports {name}"
        for module in MODULES
        if room_of(module) == "launch"
        for name in imported_by(module)
        if name.startswith("mathmill.") and name.split(".")[1] not in allowed
    ]

    assert wrong == []


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_runs_in_a_foreign_container_imports_the_standard_library_only(name: str):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_WITHOUT_OTHERS, name], cwd=REPO, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_the_trainer_imports_only_what_its_image_holds():
    allowed = sys.stdlib_module_names | {"mathmill"} | IN_TRAINERS_IMAGE | LOOKED_FOR_THERE
    modules = [module for module in MODULES if room_of(module) == "training"]
    wrong = [
        f"{module.relative_to(REPO)} imports {name}"
        for module in modules
        for name in imported_by(module)
        if name.partition(".")[0] not in allowed
    ]

    assert modules and wrong == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_pipeline_script_is_five_lines_that_import_a_stage_and_call_it(script: Path):
    text = script.read_text()
    kinds = [type(statement) for statement in ast.parse(text).body]

    assert kinds == [ast.Expr, ast.ImportFrom, ast.If]
    assert len([line for line in text.splitlines() if line.strip()]) <= 5
    assert all(name.startswith("mathmill.") for name in imported_by(script))


def test_no_pipeline_script_shadows_a_module_that_something_imports():
    third_party = {path.stem for folder in sys.path if "site-packages" in folder for path in Path(folder).iterdir()}

    assert {script.stem for script in SCRIPTS} & (third_party | set(sys.stdlib_module_names)) == set()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_comes_at_once(script: Path, workdir: Path):
    costs = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, script, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        text = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert (process.returncode, "usage" in text.lower()) == (0, True), text
        costs.append(usage.ru_utime + usage.ru_stime)

    print(f"{script.name} --help: {min(costs):.2f} s of CPU")
    assert min(costs) < HELP_CPU_S


def test_no_file_names_a_package_registry_or_a_folder_of_one_workplace():
    hosts = [r"pypi\.org", "pythonhosted", r"deb\.debian\.org", r"npmjs\.(org|com)", r"(?<![\w.$})])/work/"]
    pattern = re.compile("|".join(hosts).encode())
    files = [path for path in tracked_files() if path != Path(__file__).resolve()]

    assert [str(path.relative_to(REPO)) for path in files if pattern.search(path.read_bytes())] == []


def test_no_module_has_a_name_that_means_nothing():
    names = [path.relative_to(REPO) for path in tracked_files() if path.suffix == ".py"]

    assert [name for name in names for part in name.with_suffix("").parts if REFUSED_WORDS & set(part.split("_"))] == []


def test_every_module_begins_by_saying_what_it_holds():
    modules = [path for path in MODULES if path.read_text().strip()]

    assert [str(path.relative_to(REPO)) for path in modules if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_setup_lists_every_package_and_no_other():
    listed = read_setup()["options"]["packages"].split()

    code = [package for package in listed if not package.startswith("mathmill.shipped.")]
    assert code == sorted(".".join(path.parent.relative_to(REPO).parts) for path in PACKAGE.rglob("__init__.py"))


def test_every_dependency_is_pinned_to_a_release_that_setup_allows():
    setup = read_setup()
    extras = "\n".join(setup["options.extras_require"].values())
    wanted = [Requirement(line) for line in (setup["options"]["install_requires"] + "\n" + extras).split("\n") if line]
    lines = (REPO / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]

    def name_of(requirement: Requirement) -> str:
        return re.sub(r"[-_.]+", "-", requirement.name).lower()

    for requirement in wanted:
        mine = [pin for pin in pins if name_of(pin) == name_of(requirement)]
        assert mine, f"{requirement.name} has no pin"
        for pin in mine:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version), f"{pin} against {requirement}"
