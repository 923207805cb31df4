"""Typed params.yaml: the one place that knows every setting, its range and its default.

Unknown keys, wrong types and values out of range are refused by name before a stage runs.
"""

import re
import reprlib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ikddit.errors import ParamsError

ModelName = Literal[
    "T/8", "T/4", "T/2", "S/8", "S/4", "S/2", "B/8", "B/4", "B/2", "L/8", "L/4", "L/2", "XL/8", "XL/4", "XL/2"
]  # fmt: skip
"""Names of the sizes: width letter / patch size in pixels; `ikddit.networks.sizes` builds its table from them."""
DiscriminatorKind = Literal["implicit", "cosine", "prototype", "none"]
"""How student tokens are aligned with the teacher's; see `ikddit.networks.alignment`."""


class Section(BaseModel):
    """A section of params.yaml: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataParams(Section):
    """Where raw data come from."""

    raw: str = "data/simulated"


class ShiftParams(Section):
    """A maintenance that leaves a scanner elsewhere than before: a step in overlay that no log names."""

    scanner: str = Field(pattern=r"^LITH0[1-6]$")
    day: float = Field(ge=0.0)
    """Day of the fab's life; lots that start then or later are shifted."""
    nm: float
    """Added to both translations of what this scanner exposes; the layer below is taken to be older."""


class SimulateParams(Section):
    """The simulated fab (stage `simulate`)."""

    fab_seed: int = Field(0, ge=0)
    """Fab constants: scanners, reticles, chambers, drift rates."""
    sample_seed: int = Field(0, ge=0)
    """Wafers drawn from that fab."""
    lots: int = Field(640, ge=1, le=1_000_000)
    """Lots of 25 wafers in the time window."""
    from_day: float = Field(0.0, ge=0.0)
    days: float = Field(365.0, gt=0.0, le=3650.0)
    scale_nm: float = Field(16.0, gt=0.0)
    """PNG range: -scale_nm..scale_nm maps to 0..255."""
    layout: Literal["zip", "folders", "csv", "parquet"] = "zip"
    """MPOM items as one zip or folder per lot, or one mark table per lot with its logs beside."""
    npz: bool = False
    """Also write float maps beside the 8-bit PNGs."""
    unflagged_flyers: bool = False
    """Stress mode: flyers keep valid = 1, and the floor is no longer exact."""
    shift: ShiftParams | None = None
    """Forced step of one scanner, for rehearsals; the floor stays that of someone who knows of it."""


class MarksParams(Section):
    """How mark tables (CSV, Parquet) are read; nothing here is guessed."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Alias map: canonical column name -> name in the file."""
    unit: Literal["nm", "um"] = "nm"
    sign: Literal["current_minus_previous", "previous_minus_current"] = "current_minus_previous"
    reference: Literal["wafer", "field"] = "wafer"
    """`wafer`: wafer_x_mm, wafer_y_mm are mark positions; `field`: field centre plus position in the field."""
    interpolate: bool = False
    delimiter: str = Field(",", min_length=1, max_length=1)


class IngestParams(Section):
    """Raw data to canonical records (stage `ingest`)."""

    format: Literal["auto", "mpom", "marks"] = "auto"
    image_size: int = Field(64, ge=8, le=4096)
    """Pixels per side the PNGs must have; other than 64 is resampled to 64."""
    scale_nm: float | None = Field(None, gt=0.0)
    """Declares the PNG scale of a folder without dataset.json; null: such maps stay RGB, no nm claims."""
    engine: Literal["processes", "dask"] = "processes"
    """Who runs the tasks: processes of this machine, or Dask (extra `scale`), on several machines if it has them.

    The records are the same bit for bit.
    """
    scheduler: str | None = None
    """Address of a running Dask scheduler (tcp://host:8786); null: that of `IKDDIT_DASK_SCHEDULER`, else a cluster
    of `workers` processes on this machine."""
    workers: int = Field(0, ge=0, le=256)
    """Processes; 0 takes all cores. A running scheduler has workers of its own."""
    wafers_per_part: int = Field(500, ge=1)
    max_member_mb: float = Field(64.0, gt=0.0)
    """Largest decompressed size of one file inside a zip (decompression bombs)."""
    marks: MarksParams = MarksParams()

    @model_validator(mode="after")
    def _scheduler_is_of_dask(self) -> "IngestParams":
        if self.scheduler is not None and self.engine != "dask":
            raise ValueError(
                "scheduler is given, but engine is not dask; set engine: dask or scheduler: null"
            )
        return self


