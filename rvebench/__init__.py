"""RVE-Bench: how good is any method, on any benchmark?"""
