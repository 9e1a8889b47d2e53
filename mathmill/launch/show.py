"""What a launch prints of itself: aligned names and values."""

from collections.abc import Iterable, Sequence

NAME_WIDTH = 11


def show(lines: Sequence[tuple[str, str | list[str]]]) -> None:
    """Aligned names and values on stderr; the names dim on a terminal, the values wrapped at words below each other.

    A list is the words of a command: where it must be wrapped, a backslash keeps it one command.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    room = console.width - NAME_WIDTH if console.is_terminal else 1_000_000  # a file or a pipe gets whole lines
    for name, value in lines:
        is_command = isinstance(value, list)
        words = value if isinstance(value, list) else value.split(" ")
        for line in wrapped(words, room, " \\" if is_command else ""):
            console.print(Text.assemble((name.ljust(NAME_WIDTH), "dim"), line))
            name = ""


def wrapped(words: Iterable[str], room: int, end: str = "") -> list[str]:
    """Lines of at most `room` characters, where words allow it; all but the last end with `end`."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) + len(end) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [line + end for line in lines[:-1]] + lines[-1:]


def count(number: int, one: str, many: str | None = None) -> str:
    """ "1 task", "2,000 tasks"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
