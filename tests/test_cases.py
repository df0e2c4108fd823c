"""Which test holds which case: inputs that once altered, lost or miscounted something without a word.

A test says so itself, `@pytest.mark.case("T1", "T2")`; this module finds the marks. `python tests/test_cases.py` prints
the list.
"""

import ast
from collections import defaultdict
from pathlib import Path

GROUPS = {"T": 16, "P": 6, "O": 8, "R": 11, "S": 10, "D": 17}
"""Tables, prompts, output and runs, replies, stops and places, durability and money: how many there are of each."""
CASES = {f"{group}{number}" for group, last in GROUPS.items() for number in range(1, last + 1)}


def covered() -> dict[str, list[str]]:
    """Number of a case → the tests that hold it, as `file::test`."""
    found = defaultdict(list)
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for number in _marks(function):
                    found[number].append(f"{path.name}::{function.name}")
    return found


def _marks(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [
        number.value
        for decorator in function.decorator_list
        for call in ast.walk(decorator)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "case"
        for number in call.args
        if isinstance(number, ast.Constant) and isinstance(number.value, str)
    ]


def test_every_case_is_held_by_a_test_and_every_mark_names_a_case() -> None:
    assert set(covered()) == CASES


if __name__ == "__main__":
    for number, tests in sorted(covered().items(), key=lambda item: (item[0][0], int(item[0][1:]))):
        print(number, *tests)
