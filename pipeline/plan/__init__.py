"""What a run will take, before a cent is spent."""

from pipeline.plan.forecast import Bought
from pipeline.plan.planner import Input, make
from pipeline.plan.plans import Plan

__all__ = ["Bought", "Input", "Plan", "make"]
