"""Which studies a report shows with pictures, and these pictures.

Not here: how a picture is made (`pipeline.report.pictures`), or the page around it
(`pipeline.report.page`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.report.pictures import CropPicture, Cut, cut_overview, draw_crops
from pipeline.report.tally import StudyFacts
from storage_schemas.errors import StoreError
from storage_schemas.store import StudyStore

Choice = tuple[StudyFacts, tuple[str, ...]]

STUDIES_AT_ONCE = 4
"""Each is read with several requests and held only while it is drawn."""


@dataclass(frozen=True)
class Card:
    """One study with its pictures.

    Parameters
    ----------
    facts : StudyFacts
    shows : tuple of str
        What it is an example of; empty where it was next in line.
    cuts : tuple of Cut
    crops : tuple of CropPicture
    damage : str
        Why pictures are missing; empty where none is.
    """

    facts: StudyFacts
    shows: tuple[str, ...]
    cuts: tuple[Cut, ...] = ()
    crops: tuple[CropPicture, ...] = ()
    damage: str = ""


def choose_studies(committed: Sequence[StudyFacts], count: int) -> list[Choice]:
    """Choose studies to show: one of each thing that occurs, then the first ones.

    Parameters
    ----------
    committed : sequence of StudyFacts
        By key.
    count : int
        How many, at most.

    Returns
    -------
    list of (StudyFacts, tuple of str)
        By key; with what each is an example of.
    """
    chosen: dict[str, tuple[StudyFacts, list[str]]] = {}
    examples: dict[str, StudyFacts] = {}
    holders: Counter[str] = Counter()
    for facts in committed:
        for trait in _traits(facts):
            examples.setdefault(trait, facts)
            holders[trait] += 1
    # The rare first: what many studies show, one of these will show anyway.
    for trait in sorted(holders, key=lambda trait: (holders[trait], trait)):
        facts = examples[trait]
        if facts.study in chosen:
            chosen[facts.study][1].append(trait)
        elif len(chosen) < count:
            chosen[facts.study] = (facts, [trait])
    for facts in committed:
        if len(chosen) >= count:
            break
        chosen.setdefault(facts.study, (facts, []))
    return [(facts, tuple(traits)) for _, (facts, traits) in sorted(chosen.items())]


def _traits(facts: StudyFacts) -> Iterator[str]:
    yield from {facts.geometry, *facts.refusals, *facts.lacking} - {"regular"}


def draw_cards(store: StudyStore, chosen: Sequence[Choice], *, strips: bool) -> Iterator[Card]:
    """Draw studies, a few at once, in the order given; damage takes the place of pictures."""

    def draw(entry: Choice) -> Card:
        facts, shows = entry
        cuts: tuple[Cut, ...] = ()
        try:
            record = store.record(facts.study)
            cuts = cut_overview(*store.read_overview(facts.study), record)
            return Card(facts, shows, cuts, draw_crops(store, record, strips=strips))
        except StoreError as error:
            return Card(facts, shows, cuts, damage=str(error))

    with ThreadPoolExecutor(STUDIES_AT_ONCE) as pool:
        yield from pool.map(draw, chosen)
