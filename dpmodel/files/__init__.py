"""Files: models, both ways, and the safe way of writing anything."""
