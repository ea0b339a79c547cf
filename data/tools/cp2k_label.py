"""Run CP2K (Quickstep/GPW, PBE) on one periodic configuration and read labels.

Needs the Debian package cp2k (2023.1); set CP2K_CMD and CP2K_DATA_DIR if it
is not on the path.  Atomic charges and dipoles: Hirshfeld moments of the
valence density on the real-space grid, free-atom densities from PySCF in the
same basis and pseudopotential (spherical average).
"""

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from ase.units import Bohr, Hartree

BASIS, POT = "DZVP-MOLOPT-SR-GTH", "GTH-PBE"
CUTOFF, REL = 500, 55  # H and O; semicore Na needs a much higher cutoff
Q_ION = {"H": 1, "O": 6, "Na": 9, "Cl": 7, "Mg": 10}


def _input(atoms, charge, two_d, uhf):
    cell = "\n".join(
        f"      {k} {v[0]:.10f} {v[1]:.10f} {v[2]:.10f}"
        for k, v in zip("ABC", atoms.cell.array, strict=True)
    )
    per = "XY" if two_d else "XYZ"
    poisson = "PSOLVER MT" if two_d else "PSOLVER PERIODIC"
    coord = "\n".join(
        f"      {s} {p[0]:.10f} {p[1]:.10f} {p[2]:.10f}"
        for s, p in zip(atoms.get_chemical_symbols(), atoms.positions, strict=False)
    )
    kinds = "\n".join(
        f"    &KIND {s}\n      BASIS_SET {BASIS}\n      POTENTIAL {POT}-q{Q_ION[s]}\n    &END KIND"
        for s in sorted(set(atoms.get_chemical_symbols()))
    )
    stress = "" if two_d else "  STRESS_TENSOR ANALYTICAL\n"
    pstress = "" if two_d else "    &STRESS_TENSOR\n    &END\n"
    uks = f"    UKS\n    MULTIPLICITY {uhf + 1}\n" if uhf else ""
    return f"""&GLOBAL
  PROJECT run
  RUN_TYPE ENERGY_FORCE
  PRINT_LEVEL MEDIUM
&END GLOBAL
&FORCE_EVAL
  METHOD QS
{stress}  &DFT
    BASIS_SET_FILE_NAME BASIS_MOLOPT
    POTENTIAL_FILE_NAME GTH_POTENTIALS
    CHARGE {int(charge)}
{uks}    &MGRID
      CUTOFF {CUTOFF}
      REL_CUTOFF {REL}
    &END
    &QS
      EPS_DEFAULT 1.0E-11
    &END
    &POISSON
      PERIODIC {per}
      {poisson}
    &END
    &SCF
      SCF_GUESS ATOMIC
      EPS_SCF 1.0E-6
      MAX_SCF 30
      &OT
        MINIMIZER DIIS
        PRECONDITIONER FULL_SINGLE_INVERSE
      &END
      &OUTER_SCF
        EPS_SCF 1.0E-6
        MAX_SCF 6
      &END
    &END
    &XC
      &XC_FUNCTIONAL PBE
      &END
    &END
    &PRINT
      &E_DENSITY_CUBE
        STRIDE 1 1 1
      &END
      &MO_CUBES
        NHOMO 1
        NLUMO 1
        WRITE_CUBE F
      &END
    &END
  &END DFT
  &SUBSYS
    &CELL
{cell}
      PERIODIC {per}
    &END
    &COORD
{coord}
    &END
{kinds}
  &END
  &PRINT
    &FORCES
      NDIGITS 10
    &END
{pstress}  &END
&END
"""


def _read_cube(path):
    with open(path) as f:
        f.readline()
        f.readline()
        n = int(f.readline().split()[0])
        axes = [f.readline().split() for _ in range(3)]
        dims = [int(a[0]) for a in axes]
        step = np.array([[float(x) for x in a[1:]] for a in axes])
        for _ in range(n):
            f.readline()
        rho = np.array(f.read().split(), dtype=float).reshape(dims)
    return rho, step


_RADIAL = {}


def free_atom(symbol):
    """Radial valence density of the free atom: (r grid, rho), in a.u."""
    if symbol not in _RADIAL:
        from pyscf import dft, gto
        from pyscf.scf import hf

        z = Q_ION[symbol]
        mol = gto.M(
            atom=f"{symbol} 0 0 0",
            basis="gth-dzvp-molopt-sr",
            pseudo="gth-pbe",
            spin=z % 2,
            verbose=0,
        )
        dm = hf.init_guess_by_atom(mol)
        r = np.linspace(0.0, 12.0, 1201)
        ao = dft.numint.eval_ao(mol, np.outer(r, [0.36, 0.48, 0.8]))
        rho = np.maximum(np.einsum("gi,ij,gj->g", ao, dm, ao), 0.0)
        _RADIAL[symbol] = (r, rho * z / (4 * np.pi * np.trapezoid(rho * r * r, r)))
    return _RADIAL[symbol]


