"""The agent's own engine claims the RAM that it takes."""

import os
import signal

from libs.common.contracts.node_registry import EngineState
from libs.common.errors import Conflict, NobodyAnswers
from tests.integration.node_agent.conftest import EngineMaker, until


async def test_an_engine_claims_its_file_its_context_and_what_it_computes_in_before_it_serves(engine: EngineMaker):
    at_work = engine()
    await at_work.ready()

    (wanted,) = at_work.ledger.reserved.values()
    assert at_work.ledger.committed == {wanted.claim_id: at_work.engine.view().pid}
    used = at_work.engine.view().memory_mb
    assert used is not None
    assert used <= wanted.ram_mb < used + 256


async def test_an_engine_that_does_not_fit_waits_and_says_what_the_ledger_says(engine: EngineMaker):
    at_work = engine()
    at_work.ledger.problem = Conflict("It does not fit: 200 MiB of RAM are wanted and 100 MiB free.")
    await until(lambda: at_work.engine.now().state == EngineState.FAILED)
    assert at_work.engine.now().problem == "It does not fit: 200 MiB of RAM are wanted and 100 MiB free."
    assert at_work.engine.view().pid is None

    at_work.ledger.problem = None
    await at_work.ready()
    assert list(at_work.ledger.committed.values()) == [at_work.engine.view().pid]


async def test_an_engine_that_found_no_ledger_claims_once_there_is_one(engine: EngineMaker):
    at_work = engine()
    at_work.ledger.problem = NobodyAnswers("there is no ledger")
    await at_work.ready()

    at_work.ledger.problem = None
    await until(lambda: list(at_work.ledger.committed.values()) == [at_work.engine.view().pid])


async def test_an_engine_that_is_found_again_keeps_its_claim_and_makes_no_other(engine: EngineMaker):
    first = engine()
    await first.ready()
    (claimed,) = first.ledger.reserved
    await first.forget()
    first.ledger.committed.clear()

    second = engine()
    await second.ready()

    await until(lambda: second.ledger.committed == {claimed: second.engine.view().pid})
    assert list(second.ledger.reserved) == [claimed]


async def test_an_engine_that_is_found_again_without_a_claim_makes_one(engine: EngineMaker):
    first = engine()
    await first.ready()
    await first.forget()
    first.ledger.reserved.clear()
    first.ledger.committed.clear()

    second = engine()
    await second.ready()

    await until(lambda: list(second.ledger.committed.values()) == [second.engine.view().pid])


async def test_an_engine_that_died_gives_back_and_claims_anew(engine: EngineMaker):
    at_work = engine()
    await at_work.ready()
    (before,) = at_work.ledger.reserved

    os.kill(at_work.engine.view().pid or 0, signal.SIGKILL)
    await until(lambda: at_work.engine.now().state == EngineState.FAILED)
    await at_work.ready()

    assert before not in at_work.ledger.reserved
    assert list(at_work.ledger.committed.values()) == [at_work.engine.view().pid]
