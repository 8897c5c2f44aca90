"""`Accept` against RFC 9110, spelled out slowly."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.wire.headers import Accept
from tests.fuzz.support import fuzz, header_values, split

MEDIA = st.sampled_from([
    "text/event-stream", "Text/Event-Stream", "application/json", "application/*", "*/*",
    "text/*", "text/html", "*", "", "text/event-streams", "\xa0text/html",
])  # fmt: skip
QUALITIES = st.sampled_from([
    "0", "1", "0.5", "0.25", "1.0", "1.000", "0.", ".5", "1.5", "-1", "2", "", "high",
    "nan", "inf", "1e-1", "0_1", "0.0001", "+1", "\xb2", '"0.5"', "00.5", "0 .5",
])  # fmt: skip
PARAMETERS = st.sampled_from([
    "q=%s", "q=%s", "Q=%s", "q = %s", "level=1;q=%s", 'a="x,y";q=%s', 'a="\\",";q=%s',
    'a="q=0;";q=%s', "q=%s;q=1", "charset=utf-8", 'a="', "", "qq=%s",
])  # fmt: skip
RANGES = st.builds(
    lambda media, parameters, quality: media + ";" + parameters.replace("%s", quality),
    MEDIA,
    PARAMETERS,
    QUALITIES,
)
ACCEPTS = (
    st.lists(MEDIA | RANGES, max_size=5).map(", ".join)
    | st.text("aptexhml/*;q=01.,- \"\\", max_size=60)
    | header_values
)  # fmt: skip


def quality(parameters: list[str]) -> Fraction:
    """Return the weight among the parameters; one that is none is zero."""
    for parameter in parameters:
        name, _, value = (part.strip(" \t") for part in parameter.partition("="))
        if name.lower() != "q":
            continue
        whole, dot, digits = value.partition(".")
        if not all(digit in "0123456789" for digit in whole + digits):
            return Fraction(0)
        if whole not in ("0", "1") and not (whole == "" and dot and digits):
            return Fraction(0)
        found = Fraction(f"{whole or 0}.{digits or 0}")
        return found if found <= 1 else Fraction(0)
    return Fraction(1)


def model(value: str) -> tuple[Fraction, Fraction, Fraction]:
    """Return the weights of event stream (named), JSON, and HTML (named)."""
    ranges = [split(item, ";") for item in split(value, ",")]
    weights: dict[str, Fraction] = {}
    for media, *parameters in ranges:
        weight = max(weights.get(media.lower(), Fraction(0)), quality(parameters))
        if media:
            weights[media.lower()] = weight
    if not weights:
        weights = {"*/*": Fraction(1)}
    for name in ("application/json", "application/*", "*/*"):
        if name in weights:
            json = weights[name]
            break
    else:
        json = Fraction(0)
    named = weights.get
    return (
        named("text/event-stream", Fraction(0)),
        json,
        named("text/html", Fraction(0)),
    )


@fuzz(400)
@given(ACCEPTS)
def test_accept_is_read_as_rfc_9110_says(value: str) -> None:
    """Weights, wildcards, quoted strings; and what the answer is then to be."""
    accept = Accept.parse(value)
    sse, json, html = model(value)
    assert (accept.sse, accept.json, accept.html) == tuple(
        map(float, (sse, json, html))
    )
    assert accept.names_sse == (sse > 0)
    assert accept.envelope == (sse == 0 or 0 < json >= sse)
    assert accept.prefers_html == (0 < html >= json)
