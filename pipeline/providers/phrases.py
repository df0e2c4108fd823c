"""What services and relays say when they refuse, in their own words: the one place to add another wording.

Collected from Google, OpenAI, OpenRouter, DeepSeek, one-api and its descendants, Zhipu, Moonshot, Alibaba, vLLM,
llama.cpp and LiteLLM, 2026-11.
"""

import re
from typing import Literal

Meaning = Literal["money", "no_channel", "pace", "key", "too_long", "blocked", "no_model", "capacity", "busy"]

PHRASES: dict[Meaning, tuple[str, ...]] = {
    # Nothing is answered until somebody pays or raises a limit. Before the key: a key without credit is refused too.
    "money": (
        r"prepa(?:y|id)\w* credits?",
        r"credits? (?:are|is|have been|has been|were) (?:depleted|exhausted|used up|insufficient)",
        r"(?:out of|run out of|not enough|no|insufficient|requires? more) (?:api |account )?credits?\b",
        r"balance (?:is |has )?(?:been )?(?:too low|insufficient|not enough|not sufficient)",
        r"balance (?:is |has )?(?:been )?(?:exhausted|depleted|negative|zero|used up)",
        r"(?:insufficient|not enough|no|low) (?:account |user |wallet |credit )?(?:balance|funds|money)",
        r"insufficient[_ -](?:user[_ ]|account[_ ])?(?:quota|balance|credits?|funds)",
        r"quota is not enough|(?:user|token) quota (?:is )?(?:insufficient|exhausted)",
        r"spend(?:ing)?[- ](?:limit|cap)|billing (?:hard )?limit",
        r"budget (?:has been |was |is )?exceeded|exceeded (?:the |your |its )?(?:\w+ )?budget",
        r"billing (?:is )?(?:not active|not enabled|disabled)|requires billing to be enabled",
        r"arrear|overdue[- ](?:payment|bill)|payment (?:is )?(?:required|overdue)|account in good standing",
        r"exceeded (?:the |your )?credit limit|credits? exhausted|please (?:recharge|top up|add (?:\w+ )?credits)",
        r"(?:subscription|trial|plan) (?:has |is |was )?(?:expired|ended)",
        "余额不足|余額不足|余额已用|余额为(?:0|零|负)|余额小于|账户余额(?:低|过低)|帐户余额",
        "(?:余额|额度|配额|积分|点数|余量|次数)(?:已经?)?(?:不足|不够|用[尽完]|耗[尽完])|套餐(?:已经?)?(?:到|过)期",
        "额度不足|額度不足|额度已(?:用|耗)|額度已(?:用|耗)|额度(?:用|耗)[尽完]|剩余额度(?:不足|为0)|配额不足",
        "预扣费(?:额度)?失败|預扣費(?:額度)?失敗|欠费|欠費|请(?:先|及时|尽快)?充值|請(?:先|及時)?充值|充值后",
        "资源包(?:已)?(?:用|耗)[尽完]|套餐(?:已)?(?:用|耗)[尽完]|账户已停服",
        "残高(?:が)?不足|잔액(?:이)? ?부족|недостаточно (?:средств|баланса)",
        r"saldo insuficiente|(?:solde|cr[ée]dits?) insuffisant|guthaben (?:ist )?(?:aufgebraucht|erschöpft)",
    ),
    # The relay has nobody to pass the request on to: its operator has to mend that.
    "no_channel": (
        "无可用(?:的)?(?:渠道|通道|账号|帐号)|無可用(?:的)?(?:渠道|通道|帳號)|(?:没有|暂无)可用(?:的)?(?:渠道|通道)",
        "可用(?:渠道|通道)不存在",
        r"no available (?:channel|distributor|account|provider)",
    ),
    # Too fast, told without a 429.
    "pace": (
        r"rate[ _]limit|too many requests|throttl(?:ed|ing)",
        "请求(?:过于|太)?频繁|請求(?:過於|太)?頻繁|请求(?:数)?(?:过|太)[多快]|操作(?:过于|太)?频繁|访问(?:过于|太)?频繁",
        "达到(?:总)?请求(?:数|次数)限制",
        "频率(?:过高|超限|限制)|速率限制|限流|并发(?:数|量)?(?:过高|超限|超过|达到)",
    ),
    # A key that nobody takes.
    "key": (
        r"api[ _]key (?:is )?(?:not valid|not found|expired|invalid|incorrect|disabled)",
        r"(?:invalid|incorrect|wrong) api[ _]?key|multiple authentication credentials",
        r"account (?:has been |is |was )?(?:suspended|deactivated|disabled|frozen|banned)",
        "(?:账户|账号|帐号|用户)已?被?(?:冻结|禁用|停用|封禁)",
        r"invalid (?:access|auth|bearer|api) ?token|invalid authentication",
        "(?:无效|错误)的?(?:令牌|密钥|凭证|api ?key)|(?:無效|錯誤)的?(?:令牌|密鑰|api ?key)",
        "(?:令牌|密钥|api ?key)(?:已|已被)?(?:过期|失效|无效|禁用|不存在|错误|不正确)",
        "(?:令牌|密鑰)(?:已|已被)?(?:過期|失效|無效|禁用)",
        "令牌状态不可用|未提供(?:令牌|密钥)|鉴权失败|认证失败|身份验证失败",
    ),
    # One prompt that is too long for the model.
    "too_long": (
        r"exceeds the maximum number of tokens allowed|maximum context length|payload size exceeds",
        r"exceed(?:s|ing)? (?:the )?(?:model'?s? )?(?:available |maximum )?context (?:window|size|length)",
        r"context (?:window|size|length) (?:is |has been |was )?exceeded|longer than the maximum model length",
        r"prompt is too long|request too large for|range of input length should be",
        "(?:上下文|输入|提示词)(?:长度)?(?:过长|超长|超出|超过)",
    ),
    # One prompt that a filter refuses.
    "blocked": (
        r"content management policy|content exists risk|may contain inappropriate content|considered high risk",
        r"flagged as potentially violating|violat(?:es|ing|ed) (?:our |the )?(?:usage|content) polic",
        "不安全或敏感|敏感(?:内容|词|信息)|内容(?:审核|安全)|违规(?:内容|信息)?",
    ),
    # No prompt is answered under this name.
    "no_model": (
        r"not a valid model|model not (?:exist|found)|model .{1,100} (?:does not exist|is not found|not found)",
        "模型(?:名称)?(?:不存在|错误|无效)|不支持(?:的|该|此)?模型|无效的?模型",
    ),
    # A 429 of a service that has no room for anybody: Vertex AI's quota that all its customers share.
    "capacity": (r"resource exhausted\. please try again later|docs/error-code-429",),
    # A passing state, told as if the request were wrong.
    "busy": (
        r"(?:please )?(?:try again|retry) later|overloaded|temporarily unavailable|high demand",
        "系统繁忙|服务(?:器)?繁忙|负载(?:已)?(?:饱和|过高)|请?稍[后候](?:再试|重试)|稍後再試",
    ),
}
"""Patterns by what they mean; of several meanings the first counts."""

