"""Trained models as integer ONNX files."""
