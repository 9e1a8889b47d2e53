"""The report, opened and clicked in a real headless browser."""

import re
from pathlib import Path

import msgspec
import pytest

from mathmill.evaluation.report import tables_of, write_report
from mathmill.evaluation.results import evaluate_runs
from tests.evaluation.browser import NO_BROWSER, browser, is_there, photograph
from tests.evaluation.making import evaluated_run, problems_of

COUNT = 60
WRONG_GOLD = 33
"""This problem's expected answer is wrong, so every solution of it is graded wrongly."""
CONTROL = 8
"""This one's text holds signs that no page may hold."""
HOSTILE = 7
"""This problem's text would like to be markup."""


def answers(number: int) -> list[str | None]:
    right = str(number + 1)
    if number % 10 == 4:
        return [right, "900", "901", None, right, "902"]
    return [right] * 6


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    expected = [str(number + 1) for number in range(COUNT)]
    expected[WRONG_GOLD] = "1000"
    problems = problems_of(expected)
    text = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"> $\\frac{1}{2}$"
    problems[HOSTILE] = msgspec.structs.replace(problems[HOSTILE], problem=text)
    odd = "\x1b[31mred\x00\x07 \x7f\x85\ufffe\tend"
    problems[CONTROL] = msgspec.structs.replace(problems[CONTROL], problem=odd, reference_solution=f"$x\x1b$ {odd}")
    sampled = [answers(number) for number in range(COUNT)]
    run = evaluated_run(folder, problems, [each[:1] for each in sampled], sampled)
    results = evaluate_runs([run])
    return write_report(results, tables_of(results, None), folder / "report", most_solutions=4, page_bytes=60_000)


def test_the_report_is_a_folder_that_needs_nothing_else(report: Path):
    pages = sorted(report.parent.glob("*.html"))
    names = {path.name for path in report.parent.iterdir()}

    assert names - {path.name for path in pages} == {"results.md", "results.tex", "results.csv", "curves.csv"}
    assert len(pages) > 3
    assert all(path.stat().st_size < 200_000 for path in pages)
    for page in pages:
        text = page.read_text()
        assert not re.search(r'(src|href)="(https?:)?//', text)
        for link in re.findall(r'href="([^"#]+)', text):
            assert (report.parent / link).is_file(), link


def test_control_signs_of_a_text_are_made_visible(report: Path):
    texts = [path.read_bytes().decode() for path in report.parent.glob("*.html")]

    assert not [found for text in texts for found in re.findall(r"[^\t\n\x20-\x7e\xa0-\ufffd]", text)]
    [page] = [text for text in texts if f'id="p{CONTROL + 1}"' in text]
    assert page.count("␛[31mred␀␇ ␡\ufffd\ufffd\tend") == 2


def test_no_two_things_of_a_page_have_one_id(report: Path):
    for page in report.parent.glob("*.html"):
        text = page.read_text()
        ids = re.findall(r'\bid="([^"]*)"', text)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r"""url\(#([^)]*)\)|href="#([^"]*)\"""", text)) <= {(name, "") for name in ids} | {
            ("", name) for name in ids
        }


def test_every_problem_is_on_one_page_and_the_doubtful_one_comes_first(report: Path):
    found = []
    for page in sorted(report.parent.glob("problems-*.html"), key=lambda path: (len(path.name), path.name)):
        found += re.findall(r'id="p(\d+)" data-tags="([^"]*)"', page.read_text())

    assert sorted(int(number) for number, _ in found) == list(range(1, COUNT + 1))
    assert int(found[0][0]) == WRONG_GOLD + 1
    assert "doubt" in found[0][1]


@pytest.mark.slow
def test_a_newcomer_finds_the_wrongly_graded_problem_in_three_clicks(report: Path, tmp_path: Path):
    if not is_there():
        pytest.skip(NO_BROWSER)
    with browser() as driver:
        find = lambda css: driver.find_element("css selector", css)  # noqa: E731
        driver.get(report.as_uri())
        photograph(driver, tmp_path / "report.png")
        assert "of the votes for an answer" not in driver.page_source
        find("main a.chip.doubt").click()  # 1: grading in doubt
        shown = [each for each in driver.find_elements("css selector", "details.problem") if each.is_displayed()]
        assert [each.get_attribute("id") for each in shown] == [f"p{WRONG_GOLD + 1}"]
        shown[0].find_element("css selector", "summary").click()  # 2: the problem
        photograph(driver, tmp_path / "problem.png")
        text = shown[0].text
        assert "100% of the votes for an answer that is called wrong" in text
        assert "1000" in text
        assert re.search(r"greedy\s+34\s+wrong", text)
        solutions = shown[0].find_elements("css selector", "details.solution")
        assert solutions[0].find_element("css selector", "pre.code").is_displayed()  # the greedy one is open
        assert shown[0].find_elements("css selector", "math")
        assert driver.get_log("browser") == []
    for name in ("report", "problem"):
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000


@pytest.mark.slow
def test_filters_search_and_pages_work_and_nothing_of_a_model_runs(report: Path):
    if not is_there():
        pytest.skip(NO_BROWSER)
    with browser() as driver:
        visible = lambda: [  # noqa: E731
            each.get_attribute("id")
            for each in driver.find_elements("css selector", "details.problem")
            if each.is_displayed()
        ]
        driver.get((report.parent / "problems-1-toy-test.html").as_uri())
        everything = visible()
        driver.find_element("css selector", "button[data-tag=none]").click()
        assert visible() == [f"p{number + 1}" for number in range(COUNT) if number % 10 == 4]
        assert driver.current_url.endswith("#none")
        driver.find_element("id", "search").send_keys("problem 14:")
        assert visible() == ["p15"]
        driver.find_element("css selector", "button[data-tag=all]").click()
        driver.find_element("id", "search").clear()
        driver.find_element("id", "search").send_keys(" ")
        assert visible() == everything

        driver.find_element("css selector", "button[data-tag=error]").click()
        links = driver.find_elements("css selector", ".pages a.page")
        links[0].click()
        assert driver.current_url.endswith("problems-1-toy-test-2.html#error")
        assert "taken" not in driver.title

        number = next(
            path for path in report.parent.glob("problems-*.html") if f'id="p{HOSTILE + 1}"' in path.read_text()
        )
        driver.get(f"{number.as_uri()}#p{HOSTILE + 1}")
        problem = driver.find_element("id", f"p{HOSTILE + 1}")
        assert problem.get_attribute("open")
        assert "<script>document.title" in problem.text
        assert "taken" not in driver.title
        assert driver.get_log("browser") == []
