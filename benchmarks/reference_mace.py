"""Runs inside the reference environment: times energy and forces of mace-torch on request.

Started by ``backbone.py``; reads one JSON request a line from standard input.
"""

import json
import os
import sys
import time
from pathlib import Path

# Libraries print to standard output while they are imported; answers go to the real one.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from e3nn import o3  # noqa: E402
from mace import modules  # noqa: E402

FLAGS = ("use_edge_irreps_first", "use_agnostic_product", "apply_cutoff")


def build(config: dict, weights: dict) -> torch.nn.Module:
    torch.set_default_dtype(torch.float64)
    model = modules.ScaleShiftMACE(
        r_max=config["r_max"],
        num_bessel=config["num_bessel"],
        num_polynomial_cutoff=config["num_polynomial_cutoff"],
        max_ell=config["max_ell"],
        interaction_cls=modules.interaction_classes[config["interaction_cls"]],
        interaction_cls_first=modules.interaction_classes[config["interaction_cls_first"]],
        num_interactions=config["num_interactions"],
        num_elements=len(config["atomic_numbers"]),
        hidden_irreps=o3.Irreps(config["hidden_irreps"]),
        MLP_irreps=o3.Irreps(config["MLP_irreps"]),
        avg_num_neighbors=config["avg_num_neighbors"],
        atomic_numbers=config["atomic_numbers"],
        atomic_energies=np.array(config["atomic_energies"]),
        pair_repulsion=config.get("pair_repulsion") is not None,
        distance_transform=config.get("distance_transform", "None"),
        edge_irreps=o3.Irreps(config["edge_irreps"]) if "edge_irreps" in config else None,
        **{name: config[name] for name in FLAGS if name in config},
        use_reduced_cg=config.get("use_reduced_cg", False),
        correlation=config["correlation"],
        gate=torch.nn.functional.silu,
        radial_MLP=config["radial_MLP"],
        radial_type=config["radial_type"],
        atomic_inter_scale=config["atomic_inter_scale"],
        atomic_inter_shift=config["atomic_inter_shift"],
    )
    own = model.state_dict()
    used = set()
    for name, value in weights.items():
        own[name].copy_(torch.from_numpy(value).reshape(own[name].shape))
        used.add(name)
    left = [n for n, p in model.named_parameters() if n not in used and p.numel() > 0]
    if left:
        raise SystemExit(f"reference parameters without a value: {left}")
    return model


def inputs(case: dict, config: dict, dtype: torch.dtype) -> dict:
    numbers = torch.tensor(config["atomic_numbers"])
    element = torch.searchsorted(numbers, torch.from_numpy(case["numbers"]))
    n_atoms = len(element)
    cell = torch.from_numpy(case["cell"]).to(dtype)
    unit_shifts = torch.from_numpy(case["unit_shifts"]).to(dtype)
    return {
        "positions": torch.from_numpy(case["positions"]).to(dtype),
        "node_attrs": torch.nn.functional.one_hot(element, len(numbers)).to(dtype),
        "edge_index": torch.from_numpy(case["edge_index"]),
        "shifts": unit_shifts @ cell,
        "unit_shifts": unit_shifts,
        "cell": cell,
        "batch": torch.zeros(n_atoms, dtype=torch.int64),
        "ptr": torch.tensor([0, n_atoms]),
        "head": torch.zeros(1, dtype=torch.int64),
    }


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    model = build(config, dict(np.load(folder / "weights.npz")))
    for line in sys.stdin:
        request = json.loads(line)
        dtype = getattr(torch, request["dtype"])
        torch.set_default_dtype(dtype)
        model = model.to(dtype)
        data = inputs(dict(np.load(folder / f"{request['case']}.npz")), config, dtype)
        seconds = []
        for _ in range(request["repeats"]):
            fresh = {key: value.clone() for key, value in data.items()}
            model.requires_grad_(request["task"] == "step")
            start = time.process_time()
            out = model(fresh, training=request["task"] == "step", compute_force=True)
            if request["task"] == "step":
                model.zero_grad()
                (out["energy"].square().sum() + out["forces"].square().sum()).backward()
            seconds.append(time.process_time() - start)
        answer = {
            "seconds": seconds,
            "energy": float(out["energy"][0]),
            "forces": out["forces"].tolist(),
        }
        print(json.dumps(answer), flush=True, file=ANSWERS)


if __name__ == "__main__":
    main()
