"""The HTTP API of actors, in parts; `ppio_agent.actors.http_api` is its front door."""
