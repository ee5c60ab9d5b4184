"""Errors that were answered, built anew where they were asked for."""

from libs.common.errors import Malformed, MeshError, NotFound, error_named


class OnlyHere(Malformed):
    """Of this module alone: it has its parent's code, and is made otherwise."""

    def __init__(self, more_bytes: int) -> None:
        super().__init__(f"{more_bytes} bytes are lacking")


def test_a_code_is_the_error_that_it_was() -> None:
    error = error_named("not_found", "there is no x", {"work_id": "x"})
    assert (type(error), error.message, error.details) == (NotFound, "there is no x", {"work_id": "x"})


def test_a_kind_without_a_code_of_its_own_does_not_stand_for_its_parent() -> None:
    assert type(error_named(OnlyHere(1).code, "a field is wrong", {"field": "x"})) is Malformed


def test_a_code_of_a_newer_version_is_passed_on() -> None:
    error = error_named("made_up", "…", {})
    assert (type(error), error.code) == (MeshError, "made_up")
