"""Real trainings of the bundled model on processors: layouts, restarts, kills, and what an export is worth."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.making import WORDS, losses, options_for, start, train, write_rows

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    """One process from begin to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, said = train(options_for(folder, rows, save_every=3, validation_data=[str(rows)], peak_tflops=0.1), 1)
    assert code == 0, said
    return folder


def test_a_training_that_stops_by_its_own_clock_goes_on_under_another_layout_with_the_same_losses(
    tmp_path: Path, rows: Path, undisturbed: Path
):
    options = options_for(tmp_path, rows, save_every=3)
    first, said = train(options, 1, {"MATHMILL_STOP_AT": str(time.time())})
    stopped = len(losses(tmp_path))
    second, more = train({**options, "tensor_parallel": 2}, 2)

    assert (first, second) == (75, 0), said + more
    assert 0 < stopped < 6
    assert f"stopped after step {stopped} of 6: its time is up" in said
    assert "tensor 2 x pipeline 1 x data 1 = 2 processes; 6 steps of 8, from step 1" in more
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), abs=5e-5)


def test_what_a_training_leaves_behind(undisturbed: Path):
    checkpoints = undisturbed / "checkpoints"
    metrics = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    values = losses(undisturbed)

    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000003", "step-00000006"]
    assert not (checkpoints / "step-00000003" / "optimizer").exists()  # only a restart needs it
    assert (checkpoints / "step-00000006" / "optimizer").is_dir()
    assert values[-1] < values[0]
    assert next(row["validation_loss"] for row in metrics if "validation_loss" in row) < values[0]
    assert {"learning_rate", "grad_norm", "tokens_per_s_per_gpu", "seconds"} <= set(metrics[0])
    assert 0 < metrics[0]["utilisation"] < 1
    assert list((undisturbed / "tensorboard").glob("events.out.tfevents.*"))
    assert (undisturbed / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_rows_that_changed_since_are_refused_in_one_line(tmp_path: Path, undisturbed: Path):
    subprocess.run(["cp", "-r", undisturbed, tmp_path / "run"], check=True)
    options = options_for(tmp_path / "run", write_rows(tmp_path / "other.jsonl", 20), steps=8)

    code, said = train(options, 1)

    assert code == 2
    refusal = [line for line in said.splitlines() if line.startswith("error: ")]
    assert refusal == [f"error: the rows or the seed changed since step 6 of {tmp_path / 'run'}; use another run"]
    assert "Traceback" not in said


def test_a_checkpoint_whose_files_were_cut_is_told_in_a_line(tmp_path: Path, rows: Path, undisturbed: Path):
    subprocess.run(["cp", "-r", undisturbed, tmp_path / "run"], check=True)
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    for path in (newest / "optimizer").glob("*.distcp"):
        os.truncate(path, 1000)

    code, said = train(options_for(tmp_path / "run", rows, steps=8), 1)

    assert code == 2
    [refusal] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert refusal.startswith(f"error: {newest} cannot be read (")
    assert "Traceback" not in said


def kill_all(process: "subprocess.Popen[str]") -> None:
    """KILL to torchrun and every rank and writer that it started: what a lost node does."""
    os.killpg(process.pid, signal.SIGKILL)
    job = process.args[-1]  # type: ignore[index]
    while left := subprocess.run(["pgrep", "-f", job], capture_output=True, text=True, check=False).stdout.split():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)
    process.communicate()


