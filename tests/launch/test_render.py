"""The text of a script: golden files for every runtime, and the laws that hold for all."""

import shutil
import string
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.launch.cluster import Cluster, Partitions, Runtimes, load_cluster, resolve_model
from mathmill.launch.job import Job, Step, split_job
from mathmill.launch.render import directives_of, render
from mathmill.paths import shipped
from mathmill.run import Run

GOLDEN = Path(__file__).parent / "golden"
DEMO = Run(Path("/runs/demo"))
SHIPPED = sorted(path.stem for path in shipped("cluster_configs").glob("*.yaml"))
SITE = Cluster(
    name="site",
    file="cluster_configs/site.yaml",
    executor="slurm",
    partitions=Partitions(gpu="gpu", cpu="cpu"),
    account="maths",
    time_limit="12:00:00",
    gpus_per_node=8,
    cpus=64,
    mem=0,
    max_running=32,
    setup=["module load apptainer"],
    env=["HF_TOKEN", "WANDB_API_KEY"],
    mounts=["/data:/data:ro"],
    python="/opt/mathmill/bin/python",
    images={"trtllm": "/images/trtllm.sqsh", "sandbox": "/images/sandbox.sif", "client": "/images/client.sif"},
)
HERE = Cluster(
    name="local",
    file="cluster_configs/local.yaml",
    executor="local",
    python="/opt/mathmill/bin/python",
    images={"trtllm": "mathmill-trtllm", "sandbox": "mathmill-sandbox"},
)


def job_with(gpus: int = 8, kind: str = "trtllm", **changes: object) -> Job:
    server = Step(
        name="server",
        role="server",
        kind=kind,
        module="mathmill.serving.start",
        gpus=gpus,
        secrets=True,
        ready_file="$MATHMILL_RUN/servers/$MATHMILL_JOB.json",
        mounts=("/models/mixtral:/models/mixtral:ro",),
    )
    sandbox = Step(
        name="sandbox",
        role="sandbox",
        module="mathmill.sandbox",
        ready_file="$MATHMILL_NODE_DIR/sandbox/socket",
        ready_minutes=2,
    )
    main = Step(name="generation", role="client", module="mathmill.generation", main=True, secrets=True)
    return replace(Job(name="generation", steps=(server, sandbox, main)), **changes)


def two_nodes() -> Job:
    job = job_with()
    server = replace(job.steps[0], nodes=2, tasks_per_node=8, mpi="pmix")
    return replace(job, steps=(server, *job.steps[1:]))


def training(nodes: int) -> Job:
    """torchrun, once on each node."""
    step = Step(
        name="trainer",
        role="trainer",
        module="mathmill.training.torchrun",
        arguments=(f"--nnodes={nodes}", "--nproc_per_node=8", "-m", "mathmill.training"),
        main=True,
        gpus=8,
        nodes=nodes,
        mounts=("/models/llama:/models/llama:ro", "/sets/sft.jsonl:/sets/sft.jsonl:ro"),
    )
    return Job(name="training", steps=(step,), options={"trainer": {}})


def trained_under(trainer: str, cluster: Cluster = SITE) -> Cluster:
    images = {**cluster.images, "trainer": "/images/megatron.sif"}
    return replace(cluster, runtime=Runtimes(trainer=trainer), images=images)  # type: ignore[arg-type]


def under(server: str, sandbox: str, client: str = "none", cluster: Cluster = SITE) -> Cluster:
    return replace(cluster, runtime=Runtimes(server=server, sandbox=sandbox, client=client))  # type: ignore[arg-type]


SCRIPTS = {
    "slurm-array-pyxis-apptainer": (job_with(tasks=128), under("pyxis", "apptainer")),
    "slurm-alone-bare": (job_with(gpus=0, kind="bundled"), under("none", "none")),
    "slurm-two-nodes-pyxis": (two_nodes(), under("pyxis", "pyxis", "pyxis")),
    "slurm-two-nodes-apptainer": (two_nodes(), under("apptainer", "apptainer")),
    "slurm-second-of-two-arrays": (
        split_job(job_with(tasks=1500), 1001)[1],
        under("apptainer", "apptainer", "apptainer"),
    ),
    "slurm-singularity": (job_with(), under("singularity", "singularity", "singularity")),
    "slurm-podman": (job_with(gpus=2), under("podman", "podman")),
    "slurm-directives": (
        job_with(tasks=2, directives={"exclusive": True, "mem": None}),
        replace(
            under("none", "none"),
            gpu_directive=None,
            directives={"account": None, "mem": 0, "nice": 0, "mail_type": "FAIL"},
        ),
    ),
    "slurm-training-pyxis": (training(32), trained_under("pyxis")),
    "slurm-training-apptainer": (training(1), trained_under("apptainer")),
    "local-training-docker": (training(1), trained_under("docker", HERE)),
    "local-bare": (job_with(gpus=0, kind="bundled"), HERE),
    "local-docker": (job_with(gpus=1), under("docker", "docker", cluster=HERE)),
    "local-apptainer": (job_with(gpus=1), under("apptainer", "apptainer", cluster=HERE)),
}


