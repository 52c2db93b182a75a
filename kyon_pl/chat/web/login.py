"""The page that asks for the password. Gradio's own asks for a user name too, and does not say what was refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse

from kyon_pl.chat.web.language import speaks_chinese

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGIN_CHECK = "/gradio_api/login_check"
_TEXTS = {
    "title": ("Password", "密码"),
    "why": ("This chat has a password. Whoever runs it knows it.", "此对话需要密码，请向管理员获取。"),
    "enter": ("Enter", "进入"),
    "wrong": ("Wrong password.", "密码不正确。"),
    "wait": ("Too many wrong passwords. Try again in {} s.", "密码错误次数过多，请在 {} 秒后重试。"),
    "lost": ("The server does not answer. Try again.", "服务器没有响应，请重试。"),
}
_PAGE = """<!doctype html>
<html lang="LANG"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>kyon_pl</title><style>
:root { color-scheme: light dark; }
body { margin: 0; min-height: 100dvh; display: grid; place-items: center; font: 16px/1.5 system-ui, sans-serif; }
form { width: min(88vw, 340px); display: grid; gap: 12px; }
h1 { margin: 0; font-size: 20px; } p { margin: 0; } #said { min-height: 1.5em; }
input, button { font: inherit; padding: 10px 12px; border-radius: 10px; border: 1px solid GrayText; }
button { background: #0f766e; border-color: #0f766e; color: white; cursor: pointer; }
</style></head><body><main><form>
<h1><label for="password">title</label></h1><p>why</p>
<input id="password" type="password" autocomplete="current-password" required autofocus>
<button>enter</button><p id="said" role="alert"></p>
</form></main><script>
const texts = TEXTS, form = document.querySelector("form"), said = document.getElementById("said");
document.querySelector("label").textContent = texts.title;
document.querySelector("p").textContent = texts.why;
document.querySelector("button").textContent = texts.enter;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const password = document.getElementById("password");
  const body = new URLSearchParams({username: "visitor", password: password.value});
  const answer = await fetch("login", {method: "POST", body}).catch(() => null);
  if (answer?.ok) return void location.reload();
  const wait = texts.wait.replace("{}", answer?.headers.get("retry-after"));
  said.textContent = answer?.status === 400 ? texts.wrong : answer?.status === 429 ? wait : texts.lost;
  password.select();
});
</script></body></html>
"""


class PasswordPage:
    """ASGI middleware that answers visitors without a valid cookie with a page that asks for the password.

    Args:
        app: the application; its route `LOGIN_CHECK` says who needs the password.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        is_page = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/"
        if not is_page or await self._has_entered(scope, receive):
            await self.app(scope, receive, send)
            return
        language = speaks_chinese(Headers(scope=scope).get("accept-language", ""))
        texts = json.dumps({name: text[language] for name, text in _TEXTS.items()})
        page = _PAGE.replace("LANG", "zh-CN" if language else "en").replace("TEXTS", texts)
        await HTMLResponse(page, headers={"cache-control": "no-store"})(scope, receive, send)

    async def _has_entered(self, scope: Scope, receive: Receive) -> bool:
        statuses = []

        async def keep_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        path = {"path": LOGIN_CHECK, "raw_path": LOGIN_CHECK.encode(), "query_string": b""}
        await self.app({**scope, **path}, receive, keep_status)
        return statuses == [200]
