"""An agent that answers questions about a table of sales.

It understands a few words ("total", "best sellers", "by month", a region, a month, a
year) and keeps the last question in memory, so that "and in the south?" works. There
is no language model in it: what matters here is how an agent is served and called.
"""

from __future__ import annotations

import calendar
import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from ppio_agent import PPIOAgentRuntimeApp, RequestContext

MONTHS = [name.lower() for name in calendar.month_name[1:]]


@frozen
class Sale:
    """One row of the table."""

    date: str
    region: str
    product: str
    units: int
    amount: float


@frozen
class Question:
    """What was asked, as far as it was understood."""

    topic: str = ""
    region: str | None = None
    month: int | None = None
    year: int | None = None

    def covers(self, sale: Sale) -> bool:
        """Whether a sale counts for the answer."""
        return (
            self.region in (None, sale.region)
            and self.year in (None, int(sale.date[:4]))
            and self.month in (None, int(sale.date[5:7]))
        )

    def scope(self) -> str:
        """Say in words what the answer covers."""
        words = [MONTHS[self.month - 1].capitalize()] if self.month else []
        words += [str(self.year)] if self.year else []
        when = " ".join(words) or "all time"
        return f"{when}, {self.region or 'all regions'}"


def load(path: Path) -> list[Sale]:
    """Read the table."""
    with path.open(newline="") as file:
        return [
            Sale(
                date=row["date"],
                region=row["region"],
                product=row["product"],
                units=int(row["units"]),
                amount=int(row["units"]) * float(row["unit_price"]),
            )
            for row in csv.DictReader(file)
        ]


SALES = load(Path(__file__).with_name("sales.csv"))
REGIONS = sorted({sale.region for sale in SALES})

app = PPIOAgentRuntimeApp(name="sales-agent", version="1.0.0")
memory: dict[str, Question] = {}  # the last question; one sandbox, one conversation


def understand(text: str, last: Question | None) -> Question:
    """Read a question; what it leaves open is taken from the one before it."""
    words = re.findall(r"[a-z]+|\d{4}", text.lower())
    topic = ""
    if "month" in words or "months" in words or "monthly" in words:
        topic = "months"
    elif "best" in words or "top" in words:
        topic = "best"
    elif "total" in words or "revenue" in words:
        topic = "total"
    asked = Question(
        topic=topic,
        region=next((word for word in words if word in REGIONS), None),
        month=next((MONTHS.index(word) + 1 for word in words if word in MONTHS), None),
        year=next((int(word) for word in words if word.isdigit()), None),
    )
    if not topic:
        if last is None:
            raise ValueError(
                "ask for a total, the best sellers, or sales by month;"
                f" regions are {', '.join(REGIONS)}"
            )
        asked = evolve(
            asked,
            topic=last.topic,
            region=asked.region or last.region,
            month=asked.month or last.month,
            year=asked.year or last.year,
        )
    return asked


def answer(question: Question) -> dict[str, Any]:
    """Answer one question from the table."""
    sales = [sale for sale in SALES if question.covers(sale)]
    if not sales:
        first, last = SALES[0].date[:4], SALES[-1].date[:4]
        raise LookupError(
            f"no sales for {question.scope()}; the table covers {first} to {last}"
        )
    amounts: Counter[str] = Counter()
    for sale in sales:
        key = {"best": sale.product, "months": sale.date[:7]}.get(question.topic, "all")
        amounts[key] += sale.amount  # type: ignore[assignment]  # counts money
    if question.topic == "total":
        text = f"{amounts['all']:,.2f}"
    elif question.topic == "best":
        best = amounts.most_common(3)
        text = "; ".join(f"{name} {amount:,.2f}" for name, amount in best)
    else:
        text = "; ".join(f"{month} {amounts[month]:,.2f}" for month in sorted(amounts))
    return {"answer": text, "scope": question.scope(), "rows": len(sales)}


def report(context: RequestContext) -> Iterator[str]:
    """Write a report line by line, as a model would write it word by word."""
    yield f"Sales report over {len(SALES):,} rows"
    for region in REGIONS:
        context.sleep(0.2)
        total = answer(Question("total", region=region))["answer"]
        best = answer(Question("best", region=region))["answer"].partition(";")[0]
        yield f"{region}: {total}, led by {best}"
    context.sleep(0.2)
    yield f"all regions: {answer(Question('total'))['answer']}"


@app.entrypoint
def sales_agent(request: dict[str, Any], context: RequestContext) -> Any:
    """Answer `{"prompt": question}`; a question with "report" in it is streamed."""
    text = str(request.get("prompt") or request.get("query") or "")
    if "report" in text.lower():
        return report(context)
    question = understand(text, memory.get("last"))
    found = answer(question)
    memory["last"] = question
    return {**found, "pid": os.getpid()}


@app.ping
def health() -> dict[str, Any]:
    """Say that the agent is well, and how much it knows."""
    return {"status": "healthy", "rows": len(SALES)}


if __name__ == "__main__":
    app.run(port=8080)
