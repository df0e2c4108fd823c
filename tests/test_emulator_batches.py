"""The emulator's batches: what they are told as, how their time passes, what they may not, and who they belong to."""

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
from batching import MODEL, NOON, Service, keys, line, text_of, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.emulator import Emulator, EmulatorOptions
from pipeline.emulator.batches import ENDED, Fate, course_of, fate_of, turn_of

SECONDS = st.floats(0, 1e6)
TIMES = re.compile(r"2026-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")


# ---- what is told


def test_a_batch_is_told_in_the_shapes_that_were_recorded() -> None:
    service = Service()
    file = service.upload(line("a"), line("b"))
    pending = service.create(file, "label-1").json()
    name = pending["name"]
    assert re.fullmatch(r"batches/[a-z0-9]{36}", name)
    times = [pending["metadata"].pop(field) for field in ("createTime", "updateTime")]
    assert all(map(TIMES.fullmatch, times))
    kind = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
    metadata = {
        "@type": kind,
        "model": f"models/{MODEL}",
        "displayName": "label-1",
        "inputConfig": {"fileName": file},
        "batchStats": {"requestCount": "2", "pendingRequestCount": "2"},
        "state": "BATCH_STATE_PENDING",
        "name": name,
    }
    assert pending == {"name": name, "metadata": metadata}
    service.now += 15
    assert service.state(name) == "RUNNING"
    service.now += 16
    done = service.get(name)
    assert TIMES.fullmatch(done["metadata"].pop("endTime"))
    assert done["metadata"].pop("createTime") == times[0]
    output = {"responsesFile": f"files/batch-{name.removeprefix('batches/')}"}
    assert done == {
        "name": name,
        "metadata": metadata
        | {
            "output": output,
            "batchStats": {"requestCount": "2", "successfulRequestCount": "2"},
            "state": "BATCH_STATE_SUCCEEDED",
        },
        "done": True,
        "response": {"@type": f"{kind}Output", **output},
    }


def test_requests_inline_are_answered_inline_with_their_metadata() -> None:
    service = Service()
    requests = [
        {"request": {"contents": [{"parts": [{"text": f"Say {key}."}]}]}, "metadata": {"key": key}} for key in "ab"
    ]
    body = {"batch": {"displayName": "inline", "inputConfig": {"requests": {"requests": requests}}}}
    created = service.ask("POST", f"/v1beta/models/{MODEL}:batchGenerateContent", json=body).json()
    assert "inputConfig" not in created["metadata"]
    service.now += 31
    done = service.get(created["name"])
    results = done["response"]["inlinedResponses"]["inlinedResponses"]
    assert done["metadata"]["output"]["inlinedResponses"]["inlinedResponses"] == results
    assert [(each["metadata"], text_of(each["response"])) for each in results] == [
        ({"key": "a"}, "Say a."),
        ({"key": "b"}, "Say b."),
    ]


def test_a_line_is_answered_as_the_same_request_is_live_and_counted() -> None:
    service = Service(rpm=1, tpm=100)
    config = {"maxOutputTokens": 40, "responseMimeType": "application/json"}
    lines = [line(key, f"Is {key} well? " * 10, generationConfig=config) for key in keys(20)]
    name = service.created(*lines)
    service.now += 31
    results = service.results(name)
    assert [each["key"] for each in results] == keys(20)
    request = {
        "contents": [{"parts": [{"text": "Is k0 well? " * 10}]}],
        "generationConfig": config,
    }
    live = service.ask("POST", f"/v1beta/models/{MODEL}:generateContent", json=request).json()
    batched = results[0]["response"]
    for body in (live, batched):
        del body["responseId"]
    assert live["usageMetadata"].pop("serviceTier") == "standard"
    assert live == batched
    stats = service.stats()
    assert stats["requests"] == 1 and stats["rate_limited"] == 0
    assert stats["batches"]["lines_billed"] == 20
    assert stats["bought_twice"] == 1  # of both lanes
    assert set(stats["lines"].values()) == {1}


