"""Web pages, PDFs, Word documents and e-books as text; each by the library of its kind, imported when one comes."""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from pipeline.documents.decoding import NoText, decoded
from pipeline.documents.finding import Kind

NEEDS: Mapping[Kind, tuple[str, ...]] = {
    "html": ("html_to_markdown",),
    "pdf": ("pypdfium2",),
    "docx": ("mammoth", "html_to_markdown"),
    "epub": ("html_to_markdown",),
}
"""The packages of the extra `documents` that a kind needs."""
MOST_UNPACKED_BYTES = 100_000_000
"""Of what is read of a .docx or .epub, all its parts unpacked."""
MOST_PARTS = 10_000
"""Files within a .docx or .epub."""
_DECLARED = re.compile(
    rb"""<(?:meta[^>]{0,200}?charset|\?xml[^>]{0,200}?encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
_HEAD_BYTES = 4096
_PASSWORD = 4  # pdfium's number of the error
_LEAST_ON_PAGE = 10
"""Characters of a page that has a text: a scanned one may bear a number, or the stamp of the machine."""
_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ue000-\uf8ff\ufffd]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HYPHEN = re.compile("\ufffe\n?|\x02\n")  # what pdfium makes of a hyphen at the end of a line
_OPF, _DC = "{http://www.idpf.org/2007/opf}", "{http://purl.org/dc/elements/1.1/}"
_CORE = "docProps/core.xml"


def html(content: bytes, encoding: str | None) -> tuple[str, str | None]:
    """The text of a web page as Markdown, and its title. Raises `NoText`."""
    declared = _DECLARED.search(content[:_HEAD_BYTES])
    source = decoded(content, encoding, declared[1].decode("ascii", "replace") if declared else None)
    return _markdown(source), _title(source)


def _title(source: str) -> str | None:
    found = re.search(r"<title[^>]*>(.*?)</title", source[:100_000], re.IGNORECASE | re.DOTALL)
    return " ".join(_markdown(found[1]).split()) or None if found else None


def _markdown(source: str) -> str:
    from html_to_markdown import ConversionOptions, PreprocessingOptions, convert

    options = ConversionOptions(
        skip_images=True,
        extract_metadata=False,
        strip_tags=["a"],  # the words of a link, without where it leads
        preprocessing=PreprocessingOptions(enabled=False),  # everything that a reader sees, menus too
    )
    found = convert(source, options)
    if any("depth_limit" in str(warning.kind) for warning in found.warnings):
        raise NoText("its elements are nested too deeply to be read as a whole")
    return clean(found.content or "").strip("\n\ufeff")


def pdf(content: bytes) -> tuple[str, str | None, int, int, bool]:
    """The text of a PDF, its title, its pages, how many of them show something but text, and whether those are more
    than those with a text. Raises `NoText`."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PASSWORD:
            raise NoText("it is encrypted: save it without its password") from None
        raise NoText("it is no whole PDF") from None
    texts = []
    pages, bare = len(document), 0
    for number in range(pages):
        try:
            page = document[number]
            text = _page(page.get_textpage().get_text_bounded())
            bare += not text and any(True for _ in page.get_objects(max_depth=1))
        except pypdfium2.PdfiumError:
            raise NoText(f"its page {number + 1} cannot be read") from None
        texts.append(text)
    title = clean(document.get_metadata_value("Title")).strip()
    return "\n\n".join(filter(None, texts)), title or None, pages, bare, bare > sum(map(bool, texts))


def _page(text: str) -> str:
    """The text of a page; empty where it has too little, or where its fonts do not say which characters they show."""
    shown = "".join(text.split())
    if len(shown) < _LEAST_ON_PAGE or 4 * len(_ODD.findall(shown)) > len(shown):
        return ""
    lines = _HYPHEN.sub("", text.replace("\r\n", "\n")).split("\n")
    return clean("\n".join(line.rstrip() for line in lines)).strip("\n")


def docx(content: bytes) -> tuple[str, str | None]:
    """The text of a Word document as Markdown, and its title. Raises `NoText`."""
    import mammoth

    if content.startswith(b"\xd0\xcf\x11\xe0"):
        raise NoText("it is encrypted, or an old .doc: save it as .docx without a password")
    with _archive(content, "Word document") as archive:
        names = archive.namelist()
        if not any(name.endswith("document.xml") or name == "word/document2.xml" for name in names):
            raise NoText("it is no Word document, whatever its name says")
        core = _xml(archive, _CORE) if _CORE in names else None
    title = "" if core is None else (core.findtext(f"{_DC}title") or "").strip()
    try:
        found = mammoth.convert_to_html(io.BytesIO(content), convert_image=_no_image, include_embedded_style_map=False)
    except RecursionError:
        raise NoText("its elements are nested too deeply to be read") from None
    except MemoryError:
        raise
    except Exception as error:  # of a damaged one, in ways of the library
        raise NoText(f"it is no whole Word document ({type(error).__name__})") from None
    return _markdown(found.value), title or None


def _no_image(image: object) -> list[Any]:
    return []


def epub(content: bytes) -> tuple[str, str | None]:
    """The text of an e-book as Markdown, chapter by chapter, and its title. Raises `NoText`."""
    with _archive(content, "e-book") as archive:
        names = set(archive.namelist())
        if "META-INF/container.xml" not in names:
            raise NoText("it is no e-book, whatever its name says")
        container = _xml(archive, "META-INF/container.xml")
        root = next((each.get("full-path") for each in container.iter() if each.get("full-path")), None)
        if root not in names or root is None:
            raise NoText("it is no whole e-book: it does not say what is in it")
        book = _xml(archive, root)
        title = (book.findtext(f".//{_DC}title") or "").strip()
        chapters = [name for name in _spine(book, PurePosixPath(root).parent) if name in names]
        texts = [html(_part(archive, name), None)[0] for name in dict.fromkeys(chapters)]
    if not any(texts) and "META-INF/encryption.xml" in names:
        raise NoText("it is encrypted")
    return "\n\n".join(filter(None, texts)), title or None


def _spine(book: ElementTree.Element, folder: PurePosixPath) -> Iterator[str]:
    """The names of the chapters, in the order in which they are read."""
    items = {item.get("id"): item.get("href", "") for item in book.iter(f"{_OPF}item")}
    for reference in book.iter(f"{_OPF}itemref"):
        if href := items.get(reference.get("idref")):
            yield _plain(folder / unquote(href.partition("#")[0]))


def _plain(path: PurePosixPath) -> str:
    """A path within an archive without steps upward."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    return "/".join(parts)


def _archive(content: bytes, what: str) -> zipfile.ZipFile:
    """A zip archive that is within bounds when it is unpacked, as it says itself: no more is ever read of it."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        raise NoText(f"it is no whole {what}") from None
    parts = archive.infolist()
    if any(part.flag_bits & 1 for part in parts):
        raise NoText("it is encrypted: save it without its password")
    if len(parts) > MOST_PARTS:
        raise NoText(f"it has {len(parts):,} parts, and {MOST_PARTS:,} are the most")
    read = sum(part.file_size for part in parts if part.filename.lower().endswith(_READ))
    if read > MOST_UNPACKED_BYTES:
        raise NoText(f"it has {read:,} bytes when it is unpacked, and {MOST_UNPACKED_BYTES:,} are the most")
    return archive


_READ = (".xml", ".rels", ".opf", ".xhtml", ".html", ".htm")


def _part(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise NoText(f"its part {name} cannot be read: {error}") from None
    except Exception as error:
        if type(error).__name__ in ("error", "LZMAError"):  # zlib's and lzma's
            raise NoText(f"its part {name} is damaged") from None
        raise


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(_part(archive, name))
    except ElementTree.ParseError:
        raise NoText(f"its part {name} is damaged") from None


def clean(text: str) -> str:
    """Text without half characters and without what no text has."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _CONTROL.sub("", whole.replace("\r\n", "\n").replace("\x0c", "\n").replace("\r", "\n"))
