"""The project's own word problems: numbers from 2 to 99, one or two steps, solved by a line or two of Python."""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from mathmill import options
from mathmill.errors import UserError
from mathmill.files import write_whole
from mathmill.records import Problem, lines_of

Split = Literal["train", "test"]
SMALLEST, LARGEST = 2, 99
TEST_SHARE = 0.1


@dataclass(frozen=True)
class Kind:
    """Problems that are solved the same way. Its variables appear in braces in the wordings, and in the expression."""

    name: str
    expression: str
    wordings: tuple[str, ...]
    plans: tuple[str, ...]
    closings: tuple[str, ...]
    fits: Callable[..., bool] = lambda *numbers: True
    """Which numbers make sense, in the order in which the expression names them."""

    @property
    def variables(self) -> tuple[str, ...]:
        """The names in the expression, each once."""
        return tuple(dict.fromkeys(re.findall(r"[a-z_]+", self.expression)))


KINDS = (
    Kind(
        name="sum",
        expression="first + second",
        wordings=(
            "{name} has {first} {items}. {other} has {second} {items}. How many {items} do they have together?",
            "{name} picks {first} {items} on Monday and {second} {items} on Tuesday. How many {items} is that in all?",
            "A shelf holds {first} {items} and a basket holds {second} {items}. How many {items} are there in total?",
            "There are {first} {items} on the table. {name} adds {second} more. How many {items} are there now?",
        ),
        plans=("Add the two amounts.", "The total is the sum of both numbers."),
        closings=(r"There are \boxed{{{answer}}} {items}.", r"So the total is \boxed{{{answer}}}."),
    ),
    Kind(
        name="difference",
        expression="start - taken",
        wordings=(
            "{name} has {start} {items} and gives {taken} of them to {other}. How many {items} does {name} have left?",
            "There are {start} {items} in a box. {name} takes out {taken}. How many {items} stay in the box?",
            "{name} loses {taken} {items}. Before that there were {start}. How many {items} are left?",
            "{name} owns {start} {items} and {other} owns {taken}. How many more {items} does {name} own?",
        ),
        plans=("Subtract the smaller amount from the larger one.", "Take the second amount away from the first."),
        closings=(r"The result is \boxed{{{answer}}} {items}.", r"That makes \boxed{{{answer}}}."),
        fits=lambda start, taken: start > taken,
    ),
    Kind(
        name="product",
        expression="groups * each",
        wordings=(
            "{name} has {groups} boxes with {each} {items} in each box. How many {items} does {name} have?",
            "Each bag holds {each} {items}. {name} fills {groups} bags. How many {items} are in the bags?",
            "There are {groups} tables in a hall and {each} {items} on every table. How many {items} are in the hall?",
            "{name} packs {each} {items} a day. How many {items} does {name} pack in {groups} days?",
        ),
        plans=("Multiply the number of groups by the size of a group.", "Equal groups call for a multiplication."),
        closings=(r"There are \boxed{{{answer}}} {items} in all.", r"So the answer is \boxed{{{answer}}} {items}."),
    ),
    Kind(
        name="sharing",
        expression="total // people",
        wordings=(
            "{name} shares {total} {items} equally among {people} children. How many {items} does each child get?",
            "{people} friends split {total} {items} evenly. How many {items} does each friend receive?",
            "{total} {items} are put into {people} equal piles. How many {items} are in one pile?",
        ),
        plans=("Divide the total by the number of shares.", "Equal shares call for a division."),
        closings=(r"Each share is \boxed{{{answer}}} {items}.", r"So the answer is \boxed{{{answer}}}."),
        fits=lambda total, people: total > people and total % people == 0,
    ),
    Kind(
        name="leftover",
        expression="total % size",
        wordings=(
            "{name} packs {total} {items} into boxes of {size}. How many {items} do not fit into a full box?",
            "A bag takes {size} {items}. {name} has {total} {items} and fills as many bags as possible. "
            "How many {items} remain?",
            "{total} {items} are laid out in full rows of {size}. How many {items} are left over?",
        ),
        plans=("The remainder of the division is what is left over.", "Find the remainder after filling full groups."),
        closings=(r"The remainder is \boxed{{{answer}}} {items}.", r"So \boxed{{{answer}}} are left over."),
        fits=lambda total, size: total > size,
    ),
    Kind(
        name="change",
        expression="paid - count * price",
        wordings=(
            "{name} buys {count} {items} for {price} dollars each and pays with {paid} dollars. "
            "How much change does {name} get?",
            "One of the {items} costs {price} dollars. {name} has {paid} dollars and buys {count} of them. "
            "How many dollars are left?",
            "{name} takes {paid} dollars to the shop and buys {count} {items} at {price} dollars each. "
            "How many dollars does {name} bring home?",
        ),
        plans=("Subtract the cost of the goods from the money.", "First find the cost, then take it from the money."),
        closings=(r"{name} has \boxed{{{answer}}} dollars left.", r"The change is \boxed{{{answer}}} dollars."),
        fits=lambda paid, count, price: paid > count * price,
    ),
    Kind(
        name="purchase",
        expression="count * price + extra",
        wordings=(
            "{name} buys {count} {items} at {price} dollars each and a bag for {extra} dollars. "
            "How much does {name} pay?",
            "A ticket costs {extra} dollars and each of the {items} costs {price} dollars. "
            "{name} buys one ticket and {count} {items}. What is the total cost in dollars?",
            "A shop sells {items} at {price} dollars each and sends them for {extra} dollars. "
            "What do {count} {items} cost with sending?",
        ),
        plans=("Multiply the price by the count and add the extra cost.", "First the goods, then the extra cost."),
        closings=(r"{name} pays \boxed{{{answer}}} dollars.", r"The total cost is \boxed{{{answer}}} dollars."),
    ),
    Kind(
        name="earnings",
        expression="hours * wage - spent",
        wordings=(
            "{name} works {hours} hours for {wage} dollars an hour and then spends {spent} dollars. "
            "How many dollars remain?",
            "{name} earns {wage} dollars an hour. After {hours} hours of work {name} buys shoes for {spent} dollars. "
            "How much money is left?",
            "After spending {spent} dollars of the pay for {hours} hours at {wage} dollars an hour, "
            "how many dollars does {name} keep?",
        ),
        plans=("Find the pay and subtract what was spent.", "Multiply hours by wage, then subtract the spending."),
        closings=(r"{name} keeps \boxed{{{answer}}} dollars.", r"So \boxed{{{answer}}} dollars remain."),
        fits=lambda hours, wage, spent: hours * wage > spent,
    ),
    Kind(
        name="distance",
        expression="speed * hours",
        wordings=(
            "A train runs at {speed} km per hour. How many km does it run in {hours} hours?",
            "{name} drives for {hours} hours at {speed} km per hour. How far does {name} drive, in km?",
            "A ship covers {speed} km every hour. How long is its way after {hours} hours, in km?",
        ),
        plans=("Distance is speed times time.", "Multiply the speed by the hours."),
        closings=(r"The distance is \boxed{{{answer}}} km.", r"That is \boxed{{{answer}}} km."),
    ),
    Kind(
        name="age",
        expression="age + older + years",
        wordings=(
            "{name} is {age} years old. {other} is {older} years older. How old will {other} be in {years} years?",
            "{other} is {older} years older than {name}, who is {age}. How old is {other} {years} years from now?",
            "In {years} years, how old will {other} be, who is {older} years older than {name}, aged {age}?",
        ),
        plans=("Add the gap in age and the years to come.", "Start from the known age and add both spans."),
        closings=(r"{other} will be \boxed{{{answer}}} years old.", r"The age is \boxed{{{answer}}}."),
    ),
    Kind(
        name="percent",
        expression="price * percent / 100",
        wordings=(
            "A coat costs {price} dollars. {name} gets {percent} percent off. How many dollars does {name} save?",
            "What is {percent} percent of {price} dollars?",
            "{name} pays {percent} percent tax on {price} dollars. How many dollars is the tax?",
        ),
        plans=("Multiply by the percent and divide by one hundred.", "A percent is a hundredth part."),
        closings=(r"It is \boxed{{{answer}}} dollars.", r"The amount is \boxed{{{answer}}} dollars."),
        fits=lambda price, percent: price * percent % 100 != 0,
    ),
    Kind(
        name="average",
        expression="(first + second + third) // 3",
        wordings=(
            "{name} scores {first}, {second} and {third} points in three games. What is the average score?",
            "Three bags weigh {first}, {second} and {third} kg. What is their average weight in kg?",
            "{name} reads {first} pages on Monday, {second} on Tuesday and {third} on Friday. "
            "How many pages a day is that on average?",
        ),
        plans=("Add the three numbers and divide by three.", "The average is the sum divided by the count."),
        closings=(r"The average is \boxed{{{answer}}}.", r"So the answer is \boxed{{{answer}}}."),
        fits=lambda first, second, third: (first + second + third) % 3 == 0,
    ),
    Kind(
        name="perimeter",
        expression="2 * (length + width)",
        wordings=(
            "A garden is {length} m long and {width} m wide. How long is the fence around it, in m?",
            "What is the perimeter of a rectangle with sides {length} and {width}?",
            "{name} walks once around a field of {length} m by {width} m. How many m does {name} walk?",
        ),
        plans=("The perimeter is twice the sum of both sides.", "Add length and width and double the sum."),
        closings=(r"The perimeter is \boxed{{{answer}}}.", r"Once around is \boxed{{{answer}}}."),
    ),
    Kind(
        name="removal",
        expression="start - morning - evening",
        wordings=(
            "A seller has {start} {items}. {morning} are sold in the morning and {evening} in the evening. "
            "How many {items} are left?",
            "{name} gives {morning} {items} to {other} and {evening} to a neighbor. There were {start} {items} at first. "
            "How many {items} remain?",
            "Of {start} {items}, {morning} are red, {evening} are blue and the rest are green. "
            "How many {items} are green?",
        ),
        plans=("Subtract both amounts from the start.", "Take away the first part and then the second."),
        closings=(r"There are \boxed{{{answer}}} {items}.", r"So \boxed{{{answer}}} {items} remain."),
        fits=lambda start, morning, evening: start > morning + evening,
    ),
    Kind(
        name="together",
        expression="(first + second) * time",
        wordings=(
            "{name} makes {first} {items} an hour and {other} makes {second} an hour. "
            "How many {items} do both make in {time} hours?",
            "One machine prints {first} cards a minute and another prints {second}. "
            "How many cards do they print together in {time} minutes?",
            "For {time} days {name} sells {first} {items} a day and {other} sells {second} a day. "
            "How many {items} do they sell?",
        ),
        plans=("Add the two rates and multiply by the time.", "Together they work at the sum of both rates."),
        closings=(r"Together that is \boxed{{{answer}}}.", r"So the answer is \boxed{{{answer}}}."),
    ),
)

