"""An agent inside a Flask site, at /agent.

    python flask_site.py
    gunicorn --worker-class gthread --threads 64 flask_site:application

    curl -s localhost:8080/
    curl -s localhost:8080/agent/invocations --json '{"prompt": "hello"}'

Views of a site of its own are not needed for a route or two: `app.flask` takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from ppio_agent import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp(name="shouter")
site = flask.Flask(__name__)


@app.entrypoint
def shout(request: dict[str, Any]) -> str:
    """Say it louder."""
    return str(request["prompt"]).upper()


@app.entrypoint(name="spell")
def spell(request: dict[str, Any]) -> Iterator[str]:
    """Say it letter by letter."""
    yield from str(request["prompt"])


@site.get("/")
def home() -> str:
    """Call the agent as what it is: a function of this program."""
    return f"The agent says: {shout({'prompt': 'welcome'})}"


# What the site's server calls: the agent below /agent, the site for all the rest.
application = DispatcherMiddleware(site.wsgi_app, {"/agent": app.wsgi_app})

if __name__ == "__main__":
    app.wsgi_app = application
    app.run()
