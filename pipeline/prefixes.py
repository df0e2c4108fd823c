"""What the prompts of a job begin with alike: what a service may keep for them in an explicit cache."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from pipeline.prompts import Content, Params, Prompt, Text, Tools
from pipeline.tokens import estimate


@dataclass(frozen=True)
class Prefix:
    """A system instruction, tools, and the turns that stand first."""

    system: str | None
    tools: Tools | None
    turns: Content = ()

    def begins(self, prompt: Prompt) -> bool:
        """Whether a prompt begins like this, and goes on."""
        params, first = prompt.params, len(self.turns)
        return (
            (params.system, params.tools) == (self.system, self.tools)
            and prompt.content[:first] == self.turns
            and len(prompt.content) > first
        )

    @cached_property
    def tokens(self) -> int:
        """Estimated tokens of its text."""
        texts = [part.text for turn in self.turns for part in turn.parts if isinstance(part, Text)]
        return sum(map(estimate, texts)) + (estimate(self.system) if self.system else 0)

    def digest(self, model: str) -> str:
        """A name of what is kept for a model, which does not tell it."""
        return blake2b(repr((model, self.system, self.tools, self.turns)).encode(), digest_size=16).hexdigest()


def prefix_of(params: Params, turns: Content) -> Prefix:
    """What prompts of these params begin with, and `turns` before what they ask."""
    return Prefix(params.system, params.tools, turns)
