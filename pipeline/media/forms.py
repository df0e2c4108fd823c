"""What a file is, told by its first bytes and never by its name."""

from collections.abc import Mapping

from pipeline.records import MediaKind

HEAD_BYTES = 1024
"""So many bytes tell the form: a PDF may have others before its own."""

TAKEN: Mapping[MediaKind, tuple[str, ...]] = {
    "image": ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"),
    "audio": ("audio/wav", "audio/mp3", "audio/aiff", "audio/aac", "audio/ogg", "audio/flac"),
    "video": (
        *("video/mp4", "video/mpeg", "video/mov", "video/avi", "video/x-flv", "video/webm", "video/wmv"),
        "video/3gpp",
    ),
    "pdf": ("application/pdf",),
}
"""The forms that Gemini takes, as its pages on images, audio, video and documents name them."""

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mp3"),
    (b"FLV\x01", "video/x-flv"),
    (b"\0\0\x01\xba", "video/mpeg"),
    (b"\0\0\x01\xb3", "video/mpeg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/wmv"),
)
_CONTAINERS: Mapping[tuple[bytes, bytes], str] = {
    (b"RIFF", b"WEBP"): "image/webp",
    (b"RIFF", b"WAVE"): "audio/wav",
    (b"RIFF", b"AVI "): "video/avi",
    (b"FORM", b"AIFF"): "audio/aiff",
    (b"FORM", b"AIFC"): "audio/aiff",
}
_BRANDS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"heic", b"heix", b"hevc", b"hevx"), "image/heic"),
    ((b"mif1", b"msf1", b"heim", b"heis"), "image/heif"),
    ((b"avif", b"avis"), "image/avif"),
    ((b"M4A ", b"M4B "), "audio/mp4"),
    ((b"qt  ",), "video/mov"),
    ((b"3gp", b"3g2"), "video/3gpp"),
)


def form_of(head: bytes) -> str | None:
    """The MIME type of a file that begins so, as Gemini names it; None: no form that is known here."""
    for beginning, form in _BEGINNINGS:
        if head.startswith(beginning):
            return form
    if contained := _CONTAINERS.get((head[:4], head[8:12])):
        return contained
    if head[4:8] == b"ftyp":
        return next((form for brands, form in _BRANDS if head[8:12].startswith(brands)), "video/mp4")
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "video/webm" if b"webm" in head[:64] else "video/matroska"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "audio/aac"  # ADTS
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 in (0xE2, 0xE4, 0xE6):
        return "audio/mp3"  # layers III, II and I, without a tag before them
    return "application/pdf" if b"%PDF-" in head[:HEAD_BYTES] else None
