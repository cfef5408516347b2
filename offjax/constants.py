"""Physical constants and unit factors, in one place.

Units inside offjax are OpenMM's: nm, ps, amu, kJ/mol, e, K, rad, bar. The fundamental constants are CODATA 2018
(the exact SI values of e, N_A and k_B; the measured vacuum permittivity), the set that OpenMM's
``SimTKOpenMMRealType.h`` uses, so that Coulomb energies agree with OpenMM to the last digit.
"""

import math

ELEMENTARY_CHARGE = 1.602176634e-19
"""Elementary charge, C (exact)."""

AVOGADRO = 6.02214076e23
"""Avogadro constant, 1/mol (exact)."""

BOLTZMANN = 1.380649e-23
"""Boltzmann constant, J/K (exact)."""

VACUUM_PERMITTIVITY = 8.8541878128e-12
"""Vacuum permittivity, F/m (CODATA 2018)."""

EPSILON0 = 1e-6 * VACUUM_PERMITTIVITY / (ELEMENTARY_CHARGE * ELEMENTARY_CHARGE * AVOGADRO)
"""Vacuum permittivity, e^2 mol / (kJ nm)."""

COULOMB = 1.0 / (4.0 * math.pi * EPSILON0)
"""Coulomb constant 1/(4 pi epsilon_0), kJ nm / (mol e^2); OpenMM's ONE_4PI_EPS0."""

GAS_CONSTANT = 1e-3 * BOLTZMANN * AVOGADRO
"""Molar gas constant, kJ / (mol K)."""

KCAL = 4.184
"""One thermochemical kilocalorie, kJ (exact)."""

SPEED_OF_LIGHT = 0.0299792458
"""Speed of light in vacuum, cm/ps (exact)."""

ANGSTROM = 0.1
"""One angstrom, nm (exact)."""

DEGREE = math.pi / 180.0
"""One degree, rad."""

BAR = 1e-25 * AVOGADRO
"""One bar, kJ/mol/nm^3 (1e5 Pa)."""

BOHR = 0.0529177210903
"""Bohr radius, nm (CODATA 2018)."""

HARTREE = 4.3597447222071e-18 * AVOGADRO * 1e-3
"""Hartree energy, kJ/mol (CODATA 2018)."""

ELECTRONVOLT = ELEMENTARY_CHARGE * AVOGADRO * 1e-3
"""One electronvolt, kJ/mol."""

RMIN_HALF_TO_SIGMA = 2.0 ** (5.0 / 6.0)
"""sigma / rmin_half of a 12-6 Lennard-Jones potential: rmin = 2^(1/6) sigma."""

REACTION_FIELD_DIELECTRIC = 78.3
"""OpenMM's default solvent dielectric of the reaction field (NonbondedForce)."""