@pytest.mark.trial
def test_killed_ten_times_at_random_it_ends_with_the_loss_curve_of_an_undisturbed_run(tmp_path: Path, rows: Path):
    common = {"steps": 60, "save_every": 2, "hidden_dropout": 0.1, "attention_dropout": 0.1}
    layout = {"tensor_parallel": 2, "pipeline_parallel": 2}
    code, said = train(options_for(tmp_path / "a", rows, **common, **layout), 4)
    assert code == 0, said
    options = options_for(tmp_path / "b", rows, **common, **layout)
    dice, steps = random.Random(0), []
    for kill in range(10):
        process = start(options, 4)
        assert process.stdout is not None
        seen, wanted = -1, dice.randint(1, 9) if kill % 3 else -1  # steps of this start; -1: in the midst of starting
        while seen < wanted:
            line = process.stdout.readline()
            assert line, "it ended before it was killed"
            seen += "from step" in line or "  loss " in line
        time.sleep(dice.uniform(0, 6))
        kill_all(process)
        steps.append(max((int(path.name[5:]) for path in (tmp_path / "b" / "checkpoints").glob("step-*")), default=0))
    code, said = train(options, 4)
    print(f"newest whole checkpoint after each kill: {steps}")

    assert code == 0, said
    assert 0 < steps[-1] < 60
    print(f"largest difference of the losses: {most_apart(tmp_path / 'a', tmp_path / 'b'):.1e}")
    assert most_apart(tmp_path / "a", tmp_path / "b") < 5e-5


def most_apart(one: Path, other: Path) -> float:
    """The largest difference of two loss curves, which have as many steps."""
    return max(abs(a - b) for a, b in zip(losses(one), losses(other), strict=True))


@pytest.mark.trial
def test_a_training_that_is_resharded_twice_has_the_losses_of_one_that_was_not(tmp_path: Path, rows: Path):
    options = options_for(tmp_path / "a", rows, steps=9)
    assert train(options, 1)[0] == 0
    layouts = [({}, 1), ({"tensor_parallel": 2, "pipeline_parallel": 2}, 4), ({}, 2)]
    for steps, (layout, processes) in zip((3, 6, 9), layouts, strict=True):
        code, said = train({**options, **layout, "folder": str(tmp_path / "b"), "steps": steps}, processes)
        assert code == 0, said

    print(f"largest difference of the losses: {most_apart(tmp_path / 'a', tmp_path / 'b'):.1e}")
    assert most_apart(tmp_path / "a", tmp_path / "b") < 5e-5


@pytest.mark.trial
def test_every_option_of_arithmetic_gives_the_same_losses_in_every_layout(tmp_path: Path, rows: Path):
    layouts = [(1, {}), (2, {"pipeline_parallel": 2}), (2, {"tensor_parallel": 2}), (2, {}),
               (4, {"tensor_parallel": 2, "pipeline_parallel": 2})]  # fmt: skip
    for name, changes in {
        "plain": {}, "packed": {"packing": True, "global_batch": 4, "micro_batch": 1}, "recomputed": {"recompute": "full"},
        "whole optimizer": {"distributed_optimizer": False},
    }.items():  # fmt: skip
        curves = []
        for number, (processes, layout) in enumerate(layouts):
            folder = tmp_path / f"{name}-{number}"
            code, said = train(options_for(folder, rows, steps=4, **{**changes, **layout}), processes)
            assert code == 0, said
            curves.append(losses(folder))
        print(name, curves[0])
        for curve in curves[1:]:
            assert curve == pytest.approx(curves[0], abs=5e-5), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: throughput of a 1B-shaped model in bf16")
@pytest.mark.trial
def test_a_1b_shaped_model_trains_in_bf16_on_a_gpu(tmp_path: Path):
    assert subprocess.run([sys.executable, "benchmarks/training.py"], check=False).returncode == 0


MIXTRAL = """
import sys, torch, transformers
torch.manual_seed(0)
config = transformers.MixtralConfig(vocab_size=1152, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, num_local_experts=4,
    num_experts_per_tok=2, eos_token_id=0, tie_word_embeddings=False)
transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(sys.argv[1])
"""


PEAK = """
import json, resource, sys
from mathmill.training.{module} import {function}
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{call}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([before * 1024, peak * 1024]))
"""