class ValidateParams(Section):
    """Great Expectations gates (stage `validate`)."""

    max_abs_nm: float = Field(60.0, gt=0.0)
    """A valid mark beyond this is not overlay."""
    min_valid_share: float = Field(0.5, ge=0.0, le=1.0)
    """Valid marks of one wafer, as a share of the usable pixels."""
    max_missing_log_share: float = Field(0.5, ge=0.0, le=1.0)
    """Missing share of one log channel over the data set."""
    max_quarantined_share: float = Field(0.05, ge=0.0, le=1.0)
    """Of all items found, ingest and validate together; more stops the pipeline."""
    wafers_per_lot: int = Field(25, ge=1)
    complete_lot_fill: float = Field(0.8, ge=0.0, le=1.0)
    """Share of `wafers_per_lot` at which a lot counts as complete."""
    min_complete_lots: float = Field(0.9, ge=0.0, le=1.0)
    """Complete lots, as a share of all; fewer stop the pipeline."""


class PrepareParams(Section):
    """Splits and statistics (stage `prepare`)."""

    val_share: float = Field(0.05, ge=0.0, lt=0.5)
    test_share: float = Field(0.15, gt=0.0, lt=0.9)
    unseen_combinations: int = Field(3, ge=0)
    """Scanner x reticle combinations kept out of train and val, for the `test_unseen` split."""
    max_lines: int = Field(32, ge=1, le=512)
    """Log lines kept per wafer."""
    values_per_line: int = Field(6, ge=1, le=32)


