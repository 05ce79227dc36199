"""The graph surface: every node is a schema and one call."""
