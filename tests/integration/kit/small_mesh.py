"""Two small services as a program, for the tests that need a real process.

`echo` answers on NATS after `ECHO_SECONDS`, tells how many answers it owes, and crashes when asked to; `asker` asks it.
"""

import asyncio
import sys

from fastapi import APIRouter
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from libs.common.contracts.base import Call, Message
from libs.common.errors import Unavailable
from libs.common.kit.loops import every
from libs.common.kit.runner import main_of
from libs.common.kit.service import Platform, Service
from libs.common.kit.settings import load


class Word(Message):
    text: str


ECHO = Call(subject="test.echo.v1", request=Word, reply=Word, owner="echo", summary="Says it again, slowly.")


class EchoSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ECHO_", frozen=True, extra="ignore")

    port: int = Field(0, ge=0, le=65535)
    seconds: float = Field(0.0, ge=0)


class AskerSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ASKER_", frozen=True, extra="ignore")

    port: int = Field(0, ge=0, le=65535)


def build_echo(platform: Platform) -> Service:
    settings, crash, router = load(EchoSettings), asyncio.Event(), APIRouter()
    owed = 0

    @router.get("/owed")
    async def tell_owed() -> int:
        return owed

    @router.post("/crash")
    async def ask_to_crash() -> str:
        crash.set()
        return "as you wish"

    async def crash_when_asked() -> None:
        await crash.wait()
        raise ZeroDivisionError("as asked")

    async def say_again(word: Word) -> Word:
        nonlocal owed
        owed += 1
        await platform.clock.sleep(settings.seconds)
        owed -= 1
        return word

    async def subscribe() -> None:
        await platform.bus.serve(ECHO, say_again)

    return Service(port=settings.port, subscriptions=subscribe, loops=[crash_when_asked], router=router)


def build_asker(platform: Platform) -> Service:
    router = APIRouter()

    @router.get("/ask/{text}")
    async def ask(text: str) -> Word:
        return await platform.bus.request(ECHO, Word(text=text), timeout=3)

    async def look_after() -> None:
        if platform.bus.problem() is not None:
            raise Unavailable("NATS is away.")

    async def subscribe() -> None:
        return None

    loop = every(0.05, look_after, platform.clock, name="look_after")
    return Service(port=load(AskerSettings).port, subscriptions=subscribe, loops=[loop], router=router)


if __name__ == "__main__":
    sys.exit(main_of({"echo": build_echo, "asker": build_asker}, sys.argv[1:]))
