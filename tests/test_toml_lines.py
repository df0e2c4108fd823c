"""The line of each key of a TOML file, whatever it is written like."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_docs import ALL, blocks

from pipeline.toml_lines import Place, lines_of

TEXTS = [path.read_text("utf-8") for path in Path(__file__).parent.parent.glob("jobs/*.toml")]
TEXTS += [block for text in ALL.values() for block in blocks(text, "toml")]


def places(value: Any, above: Place = ()) -> set[Place]:
    """Every key and item of what `tomllib` reads."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {place for key, each in items for place in ((*above, key), *places(each, (*above, key)))}


@pytest.mark.parametrize("text", TEXTS)
def test_every_key_of_our_jobs_has_its_line(text: str) -> None:
    found, lines = lines_of(text), text.splitlines()
    assert found.keys() == places(tomllib.loads(text))
    for place, line in found.items():
        assert isinstance(place[-1], int) or place[-1] in lines[line - 1], place


def test_the_line_is_right_in_every_form() -> None:
    text = r"""# [no]
a.b = 1
"q.x" = [1,
  2, # ]
  { k = "}", l = [
   3 ] },
]
[s]
t = '''
x = 1
[no]
'' '''
t2 = DDD
q \DDD y = 3
aDDD""
u = 'a#b' # c
v = 1979-05-27T07:32:00
[[p.e]]
i = 1
[[p.e]]
i = 2
[p.e.sub]
z = "a\"b"
[[p.e.f]]
w = '''
[n]
''''
last = 1
""".replace("DDD", '"""')
    assert lines_of(text) == {
        ("a",): 2,
        ("a", "b"): 2,
        ("q.x",): 3,
        ("q.x", 0): 3,
        ("q.x", 1): 4,
        ("q.x", 2): 5,
        ("q.x", 2, "k"): 5,
        ("q.x", 2, "l"): 5,
        ("q.x", 2, "l", 0): 6,
        ("s",): 8,
        ("s", "t"): 9,
        ("s", "t2"): 13,
        ("s", "u"): 16,
        ("s", "v"): 17,
        ("p",): 18,
        ("p", "e"): 18,
        ("p", "e", 0): 18,
        ("p", "e", 0, "i"): 19,
        ("p", "e", 1): 20,
        ("p", "e", 1, "i"): 21,
        ("p", "e", 1, "sub"): 22,
        ("p", "e", 1, "sub", "z"): 23,
        ("p", "e", 1, "f"): 24,
        ("p", "e", 1, "f", 0): 24,
        ("p", "e", 1, "f", 0, "w"): 25,
        ("p", "e", 1, "f", 0, "last"): 28,
    }
    assert lines_of(text.replace("\n", "\r\n")) == lines_of(text)


VALUES = st.sampled_from(
    [
        *(
            "1",
            "-1.5e3",
            "true",
            "1979-05-27",
            '"a # b"',
            "'['",
            '"\\""',
            "''",
            "[]",
            "{}",
            "[1, 2]",
            "{ x = 1, y.z = [{}] }",
        ),
        *(
            '"""\n[a]\nk = 1\n"""',
            "'''\n]\n'''",
            '"""\\""""""',
            "[\n# ]\n  1, [2,\n3],\n]",
            '[ { x = "}" },\n { x = 2 } ]',
        ),
    ]
)
PAIRS = st.lists(st.tuples(st.sampled_from(["", "\n", "# k = 1\n", " \t"]), VALUES), max_size=4)


@given(
    st.lists(
        st.tuples(st.sampled_from(["[{}]", "[ {} ] # c", "[[{}]]", '["{}"]', "[a.{}]", "[[b.{}]]"]), PAIRS), max_size=5
    )
)
def test_every_key_of_any_file_has_its_line(tables: list[tuple[str, list[tuple[str, str]]]]) -> None:
    text, begun = "", []
    for number, (head, pairs) in enumerate(tables):
        text += head.format(f"t{number}") + "\n"
        for key, (before, value) in enumerate(pairs):
            text += before
            begun.append((f"k{number}_{key}", text.count("\n") + 1))
            text += f"k{number}_{key} = {value}\n"
    found = lines_of(text)
    assert found.keys() == places(tomllib.loads(text))
    by_key = {place[-1]: line for place, line in found.items() if str(place[-1]).startswith("k")}
    assert {key: by_key[key] for key, _ in begun} == dict(begun)
