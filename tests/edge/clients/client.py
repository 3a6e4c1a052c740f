"""Python's clients: http.client, httpx over HTTP/1 and HTTP/2, and websockets.

Arguments: the URL in clear, the URL over TLS, and `events` if the event path is judged there.
Prints `NAME: ok`, or `NAME:` and what is wrong. A package that is not installed is left out.
"""

import asyncio
import hashlib
import http.client
import json
import os
import ssl
import sys

CLEAR, TLS = sys.argv[1:3]
JUDGED = len(sys.argv) > 3
EVENT = '/v1/event/?_a=62515&_n=a&q="<b>"'
LARGE = bytes(range(250)) * 200_000


def context():
    """A new one: httpx changes what it is given."""
    return ssl.create_default_context(cafile=os.environ["CERTIFICATE"])


def check(name, run):
    try:
        run()
        print(f"{name}: ok")
    except Exception as error:
        print(f"{name}: {error!r}")


def assert_echoed(answer, sent):
    answer = json.loads(answer)
    assert answer["length"] == len(sent), answer
    assert answer["sha256"] == hashlib.sha256(sent).hexdigest(), answer


def standard_library():
    connection = http.client.HTTPConnection(CLEAR.removeprefix("http://"))

    def ask(*request, **more):
        connection.request(*request, **more)
        answer = connection.getresponse()
        return answer, answer.read()

    if JUDGED:
        answer, pixel = ask("GET", EVENT)
        assert answer.headers["X-Event-Verdict"] == "accepted", answer.headers
        assert len(pixel) == 43
    pieces = (LARGE[:70_000], b"end")
    _, body = ask("POST", "/echo", body=iter(pieces), encode_chunked=True)
    assert_echoed(body, b"".join(pieces))
    answer, body = ask("GET", "/range", headers={"Range": "bytes=5-9"})
    assert (answer.status, body) == (206, b"56789")


def client_of(httpx, base, http2):
    return httpx.Client(base_url=base, http1=not http2, http2=http2, verify=context(), timeout=60)


def with_httpx(httpx, base, http2):
    name = f"httpx, {'HTTP/2' if http2 else 'HTTP/1'}, {base.split(':')[0]}"
    client = client_of(httpx, base, http2)

    def version(answer):
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1"), answer.http_version

    def events():
        for _ in range(20):
            answer = client.get(EVENT)
            version(answer)
            assert answer.headers["x-event-verdict"] == "accepted", answer.headers
            assert len(answer.content) == 43
        answer = client.get("/v1/event/?_a=1", headers={"Accept": "application/json"})
        assert answer.json()["reason"] == "missing_event", answer.text

    def upload():
        pieces = [b"hello", b"", LARGE[:100_000]]
        answer = client.post("/echo", content=iter(pieces))
        version(answer)
        assert_echoed(answer.content, b"".join(pieces))

    def ranges():
        head = client.head("/range")
        assert (head.headers["content-length"], head.content) == ("100", b"")
        part = client.get("/range", headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, b"56789")

    def large():
        assert_echoed(client.put("/echo", content=LARGE).content, LARGE)
        digest, answer = hashlib.sha256(), None
        with client.stream("GET", "/large") as answer:
            for piece in answer.iter_bytes():
                digest.update(piece)
        assert digest.hexdigest() == answer.headers["x-sha256"]

    if JUDGED:
        check(f"{name}, events", events)
    check(f"{name}, an upload in pieces", upload)
    check(f"{name}, HEAD and Range", ranges)
    check(f"{name}, 50 MB up and down", large)


def with_websockets(websockets, base):
    async def talk():
        tls = context() if base.startswith("https") else None
        for _ in range(20):
            address = base.replace("http", "ws") + "/socket"
            async with websockets.connect(address, ssl=tls) as socket:
                for message in ("", "a word", LARGE[:126], LARGE[:70_000]):
                    await socket.send(message)
                    assert await socket.recv() == message
                await (await socket.ping())

    check(f"websockets over {base.split(':')[0]}", lambda: asyncio.run(talk()))


check("http.client", standard_library)
try:
    import httpx

    for arguments in ((CLEAR, False), (TLS, False), (CLEAR, True), (TLS, True)):
        with_httpx(httpx, *arguments)
except ImportError as error:
    print(f"httpx: left out, {error}")
try:
    import websockets

    for base in (CLEAR, TLS):
        with_websockets(websockets, base)
except ImportError as error:
    print(f"websockets: left out, {error}")
