"""Readers of JSON, YAML, CSV and zip files. Each file kind has one, and its errors are lines that name the file."""