class BaselineParams(Section):
    """Fab baselines (stage `baselines`)."""

    ewma_lambda: float = Field(0.2, gt=0.0, le=1.0)
    """Weight of the newest lot."""
    metrology_delay_h: float = Field(12.0, ge=0.0)
    """Hours from a lot's last exposure until EWMA may use its measured maps."""
    components: int = Field(100, ge=1)
    """Principal components of the map in which gradient boosting works."""
    ridge_alphas: list[float] = [3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
    """Chosen on val."""


class EmbedParams(Section):
    """Unified contrastive embedding (stage `embed`)."""

    dim: int = Field(128, ge=8)
    steps: int = Field(400, ge=1)
    batch: int = Field(256, ge=2)
    learning_rate: float = Field(3e-3, gt=0.0)
    contrastive: bool = True
    """False: no pre-training; the encoders start at random and learn with the student (an ablation)."""
    modality_dropout: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of wafers whose previous map, logs or ids are blanked, each on its own."""
    template_dropout: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of log lines shown as if their template were unknown, so that their words learn to speak for them."""
    log_encoder: Literal["words", "minilm"] = "words"
    """Where the words of log lines get their vectors: learnt here, or from a local sentence-transformers model."""
    minilm_path: str | None = None
    """Folder of that model (all-MiniLM-L6-v2, say); needed for `minilm` when the embedding is fitted."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


class MeanParams(Section):
    """The conditional mean around which the student diffuses."""

    kind: Literal["none", "linear", "learned"] = "learned"
    components: int = Field(100, ge=1)
    interactions: int = Field(200, ge=0)
    """Most products of an id with a number; val decides how many of them enter."""
    folds: int = Field(5, ge=2)
    """Out-of-fold residuals for the diffusion model."""


class TrainParams(Section):
    """Teacher and student (stage `train`)."""

    mean: MeanParams = MeanParams()
    steps: int = Field(1200, ge=1)
    batch: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0.0)
    warmup_steps: int = Field(50, ge=0)
    unmasked_tail: float = Field(0.1, ge=0.0, le=1.0)
    """Last share of the steps: no mask, half the learning rate."""
    residual_modes: int = Field(64, ge=0, le=1000)
    """Wafer-wide modes of the residual that the preconditioning treats apart; 0 is plain EDM."""
    p_mean: float = 0.3
    p_std: float = Field(1.4, gt=0.0)
    """Training noise levels: ln sigma ~ N(p_mean, p_std^2)."""
    condition_dropout: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of rows without condition; 0 rules out classifier-free guidance."""
    path_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    """Share of rows whose decoder does without the deep encoder; 0 rules out path-drop guidance."""
    dense_path: bool = True
    """False: hidden tokens enter the decoder as mask tokens, as in MaskDiT; an ablation, needs path_dropout 0."""
    cross_attention: bool = True
    """False: the student reads the pooled condition only, through its modulation; an ablation."""
    ema_gamma: float = Field(6.94, gt=0.0)
    """Exponent of the power-function EMA; 6.94 is a relative width of 0.10 (EDM2)."""
    teacher_decay: float = Field(0.99, ge=0.0, lt=1.0)
    """Share of itself that the teacher, an average of the student, keeps at each step."""
    discriminator: DiscriminatorKind = "implicit"
    codec: Literal["none", "kl"] = "none"
    """`kl`: diffuse latents of 256x256 maps; refused for the pipeline's 64x64 records, see docs/model.md."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is about twice as fast where the hardware has it and many times slower where not; `auto` looks. A model that
    was trained in bf16 is computed in fp32 where there is none."""
    compile: bool = False
    """torch.compile of the transformer blocks: for a GPU; on a CPU compiling takes minutes and gains nothing."""
    cuda_graph: bool = True
    """On one GPU: record the training step once and replay it, which spares the launches of some 2,300 kernels."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between resumable states, rounded down to a multiple of ten."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _weak_branch_needs_a_dense_path(self) -> "TrainParams":
        """Without a dense path a decoder without deep features would have nothing of the map to go by."""
        if not self.dense_path and self.path_dropout:
            raise ValueError("dense_path: false needs path_dropout: 0, the dense path is its weak branch")
        return self


class ServingParams(Section):
    """Comparison of masked with full inference, by which the acceptance gate decides what is served."""

    wafers: int = Field(100, ge=2)
    samples: int = Field(4, ge=1)
    """Per wafer, seed and mode."""
    seeds: int = Field(3, ge=3)
    tau_nm: float = Field(1.5, gt=0.0)
    """Of the gate's OME."""


class EvaluateParams(Section):
    """Generation on the test split (stage `generate`) and its scores (stage `evaluate`)."""

    wafers: int = Field(1000, ge=1)
    """Test wafers that are forecast and scored; the baselines are scored on the same."""
    samples: int = Field(15, ge=2)
    """Maps per wafer: 1000 x 15 are the 15,000 maps of FID-15k."""
    steps: int = Field(10, ge=2)
    tau_nm: float = Field(1.5, gt=0.0)
    """Of OME."""
    limit_nm: float = Field(8.0, gt=0.0)
    """A wafer is out of specification if either axis' |mean| + 3 sigma exceeds it (31 % of the simulated ones)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Of the student in stage `generate`; samples of one device are those of another up to rounding."""
    inference: Literal["served", "full", "masked"] = "served"
    """Of the scored maps; `served` is what the acceptance gate decides, so that what is scored is what is served."""
    serving: ServingParams = ServingParams()


class FidParams(Section):
    """Distances between measured and generated maps (stages `fid_reference`, `fid`)."""

    weights: str = Field("auto", min_length=1)
    """Of the Inception network: `auto` (pytorch-fid's own file, downloaded once), `none`, a path or a URL."""
    dims: list[Literal[64, 192, 768, 2048]] = Field([64, 192, 768, 2048], min_length=1)
    """Depths of the network; one pass gives them all."""
    batch: int = Field(50, ge=1)
    """Images at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """fp32 equals pytorch-fid to 1e-4; bf16 is about twice as fast where the hardware has it, and within 1 % of it;
    `auto` looks. Generated maps are read as the measured ones were."""
    timeout_s: float = Field(5.0, gt=0.0)
    """Longest silence of the network when weights are downloaded."""
    scale_nm: float | None = Field(None, gt=0.0)
    """Range of the rendering to 8-bit RGB; null: the PNG scale of the data set, or six sd where it has none."""
    bootstrap: int = Field(100, ge=0)
    """Replicates of the interval; a fifth of them in spaces wider than 256, none below 2."""
    manifold_maps: int = Field(5000, ge=10)
    """Maps of each side for precision, recall, density and coverage (cost grows with the square)."""
    neighbours: int = Field(5, ge=1)
    """k of the manifolds."""
    kid_subsets: int = Field(100, ge=1)
    kid_subset_size: int = Field(1000, ge=2)


class TimingParams(Section):
    """Speed of inference (stage `timing`)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: int = Field(32, ge=1)
    repeats: int = Field(5, ge=3)
    warmup: int = Field(1, ge=1)
    ddpm_steps: int = Field(1000, ge=0, le=1000)
    """Of the DDPM that is run for one wafer; the figure's name says how many. 0 leaves it out."""


class PromotionParams(Section):
    """When a challenger may become champion (`ikddit.registry.gate`)."""

    coverage_low: float = Field(0.85, ge=0.0, le=1.0)
    """Smallest share of marks inside the 90 % interval."""
    coverage_high: float = Field(0.95, ge=0.0, le=1.0)
    """Largest one: wider intervals say too little."""
    m3s_coverage_low: float = Field(0.8, ge=0.0, le=1.0)
    """Smallest share of wafers whose mean + 3 sigma is inside its 90 % interval."""
    min_gain_nm: float = Field(0.0, ge=0.0)
    """The whole 95 % interval of champion minus challenger RMSE must lie above this."""
    min_paired_wafers: int = Field(25, ge=2)
    """Fewer wafers than these say nothing about which model is better."""


class RegisterParams(Section):
    """MLflow registry (stage `register`)."""

    model_name: str = "ikddit"
    experiment: str = "ikddit"
    alias: str = "challenger"
    version: bool = True
    """False: only a run is logged; neither a version is made nor an alias moved (sweeps)."""
    sweep: str = ""
    """Name of the sweep this run belongs to, as the run's tag `sweep`; empty for none."""
    promotion: PromotionParams = PromotionParams()


class DriftParams(Section):
    """What counts as drift: an effect this large that chance does not explain (`ikddit.monitoring.drift`)."""

    log_wasserstein_sd: float = Field(1.0, gt=0.0)
    """Wasserstein distance of a log channel, in standard deviations of the champion's training data."""
    log_missing: float = Field(0.2, gt=0.0, le=1.0)
    """Change of the share of wafers without a value in a log channel."""
    unknown_ids: float = Field(0.02, ge=0.0, le=1.0)
    """Share of wafers with an id the champion does not know, in one field."""
    map_shift_nm: float = Field(1.0, gt=0.0)
    """Change of one linear coefficient of one scanner and chuck, nm RMS over the wafer."""
    min_lots: int = Field(2, ge=1)
    """Lots a scanner and chuck must have, before and now, to be judged."""
    alpha: float = Field(0.01, gt=0.0, lt=1.0)
    """False discovery rate (Benjamini-Yekutieli), for logs and maps each."""


class ComparisonParams(Section):
    """When the challenger is better: paired test over lots (`ikddit.monitoring.paired`)."""

    alpha: float = Field(0.05, gt=0.0, lt=1.0)
    """Level of the one-sided t test; what else must hold is in section `register.promotion`."""
    min_lots: int = Field(5, ge=2)
    """Fewer lots promote nothing."""


class RetrainParams(Section):
    """Retraining (`pipelines/retrain.py`); docs/retraining.md."""

    incoming: str = "data/incoming"
    """Drop folder: one folder, zip or mark table per delivery."""
    update: str | None = None
    """A .dvc file from `dvc import-url`, or `dvc import`, that is updated before the drop folder is read."""
    months: int = Field(0, ge=0)
    """Newest deliveries a challenger is trained on; 0 takes all, and the data set before them."""
    max_age_days: float = Field(90.0, gt=0.0)
    """Retrain on new wafers when the champion is older, drift or not."""
    error_ratio: float = Field(1.15, gt=1.0)
    """Retrain when the champion's RMSE on new wafers exceeds its registered RMSE by this factor."""
    wafers: int = Field(500, ge=1)
    """New wafers, evenly spaced in time, on which the champion's error is measured."""
    drift: DriftParams = DriftParams()
    comparison: ComparisonParams = ComparisonParams()
    webhook_timeout_s: float = Field(5.0, gt=0.0, le=60.0)
    """For the address in IKDDIT_WEBHOOK_URL."""


class ControlParams(Section):
    """Control charts of the monitoring page (`ikddit monitor`)."""

    period_days: int = Field(7, ge=1, le=366)
    """Length of the subgroup that makes one point of a chart."""
    sigmas: float = Field(3.0, gt=0.0)
    """Half width of the limits in standard deviations of the reference periods."""
    ewma_lambda: float = Field(0.2, gt=0.0, le=1.0)
    """Weight of the newest period in the EWMA."""
    reference_periods: int = Field(8, ge=3)
    """With fewer of them the standard deviation is pooled over all machines."""
    maintenance: str = "PM completed"
    """Regular expression of log lines that mark a maintenance."""

    @field_validator("maintenance")
    @classmethod
    def _maintenance_is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"not a regular expression: {error}; write a plain bracket as \\[ or \\("
            ) from None
        return pattern


