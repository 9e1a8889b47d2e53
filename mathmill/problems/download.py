"""Published files of benchmarks: where they are, how they are fetched and checked."""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from mathmill import __version__
from mathmill.errors import UserError
from mathmill.files import write_whole

TIMEOUT_S = 60.0
"""The longest silence of the other side that is waited for, in seconds."""


@dataclass(frozen=True)
class Published:
    """A published file. `sha256` None: its content is not checked. `tried`: the address has been fetched by us."""

    url: str
    sha256: str | None = None
    tried: bool = False

    @property
    def name(self) -> str:
        return Path(urllib.parse.urlsplit(self.url).path).name


_GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c"
PUBLISHED: dict[str, tuple[Published, ...]] = {
    # The checksums are of this content: the files written again from its rows have them.
    "gsm8k": (
        Published(
            f"{_GSM8K}/grade_school_math/data/train.jsonl",
            "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        ),
        Published(
            f"{_GSM8K}/grade_school_math/data/test.jsonl",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        ),
    ),
    # An address without revisions; the checksum is the one that public pipelines check (ParlAI's MATH task among them).
    "math": (
        Published(
            "https://people.eecs.berkeley.edu/~hendrycks/MATH.tar",
            "0fbe4fad0df66942db6c221cdcc95b298cc7f4595a2f0f518360cce84e90d9ac",
        ),
    ),
}


def fetch(published: Published, folder: Path) -> Path:
    """Fetch a file into a folder and return its path; a file that is there and has the right checksum stays.

    The content is checked before it gets its name: a file of that name is whole. Raises UserError.
    """
    path = folder / published.name
    if path.is_file() and published.sha256 == hashlib.sha256(path.read_bytes()).hexdigest():
        return path
    advice = "fetch it by other means and name its place with --source"
    try:
        content = _receive(published.url)
        sha256 = hashlib.sha256(content).hexdigest()
        if published.sha256 not in (None, sha256):
            raise UserError(f"{published.url}: its SHA-256 is {sha256}, not {published.sha256}; {advice}")
        write_whole(path, content)
    except urllib.error.HTTPError as problem:
        raise UserError(f"{published.url}: answered {problem.code} {problem.reason}; {advice}") from None
    except urllib.error.URLError as problem:
        raise UserError(f"{published.url}: cannot be reached: {problem.reason}; {advice}") from None
    except (OSError, http.client.HTTPException, ValueError) as problem:
        raise UserError(f"{published.url}: cannot be fetched: {problem or type(problem).__name__}; {advice}") from None
    return path


def _receive(url: str) -> bytes:
    """The body of a URL; one that is shorter than announced raises http.client.IncompleteRead."""
    request = urllib.request.Request(url, headers={"User-Agent": f"mathmill/{__version__}"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return answer.read()
