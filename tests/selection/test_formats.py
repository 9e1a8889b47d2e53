"""Training sets as other libraries read them: Hugging Face's datasets, and TRL's own notion of a conversation."""

import json
from pathlib import Path

import pytest

from mathmill.selection.options import Output
from mathmill.selection.training_set import Selection, make_training_set

ROW = {"question": "What is 1 + 1?", "generated_solution": "So \\boxed{2}.", "expected_answer": "2", "predicted_answer": "2",
       "error_message": "<not_executed>", "is_correct": True, "dataset": "made",
       "generation_type": "without_reference_solution"}  # fmt: skip


@pytest.fixture
def training_set(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    formats = ("messages", "prompt_completion", "nemo_chat", "sharegpt", "alpaca")
    output = tmp_path / "set"
    make_training_set(Selection(inputs=(str(tmp_path / "rows.jsonl"),), output=output, written=Output(formats=formats)))
    return output


@pytest.mark.slow
def test_hugging_face_and_trl_read_what_was_written_for_them(training_set, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load_dataset = pytest.importorskip("datasets").load_dataset
    is_conversational = pytest.importorskip("trl.data_utils").is_conversational

    def rows(name: str):
        kind = "parquet" if name.endswith("parquet") else "json"
        return load_dataset(kind, data_files=str(training_set / name), cache_dir=str(tmp_path / "cache"))["train"]

    assert (
        {**ROW, "problem_id": rows("train.jsonl")[0]["problem_id"]}
        == rows("train.jsonl")[0]
        == rows("train.parquet")[0]
    )
    (said,) = rows("messages.jsonl")
    assert is_conversational(said) and [turn["role"] for turn in said["messages"]] == ["user", "assistant"]
    assert said["messages"][1]["content"] == ROW["generated_solution"]
    (asked,) = rows("prompt_completion.jsonl")
    assert not is_conversational(asked) and set(asked) == {"prompt", "completion"}
    (card,) = load_dataset(str(training_set), "sft", cache_dir=str(tmp_path / "cache"))[
        "train"
    ]  # by the card's configs
    assert set(card) == {"problem_id", "input", "output"} and card["output"] == ROW["generated_solution"]
