"""Files to send, made with the standard library alone: images, sound, PDFs. As a script it draws the sample data."""

import io
import struct
import wave
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Colour = tuple[int, int, int]


def png(width: int = 64, height: int = 48, colour: Colour = (200, 30, 30)) -> bytes:
    """An image of one colour."""
    return painted(width, height, lambda x, y: colour)


def painted(width: int, height: int, colour_at: Callable[[int, int], Colour]) -> bytes:
    """A PNG whose pixels have the colours that are given."""
    rows = b"".join(b"\0" + b"".join(bytes(colour_at(x, y)) for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def wav(seconds: float = 1.0, rate: int = 8000) -> bytes:
    """Silence."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(rate)
        file.writeframes(b"\x80" * round(seconds * rate))
    return made.getvalue()


def pdf(texts: Sequence[str]) -> bytes:
    """One page for each text, in Helvetica."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in texts:
        shown = b"BT /F1 18 Tf 72 720 Td (" + text.encode("latin-1") + b") Tj ET"
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(shown), shown))
        page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R" % len(objects)
        objects.append(page + b" /Resources << /Font << /F1 3 0 R >> >> >>")
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [ %b ] >>" % (len(kids), b" ".join(kids))
    made = bytearray(b"%PDF-1.4\n")
    places = []
    for number, each in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, each)
    start = len(made)
    made += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    made += b"".join(b"%010d 00000 n \n" % place for place in places)
    made += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(made)


_WHITE, _RED, _BLUE, _GREEN, _YELLOW, _GREY = (
    *((255, 255, 255), (208, 40, 40), (40, 80, 200), (40, 150, 70)),
    *((245, 195, 40), (90, 90, 90)),
)


def _disc(x: int, y: int) -> Colour:
    return _RED if (x - 48) ** 2 + (y - 32) ** 2 < 22**2 else _WHITE


def _bars(x: int, y: int) -> Colour:
    height, colour = ((20, _BLUE), (45, _GREEN), (32, _YELLOW))[min(x // 32, 2)]
    return colour if 6 <= x % 32 < 26 and y >= 60 - height and y < 60 else _WHITE


def _lights(x: int, y: int) -> Colour:
    for centre, colour in ((13, _RED), (32, _YELLOW), (51, _GREEN)):
        if (x - 48) ** 2 + (y - centre) ** 2 < 8**2:
            return colour
    return _GREY if abs(x - 48) < 13 else _WHITE


def samples() -> Mapping[str, bytes]:
    """The files of the sample data that are drawn, by their path in it."""
    scenes = {"disc": _disc, "bars": _bars, "lights": _lights}
    return {f"images/{name}.png": painted(96, 64, scene) for name, scene in scenes.items()} | {
        "pdfs/invoice.pdf": pdf(["Invoice 4711 of 3 March 2026: two lamps, 84.00 EUR", "Payable within 30 days"]),
        "pdfs/lease.pdf": pdf(["Lease of a bicycle cellar: 25.00 EUR a month, notice of three months"]),
    }


if __name__ == "__main__":
    for name, content in samples().items():
        place = Path(__file__).parent.parent / "sample_data" / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
