"""A parrot: says what it hears, word by word, and remembers the conversation."""

from __future__ import annotations

from collections.abc import Iterator

from ppio_agent import PPIOAgentRuntimeApp, RequestContext

app = PPIOAgentRuntimeApp()
# Of one visitor only: each conversation has a sandbox, and so a process, of its own.
said: list[int] = []


@app.entrypoint
def parrot(request: dict, context: RequestContext) -> Iterator[str]:
    words = str(request["message"]).split()
    said.append(0)
    if len(said) > 1:
        yield f"(Before this I said {said[-2]} words.) "
    for word in words:
        yield f"{word} "
        said[-1] += 1
        context.sleep(0.1)  # raises when the visitor has left or pressed Stop


if __name__ == "__main__":
    app.run()
