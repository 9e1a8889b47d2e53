"""The wheel carries what the project ships: it works from a folder where no checkout is."""

import subprocess
import sys
import zipfile

import pytest

WORKS = """
from mathmill.launch.cluster import load_cluster, resolve_model
from mathmill.problems import load_problems
from mathmill.prompts import load_prompt, prompt_text
import mathmill, pathlib
assert "site" in mathmill.__file__, mathmill.__file__
print(len(load_problems("words:test")), len(prompt_text(load_prompt("code_base"), load_problems("words:test")[0])))
assert pathlib.Path(resolve_model("words", load_cluster("selene")).path, "model.safetensors").is_file()
from mathmill.stages.generation import main
main()
"""


@pytest.mark.slow
def test_a_wheel_works_without_the_checkout(repo, workdir):
    made = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", workdir, repo]
    subprocess.run(made, check=True, cwd=workdir)
    with zipfile.ZipFile(next(workdir.glob("mathmill-*.whl"))) as wheel:
        wheel.extractall("site")
    command = [sys.executable, "-c", WORKS, "--cluster", "selene", "--num_jobs", "4", "--dry_run"]
    surroundings = {"PYTHONPATH": str(workdir / "site"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200 ")
    assert "#SBATCH --array=0-3" in done.stdout
