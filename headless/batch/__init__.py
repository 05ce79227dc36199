"""Many jobs from one workflow: planned and checked first, spread over targets, resumed by content."""
