"""Small water/ion clusters, wB97X/def2-SVPD labels from PySCF.

    python make_water_clusters_dft.py OUT.xyz --seed 1 --count 150 [--minutes 40]

Geometries come from short GFN2-xTB dynamics (common.sample_md), labels from
density-fitted restricted Kohn-Sham calculations with the homogeneous field in
the core Hamiltonian, the nuclear energy and the gradients.  Atomic charges
and dipoles are Hirshfeld moments (spherical free-atom promolecule, integrated
on the DFT grid); the integration error (about 1e-6) is spread evenly over the
atoms, so that sum(Q) and sum(Q r + mu) equal the analytic charge and dipole.
The Mulliken-type partition of the same density is stored beside it.
"""

import argparse
import time

import common as C
import numpy as np
from ase import Atoms
from ase.units import Bohr, Hartree
from pyscf import dft, gto, lib
from pyscf.scf import hf

XC, BASIS, GRID = "wb97x", "def2-svpd", 2


def run(atoms, charge, uhf=0, field=None):
    mol = gto.M(
        atom=list(zip(atoms.get_chemical_symbols(), atoms.positions, strict=False)),
        basis=BASIS,
        charge=int(charge),
        spin=int(uhf),
        verbose=0,
        unit="A",
    )
    mf = (dft.UKS if uhf else dft.RKS)(mol, xc=XC).density_fit()
    mf.grids.level = GRID
    mf.conv_tol, mf.max_cycle = 1e-9, 100
    f = np.zeros(3) if field is None else -np.asarray(field) / C.AU_FIELD
    with mol.with_common_orig((0, 0, 0)):
        r = mol.intor_symmetric("int1e_r", comp=3)
        irp = mol.intor("int1e_irp", comp=9).reshape(3, 3, mol.nao, mol.nao)
    h0 = mf.get_hcore() + np.einsum("k,kij->ij", f, r)
    e_nuc = mol.energy_nuc() - mol.atom_charges() @ mol.atom_coords() @ f
    mf.get_hcore = lambda *a: h0
    mf.energy_nuc = lambda *a: e_nuc
    energy = mf.kernel()
    if not mf.converged:
        raise RuntimeError("SCF not converged")
    grad = mf.nuc_grad_method()
    base_h, base_n = grad.get_hcore, grad.grad_nuc
    extra = np.einsum("k,klij->lji", f, irp)
    grad.get_hcore = lambda mol_=None: base_h(mol_) - extra
    grad.grad_nuc = lambda mol_=None, atmlst=None: base_n(mol_) - np.outer(mol.atom_charges(), f)
    return mol, mf, energy, grad.kernel(), r


def moments(mol, mf, r):
    """Hirshfeld and Mulliken (charges, dipoles) and the dipole, in a.u."""
    dm = mf.make_rdm1()
    dm = dm.sum(0) if dm.ndim == 3 else dm
    R, Z, sl = mol.atom_coords(), mol.atom_charges(), mol.aoslice_by_atom()
    total = Z @ R - np.einsum("kij,ji->k", r, dm)
    # Mulliken
    ds = np.einsum("ij,ji->i", dm, mol.intor("int1e_ovlp"))
    dr = np.einsum("ij,kji->ik", dm, r)
    pop = np.array([ds[a:b].sum() for a, b in sl[:, 2:]])
    mull = (Z - pop, -np.array([dr[a:b].sum(0) for a, b in sl[:, 2:]]) + pop[:, None] * R)
    # Hirshfeld
    dma = hf.init_guess_by_atom(mol)
    grids = dft.gen_grid.Grids(mol)
    grids.level = 3
    grids.build()
    n_el, q, mu = 0.0, Z.astype(float), np.zeros((mol.natm, 3))
    for s in range(0, len(grids.weights), 40000):
        x, w = grids.coords[s : s + 40000], grids.weights[s : s + 40000]
        ao = dft.numint.eval_ao(mol, x)
        rho = np.einsum("gi,ij,gj->g", ao, dm, ao, optimize=True)
        pro = np.array(
            [
                np.einsum("gi,ij,gj->g", ao[:, a:b], dma[a:b, a:b], ao[:, a:b], optimize=True)
                for a, b in sl[:, 2:]
            ]
        )
        part = pro / np.maximum(pro.sum(0), 1e-80) * (w * rho)
        q -= part.sum(1)
        for k in range(mol.natm):
            mu[k] -= part[k] @ (x - R[k])
        n_el += (w * rho).sum()
    raw_q = q.sum() - (Z.sum() - mol.nelectron)
    q -= raw_q / mol.natm
    raw_mu = q @ R + mu.sum(0) - total
    mu -= raw_mu / mol.natm
    return (q, mu), mull, total, max(abs(raw_q), np.abs(raw_mu).max())


