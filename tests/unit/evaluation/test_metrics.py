"""Metrics of replies against sacrebleu and independent computations, on one rank and on two."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
import torch.multiprocessing as mp
from sacrebleu.metrics import BLEU, CHRF

from kyon_pl.evaluation.metrics import JudgedReply, ReplyMetrics, n_gram_id, remove_whitespace, role_name

WORDS = [
    "春日",
    "阿虚",
    "团长",
    "SOS团",
    "宇宙人",
    "图书馆",
    "无聊",
    "明天",
    "a bit",
    "3.14",
    "，",
    "。",
    "！",
    "\n",
    " ",
]


def cases(count: int = 50) -> list[JudgedReply]:
    """References, replies that share some of their words, and memories that share words with the replies."""
    rng, found = Random(3), []
    for place in range(count):
        reference = [rng.choice(WORDS) for _ in range(rng.randint(6, 20))]
        reply = [word if rng.random() < 0.7 else rng.choice(WORDS) for word in reference[: rng.randint(3, 20)]]
        memories = ("".join(reply[2:8]) + "啊", "".join(rng.choices(WORDS, k=12)))
        name = "" if place % 5 == 0 else "凉宫:" if place % 2 else "长门："
        wrong = "朝仓:" if place % 7 == 0 else name
        found.append(JudgedReply(wrong + "".join(reply), name + "".join(reference), memories, place % 3 != 0))
    return found


def values(replies: list[JudgedReply]) -> dict[str, float]:
    metrics = ReplyMetrics()
    metrics.update(replies)
    return metrics.compute()


@pytest.mark.parametrize("together", [False, True])
def test_bleu_and_chrf_are_sacrebleu(together: bool) -> None:
    corpora = [cases()] if together else [[case] for case in cases()]
    for corpus in corpora:
        replies, references = [case.reply for case in corpus], [[case.reference for case in corpus]]
        found = values(corpus)
        bleu = BLEU(tokenize="char", smooth_method="none").corpus_score(replies, references).score
        assert found["bleu"] == pytest.approx(bleu, abs=1e-3)
        assert found["chrf"] == pytest.approx(CHRF().corpus_score(replies, references).score, abs=1e-3)


def longest_common_subsequence(left: str, right: str) -> int:
    """Its length, by the recursive definition."""

    @cache
    def length(i: int, j: int) -> int:
        if i == len(left) or j == len(right):
            return 0
        if left[i] == right[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def copied(reply: str, memories: tuple[str, ...]) -> int:
    """Characters of all runs of 8 or more that a memory contains, by testing every run of every length."""
    marks = [False] * len(reply)
    for start in range(len(reply)):
        for end in range(start + 8, len(reply) + 1):
            if any(reply[start:end] in remove_whitespace(memory) for memory in memories):
                marks[start:end] = [True] * (end - start)
    return sum(marks)


def test_other_metrics_agree_with_independent_computations() -> None:
    replies, found = cases(), values(cases())
    texts = [remove_whitespace(case.reply) for case in replies]
    references = [remove_whitespace(case.reference) for case in replies]
    scores = []
    for text, reference in zip(texts, references, strict=True):
        common = longest_common_subsequence(text, reference)
        scores.append(2 * common / (len(text) + len(reference)))
    grams = [[text[i : i + 4] for i in range(len(text) - 3)] for text in texts]
    pairs = [text[i : i + 2] for text in texts for i in range(len(text) - 1)]
    named = [case for place, case in enumerate(replies) if place % 5]
    expected = {
        "rouge_l": 100 * sum(scores) / len(scores),
        "distinct_1": len(set("".join(texts))) / len("".join(texts)),
        "distinct_2": len(set(pairs)) / len(pairs),
        "repeated_4grams": sum(len(g) - len(set(g)) for g in grams) / sum(map(len, grams)),
        "stop_rate": 33 / 50,
        "length_ratio": len("".join(texts)) / len("".join(references)),
        "copied_share": sum(map(copied, texts, [case.memories for case in replies])) / len("".join(texts)),
        "opens_with_name": sum(not case.reply.startswith("朝仓") for case in named) / len(named),
    }
    assert 0 < expected["copied_share"] < 1
    assert 0 < expected["opens_with_name"] < 1
    assert 0 < expected["repeated_4grams"] < 1
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_empty_replies_and_references_without_a_name() -> None:
    found = values([JudgedReply("", "好", (), False)] * 2)
    assert set(found) == set(values(cases())) - {"opens_with_name"}
    assert all(value == 0 for value in found.values())


def test_names_and_numbers() -> None:
    assert [
        role_name(text) for text in ("凉宫:「走」", "阿虚：嗯", "「凉宫:走」", "走吧。他说：", "Pell:「Ahem", "")
    ] == [
        "凉宫",
        "阿虚",
        None,
        "走吧。他说",
        "Pell",
        None,
    ]
    assert len({n_gram_id(gram) for gram in ("a", "b", "ab", "ba")}) == 4


def rank(rank: int, folder: Path) -> None:
    """One of two ranks: the first has all replies but one, or all of them."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for name, (start, end) in {"one": (0, 1), "none": (0, 0)}.items():
        metrics = ReplyMetrics()
        metrics.update(cases()[start:end] if rank else cases()[end:])
        torch.save(metrics.compute(), folder / f"{name}.{rank}")
    torch.distributed.destroy_process_group()


def test_ranks_count_together(tmp_path: Path) -> None:
    """With replies unevenly distributed over the ranks."""
    # forked processes need not import everything again
    mp.start_processes(rank, args=(tmp_path,), nprocs=2, start_method="fork")
    for name in ("one", "none"):
        both = [torch.load(tmp_path / f"{name}.{rank}") for rank in range(2)]
        assert both[0] == both[1] == pytest.approx(values(cases()))
