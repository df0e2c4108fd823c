import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chinese import said_in_chinese
from pydantic import BaseModel

from jobs import CHUNKED, PLAIN, make_job, write_job
from pipeline.errors import JobError
from pipeline.job import Job, load
from pipeline.prices import fixed_rates
from pipeline.records import Limits
from pipeline.sections import (
    Budget,
    Cache,
    Chunk,
    Endpoint,
    Input,
    LimitsSection,
    ModelSection,
    Output,
    Prices,
    PromptSection,
    Reduce,
)


def refused(action: Callable[[], object]) -> JobError:
    with pytest.raises(JobError) as caught:
        action()
    assert "pydantic" not in caught.value.message
    said_in_chinese(caught.value)
    return caught.value


def told(error: JobError) -> str:
    """What is wrong, without the file and the line that stand before it."""
    return re.sub(r"^\S+\.toml(:\d+)?: ", "", error.message)


# ---- where a value comes from


def test_a_plain_job_has_the_defaults(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert job.name == "job"
    assert job.model == "gemini-3.5-flash-lite"
    assert job.params.system is None
    assert job.params.max_output_tokens is None
    assert job.limits == Limits()
    assert job.spec.chunk is None
    assert job.spec.endpoint.base_url is None
    assert job.spec.budget.max_usd is None
    assert job.own_rates is None
    assert job.reduce_template is None
    assert job.reduce_params is None


def test_an_empty_endpoint_section_is_no_section(tmp_path: Path) -> None:
    assert make_job(tmp_path, endpoint={}).spec.endpoint == make_job(tmp_path).spec.endpoint


def test_precedence_is_flag_environment_file_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, name = write_job(tmp_path), "endpoint.base_url"
    assert (load(bare).spec.endpoint.base_url, load(bare).origins.get(name)) == (None, None)

    path = write_job(tmp_path, endpoint={"base_url": "http://file"})
    job = load(path)
    assert (job.spec.endpoint.base_url, job.origins[name]) == ("http://file", f"{path}:10")

    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://environment")
    job = load(path)
    assert (job.spec.endpoint.base_url, job.origins[name]) == ("http://environment", "GOOGLE_GEMINI_BASE_URL")

    job = load(path, {name: "http://flag"})
    assert (job.spec.endpoint.base_url, job.origins[name]) == ("http://flag", "flag")


def test_the_environment_counts_without_an_endpoint_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://environment")
    assert make_job(tmp_path).spec.endpoint.base_url == "http://environment"


def test_an_empty_variable_is_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "")
    assert make_job(tmp_path, endpoint={"base_url": "http://file"}).spec.endpoint.base_url == "http://file"


def test_flags_win_one_by_one_and_a_flag_not_given_changes_nothing(tmp_path: Path) -> None:
    path = write_job(tmp_path, limits={"rpm": 5, "tpm": 7})
    job = load(path, {"limits.rpm": 9, "limits.tpm": None, "limits.rpd": 0, "model.name": None})
    assert job.limits == Limits(rpm=9, tpm=7, rpd=0)
    assert job.origins["limits.rpm"] == job.origins["limits.rpd"] == "flag"
    assert (job.origins["model.name"], job.origins["limits.tpm"]) == (f"{path}:6", f"{path}:11")
    assert "limits.concurrency" not in job.origins


def test_the_zone_of_the_days_quota(tmp_path: Path) -> None:
    assert make_job(tmp_path).limits.reset_zone == "America/Los_Angeles"
    assert make_job(tmp_path, limits={"reset_zone": "Europe/Berlin"}).limits == Limits(reset_zone="Europe/Berlin")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "America", "../UTC", "a\0b", "x" * 300])
def test_a_zone_that_does_not_exist_is_refused(tmp_path: Path, zone: str) -> None:
    message = told(refused(lambda: make_job(tmp_path, limits={"reset_zone": zone})))
    assert message.startswith("[limits] reset_zone: ") and "is no time zone" in message


def test_a_flag_is_checked_like_the_file(tmp_path: Path) -> None:
    error = refused(lambda: load(write_job(tmp_path), {"output.path": "out.xlsx"}))
    assert "[output]: path cannot be a workbook" in error.message and "excel = true" in error.message


def test_the_models_prefix_of_google_is_dropped(tmp_path: Path) -> None:
    assert make_job(tmp_path, model={"name": "models/gemini-3.8-flash"}).model == "gemini-3.8-flash"


def test_parameters_reach_every_call(tmp_path: Path) -> None:
    model = {
        "max_output_tokens": 10,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 3,
        "seed": -1,
        "stop": ["END", "完"],
        "thinking": 0,
        "response_mime_type": "application/json",
        "safety": {"harassment": "block_none", "HARM_CATEGORY_HATE_SPEECH": "OFF"},
    }
    job = make_job(tmp_path, CHUNKED, model=model, prompt={"system": "Be kind."})
    params = job.params
    assert (params.max_output_tokens, params.temperature, params.top_p, params.top_k) == (10, 1.0, 0.5, 3)
    assert (params.seed, params.stop, params.thinking) == (-1, ("END", "完"), 0)
    assert params.response_mime_type == "application/json"
    assert params.safety == (("HARM_CATEGORY_HARASSMENT", "BLOCK_NONE"), ("HARM_CATEGORY_HATE_SPEECH", "OFF"))
    assert params.system == "Be kind."
    assert job.reduce_params == params


