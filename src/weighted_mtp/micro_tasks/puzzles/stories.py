"""Names of two tokens in small stories (the induction task of Gloeckle et al. 2024, 2404.19737).

Each story has two characters, who are named again and again. A name is two syllables. Most
characters of the training stories have one of a few known names, whose second syllable can be
learnt by heart; some, and all of those to test with, have a name that was made up for the story:
its second syllable has to be copied from an earlier mention.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from weighted_mtp.micro_tasks.puzzles.puzzle import Puzzle

SYLLABLES = 64
"""Symbols 0 to 63 are syllables; words follow."""
KNOWN = tuple((3 * i % SYLLABLES, (7 * i + 40) % SYLLABLES) for i in range(20))
"""Known names, no two with the same first syllable."""

PLACES = [
    "park",
    "garden",
    "kitchen",
    "forest",
    "river",
    "school",
    "market",
    "beach",
    "hill",
    "barn",
]
THINGS = ["ball", "book", "cake", "kite", "stone", "flower", "drum", "lamp", "shell", "basket"]
MOODS = ["happy", "sad", "tired", "proud", "afraid", "hungry"]
DEEDS = ["found", "lost", "wanted", "saw", "carried", "hid"]
SENTENCES = tuple(
    text.split()
    for text in (
        "once upon a time there was a child called NAME .",
        "one day NAME went to the PLACE .",
        "NAME DEED a THING .",
        "NAME gave the THING to NAME .",
        "then NAME was very MOOD .",
        "NAME and NAME played in the PLACE .",
        '" look , a THING ! " said NAME .',
        "NAME DEED the THING in the PLACE .",
        '" are you MOOD ? " asked NAME .',
        "in the evening NAME was MOOD .",
    )
)
SLOTS = {"PLACE": PLACES, "THING": THINGS, "MOOD": MOODS, "DEED": DEEDS}
PLAIN = sorted({word for text in SENTENCES for word in text if not word.isupper()})
WORDS = [*PLAIN, *PLACES, *THINGS, *MOODS, *DEEDS]
SYMBOL = {word: SYLLABLES + i for i, word in enumerate(WORDS)}
"""Of each word."""


@dataclass(frozen=True)
class Stories:
    """Stories of so many sentences.

    Attributes:
        made_up: share of the characters in training stories whose name was made up.
    """

    sentences: int = 8
    made_up: float = 0.3
    levels: tuple[str, ...] = ("story",)
    trained_levels: int = 1

    def make(self, rng: Random, level: str, held_out: bool) -> Puzzle:
        share = 1.0 if held_out else self.made_up
        names = [_name(rng, share)]
        while len(names) < 2:  # two characters are told apart by the first syllable
            other = _name(rng, share)
            names += [other] if other[0] != names[0][0] else []
        story: list[int] = []
        new: list[int] = []
        again: list[int] = []
        seen: set[int] = set()
        for _ in range(self.sentences):
            pair = rng.sample((0, 1), 2)  # one sentence may name both
            for word in rng.choice(SENTENCES):
                if word == "NAME":
                    who = pair.pop()
                    story += names[who]
                    (again if who in seen else new).append(len(story) - 1)
                    seen.add(who)
                else:
                    story.append(SYMBOL[rng.choice(SLOTS[word]) if word in SLOTS else word])
        return Puzzle((), tuple(story), {"again": tuple(again), "new": tuple(new)})


def _name(rng: Random, made_up: float) -> tuple[int, int]:
    if rng.random() >= made_up:
        return rng.choice(KNOWN)
    while True:
        name = (rng.randrange(SYLLABLES), rng.randrange(SYLLABLES))
        if name not in KNOWN:
            return name
