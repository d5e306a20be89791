"""The shared nouns of samelaw. NumPy only; everything else may import this package and nothing in it imports back."""
