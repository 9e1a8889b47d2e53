"""Prompts: files, marks, examples that are true, and the text that a model gets."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mathmill.chat_template import chat_text
from mathmill.errors import UserError
from mathmill.generation.outputs import render_output
from mathmill.grading import GradingPool, grade
from mathmill.grading.extract import extract_answer
from mathmill.prompts import Prompt, load_examples, load_prompt, prompt_messages, prompt_text
from mathmill.records import Problem
from mathmill.sandbox import Sandbox
from mathmill.selection.leaks import leaks_of, leaks_quickly

REPOSITORY = Path(__file__).parent.parent
SHIPPED = sorted(path.stem for path in (REPOSITORY / "prompts").glob("*.yaml"))
SETS = sorted(path.stem for path in (REPOSITORY / "prompts" / "examples").glob("*.yaml"))
SIX_NEWLINES = "\n" * 6


def problem(text: str = "What is 1 + 1?", **fields) -> Problem:
    return Problem(
        **{"problem_id": "mine/test/17", "problem": text, "expected_answer": "2", "dataset": "mine", "split": "test"}
        | fields
    )


def write_prompt(folder: Path, **keys) -> str:
    """A prompt file with these keys; None leaves one out."""
    keys = {"description": "d", "template": "raw", "user": "Solve: {{problem}}"} | keys
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    return str(path)


def refusal(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is shipped


def test_the_prompt_of_the_bundled_model_is_exactly_the_one_it_was_trained_on():
    prompt = load_prompt("code_sft")
    assert prompt_text(prompt, problem("TEXT")) == (
        "Solve the problem. Use Python code where it helps, and put the final answer in \\boxed{}.\n\n"
        "Problem:\nTEXT\n\nSolution:\n"
    )
    assert (prompt.stop, prompt.num_shots, prompt.code) == ([], 0, True)


@pytest.mark.parametrize("name, code", [("code_base", True), ("text_base", False), ("code_base@math_geometry", True)])
def test_few_shot_prompts_have_the_published_layout(name, code):
    prompt = load_prompt(name)
    parts = prompt_text(prompt, problem("TEXT")).split(SIX_NEWLINES)
    assert len(parts) == 7 and not any(part.startswith("\n") for part in parts)
    assert parts[-1] == "Problem:\nTEXT\n\nSolution:\n"
    for part, example in zip(parts[1:-1], prompt.examples, strict=True):
        assert part == f"Problem:\n{example['problem']}\n\nSolution:\n{example['solution']}"
    assert prompt.stop == [SIX_NEWLINES] and prompt.num_shots == 5
    assert prompt.code is code is ("<llm-code>" in parts[1])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_stored_prompt_is_the_same_without_its_file(name):
    prompt = load_prompt(name)
    stored = yaml.safe_load(yaml.safe_dump(msgspec.to_builtins(prompt)))
    again = msgspec.convert(stored, Prompt)
    assert again == prompt and again.sha == prompt.sha
    whole = problem(reference_solution="R", masked_reference_solution="M")
    made_by = prompt_text if prompt.template == "raw" else prompt_messages
    assert made_by(again, whole) == made_by(prompt, whole)


BLOCK = re.compile(r"<llm-code>\n(.*?)\n</llm-code>\n<llm-code-output>\n(.*?)\n</llm-code-output>\n", re.DOTALL)
RUN_BLOCKS = """
import ast, json, sys
outputs = []
for blocks in json.load(sys.stdin):
    names, shown = {}, []
    for block in blocks:
        tree = ast.parse(block)
        last = ast.Expression(tree.body.pop().value)
        exec(compile(tree, "block", "exec"), names)
        shown.append(repr(eval(compile(last, "block", "eval"), names)))
    outputs.append(shown)
