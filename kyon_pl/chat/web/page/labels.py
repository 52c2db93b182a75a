"""The page's texts in English and Chinese. The browser's language chooses."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from kyon_pl.chat.web.language import speaks_chinese
from kyon_pl.errors import KyonError
from kyon_pl.logs import replace_control_characters

LABELS = {
    "role": ("Character", "角色"),
    "asker": ("Your name in the story", "你在故事中的名字"),
    "adapter": ("Adapter", "适配器"),
    "compare": ("Also show the base model's reply", "同时显示原始模型的回复"),
    "message": ("Message", "消息"),
    "placeholder": ("Type a message", "输入消息"),
    "send": ("Send", "发送"),
    "parameters": ("Parameters", "生成参数"),
    "max_new_tokens": ("Maximum reply length, in tokens", "最大回复长度（token 数）"),
    "temperature": ("Temperature (0: greedy decoding)", "温度（0 为贪心解码）"),
    "temperature_help": (
        "When a character's reply is tried again, 0 becomes 0.8: greedy decoding would repeat it.",
        "角色重新回答时，0 会改为 0.8，否则贪心解码只会得到同样的回复。",
    ),
    "top_p": ("Top p", "Top p"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "seed": ("Seed", "随机种子"),
}
# of our own components, see the scripts
PANEL_LABELS = {
    "tuned": ("Fine-tuned", "微调模型"),
    "base": ("Base model", "原始模型"),
    "you": ("You", "你"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "retry": ("Retry", "重试"),
    "undo": ("Undo", "撤回"),
    "clear": ("Clear", "清空"),
    "export": ("Export", "导出"),
    "import": ("Import", "导入"),
    "settings": ("Settings", "设置"),
    "tools": ("Conversation", "对话操作"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    "again": ("Reply again", "重新回答"),
    "edit": ("Edit", "编辑"),
    "cancel": ("Cancel", "取消"),
    "previous": ("Previous version", "上一个版本"),
    "next": ("Next version", "下一个版本"),
    "memories": ("Memories used", "用到的记忆"),
    "empty": ("Nothing has been said yet.", "还没有对话。"),
    "ask_clear": ("Clear this conversation? It cannot be restored.", "清空这段对话？清空后无法恢复。"),
    "ask_cut": (
        "The turns after this one will be removed. Go on?",
        "这一轮之后的对话会被删除。要继续吗？",
    ),
    "ask_import": ("Replace this conversation by the file?", "用文件中的对话替换当前对话？"),
    "go_on": ("Go on", "继续"),
    # what Gradio's browser code says in English only
    "Error": ("Error", "出错了"),
    "Warning": ("Note", "注意"),
    "Info": ("Note", "提示"),
    "This application is currently busy. Please try again.": (
        "Too many messages are waiting. Try again soon.",
        "排队的消息太多，请稍后再试。",
    ),
    "Connection errored out.": ("The server does not answer. Try again.", "服务器没有响应，请重试。"),
    "Connection to the server was lost. Attempting reconnection...": (
        "The connection is lost. Trying again …",
        "连接已断开，正在重新连接……",
    ),
    "Connection re-established.": ("The connection is back.", "连接已恢复。"),
    "damaged": (
        "The conversation in this browser cannot be read, so a new one begins.",
        "浏览器中保存的对话无法读取，已开始新的对话。",
    ),
    "close": ("Close", "关闭"),
    "too_large": ("This file is too large for a conversation.", "文件太大，不是对话文件。"),
}
# what a visitor can meet, by the place of the error: English says the error itself, and numbers replace {}
_CHINESE_ERRORS = {
    "message": ("消息为空，请先输入内容。", "消息有 {} 个字符，最多 {} 个，请缩短。"),
    "question": ("问题太长，模型放不下，请缩短。",),
    "retry": ("还没有对话，请先提问。",),
    "export": ("还没有对话，请先提问。",),
    "conversation": ("这不是对话文件，请选择“导出”得到的文件。", "文件太大或其中的文字太长，请换一个较短的文件。"),
    "action": ("这一轮对话已不存在，请刷新页面。",),
    "parameters": ("有一个参数是空的，请填写。",),
}
_OTHER_ERRORS = ("无法回答，请联系管理员。",)
_SAME = (
    "The same reply came again. A higher temperature gives others.",
    "得到的回复与之前相同，提高温度可以得到不同的回复。",
)

ENGLISH, CHINESE = ({name: texts[i] for name, texts in LABELS.items()} for i in range(2))
PANEL_ENGLISH, PANEL_CHINESE = ({name: texts[i] for name, texts in PANEL_LABELS.items()} for i in range(2))
i18n = gr.I18n(en=ENGLISH, zh=CHINESE, **{"zh-CN": CHINESE, "zh-TW": CHINESE})


def escape(text: str) -> str:
    """HTML that shows a text literally: Gradio takes errors for HTML, and other programs may take replies for it."""
    return html.escape(replace_control_characters(text))


@contextmanager
def shown_errors(request: gr.Request) -> Iterator[None]:
    """Shows a KyonError on the page, in the visitor's language."""
    try:
        yield
    except KyonError as error:
        words = _in_chinese(error) if _is_chinese(request) else str(error)
        raise gr.Error(escape(words), print_exception=False) from None


def say_same(request: gr.Request) -> None:
    """Tell the visitor that a retry gave the same reply."""
    gr.Info(_SAME[_is_chinese(request)])


def _is_chinese(request: gr.Request) -> bool:
    return speaks_chinese(request.headers.get("accept-language", ""))


def _in_chinese(error: KyonError) -> str:
    texts = _CHINESE_ERRORS.get(error.where, _OTHER_ERRORS)
    numbers = re.findall(r"\d[\d,]*", error.found)
    text = texts[min(bool(numbers), len(texts) - 1)]
    return text.format(*numbers) if text.count("{}") <= len(numbers) else text.replace("{}", "…")