def test_the_reduce_step_may_have_its_own_system_and_length(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        CHUNKED,
        prompt={"system": "map"},
        model={"max_output_tokens": 10},
        reduce={"system": "", "max_output_tokens": 20},
    )
    assert (job.params.system, job.params.max_output_tokens) == ("map", 10)
    assert job.reduce_params
    assert (job.reduce_params.system, job.reduce_params.max_output_tokens) == ("", 20)


def test_own_prices_become_rates(tmp_path: Path) -> None:
    job = make_job(tmp_path, model={"prices": {"input": 1, "output": 2.5}})
    assert job.own_rates == fixed_rates(1, 2.5)


# ---- columns


def test_columns_are_those_of_the_template(tmp_path: Path) -> None:
    job = make_job(tmp_path, prompt={"template": "{{ b }} {{ a }} {{ text }} {{ chunk }} {{ parts }}"})
    assert job.columns == ("a", "b", "chunk", "parts", "text")


def test_the_text_column_is_not_read_twice(tmp_path: Path) -> None:
    assert make_job(tmp_path, input={"text": "body"}, prompt={"template": "{{ title }}: {{ text }}"}).columns == (
        "title",
    )


def test_a_chunked_job_needs_the_columns_of_both_templates(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        CHUNKED,
        prompt={"template": "{{ title }} {{ chunk }}/{{ chunks }} {{ text }}"},
        reduce={"template": "{{ lang }} {{ title }} {{ parts }}"},
    )
    assert job.columns == ("lang", "title")


def test_a_name_that_only_the_other_step_knows_is_a_column(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        CHUNKED,
        prompt={"template": "{{ text }} {{ parts }}"},
        reduce={"template": "{{ chunk }} {{ text }} {{ parts }}"},
    )
    assert job.columns == ("chunk", "parts", "text")


# ---- the file itself


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(path).name == "job"


def test_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(path).template.source == "Say {{ topic }}"


def test_invalid_toml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("[input]\npath = = 3\n")
    message = refused(lambda: load(path)).message
    assert message == f"{path}:2: this is not valid TOML: Invalid value (column 8)"
    path.write_text("[input]\npath = [1,\n\n")
    assert (
        refused(lambda: load(path)).message
        == f"{path}:2: this is not valid TOML: Invalid value (at the end of the file)"
    )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("path = “reviews.csv”", "plain quotes"),
        ("path＝'reviews.csv'", "plain quotes"),
        (r'path = "C:\Users\x.csv"', "single quotes"),
        ("fetch_urls = yes", "yes is `true`"),
        ("fetch_urls = True", "yes is `true`"),
        ("path = reviews.csv", "put a text in quotes"),
        ("path = = 3", ""),
    ],
)
def test_a_slip_of_toml_says_what_is_meant(tmp_path: Path, line: str, hint: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"[input]\n{line}\n", "utf-8")
    error = refused(lambda: load(path))
    assert error.message.startswith(f"{path}:2: this is not valid TOML")
    assert hint in error.hint and bool(hint) == bool(error.hint)


def test_a_table_in_place_of_a_job_is_told_how_a_job_is_begun(tmp_path: Path) -> None:
    for name in ("my reviews.csv", "t.parquet", "folder"):
        path = tmp_path / name
        path.mkdir() if name == "folder" else path.write_bytes(b"id,text\n\xff,b\n")
        with pytest.raises(JobError) as refusal:
            load(path)
        error = refusal.value
        assert error.message == f"{path} is no job file"
        assert error.hint == f"`pipeline init {shlex.quote(str(path))}` writes one about it"


def test_a_missing_file_suggests_a_job_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.toml").touch()
    for name in ("reviws.toml", "reviews"):
        with pytest.raises(JobError) as refusal:
            load(Path(name))
        assert refusal.value.hint == "did you mean reviews.toml?"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("[" * 5000 + "]" * 5000, "more than 100 deep"),
        ("{a = " * 110 + "1" + "}" * 110, "more than 100 deep"),
        ("9" * 5000, "thousands of digits"),
    ],
)
def test_values_that_python_cannot_hold_are_mistakes_of_the_file(tmp_path: Path, value: str, told: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"[input]\npath = {value}\n")
    assert told in refused(lambda: load(path)).message


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes("[input]\npath = '数据.csv'".encode("gb18030"))
    assert f"{path} is not UTF-8 (byte " in refused(lambda: load(path)).message


def test_a_directory_is_no_job_file(tmp_path: Path) -> None:
    assert refused(lambda: load(tmp_path)).message == f"{tmp_path} is no job file"