json.dump(outputs, sys.stdout)
"""


@pytest.mark.slow
def test_the_outputs_in_the_shipped_examples_are_what_python_gives():
    examples = [example for name in SETS for example in load_examples(REPOSITORY / f"prompts/examples/{name}.yaml")]
    written = [BLOCK.findall(example["solution"]) for example in examples]
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN_BLOCKS], input=json.dumps([[code for code, _ in blocks] for blocks in written]),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[output for _, output in blocks] for blocks in written]


@pytest.mark.parametrize("name", SETS)
def test_the_shipped_examples_are_whole(name):
    examples = load_examples(REPOSITORY / f"prompts/examples/{name}.yaml")
    assert len(examples) == 5
    for example in examples:
        blocks = BLOCK.findall(example["solution"])
        assert all(example["solution"].count(f"<{slash}llm-code{end}>") == len(blocks)
                   for slash in ("", "/") for end in ("", "-output"))  # fmt: skip
        assert 1 <= len(blocks) <= 3 if "text" not in name else not blocks
        assert extract_answer(example["solution"]) == example["expected_answer"]
        assert example["solution"].count("\\boxed") == 1
        assert SIX_NEWLINES not in example["solution"] and example["problem"] == example["problem"].strip()


MASKED = [name for name in SETS if "text" not in name]


@pytest.mark.parametrize("name", MASKED)
def test_masked_solutions_in_the_shipped_examples_tell_no_answer_and_the_words_give_it(name):
    pool = GradingPool(workers=1)
    try:
        for example in load_examples(REPOSITORY / f"prompts/examples/{name}.yaml"):
            answer = example["expected_answer"]
            assert extract_answer(example["reference_solution"]) == answer
            found, slow = leaks_quickly(example["masked_solution"], answer, pool)
            assert found is None and leaks_of([(slow, answer)], pool) == [None], (example["problem"], found)
            assert SIX_NEWLINES not in example["masked_solution"] and "\\boxed" not in example["masked_solution"]
    finally:
        pool.close()


def test_each_subject_of_math_has_one_example_of_each_level():
    subjects = [name for name in SETS if name.startswith("math_")]
    assert len(subjects) == 7
    for name in subjects:
        assert [each["level"] for each in load_examples(REPOSITORY / f"prompts/examples/{name}.yaml")] == list("12345")


@pytest.mark.slow
def test_the_solutions_in_the_shipped_examples_run_in_the_sandbox_and_are_graded_right():
    examples = [each for name in MASKED for each in load_examples(REPOSITORY / f"prompts/examples/{name}.yaml")]
    with Sandbox.start() as sandbox:
        for example in examples:
            with sandbox.session() as session:
                for code, output in BLOCK.findall(example["solution"]):
                    result = session.run(code, timeout=20, max_output=1000)
                    assert (result.status, render_output(result, "omi1", 1000)) == ("ok", output), example["problem"]
            assert grade(extract_answer(example["solution"]), example["expected_answer"]).is_correct


def test_other_examples_are_named_behind_the_prompt():
    one, other = load_prompt("code_base"), load_prompt("code_base@math_algebra")
    assert (other.name, other.user, other.num_shots) == ("code_base@math_algebra", one.user, 5)
    assert other.examples != one.examples and other.sha != one.sha
    assert "did you mean 'math_algebra'?" in refusal(load_prompt, "code_base@math_algebre")
    assert "shows no examples" in refusal(load_prompt, "code_sft@math_algebra")


def test_a_masked_prompt_shows_the_masked_solution_and_no_other():
    text = prompt_text(
        load_prompt("masked_code_base"), problem("TEXT", masked_reference_solution="M", reference_solution="R")
    )
    assert text.endswith("Problem:\nTEXT\n\nMasked solution:\nM\n\nSolution:\n")
    assert load_prompt("masked_code_base").generation_type == "masked_reference_solution"
    text = prompt_text(load_prompt("mask_base"), problem("TEXT", reference_solution="R"))
    assert text.endswith("Problem:\nTEXT\n\nSolution:\nR\n\nMasked solution:\n")


def test_the_readme_names_every_key_and_every_prompt():
    readme = (REPOSITORY / "prompts" / "README.md").read_text()
    from mathmill.prompts import PromptFile

    assert all(f"| `{name}` |" in readme for name in (*PromptFile.__struct_fields__, *SHIPPED))


# Marks


@given(
    st.text() | st.sampled_from(["{{problem}}", r"\frac{1}{{2}} \1 \g<0>", "{{examples}}{{", "{% raw %}", "$x$ ${y}"])
)
def test_what_a_problem_holds_comes_out_as_it_is(text):
    prompt = Prompt(
        name="p", description="", template="raw", user="[{{ problem }}|{{expected_answer}}]", system=None, examples=[],
        example_format="", delimiter="", stop=[], generation_type="without_reference_solution", code=False,
    )  # fmt: skip
    assert prompt_text(prompt, problem(text, expected_answer=text)) == f"[{text}|{text}]"


def test_what_an_example_holds_comes_out_as_it_is(tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "two.jsonl").write_text(
        json.dumps({"q": "{{problem}} {{q}} \\n"}) + "\n\n" + json.dumps({"q": "second"}) + "\n"
    )
    path = write_prompt(
        tmp_path, user="{{examples}}{{problem}}", examples="two", example_format="<{{q}}>", delimiter="--", num_shots=2
    )
    assert prompt_text(load_prompt(path), problem("P")) == "<{{problem}} {{q}} \\n>--<second>--P"


def test_numbers_of_a_problem_are_written_as_text(tmp_path):
    path = write_prompt(tmp_path, user="{{problem}} (level {{level}})")
    assert prompt_text(load_prompt(path), problem("P", level=3)) == "P (level 3)"


def test_a_field_that_a_problem_lacks_is_named_with_prompt_and_problem(tmp_path):
    prompt = load_prompt(write_prompt(tmp_path, user="{{problem}} {{reference_solution}}"))
    message = refusal(prompt_text, prompt, problem())
    assert "prompt 'mine'" in message and "mine/test/17" in message and "reference_solution" in message


# Files


@pytest.mark.parametrize(
    "keys, complaint",
    [
        ({"stopp": ["x"]}, "unknown key 'stopp'; did you mean 'stop'?"),
        ({"template": "jinja"}, "template"),
        ({"num_shots": "five"}, "num_shots"),
        ({"description": None}, "description"),
        ({"generation_type": "masked"}, "generation_type"),
        ({"stop": "x"}, "stop"),
        ({"stop": [""]}, "an empty stop string"),
        ({"user": "{{quesiton}} {{problem}}"}, "{{quesiton}}"),
        ({"user": "{{problme}}"}, "did you mean 'problem'?"),
        ({"user": "Solve it."}, "{{problem}} stands nowhere"),
        ({"user": "{{examples}} {{problem}}"}, "go together"),
        ({"examples": "grade_school_code", "num_shots": 1}, "go together"),
        ({"num_shots": 2}, "names no set"),
        ({"system": "You are careful."}, "a raw prompt has no system message"),
        ({"user": "{{examples}}{{problem}}", "examples": "grade_shool_code"}, "did you mean 'grade_school_code'?"),
        ({"user": "{{examples}}{{problem}}", "examples": "grade_school_code"}, "num_shots is 0"),
        ({"user": "{{examples}}{{problem}}", "examples": "grade_school_code", "num_shots": 6}, "1 to 5"),
        (
            {"user": "{{examples}}{{problem}}", "examples": "grade_school_code", "num_shots": 1,
             "example_format": "{{question}}"},
            "example 1 has no question",
        ),
    ],
)  # fmt: skip
def test_a_prompt_file_with_a_mistake_is_refused(tmp_path, keys, complaint):
    path = write_prompt(tmp_path, **keys)
    message = refusal(load_prompt, path)
    assert path in message and complaint in message


def test_a_file_that_is_no_prompt_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    for content in ("user: [", "- a", "", "user: {{problem}}"):
        path.write_text(content)
        assert str(path) in refusal(load_prompt, str(path))
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "odd.yaml").write_text("- problem: 3\n")
    write_prompt(tmp_path, user="{{examples}}{{problem}}", examples="odd", num_shots=1)
    assert "odd.yaml" in refusal(load_prompt, str(path))


def test_an_unknown_prompt_is_refused_with_the_known_ones(tmp_path):
    assert "did you mean 'code_base'? Known: code_base, code_sft, mask_base, " in refusal(load_prompt, "code_bose")
    assert "no prompt file" in refusal(load_prompt, str(tmp_path / "nowhere.yaml"))


def test_the_sha_changes_with_all_that_shapes_the_text_and_with_nothing_else():
    prompt = load_prompt("code_base")
    replace = msgspec.structs.replace
    assert replace(prompt, name="other", description="other").sha == prompt.sha
    changed = [
        replace(prompt, user=prompt.user + " "), replace(prompt, template="chat"), replace(prompt, delimiter="\n"),
        replace(prompt, stop=[]), replace(prompt, examples=prompt.examples[::-1]), replace(prompt, code=False),
        replace(prompt, example_format=prompt.example_format + " "), replace(prompt, system=""),
    ]  # fmt: skip
    assert len({prompt.sha, *(each.sha for each in changed)}) == 9
    assert load_prompt("code_base").sha == prompt.sha


# Chats


TEMPLATE = """{{ bos_token }}{% for message in messages %}
    {% if message['role'] not in ['system', 'user'] %}
{{ raise_exception('no ' + message['role']) }}
    {% endif %}
