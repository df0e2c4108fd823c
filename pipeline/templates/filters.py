"""What a template compares, orders and looks up, by value.

minijinja compares values of different kinds by the kind, so that a decimal is more than any number and null less; and
what has no such attribute it takes for nothing. These filters, tests and functions stand in the place of its own.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import localcontext
from operator import ge, gt, itemgetter, le, lt
from string import Formatter
from typing import Any

from pipeline.values import Exact, digits

ORDER: dict[str, Callable[[Any, Any], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
COMPARING = {"eq": "==", "equalto": "==", "ne": "!="}
COMPARING |= {"lt": "<", "lessthan": "<", "le": "<=", "gt": ">", "greaterthan": ">", "ge": ">="}
"""Tests that compare, each with its operator."""

_MISSING = object()
_DIGITS = 400
"""So many digits a sum has at most, and its text."""


class Unlike(Exception):
    """Values that cannot be compared, ordered or added. Arguments: the reason and, where it is known, the line."""


# ---- two values


def compare(line: int, name: str, left: object, right: object) -> bool:
    """`left` and `right` by an operator of a template. Raises `Unlike` for what has no order."""
    try:
        if name in ("in", "not-in"):
            return contains(right, left) == (name == "in")
        return ordered(name, left, right)
    except Unlike as error:
        raise Unlike(error.args[0], line) from None


def ordered(name: str, left: object, right: object) -> bool:
    """`left` and `right` by ==, != or an operator of `ORDER`; nothing is less or more than null."""
    if name not in ORDER:
        return (left == right) == (name == "==")
    if left is None or right is None:
        return False
    try:
        return ORDER[name](left, right)
    except TypeError:
        raise _of_two_kinds() from None


def contains(whole: object, part: object) -> bool:
    """Whether a text, a list or the keys of a mapping hold `part`."""
    if isinstance(whole, str):
        return part is not None and str(part) in whole
    if isinstance(whole, Mapping | list | tuple):
        return any(part == item for item in whole)
    raise Unlike(f"`in` looks into a text, a list or a mapping, and not into {_kind(whole)}")


# ---- tests


def _comparing(name: str) -> Callable[..., bool]:
    return lambda left, right: ordered(name, left, right)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Exact)


def is_whole(value: object) -> bool:
    """Whether it is one of our numbers, and whole."""
    return isinstance(value, Exact) and value.whole


def is_fraction(value: object) -> bool:
    """Whether it is one of our numbers, and not whole."""
    return isinstance(value, Exact) and not value.whole


def _divisible(value: object, by: object) -> bool:
    return _is_number(value) and _is_number(by) and bool(by) and number(value) % number(by) == 0


TESTS: dict[str, Callable[..., bool]] = {name: _comparing(operator) for name, operator in COMPARING.items()}
TESTS |= {name: _comparing(name) for name in (*ORDER, "==", "!=")}
TESTS |= {
    "in": lambda part, whole: whole is not None and contains(whole, part),
    "number": _is_number,
    "divisibleby": _divisible,
    "even": lambda value: _divisible(value, 2),
    "odd": lambda value: _divisible(value, 1) and not _divisible(value, 2),
}


# ---- filters


def _format(text: object, *values: object, **named: object) -> str:
    """`"%.2f"|format(x)`: Python's `%`; null is nothing."""
    return str(text) % ({name: _printed(value) for name, value in named.items()} or tuple(map(_printed, values)))


class _Printed(float):
    """A decimal that is a number to `%`."""

    text: str

    def __str__(self) -> str:
        return self.text


class Float:
    """A float on its way through minijinja, which gives Python 3 for 3.0."""

    def __init__(self, text: str) -> None:
        self.number = float(text)


def _given(value: object) -> object:
    return value.number if isinstance(value, Float) else value


def _printed(value: object) -> object:
    if not isinstance(value, Exact):
        return "" if value is None else _given(value)
    if value.whole:
        return value.number
    found = _Printed(value.text)
    found.text = value.text
    return found


