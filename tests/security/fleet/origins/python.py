"""Origins in Python, each on a port of its own. Prints `NAME: PORT` for each, then `ready`."""

import http.server
import posixpath
import socket
import socketserver
import sys
import threading
import urllib.parse
import wsgiref.simple_server

REACHED = "the event handler was reached"


def is_event(path):
    return path == "/v1/event" or path.startswith("/v1/event/")


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Threads(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
    request_queue_size = 128


def in_background(name, server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"{name}: {server.server_address[1]}", flush=True)


def serve_wsgi(name, app):
    server = wsgiref.simple_server.make_server("127.0.0.1", 0, app, Threads, Quiet)
    in_background(name, server)


def standard_library(files):
    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=files)

        def log_message(self, *_):
            pass

    in_background("Python, http.server", http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files))

    def reader(read):
        def app(environ, start):
            start("200 OK", [("Content-Type", "text/plain")])
            reached = is_event(read(environ["PATH_INFO"]))
            return [REACHED.encode() if reached else b"another path"]

        return app

    serve_wsgi("Python, PATH_INFO", reader(lambda path: path))
    serve_wsgi("Python, posixpath.normpath", reader(posixpath.normpath))
    serve_wsgi(
        "Python, urlsplit of a decoded path",
        reader(lambda path: urllib.parse.urlsplit(urllib.parse.unquote(path)).path),
    )


def flask():
    import flask

    app = flask.Flask("origin")
    app.add_url_rule("/v1/event/", "event", lambda: REACHED)
    app.add_url_rule("/v1/event/<path:rest>", "below", lambda rest: REACHED)
    serve_wsgi("Flask", app)


def django():
    import django.conf
    import django.core.wsgi
    import django.http
    import django.urls

    def event(*_, **__):
        return django.http.HttpResponse(REACHED)

    django.conf.settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="__main__", SECRET_KEY="-")
    global urlpatterns
    urlpatterns = [django.urls.re_path(r"^v1/event(/|$)", event)]
    serve_wsgi("Django", django.core.wsgi.get_wsgi_application())


def starlette():
    import starlette.applications
    import starlette.responses
    import starlette.routing
    import uvicorn

    async def event(_):
        return starlette.responses.PlainTextResponse(REACHED)

    routes = [
        starlette.routing.Route("/v1/event", event),
        starlette.routing.Route("/v1/event/{rest:path}", event),
    ]
    app = starlette.applications.Starlette(routes=routes)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    server.install_signal_handlers = lambda: None
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    print(f"Starlette: {listener.getsockname()[1]}", flush=True)


standard_library(sys.argv[1])
for framework in (flask, django, starlette):
    try:
        framework()
    except ModuleNotFoundError as error:
        print(f"{error.name} is missing", flush=True)
print("ready", flush=True)
threading.Event().wait()
