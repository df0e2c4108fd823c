"""What is to be done with an input where nobody says it, and why."""

from pipeline.errors import JobError
from pipeline.starting.profile import LONG_TOKENS, Column, Profile
from pipeline.starting.words import Task


def chosen(profile: Profile) -> tuple[Task, str]:
    """What fits a table best, and why, in one line."""
    column = profile.texts[0] if profile.texts else None
    if profile.media and (column is None or column.tokens < LONG_TOKENS):
        return "images", f"`{profile.media.name}` holds files"
    if column is None:
        return "generate", "no column holds running text"
    # Numbers and times have many tokens, and say little: a review with its date and order is a review all the same.
    said = (each for each in profile.columns if each.sort not in ("number", "time", "truth"))
    if 2 * column.tokens * column.filled < sum(each.tokens * each.filled for each in said):
        return "generate", "no column holds half of what stands in a row"
    if column.tokens >= LONG_TOKENS:
        return "summarize", f"`{column.name}` holds long texts, some {column.tokens:,.0f} tokens in the mean"
    return "classify", f"`{column.name}` holds short texts, some {column.tokens:,.0f} tokens in the mean"


def text_of(profile: Profile, task: Task, named: str | None = None) -> Column | None:
    """The column that is asked about; None where it is all of them. Raises `JobError` for one that cannot be."""
    if named is None:
        return profile.texts[0] if profile.texts and task not in ("generate", "images") else None
    column = next((each for each in profile.columns if each.name == named), None)
    if column is None:
        names = ", ".join(each.name for each in profile.columns[:20])
        raise JobError(f"--text {named} is not a column of the table", f"it has {names}")
    if not column.is_text:
        raise JobError(f"--text {named}: that column holds no text", "name one that does, or leave --text out")
    if task in ("generate", "images"):
        raise JobError(f"--text is not for the template {task}", "leave it out, or name another --template")
    return column


def check_task(profile: Profile, task: Task, path: str) -> None:
    """Raise `JobError` for what cannot be done with such a table."""
    if task == "images" and profile.media is None:
        raise JobError(
            f"--template images: no column of {path} holds files, or paths of files that are there",
            "paths start from the folder of the table; for a folder of files: `pipeline init FOLDER`",
        )
    if task != "images" and profile.media and not any(_says_something(each) for each in profile.columns):
        raise JobError(
            f"--template {task} is about texts, and {path} has files alone",
            "`--template images` asks about files; write there what you want to know",
        )
    if task != "images" and not any(each.sort != "bytes" for each in profile.columns):
        raise JobError(f"no column of {path} can stand in a prompt: they are all bytes", "write a column as text")


def _says_something(column: Column) -> bool:
    return column.media is None and column.sort not in ("bytes", "nothing")
