"""`pipeline settings`: what a job file may say."""

import sys
from typing import Annotated

import typer

from pipeline.cli.completing import setting_names
from pipeline.cli.flags import Json
from pipeline.errors import JobError


def settings(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="a section, as limits, or a setting, as limits.rpm or rpm; default: all",
            autocompletion=setting_names,
        ),
    ] = None,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="print the JSON Schema of a job file, for editors: `> job.schema.json`"),
    ] = False,
    json: Json = False,
) -> None:
    """What a job file may say.

    Each setting with its type, its default and an example. With --schema as JSON Schema: where the first line of a job
    file is `#:schema job.schema.json`, an editor that knows TOML completes and explains its settings, and underlines
    what is none.
    """
    from pipeline import console
    from pipeline.job.settings import close_to, section_called, sections, settings_called

    if schema:
        from pipeline.job.schema import schema_text

        if name is not None:
            raise JobError("--schema prints that of a whole job file", "leave the name out")
        sys.stdout.buffer.write(schema_text().encode())
        sys.stdout.flush()
        return
    section = section_called(name) if name else None
    found = section.settings if section else settings_called(name or "")
    if name and not found:
        close = close_to(name)
        hint = "`pipeline settings` lists all"
        if close:
            hint = f"did you mean {', '.join(close)}? `pipeline settings` lists all"
        raise JobError(f"{name} is no setting and no section", hint)
    if json:
        every = found if name else [each for each_section in sections() for each in each_section.settings]
        console.show_json(console.settings_json(every))
    elif section:
        console.show_section(section)
    elif name:
        for each in found:
            console.show_setting(each)
    else:
        console.show_sections(sections())
