"""How attempts to load something end: for the log, the ledger, the metrics, and whoever asks why nothing changed."""

import logging
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gateway.ledger import Ledger
from gateway.telemetry import Telemetry
from policies.engine import Engine

log = logging.getLogger("weighbridge.reload")


@dataclass(slots=True)
class Reload:
    """How the last attempt to load something ended. Times are seconds since the epoch; 0 is never."""

    loaded_at: float = 0.0
    tried_at: float = 0.0
    errors: tuple[str, ...] = ()
    count: int = 0

    def succeeded(self) -> None:
        self.loaded_at = self.tried_at = time.time()
        self.errors = ()
        self.count += 1

    def failed(self, errors: Iterable[str]) -> None:
        self.tried_at = time.time()
        self.errors = tuple(errors)


class Reloads:
    """Tells of every attempt, whatever was loaded."""

    def __init__(self, telemetry: Telemetry, ledger: Ledger) -> None:
        self._telemetry, self._ledger = telemetry, ledger

    def record(self, what: str, who: str, result: str, engine: Engine | None) -> None:
        """Counts and records an attempt. `engine` is the policy that stands after it: for the configuration the one
        that decides, else the one of the set that was tried."""
        self._telemetry.reloads[what, result] += 1
        revision = engine.revision if engine is not None else None
        self._ledger.note("reload", {"what": what, "who": who, "result": result, "revision": revision})

    def refused(
        self, what: str, who: str, reload: Reload, errors: list[str], engine: Engine | None, *, stays: bool
    ) -> None:
        """An attempt that failed; `stays` says whether something good goes on in its place."""
        reload.failed(errors)
        self.record(what, who, "refused", engine)
        instead = "the last good one stays" if stays else "none is loaded"
        for error in errors:
            log.error("%s refused, %s: %s", what, instead, error)


def unforeseen(error: Exception) -> str:
    """What failed and where. Not the error's text: nobody has made sure that it holds no secret."""
    frames = traceback.extract_tb(error.__traceback__)
    where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:])
    return f"loading failed unexpectedly with {type(error).__name__} ({where})"
