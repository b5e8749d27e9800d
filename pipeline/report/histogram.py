"""Distribution of Hounsfield units over a bounded sample of a store."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.report.tally import StudyFacts
from storage_schemas.errors import StoreError
from storage_schemas.store import StudyStore

HU_EDGES = np.arange(-1040, 2041, 20)
"""Bin edges in HU; values outside are counted in the first and the last bin."""
STUDIES = 40
"""Maximum size of the sample, spaced evenly over the sorted keys.

The overview and one crop of each study are read.
"""


@dataclass(frozen=True)
class HuHistogram:
    """Number of voxels in each bin of `HU_EDGES`.

    Parameters
    ----------
    studies : int
        Number of studies in the sample.
    overview : ndarray, shape (bins,), int64
        Voxel counts of the overviews.
    vertebrae : ndarray, shape (bins,), int64
        Voxel counts inside the masks of the crops.
    damaged : int
        Number of sampled studies that could not be read.
    """

    studies: int
    overview: NDArray[np.int64]
    vertebrae: NDArray[np.int64]
    damaged: int


def sample_hu(store: StudyStore, committed: Sequence[StudyFacts]) -> HuHistogram:
    """Count the HU of a sample of the committed studies.

    Parameters
    ----------
    store : StudyStore
        Store that holds the studies.
    committed : sequence of StudyFacts
        Committed studies, sorted by key.
    """
    overview = vertebrae = np.zeros(len(HU_EDGES) - 1, np.int64)
    places = np.unique(np.linspace(0, len(committed) - 1, min(len(committed), STUDIES)).astype(int))
    damaged = 0
    for number, place in enumerate(places):
        facts = committed[place]
        try:
            overview = overview + _count(store.read_overview(facts.study)[0])
            if facts.levels:
                # The level changes from study to study, so that the sample holds all of them.
                crop = store.read_crop(facts.study, facts.levels[number % len(facts.levels)])
                if crop.mask is not None:
                    vertebrae = vertebrae + _count(crop.hu[crop.mask > 0])
        except StoreError:
            damaged += 1
    return HuHistogram(len(places), overview, vertebrae, damaged)


def _count(hu: NDArray[np.int16]) -> NDArray[np.int64]:
    counts, _ = np.histogram(hu.clip(HU_EDGES[0], HU_EDGES[-1] - 1), HU_EDGES)
    return counts.astype(np.int64)