NAMES = (
    "Ada", "Alma", "Ben", "Carl", "Cleo", "Dan", "Dora", "Emma", "Eric", "Finn", "Gina", "Grace", "Hugo", "Ines", "Ivan",
    "Jack", "Jane", "Kira", "Kofi", "Leo", "Lena", "Mia", "Milo", "Nora", "Noah", "Olga", "Omar", "Paul", "Priya", "Quinn",
    "Rosa", "Ruth", "Sam", "Sofia", "Tara", "Tom", "Uma", "Wei", "Yusuf", "Zoe",
)  # fmt: skip
ITEMS = (
    "apples", "balls", "beads", "books", "cakes", "cards", "coins", "cookies", "cups", "dolls", "eggs", "hats", "kites",
    "lemons", "marbles", "nuts", "pears", "pencils", "pens", "roses", "shells", "stamps", "stones", "toys",
)  # fmt: skip


def split_of(kind: str, numbers: tuple[int, ...]) -> Split:
    """The split that a problem of this kind with these numbers belongs to.

    A hash over the kind and the numbers it uses, in ascending order, decides; wording, names and items do not. So no order
    of the numbers of a test problem is ever seen in training with the same kind.
    """
    digest = hashlib.sha256(f"{kind} {sorted(numbers)}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") >= (1 - TEST_SHARE) * 2**64 else "train"


