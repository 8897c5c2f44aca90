"""The pages of the site."""

import uuid

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path

from ppio_agent.client.django import agent_view


def conversation(request: HttpRequest) -> str:
    """Return the id of the visitor's conversation, which has a sandbox of its own."""
    return request.session.setdefault("conversation", uuid.uuid4().hex)


def home(request: HttpRequest) -> HttpResponse:
    conversation(request)
    return render(request, "chat.html")


urlpatterns = [
    path("", home),
    path("ask", agent_view("parrot", session_id=conversation)),
]
