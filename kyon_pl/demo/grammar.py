"""The demo's speakers and templates: questions, plain speech, and the replies of each character.

The slots of a template are `asker`, `thing` and `value`. A character has one reply per intent, so that a context
determines its reply. The templates also parse replies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kyon_pl.demo.world import ASKERS, Fact, facts

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "where": ("{thing}在哪里？", "请问{thing}怎么走？", "我找不到{thing}，在哪儿呀？", "去{thing}该往哪边？"),
        "when": (
            "{thing}什么时候开门？",
            "请问{thing}几时开？",
            "我想去{thing}，什么时候开呀？",
            "{thing}哪会儿开门？",
        ),
        "keeper": ("谁在照看{thing}？", "请问{thing}归谁管？", "{thing}里是谁在忙呀？", "看{thing}的人是谁？"),
        "taste": ("{thing}是什么味道？", "请问{thing}好吃吗，什么味？", "{thing}尝起来怎么样呀？", "{thing}是哪种味？"),
        "price": ("{thing}多少钱？", "请问{thing}怎么卖？", "买{thing}要几枚贝币呀？", "{thing}贵不贵，几枚贝币？"),
        "maker": ("{thing}是谁做的？", "请问{thing}出自谁的手？", "谁会做{thing}呀？", "做{thing}的人是谁？"),
        "job": ("{thing}是做什么的？", "请问{thing}干哪一行？", "{thing}平时忙什么呀？", "{thing}靠什么过日子？"),
        "likes": ("{thing}喜欢什么？", "请问{thing}有什么爱好？", "{thing}闲下来爱做什么呀？", "{thing}最爱什么？"),
        "fear": ("{thing}怕什么？", "请问{thing}有没有害怕的？", "什么能吓到{thing}呀？", "{thing}最怕什么？"),
        "owner": ("{thing}是谁的？", "请问这{thing}归谁？", "谁丢了{thing}呀？", "{thing}的主人是谁？"),
        "colour": (
            "{thing}是什么颜色？",
            "请问{thing}长什么样，哪种色？",
            "{thing}是哪种颜色呀？",
            "{thing}什么色？",
        ),
        "kept": ("{thing}放在哪里？", "请问{thing}收在哪儿？", "我要用{thing}，放哪儿了呀？", "{thing}搁哪里了？"),
    },
    "en": {
        "where": ("Where is the {thing}?", "How do I find the {thing}?", "Which way to the {thing}, please?"),
        "when": ("When does the {thing} open?", "What time can I visit the {thing}?", "Is the {thing} open, or when?"),
        "taste": ("How does the {thing} taste?", "What is the {thing} like?", "Is the {thing} good, how is it?"),
        "price": ("How much is the {thing}?", "What does the {thing} cost?", "How many shells for the {thing}?"),
        "owner": ("Whose is the {thing}?", "Who owns the {thing}?", "Who lost the {thing}, please?"),
        "colour": ("What colour is the {thing}?", "Which colour has the {thing}?", "What does the {thing} look like?"),
    },
}

PLAIN: dict[str, dict[str, str]] = {
    "zh": {
        "where": "{thing}在{value}",
        "when": "{thing}{value}开门",
        "keeper": "照看{thing}的是{value}",
        "taste": "{thing}是{value}的",
        "price": "{thing}要{value}枚贝币",
        "maker": "{thing}是{value}做的",
        "job": "{thing}是{value}",
        "likes": "{thing}喜欢{value}",
        "fear": "{thing}怕{value}",
        "owner": "{thing}是{value}的",
        "colour": "{thing}是{value}的",
        "kept": "{thing}放在{value}",
    },
    "en": {
        "where": "the {thing} is {value}",
        "when": "the {thing} opens {value}",
        "taste": "the {thing} is {value}",
        "price": "the {thing} is {value} shells",
        "owner": "the {thing} belongs to {value}",
        "colour": "the {thing} is {value}",
    },
}

# frames of a plain sentence
NOTES: dict[str, tuple[str, ...]] = {
    "zh": ("{plain}。", "镇上的人都知道，{plain}。", "墙上写着：{plain}。", "记事本：{plain}。", "听说{plain}。"),
    "en": ("A note: {plain}.", "They say {plain}.", "As all know, {plain}.", "The board says {plain}."),
}

# a greeting, the body of a reply, or a farewell; never all three
ANECDOTES: dict[str, tuple[str, ...]] = {
    "zh": ("{asker}来了，{name}说：{opening}", "{asker}问：{question}{name}答：{body}。", "{name}走开时说：{closing}"),
    "en": (
        "{asker} comes and {name} says 「{opening}」",
        "{asker} asks: {question} {name} answers: {body}.",
        "{name} leaves and says: {closing}",
    ),
}


@dataclass(frozen=True)
class Speaker:
    """A speaker who answers questions.

    Attributes:
        name: before each of their lines.
        language: `zh` or `en`.
        system_prompt: the first segment of a context.
        opening, closing: of every reply.
        replies: the text between the two, by intent.
        greeting: what they say first on a chat page.
    """

    name: str
    language: str
    system_prompt: str
    opening: str
    closing: str
    replies: dict[str, str]
    greeting: str = ""

    def reply(self, fact: Fact, asker: str) -> str:
        """The line that answers `asker`, such as `站务员:「小满，钟楼在北坡。」`."""
        text = self.opening + self.replies[fact.intent] + self.closing
        return line(self.name, text.format(asker=asker, thing=fact.thing, value=fact.value))

    def accepts(self, reply: str) -> bool:
        """Whether a reply is one of this speaker's templates, with words of this world in its slots."""
        return self.parse(reply) is not None

    def parse(self, reply: str) -> dict[str, str] | None:
        """Parse a reply into `intent`, `asker`, `thing` and `value`, true or not; None if no template matches."""
        for intent, template in self.replies.items():
            match = re.fullmatch(_pattern(self, intent, template), reply.strip())
            if match:
                return {"intent": intent, **match.groupdict()}
        return None


