"""Wrong inputs over all commands: exit status 2, no traceback, and the fault is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from calculator_cases import affine_model, water_row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fpmace.calculators import FixedPointSCFCalculator
from fpmace.cli import (
    convert,
    evaluate,
    info,
    plot_scf,
    plot_train,
    preprocess,
    response,
    train,
    visualise_scf,
)
from fpmace.config.yaml_file import parse_value, read_yaml
from fpmace.conversion.safe_archive import read_foreign_archive
from fpmace.data.dataset import open_dataset
from fpmace.errors import ConfigError, FpmaceError, ModelFileError
from fpmace.models import size
from fpmace.models.io import load_model, save_model

BAD_NUMBER = "x nan inf -inf [1] {a:1} true 1,5 None"
BAD_COUNT = "x nan inf -1 0 1.5 [1] true None"
BAD_SWITCH = "2 maybe [true] None"

TRAIN = {
    **dict.fromkeys(["r_max", "lr", "batch_size", "max_num_epochs", "eval_interval"], BAD_COUNT),
    "r_max": f"{BAD_NUMBER} -1 0",
    "lr": f"{BAD_NUMBER} -1 0",
    "weight_decay": f"{BAD_NUMBER} -1",
    "ema_decay": f"{BAD_NUMBER} -1 1 2",
    "lr_factor": f"{BAD_NUMBER} 0 1",
    "lr_scheduler_gamma": f"{BAD_NUMBER} 0",
    "clip_grad": "x nan inf -1 0 [1]",
    "patience": "x nan -1 0 1.5",
    "num_workers": "x nan -1 1.5",
    "num_threads": "x nan -1 0 1.5",
    "ema": BAD_SWITCH,
    "plot": BAD_SWITCH,
    "amsgrad": BAD_SWITCH,
    "dry_run": BAD_SWITCH,
    "optimizer": "sgdd 3 [] {}",
    "scheduler": "none 3",
    "model": "MACEE 3 []",
    "default_dtype": "float16 64 x",
    "device": "meta tpu cuda:x cpu:0",
    "loss": "x [] {forces:-1} {forces:.nan} {forces:.inf} {nothing:1}",
    "train_schedule": "x [] 3 {a:1} {0:{}} {1:{name:a}}",
    "config_type_weights": "x [] {a:x} {a:.nan} {a:-1}",
    "hidden_irreps": "x 4x 4x0x 0 -1x0e 1000000000x0e 4x0e+4x99o",
    "num_interactions": f"{BAD_COUNT} 1000000000",
    "correlation": f"{BAD_COUNT} 50",
    "max_ell": "x nan -1 1.5 1000",
    "num_radial_basis": f"{BAD_COUNT} 1000000000",
    "radial_MLP": "x [x] [-1] [1.5]",
    "field_feature_widths": "x [x] [-1.0] [.nan]",
    "field_feature_norms": "x [x] [.inf]",
    "electrostatic_pbc_method": "slabb 3",
    "error_table": "Nothing 3",
    "heads": "x [] {a:1}",
    "plugins": "none.py no.such.module",
    "unknown_option": "1",
}
PREPROCESS = {
    "r_max": f"{BAD_NUMBER} -1 0",
    "shards": BAD_COUNT,
    "num_process": BAD_COUNT,
    "compute_statistics": BAD_SWITCH,
    "valid_fraction": "x nan -1 0 1 2",
    "seed": "x 1.5 nan",
    "min_distance": "x nan -1",
    "atomic_multipoles_max_l": "x nan -1 3 1.5",
    "electrostatic_pbc_method": "slabb",
    "E0s": "Isolated {1:x} []",
    "config_type_weights": "x {a:.inf}",
    "config": "none.yaml",
    "unknown_option": "1",
}
EVALUATE = {
    "model": "none.model text.model {}/empty {}",
    "configs": "none.xyz {}/empty {}",
    "output": "{} {}/good.xyz {}/fixed.model",
    "batch_size": "x 0 -1 1.5",
    "device": "meta tpu cuda:x cpu:0 cuda:99999",
    "default_dtype": "float16",
    "mode": "both",
    "scf_options": (
        "x [] 3 {scf_tolerance:x} {scf_tolerance:-1} {nothing:1} {mixing_parameter:.nan}"
    ),
    "initial_density": "none",
    "initial_fermi_level": "x .nan .inf",
    "pbc_handling": "slabb",
    "scf_history": "all",
    "info_prefix": "a=b a:b [a]",
    "error_table": "Nothing",
    "plugins": "none.py",
    "energy_key": "nothing",
    "unknown_option": "1",
}
RESPONSE = {
    "model": "none.model {}/empty {}",
    "configs": "none.xyz {}/empty {}",
    "output": "{}/a.h5 {}/good.xyz {}",
    "properties": "nothing polarizability,nothing",
    "scf_options": "x [] {scf_tolerance:-1} {nothing:1}",
    "batch_size": "x 0 -1",
    "device": "meta tpu",
    "unknown_option": "1",
}
VISUALISE = {
    "model": "none.model {}/empty",
    "configs": "none.xyz {}/empty",
    "output": "{} {}/good.xyz",
    "index": "x 99 -1",
    "scf_options": "x {nothing:1}",
    "solvers": "nothing",
    "device": "meta",
    "unknown_option": "1",
}


def rows(table: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(option, value) of a table; a colon in a value stands for YAML's colon and space."""
    for name, values in table.items():
        for value in values.split():
            text = (
                value.replace(":", ": ") if value.startswith("{") and value[1:2] != "}" else value
            )
            yield name, text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    save_model(folder / "fixed.model", affine_model())
    frames = [water_row(1), water_row(2)]
    for atoms in frames:
        atoms.info["REF_energy"] = 0.0
    write(folder / "good.xyz", frames)
    (folder / "empty").write_text("")
    return folder


