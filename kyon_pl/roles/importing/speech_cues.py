"""Speech verbs of Chinese and English prose, and the names beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Certainty = Literal["named", "guessed", "unknown", "corrected"]

_LONGEST_SENTENCE, _MOST_NAMES = 300, 1000
_ZH_VERB = (
    r"(?:(?<![听传据小学])说(?![明法服])|(?<![知味街轨渠河隧频报难地])道(?![路理具])|(?<![学访疑])问(?!题)|(?<!报)答(?!案)|喊|(?<!名)叫(?![做作])"
    r"|嚷|吼|骂|叹|嘟囔|嘀咕|念叨|劝|催|吩咐|嘱咐|回应|开口|解释|补充|提醒|告诉|命令|宣布|插嘴|打断|招呼|应声|回话|央求|哀求|感叹|反驳|附和)"
)
_EN_VERB = (
    r"(?:said|says|asked|asks|replied|replies|answered|answers|cried|cries|shouted|shouts|whispered|whispers|called|calls"
    r"|muttered|mutters|murmured|exclaimed|added|adds|continued|continues|yelled|sighed|laughed|snapped|declared|remarked"
    r"|observed|begged|demanded|inquired|enquired|explained|agreed|insisted|repeated|returned|responded|told|tells|warned"
    r"|grumbled|began|went on|growled|mumbled|sobbed|giggled|hissed|barked|announced|suggested|admitted|confessed"
    r"|protested|objected|chimed in|croaked|groaned|gasped|roared|screamed|shrieked|pleaded|wondered|argued|commented"
    r"|noted|stammered|stuttered|urged|concluded|finished|interrupted|put in|corrected|promised|ordered|commanded)"
)
_ZH_CUE = re.compile(rf"(?P<head>.*?){_ZH_VERB}(?:道|着|了|起来|一?声|一句|话)*(?P<tail>[^，,：:]{{0,8}})[，,：:]?\s*")
_EN_CUE = re.compile(rf"(?P<head>.*?)\b{_EN_VERB}\b(?P<tail>[^,:]{{0,60}})[,:]?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(
    r"(?<=[。！？!?；;…])|(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bMs\.)(?<!\bSt\.)(?<=\.)(?=\s|$)"
)
_CLAUSE_END = re.compile(r"[，,、]")
_ZH_OBJECT = re.compile(r"(?:[对向跟朝给替和与同为冲]|告诉|问|看着|望着|盯着|拉着|看了看|喊|叫|谢|见|让|请)$")
_EN_OBJECT = re.compile(
    r"\b(?:to|at|with|for|of|from|after|beside|behind|toward|towards|by|told|asked)\s+$", re.IGNORECASE
)
_ZH_LEADING = re.compile(
    r"^(?:于是|只见|只听|忽然|突然|这时候?|那时|但是?|可是?|而|却|接着|然后|随后|后来|旁边的|听罢|结果)+"
)
_ZH_TRAILING = re.compile(
    r"(?:[^\s]着|[^\s]{2}地|微|连忙|急忙|赶紧|立刻|马上|又|也|就|便|才|再|忽然|突然|[轻低大高小柔朗沉]声|冷冷|笑|微笑|哈哈|一笑|摇摇?头"
    r"|点点?头|叹气|继续|接着|开口|慢慢|悄悄|只|都|还|则|不禁|不由得|[对向跟朝给和冲][^，]{1,4}|抬起?头|转身|回头|先|在[^，]{1,4}|这才|回|笑了|忙|大|反)$"
)
_ZH_TO = re.compile("[对向跟朝给和冲]")
_ZH_PRONOUN = re.compile(
    r"(?:我们?|你们?|您|他们?|她们?|它们?|大家|众人|有人|对方|那人|这人|谁|自己|人们|二人|两人|一人|别人)"
)
_ZH_NO_NAME = re.compile(
    "[着了过]|[地得的]$|^(?:这|那|有|没|不|今|明|昨|一|在|从|如|因|虽|就|当|正|只|还|也|都|什|怎|为|老[师是实早]|小[心声时])"
)
_ZH_FAMILIAR = re.compile(r"[阿老小][\u4e00-\u9fff]")
_ZH_NAME = re.compile(r"[\u4e00-\u9fff]{2,4}|[\u4e00-\u9fff]{1,6}·[\u4e00-\u9fff]{1,8}")
_EN_PRONOUN = re.compile(r"\b(?:I|you|he|she|it|we|they|someone|somebody|one)\b", re.IGNORECASE)
_EN_NAME = (
    r"(?:(?:Mr|Mrs|Ms|Dr|St)\.? |(?:Old|Young|Aunt|Uncle|Captain|Lady|Lord|Sir|Miss|Mother|Father|Master) )?"
    r"[A-Z][\w’'-]*\w(?: [A-Z][\w-]+)?"
)
_EN_ADJECTIVE = "(?:(?:old|young|little|poor|good|dear) )?"
_EN_SAID_NAME = re.compile(
    rf"^\s*,?\s*{_EN_VERB}\s+{_EN_ADJECTIVE}(?P<name>{_EN_NAME}|[Tt]he [a-z]+(?: [a-z]+)?)(?=[\s,.;:]|$)"
)
_EN_NAME_SAID = re.compile(
    rf"(?P<name>{_EN_NAME}|[Tt]he [a-z]+)(?:,[^,]*,)?(?:\s+\w+ly|\s+then|\s+only)?\s+{_EN_VERB}\b"
)
_EN_NO_NAMES = frozenset(
    (
        *("I", "You", "He", "She", "It", "They", "We", "Your", "His", "Her", "Its", "Our", "Their", "One", "Someone"),
        *("Then", "And", "But", "The", "This", "That", "There", "When", "What", "Where", "Who", "Why", "How", "So"),
        *("Now", "Here", "A", "An", "As", "At", "In", "On", "Of", "If", "No", "Not", "Yes", "Well", "Oh", "My"),
        *("After", "Before", "While", "Once", "Nobody", "Everyone", "All", "Both"),
    )
)


@dataclass(frozen=True)
class Cue:
    """A speech verb beside a quote.

    Attributes:
        name: who speaks; None if it is a pronoun, or nobody that is known.
        has_colon: whether a colon ends it.
    """

    name: str | None
    has_colon: bool


class Names:
    """The names of the speakers of a novel, found beside its speech verbs.

    Args:
        known: names that are given.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.counts: Counter[str] = Counter()  # of names directly before or after a verb, at the start of a sentence
        self.later: Counter[str] = Counter()  # of those after a comma: 喘着气 of 石头跑来，喘着气说
        self.starts: Counter[str] = Counter()  # of the first two and three characters of sentences beside a quote
        self.known = [name for name in known if name]
        self._pattern = re.compile("(?!)")
        self._full: dict[str, str] = {}

    def look_beside(self, sentence: str) -> None:
        """Count the start of a sentence beside a quote, which may be a name."""
        start = _ZH_LEADING.sub("", sentence.strip("，, \n")[:20])
        self.starts.update(start[:length] for length in (2, 3) if _ZH_NAME.fullmatch(start[:length]))

    def look_at(self, sentence: str) -> None:
        """Count the name in a sentence that may be a cue."""
        sentence = sentence[-_LONGEST_SENTENCE:].strip("，, \n")
        clauses = _CLAUSE_END.split(sentence.rstrip("：:。."))
        for place, clause in enumerate(clauses):
            if (match := _ZH_CUE.fullmatch(clause)) and (name := _zh_name(match["head"])):
                (self.later if place else self.counts)[name] += 1
        for pattern in (_EN_SAID_NAME, _EN_NAME_SAID):
            for match in pattern.finditer(sentence):
                name = _as_counted(match["name"])
                if name.split(" ")[0] not in _EN_NO_NAMES:
                    self.counts[name] += 1

    def close(self) -> None:
        """Decide which of the counted ones are names."""
        for name, number in self.later.items():
            if name in self.counts or self.starts[name[:2]] or self.starts[name[:3]]:
                self.counts[name] += number
        beside_verbs = {*self.counts}
        for start, number in self.starts.items():
            is_part = start not in beside_verbs and any(name.startswith(start) for name in beside_verbs)
            enough = number > 1 or _ZH_FAMILIAR.fullmatch(start) is not None
            if enough and not is_part and not _ZH_NO_NAME.search(start) and not _ZH_PRONOUN.match(start):
                self.counts[start] += number
        names = {*self.known}
        for name, number in sorted(self.counts.most_common(_MOST_NAMES), key=lambda item: (len(item[0]), item[0])):
            longer = any(name.startswith(other) for other in names) and not name.isascii()
            if not longer or number > max(2, max(self.counts[other] for other in names if name.startswith(other))):
                names.add(name)
        last = Counter(name.split(" ")[-1] for name in names if name[:1].isupper())
        full = {name.split(" ")[-1]: name for name in names if " " in name and name[:1].isupper()}
        self._full = {short: name for short, name in full.items() if last[short] == 1}  # Ferris: Captain Ferris
        ordered = sorted(map(re.escape, names | {*self._full}), key=len, reverse=True)
        bounded = [rf"\b{re.sub('^the', '[Tt]he', name)}\b" if name.isascii() else name for name in ordered]
        self._pattern = re.compile("|".join(bounded) or "(?!)")

    def subject(self, text: str) -> str | None:
        """The name at the end of a text, before its verb, else the first one.

        A name that is an object, or is followed by 的 or 's, does not count.
        """
        found = []
        for match in self._pattern.finditer(text):
            before, after = text[: match.start()], text[match.end() :]
            if not (_ZH_OBJECT.search(before) or _EN_OBJECT.search(before) or re.match("的|['’]s ", after)):
                found.append(match)
        if not found:
            return None
        at_end = found[-1].end() == len(text.rstrip())
        return self._name(found[-1 if at_end else 0])

    def before(self, narration: str) -> Cue | None:
        """The cue at the end of the text before a quote."""
        sentence = last_sentence(narration)
        clauses = [clause for clause in re.split(r"(?<=[，,、])", sentence) if clause.strip()]
        if not clauses:
            return None
        has_colon = sentence.rstrip().endswith((":", "："))
        match = _cue(clauses[-1])
        if not match or (match["tail"].strip() and not sentence.rstrip().endswith((":", "：", ",", "，"))):
            return None
        if sentence.rstrip().endswith("叫"):  # 管这种雪叫“棉被雪”
            return None
        head = match["head"]
        inverted = re.search("[A-Za-z]", match[0]) and not head.strip(" ,")  # `said Pell,` between two quotes
        if name := self.subject(head) or (self.subject(match["tail"]) if inverted else None):
            return Cue(name, has_colon)
        if _starts_with_pronoun(head):
            return Cue(None, has_colon)
        for clause in reversed(clauses[:-1]):
            if name := self.subject(clause):
                return Cue(name, has_colon)
            if _starts_with_pronoun(clause):
                break
        return Cue(None, has_colon)

    def after(self, narration: str) -> Cue | None:
        """The cue at the start of the text after a quote."""
        sentence = first_sentence(narration)
        has_colon = sentence.rstrip().endswith((":", "："))
        if match := re.match(rf"\s*,?\s*{_EN_VERB}\b", sentence):
            rest = sentence[match.end() :]
            named = self._pattern.search(rest.partition(",")[0])
            return Cue(self._name(named) if named else None, has_colon)
        earlier = ""
        for clause in re.split(r"(?<=[，,、])", sentence.lstrip("，, "))[:2]:
            if match := _cue(clause.rstrip("。.！!？?；;")):
                head = earlier + match["head"]
                pronoun = _starts_with_pronoun(match["head"])
                return Cue(None if pronoun else self.subject(head), has_colon)
            earlier += clause
        return None

    def _name(self, match: re.Match[str]) -> str:
        name = _as_counted(match[0])
        return self._full.get(name, name)