def peak_bytes(module: str, function: str, call: str) -> tuple[int, int]:
    """Resident memory of a process of its own: before the call, and at its most."""
    code = PEAK.format(module=module, function=function, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, peak = json.loads(done.stdout.splitlines()[-1])
    return before, peak


SAVE = """
import sys
from pathlib import Path
from megatron.core import dist_checkpointing
from torch import distributed as dist
from mathmill.training.checkpoints import METADATA
from mathmill.training.hf_files import WeightFiles
from mathmill.training.model import build_model, join
from mathmill.training.options import TrainerOptions
from mathmill.training.shape import read_shape
from mathmill.training.weights import Part, load_weights
import os
if __name__ == "__main__":
    folder, tp, pp = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    layout = {"tensor_parallel": tp, "pipeline_parallel": pp}
    options = TrainerOptions(folder="", model="", data=(), device="cpu", precision="fp32", **layout)
    place = join(options, int(os.environ["LOCAL_RANK"]))
    shape = read_shape(folder)
    model = build_model(shape, options, place)
    if list(folder.glob("*.safetensors")):
        each = shape.num_layers // pp
        layers = range(place.pp_rank * each, (place.pp_rank + 1) * each)
        load_weights(model, WeightFiles(folder), shape, layers, Part(place.tp_rank, tp), range(shape.num_experts))
    (folder / "weights").mkdir(exist_ok=True)
    dist.barrier()
    state = {"model": model.sharded_state_dict(metadata=dict(METADATA))}
    dist_checkpointing.save(state, str(folder / "weights"), content_metadata=METADATA)
    dist.destroy_process_group()
"""


def save_weights(folder: Path, tensor_parallel: int, pipeline_parallel: int) -> Path:
    """The weights of a folder's model, or random ones of its shape, as a checkpoint of this layout."""
    (folder / "save.py").write_text(SAVE)
    processes = f"--nproc_per_node={tensor_parallel * pipeline_parallel}"
    command = [sys.executable, "-m", "mathmill.training.torchrun", processes, folder / "save.py", folder]
    words = [*command, str(tensor_parallel), str(pipeline_parallel)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "weights"


@pytest.mark.trial
def test_a_mixtral_goes_through_every_kind_of_parallelism_that_a_cpu_has_and_comes_back_bit_for_bit(
    tmp_path: Path, rows: Path
):
    from mathmill.training.export import export
    from mathmill.training.hf_files import WeightFiles

    subprocess.run([sys.executable, "-c", MIXTRAL, tmp_path / "hf"], check=True, capture_output=True)
    (tmp_path / "hf" / "tokenizer.json").write_bytes((WORDS / "tokenizer.json").read_bytes())
    layout = {"pipeline_parallel": 2, "steps": 1, "learning_rate": 0.0}  # of tensor parallelism only loading and saving
    code, said = train(options_for(tmp_path / "run", rows, model=str(tmp_path / "hf"), **layout), 4)
    assert code == 0, said

    trained = tmp_path / "run" / "checkpoints" / "step-00000001" / "weights"
    for number, weights in enumerate([trained, save_weights(tmp_path / "hf", 2, 2)]):
        export(weights, tmp_path / "hf", tmp_path / f"back-{number}")
        one, other = WeightFiles(tmp_path / "hf"), WeightFiles(tmp_path / f"back-{number}")
        assert set(one.names()) == set(other.names())
        assert all(torch.equal(one.read(name), other.read(name)) for name in one.names())


@pytest.mark.trial
def test_exporting_and_averaging_two_gigabytes_takes_less_memory_than_twice_the_largest_shard(tmp_path: Path):
    config = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 2048, "eos_token_id": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(tmp_path, 1, 1)

    call = f'export(Path("{tmp_path}/weights"), Path("{tmp_path}"), Path("{tmp_path}/a"), 500_000_000)'
    exported = peak_bytes("export", "export", call)
    sizes = [path.stat().st_size for path in (tmp_path / "a").glob("*.safetensors")]
    averaged = peak_bytes(
        "averaging", "average", f'average([Path("{tmp_path}/a")] * 3, Path("{tmp_path}/b"), 500_000_000)'
    )
    print(f"{sum(sizes):,} bytes in {len(sizes)} shards, the largest {max(sizes):,}; "
          f"export {exported[1]:,} ({exported[0]:,} before), average {averaged[1]:,} ({averaged[0]:,} before)")  # fmt: skip

    assert sum(sizes) > 1.9e9
    assert exported[1] < 2 * max(sizes)
    assert averaged[1] < 2 * max(sizes)