def base(command: str, place: Path) -> dict[str, str]:
    good, model = f"{place}/good.xyz", f"{place}/fixed.model"
    return {
        "train": {
            "train_file": good,
            "valid_file": good,
            "E0s": "average",
            "work_dir": f"{place}/w",
        },
        "preprocess": {"train_file": good, "E0s": "average", "output": f"{place}/p"},
        "evaluate": {"configs": good, "model": model, "output": f"{place}/out.xyz"},
        "response": {"configs": good, "model": model, "output": f"{place}/out.json"},
        "visualise_scf": {"configs": good, "model": model, "output": f"{place}/out.xyz"},
    }[command]


MAINS = {
    "train": train.main,
    "preprocess": preprocess.main,
    "evaluate": evaluate.main,
    "response": response.main,
    "visualise_scf": visualise_scf.main,
}
TABLES = {
    "train": TRAIN,
    "preprocess": PREPROCESS,
    "evaluate": EVALUATE,
    "response": RESPONSE,
    "visualise_scf": VISUALISE,
}
OPTION_CASES = [(c, name, value) for c, table in TABLES.items() for name, value in rows(table)]

WORDS = {
    "info": (info.main, ["", "none", "{}/empty", "{}", "{}/good.xyz", "/dev/null", "--x", "a b"]),
    "convert": (
        convert.main,
        ["", "none", "none out", "{0}/empty out", "{0} out", "{0}/good.xyz out", "a a", "a b c"],
    ),
    "plot_train": (plot_train.main, ["", "none", "{}", "{}/empty", "{} --errors x", "--labels a"]),
    "plot_scf": (plot_scf.main, ["", "none", "{}", "{}/empty", "{} --output a.txt", "--x"]),
    "train": (train.main, ["", "--config none.yaml", "--config {}", "word", "--lr"]),
    "preprocess": (preprocess.main, ["", "--config none.yaml", "word", "--r_max"]),
    "evaluate": (evaluate.main, ["", "--model a", "word"]),
    "response": (response.main, ["", "--model a", "word"]),
    "visualise_scf": (visualise_scf.main, ["", "--model a", "word"]),
}
WORD_CASES = [(name, text) for name, (_, texts) in WORDS.items() for text in texts]


def check(main: Callable[[list[str]], int], arguments: list[str], capsys, *named: str) -> None:
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    errors = text[text.index("error: ") :].strip()
    first = errors.splitlines()[0]
    # Several faults make a numbered list; one is one line.
    assert len(errors.splitlines()) == 1 or "problems" in first, text
    for part in named:
        assert part in errors, errors


