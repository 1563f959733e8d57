"""A small OpenAI-compatible chat server over real HTTP, with a scripted player for its model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from envs.messages import Message, Task, message
from envs.registry import Player

Chat = Sequence[Mapping[str, str]]
Answer = Callable[[dict[str, Any]], tuple[int, Any]]
"""From a request's JSON to a status and the answer's JSON."""


class ManyAtOnce(ThreadingHTTPServer):
    request_queue_size = 128  # of 5, a busy machine refuses the sixth of those that come together


class Server:
    """A running server; `requests` are the JSON bodies that came, `keys` their authorizations."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                server.keys.append(self.headers["Authorization"])
                status, content = (404, {}) if self.path != "/v1/chat/completions" else answer(body)
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with suppress(BrokenPipeError):  # the client was tired of waiting
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ManyAtOnce(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server = Server(answer)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def completion(text: str, *, finish_reason: str = "stop", total_tokens: int = 9) -> tuple[int, Any]:
    """A chat completion that says `text`."""
    said = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": total_tokens}
    facts = {"id": "x", "object": "chat.completion", "created": int(time.time()), "model": "m"}
    return 200, {**facts, "choices": [said], "usage": usage}


def playing(player: Player, tasks: Sequence[Task]) -> Answer:
    """Answers as `player` does on these tasks, known by what their user says; anything else gets "?"."""
    by_text = {task.messages[-1].text: task for task in tasks}

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        chat: Chat = [entry for entry in body["messages"] if entry["role"] != "system"]
        task = by_text.get(chat[0]["content"])
        if task is None:
            return completion("?")
        transcript: list[Message] = [*task.messages]
        for entry in chat[1:]:
            role = "assistant" if entry["role"] == "assistant" else "tool"
            transcript.append(message(role, entry["content"]))
        return completion(player(task, transcript))

    return answer
