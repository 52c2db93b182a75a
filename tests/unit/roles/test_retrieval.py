"""Which memories are nearest, and how they are ranked."""

from __future__ import annotations

import base64
import importlib.util
import struct
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from role_folder import write_lines, write_role
from sklearn.feature_extraction.text import TfidfVectorizer

from kyon_pl.errors import DataError, MachineError, MissingFileError, SettingError
from kyon_pl.roles.retrieval import LexicalIndex, Retriever, nearest_vectors
from kyon_pl.roles.role import Role, find_roles, read_role

SCENES = ("灯塔在湾口，夜里亮。", "蜜糕是甜的，三枚贝币。", "Bo keeps the brass key in the boat.")


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_the_nearest_have_the_largest_dot_product() -> None:
    """Against argsort, over several batches of queries; vectors are not normalized."""
    memories, queries = normal(1, 50, 16), normal(2, 2100, 16)
    found = nearest_vectors(queries, memories, 8)
    assert np.array_equal(found, (-queries @ memories.T).argsort(axis=1)[:, :8])
    few = np.array([[0.5], [2.0], [1.0]], np.float32)
    assert nearest_vectors(few[:1], few, 8).tolist() == [[1, 2, 0]]
    assert nearest_vectors(few[:0], memories[:, :1], 8).shape == (0, 8)


def test_shared_characters_find_a_scene() -> None:
    questions = ["阿禾:「灯塔在哪里？」", "小满:「蜜糕多少钱？」", "Ann: Whose is the BRASS KEY?"] * 400
    found = LexicalIndex(SCENES).nearest(questions, 2)
    assert found[:, 0].tolist() == [0, 1, 2] * 400
    assert found.shape == (1200, 2)


def test_the_weights_are_those_of_scikit_learn() -> None:
    rng = Random(3)
    letters = "灯塔在湾口夜里亮蜜糕是甜的 ABab\n"
    memories, questions = (
        ["".join(rng.choices(letters, k=rng.randint(0, 30))) for _ in range(number)] for number in (40, 30)
    )
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    expected = vectorizer.fit_transform(memories) @ vectorizer.transform(questions).T
    found = LexicalIndex(memories)._similarities(questions)
    assert np.abs(found - expected.toarray().T).max() < 1e-6


def role(memories: tuple[str, ...] = SCENES, **vectors: list[list[float]]) -> Role:
    return Role("bo", "You are Bo.", memories, {len(v[0]): np.array(v, np.float32) for v in vectors.values()}, ("Bo",))


def test_each_row_is_ranked_by_its_own_vector_or_lexically() -> None:
    """By the stored vectors of the same size, if there are any."""
    retriever = Retriever(role(two=[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], one=[[1.0], [2.0], [3.0]]))
    rows: list[dict[str, Any]] = [
        {"query": "灯塔？", "embedding": [-1.0, 0.0]},
        {"query": "灯塔？", "embedding": []},
        {"query": "蜜糕？"},
        {"query": "灯塔？", "embedding": [-1.0]},
        {"query": "灯塔？", "embedding": [1.0, 0.0, 0.0]},
    ]
    assert [ranked[0] for ranked in retriever.rank(rows, 2)] == [2, 0, 1, 0, 0]
    assert retriever.rankings == {"by stored vectors": 2, "by shared characters": 3}
    lexical = Retriever(retriever.role, "lexical")
    assert [ranked[0] for ranked in lexical.rank(rows, 2)] == [0, 0, 1, 0, 0]
    with pytest.raises(
        DataError, match="a row without a stored vector of the right size; the memories have 2 or 1 dimensions"
    ):
        Retriever(retriever.role, "stored").rank(rows, 2)
    assert Retriever(retriever.role, "stored").rank(rows[:1], 5) == [[2, 1, 0]]


@pytest.mark.parametrize("memories", [(), ("",)])
def test_a_role_without_memories_has_none(memories: tuple[str, ...]) -> None:
    assert Retriever(role(memories)).rank([{"query": "a"}, {"query": "b"}], 8) == [[], []]


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is not None, reason="the extra is installed")
def test_a_model_needs_the_extra() -> None:
    with pytest.raises(MachineError, match=r"pip install 'kyon-pl\[retrieval\]'"):
        Retriever(role(), "BAAI/bge-small-zh-v1.5")


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f">{len(numbers)}f", *numbers)).decode()


def role_file(path: Path, *more: object) -> Path:
    names = ("luotuo_openai", "bge_zh_s15")
    head = [{"text": "You are Bo.", **dict.fromkeys(names, "system_prompt")}, {"text": "x", "luotuo_openai": "config"}]
    scenes = [{"text": f"m{i}", "luotuo_openai": packed(i, 0.5, -2), "bge_zh_s15": packed(1e-3, i)} for i in range(2)]
    return write_lines(path, [*head, *scenes, *more])


