"""Randomness that belongs to a subset: the same subset has the same value each time."""

import hashlib

import numpy as np

from prunesearch.algorithms.operators import Mask, Real


def generator_of(X_D: Mask, salt: bytes) -> np.random.Generator:
    """Return the random generator of a subset. It is seeded with a hash of the subset's bits."""
    digest = hashlib.blake2b(np.packbits(X_D).tobytes() + salt, digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def roughness(X_MD: Mask, seed: int, sd: float) -> Real:
    """Return a normal number for each subset, with standard deviation `sd`, shape (M,)."""
    salt = seed.to_bytes(4, "little")
    drawn_M = np.empty(len(X_MD))
    for m, X_D in enumerate(X_MD):
        drawn_M[m] = generator_of(X_D, salt).standard_normal()
    return sd * drawn_M


def share_of_documents(X_MD: Mask, chance_M: Real, documents: int, seed: int) -> Real:
    """Return the share of documents that are answered correctly: binomial draws, shape (M,).

    Args:
        X_MD: subsets.
        chance_M: true accuracy of each subset.
        documents: number of documents.
        seed: seed of the landscape.
    """
    share_M = np.empty(len(X_MD))
    for m, X_D in enumerate(X_MD):
        drawn = generator_of(X_D, b"acc%d" % seed).binomial(documents, chance_M[m])
        share_M[m] = drawn / documents
    return share_M
