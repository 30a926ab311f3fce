"""An OpenAI-compatible endpoint on the loopback, for tests: it answers as a function says."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint(ThreadingHTTPServer):
    """`with Endpoint(answer) as server`: server.url is its base url, server.requests the bodies
    that came, in order, server.headers their headers.

    answer(body, n): body is the request, n how many with the same messages came before it. It
    returns a text (a good reply), a dict (merged into a good completion's choice: message,
    finish_reason), bytes (the whole body, status 200) or (status, dict), an error.
    """
    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.answer, self.requests, self.headers = answer, [], []
        self.lock = threading.Lock()

    def respond(self, body, headers):
        """(status, body) for a request."""
        with self.lock:
            n = sum(request["messages"] == body["messages"] for request in self.requests)
            self.requests.append(body)
            self.headers.append(headers)
        said = self.answer(body, n)
        if isinstance(said, tuple):
            status, error = said
            return status, json.dumps(error).encode()
        if isinstance(said, bytes):
            return 200, said
        if isinstance(said, str):
            said = {"message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100}
        choice = {"finish_reason": "stop", "message": {"content": None}, **said}
        return 200, json.dumps({"choices": [choice], "usage": usage}).encode()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, content = self.server.respond(body, self.headers)
        with suppress(OSError):                          # the client has given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("retry-after-ms", "1")                      # no test waits long
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *args):
        pass
