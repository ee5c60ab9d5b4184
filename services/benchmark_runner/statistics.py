"""From samples to what is reported of them."""

import math
from collections import Counter
from collections.abc import Sequence

from libs.common.contracts.benchmark_runner import BenchmarkResult, Summary
from services.benchmark_runner.model import Sample

FEW_SAMPLES = 100


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share (0 to 1) of the ordered values lies, interpolated between neighbours."""
    place = (len(ordered) - 1) * share
    below, above = math.floor(place), math.ceil(place)
    if ordered[below] == ordered[above]:
        return ordered[below]
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(values: Sequence[float]) -> Summary | None:
    """None when there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    return Summary(
        count=len(ordered),
        mean=min(max(math.fsum(ordered) / len(ordered), ordered[0]), ordered[-1]),
        minimum=ordered[0],
        p50=percentile(ordered, 0.50),
        p90=percentile(ordered, 0.90),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        maximum=ordered[-1],
    )


def time_per_output_token(sample: Sample) -> float | None:
    """Seconds between tokens after the first; None where there is no second token."""
    if sample.first_token_seconds is None or sample.completion_tokens < 2:
        return None
    return max(0.0, sample.end_to_end_seconds - sample.first_token_seconds) / (sample.completion_tokens - 1)


def result_of(samples: Sequence[Sample], duration_seconds: float) -> BenchmarkResult:
    """`duration_seconds` is from the first request's sending to the last one's end, warm-up excluded."""
    good = [sample for sample in samples if sample.error is None]
    prompt = sum(sample.prompt_tokens for sample in good)
    completion = sum(sample.completion_tokens for sample in good)
    seconds = max(duration_seconds, 1e-9)
    return BenchmarkResult(
        duration_seconds=duration_seconds,
        requests_completed=len(good),
        requests_failed=len(samples) - len(good),
        errors=dict(Counter(sample.error for sample in samples if sample.error is not None)),
        prompt_tokens=prompt,
        completion_tokens=completion,
        requests_per_second=len(good) / seconds,
        completion_tokens_per_second=completion / seconds,
        total_tokens_per_second=(prompt + completion) / seconds,
        time_to_first_token_seconds=summary(
            [sample.first_token_seconds for sample in good if sample.first_token_seconds is not None]
        ),
        time_per_output_token_seconds=summary([each for each in map(time_per_output_token, good) if each is not None]),
        end_to_end_seconds=summary([sample.end_to_end_seconds for sample in good]),
        prompt_tokens_per_request=summary([float(sample.prompt_tokens) for sample in good]),
        notes=_notes(good),
    )


def _notes(good: Sequence[Sample]) -> tuple[str, ...]:
    notes: list[str] = []
    if len(good) < FEW_SAMPLES:
        notes.append(f"{len(good)} samples are too few for a p99: it is little more than the maximum")
    if any(sample.completion_tokens == 0 for sample in good):
        notes.append("some answers came without `usage`: their tokens are not counted")
    return tuple(notes)