def test_a_missing_file_suggests_the_nearest_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "relative to the directory" in refused(lambda: load(Path("jobs/summarize.toml"))).hint
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "summarize.toml").touch()
    error = refused(lambda: load(Path("jobs/sumarise.toml")))
    assert error.message == "no job file at jobs/sumarise.toml"
    assert error.hint == "did you mean jobs/summarize.toml?"


# ---- mistakes in it


@pytest.mark.parametrize(
    ("sections", "message", "hint"),
    [
        ({"model": {"temprature": 1}}, "`temprature` is not a setting of [model]", "did you mean `temperature`?"),
        ({"model": {"name": None, "nmae": "x"}}, "`nmae` is not a setting of [model]", "did you mean `name`?"),
        ({"model": {"max-output-tokens": 1}}, "`max-output-tokens` is not a setting", "`max_output_tokens`"),
        (
            {"limits": {"zzz": 1}},
            "`zzz` is not a setting of [limits]",
            "it knows batch_tokens, concurrency, reset_zone, rpd, rpm, tokens, tpm",
        ),
        (
            {"model": {"name": "m", "rpm": 1}},
            "`rpm` is not a setting of [model]",
            "it is a setting of [limits]: it stands below that line, which has no # before it",
        ),
        ({"output": {"path": "o.csv", "template": 1}}, "`template` is not", "of [prompt] or [reduce] or [refine]: "),
        ({"limit": {"rpm": 1}}, "[limit] is not a section", "did you mean `limits`?"),
        ({"model": None, "modle": {"name": "x"}}, "[modle] is not a section", "did you mean `model`?"),
        ({"chunk": {"max_tokns": 64}}, "`max_tokns` is not a setting of [chunk]", "did you mean `max_tokens`?"),
        ({"model": {"prices": {"inptu": 1}}}, "`inptu` is not a setting of [model.prices]", "did you mean `input`?"),
        ({"output": None}, "the section [output] is missing", "`pipeline settings output`"),
        ({"input": {"path": None}}, "[input] has no `path`", "`pipeline settings input`"),
        ({"model": {"prices": {"input": 1}}}, "[model.prices] has no `output`", "`pipeline settings model`"),
    ],
)
def test_an_unknown_or_missing_name(tmp_path: Path, sections: dict[str, Any], message: str, hint: str) -> None:
    error = refused(lambda: make_job(tmp_path, **sections))
    assert told(error).startswith(message)
    assert error.message.startswith(str(tmp_path / "job.toml"))
    assert hint in error.hint


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"input": {"path": 1}}, "[input] path: input should be a valid string"),
        ({"limits": {"rpm": "1000"}}, "[limits] rpm: input should be a valid integer"),
        ({"limits": {"rpm": True}}, "[limits] rpm: input should be a valid integer"),
        ({"limits": {"rpm": 1.5}}, "[limits] rpm: input should be a valid integer"),
        ({"limits": {"rpm": -1}}, "[limits] rpm: input should be greater than or equal to 0"),
        ({"limits": {"concurrency": 0}}, "[limits] concurrency: input should be greater than or equal to 1"),
        ({"budget": {"max_usd": "5"}}, "[budget] max_usd: input should be a valid number"),
        ({"budget": {"max_usd": True}}, "[budget] max_usd: input should be a valid number"),
        ({"budget": {"max_usd": 0}}, "[budget] max_usd: input should be greater than 0"),
        ({"budget": {"max_usd": float("inf")}}, "[budget] max_usd: input should be a finite number"),
        ({"endpoint": {"timeout_s": float("nan")}}, "[endpoint] timeout_s: input should be a finite number"),
        ({"model": {"temperature": 2.1}}, "[model] temperature: input should be less than or equal to 2"),
        ({"model": {"seed": 2**31}}, "[model] seed: input should be less than 2147483648"),
        ({"model": {"max_output_tokens": 2**63 - 1}}, "[model] max_output_tokens: input should be less than or equal"),
        ({"model": {"thinking": -2}}, "[model] thinking: -2 is no budget"),
        ({"model": {"prices": {"input": 1e308, "output": 1}}}, "[model] prices.input: input should be less than"),
        ({"cache": {"max_mb": 1e308}}, "[cache] max_mb: input should be less than or equal to"),
        ({"endpoint": {"base_url": ""}}, "[endpoint] base_url: it is empty; leave it out for the service's own"),
        ({"endpoint": {"key_env": ""}}, "[endpoint] key_env: it is the name of a variable"),
        ({"output": {"path": "~/out.csv"}}, "[output]: ~/out.csv begins with what only a shell fills in"),
        ({"output": {"path": "$HOME/out.csv"}}, "[output]: $HOME/out.csv begins with what only a shell fills in"),
        ({"output": {"path": "hdfs://bucket/out.csv"}}, "[output]: hdfs://bucket/out.csv is no path of a file on this"),
        ({"model": {"stop": "END"}}, "[model] stop: input should be a valid list"),
        ({"model": {"stop": [1]}}, "[model] stop.0: input should be a valid string"),
        ({"model": {"thinking": "hgih"}}, "[model] thinking: input should be 'minimal', 'low', 'medium', 'high' or"),
        ({"model": {"thinking": True}}, "[model] thinking: input should be"),
        ({"model": {"response_mime_type": "json"}}, "[model] response_mime_type: input should be 'text/plain'"),
        ({"endpoint": {"api_version": "v2"}}, "[endpoint] api_version: input should be 'v1' or 'v1beta'"),
        ({"output": {"path": "out.txt"}}, "[output]: path must end in one of .parquet .csv .jsonl"),
        ({"chunk": {"max_tokens": 64}, "input": {"text": "t"}}, "[chunk] goes together with [reduce] or [refine]"),
        ({"reduce": {"template": "{{ parts }}"}}, "[chunk] goes together with [reduce] or [refine]"),
        ({"refine": {"template": "{{ summary }} {{ text }}"}}, "[chunk] goes together with [reduce] or [refine]"),
        ({"reduce": {}, "refine": {}}, "[reduce] merges the answers to all pieces, [refine] goes from piece to piece"),
    ],
)
def test_a_wrong_value_names_section_key_and_file(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    error = refused(lambda: make_job(tmp_path, **sections))
    assert told(error).startswith(message)
    assert re.match(rf"{tmp_path}/job.toml(:\d+)?: ", error.message)


def test_a_mistake_between_sections_names_the_line_of_one_of_them(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    chunked = path.read_text() + "\n[chunk]\nmax_tokens = 64\n"
    path.write_text(chunked)
    line = chunked.split("\n").index("[chunk]") + 1
    assert f"job.toml:{line}: [chunk] goes together with" in refused(lambda: load(path)).message
    path.write_text(chunked.partition("\n[chunk]")[0].replace("[model]", "[model]\nprefix_cache = true"))
    told = refused(lambda: load(path, {"model.name": "gemini-4-argon"}))
    line = path.read_text().split("\n").index("prefix_cache = true") + 1
    assert told.message.endswith(f"job.toml:{line}") and "keeps no explicit caches" in told.message


@pytest.mark.parametrize("key", ["AIzaSyB_0123456789", "AQ.Ab8RN6-0123456789", "sk-0123456789abcdef"])
def test_a_key_in_place_of_its_variables_name_is_refused_unseen(tmp_path: Path, key: str) -> None:
    for section, values in (
        ("endpoint", {"key_env": key}),
        ("endpoint", {"key": key}),
        ("endpoint", {"key": f"keyring:gemini/{key}"}),
        ("endpoint", {"key": f"env:{key}"}),
        ("cache", {"url": "redis://host/0", "password_env": key}),
    ):
        error = refused(partial(make_job, tmp_path, PLAIN, **{section: values}))
        assert "never the" in error.message and key not in error.message


@pytest.mark.parametrize("flags", [None, {"limits.rpm": 3}])
def test_a_section_that_is_no_table(tmp_path: Path, flags: dict[str, object] | None) -> None:
    path = write_job(tmp_path)
    path.write_text("limits = 5\n" + path.read_text())
    assert told(refused(lambda: load(path, flags))).startswith("[limits]: it is a section: write `[limits]` on a")


def test_an_endpoint_that_is_no_table_beside_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://environment")
    path = write_job(tmp_path)
    path.write_text("endpoint = 5\n" + path.read_text())
    assert told(refused(lambda: load(path))).startswith("[endpoint]: ")


# ---- chunking


def test_chunking_needs_the_text_column(tmp_path: Path) -> None:
    error = refused(lambda: make_job(tmp_path, CHUNKED, input={"text": None}))
    assert told(error).startswith("[chunk] needs [input] text")


@pytest.mark.parametrize("overlap", [33, 64, 1000])
def test_overlap_is_at_most_half_of_a_piece(tmp_path: Path, overlap: int) -> None:
    error = refused(lambda: make_job(tmp_path, CHUNKED, chunk={"overlap_tokens": overlap}))
    assert told(error).startswith("[chunk]: overlap_tokens must be at most half of max_tokens")


def test_overlap_may_be_half_of_a_piece(tmp_path: Path) -> None:
    job = make_job(tmp_path, CHUNKED, chunk={"overlap_tokens": 32})
    assert job.spec.chunk == Chunk(max_tokens=64, overlap_tokens=32)  # type: ignore[call-arg]


def test_a_chunked_template_must_use_the_text(tmp_path: Path) -> None:
    error = refused(lambda: make_job(tmp_path, CHUNKED, prompt={"template": "{{ body }}"}))
    assert error.message.startswith("the template does not use {{ text }}")
    assert "[prompt] template" in error.message


def test_a_reduce_template_must_use_the_parts(tmp_path: Path) -> None:
    error = refused(lambda: make_job(tmp_path, CHUNKED, reduce={"template": "{{ part }}"}))
    assert error.message.startswith("the template does not use {{ parts }}")
    assert "[reduce] template" in error.message


# ---- texts in files beside it


def test_files_are_found_beside_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "map.md").write_bytes("\ufeff{{ text }} 总结".encode())
    (tmp_path / "texts" / "merge.md").write_text("{{ parts }}")
    (tmp_path / "voice.md").write_text("Be kind.\n")
    files = {
        "prompt": {"template": None, "template_file": "texts/map.md", "system_file": "voice.md"},
        "reduce": {"template": None, "template_file": "texts/merge.md"},
    }
    monkeypatch.chdir("/")
    job = make_job(tmp_path, CHUNKED, **files)
    assert job.template.source == "{{ text }} 总结"
    assert job.template.where == str(tmp_path / "texts" / "map.md")
    assert job.params.system == "Be kind.\n"
    assert job.reduce_template and job.reduce_template.source == "{{ parts }}"


@pytest.mark.parametrize(("section", "key"), [("prompt", "template"), ("prompt", "system"), ("reduce", "template")])
def test_a_missing_text_file(tmp_path: Path, section: str, key: str) -> None:
    error = refused(lambda: make_job(tmp_path, CHUNKED, **{section: {key: None, f"{key}_file": "gone.md"}}))
    assert error.message.startswith(f"cannot read {tmp_path / 'gone.md'}")
    error = refused(lambda: make_job(tmp_path, CHUNKED, **{section: {key: None, f"{key}_file": "a\0b"}}))
    assert "no file has such a name" in error.message
    assert f"[{section}] {key}_file" in error.message
    assert "relative to the job file" in error.hint


@pytest.mark.parametrize(("section", "key"), [("prompt", "template"), ("prompt", "system"), ("reduce", "template")])
def test_a_text_given_twice(tmp_path: Path, section: str, key: str) -> None:
    (tmp_path / "a.md").write_text("{{ text }} {{ parts }}")
    both = {key: "{{ text }} {{ parts }}", f"{key}_file": "a.md"}
    error = refused(lambda: make_job(tmp_path, CHUNKED, **{section: both}))
    assert (
        re.sub(r":\d+", "", error.message)
        == f"{tmp_path / 'job.toml'}, [{section}] {key} and {key}_file are both there"
    )
    assert f"`{key}_file`" in error.hint


@pytest.mark.parametrize("section", ["prompt", "reduce"])
def test_a_template_not_given(tmp_path: Path, section: str) -> None:
    error = refused(lambda: make_job(tmp_path, CHUNKED, **{section: {"template": None}}))
    assert error.message == f"{tmp_path / 'job.toml'}, [{section}] template is missing"


def test_a_template_that_does_not_parse_names_its_line(tmp_path: Path) -> None:
    error = refused(lambda: make_job(tmp_path, prompt={"template": "a\n{{ b"}))
    assert error.message.endswith(f"{tmp_path / 'job.toml'}:4, [prompt] template, line 2")


# ---- the fingerprint

FULL: dict[str, Any] = {
    "prompt": {"system": "Be kind."},
    "chunk": {"max_tokens": 64},
    "reduce": {"template": "Merge:\n{{ parts }}"},
    "cache": {"url": "redis://here/0"},
}
CHANGES: dict[type[BaseModel], dict[str, Any]] = {
    Input: {
        "encoding": "gb18030",
        "separator": ";",
        "path": "other.csv",
        "id": "key",
        "text": "content",
        "where": "lang = 'en'",
        "scans": "send",
        "sheet": "2026",
    },
    PromptSection: {
        "template": "{{ text }}!",
        "system": "Be brief.",
        "examples": [{"input": "a", "output": "b"}],
    },
    Chunk: {"max_tokens": 65, "overlap_tokens": 10},
    Reduce: {"template": "{{ parts }}", "system": "Merge.", "max_input_tokens": 200, "max_output_tokens": 7},
    ModelSection: {
        "name": "gemini-3.8-flash",
        "max_output_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 1,
        "seed": 0,
        "stop": ["END"],
        "thinking": "low",
        "response_mime_type": "application/json",
        "safety": {"HARASSMENT": "OFF"},
        "presence_penalty": 0,
        "frequency_penalty": 0.5,
        "media_resolution": "low",
    },
}
NO_CHANGES: dict[type[BaseModel], dict[str, Any]] = {
    Endpoint: {
        "base_url": "http://x",
        "api_version": "v1",
        "key_env": "MY_KEY",
        "key": "env:MY_KEY",
        "timeout_s": 5,
        "proxy": "socks5h://x:1",
        "proxy_env": "MY_PROXY",
        "ca_bundle": "root.pem",
        "connect_timeout_s": 3,
    },
    LimitsSection: {
        "rpm": 1,
        "tpm": 1,
        "rpd": 1,
        "concurrency": 1,
        "reset_zone": "UTC",
        "tokens": "total",
        "batch_tokens": 5,
    },
    Budget: {"max_usd": 1, "max_usd_per_day": 1, "max_usd_per_month": 1, "allow_unpriced": True},
    Cache: {"url": "redis://there/0", "password_env": "REDIS_PASSWORD", "max_age_days": 1, "max_mb": 1},
    Output: {"path": "other.csv", "include_text": True, "csv_safe": True},
}
SECTION_OF: dict[type[BaseModel], str] = {
    Input: "input",
    PromptSection: "prompt",
    Chunk: "chunk",
    Reduce: "reduce",
    ModelSection: "model",
    Endpoint: "endpoint",
    LimitsSection: "limits",
    Budget: "budget",
    Cache: "cache",
    Output: "output",
}


def full_job(directory: Path, section: str = "model", **changes: object) -> Job:
    return make_job(directory, CHUNKED, **{**FULL, section: {**FULL.get(section, {}), **changes}})


def each(changes: dict[type[BaseModel], dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(SECTION_OF[model], key, value, id=f"{SECTION_OF[model]}.{key}")
        for model, values in changes.items()
        for key, value in values.items()
    ]


FOR_FILES = {"files_root": "pictures", "inline_mb": 3, "delete_files": True, "fetch_urls": True}


@pytest.mark.parametrize(("key", "value"), FOR_FILES.items())
def test_where_files_lie_and_how_they_are_sent_does_not_change_the_fingerprint(
    tmp_path: Path, key: str, value: object
) -> None:
    path = {"path": "in.csv", "image": "photo"}
    assert make_job(tmp_path, input={**path, key: value}).fingerprint == make_job(tmp_path, input=path).fingerprint
    with pytest.raises(JobError, match=f"{key} is about the files of a row"):
        make_job(tmp_path, input={"path": "in.csv", key: value})


def test_every_setting_either_changes_the_fingerprint_or_does_not() -> None:
    files: dict[type[BaseModel], set[str]] = {
        Input: {"messages", "image", "audio", "video", "pdf", *FOR_FILES},  # not with [chunk]
        PromptSection: {"template_file", "system_file", "flow", "turns", "turns_column"},  # nor these
        Chunk: {"context"},  # not for pieces as small as these
        Reduce: {"template_file"},
        ModelSection: {"prices", "labels", "stream", "prefix_cache", "lane"},
        Output: {"excel", "schema_", "repair", "prefix"},
        Endpoint: {"provider", "project", "location"},
    }
    for model in {**CHANGES, **NO_CHANGES}:
        told = {*CHANGES.get(model, {}), *NO_CHANGES.get(model, {}), *files.get(model, set())}
        assert told == set(model.model_fields)


@pytest.mark.parametrize(("section", "key", "value"), each(CHANGES))
def test_what_can_change_an_answer_changes_the_fingerprint(
    tmp_path: Path, section: str, key: str, value: object
) -> None:
    assert full_job(tmp_path, section, **{key: value}).fingerprint != full_job(tmp_path).fingerprint


@pytest.mark.parametrize(("section", "key", "value"), each(NO_CHANGES))
def test_what_cannot_change_an_answer_does_not(tmp_path: Path, section: str, key: str, value: object) -> None:
    assert full_job(tmp_path, section, **{key: value}).fingerprint == full_job(tmp_path).fingerprint


def test_who_speaks_to_the_model_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    assert make_job(tmp_path, endpoint={"provider": "openai"}).fingerprint == make_job(tmp_path).fingerprint


def test_who_is_asked_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    before = load(path).fingerprint
    path.write_text(path.read_text() + '[[target]]\nname = "a"\nmodel = "gemini-3.8-flash"\n')
    assert load(path).fingerprint == before


def test_a_csv_for_excel_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    job = full_job(tmp_path, "output", path="out.csv", excel=True)
    assert job.fingerprint == full_job(tmp_path).fingerprint


def test_the_schema_of_answers_changes_the_fingerprint_and_the_names_of_its_columns_do_not(tmp_path: Path) -> None:
    plain, schema = full_job(tmp_path).fingerprint, {"schema": "mood: str"}
    one = full_job(tmp_path, "output", **schema).fingerprint
    assert one == full_job(tmp_path, "output", **schema, prefix="its_").fingerprint != plain
    assert (
        len(
            {
                one,
                *(
                    full_job(tmp_path, "output", **each).fingerprint
                    for each in ({"schema": "mood: int"}, {**schema, "repair": True})
                ),
            }
        )
        == 3
    )


def test_factors_of_own_prices_are_those_of_the_lanes(tmp_path: Path) -> None:
    prices = {"input": 1, "output": 2, "flex": 0.5}
    own = full_job(tmp_path, "model", prices=prices).own_rates
    assert own == fixed_rates(1, 2, flex=0.5) and own.in_lane("flex") == fixed_rates(0.5, 1, flex=0.5)
    assert own.in_lane("batch") == own


def test_prices_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    prices = dict.fromkeys(Prices.model_fields, 1)
    assert full_job(tmp_path, "model", prices=prices).fingerprint == full_job(tmp_path).fingerprint


def test_labels_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    assert full_job(tmp_path, "model", labels={"team": "x"}).fingerprint == full_job(tmp_path).fingerprint


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [("prompt", "system", "Be kind."), ("prompt", "template", "{{ text }}"), ("reduce", "template", "{{ parts }}")],
)
def test_a_file_counts_by_its_text_not_by_its_name(tmp_path: Path, section: str, key: str, text: str) -> None:
    inline = full_job(tmp_path, section, **{key: text}).fingerprint
    found = []
    for name, content in (("a.md", text), ("b.md", text), ("b.md", text + "!")):
        (tmp_path / name).write_text(content)
        found.append(full_job(tmp_path, section, **{key: None, f"{key}_file": name}).fingerprint)
    assert found[0] == found[1] == inline
    assert found[2] != inline


def test_name_place_and_order_of_a_job_file_do_not_count(tmp_path: Path) -> None:
    path = write_job(tmp_path, limits={"rpm": 1})
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / "renamed.toml"
    moved.write_text("".join(f"[{block}" for block in reversed(path.read_text().split("[")[1:])))
    assert load(moved).fingerprint == load(path).fingerprint


def test_a_default_written_out_is_no_change(tmp_path: Path) -> None:
    assert full_job(tmp_path, "chunk", overlap_tokens=0).fingerprint == full_job(tmp_path).fingerprint
    assert full_job(tmp_path, "model", stop=[]).fingerprint == full_job(tmp_path).fingerprint


def test_a_flag_counts_like_the_file(tmp_path: Path) -> None:
    path = write_job(tmp_path, PLAIN)
    other = load(path, {"model.name": "gemini-3.8-flash"}).fingerprint
    assert other == make_job(tmp_path, model={"name": "gemini-3.8-flash"}).fingerprint
    assert other != make_job(tmp_path).fingerprint


# ---- as shipped


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("summarize", {"title"}),
        ("generate", {"sku", "name_en", "name_zh", "category", "features", "price_cny", "audience"}),
        ("extract", {"channel", "lang", "comment"}),
    ],
)
def test_the_shipped_jobs_load(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, columns: set[str]) -> None:
    monkeypatch.chdir(root)
    job = load(Path("jobs") / f"{name}.toml")
    assert job.name == name
    assert set(job.columns) == columns
    assert Path(job.spec.input.path).is_file()
    assert job.spec.budget.max_usd
    assert job.params.system
    assert (job.reduce_template is not None) == (name == "summarize")


