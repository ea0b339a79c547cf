"""Forces for i-PI through its socket, with ASE's client.

Start i-PI with a ``<ffsocket mode="unix" name="fpmace">`` block, then

    python docs/examples/ipi_client.py --model water.model --structure start.xyz --unix fpmace

The structure gives species, total charge and field; i-PI sends positions and cell.
"""

from __future__ import annotations

import argparse

from ase.calculators.socketio import SocketClient
from ase.io import read

from fpmace.calculators import FixedPointSCFCalculator


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--structure", required=True)
    parser.add_argument("--unix", help="name of a unix socket")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=31415)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)

    atoms = read(given.structure)
    atoms.calc = FixedPointSCFCalculator(given.model, device=given.device)
    place = {"unixsocket": given.unix} if given.unix else {"host": given.host, "port": given.port}
    SocketClient(**place).run(atoms, use_stress=bool(atoms.pbc.all()))


if __name__ == "__main__":
    main()
