"""Shared helpers of the data generators (units: eV, Angstrom, e).

Conventions of every file written here
  E_ext = external_field  [V/Angstrom] = +grad(potential), so the energy of a
          configuration in it is  E = E0 + d . E_ext + O(E_ext^2)  with
          d the dipole about the coordinate origin (0, 0, 0).
          The physical field of the QM codes is F = -E_ext.
  REF_atomic_multipoles  per atom [Q, d_y, d_z, d_x] (e, e*Angstrom)
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from ase.units import Bohr, Hartree

BOX = 30.0
AU_FIELD = Hartree / Bohr  # V/Angstrom per atomic unit of field


# ---------------------------------------------------------------- tblite
def _xtb(atoms, charge, uhf, method, field, accuracy, multipoles, temperature):
    from tblite import library as lib
    from tblite.interface import Calculator

    kwargs = {}
    if atoms.pbc.any():
        kwargs["lattice"] = atoms.cell.array / Bohr
        kwargs["periodic"] = np.array([True, True, True])
    calc = Calculator(
        method,
        atoms.numbers,
        atoms.positions / Bohr,
        charge=float(charge),
        uhf=int(uhf),
        **kwargs,
    )
    calc.set("verbosity", 0)
    calc.set("accuracy", accuracy)
    calc.set("temperature", temperature * 3.166808578545117e-6)
    keep = None
    if field is not None and np.any(np.asarray(field) != 0.0):
        # physical field F = -E_ext; calc.add("electric-field", ndarray) of
        # tblite 0.8.0 lacks the pointer cast, hence the low-level call.
        keep = np.ascontiguousarray(-np.asarray(field) / AU_FIELD, dtype=float)
        cont = lib.new_electric_field(
            calc._ctx, calc._mol, calc._calc, lib.ffi.cast("double*", keep.ctypes.data)
        )
        lib.calculator_push_back(calc._ctx, calc._calc, cont)
    if multipoles:
        calc.add("xtbml_xyz")
        if not atoms.pbc.any():
            calc.add("molecular-multipoles")
    res = calc.singlepoint()
    del keep
    return res


def xtb_label(
    atoms, charge=0, uhf=0, field=None, method="GFN2-xTB", accuracy=0.05, temperature=300.0
):
    """Labels of one configuration as a dict (eV, Angstrom, e)."""
    res = _xtb(atoms, charge, uhf, method, field, accuracy, True, temperature)
    post = res.get("post-processing-dict")
    charges = res.get("charges")
    dip = np.array([np.atleast_1d(post["dipm_A_" + x]) for x in "xyz"]).T * Bohr
    eps, occ = res.get("orbital-energies").ravel(), res.get("orbital-occupations").ravel()
    filled = occ > 1.0 if uhf == 0 else occ > 0.5
    homo = eps[filled].max() if filled.any() else eps.min()  # a bare Na+ has no electron
    lumo = eps[~filled].min() if (~filled).any() else homo
    out = {
        "energy": res.get("energy") * Hartree,
        "forces": -res.get("gradient") * Hartree / Bohr,
        "charges": charges,
        "atomic_dipoles": dip,
        "dipole": charges @ atoms.positions + dip.sum(0),
        "fermi_level": 0.5 * (homo + lumo) * Hartree,
        "gap": (lumo - homo) * Hartree,
    }
    if atoms.pbc.any():
        out["stress"] = res.get("virial") * Hartree / atoms.get_volume()
    else:
        out["dipole_code"] = res.get("dipole") * Bohr
    return out


class XTBCalculator(AseCalculator):
    """Bare ASE calculator for sampling (energy and forces only)."""

    implemented_properties = ("energy", "forces")

    def __init__(self, charge=0, uhf=0, method="GFN2-xTB", accuracy=1.0, temperature=300.0):
        super().__init__()
        self.kw = {"charge": charge, "uhf": uhf, "method": method}
        self.accuracy, self.temperature = accuracy, temperature

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        res = _xtb(
            self.atoms,
            field=None,
            accuracy=self.accuracy,
            multipoles=False,
            temperature=self.temperature,
            **self.kw,
        )
        self.results = {
            "energy": res.get("energy") * Hartree,
            "forces": -res.get("gradient") * Hartree / Bohr,
        }


# ---------------------------------------------------------------- geometry
_WATER = np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]])
UNITS = {
    "H2O": ("OH2", _WATER, 0),
    "H3O": (
        "OH3",
        np.array([[0, 0, 0.2], [0.93, 0, -0.1], [-0.465, 0.805, -0.1], [-0.465, -0.805, -0.1]]),
        1,
    ),
    "OH": ("OH", np.array([[0.0, 0, 0], [0, 0, 0.97]]), -1),
    "Na": ("Na", np.zeros((1, 3)), 1),
    "Cl": ("Cl", np.zeros((1, 3)), -1),
}


def random_rotation(rng):
    q = rng.normal(size=4)
    q /= np.linalg.norm(q)
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def random_vector(rng):
    v = rng.normal(size=3)
    return v / np.linalg.norm(v)


def pack_cluster(rng, units):
    """Grow a cluster unit by unit; returns (atoms, total charge)."""
    while True:
        atoms, centers, charge, ok = Atoms(), [], 0, True
        for name in units:
            formula, pos, q = UNITS[name]
            charge += q
            for _ in range(200):
                mol = Atoms(formula, pos @ random_rotation(rng).T)
                if not centers:
                    break
                base = centers[rng.integers(len(centers))]
                mol.positions += base + random_vector(rng) * rng.uniform(2.5, 3.3)
                d = np.linalg.norm(atoms.positions[:, None] - mol.positions[None], axis=-1)
                heavy = np.linalg.norm(np.array(centers) - mol.positions[0], axis=-1)
                if d.min() > 1.6 and heavy.min() > 2.35:
                    break
            else:
                ok = False
                break
            centers.append(mol.positions[0].copy())
            atoms += mol
        if ok:
            return atoms, charge


def sample_md(
    atoms,
    rng,
    charge,
    uhf,
    temperature_K,
    n_frames,
    every=60,
    equil=200,
    relax_steps=40,
    method="GFN2-xTB",
    max_force=20.0,
    timestep_fs=0.5,
    max_radius=9.0,
    electronic_temperature=300.0,
):
    """Short relaxation, then Langevin dynamics on the xTB surface; frames."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.optimize import FIRE

    atoms = atoms.copy()
    atoms.calc = XTBCalculator(charge, uhf, method, temperature=electronic_temperature)
    if relax_steps:
        FIRE(atoms, logfile=None, maxstep=0.1).run(fmax=0.05, steps=relax_steps)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_K, rng=rng)
    dyn = Langevin(
        atoms,
        timestep_fs * units.fs,
        temperature_K=temperature_K,
        friction=0.02 / units.fs,
        rng=rng,
    )
    dyn.run(equil)
    frames = []
    for _ in range(n_frames):
        dyn.run(every)
        f = atoms.get_forces()
        if not np.isfinite(f).all() or np.abs(f).max() > max_force:
            continue
        if not atoms.pbc.any():
            r = atoms.positions - atoms.positions.mean(0)
            if np.linalg.norm(r, axis=1).max() > max_radius:
                break
        new = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        frames.append(new)
    return frames