def test_every_shipped_job_is_tested(root: Path) -> None:
    assert {path.stem for path in (root / "jobs").glob("*.toml")} == {
        *("summarize", "generate", "extract", "describe", "read_pdf"),
    }


@pytest.mark.case("T14")
@pytest.mark.parametrize("name", ["utf-99", "hex", "rot13", "idna", "Punycode", "", "gb\0"])
def test_an_encoding_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    path = write_job(tmp_path, PLAIN)
    assert "is no encoding; name one as" in refused(lambda: load(path, {"input.encoding": name})).message
    assert load(path, {"input.encoding": "GBK"}).spec.input.encoding == "GBK"


@pytest.mark.parametrize("mark", ["", ";;", '"', "\n", "；"])
def test_a_separator_is_one_character(tmp_path: Path, mark: str) -> None:
    path = write_job(tmp_path, PLAIN)
    assert "a separator is one character" in refused(lambda: load(path, {"input.separator": mark})).message
    assert load(path, {"input.separator": "\t"}).spec.input.separator == "\t"


@pytest.mark.case("S7")
@pytest.mark.parametrize(("section", "key"), [("model", "max_output_tokens"), ("model", "top_k"), ("limits", "rpm")])
def test_a_number_beyond_64_bits_is_refused(tmp_path: Path, section: str, key: str) -> None:
    with pytest.raises(JobError, match=rf"\[{section}\] {key}: the number has more than 64 bits"):
        make_job(tmp_path, PLAIN, **{section: {key: 10**20}})


