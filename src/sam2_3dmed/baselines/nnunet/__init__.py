"""The real nnU-Net (package nnunetv2), a process in an environment of its own: docs/how_to/other_systems.md."""
