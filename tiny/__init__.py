"""The tiny world: scenes, rules, triplets and the oracle that knows the answer."""