def _draw_numbers(kind: Kind, split: Split, draw: random.Random) -> tuple[int, ...]:
    while True:
        numbers = tuple(SMALLEST + int(draw.random() * (LARGEST - SMALLEST + 1)) for _ in kind.variables)
        if kind.fits(*numbers) and split_of(kind.name, numbers) == split:
            return numbers


def _write_code(kind: Kind, values: dict[str, int], in_one_line: bool) -> str:
    if in_one_line:
        return re.sub(r"[a-z_]+", lambda match: str(values[match[0]]), kind.expression)
    return "".join(f"{name} = {number}\n" for name, number in values.items()) + kind.expression


def _write_problem(kind: Kind, numbers: tuple[int, ...], draw: random.Random) -> tuple[str, str, str]:
    """Text, answer and full solution of a problem with these numbers."""
    values = dict(zip(kind.variables, numbers, strict=True))
    name, other = draw.sample(NAMES, 2)
    words = {**values, "name": name, "other": other, "items": draw.choice(ITEMS)}
    wording = draw.choice(kind.wordings)
    answer = repr(eval(kind.expression, {}, values))
    closing = draw.choice(kind.closings)
    if "{name}" in closing and "{name}" not in wording:
        closing = kind.closings[-1]
    solution = (
        f"{draw.choice(kind.plans)}\n"
        f"<llm-code>\n{_write_code(kind, values, in_one_line=draw.random() < 0.5)}\n</llm-code>\n"
        f"<llm-code-output>\n{answer}\n</llm-code-output>\n" + closing.format(answer=answer, **words)
    )
    return wording.format(**words), answer, solution


