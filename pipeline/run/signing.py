"""How the robots of DingTalk and Feishu want a post signed that must not come from whoever knows their address.

DingTalk: https://open.dingtalk.com/document/robots/customize-robot-security-settings
Feishu:   https://open.feishu.cn/document/client-docs/bot-v3/add-custom-bot
"""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote_plus

import httpx

from pipeline.sections.alerts import PostFormat


class Signed(NamedTuple):
    """A post as it leaves: `url` has a signature of DingTalk, `body` one of Feishu."""

    url: httpx.URL
    body: Mapping[str, object]


def signed(form: PostFormat, secret: str, url: httpx.URL, body: Mapping[str, object], at_s: float) -> Signed:
    """A post that is signed at `at_s`; both services take it for an hour. Other forms than theirs have no signature."""
    if form == "dingtalk":
        at = str(round(at_s * 1000))
        sign = quote_plus(_hmac(secret, f"{at}\n{secret}"))
        query = url.query.decode()
        return Signed(url.copy_with(query=f"{query}{'&' * bool(query)}timestamp={at}&sign={sign}".encode()), body)
    if form == "feishu":
        at = str(int(at_s))
        return Signed(url, {"timestamp": at, "sign": _hmac(f"{at}\n{secret}", ""), **body})  # its text is the key
    return Signed(url, body)


def _hmac(key: str, text: str) -> str:
    return b64encode(hmac.digest(key.encode(), text.encode(), hashlib.sha256)).decode()
