"""Where shipped files are: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """The folder `folder` that the project ships (`prompts`, `cluster_configs`, `recipes`, …)."""
    beside, inside = PACKAGE.parent / folder, PACKAGE / "shipped" / folder
    return beside if (PACKAGE.parent / "setup.cfg").exists() or not inside.exists() else inside
