"""An OpenAI-compatible endpoint on the loopback, for tests: it answers as a test's function says, and counts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint:
    """`with Endpoint(answer) as server`: server.url is its base url, server.requests the bodies that came, in order.

    answer(body, n): body is the request, n how many with the same messages came before it. It returns a text (a good
    reply), a dict (merged into a good completion's choice: message, finish_reason), bytes (the whole body, status 200)
    or (status, dict), an error.
    """

    def __init__(self, answer):
        self.answer, self.requests, self.headers, self._lock = answer, [], [], threading.Lock()

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    n = sum(r["messages"] == body["messages"] for r in outer.requests)
                    outer.requests.append(body)
                    outer.headers.append(self.headers)
                said, status = outer.answer(body, n), 200
                if isinstance(said, tuple):
                    status, said = said
                elif isinstance(said, (str, dict)):
                    choice = {"index": 0, "finish_reason": "stop",
                              "message": {"role": "assistant", "content": said if isinstance(said, str) else None}}
                    said = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                            "choices": [choice | (said if isinstance(said, dict) else {})],
                            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}}
                content = said if isinstance(said, bytes) else json.dumps(said).encode()
                try:
                    self.send_response(status)
                    for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(content))),
                                        ("retry-after-ms", "1")):                          # so that no test waits long
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:                          # the client has given up
                    pass

            def log_message(self, *args):
                pass
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
