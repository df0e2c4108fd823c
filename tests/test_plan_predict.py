"""What answers are expected to be."""

import pytest
from asking import MODEL
from plans import known, prompt

from pipeline.models import Model, model_info
from pipeline.plan import predict
from pipeline.plan.learned import NOTHING
from pipeline.plan.predict import SCENARIOS, Predictor, predicted_output
from pipeline.tokens import estimate


def test_nothing_known_of_the_length() -> None:
    most = model_info("gemini-3.5-flash-lite")
    assert most is not None
    assert predicted(None) == (0, predict.UNBOUNDED_OUTPUT_TOKENS, most.max_output_tokens)
    assert predicted(800) == (0, 400, 800)
    assert predicted(1) == (0, 1, 1)
    assert predicted(None, "mine")[2] == Model("mine").max_output_tokens


def predicted(bound: int | None, model: str = MODEL) -> tuple[int, ...]:
    return tuple(predicted_output(bound, model, scenario) for scenario in SCENARIOS)


def test_texts_vary_as_known_answers_do() -> None:
    taught = known(*[("map", 60, 60, 10 + row, 0) for row in range(81)])
    predictor = Predictor(taught, MODEL)
    prompts = [prompt("map", name=name << 32) for name in range(2000)]
    drawn = [predictor.text_tokens(each, "expected", 0) for each in prompts]
    assert 10 <= min(drawn) < 15 and 85 < max(drawn) <= 90
    assert sum(drawn) / len(drawn) == pytest.approx(50, rel=0.03)
    error = taught.lengths.error("map", 81)
    assert [predictor.text_tokens(prompts[5], each, 0) / drawn[5] for each in ("low", "high")] == pytest.approx(
        [1 - error, 1 + error]
    )
    assert predictor.call(prompts[5], 0)[3:] == pytest.approx((50, 0))


def test_a_text_is_as_long_as_predicted_and_differs_by_prompt() -> None:
    predictor = Predictor(NOTHING, MODEL)
    one, other = (prompt(bound=200, name=name << 64) for name in (1, 2**60))
    texts = [predictor.text(each, "expected", 0) for each in (one, other)]
    assert texts[0] != texts[1]
    assert [estimate(text) for text in texts] == pytest.approx([100, 100], abs=1)