def test_a_line_that_the_model_refuses_is_an_error_of_its_own() -> None:
    service = Service()
    name = service.created(line("good"), line("empty", contents=[]), line("odd", thinking_config={}), b"no json\n")
    service.now += 31
    assert service.get(name)["metadata"]["batchStats"] == {
        "requestCount": "4",
        "successfulRequestCount": "1",
        "failedRequestCount": "3",
    }
    good, empty, odd, other = service.results(name)
    assert text_of(good["response"]) == "Say good."
    assert empty["error"]["code"] == odd["error"]["code"] == 3
    assert 'Unknown name "thinking_config"' in odd["error"]["message"]
    assert "key" not in other
    assert service.stats()["batches"]["lines_billed"] == 1


def test_batches_are_listed_newest_first_over_pages_and_without_results() -> None:
    service = Service()
    names = [service.created(line("a"), label=f"n{number}") for number in range(7)]
    service.now += 31
    first = service.ask("GET", "/v1beta/batches?pageSize=3").json()
    newer = service.created(line("a"))  # in between: no page shifts by it
    shown = [each["name"] for each in first["operations"]]
    while token := first.get("nextPageToken"):
        first = service.ask("GET", f"/v1beta/batches?pageSize=3&pageToken={token}").json()
        shown += [each["name"] for each in first["operations"]]
    assert shown == names[::-1]
    told = service.listed()
    assert [each["name"] for each in told] == [newer, *names[::-1]]
    assert told[1]["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert "response" not in told[1] and "output" not in told[1]["metadata"]
    assert service.ask("GET", "/v1beta/batches?pageSize=0").status_code == 200
    assert service.ask("GET", "/v1beta/batches?pageToken=x").status_code == 400


def test_results_are_downloaded_as_often_as_one_likes_until_they_end_and_not_deleted() -> None:
    service = Service()
    name = service.created(line("a"), line("b"))
    service.now += 31
    answer = service.download(name)
    assert answer.headers["content-length"] == str(len(answer.content))
    assert texts(service.results(name)) == {"a": "Say a.", "b": "Say b."}
    file = service.get(name)["response"]["responsesFile"]
    assert len(file.removeprefix("files/")) == 42
    told = service.ask("GET", f"/v1beta/{file}").json()
    assert (told["source"], told["sizeBytes"]) == ("GENERATED", str(len(answer.content)))
    assert service.ask("GET", told["downloadUri"]).content == answer.content
    refused = service.ask("DELETE", f"/v1beta/{file}")
    assert (refused.status_code, "cannot be more than 40 characters" in refused.text) == (400, True)
    service.now += 48 * 3600
    assert service.ask("GET", f"/download/v1beta/{file}:download?alt=media").status_code == 403


def test_what_is_uploaded_cannot_be_downloaded() -> None:
    service = Service()
    file = service.upload(line("a"))
    assert service.ask("GET", f"/download/v1beta/{file}:download?alt=media").status_code == 400
    assert service.ask("GET", f"/download/v1beta/{file}").status_code == 404


def test_who_asks_for_no_batches_is_served_none() -> None:
    service = Service(batch=False)
    file = service.upload(line("a"))
    assert service.create(file).status_code == 404
    assert service.ask("GET", "/v1beta/batches").status_code == 404


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({}, "exactly one source"),
        ({"fileName": "files/x", "requests": {"requests": [{"request": {}}]}}, "exactly one source"),
        ({"file": "files/x"}, "Unknown name"),
    ],
)
def test_a_create_that_is_none_is_refused(source: dict[str, object], says: str) -> None:
    body = {"batch": {"displayName": "x", "inputConfig": source}}
    answer = Service().ask("POST", f"/v1beta/models/{MODEL}:batchGenerateContent", json=body)
    assert (answer.status_code, says in answer.text) == (400, True)


def test_only_a_model_that_has_batches_is_asked_in_them() -> None:
    service = Service()
    file = service.upload(line("a"))
    assert service.create(file, model="gemini-embedding-001").status_code == 404
    assert service.create(file, model="gemini-none").status_code == 404


# ---- files


