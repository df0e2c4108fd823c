"""A running summary, carried from piece to piece."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_flows import LONG, Service, failed, run, text, told

from jobs import CHUNKED, Sections, make_job
from pipeline.chunking import split
from pipeline.errors import JobError
from pipeline.flows import check_rendering
from pipeline.job import Job
from pipeline.records import Reply, Usage

REFINED: Sections = {
    **{name: section for name, section in CHUNKED.items() if name != "reduce"},
    "refine": {"template": "{{ title }} so far: {{ summary }}\n{{ chunk }}/{{ chunks }}: {{ text }}"},
}


def refined(directory: Path, **sections: Any) -> Job:
    return make_job(directory, REFINED, **sections)


def test_each_piece_is_asked_with_the_answer_so_far(tmp_path: Path) -> None:
    service = Service()
    answer = run(refined(tmp_path), text(LONG, title="T"), service)
    pieces = [LONG[piece.start : piece.end] for piece in split(LONG, 64)]
    count = len(pieces)
    assert count > 3
    first, *others = service.asked
    assert (first.step, first.text) == ("map", f"1/{count}: {pieces[0]}")
    sofar = ["m0.0", *(f"r{n}.{n}" for n in range(1, count))]
    assert [prompt.text for prompt in others] == [
        f"T so far: {sofar[n - 1]}\n{n + 1}/{count}: {pieces[n]}" for n in range(1, count)
    ]
    assert [(p.step, p.level, p.chunk, p.chunks) for p in others] == [("refine", n, n, count) for n in range(1, count)]
    assert service.most_in_flight == 1
    assert [reply.text for reply in answer.replies] == sofar
    assert (answer.final.text, answer.final.status, answer.chunks) == (sofar[-1], "ok", count)
    assert answer.input_tokens_est == sum(prompt.input_tokens_est for prompt in service.asked)


def test_a_text_that_fits_one_piece_is_one_call(tmp_path: Path) -> None:
    service = Service()
    answer = run(refined(tmp_path), text("Short text.", title="T"), service)
    assert [(p.step, p.text) for p in service.asked] == [("answer", "1/1: Short text.")]
    assert answer.chunks == 1


def test_its_calls_have_their_own_parameters_and_no_examples(tmp_path: Path) -> None:
    service = Service()
    job = refined(
        tmp_path,
        prompt={"system": "read", "examples": [{"input": "a", "output": "b"}]},
        model={"max_output_tokens": 10},
        refine={"system": "go on", "max_output_tokens": 20},
    )
    run(job, text(LONG, title="T"), service)
    first, *others = service.asked
    assert (first.params.system, first.params.max_output_tokens, len(first.content)) == ("read", 10, 3)
    told = {(p.params.system, p.params.max_output_tokens, len(p.content)) for p in others}
    assert told == {("go on", 20, 1)}
    assert job.params_of("refine") == others[0].params


@pytest.mark.parametrize("at", [0, 2])
def test_a_piece_that_fails_ends_the_row_with_what_was_paid(tmp_path: Path, at: int) -> None:
    service = Service(lambda prompt: failed() if prompt.chunk == at else told(prompt))
    answer = run(refined(tmp_path), text(LONG, title="T"), service)
    assert (answer.final.status, answer.final.error_kind, answer.final.text) == ("error", "server", "")
    assert len(answer.replies) == len(service.asked) == at + 1


def test_an_answer_that_was_cut_is_carried_on_and_told(tmp_path: Path) -> None:
    cut = Reply("half", "truncated", error_kind="truncated", usage=Usage(9, 0, 9))
    service = Service(lambda prompt: cut if prompt.chunk == 1 else told(prompt))
    answer = run(refined(tmp_path), text(LONG, title="T"), service)
    count = len(service.asked)
    assert (answer.final.status, answer.final.text) == ("truncated", f"r{count - 1}.{count - 1}")
    assert answer.final.error == f"1 of {count} part answers reached max_output_tokens"


def test_an_answer_that_was_cut_with_nothing_in_it_ends_the_row(tmp_path: Path) -> None:
    service = Service(lambda prompt: replace(told(prompt), text="", status="truncated", error_kind="truncated"))
    answer = run(refined(tmp_path), text(LONG, title="T"), service)
    assert (answer.final.status, len(answer.replies)) == ("truncated", 1)


def test_a_template_that_always_fails_is_found_before_anything_is_paid(tmp_path: Path) -> None:
    job = refined(tmp_path, refine={"template": "{{ summary }} {{ text }} {{ title / 2 }}"})
    service = Service()
    answer = run(job, text(LONG, title="T"), service)
    assert (service.asked, answer.final.error_kind) == ([], "template_error")
    with pytest.raises(JobError, match="It fails on each of 2 rows"):
        check_rendering(job, [text(LONG, title="T")] * 2)


def test_a_template_that_one_answer_breaks_ends_the_row_with_what_was_paid(tmp_path: Path) -> None:
    job = refined(tmp_path, refine={"template": "{{ text }} {{ 70 // summary|int }} {{ summary[0] }}"})
    service = Service(lambda prompt: replace(told(prompt), text="0" if prompt.chunk == 1 else "7"))
    answer = run(job, text(LONG, title="T"), service)
    assert (answer.final.error_kind, len(answer.replies)) == ("template_error", 2)


@pytest.mark.parametrize(
    ("template", "lacks"), [("{{ text }}", "summary"), ("{{ summary }}", "text"), ("{{ parts }}{{ text }}", "summary")]
)
def test_a_template_inserts_both_the_answer_so_far_and_the_piece(tmp_path: Path, template: str, lacks: str) -> None:
    with pytest.raises(JobError, match=f"the template does not use {{{{ {lacks} }}}}"):
        refined(tmp_path, refine={"template": template})


def test_it_is_another_job_than_one_that_merges_and_earlier_ones_stay_what_they_were(tmp_path: Path) -> None:
    job = refined(tmp_path)
    assert job.identity["refine"]["template"] == job.refine_template.source if job.refine_template else False
    assert job.fingerprint != refined(tmp_path, refine={"template": "{{ summary }}{{ text }}"}).fingerprint
    assert "refine" not in make_job(tmp_path, CHUNKED).identity
