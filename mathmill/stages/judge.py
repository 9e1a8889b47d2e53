"""A model as the judge of a run's answers: a second opinion beside the symbolic verdicts, never in their place."""

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
from tyro.conf import Positional

from mathmill.errors import UserError
from mathmill.launch.cluster import Cluster, Model
from mathmill.launch.job import Job, Step
from mathmill.launch.launching import cluster_for, launch
from mathmill.options import script
from mathmill.paths import shipped
from mathmill.prompts import Prompt, load_prompt
from mathmill.run import check_folder_name, find_run
from mathmill.stages.sampling import SamplingOptions, model_of, refuse_contradictory_server
from mathmill.stages.steps import server_section, server_step

if TYPE_CHECKING:
    from mathmill.evaluation.judge import JudgeOptions

MARKS = ("first_answer", "second_answer")


@dataclass(frozen=True, kw_only=True)
class JudgeStageOptions(SamplingOptions):
    """Ask a model whether each answer of a run is the expected one, in both directions. The same command goes on."""

    model: str | None = None
    """The judge, needed: a name under models: in the cluster's file, or a Hugging Face folder with a chat template. The
    bundled one, words, is no judge: with a --prompt of `template: raw` it ends with "could not tell" for every answer."""
    run: Positional[str | None] = None
    """Name of a run in runs/, or its folder (default: the newest)."""
    name: str = "judge"
    """The verdicts' own name, for RUN/solutions/SET/verdicts/NAME; another judge needs another one."""
    prompt: str = "equivalence"
    """A name in prompts/judges/, or a path to a yaml file."""
    max_tokens: int = 512
    """Tokens the judge may write for one question."""


def main() -> None:
    script(JudgeStageOptions, judge)


def judge(options: JudgeStageOptions) -> int:
    """Launch the job that judges what has no verdict of this name yet."""
    from mathmill.evaluation.judge import JudgeOptions, judge_text, num_questions, open_judgement, shards_left
    from mathmill.generation.sets import set_folders

    refuse_contradictory_server(replace(options, run=None))  # here a run may be a path
    check_folder_name("--name", options.name)
    if options.max_tokens < 1:
        raise UserError(f"--max_tokens must be at least 1, not {options.max_tokens}")
    run = find_run(options.run)
    folders = set_folders(run)
    if not folders:
        raise UserError(f"{run.folder} has no solutions to judge")
    if options.model is None and options.server_address is None:
        raise UserError("name the judge with --model: a name in the cluster's file, or a Hugging Face folder")
    cluster = cluster_for(options)
    model = model_of(options, cluster)
    prompt = load_judge_prompt(options.prompt)
    worker = JudgeOptions(
        name=options.name,
        prompt=prompt,
        model=model.name,
        model_path=model.path,
        max_tokens=options.max_tokens,
        server_address=options.server_address,
        server_token_env=options.server_token_env,
        max_in_flight=options.max_in_flight,
    )
    if prompt.template == "chat" and not model.path:
        raise UserError(
            f"prompt '{prompt.name}' is a chat: name the judge's folder with --model, for its chat template"
        )
    judge_text(prompt, model.path, "1 + 1?", "2", "3")  # what is wrong with the prompt or the template is found here
    left = {folder.folder.name: shards_left(folder, options.name) for folder in folders}
    num_left = sum(map(len, left.values()))
    if not (num_left or options.dry_run or options.test_only):
        print(f"{run.folder} is judged by '{options.name}'; nothing to do", file=sys.stderr)
        return 0
    pairs = sum(num_questions(folder, left[folder.folder.name]) for folder in folders)
    summary = [
        ("work", f"{pairs:,} different answers in {num_left:,} shards, each asked about in both directions"),
        ("judge", f"{model.name}, prompt {prompt.name}, verdicts {options.name}"),
    ]

    def begin() -> None:
        for folder in folders:
            open_judgement(folder, worker)

    job = judge_job(options, model, worker, cluster, num_left)
    return launch([job], cluster, run, options, summary, prepare=begin)


def load_judge_prompt(name: str) -> Prompt:
    """The judge's prompt of that name, or of a file, which must show both answers."""
    folder = shipped("prompts") / "judges"
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    if not is_path and not (folder / f"{name}.yaml").is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise UserError(f"no judge's prompt '{name}'. Known: {', '.join(known)}, or a path to a yaml file")
    path = name if is_path else str(folder / f"{name}.yaml")
    prompt = load_prompt(path, MARKS)
    for mark in MARKS:
        if f"{{{{{mark}}}}}" not in (prompt.user + (prompt.system or "")).replace(" ", ""):
            raise UserError(f"{path}: {{{{{mark}}}}} stands nowhere in it; a judge needs both answers")
    return prompt


def judge_job(options: JudgeStageOptions, model: Model, worker: "JudgeOptions", cluster: Cluster, shards: int) -> Job:
    """The job: the judge's server unless there is one, and the step that asks it."""
    main_step = Step(name="judge", role="client", module="mathmill.evaluation", main=True, secrets=True)
    steps = [*([server_step(model)] if options.server_address is None else []), main_step]
    sections = {
        "server": server_section(model, here=cluster.executor == "local"),
        "judge": msgspec.to_builtins(worker),
    }
    return Job(
        name="judge",
        steps=tuple(steps),
        tasks=max(1, min(options.num_jobs, shards)),
        options={step.name: sections[step.name] for step in steps},
    )
