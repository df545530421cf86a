"""The real nnU-Net (package nnunetv2) in an environment of its own, driven as a process; docs/baselines.md."""
