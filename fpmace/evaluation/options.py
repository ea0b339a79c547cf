"""Settings of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fpmace.calculators.inference import Inference
from fpmace.calculators.self_consistency import DEFAULT_SCF
from fpmace.data.budget import counted_budget
from fpmace.data.keys import KeyMapping
from fpmace.errors import ConfigError
from fpmace.files import check_output
from fpmace.scf.options import ScfOptions

MODES = ("scf", "direct")
HISTORIES = ("none", "absolute_change", "full_history")


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated and how; see the help of ``fpmace-eval``.

    Attributes:
        configs: extended XYZ file.
        model: model file.
        output: extended XYZ file with the predictions.
        mode: ``scf`` (converged density) or ``direct`` (one map evaluation at the density of the
            file); ``scf`` if None; models that solve nothing ignore it.
        batch_budget: ``{"atoms": N}`` or ``{"edges": N}`` that a batch may hold, in place of
            ``batch_size``.
        scf: settings of the loop.
        defaults: inputs of configurations that give none; see ``DataOptions``.
        head: the head that the whole file is evaluated with; None: the only one, or that which
            each configuration names as ``head``.
        keys: where labels and inputs stand.
        forces, stress: whether they are computed.
        info_prefix: begins the name of every prediction.
        error_table: a registered table; one that suits the model if None.
        plot: also draw parity plots beside the output.
        report: keep what the page of the evaluation needs.
    """

    configs: str
    model: str
    output: str
    mode: str | None = None
    batch_size: int = 8
    batch_budget: Mapping[str, float] | None = None
    pbc_handling: str | None = None
    head: str | None = None
    scf: ScfOptions = DEFAULT_SCF
    keys: KeyMapping = field(default_factory=KeyMapping)
    scf_history: str = "none"
    info_prefix: str = "MACE_"
    forces: bool = True
    stress: bool = False
    device: str = "cpu"
    dtype: str | None = None
    plugins: tuple[str, ...] = ()
    error_table: str | None = None
    plot: bool = False
    report: bool = False
    resume: bool = False
    save_every: float = 20.0
    defaults: Mapping[str, float] = field(default_factory=dict)
    inference: Inference = field(default_factory=Inference)

    def __post_init__(self) -> None:
        if self.mode not in (None, *MODES):
            raise ConfigError(f"got {self.mode!r}, allowed: {', '.join(MODES)}", where="mode")
        if self.scf_history not in HISTORIES:
            raise ConfigError(
                f"got {self.scf_history!r}, allowed: {', '.join(HISTORIES)}", where="scf_history"
            )
        if self.batch_budget is not None:
            counted_budget(self.batch_budget)
        if self.batch_size < 1:
            raise ConfigError(f"must be 1 or more, got {self.batch_size}", where="batch_size")
        if (
            not self.info_prefix
            or not self.info_prefix.isprintable()
            or any(c in self.info_prefix for c in " ='\"\\{}[]:,")
        ):
            raise ConfigError(
                f"must be text without spaces and quotes, and not empty, got {self.info_prefix!r}",
                where="info_prefix",
            )
        check_output(self.output, [self.configs, self.model, *self.plugins])
