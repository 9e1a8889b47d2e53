"""Text with LaTeX as HTML: formulas become MathML, everything else of a model stays text."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.evaluation.doubts import near_miss
from mathmill.evaluation.formulas import answer_html, formula_html, line_text, text_html


@pytest.mark.parametrize(
    "text",
    [
        r"so $\frac{1}{2}$ is",
        r"\(x^2\)",
        r"\[\sqrt{2}\]",
        r"$$a \le b$$",
        r"\begin{align*} a &= b \\ c &= d \end{align*}",
        r"$\left\{\begin{array}{l}a \\ b\end{array}\right.$",
        r"$\begin{aligned} x & = 1 \\ y & = 2\end{aligned}$",
        r"$\text{if } a < b \text{ & } c$",
        r"$\dfrac12 + \arg z \allowbreak$",
    ],
)
def test_formulas_become_mathml(text):
    made = str(text_html(text))

    assert "<math" in made
    assert "<code" not in made
    ElementTree.fromstring(f"<p>{made}</p>")


@pytest.mark.parametrize(
    "text",
    [
        "She sells for $18 every day and pays $2 for each.",
        "It costs $5 and then $7.",
        "He has 5$ and 7 $ left",
        r"\$3 is not \$4",
    ],
)
def test_prices_are_no_formulas(text):
    assert "<math" not in str(text_html(text))


def test_a_price_before_a_formula_does_not_hide_it():
    assert str(text_html("pays $5 for many red apples. Let $x$ be")).count("<math") == 1


def test_a_box_in_the_text_is_drawn_as_a_box():
    assert '<span class="boxed"><math' in str(text_html(r"Together that is \boxed{\frac{3}{4}}."))
    assert '<span class="boxed">2366</span>' in str(text_html(r"Together that is \boxed{2366}."))


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "$<img src=x onerror=alert(1)>$",
        r"$\text{<script>alert(1)</script>}$",
        r"$\text{<!--><script>alert(1)</script>-->}$",
        r"$\href{javascript:alert(1)}{x}$",
        r"\boxed{<b onclick='alert(1)'>5</b>}",
        r"$\text{<mi onclick='x'>y</mi>}$",
        r"\[\mathrm{</math><script>alert(1)</script>}\]",
    ],
)
def test_nothing_of_a_model_becomes_markup(text):
    made = str(text_html(text))
    root = ElementTree.fromstring(f"<p>{made}</p>")

    names = {element.tag for element in root.iter()}
    assert not names & {"script", "img", "b", "a"}
    assert not any(name.startswith("on") or name == "href" for element in root.iter() for name in element.attrib)


@given(st.text(alphabet=st.sampled_from(list(r"\${}[]()^_&<>'\"abfrctext12 \n")), max_size=60))
def test_any_text_makes_well_formed_markup_of_known_elements(text):
    for made in (text_html(text), answer_html(text), formula_html(text, False)):
        root = ElementTree.fromstring(f"<p>{made}</p>")
        assert not {element.tag for element in root.iter()} & {"script", "a", "b", "t", "r", "f"}


def test_a_formula_that_is_too_long_or_deep_or_unknown_is_shown_as_typed():
    for source in ("{" * 50 + "x" + "}" * 50, "x+" * 2000, r"\unknowncommand{3}"):
        made = str(formula_html(source, False))
        assert re.match(r'<code class="tex">', made)


def test_an_answer_that_is_words_or_lines_stays_text():
    assert str(answer_html("Monday")) == "Monday"
    assert str(answer_html("a\nb_c")) == "a\nb_c"
    assert "none" in str(answer_html(None))
    assert len(str(answer_html("9" * 5000))) < 300


@pytest.mark.parametrize(
    ("predicted", "expected", "doubtful"),
    [
        ("33.3", "33.33", True),
        ("318", "319", False),
        ("x = 5 or 6", "5", False),
        ("5 (each)", "5", True),
        ("12", "1.2", False),
        ("\\text{all of } [0, 1]", "[0,1]", True),
        ("3/4", "3", False),
        ("7", "8", False),
        (None, "8", False),
    ],
)
def test_wrong_answers_that_look_right_are_doubted(predicted, expected, doubtful):
    assert (near_miss(predicted, expected) is not None) is doubtful


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (r"Let $f(x)=\frac{x^{2}+1}{\sqrt{x}}$\nfor $x>0$.", "Let f(x)=(x^2+1)/(√x) for x>0."),
        (r"$2 \cdot 3$ and $\frac{1}{2}\le a$", "2 ·3 and 1/2≤a"),
        ("A ticket costs $5 and a book costs $7.", "A ticket costs $5 and a book costs $7."),
        (r"\(\angle A = 90^\circ\)", "(∠A = 90^°)"),
    ],
)
def test_a_texts_first_words_are_typed_in_a_line(text: str, line: str):
    assert line_text(text.replace(r"\n", "\n")) == line
