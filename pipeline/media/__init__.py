"""Images, sound, video and PDFs as a prompt has them: what they are by their bytes, how large, how many tokens."""

from pipeline.media.forms import TAKEN, form_of
from pipeline.media.sizes import UNSEEN, Facts, facts_of
from pipeline.media.tokens import tokens_by_rule

__all__ = ["TAKEN", "UNSEEN", "Facts", "facts_of", "form_of", "tokens_by_rule"]