def label(atoms, charge, uhf=0, field=None):
    mol, mf, energy, grad, r = run(atoms, charge, uhf, field)
    (q, mu), (qm, mum), total, err = moments(mol, mf, r)
    if err > 2e-3:
        raise RuntimeError(f"grid error of the moments {err}")
    eps, occ = mf.mo_energy, mf.mo_occ
    eps, occ = np.ravel(eps), np.ravel(occ)
    homo, lumo = eps[occ > 0].max(), eps[occ == 0].min()
    return {
        "energy": energy * Hartree,
        "forces": -grad * Hartree / Bohr,
        "charges": q,
        "atomic_dipoles": mu * Bohr,
        "dipole": total * Bohr,
        "mull_charges": qm,
        "mull_dipoles": mum * Bohr,
        "fermi_level": 0.5 * (homo + lumo) * Hartree,
        "gap": (lumo - homo) * Hartree,
        "grid_error": err,
    }


def frame(atoms, lab, charge, field, name, extra=None):
    out = C.to_extxyz(atoms, lab, charge, field, name, extra)
    d = lab["mull_dipoles"]
    out.arrays["MULLIKEN_atomic_multipoles"] = np.column_stack(
        [lab["mull_charges"], d[:, 1], d[:, 2], d[:, 0]]
    )
    return out


TABLE = (
    [("water", ["H2O"] * n, w) for n, w in ((1, 1.2), (2, 5), (3, 4), (4, 0.8))]
    + [("h3o", ["H3O"] + ["H2O"] * n, w) for n, w in ((0, 0.5), (1, 2.0), (2, 1.0))]
    + [("oh", ["OH"] + ["H2O"] * n, w) for n, w in ((0, 0.3), (1, 2.0), (2, 1.0))]
    + [("na", ["Na"] + ["H2O"] * n, w) for n, w in ((1, 1.0), (2, 1.5))]
    + [("cl", ["Cl"] + ["H2O"] * n, w) for n, w in ((1, 1.0), (2, 1.5))]
)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=150)
    p.add_argument("--minutes", type=float, default=40.0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--small", action="store_true", help="at most two units (1-5 s each)")
    p.add_argument("--atoms", action="store_true", help="write the isolated atoms first")
    args = p.parse_args()
    lib.num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    table = [t for t in TABLE if len(t[1]) <= 2] if args.small else TABLE
    weights = np.array([t[2] for t in table])
    start, out, pair, t = time.time(), [], 0, -1
    if args.atoms:
        for s, u in (("H", 1), ("O", 2), ("Na", 1), ("Cl", 1)):
            a = Atoms(s, [[0.0, 0, 0]], cell=[C.BOX] * 3, pbc=False)
            lab = label(a, 0, u)
            out.append(frame(a, lab, 0, None, "IsolatedAtom"))
        C.write_xyz(args.out, out)
    n = 0
    while n < args.count and time.time() - start < 60 * args.minutes:
        t += 1
        name, units, _ = table[rng.choice(len(table), p=weights / weights.sum())]
        atoms, charge = C.pack_cluster(rng, units)
        try:
            frames = C.sample_md(atoms, rng, charge, 0, rng.uniform(200, 500), 3)
        except Exception as err:
            print("trajectory skipped:", err)
            continue
        for atoms in frames:
            atoms = C.place(atoms, rng)
            fields, extra, u = [None], {"traj": t}, rng.uniform()
            if u < 0.30:
                fields = [C.random_field(rng)]
            elif u < 0.40:
                fields, extra["pair_id"] = [None, C.random_field(rng)], pair
                pair += 1
            for field in fields:
                t0 = time.time()
                try:
                    lab = label(atoms, charge, 0, field)
                except RuntimeError as err:
                    print("configuration skipped:", err, flush=True)
                    continue
                if np.abs(lab["forces"]).max() > 25.0:
                    continue
                kind = f"{name}_w{units.count('H2O')}"
                out.append(frame(atoms, lab, charge, field, kind, extra))
                n += 1
                print(n, kind, f"{time.time() - t0:.1f} s", f"{lab['grid_error']:.1e}", flush=True)
        C.write_xyz(args.out, out)
    print("done", len(out), "%.0f s" % (time.time() - start))


if __name__ == "__main__":
    main()