def stream(split: Split, seed: int) -> Iterator[Problem]:
    """Problems of a split without end, all kinds in equal shares; repeats are possible. The same seed gives the same stream."""
    draw = random.Random(f"{split} {seed}")
    number = 0
    while True:
        for kind in draw.sample(KINDS, len(KINDS)):
            text, answer, solution = _write_problem(kind, _draw_numbers(kind, split, draw), draw)
            yield Problem(
                problem_id=f"words/{split}/{number}",
                problem=text,
                expected_answer=answer,
                dataset="words",
                split=split,
                subject=kind.name,
                reference_solution=solution,
            )
            number += 1


def generate(split: Split, count: int, seed: int = 0) -> list[Problem]:
    """The first `count` problems of a split's stream with distinct texts, numbered from 0."""
    seen: set[str] = set()
    problems: list[Problem] = []
    for problem in stream(split, seed):
        if len(problems) == count:
            break
        if problem.problem not in seen:
            seen.add(problem.problem)
            problems.append(replace(problem, problem_id=f"words/{split}/{len(problems)}"))
    return problems


@dataclass(frozen=True, kw_only=True)
class WordsOptions:
    """Write word problems as JSON lines."""

    output: Path
    """The file to write; an older one is replaced."""
    split: Split = "test"
    """`test` has the numbers that training never draws."""
    count: int = 200
    """How many problems with distinct texts."""
    seed: int = 0
    """The same seed gives the same file."""


def write(chosen: WordsOptions) -> None:
    """Write the problems that the options ask for."""
    if not 0 < chosen.count <= 100_000:
        raise UserError(f"--count {chosen.count}: choose from 1 to 100000 problems")
    write_whole(chosen.output, lines_of(generate(chosen.split, chosen.count, chosen.seed)))


if __name__ == "__main__":
    options.script(WordsOptions, write)