STATUS_OF_NAME = {
    # canonical names of Google's errors
    "invalid_argument": 400,
    "failed_precondition": 400,
    "out_of_range": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "resource_exhausted": 429,
    "cancelled": 499,
    "internal": 500,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
    # names of the Interactions API, and of relays that speak OpenAI's
    "authentication": 401,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "payment_required": 402,
    "insufficient_quota": 402,
    "insufficient_user_quota": 402,
    "insufficient_balance": 402,
    "insufficient_credits": 402,
    "insufficient_funds": 402,
    "pre_consume_token_quota_failed": 402,
    "exceeded_current_quota_error": 402,
    "billing_not_active": 402,
    "billing_hard_limit_reached": 402,
    "credit_balance_too_low": 402,
    "budget_exceeded": 402,
    "arrearage": 402,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "quota_exceeded": 429,
    "too_many_requests": 429,
    "throttling": 429,
}
"""HTTP status that an error's name stands for, in lower case."""

MEANING_OF_NAME: dict[str, Meaning] = {
    "context_length_exceeded": "too_long",
    "exceed_context_size_error": "too_long",
    "content_filter": "blocked",
    "content_policy_violation": "blocked",
    "data_inspection_failed": "blocked",
    "model_not_found": "no_model",
}
"""What an error's name means where its words say nothing that is known, in lower case."""

_DAY = r"(?:per|a|/)[ _-]?day\b|\bdaily\b|\b[rt]pd\b|24 hours|每[日天]|当[日天]|單日|单日|今[日天]"

_SAID = {meaning: "|".join(patterns) for meaning, patterns in PHRASES.items()}  # compiled when something is refused
_MOST_CHARS = 4096


def said(text: str) -> Meaning | None:
    """What an error's words mean, if they are known."""
    start = text[:_MOST_CHARS]
    return next((meaning for meaning, phrases in _SAID.items() if re.search(phrases, start, re.IGNORECASE)), None)


def names_a_day(text: str) -> bool:
    """Whether an error's words are about a quota of the day."""
    return re.search(_DAY, text[:_MOST_CHARS], re.IGNORECASE) is not None