def sound(script: str) -> None:
    """bash parses it, and shellcheck, where there is one, has nothing to say."""
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "--shell=bash", "-"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_its_golden_file(name: str, golden: bool):
    job, cluster = SCRIPTS[name]
    script = render(job, cluster, DEMO, "0123456789ab")
    path = GOLDEN / f"{name}.sbatch"
    if golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)

    assert script == path.read_text(), "if the change is meant: pytest tests/launch/test_render.py --golden"


def test_there_is_no_golden_file_too_many():
    assert {path.stem for path in GOLDEN.iterdir()} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_and_shellcheck_accept_it(name: str):
    sound(render(*SCRIPTS[name], DEMO, "0123456789ab"))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.slow
def test_every_shipped_cluster_renders_every_model_it_names(name: str):
    cluster = load_cluster(name)
    for model in (resolve_model(each, cluster) for each in cluster.models):
        job = job_with(gpus=model.gpus, kind=model.server, tasks=128)
        job = replace(job, steps=(replace(job.steps[0], nodes=model.nodes), *job.steps[1:]))
        sound(render(job, cluster, DEMO, "0123456789ab"))


def test_rendering_is_pure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    job, cluster = SCRIPTS["slurm-array-pyxis-apptainer"]
    once = render(job, cluster, DEMO, "0123456789ab")

    assert once == render(job, cluster, DEMO, "0123456789ab")
    assert "hf_secret_value" not in once and not DEMO.folder.exists()
    assert "#SBATCH --export=HF_TOKEN,WANDB_API_KEY\n" in once and "#SBATCH --array=0-127%32\n" in once