@pytest.mark.parametrize(("command", "option", "value"), OPTION_CASES)
def test_wrong_value_of_an_option(command, option, value, place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = value.replace("{}", str(place)) if option in ("model", "configs", "output") else value
    given = {**base(command, place), option: value}
    arguments = [f"--{name}={text}" for name, text in given.items()]
    named = {"energy_key": "nothing"}.get(option, option)
    if option == "scf_options" and value == "[]":
        named = "[]"
    if option in ("model", "configs", "output", "plugins", "config", "solvers"):
        named = value.strip("{}")
    check(MAINS[command], arguments, capsys, named)


@pytest.mark.parametrize(("command", "text"), WORD_CASES)
def test_wrong_arguments(command, text, place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(WORDS[command][0], text.format(place).split(), capsys)


FORGED = {
    "config": [
        "[]",
        "3",
        "{",
        "{}",
        '{"type": 3}',
        '{"type": "None"}',
        "null",
        "[" * 9999,
        3,
        None,
    ],
    "metadata": ["[]", '{"parts": 3}', '{"parts": [{}]}', '{"parts": [3]}', None],
    "state_dict": [None, 3, [], {}, {"a": 3}, {"a": torch.ones(1)}],
    "format_version": ["1", 0, -1, 1.0, True, None, 99],
    "format": [None, 3, "fpmace.checkpoint"],
}
FORGED_CASES = [(name, value) for name, values in FORGED.items() for value in values]


def _forged(place: Path, folder: Path, **changes: object) -> Path:
    content = torch.load(place / "fixed.model", weights_only=True)
    del content["checksum"]
    torch.save({**content, **changes}, folder / "forged.model")
    return folder / "forged.model"


@pytest.mark.parametrize(("name", "value"), FORGED_CASES)
def test_model_file_of_wrong_shape(name, value, place, tmp_path):
    with pytest.raises(ModelFileError) as caught:
        load_model(_forged(place, tmp_path, **{name: value}))
    assert "\n" not in str(caught.value)
    assert "forged.model: " in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_interactions": -1},
        {"hidden_irreps": "x"},
        {"hidden_irreps": 3},
        {"r_max": None},
        {"atomic_numbers": []},
        {"atomic_numbers": [1, "x"]},
        {"atomic_energies": [1.0]},
        {"nothing": 1},
        {"radial_MLP": "x"},
    ],
)
def test_model_file_with_a_configuration_of_no_model(change, place, tmp_path):
    config = {
        **json.loads(torch.load(place / "fixed.model", weights_only=True)["config"]),
        **change,
    }
    with pytest.raises(ModelFileError) as caught:
        load_model(_forged(place, tmp_path, config=json.dumps(config)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_model_file_with_weights_that_are_no_numbers(dtype, place, tmp_path):
    state = torch.load(place / "fixed.model", weights_only=True)["state_dict"]
    name = next(name for name, value in state.items() if value.is_floating_point())
    state = {**state, name: torch.ones_like(state[name]).to(dtype)}
    with pytest.raises(ModelFileError, match="weights"):
        load_model(_forged(place, tmp_path, state_dict=state, metadata="{}"))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_irreps": "100000x0e+100000x1o"},
        {"hidden_irreps": "90000x0e", "num_interactions": 100},
        {"radial_MLP": [64, 10**9]},
    ],
)
def test_sizes_beyond_the_machine(change, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(size, "machine_memory", lambda device: 20 * 2**30)
    config = json.loads(torch.load(place / "fixed.model", weights_only=True)["config"])
    with pytest.raises(FpmaceError, match=r"the model needs at least .* GiB, and cpu has 20"):
        load_model(_forged(place, tmp_path, config=json.dumps({**config, **change})))
    given = {**base("train", place), **change}
    arguments = [f"--{name}={text}" for name, text in given.items()]
    check(train.main, arguments, capsys, "the model needs", next(iter(change)))


def test_a_batch_or_optimizer_beyond_the_machine(place, monkeypatch, capsys):
    given = {**base("train", place), "hidden_irreps": "64x0e", "batch_size": 100}
    arguments = [f"--{name}={text}" for name, text in given.items()]
    monkeypatch.setattr(size, "machine_memory", lambda device: 500_000)
    check(train.main, arguments, capsys, "weights, gradients and optimizer need", "num_inter")
    monkeypatch.setattr(size, "least_weights", lambda options: 0)
    monkeypatch.setattr(size, "machine_memory", lambda device: 10_000)
    named = ("a batch of 2 configurations (9 atoms, 36 edges) needs", "batch_size (now 2)")
    check(train.main, arguments, capsys, *named)


def _info(key: str, value: object) -> Callable[[Atoms], None]:
    return lambda atoms: atoms.info.update({key: value})


DATA: dict[str, Callable[[Atoms], None]] = {
    f"{key} {value!r}"[:60]: _info(key, value)
    for key, values in {
        "REF_energy": ["x", np.nan, np.inf, 1e30, [1.0, 2.0], True],
        "total_charge": ["plus", np.nan, 1e19, [1, 2]],
        "external_field": ["x", [1, 2], [np.nan, 0, 0], 3.0],
        "REF_dipole": [[1, 2, 3], "x"],
        "config_weight": ["x", -1, np.nan],
        "REF_stress": [[1, 2], "x"],
    }.items()
    for value in values
}


@pytest.mark.parametrize("name", DATA)
def test_wrong_data(name, tmp_path):
    frames = [water_row(1), water_row(1)]
    DATA[name](frames[1])
    write(tmp_path / "a.xyz", frames, format="extxyz")
    with pytest.raises(FpmaceError) as caught:
        open_dataset(tmp_path / "a.xyz", 3.0)
    text = str(caught.value)
    assert "\n" not in text
    assert "a.xyz: configuration 1" in text
    assert name.split()[0] in text


@pytest.mark.parametrize("model", [3, 1.5, [], {}, torch, object(), b"a", True])
def test_calculator_of_what_is_no_model(model):
    with pytest.raises(ConfigError, match="missing; give a model file"):
        FixedPointSCFCalculator(None)
    with pytest.raises(ConfigError, match="expects the name of a model file"):
        FixedPointSCFCalculator(model)


def plain_model():
    return FixedPointSCFCalculator(affine_model())


NO_STRUCTURES = [3, None, "x", [1], ["x"], [None], [torch]]
ODD_NUMBERS = ["x", None, [], float("nan"), float("inf"), -1]
CALCULATOR = {
    "model_path": [torch.nn.Linear(1, 1), torch.nn.Sequential()],
    "dtype": ["x", 3, torch.int32, []],
    "pbc_handling": ["x", 3, [], {}],
    "scf_options": ["x", 3, [], {"a": 1}, {"scf_tolerance": "x"}, {"scf_tolerance": None}],
    "restart": ["x", None, 3, []],
    "skin": ODD_NUMBERS,
    "charge_key": [None, 3, []],
    "external_field_key": [None, 3],
    "fermi_level_key": [None, []],
    "density_key": [None, 3],
    "keys": [3, "x", {}],
    "plugins": [3, None, [3]],
}
USE = {
    "batch_size": ([*ODD_NUMBERS[:-1], 0, 1.5], lambda c, x: c.evaluate([water_row(1)], x)),
    "structure": (NO_STRUCTURES, lambda c, x: c.evaluate(x)),
    "properties": ([3, None, [3], [None]], lambda c, x: c.response(x, water_row(1))),
    "properties ": ([3, None, [3], [None]], lambda c, x: c.evaluate([water_row(1)], 1, x)),
    "structure ": (["x", 3, []], lambda c, x: c.response("polarizability", x)),
    "no structure": ([None], lambda c, x: c.get_potential_energy(x)),
    "expects a structure": (["x", 3], lambda c, x: c.get_potential_energy(x)),
}
INPUTS = ["x", "1", None, True, [1, 2], [[1], [2, 3]], {}, torch, object(), b"1", 1j, 1e30]


def one_line(error: pytest.ExceptionInfo[FpmaceError], *named: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert all(part in text for part in named), text


@pytest.mark.parametrize("name", CALCULATOR)
def test_calculator_of_odd_values(name):
    for value in CALCULATOR[name]:
        with pytest.raises(FpmaceError) as caught:
            FixedPointSCFCalculator(**{"model_path": affine_model(), name: value})
        one_line(caught, {"model_path": "model"}.get(name, name.removesuffix("_key")))


@pytest.mark.parametrize("name", USE)
def test_use_of_a_calculator_with_odd_values(name):
    values, use = USE[name]
    for value in values:
        with pytest.raises(FpmaceError) as caught:
            use(plain_model(), value)
        one_line(caught, name.strip())


@pytest.mark.parametrize("name", ["total_charge", "external_field", "initial_fermi_level"])
def test_text_where_numbers_belong(name):
    calculator = plain_model()
    for value in INPUTS:
        atoms = water_row(1)
        atoms.info[name] = [value, 0, 0] if value == 1e30 and "field" in name else value
        with pytest.raises(FpmaceError) as caught:
            calculator.get_potential_energy(atoms)
        one_line(caught, name)


@pytest.mark.parametrize("device", ["meta", "tpu", "cuda:-1", "cpu:1", "", "cuda:1:2", "mps:0"])
def test_calculator_on_odd_devices(device, place):
    with pytest.raises(ConfigError, match="device"):
        FixedPointSCFCalculator(str(place / "fixed.model"), device=device)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 11)
)
YAML = {
    "bomb": BOMB,
    "recursive": "a: &a [*a]",
    "deep": "a: " + "[" * 5000,
    "unknown alias": "a: *b",
    "tab": "a:\n\t- 1",
    "unclosed": "a: [1, 2",
    "tag": "a: !!python/object:os.system {}",
    "huge number": "a: " + "1" * 5000,
    "twice": "a: 1\na: 2",
    "list": "- 1",
    "control": "a: \x01",
    "unhashable": "{[1]: 2}",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("name", YAML)
def test_wrong_yaml_is_one_line(name, tmp_path):
    (tmp_path / "a.yaml").write_text(YAML[name])
    with pytest.raises(ConfigError) as caught:
        read_yaml(str(tmp_path / "a.yaml"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_plain_text_names_a_plugin(tmp_path, capsys, place):
    (tmp_path / "a.yaml").write_text(f"plugins: {tmp_path}/none.py\nlr: -1\n")
    check(train.main, ["--config", f"{tmp_path}/a.yaml"], capsys, "none.py", "lr")
    with pytest.raises(ConfigError, match=r"none\.py"):
        FixedPointSCFCalculator(str(place / "fixed.model"), plugins="none.py")


def test_the_table_is_long():
    count = len(OPTION_CASES) + len(WORD_CASES) + len(DATA) + len(YAML)
    assert count >= 300, count


FUZZ = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)
TOKENS = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", ":", ", ", "- ", "\n", "&a ", "*a", "'", '"', "#", "1e9", "x", "!"]
    ),
    max_size=25,
).map("".join)


def tolerates(action: Callable[[], object]) -> None:
    """Works, or fails with an error of the package."""
    with suppress(FpmaceError):
        action()


@FUZZ
@given(TEXT | TOKENS)
def test_fuzzed_yaml(text):
    tolerates(lambda: parse_value(text))


@FUZZ
@given(st.data())
def test_fuzzed_xyz(tmp_path, data):
    write(tmp_path / "good.xyz", water_row(1), format="extxyz")
    text = (tmp_path / "good.xyz").read_text()
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 20)))
    (tmp_path / "a.xyz").write_text(text[:start] + data.draw(TEXT) + text[stop:], encoding="utf-8")
    tolerates(lambda: open_dataset(tmp_path / "a.xyz", 3.0)[0])


@FUZZ
@given(st.data())
def test_fuzzed_archives(place, tmp_path, data):
    whole = (place / "fixed.model").read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 50)))
    (tmp_path / "a.model").write_bytes(
        whole[:start] + data.draw(st.binary(max_size=50)) + whole[stop:]
    )
    tolerates(lambda: load_model(tmp_path / "a.model"))
    tolerates(lambda: read_foreign_archive(tmp_path / "a.model"))
