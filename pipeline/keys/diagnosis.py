"""What is wrong with a key, as people break it and as services refuse it. Pure; nothing here shows a key."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

MOST_CHARS = 4096
"""Of a key, with room: tokens that are signed have some 1,500."""
_MAKE_ONE = "https://aistudio.google.com/apikey"

Vendor = Literal["Google", "OpenAI"]
_VENDORS: Mapping[str, Vendor] = {
    "generativelanguage.googleapis.com": "Google",
    "aiplatform.googleapis.com": "Google",
    "api.openai.com": "OpenAI",
}
"""Whose keys a host takes; a relay's may look like anybody's."""
_MAKERS: tuple[tuple[str, str], ...] = (  # the longer before the shorter
    ("AIza", "Google"),
    ("AQ.", "Google"),
    ("sk-ant-", "Anthropic"),
    ("sk-or-", "OpenRouter"),
    ("sk-", "OpenAI"),
    ("xai-", "xAI"),
    ("gsk_", "Groq"),
    ("hf_", "Hugging Face"),
    ("AKIA", "Amazon"),
    ("ghp_", "GitHub"),
)
_UNSEEN = {
    "\ufeff": "a byte order mark",
    "\u200b": "a zero-width character",
    "\u200c": "a zero-width character",
    "\u200d": "a zero-width character",
    "\u2060": "a zero-width character",
    "\u00a0": "a space that does not break",
    "\n": "a line break",
    "\r": "a line break",
    "\t": "a tab",
    " ": "a space",
}
_PLACEHOLDER = re.compile(
    r"<.*>|\[.*\]|\{\{?[^\"]*\}?\}|\W*|[\w.\-]*(?:x{4,}|\.{3}|…|\*{3})|changeme|change[-_]me|placeholder"
    r"|(?:your|my|insert|enter|paste|replace)[\w\- ]*(?:key|token|secret)[-_ ]?(?:here)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a key, without the key, and what helps."""

    what: str
    cure: str


def diagnose(value: str, where: str, base_url: str, variables: Sequence[str] = ()) -> Trouble | None:
    """What makes a key one that this address cannot take; None where that is for the service to say.

    `variables` are the names that it may have been set under.
    """
    again = "copy it again, by itself"
    if not value.strip():
        return Trouble(f"{where} is blank", "put the key there")
    if len(value) > MOST_CHARS:
        return Trouble(f"{where} holds {len(value):,} characters, and no key is that long", again)
    if value in variables or re.fullmatch(r"[A-Z][A-Z0-9_]*_(?:KEY|TOKEN)", value):
        return Trouble(f"{where} holds the name of a variable, not a key", "put the key itself there")
    if re.match(r"\$\w|\$\{|%\w+%", value):
        return Trouble(f"{where} holds a variable that nothing filled in", "write double quotes, not single ones")
    if re.match(r"(?:bearer|basic)\s", value, re.IGNORECASE):
        return Trouble(f"{where} has `Bearer` before the key", "leave the word out: it is added where it is needed")
    if re.match(r"(?:x-goog-api-key|authorization|api[-_]?key)\s*[:=]", value, re.IGNORECASE):
        return Trouble(f"{where} has a header's name before the key", again)
    if re.match(r"(?:export\s+)?[A-Z][A-Z0-9_]{3,}=[^=]", value):
        return Trouble(f"{where} has `NAME=` before the key", "leave the name out")
    if (value[0] in "{[" and '"' in value) or value.startswith("-----BEGIN"):
        return Trouble(f"{where} holds a file of credentials, not a key", "a key is one short line")
    if value[0] in "\"'`“”‘’«" or value[-1] in "\"'`“”‘’»":
        return Trouble(f"{where} has quotes around the key", "leave the quotes out")
    if vendor_of(base_url) and _PLACEHOLDER.fullmatch(value):  # who runs a server may call its key as he likes
        return Trouble(f"{where} holds a placeholder, not a key", f"a key of Google's is made at {_MAKE_ONE}")
    for character in value:
        if named := _UNSEEN.get(character):
            return Trouble(f"{where} has {named} in the key", again)
        if not ("!" <= character <= "~") or character in "\"'`":
            return Trouble(f"{where} has characters in the key that no key has", again)
    return _other_makers(value, where, base_url)


def _other_makers(value: str, where: str, base_url: str) -> Trouble | None:
    vendor, maker = vendor_of(base_url), maker_of(value)
    if vendor is None:
        return None
    if value.startswith("ya29."):
        return Trouble(f"{where} holds an access token, which ends within the hour, not a key", f"{vendor} needs a key")
    if maker and maker != vendor:
        return Trouble(
            f"{where} holds a key of {maker}, and {urlsplit(base_url).hostname} takes {vendor}'s",
            "set [endpoint] base_url to the service that the key is of, or take another key: [endpoint] key_env",
        )
    return None


def remark(value: str, base_url: str) -> str:
    """What is worth knowing of a key that may well be good."""
    if vendor_of(base_url) == "Google" and value.startswith("AIza"):
        return f"an old-style key (AIza…): Google has announced that these end; make an AQ.… one at {_MAKE_ONE}"
    return ""


