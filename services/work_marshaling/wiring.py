"""The only place where the queue's parts meet."""

import random
import secrets
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from libs.common.archive.migrations import read_schema
from libs.common.bus.bus import Bus
from libs.common.clock import Clock
from libs.common.contracts.streams import (
    DEAD_LETTERS,
    WORK_DONE,
    WORK_IN,
    WORK_LOG,
    WORK_MARSHALING,
    WORK_OBJECTS,
    WORK_OUT,
)
from libs.common.contracts.work_leading import HandedAnswer, HandedRequest
from libs.common.kit.http_within import Within
from libs.common.kit.loops import every
from libs.common.kit.service import Loop, Platform, Service, degraded_while
from libs.common.kit.settings import load
from services.work_marshaling import http_api, nats_api
from services.work_marshaling.again import Again
from services.work_marshaling.archiving import Archiving
from services.work_marshaling.asking import Asking
from services.work_marshaling.blacklisting import Blacklisting, watch_conduct
from services.work_marshaling.drains import Drains
from services.work_marshaling.election import Election, Instance
from services.work_marshaling.explanations import Explanations
from services.work_marshaling.following import Following, Watchers
from services.work_marshaling.handing import Handing
from services.work_marshaling.hearing import Hearing
from services.work_marshaling.large import Large
from services.work_marshaling.leading import Leading
from services.work_marshaling.meter import RecordMeasures
from services.work_marshaling.meter_prometheus import PrometheusMeter
from services.work_marshaling.model import ConductRules, Policy, Rules
from services.work_marshaling.records import EarlierIds, Records
from services.work_marshaling.settings import Settings
from services.work_marshaling.submission import Submissions
from services.work_marshaling.tables import OWNER, TABLES
from services.work_marshaling.term import Chances
from services.work_marshaling.use_cases import WorkMarshaling

MIB = 1024 * 1024
PING_SECONDS = 5.0
RETENTION_SECONDS = 600.0
SCHEMA = read_schema(OWNER, TABLES, Path(__file__).parent / "migrations")


def build(platform: Platform, settings: Settings | None = None) -> Service:
    settings = settings or load(Settings)
    bus, clock, queue = platform.bus, platform.clock, rules(settings)
    meter = PrometheusMeter(platform.metrics)
    new_id = partial(secrets.token_hex, 8)
    archive, keep = platform.archive(), timedelta(seconds=queue.remembered_keep_seconds)
    records = Records(archive)
    large = Large(bus, clock)
    earlier = EarlierIds(records, clock, keep=keep)
    archiving = Archiving(
        bus=bus,
        clock=clock,
        archive=archive,
        schema=SCHEMA,
        earlier=earlier,
        large=large,
        keep_days=settings.work_archive_days,
    )
    watchers = Watchers(clock, new_id)
    instance = Instance(instance_id=secrets.token_hex(8), node_id=platform.node_id, port=settings.port)
    election = Election(bus=bus, clock=clock, instance=instance, lease_seconds=settings.work_leader_lease_seconds)
    leading = Leading(
        bus=bus,
        clock=clock,
        rules=queue,
        chances=Chances(number=random.random, token=new_id),
        meter=meter,
        new_id=new_id,
        earlier=earlier,
        watch=watchers,
        large=large,
        companions=[archiving.serve, watchers.serve, partial(watch_conduct, bus, clock)],
        election=election,
    )
    asking = Asking(leading=leading, records=records, pending=archiving.pending)
    submissions = Submissions(bus, new_id)
    marshaling = WorkMarshaling(
        clock=clock, leading=leading, submissions=submissions, asking=asking, large=large, new_id=new_id
    )
    again = Again(clock=clock, leading=leading, records=records, asking=asking, marshaling=marshaling, large=large)
    explanations = Explanations(leading=leading, asking=asking)
    blacklisting = Blacklisting(bus=bus, clock=clock, leading=leading)
    following = Following(asking=asking, watchers=watchers)
    meter.watch(marshaling.measures)
    meter.watch_records(partial(_measures, leading, archiving, large, watchers))
    hearing = Hearing(clock=clock, leading=leading, watchers=watchers)
    handing = Handing(bus=bus, leading=leading, instance_id=instance.instance_id)
    router = http_api.router(marshaling, asking, again, following, explanations, blacklisting, handing)
    handing.inside = partial(_inside, Within(router))
    return Service(
        port=settings.port,
        streams=(WORK_IN, WORK_OUT, WORK_LOG, WORK_DONE, WORK_OBJECTS.stream, DEAD_LETTERS),
        buckets=(WORK_MARSHALING,),
        lifespan=election.released,
        subscriptions=partial(nats_api.open_door, marshaling, asking, explanations, hearing, handing, bus),
        loops=_loops(bus, clock, leading, submissions, archiving),
        router=router,
        checks={"leader": marshaling.problem, "archive": degraded_while(archiving.problem, untried=archiving.untried)},
    )


async def _inside(within: Within, asked: HandedRequest) -> HandedAnswer:
    told = await within.ask(asked.method, asked.path, asked.query, asked.body)
    return HandedAnswer(status=told.status, headers=told.headers, body=told.body.decode())


def _measures(leading: Leading, archiving: Archiving, large: Large, watchers: Watchers) -> RecordMeasures:
    return RecordMeasures(
        unarchived=len(leading.present.term.memory.unarchived) if leading.leads() else 0,
        waiting_rows=archiving.waiting_rows,
        behind_seconds=archiving.behind_seconds(),
        object_bytes=large.used_bytes,
        readers=watchers.readers,
    )


def _loops(bus: Bus, clock: Clock, leading: Leading, submissions: Submissions, archiving: Archiving) -> Sequence[Loop]:
    return [
        Drains(bus, clock, leading.nodes).run,
        leading.run,
        submissions.run,
        archiving.writer.run,
        every(PING_SECONDS, archiving.look, clock, name="archive_look"),
        every(RETENTION_SECONDS, archiving.retain, clock, name="archive_retention"),
    ]


def rules(settings: Settings) -> Rules:
    policy = Policy(
        retry_max=settings.work_retry_max,
        retry_delay_seconds=settings.work_retry_delay,
        retry_delay_most_seconds=settings.work_retry_delay_most,
        poison_nodes=settings.work_poison_nodes,
        deaths_most=settings.work_node_deaths_most,
    )
    return Rules(
        policy=policy,
        conduct=ConductRules(
            window_seconds=settings.work_blacklist_window_seconds,
            failure_rate=settings.work_blacklist_failure_rate,
            term_seconds=settings.work_blacklist_term_seconds,
            term_most_seconds=settings.work_blacklist_term_most_seconds,
            fast_seconds=settings.work_fast_failure_seconds,
        ),
        lease_seconds=settings.work_lease_seconds,
        node_silence_seconds=settings.work_node_silence_seconds,
        node_kept_seconds=settings.work_node_kept_seconds,
        ageing_seconds=settings.work_ageing_seconds,
        open_most=settings.work_open_most,
        ended_most=settings.work_ended_kept,
        ended_keep_seconds=settings.work_ended_kept_seconds,
        remembered_most=settings.work_remembered_ids,
        checkpoint_records=settings.work_checkpoint_records,
        checkpoint_bytes=settings.work_checkpoint_mb * MIB,
        upkeep_seconds=settings.work_upkeep_seconds,
    )