def test_a_role_file_holds_several_vectors(tmp_path: Path) -> None:
    read = read_role(role_file(tmp_path / "Bo.jsonl"))
    assert (read.name, read.system_prompt, read.memories, read.aliases) == ("Bo", "You are Bo.", ("m0", "m1"), ("Bo",))
    assert {size: vectors.tolist() for size, vectors in read.vectors.items()} == {
        3: [[0.0, 0.5, -2.0], [1.0, 0.5, -2.0]],
        2: np.array([[1e-3, 0.0], [1e-3, 1.0]], np.float32).tolist(),
    }
    fewer = read_role(role_file(tmp_path / "Fewer.jsonl", {"text": "m2", "bge_zh_s15": packed(3, 4)}))
    assert fewer.memories == ("m0", "m1", "m2")
    assert [*fewer.vectors] == [2]  # not every memory has one of the other kind


@pytest.mark.parametrize("vector", ["no base64!", packed(1.0)[:-2], packed(1.0), 7])
def test_a_bad_vector_is_named_by_its_line(tmp_path: Path, vector: object) -> None:
    with pytest.raises(DataError, match=r"Bo\.jsonl, line 5.* vector"):
        read_role(role_file(tmp_path / "Bo.jsonl", {"text": "m2", "luotuo_openai": vector}))


def test_a_role_file_has_a_system_prompt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no line with the system prompt"):
        read_role(write_lines(tmp_path / "Bo.jsonl", [{"text": "m", "luotuo_openai": packed(1)}]))


def test_roles_are_found_with_their_aliases(tmp_path: Path) -> None:
    write_role(tmp_path / "zhao", texts={"2.txt": " 二\n", "1.txt": "\ufeff一\r\n一", "3.txt": "\n"})
    (tmp_path / "zhao/aliases.txt").write_text("小棹\n\n阿棹\n", encoding="utf-8")
    write_role(tmp_path / "mo", {"题｜｜｜文": [1.0]})
    role_file(tmp_path / "Bo.jsonl")
    (tmp_path / "no_role").mkdir()
    bo, mo, zhao = find_roles([str(tmp_path)], {"mo": ["墨姨"]})
    assert (bo.name, bo.aliases, mo.aliases, zhao.aliases) == ("Bo", ("Bo",), ("墨姨",), ("小棹", "阿棹"))
    assert zhao.memories == ("一\n一", "二")
    assert [r.name for r in find_roles([str(tmp_path / "mo"), str(tmp_path / "Bo.jsonl")], {})] == ["mo", "Bo"]


def test_roles_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"Name a folder with system_prompt\.txt"):
        find_roles([str(tmp_path / "empty")], {})
    zhao = str(write_role(tmp_path / "zhao"))
    with pytest.raises(SettingError, match="there is no role 'Zhao'"):
        find_roles([zhao], {"Zhao": ["小棹"]})
    with pytest.raises(SettingError, match="two roles are called zhao"):
        find_roles([zhao, zhao], {})
    with pytest.raises(SettingError, match="it would match every speaker"):
        find_roles([zhao], {"zhao": ["小棹", ""]})
    Path(zhao, "system_prompt.txt").write_bytes("小棹".encode("gbk"))
    with pytest.raises(DataError, match="not UTF-8"):
        find_roles([zhao], {})


def cpu_seconds(function: Callable[[], object]) -> float:
    started_s = time.process_time()
    function()
    return time.process_time() - started_s


@pytest.mark.slow
def test_a_hundred_thousand_questions_over_a_thousand_memories() -> None:
    """Processor time: by stored vectors that of one matrix product; by shared characters that of a loop over 1 %."""
    vectors = normal(0, 1000, 1536)
    asked = np.tile(normal(1, 1000, 1536), (100, 1))
    product = cpu_seconds(lambda: asked @ vectors.T)
    assert cpu_seconds(lambda: nearest_vectors(asked, vectors, 16)) < 4 * product  # measured: 0.9

    letters = [chr(0x4E00 + i) for i in range(3000)]
    text = "".join(Random(0).choices(letters, weights=[1 / (i + 1) for i in range(3000)], k=10**6))
    memories = [text[250 * i : 250 * (i + 1)] for i in range(1000)]
    questions = [text[9 * i : 9 * i + 30] for i in range(100_000)]
    sets = [set(memory) for memory in memories]
    loop = cpu_seconds(lambda: [max(len(of & set(q)) for of in sets) for q in questions[:1000]])
    assert cpu_seconds(lambda: LexicalIndex(memories).nearest(questions, 16)) < 25 * loop  # measured: 6.9
