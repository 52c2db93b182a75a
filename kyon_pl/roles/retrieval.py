"""Ranks memories by a question: with stored vectors, an embedding model, or shared characters."""

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

_QUERIES_PER_BATCH = 1000  # with 1,000 memories, 4 MB of similarities


def nearest_vectors(queries: Tensor, memories: Tensor, number: int) -> Tensor:
    """The memories with the largest dot product with each query, nearest first.

    As in the original, vectors are not normalized. The order of equally near memories is undefined.

    Args:
        queries: (queries, dimensions) float32.
        memories: (memories, dimensions) float32.
        number: how many memories to return for each query.

    Returns:
        (queries, min(number, memories)) int64, indices of memories.
    """
    number = min(number, len(memories))
    batches = [(batch @ memories.T).topk(number).indices for batch in torch.split(queries, _QUERIES_PER_BATCH)]
    return torch.cat(batches) if batches else torch.empty(0, number, dtype=torch.int64)


class LexicalIndex:
    """Ranks memories by cosine similarity of TF-IDF vectors of characters and character pairs.

    It needs no model, and works for Chinese, which has no spaces between words.

    Args:
        memories: at least one of them not empty.
    """

    def __init__(self, memories: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # the import takes seconds

        self.vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
        self.memories = self.vectorizer.fit_transform(memories).T.tocsr()  # (character pairs, memories)

    def nearest(self, questions: Sequence[str], number: int) -> Tensor:
        """As `nearest_vectors`, for questions as text; equally near memories are in their order."""
        number = min(number, self.memories.shape[1])
        batches = []
        for start in range(0, len(questions), _QUERIES_PER_BATCH):
            queries = self.vectorizer.transform(questions[start : start + _QUERIES_PER_BATCH])
            similarities = torch.from_numpy((queries @ self.memories).toarray())
            batches.append(similarities.sort(descending=True, stable=True).indices[:, :number])
        return torch.cat(batches) if batches else torch.empty(0, number, dtype=torch.int64)


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
            vectors = [row["embedding"] for row in rows]
            queries = np.array(vectors, dtype=np.float32)  # torch.tensor takes 2.5 times as long
            nearest = nearest_vectors(torch.from_numpy(queries), self.role.vectors[dimensions], number)
        else:
            self.rankings["by shared characters"] += len(rows)
            self._lexical = self._lexical or LexicalIndex(self.role.memories)
            nearest = self._lexical.nearest(questions, number)
        return nearest.tolist()

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

    def _encode(self, texts: Sequence[str]) -> Tensor:
        assert self._model is not None
        return torch.from_numpy(self._model.encode(list(texts), show_progress_bar=False, normalize_embeddings=True))


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
