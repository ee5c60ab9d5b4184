"""The configuration of a TensorZero gateway: what is written of served models, and what is wrong with a tree of files.

Tables and fields are those of TensorZero's configuration reference, release 2026.6: a provider of type `vllm` speaks
with any server that has OpenAI's interface, `routing` is an ordered fallback, and files merge key by key.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

OURS = "compute_mesh"
"""The folder in a tree that is written here. The rest of the tree belongs to whoever runs the gateway."""

Tree = Mapping[str, bytes]
"""From a path in the tree, with slashes, to what the file holds."""

FLOAT_METRICS: Mapping[str, tuple[str, str]] = {
    "output_tokens_per_second": ("max", "Tokens that were answered per second, of all requests of a benchmark."),
    "requests_per_second": ("max", "Requests that were answered per second."),
    "time_to_first_token_seconds_p50": ("min", "From a request to its first token, the median."),
    "time_to_first_token_seconds_p99": ("min", "From a request to its first token, the 99th percentile."),
    "time_per_output_token_seconds_p50": ("min", "Between two tokens of an answer, the median."),
    "time_per_output_token_seconds_p99": ("min", "Between two tokens of an answer, the 99th percentile."),
    "request_seconds_p50": ("min", "From a request to the end of its answer, the median."),
    "request_seconds_p99": ("min", "From a request to the end of its answer, the 99th percentile."),
    "failed_ratio": ("min", "The part of the requests that failed."),
}
"""What a benchmark tells the gateway of an episode: the better direction, and the meaning."""

_PROVIDERS = frozenset(
    {
        *("anthropic", "aws_bedrock", "aws_sagemaker", "azure", "deepseek", "fireworks", "gcp_vertex_anthropic"),
        *("gcp_vertex_gemini", "google_ai_studio_gemini", "groq", "hyperbolic", "mistral", "openai", "openrouter"),
        *("sglang", "tgi", "together", "vllm", "xai"),
    }
)
_METRIC = {"type": ("boolean", "float", "comment", "demonstration"), "level": ("inference", "episode")}
_NOTE = "# Written by Compute Mesh from its instances that are ready. Changes made here are lost.\n"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Served:
    """A model on one engine. `address` is the engine's, such as http://10.0.0.7:9001; `key` is where a gateway finds
    what it has to say to it, in TensorZero's words."""

    model_name: str
    provider: str
    address: str
    key: str = "none"


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a gateway would not start with, and in which file that is."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def can_be_registered(model_name: str) -> bool:
    """Names with `::` are TensorZero's own, of shorthands such as `openai::` and of functions."""
    return "::" not in model_name


def files_of(served: Iterable[Served]) -> Tree:
    """One file for each model, with a provider for each engine that serves it, and one for the metrics."""
    by_model: dict[str, list[Served]] = {}
    for each in sorted(set(served)):
        by_model.setdefault(each.model_name, []).append(each)
    files = {f"{OURS}/{file_name(name)}": _model(name, engines).encode() for name, engines in by_model.items()}
    return {**files, f"{OURS}/metrics.toml": _metrics().encode()}


def file_name(model_name: str) -> str:
    """Readable, and one of its own for every name."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model_name).strip("-.")[:80]
    return f"model-{readable}-{sha256(model_name.encode()).hexdigest()[:8]}.toml"


def _model(name: str, engines: Iterable[Served]) -> str:
    table = f"models.{_quoted(name)}"
    lines = [_NOTE, f"[{table}]", f"routing = [{', '.join(_quoted(each.provider) for each in engines)}]"]
    for each in engines:
        lines += [
            "",
            f"[{table}.providers.{_quoted(each.provider)}]",
            'type = "vllm"',
            f"model_name = {_quoted(name)}",
            f"api_base = {_quoted(each.address.rstrip('/') + '/v1/')}",
            f"api_key_location = {_quoted(each.key)}",
        ]
    return "\n".join(lines) + "\n"


def _metrics() -> str:
    lines = [_NOTE]
    for name, (better, meaning) in FLOAT_METRICS.items():
        lines += [
            f"[metrics.{OURS}_{name}]",
            'type = "float"',
            'level = "episode"',
            f'optimize = "{better}"',
            f"description = {_quoted(meaning)}",
            "",
        ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A basic string of TOML: JSON's escapes are TOML's, and DEL has to be escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def addresses_in(tree: Tree) -> Mapping[tuple[str, str], str]:
    """From a model and a provider of ours to the engine's address, as the files say; what cannot be read says none."""
    found: dict[tuple[str, str], str] = {}
    for path in tree:
        if path.startswith(f"{OURS}/model-"):
            with suppress(tomllib.TOMLDecodeError, UnicodeDecodeError):
                for name, model in _tables(tomllib.loads(tree[path].decode()).get("models")).items():
                    for provider, fields in _tables(model.get("providers")).items():
                        found[name, provider] = str(fields.get("api_base", "")).removesuffix("/v1/")
    return found


