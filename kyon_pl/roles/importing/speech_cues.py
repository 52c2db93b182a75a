"""Speech verbs of Chinese and English prose, and the names beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kyon_pl.roles.importing import speech_patterns as patterns

Certainty = Literal["named", "guessed", "unknown", "corrected"]

_LONGEST_SENTENCE, _MOST_NAMES = 300, 1000


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
        text: of the novel; a capitalized word inside its sentences may be a name.
    """

    def __init__(self, known: Iterable[str], text: str) -> None:
        self.counts: Counter[str] = Counter()  # of names directly before or after a verb, at the start of a sentence
        self.later: Counter[str] = Counter()  # of those after a comma: 喘着气 of 石头跑来，喘着气说
        self.starts: Counter[str] = Counter()  # of what may be a name at the start of sentences beside a quote
        self._inside = frozenset(patterns.EN_INSIDE.findall(text))
        self.known = [name for name in known if name]
        self._pattern = re.compile("(?!)")
        self._full: dict[str, str] = {}

    def look_beside(self, sentence: str) -> None:
        """Count the start of a sentence beside a quote, which may be a name."""
        start = patterns.ZH_LEADING.sub("", sentence.strip("，, \n")[:40])
        self.starts.update(start[:length] for length in (2, 3, 4) if patterns.ZH_NAME.fullmatch(start[:length]))
        words = match["name"].split(" ") if (match := patterns.EN_START.match(start)) else [""]
        if words[0] not in patterns.EN_NO_NAMES and words[-1] in self._inside:
            self.starts[" ".join(words)] += 1

    def look_at(self, sentence: str) -> None:
        """Count the name in a sentence that may be a cue."""
        sentence = sentence[-_LONGEST_SENTENCE:].strip("，, \n")
        clauses = patterns.CLAUSE_END.split(sentence.rstrip("：:。."))
        for place, clause in enumerate(clauses):
            if (match := patterns.ZH_CUE.fullmatch(clause)) and (name := _zh_name(match["head"])):
                (self.later if place else self.counts)[name] += 1
        for pattern in (patterns.EN_SAID_NAME, patterns.EN_NAME_SAID):
            for match in pattern.finditer(sentence):
                name = _as_counted(match["name"])
                if name.split(" ")[0] not in patterns.EN_NO_NAMES:
                    self.counts[name] += 1

    def close(self) -> None:
        """Decide which of the counted ones are names."""
        for name, number in self.later.items():
            if name in self.counts or self.starts[name[:2]] or self.starts[name[:3]]:
                self.counts[name] += number
        self._add_starts()
        names = {*self.known}
        for name, number in sorted(self.counts.most_common(_MOST_NAMES), key=lambda item: (len(item[0]), item[0])):
            longer = any(name.startswith(other) for other in names) and not name.isascii()
            if not longer or number > max(2, max(self.counts[other] for other in names if name.startswith(other))):
                names.add(name)
        full = {name.split(" ")[-1]: name for name in names if " " in name and name[:1].isupper()}
        last = Counter(name.split(" ")[-1] for name in names if " " in name and name[:1].isupper())
        self._full = {short: name for short, name in full.items() if last[short] == 1}  # Ferris: Captain Ferris
        ordered = sorted(map(re.escape, names | {*self._full}), key=len, reverse=True)
        bounded = [rf"\b{re.sub('^the', '[Tt]he', name)}\b" if name.isascii() else name for name in ordered]
        self._pattern = re.compile("|".join(bounded) or "(?!)")

    def _add_starts(self) -> None:
        """Count the starts of sentences that are names, and not a part of one.

        胖和 is a part of 胖和尚 if a verb is beside the latter, or if every sentence with the former has the latter.
        """
        beside_verbs = {*self.counts}
        no_name = re.compile(f"{patterns.ZH_NO_NAME.pattern}|^{patterns.ZH_PRONOUN.pattern}")
        starts = {start: number for start, number in self.starts.items() if not no_name.search(start)}
        whole = {name for name, number in starts.items() if number > 1 and not patterns.ZH_NO_LAST.search(name)}
        alike = {(name[:length], starts[name]) for name in whole for length in range(2, len(name))}
        parts = {name[:length] for name in beside_verbs for length in range(2, len(name))} - beside_verbs
        for start, number in starts.items():
            enough = number > 1 or start.isascii() or patterns.ZH_FAMILIAR.fullmatch(start)
            is_part = start in parts or ((start, number) in alike and start not in beside_verbs)
            if enough and not is_part:
                self.counts[start] += number

    def subject(self, text: str) -> str | None:
        """The name at the end of a text, before its verb, else the first one.

        A name that is an object, or is followed by 的 or 's, does not count.
        """
        found = []
        for match in self._pattern.finditer(text):
            before, after = text[: match.start()], text[match.end() :]
            is_object = patterns.ZH_OBJECT.search(before) or patterns.EN_OBJECT.search(before)
            if not is_object and not re.match("的|['’]s ", after):
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
        if match := re.match(rf"\s*,?\s*{patterns.EN_VERB}\b", sentence):
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
    return [sentence for sentence in patterns.SENTENCE_END.split(text) if sentence.strip()]


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
    return patterns.ZH_CUE.fullmatch(clause.strip()) or patterns.EN_CUE.fullmatch(clause.strip())


def _starts_with_pronoun(text: str) -> bool:
    text = patterns.ZH_LEADING.sub("", text.strip())
    return patterns.ZH_PRONOUN.match(text) is not None or patterns.EN_PRONOUN.match(text) is not None


def _zh_name(head: str) -> str | None:
    head = patterns.ZH_LEADING.sub("", head.strip())
    while (shorter := patterns.ZH_TRAILING.sub("", head)) != head and len(shorter) != 1:  # 老大 stays
        head = shorter
    is_name = (
        patterns.ZH_NAME.fullmatch(head) and not patterns.ZH_PRONOUN.match(head) and not patterns.ZH_TO.match(head)
    )
    is_name = is_name and not patterns.ZH_NO_NAME.search(head)
    return head if is_name else None
