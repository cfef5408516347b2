"""The errors that offjax raises on purpose. Each says what was expected, what came, and what to do next."""


class OffjaxError(Exception):
    """Base class; the command line prints these in one line."""


class InputError(OffjaxError, ValueError):
    """A value, shape, name or file given by the user is wrong."""


class UnsupportedError(OffjaxError, NotImplementedError):
    """A force-field section, attribute, version or option that offjax does not support (yet)."""


class UnassignedParameterError(OffjaxError, ValueError):
    """The force field has no parameter for an atom, bond, angle, torsion or charge of a molecule."""


class PrecisionError(OffjaxError, TypeError):
    """float64 input would be rounded silently to float32 because JAX's x64 mode is off."""


class DifferentiationError(OffjaxError, TypeError):
    """A derivative was asked for that a fast path does not provide; the message names the path that does."""


class NeighborListError(OffjaxError):
    """A neighbour list that lacks pairs: too small for its neighbours, out of date, or of NaN positions."""


class SimulationError(OffjaxError, FloatingPointError):
    """A simulation or minimisation met positions, velocities or energies that are not finite."""
