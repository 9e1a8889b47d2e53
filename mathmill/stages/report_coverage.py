"""Stage: the share of problems with a correct solution, by prompt strategy and number of samples."""

from dataclasses import dataclass

from tyro.conf import Positional

from mathmill.options import script


@dataclass(frozen=True, kw_only=True)
class ReportCoverageOptions:
    """Report a run's coverage: a table, and a curve against the samples a problem as PNG, in RUN/reports/."""

    run: Positional[str | None] = None
    """Name of a run in runs/, or its folder (default: the newest)."""
    name: str = "coverage_by_prompt"
    """The files' name."""


def main() -> None:
    script(ReportCoverageOptions, report)


def report(options: ReportCoverageOptions) -> None:
    """A line a prompt of each dataset; sets of candidates for masks are no solutions and are left out."""
    from mathmill.errors import UserError
    from mathmill.generation.sets import set_folders
    from mathmill.records import MASKING
    from mathmill.run import check_folder_name, find_run
    from mathmill.selection.coverage import CoverageWork, report_coverage, table_of

    check_folder_name("--name", options.name)
    run = find_run(options.run)
    found: dict[tuple[str, str], list[str]] = {}
    for folder in set_folders(run):
        one = folder.load()
        if one.prompt.generation_type != MASKING:
            found.setdefault((folder.load_problems()[0].dataset, one.prompt.name), []).append(one.name)
    if not found:
        raise UserError(f"{run.folder} has no solutions")
    lines = report_coverage(
        CoverageWork(name=options.name, strategies=[(*key, found[key]) for key in sorted(found)]), run
    )
    print(table_of(lines), end="")
    print(f"written to {run.folder}/reports/{options.name}.md, .json and .png")
