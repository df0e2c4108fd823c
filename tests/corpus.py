"""A table of texts as they come: many languages, code, data, logs and chat, a few very long, some twice, some empty.

All of it is made here, from words in the order of their frequency: the more frequent the more often, as Zipf has it.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from itertools import accumulate
from random import Random
from typing import NamedTuple


class Text(NamedTuple):
    """One document and the sort it was made as."""

    sort: str
    text: str


class _Language(NamedTuple):
    words: str
    between: str = " "
    comma: str = ", "
    stop: str = ". "


_ENGLISH = """
the of and to a in is that it was for on are as with his they at be this from have or by one had not but what all were
when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know government through back much
before going around another between system programme information however development because company different
university international understanding 2024 research market service community important 15 technology experience
responsibility management significant environment public policy question increase national customers delivered support
network measurement September analysis opportunity agreement particularly conditions price quarter returned weather
independent 120 organisation manufacturing Thursday winter harbour kitchen glass silver bicycle mountain careful
unexpected translation communication infrastructure
"""
_GERMAN = """
die der und in zu den das nicht von sie ist des sich mit dem dass er es ein ich auf so eine auch als an nach wie im
für man aber aus durch wenn nur war noch werden bei hat wir was wird sein einen welche sind oder zur um haben einer
mir über ihm diese einem ihr uns zum zwischen können Jahr heute müssen Menschen Arbeit während Regierung Entwicklung
möglich Unternehmen verschiedene Gesellschaft Deutschland Verantwortung Straße Möglichkeit größte Wissenschaft
Änderung Zusammenarbeit Geschäftsführer 2024 Krankenversicherung Lieferung zurück natürlich Bundesregierung Wetter
Kundendienst Verständnis Umweltschutz Qualitätssicherung 15 bedeutend Öffentlichkeit Bürger Gemeinde Ergebnis Frühling
Abteilungsleiter Rechnung Bestellung Verfügung Herstellung Wirtschaftswachstum außerdem Prüfung Datenschutz Zukunft
Verkehrsmittel Küche Mitarbeiterinnen Gebäude gegenüber Donnerstag Zusammenfassung Haltestelle
"""
_FRENCH = """
de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se il sont avec ce son aux cette ou
elle mais ses été être comme nous sa ont deux fait même tout leur après bien où entre aussi temps très sans années
encore peut autres année depuis pays ainsi français développement gouvernement entreprise première société général
personnes toujours travail président également marché problème rapport situation niveau système question politique
nouveau projet possible région activité mémoire qualité sécurité environnement européenne différentes fenêtre 2024
responsabilité livraison réponse améliorer client commande université recherche économique connaissance étranger
maison cuisine hôpital jeudi montagne vélo forêt lumière écriture traduction 15 bibliothèque particulièrement
"""
_RUSSIAN = """
и в не на я что он с как это по но они к у мы за из его то так от все же для вы бы была был только о когда если время
уже или до год ещё может они человек было быть работа после где потом без между жизнь день рука раз вопрос дело страна
мир случай место система общество правительство развитие компания государство информация необходимо большой новый
российский результат процесс возможность исследование университет проблема управление деятельность отношение решение
качество условия программа 2024 предприятие обслуживание покупатель ответственность экономический международный
поддержка доставка погода зима город улица вечером утром говорил сказала работает получили последний окружающая среда
особенно производство 15 образование технология значительно четверг книга гора окно кухня перевод безопасность
"""
_CHINESE = """
的 是 在 了 和 有 不 我们 这 人 一 他 也 就 对 中国 到 说 要 为 与 上 可以 大 会 以 发展 工作 我 着 个 年 中 问题 公司
他们 没有 进行 自己 这个 都 社会 经济 但 从 被 已经 时间 技术 使用 而 因为 市场 情况 还 国家 需要 信息 系统 研究 企业
服务 管理 如果 通过 能 产品 很 政府 学习 影响 重要 方法 由于 世界 更 把 环境 提高 地方 客户 生活 数据 今天 质量 开始
北京 教育 认为 作为 活动 关系 其中 同时 孩子 安全 价格 支持 结果 文化 项目 城市 大学 希望 健康 电影 天气 设计 增加
季度 上海 具有 分析 合作 投资 责任 科学 机器 学校 交通 晚上 部门 报告 决定 国际 朋友 老师 能源 医院 图书馆 互联网
人工智能 实际上 自行车 星期四 厨房 窗户 翻译 冬天 山区 可持续 基础设施
"""
_JAPANESE = """
の は を に が と で も した する て いる から ない ある こと です ます れる この その よう という まで など これ なる
として ため それ もの 日本 私 人 年 時間 について 会社 できる 場合 また 思う 今日 使う 情報 問題 しかし サービス 東京
システム 必要 世界 仕事 学校 考える データ 見る 多い 研究 新しい 開発 社会 経済 技術 大学 生活 政府 市場 利用 管理
ユーザー 方法 結果 品質 天気 お客様 製品 電話 言葉 環境 インターネット 水 子供 コンピューター 安全 関係 教育 国際 部屋
本 図書館 自転車 木曜日 冬 山 台所 翻訳 持続可能 プロジェクト コミュニケーション 四半期 価格 配送
"""
_KOREAN = """
이 그 것은 수 있다 하는 및 있는 에서 한 등 우리는 대한 위해 그리고 또한 가장 사람이 때문에 많은 시간을 하지만 통해
그는 다른 대해 없다 경우 오늘 회사는 일본 한국의 정부는 문제를 사회 경제 기술을 개발 사용하여 서비스 정보를 시스템
연구 결과 중요한 새로운 필요하다 함께 생각한다 시장에서 고객이 관리 방법 세계 대학교 교육 환경 안전한 품질이 배송은
가격 지난 분기 증가했다 말했다 날씨가 겨울 산 부엌 창문 자전거 도서관 목요일 번역 책임 지속가능한 프로젝트
커뮤니케이션 인터넷 데이터 분석 국제 협력 아이들 병원 도시의 교통 저녁에 시작했다 결정 보고서 친구 선생님 2024
"""
_ARABIC = """
في من على إلى أن عن هذا التي كان مع الذي هذه ما لا هو بعد كل ذلك قد بين لم وقد كما أو حيث عند وهو بن خلال أكثر غير قبل
اليوم العالم الناس الوقت العمل الحكومة الشركة السوق النظام المعلومات التنمية المجتمع الاقتصاد الدولة مشكلة جديدة كبيرة
يمكن البحث الجامعة التعليم الخدمة العملاء الجودة الإدارة البيئة المسؤولية التكنولوجيا الدولية المدينة السعر التوصيل
الطقس الشتاء الجبل المطبخ النافذة الدراجة المكتبة الخميس الترجمة المشروع التواصل الإنترنت البيانات التحليل التعاون
الأطفال المستشفى المواصلات مساء بدأت القرار التقرير الصديق المعلم الاستثمار نتيجة المهمة الدعم الربع زيادة
"""
_IDENTIFIERS = [word for word in _ENGLISH.split() if word.isalpha()]
_CHAT = """
lol yeah ok haha so u just wait what omg no really thx see you tmrw nice pic btw where r we going tonight idk maybe
pizza gonna be late sorry love it brb can't believe this is so good lunch
"""
_EMOJI = "😂 👍 ❤️ 🎉 🙏 🔥 😭 🥳 👀 🚀 🍕 ☕ 👩‍💻 🤷 💯"

_LANGUAGES: Mapping[str, _Language] = {
    "english": _Language(_ENGLISH),
    "german": _Language(_GERMAN),
    "french": _Language(_FRENCH),
    "russian": _Language(_RUSSIAN),
    "arabic": _Language(_ARABIC, comma="، "),
    "korean": _Language(_KOREAN),
    "chinese": _Language(_CHINESE, "", "，", "。"),
    "japanese": _Language(_JAPANESE, "", "、", "。"),
}


@cache
def _vocabulary(words: str) -> tuple[list[str], list[float]]:
    chosen = words.split()
    return chosen, list(accumulate(1 / (rank + 20) for rank in range(len(chosen))))


def _words(words: str, count: int, pick: Random) -> list[str]:
    vocabulary, weights = _vocabulary(words)
    return pick.choices(vocabulary, cum_weights=weights, k=count)


def _prose(language: _Language, size: int, pick: Random) -> str:
    """Sentences in paragraphs, of about so many characters."""
    sentences: list[str] = []
    while size > 0:
        first, second = (language.between.join(_words(language.words, pick.randint(3, 11), pick)) for _ in range(2))
        end = "\n\n" if pick.random() < 0.15 else ""
        sentences.append(f"{first[0].upper()}{first[1:]}{language.comma}{second}{language.stop}{end}")
        size -= len(sentences[-1])
    return "".join(sentences)


def _mixed(size: int, pick: Random) -> str:
    chinese, english = _LANGUAGES["chinese"], _vocabulary(_ENGLISH)[0]
    sentences = (
        _prose(chinese, 40, pick).replace("，", f" {pick.choice(english)} {pick.choice(english)} ")
        for _ in range(size // 50 + 1)
    )
    return "".join(sentences)


def _names(count: int, pick: Random) -> list[str]:
    return [word.lower() for word in pick.choices(_IDENTIFIERS, k=count)]


def _code(size: int, pick: Random) -> str:
    return "\n".join(_function(_names(2, pick), pick) for _ in range(size // 320 + 1))


def _function(names: list[str], pick: Random) -> str:
    name, other = names
    return f'''def {name}_{other}({other}: int, limit: float = {pick.randint(0, 99)}) -> list[str]:
    """Return the {name} of each {other}."""
    if {other} > self.max{name.title()}:
        raise ValueError(f"{name} {{{other}!r}} is too large")
    for index, item in enumerate({name}s[:{other}]):
        {name}.append(item.{other}() * {pick.random():.2f} + index)
    return sorted({name}, key=lambda {other[0]}: {other[0]}.{name})
'''


def _json(size: int, pick: Random) -> str:
    records = [
        {
            "id": pick.randint(10_000, 99_999),
            "name": " ".join(_names(3, pick)).title(),
            "tags": _names(2, pick),
            "price": round(pick.random() * 300, 2),
            "in_stock": pick.random() < 0.5,
            "createdAt": f"2024-{pick.randint(1, 12):02}-{pick.randint(1, 28):02}T08:{pick.randint(10, 59)}:00Z",
        }
        for _ in range(size // 170 + 1)
    ]
    return json.dumps(records, indent=pick.choice((None, 2)))


def _csv(size: int, pick: Random) -> str:
    rows = (
        f"{pick.randint(1, 99_999)},{' '.join(_names(2, pick))},{pick.random() * 100:.2f},{pick.choice('YN')},"
        f"{pick.randint(1, 28)}/{pick.randint(1, 12)}/2024,{pick.choice(_names(3, pick))}@example.com"
        for _ in range(size // 58 + 1)
    )
    return "id,name,amount,active,date,email\n" + "\n".join(rows)


def _log(size: int, pick: Random) -> str:
    rows = (
        f"10.{pick.randint(0, 255)}.{pick.randint(0, 255)}.7 - - [22/Nov/2024:{pick.randint(10, 23)}:07:44 +0000] "
        f'"GET https://example.com/{"/".join(_names(3, pick))}?id={pick.getrandbits(48):x}&page={pick.randint(1, 40)} '
        f'HTTP/1.1" {pick.choice((200, 200, 304, 404, 500))} {pick.randint(200, 90_000)}'
        for _ in range(size // 135 + 1)
    )
    return "\n".join(rows)


def _chat(size: int, pick: Random) -> str:
    lines = (
        f"{pick.choice(('ana', 'Ben', 'mei_88', 'Omar'))}: {' '.join(_words(_CHAT, pick.randint(1, 9), pick))}"
        f"{pick.choice(('', '!', '??', '...'))} {' '.join(_words(_EMOJI, pick.randint(0, 3), pick))}"
        for _ in range(size // 35 + 1)
    )
    return "\n".join(lines)


_MADE: Mapping[str, Callable[[int, Random], str]] = {
    "mixed": _mixed,
    "code": _code,
    "json": _json,
    "csv": _csv,
    "log": _log,
    "chat": _chat,
}
SORTS = (*_LANGUAGES, *_MADE)
"""What sorts of text there are."""


def make_text(sort: str, size: int, pick: Random) -> str:
    """A text of this sort, of roughly so many characters."""
    return _MADE[sort](size, pick) if sort in _MADE else _prose(_LANGUAGES[sort], size, pick)


def make_corpus(documents: int = 1_200, seed: int = 0) -> list[Text]:
    """So many documents of 100 to 30,000 characters, the same for one seed; 1 in 40 is a copy, 1 in 80 is empty."""
    pick = Random(seed)
    texts: list[Text] = []
    for number in range(documents):
        if number % 80 == 79:
            texts.append(Text("empty", ""))
        elif number % 40 == 38:
            texts.append(pick.choice(texts))
        else:
            sort = SORTS[number % len(SORTS)]
            size = round(min(30_000, max(100, pick.lognormvariate(6.9, 1.2))))
            texts.append(Text(sort, make_text(sort, size, pick)[:30_000]))
    return texts
