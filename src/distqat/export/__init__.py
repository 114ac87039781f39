"""Trained models as integer files that ONNX Runtime executes, and the checker that compares them.

A quantized model is traced once, its quantizers standing in the graph as marks (`marks`, `trace`). Weights
become int8 codes with BatchNorm folded into their scales (`weights`), activations pairs of QuantizeLinear
and DequantizeLinear (`activations`) or codes per token (`tokens`), products the forms that run on integers
(`products`). `check` runs the file beside the fake-quantized model and writes the report; `predict` runs it
on one image, text or recording. onnx, onnxruntime and onnxscript are imported when they are needed.
"""
