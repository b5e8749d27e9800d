"""An S3 server on loopback that counts its requests, and whose failures the tests control.

The service is moto's; a small WSGI layer around it makes the failures.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ACCESS_KEY = "canary-access-key-0123456789"
SECRET_KEY = "canary-secret-key-0123456789-abcdefghij"

Fault = Callable[[str, str], str | None]
"""Function of a request's method and path that returns a status line, "reset", "stall" or None."""


@dataclass
class S3Server:
    """A running server.

    Parameters
    ----------
    endpoint, bucket : str
        URL of the server, and name of its bucket.
    counts : Counter
        Number of requests by method, including failed ones.
    fault : callable
        Function that decides whether a request fails; "silence" never answers.
    released : Event
        Event that ends all silences.
    """

    endpoint: str
    bucket: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    fault: Fault = lambda method, path: None
    released: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"


@contextmanager
def serve_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Serve S3, with an empty bucket and the environment that clients need."""
    service = DomainDispatcherApplication(create_backend_app)
    server = S3Server("")

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        server.counts[method] += 1
        status = server.fault(method, path)
        if status is None:
            return list(service(environ, start))
        if status == "silence":  # as long as the client waits
            server.released.wait(60)
            return []
        if status == "stall":
            time.sleep(1.5)
        if status in ("reset", "stall"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        code = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}[status[:3]]
        start(status, [("Content-Type", "application/xml")])
        return [
            f"<Error><Code>{code}</Code><Message>failure of the test</Message></Error>".encode()
        ]

    http = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server.endpoint = f"http://127.0.0.1:{http.server_port}"
    # moto keeps its buckets until the process ends, and the system may give a port twice.
    server.bucket = f"studies-{uuid4().hex[:12]}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL_S3": server.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir(server.bucket)
    server.counts.clear()
    try:
        yield server
    finally:
        server.released.set()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        http.shutdown()
        thread.join()
        http.server_close()