def place(atoms, rng, spread=1.0):
    """Random orientation; centre at the origin plus a random offset."""
    atoms = atoms.copy()
    atoms.positions = (atoms.positions - atoms.positions.mean(0)) @ random_rotation(rng).T
    atoms.positions += rng.normal(size=3) * spread
    atoms.set_cell([BOX] * 3)
    atoms.pbc = False
    return atoms


def random_field(rng, fmax=0.05):
    return random_vector(rng) * rng.uniform(0.002, fmax)


# ---------------------------------------------------------------- output
def to_extxyz(atoms, lab, charge, field, config_type, extra=None, dipole=True):
    """An Atoms object that ase.io.write stores with the REF_ keys."""
    out = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    d = lab["atomic_dipoles"]
    out.arrays["REF_forces"] = np.asarray(lab["forces"])
    out.arrays["REF_atomic_multipoles"] = np.column_stack(
        [lab["charges"], d[:, 1], d[:, 2], d[:, 0]]
    )
    info = out.info
    info["config_type"] = config_type
    info["REF_energy"] = float(lab["energy"])
    info["total_charge"] = float(charge)
    info["external_field"] = np.zeros(3) if field is None else np.asarray(field, float)
    info["REF_fermi_level"] = float(lab["fermi_level"])
    info["gap"] = float(lab["gap"])
    if dipole:
        info["REF_dipole"] = np.asarray(lab["dipole"])
        info["config_dipole_weight"] = "1 1 1"
    if "stress" in lab:
        info["REF_stress"] = np.asarray(lab["stress"]).reshape(9)
    info.update(extra or {})
    return out


def round_info(atoms, digits=8):
    for k, v in list(atoms.info.items()):
        if isinstance(v, float):
            atoms.info[k] = round(v, digits)
        elif isinstance(v, np.ndarray) and v.dtype.kind == "f":
            atoms.info[k] = np.round(v, digits)
    return atoms


def write_xyz(path, frames):
    """Write extxyz; a name ending in .gz is compressed."""
    from ase.io import write

    frames = [round_info(a) for a in frames]
    columns = ["symbols", "positions", "REF_forces", "REF_atomic_multipoles"]
    extra = sorted(
        k
        for k in frames[0].arrays
        if k not in ("numbers", "positions", "REF_forces", "REF_atomic_multipoles")
    )
    write(path, frames, format="extxyz", columns=columns + extra, write_results=False)


def isolated_atoms(species, label=xtb_label, **kw):
    """One frame per element, config_type=IsolatedAtom (neutral, high-spin)."""
    uhf = {"H": 1, "O": 2, "Na": 1, "Cl": 1, "C": 2, "Mg": 0, "Ag": 1}
    frames = []
    for s in species:
        a = Atoms(s, [[0.0, 0.0, 0.0]], cell=[BOX] * 3, pbc=False)
        lab = label(a, charge=0, uhf=uhf[s], **kw)
        frames.append(to_extxyz(a, lab, 0, None, "IsolatedAtom"))
    return frames