def test_a_file_that_is_gone_before_the_create_fails_the_batch_unpaid_and_after_it_does_not_matter() -> None:
    service = Service()
    before, after = (service.upload(line("a"), name=f"files/{name}") for name in ("before", "after"))
    service.ask("DELETE", f"/v1beta/{before}")
    failed, good = (service.create(file).json()["name"] for file in (before, after))
    service.ask("DELETE", f"/v1beta/{after}")
    assert service.state(failed) == "PENDING"
    service.now += 10
    told = service.get(failed)
    assert told["metadata"]["state"] == "BATCH_STATE_FAILED"
    assert (told["done"], told["error"]["code"]) == (True, 3)
    service.now += 31
    assert texts(service.results(good)) == {"a": "Say a."}
    assert service.stats()["batches"]["lines_billed"] == 1


def test_a_large_file_comes_in_parts_and_goes_on_after_a_part_that_was_cut() -> None:
    service = Service("upload_cut*1")
    lines = b"".join(line(key, "x" * 2000) for key in keys(1000))
    start = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
    place = service.ask("POST", "/upload/v1beta/files", headers=start, json={}).headers["x-goog-upload-url"]
    part = 2**20
    with pytest.raises(ConnectionResetError):
        sent = {"X-Goog-Upload-Command": "upload", "X-Goog-Upload-Offset": "0"}
        service.ask("POST", place, headers=sent, content=lines[:part])
    told = service.ask("POST", place, headers={"X-Goog-Upload-Command": "query"}).headers
    assert (told["x-goog-upload-status"], told["x-goog-upload-size-received"]) == ("active", str(part // 2))
    rest = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": str(part // 2)}
    file = service.ask("POST", place, headers=rest, content=lines[part // 2 :]).json()["file"]
    assert file["sizeBytes"] == str(len(lines))
    name = service.create(file["name"]).json()["name"]
    assert service.get(name)["metadata"]["batchStats"]["requestCount"] == "1000"
    service.now += 31
    assert [each["key"] for each in service.results(name)] == keys(1000)


def test_a_full_storage_refuses_with_the_endless_delay_until_files_end() -> None:
    service = Service(storage_bytes=3000)
    name = service.created(line("a", "x" * 2000))
    service.now += 31
    service.get(name)  # its results are in the storage too
    start = {
        "X-Goog-Upload-Protocol": "resumable",
        "X-Goog-Upload-Command": "start",
        "X-Goog-Upload-Header-Content-Length": "900",
    }
    refused = service.ask("POST", "/upload/v1beta/files", headers=start, json={})
    assert refused.status_code == 429
    details = {each["@type"].rpartition(".")[2]: each for each in refused.json()["error"]["details"]}
    assert details["RetryInfo"]["retryDelay"] == "9223372036854775807s"
    (violation,) = details["QuotaFailure"]["violations"]
    assert (violation["quotaId"], violation["quotaValue"]) == ("FileStorageBytesPerProject", "3000")
    service.now += 48 * 3600
    assert service.ask("POST", "/upload/v1beta/files", headers=start, json={}).status_code == 200


# ---- who, and how much


def test_another_keys_batches_and_files_are_not_there() -> None:
    service = Service()
    file = service.upload(line("a"))
    name = service.create(file).json()["name"]
    service.now += 31
    results = service.get(name)["response"]["responsesFile"]
    service.key = "AQ.other"
    for method, path in (("GET", name), ("POST", f"{name}:cancel"), ("DELETE", name)):
        assert service.ask(method, f"/v1beta/{path}").status_code == 404
    assert service.listed() == []
    assert service.ask("GET", f"/download/v1beta/{results}:download?alt=media").status_code == 403
    foreign = service.create(file).json()["name"]
    service.now += 10
    assert service.state(foreign) == "FAILED"


def test_keys_of_one_project_share_its_batches_files_and_quota() -> None:
    service = Service(projects={"AQ.key": "p", "AQ.renewed": "p"}, rpm=1)
    name = service.created(line("a"))
    service.now += 31
    service.get(name)
    service.key = "AQ.renewed"
    assert texts(service.results(name)) == {"a": "Say a."}
    assert [each["name"] for each in service.listed()] == [name]
    body = {"contents": [{"parts": [{"text": "hi"}]}]}
    statuses = []
    for service.key in ("AQ.renewed", "AQ.key", "AQ.other"):
        statuses.append(service.ask("POST", f"/v1beta/models/{MODEL}:generateContent", json=body).status_code)
    assert statuses == [200, 429, 200]


def test_requests_inline_are_at_most_20_mb() -> None:
    request = {"request": {"contents": [{"parts": [{"text": "x" * 21_000_000}]}]}}
    body = {"batch": {"inputConfig": {"requests": {"requests": [request]}}}}
    answer = Service().ask("POST", f"/v1beta/models/{MODEL}:batchGenerateContent", json=body)
    assert (answer.status_code, "20971520 bytes" in answer.text) == (400, True)


def test_more_enqueued_tokens_than_allowed_are_refused_without_a_delay_until_a_batch_ends() -> None:
    service = Service(batch_tokens=200)
    lines = [line(key, "word " * 100) for key in "ab"]  # 101 tokens each, of 200
    first, second = service.upload(lines[0]), service.upload(lines[1])
    service.create(first)
    refused = service.create(second)
    assert refused.status_code == 429
    (detail,) = refused.json()["error"]["details"]
    assert detail["@type"].endswith("google.rpc.Help")
    assert service.create(second, model="gemini-3.8-flash").status_code == 200  # its quota is its own
    service.now += 31
    assert service.create(second).status_code == 200


def test_a_batch_beyond_the_most_waits_until_another_ends() -> None:
    service = Service(batch_most=2)
    one = service.created(line("a"))
    service.now += 5
    two, three, four = (service.created(line("a")) for _ in range(3))
    service.now += 26  # 31 s after the first was made
    assert [service.state(name) for name in (one, two, three)] == ["SUCCEEDED", "RUNNING", "PENDING"]
    service.now += 10  # the third began when the first had ended
    assert [service.state(name) for name in (two, three, four)] == ["SUCCEEDED", "RUNNING", "PENDING"]
    service.ask("POST", f"/v1beta/{three}:cancel")
    service.now += 30
    assert [service.state(name) for name in (three, four)] == ["CANCELLED", "SUCCEEDED"]


def test_a_cancelled_batch_hands_out_nothing_and_is_not_billed() -> None:
    service = Service()
    name = service.created(*map(line, keys(10)))
    service.now += 20
    assert service.ask("POST", f"/v1beta/{name}:cancel").json() == {}
    told = service.get(name)
    assert told["metadata"]["state"] == "BATCH_STATE_CANCELLED"
    assert (told["done"], told["error"]["code"], "response" in told) == (True, 1, False)
    service.now += 100
    assert service.ask("POST", f"/v1beta/{name}:cancel").json() == {}
    assert service.state(name) == "CANCELLED"
    stats = service.stats()["batches"]
    assert (stats["lines_billed"], stats["states"], stats["cancelled"]) == (0, {"CANCELLED": 1}, 2)


def test_a_deleted_batch_is_gone() -> None:
    service = Service()
    name = service.created(line("a"))
    assert service.ask("DELETE", f"/v1beta/{name}").json() == {}
    assert service.ask("GET", f"/v1beta/{name}").status_code == 404
    assert service.listed() == []


def test_what_nobody_asks_for_is_billed_all_the_same() -> None:
    service = Service()
    service.created(line("a"), line("b"))
    assert service.stats()["batches"]["lines_billed"] == 0
    service.now += 31
    stats = service.stats()
    assert stats["batches"]["lines_billed"] == 2
    assert [sums["requests"] for sums in stats["billed"]] == [2]


def test_the_stats_count_requests_and_the_busiest_minute_of_each() -> None:
    service = Service()
    name = service.created(line("a"))
    for _ in range(3):
        service.get(name)
        service.now += 40
    service.listed()
    told = service.stats()["batches"]
    assert told["calls"] == {"upload": 1, "create": 1, "get": 3, "list": 1}
    assert told["busiest_minute"] == {"upload": 1, "create": 1, "get": 2, "list": 1}


# ---- time


def test_scaled_hours_pass_in_seconds_and_the_times_told_are_real() -> None:
    service = Service(batch_pending_s=1800, batch_run_s=1800, time_scale=3600)
    name = service.created(line("a"))
    assert service.get(name)["metadata"]["createTime"].startswith("2026-11-22T20:00:00")
    service.now += 0.6
    assert service.state(name) == "RUNNING"
    service.now += 0.5
    assert service.state(name) == "SUCCEEDED"
    file = service.get(name)["response"]["responsesFile"]
    assert service.get(name)["metadata"]["endTime"].startswith("2026-11-22T20:00:01")
    assert service.ask("GET", f"/v1beta/{file}").json()["expirationTime"].startswith("2026-11-22T20:00:49")
    service.now += 48
    assert service.ask("GET", f"/v1beta/{file}").status_code == 403


def test_a_batch_that_would_take_longer_than_48_hours_expires_with_nothing() -> None:
    service = Service(batch_run_s=50 * 3600)
    name = service.created(line("a"))
    service.now += 48 * 3600 - 1
    assert service.state(name) == "RUNNING"
    service.now += 1
    told = service.get(name)
    assert (told["metadata"]["state"], "response" in told, told["error"]["code"]) == ("BATCH_STATE_EXPIRED", False, 4)
    assert service.stats()["batches"]["lines_billed"] == 0


@given(st.integers(), st.integers(0, 10**6), SECONDS, SECONDS, st.floats(1, 10))
def test_a_fate_depends_on_nothing_but_seed_and_number(
    seed: int, number: int, pending_s: float, run_s: float, spread: float
) -> None:
    fate = fate_of(seed, number, pending_s, run_s, spread)
    assert fate == fate_of(seed, number, pending_s, run_s, spread)
    assert fate.pending_s >= 0 and fate.run_s >= 0
    alike = fate_of(seed, number, pending_s, run_s, 1)
    assert math.isclose(alike.pending_s, pending_s) and math.isclose(alike.run_s, run_s)


def test_the_times_of_many_batches_have_the_median_and_the_spread_that_were_asked_for() -> None:
    waits = sorted(fate_of(7, number, 3600, 60, 3).pending_s for number in range(2000))
    assert 3300 < waits[1000] < 3900
    assert 3 * 0.9 < waits[1683] / waits[1000] < 3 * 1.1  # one sigma above


@given(
    st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from([0.5, 1, 60, 3600]), st.lists(SECONDS), st.none() | SECONDS
)
def test_a_batch_goes_one_way_whenever_it_is_looked_at(
    pending_s: float, run_s: float, scale: float, looks: Sequence[float], cancelled: float | None
) -> None:
    course = course_of(
        Fate(pending_s, run_s), NOON, NOON, 48 * 3600, scale, None if cancelled is None else NOON + cancelled
    )
    states = [course.state(NOON + at) for at in sorted(looks)]
    order = ["PENDING", "RUNNING", *sorted(ENDED)]
    assert [order.index(state) for state in states] == sorted(order.index(state) for state in states)
    assert course.state(NOON + 49 * 3600 / scale) in ENDED
    assert 0 <= course.share() <= 1


@given(st.lists(SECONDS, max_size=30), SECONDS, st.integers(1, 5))
def test_fewer_than_the_most_are_under_way_when_the_next_begins(
    ends: Sequence[float], created: float, most: int
) -> None:
    turn = turn_of(created, ends, most)
    assert turn >= created
    assert sum(end > turn for end in ends) < most
    assert turn == created or sum(end > turn - 1e-9 for end in ends) >= most


def test_the_lines_of_one_request_are_made_a_piece_at_a_time_and_the_batch_is_running_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.emulator.batch_queue._MOST_MADE", 40)
    service = Service()
    name = service.created(*map(line, keys(100)))
    service.now += 31
    states = [service.state(name) for _ in range(3)]
    assert states == ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert [each["key"] for each in service.results(name)] == keys(100)


def test_batches_are_served_in_virtual_time_too() -> None:
    import anyio
    import httpx
    import vclock

    async def main() -> list[str]:
        options = EmulatorOptions(batch=True, batch_pending_s=3600, batch_run_s=7200, batch_spread=1)
        emulator = Emulator(options, clock=lambda: NOON + anyio.current_time())
        headers = {"x-goog-api-key": "k"}
        transport = httpx.ASGITransport(emulator)
        async with httpx.AsyncClient(transport=transport, base_url="http://emulator", headers=headers) as client:
            request = {"request": {"contents": [{"parts": [{"text": "hi"}]}]}, "metadata": {"key": "a"}}
            body = {"batch": {"inputConfig": {"requests": {"requests": [request]}}}}
            made = (await client.post(f"/v1beta/models/{MODEL}:batchGenerateContent", json=body)).json()
            states = []
            for _ in range(4):
                states.append((await client.get(f"/v1beta/{made['name']}")).json()["metadata"]["state"])
                await anyio.sleep(3601)
            return states

    states = [state.removeprefix("BATCH_STATE_") for state in vclock.run(main)]
    assert states == ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]


class Ticking(Service):
    """Its clock moves with every look at it, as a real one does."""

    def __init__(self, step_s: float, **flags: Any) -> None:
        super().__init__(**flags)
        self._step_s = step_s
        self.emulator = Emulator(self.emulator.options, clock=self._tick)

    def _tick(self) -> float:
        self.now += self._step_s
        return self.now


@pytest.mark.parametrize("step_s", [0.4 + tenth / 10 for tenth in range(20)])
def test_whoever_is_told_that_a_batch_succeeded_is_told_of_results_that_are_there(step_s: float) -> None:
    service = Ticking(step_s)
    name = service.created(line("a"), line("b"))
    while "done" not in (told := service.get(name)):
        assert told["metadata"]["batchStats"] == {"requestCount": "2", "pendingRequestCount": "2"}
    assert told["metadata"]["batchStats"] == {"requestCount": "2", "successfulRequestCount": "2"}
    assert texts(service.results(name)) == {"a": "Say a.", "b": "Say b."}


STEPS = st.sampled_from(["create", "create", "wait", "wait", "cancel", "delete", "get", "list"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(STEPS, st.integers(0, 20)), max_size=25), st.integers(0, 5))
def test_whatever_is_asked_no_line_is_billed_twice_or_lost_and_no_batch_turns_back(
    steps: Sequence[tuple[str, int]], seed: int
) -> None:
    service = Service("batch_failed:0.2,cancel_ignored:0.2", seed=seed, batch_most=2, batch_spread=2)
    file = service.upload(*map(line, keys(3)))
    seen: dict[str, str] = {}
    gone: set[str] = set()
    for step, number in steps:
        name = list(seen)[number % len(seen)] if seen else ""
        if step == "create":
            seen[str(service.create(file).json()["name"])] = "PENDING"
        elif step == "wait":
            service.now += number
        elif step == "cancel" and name not in gone and seen:
            service.ask("POST", f"/v1beta/{name}:cancel")
        elif step == "delete" and name not in gone and seen:
            service.ask("DELETE", f"/v1beta/{name}")
            gone.add(name)
        elif step == "get" and seen:
            assert "error" in service.get(name) or name not in gone
        listed = {each["name"]: each["metadata"]["state"].removeprefix("BATCH_STATE_") for each in service.listed()}
        assert list(listed) == [name for name in reversed(seen) if name not in gone]
        for name, state in listed.items():
            assert state == seen[name] or seen[name] not in ENDED
            seen[name] = state
        assert sum(state == "RUNNING" for state in listed.values()) <= 2
    service.now += 48 * 3600
    told = service.stats()
    succeeded = told["batches"]["states"].get("SUCCEEDED", 0)
    assert told["batches"]["lines_billed"] == told["answered"] == 3 * succeeded
    assert sum(told["batches"]["states"].values()) == len(seen)
