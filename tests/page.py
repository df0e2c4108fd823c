"""Writes tests/python_page.py, the examples of docs/python.md as one module that mypy checks: `… tests/page.py`."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
MODULE = Path(__file__).parent / "python_page.py"


def examples() -> str:
    """The blocks of the page, one after the other."""
    found = re.findall(r"```python\n(.*?)\n```", PAGE.read_text("utf-8"), re.DOTALL)
    return '"""The examples of docs/python.md, written by tests/page.py."""\n\n' + "\n\n\n".join(found) + "\n"


if __name__ == "__main__":
    MODULE.write_text(examples(), "utf-8")
