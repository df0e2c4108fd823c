"""Faults of the emulator's batches: each does what it says, alone, in number or at a rate, and together with others."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from batching import Service, keys, line, text_of, texts
from commands import Ran
from serving import served, stats

from pipeline.emulator import parse_batch_faults
from pipeline.emulator.batch_faults import BATCH_KINDS, OF_BATCHES

SAID = {key: f"Say {key}." for key in keys(100)}


def finished(batch_faults: str, **flags: Any) -> tuple[Service, str, dict[str, Any]]:
    """A batch of a hundred lines with these faults, after its end."""
    service = Service(batch_faults, **flags)
    name = service.created(*map(line, keys(100)))
    service.now += 31
    return service, name, service.get(name)


# ---- creating


def test_a_create_that_is_cut_has_made_its_batch() -> None:
    service = Service("create_cut*1")
    file = service.upload(line("a"))
    with pytest.raises(ConnectionResetError):
        service.create(file, "lost")
    (found,) = service.listed()
    assert (found["metadata"]["displayName"], found["metadata"]["inputConfig"]["fileName"]) == ("lost", file)
    assert service.create(file).status_code == 200


def test_a_late_create_makes_its_batch_when_nobody_waits_any_more() -> None:
    service = Service("create_late=60*1")
    file = service.upload(line("a"))
    with pytest.raises(ConnectionResetError):
        service.create(file, "late")
    service.now += 59
    assert service.listed() == []
    service.now += 5
    (found,) = service.listed()
    assert (found["metadata"]["displayName"], found["metadata"]["state"]) == ("late", "BATCH_STATE_PENDING")
    service.now += 27  # 31 s after the 60th: it was made then, not when it was asked for
    assert service.state(found["name"]) == "SUCCEEDED"


@pytest.mark.parametrize(("deleted_after_s", "state"), [(59, "FAILED"), (61, "SUCCEEDED")])
def test_a_late_create_fails_unpaid_where_its_file_was_deleted_before_it_came(
    deleted_after_s: float, state: str
) -> None:
    service = Service("create_late=60*1")
    file = service.upload(line("a"))
    with pytest.raises(ConnectionResetError):
        service.create(file)
    service.now += deleted_after_s
    service.ask("DELETE", f"/v1beta/{file}")
    service.now += 100
    (found,) = service.listed()
    assert found["metadata"]["state"] == f"BATCH_STATE_{state}"
    assert service.stats()["batches"]["lines_billed"] == (state == "SUCCEEDED")


def test_a_create_is_refused_as_if_too_much_were_enqueued() -> None:
    service = Service("create_429*2")
    file = service.upload(line("a"))
    refused = [service.create(file) for _ in range(3)]
    assert [answer.status_code for answer in refused] == [429, 429, 200]
    assert "RetryInfo" not in refused[0].text and "retry" not in refused[0].text.lower()
    assert service.stats()["batches"]["created"] == 1


# ---- asking


def test_an_overloaded_service_does_nothing() -> None:
    service = Service("call_503*1")
    file = service.upload(line("a"))
    assert service.create(file).status_code == 503
    assert service.listed() == []


def test_a_new_batch_is_listed_late_and_got_at_once() -> None:
    service = Service("list_lag=40*1")
    name = service.created(line("a"))
    service.now += 39
    assert service.state(name) == "SUCCEEDED"
    assert service.listed() == []
    other = service.created(line("a"))
    assert [each["name"] for each in service.listed()] == [other]
    service.now += 1
    assert [each["name"] for each in service.listed()] == [other, name]


# ---- what becomes of it


def test_a_batch_fails_at_its_end_and_nothing_is_billed() -> None:
    service, _, told = finished("batch_failed")
    assert (told["metadata"]["state"], told["done"], told["error"]["code"]) == ("BATCH_STATE_FAILED", True, 13)
    assert "response" not in told and "endTime" in told["metadata"]
    assert service.stats()["batches"]["lines_billed"] == 0
    assert service.stats()["batches"]["states"] == {"FAILED": 1}


def test_a_batch_expires_after_48_hours() -> None:
    service, name, told = finished("batch_expired")
    assert told["metadata"]["state"] == "BATCH_STATE_RUNNING"
    service.now += 48 * 3600
    told = service.get(name)
    assert (told["metadata"]["state"], "response" in told) == ("BATCH_STATE_EXPIRED", False)
    assert service.stats()["batches"]["lines_billed"] == 0


def test_a_stuck_batch_is_pending_for_ever_and_can_be_cancelled() -> None:
    service, name, _ = finished("batch_stuck")
    service.now += 100 * 3600
    assert service.state(name) == "PENDING"
    service.ask("POST", f"/v1beta/{name}:cancel")
    assert service.state(name) == "CANCELLED"


def test_a_batch_that_is_cancelled_succeeds_all_the_same() -> None:
    service = Service("cancel_ignored")
    name = service.created(line("a"))
    service.now += 15
    assert service.ask("POST", f"/v1beta/{name}:cancel").status_code == 200
    assert service.state(name) == "RUNNING"
    service.now += 16
    assert texts(service.results(name)) == {"a": "Say a."}


def test_what_a_cancelled_batch_had_answered_is_billed_and_nobody_has_it() -> None:
    service = Service("cancel_billed")
    name = service.created(*map(line, keys(100)))
    service.now += 15  # a quarter of its run
    service.ask("POST", f"/v1beta/{name}:cancel")
    assert "response" not in service.get(name)
    told = service.stats()
    assert [(sums["bill"], sums["requests"]) for sums in told["billed"]] == [("lost", 25)]
    assert (told["batches"]["lines_billed"], told["answered"]) == (0, 0)


def test_the_tokens_of_a_cancelled_batch_still_count() -> None:
    service = Service("cancel_counted", batch_tokens=150)
    lines = line("a", "word " * 100)
    name = service.created(lines)
    service.ask("POST", f"/v1beta/{name}:cancel")
    assert service.create(service.upload(lines)).status_code == 429
    plain = Service(batch_tokens=150)
    plain.ask("POST", f"/v1beta/{plain.created(lines)}:cancel")
    assert plain.create(plain.upload(lines)).status_code == 200


def test_a_waiting_batch_that_needs_its_file_fails_with_it_and_a_running_one_does_not() -> None:
    for waited_s, state in ((5, "FAILED"), (15, "SUCCEEDED")):
        service = Service("input_needed")
        file = service.upload(line("a"))
        name = service.create(file).json()["name"]
        service.now += waited_s
        service.ask("DELETE", f"/v1beta/{file}")
        service.now += 31
        assert service.state(name) == state


# ---- what it hands out


def test_the_results_of_a_file_come_inline() -> None:
    _, _, told = finished("inline_output")
    assert list(told["metadata"]["output"]) == ["inlinedResponses"]
    results = told["response"]["inlinedResponses"]["inlinedResponses"]
    assert {each["metadata"]["key"]: text_of(each["response"]) for each in results} == SAID


def test_results_are_named_late() -> None:
    service, name, told = finished("output_late=30")
    assert told["metadata"]["state"] == "BATCH_STATE_SUCCEEDED" and told["done"]
    assert "output" not in told["metadata"] and "response" not in told
    service.now += 30
    assert texts(service.results(name)) == SAID


def test_a_file_that_is_misread_has_fewer_lines() -> None:
    service, name, told = finished("count_short")
    assert told["metadata"]["batchStats"] == {"requestCount": "90", "successfulRequestCount": "90"}
    assert [each["key"] for each in service.results(name)] == keys(100)[:90]


def test_lines_come_in_another_order() -> None:
    service, name, _ = finished("lines_shuffled")
    results = service.results(name)
    assert [each["key"] for each in results] != keys(100)
    assert texts(results) == SAID


# ---- lines


def results_of(batch_faults: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    service, name, _ = finished(batch_faults)
    return service.results(name), service.stats()


def test_errors_stand_in_place_of_answers_and_are_not_billed() -> None:
    results, told = results_of("line_error=8:0.2,line_error*1")
    codes = Counter(each["error"]["code"] for each in results if "error" in each)
    assert codes[13] == 1 and 8 < codes[8] < 35
    assert told["batches"]["lines_billed"] == 100 - codes.total()
    assert all("response" not in each and "key" in each for each in results if "error" in each)


def test_lines_are_missing_and_billed() -> None:
    results, told = results_of("line_missing:0.2")
    assert 65 < len(results) < 92
    bills = {sums["bill"]: sums["requests"] for sums in told["billed"]}
    assert bills == {"yes": len(results), "lost": 100 - len(results)}


def test_lines_say_nothing() -> None:
    results, _ = results_of("line_empty*3")
    assert [list(each) for each in results[:4]] == [["key"], ["key"], ["key"], ["response", "key"]]


def test_lines_come_twice_with_the_same_answer_or_another() -> None:
    results, told = results_of("line_doubled*1")
    assert results[0] == results[1] and len(results) == 101
    results, _ = results_of("line_differs*1")
    assert results[0]["key"] == results[1]["key"] and len(results) == 101
    assert text_of(results[0]["response"]) != text_of(results[1]["response"])
    assert told["batches"]["lines_billed_twice"] == 0


def test_a_key_is_nobodys() -> None:
    results, _ = results_of("line_stranger:0.1")
    strange = [each["key"] for each in results if each["key"] not in SAID]
    assert len(results) == 100 and 2 < len(strange) < 25


def test_two_lines_have_each_others_answers() -> None:
    results, _ = results_of("line_swapped*4")
    found = texts(results)
    assert found.keys() == SAID.keys()
    wrong = {key: text for key, text in found.items() if text != SAID[key]}
    assert wrong == {"k0": SAID["k1"], "k1": SAID["k0"], "k2": SAID["k3"], "k3": SAID["k2"]}
    odd, _ = results_of("line_swapped*3")
    assert sum(text != SAID[key] for key, text in texts(odd).items()) == 2  # the third finds no other
    half, _ = results_of("line_swapped:0.5")
    assert 30 < sum(text != SAID[key] for key, text in texts(half).items()) < 70


def test_faults_of_answers_meet_lines_too_and_those_of_requests_do_not() -> None:
    service, name, _ = finished("", faults="503:0.4,safety:0.6")
    finishes = Counter(each["response"]["candidates"][0]["finishReason"] for each in service.results(name))
    assert finishes["SAFETY"] + finishes["STOP"] == 100
    assert 40 < finishes["SAFETY"] < 80
    assert service.stats()["faults"] == {"safety": finishes["SAFETY"]}


# ---- files


def test_a_download_is_cut_or_ends_early() -> None:
    service, name, _ = finished("download_cut*1")
    with pytest.raises(ConnectionResetError):
        service.download(name)
    assert texts(service.results(name)) == SAID
    service, name, _ = finished("download_short*1")
    short, whole = service.download(name), service.download(name)
    assert whole.content.startswith(short.content) and len(short.content) == len(whole.content) // 2
    assert short.headers["content-length"] == str(len(short.content))


def test_an_upload_whose_answer_is_lost_has_stored_its_file() -> None:
    service = Service("upload_lost*1")
    with pytest.raises(ConnectionResetError):
        service.upload(line("a"), name="files/mine")
    assert service.ask("GET", "/v1beta/files/mine").json()["sizeBytes"] == str(len(line("a")))


def test_over_a_socket_connections_break_for_real() -> None:
    faults = parse_batch_faults("upload_cut*1,create_cut*1,download_cut*1")
    with served(batch=True, batch_pending_s=0, batch_run_s=0, batch_faults=faults) as url:
        content = b"".join(line(key, "x" * 2000) for key in keys(500))
        headers = {"x-goog-api-key": "k", "X-Goog-Upload-Protocol": "resumable"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            start = {"X-Goog-Upload-Command": "start"}
            place = client.post("/upload/v1beta/files", headers=start).headers["x-goog-upload-url"]
            whole = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}
            with pytest.raises(httpx.TransportError):
                client.post(place, headers=whole, content=content)
            taken = client.post(place, headers={"X-Goog-Upload-Command": "query"}).headers
            at = int(taken["x-goog-upload-size-received"])
            assert 0 < at < len(content)
            rest = {**whole, "X-Goog-Upload-Offset": str(at)}
            file = client.post(place, headers=rest, content=content[at:]).json()["file"]["name"]
            path, body = (
                "/v1beta/models/gemini-3.5-flash-lite:batchGenerateContent",
                {"batch": {"inputConfig": {"fileName": file}}},
            )
            with pytest.raises(httpx.TransportError):
                client.post(path, json=body)
            (name,) = (each["name"] for each in client.get("/v1beta/batches").json()["operations"])
            results = client.get(f"/v1beta/{name}").json()["response"]["responsesFile"]
            download = f"/download/v1beta/{results}:download?alt=media"
            with pytest.raises(httpx.TransportError):
                client.get(download)
            assert len(client.get(download).content.splitlines()) == 500
        assert stats(url)["batches"]["faults"] == {"upload_cut": 1, "create_cut": 1, "download_cut": 1}


# ---- together, and how they are asked for


def test_what_meets_a_batch_does_not_depend_on_when_it_is_looked_at() -> None:
    spec = "line_error:0.1,line_swapped:0.1,line_missing:0.1,batch_failed:0.3,lines_shuffled:0.5"

    def outcomes(looks: Sequence[int]) -> list[Any]:
        service = Service(spec)
        names = [service.created(*map(line, keys(30))) for _ in range(6)]
        service.now += 31
        for look in looks:
            service.get(names[look])
        told = []
        for name in names:
            found = service.get(name)
            lines = service.results(name) if "response" in found else []
            told.append((found["metadata"]["state"], [(each["key"], list(each)) for each in lines]))
        return told

    forward = outcomes([])
    assert forward == outcomes([5, 3, 4, 0, 1, 2])
    assert {state for state, _ in forward} == {"BATCH_STATE_FAILED", "BATCH_STATE_SUCCEEDED"}


def test_any_two_faults_meet_in_one_batch_and_it_is_told_of_all_the_same() -> None:
    kinds = [*OF_BATCHES, *(kind for kind in BATCH_KINDS if kind.startswith("line_"))]
    for first in kinds:
        for second in kinds:
            service = Service(f"{first},{second}")
            name = service.created(*map(line, keys(4)))
            service.now += 62
            told = service.get(name)
            assert told["metadata"]["state"].startswith("BATCH_STATE_")
            if "response" in told:
                service.results(name)


def test_the_first_so_many_fail_and_others_at_a_rate() -> None:
    service = Service("batch_failed*2,batch_failed:0.5")
    names = [service.created(line("a")) for _ in range(40)]
    service.now += 31
    states = [service.state(name) for name in names]
    assert states[:2] == ["FAILED", "FAILED"]
    assert 8 < Counter(states[2:])["FAILED"] < 30


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("create_cutt", "unknown fault 'create_cutt'"),
        ("line_error=17", "after `=` stands its gRPC code, such as line_error=13"),
        ("list_lag=soon", "after `=` stands seconds, such as list_lag=30"),
        ("create_cut=3", "create_cut takes no number"),
        ("batch_failed:2", "a rate from 0 to 1"),
        ("batch_failed*0", "how many of the first"),
    ],
)
def test_a_fault_that_is_none_is_told_of(cli: Callable[..., Ran], spec: str, says: str) -> None:
    ran = cli("emulate", "--batch-faults", spec)
    assert ran.code == 2
    assert says in " ".join(ran.err.split()) and "--batch-faults" in ran.err


def test_the_command_lists_every_fault_of_batches(cli: Callable[..., Ran]) -> None:
    ran = cli("emulate", "--batch-faults", "list")
    assert ran.code == 0
    assert all(kind in ran.out for kind in BATCH_KINDS)
    assert "list_lag=30" in ran.out


def test_faults_of_batches_without_batches_are_refused(cli: Callable[..., Ran]) -> None:
    ran = cli("emulate", "--batch-faults", "batch_stuck")
    assert ran.code == 2 and "`--batch` serves them" in ran.err


def test_a_scale_that_is_none_is_told_of(cli: Callable[..., Ran]) -> None:
    ran = cli("emulate", "--batch", "--time-scale", "0")
    assert ran.code == 2 and "--time-scale" in ran.err