class ScheduleParams(Section):
    """When served flows run by themselves (`python -m pipelines.serve`); null: only on demand."""

    retrain: str | None = "0 3 * * 1"
    """Cron line: minute, hour, day of month, month, day of week."""
    reproduce: str | None = None
    """Cron line."""
    timezone: str = "UTC"
    """IANA name, in which the cron lines are read."""


class Params(Section):
    """The whole of params.yaml."""

    seed: int = Field(0, ge=0)
    """Of split, embedding, training and noise; the simulated fab has seeds of its own."""
    model: ModelName = "T/8"
    """Size of the student: width letter / patch size in pixels; `ikddit sizes` lists them."""
    mask_ratio: float = Field(0.5, ge=0.0, lt=1.0)
    """Share of the student's tokens that are hidden."""
    lambda1: float = Field(0.1, ge=0.0)
    """Weight of the mean absolute error of the denoised maps (Eq. 8)."""
    lambda2: float = Field(0.01, ge=0.0)
    """Weight of the loss that aligns student and teacher (Eq. 8)."""
    data: DataParams = DataParams()
    simulate: SimulateParams = SimulateParams()
    ingest: IngestParams = IngestParams()
    validate_: ValidateParams = Field(ValidateParams(), alias="validate")
    prepare: PrepareParams = PrepareParams()
    baselines: BaselineParams = BaselineParams()
    embed: EmbedParams = EmbedParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    fid: FidParams = FidParams()
    timing: TimingParams = TimingParams()
    register_: RegisterParams = Field(RegisterParams(), alias="register")
    retrain: RetrainParams = RetrainParams()
    control: ControlParams = ControlParams()
    schedule: ScheduleParams = ScheduleParams()


