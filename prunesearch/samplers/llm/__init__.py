"""A sampler whose operators are a language model's: it proposes, selects, crosses and mutates."""
