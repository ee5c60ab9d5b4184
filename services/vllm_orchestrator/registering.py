"""Keeps a gateway's configuration as the instances are: a model that is served is routed to, without anybody's help."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NoReturn

import structlog

from libs.common.clock import Clock
from libs.common.contracts.vllm_instances import (
    EngineChoice,
    GatewayProvider,
    GatewayView,
    Instance,
    InstanceState,
    Replica,
)
from libs.common.errors import Unavailable
from libs.inference.tensorzero import OURS, Complaint, Served, Tree, addresses_in, can_be_registered, files_of, theirs
from services.vllm_orchestrator.gateway import GatewayControl, GatewayFiles, GatewayJudge

ROUND_SECONDS = 1.0
RETRY_SECONDS = 30.0
ROUTED = frozenset({InstanceState.READY, InstanceState.DEGRADED})
"""A gateway falls back by itself from an engine that does not answer for a moment: that alone restarts no gateway."""

Outcome = Literal["applied", "refused", "undone"]
Address = Callable[[Instance, Replica], str | None]

_log = structlog.get_logger()


@dataclass(slots=True)
class Registered:
    """What became of the last change."""

    providers: tuple[Served, ...] = ()
    left_out: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    problem: str = ""
    changed_at: datetime | None = None


@dataclass(slots=True)
class _Wish:
    """What is to be live, since when nothing else is, and whether it was tried."""

    own: Tree = field(default_factory=dict)
    ours: Tree = field(default_factory=dict)
    since: float = 0.0
    tried_at: float | None = None


class Registering:
    """`instances` is None while this orchestrator does not lead. `count` is told of every change and its outcome,
    `key` where a gateway finds what our own engines want to hear."""

    def __init__(
        self,
        files: GatewayFiles,
        judge: GatewayJudge,
        control: GatewayControl,
        clock: Clock,
        *,
        instances: Callable[[], Sequence[Instance] | None],
        address: Address,
        settle_seconds: float,
        key: str,
        count: Callable[[Outcome], None],
    ) -> None:
        self._files = files
        self._judge = judge
        self._control = control
        self._clock = clock
        self._instances = instances
        self._address = address
        self._settle_seconds = settle_seconds
        self._count = count
        self._key = key
        self._wish = _Wish()
        self._told = Registered()

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            try:
                await self.round()
            except Unavailable as error:
                self._trouble(error.message)
            await self._clock.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Raises `Unavailable`."""
        instances = self._instances()
        if instances is None:
            return
        live = await self._files.live()
        wanted, left_out = self._wanted(instances, live)
        if wanted is None:
            return
        self._told.left_out = left_out
        own, ours = await self._files.own(), files_of(wanted)
        now = self._clock.monotonic()
        if (own, ours) != (self._wish.own, self._wish.ours):
            self._wish = _Wish(own=own, ours=ours, since=now)
        if self._is_due(now):
            self._wish.tried_at = now
            await self._apply(live, wanted)

    def problem(self) -> str | None:
        return self._told.problem or None

    def count_models(self) -> int:
        return len({each.model_name for each in self._told.providers})

    async def view(self) -> GatewayView:
        told = self._told
        return GatewayView(
            configured=True,
            providers=tuple(_shown(each) for each in told.providers),
            left_out=told.left_out,
            complaints=told.complaints,
            problem=told.problem,
            checked_by=self._judge.by,
            changed_at=told.changed_at,
        )

    def _wanted(self, instances: Sequence[Instance], live: Tree) -> tuple[tuple[Served, ...] | None, tuple[str, ...]]:
        """None while nobody has told yet where a ready engine is: then it is not forgotten meanwhile."""
        known = addresses_in(live)
        found: list[Served] = []
        left_out: list[str] = []
        for instance in instances:
            name = instance.request.model_name or ""
            serving = [each for each in instance.replicas if each.state in ROUTED and each.wanted == "running"]
            if not serving:
                continue
            if not can_be_registered(name):
                left_out.append(
                    f"{instance.name}: TensorZero keeps names with '::' for itself, so {name} is not routed"
                )
                continue
            for replica in serving:
                provider = f"{instance.name}.{replica.number}"
                address = self._address(instance, replica) or known.get((name, provider))
                if address is None:
                    return None, tuple(left_out)
                key = "none" if instance.request.engine is EngineChoice.EXTERNAL else self._key
                found.append(Served(model_name=name, provider=provider, address=address, key=key))
        return tuple(sorted(found)), tuple(left_out)

    def _is_due(self, now: float) -> bool:
        """Changes that follow one another are one; what did not go well is tried again after a while."""
        if self._wish.tried_at is not None:
            return bool(self._told.problem) and now - self._wish.tried_at >= RETRY_SECONDS
        return now - self._wish.since >= self._settle_seconds

    async def _apply(self, live: Tree, wanted: tuple[Served, ...]) -> None:
        tree, found = await self._chosen(live)
        self._told.complaints = tuple(map(str, found))
        self._trouble(f"the gateway's configuration is not taken: {found[0]}" if found else "")
        if tree is None:
            self._count("refused")
            return
        if tree != live:
            await self._files.put(tree)
            try:
                await self._control.reload()
            except Unavailable as error:
                await self._undo(live, error)
                return
            self._count("applied")
            self._told.changed_at = self._clock.now()
            _log.info("gateway_configured", models=len({each.model_name for each in wanted}), engines=len(wanted))
        self._told.providers = wanted

    async def _chosen(self, live: Tree) -> tuple[Tree | None, list[Complaint]]:
        """What is to be live, and what is wrong with what people wrote: then their last good part stays."""
        whole = {**self._wish.own, **self._wish.ours}
        clash = [Complaint(path, f"the folder {OURS} is not yours") for path in self._wish.own.keys() - theirs(whole)]
        found = clash or await self._judge.judge(whole)
        if not found:
            return whole, []
        last_good = {**theirs(live), **self._wish.ours}
        return (None if await self._judge.judge(last_good) else last_good), found

    async def _undo(self, live: Tree, error: Unavailable) -> None:
        """A gateway may lack what we cannot see, such as a key: the one before came up."""
        self._count("undone")
        if not live:
            self._trouble(error.message)
            return
        await self._files.put(live)
        try:
            await self._control.reload()
        except Unavailable as again:
            self._trouble(f"{error.message}; nor with the configuration before: {again.message}")
        else:
            self._trouble(f"{error.message}; the configuration before is back")

    def _trouble(self, problem: str) -> None:
        if problem and problem != self._told.problem:
            _log.warning("gateway_not_configured", reason=problem[:500])
        self._told.problem = problem


def _shown(served: Served) -> GatewayProvider:
    name, _, number = served.provider.rpartition(".")
    return GatewayProvider(
        model_name=served.model_name, instance_name=name, replica=int(number), address=served.address
    )
