import pytest

from pipeline.source.strangers import find_format, is_junk, is_named_slice


@pytest.mark.parametrize(
    "key",
    [
        "._1.dcm", "a/._1.dcm", ".DS_Store", "a/b/Thumbs.db", "desktop.ini", "__MACOSX/a/1.dcm",
        ".git/HEAD", "a/.git/objects/ab", "1.dcm~", "@eaDir/1.dcm", ".nfs0001", "x/System Volume"
        " Information/a",
    ],
)  # fmt: skip
def test_names_of_systems_and_tools_are_junk(key: str) -> None:
    assert is_junk(key)


@pytest.mark.parametrize("key", ["1.dcm", "IM00001", "git/1", "1.2.3/DS_Store", "a.part/1.dcm"])
def test_other_names_are_no_junk(key: str) -> None:
    assert not is_junk(key)


@pytest.mark.parametrize(
    ("key", "head", "name"),
    [
        ("a.csv", b"x,y", "csv"),
        ("a.json", b"{}", "JSON"),
        ("LICENSE", b"MIT License\n", "text"),
        ("README", "Übersicht".encode(), "text"),
        ("thumb.png", b"\x89PNG\r\n\x1a\n\0\0", "PNG"),
        ("thumb", b"\x89PNG\r\n\x1a\n\0\0", "PNG"),
        ("ct.nii", bytes(400), "NIfTI"),
        ("ct.nii.gz", b"\x1f\x8b\x08", "gzip"),
        ("1.dcm.gz", b"\x1f\x8b\x08", "gzip"),
        ("x", b"\0\5\x16\7\0\2", "AppleDouble"),
        ("IM00001", b"", ""),
        ("IM00001", bytes(500), ""),
        ("1.dcm", b"<html>404</html>", ""),
        ("1.2.3.4", b"\1\2\3", ""),
        ("a.csv", bytes(128) + b"DICM", ""),
    ],
)
def test_a_format_is_told_by_content_and_by_name_and_a_damaged_slice_has_none(
    key: str, head: bytes, name: str
) -> None:
    assert find_format(key, head) == name


def test_names_of_slices_are_known_by_their_ending() -> None:
    assert is_named_slice("a/1.DCM")
    assert not is_named_slice("a/1.csv")