def parse_params(values: dict[str, Any], source: str = "params.yaml") -> Params:
    """Check a mapping against the schema.

    Raises:
        ParamsError: names every offending key, what was found and what is allowed.

    >>> parse_params({"mask_ratio": 0.7}).mask_ratio
    0.7
    >>> parse_params({"mask_ration": 0.7})
    Traceback (most recent call last):
        ...
    ikddit.errors.ParamsError: params.yaml: mask_ration: unknown key; did you mean `mask_ratio`?
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(e) for e in error.errors())
        raise ParamsError(f"{source}: {problems}") from None


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        import difflib

        model: type[BaseModel] = Params
        for part in error["loc"][:-1]:
            by_key = {field.alias or n: field for n, field in model.model_fields.items()}
            annotation = by_key[str(part)].annotation
            # a section that may be null is a union
            sections = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
            model = next(kind for kind in sections if issubclass(kind, BaseModel))
        known = [field.alias or n for n, field in model.model_fields.items()]
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{name}: unknown key; " + (f"did you mean `{close[0]}`?" if close else f"known: {known}")
    return f"{name}: {error['msg']}, found {_SHORT.repr(error['input'])}"


MAX_CHARACTERS = 16 << 10
"""Six times the committed file; a text of tens of thousands of brackets kills libyaml's parser, and us with it."""
_SHORT = reprlib.Repr()
"""Shows the beginning of a value: YAML's aliases let a few lines stand for billions of entries."""
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 2


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check params.yaml (YAML 1.2, so that 1e-4 is a number).

    Raises:
        ParamsError: the file is missing, is not YAML, or breaks the schema.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = Path(path).read_text(encoding="utf-8")
        if len(text) > MAX_CHARACTERS:
            raise ParamsError(
                f"{path}: {len(text)} characters, at most {MAX_CHARACTERS}; shorten its comments"
            )
        values = YAML(typ="safe").load(text)
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run from the repository's root") from None
    except OSError as error:
        raise ParamsError(f"{path}: not readable: {error.strerror}") from None
    # ruamel lets out what Python raises on tags and dates that hold something else, and on nesting without end.
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ParamsError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return parse_params(values, str(path))
