"""Columns that are read out of answers, as the output has them."""

import polars as pl

from pipeline.answer_columns import AnswerColumn, expanded, moved

TOPICS = AnswerColumn("topics", pl.List(pl.String()), "what it is about", "response", lambda value: value["topics"])
QUERIES = AnswerColumn("queries", pl.List(pl.String()), "what was looked up", "extras", lambda value: value["queries"])

FRAME = pl.DataFrame(
    {
        "status": ["ok", "invalid", "pending", "ok"],
        "response": ['{"topics": ["a", "b"]}', "no JSON", None, '{"topics": []}'],
        "extras": [None, '{"queries": ["q"]}', None, '{"queries": null}'],
    }
)


def test_an_answer_is_read_where_it_is_whole_and_what_came_beside_it_wherever_it_did() -> None:
    topics, queries = expanded(FRAME, (TOPICS, QUERIES), ".parquet")
    assert topics.to_list() == [["a", "b"], None, None, []] and topics.dtype == pl.List(pl.String())
    assert queries.to_list() == [None, ["q"], None, None]


def test_a_csv_holds_what_is_nested_as_json() -> None:
    (topics,) = expanded(FRAME, (TOPICS,), ".csv")
    assert topics.to_list() == ['["a","b"]', None, None, "[]"] and topics.dtype == TOPICS.typed(".csv") == pl.String()
    assert TOPICS.typed(".jsonl") == pl.List(pl.String())


def test_what_came_beside_a_text_keeps_its_places_in_a_longer_or_shorter_one() -> None:
    extras = (
        '{"citations": [{"uri": "u", "start": 3, "end": 7}, {"uri": "v", "start": null, "end": null}], "code": ["x"]}'
    )
    on = moved(extras, 10)
    assert [(each["start"], each["end"]) for each in on["citations"]] == [(13, 17), (None, None)]
    assert on["code"] == ["x"] and moved("", 5) == {}
