"""How Hounsfield units are spread over a store, from a bounded sample of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.report.tally import StudyFacts
from storage_schemas.errors import StoreError
from storage_schemas.store import StudyStore

HU_EDGES = np.arange(-1040, 2041, 20)
"""Bins; what lies beyond counts in the outer ones."""
STUDIES = 40
"""Sampled, at most, evenly over the keys; of each its overview and one of its crops."""


@dataclass(frozen=True)
class HuHistogram:
    """Voxels in each bin of `HU_EDGES`.

    Parameters
    ----------
    studies : int
        Sampled.
    overview : ndarray, shape (bins,), int64
        Of whole studies, as their overviews show them.
    vertebrae : ndarray, shape (bins,), int64
        Inside masks.
    damaged : int
        Studies of the sample that could not be read.
    """

    studies: int
    overview: NDArray[np.int64]
    vertebrae: NDArray[np.int64]
    damaged: int


def sample_hu(store: StudyStore, committed: Sequence[StudyFacts]) -> HuHistogram:
    """Count the HU of a sample of the committed studies."""
    overview = vertebrae = np.zeros(len(HU_EDGES) - 1, np.int64)
    places = np.unique(np.linspace(0, len(committed) - 1, min(len(committed), STUDIES)).astype(int))
    damaged = 0
    for number, place in enumerate(places):
        facts = committed[place]
        try:
            overview = overview + _count(store.read_overview(facts.study)[0])
            if facts.levels:
                # Another level each time, so that all of them are in the sample.
                crop = store.read_crop(facts.study, facts.levels[number % len(facts.levels)])
                if crop.mask is not None:
                    vertebrae = vertebrae + _count(crop.hu[crop.mask > 0])
        except StoreError:
            damaged += 1
    return HuHistogram(len(places), overview, vertebrae, damaged)


def _count(hu: NDArray[np.int16]) -> NDArray[np.int64]:
    counts, _ = np.histogram(hu.clip(HU_EDGES[0], HU_EDGES[-1] - 1), HU_EDGES)
    return counts.astype(np.int64)
