"""Readers and writers of other programs' formats: the only modules that know them."""
