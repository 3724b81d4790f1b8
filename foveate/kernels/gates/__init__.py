"""The passes of SE and CBAM on CUDA."""
