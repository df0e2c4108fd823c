"""Files are told by their bytes, their sizes are what other people's libraries read, and tokens follow the table."""

import io
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from drawing import pdf, samples, wav
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pypdf import PdfReader, PdfWriter

from pipeline.media import Facts, facts_of, form_of, tokens_by_rule
from pipeline.records import MediaKind, Resolution

SAMPLES = Path(__file__).parent.parent / "sample_data"


def facts(content: bytes) -> Facts:
    return facts_of(io.BytesIO(content), len(content))


def drawn(form: str, width: int, height: int, **options: bool) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(made, form, **options)
    return made.getvalue()


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (b"\0\0\0\x18ftypheic", "image/heic"),
        (b"\0\0\0\x18ftypmif1", "image/heif"),
        (b"GIF89a", "image/gif"),
        (b"RIFF....WAVEfmt ", "audio/wav"),
        (b"ID3\x04", "audio/mp3"),
        (b"\xff\xfb\x90\x00", "audio/mp3"),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"fLaC", "audio/flac"),
        (b"OggS", "audio/ogg"),
        (b"FORM....AIFF", "audio/aiff"),
        (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"\0\0\0\x14ftypqt  ", "video/mov"),
        (b"\0\0\0\x14ftyp3gp4", "video/3gpp"),
        (b"\x1aE\xdf\xa3....webm", "video/webm"),
        (b"\x1aE\xdf\xa3....matroska", "video/matroska"),
        (b"RIFF....AVI LIST", "video/avi"),
        (b"\xef\xbb\xbf\n%PDF-1.7", "application/pdf"),
        (b"<html>", None),
        (b"", None),
        (b"\xff", None),
    ],
)
def test_a_form_is_told_by_the_first_bytes(head: bytes, form: str | None) -> None:
    assert form_of(head) == form


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pixels_are_those_that_pillow_wrote(form: str) -> None:
    found = facts(drawn(form, 321, 123))
    assert (found.width, found.height) == (321, 123)


def test_pixels_of_a_lossless_webp_and_of_a_progressive_jpeg() -> None:
    for content in (drawn("WEBP", 700, 20, lossless=True), drawn("JPEG", 700, 20, progressive=True)):
        found = facts(content)
        assert (found.width, found.height) == (700, 20)


def test_pages_are_those_that_pypdf_counts_also_in_compressed_objects() -> None:
    plain = pdf(["one", "two", "three"])
    assert len(PdfReader(io.BytesIO(plain)).pages) == facts(plain).pages == 3
    writer, packed = PdfWriter(), io.BytesIO()
    for page in PdfReader(io.BytesIO(plain)).pages:
        writer.add_page(page)
    writer.write(packed)
    assert facts(packed.getvalue()).pages == 3


def test_pages_that_cannot_be_counted_are_guessed_and_marked() -> None:
    found = facts(b"%PDF-1.7\n" + b"x" * 120_000)
    assert (found.pages, found.guessed) == (2, True)


def test_seconds_are_read_from_the_header() -> None:
    found = facts(wav(2.5))
    assert (found.mime_type, found.seconds, found.guessed) == ("audio/wav", 2.5, False)


def test_seconds_that_cannot_be_read_are_guessed_and_marked() -> None:
    found = facts(b"\x1aE\xdf\xa3....webm" + b"\0" * 999_988)
    assert found.guessed and found.seconds == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "known", "resolution", "third", "second"),
    [
        ("image", Facts("image/png", 1, 3000, 2000), None, 1120, 256 + 2048),
        ("image", Facts("image/png", 1, 300, 200), None, 1120, 256),
        ("image", Facts("image/png", 1, 3000, 2000), "low", 280, 64),
        ("image", Facts("image/png", 1, 3000, 2000), "medium", 560, 256),
        ("pdf", Facts("application/pdf", 1, pages=3), None, 1680, 768),
        ("pdf", Facts("application/pdf", 1, pages=3), "high", 3360, 768),
        ("audio", Facts("audio/wav", 1, seconds=60), None, 1500, 1920),
        ("video", Facts("video/mp4", 1, seconds=10), None, 950, 2880),
        ("video", Facts("video/mp4", 1, seconds=10), "high", 3050, 2880),
    ],
)
def test_tokens_follow_the_published_table(
    kind: MediaKind, known: Facts, resolution: Resolution | None, third: int, second: int
) -> None:
    assert tokens_by_rule(kind, known, "gemini-3.8-flash", resolution) == third
    assert tokens_by_rule(kind, known, "gemini-2.5-flash", resolution) == second


