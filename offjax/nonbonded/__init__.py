"""Pair lists: which atoms interact, and with what scale."""

from offjax.nonbonded.pairs import PairList, bonded_pairs, bonded_paths, molecule_pairs, scaled_pairs

__all__ = ["PairList", "bonded_pairs", "bonded_paths", "molecule_pairs", "scaled_pairs"]
