"""CT objects made for tests: any transfer syntax, any geometry, any header field on top."""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import imagecodecs
import numpy as np
import rle
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as ItemSequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
STUDY, SERIES = "1.2.3.4", "1.2.3.4.5"


def _jpeg(dot: str) -> str:
    return f"1.2.840.10008.1.2.4.{dot}"


def _encode_rle(image: NDArray[Any]) -> bytes:
    return bytes(
        rle.encode_pixel_data(
            image.tobytes(),
            rows=image.shape[0],
            columns=image.shape[1],
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=8 * image.dtype.itemsize,
            photometric_interpretation="MONOCHROME2",
            byteorder="<",
        )
    )


def _encode_lossless(predictor: int) -> Callable[[NDArray[Any], int], bytes]:
    return lambda image, bits: imagecodecs.jpeg_encode(
        image, lossless=True, predictor=predictor, bitspersample=bits
    )


def _encode_jpeg2000(reversible: bool) -> Callable[[NDArray[Any], int], bytes]:
    return lambda image, bits: imagecodecs.jpeg2k_encode(
        image,
        level=0 if reversible else 60,
        codecformat="j2k",
        bitspersample=bits,
        reversible=reversible,
    )


ENCODERS: dict[str, Callable[[NDArray[Any], int], bytes]] = {
    RLE: lambda image, _: _encode_rle(image),
    _jpeg("50"): lambda image, _: imagecodecs.jpeg8_encode(image, level=95),
    _jpeg("51"): lambda image, bits: imagecodecs.jpeg_encode(image, level=95, bitspersample=bits),
    _jpeg("57"): _encode_lossless(6),
    _jpeg("70"): _encode_lossless(1),
    _jpeg("80"): lambda image, _: imagecodecs.jpegls_encode(image),
    _jpeg("81"): lambda image, _: imagecodecs.jpegls_encode(image, level=2),
    _jpeg("90"): _encode_jpeg2000(True),
    _jpeg("91"): _encode_jpeg2000(False),
    _jpeg("201"): lambda image, _: imagecodecs.htj2k_encode(image, reversible=True),
    _jpeg("202"): lambda image, _: imagecodecs.htj2k_encode(image, reversible=True),
    _jpeg("203"): lambda image, _: imagecodecs.htj2k_encode(image, reversible=True),
}
LOSSY = (_jpeg("50"), _jpeg("51"), _jpeg("81"), _jpeg("91"))
EIGHT_BIT = (_jpeg("50"),)
SYNTAXES = (*NATIVE, *ENCODERS)


def smooth_image(shape: tuple[int, int] = (32, 32), bits: int = 12, seed: int = 0) -> NDArray[Any]:
    """A picture with structure and some noise, unsigned, of so many bits."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    top = (1 << bits) - 1
    wave = 0.5 + 0.3 * np.sin(x / 5 + seed) * np.cos(y / 7) + rng.normal(0, 0.02, shape)
    return np.clip(wave * top, 0, top).astype(np.uint8 if bits <= 8 else np.uint16)


def make_dataset(words: NDArray[Any], **fields: Any) -> Dataset:
    """The header of one CT slice whose stored words, 8 or 16 bits unsigned, are given."""
    allocated = 8 * words.dtype.itemsize
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, "1.2.3"
    data.ImageType, data.Modality = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"
    data.Manufacturer, data.ManufacturerModelName = "maker", "model"
    data.ConvolutionKernel, data.PatientID = "BONE", "secret"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = STUDY, SERIES, 1
    data.ImagePositionPatient = [0, 0, 0]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [0.5, 0.5]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = words.shape[-2:]
    data.BitsAllocated = data.BitsStored = allocated
    data.HighBit, data.PixelRepresentation = allocated - 1, 0
    data.WindowCenter, data.WindowWidth = [400, 40], [2000, 400]
    data.RescaleIntercept, data.RescaleSlope = -1024, 1
    for name, value in fields.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    if "BitsStored" in fields and "HighBit" not in fields:
        data.HighBit = data.BitsStored - 1
    return data


def make_object(
    words: NDArray[Any],
    syntax: str = EXPLICIT,
    *,
    pieces: Sequence[bytes] | None = None,
    fragments: int = 1,
    table: bool = True,
    **fields: Any,
) -> bytes:
    """One object, with stored words, shape (rows, columns) or (frames, rows, columns).

    `pieces` replaces the encoded frames; `fragments` and `table` say how they are encapsulated;
    `fields` overrides header fields by keyword, None removes one.
    """
    data = make_dataset(words, **fields)
    if syntax in ENCODERS:
        frames = words if words.ndim == 3 else words[None]
        bits = data.BitsStored
        pieces = pieces or [ENCODERS[syntax](frame, bits) for frame in frames]
        data.PixelData = encapsulate(list(pieces), fragments_per_frame=fragments, has_bot=table)
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
    else:
        order = ">" if syntax == BIG_ENDIAN else "<"
        raw = words.astype(words.dtype.newbyteorder(order)).tobytes()
        raw = b"".join(pieces) if pieces else raw
        data.PixelData = raw + b"\0" * (len(raw) % 2)
        data["PixelData"].VR = "OW"
    return write(data, syntax)


def write(data: Dataset, syntax: str) -> bytes:
    """A data set as a file."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def make_stack(volume: NDArray[Any], syntax: str = EXPLICIT, **fields: Any) -> list[bytes]:
    """One object a slice of a volume of words, (z, y, x), 1 mm apart, z ascending."""
    return [
        make_object(
            image,
            syntax,
            **{"ImagePositionPatient": [0, 0, z], "InstanceNumber": z + 1, **fields},
        )
        for z, image in enumerate(volume)
    ]


def name_objects(objects: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Keys for objects, in their order."""
    return [(f"{number:03}.dcm", data) for number, data in enumerate(objects)]


def make_enhanced(
    words: NDArray[Any], positions: Sequence[Sequence[float]], syntax: str = EXPLICIT, **fields: Any
) -> bytes:
    """One enhanced CT object with a frame a position."""
    shared, frames = Dataset(), []
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = _item(PixelSpacing=[0.5, 0.5])
    shared.PixelValueTransformationSequence = _item(RescaleIntercept=-1024, RescaleSlope=1)
    for position in positions:
        frame = Dataset()
        frame.PlanePositionSequence = _item(ImagePositionPatient=list(position))
        frames.append(frame)
    return make_object(
        words,
        syntax,
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames=len(positions),
        SharedFunctionalGroupsSequence=ItemSequence([shared]),
        PerFrameFunctionalGroupsSequence=ItemSequence(frames),
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        RescaleIntercept=None,
        RescaleSlope=None,
        **fields,
    )


def _item(**fields: Any) -> ItemSequence:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return ItemSequence([item])
