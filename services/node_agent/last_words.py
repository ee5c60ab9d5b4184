"""What of an engine's log says why it ended: the rest would push that out of what is told."""

import re
from collections.abc import Iterator

LONGEST_LINE = 600

_PREFIX = re.compile(r"^\(\w+ pid=\d+\) ?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^\]]+\] ?)?")
_FRAME = re.compile(r'^\s+File "|^\s{4,}|^[\s^~]*$|^Traceback \(most recent call last\):$')
_CHATTER = re.compile(
    r"Route: /|\d+% Completed|\d+%\||^nanobind: |^ - (?:leaked|\.\.\.)|resource_tracker: |^\s+warnings\.warn\("
)


def telling(text: str, characters: int) -> str:
    """The end of it without what tracebacks quote, progress bars, lists of routes and what libraries say at exit."""
    return "\n".join(_telling_lines(text))[-characters:]


def _telling_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        said = _PREFIX.sub("", line)
        if not _FRAME.search(said) and not _CHATTER.search(said):
            yield line[:LONGEST_LINE].rstrip()