[{{ message['role'] }}]{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
[assistant]{% endif %}"""


def write_model(folder: Path, in_config: bool, template: object = TEMPLATE) -> Path:
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    if in_config:
        config["chat_template"] = template
    else:
        (folder / "chat_template.jinja").write_text(str(template))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("in_config", [True, False])
def test_a_chat_becomes_text_by_the_models_own_template(tmp_path, in_config):
    prompt = load_prompt(write_prompt(tmp_path, template="chat", system="Be brief.", user="{{problem}}"))
    messages = prompt_messages(prompt, problem("1 < 2 {{x}}"))
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 < 2 {{x}}"}]
    model = write_model(tmp_path, in_config)
    assert chat_text(messages, model) == "<s>[system]Be brief.</s>\n[user]1 < 2 {{x}}</s>\n[assistant]"


def test_a_named_default_template_is_found(tmp_path):
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages | tojson }}"}]
    model = write_model(tmp_path, True, templates)
    assert chat_text([{"role": "user", "content": "<é>"}], model) == '[{"role": "user", "content": "<é>"}]'


def test_a_chat_without_a_template_or_against_it_is_refused(tmp_path):
    messages = [{"role": "user", "content": "Hi"}]
    assert "no chat template" in refusal(chat_text, messages, tmp_path)
    assert "no tool" in refusal(chat_text, [{"role": "tool", "content": ""}], write_model(tmp_path, False))
    for bad in ("{% if %}", "{{ messages.pop() }}", "{{ ''.__class__.__mro__ }}"):
        assert str(tmp_path) in refusal(chat_text, messages, write_model(tmp_path, False, bad))


def test_raw_prompts_have_no_messages_and_chats_no_text_of_their_own(tmp_path):
    assert "raw text" in refusal(prompt_messages, load_prompt("code_sft"), problem())
    assert "is a chat" in refusal(prompt_text, load_prompt(write_prompt(tmp_path, template="chat")), problem())


# The script


def show_prompt(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "pipeline" / "show_prompt.py"), *flags],
        capture_output=True, text=True, cwd=folder, timeout=60, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.slow
def test_show_prompt_prints_the_text_and_nothing_else(tmp_path):
    rows = [{"problem": "First?", "problem_id": "a"}, {"problem": "Second: π?", "problem_id": "b"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = show_prompt(tmp_path, "--problems", "mine.jsonl", "--problem_id", "b")
    assert shown.stdout == prompt_text(load_prompt("code_sft"), problem("Second: π?"))
    assert f"{len(shown.stdout)} characters" in shown.stderr
    assert "Second" in show_prompt(tmp_path, "--problems", "mine.jsonl", "--index", "1").stdout
    refused = show_prompt(tmp_path, "--problems", "mine.jsonl", "--index", "2")
    assert (refused.returncode, refused.stdout) == (2, "") and "problems 0 to 1" in refused.stderr
