"""Jobs whose rows have files: what is sent, what is refused, and that the estimate is the run."""

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import openai
import polars as pl
import pytest
from commands import Ran
from drawing import pdf, png, wav
from google import genai
from google.genai import types
from serving import served, stats
from sessions import run_through

from jobs import PLAIN, Sections, make_job
from pipeline import estimating
from pipeline.budget.cashier import worst_case_usd
from pipeline.errors import InputError, JobError
from pipeline.estimating import Wishes
from pipeline.prompts import Params, Prompt, Text, Turn
from pipeline.providers.base import Account
from pipeline.providers.gemini import Gemini
from pipeline.providers.openai import build_request
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Media, Reply
from pipeline.run import prepare
from pipeline.run.prepare import Options
from pipeline.source.files import Files, digest_of
from pipeline.targets import Target

SEEN: Sections = {
    **PLAIN,
    "input": {"path": "table.csv", "id": "id", "image": "picture"},
    "prompt": {"template": "Describe this image in one sentence."},
    "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 100},
    "limits": {"rpm": 0, "tpm": 0},
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200)), ("green", (0, 200, 0))):
        (tmp_path / f"{name}.png").write_bytes(png(colour=colour))
    (tmp_path / "table.csv").write_text("id,picture\nr,red.png\nb,blue.png\ng,./green.png\n")
    return tmp_path


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(model_version=None) as url:
        yield url


def results(directory: Path) -> pl.DataFrame:
    return pl.read_ndjson(directory / "results" / "out-offline.jsonl", infer_schema_length=None).sort("id")


def run(job: Any, **options: Any) -> int:
    return run_through(prepare.prepare(job, Options(offline=True, **options))).exit_code


def files(directory: Path, kind: Any = "image") -> Files:
    return Files(((kind, "c"),), directory, "gemini-3.8-flash", inline_bytes=15_000_000)


def test_images_stand_before_the_text_and_are_counted(table: Path) -> None:
    assert run(make_job(table, SEEN)) == 0
    assert (results(table)["input_tokens"] > 1120).all()


def test_the_estimate_is_the_run(table: Path, url: str) -> None:
    with served(model_version=None) as url:
        job = make_job(table, SEEN, endpoint={"base_url": url})
        os.environ["GEMINI_API_KEY"] = "k"
        plan = anyio.run(estimating.estimate, prepare.prepare(job, Options()), Wishes()).plan
        ended = run_through(prepare.prepare(job, Options()))
    assert ended.exit_code == 0 and plan.load.prompts == 3
    assert plan.input_tokens.expected == pytest.approx(ended.summary.usage.input_tokens, rel=0.01)


def test_a_file_is_its_content_wherever_it_lies(table: Path) -> None:
    (table / "more").mkdir()
    (table / "more" / "again.png").write_bytes((table / "red.png").read_bytes())
    (table / "table.csv").write_text("id,picture\nr,red.png\ns,more/again.png\nb,blue.png\n")
    assert run(make_job(table, SEEN)) == 0
    assert results(table)["calls"].to_list() == [1, 1, 0] or results(table)["calls"].sum() == 2


@pytest.mark.parametrize(
    ("cell", "cause"),
    [
        ("gone.png", "No such file"),
        ("", "is empty"),
        ("empty.png", "is empty"),
        ("page.html", "of no known form"),
        ("note.pdf", "application/pdf: [input] image takes"),
        ("../secret.png", "files_root"),
        ("/etc/hostname", "files_root"),
        ("link.png", "files_root"),
        ("folder", "no file"),
        ("pipe", "no file"),
        ("large.png", "are the most that can be sent"),
        ("a\x00b", "no path"),
        ("[" * 100_000, "…: File name too long"),
        (f"[{'1' * 5_000}]", "…: File name too long"),
        (f"{'[' * 900}{']' * 900}", "lists within lists"),
    ],
)
def test_a_file_that_cannot_be_sent_says_why(tmp_path: Path, cell: str, cause: str) -> None:
    home = tmp_path / "table"
    home.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (home / "empty.png").touch()
    (home / "page.html").write_text("<html>")
    (home / "note.pdf").write_bytes(pdf(["x"]))
    (home / "link.png").symlink_to(tmp_path / "secret.png")
    (home / "folder").mkdir()
    os.mkfifo(home / "pipe")
    with (home / "large.png").open("wb") as file:
        file.truncate(15_000_001)
    found, why = files(home).of({"c": cell})
    assert found == () and cause in why and len(why) < 400


