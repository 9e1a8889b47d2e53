"""Code in a generation: where it is, and the text that a model is shown as its output."""

from typing import Literal

from mathmill.records import ErrorMessage
from mathmill.sandbox import BlockResult

CODE_BEGIN, CODE_END = "<llm-code>", "</llm-code>"
OUTPUT_BEGIN, OUTPUT_END = "<llm-code-output>", "</llm-code-output>"

OutputStyle = Literal["omi1", "ipython"]


def open_code(text: str) -> str | None:
    """The code of a block that was begun and not ended, as a stop at `</llm-code>` leaves it; None where there is none."""
    written = text.rpartition(OUTPUT_END)[2]  # tags that a block printed are not the model's
    _, begun, code = written.rpartition(CODE_BEGIN)
    return code.strip("\n") if begun and CODE_END not in code else None


def output_after(text: str, output: str) -> str:
    """What ends the open block of a generation and shows its output."""
    newline = "" if text.endswith("\n") else "\n"
    return f"{newline}{CODE_END}\n{OUTPUT_BEGIN}\n{output}\n{OUTPUT_END}\n"


def error_message(block: BlockResult, style: OutputStyle) -> ErrorMessage:
    """How a block ended, in the closed list of solutions."""
    if block.status == "error":
        last_line = block.stderr.rstrip().rpartition("\n")[2]
        return "syntax_error" if last_line.startswith(("SyntaxError", "IndentationError", "TabError")) else "error"
    if block.status == "ok":
        return "no_result" if style == "omi1" and block.result is None else ""
    return block.status


def render_output(block: BlockResult, style: OutputStyle, max_characters: int) -> str:
    """The text between the output tags.

    `omi1` (spec of the published pipeline, sections 1.1 and 1.9): the last expression's value alone, a traceback on an
    error, the word None where there is neither; cut without a mark. `ipython`: what a notebook cell shows, printed text
    first; a cut is told.
    """
    if style == "omi1":
        shown = block.stderr if block.status == "error" else block.result
        return _encodable((shown if shown is not None else "None").strip("\n"))[:max_characters]
    parts = [block.stdout, block.result or "", block.stderr if block.status == "error" else _notice(block)]
    shown = "\n".join(part.strip("\n") for part in parts if part.strip("\n"))
    if len(shown) > max_characters or block.truncated:
        shown = f"{shown[:max_characters]}\n[output cut at {max_characters} characters]"
    return _encodable(shown)


def _encodable(text: str) -> str:
    """Python can print lone surrogates, which no file and no server takes."""
    return text.encode(errors="replace").decode()


def _notice(block: BlockResult) -> str:
    return {
        "timeout": "TimeoutError: the code ran for too long",
        "memory": "MemoryError: the code needed too much memory",
        "output": "OutputError: the code printed too much",
        "exit": "SystemExit",
        "crash": "the interpreter crashed",
    }.get(block.status, "")
