"""Weights in and out: logits beside transformers', averages in float32, files that are whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mathmill.errors import UserError
from tests.training.making import REPO, WORDS

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytestmark = pytest.mark.slow

from mathmill.training.averaging import average  # noqa: E402
from mathmill.training.hf_files import Entry, WeightFiles, split_into_shards, write_folder  # noqa: E402


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("logits")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mathmill.training.torchrun",
            "--nproc_per_node=1",
            "-m",
            "tests.training.logits",
            folder,
        ],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", ["llama", "llama-3.1", "llama-linear", "mistral", "mixtral"])
def test_logits_are_those_of_transformers_in_and_out(logits: dict[str, dict[str, float]], name: str):
    print(name, logits[name])

    assert logits[name]["in"] < 1e-4
    assert logits[name]["out"] < 1e-4
    assert logits[name]["size"] > 1


def folder_of(path: Path, tensors: dict[str, "torch.Tensor"], max_shard_bytes: int = 10**9) -> Path:
    names = {torch.float32: "F32", torch.bfloat16: "BF16"}
    entries = {name: Entry(names[one.dtype], tuple(one.shape)) for name, one in tensors.items()}
    write_folder(path, entries, tensors.__getitem__, max_shard_bytes, WORDS)
    return path


def test_an_average_of_bfloat16_is_summed_in_float32_and_rounded_once(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    models = [{"a": torch.randn(64, 8, generator=generator).bfloat16(), "b": torch.ones(3)} for _ in range(5)]
    folders = [folder_of(tmp_path / str(number), one) for number, one in enumerate(models)]

    average(folders, tmp_path / "mean")
    average(folders, tmp_path / "mean32", dtype="F32")

    exact = torch.stack([one["a"].double() for one in models]).mean(0)
    assert torch.equal(WeightFiles(tmp_path / "mean").read("a"), exact.float().bfloat16())
    assert torch.allclose(WeightFiles(tmp_path / "mean32").read("a").double(), exact, atol=1e-7)
    assert json.loads((tmp_path / "mean32" / "config.json").read_text())["torch_dtype"] == "float32"


def test_models_that_differ_in_shape_or_names_are_not_averaged(tmp_path: Path):
    first = folder_of(tmp_path / "1", {"a": torch.ones(4, 2)})
    narrow = folder_of(tmp_path / "2", {"a": torch.ones(4, 3)})
    other = folder_of(tmp_path / "3", {"b": torch.ones(4, 2)})

    with pytest.raises(UserError, match=r"a is \[4, 2\] in .* and \[4, 3\] in"):
        average([first, narrow], tmp_path / "x")
    with pytest.raises(UserError, match="do not hold the same tensors: a, b"):
        average([first, other], tmp_path / "x")
    with pytest.raises(UserError, match="two folders or more"):
        average([first], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_in_shards_reads_the_same_and_appears_whole_or_not_at_all(tmp_path: Path):
    tensors = {f"t{number}": torch.randn(10, number + 1) for number in range(9)}
    folder = folder_of(tmp_path / "shards", tensors, max_shard_bytes=600)
    files = WeightFiles(folder)

    assert len(list(folder.glob("model-*.safetensors"))) == len(files.shards()) > 2
    assert all(torch.equal(files.read(name), one) for name, one in tensors.items())
    assert torch.equal(files.read("t8", slice(2, 5), slice(1, 4)), tensors["t8"][2:5, 1:4])

    def broken(name: str) -> "torch.Tensor":
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "none", {"a": Entry("F32", (2,))}, broken, 100, WORDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_what_killed_writers_of_a_folder_left_goes_once_it_is_whole_and_nothing_else_does(tmp_path: Path):
    for name in (
        ".kept~node-1-0a1b2c3d",
        ".kept~b.node-2-0a1b2c3d",
        ".kept.more~node-1-0a1b2c3d",
        ".kept~more~node-1-0a",
    ):
        (tmp_path / name / "x").mkdir(parents=True)
    folder_of(tmp_path / "kept", {"a": torch.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".kept.more~node-1-0a1b2c3d",
        ".kept~more~node-1-0a",
        "kept",
    ]


def test_of_two_writers_of_a_folder_the_second_lets_the_first_one_be(tmp_path: Path):
    def meanwhile(name: str) -> "torch.Tensor":
        folder_of(tmp_path / "x", {"a": torch.ones(2)})
        return torch.zeros(2)

    said: list[str] = []
    write_folder(tmp_path / "x", {"a": Entry("F32", (2,))}, meanwhile, 100, WORDS, said.append)
    assert torch.equal(WeightFiles(tmp_path / "x").read("a"), torch.ones(2))
    assert "another process made it" in said[-1] and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_shards_are_cut_before_they_grow_too_large():
    entries = {name: Entry("F32", (size,)) for name, size in [("a", 10), ("b", 10), ("c", 50), ("d", 1)]}

    assert split_into_shards(entries, 80) == [["a", "b"], ["c"], ["d"]]


def test_a_torn_or_missing_file_is_a_line_not_a_traceback(tmp_path: Path):
    folder = folder_of(tmp_path / "model", {"a": torch.ones(100)})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])

    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file"):
        WeightFiles(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        WeightFiles(folder)
