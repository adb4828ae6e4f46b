"""How nodes come to agree."""
