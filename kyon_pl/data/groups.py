"""What ties rows together: the same question, or the same dialogue."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kyon_pl.data.prompt import Context


def question_hash(context: str | list[int]) -> int:
    """What rows with the same question have in common, as a signed 64-bit number; of ids, the whole context counts."""
    return _hash(Context.parse(context).question.strip() if isinstance(context, str) else repr(context))


def dialogue_hash(dialogue: Any) -> int:
    """What rows of the same dialogue have in common, as a signed 64-bit number; 0 where none is known.

    Args:
        dialogue: what the row says of it, of whatever type; nothing, blank text and NaN say nothing.
    """
    known = dialogue is not None and dialogue == dialogue and str(dialogue).strip()
    return _hash(repr(dialogue)) if known else 0


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def group_rows(
    questions: NDArray[np.int64],
    dialogues: NDArray[np.int64],
    others: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Which rows hang together by questions and dialogues, over however many others.

    Args:
        questions: (rows,) hash of each row's question.
        dialogues: (rows,) hash of each row's dialogue; 0: none is known.
        others: further questions that rows ask: two arrays of the same length, the numbers of the rows and the hashes.

    Returns:
        (rows,) the least question hash of each row's group: without dialogues and further questions, its own.
    """
    asking, further = others
    known = np.flatnonzero(dialogues)
    if not len(known) and not len(further):
        return questions
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # a node for each question and behind these one for each dialogue; each row is an edge between its two
    hashes, places = np.unique(np.concatenate([questions, further]), return_inverse=True)
    question, also = places[: len(questions)], places[len(questions) :]
    talks, talk = np.unique(dialogues[known], return_inverse=True)
    ends = np.concatenate([question[known], question[asking]]), np.concatenate([len(hashes) + talk, also])
    nodes = len(hashes) + len(talks)
    graph = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1]
    least = hashes[np.unique(group[: len(hashes)], return_index=True)[1]]
    return np.asarray(least[group[question]])
