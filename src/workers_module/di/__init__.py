"""How classes are named and found, and how dishka builds them."""