def formatted(text: object, *values: object, **named: object) -> str:
    """`"{:.2f}".format(x)`: null is nothing, a mapping's keys are its attributes."""
    if not isinstance(text, str | Exact):  # what is undefined is none here
        raise Unlike(f"only a text has `format`, and not {_kind(text)}")
    given = {name: _given(value) for name, value in named.items()}
    return _Formatter().vformat(str(text), [_given(value) for value in values], given)


class _Formatter(Formatter):
    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        first, *path = re.split(r"[.\[]", field_name.replace("]", ""))
        value = self.get_value(int(first) if first.isdigit() else first, args, kwargs)
        for name in path:
            value = _at(value, name)
        if value is _MISSING:
            raise Unlike(f"`{{{field_name}}}` has no such attribute")
        return value, first

    def format_field(self, value: Any, format_spec: str) -> str:
        return format("" if value is None else value, format_spec)


def number(value: Any) -> Any:
    """A number that minijinja computes with in the place of a decimal; anything else as it is."""
    return value.number if isinstance(value, Exact) else value


def plain(values: Any, attribute: object = None, mixed: bool = False) -> bool:
    """Whether minijinja itself does right with these items, or this attribute of them: all its own.

    They are all of one kind too, if not `mixed`.
    """
    if isinstance(values, Mapping):
        values = [*values, *values.values()]
    items = list(values) if isinstance(values, Iterable) else []
    paths = [None] if attribute is None else str(attribute).split(",")
    found = [item if path is None else _at(item, path.strip()) for path in paths for item in items]
    if any(value is None or value is _MISSING or isinstance(value, Exact) for value in found):
        return False
    return mixed or len({isinstance(value, str) for value in found}) < 2


def numbers(values: Iterable[object] | None) -> list[object]:
    """A list with such numbers in it."""
    return [number(value) for value in _items(values)]


def each(values: Iterable[object] | None) -> list[object]:
    """What `join` is given: null is nothing."""
    return ["" if value is None else value for value in _items(values)]


def having(values: Any, attribute: object) -> Any:
    """The list itself. Raises `Unlike` when there are items and none of them has the attribute."""
    _pick(values, attribute)
    return values


def _pick(values: Any, attribute: object, default: object = _MISSING) -> list[object]:
    """`map(attribute=…)`: null for an item that does not have it. Raises `Unlike` when none has it."""
    found = [_at(item, attribute) for item in _items(values)]
    if default is not _MISSING:
        return [default if value is _MISSING else value for value in found]
    if found and all(value is _MISSING for value in found):
        raise Unlike(f"no item of the list has `{attribute}`")
    return [None if value is _MISSING else value for value in found]


def _sort(values: Any, reverse: bool = False, case_sensitive: bool = False, attribute: str | None = None) -> list[Any]:
    items = _items(values)
    columns = [_keys(items, path.strip()) for path in attribute.split(",")] if attribute else [items]
    ranks = [[rank(key, case_sensitive) for key in keys] for keys in zip(*columns, strict=True)]
    places = sorted(range(len(items)), key=ranks.__getitem__, reverse=bool(reverse))
    return [items[place] for place in places]


def _unique(values: Any, case_sensitive: bool = False, attribute: str | None = None) -> list[Any]:
    items = _items(values)
    found: dict[Any, Any] = {}
    for item, key in zip(items, _keys(items, attribute), strict=True):
        found.setdefault(rank(key, case_sensitive), item)
    return list(found.values())


class Group(Sequence[Any]):
    """A group of `groupby`: the pair of its value and its items, by name too."""

    def __init__(self, grouper: object, items: list[object]) -> None:
        self.grouper = grouper
        self.list = items

    def __getitem__(self, place: Any) -> Any:
        return (self.grouper, self.list)[place]

    def __len__(self) -> int:
        return 2

    def __repr__(self) -> str:
        return str((self.grouper, self.list))


_OF_GROUP = {"grouper": 0, "list": 1}


def _groupby(values: Any, attribute: str, default: object = _MISSING, case_sensitive: bool = False) -> list[Group]:
    items = _items(values)
    groups: dict[Any, Group] = {}
    for item, key in zip(items, _pick(items, attribute, default), strict=True):
        groups.setdefault(rank(key, case_sensitive), Group(key, [])).list.append(item)
    return [groups[key] for key in sorted(groups)]


