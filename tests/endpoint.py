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

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server, status = self.server, 200
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            n = sum(request["messages"] == body["messages"] for request in server.requests)
            server.requests.append(body)
            server.headers.append(self.headers)
        said = server.answer(body, n)
        if isinstance(said, str):
            said = {"message": {"role": "assistant", "content": said}}
        if isinstance(said, tuple):
            status, said = said
        elif isinstance(said, dict):
            usage = {"prompt_tokens": 1000, "completion_tokens": 100}
            choice = {"finish_reason": "stop", "message": {"content": None}, **said}
            said = {"choices": [choice], "usage": usage}
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        with suppress(OSError):                          # the client has given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("retry-after-ms", "1")                      # no test waits long
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *args):
        pass
