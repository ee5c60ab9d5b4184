"""Tracing by OpenTelemetry."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_KINDS = {
    "http": SpanKind.SERVER,
    "serve": SpanKind.SERVER,
    "subscribe": SpanKind.CONSUMER,
    "consume": SpanKind.CONSUMER,
}


class OpenTelemetry:
    """A tracer of its own for each service; nothing global is set. `processor` receives the finished spans."""

    def __init__(self, service: str, endpoint: str | None, processor: SpanProcessor | None = None) -> None:
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}), shutdown_on_exit=False)
        if processor is not None:
            self._provider.add_span_processor(processor)
        if endpoint is not None:
            self._provider.add_span_processor(_sender(endpoint))
        self._tracer = self._provider.get_tracer("compute-mesh")
        self._format = TraceContextTextMapPropagator()

    def outgoing(self) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        self._format.inject(headers)
        return headers

    @contextmanager
    def span(self, kind: str, name: str, headers: Mapping[str, str]) -> Iterator[None]:
        # Without what is current here: a long-lived task may still be inside the span that once started it.
        parent = self._format.extract(headers, context=Context())
        with self._tracer.start_as_current_span(
            f"{kind} {name}", context=parent, kind=_KINDS.get(kind, SpanKind.INTERNAL)
        ):
            yield

    def close(self) -> None:
        self._provider.shutdown()


def _sender(endpoint: str) -> SpanProcessor:
    exporters = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")  # a package of its own
    return BatchSpanProcessor(exporters.OTLPSpanExporter(endpoint=endpoint))
