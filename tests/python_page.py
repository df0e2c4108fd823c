"""The examples of docs/python.md, written by tests/page.py."""

import asyncio
from decimal import Decimal

import polars as pl

import pipeline as pp

reviews = pl.DataFrame(
    {
        "id": ["r1", "r2"],
        "review": ["Arrived broken, and nobody answers the phone.", "Works as promised."],
    }
)
job = pp.load(
    {
        "input": {"id": "id"},
        "prompt": {"template": "Is this review positive, negative or mixed? One word.\n\n{{ review }}"},
        "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 200, "thinking": "minimal"},
        "limits": {"rpm": 1000, "tpm": 1_000_000},  # what your project is granted
    },
    name="reviews",
)

rehearsed = pp.run(job, reviews, offline=True)  # the emulator answers: no key, no cost
print(pp.estimate(job, reviews))  # nothing is sent
results = pp.run(job, reviews, max_cost_usd=0.50)
print(results)
print(results.frame().select("id", "status", "response"))


job_file = pp.load("reviews.toml")
faster = pp.load("reviews.toml", name="reviews-flash", model={"name": "gemini-3.6-flash"})


try:
    pp.run(faster, reviews)
except pp.PipelineError as error:
    print(error.message)  # nobody said yes to the cost: 2 calls, about $0.0002, …
    print(error.hint)  # what to do about it

estimate = pp.estimate(faster, reviews)
if estimate.cost_usd and estimate.cost_usd.high < Decimal("0.10"):
    pp.run(faster, reviews, yes=True, progress=False)


print(pp.estimate(faster, reviews, pilot=1, max_cost_usd=0.10))


if results.stopped:  # `results.raise_if_stopped()` raises it
    print(results.status, results.stopped, results.stopped.hint)
print(results.ok, results.outcomes, results.causes, results.cost_usd, results.directory)
print(results.failed())  # rows that are not ok, and why

earlier = pp.read(job)  # a run that was made before, or goes on; also by its name
answers = earlier.frame()


async def both() -> None:
    print(await pp.estimate_async(job, reviews))
    runs = (pp.run_async(each, reviews, max_cost_usd=1) for each in (job, faster))
    for ended in await asyncio.gather(*runs):
        print(ended)


asyncio.run(both())
