"""Submission to Slurm: the only file that imports submitit.

submitit writes a script of its own around a pickled function. Here the script is ours: `_make_submission_file_text` gives
its text, and `_submit_command` is called once, with `--array` in that text, so 128 tasks are one sbatch call and no pickle.
Its own way to arrays, `map_array`, builds a plain SlurmExecutor, where a subclass's text would silently not be used.
These names are private to submitit, hence the pin `submitit>=1.5.4,<1.6` and tests that read back what sbatch got.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
from submitit.helpers import clean_env
from submitit.slurm.slurm import SlurmExecutor

from mathmill.errors import UserError
from mathmill.launch.cluster import Cluster
from mathmill.launch.job import Job
from mathmill.launch.submissions import Submission, append_submission
from mathmill.run import Run

NO_CONFIGURATION = re.compile(r"DNS SRV|Could not establish a configuration source|resolve_ctls_from_dns_srv")
"""What Slurm's commands say on a machine that has them and belongs to no cluster."""


class ScriptExecutor(SlurmExecutor):
    """Submits one text as it is."""

    def __init__(self, folder: str, text: str) -> None:
        super().__init__(folder)
        self.text = text
        JobPaths.get_first_id_independent_folder(folder).mkdir(parents=True, exist_ok=True)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self.text

    def submit_text(self) -> str:
        """One sbatch call; Slurm's id of the job, or of the array."""
        return self._submit_command("").job_id


def require_slurm(cluster: Cluster) -> None:
    """UserError where this machine cannot submit."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            f"no Slurm on this machine (sbatch is not in PATH), which {cluster.file} needs: run this on a login node of "
            f"{cluster.name}, look at the script with --dry_run, or use --cluster local"
        )
    if shutil.which("scontrol") is not None:
        answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
        if NO_CONFIGURATION.search(answer.stderr):
            raise UserError(_refusal("sbatch does not work", answer.stderr, cluster))


def submit(script: Path, job: Job, cluster: Cluster, run: Run) -> list[str]:
    """Submit a script, note it in RUN/jobs/submitted.jsonl, and give the ids of its tasks.

    A job whose launch is killed before it is noted ends by itself: its script looks for its id there.
    """
    require_slurm(cluster)
    run.logs.mkdir(parents=True, exist_ok=True)  # where it is missing Slurm fails a job without a word
    with tempfile.TemporaryDirectory(prefix="mathmill-submit-") as folder, _login_environment():
        try:
            with redirect_stderr(StringIO()):
                job_id = ScriptExecutor(folder, script.read_text()).submit_text()
        except (FailedJobError, FailedSubmissionError) as problem:
            raise UserError(_refusal(f"sbatch refused {script}", str(problem), cluster)) from None
    submission = Submission(
        name=job.name,
        script=script.name,
        executor="slurm",
        submitted_at=time.time(),
        job_id=job_id,
        tasks=job.tasks,
        is_array=job.is_array,
        cluster=cluster.name,
    )
    try:
        append_submission(run, submission)
    except BaseException:  # a disk that is full, Ctrl-C: a job that nobody knows of must not run
        subprocess.run(["scancel", job_id], capture_output=True, check=False)
        raise
    return submission.task_ids


def would_start(script: Path, cluster: Cluster) -> str:
    """What `sbatch --test-only` says of a script: when and where it would start. Nothing is submitted."""
    require_slurm(cluster)
    with _login_environment():
        answer = subprocess.run(["sbatch", "--test-only", str(script)], capture_output=True, text=True)
    if answer.returncode:
        raise UserError(_refusal("sbatch would refuse this job", answer.stderr or answer.stdout, cluster))
    return _one_line(answer.stderr or answer.stdout)


@contextmanager
def _login_environment() -> Iterator[None]:
    """Without the SLURM_ and SBATCH_ variables of a job that we may be in: they would win over the new one's directives.

    SLURM_CONF stays, since it says which Slurm is meant.
    """
    conf = os.environ.get("SLURM_CONF")
    with clean_env():
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield


def _refusal(what: str, said: str, cluster: Cluster) -> str:
    if NO_CONFIGURATION.search(said):
        return f"this machine reaches no Slurm; run it on a login node of {cluster.name}, or use --dry_run"
    return f"{what}: {_one_line(said)}; mend {cluster.file} or the flags"


def _one_line(text: str) -> str:
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or "it did not say why"
