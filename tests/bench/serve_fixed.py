"""A server that costs next to nothing, for measuring clients: one fixed answer."""

from __future__ import annotations

import socket
import sys
import threading

_BODY = b'{"result":{"prompt":"hello"},"status":"success"}'
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
) % (len(_BODY), _BODY)


def _serve(client: socket.socket) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b""
    while piece := client.recv(1 << 16):
        data += piece
        head, mark, body = data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if mark and len(body) >= int(length or 0):
            client.sendall(_ANSWER)
            data = b""


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = listener.accept()
    threading.Thread(target=_serve, args=(connection,), daemon=True).start()
