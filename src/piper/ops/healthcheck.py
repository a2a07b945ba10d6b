"""Ask a running piperd for its health from outside, as Docker's HEALTHCHECK and other supervisors do.

The question goes over HTTP to the address in the settings, so that it says what a supervisor must know: the process
answers, and its loops turn. A missing spool or a full disk is no reason to restart it and no reason to fail here;
`piper status` and `/readyz` tell of those.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Final

from piper.errors import PiperError
from piper.ops.health import LoopState
from piper.settings import Settings

TIMEOUT_SECONDS: Final = 4.0
"""Less than the five seconds that the image's HEALTHCHECK allows."""

_LOOPBACK: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked for, not bound
"""An address that means all of them, and the one to ask instead."""


@dataclass(frozen=True, slots=True)
class Health:
    """What piperd says of itself: whether all loops turn, and how long each has been silent."""

    url: str
    alive: bool
    loops: list[LoopState]

    def __str__(self) -> str:
        if self.alive:
            return f"alive: {self.url}"
        silent = [f"{loop['loop']} for {loop['silent_seconds']:.0f} s" for loop in self.loops if not loop["ok"]]
        return f"stale: {', '.join(silent)} without a sign of life ({self.url})"


def ask_health(settings: Settings) -> Health:
    """The health of the piperd that these settings describe. Raises PiperError where nobody, or another, answers."""
    host, port = _LOOPBACK.get(settings.metrics.host, settings.metrics.host), settings.metrics.port
    if port == 0:
        raise PiperError("metrics.port is 0, so nobody knows where piperd answers", hint="Set PIPER_METRICS__PORT.")
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/healthz"
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/healthz", headers={"Connection": "close"})
        response = connection.getresponse()
        return _read(url, response.read())
    except OSError as error:
        raise PiperError(f"piperd does not answer at {url}: {error.strerror or error}") from error
    except http.client.HTTPException as error:
        raise PiperError(f"what answers at {url} is not piperd") from error
    finally:
        connection.close()


def _read(url: str, body: bytes) -> Health:
    try:
        found = json.loads(body)
        return Health(url, found["status"] == "ok", found["loops"])
    except (ValueError, KeyError, TypeError) as error:
        raise PiperError(f"what answers at {url} is not piperd") from error
