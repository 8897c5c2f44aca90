"""The tree of errors."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from ppio_agent import exceptions
from ppio_agent.exceptions import (
    AgentClientError,
    PPIOAgentError,
    PPIOAgentRuntimeError,
    RequestTimeoutError,
    by_code,
)

CLASSES = sorted(
    (
        cls
        for name in exceptions.__all__
        if isinstance(cls := getattr(exceptions, name), type)
    ),
    key=lambda cls: cls.__name__,
)
TREE = [cls for cls in CLASSES if issubclass(cls, PPIOAgentError)]


def _drawn() -> dict[str, tuple[str, bool]]:
    """Return name -> (parent in the drawing, whether marked as shared)."""
    found: dict[str, tuple[str, bool]] = {}
    above: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        match = re.match(r"([│ ├└─]*)(\w+Error)(\*?)", line)
        if match is None or not (match[1] or line.startswith(("PPIO", "Wire"))):
            continue
        depth = len(match[1]) // 3
        del above[depth:]
        found[match[2]] = (above[-1] if above else "", bool(match[3]))
        above.append(match[2])
    return found


def test_the_drawing_is_the_tree() -> None:
    """The docstring shows every class under its real parent."""
    drawn = _drawn()
    assert set(drawn) == {cls.__name__ for cls in CLASSES}
    for name, (parent, _) in drawn.items():
        if parent:
            cls = getattr(exceptions, name)
            assert issubclass(cls, getattr(exceptions, parent)), name


def test_the_builtin_parents_are_as_drawn() -> None:
    """What the drawing says in parentheses is a real second parent."""
    builtin_parents = re.findall(r"(\w+Error)\*?\s+\((\w+)\)", exceptions.__doc__ or "")
    assert len(builtin_parents) >= 9
    for name, builtin in builtin_parents:
        assert issubclass(
            getattr(exceptions, name), getattr(__import__("builtins"), builtin)
        )


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickle_and_copy(cls: type[PPIOAgentError]) -> None:
    """All attributes and the text are kept, wherever an error travels."""
    error = cls("no template t-1", code="odd", http_status=418, request_id="r-1")
    error.attempts = 3
    error.history = (("NetworkError", None, 0.5),)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert twin.__dict__ == error.__dict__
        assert str(twin) == "no template t-1 (request_id=r-1, attempts=3)"


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_says_what_it_is(cls: type[PPIOAgentError]) -> None:
    """Each class has a code, a status and a word on retrying."""
    assert re.fullmatch(r"[a-z_]+", cls.code)
    assert 400 <= cls.http_status < 600
    assert isinstance(cls.retryable, bool)


def test_a_shared_error_is_caught_by_either_base() -> None:
    """`except` with the base of the runtime or of the client both work."""
    drawn = _drawn()
    shared = {name for name, (_, marked) in drawn.items() if marked}
    for name in shared:
        cls = getattr(exceptions, name)
        assert issubclass(cls, PPIOAgentRuntimeError)
        assert issubclass(cls, AgentClientError)
    assert {"ValidationError", "NetworkError", "InvocationError"} <= shared


def test_codes_lead_back_to_their_class() -> None:
    """A code in an error body is enough to raise the right class."""
    codes = [cls.code for cls in TREE if "code" in cls.__dict__]
    assert sorted(codes) == sorted(set(codes))
    assert all(by_code(cls.code) is cls for cls in TREE)
    assert by_code("no such code") is None
    assert by_code(None) is None


def test_an_unknown_attribute_is_refused() -> None:
    """A misspelt attribute fails where it is written, not where it is read."""
    assert RequestTimeoutError("x", phase="idle").phase == "idle"
    with pytest.raises(TypeError, match="has no attribute 'fase'"):
        RequestTimeoutError("x", fase="idle")
