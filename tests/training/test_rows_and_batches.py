"""Rows as tokens, their order, packs, and the tensors of a step."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.errors import UserError
from tests.training.making import WORDS, options_for, write_rows

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytestmark = pytest.mark.slow

from mathmill.training.batches import Order, Units, block_mask, collate, micro_batches, pack  # noqa: E402
from mathmill.training.options import TrainerOptions, trainer_options  # noqa: E402
from mathmill.training.rows import Rows, Tokens, make_rows  # noqa: E402
from mathmill.training.schedule import learning_rate, total_steps  # noqa: E402


def options(folder: Path, rows: Path, **changes: object) -> TrainerOptions:
    return trainer_options(options_for(folder, rows, **changes))


def units(folder: Path, **changes: object) -> Units:
    chosen = options(folder, write_rows(folder / "rows.jsonl", 40), **changes)
    make_rows(chosen, chosen.data, 0, folder / "tokens")
    return Units(Rows.open(folder / "tokens"), chosen.packing, chosen.context_length, 0)


def text_of(tokens: list[int]) -> str:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(WORDS / "tokenizer.json")).decode(tokens, skip_special_tokens=False)


@pytest.mark.parametrize("keep", [True, False])
def test_the_loss_counts_the_solution_and_its_end_and_the_code_output_only_if_asked(tmp_path: Path, keep: bool):
    row = json.loads(write_rows(tmp_path / "rows.jsonl", 1).read_text())
    tokens = Tokens(options(tmp_path, tmp_path / "rows.jsonl", train_on_code_output=keep), 0)

    (signed,) = tokens.encode([(row["input"], row["output"])])

    before, _, after = row["output"].partition("<llm-code-output>")
    output, _, rest = after.partition("</llm-code-output>")
    assert text_of([-1 - token if token < 0 else token for token in signed]) == row["input"] + row["output"] + (
        "<|endoftext|>"
    )
    counted = row["output"] if keep else before + rest
    assert text_of([token for token in signed if token >= 0]) == counted + "<|endoftext|>"
    assert output.strip().isdigit()


def test_a_row_that_is_too_long_is_dropped_or_cut_and_counted(tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    dropped = make_rows(options(tmp_path, rows, context_length=90), (str(rows),), 0, tmp_path / "a")
    cut = make_rows(options(tmp_path, rows, context_length=90, too_long="truncate"), (str(rows),), 0, tmp_path / "b")

    assert 0 < dropped["rows"] < 20 and dropped["rows"] + dropped["dropped"] == 20
    assert (cut["rows"], cut["dropped"], cut["truncated"]) == (20, 0, dropped["dropped"])
    assert int(Rows.open(tmp_path / "b").lengths.max()) == 91


@pytest.mark.parametrize("line", ['{"input": "a"}', "{", '{"input": 1, "output": "b"}', "[]"])
def test_a_line_without_its_texts_is_named(tmp_path: Path, line: str):
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    rows.write_text(rows.read_text() + line + "\n")

    with pytest.raises(UserError, match=r"rows\.jsonl, line 3: no JSON object with the texts 'input' and 'output'"):
        make_rows(options(tmp_path, rows), (str(rows),), 0, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_other_field_names_can_be_read(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "2 and 3?", "answer": "5"}) + "\n")

    about = make_rows(
        options(tmp_path, rows, input_field="question", output_field="answer"), (str(rows),), 0, tmp_path / "a"
    )

    assert about["rows"] == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(0, 5))
def test_packs_hold_every_row_once_and_never_more_than_fits(lengths: list[int], seed: int):
    packs = pack(lengths, 50, seed)

    assert sorted(row for members in packs for row in members) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in members) <= 50 for members in packs)
    assert packs == pack(lengths, 50, seed)


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 3))
def test_every_epoch_has_every_row_once_and_a_restart_sees_the_same_order(count: int, batch: int, seed: int):
    steps = -(-3 * count // batch)
    seen = [unit for step in range(steps) for unit in Order(count, seed).step(step, batch)]
    whole = Order(count, seed)

    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert seen == [whole.at(position) for position in range(steps * batch)]


@pytest.mark.parametrize("packing", [False, True])
def test_a_step_is_the_same_rows_however_it_is_divided(tmp_path: Path, packing: bool):
    made = units(tmp_path, packing=packing)
    chosen = Order(len(made), 0).step(1, 8)

    def counted(parts: int, micro_batch: int) -> tuple[float, int]:
        batches = [
            batch
            for part in range(parts)
            for batch in micro_batches(made, chosen, micro_batch=micro_batch, part=part, parts=parts, multiple=8)[0]
        ]
        return sum(float((b.counted * b.labels).sum()) for b in batches), batches[0].tokens.shape[1]

    assert counted(1, 1) == counted(2, 2) == counted(4, 1) == counted(1, 8)


def test_a_pack_shows_no_text_to_another(tmp_path: Path):
    made = units(tmp_path, packing=True)
    unit = max(range(len(made)), key=lambda one: len(made.members(one)))
    batch = collate(made, [unit], 256)
    mask = block_mask(batch)

    assert mask is not None and len(made.members(unit)) > 1
    start = 0
    for row in made.members(unit):
        length = int(made.rows.lengths[row]) - 1
        inside = mask[0, 0, start : start + length]
        assert torch.equal(inside[:, start : start + length], torch.ones(length, length).triu(1).bool())
        assert bool(inside[:, :start].all()) and bool(inside[:, start + length :].all())
        start += length


def test_the_learning_rate_rises_then_stays_or_falls_to_the_least(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    constant = options(tmp_path, rows, learning_rate=1.0, warmup_steps=4)
    cosine = options(tmp_path, rows, learning_rate=1.0, warmup_steps=4, schedule="cosine", min_learning_rate=0.1)

    assert [learning_rate(constant, step, 10) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert [learning_rate(cosine, step, 10) for step in (4, 7, 10)] == pytest.approx([1.0, 0.55, 0.1])
    assert total_steps(options(tmp_path, rows, steps=None, epochs=1.5), 101) == 19