def maker_of(value: str) -> str | None:
    """Whose key it looks like."""
    return next((maker for prefix, maker in _MAKERS if value.startswith(prefix)), None)


def vendor_of(base_url: str) -> Vendor | None:
    """Whose keys are taken at an address; None: nobody knows, as at a relay."""
    try:
        host = (urlsplit(base_url).hostname or "").lower()
    except ValueError:
        return None
    return _VENDORS.get(host) or ("Google" if host.endswith("-aiplatform.googleapis.com") else None)


# --- a key that a service refuses -------------------------------------------------------------------------------------

_COUNTRY = r"user location is not supported|unsupported_country|country, region, or territory not supported"
_REFUSALS: tuple[tuple[str, str], ...] = (
    # Vertex AI, which takes access tokens
    (
        r"no access token|ACCESS_TOKEN_EXPIRED",
        "log in again: `gcloud auth application-default login`; or name the key file of another account in"
        " GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (
        r"IAM_PERMISSION_DENIED|permission '.{1,60}' denied on resource",
        "give the account the role roles/aiplatform.user in that project, or name another one: [endpoint] project",
    ),
    (
        r"(?:vertex ai|agent platform) api has not been used|SERVICE_DISABLED.*aiplatform",
        "enable it for the project: https://console.cloud.google.com/apis/library/aiplatform.googleapis.com",
    ),
    (
        r"api keys are not supported by this api",
        "Vertex AI takes no key but one of its express mode: name such a key, or [endpoint] project and no key",
    ),
    # Google's Developer API and others, which take keys
    (r"reported as leaked", f"Google found the key in public and blocks it for good: make a new one at {_MAKE_ONE}"),
    (r"api[ _]key expired|expired_api_key", f"the key has expired: renew it, or make a new one at {_MAKE_ONE}"),
    (r"api[ _]key not found", f"the key was deleted: make a new one at {_MAKE_ONE}"),
    (
        r"SERVICE_DISABLED|has not been used in project|it is disabled",
        "enable it for the key's project: https://console.cloud.google.com/apis/library/generativelanguage.googleapis.com",
    ),
    (
        r"REFERRER_BLOCKED|ANDROID_APP_BLOCKED|IOS_APP_BLOCKED|IP_ADDRESS_BLOCKED"
        r"|referer .*blocked|client application .*blocked|IP address restriction",
        "the key is restricted to a web page, an app or other addresses: take one without such a restriction, or remove"
        " it at https://console.cloud.google.com/apis/credentials",
    ),
    (
        r"API_KEY_SERVICE_BLOCKED|requests to this api .*blocked",
        "the key may not be used for this API: allow `Generative Language API` among its restrictions at"
        " https://console.cloud.google.com/apis/credentials",
    ),
    (r"CONSUMER_SUSPENDED|has been suspended", "Google has suspended the project: see its mail; use another project's"),
    (r"project has been denied access", "Google denies the project access: ask its support, or use another project's"),
    (
        r"billing country",
        "the service is not sold in the country of the project's billing account: use a project that is billed"
        " elsewhere, Vertex AI, or a relay: [endpoint] base_url",
    ),
    (
        _COUNTRY,
        "no key helps: the service is not offered where this machine goes out. Set HTTPS_PROXY to a proxy elsewhere, or"
        " [endpoint] base_url to a relay",
    ),
    (
        r"ACCESS_TOKEN_TYPE_UNSUPPORTED|invalid authentication credentials|Expected OAuth 2",
        "the key is of a kind that is not taken: an old-style one (AIza…) without restrictions, or no API key at all."
        f" Make a new one (AQ.…) at {_MAKE_ONE}",
    ),
    (
        r"unregistered callers|didn't provide an api key|未提供(?:令牌|密钥)",
        "the key did not arrive: a proxy or a relay drops the header that it is in",
    ),
    (r"multiple authentication credentials", "something on the way adds a second key or token: a proxy, or a relay"),
    (r"API_KEY_INVALID|api[ _]key not valid", f"copy the key again, all of it, from {_MAKE_ONE}"),
    (
        r"incorrect api key|invalid_api_key|invalid (?:bearer |access |api )?token|(?:无效|错误)的?(?:令牌|密钥)",
        "copy the key again, all of it, and see that [endpoint] base_url is the service that it is of",
    ),
    (
        r"(?:令牌|密钥)(?:已|已被)?(?:过期|失效|禁用)|令牌状态不可用",
        "the relay no longer takes the key: make another there",
    ),
    (r"billing", "look at the billing of the key's project"),
)
"""What services say when they take no key, and what helps: the first that fits counts."""


def cure_of(message: str) -> str:
    """What helps against a refusal, by the words of it; "" where they are not known."""
    return next((cure for said, cure in _REFUSALS if re.search(said, message, re.IGNORECASE)), "")


def is_of_country(message: str) -> bool:
    """Whether a refusal is of the place that the request came from, whatever the key."""
    return re.search(_COUNTRY, message, re.IGNORECASE) is not None
