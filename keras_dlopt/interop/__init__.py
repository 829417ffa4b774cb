"""Coming from other tools: their names, their files."""
