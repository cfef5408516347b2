"""Many molecules in a fixed number of compiled programs: the machinery behind :class:`offjax.SystemBatch`."""
