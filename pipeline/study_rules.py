"""The rules that a whole study must keep: one identity, and few bad slices."""

from collections.abc import Iterable

from storage_schemas.errors import StudyError
from storage_schemas.outcomes import STORED, is_refused
from storage_schemas.study_key import StudyKey


def check_identity(study: str, found: str) -> None:
    """Refuse headers of another study than the one asked for; an empty UID is of any.

    Parameters
    ----------
    study : str
        As the source names it: a UID, or the identifier that an anonymiser wrote in its place.
    found : str
        From the headers, where an identifier that is no UID has been replaced by one.

    Raises
    ------
    StudyError
        ``study-key-invalid`` where a folder's name is neither a UID nor what the headers say,
        ``study-mixed`` where the headers say another study.
    """
    if study and not StudyKey.is_valid(study) and found == StudyKey.from_url(study):
        return
    key = StudyKey(study)
    if found not in ("", key):
        raise StudyError("study-mixed", f"its headers say study {found}", key=key)


def check_share(outcomes: Iterable[str], most: float) -> None:
    """Few bad slices cost themselves alone; many cost the study. Unused objects are not bad.

    Parameters
    ----------
    outcomes : iterable of str
        The outcome of each object, as `storage_schemas.outcomes` has them.
    most : float
        The greatest share of refused objects in the stored and refused ones.

    Raises
    ------
    StudyError
        ``too-many-bad-slices``.
    """
    counted = [outcome for outcome in outcomes if outcome == STORED or is_refused(outcome)]
    bad = sum(outcome != STORED for outcome in counted)
    if bad > most * len(counted):
        raise StudyError(
            "too-many-bad-slices",
            f"{bad} of {len(counted)} slices are refused, at most {most:.0%} may",
        )