def test_a_row_with_an_unfit_file_is_invalid_and_nothing_is_sent_for_it(table: Path) -> None:
    (table / "table.csv").write_text("id,picture\nr,red.png\nx,gone.png\n")
    job = make_job(table, SEEN)
    plan = anyio.run(estimating.estimate, prepare.prepare(job, Options(offline=True)), Wishes()).plan
    assert plan.found["file"].rows == 1
    assert run(job) == 1
    told = results(table)
    assert told["status"].to_list() == ["ok", "invalid"]
    assert (told["error_kind"][1], told["calls"][1]) == ("file", 0)
    assert "gone.png: No such file" in told["error"][1]


def test_a_folder_that_is_not_there_is_told_before_any_row_is_looked_at(table: Path) -> None:
    with pytest.raises(InputError, match=r"files_root = 'pictures' is no folder"):
        prepare.prepare(make_job(table, SEEN, input={"files_root": "pictures"}), Options(offline=True))


def test_another_folder_is_allowed_by_name(table: Path) -> None:
    (table / "tables").mkdir()
    (table / "table.csv").rename(table / "tables" / "table.csv")
    job = make_job(table, SEEN, input={"path": "tables/table.csv", "files_root": "."})
    assert run(job) == 0


def test_a_list_of_files_in_one_cell_and_an_empty_list(table: Path) -> None:
    rows = [{"id": "a", "picture": ["red.png", "blue.png"]}, {"id": "b", "picture": []}]
    (table / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(make_job(table, SEEN, input={"path": "table.jsonl"})) == 0
    tokens = results(table)["input_tokens"].to_list()
    assert tokens[0] > 2240 and tokens[1] < 100


@pytest.mark.parametrize("listed", [False, True])
def test_binary_columns_of_parquet(table: Path, listed: bool) -> None:
    contents: list[Any] = [png(colour=(1, 2, 3)), png(colour=(4, 5, 6))]
    cells = [[one] for one in contents] if listed else contents
    pl.DataFrame({"id": ["a", "b"], "picture": cells}).write_parquet(table / "table.parquet")
    assert run(make_job(table, SEEN, input={"path": "table.parquet"})) == 0
    told = results(table)
    assert told["calls"].sum() == 2 and "picture" not in told.columns


def test_rows_with_other_files_do_not_repeat_each_other(table: Path) -> None:
    job = make_job(table, SEEN)
    plan = anyio.run(estimating.estimate, prepare.prepare(job, Options(offline=True)), Wishes()).plan
    assert plan.load.prompts == 3


def test_an_estimate_says_what_it_guesses(table: Path) -> None:
    (table / "a.webm").write_bytes(b"\x1aE\xdf\xa3....webm" + b"\0" * 1000)
    (table / "table.csv").write_text("id,clip\na,a.webm\n")
    job = make_job(table, SEEN, input={"image": None, "video": "clip"})
    plan = anyio.run(estimating.estimate, prepare.prepare(job, Options(offline=True)), Wishes()).plan
    assert any(line.startswith("video: how long some are could not be read") for line in plan.assumptions)


def test_a_column_that_is_none_or_cannot_hold_files_is_refused(table: Path) -> None:
    with pytest.raises(InputError, match="column `pic` is not in"):
        prepare.prepare(make_job(table, SEEN, input={"image": "pic"}), Options(offline=True))
    pl.DataFrame({"id": ["a"], "picture": [1.5]}).write_parquet(table / "table.parquet")
    with pytest.raises(InputError, match="is Float64"):
        prepare.prepare(make_job(table, SEEN, input={"path": "table.parquet"}), Options(offline=True))


def test_pieces_and_files_do_not_go_together(table: Path) -> None:
    with pytest.raises(JobError, match="each piece would be sent with all files"):
        make_job(
            table,
            SEEN,
            input={"text": "id"},
            prompt={"template": "{{ text }}"},
            chunk={"max_tokens": 100},
            reduce={"template": "{{ parts }}"},
        )


def media(content: bytes, kind: Any, form: str) -> Media:
    return Media(kind, form, digest_of(io.BytesIO(content)), len(content), 10, data=content)


def prompt(*parts: Media, **params: Any) -> Prompt:
    return Prompt(0, "a", "answer", (Turn("user", (*parts, Text("What is it?"))),), Params(**params), 100)


def test_a_fingerprint_names_content_form_and_resolution() -> None:
    red, blue = media(png(), "image", "image/png"), media(png(colour=(0, 0, 9)), "image", "image/png")
    names = {
        asked.fingerprint("m")
        for asked in (
            prompt(red),
            prompt(blue),
            prompt(red, blue),
            prompt(blue, red),
            prompt(),
            prompt(red, media_resolution="low"),
        )
    }
    assert len(names) == 6
    assert prompt(red).text == "What is it?" and prompt(red).media == (red,)


async def asked(url: str, *parts: Media, **params: Any) -> Reply | Failure:
    target = Target("gemini", url, "p", "gemini-3.5-flash-lite")
    async with Wire() as wire:
        return await Gemini({target.access: Account(wire, "k")}).generate(prompt(*parts, **params), target)


@pytest.mark.parametrize(
    ("content", "kind", "form", "tokens"),
    [
        (png(), "image", "image/png", 1120),
        (wav(3), "audio", "audio/wav", 75),
        (pdf(["one", "two"]), "pdf", "application/pdf", 1120),
    ],
)
def test_the_service_counts_each_kind(url: str, content: bytes, kind: Any, form: str, tokens: int) -> None:
    with_file = anyio.run(asked, url, media(content, kind, form))
    without = anyio.run(asked, url)
    assert isinstance(with_file, Reply) and isinstance(without, Reply)
    assert with_file.usage.input_tokens - without.usage.input_tokens == tokens


def test_resolution_is_told_to_the_service(url: str) -> None:
    async def both() -> list[Reply | Failure]:
        picture = media(png(), "image", "image/png")
        return [await asked(url, picture), await asked(url, picture, media_resolution="low")]

    high, low = anyio.run(both)
    assert isinstance(high, Reply) and isinstance(low, Reply)
    assert high.usage.input_tokens - low.usage.input_tokens == 1120 - 280


def test_a_file_that_changed_after_it_was_looked_at_is_not_sent(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (found,), _ = files(tmp_path).of({"c": "a.png"})
    (tmp_path / "a.png").write_bytes(png(colour=(9, 9, 9)))
    failure = anyio.run(asked, url, found)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.error_kind, failure.sent) == ("reject", "file", False)


def test_googles_sdk_sends_the_same(url: str) -> None:
    options = types.HttpOptions(base_url=url, api_version="v1beta")
    client = genai.Client(api_key="k", vertexai=False, http_options=options)
    part = types.Part.from_bytes(data=png(), mime_type="image/png")
    asks = types.Part.from_text(text="What is it?")
    config = types.GenerateContentConfig(media_resolution=types.MediaResolution.MEDIA_RESOLUTION_LOW)
    answer = client.models.generate_content(
        model="gemini-3.5-flash-lite", contents=types.Content(parts=[part, asks]), config=config
    )
    client.close()
    assert answer.usage_metadata and answer.usage_metadata.prompt_tokens_details
    counts = {each.modality: each.token_count for each in answer.usage_metadata.prompt_tokens_details}
    assert counts[types.MediaModality.IMAGE] == 280


def test_chat_completions_have_forms_of_their_own(url: str) -> None:
    parts = (
        media(png(), "image", "image/png"),
        media(wav(), "audio", "audio/wav"),
        media(pdf(["x"]), "pdf", "application/pdf"),
    )
    body = json.loads(build_request(prompt(*parts), "gemini-3.5-flash-lite"))
    kinds = [part["type"] for part in body["messages"][-1]["content"]]
    assert kinds == ["image_url", "input_audio", "file", "text"]
    client = openai.OpenAI(api_key="k", base_url=f"{url}/v1beta/openai")
    answer = client.chat.completions.create(model=body["model"], messages=body["messages"])
    client.close()
    assert answer.usage and answer.usage.prompt_tokens > 1120 + 25 + 560


def test_a_form_that_chat_completions_lack_fails_its_row_alone(table: Path) -> None:
    (table / "sound.csv").write_text("id,sound\na,a.flac\n")
    (table / "a.flac").write_bytes(b"fLaC" + b"\0" * 100)
    job = make_job(
        table, SEEN, input={"path": "sound.csv", "image": None, "audio": "sound"}, endpoint={"provider": "openai"}
    )
    assert run(job) == 1
    assert results(table)["error_kind"].to_list() == ["file"]


def test_video_is_refused_by_name_where_the_protocol_has_no_word_for_it(table: Path) -> None:
    with pytest.raises(JobError, match=r"\[input\] video"):
        make_job(table, SEEN, input={"image": None, "video": "picture"}, endpoint={"provider": "openai"})


def test_the_job_of_the_page_runs(table: Path, cli: Callable[..., Ran]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "media.md").read_text("utf-8")
    (table / "photos.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    (table / "table.csv").rename(table / "photos.csv")
    (table / "photos.csv").write_text("id,photo\nr,red.png\n")
    assert cli("run", "photos.toml", "--offline").code == 0


@pytest.mark.parametrize(
    ("kind", "address", "form"),
    [
        ("image", "https://pictures.example/a.PNG?sig=1", "image/png"),
        ("image", "https://pictures.example/a", "image/jpeg"),
        ("audio", "https://sounds.example/a.wav", "audio/wav"),
        ("video", "https://films.example/a.mov", "video/mov"),
        ("pdf", "https://papers.example/x.html", "application/pdf"),
    ],
)
def test_an_address_is_passed_on_as_it_stands(tmp_path: Path, kind: Any, address: str, form: str) -> None:
    (found,), why = files(tmp_path, kind).of({"c": address})
    assert (found.uri, found.mime_type, found.size_bytes, found.url, why) == (address, form, 0, "", "")


@pytest.mark.parametrize(
    "address",
    [
        "http://pictures.example/a.png",
        "gs://bucket/a.png",
        "ftp://pictures.example/a.png",
        "file:///etc/passwd",
        "https://me:secret@pictures.example/a.png",
        "https://",
        "https://[::1/a",
    ],
)
def test_an_address_that_cannot_be_asked_about_is_told_without_what_it_holds(tmp_path: Path, address: str) -> None:
    found, why = files(tmp_path).of({"c": address})
    assert found == () and "address" in why and "secret" not in why and "a.png" not in why


def test_cloud_storage_is_for_vertex(table: Path) -> None:
    (table / "table.csv").write_text("id,picture\na,gs://bucket/a.png\n")
    assert run(make_job(table, SEEN)) == 1
    assert run(make_job(table, SEEN, endpoint={"provider": "vertex", "project": "p"}), fresh=True) == 0


def test_an_address_is_the_name_of_its_content(table: Path) -> None:
    rows = "a,https://x.example/1.png\nb,https://x.example/2.png\nc,https://x.example/1.png\n"
    (table / "table.csv").write_text(f"id,picture\n{rows}")
    assert run(make_job(table, SEEN)) == 0
    assert results(table)["calls"].sum() == 2


def test_a_picture_elsewhere_goes_to_chat_completions_by_its_address(url: str) -> None:
    there = replace(media(b"", "image", "image/jpeg"), data=None, uri="https://x.example/1.png")
    body = json.loads(build_request(prompt(there), "gemini-3.5-flash-lite"))
    assert body["messages"][-1]["content"][0]["image_url"]["url"] == "https://x.example/1.png"
    with openai.OpenAI(api_key="k", base_url=f"{url}/v1beta/openai") as client:
        answer = client.chat.completions.create(model=body["model"], messages=body["messages"])
    assert answer.usage and answer.usage.prompt_tokens > 1120


def test_what_is_to_be_fetched_from_within_fails_its_row_and_nothing_is_sent(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (table / "table.csv").write_text("id,picture\na,https://127.0.0.1:1/a.png\nb,red.png\n")
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    with served() as own:
        job = make_job(table, SEEN, endpoint={"base_url": own}, input={"fetch_urls": True})
        assert run_through(prepare.prepare(job, Options())).exit_code == 1
        assert stats(own)["requests"] == 1
    told = pl.read_ndjson(table / "results" / "out.jsonl").sort("id")
    assert told["status"].to_list() == ["invalid", "ok"]
    assert told["error"][0] == "not fetched: 127.0.0.1 is not a public address"


def test_sound_has_its_own_price_in_the_estimate_and_in_the_run(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (table / "a.wav").write_bytes(wav(3000, rate=1000))
    (table / "table.csv").write_text("id,sound\na,a.wav\n")
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    with served(model_version=None) as own:
        job = make_job(
            table,
            SEEN,
            endpoint={"base_url": own},
            input={"image": None, "audio": "sound"},
            model={"name": "gemini-3.1-flash-lite"},
        )
        plan = anyio.run(estimating.estimate, prepare.prepare(job, Options()), Wishes()).plan
        ended = run_through(prepare.prepare(job, Options()))
    sound_usd = 75_000 * 0.5e-6  # by genai-prices, against 0.25 for text
    assert plan.cost_usd is not None and ended.summary.cost_usd is not None
    assert float(plan.cost_usd.expected) == pytest.approx(sound_usd, rel=0.02)
    assert float(ended.summary.cost_usd) == pytest.approx(sound_usd, rel=0.02)


def test_a_cap_reserves_for_sound() -> None:
    target = Target("gemini", "http://x", "p", "gemini-3.1-flash-lite")
    silent = worst_case_usd(prompt(max_output_tokens=1), target)
    loud = worst_case_usd(prompt(replace(media(wav(), "audio", "audio/wav"), tokens=100), max_output_tokens=1), target)
    assert silent is not None and loud is not None and loud > 1.5 * float(silent)
