"""The server kinds: their commands, what they say of themselves, and that the standard library is enough for them."""

import subprocess
import sys
from dataclasses import replace

import pytest

from mathmill.errors import UserError
from mathmill.serving.kind import Launch
from mathmill.serving.kinds import KINDS, find_kind

LAUNCH = Launch(model="/models/mixtral", served_name="mixtral-1f", port=4321, gpus=8, context_length=4096)
ASKED = {"model", "prompt", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "logprobs", "stream"}


def words(kind, **changes):
    return " ".join(KINDS[kind].command(replace(LAUNCH, **changes)))


def test_tensorrt_llm_runs_alone_on_one_node_and_one_task_a_gpu_under_mpi_on_several():
    serve = "trtllm-serve /models/mixtral --host 0.0.0.0 --port 4321 --tp_size {} --max_seq_len 4096"
    assert words("trtllm", arguments=("--ep_size", "4")) == serve.format(8) + " --ep_size 4"
    assert words("trtllm", nodes=2) == "trtllm-llmapi-launch " + serve.format(16) + " --gpus_per_node 8"
    kind = KINDS["trtllm"]
    assert (kind.tasks_per_node(8, 1), kind.mpi_flag(1)) == (1, None)
    assert (kind.tasks_per_node(8, 2), kind.mpi_flag(2)) == (8, "pmix")


def test_tensorrt_llms_launcher_is_given_no_word_that_its_shell_would_split():
    with pytest.raises(UserError, match="cannot pass the argument 'two words' on"):
        words("trtllm", nodes=2, arguments=("--chat_template", "two words"))
    assert words("trtllm", arguments=("--chat_template", "two words")).endswith("two words")


def test_vllm_runs_one_task_a_node_and_the_first_one_alone_serves():
    expected = "vllm serve /models/mixtral --host 0.0.0.0 --port 4321 --served-model-name mixtral-1f"
    assert words("vllm") == expected + " --tensor-parallel-size 8 --max-model-len 4096"
    several = words("vllm", nodes=2, rendezvous="head:5000")
    parallel = "--tensor-parallel-size 8 --max-model-len 4096 --pipeline-parallel-size 2 --nnodes 2"
    assert several.endswith(f"{parallel} --node-rank 0 --master-addr head --master-port 5000")
    other = words("vllm", nodes=2, node_rank=1, rendezvous="head:5000")
    assert other.endswith("--node-rank 1 --master-addr head --master-port 5000 --headless")
    assert (KINDS["vllm"].tasks_per_node(8, 2), KINDS["vllm"].mpi_flag(2)) == (1, None)


def test_sglang_runs_one_task_a_node_and_tells_them_where_the_first_one_is():
    assert "--tp-size 8 --context-length 4096" in words("sglang")
    assert "--nnodes" not in words("sglang")
    several = words("sglang", nodes=2, node_rank=1, rendezvous="head:5000")
    assert "--tp-size 16" in several
    assert several.endswith("--nnodes 2 --node-rank 1 --dist-init-addr head:5000")
    assert (KINDS["sglang"].tasks_per_node(8, 2), KINDS["sglang"].mpi_flag(2)) == (1, None)


def test_what_needs_no_gpu_and_what_is_not_started():
    assert "-m mathmill.serving.bundled /models/mixtral --host 0.0.0.0 --port 4321" in words("bundled")
    assert words("bundled", nodes=2, node_rank=1).endswith("--stand_by")
    with pytest.raises(UserError, match="--server_address URL"):
        words("openai")


def test_users_arguments_come_last_and_unchanged():
    odd = ("--x", "a b", "\\n\\n", "")
    for kind in ("bundled", "trtllm", "vllm", "sglang"):
        assert tuple(KINDS[kind].command(replace(LAUNCH, arguments=odd))[-4:]) == odd


def test_every_kind_knows_the_fields_that_a_client_sends_and_a_stray_name_is_refused():
    for kind in KINDS.values():
        assert kind.fields >= ASKED
    with pytest.raises(UserError, match=r"no server kind 'tensorrt'\. Known: bundled, trtllm, vllm, sglang, openai"):
        find_kind("tensorrt")


def test_a_token_never_goes_onto_a_command_line():
    for kind in KINDS.values():
        assert not (kind.token_variable and kind.token_file_text)
    assert KINDS["sglang"].token_file_text("secret") == '{"api-key": "secret"}'
    assert "--config /dir/token.yaml" in words("sglang", token_file="/dir/token.yaml")
    assert "secret" not in repr(replace(LAUNCH, token_file="secret"))


def test_starting_needs_the_standard_library_only():
    code = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "mathmill":
            raise ImportError(f"{name} is not in the standard library")

sys.meta_path.insert(0, Blocker())
import mathmill.serving.start, mathmill.serving.kinds, mathmill.serving.address
"""
    subprocess.run([sys.executable, "-c", code], check=True)