def sentences(text: str) -> list[str]:
    """The sentences of a narration, without empty ones."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def first_sentence(text: str) -> str:
    """The first sentence; it also ends at a colon."""
    sentence = next(iter(sentences(text[:_LONGEST_SENTENCE])), "")
    colon = re.search("[：:]", sentence)
    return sentence[: colon.end()] if colon else sentence


def last_sentence(text: str) -> str:
    """The last sentence."""
    return next(iter(sentences(text[-_LONGEST_SENTENCE:])[-1:]), "")


def _as_counted(name: str) -> str:
    """`the clerk` for `The clerk` at the start of a sentence."""
    return re.sub("^The ", "the ", name)


def _cue(clause: str) -> re.Match[str] | None:
    return _ZH_CUE.fullmatch(clause.strip()) or _EN_CUE.fullmatch(clause.strip())


def _starts_with_pronoun(text: str) -> bool:
    text = _ZH_LEADING.sub("", text.strip())
    return _ZH_PRONOUN.match(text) is not None or _EN_PRONOUN.match(text) is not None


def _zh_name(head: str) -> str | None:
    head = _ZH_LEADING.sub("", head.strip())
    while (shorter := _ZH_TRAILING.sub("", head)) != head and len(shorter) != 1:  # 老大 stays
        head = shorter
    is_name = _ZH_NAME.fullmatch(head) and not _ZH_PRONOUN.match(head) and not _ZH_TO.match(head)
    is_name = is_name and not _ZH_NO_NAME.search(head)
    return head if is_name else None
