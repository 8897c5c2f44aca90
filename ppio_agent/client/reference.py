"""What it takes to hold a sandbox from another process: a value to keep or to send."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from ppio_agent.exceptions import ValidationError, WireError
from ppio_agent.wire.json import decode_json, encode_json
from ppio_agent.wire.model import WireModel, visible
from ppio_agent.wire.models import Sandbox, SandboxDetail

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SessionRef"]


@frozen(kw_only=True)
class SessionRef(WireModel):
    """Names one sandbox and the conversation in it, for `attach_session` anywhere.

    A pickled reference carries its tokens, so treat it as one; `to_json` leaves them
    out unless it is asked for them.

    Attributes:
        sandbox_id: The sandbox.
        template_id: What it was made from.
        session_id: The conversation.
        time_to_live: Seconds that each extension gives it.
        domain: Domain of its host names, if the platform named one.
        edge_url: Where requests to it are routed by header, if the platform said so.
        envd_token: Opens the sandbox's own API.
        traffic_token: Opens its ports, if they are closed without.
        auto_pause: Whether it is paused, not ended, when its time to live is over.

    Thread safety: immutable.
    """

    sandbox_id: str = field(validator=visible)
    template_id: str
    session_id: str
    time_to_live: float
    domain: str | None = None
    edge_url: str | None = None
    envd_token: str | None = field(default=None, repr=False)
    traffic_token: str | None = field(default=None, repr=False)
    auto_pause: bool = False

    @classmethod
    def of(
        cls,
        sandbox: Sandbox | SandboxDetail,
        *,
        sandbox_id: str,
        session_id: str | None,
        time_to_live: float,
        auto_pause: bool,
    ) -> Self:
        """Return the reference of a sandbox that the platform described.

        Args:
            sandbox: Its description.
            sandbox_id: The id that it goes by.
            session_id: The conversation; None is called by the sandbox's id.
            time_to_live: Seconds that each extension gives it.
            auto_pause: Whether it is paused when that is over.
        """
        return cls(
            sandbox_id=sandbox_id,
            template_id=sandbox.template_id,
            session_id=session_id or sandbox_id,
            time_to_live=time_to_live,
            domain=sandbox.domain,
            edge_url=sandbox.edge_url,
            envd_token=sandbox.envd_access_token,
            traffic_token=sandbox.traffic_access_token,
            auto_pause=auto_pause,
        )

    def with_tokens_of(self, known: SessionRef) -> Self:
        """Return it with the tokens that only another reference has.

        Nothing else is taken from there: where requests go is for the platform to say,
        not for a text that may have been in other hands.
        """
        return attrs.evolve(
            self,
            envd_token=self.envd_token or known.envd_token,
            traffic_token=self.traffic_token or known.traffic_token,
        )

    def to_json(self, *, include_tokens: bool = False) -> str:
        """Return the reference as JSON text.

        Args:
            include_tokens: Whether the tokens are in it. Without them `attach_session`
                takes what the platform gives it for the key of the client.
        """
        found = self.to_dict() if include_tokens else self.public_dict()
        return encode_json(found).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the reference that `to_json` wrote.

        Raises:
            ValidationError: It is no such text.
        """
        data = text.encode() if isinstance(text, str) else text
        try:
            return cls.from_dict(decode_json(data))
        except WireError as error:
            raise ValidationError(
                f"this is no reference of a session: {error}"
            ) from error
