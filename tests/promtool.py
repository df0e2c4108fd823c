"""Prometheus' own tool for checking metrics, rules and queries, where it is installed."""

import os
import shutil

import pytest


def promtool() -> str:
    """Its path. In CI it must be installed; elsewhere the test is skipped."""
    program = shutil.which("promtool")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is not installed: .ci/run does that")
        pytest.skip("promtool is not installed")
    return program
