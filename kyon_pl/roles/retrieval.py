"""Which memories a question brings to mind: by stored vectors, by an embedding model, or by shared characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kyon_pl.errors import DataError
from kyon_pl.imports import need_package
from kyon_pl.roles.role import Role

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_QUERIES_AT_ONCE = 1000  # times 1,000 memories: 4 MB of similarities


def nearest_vectors(queries: Tensor, memories: Tensor, number: int) -> Tensor:
    """The memories with the largest dot product with each query, nearest first.

    The original's measure: the vectors are not scaled to one length. The order of memories that are equally near is
    left open.

    Args:
        queries: (queries, dimensions) float32.
        memories: (memories, dimensions) float32.
        number: how many to take of each.

    Returns:
        (queries, number or as many as there are) int64, places of memories.
    """
    number = min(number, len(memories))
    chunks = [(chunk @ memories.T).topk(number).indices for chunk in torch.split(queries, _QUERIES_AT_ONCE)]
    return torch.cat(chunks) if chunks else torch.empty(0, number, dtype=torch.int64)


class LexicalIndex:
    """Memories by the characters, and pairs of neighbouring ones, that they share with a question; TF-IDF, cosine.

    It needs no model and no download, and works for Chinese, which has no spaces between words.

    Args:
        memories: at least one of them not empty.
    """

    def __init__(self, memories: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # seconds to import

        self.vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
        self.memories = self.vectorizer.fit_transform(memories).T.tocsr()  # (character pairs, memories)

    def nearest(self, questions: Sequence[str], number: int) -> Tensor:
        """As `nearest_vectors`, for questions in words."""
        number = min(number, self.memories.shape[1])
        found = []
        for start in range(0, len(questions), _QUERIES_AT_ONCE):
            queries = self.vectorizer.transform(questions[start : start + _QUERIES_AT_ONCE])
            found.append(torch.from_numpy((queries @ self.memories).toarray()).topk(number).indices)
        return torch.cat(found) if found else torch.empty(0, number, dtype=torch.int64)


class Retriever:
    """Ranks the memories of a role.

    Args:
        role: whose.
        retrieval: `auto`: by stored vectors where a row has one of the memories' size, else lexically; `stored`: by
            stored vectors or not at all; `lexical`; anything else is the folder or Hub id of a sentence-embedding
            model.

    Attributes:
        ways: how many rows were served, by the way that was taken.

    Raises:
        MachineError: a model is asked for, and sentence-transformers is not installed.
        KyonError: the model cannot be loaded.
    """

    def __init__(self, role: Role, retrieval: str = "auto") -> None:
        self.role = role
        self.retrieval = retrieval
        self.ways: Counter[str] = Counter()
        self._lexical: LexicalIndex | None = None
        self._model = None if retrieval in ("auto", "stored", "lexical") else load_model(retrieval)
        self._encoded = self._encode(role.memories) if self._model and role.memories else None

    def rank(self, rows: Sequence[Mapping[str, Any]], number: int) -> list[list[int]]:
        """Places of the nearest memories of each row, nearest first.

        Args:
            rows: with `query`, and `embedding` if they have one.
            number: how many; fewer if there are not so many.

        Raises:
            DataError: stored vectors are asked for, and a row has none of the memories' size.
        """
        if not any(self.role.memories):
            return [[] for _ in rows]
        ranked: list[list[int]] = [[] for _ in rows]
        for dimensions in self._dimensions(rows):
            places = [place for place, row in enumerate(rows) if self._dimensions_of(row) == dimensions]
            for place, nearest in zip(places, self._rank([rows[p] for p in places], dimensions, number), strict=True):
                ranked[place] = nearest
        return ranked

    def _rank(self, rows: Sequence[Mapping[str, Any]], dimensions: int, number: int) -> list[list[int]]:
        questions = [row["query"] for row in rows]
        if self._encoded is not None:
            self.ways[f"by {self.retrieval}"] += len(rows)
            nearest = nearest_vectors(self._encode(questions), self._encoded, number)
        elif dimensions:
            self.ways["by stored vectors"] += len(rows)
            vectors = [row["embedding"] for row in rows]
            queries = np.array(vectors, dtype=np.float32)  # torch.tensor takes 2.5 times as long
            nearest = nearest_vectors(torch.from_numpy(queries), self.role.vectors[dimensions], number)
        else:
            self.ways["by shared characters"] += len(rows)
            self._lexical = self._lexical or LexicalIndex(self.role.memories)
            nearest = self._lexical.nearest(questions, number)
        return nearest.tolist()

    def _dimensions(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        found = {self._dimensions_of(row) for row in rows}
        if self.retrieval == "stored" and 0 in found:
            size = " or ".join(f"{size:,}" for size in self.role.vectors) or "no"
            found_text = f"a row without a stored vector that fits; the memories have {size} dimensions"
            fix = "Use retrieval auto or lexical, or give rows with 'embedding'."
            raise DataError(f"role {self.role.name}", found_text, fix)
        return sorted(found)

    def _dimensions_of(self, row: Mapping[str, Any]) -> int:
        """Of the vectors to compare; 0: none."""
        size = len(row.get("embedding") or ())
        return size if self.retrieval in ("auto", "stored") and size in self.role.vectors else 0

    def _encode(self, texts: Sequence[str]) -> Tensor:
        assert self._model is not None
        return torch.from_numpy(self._model.encode(list(texts), show_progress_bar=False, normalize_embeddings=True))


def load_model(name: str) -> SentenceTransformer:
    """A sentence-embedding model.

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
