"""The rules that a whole study must keep: one identity, and few bad slices."""

from collections.abc import Iterable

from storage_schemas.errors import StudyError
from storage_schemas.records import STORED
from storage_schemas.study_key import StudyKey


def check_identity(study: StudyKey, found: str) -> None:
    """Refuse headers of another study than the one asked for; an empty UID is of any.

    Raises
    ------
    StudyError
        ``study-mixed``.
    """
    if found not in ("", study):
        raise StudyError("study-mixed", f"its headers say study {found}", key=study)


def check_share(outcomes: Iterable[str], most: float) -> None:
    """Few bad slices cost themselves alone; many cost the study. Other series are not bad.

    Parameters
    ----------
    outcomes : iterable of str
        ``stored``, or the kind of its refusal, of each object.
    most : float
        The greatest share of bad ones.

    Raises
    ------
    StudyError
        ``too-many-bad-slices``.
    """
    of_stack = [kind for kind in outcomes if kind not in ("not-in-stack", "sop-class-unsupported")]
    bad = sum(kind != STORED for kind in of_stack)
    if bad > most * len(of_stack):
        raise StudyError(
            "too-many-bad-slices",
            f"{bad} of {len(of_stack)} slices are refused, at most {most:.0%} may",
        )
