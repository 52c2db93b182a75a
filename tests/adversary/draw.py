"""All attacks, and a part of them by chance."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random

from attack import Attack
from formats import damaged, wrong_values
from keys import wrong_arguments, wrong_settings
from processes import odd_environments, odd_names, odd_processes
from world import World

# what makes attacks, and how many of it are drawn in a round
GENERATORS = {
    damaged: 8,
    wrong_values: 6,
    wrong_settings: 6,
    wrong_arguments: 2,
    odd_processes: 4,
    odd_names: 4,
    odd_environments: 1,
}


def all_attacks(world: World, only: str) -> list[list[Attack]]:
    """Of each generator, those whose name has a text.

    Args:
        world: healthy inputs.
        only: the text.
    """
    return [[attack for attack in generate(world) if only in attack.name] for generate in GENERATORS]


def drawn(attacks: list[list[Attack]], seed: int) -> Iterator[Attack]:
    """All attacks in an order by chance: the generators by their share, and of each its kinds and commands in turn.

    Args:
        attacks: of each generator.
        seed: of the order.
    """
    rng = Random(seed)
    queues = [(in_turn(of_one, rng), share) for of_one, share in zip(attacks, GENERATORS.values(), strict=True)]
    while queues:
        left = []
        for queue, share in queues:
            taken = list(islice(queue, share))
            yield from taken
            if len(taken) == share:
                left.append((queue, share))
        queues = left


def in_turn(attacks: list[Attack], rng: Random) -> Iterator[Attack]:
    """One of each kind and command, then a second one of each, and so on."""
    groups: dict[tuple[str, str], list[Attack]] = {}
    for attack in attacks:
        groups.setdefault((attack.command, attack.kind), []).append(attack)
    queue = list(groups.values())
    rng.shuffle(queue)
    for group in queue:
        rng.shuffle(group)
    while queue:
        for group in queue:
            yield group.pop()
        queue = [group for group in queue if group]
