"""The plug-ins' middleware around one call: what it may pass on, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from attrs import evolve, field, frozen

from ppio_agent._util.redact import SECRET_HEADERS, is_secret_header
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.hooks import ClientMiddleware

from .messages import Request, Response
from .route import split_url
from .streams import RawStream

__all__ = ["Answer", "Chain"]

Answer = Response | RawStream


@frozen(eq=False)
class Chain:
    """One call on its way through the middleware.

    Attributes:
        links: The middleware, outermost first.
        last: Makes the call itself.
        streams: Every stream that was handed on within it, by whomever.

    Thread safety: one thread at a time.
    """

    links: tuple[ClientMiddleware, ...]
    last: Callable[[Request], Answer]
    streams: list[RawStream] = field(init=False, factory=list)

    def run(self, request: Request) -> Answer:
        """Return the answer of the outermost middleware.

        Raises:
            ConfigurationError: A middleware returned what is no answer, passed on
                what is no request, or added headers that are not its business.
        """
        return self._follow(0, _sealed(request))

    def release(self) -> None:
        """Close the streams that were handed on: nobody will read them."""
        for stream in self.streams:
            stream.close()

    def _follow(self, place: int, request: Request) -> Answer:
        if place == len(self.links):
            return self._noted(self.last(request))
        link = self.links[place]

        def call_next(changed: Request) -> Answer:
            passed_on = _checked(link.name, request, changed)
            return self._follow(place + 1, passed_on)

        answer = link.run(call_next, request)
        if not isinstance(answer, Response | RawStream):
            raise ConfigurationError(
                f"the middleware of the plug-in {link.name} returned"
                f" {type(answer).__name__}; it has to return what call_next gave, or"
                " an answer by Response.make or RawStream.of"
            )
        return self._noted(answer)

    def _noted(self, answer: Answer) -> Answer:
        if isinstance(answer, RawStream) and answer not in self.streams:
            self.streams.append(answer)
        return answer


def _checked(plugin: str, received: Request, changed: object) -> Request:
    """Return the request to go on with; it proves who asks to nobody else.

    Raises:
        ConfigurationError: It cannot be passed on.
    """
    if changed is received:
        return received
    if not isinstance(changed, Request):
        raise ConfigurationError(
            f"the middleware of the plug-in {plugin} passed on"
            f" {type(changed).__name__} instead of a request"
        )
    was = _by_name(received.headers)
    added = sorted(
        name
        for name, value in _by_name(changed.headers).items()
        if name in SECRET_HEADERS and was.get(name) != value
    )
    if added:
        raise ConfigurationError(
            f"the middleware of the plug-in {plugin} must not add the headers {added};"
            " give the request an auth of its own, or use ppio_client_auth"
        )
    if split_url(changed.url)[0] == split_url(received.url)[0]:
        return _sealed(changed)
    headers = {
        name: value
        for name, value in changed.headers.items()
        if not (is_secret_header(name) and was.get(name.lower()) == value)
    }
    foreign = changed.auth is not received.auth
    auth = changed.auth if foreign else None
    return _sealed(evolve(changed, headers=headers, auth=auth))


def _sealed(request: Request) -> Request:
    """Return a request whose headers nobody can change by the way, unchecked."""
    return evolve(request, headers=MappingProxyType(dict(request.headers)))


def _by_name(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