@pytest.mark.parametrize(
    ("safety", "said"),
    [
        ({"HARRASSMENT": "OFF"}, '"HARRASSMENT" is no category: HARASSMENT, HATE_SPEECH'),
        ({"HARASSMENT": "NONE"}, '"NONE" is no threshold: BLOCK_LOW_AND_ABOVE'),
    ],
)
def test_a_misspelt_filter_is_refused_before_every_row_would_be(
    tmp_path: Path, safety: dict[str, str], said: str
) -> None:
    assert said in refused(lambda: make_job(tmp_path, model={"safety": safety})).message
    make_job(tmp_path, model={"safety": {"image_hate": "block_none", "harm_category_jailbreak": "off"}})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[check]\nholds = 'x'", "[check]: it may come several times: write [[check]], with two brackets"),
        ("[prompt.examples]\ninput = 'x'", "write [[prompt.examples]], with two brackets"),
        ("[target]\nname = 'x'", "write [[target]], with two brackets"),
    ],
)
def test_one_bracket_where_two_belong_is_told_as_such(tmp_path: Path, line: str, said: str) -> None:
    path = write_job(tmp_path)
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert said in refused(lambda: load(path)).message


def test_a_choice_or_a_truth_is_one_mistake(tmp_path: Path) -> None:
    error = refused(lambda: make_job(tmp_path, model={"prefix_cache": "yes"}))
    assert "prefix_cache: input should be 'auto', true or false" in error.message and not error.others


