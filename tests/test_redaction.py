"""What must not be sent: what is found, what stands in its place, and that nothing else leaves the machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import anyio
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from serving import served, stats
from sessions import run_through
from test_flows import Service, run

from jobs import CHUNKED, PLAIN, Sections, make_job
from pipeline import estimating
from pipeline.errors import JobError
from pipeline.estimating import Wishes
from pipeline.flows.redacting import redacted
from pipeline.job import Job
from pipeline.records import Document
from pipeline.redaction import KINDS, Hidden, Redactor, restored, restored_json
from pipeline.run import prepare
from pipeline.run.prepare import Options
from pipeline.sections.redacting import HiddenKind
from pipeline.values import Exact, Fields, Items, parsed

ALL = Redactor(tuple(KINDS))
RSA = "RSA PRIVATE KEY"


def hide(text: str, redactor: Redactor = ALL) -> str:
    return Hidden(redactor, [text]).text(text)


# ---- what is found


def test_the_kinds_are_those_that_a_job_may_name() -> None:
    assert tuple(KINDS) == get_args(HiddenKind)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("email", "ann@example.com"),
        ("email", "a.b+c_d%e@mail.example.co.uk"),
        ("email", "josé@münchen.de"),
        ("email", "zhang＠qq．com"),
        ("email", "user@10.0.0.1"),
        ("phone", "13812345678"),
        ("phone", "138-1234-5678"),
        ("phone", "138 1234 5678"),
        ("phone", "+86 13812345678"),
        ("phone", "008613812345678"),
        ("phone", "8613812345678"),
        ("phone", "１３８１２３４５６７８"),
        ("phone", "+49 (0)30 1234567"),
        ("phone", "+1-202-555-0143"),
        ("phone", "(202) 555-0143"),
        ("phone", "+683 7012"),
        ("phone", "202-555-0143"),
        ("phone", "010-12345678"),
        ("phone", "(0571) 87654321"),
        ("phone", "+٤٤ ٢٠ ٧٩٤٦ ٠٩٥٨"),
        ("cn_id", "11010519491231002X"),
        ("cn_id", "11010519491231002x"),
        ("cn_id", "440524188001010014"),
        ("cn_id", "110105 19491231 002X"),
        ("card", "4111111111111111"),
        ("card", "4111 1111 1111 1111"),
        ("card", "4111-1111-1111-1111"),
        ("card", "3782 822463 10005"),
        ("card", "5555555555554444"),
        ("card", "630495261368"),
        ("card", "180065050260541"),
        ("card", "6222021234567890128"),
        ("api_key", "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
        ("api_key", "AQ.Ab8RN6Kabcdefghijk"),
        ("api_key", "sk-proj-abcdefghijklm0123456789"),
        ("api_key", "ghp_0123456789abcdefghijABCDEFGHIJ012345"),
        ("api_key", "AKIAIOSFODNN7EXAMPLE"),
        ("api_key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"),
        ("api_key", f"-----BEGIN {RSA}-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128\n\nMIIE\n-----END {RSA}-----"),
        ("ip", "192.168.0.1"),
        ("ip", "2001:db8::8a2e:370:7334"),
        ("ip", "::ffff:10.1.2.3"),
        ("iban", "DE89370400440532013000"),
        ("iban", "GB82 WEST 1234 5698 7654 32"),
        ("iban", "NO93 8601 1117 947"),
        ("iban", "TL380080012345678910157"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "是{}。", "see {}, or not", "({})", "“{}”", "联系{}吧"])
def test_what_is_found_and_nothing_around_it(kind: str, value: str, around: str) -> None:
    assert hide(around.format(value), Redactor((kind,))) == around.format(f"[{kind.upper()}_1]")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "at 10 @ 5 each, @ann, ann@, ann@localhost, @example.com"),
        ("phone", "938123456781 and 138123456789 and 0.13812345678"),
        ("phone", "2026-11-29 12:30:45, 1,234,567.89, 12345678"),
        ("phone", "4111111111111111 and 11010519491231002X"),
        ("cn_id", "110105194912310021"),  # its check character is X
        ("cn_id", "11010519491331002X and 1110105194912310028"),
        ("card", "4111111111111112 and 41111111111111111111 and 9111111111111111"),
        ("card", "1 4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
        ("api_key", "risk-management-of-something-2, sk-learn-tutorial-for-all, AIza, eyJ"),
        ("ip", "999.1.1.1, 1.2.3, 1.2.3.4.5, 12:30:45, std::dec, a::b, 10:20"),
        ("iban", "DE89370400440532013001 and IN20 people went to the market yesterday"),
    ],
)
def test_what_only_looks_like_one_stays(kind: str, text: str) -> None:
    assert hide(text, Redactor((kind,))) == text


@given(st.integers(20, 60).flatmap(lambda n: st.text("0123456789", min_size=n, max_size=n)))
def test_nothing_is_found_within_a_longer_number(number: str) -> None:
    assert hide(f"a {number} b") == f"a {number} b"


@given(st.text("0123456789", min_size=17, max_size=17))
def test_one_of_eleven_check_characters_is_right(digits: str) -> None:
    born = digits[:6] + "19900307" + digits[14:]
    assert sum(hide(born + last, Redactor(("cn_id",))) == "[CN_ID_1]" for last in "0123456789X") == 1


def test_what_overlaps_is_hidden_as_one() -> None:
    patterns = (("id", re.compile("ab+c")), ("code", re.compile("c[0-9]+d")))
    assert hide("xabbc123dy", Redactor((), patterns)) == "x[CODE_1]y"
    assert hide("user@10.0.0.1", ALL) == "[EMAIL_1]"
    assert hide("abbc, c1d", Redactor((), patterns)) == "[ID_1], [CODE_1]"


@pytest.mark.parametrize("unseen", ["\u200b", "\u2060", "\u00ad", "\ufeff", "\ufe0f", "\U000e0020"])
def test_a_character_that_nobody_sees_parts_nothing(unseen: str) -> None:
    for value, name in (("13800138000", "PHONE"), ("a@b.com", "EMAIL"), ("11010519491231002X", "CN_ID")):
        hidden = Hidden(ALL, [parted := unseen.join(value)])
        assert hidden.text(f"x {parted} y") == f"x [{name}_1] y" and hidden.values == {f"[{name}_1]": parted}
    assert hide(f"A{unseen}nn Lee", Redactor((), (("who", re.compile("Ann")),))) == "[WHO_1] Lee"
    assert hide(f"13800138000{unseen}13900139000") == "[PHONE_1]" + unseen + "[PHONE_2]"
    assert hide(f"12{unseen}3") == f"12{unseen}3"


@pytest.mark.parametrize("piece", ["11010519491231002X", "13800138000.", ".8613800138000", "4111111111111111 "])
def test_one_behind_another_without_an_end(piece: str) -> None:
    assert not re.search(r"\d{3}", hide(piece * 3_000))


def test_a_long_text_takes_a_time_in_proportion() -> None:
    for piece in (
        "a",
        "@",
        "a@",
        "1",
        "1 ",
        "4111 ",
        "a.",
        ":",
        "0:",
        "AIza",
        "-----BEGIN PRIVATE KEY-----",
        "sk-",
        "张",
        "+1 ",
    ):
        hide(piece * (300_000 // len(piece)))


# ---- what stands in its place

VALUES = st.sampled_from(
    [
        "ann@example.com",
        "bob@example.com",
        "13812345678",
        "+86 13812345678",
        "4111 1111 1111 1111",
        "11010519491231002X",
        "192.168.0.1",
        "2001:db8::1",
        "DE89370400440532013000",
        "AKIAIOSFODNN7EXAMPLE",
        "[EMAIL_1]",
        "[PHONE_2]",
        "[",
        "]",
        "_1]",
        "1",
        ".",
        "@",
        " ",
        "汉字",
    ]
)
TEXTS = st.lists(VALUES | st.text(max_size=5), max_size=12).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=4))
@example(["a@b.cc13812345678", "[EMAIL_1]"])
@example(["1ann@example.com4111111111111111"])
def test_nothing_survives_and_all_of_it_comes_back(texts: list[str]) -> None:
    hidden = Hidden(ALL, texts)
    shown = [hidden.text(text) for text in texts]
    assert [piece for text in shown for piece in ALL.find(text)] == []
    assert len(set(hidden.values.values())) == len({*hidden.values})
    for text, was in zip(shown, texts, strict=True):
        assert json.loads(restored_json(json.dumps(text, ensure_ascii=False), hidden.values)) == was
        if was.lstrip()[:1] not in ("{", "["):
            assert restored(text, hidden.values) == was


@given(TEXTS)
def test_a_row_is_hidden_the_same_way_each_time(text: str) -> None:
    first, second = Hidden(ALL, [text]), Hidden(ALL, [text])
    assert first.text(text) == second.text(text)
    assert first.values == second.values


def test_a_value_has_one_placeholder_in_all_columns_and_others_have_their_own() -> None:
    hidden = Hidden(ALL, [])
    assert hidden.text("a@x.com, b@x.com, a@x.com") == "[EMAIL_1], [EMAIL_2], [EMAIL_1]"
    assert hidden.text("b@x.com or 13812345678") == "[EMAIL_2] or [PHONE_1]"
    assert hidden.counts == {"email": 4, "phone": 1}


def test_what_looks_like_a_placeholder_is_not_taken_for_one() -> None:
    texts = ["Write [EMAIL_1] as it stands: a@x.com"]
    hidden = Hidden(ALL, texts)
    assert hidden.text(texts[0]) == "Write [EMAIL_1] as it stands: [EMAIL_2]"
    assert (
        restored("To [EMAIL_2], not [EMAIL_1] or [EMAIL_3]", hidden.values) == "To a@x.com, not [EMAIL_1] or [EMAIL_3]"
    )


def test_a_cell_is_hidden_at_any_depth_and_in_any_type() -> None:
    hidden = Hidden(ALL, [])
    cells: dict[str, Any] = {
        "number": 13812345678,
        "float": 13812345678.0,
        "exact": Exact("4111111111111111"),
        "items": Items(["a@x.com", 7]),
        "fields": Fields({"a@x.com": Items([Fields({"mail": "b@x.com"})])}),
        "json": parsed('{"mail": "a\\u0040x.com", "n": 1.50}'),
    }
    shown = {name: hidden.value(value) for name, value in cells.items()}
    assert {name: str(value) for name, value in shown.items()} == {
        "number": "[PHONE_1]",
        "float": "[PHONE_1]",
        "exact": "[CARD_1]",
        "items": "['[EMAIL_1]', 7]",
        "fields": "{'[EMAIL_1]': [{'mail': '[EMAIL_2]'}]}",
        "json": '{"mail": "[EMAIL_1]", "n": 1.50}',
    }
    for same in (None, True, 7, 0.5, Exact("1.50"), Items([1]), parsed('{"a":  1}'), "text"):
        assert hidden.value(same) is same


def test_a_value_within_a_json_answer_is_written_as_json() -> None:
    hidden = Hidden(Redactor((), (("name", re.compile('Ann "A" Lee')),)), [])
    assert hidden.text('Ann "A" Lee') == "[NAME_1]"
    assert json.loads(restored('{"who": "[NAME_1]"}', hidden.values)) == {"who": 'Ann "A" Lee'}
    assert restored("[NAME_1] it is", hidden.values) == 'Ann "A" Lee it is'


# ---- in a job

HIDING: Sections = {
    **PLAIN,
    "prompt": {"template": "{{ name }}: {{ note }}"},
    "redact": {"kinds": ["email", "phone"], "patterns": {"name": r"Ann\s\w+"}},
}


def test_every_column_and_the_text_is_hidden_before_it_is_rendered(tmp_path: Path) -> None:
    job = make_job(tmp_path, {**CHUNKED, "redact": HIDING["redact"]}, prompt={"template": "{{ who }}: {{ text }}"})
    service = Service()
    body = "Ann Lee has 13812345678. " + "A sentence without a number. " * 60 + "Write to ann@example.com."
    answer = run(job, Document(0, "0", Fields({"who": "Ann Lee"}), body), service)
    sent = "\n".join(prompt.text for prompt in service.asked)
    assert "[NAME_1]: [NAME_1] has [PHONE_1]." in sent and "[EMAIL_1]" in sent
    assert not re.search("Ann Lee|138|example", sent)
    assert json.loads(answer.final.extras)["redacted"] == {"name": 2, "phone": 1, "email": 1}


def test_a_conversation_and_turns_are_hidden_whatever_escapes_they_are_written_with(tmp_path: Path) -> None:
    talk = '[{"role": "user", "content": "I am a\\u0040x.com"}, {"role": "assistant", "content": "Hi a@x.com"}]'
    job = make_job(
        tmp_path,
        HIDING,
        input={"messages": "talk"},
        prompt={"template": None, "flow": "conversation", "turns_column": "more"},
    )
    service = Service()
    run(job, Document(0, "0", Fields({"talk": talk, "more": '["Call 138\\u0031 2345678"]'})), service)
    assert [turn.text for turn in service.asked[0].content] == ["I am [EMAIL_1]", "Hi [EMAIL_1]", "Call 1381 2345678"]
    run(job, Document(0, "0", Fields({"talk": talk, "more": '["Call 138\\u00312345678"]'})), service)
    assert service.asked[1].content[-1].text == "Call [PHONE_1]"


@pytest.mark.parametrize("levels", [100, 900, 100_000])
def test_a_conversation_that_is_nested_without_an_end_is_not_sent(tmp_path: Path, levels: int) -> None:
    odd = f'{{"role": "user", "content": "a\\u0040x.com", "more": {"[" * levels}{"]" * levels}}}'
    job = make_job(tmp_path, HIDING, input={"messages": "talk"}, prompt={"template": None})
    service = Service()
    answer = run(job, Document(0, "0", Fields({"talk": f"[{odd}]"})), service)
    assert (answer.final.status, answer.final.error_kind) == ("invalid", "invalid_messages") and not service.asked


@pytest.mark.parametrize(
    ("redact", "why"),
    [
        ({}, "it names neither kinds nor patterns"),
        ({"kinds": ["mail"]}, "[redact] kinds.0"),
        ({"patterns": {"a": "("}}, "a is no regular expression"),
        ({"patterns": {"a": "x*"}}, "a finds nothing at all in an empty text"),
        ({"patterns": {"Ab": "x"}}, '"Ab" is no name'),
        ({"kinds": ["ip"], "patterns": {"ip": "x"}}, "ip is a kind and a pattern"),
    ],
)
def test_a_section_that_would_not_do_what_it_says_is_refused(tmp_path: Path, redact: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError) as wrong:
        make_job(tmp_path, redact=redact)
    assert why in str(wrong.value)


def test_files_are_refused_beside_it(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="what a file shows or says would be sent as it is"):
        make_job(tmp_path, HIDING, input={"image": "picture"})


def test_what_is_hidden_makes_another_job_and_whether_it_is_put_back_does_not(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"kinds": ["email"]}, {"patterns": {"name": "Bob"}}]
    assert len({make_job(tmp_path, HIDING, redact=change).fingerprint for change in changes}) == 3
    assert make_job(tmp_path, HIDING, redact={"restore": True}).fingerprint == make_job(tmp_path, HIDING).fingerprint
    assert "redact" not in make_job(tmp_path).identity


# ---- whole runs

SECRETS = ("ann@example.com", "13812345678", "Ann Lee", "bob@example.com")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    rows = [
        {"name": "Ann Lee", "note": "ann@example.com and 13812345678 and ann@example.com"},
        {"name": "Bob", "note": "bob@example.com"},
        {"name": "Eve", "note": "nothing"},
    ]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def hiding(here: Path, url: str, suffix: str = ".jsonl", **sections: Any) -> Job:
    common: Sections = {
        "input": {"path": "notes.jsonl"},
        "limits": {"rpm": 0, "tpm": 0},
        "endpoint": {"base_url": url},
        "output": {"path": f"out{suffix}"},
    }
    return make_job(here, {**HIDING, **common}, **sections)


def kept(directory: Path) -> Iterator[str]:
    """All that a run keeps, as text."""
    for path in directory.rglob("*"):
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
            yield str(frame.to_dicts())
        elif path.is_file():
            yield path.read_bytes().decode("utf-8", "replace")


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_nothing_of_it_is_sent_or_kept_and_the_answers_have_it_back_where_that_is_asked(
    here: Path, restore: bool, suffix: str
) -> None:
    with served(model_version=None) as url:
        job = hiding(here, url, suffix, redact={"restore": restore})
        planned = anyio.run(estimating.estimate, prepare.prepare(job, Options()), Wishes()).plan
        session = prepare.prepare(job, Options())
        ended = run_through(session)
        assert stats(url)["answered"] == 3
    assert ended.stopped is None and planned.prompts.expected == 3
    everything = "\n".join(kept(session.directory))
    assert "[EMAIL_1]" in everything and "[NAME_1]" in everything
    assert [secret for secret in SECRETS if secret in everything] == []
    read: Any = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}[suffix]
    out = read(f"out{suffix}")
    counts = [json.loads(each) for each in out["redacted"]] if suffix == ".csv" else out["redacted"].to_list()
    assert counts == [
        {"email": 2, "phone": 1, "name": 1},
        {"email": 1, "phone": 0, "name": 0},
        {"email": 0, "phone": 0, "name": 0},
    ]
    first, second, _ = out["response"]
    assert ("Ann Lee" in first, "bob@example.com" in second) == (restore, restore), out["response"]
    assert ("[NAME_1]" in first, "[EMAIL_1]" in second) == (not restore, not restore)
    assert out["note"][0].startswith("ann@example.com"), "the input's own columns are as they were"


def test_answers_are_restored_afterwards_and_nothing_is_bought_for_it(here: Path) -> None:
    with served(model_version=None) as url:
        run_through(prepare.prepare(hiding(here, url), Options()))
        assert "[EMAIL_1]" in pl.read_ndjson("out.jsonl")["response"][1]
        run_through(prepare.prepare(hiding(here, url, redact={"restore": True}), Options()))
        assert "bob@example.com" in pl.read_ndjson("out.jsonl")["response"][1]
        assert stats(url)["answered"] == 3


def test_answers_of_all_turns_are_restored_too(here: Path) -> None:
    with served(model_version=None) as url:
        prompt = {"template": None, "flow": "conversation", "turns": ["{{ note }}", "Again: {{ note }}"]}
        run_through(prepare.prepare(hiding(here, url, redact={"restore": True}, prompt=prompt), Options()))
    out = pl.read_ndjson("out.jsonl")
    assert all("bob@example.com" in each for each in out["answers"][1])


def test_a_row_that_ends_early_says_what_was_hidden(here: Path) -> None:
    with served(model_version=None, faults="block:1.0") as url:
        run_through(prepare.prepare(hiding(here, url), Options()))
    out = pl.read_ndjson("out.jsonl")
    assert out["status"].to_list() == ["blocked"] * 3
    assert out["redacted"].struct.field("email").to_list() == [2, 1, 0]


def test_an_id_that_would_be_hidden_is_refused_before_anything_is_kept(here: Path) -> None:
    (here / "notes.jsonl").write_text('{"note": "ann@example.com", "name": "Ann"}\n')
    with pytest.raises(JobError, match=r"the id of row 0 holds what \[redact\] hides \(email\)") as wrong:
        prepare.prepare(hiding(here, "http://127.0.0.1:9", input={"id": "note"}), Options(offline=True))
    assert "ann@" not in str(wrong.value)


def test_the_same_row_gives_the_same_placeholders_when_it_is_exported(tmp_path: Path) -> None:
    job = make_job(tmp_path, HIDING)
    document = Document(0, "0", Fields({"name": "Ann Lee", "note": "a@x.com, 13812345678"}))
    assert job.redactor
    once, again = (redacted(document, job, job.redactor) for _ in range(2))
    assert once[0] == again[0] and once[1].values == again[1].values