def theirs(tree: Tree) -> Tree:
    """What of a tree is not written here."""
    return {path: content for path, content in tree.items() if not path.startswith(f"{OURS}/")}


def complaints(tree: Tree) -> list[Complaint]:
    """What can be seen to be wrong without the gateway: it knows more, and its word is asked for where it is there.

    A key that two files have is told of the file that is not ours.
    """
    found: list[Complaint] = []
    merged: dict[str, object] = {}
    owners: dict[str, str] = {}
    for path in sorted(
        (each for each in tree if each.endswith(".toml")), key=lambda each: (each in theirs(tree), each)
    ):
        try:
            document = tomllib.loads(tree[path].decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            found.append(Complaint(path, f"it is not TOML: {error}"))
        else:
            found += [Complaint(path, message) for message in _merge(merged, document, path, owners, "")]
    return found or list(_inside(merged, owners))


def _merge(
    merged: dict[str, object], document: Mapping[str, object], path: str, owners: dict[str, str], above: str
) -> Iterator[str]:
    for key, value in document.items():
        name = f"{above}{key}"
        before = merged.get(key)
        if isinstance(value, dict) and isinstance(before, dict | None):
            inner = merged.setdefault(key, {})
            owners.setdefault(name, path)
            assert isinstance(inner, dict)
            yield from _merge(inner, value, path, owners, f"{name}.")
        elif key in merged:
            yield f"{name} is in {owners[name]} too"
        else:
            merged[key] = value
            owners[name] = path


def _inside(merged: Mapping[str, object], owners: Mapping[str, str]) -> Iterator[Complaint]:
    models = _tables(merged.get("models"))
    for name, model in models.items():
        yield from (Complaint(owners[f"models.{name}"], f"models.{name}: {each}") for each in _model_problems(model))
    for name, function in _tables(merged.get("functions")).items():
        where = owners[f"functions.{name}"]
        variants = _tables(function.get("variants"))
        if not variants:
            yield Complaint(where, f"functions.{name} has no variants")
        for label, variant in variants.items():
            model_name = variant.get("model")
            if isinstance(model_name, str) and model_name not in models and "::" not in model_name:
                yield Complaint(where, f"functions.{name}.variants.{label}: no model is named {model_name!r}")
    for name, metric in _tables(merged.get("metrics")).items():
        for field, allowed in _METRIC.items():
            if field in metric and metric[field] not in allowed:
                text = f"metrics.{name}.{field} must be one of {', '.join(allowed)}, not {metric[field]!r}"
                yield Complaint(owners[f"metrics.{name}"], text)


def _model_problems(model: Mapping[str, object]) -> Iterator[str]:
    routing, providers = model.get("routing"), _tables(model.get("providers"))
    if not isinstance(routing, list) or not routing:
        yield "routing must name at least one provider"
        return
    for name in routing:
        if name not in providers:
            yield f"routing names {name!r}, and there is no such provider"
    for name, provider in providers.items():
        if name not in routing:
            yield f"the provider {name!r} is not in routing"
        if provider.get("type") not in _PROVIDERS:
            yield f"the provider {name!r} is of no known type: {provider.get('type')!r}"


def _tables(found: object) -> Mapping[str, Mapping[str, object]]:
    """Those entries that are tables themselves."""
    return {name: each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}
