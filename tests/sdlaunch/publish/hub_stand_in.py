"""A small stand-in for the Hugging Face hub: tokens, repositories, and commits with the files in the request."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = {"hf_" + "w" * 30: "write", "hf_" + "r" * 30: "read"}
WRITES, READS = TOKENS


class Hub:
    """What was asked for, and what is there. `failures`: how many commits fail before one succeeds, and how."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.commits = 0
        self.failures: list[int] = []


@contextmanager
def served():
    """(address, hub) of a server that runs inside."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def _answer(self, status, value):
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            role = TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
            if role is None:
                return self._answer(401, {"error": "Invalid user token."})
            about = {"name": "me", "orgs": [{"name": "ours"}], "auth": {"accessToken": {"role": role}}}
            return self._answer(200, about)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                return self._answer(200, {"url": f"{address}/me/{hub.created[-1]['name']}"})
            if self.path.endswith("/preupload/main"):
                paths = [each["path"] for each in json.loads(body)["files"]]
                return self._answer(
                    200,
                    {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]},
                )
            if self.path.endswith("/commit/main"):
                hub.commits += 1
                if hub.failures:
                    return self._answer(hub.failures.pop(0), {"error": "try again, or not"})
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                url = f"{address}/me/model/commit/{'0' * 40}"
                return self._answer(200, {"commitOid": "0" * 40, "commitUrl": url})
            return self._answer(200, {"errors": [], "warnings": []})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield address, hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