def hirshfeld(atoms, rho, step, two_d, cutoff=9.0):
    """Charges (e) and dipoles (e*Angstrom) of a periodic valence density."""
    symbols = atoms.get_chemical_symbols()
    dv = abs(np.linalg.det(step))
    dims = np.array(rho.shape)
    cell = step * dims[:, None]
    inv = np.linalg.inv(cell)
    idx = np.stack(np.meshgrid(*[np.arange(d) for d in dims], indexing="ij"), -1)
    x = idx.reshape(-1, 3) @ step
    w = rho.ravel() * dv
    heights = 1.0 / np.linalg.norm(inv, axis=0)  # plane spacings
    nmax = np.ceil(cutoff / heights).astype(int)
    if two_d:
        nmax[2] = 0
    shifts = [
        np.array([i, j, k]) @ cell
        for i in range(-nmax[0], nmax[0] + 1)
        for j in range(-nmax[1], nmax[1] + 1)
        for k in range(-nmax[2], nmax[2] + 1)
    ]
    pos = atoms.positions / Bohr
    if not two_d:
        pos = (pos @ inv % 1.0) @ cell
    total = np.zeros(len(x))
    pieces = []
    for a, s in enumerate(symbols):
        r, f = free_atom(s)
        for t in shifts:
            c = pos[a] + t
            d = x - c
            d2 = np.einsum("ij,ij->i", d, d)
            m = np.nonzero(d2 < cutoff * cutoff)[0]
            if m.size == 0:
                continue
            val = np.interp(np.sqrt(d2[m]), r, f)
            total[m] += val
            pieces.append((a, m, val, c))
    q = np.array([float(Q_ION[s]) for s in symbols])
    mu = np.zeros((len(atoms), 3))
    safe = np.maximum(total, 1e-14)
    for a, m, val, c in pieces:
        part = val / safe[m] * w[m]
        q[a] -= part.sum()
        mu[a] -= part @ (x[m] - c)
    return q, mu * Bohr


def label(atoms, charge=0, two_d=False, uhf=0, keep=None):
    cmd = shlex.split(os.environ.get("CP2K_CMD", "cp2k.psmp"))
    env = dict(os.environ, OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory(prefix="cp2k_") as d:
        with open(f"{d}/run.inp", "w") as f:
            f.write(_input(atoms, charge, two_d, uhf))
        proc = subprocess.run(
            [*cmd, "-i", "run.inp", "-o", "run.out"],
            cwd=d,
            env=env,
            capture_output=True,
            text=True,
        )
        text = log.read_text() if (log := Path(d) / "run.out").exists() else ""
        if keep:
            Path(keep).write_text(text)
        if proc.returncode or "PROGRAM ENDED" not in text:
            raise RuntimeError("cp2k failed: " + proc.stderr[-300:] + text[-600:])
        if "SCF run NOT converged" in text:
            raise RuntimeError("SCF not converged")
        cube = next(n for n in os.listdir(d) if "ELECTRON_DENSITY" in n)
        rho, step = _read_cube(f"{d}/{cube}")
    energy = float(re.findall(r"ENERGY\| Total FORCE_EVAL.*?:\s+(\S+)", text)[-1])
    block = text.split("ATOMIC FORCES in [a.u.]")[-1].splitlines()
    rows = [ln.split() for ln in block if re.match(r"\s+\d+\s+\d+\s+[A-Z][a-z]?\s", ln)]
    forces = np.array([[float(v) for v in r[3:6]] for r in rows[: len(atoms)]])
    gap = re.findall(r"HOMO - LUMO gap \[eV\] :\s+(\S+)", text)
    # eigenvalues of the occupied and the lowest unoccupied subspace (a.u.)
    occ = text.split("Eigenvalues of the occupied subspace")[1].split("Fermi Energy")[0]
    homo = max(float(v) for v in re.findall(r"-?\d+\.\d{6,}", occ))
    q, mu = hirshfeld(atoms, rho, step, two_d)
    n_el = rho.sum() * abs(np.linalg.det(step))
    err = q.sum() - charge
    gap = float(gap[-1])
    out = {
        "energy": energy * Hartree,
        "forces": forces * Hartree / Bohr,
        "charges": q - err / len(atoms),
        "atomic_dipoles": mu,
        "gap": gap,
        "fermi_level": homo * Hartree + 0.5 * gap,
        "sum_q_error": err,
        "n_electrons": n_el,
        "mulliken": None,
    }
    m = text.split("Mulliken Population Analysis")
    if len(m) > 1:
        r = [
            ln.split()
            for ln in m[-1].splitlines()
            if re.match(r"\s+\d+\s+[A-Z][a-z]?\s+\d+\s", ln)
        ]
        out["mulliken"] = np.array([float(x[4]) for x in r[: len(atoms)]])
    h = text.split("Hirshfeld Charges")
    if len(h) > 1:
        r = [
            ln.split()
            for ln in h[-1].splitlines()
            if re.match(r"\s+\d+\s+[A-Z][a-z]?\s+\d+\s", ln)
        ]
        out["cp2k_hirshfeld"] = np.array([float(x[-1]) for x in r[: len(atoms)]])
    if two_d:
        out["dipole"] = out["charges"] @ atoms.positions + mu.sum(0)
    else:
        s = text.split("Analytical stress tensor [GPa]")
        if len(s) > 1:
            r = [
                ln.split()[2:5]
                for ln in s[1].splitlines()
                if re.match(r"\s*STRESS\|\s+[xyz]\s+-?\d", ln)
            ]
            # CP2K prints the pressure-like tensor (positive = compressed)
            out["stress"] = -np.array(r[:3], float) / 160.21766208
    return out
