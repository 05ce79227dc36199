"""A vision-language model behind a server that speaks OpenAI's chat protocol: vLLM, Ollama, llama.cpp.

Only when it is chosen, only the address that was given, never redirected elsewhere. The key, if one is
needed, comes from the environment variable ``LIKENESS_VLM_KEY`` and is in no workflow and no file.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ...core.errors import LikenessError
from .base import ask

KEY_VARIABLE = "LIKENESS_VLM_KEY"
TIMEOUT_S = 120.0  # for a whole answer: a large model on a slow machine takes a minute
MAX_ANSWER_BYTES = 1 << 20
EDGE_PX = 1024  # pictures are sent no larger
TRIES = 3
WAIT_S = 2.0  # before the second try, twice that before the third
BUSY = (408, 425, 429, 500, 502, 503, 504)  # worth another try


class ServerCaptioner:
    """``url`` is the base, such as ``http://localhost:8000/v1``; ``model`` what the server calls it."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout_s: float = TIMEOUT_S,
        tries: int = TRIES,
        wait_s: float = WAIT_S,
    ) -> None:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise LikenessError(
                f"{url[:120]!r} is no address of a server", expected="such as http://localhost:8000/v1"
            )
        if not model.strip():
            raise LikenessError(
                "The server's model has no name", expected="such as Qwen/Qwen2.5-VL-7B-Instruct"
            )
        self.url, self.model = url.strip().rstrip("/"), model.strip()
        self.timeout_s, self.tries, self.wait_s = timeout_s, tries, wait_s
        self.id = f"{self.model} at {parts.hostname}"
        self._opener = urllib.request.build_opener(_NoRedirect)

    def write(self, image: Image.Image, noun: str, count: int, attempt: int) -> str:
        """Raises LikenessError when the server is down, too slow, refuses, or answers something else."""
        body = {
            "model": self.model,
            "temperature": 0.7,
            "seed": attempt,
            "max_tokens": 100 * count,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": _data_url(image)}},
                        {"type": "text", "text": ask(noun, count)},
                    ],
                }
            ],
        }
        return self._text(self._send(json.dumps(body).encode("utf-8")))

    def _send(self, body: bytes) -> bytes:
        for attempt in range(1, self.tries + 1):
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or attempt == self.tries:
                    raise self._refused(error) from error
            except (OSError, TimeoutError) as error:
                if attempt == self.tries:
                    raise self._down(error) from error
            time.sleep(self.wait_s * attempt)
        raise AssertionError("the last try returns or raises")

    def _once(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.getenv(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", data=body, headers=headers)
        deadline_s = time.monotonic() + self.timeout_s
        with self._opener.open(request, timeout=self.timeout_s) as reply:
            parts, size = [], 0
            while part := reply.read1(1 << 16):  # in pieces: a server that drips must not hold us for ever
                size += len(part)
                parts.append(part)
                if size > MAX_ANSWER_BYTES:
                    raise self._nonsense("its answer is larger than 1 MiB")
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"no whole answer within {self.timeout_s:g} s")
        return b"".join(parts)

    def _text(self, answer: bytes) -> str:
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise self._nonsense(f"{answer[:80]!r}") from error
        if not isinstance(content, str):
            raise self._nonsense(f"a message that is no text: {str(content)[:80]!r}")
        return content

    def _refused(self, error: urllib.error.HTTPError) -> LikenessError:
        said = error.read(300).decode("utf-8", "replace") if error.fp else ""
        return LikenessError(
            f"The caption server at {self.url} refused: {error.code} {error.reason} {said}".strip(),
            fix=f"Check the model's name{' and ' + KEY_VARIABLE if error.code in (401, 403) else ''}",
        )

    def _down(self, error: OSError) -> LikenessError:
        reason = getattr(error, "reason", None) or error
        return LikenessError(
            f"The caption server at {self.url} does not answer: {reason}",
            fix="Start it, or raise the time limit. What was captioned so far is kept",
        )

    def _nonsense(self, what: str) -> LikenessError:
        return LikenessError(
            f"The caption server at {self.url} answered nonsense: {what}",
            expected="OpenAI's chat completions with a message of text",
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take picture and key to another address."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _data_url(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
