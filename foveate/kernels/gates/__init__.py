"""The passes of the gates: SE, CBAM and BAM in C, SE and CBAM in Triton."""
