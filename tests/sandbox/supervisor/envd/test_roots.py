"""What a path of a caller means."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor.envd.roots import Roots
from ppio_agent.sandbox.supervisor.envd.rpc import RpcError

# As a platform of a user called `user` has it, and one that runs in a folder of /tmp.
HOST = Roots.of(
    home="/home/user/s/home", app="/tmp/s/app", tmp="/data/s/tmp", confined=True
)
OWN = Roots.of(home="/home/user", app="/app", tmp="/tmp", confined=False)


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("", "/home/user/s/home"),
        ("~", "/home/user/s/home"),
        ("~/a", "/home/user/s/home/a"),
        ("~root/a", "/home/user/s/home/~root/a"),
        ("a/../b//c/.", "/home/user/s/home/b/c"),
        ("/home/user/a", "/home/user/s/home/a"),
        ("/home/user/s/home/a", "/home/user/s/home/a"),
        ("/app", "/tmp/s/app"),
        ("//app/x/", "/tmp/s/app/x"),
        ("/tmp/s/app/x", "/tmp/s/app/x"),
        ("/tmp/x", "/data/s/tmp/x"),
        ("../../tmp/x", "/data/s/tmp/x"),
        ("/home/user/s/homely", "/home/user/s/home/s/homely"),
    ],
)
def test_names_and_folders_of_the_host_mean_the_same(path: str, host: str) -> None:
    """And what is below a name but is the host's own is reached by neither."""
    assert host == HOST.locate(path).host


@pytest.mark.parametrize(
    "path",
    ["/", "/etc/passwd", "..", "../../x", "/home", "/appx", "/app/../etc"],
)
def test_any_other_path_is_refused(path: str) -> None:
    """Where there is a host to be protected."""
    with pytest.raises(RpcError) as caught:
        HOST.locate(path)
    assert caught.value.code == "permission_denied"
    assert OWN.locate(path).path == posixpath.normpath(
        posixpath.join("/home/user", path)
    )


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_what_is_no_path_is_refused(path: str) -> None:
    """Whatever the sandbox."""
    with pytest.raises(RpcError) as caught:
        OWN.locate(path)
    assert caught.value.code == "invalid_argument"


def test_only_folders_of_the_host_are_entered_by_a_link() -> None:
    """A link says what it says to programs, too; its `..` are kept."""
    place = HOST.enter("/tmp/s/app/a/../b")

    assert place is not None
    assert place.parts == ("a", "..", "b")
    assert HOST.enter("/app/x") is None
    assert HOST.enter("/tmp/x") is None
    assert HOST.enter("/tmp/s/apple") is None


names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=6)
paths = st.lists(names | st.sampled_from(["..", ".", "home", "user", "app", ""])).map(
    "/".join
)


@given(paths)
def test_no_path_leads_out(path: str) -> None:
    """It is refused, or below a folder of the sandbox."""
    try:
        place = HOST.locate(path)
    except RpcError as exc:
        assert exc.code == "permission_denied"  # noqa: PT017 - one of two outcomes
        return
    assert not {"", ".", ".."} & set(place.parts)
    assert not any("/" in part for part in place.parts)
    assert HOST.locate(place.path) == HOST.locate(place.host) == place


@given(paths)
def test_a_path_is_what_it_says_without_a_host(path: str) -> None:
    """Read from the home folder on."""
    expected = posixpath.normpath(posixpath.join("/home/user", path))
    if not path.startswith("~"):
        assert OWN.locate(path).host == "/" + expected.lstrip("/")
