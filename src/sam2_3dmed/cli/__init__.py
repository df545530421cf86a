"""The command line: parsing and printing, one file for each group of commands."""
