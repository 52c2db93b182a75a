"""`kyon-pl chat`: chat with a fine-tuned model in the terminal, or get one reply in a script."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Literal

from kyon_pl.chat.conversation import MAX_QUESTION_CHARACTERS, Conversation, check_question
from kyon_pl.chat.model import ChatModel, Sampling, check_max_tokens, roles_of_run, sampling_for
from kyon_pl.chat.role_play import RolePlay
from kyon_pl.chat.terminal.lines import print_piece
from kyon_pl.chat.terminal.terminal import Terminal, json_line
from kyon_pl.errors import SettingError
from kyon_pl.language import localized
from kyon_pl.logs import replace_control_characters
from kyon_pl.roles.contexts import ContextLimits
from kyon_pl.roles.role import Role, role_to_play

log = logging.getLogger(__name__)


def chat(
    adapter: str | list[str] | None = None,
    which: Literal["best", "last"] | None = None,
    base: str | None = None,
    revision: str | None = None,
    server: str | None = None,
    character: str | None = None,
    asker: str = "",
    retrieval: str | None = None,
    memory_number: int | None = None,
    memory_length: int | None = None,
    history_length: int | None = None,
    system: str = "",
    template: str | None = None,
    max_tokens: int = 2048,
    max_new_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    prompt: str | None = None,
    json: bool = False,
    compare: bool = False,
) -> None:
    """Chat with a fine-tuned model.

    Prompts are encoded by the same code as in training. With a role, the prompt is built like a row of that role:
    system prompt, memories, history, question.

    Args:
        adapter: a PEFT folder, a run folder, a folder of runs, a checkpoint or a Hub id; or the folder of a merged
            model. By default, the newest run here. Pass several with '[one, another]' and switch with /adapter NAME.
        which: the checkpoint to use of a run, best (by validation loss) or last; by default the best, or the last if
            nothing was validated.
        base: folder or Hub id of the base model; by default, the one that the adapter names.
        revision: branch, tag or commit of the base on the Hub.
        server: address of a running llama-server, or of another server of OpenAI's completions, that computes the
            replies, such as http://127.0.0.1:8080. Name the folder of its model with --adapter. A key is read from the
            environment variable KYON_PL_SERVER_KEY.
        character: role folder or role file to play; demo or demo/NAME for a role of the demo. By default, and without
            --adapter, the first role of the newest run's rows, if they are from build-data or the demo's; '' for no
            role.
        asker: the name before your questions. Starting a question with a name and a colon does the same. By default,
            the most frequent one in the run's rows.
        retrieval: how memories are ranked, see build-data. By default, as in the run's rows, else auto.
        memory_number: maximum number of memories. By default, as in the run's rows, else 8.
        memory_length: total length of all memories, in the unit of the run's rows, else in tokens. By default, as in
            the run's rows, else 1000.
        history_length: total length of the turns before the question, in the same unit. By default, as in the run's
            rows, else 500.
        system: system prompt without a role.
        template: raw or chatglm2; by default, the one that the adapter was trained with.
        max_tokens: maximum length of prompt and reply together; memories and older turns are left out to fit.
        max_new_tokens: maximum length of a reply, in tokens.
        temperature: 0 is greedy decoding, the same reply every time; a role's /retry uses 0.8. By default 0.8 for a
            role, 0 without one.
        top_p: sample from the most likely tokens whose probabilities add up to this. By default 0.8 for a role, 1
            without one.
        repetition_penalty: above 1, tokens that already occurred become less likely.
        seed: seed of the sampling.
        prompt: -p, one question of at most 1,000,000 characters: print the reply and exit; - reads it from standard
            input.
        json: print a JSON object for each question, with the question as typed, the exact prompt, the reply, and
            whether the model ended the reply itself.
        compare: also print the reply of the base model.

    Raises:
        SettingError: a number out of range, another template than the adapter's, adapters that do not match, or no
            question.
        MissingFileError: no such adapter, base or role.
        CheckpointError: files that cannot be read, or do not match.
        DataError: a role's file cannot be used, or a question is too long.
        MachineError: the server does not answer, or memory is not enough.
    """
    plain = Sampling(max_new_tokens, repetition_penalty=repetition_penalty, seed=seed)
    sampling = sampling_for(plain, temperature, top_p, plays_role=bool(character))
    check_max_tokens(max_tokens, "max_new_tokens", max_new_tokens)
    if character and system:
        raise SettingError("system", "a role has its own system prompt", "Leave --system or --character out")
    limits = ContextLimits(memory_number, memory_length, history_length)
    role = role_to_play(character) if character else None
    question = read_question(prompt)
    model = load_model(adapter, which, base, revision, template, server, max_tokens)
    if character is None and adapter is None and not system and (names := roles_of_run(model)):
        role = role_to_play(names[0])
        sampling = sampling_for(plain, temperature, top_p, plays_role=True)
        log.info("role: %s, since the adapter was trained on its rows; --character '' for no role", role.name)

    def play(role: Role) -> RolePlay:
        return RolePlay(role, retrieval, limits, model.count_tokens, model.roles)

    conversation = Conversation(model, max_tokens, play(role) if role else None, system, asker=asker)
    if question is None:
        name = f"{model.base} with adapter {', '.join(model.adapters)}" if model.adapters else model.base
        log.info("%s; template %s. /help lists the commands", name, model.template)
        chosen = temperature, top_p
        Terminal(conversation, sampling, lambda name: play(role_to_play(name)), compare, chosen, json).run()
    elif json:
        print(json_line(conversation, question, sampling, compare))
    else:
        _answer_once(conversation, question, sampling, compare)


def read_question(prompt: str | None) -> str | None:
    """The question of `--prompt`, from standard input if it is `-`, of which no more is read than a question can have.

    Args:
        prompt: the option; None: the terminal asks.

    Raises:
        SettingError: it is empty, or standard input is closed or not text.
        DataError: it is too long, or not text.
    """
    if prompt in (None, "-") and sys.stdin is None:
        raise SettingError("standard input", "it is closed", "Pass the question with -p QUESTION")
    if prompt is None:
        return None
    try:
        question = sys.stdin.read(MAX_QUESTION_CHARACTERS + 2).rstrip("\n") if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise SettingError("standard input", f"it is not text in {error.encoding}", "Convert it") from None
    check_question(question)
    if not question.strip():
        raise SettingError("prompt", "it is empty", "Ask something")
    return question


def _answer_once(conversation: Conversation, question: str, sampling: Sampling, compare: bool) -> None:
    conversation.ask(question, sampling, print_piece)
    base = conversation.compare(sampling) if compare and conversation.model.adapters else None
    print(f"\n{localized('base: ')}{replace_control_characters(base.text)}" if base else "")


def load_model(
    adapters: str | Sequence[str] | None,
    which: Literal["best", "last"] | None,
    base: str | None,
    revision: str | None,
    template: str | None,
    server: str | None,
    max_tokens: int,
) -> ChatModel:
    """Load the model onto this machine, or connect to a server. Only the former imports torch.

    Args:
        adapters: as for `load_chat_model` or `load_server_model`.
        which: as for `load_chat_model`.
        base: as for `load_chat_model`.
        revision: as for `load_chat_model`.
        template: as for `load_chat_model`.
        server: address; None: this machine.
        max_tokens: maximum length of prompt and reply together, which the server's context must hold.

    Raises:
        SettingError: an option that a server does not have, a context that is too short, or from what loads the model.
        KyonError: from what loads the model.
    """
    if server is None:
        from kyon_pl.chat.loading import load_chat_model

        return load_chat_model(adapters, which, base, revision, template)
    from kyon_pl.chat.server.model import load_server_model

    for name, value in (("which", which), ("base", base), ("revision", revision)):
        if value is not None:
            raise SettingError(f"--{name}", "the server has its model already", "Leave it out with --server")
    return load_server_model(server, adapters, template, max_tokens)
