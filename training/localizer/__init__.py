"""Training of the localizer: a 3D U-Net that finds C1 to C7, exported as one ONNX file.

The pipeline runs the exported file with ONNX Runtime alone.
"""
