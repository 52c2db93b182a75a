"""`kyon-pl chat`: a tuned model in the terminal, or one reply for a script."""

from __future__ import annotations

import json as json_format
import logging
import sys
from typing import Literal

from kyon_pl.chat.conversation import Conversation
from kyon_pl.chat.loading import load_speaker
from kyon_pl.chat.role_play import RolePlay, harmless
from kyon_pl.chat.speaker import Sampling, check_room
from kyon_pl.chat.terminal import Terminal, show
from kyon_pl.errors import SettingError
from kyon_pl.roles.contexts import Room
from kyon_pl.roles.role import Role, role_to_play

log = logging.getLogger(__name__)


def chat(
    adapter: str | list[str] | None = None,
    which: Literal["best", "last"] = "best",
    base: str | None = None,
    revision: str | None = None,
    character: str | None = None,
    asker: str = "",
    retrieval: str = "auto",
    memory_number: int | None = None,
    memory_length: int | None = None,
    history_length: int | None = None,
    system: str = "",
    template: str | None = None,
    max_tokens: int = 2048,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    prompt: str | None = None,
    json: bool = False,
    compare: bool = False,
) -> None:
    """Talk to a tuned model.

    It is asked through the same code as in training. With a role folder, a question becomes what a row of that role
    would be: system prompt, memories, history, question.

    Args:
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint, or a Hub id; or the folder of a merged
            model; unset, the newest run here. Of several, '[one, another]', /adapter NAME chooses.
        which: of a run, the best checkpoint by validation loss, or the last.
        base: a folder or Hub id; unset, the one that the adapter names.
        revision: branch, tag or commit of the base on the Hub.
        character: a role folder or role file to play; demo, or demo/NAME: one of the demo's.
        asker: whose name stands before your questions, as in the role's training rows; written before a question, a
            name and a colon do the same.
        retrieval: how a question finds memories, as for build-data.
        memory_number: the most memories, as for build-data; give what the role's rows were built with.
        memory_length: of all memories, in tokens, likewise.
        history_length: of the turns before the question, likewise.
        system: a system prompt, where no role is played.
        template: raw or chatglm2; unset, the one that the adapter was trained with.
        max_tokens: the longest prompt with its reply; memories and turns go first where it is too long.
        max_new_tokens: the longest reply, in tokens.
        temperature: 0: always the likeliest token, so that the same question has the same reply; 0.8 is livelier.
        top_p: draw from the likeliest tokens that make up this much probability.
        repetition_penalty: over 1, tokens that were there become less likely.
        seed: of the draws.
        prompt: -p: ask this, print the reply, and end; - reads it from standard input.
        json: print one JSON object, with prompt, reply and whether the model ended it itself.
        compare: let the base reply too.

    Raises:
        SettingError: an impossible number, another template than the adapter's, adapters that do not go together, or no
            question.
        MissingFileError: no such adapter, base or role.
        CheckpointError: files that cannot be read, or do not fit together.
        DataError: a role's file cannot be used; a question that is too long.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
    check_room(max_tokens, "max_new_tokens", max_new_tokens)
    if character and system:
        raise SettingError("system", "the role has its own", "Leave --system or --character out")
    room = Room(memory_number, memory_length, history_length)
    role = role_to_play(character) if character else None
    question = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    if question is not None and not question.strip():
        raise SettingError("prompt", "it is empty", "Ask something")
    speaker = load_speaker(adapter, which, base, revision, template)

    def play(role: Role) -> RolePlay:
        return RolePlay(role, retrieval, room, speaker.count_tokens)

    conversation = Conversation(speaker, max_tokens, play(role) if role else None, system, asker=asker)
    if question is None:
        with_adapters = f"{speaker.base} with {', '.join(speaker.adapters)}" if speaker.tuned else speaker.base
        log.info("%s; template %s. /help lists the commands", with_adapters, speaker.template)
        Terminal(conversation, sampling, lambda name: play(role_to_play(name)), compare).run()
        return
    _answer_once(conversation, question, sampling, json, compare)


def _answer_once(conversation: Conversation, question: str, sampling: Sampling, json: bool, compare: bool) -> None:
    said = conversation.ask(question, sampling, (lambda text: None) if json else show)
    base = conversation.compare(sampling) if compare and conversation.speaker.tuned else None
    if json:
        answer = {"prompt": question, "reply": said.text, "stopped": said.stopped}
        print(json_format.dumps(answer | ({"base": base.text} if base else {}), ensure_ascii=False))
    else:
        print(f"\nbase: {harmless(base.text)}" if base else "")
