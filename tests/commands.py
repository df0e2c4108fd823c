"""The command line, called as a shell would: the fixture `cli` gives `Ran`."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def small_job(
    here: Path, extra: str = "", template: str = "Say {{ word }}", model: str = "gemini-3.5-flash-lite"
) -> Path:
    """Six short rows, no limits but those in `extra`."""
    (here / "words.csv").write_text("word\nalpha\nbeta\ngamma\ndelta\nepsilon\nzeta\n")
    path = here / "small.toml"
    path.write_text(
        f'[input]\npath = "words.csv"\n[prompt]\ntemplate = "{template}"\n'
        f'[model]\nname = "{model}"\nmax_output_tokens = 50\n[output]\npath = "out.parquet"\n{extra}\n'
    )
    return path


UNLIMITED = "[limits]\nrpm = 0\ntpm = 0"
