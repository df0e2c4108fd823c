"""What a person sees: plans, progress, summaries, errors."""

from pipeline.console.checks import show_steps, steps_json
from pipeline.console.differences import show_differences, show_differences_json
from pipeline.console.exports import show_exported, show_exported_calls
from pipeline.console.failures import show_failures
from pipeline.console.live import ended, follow
from pipeline.console.plans import show_cancelling, show_estimate
from pipeline.console.plans_json import plan_json
from pipeline.console.progress import PilotWatch, notice, watch
from pipeline.console.reports import models_json, show_models, show_runs, show_standing, show_summary
from pipeline.console.rows import show_row, show_row_json, show_rows, show_rows_json
from pipeline.console.screen import (
    busy,
    count,
    duration,
    err,
    money,
    out,
    reading,
    show_columns,
    show_error,
    show_failure,
    show_grid,
    show_hint,
    show_json,
    things,
)
from pipeline.console.settings import settings_json, show_section, show_sections, show_setting
from pipeline.console.starts import show_beginning

__all__ = [
    "PilotWatch",
    "busy",
    "count",
    "duration",
    "ended",
    "err",
    "follow",
    "models_json",
    "money",
    "notice",
    "out",
    "plan_json",
    "reading",
    "settings_json",
    "show_beginning",
    "show_cancelling",
    "show_columns",
    "show_differences",
    "show_differences_json",
    "show_error",
    "show_estimate",
    "show_exported",
    "show_exported_calls",
    "show_failure",
    "show_failures",
    "show_grid",
    "show_hint",
    "show_json",
    "show_models",
    "show_row",
    "show_row_json",
    "show_rows",
    "show_rows_json",
    "show_runs",
    "show_section",
    "show_sections",
    "show_setting",
    "show_standing",
    "show_steps",
    "show_summary",
    "steps_json",
    "things",
    "watch",
]
