"""The page on monitoring and the dashboard ask for metrics that there are."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from asking import TARGET, ask
from prometheus_client.metrics_core import Metric
from promtool import promtool
from test_telemetry_metrics import ANSWER, REFUSED, metrics_of, running
from test_telemetry_spans import BATCH, PROMPT, made, told

from pipeline.telemetry.spans import Spans

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "monitoring.md").read_text("utf-8")
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana.json").read_text("utf-8"))
OURS = ("gen_ai_", "prompt_pipeline_")


def families() -> dict[str, Metric]:
    """By their names as Prometheus writes them."""
    monitor = running()
    metrics = metrics_of(monitor)
    monitor.bought(ask(0), ANSWER, True)
    monitor.failed(ask(2), TARGET, REFUSED, 1, 0.1)
    suffix = {"counter": "_total", "info": "_info"}
    found = {each.name + suffix.get(each.type, ""): each for each in metrics.registry.collect()}
    return {name: each for name, each in found.items() if name.startswith(OURS)}


def queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_page_names_every_metric_and_no_other() -> None:
    assert re.findall(r"^\| `((?:gen_ai|prompt_pipeline)_\w+)` \|", PAGE, re.MULTILINE) and set(
        re.findall(r"^\| `((?:gen_ai|prompt_pipeline)_\w+)` \|", PAGE, re.MULTILINE)
    ) == set(families())


def test_every_attribute_on_the_page_is_one_of_a_span() -> None:
    named = set(re.findall(r"`((?:gen_ai|prompt_pipeline|server|error|http)\.[\w.]+)`", PAGE))

    def tell(spans: Spans) -> None:
        spans.answered(PROMPT, ANSWER)
        spans.failed(PROMPT, TARGET, REFUSED, 1, 0.1)
        spans.taken(BATCH, ANSWER.usage)

    found = {name for span in made(tell) for name in told(span)}
    assert named - found == {
        "gen_ai.response.finish_reasons",
        "prompt_pipeline.run",
        "prompt_pipeline.rehearsal",
        "server.port",
    }, "those need a run, a port or a reason"


def test_every_metric_and_label_that_the_dashboard_asks_for_exists() -> None:
    known = {
        name + suffix: {label for sample in family.samples for label in sample.labels} - {"le"}
        for name, family in families().items()
        for suffix in ("", "_bucket")
    }
    texts = [*queries(), *(each["definition"] for each in DASHBOARD["templating"]["list"] if "definition" in each)]
    for text in texts:
        names = re.findall(r"\b(?:gen_ai|prompt_pipeline)_\w+", text)
        assert names and set(names) <= set(known), text
        labels = set(re.findall(r"(\w+)(?:=~|!=|=)\"", text)) | set(
            re.findall(r"\w+", ",".join(re.findall(r"by \(([^)]*)\)", text)))
        )
        assert labels <= {"instance", "le"}.union(*(known[name] for name in names)), text


def test_every_metric_of_the_money_the_quota_and_the_calls_is_on_the_dashboard() -> None:
    shown = set(re.findall(r"\b(?:gen_ai|prompt_pipeline)_\w+", " ".join(queries())))
    missing = {name for name in families() if name not in shown and f"{name}_bucket" not in shown}
    assert missing == {
        "prompt_pipeline_budget_limit_usd",
        "prompt_pipeline_calls_saved_total",
        "prompt_pipeline_calls_unpriced_total",
        "prompt_pipeline_cost_usd_total",
        "prompt_pipeline_quota_limit_told",
        "prompt_pipeline_quota_opens_timestamp_seconds",
        "prompt_pipeline_run_info",
        "prompt_pipeline_session_start_timestamp_seconds",
        "prompt_pipeline_waits_until_timestamp_seconds",
    }


def test_prometheus_understands_the_dashboard_and_the_rule_on_the_page(tmp_path: Path) -> None:
    given = {"$__rate_interval": "1m", "$instance": ".*"}
    rules = []
    for number, text in enumerate(queries()):
        for variable, value in given.items():
            text = text.replace(variable, value)
        rules.append({"record": f"dashboard:{number}", "expr": text})
    (tmp_path / "dashboard.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    (rule,) = (block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("groups:"))
    (tmp_path / "page.yml").write_text(rule)
    files = ["dashboard.yml", "page.yml"]
    found = subprocess.run([promtool(), "check", "rules", *files], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(rules)} rules found" in found.stdout and "2 rules found" in found.stdout
