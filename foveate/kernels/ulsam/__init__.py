"""ULSAM's operation: the definition (reference.py) beside the fused passes on CPU and CUDA."""
