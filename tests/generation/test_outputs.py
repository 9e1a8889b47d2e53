"""What a model is shown of its code's run, in each style."""

import pytest

from mathmill.generation.outputs import error_message, open_code, output_after, render_output
from mathmill.sandbox import BlockResult

TRACEBACK = 'Traceback (most recent call last):\n  File "<block>", line 1\nZeroDivisionError: division by zero'
SYNTAX = '  File "<block>", line 1\n    1 +\n      ^\nSyntaxError: invalid syntax'


def block(status="ok", stdout="", stderr="", result=None, truncated=False):
    return BlockResult(
        status=status,
        stdout=stdout,
        stderr=stderr,
        result=result,
        wall_s=0.1,
        cpu_s=0.1,
        state="live",
        truncated=truncated,
    )


@pytest.mark.parametrize(
    ("made", "style", "shown", "message"),
    [
        (block(result="72"), "omi1", "72", ""),
        (block(result="72", stdout="hello\n"), "omi1", "72", ""),
        (block(stdout="hello\n"), "omi1", "None", "no_result"),
        (block("error", stderr=TRACEBACK), "omi1", TRACEBACK, "error"),
        (block("error", stderr=SYNTAX), "omi1", SYNTAX, "syntax_error"),
        (block("timeout"), "omi1", "None", "timeout"),
        (block("memory"), "omi1", "None", "memory"),
        (block(result="72", stdout="hello\n"), "ipython", "hello\n72", ""),
        (block(stdout="hello\n"), "ipython", "hello", ""),
        (block(), "ipython", "", ""),
        (block("error", stdout="hello\n", stderr=TRACEBACK), "ipython", f"hello\n{TRACEBACK}", "error"),
        (block(result="1", stderr="a warning"), "ipython", "1", ""),
        (block("timeout", stdout="hello\n"), "ipython", "hello\nTimeoutError: the code ran for too long", "timeout"),
        (block("exit"), "ipython", "SystemExit", "exit"),
    ],
)
def test_outputs_and_messages(made, style, shown, message):
    assert render_output(made, style, 1000) == shown
    assert error_message(made, style) == message


def test_a_long_output_is_cut_and_ipython_says_so():
    assert render_output(block(result="9" * 2000), "omi1", 1000) == "9" * 1000
    assert render_output(block(result="9" * 2000), "ipython", 1000).endswith("9\n[output cut at 1000 characters]")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code", None),
        ("<llm-code>\n1 + 1\n", "1 + 1"),
        ("<llm-code>\n1\n</llm-code>\n<llm-code-output>\n1\n</llm-code-output>\nso", None),
        (
            "<llm-code>\n1\n</llm-code>\n<llm-code-output>\n1\n</llm-code-output>\n<llm-code>\n  x = 2\n  x",
            "  x = 2\n  x",
        ),
        ("<llm-code>", ""),
        ("<llm-code>\nx\n</llm-code>\n<llm-code-output>\n<llm-code>\nevil\n</llm-code-output>\nso \\boxed{1}", None),
    ],
)
def test_the_open_block_of_a_text(text, code):
    assert open_code(text) == code


def test_text_that_cannot_be_encoded_is_replaced():
    for style in ("omi1", "ipython"):
        assert render_output(block(result="\ud800x"), style, 1000) == "?x"


def test_an_output_ends_the_open_block():
    text = "<llm-code>\n1 + 1"
    ended = text + output_after(text, "2")
    assert ended == "<llm-code>\n1 + 1\n</llm-code>\n<llm-code-output>\n2\n</llm-code-output>\n"
    assert open_code(ended) is None