def test_the_sample_data_is_what_the_script_draws() -> None:
    for name, content in samples().items():
        assert (SAMPLES / name).read_bytes() == content, f"run `.venv/bin/python tests/drawing.py`: {name}"


BEGINNINGS = [
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF0000WEBPVP8 ", b"RIFF0000WEBPVP8X", b"RIFF0000WEBPVP8L", b"GIF89a"),
    *(b"RIFF0000WAVEfmt ", b"ID3\x04\0\0\0\0\0\x10", b"\xff\xfb\x90\x00", b"\xff\xf1\x50\x80", b"fLaC", b"OggS"),
    *(b"FORM0000AIFFCOMM", b"\0\0\0\x20ftypisom", b"\0\0\0\x14ftypqt  ", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    *(b"\x1aE\xdf\xa3webm", b"RIFF0000AVI LIST", b"FLV\x01", b"\0\0\x01\xba", b"%PDF-1.7\n", b""),
]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=400))
def test_whatever_follows_a_beginning_is_read_without_an_error(beginning: bytes, rest: bytes) -> None:
    known = facts(beginning + rest)
    assert known.seconds >= 0 and known.pages >= 0
    for kind in ("image", "audio", "video", "pdf"):
        assert tokens_by_rule(kind, known, "gemini-2.5-flash") > 0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_without_an_error(data: st.DataObject) -> None:
    content = bytearray(
        data.draw(st.sampled_from([wav(0.1), pdf(["a", "b"]), drawn("JPEG", 40, 30), drawn("WEBP", 9, 9)]))
    )
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    facts(bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_a_sound_whose_header_does_not_end_is_guessed_and_holds_nobody_up() -> None:
    started = time.process_time()
    found = facts(wav(1)[:36] + b"\0" * 20_000_000)
    assert found.guessed and found.seconds == pytest.approx(1250, rel=0.01)
    assert time.process_time() - started < 2


def test_a_pdf_that_unpacks_without_an_end_costs_bounded_memory() -> None:
    bomb = zlib.compress(b"/Type /Page " * 1_000_000)
    stream = b"1 0 obj << /Type /ObjStm >>\nstream\n" + bomb + b"\nendstream\n"
    tracemalloc.start()
    found = facts(b"%PDF-1.7\n" + stream * 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.pages > 0 and peak < 60_000_000


@pytest.mark.parametrize(
    ("beginning", "again"),
    [
        (b"%PDF-1.5\n", b"/Type/ObjStm stream\n"),
        (b"%PDF-1.5\n", b"/Type/ObjStm stream\nendstream"),
        (b"\xff\xd8\xff", b"\xff"),
        (b"\xff\xd8", b"\xff\xe0\x00\x02"),
        (b"ID3\4\0\0\0\0\0\0", b"\xff"),
        (b"\0\0\0\x14ftypM4A isomiso2", b"\0\0\0\x08free"),
        (b"fLaC", b"\4\0\0\0"),
    ],
)
@pytest.mark.parametrize("end", [b"", b"endstream"])
def test_a_file_made_to_be_read_for_ever_is_let_be(beginning: bytes, again: bytes, end: bytes) -> None:
    started = time.process_time()
    facts(beginning + again * (4_000_000 // len(again)) + end)
    assert time.process_time() - started < 3
