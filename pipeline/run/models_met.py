"""What the answers say of the models that gave them: who answers for whom, and which of them end. Each is told once."""

from pipeline.events import ModelNoted, Notify, told_of
from pipeline.models import is_version_of
from pipeline.records import Reply
from pipeline.targets import Target


class ModelsMet:
    """The models that answered so far."""

    def __init__(self, heard: Notify) -> None:
        self._heard = heard
        self._known: set[tuple[str, str, str]] = set()  # asked, answered, fate

    def note(self, target: Target, reply: Reply) -> None:
        """Heed one answer; a rehearsal's says nothing of the service."""
        met = target.model, reply.model, reply.fate
        if reply.emulated or met in self._known:
            return
        self._known.add(met)
        tell = told_of(target.name, self._heard)
        if reply.model and not is_version_of(reply.model, target.model):
            priced = "" if target.rates else ", at its price"
            tell(ModelNoted(f"{reply.model} answers where {target.model} was asked{priced}"))
        if reply.fate:
            tell(ModelNoted(f"the service says that {reply.model or target.model} is {reply.fate}"))