def _dictsort(
    values: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
) -> list[tuple[Any, Any]]:
    if not isinstance(values, Mapping):
        raise Unlike(f"`dictsort` sorts a mapping, and not {_kind(values)}")
    if by not in ("key", "value"):
        raise Unlike("`dictsort` sorts by 'key' or by 'value'")
    items = list(values.items())
    return sorted(items, key=lambda item: rank(item[by == "value"], case_sensitive), reverse=bool(reverse))


def _extreme(choose: Callable[..., Any]) -> Callable[..., object]:
    def chosen(values: Any, case_sensitive: bool = False, attribute: str | None = None) -> object:
        items = _items(values)
        ranked = [(rank(key, case_sensitive), item) for key, item in zip(_keys(items, attribute), items, strict=True)]
        there = [pair for pair in ranked if pair[0] != rank(None, case_sensitive)]
        if len({order[0] for order, _ in there}) > 1:
            raise _of_two_kinds()
        return choose(there, key=itemgetter(0))[1] if there else None

    return chosen


def _sum(values: Any, attribute: str | None = None, start: Any = 0) -> object:
    found: list[Any] = [*_keys(_items(values), attribute)]
    for value in (*found, start):
        if not _is_number(value):
            raise Unlike(f"only numbers have a sum, and not {_kind(value)}")
    if not any(isinstance(value, Exact) for value in (*found, start)):
        return sum(found, start)
    with localcontext(prec=_DIGITS):
        total = sum(map(digits, found), digits(start))
    return Exact(f"{total:f}" if abs(total.adjusted()) < _DIGITS else str(total))


FILTERS: dict[str, Callable[..., object]] = {
    "sort": _sort,
    "unique": _unique,
    "groupby": _groupby,
    "dictsort": _dictsort,
    "min": _extreme(min),
    "max": _extreme(max),
    "map": _pick,
    "sum": _sum,
    "format": _format,
}


def rank(value: Any, case_sensitive: bool) -> tuple[Any, ...]:
    """Where a value stands in an order: null, numbers, texts, lists, mappings, and each other kind by itself."""
    if value is None:
        return (0,)
    if _is_number(value):
        return (1, value) if value == value else (2,)
    if isinstance(value, str):
        return (3, value if case_sensitive else value.lower())
    if isinstance(value, list | tuple):
        return (4, tuple(rank(item, case_sensitive) for item in value))
    if isinstance(value, Mapping):
        return (5, tuple((rank(key, True), rank(item, case_sensitive)) for key, item in value.items()))
    return (6, type(value).__name__, value)


def _items(values: Any) -> list[Any]:
    if values is None:
        return []
    if isinstance(values, Iterable) and not isinstance(values, Exact):
        return list(values)
    raise Unlike(f"{_kind(values)} is no list")


def _keys(items: Sequence[object], attribute: str | None) -> Sequence[object]:
    """What each item is known by: itself, or its attribute."""
    return items if attribute is None else _pick(items, attribute)


def _at(item: Any, attribute: object) -> Any:
    for name in str(attribute).split("."):
        if type(item) is list and name in _OF_GROUP and len(item) == len(_OF_GROUP):  # no list of a cell, see `Items`
            item = item[_OF_GROUP[name]]  # minijinja gives Python a group of its own as a pair
        elif isinstance(item, Mapping):
            item = item.get(name, _MISSING)
        elif isinstance(item, Sequence) and name.lstrip("-").isdigit():
            place = int(name)
            item = item[place] if -len(item) <= place < len(item) else _MISSING
        elif name.startswith("_") or isinstance(item, str | int | float | list | tuple | Exact):
            return _MISSING
        else:
            item = getattr(item, name, _MISSING)
        if item is _MISSING:
            return item
    return item


def _of_two_kinds() -> Unlike:
    return Unlike("values of two kinds are compared: `|int`, `|float` or `|string` makes them alike")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    kinds = {"a number": int | float | Exact, "a text": str, "a list": list | tuple, "a mapping": Mapping}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), type(value).__name__)
