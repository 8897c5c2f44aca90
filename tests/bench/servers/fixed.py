"""A server that costs next to nothing: one fixed answer, one thread.

Clients are measured against it, and the load generator itself.
"""

from __future__ import annotations

import selectors
import socket

from handlers import asked

_BODY = b'{"result":{"prompt":"hello"},"status":"success"}'
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
) % (len(_BODY), _BODY)


def _receive(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 16)
    except ConnectionError:
        return b""


def _serve(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            client: socket.socket = key.fileobj
            if client is listener:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(client, selectors.EVENT_READ)
                continue
            piece = _receive(client)
            if not piece:
                selector.unregister(client)
                client.close()
            elif piece.endswith(b"}"):  # of the JSON, which is all that is asked here
                client.sendall(_ANSWER)


_serve(asked()[0])