def test_a_category_of_safety_stands_once_however_it_is_spelled(tmp_path: Path) -> None:
    twice = {"harassment": "OFF", "HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"}
    with pytest.raises(JobError, match="safety names HARM_CATEGORY_HARASSMENT twice"):
        make_job(tmp_path, model={"safety": twice})


@pytest.mark.case("S7")
@pytest.mark.parametrize("url", ["", ".", "/", "./", "a\0b"])
def test_a_cache_is_the_path_of_a_file(tmp_path: Path, url: str) -> None:
    with pytest.raises(JobError, match=r"\[cache\]: url must be the path of a file"):
        make_job(tmp_path, cache={"url": url})


@pytest.mark.parametrize(
    "name", ["", " ", "../x", "models/../x", "a//b", "./a", "a/", "a\nb", "a\0", " gemini-3.8-flash"]
)
def test_what_would_change_the_address_is_no_name_of_a_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(JobError, match="is no name of a model"):
        make_job(tmp_path, model={"name": name})


@pytest.mark.parametrize("name", ["[官转]gemini-3.8-flash", "publishers/google/models/gemini-3.8-flash", "a b", "x..y"])
def test_names_that_relays_give_are_names_of_models(tmp_path: Path, name: str) -> None:
    assert make_job(tmp_path, model={"name": name}).model.endswith(name.rpartition("models/")[2])


