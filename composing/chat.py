"""A chat server that speaks OpenAI's protocol: OpenAI, vLLM, Ollama, llama.cpp, LM Studio.

Address, key and model are this machine's settings (environment variables), never a workflow's: a shared graph
must not be able to send anybody's key or pictures anywhere. What comes back is text, limited in time and
size.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..core.errors import LikenessError
from .validation import Rejected

if TYPE_CHECKING:
    from PIL.Image import Image

URL_VARIABLE = "LIKENESS_CHAT_URL"  # http://127.0.0.1:11434/v1 for Ollama
KEY_VARIABLE = "LIKENESS_CHAT_KEY"
MODEL_VARIABLE = "LIKENESS_CHAT_MODEL"
MAX_REPLY_BYTES = 1 << 20  # a layout or caption has a few thousand
MAX_REPLY_CHARS = 20_000  # of the answer's text
_CHUNK_BYTES = 1 << 14
_PICTURE_EDGE = 768  # px; what vision models look at

Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ChatServer:
    """``complete`` asks once. ``timeout_s`` is for the whole answer, however slowly it drips."""

    url: str
    model: str
    key: str = field(default="", repr=False)  # never in a log or an error
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise LikenessError(
                f"The chat server's address {self.url[:80]!r} cannot be used",
                expected="http://HOST:PORT/v1 or https://HOST/v1",
                fix=f"Change the environment variable {URL_VARIABLE}",
            )

    @property
    def name(self) -> str:
        return f"chat server, {self.model}"

    def complete(self, messages: Sequence[Message], *, temperature: float = 0.7, seed: int = 0) -> str:
        """The answer's text. Raises ``Rejected`` for what asking again may mend (late, broken, too long),
        LikenessError for what it cannot (no such model, key refused, nobody there)."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": temperature,
            "seed": seed,
            "stream": False,
        }
        return _text(self._post(json.dumps(body).encode()))

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        deadline_s = time.monotonic() + self.timeout_s
        opener = urllib.request.build_opener(_NoRedirect())
        try:
            with opener.open(request, timeout=self.timeout_s) as reply:
                return _read(reply, deadline_s)
        except urllib.error.HTTPError as error:
            raise self._http_error(error) from error
        except TimeoutError as error:
            raise Rejected("late answer", f"nothing within {self.timeout_s:g} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise Rejected("late answer", f"nothing within {self.timeout_s:g} s") from error
            raise self._nobody(error.reason) from error
        except (OSError, ValueError, EOFError) as error:  # reset, cut short, no HTTP
            raise Rejected("broken answer", type(error).__name__) from error
        except Exception as error:  # http.client.HTTPException has no common base but this
            raise Rejected("broken answer", type(error).__name__) from error

    def _http_error(self, error: urllib.error.HTTPError) -> Exception:
        if error.code in (401, 403):
            return LikenessError(
                f"The chat server at {self.url} refused the key (HTTP {error.code})"
                if self.key
                else f"The chat server at {self.url} asks for a key (HTTP {error.code})",
                fix=f"Set the environment variable {KEY_VARIABLE} on this machine",
            )
        if 300 <= error.code < 500 and error.code not in (408, 409, 425, 429):
            return LikenessError(
                f"The chat server at {self.url} answered HTTP {error.code} for the model {self.model!r}",
                expected="an address that ends in /v1, and a model that the server has",
                fix=f"Change {URL_VARIABLE} or {MODEL_VARIABLE}",
            )
        return Rejected("server error", f"HTTP {error.code}")

    def _nobody(self, reason: object) -> LikenessError:
        return LikenessError(
            f"There is no chat server at {self.url}: {reason}",
            fix=f"Start it, change {URL_VARIABLE}, or choose the rule-based way",
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever the server says."""

    def redirect_request(self, *args: Any) -> None:
        return None


def server_from_settings(environment: Mapping[str, str] | None = None, **changes: Any) -> ChatServer:
    """The server that this machine's environment names. LikenessError says which variable is missing."""
    known = os.environ if environment is None else environment
    missing = [name for name in (URL_VARIABLE, MODEL_VARIABLE) if not known.get(name, "").strip()]
    if missing:
        raise LikenessError(
            f"No chat server is set up on this machine: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set",
            expected=f"{URL_VARIABLE}=http://127.0.0.1:11434/v1, {MODEL_VARIABLE}=NAME and, where it asks "
            f"for one, {KEY_VARIABLE}",
            fix="Set them and start again, or choose the rule-based way",
        )
    return ChatServer(
        url=known[URL_VARIABLE].strip(),
        model=known[MODEL_VARIABLE].strip(),
        key=known.get(KEY_VARIABLE, "").strip(),
        **changes,
    )


def picture_part(image: Image) -> dict[str, Any]:
    """A picture as part of a message, small enough to send."""
    small = image.convert("RGB")
    small.thumbnail((_PICTURE_EDGE, _PICTURE_EDGE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def _read(reply: Any, deadline_s: float) -> bytes:
    """The body, unless it is too long or comes too slowly."""
    parts, size = [], 0
    while chunk := reply.read1(_CHUNK_BYTES):
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            raise Rejected("answer too long", f"more than {MAX_REPLY_BYTES} bytes")
        if time.monotonic() > deadline_s:
            raise Rejected("late answer", "it did not end in time")
    return b"".join(parts)


def _text(body: bytes) -> str:
    try:
        record = json.loads(body)
        text = record["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError) as error:
        raise Rejected("broken answer", "no chat completion") from error
    if not isinstance(text, str) or not text.strip():
        raise Rejected("empty answer")
    if len(text) > MAX_REPLY_CHARS:
        raise Rejected("answer too long", f"{len(text)} characters")
    return text
