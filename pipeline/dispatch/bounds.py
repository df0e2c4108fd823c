"""Why a quota's loop sends no more than it does, in seconds by cause."""

from pipeline.quota.standing import Bound


class Bounds:
    """A clock for each cause, of which one runs; what is not waited for is counted to what was waited for before it."""

    __slots__ = ("_cause", "_seconds", "_since")

    def __init__(self) -> None:
        self._cause: Bound | None = None
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    def turn(self, cause: Bound | None, now: float) -> None:
        """From `now` on, by the loop's clock, this is what it waits for; None: for nothing, as it sends no more."""
        if cause is self._cause:
            return
        if self._cause is not None:
            self._seconds[self._cause] = self._seconds.get(self._cause, 0.0) + now - self._since
        self._cause, self._since = cause, now

    def seconds(self, now: float) -> dict[str, float]:
        """Seconds by cause so far."""
        found: dict[str, float] = {**self._seconds}
        if self._cause is not None:
            found[self._cause] = found.get(self._cause, 0.0) + now - self._since
        return found
