"""A set is what it was started with: another model's folder, or problems that are not its own, are refused."""

import msgspec
import pytest

from mathmill.errors import UserError
from mathmill.generation.sets import create_set, refuse_other_options
from mathmill.records import lines_of
from tests.generation.making import problems_like, run_with, set_of


def test_two_model_folders_of_one_name_are_not_one_model(tmp_path):
    problems = problems_like(4)
    run, folder = run_with(tmp_path, problems)
    started, here, there = (msgspec.structs.replace(folder.load(), model_path=path) for path in ("", "/a/hf", "/b/hf"))
    refuse_other_options(run, here, here)
    refuse_other_options(run, started, there)  # of an earlier version, which did not say
    with pytest.raises(UserError, match="was started with toy of /a/hf, not of /b/hf"):
        refuse_other_options(run, here, there)
    assert here.options_sha == there.options_sha == started.options_sha


def test_problems_that_another_launch_left_are_refused_at_the_launch(tmp_path):
    problems = problems_like(4)
    run, folder = run_with(tmp_path, problems)
    (folder.folder / "problems.jsonl").write_bytes(lines_of(problems[:3]))
    with pytest.raises(UserError, match=r"problems\.jsonl"):
        create_set(run, set_of(problems), problems)
