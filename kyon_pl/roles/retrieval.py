"""Ranks memories by a question: with stored vectors, an embedding model, or shared characters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kyon_pl.errors import DataError
from kyon_pl.imports import need_package
from kyon_pl.roles.role import Role, Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_SPACES = re.compile(r"\s\s+")
_QUERIES_PER_BATCH = 1000  # with 1,000 memories, 4 MB of similarities


def nearest_vectors(queries: Vectors, memories: Vectors, number: int) -> NDArray[np.int64]:
    """The memories with the largest dot product with each query, nearest first.

    As in the original, vectors are not normalized. Equally near memories are in their order.

    Args:
        queries: (queries, dimensions) float32.
        memories: (memories, dimensions) float32.
        number: how many memories to return for each query.

    Returns:
        (queries, min(number, memories)) int64, indices of memories.
    """
    return _nearest(len(queries), len(memories), number, lambda part: queries[part] @ memories.T)


def _nearest(queries: int, memories: int, number: int, similarities: Callable[[slice], Vectors]) -> NDArray[np.int64]:
    """The columns of the largest similarities of each row, largest first and equal ones in order, in batches of rows.

    Args:
        queries: number of rows.
        memories: number of columns.
        number: how many columns to return.
        similarities: computes a batch of rows.
    """
    number = min(number, memories)
    nearest = np.empty((queries, number), np.int64)
    for start in range(0, queries, _QUERIES_PER_BATCH):
        part = slice(start, min(start + _QUERIES_PER_BATCH, queries))
        nearest[part] = np.argsort(-similarities(part), axis=1, kind="stable")[:, :number]
    return nearest


class LexicalIndex:
    """Ranks memories by cosine similarity of TF-IDF vectors of characters and character pairs.

    It needs no model, and works for Chinese, which has no spaces between words. The weights are those of scikit-learn's
    `TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)`, whose import takes longer than a reply.

    Args:
        memories: the texts.
    """

    def __init__(self, memories: Sequence[str]) -> None:
        counts = [Counter(_character_pairs(memory)) for memory in memories]
        found_in = Counter(pair for count in counts for pair in count)
        self.rarity = {pair: math.log((1 + len(memories)) / (1 + number)) + 1 for pair, number in found_in.items()}
        self.size = len(memories)
        places: dict[str, list[int]] = {pair: [] for pair in found_in}
        weights: dict[str, list[float]] = {pair: [] for pair in found_in}
        for place, count in enumerate(counts):
            for pair, weight in self._weights(count).items():
                places[pair].append(place)
                weights[pair].append(weight)
        self.memories = {pair: (np.array(places[pair]), np.array(weights[pair], np.float32)) for pair in found_in}

    def nearest(self, questions: Sequence[str], number: int) -> NDArray[np.int64]:
        """As `nearest_vectors`, for questions as text; equally near memories are in their order."""
        return _nearest(len(questions), self.size, number, lambda part: self._similarities(questions[part]))

    def _similarities(self, questions: Sequence[str]) -> Vectors:
        similarities = np.zeros((len(questions), self.size), np.float32)
        for row, question in zip(similarities, questions, strict=True):
            for pair, weight in self._weights(Counter(_character_pairs(question))).items():
                places, weights = self.memories[pair]
                row[places] += weight * weights
        return similarities

    def _weights(self, count: Counter[str]) -> dict[str, float]:
        """The weight of each character and pair that a memory has, as a vector of length 1."""
        weights = {
            pair: (1 + math.log(number)) * self.rarity[pair] for pair, number in count.items() if pair in self.rarity
        }
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {pair: weight / length for pair, weight in weights.items()}


def _character_pairs(text: str) -> Iterator[str]:
    """The characters of a text and its pairs, in lower case, several spaces as one."""
    text = _SPACES.sub(" ", text.lower())
    yield from text
    yield from map("".join, pairwise(text))


class Retriever:
    """Ranks the memories of a role.

    Args:
        role: the role.
        retrieval: `auto`: stored vectors for rows with a vector of the memories' size, else lexical; `stored`: stored
            vectors only; `lexical`; or the folder or Hub id of a sentence-embedding model.

    Attributes:
        rankings: number of rows by how their memories were ranked.

    Raises:
        MachineError: a model is named, and sentence-transformers is not installed.
        KyonError: the model cannot be loaded.
    """

    def __init__(self, role: Role, retrieval: str = "auto") -> None:
        self.role = role
        self.retrieval = retrieval
        self.rankings: Counter[str] = Counter()
        self._lexical: LexicalIndex | None = None
        self._model = None if retrieval in ("auto", "stored", "lexical") else load_model(retrieval)
        self._encoded = self._encode(role.memories) if self._model and role.memories else None

    def rank(self, rows: Sequence[Mapping[str, Any]], number: int) -> list[list[int]]:
        """Indices of the nearest memories of each row, nearest first.

        Args:
            rows: with `query`, and optionally `embedding`.
            number: maximum number of memories for each row.

        Raises:
            DataError: `retrieval` is `stored`, and a row has no vector of the memories' size.
        """
        ranked: list[list[int]] = [[] for _ in rows]
        if not any(self.role.memories):
            return ranked
        for dimensions in self._all_dimensions(rows):
            indices = [i for i, row in enumerate(rows) if self._dimensions(row) == dimensions]
            for i, nearest in zip(indices, self._rank([rows[i] for i in indices], dimensions, number), strict=True):
                ranked[i] = nearest
        return ranked

    def _rank(self, rows: Sequence[Mapping[str, Any]], dimensions: int, number: int) -> list[list[int]]:
        questions = [row["query"] for row in rows]
        if self._encoded is not None:
            self.rankings[f"by {self.retrieval}"] += len(rows)
            nearest = nearest_vectors(self._encode(questions), self._encoded, number)
        elif dimensions:
            self.rankings["by stored vectors"] += len(rows)
            queries = np.array([row["embedding"] for row in rows], dtype=np.float32)
            nearest = nearest_vectors(queries, self.role.vectors[dimensions], number)
        else:
            self.rankings["by shared characters"] += len(rows)
            self._lexical = self._lexical or LexicalIndex(self.role.memories)
            nearest = self._lexical.nearest(questions, number)
        ranked: list[list[int]] = nearest.tolist()
        return ranked

    def _all_dimensions(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        dimensions = {self._dimensions(row) for row in rows}
        if self.retrieval == "stored" and 0 in dimensions:
            sizes = " or ".join(f"{size:,}" for size in self.role.vectors) or "no"
            found = f"a row without a stored vector of the right size; the memories have {sizes} dimensions"
            fix = "Use retrieval auto or lexical, or rows with 'embedding'."
            raise DataError(f"role {self.role.name}", found, fix)
        return sorted(dimensions)

    def _dimensions(self, row: Mapping[str, Any]) -> int:
        """The dimensions of the stored vectors to compare; 0 if there are none."""
        size = len(row.get("embedding") or ())
        return size if self.retrieval in ("auto", "stored") and size in self.role.vectors else 0

    def _encode(self, texts: Sequence[str]) -> Vectors:
        assert self._model is not None
        vectors: Vectors = self._model.encode(list(texts), show_progress_bar=False, normalize_embeddings=True)
        return vectors


def load_model(name: str) -> SentenceTransformer:
    """Load a sentence-embedding model.

    Raises:
        MachineError: sentence-transformers is not installed.
        KyonError: the Hub has no such model, or cannot be reached.
    """
    need_package(
        "sentence_transformers",
        "retrieval",
        where=f"retrieval {name}",
        does="runs the model",
        otherwise="Or use retrieval lexical, which needs no model.",
    )
    from sentence_transformers import SentenceTransformer

    from kyon_pl.hub.download import from_hub

    return from_hub(lambda: SentenceTransformer(name), name, "model", None)
