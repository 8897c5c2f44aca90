"""An agent inside a Django site, at /agent.

    python django_site.py
    gunicorn --worker-class gthread --threads 64 django_site:application

    curl -s localhost:8080/
    curl -s localhost:8080/agent/invocations --json '{"prompt": "hello"}'

A real site has its settings and URLs in files of their own; the last lines, which put
the agent in front of Django's handler, belong into its `wsgi.py`.
"""

from __future__ import annotations

from typing import Any

import django.conf
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from ppio_agent import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp(name="shouter")


@app.entrypoint
def shout(request: dict[str, Any]) -> str:
    """Say it louder."""
    return str(request["prompt"]).upper()


def home(_request: HttpRequest) -> HttpResponse:
    """Call the agent as what it is: a function of this program."""
    return HttpResponse(f"The agent says: {shout({'prompt': 'welcome'})}")


urlpatterns = [path("", home)]
django.conf.settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"], ROOT_URLCONF=__name__
)

# What the site's server calls: the agent below /agent, Django for all the rest.
application = DispatcherMiddleware(get_wsgi_application(), {"/agent": app.wsgi_app})

if __name__ == "__main__":
    app.wsgi_app = application
    app.run()