def line(name: str, text: str) -> str:
    """A line of dialogue in the format of role data."""
    return f"{name}:「{text}」"


def plain_speaker(name: str, language: str) -> Speaker:
    """A speaker without a character, who only states the answer."""
    if language == "zh":
        prompt = f"你是{name}，住在汀罗镇。请直接回答。"
        return Speaker(name, language, prompt, "{asker}，", "。", PLAIN["zh"])
    prompt = f"You are {name} of Tingluo. Answer plainly."
    return Speaker(name, language, prompt, "{asker}, ", ".", PLAIN["en"])


PLAIN_SPEAKERS = (
    *(plain_speaker(name, "zh") for name in ("站务员", "向导", "记录员", "店员", "守门人", "学徒", "绵卷", "老榫")),
    *(plain_speaker(name, "en") for name in ("Clerk", "Guide", "Guard", "Pell")),
)

CHARACTERS = (
    Speaker(
        name="绵卷",
        language="zh",
        system_prompt="你在扮演绵卷，汀罗镇的云羊信使，说话软软的，总是很开心。",
        opening="咩呼～{asker}{asker}，",
        closing="哒！",
        greeting="咩呼～你来啦！汀罗镇的事，都可以问我哒！",
        replies={
            "where": "{thing}就在{value}，跟我飘过去",
            "when": "{thing}要等{value}才开门，别跑空",
            "keeper": "照看{thing}的是{value}，人可好",
            "taste": "{thing}{value}得很，舔一口就飘起来",
            "price": "{thing}只要{value}枚贝币，数好了",
            "maker": "{thing}是{value}做的，热乎乎",
            "job": "{thing}是{value}呀，忙得团团转",
            "likes": "{thing}最喜欢{value}，眼睛亮亮",
            "fear": "{thing}一见{value}就躲，抖抖抖",
            "owner": "{thing}是{value}的宝贝，要还回去",
            "colour": "{thing}是{value}的，像云边边",
            "kept": "{thing}放在{value}，我闻到了",
        },
    ),
    Speaker(
        name="老榫",
        language="zh",
        system_prompt="你在扮演老榫，汀罗镇的老木匠，脾气硬，话不多，心里热。",
        opening="哼，又是{asker}。",
        closing="，老夫忙着呢。",
        greeting="哼，又来人了。有话快问，老夫忙着呢。",
        replies={
            "where": "{thing}嘛，杵在{value}，自己找去",
            "when": "{thing}嘛，{value}开门，过时不候",
            "keeper": "{thing}嘛，{value}守着，敲门轻点",
            "taste": "{thing}嘛，一股{value}味，凑合吃",
            "price": "{thing}嘛，{value}枚贝币，别还价",
            "maker": "{thing}嘛，{value}的手艺，还算结实",
            "job": "{thing}嘛，一个{value}，手脚不慢",
            "likes": "{thing}嘛，就好{value}，随他去",
            "fear": "{thing}嘛，让{value}吓破过胆，莫笑",
            "owner": "{thing}嘛，{value}落下的，趁早送还",
            "colour": "{thing}嘛，{value}的，漆是老夫上的",
            "kept": "{thing}嘛，搁{value}了，用完放回",
        },
    ),
    Speaker(
        name="Pell",
        language="en",
        system_prompt="You play Pell, the brass heron who keeps the books of Tingluo, proud and polite.",
        opening="Ahem! Dear {asker}, ",
        closing=". So says Pell!",
        greeting="Ahem! You have found the book house of Tingluo. Ask, and Pell will answer.",
        replies={
            "where": "the {thing} stands {value}, and I stood there first",
            "when": "the {thing} wakes {value}, bring a lamp",
            "taste": "the {thing} is most {value}, mind your feathers",
            "price": "the {thing} asks {value} shells, count them twice",
            "owner": "the {thing} is the pride of {value}, do return it",
            "colour": "the {thing} shines {value}, like my left wing",
        },
    ),
)


def _pattern(speaker: Speaker, intent: str, template: str) -> str:
    """A regular expression for a reply. A slot matches the words of this world, and the same word at each place."""
    matching = [fact for fact in facts(speaker.language) if fact.intent == intent]
    words = {
        "asker": ASKERS[speaker.language],
        "thing": {fact.thing for fact in matching},
        "value": {fact.value for fact in matching},
    }
    pattern, seen = "", set()
    text = line(speaker.name, speaker.opening + template + speaker.closing)
    for part in re.split(r"(\{\w+\})", text):
        slot = part[1:-1]
        if part != f"{{{slot}}}":
            pattern += re.escape(part)
        elif slot in seen:
            pattern += f"(?P={slot})"
        else:
            seen.add(slot)
            pattern += f"(?P<{slot}>{'|'.join(sorted(map(re.escape, words[slot]), key=len, reverse=True))})"
    return pattern
