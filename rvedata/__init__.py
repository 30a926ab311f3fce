"""RVE-Dataset: from Ditto-1M and raw films to reason-informed triplets."""
