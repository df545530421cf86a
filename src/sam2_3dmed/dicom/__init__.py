"""DICOM: series as volumes, and masks as SEG and RTSTRUCT, in and out."""
