"""Checks of whole studies: consistent identity, and few refused slices."""

from collections.abc import Iterable

from storage_schemas.errors import StudyError
from storage_schemas.outcomes import STORED, is_refused
from storage_schemas.study_key import StudyKey


def check_identity(study: str, found: str) -> None:
    """Refuse headers of another study than the listed one; an empty UID is accepted.

    Parameters
    ----------
    study : str
        Name of the study in the source: a UID, or the identifier written by an anonymiser.
    found : str
        StudyInstanceUID of the headers; an identifier that is no UID is replaced by one.

    Raises
    ------
    StudyError
        ``study-key-invalid`` if a folder's name is neither a UID nor the identifier in the
        headers, ``study-mixed`` if the headers name another study.
    """
    if study and not StudyKey.is_valid(study) and found == StudyKey.from_url(study):
        return
    key = StudyKey(study)
    if found not in ("", key):
        raise StudyError("study-mixed", f"its headers say study {found}", key=key)


def check_share(outcomes: Iterable[str], most: float) -> None:
    """Refuse a study with too many refused slices. Unused objects are not counted.

    Parameters
    ----------
    outcomes : iterable of str
        Outcome of each object, as defined in `storage_schemas.outcomes`.
    most : float
        Maximum fraction of refused objects among stored and refused ones.

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
