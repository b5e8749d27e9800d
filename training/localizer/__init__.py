"""Training of the localizer: a 3D U-Net that finds C1 to C7, exported as one ONNX file.

Not for running it on studies: the pipeline does, through ONNX Runtime alone.
"""
