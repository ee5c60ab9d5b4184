"""W3C trace context through NATS and HTTP headers. Needs the optional extra `tracing`; off, its SDK is not imported."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from libs.common.errors import WrongSetting


class Tracing(Protocol):
    def outgoing(self) -> Mapping[str, str]:
        """Headers that carry the present trace context."""
        ...

    def span(self, kind: str, name: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """A span that continues the trace in `headers`. The exception that passes through is recorded."""
        ...

    def close(self) -> None:
        """Send what is left. Blocks for some seconds at most."""
        ...


class NoTracing:
    """Tracing is off."""

    def outgoing(self) -> Mapping[str, str]:
        return {}

    def span(self, kind: str, name: str, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        return None


def make_tracing(service: str, *, on: bool, endpoint: str | None) -> Tracing:
    """Tracing as the settings want it. Raises `WrongSetting` when a package that it needs is not installed."""
    if not on:
        return NoTracing()
    try:
        from libs.common.kit.tracing_opentelemetry import OpenTelemetry

        return OpenTelemetry(service, endpoint)
    except ModuleNotFoundError as missing:
        what = "OTEL_EXPORTER_OTLP_ENDPOINT is set" if "exporter" in str(missing.name) else "TRACING is true"
        raise WrongSetting(
            f"{what}, but the package {str(missing.name).split('.sdk')[0].replace('.', '-')} is not installed; "
            "install it (`pip install 'compute-mesh[tracing]'` brings what traces need), or unset it."
        ) from None
