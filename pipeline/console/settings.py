"""What is shown of the settings of a job file: all of them, a section, or one."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from pipeline.console.screen import out, show_columns, styled
from pipeline.job.settings import SectionAbout, Setting

SETTING_KEYS: Mapping[str, str] = {
    "name": "its section and its key, as `limits.rpm`",
    "key": "its key alone",
    "kind": "its type and range, in words",
    "required": "whether its section must have it",
    "default": "as TOML writes it; empty for none",
    "about": "what it is",
    "example": "lines of a job file",
    "page": "the page that has more of it",
}
"""Keys of each setting of `settings --json` and what they mean."""

_SENTENCE = re.compile(r"; |\. (?=[A-Z])")
_CLAUSE = re.compile(r": |, | \(")
_LONG = 70


def show_sections(sections: Iterable[SectionAbout]) -> None:
    """Every setting on a line, below the head of its section."""
    for section in sections:
        out.print(styled((section.head, "bold"), f"  {_brief(section.about.splitlines()[0])}"), indent=4)
        show_columns(out, [(each.key, "", _brief(each.about)) for each in section.settings])


def show_section(section: SectionAbout) -> None:
    """What it is for, and each of its settings with type and default."""
    out.print(styled((section.head, "bold"), f"  {section.about}\n"), indent=2)
    for each in section.settings:
        _show_head(each, each.key)
        out.print(f"    {each.about}", indent=4)
    if section.takes:
        out.print(f"\n  and every setting of [{section.takes}]")


def show_setting(setting: Setting) -> None:
    """One setting with an example."""
    _show_head(setting, setting.name)
    out.print(f"  {setting.about}\n", indent=2)
    for line in setting.example.splitlines():
        out.print(f"    {line}", indent=4)
    out.print(f"\n  more in {setting.page}", style="dim")


def settings_json(settings: Iterable[Setting]) -> list[dict[str, Any]]:
    """The same for a program."""
    return [asdict(each) for each in settings]


def _brief(about: str) -> str:
    """Its first sentence, or what of that fits on a line."""
    sentence = _SENTENCE.split(about)[0]
    fitting = [found.start() for found in _CLAUSE.finditer(sentence) if found.start() <= _LONG]
    return sentence[: fitting[-1]] if len(sentence) > _LONG and fitting else sentence


def _show_head(setting: Setting, name: str) -> None:
    default = "required" if setting.required else f"default {setting.default}" if setting.default else ""
    out.print(styled(f"  {name}   ", (f"{setting.kind}{'; ' * bool(default)}{default}", "dim")), indent=4)
