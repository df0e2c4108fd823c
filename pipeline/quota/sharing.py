"""Other runs on the same quota: this run charges what they send, and the run that has had least goes first."""

from collections.abc import Callable, Iterable
from math import ceil, inf

from pipeline.calibration import Margin
from pipeline.quota.book import GROUP_S, MemoryBook, QuotaBook, Send
from pipeline.quota.ledger import Charge, TokenLedger
from pipeline.quota.pacer import WINDOW_S
from pipeline.quota.server_clock import MinutePhase

SHARER_S = WINDOW_S
"""Another run shares the quota while it lives, and has sent or asked for something in this time."""
SETTLE_S = 0.5
"""How often this run reads what others have settled."""
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

    def __init__(self, book: QuotaBook | MemoryBook, wall: Callable[[], float], ledger: TokenLedger) -> None:
        """`wall` is epoch seconds; all else goes by the loop's clock."""
        self._book, self._wall, self._ledger = book, wall, ledger
        self._theirs = TokenLedger(inf, MinutePhase())
        self._open: dict[int, tuple[Charge, Charge]] = {}  # sends that may still be settled
        self._heard: dict[str, float] = {}  # of each other run
        self._gone: set[str] = set()  # of them: ended, or killed
        self._looked_at = self._settled_at = self._asked_at = -inf

    def recent(self, now: float) -> list[float]:
        """Charge what all runs have sent in the last two minutes; returns when."""
        return self._charge(self._book.recent(self._wall()), now)

    def news(self, now: float) -> list[float]:
        """Charge what others have sent and settled since the last time; returns when they sent."""
        if not self._heard and now - self._looked_at < GROUP_S:
            return []
        self._looked_at = now
        times = self._charge(self._book.news(), now)
        for ask in self._book.asked:
            self._hear(ask.who, self._loop_time(ask.at, now))
        if self._open and now - self._settled_at >= SETTLE_S:
            self._settled_at = now
            self._settle(now)
            self._gone.update(who for who in self._heard if not self._book.lives(who))
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
        since = self._wall() - ASKED_FOR_S
        most = min((ask.most for ask in self._book.asked if ask.at > since), default=inf)
        if most == inf:
            return inf
        used, ours = self._used(now)
        return most - used if ours > self._fair else inf

    @property
    def _fair(self) -> float:
        return self._ledger.limit / (1 + len(self._heard))

    def _used(self, now: float) -> tuple[int, int]:
        """Tokens of the last minute, of all runs and of this one."""
        used = self._ledger.last_minute(now)[1]
        return used, used - self._theirs.last_minute(now)[1]

    def _charge(self, sends: Iterable[Send], now: float) -> list[float]:
        times = []
        for send in sends:
            at = self._loop_time(send.at, now)
            times.append(at)
            charge, theirs = self._ledger.reserve(at, send.tokens), self._theirs.reserve(at, send.tokens)
            self._ledger.settle(charge, None)
            self._theirs.settle(theirs, None)
            if send.who:
                self._open[send.number] = charge, theirs
                self._hear(send.who, at)
        return times

    def _settle(self, now: float) -> None:
        """Correct what others reserved by what they were charged in the end; a refund is gone."""
        tokens = self._book.tokens_since(min(self._open))
        for number, (charge, theirs) in list(self._open.items()):
            settled = tokens.get(number, 0)
            if settled != charge.tokens:
                self._ledger.correct(charge, settled)
                self._theirs.correct(theirs, settled)
            elif charge.at > now - WINDOW_S:
                continue
            del self._open[number]

    def _loop_time(self, at: float, now: float) -> float:
        """What the loop's clock said at `at`, in epoch seconds."""
        return now - max(0.0, self._wall() - at)

    def _hear(self, who: str, at: float) -> None:
        if who not in self._gone:
            self._heard[who] = max(at, self._heard.get(who, at))
