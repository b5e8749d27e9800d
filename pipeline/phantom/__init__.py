"""Synthetic cervical-spine CT as real DICOM files, in the layout of the competition.

It reproduces the shape of the data (sites, codings, prevalence, faults), not its difficulty: scores
on it say that the machinery learns, and nothing about patients.
"""

from pipeline.phantom.cohort import CohortSummary, make_cohort
from pipeline.phantom.faults import FAULTS

__all__ = ["FAULTS", "CohortSummary", "make_cohort"]