def lines_of(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_later_directives_win_none_removes_and_zero_stays():
    job, cluster = SCRIPTS["slurm-directives"]
    flags = directives_of(job, cluster, DEMO)

    assert flags["nice"] == 0 and flags["mail-type"] == "FAIL" and flags["exclusive"] is True
    assert "account" not in flags and "mem" not in flags and "gpus-per-node" not in flags
    assert {"--nice=0", "--exclusive", "--mail-type=FAIL"} <= set(lines_of(render(job, cluster, DEMO, "x")))
    assert directives_of(job_with(), SITE, DEMO)["mem"] == 0
    assert "qos" not in directives_of(job_with(), SITE, DEMO)
    off = replace(SITE, directives={"requeue": False})
    assert "requeue" not in directives_of(job_with(), off, DEMO)


def test_jobs_without_gpus_go_to_the_cpu_partition_and_ask_for_none():
    flags = directives_of(job_with(gpus=0), SITE, DEMO)

    assert flags["partition"] == "cpu" and "gpus-per-node" not in flags
    assert "--gres=none" not in render(job_with(gpus=0), SITE, DEMO, "x").partition("# ---- the steps")[2]


def test_a_job_with_some_of_a_nodes_gpus_asks_for_their_share():
    def asked(gpus: int, **changes: object) -> tuple[object, object]:
        flags = directives_of(job_with(gpus=gpus), replace(SITE, **changes), DEMO)
        return flags.get("cpus-per-task"), flags.get("mem")

    assert asked(8) == (64, 0) and asked(8, mem="240G") == (64, "240G")
    assert asked(1) == (8, None) and asked(3, cpus=30, mem="241G") == (12, "91G")
    assert asked(1, cpus=None, mem=None) == (None, None) and asked(1, mem=100) == (8, "13")
    assert asked(0) == (4, None) and asked(0, cpus=2, mem="240G") == (2, None)
    assert asked(0, gpus_per_node=0, mem="240G") == (64, "240G")
    assert "--cpus-per-task=8 " in render(job_with(gpus=1), SITE, DEMO, "x")


@pytest.mark.parametrize("folder", ["/runs/a\nb", "/runs/a\x07"])
def test_a_folder_with_control_characters_is_refused(folder: str):
    with pytest.raises(UserError, match="line break or a control character"):
        render(job_with(), SITE, Run(Path(folder)), "x")


def test_an_environment_without_names_is_passed_as_none():
    assert directives_of(job_with(), replace(SITE, env=[]), DEMO)["export"] == "NONE"


def test_a_percent_sign_in_the_runs_folder_is_no_pattern_of_slurm():
    flags = directives_of(job_with(), SITE, Run(Path("/runs/50%j")))

    assert flags["output"] == "/runs/50%%j/logs/generation.%j.log"


def test_an_override_of_the_time_limit_moves_the_warning_with_it():
    assert directives_of(job_with(time_limit="1:00"), SITE, DEMO)["signal"] == "B:USR2@30"
    with pytest.raises(UserError, match="leaves nothing before stop_before"):
        directives_of(job_with(time_limit="1:00"), replace(SITE, stop_before=5), DEMO)


def test_max_array_size_1001_means_1001_tasks():
    assert split_job(job_with(tasks=1001), 1001) == [job_with(tasks=1001)]

    parts = split_job(job_with(tasks=2500), 1001)

    assert [part.name for part in parts] == ["generation", "generation-part2", "generation-part3"]
    assert max(part.tasks for part in parts) <= 1001
    indices = [part.first_task + task for part in parts for task in range(part.tasks)]
    assert indices == list(range(2500)) and {part.all_tasks for part in parts} == {2500}
    second = render(parts[1], SITE, DEMO, "x")
    assert "MATHMILL_TASK=$((833 + SLURM_ARRAY_TASK_ID))" in second and "MATHMILL_TASKS=2500 " in second


@given(st.integers(1, 5000), st.integers(1, 1200))
def test_split_arrays_cover_every_task_once(tasks: int, size: int):
    parts = split_job(job_with(tasks=tasks), size)

    assert parts[0].first_task == 0 and sum(part.tasks for part in parts) == tasks
    assert all(1 <= part.tasks <= size for part in parts) and len(parts) == -(-tasks // size)


def test_a_missing_image_is_named():
    with pytest.raises(UserError, match=r"site.yaml: the server runs under pyxis, so images needs 'vllm'"):
        render(job_with(kind="vllm"), under("pyxis", "none"), DEMO, "x")


def test_a_squashfs_path_that_pyxis_takes_for_a_registry_is_refused():
    cluster = replace(under("pyxis", "none"), images={"trtllm": "images/trtllm.sqsh"})

    with pytest.raises(UserError, match=r"images.trtllm: pyxis takes .* start the path with / or \./"):
        render(job_with(), cluster, DEMO, "x")


def test_the_bundled_server_runs_where_the_client_does():
    script = render(job_with(gpus=0, kind="bundled"), under("pyxis", "none"), DEMO, "x")

    assert "container-image" not in script


@pytest.mark.parametrize("folder", ["/runs/a,b", "/runs/a:b"])
def test_a_folder_that_no_container_can_mount_is_refused(folder: str):
    with pytest.raises(UserError, match="cannot mount"):
        render(job_with(), under("apptainer", "none"), Run(Path(folder)), "x")


def test_a_job_has_one_main_and_its_sandbox_no_secrets():
    steps = job_with().steps
    with pytest.raises(ValueError, match="exactly one main"):
        Job(name="x", steps=steps[:2])
    with pytest.raises(ValueError, match="no secrets"):
        replace(steps[1], secrets=True)


NASTY = st.text(alphabet=string.ascii_letters + " '\"$`\\{}()#%&;*?!~<>|", min_size=1, max_size=20)


@settings(max_examples=25)
@given(NASTY)
def test_any_folder_reaches_bash_unchanged(name: str):
    run = Run(Path("/runs") / name)
    cluster = replace(HERE, setup=[])
    script = render(job_with(gpus=0, kind="bundled"), cluster, run, "x")
    head = script[: script.index("cd ")] + '\nprintf "%s\\n" "$MATHMILL_RUN" "$options"\n'
    printed = subprocess.run(["bash", "-c", head], capture_output=True, text=True).stdout

    assert printed == f"{run.folder}\n{run.folder}/jobs/generation.json\n"


@settings(max_examples=25)
@given(NASTY)
def test_any_value_of_a_steps_variable_reaches_it_unchanged(value: str):
    from mathmill.launch.render import _expanding

    command = f'MATHMILL_RUN=/runs/demo; printf "%s|" "{_expanding(value)}" "{_expanding("$MATHMILL_RUN/x")}"'
    printed = subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout

    assert printed == f"{value}|/runs/demo/x|"
