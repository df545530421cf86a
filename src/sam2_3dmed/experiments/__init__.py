"""The paper's tables run again: what each row is, which runs it takes, and what these measure."""
