"""Masks and contours as DICOM: SEG and RTSTRUCT, in and out."""
