"""Many runs: trains experiments in turn and sets what they cost beside what they learned."""
