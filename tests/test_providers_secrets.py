"""The key is out of whatever a server sends back; money, a pace and a key are told apart in whatever words."""

from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import httpx
import orjson
import pytest
from test_providers_gemini import KEY, answer, generate

from pipeline.errors import JobError
from pipeline.providers.answers import parse_reply
from pipeline.providers.blotting import blotted
from pipeline.providers.failures import classify
from pipeline.providers.gemini import GeminiConnection
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Reply


@pytest.mark.case("R10")
@pytest.mark.parametrize(
    "form",
    [
        KEY,
        b64encode(KEY.encode()).decode(),
        urlsafe_b64encode(f"x-goog-api-key: {KEY}\r\n".encode()).decode(),
        quote(KEY, safe=""),
        "".join(f"%{ord(c):02X}" for c in KEY),
        "".join(f"\\u{ord(c):04x}" for c in KEY),
        "".join(f"&#{ord(c)};" for c in KEY),
        KEY.encode().hex(),
        KEY.replace("-", "\\u002d"),
    ],
)
def test_the_key_is_blotted_out_of_an_echo_in_any_form(form: str) -> None:
    raw = answer(debug={"upstream": "@@"}, text="text").replace(b"@@", form.encode())
    reply = generate(httpx.Response(200, content=raw))
    assert isinstance(reply, Reply) and reply.text == "text" and b"***" in reply.raw
    assert KEY not in repr(reply) + repr(orjson.loads(reply.raw)) and form.encode() not in reply.raw


@pytest.mark.case("R10")
def test_a_key_in_pieces_of_a_stream_is_blotted_out_of_text_and_body() -> None:
    parts = [{"candidates": [{"content": {"parts": [{"text": text}]}}]} for text in ("a " + KEY[:9], KEY[9:] + " b")]
    parts[1]["candidates"][0]["finishReason"] = "STOP"  # type: ignore[assignment]
    raw = b"".join(b"data: " + orjson.dumps(part) + b"\n\n" for part in parts)
    reply = generate(httpx.Response(200, content=raw))
    assert isinstance(reply, Reply) and reply.text == "a *** b" == parse_reply(reply.raw).text
    assert KEY[9:].encode() not in reply.raw


@pytest.mark.parametrize("key", ["test", "offline", "anything", "12345678"])
def test_a_key_that_is_a_word_takes_nothing_out_of_answers(key: str) -> None:
    assert blotted(f"an {key} answer".encode(), key) == f"an {key} answer".encode()


@pytest.mark.case("S5")
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "Your credit balance is too low to access the API."}}, "spend_limit"),
        (402, {}, "spend_limit"),
        (403, {"error": {"message": "预扣费额度失败, 用户剩余额度: ¥0.05"}}, "spend_limit"),
        (401, {"error": {"message": "该令牌额度已用尽"}}, "spend_limit"),
        (429, {"error": {"message": "账户余额不足，请充值后再试"}}, "spend_limit"),
        (200, {"code": 30001, "message": "余额不足，请充值"}, "spend_limit"),
        (200, "余额不足", "spend_limit"),
        (400, {"error": {"message": "您的账户已欠费，请充值后重试。"}}, "spend_limit"),
        (429, {"error": {"message": "余额已耗尽"}}, "spend_limit"),
        (403, {"error": {"message": "您的积分已用完"}}, "spend_limit"),
        (429, {"error": {"message": "套餐已到期，请续费"}}, "spend_limit"),
        (429, {"error": {"message": "You have exceeded your credit limit. Please recharge."}}, "spend_limit"),
        (503, {"error": {"message": "分组 vip 下模型 g 的可用渠道不存在"}}, "fatal"),
        (500, {"error": {"message": "您已达到请求数限制：1分钟内最多请求60次"}}, "rate_limit"),
        (400, {"error": {"message": "用户已被封禁"}}, "auth"),
        (500, {"error": {"message": "Your account has been suspended"}}, "auth"),
        (503, {"error": {"message": "no healthy upstream"}}, "transient"),
        (500, {"error": {"message": "x", "type": "insufficient_quota"}}, "spend_limit"),
        (503, {"error": {"message": "当前分组 default 下对于该模型无可用渠道"}}, "fatal"),
        (400, {"error": {"message": "请求过于频繁，请稍后再试"}}, "rate_limit"),
        (403, {"error": {"message": "无效的令牌"}}, "auth"),
        (200, {"success": False, "message": "令牌已过期"}, "auth"),
        (400, {"error": {"message": "系统繁忙，请稍后再试"}}, "transient"),
        (400, {"error": {"message": 'Invalid value: "my 余额不足 story"'}}, "reject"),
    ],
)
def test_money_a_pace_and_a_key_are_told_apart_in_whatever_words(status: int, body: object, kind: str) -> None:
    raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
    assert classify(status, {}, raw).kind == kind
    failure = generate(httpx.Response(status, content=raw))
    assert isinstance(failure, Failure) and failure.kind == kind and not failure.billed


@pytest.mark.case("S10")
@pytest.mark.parametrize(
    "url",
    ["http://x:99999", "http://x:0", "http://256.1.1.1", "http://a..b", "http://-a.example", f"http://{'a' * 64}.b"],
)
def test_an_address_that_cannot_be_is_refused_at_the_start_by_the_name_of_its_setting(url: str) -> None:
    with pytest.raises(JobError, match="base_url"):
        GeminiConnection(Wire(), api_key=KEY, base_url=url)