@pytest.mark.parametrize("lane", ["standard", "flex", "batch", "auto"])
def test_a_lane_changes_no_answer(tmp_path: Path, lane: str) -> None:
    plain = make_job(tmp_path, PLAIN)
    job = make_job(tmp_path, PLAIN, model={"lane": lane}, run={"by": "07:00"}, limits={"batch_tokens": 5})
    assert job.fingerprint == plain.fingerprint and job.params == plain.params
    assert job.batches is (lane in ("batch", "auto"))


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"pack": {"rows": 5}}, r"\[pack\]: a pack"),
        ({"model": {"prefix_cache": "auto"}}, "prefix_cache: a cache costs"),
        ({"endpoint": {"provider": "vertex"}}, "lane = 'batch': Vertex AI's protocol has no word"),
        ({"output": {"schema": {"type": "object"}}}, "no names, and `responseSchema` has no word for that"),
    ],
)
def test_what_cannot_be_together_with_batches_is_named(
    tmp_path: Path, sections: dict[str, dict[str, object]], named: str
) -> None:
    sections = {**sections, "model": {"lane": "batch", **sections.get("model", {})}}
    with pytest.raises(JobError, match=named):
        make_job(tmp_path, PLAIN, **sections)


@pytest.mark.parametrize("by", ["25:00", "soon", "7", "2026-13-01"])
def test_a_deadline_is_a_time(tmp_path: Path, by: str) -> None:
    with pytest.raises(JobError, match="is no time"):
        make_job(tmp_path, PLAIN, run={"by": by})


