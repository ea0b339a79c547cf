import pytest

from fpmace.data.keys import LABELS, PROPERTIES, WEIGHTED, KeyMapping, describe_contract
from fpmace.errors import ConfigError


def test_default_keys_cover_the_contract():
    mapping = KeyMapping()
    assert set(mapping.keys) == set(PROPERTIES)
    assert mapping.key("energy") == "REF_energy"
    assert mapping.explicit == frozenset()
    assert {"energy", "forces", "dipole"} <= set(LABELS) <= set(WEIGHTED)


def test_heads_replace_single_keys():
    heads = {"dft": {"info_keys": {"energy": "E"}, "arrays_keys": {"forces": "F"}}}
    mapping = KeyMapping.from_heads(heads)
    assert (mapping.key("energy"), mapping.key("forces")) == ("E", "F")
    assert mapping.key("dipole") == "REF_dipole"
    assert mapping.explicit == {"energy", "forces"}
    assert mapping.head == "dft"


def test_no_heads_is_the_default():
    assert KeyMapping.from_heads({}) == KeyMapping.from_heads(None) == KeyMapping()


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"a": {}, "b": {}}, ["2 heads", "a, b"]),
        ({"a": {"info_keys": {"enrgy": "E"}}}, ["heads.a.info_keys.enrgy", "'energy'"]),
        ({"a": {"info_keys": {"forces": "F"}}}, ["per atom", "arrays_keys"]),
        ({"a": {"arrays_keys": {"energy": "E"}}}, ["per graph", "info_keys"]),
        ({"a": {"infokeys": {}}}, ["heads.a.infokeys", "'info_keys'"]),
        ({"a": {"info_keys": {"energy": 3}}}, ["heads.a.info_keys.energy", "text", "3"]),
        ({"a": {"info_keys": "energy"}}, ["heads.a.info_keys", "mapping"]),
        ({"a": "energy"}, ["heads.a", "mapping"]),
        ("energy", ["heads", "mapping"]),
    ],
)
def test_wrong_heads(heads, words):
    with pytest.raises(ConfigError) as caught:
        KeyMapping.from_heads(heads)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_contract_rows_name_unit_and_key():
    rows = {row[0]: row for row in describe_contract()}
    assert rows["forces"] == ("forces", "atom", "3", "eV/A", "REF_forces")
    assert rows["atomic_multipoles"][2] == "k"
