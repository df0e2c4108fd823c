"""Other runs on the same quota: this run charges what they send, and the run that has had least goes first."""

from collections.abc import Callable
from math import ceil, inf

from pipeline.calibration import Margin
from pipeline.quota.book import GROUP_S, KEEP_S, QuotaBook
from pipeline.quota.ledger import Charge, TokenLedger
from pipeline.quota.pacer import JITTER_S, WINDOW_S

SHARER_S = WINDOW_S
"""Another run shares the quota while it lives, and has sent or asked for something in this time."""
CHECK_S = 0.5
"""How often this run asks whether the others live, and what they had."""
ASK_EVERY_S = 1.0
ASKED_FOR_S = 2.5
"""How long a run's wish for room counts: a run that was killed holds nobody up for longer."""
LOOK_S = 0.1
"""How often a run looks around while it leaves room to others."""
CONTENT = 0.9
"""Of an equal part of the tokens: a run that has had so much asks for no more, so that equals do not wait for each
other."""


class Sharing:
    """The other runs on one quota.

    This run charges what they send like its own: together all runs use every token, however unequally they want them.
    Left to chance, the run that needs the least margin would always get them. So a run that waits for tokens and has
    had less than an equal part asks for room, and a run that has had more leaves it.
    """

    def __init__(self, book: QuotaBook, wall: Callable[[], float], ledger: TokenLedger) -> None:
        """`wall` is epoch seconds; all else goes by the loop's clock."""
        self._book, self._wall, self._ledger = book, wall, ledger
        self._charges: dict[tuple[str, int | None], Charge] = {}  # what others sent, as long as it may count
        self._asks: dict[str, tuple[float, float]] = {}  # when each other run asked, and for how many tokens at most
        self._heard: dict[str, float] = {}  # of each other run
        self._gone: set[str] = set()  # of them: ended, or killed
        self._looked_at = self._checked_at = self._asked_at = -inf

    def news(self, now: float) -> list[float]:
        """Charge what others have sent and settled since the last time; returns when they sent.

        The first time that is what all have sent in the last two minutes.
        """
        if not self._heard and now - self._looked_at < GROUP_S:
            return []
        self._looked_at = now
        times = []
        for send in self._book.news(self._wall()):
            at = self._loop_time(send.at, now)
            charge = self._charges.get((send.who, send.number))
            if charge is not None:
                self._ledger.correct(charge, send.tokens or 0)  # what was refused stays a request: fewer are refused
            elif send.tokens is not None:
                self._hear(send.who, at)
                if send.number is None:
                    self._asks[send.who] = at, send.tokens
                    continue
                times.append(at)
                charge = self._charges[send.who, send.number] = self._ledger.reserve(at, send.tokens)
                self._ledger.settle(charge, None)
        if self._heard and now - self._checked_at >= CHECK_S:
            self._check(now)
        return times

    def runs(self, now: float) -> int:
        """How many runs share the quota, this one included."""
        if self._heard:
            heard = self._heard.items()
            self._heard = {who: at for who, at in heard if now - at < SHARER_S and who not in self._gone}
        return 1 + len(self._heard)

    def ask(self, now: float, tokens: float, margin: Margin) -> None:
        """What waits here for `tokens` is held up: ask for room, if this run has had few tokens."""
        self._book.flush()
        if now - self._asked_at < ASK_EVERY_S:
            return
        used, ours = self._used(now)
        if ours < CONTENT * self._fair:
            self._asked_at = now
            self._book.ask(self._wall(), ceil(used - self._ledger.surplus(now, tokens, margin)))

    def room(self, now: float) -> float:
        """The tokens that others leave to this run; `inf` where nobody asks for room, or this run has had few."""
        if not self._asks:  # asked for every request
            return inf
        asks = [most for who, (at, most) in self._asks.items() if now - at < ASKED_FOR_S and who not in self._gone]
        if not asks:
            return inf
        used, ours = self._used(now)
        return min(asks) - used if ours > self._fair else inf

    @property
    def _fair(self) -> float:
        return self._ledger.limit / (1 + len(self._heard))

    def _used(self, now: float) -> tuple[int, int]:
        """Tokens of the last minute, of all runs and of this one."""
        used = self._ledger.last_minute(now)[1]
        since = now - WINDOW_S - JITTER_S
        return used, used - sum(charge.tokens for charge in self._charges.values() if charge.at >= since)

    def _check(self, now: float) -> None:
        self._checked_at = now
        self._charges = {key: charge for key, charge in self._charges.items() if charge.at > now - KEEP_S}
        self._gone.update(who for who in self._heard if not self._book.lives(who))

    def _loop_time(self, at: float, now: float) -> float:
        """What the loop's clock said at `at`, in epoch seconds."""
        return now - max(0.0, self._wall() - at)

    def _hear(self, who: str, at: float) -> None:
        if who not in self._gone:
            self._heard[who] = max(at, self._heard.get(who, at))
