"""Decode one frame with GDCM in a separate process, so that a crash affects nothing else.

`pipeline.dicom.decoders` runs it as ``python -m pipeline.dicom.gdcm_process``. Standard input is
one line of JSON followed by the frame; standard output is the stored words, little-endian.
"""

import json
import sys

import gdcm


def main() -> int:
    """Decode one frame and return the exit code."""
    form = json.loads(sys.stdin.buffer.readline())
    piece = sys.stdin.buffer.read(form["length"])
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((form["columns"], form["rows"], 1))
    stored = form["bits_stored"]
    image.SetPixelFormat(
        gdcm.PixelFormat(1, form["bits_allocated"], stored, stored - 1, int(form["signed"]))
    )
    image.SetPhotometricInterpretation(
        gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    )
    syntax = gdcm.TransferSyntax.GetTSType(form["syntax"])
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(piece)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image.SetDataElement(element)
    # The wrapper returns bytes as text, decoded with this error handler.
    words = image.GetBuffer().encode("utf-8", "surrogateescape")
    need = form["rows"] * form["columns"] * form["bits_allocated"] // 8
    if len(words) != need:
        sys.stderr.write(f"{len(words)} bytes, not {need}\n")
        return 1
    sys.stdout.buffer.write(words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
