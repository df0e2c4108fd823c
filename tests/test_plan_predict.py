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
    taught = known(*[("map", 60, 60, 100 + 10 * row, 0) for row in range(81)])
    predictor = Predictor(taught, MODEL)
    prompts = [prompt("map", name=name << 32) for name in range(2000)]
    cells, texts = zip(*(predictor.of(each, 0, "expected") for each in prompts), strict=True)
    drawn = list(map(estimate, texts))
    assert 100 <= min(drawn) < 150 and 850 < max(drawn) <= 900
    assert sum(drawn) / len(drawn) == pytest.approx(500, rel=0.03)
    error = taught.lengths.error("map", 81)
    low, high = (estimate(predictor.of(prompts[5], 0, scenario)[1]) for scenario in SCENARIOS[::2])
    assert [low / drawn[5], high / drawn[5]] == pytest.approx([1 - error, 1 + error], abs=0.01)
    assert (cells[5].output_tokens, cells[5].thinking_tokens) == pytest.approx((500, 0))


def test_a_text_is_as_long_as_predicted_and_differs_by_prompt() -> None:
    predictor = Predictor(NOTHING, MODEL)
    one, other = (prompt(bound=200, name=name << 64) for name in (1, 2**60))
    texts = [predictor.of(each, 0, "expected")[1] for each in (one, other)]
    assert texts[0] != texts[1]
    assert [estimate(text) for text in texts] == pytest.approx([100, 100], abs=1)
