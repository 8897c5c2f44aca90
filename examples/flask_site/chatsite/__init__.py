"""The site: one page, and what it asks."""

from __future__ import annotations

import uuid

import flask

from ppio_agent import PPIOAgentError
from ppio_agent.client.flask import (
    PPIOAgents,
    current_client,
    error_response,
    stream_response,
)

agents = PPIOAgents()
pages = flask.Blueprint("pages", __name__)


def create_app() -> flask.Flask:
    """Return the app; its secret key is the variable FLASK_SECRET_KEY."""
    app = flask.Flask(__name__)
    app.config.from_prefixed_env()
    # With this no other site can have a visitor's browser ask for the visitor.
    app.config["SESSION_COOKIE_SAMESITE"] = "Strict"
    # The address and the key of the platform come from the environment.
    app.config["PPIO_AGENT"] = {"timeout": 60, "sandbox_timeout": 900}
    agents.init_app(app)
    app.register_blueprint(pages)
    return app


def conversation() -> str:
    """Return the id of the visitor's conversation, which has a sandbox of its own."""
    return flask.session.setdefault("conversation", uuid.uuid4().hex)


@pages.get("/")
def home() -> str:
    conversation()
    return flask.render_template("chat.html")


@pages.post("/ask")
def ask() -> flask.Response:
    message = flask.request.form["message"]
    try:
        stream = current_client.invoke_agent_stream(
            "counter", {"message": message}, session_id=conversation()
        )
    except PPIOAgentError as error:
        flask.current_app.logger.warning("the counter gave no answer: %s", error)
        return error_response(error)
    return stream_response(stream, format="ndjson")
