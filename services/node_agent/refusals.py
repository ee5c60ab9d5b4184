"""Which attempts of a request are not taken, and what is answered."""

from collections.abc import Mapping
from dataclasses import dataclass

from libs.common.contracts.work_marshaling import AssignmentAnswer, AssignmentAnswers, Assignments


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an attempt was not taken. `other_run`: it is of a run of this agent that nothing is known of."""

    reason: str
    short_of_memory: bool = False
    other_run: bool = False


def answers(boot_id: str, request: Assignments, refused: Mapping[str, Refusal]) -> AssignmentAnswers:
    """`refused` by token; all others are accepted."""
    told = tuple(_answer(each.attempt_token or "", refused) for each in request.assignments)
    return AssignmentAnswers.model_construct(boot_id=boot_id, answers=told)


def _answer(token: str, refused: Mapping[str, Refusal]) -> AssignmentAnswer:
    refusal = refused.get(token)
    if refusal is None:
        return AssignmentAnswer.model_construct(
            attempt_token=token, accepted=True, reason="", short_of_memory=False, other_run=False
        )
    return AssignmentAnswer(
        attempt_token=token,
        accepted=False,
        reason=refusal.reason,
        short_of_memory=refusal.short_of_memory,
        other_run=refusal.other_run,
    )
