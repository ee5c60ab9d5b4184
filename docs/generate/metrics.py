"""`docs/reference/metrics.md`: what each service counts."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from docs.generate.markdown import code, page, table
from docs.generate.running import built_services

INTRODUCTION = """\
`GET /metrics` of every service answers in the text format of Prometheus. Times are in seconds, counters end in
`_total`. Labels only ever hold words from the code (subjects, routes, error codes), never what a stranger sent."""

PROCESS = """\
## Every process

The first service of a process also shows the metrics of that process, as the Prometheus client for Python names them:
`process_*` (memory, CPU time, open files; on Linux), `python_gc_*` and `python_info`."""

Family = tuple[str, str, str, str]
HEAD = ["metric", "type", "labels", "meaning"]


def metrics() -> str:
    families = {built.name: set(_families(built.metrics)) for built in built_services()}
    common = set.intersection(*families.values()) if families else set()
    own = [(name, found - common) for name, found in families.items() if found - common]
    return page(
        "Metrics",
        INTRODUCTION,
        f"## Every service\n\n{_table(common)}",
        *(f"## {name}\n\n{_table(found)}" for name, found in own),
        PROCESS,
    )


def _table(families: Iterable[Family]) -> str:
    return table(HEAD, [[code(name), kind, labels, meaning] for name, kind, labels, meaning in sorted(families)])


def _families(registry: CollectorRegistry) -> Iterable[Family]:
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield name, family.type, _labels(registry, family.name), family.documentation


def _labels(registry: CollectorRegistry, name: str) -> str:
    collector = registry._names_to_collectors.get(name)
    return ", ".join(code(label) for label in getattr(collector, "_labelnames", ()))
