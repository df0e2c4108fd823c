"""What the answers say of who gave them: who answers for whom, in which lane, and what ends. Each is told once."""

from pipeline.events import ModelNoted, Notify, told_of
from pipeline.models import is_version_of
from pipeline.records import Reply
from pipeline.targets import Target


class ModelsMet:
    """The models that answered so far."""

    def __init__(self, heard: Notify) -> None:
        self._heard = heard
        self._known: set[tuple[str, str, str]] = set()  # asked, answered, fate
        self._without_flex: set[Target] = set()

    def note(self, target: Target, reply: Reply) -> None:
        """Heed one answer; a rehearsal's says nothing of the service."""
        if reply.emulated:
            return
        tell = told_of(target.name, self._heard)
        if target.lane == "flex" and reply.lane == "standard" and target not in self._without_flex:
            self._without_flex.add(target)
            tell(
                ModelNoted('what is asked in flex is answered in standard, at that price: lane = "flex" saves nothing')
            )
        met = target.model, reply.model, reply.fate
        if met in self._known:
            return
        self._known.add(met)
        if reply.model and not is_version_of(reply.model, target.model):
            priced = "" if target.rates else ", at its price"
            tell(ModelNoted(f"{reply.model} answers where {target.model} was asked{priced}"))
        if reply.fate:
            tell(ModelNoted(f"the service says that {reply.model or target.model} is {reply.fate}"))
