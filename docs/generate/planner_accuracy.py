"""`docs/planner-accuracy.md`: what the planner predicts beside what was measured."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from docs.generate.markdown import page, table
from docs.generate.measured_starts import MeasuredStart, measured_starts
from docs.generate.planner_terms import (
    ESTIMATED,
    FITTED,
    TERMS,
    Pair,
    arithmetic,
    corrected,
    is_refusal,
    refused,
    started,
    verdict,
    weights,
)
from libs.inference.planner.memory import GIB, Verdict
from libs.inference.planner.parameters import parameter_count

INTRODUCTION = """\
Starts of vLLM that users published, and what the planner says of them from the model's configuration alone. A blank
cell of a row means that version's default. Rows that cannot decide a question (no configuration of the model at hand,
the size of the card or the division not published, an option that was changed but not published, a second model loaded
for drafts) are counted, not scored.

Errors are relative to what was measured. *Left out*: the error when a prediction is scaled by the median ratio that all
**other** models show, which tells whether a term holds for a model it was not fitted to. *Apart*: the rows of models
that were not looked at when the constants of the estimated terms were chosen.

Rows of a quantised model that do not name the files that were loaded decide nothing about its weights: of one model
there are variants that keep different parts unquantised. A row without the size of its card takes what other rows
report for a card of the same name."""

TARGETS = {
    "weights per GPU (GiB)": (0.02, 0.05),
    "tokens, given the bytes of cache": (0.002, None),
    "tokens, given the card": (0.05, None),
    "cache available (GiB)": (0.10, None),
}


def planner_accuracy() -> str:
    rows = measured_starts()
    scored = {name: _pairs(rows, term) for name, term in TERMS.items()}
    return page(
        "How accurate the planner is",
        INTRODUCTION,
        "## Terms",
        table(_HEAD, [_summary(name, pairs, len(rows)) for name, pairs in scored.items()]),
        "## Corrected by other starts",
        CALIBRATED,
        _calibrated(rows, scored),
        "## Whether it starts",
        _verdicts(rows),
        "## Divisions that vLLM refused",
        _refusals(rows),
        "## Beside other formulas",
        _others(rows),
        "## Rows without a model",
        _undecided(rows),
        *(part for name, pairs in scored.items() for part in (f"## Every row: {name}", _every(pairs))),
    )


_HEAD = [
    "term",
    "rows scored",
    "not scored",
    "median error",
    "95th percentile",
    "target",
    "holds",
    "left out: median",
    "left out: 95th",
    "apart: rows",
    "apart: median",
]


def _pairs(rows: Sequence[MeasuredStart], term: Callable[[MeasuredStart], Pair | None]) -> list[Pair]:
    return [pair for row in rows if (pair := term(row)) is not None]


def _summary(name: str, pairs: Sequence[Pair], rows: int) -> list[str]:
    errors = sorted(abs(pair.error) for pair in pairs)
    middle, high = median(errors), _percentile(errors, 0.95)
    goal = TARGETS.get(name)
    wanted = "" if goal is None else " / ".join(_percent(value) for value in goal if value is not None)
    holds = "" if goal is None else _yes(middle <= goal[0] and (goal[1] is None or high <= goal[1]))
    left = sorted(abs(error) for error in _left_out(pairs))
    others = [_percent(median(left)), _percent(_percentile(left, 0.95))] if left else ["one model only", ""]
    apart = sorted(abs(pair.error) for pair in pairs if pair.row.model not in FITTED)
    told = [str(len(apart)), _percent(median(apart)) if apart else ""]
    scored = [str(len(pairs)), str(rows - len(pairs))]
    return [name, *scored, _percent(middle), _percent(high), wanted, holds, *others, *told]


def _left_out(pairs: Sequence[Pair]) -> list[float]:
    """Errors when the ratio of the other models scales each prediction."""
    found = []
    for pair in pairs:
        ratios = [other.measured / other.predicted for other in pairs if other.row.model != pair.row.model]
        if ratios:
            found.append(pair.predicted * median(ratios) / pair.measured - 1)
    return found


def _percentile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


CALIBRATED = """\
Each row once more, with its estimated terms corrected by the starts of all other rows as calibration does it. Few of
these rows are of one kind, so most are corrected upwards or not at all; that is what the first starts of a mesh see."""


def _calibrated(rows: Sequence[MeasuredStart], scored: Mapping[str, Sequence[Pair]]) -> str:
    known = {row.id: told for row in rows if (told := started(row)) is not None}
    lines = []
    for term in ESTIMATED:
        found = {pair.row.id: pair for row in rows if (pair := corrected(row, term, known)) is not None}
        both = [(pair, found[pair.row.id]) for pair in scored[term] if pair.row.id in found]
        low = [sum(pair.error < 0 for pair in each) for each in zip(*both, strict=True)] or [0, 0]
        middles = [median(abs(pair.error) for pair in each) for each in zip(*both, strict=True)] or [0.0, 0.0]
        lines.append([term, str(len(both)), *map(_percent, middles), *map(str, low)])
    head = ["term", "rows", "median error", "corrected", "predicted too little", "corrected"]
    return table(head, lines)


def _verdicts(rows: Sequence[MeasuredStart]) -> str:
    decided = [(row, found) for row in rows if (found := verdict(row)) is not None]
    counted = Counter((row.cells["outcome"], found is Verdict.FITS) for row, found in decided)
    wrong = [(row, found) for row, found in decided if (row.cells["outcome"] == "ok") != (found is Verdict.FITS)]
    started = counted["ok", True] + counted["ok", False]
    share = counted["ok", False] / started if started else 0.0
    summary = table(
        ["", "says it fits", "says it does not"],
        [[f"vLLM {text}", str(counted[key, True]), str(counted[key, False])] for key, text in _OUTCOMES],
    )
    holds = (
        f"Never says that it fits where vLLM failed: **{_yes(not counted['fail', True])}**. Says that it does not fit "
        f"where vLLM started in at most 5 %: **{_yes(share <= 0.05)}** ({_percent(share)}). "
        f"{len(rows) - len(decided)} rows cannot decide."
    )
    told = [
        [row.id, row.model, row.cells["outcome"], found.value, arithmetic(row), row.cells["error"]]
        for row, found in wrong
    ]
    listed = table(["row", "model", "vLLM", "planner", "computed (GiB)", "its error"], told) if told else ""
    return "\n\n".join(part for part in (summary, holds, listed, COMPUTED if told else "") if part)


COMPUTED = """\
Computed is the budget without weights, what is beside PyTorch, the peak and, from 0.21 on, CUDA graphs. What vLLM's
source says of such a start is in [the planner](planner.md#what-is-exact-and-what-is-estimated)."""

_OUTCOMES = (("ok", "started"), ("fail", "failed"))


def _refusals(rows: Sequence[MeasuredStart]) -> str:
    failed = [row for row in rows if is_refusal(row)]
    lines = []
    for row in failed:
        found = refused(row)
        said = "cannot decide" if found is None else (found[0].message if found else "nothing")
        lines.append([row.id, row.model, row.cells["tp"], row.cells["error"], said])
    started = [row for row in rows if row.cells["outcome"] == "ok" and (refused(row) or [])]
    names = ", ".join(row.id for row in started) or "none"
    text = f"Divisions that started and are refused here: {len(started)} ({names})."
    return "\n\n".join([table(["row", "model", "TP", "vLLM", "planner"], lines), text])


def _others(rows: Sequence[MeasuredStart]) -> str:
    decided = [row for row in rows if verdict(row) is not None]
    formulas: dict[str, Callable[[MeasuredStart], bool]] = {
        "this planner": lambda row: verdict(row) is Verdict.FITS,
        "GPUStack (weights x 1.2 + 2 GiB, pooled)": lambda row: _fits_pooled(row, 1.2, 2.0, 0.9),
        "naive (parameters x bytes)": lambda row: _fits_pooled(row, 1.0, 0.0, 1.0),
    }
    lines = []
    for name, fits in formulas.items():
        deaths = sum(fits(row) for row in decided if row.cells["outcome"] == "fail")
        wasted = sum(not fits(row) for row in decided if row.cells["outcome"] == "ok")
        lines.append([name, str(deaths), str(wasted), str(len(decided))])
    every = [
        [row.id, row.model, f"{row.parallel.gpus if row.parallel else 0} x {row.cells['gpu']}", row.cells["outcome"]]
        + [_judged(row, fits(row)) for fits in formulas.values()]
        for row in decided
    ]
    counted = table(["formula", "fits, but failed", "does not fit, but started", "rows"], lines)
    return "\n\n".join([counted, table(["row", "model", "GPUs", "vLLM", *formulas], every)])


def _judged(row: MeasuredStart, fits: bool) -> str:
    said = "fits" if fits else "does not fit"
    return said if fits == (row.cells["outcome"] == "ok") else f"**{said}**"


def _fits_pooled(row: MeasuredStart, factor: float, further_gib: float, part: float) -> bool:
    assert row.facts is not None
    assert row.parallel is not None
    assert row.total_bytes is not None
    pair = weights(row)
    size = pair.predicted * GIB * row.parallel.gpus if pair else parameter_count(row.facts) * row.facts.type_bytes
    return size * factor + further_gib * GIB <= row.total_bytes * row.parallel.gpus * part


def _undecided(rows: Sequence[MeasuredStart]) -> str:
    reasons = Counter(row.undecided for row in rows if row.undecided)
    return table(["reason", "rows"], [[reason, str(count)] for reason, count in sorted(reasons.items())])


def _every(pairs: Sequence[Pair]) -> str:
    lines = [
        [pair.row.id, pair.row.model, _plain(pair.predicted), _plain(pair.measured), _signed(pair.error)]
        for pair in pairs
    ]
    return table(["row", "model", "predicted", "measured", "error"], lines)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f} %"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
