"""The exceptions of all packages, grouped by how they are handled, each with a stable ``kind``.

::

    CspineError
    ├── UsageError     an option, a configuration or a table is wrong     -> exit code 2
    ├── RunError       the run could not finish                           -> exit code 3
    ├── StoreError     a stored object is missing, damaged or unsupported -> report, go on, exit 1
    ├── StudyError     a whole study is refused                           -> quarantine the study
    └── SliceError     one object or frame is refused                     -> quarantine the object

The class says how the error is handled, the ``kind`` what happened. Kinds are part of the storage
contract: records and tables hold them, so a kind is never renamed or given another meaning.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar


class CspineError(Exception):
    """An error of a stable kind, with the object that it concerns and what to do about it.

    Parameters
    ----------
    kind : str
        One of the keys of ``type(self).kinds``.
    detail : str
        Value that was found and values that are allowed, in one line, without patient data.
    key : str, optional
        Object, array, study or file that the error concerns.
    """

    kinds: ClassVar[Mapping[str, str]] = {}
    exit_code: ClassVar[int] = 3

    def __init__(self, kind: str, detail: str, *, key: str = "") -> None:
        if kind not in self.kinds:
            raise ValueError(f"{type(self).__name__} has no kind {kind!r}")
        self.kind = kind
        self.detail = " ".join(detail.split())
        self.key = key
        super().__init__(kind, detail, key)

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}{self.detail} [{self.kind}]; {self.kinds[self.kind]}"

    def __reduce__(self) -> tuple[Callable[..., "CspineError"], tuple[type, str, str, str]]:
        # Workers send errors to other processes, and default pickling loses keyword arguments.
        return _rebuild, (type(self), self.kind, self.detail, self.key)


def _rebuild(cls: type[CspineError], kind: str, detail: str, key: str) -> CspineError:
    return cls(kind, detail, key=key)


def reason_of(error: BaseException) -> str:
    """Return why an operation failed, in one line, for the `detail` of an error.

    Parameters
    ----------
    error : BaseException
        Usually an OSError, or what a library raised in its place.

    Returns
    -------
    str
        The operating system's text (``OSError.strerror``), without the path, which belongs in the
        error's `key`. Without one, the exception's message with all white space collapsed. Without
        a message, the name of the exception's class.
    """
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__


class UsageError(CspineError):
    """The command line, the configuration or a table of the user is wrong."""

    exit_code: ClassVar[int] = 2
    kinds: ClassVar[Mapping[str, str]] = {
        "config-invalid": "correct the option and run again",
        "source-not-found": "check the URL and its credentials",
        "source-empty": "give the folder that holds one folder a study, or use --layout scan",
        "store-not-found": "check the URL and its credentials, or run cspine-pipeline run first",
        "store-unwritable": "choose a STORE that this user may write to",
        "csv-invalid": "give the competition's csv with the columns named above",
        "csv-unknown-study": "give the csv of these studies",
        "labels-contradictory": "correct the row, or give --overall mend to assume the fracture",
        "mask-unreadable": "give a folder of <study>.nii or <study>.nii.gz label masks",
        "model-invalid": "give a local folder written by save_pretrained",
        "localizer-invalid": "give an ONNX file that cspine-training localizer wrote",
        "labels-missing": "build the tables with --labels train.csv first",
        "cohort-too-small": "add studies, or lower the share of the held-out splits",
        "dependency-missing": "install the extra that is named above",
    }


class RunError(CspineError):
    """The run could not finish; what is committed stays."""

    exit_code: ClassVar[int] = 3
    kinds: ClassVar[Mapping[str, str]] = {
        "run-incomplete": "run the same command again; finished studies are skipped",
        "object-unreadable": "check that it is there and may be read, then run again",
        "scheduler-unreachable": "check the address, or run with --serial",
        "worker-unfit": "install the same version of cspine[pipeline] on every worker",
        "worker-lost": "run again with more --memory or --study-seconds",
        "row-foreign": "the scheduler answered with another run's result; report it",
        "store-in-use": "wait until the other run has ended, or write to another STORE",
        "lease-lost": "another run has taken over the store; let it finish",
        "training-diverged": "the last accepted round is intact; lower the learning rate",
        "export-differs": "report it with the versions of torch, onnx and onnxruntime",
        "run-unwritable": "free space on the disk, then run again; accepted rounds are intact",
    }


class StoreError(CspineError):
    """A stored object is missing, damaged or of another schema; it is never read as a value."""

    exit_code: ClassVar[int] = 1
    kinds: ClassVar[Mapping[str, str]] = {
        "record-missing": "the study was never committed; run the pipeline",
        "record-invalid": "the record is damaged; run the pipeline again for this study",
        "schema-unsupported": "the store was written by another version; read it with that one",
        "array-missing": "an object of the store was lost; run the pipeline again for this study",
        "array-damaged": "a stored object changed after it was written; run the pipeline again",
        "array-mismatch": "the array is not the one that the record describes; run the pipeline",
        "metadata-damaged": "the array's zarr.json was changed; run the pipeline again",
        "source-changed": "run the pipeline again; it redoes changed studies",
        "decoders-disagree": "one decoder is wrong: report the object's transfer syntax and origin",
        "table-missing": "build the tables with cspine-pipeline catalog",
        "table-invalid": "rebuild the tables with cspine-pipeline catalog",
    }


class StudyError(CspineError):
    """A whole study is refused and listed in the quarantine table under this kind."""

    kinds: ClassVar[Mapping[str, str]] = {
        "study-key-invalid": "name the folder by its StudyInstanceUID, or use --layout scan",
        "study-mixed": "the folder holds several studies; use --layout scan",
        "study-empty": "the folder holds no object",
        "no-dicom": "the folder holds no DICOM file; unpack archives, or give another folder",
        "no-ct": "the DICOM files hold no CT image",
        "headers-refused": "no CT image has a usable header; see the study's objects",
        "no-axial-stack": "none of the series is an axial CT stack of two slices or more",
        "no-slices": "the CT images are scouts, projections or pages; export the original slices",
        "one-position": "each series has one slice position; export the whole series",
        "nothing-decoded": "fewer than two slices could be decoded; see the study's slices",
        "acquisitions-mixed": "export the acquisitions of the series as series of their own",
        "series-refused": "mend the series named above, or choose another with --series",
        "series-not-found": "give --series a UID, a number or a pattern of one of the series above",
        "too-many-bad-slices": "see the study's slices in the quarantine table",
        "geometry-irregular": "run without --strict to keep such studies",
        "volume-over-budget": "use --set limits.volume_bytes=BYTES if the study is that large",
        "mask-unreadable": "the mask is no three-dimensional NIfTI label image",
        "mask-outside-volume": "the mask belongs to another study, or its affine is wrong",
        "mask-off-bone": "the mask's affine does not fit the CT",
        "mask-affine-ambiguous": "store the mask with one affine: sform and qform disagree",
        "vertebra-not-found": "the scan holds none of the requested vertebrae",
        "vertebra-out-of-order": "it lies where no spine has it; give a mask with right labels",
        "worker-lost": "a decoder ended or outlived its process; see the study's slices",
        "study-failed": "an unexpected error; run the study with --serial --verbose",
    }


class SliceError(CspineError):
    """One object, or one frame of it, is refused; the other slices of the study are kept."""

    kinds: ClassVar[Mapping[str, str]] = {
        "not-dicom": "the object is no DICOM file (part 10), or its first bytes are lost",
        "header-invalid": "a field that places or scales the slice is missing, unreadable or wrong",
        "truncated": "the object ends early; fetch it again from its origin",
        "syntax-unsupported": "convert the object to one of the supported transfer syntaxes",
        "sop-class-unsupported": "only CT image objects hold Hounsfield units",
        "burned-in-annotation": "the pixels may name the patient; remove the text at the origin",
        "pixel-format-unsupported": "only one grey sample of 8 to 16 bits a pixel is a CT slice",
        "size-over-budget": "the header claims more pixels than a CT slice has; likely corrupt",
        "inflate-over-budget": "the deflated data set grows past its limit; likely hostile",
        "length-mismatch": "the pixel data do not have the length that the header states",
        "codestream-mismatch": "the image inside disagrees with the header around it",
        "codestream-truncated": "the compressed frame has no end marker; fetch the object again",
        "decode-failed": "the compressed frame is damaged; fetch the object again",
        "rescale-invalid": "slope and intercept must be whole numbers for whole Hounsfield units",
        "hu-out-of-range": "the values do not fit 16-bit Hounsfield units",
        "values-beyond-bits": "values do not fit BitsStored; correct the header at the origin",
        "not-in-stack": "the slice is no part of the study's axial CT stack",
        "duplicate-slice": "another slice lies at the same position; the first by digest is kept",
    }
