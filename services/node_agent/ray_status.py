"""What `ray status` tells of a cluster."""

import re
from dataclasses import dataclass

_ACTIVE = re.compile(r"^Active:\n(?P<lines>(?: .*\n)*)", re.MULTILINE)
_COUNTED = re.compile(r"^ (\d+) \S+$", re.MULTILINE)
_GPUS = re.compile(r"^ [\d.]+/([\d.]+) GPU\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Seen:
    """Nodes of a cluster that are up, and their GPUs together."""

    nodes: int
    gpus: int


def seen_in(text: str) -> Seen:
    active, gpus = _ACTIVE.search(text), _GPUS.search(text)
    return Seen(
        nodes=sum(int(count) for count in _COUNTED.findall(active["lines"])) if active else 0,
        gpus=int(float(gpus[1])) if gpus else 0,
    )


def incomplete(seen: Seen, nodes: int, gpus: int, seconds: float) -> str:
    return f"Ray has {seen.nodes} of {nodes} nodes and {seen.gpus} of {gpus} GPUs after {seconds:g} s."
