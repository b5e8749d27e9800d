"""Make synthetic cervical-spine CT as DICOM files, in the layout of the competition.

Phantoms reproduce the form of the data (sites, encodings, prevalence, faults), not its difficulty:
scores on them show that training works, and nothing about performance on patients.
"""

from pipeline.phantom.cohort import CohortSummary, make_cohort
from pipeline.phantom.faults import FAULTS

__all__ = ["FAULTS", "CohortSummary", "make_cohort"]
