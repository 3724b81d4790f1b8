"""The passes of the gates: SE, CBAM, BAM and ECA in C, SE and CBAM in Triton."""
