"""The language of a visitor: Chinese if the browser asks for it first, else English."""

from __future__ import annotations

REFUSALS = {
    400: "页面内容已过期，请刷新页面。",
    403: "请求来自其他网站的页面，已拒绝。",
    404: "没有这个地址。",
    413: "内容太长，请缩短。",
    415: "请求格式不对，已拒绝。",
    421: "服务器只响应发往本机的请求。",
    429: "密码错误次数过多，请稍后再试。",
    503: "排队的消息太多，请稍后再试。",
}
"""Why a request was refused, in Chinese, by HTTP status."""


def speaks_chinese(accept_language: str) -> bool:
    """Whether a browser asks for Chinese first.

    Args:
        accept_language: its header `Accept-Language`.
    """
    return accept_language.strip().lower().startswith("zh")
