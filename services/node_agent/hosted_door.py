"""Where hosted engines listen, and how they are reached from here and from elsewhere."""

from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
_NEAR = {"0.0.0.0": LOOPBACK, "::": "::1"}  # from here every address is reached by loopback's


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAddress:
    """`host` is what engines listen on, `told` what others reach this machine by, and `api_key` what clients have to
    say; empty: nothing."""

    host: str = LOOPBACK
    told: str = LOOPBACK
    api_key: str = ""

    def near(self, port: int) -> str:
        """As this machine reaches it."""
        return _url(_NEAR.get(self.host, self.host), port)

    def far(self, port: int) -> str:
        """As others reach it."""
        return _url(self.told, port)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @property
    def environment(self) -> dict[str, str]:
        """For vLLM."""
        return {"VLLM_API_KEY": self.api_key} if self.api_key else {}


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
