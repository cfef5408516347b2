"""SMIRNOFF typing and charges: the only place that needs the OpenFF toolkit's labelling."""
