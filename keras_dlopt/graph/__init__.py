"""What looks at, runs or changes a model's structure."""
