"""Cluster files: what they may say, and how each mistake is told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.launch.cluster import cluster_files, load_cluster, resolve_model
from mathmill.launch.times import seconds_of
from mathmill.paths import shipped

SHIPPED = sorted(path.stem for path in shipped("cluster_configs").glob("*.yaml"))


TULIP = load_cluster("tulip")


@pytest.fixture
def site(workdir: Path) -> Path:
    """A file ./cluster_configs/site.yaml to be written."""
    (workdir / "cluster_configs").mkdir()
    return workdir / "cluster_configs" / "site.yaml"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_loads_and_knows_the_bundled_model(name: str):
    cluster = load_cluster(name)

    assert cluster.file == f"cluster_configs/{name}.yaml" and cluster.description
    words = resolve_model("words", cluster)
    assert (words.server, words.gpus, words.context_length) == ("bundled", 0, 2048)
    assert Path(words.path) == shipped("models") / "words"


def test_the_readme_explains_every_field():
    from dataclasses import fields

    from mathmill.launch.cluster import ClusterFile

    readme = (shipped("cluster_configs") / "README.md").read_text()
    example = (shipped("cluster_configs") / "example.yaml").read_text()
    for field in fields(ClusterFile):
        assert f"`{field.name}`" in readme, field.name
        assert f"\n{field.name}:" in example, field.name


MISTAKES = {
    "time_limit: 12:00:00": 'time_limit was read as the number 43200; put quotes around it, as "12:00:00"',
    "time_limit: 4:00": 'time_limit was read as the number 240; put quotes around it, as "4:00"',
    "time_limit: 90": 'time_limit was read as the number 90; put quotes around it, as "12:00:00"',
    "stop_before: 1:10:00": 'stop_before was read as the number 4200; put quotes around it, as "1:10:00"',
    "directives: {begin: 12:30}": 'directives.begin was read as the number 750; put quotes around it, as "12:30"',
    "parition: a": "unknown key 'parition'; did you mean 'partitions'?",
    "partitions: {gp: a}": "unknown key 'partitions.gp'; did you mean 'gpu'?",
    "models: {m: {pth: /m}}": "unknown key 'models.m.pth'; did you mean 'path'?",
    "models: {m: {server: vllm}}": "models.m.path is missing",
    "models: {m: 3}": "models.m must be 'key: value' lines, not '3'",
    "gpus_per_node: eight": "gpus_per_node must be a whole number, not 'eight'",
    "cpus: 1.5": "cpus must be a whole number, not '1.5'",
    "executor: lsf": "executor must be 'local' or 'slurm', not 'lsf'",
    "setup: module load apptainer": "setup must be a list, one '- item' a line, not 'module load apptainer'",
    "directives: [exclusive]": "directives must be 'key: value' lines",
    "- executor": "must hold 'key: value' lines",
    "setup: ['echo ${HOME}']": (
        "setup[0]: Interpolation key 'HOME' not found; write a shell variable as $NAME, without braces"
    ),
    "setup: ['echo ${oc.env:HF_TOKEN}']": (
        REFERENCE := (
            "setup[0]: ${…:…} would be written into scripts with its value; name variables of your environment "
            "under env:, and in setup write $NAME, without braces"
        )
    ),
    "a: b\nsetup: ['${oc.${a}:HF_TOKEN}']": REFERENCE,
    "setup: ['${oc.decode:${oc.env:HF_TOKEN}}']": REFERENCE,
    'setup: ["module load apptainer\\nrm -rf x"]': (
        "setup[0] holds a line break, a tab or another control character; write one line"
    ),
    "setup:\n- |\n  one\n  two": "setup[0] holds a line break, a tab or another control character; write one line",
    'qos: "a\\x7f"': "qos holds a line break, a tab or another control character; write one line",
    'directives: {"a\\nb": 1}': (
        "the key 'a\\nb' under directives holds a line break, a tab or another control character"
    ),
    "directives: {'a b': 1}": "directives: 'a b' is no option of sbatch: a letter, then letters, digits and -",
    "directives: {comment: [a, b]}": "directives.comment must be one value, not several",
    "null: 1": "the key null is null to yaml; put quotes around it",
    "models: {7: {path: /m}}": "the key 7 under models is int to yaml; put quotes around it",
    "[a, b]: 1": "a key must be a word",
    "setup: &a [*a]": "an alias (*name) stands inside what it refers to, or lists are too deep",
    "max_running: -1": "max_running must be at least 1, not -1",
    "gpus_per_node: -1": "gpus_per_node must be at least 0, not -1",
    "cpus: -4": "cpus must be at least 1, not -4",
    "models: {m: {path: /m, start_minutes: 0}}": "models.m.start_minutes must be more than 0, not 0",
    "gpu_directive: 'gres=gpu:{gpus}{x}'": (
        "gpu_directive 'gres=gpu:{gpus}{x}' must be NAME=VALUE with {gpus} as its only braces, as \"gres=gpu:{gpus}\""
    ),
    "images: {megatron: a}": (
        "unknown key 'images.megatron'; known: trtllm, vllm, sglang, server, sandbox, trainer, nemo, client"
    ),
    "qos: ''": "qos is empty, which Slurm refuses; write null, or leave it out",
    "directives: {qos: ''}": "directives.qos is empty, which Slurm refuses; write null, or leave it out",
    "partitions: {gpu: ''}": "partitions.gpu is empty, which Slurm refuses; write null, or leave it out",
    "time_limit: soon": "time_limit: 'soon' is no time; write minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS",
    "{time_limit: '5:00', stop_before: 5}": "stop_before (300 s) must be shorter than time_limit (5:00)",
    "mounts: ['data:/data']": "mount 'data:/data' is not /source[:/target[:ro]] (absolute, without commas)",
    "gpu_directive: gres=gpu:8": ("gpu_directive 'gres=gpu:8' must say where the number goes, as \"gres=gpu:{gpus}\""),
    "{executor: local, runtime: {server: pyxis}}": (
        "runtime.server: pyxis is a plugin of Slurm; with executor local use docker, podman or apptainer"
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_with_the_files_name(site: Path, text: str):
    site.write_text(text)

    with pytest.raises(UserError) as told:
        load_cluster("site")

    assert str(told.value) == f"cluster_configs/site.yaml: {MISTAKES[text]}"


def test_a_cluster_files_name_holds_no_line_break(workdir: Path):
    (workdir / "a\nb.yaml").write_text("executor: local")

    with pytest.raises(UserError, match=r"a\\nb.yaml' has a line break"):
        load_cluster("./a\nb.yaml")


def test_every_server_kind_with_an_image_is_a_name_under_images():
    from mathmill.launch.cluster import IMAGE_NAMES
    from mathmill.serving.kinds import KINDS

    assert set(KINDS) - {"bundled", "openai"} <= set(IMAGE_NAMES)


def test_a_server_has_half_an_hour_to_start_unless_its_entry_says_more(site: Path):
    site.write_text("models: {a: {path: /a, gpus: 1}, b: {path: /b, start_minutes: 90}}")

    assert [resolve_model(name, load_cluster("site")).start_minutes for name in "ab"] == [30, 90]


def test_a_yaml_error_names_file_and_line(site: Path):
    site.write_text("executor: slurm\nsetup: [one,\n  two}\n")

    with pytest.raises(UserError, match=r"^cluster_configs/site.yaml:3: not yaml: "):
        load_cluster("site")


@pytest.mark.parametrize("text", ["env: [HF_TOKEN=hf_value]", "env: HF_TOKEN=hf_value", "env: {HF_TOKEN: hf_value}"])
def test_a_secret_written_by_mistake_is_not_repeated_in_the_error(site: Path, text: str):
    site.write_text(text)

    with pytest.raises(UserError, match="env") as told:
        load_cluster("site")

    assert "hf_value" not in str(told.value)


def test_an_unknown_cluster_lists_the_known_ones(workdir: Path):
    with pytest.raises(UserError, match=f"^no cluster config 'selen'. Known: {', '.join(SHIPPED)}$"):
        load_cluster("selen")
    with pytest.raises(UserError, match=r"no cluster file sites/mine\.yaml"):
        load_cluster("sites/mine.yaml")


def test_a_users_own_folder_goes_before_the_shipped_one(site: Path):
    site.with_name("selene.yaml").write_text("description: mine")

    assert load_cluster("selene").description == "mine"
    assert load_cluster(str(shipped("cluster_configs") / "selene.yaml")).description != "mine"
    assert set(cluster_files()) == set(SHIPPED)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("4:00", 240), ("12:00:00", 43200), ("1-12", 129600), ("2-0:30", 174600), ("1-02:03:04", 93784)],
)
def test_times_mean_what_slurm_takes_them_for(text: str, seconds: int):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "12h", "1:2:3:4", "-1", "1-", "noon", "12:00:00 "[:-1] + "x"])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(ValueError, match="is no time"):
        seconds_of(text)


@given(st.integers(1, 30 * 86400))
def test_the_default_warning_comes_before_the_limit_and_leaves_most_of_it(seconds: int):
    limit = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    before = replace(TULIP, time_limit=limit, stop_before=None).stop_before_s

    assert before is not None and before <= min(600, seconds / 2) and (before >= 60 or seconds < 120)


def test_a_model_is_a_name_or_a_hugging_face_folder(workdir: Path):
    selene, local = load_cluster("selene"), load_cluster("local")
    mixtral = resolve_model("mixtral-8x7b", selene)
    assert (mixtral.server, mixtral.gpus, mixtral.nodes, mixtral.context_length) == ("trtllm", 8, 1, 32768)

    folder = workdir / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    assert resolve_model("tiny", local) == replace(
        resolve_model("words", local), name="tiny", path=str(folder), context_length=512
    )
    assert (resolve_model(str(folder), selene).server, resolve_model(str(folder), selene).gpus) == ("trtllm", 8)


def test_an_unknown_model_lists_the_known_ones(workdir: Path):
    with pytest.raises(
        UserError, match=r"^no model 'mixtral' in cluster_configs/tulip.yaml. Known: llama-3.1-8b, student, words; or"
    ):
        resolve_model("mixtral", load_cluster("tulip"))


def test_a_folder_with_a_broken_config_is_refused(workdir: Path):
    (workdir / "model").mkdir()
    (workdir / "model" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not readable as JSON"):
        resolve_model("./model", load_cluster("local"))
