"""Choose the studies of a report's gallery and draw them.

Not here: drawing one picture (`pipeline.report.pictures`), and the page (`pipeline.report.page`).
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
"""Studies that are read and drawn concurrently."""


@dataclass(frozen=True)
class Card:
    """A study of the gallery with its pictures.

    Parameters
    ----------
    facts : StudyFacts
        Summary of the study.
    traits : tuple of str
        Traits that the study is an example of; empty where it only fills up the gallery.
    cuts : tuple of Cut
        Sagittal and coronal cut of the overview.
    crops : tuple of CropPicture
        One picture per crop.
    damage : str
        Message of the error that prevented a picture; empty without one.
    """

    facts: StudyFacts
    traits: tuple[str, ...]
    cuts: tuple[Cut, ...] = ()
    crops: tuple[CropPicture, ...] = ()
    damage: str = ""


def choose_studies(committed: Sequence[StudyFacts], count: int) -> list[Choice]:
    """Choose studies to show: one example of each trait, then the first ones by key.

    A trait is a geometry class other than ``regular``, a kind of refused object, or an outcome of a
    level without a crop.

    Parameters
    ----------
    committed : sequence of StudyFacts
        Committed studies, sorted by key.
    count : int
        Maximum number of studies.

    Returns
    -------
    list of (StudyFacts, tuple of str)
        Chosen studies, sorted by key, each with the traits that it is an example of.
    """
    chosen: dict[str, tuple[StudyFacts, list[str]]] = {}
    examples: dict[str, StudyFacts] = {}
    holders: Counter[str] = Counter()
    for facts in committed:
        for trait in _traits(facts):
            examples.setdefault(trait, facts)
            holders[trait] += 1
    # Rare traits first: their studies usually have the common traits too.
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
    yield from {facts.geometry, *facts.refusals, *facts.missing_outcomes} - {"regular"}


def draw_cards(store: StudyStore, chosen: Sequence[Choice], *, strips: bool) -> Iterator[Card]:
    """Draw studies, `STUDIES_AT_ONCE` concurrently.

    Parameters
    ----------
    store : StudyStore
        Store that holds the studies.
    chosen : sequence of (StudyFacts, tuple of str)
        Studies to draw, from `choose_studies`.
    strips : bool
        Whether to draw the slices of each crop as well.

    Yields
    ------
    Card
        One card per study, in the order given; a damaged study has its error instead of pictures.
    """

    def draw(entry: Choice) -> Card:
        facts, traits = entry
        cuts: tuple[Cut, ...] = ()
        try:
            record = store.record(facts.study)
            cuts = cut_overview(*store.read_overview(facts.study), record)
            return Card(facts, traits, cuts, draw_crops(store, record, strips=strips))
        except StoreError as error:
            return Card(facts, traits, cuts, damage=str(error))

    with ThreadPoolExecutor(STUDIES_AT_ONCE) as pool:
        yield from pool.map(draw, chosen)
