"""A trained model as ONNX files that run without PyTorch."""
