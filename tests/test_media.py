import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.media import Resolution, audio_tokens, image_tokens, pdf_tokens, video_tokens

NEW, OLD = "gemini-3.8-flash", "gemini-2.5-flash"


@pytest.mark.parametrize(
    ("resolution", "image", "frame", "page"),
    [(None, 1120, 70, 560), ("low", 280, 70, 280), ("medium", 560, 70, 560), ("high", 1120, 280, 1120)],
)
@pytest.mark.parametrize("model", [NEW, "models/gemini-3.5-flash-lite", "gemini-4-argon", "gemini-flash-latest"])
def test_gemini_3_and_4(model: str, resolution: Resolution | None, image: int, frame: int, page: int) -> None:
    assert image_tokens(model, resolution) == image
    assert video_tokens(model, 60, resolution) == 60 * (frame + 25)
    assert pdf_tokens(model, 12, resolution) == 12 * page


@pytest.mark.parametrize(
    ("resolution", "image", "frame", "page"),
    [(None, 2048, 256, 256), ("low", 64, 64, 64), ("medium", 256, 256, 256), ("high", 2048, 256, 256)],
)
def test_gemini_2_5(resolution: Resolution | None, image: int, frame: int, page: int) -> None:
    assert image_tokens(OLD, resolution) == image
    assert video_tokens(OLD, 60, resolution) == 60 * (frame + 32)
    assert pdf_tokens(OLD, 12, resolution) == 12 * page


def test_the_finest_resolution_is_for_single_images_of_the_newer_models() -> None:
    assert image_tokens(NEW, "ultra_high") == 2240
    with pytest.raises(ValueError, match=r"video .* ultra_high with gemini-3\.8-flash; there are low, medium, high"):
        video_tokens(NEW, 10, "ultra_high")
    with pytest.raises(ValueError, match="PDF has no resolution ultra_high"):
        pdf_tokens(NEW, 1, "ultra_high")
    with pytest.raises(ValueError, match=r"image .* ultra_high with gemini-2\.5-flash; there are low, medium, high"):
        image_tokens(OLD, "ultra_high")


@pytest.mark.parametrize("model", ["gpt-5", "gemini-2.0-flash", "gemini-1.5-pro", "mine"])
def test_a_model_without_a_published_rule_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match=f"no token rule for media is published for {model}"):
        image_tokens(model)
    with pytest.raises(ValueError, match="no token rule"):
        audio_tokens(model, 1)


def test_a_second_of_sound() -> None:
    assert (audio_tokens(NEW, 60), audio_tokens(OLD, 60)) == (1500, 1920)
    assert audio_tokens(NEW, 0.5) == 13  # begun tokens count


def test_frames_are_sampled_at_the_given_rate() -> None:
    assert video_tokens(NEW, 30, fps=0.1) == 3 * 70 + 750
    assert video_tokens(NEW, 30, fps=2) == 60 * 70 + 750
    assert video_tokens(NEW, 0.5) == 70 + 13


@given(st.floats(0, 10_000), st.floats(0, 10_000), st.sampled_from([NEW, OLD]))
def test_longer_is_never_less_and_sound_is_part_of_a_video(first: float, second: float, model: str) -> None:
    short, long = sorted((first, second))
    assert audio_tokens(model, short) <= audio_tokens(model, long)
    assert audio_tokens(model, short) <= video_tokens(model, short) <= video_tokens(model, long)