# ---- mistakes of flags and variables


def test_a_mistake_of_a_flag_names_the_flag(tmp_path: Path) -> None:
    path = write_job(tmp_path, limits={"rpm": 5})
    for name, value, said in (
        ("limits.rpm", -1, "--rpm: [limits] rpm: "),
        ("model.name", "", "--model: [model] name: "),
        ("output.path", "x.txt", "--out: [output]: path must end in"),
        ("model.max_output_tokens", 0, "--set max_output_tokens: [model] max_output_tokens: "),
        ("model.temprature", 1, "--set temprature: `temprature` is not a setting of [model]"),
        ("limits.rpm", 2**70, "--rpm: [limits] rpm: the number has more than 64 bits"),
    ):
        error = refused(lambda name=name, value=value: load(path, {name: value}))  # type: ignore[misc]
        assert error.message.startswith(said), error.message
    path = write_job(tmp_path, endpoint={"base_url": "http://file"}, limits={"rpm": -1, "tpm": -1})
    error = refused(lambda: load(path))
    assert [each.message.split(": [")[0] for each in (error, *error.others)] == [f"{path}:12", f"{path}:13"]


def test_a_text_or_a_schema_that_cannot_be_read_is_named_with_its_line(tmp_path: Path) -> None:
    error = refused(lambda: make_job(tmp_path, prompt={"template": None, "template_file": "gone.md"}))
    assert error.message.endswith(f"\n{tmp_path / 'job.toml'}:4, [prompt] template_file")
    error = refused(lambda: make_job(tmp_path, output={"schema": {"file": "gone.json"}}))
    assert f"{tmp_path / 'job.toml'}:9, [output] schema" in error.message
    (tmp_path / "t.md").write_text("one\n{{ two")
    error = refused(lambda: make_job(tmp_path, prompt={"template": None, "template_file": "t.md"}))
    assert error.message.endswith(f"{tmp_path / 't.md'}, line 2")
