"""The printed summary of the data: one table per question a user asks first."""

from __future__ import annotations

from collections.abc import Mapping

from ase.data import chemical_symbols
from prettytable import PrettyTable

from fpmace.data.dataset import StructureDataset
from fpmace.data.info import DatasetInfo
from fpmace.data.joined import JoinedDataset
from fpmace.data.keys import PROPERTIES


def data_summary(datasets: Mapping[str, StructureDataset]) -> str:
    """Return the tables for the given splits (``{"train": ..., "valid": ...}``) as text."""
    return "\n".join(table.get_string() for table in summary_tables(datasets))


def summary_tables(datasets: Mapping[str, StructureDataset]) -> tuple[PrettyTable, ...]:
    """Overview, properties with their keys, and config types of the given splits."""
    return tables_of(
        {name: dataset.info for name, dataset in datasets.items()},
        {name: _n_free_atoms(dataset) for name, dataset in datasets.items()},
        next(iter(datasets.values())).options.keys.keys,
    )


def _n_free_atoms(dataset: StructureDataset) -> int:
    parts = dataset.parts.values() if isinstance(dataset, JoinedDataset) else [dataset]
    return sum(len(part.isolated_atom_energies) for part in parts)


def summarize_infos(
    infos: Mapping[str, DatasetInfo], n_isolated: Mapping[str, int], keys: Mapping[str, str]
) -> str:
    """Return the tables from counts as text."""
    return "\n".join(table.get_string() for table in tables_of(infos, n_isolated, keys))


def tables_of(
    infos: Mapping[str, DatasetInfo], n_isolated: Mapping[str, int], keys: Mapping[str, str]
) -> tuple[PrettyTable, ...]:
    """The tables from counts."""
    return _overview(infos, n_isolated), _properties(infos, keys), _config_types(infos)


def _table(title: str, columns: list[str]) -> PrettyTable:
    table = PrettyTable()
    table.title = title
    table.field_names = columns
    table.align = "l"
    return table


def _overview(infos: Mapping[str, DatasetInfo], n_isolated: Mapping[str, int]) -> PrettyTable:
    table = _table("data", ["", *infos])
    values = list(infos.values())
    table.add_row(["configurations", *(info.n_configurations for info in values)])
    for head in dict.fromkeys(name for info in values for name in info.heads):
        table.add_row([f"of head {head}", *(info.heads.get(head, 0) for info in values)])
    table.add_row(["free atoms (energies only)", *(n_isolated.get(name, 0) for name in infos)])
    table.add_row(["atoms", *(info.n_atoms for info in values)])
    table.add_row(["atoms per configuration, min/mean/max", *(_sizes(info) for info in values)])
    table.add_row(
        ["neighbours per atom", *(f"{info.n_edges / max(info.n_atoms, 1):.1f}" for info in values)]
    )
    table.add_row(["elements", *(_elements(info) for info in values)])
    kinds = sorted({kind for info in values for kind in info.pbc_classes})
    for kind in kinds:
        table.add_row([f"periodicity {kind}", *(info.pbc_classes.get(kind, 0) for info in values)])
    return table


def _sizes(info: DatasetInfo) -> str:
    mean = info.n_atoms / max(info.n_configurations, 1)
    return f"{info.min_atoms} / {mean:.1f} / {info.max_atoms}"


def _elements(info: DatasetInfo) -> str:
    return " ".join(chemical_symbols[number] for number in info.atomic_numbers)


def _properties(infos: Mapping[str, DatasetInfo], keys: Mapping[str, str]) -> PrettyTable:
    title = "configurations that carry each property"
    table = _table(title, ["property", "key", "unit", *infos])
    for name, item in PROPERTIES.items():
        counts = [info.properties.get(name, 0) for info in infos.values()]
        if any(counts):
            table.add_row([name, keys[name], item.unit, *counts])
    return table


def _config_types(infos: Mapping[str, DatasetInfo]) -> PrettyTable:
    table = _table("configurations by config_type", ["config_type", *infos])
    for name in sorted({name for info in infos.values() for name in info.config_types}):
        table.add_row([name, *(info.config_types.get(name, 0) for info in infos.values())])
    return table
